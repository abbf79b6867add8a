"""What was pulled and compiled, on disk, by digest, within a quota.

    blobs/sha256/<hex>      WebAssembly, binary or text, exactly as it was given
    refs/<hex>.json         what a reference stood for when it was last pulled; <hex> is sha256 of the reference
    compiled/<key>/         module.cwasm (native code) and facts.json (what it is, and the sha256 of module.cwasm)
    salt                    by which credentials are known again (`PulledModule.access`)
    tmp/                    unfinished files; emptied when the store is opened

A file appears under its name only when it is complete and on disk (temporary file, fsync, rename), so a crash at any byte
leaves either the old file or the new one; what belongs to nothing is removed when the store is opened. The JSON files carry a
checksum: one that doesn't match is as if it were not there. Every name is made of hexadecimal digits, whatever a registry
sends. Only the runner's user can read or write here: who can write native code into `compiled` runs it.

When there is no room for what is to be written, what was used longest ago goes (`quota.py`). The time of last use is that of
a blob, or of a facts.json, so that it survives the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from wherry_runner.execution.engine import ModuleKind
from wherry_runner.modules.credentials import Credential
from wherry_runner.modules.quota import Item, victims

ANYBODY = "anybody"
"""Instead of a credential's fingerprint: what was pulled without one."""

MAX_ACCESS = 64
"""Credentials remembered for a reference; one that was forgotten is shown to the registry once more."""

MAX_REFERENCES = 10_000
"""Kept at once, those used last: many may stand for one module."""

MAX_ITEMS = 100_000
"""Blobs and compilations kept at once: so many small files are no small matter for a file system."""

_BLOCK_BYTES = 4096
"""What a file takes at least."""

_LEFT_FREE_BYTES = 512 << 20

_TOUCH_SECONDS = 10.0
"""How exact the times of last use on disk are."""

_SALT_BYTES = 32

_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class StoreLimits:
    """How large a store gets."""

    quota_bytes: int = 10 << 30
    """Of blobs, compiled code, and what is being fetched."""
    free_bytes: int | None = None
    """Left free on its disk for everything else that is there: logs, the journal, volumes. None: 512 MiB, or a twentieth of
    the disk if that is less."""
    kept_seconds: float = 60.0
    """What was used so shortly ago is not removed: it may be about to start."""


