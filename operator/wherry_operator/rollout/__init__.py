"""Which instances of a WasmWorkload are to run, and which are to go. Pure: nothing here does I/O.

What is remembered is the object's own status, and what runners say: an operator that was born a moment ago decides the same.
"""
