"""emptyDirs: how long they live, what they count, and when they are too large."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.volumes import (
    ID,
    container,
    empty_dir,
    folder_of,
    made,
    make_deep,
    mount,
    preopens,
    public_folder,
    seen,
    unprivileged,
    volume,
)
from wherry_runner.files.removal import remove_tree
from wherry_runner.protocol import (
    Container,
    EmptyDirVolume,
    ImageModule,
    InitContainer,
    Owner,
    Resources,
    Volume,
    Workload,
)
from wherry_runner.volumes import SizeWatch, VolumeError, Volumes, memory_bytes
from wherry_runner.volumes.empty_dir import exceeded, limit_in_memory, quantity
from wherry_runner.volumes.size_watch import possibly_over
from wherry_runner.volumes.usage import ENTRY_BYTES, MAX_DEPTH, TooDeep, usage

MIB = 1 << 20


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Volumes]:
    with made(tmp_path) as volumes:
        yield volumes


def found_over(volumes: Volumes) -> list[tuple[str, str]]:
    """What one look at both media finds."""
    found: list[tuple[str, str]] = []

    async def look() -> None:
        watch = SizeWatch(volumes, lambda *over: found.append(over))
        await watch.look(in_memory=True)
        await watch.look(in_memory=False)

    asyncio.run(look())
    return found


def size(*folders: Path) -> int:
    *_, total = usage(folders)
    return total


# --- how long it lives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("medium", ["", "Memory"])
def test_it_is_open_to_all_who_have_it_and_keeps_what_is_written_until_the_workload_ends(
    volumes: Volumes, tmp_path: Path, medium: str
) -> None:
    item = empty_dir(medium=medium)
    before = os.umask(0o077)
    try:
        volumes.write(ID, [item])
    finally:
        os.umask(before)
    folder = folder_of(volumes, item)
    assert folder.is_relative_to(tmp_path / ("ram" if medium else "disk"))
    assert folder.stat().st_mode & 0o777 == 0o777
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o700
    (folder / "kept").write_text("kept")
    volumes.write(ID, [item])  # another content, another template
    assert seen(folder_of(volumes, item)) == {"kept": "kept"}
    volumes.write(ID, [])  # no longer named: a container may still have it
    assert seen(folder) == {"kept": "kept"}
    volumes.drop(ID)
    assert not folder.exists()
    volumes.write(ID, [item])
    assert seen(folder_of(volumes, item)) == {}


def test_one_in_memory_is_apart_from_secrets_and_from_the_disk(volumes: Volumes, tmp_path: Path) -> None:
    volumes.write(ID, [empty_dir(medium="Memory"), volume({"a": "1"}, secret=True)])
    assert len(list((tmp_path / "memory").iterdir())) == len(list((tmp_path / "ram").iterdir())) == 1
    assert all(entry.stat().st_mode & 0o777 == 0o700 for entry in (tmp_path / "ram").iterdir())


def test_one_in_memory_is_refused_where_there_is_none_for_it(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path / "disk", tmp_path)
    volumes.clear()
    with pytest.raises(VolumeError, match=r'volume "e": .* no memory for volumes .*--volumes-memory-dir'):
        volumes.write(ID, [empty_dir(medium="Memory")])
    volumes.close()


def test_a_volume_of_another_kind_under_the_same_name_sees_nothing_of_the_first(volumes: Volumes) -> None:
    volumes.write(ID, [empty_dir("v")])
    (folder_of(volumes, empty_dir("v")) / "written").touch()
    volumes.write(ID, [volume({"a": "1"})])
    assert seen(folder_of(volumes, volume({"a": "1"}))) == {"a": "1"}


def test_what_a_guest_locked_or_buried_is_removed_without_root() -> None:
    def scenario() -> None:
        with made(folder) as volumes:
            volumes.write(ID, [empty_dir()])
            inside = folder_of(volumes, empty_dir())
            (inside / "locked" / "deep").mkdir(parents=True)
            (inside / "locked" / "deep" / "file").touch(mode=0)
            (inside / "out").symlink_to(folder / "kept")
            (inside / "locked" / "deep").chmod(0)
            (inside / "locked").chmod(0)
            volumes.drop(ID)
            assert not inside.exists()
        assert (folder / "kept").is_dir()

    with public_folder("/dev/shm") as folder:
        (folder / "kept").mkdir()
        unprivileged(scenario)


# --- what it counts ---------------------------------------------------------------------------------------------------


def workload(*containers: Container, init: tuple[InitContainer, ...] = (), volumes: tuple[Volume, ...]) -> Workload:
    return Workload(
        owner=Owner(kind="Pod", namespace="n", name="p", uid="u"),
        containers=containers or (container(),),
        init_containers=init,
        volumes=volumes,
    )


def with_memory(limit: int | None, *, request: int | None = None) -> Container:
    resources = Resources(memory_limit_bytes=limit, memory_request_bytes=request)
    return container().model_copy(update={"resources": resources})


@pytest.mark.parametrize(
    ("item", "counts"),
    [
        (empty_dir(), 0),
        (empty_dir(limit=MIB), 0),
        (volume({"a": "1"}, secret=True), 0),
        (empty_dir(medium="Memory", limit=MIB), MIB),
        (empty_dir(medium="Memory"), 256 * MIB),
        (empty_dir(medium="Memory", limit=0), 256 * MIB),
    ],
)
def test_only_volumes_in_memory_count_and_those_without_a_limit_count_the_containers(item: Volume, counts: int) -> None:
    assert memory_bytes(workload(volumes=(item,)), default_limit_bytes=256 * MIB) == counts
    twice = workload(volumes=(item, item.model_copy(update={"name": "other"})))
    assert memory_bytes(twice, default_limit_bytes=256 * MIB) == 2 * counts


@pytest.mark.parametrize(
    ("containers", "init", "limit"),
    [
        ([with_memory(MIB)], [], MIB),
        ([with_memory(MIB), with_memory(2 * MIB)], [], 3 * MIB),
        ([with_memory(None)], [], 8 * MIB),
        ([with_memory(None, request=MIB)], [], 8 * MIB),
        ([with_memory(None, request=9 * MIB)], [], 9 * MIB),
        ([with_memory(MIB)], [None], MIB),
        ([with_memory(MIB)], ["Always"], 9 * MIB),
    ],
)
def test_without_a_limit_the_containers_that_run_at_once_decide(
    containers: list[Container], init: list[str | None], limit: int
) -> None:
    before = tuple(
        InitContainer.model_validate({"name": "i", "module": ImageModule(reference="x"), "restart_policy": policy})
        for policy in init
    )
    assert limit_in_memory(workload(*containers, init=before, volumes=()), default_limit_bytes=8 * MIB) == limit


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1000, "1k"),
        (1023, "1023"),
        (1024, "1Ki"),
        (MIB, "1Mi"),
        (1536 * 1024, "1536Ki"),
        (10**9, "1G"),
        (5 << 30, "5Gi"),
        (1_000_001, "1000001"),
        (7 << 60, "7Ei"),
    ],
)
def test_a_limit_is_said_as_kubernetes_says_it(count: int, text: str) -> None:
    assert quantity(count) == text
    assert exceeded("cache", count) == f'Usage of EmptyDir volume "cache" exceeds the limit "{text}".'


# --- how much is in it ------------------------------------------------------------------------------------------------


def test_usage_is_what_is_taken_not_what_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    folder.mkdir()
    assert size(folder) == 0
    (folder / "one").write_bytes(b"x" * 100_000)
    one = (folder / "one").stat().st_blocks * 512 + ENTRY_BYTES
    assert 100_000 < one < 200_000
    assert size(folder) == one
    with open(folder / "sparse", "wb") as file:
        file.truncate(10 << 30)
    assert size(folder) == one + (folder / "sparse").stat().st_blocks * 512 + ENTRY_BYTES < MIB


def test_empty_files_and_folders_count_too(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"f{number}").touch()
        (tmp_path / f"d{number}").mkdir()
    assert size(tmp_path) >= 200 * ENTRY_BYTES


def test_hard_links_count_once_also_across_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * MIB)
    for number in range(10):
        os.link(tmp_path / "a" / "file", tmp_path / "b" / f"link{number}")
    assert MIB < size(tmp_path / "a", tmp_path / "b") < 2 * MIB
    assert MIB < size(tmp_path / "b") < 2 * MIB


def test_links_are_counted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(b"x" * MIB)
    folder = tmp_path / "e"
    folder.mkdir()
    (folder / "folder").symlink_to(tmp_path / "large")
    (folder / "file").symlink_to("../large/file")
    (folder / "up").symlink_to("..")
    (folder / "self").symlink_to("self")
    assert 4 * ENTRY_BYTES <= size(folder) < 100_000
    (tmp_path / "link").symlink_to(tmp_path / "large")
    assert size(tmp_path / "link") == 0, "nor is a folder that was swapped for a link"


def test_what_can_not_be_read_and_what_is_not_there_stop_nothing() -> None:
    def scenario() -> None:
        (folder / "e" / "locked").mkdir(parents=True)
        (folder / "e" / "locked").chmod(0)
        (folder / "e" / "file").write_bytes(b"x" * MIB)
        assert MIB < size(folder / "gone", folder / "e") < 2 * MIB

    with public_folder() as folder:
        unprivileged(scenario)


def test_a_tree_too_deep_to_be_measured_is_told_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    make_deep(tmp_path, levels=MAX_DEPTH)
    assert size(tmp_path) >= MAX_DEPTH * ENTRY_BYTES
    (tmp_path / Path(*["d"] * MAX_DEPTH) / "one-more").mkdir()
    with pytest.raises(TooDeep):
        size(tmp_path)
    walk = usage([tmp_path])
    next(walk)
    del walk  # left in the middle
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- who is over the limit --------------------------------------------------------------------------------------------


def fill(folder: Path, count: int, name: str = "file") -> None:
    (folder / name).write_bytes(b"x" * count)


@pytest.mark.parametrize("medium", ["", "Memory"])
def test_who_writes_more_than_the_limit_is_found(volumes: Volumes, medium: str) -> None:
    items = [
        empty_dir("small", medium=medium, limit=MIB),
        empty_dir("large", medium=medium, limit=8 * MIB),
        empty_dir("none"),
    ]
    volumes.write(ID, items)
    volumes.write("other", items)
    for item in items:
        fill(folder_of(volumes, item), MIB // 2)
    assert found_over(volumes) == []
    for item in items:
        fill(folder_of(volumes, item), MIB, "more")
    over = (ID, 'Usage of EmptyDir volume "small" exceeds the limit "1Mi".')
    assert found_over(volumes) == [over]
    assert found_over(volumes) == [over], "until it is gone"
    volumes.drop(ID)
    assert found_over(volumes) == []


def test_another_life_of_the_same_workload_is_not_blamed_for_what_the_first_wrote(volumes: Volumes) -> None:
    item = empty_dir(limit=MIB)
    volumes.write(ID, [item])
    fill(folder_of(volumes, item), 2 * MIB)
    (before,) = volumes.limited(in_memory=False)
    assert volumes.is_current(before)
    volumes.drop(ID)
    assert not volumes.is_current(before)
    volumes.write(ID, [item])
    assert not volumes.is_current(before)
    assert found_over(volumes) == []


def test_one_in_memory_without_a_limit_has_that_of_its_workload(volumes: Volumes) -> None:
    item = empty_dir(medium="Memory")
    volumes.write(ID, [item, empty_dir("disk")], limit_in_memory_bytes=2 * MIB)
    fill(folder_of(volumes, empty_dir("disk")), 3 * MIB)
    fill(folder_of(volumes, item), MIB)
    assert found_over(volumes) == []
    fill(folder_of(volumes, item), 3 * MIB)
    assert found_over(volumes) == [(ID, 'Usage of EmptyDir volume "e" exceeds the limit "2Mi".')]


def test_many_empty_files_exceed_a_limit(volumes: Volumes) -> None:
    volumes.write(ID, [empty_dir(limit=MIB)])
    folder = folder_of(volumes, empty_dir())
    for number in range(1100):
        (folder / str(number)).touch()
    assert [found[0] for found in found_over(volumes)] == [ID]


def test_what_is_written_beside_a_file_that_is_mounted_by_itself_counts(volumes: Volumes) -> None:
    item = empty_dir(limit=MIB)
    volumes.write(ID, [item])
    (folder_of(volumes, item) / "file").touch()
    private = preopens(volumes, [mount("e", "/data/file", "file")], [item])["/data"]
    fill(private.host_path, 2 * MIB, "beside")
    assert [found[0] for found in found_over(volumes)] == [ID]


def test_one_that_is_too_deep_to_be_measured_is_over_its_limit(volumes: Volumes) -> None:
    volumes.write(ID, [empty_dir(limit=1 << 30), empty_dir("none")])
    for name in ("e", "none"):
        make_deep(folder_of(volumes, empty_dir(name)), levels=MAX_DEPTH + 1)
    ((who, message),) = found_over(volumes)
    assert (who, "can't be measured" in message) == (ID, True)


def test_in_memory_nothing_is_measured_that_can_not_be_over_its_limit() -> None:
    with public_folder("/dev/shm") as folder, made(folder) as volumes:
        items = [empty_dir("small", medium="Memory", limit=1), empty_dir("vast", medium="Memory", limit=1 << 60)]
        volumes.write(ID, items)
        assert [each.volume for each in possibly_over(volumes.limited(in_memory=True))] == ["small"]
        volumes.drop(ID)
        assert possibly_over([]) == []


def test_the_watch_goes_on_until_it_is_cancelled(volumes: Volumes) -> None:
    items = [empty_dir("disk", limit=MIB), empty_dir("ram", medium="Memory", limit=MIB)]

    async def scenario() -> None:
        evicted: asyncio.Queue[str] = asyncio.Queue()
        watch = SizeWatch(
            volumes, lambda _, message: evicted.put_nowait(message), disk_seconds=0.001, memory_seconds=0.001
        )
        task = asyncio.create_task(watch.run())
        volumes.write(ID, items)
        for item in items:
            fill(folder_of(volumes, item), 2 * MIB)
        seen: set[str] = set()
        while len(seen) < 2:
            seen.add(await evicted.get())
        volumes.drop(ID)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


def test_a_tree_that_changes_while_it_is_measured_harms_nobody(volumes: Volumes) -> None:
    volumes.write(ID, [empty_dir(limit=1 << 30)])
    folder = folder_of(volumes, empty_dir())
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (folder / "a" / "b").mkdir(parents=True)
            (folder / "a" / "b" / "file").touch()
            (folder / "a").rename(folder / f"moved-{number % 3}")
            remove_tree(folder / f"moved-{number % 3}")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(30):
            assert found_over(volumes) == []
    finally:
        stop.set()
        thread.join()


# --- the largest file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mounts", "largest"),
    [
        ([], None),
        (["small"], MIB),
        (["small", "large"], 4 * MIB),
        (["small", "files"], MIB),
        (["files"], None),
        (["small", "none"], None),
        (["small", "none:ro"], MIB),
        (["small", "large:ro"], MIB),
        (["ram"], 3 * MIB),
    ],
)
def test_a_file_can_be_as_large_as_the_largest_limit_of_what_is_written_to(
    volumes: Volumes, mounts: list[str], largest: int | None
) -> None:
    items: list[EmptyDirVolume | Volume] = [
        empty_dir("small", limit=MIB),
        empty_dir("large", limit=4 * MIB),
        empty_dir("none"),
        empty_dir("ram", medium="Memory"),
        volume({"a": "1"}, name="files"),
    ]
    volumes.write(ID, items, limit_in_memory_bytes=3 * MIB)
    given = [
        mount(name.removesuffix(":ro"), f"/{number}", read_only=name.endswith(":ro"))
        for number, name in enumerate(mounts)
    ]
    assert volumes.largest_file(ID, container(*given), items) == largest
