"""What bytes are, judged by how they begin: never by a label, a media type or a file's name."""

from __future__ import annotations

from enum import StrEnum

BINARY_MAGIC = b"\0asm"

HEAD_BYTES = 512
"""As much as `sniff` looks at."""


class Form(StrEnum):
    """Forms of WebAssembly."""

    CORE = "core"
    COMPONENT = "component"
    TEXT = "text"
    UNKNOWN_VERSION = "unknown version"
    NONE = "none"
    """Not WebAssembly."""


_VERSIONS = {b"\1\0\0\0": Form.CORE, b"\x0d\0\1\0": Form.COMPONENT}

_OTHERS = (
    (b"\x7fELF", "native code (ELF): precompiled modules are never taken, they would run unchecked"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"PK\3\4", "a zip archive"),
    (b"#!", "a script"),
    (b"<", "HTML or XML"),
    (b"{", "JSON"),
)


def sniff(head: bytes) -> Form:
    """The form of something that begins with `head`."""
    if head.startswith(BINARY_MAGIC):
        return _VERSIONS.get(head[4:8], Form.UNKNOWN_VERSION)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return Form.TEXT if text.startswith((b"(", b";;")) else Form.NONE


def beginning(head: bytes) -> str:
    """How bytes that aren't WebAssembly begin, for a message: readable, and no longer than a line."""
    if not head:
        return "it is empty"
    quoted = repr(head[:16])[1:]
    for magic, what in _OTHERS:
        if head.startswith(magic):
            return f"it begins with {quoted}, {what}"
    if head[257:262] == b"ustar":
        return "it is a tar archive"
    return f"it begins with {quoted}"
