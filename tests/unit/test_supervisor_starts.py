"""What a run is given, and what is told until it runs."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.support.runner_scene import ID, NEVER, STUCK, Runner, container, files, holds, init, refusal, run, summary
from wherry_runner.execution.engine import Variant
from wherry_runner.modules.errors import NotRunnable
from wherry_runner.modules.library import Compiling, OnProgress, Pulling
from wherry_runner.protocol import (
    EmptyDirVolume,
    HostPathVolume,
    InlineModule,
    RefusalReason,
    RegistryCredential,
    Resources,
    VolumeMount,
    Waiting,
)
from wherry_runner.resources.limits import LimitDefaults

MIB = 1 << 20


def inline(data: bytes) -> InlineModule:
    return InlineModule(data=base64.b64encode(data), source='ConfigMap "m", key "k"')


def test_a_run_is_given_what_its_spec_says(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, defaults=LimitDefaults(memory_limit_bytes=7 * MIB, log_bytes_per_second=5))
        credential = RegistryCredential(registry="r.example", username="u", password=SecretStr("p"))
        spec = container(
            env={"B": "2", "A": "1"},
            working_dir="/work",
            stdin=True,
            resources=Resources(fuel=1000, cpu_limit_millicores=500),
            mounts=(VolumeMount(volume="e", mount_path="/e"),),
        )
        runner.put(
            containers=(spec,), credentials=(credential,), volumes=(EmptyDirVolume(name="e", size_limit_bytes=9 * MIB),)
        )
        guest = (await runner.engine.guest(0)).spec
        assert guest.environment == (("B", "2"), ("A", "1"))
        assert (guest.working_dir, guest.stdin) == ("/work", True)
        assert guest.log.path == tmp_path / "logs" / ID / "main" / "0.log"
        assert guest.limits.memory_bytes == 7 * MIB
        assert guest.limits.fuel == 1000
        assert (guest.limits.cpu_millicores, guest.limits.cpu_weight_millicores) == (500, 500)
        assert guest.limits.log_bytes_per_second == 5
        assert guest.limits.file_bytes == 9 * MIB
        assert [(each.guest_path, each.writable) for each in guest.preopens] == [("/e", True)]
        assert runner.modules.variants == [Variant.FUEL]
        assert runner.modules.credentials == [(credential,)]

    run(scenario())


def test_each_container_has_a_log_slot_for_as_long_as_its_logs_are_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER, containers=(container("a"), container("b")))
        await runner.running()
        slots = {guest.spec.log.slot for guest in runner.engine.guests}
        assert len(slots) == 2
        for guest in runner.engine.guests:
            guest.exit(0)
        await runner.ended()
        assert runner.log_budget.allowed_bytes > 0
        runner.delete()
        assert runner.log_budget.allowed_bytes == 0

    run(scenario())


def test_a_volume_that_can_not_be_had_is_said_and_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        spec = container(mounts=(VolumeMount(volume="v", mount_path="/v", sub_path="missing"),))
        runner.put(containers=(spec,), volumes=(files(there="1"),))
        status = await runner.waiting("CreateContainerConfigError")
        found = status.containers[0].state
        assert isinstance(found, Waiting)
        assert '"missing"' in found.message
        assert runner.engine.guests == []
        runner.delete()
        await runner.ended()

    run(scenario())


def test_a_host_folder_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        volume = HostPathVolume(name="h", path="/etc")
        assert refusal(lambda: runner.put(volumes=(volume,))) is RefusalReason.INVALID
        assert not runner.journals.known(ID)

    run(scenario())


# --- progress ---------------------------------------------------------------------------------------------------------


async def telling(runner: Runner) -> OnProgress:
    await holds(lambda: bool(runner.modules.on_progress))
    return runner.modules.on_progress[-1]


def test_pulling_and_compiling_are_visible_while_they_last(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.modules.free.clear()
        runner.put()
        tell = await telling(runner)
        assert summary(runner.supervisor.status(ID)) == "main=ContainerCreating"
        tell(Pulling(done_bytes=MIB * 12 // 10, total_bytes=20 * MIB))
        assert runner.supervisor.status(ID).containers[0].state == Waiting(reason="Pulling", message="1.2 of 20.0 MiB")
        tell(Compiling())
        assert runner.supervisor.status(ID).containers[0].state == Waiting(reason="Compiling")
        runner.modules.free.set()
        await runner.running()

    run(scenario())


def test_of_fast_progress_only_some_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.modules.free.clear()
        runner.put()
        tell = await telling(runner)
        loop = asyncio.get_running_loop()
        began, told = loop.time(), set()
        for number in range(1000):
            tell(Pulling(done_bytes=number * MIB, total_bytes=0))
            found = runner.supervisor.status(ID).containers[0].state
            assert isinstance(found, Waiting)
            told.add(found.message)
        assert "0.0 MiB" in told
        assert len(told) <= 2 + (loop.time() - began) / 0.5

    run(scenario())


@pytest.mark.parametrize("how", ["it is there", "it fails", "a delete"])
def test_after_progress_comes_what_was_before(tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.engine.free.clear()
        runner.modules.free.clear()
        runner.put(init=(init("i"),))
        (await telling(runner))(Compiling())
        assert summary(runner.supervisor.status(ID)) == "i=Compiling main=PodInitializing"
        match how:
            case "it is there":
                runner.modules.free.set()
                await runner.told("i=PodInitializing main=PodInitializing")
                runner.engine.free.set()
                await runner.told("i=Running main=PodInitializing")
            case "it fails":
                runner.modules.errors = [NotRunnable("no", inline=True)]
                runner.modules.free.set()
                await runner.told("i=CreateContainerConfigError main=PodInitializing")
            case "a delete":
                runner.delete()
                assert summary(await runner.ended()) == "i=PodInitializing main=PodInitializing"

    run(scenario())


# --- modules that come with the request -------------------------------------------------------------------------------


LARGE = 8 * MIB


@contextmanager
def nothing_large_is_kept() -> Iterator[None]:
    """At the end, no more is kept than a small part of what is `LARGE`."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < LARGE // 8
    finally:
        tracemalloc.stop()


