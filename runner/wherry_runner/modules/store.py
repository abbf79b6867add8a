"""What was pulled and compiled, on disk, by digest.

    blobs/sha256/<hex>      WebAssembly, binary or text, exactly as it was given
    refs/<hex>.json         what a reference stood for when it was last pulled; <hex> is sha256 of the reference
    compiled/<key>/         module.cwasm (native code) and facts.json (what it is, and the sha256 of module.cwasm)
    tmp/                    unfinished files; emptied when the store is opened

A file appears under its name only when it is complete and on disk (temporary file, fsync, rename), so a crash at any byte
leaves either the old file or the new one. Every name is made of hexadecimal digits, whatever a registry sends. Only the
runner's user can read or write here: who can write native code into `compiled` runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class PulledModule:
    """What a reference stands for."""

    reference: str
    """With all defaults applied."""
    manifest_digest: str
    """`sha256:…` of the manifest by which it was resolved: an index's, if the reference names one."""
    layer_digest: str
    """`sha256:…` of the module."""
    packed_by_krustlet: bool


@dataclass(frozen=True, kw_only=True)
class CompiledFacts:
    """What the compiler said of a module."""

    kind: str
    """`core` or `component`."""
    sha256: str
    """Of module.cwasm, in hexadecimal digits."""
    module_digest: str


class Store:
    """The runner's modules. All calls block shortly; `unfinished` files are synced by `Unfinished.commit`."""

    def __init__(self, directory: Path) -> None:
        """Open or make the store, and clear what a crash left unfinished. Raises OSError."""
        self._blobs = directory / "blobs" / "sha256"
        self._refs = directory / "refs"
        self._compiled = directory / "compiled"
        self._tmp = directory / "tmp"
        shutil.rmtree(self._tmp, ignore_errors=True)
        for folder in (directory, directory / "blobs", self._blobs, self._refs, self._compiled, self._tmp):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- blobs --------------------------------------------------------------------------------------------------------

    def blob(self, digest: str) -> Path:
        """Where a blob is or would be. Raises ValueError for anything but `sha256:<64 hex>`."""
        algorithm, _, digits = digest.partition(":")
        if algorithm != "sha256":
            raise ValueError(f"not a sha256 digest: {digest!r}")
        return self._blobs / _hex(digits)

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is here; its content is checked when it is compiled."""
        return self.blob(digest).is_file()

    def put_blob(self, data: bytes) -> str:
        """Store bytes; their digest. Raises OSError."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not self.has_blob(digest):
            with self.unfinished() as file:
                file.stream.write(data)
                file.commit(self.blob(digest))
        return digest

    def remove_blob(self, digest: str) -> None:
        """Forget a blob that turned out to be damaged."""
        self.blob(digest).unlink(missing_ok=True)

    # --- references ---------------------------------------------------------------------------------------------------

    def remember(self, pulled: PulledModule) -> None:
        """Note what a reference stands for. Its blob must be here. Raises OSError."""
        self._write(self._ref(pulled.reference), json.dumps(asdict(pulled)).encode())

    def recall(self, reference: str) -> PulledModule | None:
        """What a reference stood for, if its module is still here."""
        try:
            pulled = PulledModule(**json.loads(self._ref(reference).read_bytes()))
            return pulled if self.has_blob(pulled.layer_digest) and pulled.reference == reference else None
        except (OSError, ValueError, TypeError):
            return None

    def _ref(self, reference: str) -> Path:
        return self._refs / (hashlib.sha256(reference.encode()).hexdigest() + ".json")

    # --- compiled modules ---------------------------------------------------------------------------------------------

    def compiled(self, key: str) -> tuple[Path, CompiledFacts] | None:
        """A compiled module and its facts, unverified; None if it isn't here."""
        folder = self._compiled / _hex(key)
        try:
            facts = CompiledFacts(**json.loads((folder / "facts.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return folder / "module.cwasm", facts

    def put_compiled(self, key: str, file: Unfinished, facts: CompiledFacts) -> Path:
        """Move a finished file in. Raises OSError."""
        folder = self._compiled / _hex(key)
        folder.mkdir(mode=0o700, exist_ok=True)
        # The facts go first: code under the facts of other code must not exist at any time.
        (folder / "facts.json").unlink(missing_ok=True)
        _sync_folder(folder)
        path = folder / "module.cwasm"
        file.commit(path)
        self._write(folder / "facts.json", json.dumps(asdict(facts)).encode())
        return path

    # --- files --------------------------------------------------------------------------------------------------------

    @contextmanager
    def unfinished(self) -> Iterator[Unfinished]:
        """A temporary file, gone afterwards unless it was committed. Raises OSError."""
        descriptor, name = tempfile.mkstemp(dir=self._tmp)  # 0600
        file = Unfinished(Path(name), open(descriptor, "w+b"))  # noqa: SIM115 (closed below, whoever uses it)
        try:
            yield file
        finally:
            file.stream.close()
            file.path.unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        with self.unfinished() as file:
            file.stream.write(data)
            file.commit(path)


@dataclass(frozen=True)
class Unfinished:
    """A file that has no name yet."""

    path: Path
    stream: BinaryIO

    def commit(self, path: Path) -> None:
        """Put it on disk and give it its name. Blocks for the disk. Raises OSError."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        os.replace(self.path, path)
        _sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hex(digits: str) -> str:
    if not _HEX.fullmatch(digits):
        raise ValueError(f"not 64 hexadecimal digits: {digits!r}")
    return digits


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
