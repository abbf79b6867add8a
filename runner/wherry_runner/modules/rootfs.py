"""Finds one file in the layers of a container image, and takes out its bytes: nothing else of an image is ever written.

Layers are tar archives, plain or gzip, told by their first bytes. A later one covers the earlier: an entry of its own, a
whiteout (`.wh.NAME`), an opaque folder (`.wh..wh..opq`), a file where there was a folder (OCI image specification, layer.md).
Links are followed within the image, whose root is above nothing. Each layer is read twice at most: once for the names of all
that is in it, once for the file.

All of it is a stranger's: what unpacks to too much, has too many entries or too many links ends with an error, soon and in
bounded memory.
"""

from __future__ import annotations

import gzip
import posixpath
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from wherry_runner.modules import tar
from wherry_runner.modules.errors import shown
from wherry_runner.modules.manifest import ZSTD, NotAModule

MAX_HEADERS = 100_000
"""Of all layers together; their names are kept in memory."""

MAX_NAMES_CHARACTERS = 8 << 20
"""Of all layers' paths and links together."""

MAX_LINKS = 40
"""Followed to one file, as Linux has it."""

MAX_DEPTH = 64
"""Folders above a file that is looked for."""

MAX_RATIO = 200
"""A layer doesn't unpack to more times its size, beyond `_FREE_BYTES`: WebAssembly shrinks to a third, gzip's zeros to a
thousandth."""

_FREE_BYTES = 64 << 20

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer as it was pulled and verified."""

    file: BinaryIO
    size: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where a file's bytes are."""

    layer: int
    number: int
    """Of the entry in its layer."""
    size: int


@dataclass
class _Contents:
    """What one layer has, and what it hides of the layers below."""

    entries: dict[str, tuple[int, tar.Entry]] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)

    def hides(self, path: str) -> bool:
        """Whether a path of the layers below can't be seen through this one."""
        if path in self.removed:
            return True
        folder = path
        while folder:
            folder = folder.rpartition("/")[0]
            if folder in self.removed or folder in self.opaque:
                return True
            if folder in self.entries and self.entries[folder][1].kind is not tar.Kind.DIRECTORY:
                return True
        return False


