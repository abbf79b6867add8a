"""The folders that a guest sees, on every executor, and what it can't reach through them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.runner.conftest import Play
from tests.runner.harness import Bench
from wherry_runner.execution.engine import Limits, Preopen, StartRefused


def folder(path: Path, **files: str) -> Path:
    """A folder with files."""
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_read_only_folders_are_read_and_not_written(play: Play, tool: bytes, tmp_path: Path) -> None:
    config = folder(tmp_path / "config", greeting="hello", other="x")
    mounts = (Preopen(host_path=config, guest_path="/etc/config"),)

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        assert (await bench.run(module, "read", "/etc/config/greeting", preopens=mounts)).text() == "hello"
        listed = await bench.run(module, "list", "/etc/config", preopens=mounts)
        assert sorted(listed.text().split()) == ["greeting", "other"]
        for words in (
            ("create", "/etc/config/greeting", "x"),
            ("create", "/etc/config/new", "x"),
            ("remove", "/etc/config/greeting"),
            ("move", "/etc/config/greeting", "/etc/config/moved"),
            ("folder", "/etc/config/new"),
            ("link", "greeting", "/etc/config/new"),
        ):
            outcome = await bench.run(module, *words, preopens=mounts)
            assert outcome.exit.exit_code == 1, (words, outcome.text())
        assert sorted(os.listdir(config)) == ["greeting", "other"]
        assert (config / "greeting").read_text() == "hello"

    play(scenario)


def test_writable_folders_are_written(play: Play, tool: bytes, tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    mounts = (Preopen(host_path=data, guest_path="/data", writable=True),)

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        for words in (
            ("folder", "/data/sub"),
            ("create", "/data/sub/first", "made"),
            ("move", "/data/sub/first", "/data/second"),
            ("link", "second", "/data/link"),
            ("remove", "/data/sub"),
        ):
            outcome = await bench.run(module, *words, preopens=mounts)
            assert outcome.exit.exit_code == 0, (words, outcome.text())
        assert (await bench.run(module, "read", "/data/link", preopens=mounts)).text() == "made"
        assert sorted(os.listdir(data)) == ["link", "second"]

    play(scenario)


def test_nested_mounts_each_show_their_own(play: Play, tool: bytes, tmp_path: Path) -> None:
    outer, inner, root = (folder(tmp_path / name, file=name) for name in ("outer", "inner", "root"))
    mounts = (
        Preopen(host_path=root, guest_path="/"),
        Preopen(host_path=outer, guest_path="/outer"),
        Preopen(host_path=inner, guest_path="/outer/inner", writable=True),
    )

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        for path, text in (("/file", "root"), ("/outer/file", "outer"), ("/outer/inner/file", "inner")):
            assert (await bench.run(module, "read", path, preopens=mounts)).text() == text
        assert (await bench.run(module, "create", "/outer/inner/new", "x", preopens=mounts)).exit.exit_code == 0
        assert (await bench.run(module, "create", "/outer/new", "x", preopens=mounts)).exit.exit_code == 1
        assert (inner / "new").read_text() == "x"

    play(scenario)


def test_no_path_leads_out_of_a_folder(play: Play, tool: bytes, tmp_path: Path) -> None:
    other = folder(tmp_path / "other", secret="not yours")
    data = folder(tmp_path / "data")
    (data / "way-out").symlink_to(other)
    (data / "file-out").symlink_to(other / "secret")
    (data / "up").symlink_to("..")
    (data / "sub").mkdir()
    mounts = (Preopen(host_path=data, guest_path="/data", writable=True),)

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        for path in (
            "/etc/passwd",
            "etc/passwd",
            "/proc/self/environ",
            str(other / "secret"),
            "/data/../other/secret",
            "/data/sub/../../other/secret",
            "/data/way-out/secret",
            "/data/file-out",
            "/data/up/other/secret",
        ):
            for words in (("read", path), ("create", path, "overwritten"), ("remove", path + "/x")):
                outcome = await bench.run(module, *words, preopens=mounts)
                assert outcome.exit.exit_code == 1, (words, outcome.text())
        # A link of its own to anywhere outside is refused, or leads nowhere.
        for target in (str(other / "secret"), "../other/secret"):
            await bench.run(module, "link", target, "/data/mine", preopens=mounts)
            outcome = await bench.run(module, "read", "/data/mine", preopens=mounts)
            assert outcome.exit.exit_code == 1, outcome.text()
            (data / "mine").unlink(missing_ok=True)
        moved = await bench.run(module, "move", "/data/file-out", "/data/../moved", preopens=mounts)
        assert moved.exit.exit_code == 1
        assert (other / "secret").read_text() == "not yours"

    play(scenario)


def test_files_that_change_by_a_link_are_seen_while_it_runs(play: Play, tool: bytes, tmp_path: Path) -> None:
    """As a kubelet swaps the files of a ConfigMap: everything in a folder of its own, behind one link."""
    volume = folder(tmp_path / "volume")
    for number, text in (("1", "old"), ("2", "new")):
        folder(volume / f"..{number}", key=text)
    (volume / "..data").symlink_to("..1")
    (volume / "key").symlink_to("..data/key")

    async def scenario(bench: Bench) -> None:
        mounts = (Preopen(host_path=volume, guest_path="/config"),)
        guest = await bench.start(tool, "await", "/config/key", "new", preopens=mounts)
        await bench.said(guest, b"awaiting\n")
        (volume / "..new").symlink_to("..2")
        (volume / "..new").replace(volume / "..data")
        outcome = await bench.end(guest)
        assert (outcome.exit.exit_code, outcome.text()) == (0, "awaiting\nseen\n")

    play(scenario)


def test_a_missing_folder_refuses_the_start(play: Play, tool: bytes, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        gone = Preopen(host_path=tmp_path / "gone", guest_path="/gone")
        with pytest.raises(StartRefused, match="gone"):
            await bench.run(tool, "arguments", preopens=(gone,))

    play(scenario)


def test_open_files_and_the_size_of_a_file_are_bounded(play: Play, tool: bytes, tmp_path: Path) -> None:
    data = folder(tmp_path / "data", file="x")
    mounts = (Preopen(host_path=data, guest_path="/data", writable=True),)

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        limits = Limits(descriptors=128, file_bytes=1 << 20)
        outcome = await bench.run(module, "open", "/data/file", preopens=mounts, limits=limits)
        count, said = outcome.text().split(", then ")
        assert 64 <= int(count) < 128
        assert said == "I/O error\n", "WASI has no better word for it"
        too_large = await bench.run(module, "fill", "/data/large", str(2 << 20), preopens=mounts, limits=limits)
        assert (too_large.exit.exit_code, too_large.text()) == (1, "write: File too large\n")
        assert (data / "large").stat().st_size == 1 << 20
        fits = await bench.run(module, "fill", "/data/small", str(1 << 20), preopens=mounts, limits=limits)
        assert (fits.exit.exit_code, fits.text()) == (0, "")

    play(scenario)


def test_a_small_limit_on_files_costs_nothing_of_the_output(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "lines", "3000", limits=Limits(file_bytes=1000))
        numbers = [int(record.content.split()[1]) for record in outcome.records]
        assert numbers == list(range(numbers[0], 3000)), "rotated perhaps, but without a gap, and to the end"

    play(scenario)
