"""What a runner says that it is short of, and which images it lists."""

from __future__ import annotations

import asyncio
from pathlib import Path

from wherry_runner.modules.store import PulledModule, Store, StoredImage, StoreLimits
from wherry_runner.resources.admission import PROCESSES_PER_GUEST, Admission, Amounts
from wherry_runner.resources.cgroup import MemoryUse
from wherry_runner.resources.memory_watch import MemoryWatch
from wherry_runner.serving.condition import MAX_IMAGES, MAX_NAMES, Condition, listed

MANIFEST = "sha256:" + "1" * 64
MIB = 1 << 20


def image(reference: str, manifest: str = MANIFEST, size: int = 100) -> StoredImage:
    repository = reference.partition("@")[0].rpartition(":")[0] or reference.partition("@")[0]
    return StoredImage(reference=reference, repository=repository, manifest_digest=manifest, size_bytes=size)


def test_each_pressure_is_what_was_complained_of() -> None:
    said = {"a": "", "b": ""}
    condition = Condition(
        memory=(lambda: "", lambda: "memory is short"),
        disk=(lambda: said["a"], lambda: said["b"]),
        processes=(lambda: "",),
        images=list,
    )
    found = condition.read()
    assert (found.memory_pressure, found.disk_pressure, found.pid_pressure) == ("memory is short", "", "")
    said.update(a="one", b="two")
    assert condition.read().disk_pressure == "one; two"


def test_an_image_is_listed_once_with_all_its_names() -> None:
    (found,) = listed([image("r.example/x:v1"), image("r.example/x:v2"), image(f"r.example/x@{MANIFEST}")])
    assert found.names == (f"r.example/x@{MANIFEST}", "r.example/x:v1", "r.example/x:v2")
    assert found.size_bytes == 100


def test_the_largest_images_are_listed() -> None:
    many = [image(f"r.example/x{number}:v1", f"sha256:{number:064}", number) for number in range(MAX_IMAGES + 10)]
    found = listed(many)
    assert [each.size_bytes for each in found] == list(range(MAX_IMAGES + 9, 9, -1))
    (named,) = listed([image(f"r.example/x:v{number}") for number in range(20)])
    assert len(named.names) == MAX_NAMES


def test_the_store_names_what_was_pulled_and_is_here(tmp_path: Path) -> None:
    store = Store(tmp_path)
    here = store.put_blob(b"module")
    gone = store.put_blob(b"another")
    for reference, digest, manifest in (
        ("r.example/x:v1", here, MANIFEST),
        ("r.example/y:v1", gone, MANIFEST),
        (f"url {here}", here, ""),
    ):
        store.remember(PulledModule(reference=reference, manifest_digest=manifest, layer_digest=digest))
    store.remove_blob(gone)
    (found,) = store.images()
    assert (found.reference, found.repository, found.manifest_digest) == ("r.example/x:v1", "r.example/x", MANIFEST)
    assert found.size_bytes >= len(b"module")


def test_a_disk_with_less_free_than_is_to_stay_free_is_told(tmp_path: Path) -> None:
    free = [20 * MIB]
    store = Store(tmp_path, limits=StoreLimits(free_bytes=10 * MIB), free_bytes=lambda: free[0])
    assert store.complaint() == ""
    free[0] = 9 * MIB
    assert store.complaint() == "9 MiB are free on the disk of modules, of 10 MiB that are to stay free"


def test_processes_that_are_all_kept_are_told() -> None:
    def admission(processes: int) -> Admission:
        offered = Amounts(processes=processes)
        return Admission(offered, default_memory_request_bytes=0, volume_bytes=lambda _: 0)

    assert admission(PROCESSES_PER_GUEST).complaint() == ""
    assert admission(PROCESSES_PER_GUEST - 1).complaint() == "0 of 1 processes are kept for workloads"


class Meter:
    """Says one thing, and is read no more."""

    def __init__(self, use: MemoryUse) -> None:
        self._use = use
        self.read_twice = asyncio.Event()
        self._reads = 0

    def read(self) -> MemoryUse:
        self._reads += 1
        if self._reads == 2:
            self.read_twice.set()
        return self._use


def test_memory_above_the_threshold_is_told() -> None:
    def complaint(used: int) -> str:
        async def watch() -> str:
            meter = Meter(MemoryUse(used * MIB, 100 * MIB))
            watch = MemoryWatch(watched=list, executor_pid=lambda: None, on_kill=lambda: None, meter=meter)
            assert watch.complaint() == ""
            running = asyncio.create_task(watch.run())
            await meter.read_twice.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return watch.complaint()

        return asyncio.run(watch())

    assert complaint(95) == ""
    assert complaint(96) == "memory: 96.0 MiB of 100.0 MiB in use"
