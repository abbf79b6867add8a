"""Executors that don't do what they should: processes of a few lines that speak the channel, or something else."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.runner.conftest import children
from tests.runner.harness import open_descriptors
from wherry_runner.execution import adapter, channel, link
from wherry_runner.execution.adapter import ExecutorEngine
from wherry_runner.execution.engine import (
    CompiledModule,
    EngineLost,
    GuestLog,
    GuestSpec,
    ModuleKind,
    StartRefused,
)
from wherry_runner.logs.allowances import Allowances

BEGIN = """
import os, socket, sys, time
from wherry_runner.execution import channel
sock = socket.socket(fileno=int(sys.argv[1]))
"""
READY = (
    BEGIN
    + """
channel.send(sock, channel.Ready(engine="fake", writes_logs=True))
"""
)

Scenario = Callable[[ExecutorEngine], Awaitable[None]]


@pytest.fixture
def play() -> Iterator[Callable[[str, Scenario], None]]:
    """Plays a scenario with an executor that is a Python script."""
    allowances = Allowances(slots=8, default_bytes=1000)

    def run(script: str, scenario: Scenario) -> None:
        async def whole() -> None:
            before = open_descriptors()
            engine = ExecutorEngine(
                "fake", name="fake", program=(sys.executable, "-c", script), compiler=(), allowances=allowances
            )
            try:
                async with asyncio.timeout(60):
                    await scenario(engine)
            finally:
                await engine.close()
                assert asyncio.all_tasks() == {asyncio.current_task()}
                assert open_descriptors() == before

        alive = children()
        asyncio.run(whole())
        assert children() == alive

    yield run
    allowances.close()


@pytest.fixture
def spec(tmp_path: Path) -> GuestSpec:
    compiled = tmp_path / "module.cwasm"
    compiled.write_bytes(b"native code")
    return GuestSpec(
        guest_id="g",
        module=CompiledModule(path=compiled, digest="sha256:0", kind=ModuleKind.CORE, name="module"),
        argv=("module",),
        environment=(),
        log=GuestLog(path=tmp_path / "0.log", slot=0),
    )


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import sys; sys.exit('no such kernel')", r"the fake executor ended \(exit code 1\): no such kernel"),
        ("import os; os.kill(os.getpid(), 11)", r"the fake executor ended \(signal 11\)"),
        (BEGIN + "sock.send(b'hello')", "it broke the protocol: not JSON"),
        (BEGIN + 'sock.send(b\'{"type": "ready"}\'); time.sleep(3600)', "it broke the protocol: ready: .*engine"),
        (
            BEGIN + "channel.send(sock, channel.Ready(engine='fake', protocol=1)); time.sleep(3600)",
            f"it speaks version 1 of the protocol, this runner {channel.PROTOCOL}: both must come from one release",
        ),
    ],
)
def test_an_executor_that_never_becomes_ready_is_told_with_its_last_words(
    play: Callable[[str, Scenario], None], script: str, says: str
) -> None:
    async def scenario(engine: ExecutorEngine) -> None:
        with pytest.raises(EngineLost, match=says):
            await engine.open()
        assert engine.executor_pid is None

    play(script, scenario)


def test_all_who_wait_for_an_executor_share_one_and_its_failure(
    play: Callable[[str, Scenario], None], spec: GuestSpec, tmp_path: Path
) -> None:
    count = tmp_path / "count"

    async def scenario(engine: ExecutorEngine) -> None:
        starts = [engine.run(spec) for _ in range(50)]
        assert {type(error) for error in await asyncio.gather(*starts, return_exceptions=True)} == {EngineLost}
        assert count.read_text() == "x"
        for _ in range(2):
            with pytest.raises(EngineLost):
                await engine.open()
        assert engine.complaint().startswith("lost 3 executors within 60 s, the last one so: the fake executor ended")
        with pytest.raises(EngineLost, match="lost 3 executors"):
            await engine.open()
        assert count.read_text() == "xxx", "after three, not at once another"

    play(f"import sys; open({str(count)!r}, 'a').write('x'); sys.exit('no')", scenario)


def test_a_program_that_is_not_there_is_told() -> None:
    async def scenario() -> None:
        allowances = Allowances(slots=2, default_bytes=1)
        engine = ExecutorEngine("fake", name="fake", program=("/nowhere/executor",), compiler=(), allowances=allowances)
        before = open_descriptors()
        with pytest.raises(EngineLost, match="can't be started"):
            await engine.open()
        await engine.close()
        assert open_descriptors() == before
        allowances.close()

    asyncio.run(scenario())


def test_what_it_says_on_standard_error_is_bounded(
    play: Callable[[str, Scenario], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(engine: ExecutorEngine) -> None:
        with pytest.raises(EngineLost) as lost:
            await engine.open()
        assert len(str(lost.value)) < 5000
        assert str(lost.value).endswith("the end")

    with caplog.at_level(logging.WARNING):
        play("import sys; sys.stderr.write('x' * 5_000_000); sys.exit('the end')", scenario)
    assert sum(len(record.getMessage()) for record in caplog.records) < 600_000


def test_a_refusal_reaches_the_caller(play: Callable[[str, Scenario], None], spec: GuestSpec) -> None:
    async def scenario(engine: ExecutorEngine) -> None:
        with pytest.raises(StartRefused, match="not today"):
            await engine.run(spec)

    play(
        READY
        + "start, _ = channel.receive(sock); channel.send(sock, channel.Refused(guest=start.guest, message='not today'))"
        "\nchannel.receive(sock)",
        scenario,
    )


def test_messages_about_guests_that_nobody_knows_are_ignored(
    play: Callable[[str, Scenario], None], spec: GuestSpec
) -> None:
    async def scenario(engine: ExecutorEngine) -> None:
        with pytest.raises(StartRefused, match="not today"):
            await engine.run(spec)
        assert engine.complaint() == ""

    play(
        READY
        + """