def test_the_bytes_of_a_module_are_not_kept_once_they_are_stored_and_it_runs_again_all_the_same(tmp_path: Path) -> None:
    def asked(runner: Runner) -> list[bytes]:
        found = [module.data for module in runner.modules.asked if isinstance(module, InlineModule)]
        runner.modules.asked.clear()
        return found

    async def scenario() -> None:
        runner = Runner(tmp_path)
        with nothing_large_is_kept():
            runner.put(containers=(container(module=inline(bytes(LARGE))),))
            await runner.running()
            assert asked(runner) == [bytes(LARGE)]
        runner.engine.guests[0].exit(1)
        await runner.running(restarts=1)
        assert asked(runner) == [], "it is compiled already"
        first, second = runner.engine.guests
        assert first.spec.module is second.spec.module

        with nothing_large_is_kept():  # the same bytes, with another content
            runner.put(sequence=2, content="c2", containers=(container(module=inline(bytes(LARGE)), args=("x",)),))
        second.exit(1)
        await runner.running(restarts=2)
        assert asked(runner) == []
        assert runner.engine.guests[2].spec.argv == ("hello", "x")

        # Other bytes are for the next run.
        runner.put(sequence=3, content="c3", containers=(container(module=inline(b"other")),))
        runner.engine.guests[2].exit(1)
        await runner.running(restarts=3)
        assert asked(runner) == [b"other"]

    run(scenario())


def test_what_changes_while_a_run_is_being_started_is_for_the_next_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.engine.free.clear()
        runner.put(containers=(container(module=inline(b"old"), args=("old",)),))
        await holds(lambda: "main" in runner.journals.open(ID).past)
        runner.put(sequence=2, content="c2", containers=(container(module=inline(b"new"), args=("new",)),))
        runner.engine.free.set()
        (await runner.engine.guest(0)).exit(1)
        await runner.running(restarts=1)
        assert [guest.spec.argv[1] for guest in runner.engine.guests] == ["old", "new"]
        assert [module.data for module in runner.modules.asked if isinstance(module, InlineModule)] == [b"old", b"new"]

    run(scenario())


def test_what_changes_while_a_module_is_pulled_is_for_this_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.modules.free.clear()
        runner.put(containers=(container(module=inline(b"old"), args=("old",)),))
        await telling(runner)
        runner.put(sequence=2, content="c2", containers=(container(module=inline(b"new"), args=("new",)),))
        runner.modules.free.set()
        guest = await runner.engine.guest(0)
        assert guest.spec.argv == ("hello", "new")
        assert guest.spec.module.digest == f"sha256:{hashlib.sha256(b'new').hexdigest()}"

    run(scenario())


def test_files_are_not_kept_once_they_are_written(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        spec = container(mounts=(VolumeMount(volume="v", mount_path="/v"),))
        with nothing_large_is_kept():
            runner.put(containers=(spec,), volumes=(files(name="x" * LARGE),))
            await runner.running()
        runner.engine.guests[0].exit(1)
        await runner.running(restarts=1)
        (mount,) = runner.engine.guests[1].spec.preopens
        assert (mount.host_path / "name").stat().st_size == LARGE

    run(scenario())


@pytest.mark.parametrize("how", ["by itself", "by a delete"])
def test_what_a_container_was_given_is_not_kept_once_it_has_ended(tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        with nothing_large_is_kept():
            runner.put(policy=NEVER, containers=(container(env={"PASSWORD": "x" * LARGE}),))
            if how == "by itself":
                (await runner.engine.guest(0)).exit(0)
            else:
                runner.delete(grace=0)
            await runner.ended()
            runner.engine.guests.clear()
            runner.modules.asked.clear()

    run(scenario())


def test_digests_of_what_runs_or_will_run_again_are_in_use(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        assert runner.supervisor.module_digests_in_use() == set()
        runner.put()
        await runner.running()
        digest = "sha256:" + "1" * 64
        assert runner.supervisor.module_digests_in_use() == {digest}
        for number in (0, 1):
            (await runner.engine.guest(number)).exit(1)
        await runner.waiting("CrashLoopBackOff")
        assert runner.supervisor.module_digests_in_use() == {digest}
        runner.delete()
        await runner.ended()
        assert runner.supervisor.module_digests_in_use() == set()

    run(scenario())


# --- input ------------------------------------------------------------------------------------------------------------


def test_input_reaches_the_guest_that_runs_and_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        runner.put(containers=(container(stdin=True, stdin_once=True), container("deaf")))
        await runner.running()
        main, deaf = runner.life(), runner.life("deaf")
        assert (main.stdin_once, deaf.stdin_once) == (True, False)
        await main.write_input(b"hello ")
        await main.write_input(b"guest")
        guest = runner.engine.guests[0]
        assert guest.input == b"hello guest"
        with pytest.raises(BrokenPipeError):
            await deaf.write_input(b"x")
        main.close_input()
        main.close_input()
        with pytest.raises(BrokenPipeError):
            await main.write_input(b"x")
        guest.exit(0)
        await runner.running()
        for number in (0, 1):
            runner.engine.guests[number].exit(0)
        with pytest.raises(BrokenPipeError):
            await main.write_input(b"x")

    run(scenario())