@dataclass(frozen=True, kw_only=True)
class PulledModule:
    """What a reference stands for."""

    reference: str
    """With all defaults applied; `url sha256:…` for a module from an https address."""
    manifest_digest: str = ""
    """`sha256:…` of the manifest by which it was resolved: an index's, if the reference names one."""
    layer_digest: str
    """`sha256:…` of the module."""
    packed_by_krustlet: bool = False
    name: str = ""
    """Of the module's file, where it was one among others."""
    entrypoint_args: tuple[str, ...] = ()
    image_args: tuple[str, ...] = ()
    """What a container image says of its arguments (`image_config.py`)."""
    access: tuple[str, ...] = ()
    """Who has shown that they may pull it: fingerprints of credentials, or ANYBODY."""

    @property
    def repository(self) -> str:
        """Whose it is: the reference without tag and digest."""
        return re.sub(r"(:[^:/@]+)?(@.*)?$", "", self.reference)

    def lets_in(self, fingerprints: Collection[str]) -> bool:
        """Whether one who has these credentials needn't ask the registry."""
        return ANYBODY in self.access or any(fingerprint in self.access for fingerprint in fingerprints)


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image whose module is here."""

    reference: str
    """By which it was pulled."""
    repository: str
    manifest_digest: str
    size_bytes: int
    """That its module takes on disk."""


@dataclass(frozen=True, kw_only=True)
class CompiledFacts:
    """What the compiler said of a module."""

    kind: str
    """`core` or `component`."""
    variant: str
    """How it was compiled (`engine.Variant`)."""
    sha256: str
    """Of module.cwasm, in hexadecimal digits."""
    module_digest: str


class StoreFull(OSError):
    """There is no room, and nothing that could go to make some. The text says what holds it."""


class Store:
    """The runner's modules. All calls block shortly, those that sync for the disk; any thread may make them."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: StoreLimits | None = None,
        in_use: Callable[[], Collection[str]] = tuple,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        """Open or make the store, and clear what a crash left unfinished. Raises OSError.

        `in_use`: digests of modules that must stay; only the thread that opens the store asks. `free_bytes`: of its disk.
        """
        self._directory = directory
        self._blobs = directory / "blobs" / "sha256"
        self._refs = directory / "refs"
        self._compiled = directory / "compiled"
        self._tmp = directory / "tmp"
        self._limits = limits or StoreLimits()
        self._in_use = in_use
        self._clock = clock
        self._free_bytes = free_bytes or self._free_on_disk
        self._thread = threading.get_ident()
        self._lock = threading.RLock()
        self._writing_references = threading.Lock()
        self._items: dict[str, Item] = {}
        """Blobs by digest, compilations by key."""
        self._pulled: dict[str, PulledModule] = {}
        """By reference, those recalled last at the end."""
        self._touched: dict[str, float] = {}
        """When an item's time of last use was written to disk."""
        self._used_bytes = 0
        self._reserved_bytes = 0
        self._held: Counter[str] = Counter()
        self._needed: frozenset[str] = frozenset()
        self._needed_at = 0.0
        """What `in_use` said last, and when."""
        self._opened_at = clock()
        shutil.rmtree(self._tmp, ignore_errors=True)
        for folder in (directory, directory / "blobs", self._blobs, self._refs, self._compiled, self._tmp):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._left_free_bytes = self._to_be_left_free()
        self._load()
        self._salt = self._load_salt()

    @property
    def used_bytes(self) -> int:
        """What blobs and compiled code take."""
        return self._used_bytes

    def complaint(self) -> str:
        """What its disk is short of; "" if nothing: for a health check."""
        try:
            free = self._free_bytes()
        except OSError as error:
            return f"the disk of modules can't be read: {error.strerror}"
        if free >= self._left_free_bytes:
            return ""
        return f"{free >> 20} MiB are free on the disk of modules, of {self._left_free_bytes >> 20} MiB that are to stay free"

    # --- blobs --------------------------------------------------------------------------------------------------------

    def blob(self, digest: str) -> Path:
        """Where a blob is or would be. Raises ValueError for anything but `sha256:<64 hex>`."""
        algorithm, _, digits = digest.partition(":")
        if algorithm != "sha256":
            raise ValueError(f"not a sha256 digest: {digest!r}")
        return self._blobs / _hex(digits)

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is here, which is a use of it; its content is checked when it is compiled."""
        path = self.blob(digest)
        with self._lock:
            here = digest in self._items and path.is_file()
            if here:
                self._touch(digest, path)
        return here

    def put_blob(self, data: bytes) -> str:
        """Store bytes; their digest. Raises OSError (StoreFull)."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not self.has_blob(digest):
            with self.unfinished(len(data)) as file:
                file.stream.write(data)
                self.keep(file, digest)
        return digest

    def keep(self, file: Unfinished, digest: str) -> None:
        """Give a file, which was verified, its name. Raises OSError."""
        path = self.blob(digest)
        file.sync()
        with self._lock:
            os.replace(file.path, path)
            self._unreserve(file)
            self._note(digest, digest, compiled=False, bytes=path.stat().st_size)
        _sync_folder(self._blobs)

    def remove_blob(self, digest: str) -> None:
        """Forget a blob that turned out to be damaged, and what stood for it."""
        with self._lock:
            self.blob(digest).unlink(missing_ok=True)
            self._forget(digest)
            self._drop_references(digest)

    @contextmanager
    def holding(self, digest: str) -> Iterator[None]:
        """Inside, a blob that is here is not removed to make room."""
        with self._lock:
            self._held[digest] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[digest] -= 1
                if not self._held[digest]:
                    del self._held[digest]

    # --- references ---------------------------------------------------------------------------------------------------

    def remember(self, pulled: PulledModule) -> PulledModule:
        """Note what a reference stands for; who had access to the same before keeps it. Raises OSError.

        It goes when its blob goes.
        """
        with self._lock:
            known = self._pulled.pop(pulled.reference, None)
            if known is not None and known.manifest_digest == pulled.manifest_digest:
                access = tuple(dict.fromkeys((*known.access, *pulled.access)))
                pulled = replace(pulled, access=access[-MAX_ACCESS:])
            self._pulled[pulled.reference] = pulled
            while len(self._pulled) > MAX_REFERENCES:
                oldest = next(iter(self._pulled))
                del self._pulled[oldest]
                self._ref(oldest).unlink(missing_ok=True)
        # One after the other, so that the newest is what stays on disk.
        with self._writing_references:
            newest = self._pulled.get(pulled.reference)
            if newest is not None:
                self._write(self._ref(pulled.reference), _sealed(asdict(newest)))
        return pulled

    def recall(self, reference: str) -> PulledModule | None:
        """What a reference stood for, if its module is still here."""
        with self._lock:
            pulled = self._pulled.pop(reference, None)
            if pulled is None or not self.has_blob(pulled.layer_digest):
                return None
            self._pulled[reference] = pulled
        return pulled

    def same_manifest(self, repository: str, manifest_digest: str) -> PulledModule | None:
        """What was pulled from this repository by another reference to the same manifest, if its module is still here."""
        with self._lock:
            for pulled in self._pulled.values():
                if pulled.manifest_digest == manifest_digest and pulled.repository == repository:
                    return pulled if self.has_blob(pulled.layer_digest) else None
        return None

    def images(self) -> list[StoredImage]:
        """What was pulled from registries and is here, once for each reference."""
        with self._lock:
            return [
                StoredImage(
                    reference=pulled.reference,
                    repository=pulled.repository,
                    manifest_digest=pulled.manifest_digest,
                    size_bytes=item.bytes,
                )
                for pulled in self._pulled.values()
                if pulled.manifest_digest and (item := self._items.get(pulled.layer_digest)) is not None
            ]

    def fingerprint(self, credential: Credential) -> str:
        """By what this store knows a credential again."""
        return credential.fingerprint(self._salt)

    def _ref(self, reference: str) -> Path:
        return self._refs / (hashlib.sha256(reference.encode()).hexdigest() + ".json")

    def _drop_references(self, digest: str) -> None:
        for reference in [pulled.reference for pulled in self._pulled.values() if pulled.layer_digest == digest]:
            del self._pulled[reference]
            self._ref(reference).unlink(missing_ok=True)

    # --- compiled modules ---------------------------------------------------------------------------------------------

    def compiled(self, key: str) -> tuple[Path, CompiledFacts] | None:
        """A compiled module and its facts, which is a use of it, unverified; None if it isn't here."""
        folder = self._compiled / _hex(key)
        facts = _read_facts(folder / "facts.json")
        if facts is None:
            return None
        with self._lock:
            if key in self._items:
                self._touch(key, folder / "facts.json")
        return folder / "module.cwasm", facts

    def uses_compiled(self, key: str) -> bool:
        """Whether a compiled module is here, which is a use of it; for who knows its facts already."""
        with self._lock:
            here = key in self._items
            if here:
                self._touch(key, self._compiled / _hex(key) / "facts.json")
        return here

    def put_compiled(self, key: str, file: Unfinished, facts: CompiledFacts) -> Path:
        """Move a finished file in. Raises OSError (StoreFull)."""
        file.sync()
        size = file.path.stat().st_size
        with self._lock:
            self._make_room(size, sparing=facts.module_digest)
        # A new folder takes the old one's place: there is never code under the facts of other code.
        final = self._compiled / _hex(key)
        with tempfile.TemporaryDirectory(dir=self._tmp) as parent:
            folder = Path(parent) / "new"
            folder.mkdir(mode=0o700)
            os.replace(file.path, folder / "module.cwasm")
            self._write(folder / "facts.json", _sealed(asdict(facts)))
            with self._lock:
                if final.exists():
                    os.rename(final, Path(parent) / "old")
                os.rename(folder, final)
                self._note(key, facts.module_digest, compiled=True, bytes=size)
            _sync_folder(self._compiled)
        return final / "module.cwasm"

    # --- files --------------------------------------------------------------------------------------------------------

    @contextmanager
    def unfinished(self, bytes: int = 0) -> Iterator[Unfinished]:
        """A temporary file, gone afterwards unless it was kept, and room for so many bytes. Raises OSError (StoreFull)."""
        with self._lock:
            if threading.get_ident() == self._thread:
                self._needed, self._needed_at = frozenset(self._in_use()), self._clock()
            self._make_room(bytes)
            self._reserved_bytes += bytes
        file: Unfinished | None = None
        try:
            descriptor, name = tempfile.mkstemp(dir=self._tmp)  # 0600
            file = Unfinished(Path(name), open(descriptor, "w+b"), bytes)  # noqa: SIM115 (closed below, whoever uses it)
            yield file
        finally:
            with self._lock:
                if file is None:
                    self._reserved_bytes -= bytes
                else:
                    self._unreserve(file)
            if file is not None:
                with suppress(OSError):  # a full disk says so once more
                    file.stream.close()
                file.path.unlink(missing_ok=True)

    def _unreserve(self, file: Unfinished) -> None:
        self._reserved_bytes -= file.reserved_bytes
        file.reserved_bytes = 0

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._tmp)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(descriptor)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
        _sync_folder(path.parent)

    # --- room ---------------------------------------------------------------------------------------------------------

    def _make_room(self, bytes: int, *, sparing: str = "") -> None:
        """Remove what was used longest ago until `bytes` more fit. Raises StoreFull, and then nothing is removed."""
        limits = self._limits
        free = self._free_bytes()
        over_quota = self._used_bytes + self._reserved_bytes + bytes - limits.quota_bytes
        over_disk = self._left_free_bytes + bytes - free
        too_many = len(self._items) + 1 - MAX_ITEMS
        if max(over_quota, over_disk, too_many) <= 0:
            return
        gone = victims(
            self._items.values(),
            in_use={*self._needed, *self._held, sparing},
            # What was used since `in_use` was asked is not in its answer.
            used_before=min(self._clock(), self._needed_at or self._clock()) - limits.kept_seconds,
            opened_at=self._opened_at,
            bytes=max(over_quota, over_disk, 0),
            count=max(too_many, 0),
        )
        if gone is None and max(over_quota, too_many) > 0:
            raise StoreFull(
                f"no room for {bytes} bytes more: the runner keeps at most {limits.quota_bytes} bytes of modules "
                f"(--modules-quota-bytes), and {self._used_bytes + self._reserved_bytes} are there, too many of them in use"
            )
        if gone is None:
            raise StoreFull(
                f"no room for {bytes} bytes more: the runner's disk has {free} bytes free, {self._left_free_bytes} are left "
                "to others (--modules-free-bytes), and the modules that are there are in use"
            )
        for item in gone:
            self._remove(item)

    def _remove(self, item: Item) -> None:
        if item.compiled:
            self._remove_compiled(item.name)
        else:
            self.blob(item.name).unlink(missing_ok=True)
            self._drop_references(item.digest)
        self._forget(item.name)

    def _remove_compiled(self, key: str) -> None:
        folder = self._compiled / key
        (folder / "facts.json").unlink(missing_ok=True)  # first: without its facts, code is nothing
        shutil.rmtree(folder, ignore_errors=True)

    def _note(self, name: str, digest: str, *, compiled: bool, bytes: int, used_at: float | None = None) -> None:
        self._forget(name)
        taken = -(-bytes // _BLOCK_BYTES) * _BLOCK_BYTES + _BLOCK_BYTES
        now = self._clock() if used_at is None else used_at
        self._items[name] = Item(name=name, digest=digest, compiled=compiled, bytes=taken, used_at=now)
        self._touched[name] = now
        self._used_bytes += taken

    def _forget(self, name: str) -> None:
        item = self._items.pop(name, None)
        if item is not None:
            del self._touched[name]
            self._used_bytes -= item.bytes

    def _touch(self, name: str, path: Path) -> None:
        item, now = self._items[name], self._clock()
        if now - self._touched[name] >= _TOUCH_SECONDS:
            self._touched[name] = now
            # Where that fails, it is only the order in which things go.
            with suppress(OSError):
                os.utime(path, (now, now))
        self._items[name] = replace(item, used_at=max(now, item.used_at))

    def _to_be_left_free(self) -> int:
        if self._limits.free_bytes is not None:
            return self._limits.free_bytes
        status = os.statvfs(self._directory)
        return min(_LEFT_FREE_BYTES, status.f_blocks * status.f_frsize // 20)

    def _free_on_disk(self) -> int:
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize

    # --- what is found at the start -----------------------------------------------------------------------------------

    def _load(self) -> None:
        """Count what is here, and remove what belongs to nothing. Raises OSError."""
        for path in self._blobs.iterdir():
            if _HEX.fullmatch(path.name) and path.is_file():
                digest = f"sha256:{path.name}"
                self._note(digest, digest, compiled=False, bytes=path.stat().st_size, used_at=self._used_at(path))
        for folder in self._compiled.iterdir():
            facts = _read_facts(folder / "facts.json") if _HEX.fullmatch(folder.name) else None
            code = folder / "module.cwasm"
            if facts is None or facts.module_digest not in self._items or not code.is_file():
                shutil.rmtree(folder, ignore_errors=True)
                continue
            used_at = self._used_at(folder / "facts.json")
            digest = facts.module_digest
            self._note(folder.name, digest, compiled=True, bytes=code.stat().st_size, used_at=used_at)
        for path in sorted(self._refs.iterdir(), key=self._used_at):
            pulled = _read_pulled(path)
            if pulled is None or pulled.layer_digest not in self._items or self._ref(pulled.reference) != path:
                path.unlink()
            else:
                self._pulled[pulled.reference] = pulled

    def _used_at(self, path: Path) -> float:
        """Never later than now, whatever the clock once was."""
        return min(path.stat().st_mtime, self._opened_at - 1.0)

    def _load_salt(self) -> bytes:
        path = self._directory / "salt"
        try:
            salt = path.read_bytes()
        except FileNotFoundError:
            salt = b""
        if len(salt) != _SALT_BYTES:
            # Who had access is not known any more, and is asked again.
            salt = secrets.token_bytes(_SALT_BYTES)
            self._write(path, salt)
        return salt


@dataclass
class Unfinished:
    """A file that has no name yet."""

    path: Path
    stream: BinaryIO
    reserved_bytes: int = 0

    def sync(self) -> None:
        """Put it on disk. Blocks for the disk. Raises OSError."""
        self.stream.flush()
        os.fsync(self.stream.fileno())


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_pulled(path: Path) -> PulledModule | None:
    try:
        fields = _unsealed(path.read_bytes())
        lists = {name: tuple(fields.get(name, ())) for name in ("entrypoint_args", "image_args", "access")}
        pulled = PulledModule(**(fields | lists))
    except (OSError, ValueError, TypeError):
        return None
    return pulled if _DIGEST.fullmatch(pulled.layer_digest) else None


def _read_facts(path: Path) -> CompiledFacts | None:
    try:
        facts = CompiledFacts(**_unsealed(path.read_bytes()))
        ModuleKind(facts.kind)
    except (OSError, ValueError, TypeError):
        return None
    return facts if _DIGEST.fullmatch(facts.module_digest) else None


def _sealed(fields: dict[str, Any]) -> bytes:
    """JSON and a checksum, a line each."""
    line = json.dumps(fields).encode()
    return line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"


def _unsealed(data: bytes) -> dict[str, Any]:
    """Raises ValueError for anything but what `_sealed` made."""
    line, _, checksum = data.partition(b"\n")
    if checksum != hashlib.sha256(line).hexdigest().encode() + b"\n":
        raise ValueError("the checksum doesn't match")
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return fields


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
