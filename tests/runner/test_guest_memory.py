"""What a guest's process has of its own, and what it has in common with all others."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bench import guests
from tests.runner.conftest import Play
from tests.runner.harness import Bench
from tests.support import wat

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="looks into other processes: only root can, guests being undumpable"),
    pytest.mark.native_only,
]


def private_kib(pid: int, mapping: str) -> int:
    """What of the writable mappings of that name no other process has."""
    found, total, name = False, 0, ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if head := re.match(r"[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \S+\s*(.*)", line):
            name = head[2] if "w" in head[1] else ""
            found |= bool(re.search(mapping, name))
        elif name and re.search(mapping, name) and line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1])
    assert found, f"nothing is mapped of {mapping}"
    return total


def test_what_libraries_note_at_first_is_noted_before_there_is_a_guest(play: Play) -> None:
    """A word that each guest writes is a page of its own (`runner/executor/src/ahead.rs`, `destructors.rs`)."""

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(wat.binary(guests.IDLE))
        running = [await bench.start(module) for _ in range(3)]
        for guest in running:
            await bench.said(guest, b"ready\n")
        assert [private_kib(guest.pid, r"/ld-[^/]*$") for guest in running] == [0, 0, 0]

    play(scenario)


def test_a_guest_that_waits_gives_its_stack_back(play: Play) -> None:
    """To its end it may be as deep as it was (`runner/executor/src/unused.rs`): it wakes, and goes on."""
    again = """(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\\10\\00\\00\\00\\06\\00\\00\\00")
      (data (i32.const 16) "awake\\0a")
      (func (export "_start") (local $left i32)
        (local.set $left (i32.const 20))
        (loop $again
          (i32.store8 (i32.const 136) (i32.const 0))
          (i32.store (i32.const 144) (i32.const 1))
          (i64.store (i32.const 152) (i64.const 30000000))
          (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 320)))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
          (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))"""

    async def scenario(bench: Bench) -> None:
        ran = await bench.run(wat.binary(again))
        assert (ran.exit.exit_code, ran.text("stdout")) == (0, "awake\n" * 20)
        guest = await bench.start(wat.binary(guests.IDLE))
        await bench.said(guest, b"ready\n")
        # Before it waited it was 28 KiB deep.
        assert private_kib(guest.pid, r"^\[stack\]$") <= 20

    play(scenario)
