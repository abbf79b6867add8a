"""Modules that are a burden to a compiler or to its limits, in binary form: made quicker than any text could be read."""

from __future__ import annotations

from collections.abc import Iterable

_HEADER = b"\0asm\1\0\0\0"
_I32 = b"\x7f"
_END = b"\x0b"


def many_functions(count: int) -> bytes:
    """A command with so many functions, and as many exports of its first one."""
    exports = [_export("_start", 0), *(_export(f"f{index}", 0) for index in range(count))]
    return _module(functions=[_body(b"")] * count, exports=exports)


def nested(depth: int, *, opened_by: bytes = b"\x02\x40") -> bytes:
    """A command of blocks inside blocks (or loops, or ifs)."""
    return _module(functions=[_body(opened_by * depth + _END * depth)], exports=[_export("_start", 0)])


def tangled(locals_: int, loops: int) -> bytes:
    """A command of loops inside loops that all change all of its variables: kilobytes that take minutes and gigabytes.

    Each loop's beginning has a value for each variable, from wherever it may be reached.
    """
    change = b"".join(b"\x20" + _number(n) + b"\x41\x01\x6a\x21" + _number(n) for n in range(locals_))
    leave = b"".join(b"\x20\x00\x0d" + _number(n) for n in range(loops))
    code = b"\x03\x40" * loops + change + leave + _END * loops
    return _module(functions=[_body(code, locals_=locals_)], exports=[_export("_start", 0)])


def nested_types(depth: int) -> bytes:
    """A component with the type of a component with the type of a component …"""
    return b"\0asm\x0d\0\1\0" + _section(7, b"\x01" + b"\x41\x01\x01" * depth + b"\x41\x00")


def memories(count: int, pages: int) -> bytes:
    """A command with so many memories of so many pages of 64 KiB."""
    section = _section(5, _vector([b"\x00" + _number(pages)] * count))
    return _module(functions=[_body(b"")], exports=[_export("_start", 0)], middle=section)


def table(elements: int) -> bytes:
    """A command with a table of so many functions to be."""
    section = _section(4, _vector([b"\x70\x00" + _number(elements)]))
    return _module(functions=[_body(b"")], exports=[_export("_start", 0)], middle=section)


def _module(*, functions: list[bytes], exports: list[bytes], middle: bytes = b"") -> bytes:
    return b"".join(
        (
            _HEADER,
            _section(1, _vector([b"\x60\x00\x00"])),  # one type: nothing to nothing
            _section(3, _vector([b"\x00"] * len(functions))),
            middle,
            _section(7, _vector(exports)),
            _section(10, _vector(functions)),
        )
    )


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + _number(len(content)) + content


def _vector(items: Iterable[bytes]) -> bytes:
    items = list(items)
    return _number(len(items)) + b"".join(items)


def _body(code: bytes, *, locals_: int = 0) -> bytes:
    content = (b"\x01" + _number(locals_) + _I32 if locals_ else b"\x00") + code + _END
    return _number(len(content)) + content


def _export(name: str, function: int) -> bytes:
    return _number(len(name)) + name.encode() + b"\x00" + _number(function)


def _number(value: int) -> bytes:
    """LEB128, as WebAssembly writes numbers."""
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)
