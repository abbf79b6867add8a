"""Which Services there should be, and what they should lead to. Pure: nothing here does I/O."""