start, _ = channel.receive(sock)
channel.send(sock, channel.Ready(engine="again"))
channel.send(sock, channel.Started(guest="other", pid=1), {"pidfd": os.pidfd_open(os.getpid())})
channel.send(sock, channel.Exited(guest="other", exit_code=0))
channel.send(sock, channel.Refused(guest="other", message="x"))
channel.send(sock, channel.Refused(guest=start.guest, message="not today"))
channel.receive(sock)
""",
        scenario,
    )


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (b"", ""),
        (b"not JSON", ""),
        (b'{"outcome": "trapped", "exitCode": 0, "message": ["a", "list"]}', ""),
        (b'{"outcome": "trapped", "exitCode": 0, "message": "a\\u001b[31m\\ud800"}', "a[31m?"),
        (b'{"outcome": "outOfFuel", "exitCode": 0, "message": "forged", "memoryRefused": true}', "forged"),
        (b'{"outcome": "trapped", "exitCode": 0, "message": "' + b"x" * 60_000 + b'"}', ""),
    ],
    ids=["nothing", "no JSON", "other types", "control characters", "limits it has not", "too long"],
)
def test_a_last_word_is_not_trusted(
    play: Callable[[str, Scenario], None], spec: GuestSpec, report: bytes, message: str
) -> None:
    async def scenario(engine: ExecutorEngine) -> None:
        end = await (await engine.run(spec)).wait()
        assert (end.exit_code, end.reason, end.message) == (3, "Error", message)

    script = (
        READY
        + f"""
start, descriptors = channel.receive(sock)
os.write(descriptors["report"], {report!r})
channel.send(sock, channel.Started(guest=start.guest, pid=os.getpid()), {{"pidfd": os.pidfd_open(os.getpid())}})
channel.send(sock, channel.Exited(guest=start.guest, exit_code=3))
channel.receive(sock)
"""
    )
    play(script, scenario)


def test_an_executor_that_answers_no_start_is_given_up(
    play: Callable[[str, Scenario], None], spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "START_SECONDS", 0.1)

    async def scenario(engine: ExecutorEngine) -> None:
        with pytest.raises(EngineLost, match="did not answer a start") as lost:
            await engine.run(spec)
        assert lost.value.may_have_begun

    play(READY + "time.sleep(3600)", scenario)


def test_an_executor_that_does_not_leave_is_killed(
    play: Callable[[str, Scenario], None], spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "CLOSE_SECONDS", 0.1)

    async def scenario(engine: ExecutorEngine) -> None:
        await engine.open()

    play(READY + "time.sleep(3600)", scenario)


def test_an_executor_that_dies_between_fork_and_word_may_have_begun_the_guest(
    play: Callable[[str, Scenario], None], spec: GuestSpec
) -> None:
    async def scenario(engine: ExecutorEngine) -> None:
        with pytest.raises(EngineLost) as lost:
            await engine.run(spec)
        assert lost.value.may_have_begun

    play(READY + "channel.receive(sock)", scenario)