class Image:
    """The files of an image. Blocking: run it in a thread; `stop` ends it soon, with NotAModule."""

    def __init__(self, layers: Sequence[Layer], *, max_unpacked_bytes: int, stop: threading.Event) -> None:
        """`layers`: the lowest first. Reads all names. Raises NotAModule, OSError."""
        self._layers = layers
        self._max_unpacked_bytes = max_unpacked_bytes
        self._stop = stop
        self._headers = 0
        self._names = 0
        self._unpacked = 0
        self._contents = [self._read(number) for number in range(len(layers))]

    def find(self, path: str) -> Found:
        """The file at an absolute path, links followed. Raises NotAModule."""
        at = ""
        remaining = _parts(path)
        links = 0
        if len(remaining) > MAX_DEPTH:
            raise NotAModule(f'is to run "{shown(path)}", which is too deep in its folders')
        while remaining:
            part = remaining.pop(0)
            if part == "..":
                at = at.rpartition("/")[0]
                continue
            here = f"{at}/{part}" if at else part
            found = self._lookup(here)
            if found is not None and found[1].kind is tar.Kind.SYMLINK:
                links += 1
                target = found[1].target
                remaining = _parts(target) + remaining
                if links > MAX_LINKS or len(remaining) > MAX_DEPTH:
                    raise NotAModule(f'has too many links on the way to "{shown(path)}"')
                at = "" if target.startswith("/") else at
                continue
            at = here
        found = self._lookup(at)
        if found is None:
            raise NotAModule(f'is to run "{shown(path)}", which is not among its files')
        layer, entry, number = found
        if entry.kind is tar.Kind.HARDLINK:  # to a file of its own layer, by its name there
            number, entry = self._contents[layer].entries.get(_clean(entry.target) or "", (number, entry))
        if entry.kind is not tar.Kind.FILE:
            raise NotAModule(f'is to run "{shown(path)}", which is not a file in it')
        return Found(layer=layer, number=number, size=entry.size)

    def chunks(self, found: Found) -> Iterator[bytes]:
        """A file's bytes. Raises NotAModule, OSError."""
        with self._opened(found.layer, self._max_unpacked_bytes, MAX_HEADERS) as reader:
            for number, _ in enumerate(reader):
                if number == found.number:
                    yield from reader.content()
                    return

    def _lookup(self, path: str) -> tuple[int, tar.Entry, int] | None:
        for layer in reversed(range(len(self._contents))):
            contents = self._contents[layer]
            if path in contents.entries:
                number, entry = contents.entries[path]
                return layer, entry, number
            if contents.hides(path):
                return None
        return None

    def _read(self, layer: int) -> _Contents:
        contents = _Contents()
        opened = self._opened(layer, self._max_unpacked_bytes - self._unpacked, MAX_HEADERS - self._headers)
        with opened as reader:
            for number, entry in enumerate(reader):
                path = _clean(entry.path)
                if path is None:
                    continue  # it would leave the image: no path leads to it
                folder, _, name = path.rpartition("/")
                if name == ".wh..wh..opq":
                    contents.opaque.add(folder)
                elif name.startswith(".wh..wh."):
                    continue  # of aufs, for itself
                elif name.startswith(".wh."):
                    contents.removed.add(posixpath.join(folder, name[4:]))
                else:
                    contents.entries[path] = number, entry
                self._names += len(entry.path) + len(entry.target)
                if self._names > MAX_NAMES_CHARACTERS:
                    raise NotAModule("is a container image with too many files")
        self._unpacked += opened.unpacked
        self._headers += reader.headers
        return contents

    def _opened(self, layer: int, max_unpacked_bytes: int, max_headers: int) -> _Opened:
        return _Opened(
            self._layers[layer], max_unpacked_bytes=max_unpacked_bytes, max_headers=max_headers, stop=self._stop
        )


class _Opened:
    """An archive, open from its beginning, and its errors in words."""

    def __init__(self, layer: Layer, *, max_unpacked_bytes: int, max_headers: int, stop: threading.Event) -> None:
        self._layer = layer
        self._most = min(max_unpacked_bytes, max(_FREE_BYTES, layer.size * MAX_RATIO))
        self._max_headers = max_headers
        self._stop = stop
        self.unpacked = 0
        self._source: tar.Stream = layer.file

    def __enter__(self) -> tar.Reader:
        self._layer.file.seek(0)
        head = self._layer.file.read(4)
        self._layer.file.seek(0)
        if head == _ZSTD:
            raise NotAModule(ZSTD)
        if head.startswith(_GZIP):
            self._source = gzip.GzipFile(fileobj=self._layer.file)
        return tar.Reader(self, max_headers=self._max_headers)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        match error:
            case tar.TarError():
                raise NotAModule(f"has a layer that is no good tar archive: {error}") from error
            case gzip.BadGzipFile() | zlib.error() | EOFError():
                raise NotAModule("has a layer whose gzip data is damaged") from error

    def read(self, size: int) -> bytes:
        """As `tar.Stream`, bounded."""
        if self._stop.is_set():
            raise NotAModule("is no longer wanted")
        data = self._source.read(size)
        self.unpacked += len(data)
        if self.unpacked > self._most:
            raise NotAModule(
                f"has a layer of {self._layer.size} bytes that unpacks to more than {self._most}, which is as far as it is "
                "unpacked"
            )
        return data


def _clean(path: str) -> str | None:
    """A path without `.` and slashes at its ends; None for one with `..` in it, or for the root."""
    parts = _parts(path)
    return "/".join(parts) if parts and ".." not in parts else None


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
