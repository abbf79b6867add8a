"""Reads a tar archive from a stream, entry by entry: what is in it, and the bytes of a file that is wanted.

Not `tarfile`, which takes the archive's word for the size of a header and reads that into memory. Here a header is bounded, and
nothing is kept of what was passed by. Formats: ustar, GNU's long names, pax. Sparse files are told as OTHER: no module is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

MAX_HEADER_BYTES = 1 << 20
"""Of an extended header or a long name."""

MAX_PATH_CHARACTERS = 4096
"""As Linux has it."""

_BLOCK = 512
_CHUNK = 256 << 10

_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders, pipes: whatever size they are given (POSIX, pax Interchange Format)."""

_PAX_KEYS = ("path", "linkpath", "size")
_SPARSE = "sparse"


class Stream(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty at the end."""


class TarError(Exception):
    """Not an archive, or one that can't be read; the text says why."""


class Kind(StrEnum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry."""

    path: str
    """As the archive has it: anything."""
    kind: Kind
    size: int
    """Of its content."""
    target: str
    """Of a link."""


_KINDS = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE,
    b"1": Kind.HARDLINK, b"2": Kind.SYMLINK, b"5": Kind.DIRECTORY,
}  # fmt: skip


class Reader:
    """Reads an archive once, from its beginning to its end."""

    def __init__(self, stream: Stream, *, max_headers: int) -> None:
        self._stream = stream
        self._max_headers = max_headers
        self.headers = 0
        """Read so far."""
        self._unread = 0
        """Of the current entry's content."""
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        """All entries. Raises TarError, and what the stream raises."""
        pax: dict[str, str] = {}
        long_path = long_target = ""
        while (header := self._header()) is not None:
            kind, size = header[156:157], _number(header[124:136])
            if kind in (b"x", b"g", b"L", b"K"):
                data = self._extension(size)
                match kind:
                    case b"x":
                        pax = _pax(data)
                    case b"L":
                        long_path = _text(data)
                    case b"K":
                        long_target = _text(data)
                continue
            if "size" in pax:
                if not (pax["size"].isascii() and pax["size"].isdigit()):
                    raise TarError("an entry's size is no number")
                size = int(pax["size"][:20])
            entry = _entry(header, size, pax=pax, long_path=long_path, long_target=long_target)
            pax, long_path, long_target = {}, "", ""
            self._expect(0 if kind in _WITHOUT_CONTENT else size)
            yield entry
            self._skip()

    def content(self) -> Iterator[bytes]:
        """The bytes of the entry that was yielded last. Raises TarError, and what the stream raises."""
        while self._unread:
            chunk = self._stream.read(min(self._unread, _CHUNK))
            if not chunk:
                raise TarError("it ends in the middle of a file")
            self._unread -= len(chunk)
            yield chunk

    def _header(self) -> bytes | None:
        """The next header; None at the end, which is a block of zeros or the end of the stream."""
        block = self._read(_BLOCK)
        if not block or block == bytes(_BLOCK):
            return None
        if len(block) < _BLOCK:
            raise TarError("it ends in the middle of a header")
        self.headers += 1
        if self.headers > self._max_headers:
            raise TarError("it has too many entries")
        sum_of_bytes = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if _number(block[148:156]) != sum_of_bytes:
            raise TarError("a header has a wrong checksum")
        return block

    def _expect(self, size: int) -> None:
        self._unread, self._padding = size, -size % _BLOCK

    def _extension(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise TarError(f"a header in it has {size} bytes; at most {MAX_HEADER_BYTES} are read")
        self._expect(size)
        data = b"".join(self.content())
        self._skip()
        return data

    def _skip(self) -> None:
        for _ in self.content():
            pass
        self._read(self._padding)

    def _read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        data = b""
        while len(data) < size and (chunk := self._stream.read(size - len(data))):
            data += chunk
        return data


def _entry(header: bytes, size: int, *, pax: dict[str, str], long_path: str, long_target: str) -> Entry:
    path = _text(header[0:100])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        path = f"{prefix}/{path}"
    path = pax.get("path") or long_path or path
    target = pax.get("linkpath") or long_target or _text(header[157:257])
    if max(len(path), len(target)) > MAX_PATH_CHARACTERS:
        raise TarError(f"a path in it is longer than {MAX_PATH_CHARACTERS} characters")
    kind = _KINDS.get(header[156:157], Kind.OTHER)
    if kind is Kind.FILE and path.endswith("/"):  # before ustar, a folder was a file with this name
        kind = Kind.DIRECTORY
    if _SPARSE in pax:
        kind = Kind.OTHER
    return Entry(path, kind, size, target)


def _pax(data: bytes) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE\\n`, the length that of the whole record; those that matter here."""
    records: dict[str, str] = {}
    position = 0
    while position < len(data):
        length, _, _ = data[position : position + 20].partition(b" ")
        end = position + (int(length) if length.isdigit() else 0)
        key, separator, value = data[position + len(length) + 1 : end - 1].partition(b"=")
        if not separator or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarError("an extended header in it can't be read")
        name = key.decode(errors="replace")
        if name in _PAX_KEYS:
            records[name] = value.decode(errors="surrogateescape")
        elif name.startswith("GNU.sparse."):
            records[_SPARSE] = "1"
        position = end
    return records


def _number(field: bytes) -> int:
    """Octal digits, or, with the first bit set, a binary number (GNU)."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise TarError("a header has a negative number")
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0") or b"0"
    if digits.strip(b"01234567"):
        raise TarError("a header has a number that can't be read")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")
