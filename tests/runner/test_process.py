"""The whole runner as a process, spoken to as an operator does: mutual TLS, order, logs, and the same log every time."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from tests.cluster.processes import wait_for
from tests.support import wat
from tests.support.runner import Certificates, RunnerProcess
from tests.support.talk import talk
from wherry_operator.runners.client import Refused, RunnerClient
from wherry_runner import protocol
from wherry_runner.protocol import Phase, RefusalReason

ROOT = Path(__file__).resolve().parents[2]
HELLO = (ROOT / "demos" / "hello-world-rust" / "hello.wasm").read_bytes()
LOG = """\
hello from stdout!
hello from stderr!
A=1
B=2
C=3
Args are: ["one", "two"]

from a file"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def runner(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    process = RunnerProcess(tmp_path_factory.mktemp("runner"), certificates, "runner-a")
    process.start()
    yield process
    process.close()


def _put(
    sequence: int,
    module: bytes,
    *,
    epoch: int = 1,
    template: str = "t1",
    policy: protocol.RestartPolicy = protocol.RestartPolicy.NEVER,
    args: tuple[str, ...] = (),
) -> protocol.WorkloadPut:
    return protocol.WorkloadPut(
        epoch=epoch,
        sequence=sequence,
        template_hash=template,
        workload=protocol.Workload(
            owner=protocol.Owner(kind="Pod", namespace="default", name="hello", uid="u"),
            restart_policy=policy,
            containers=(
                protocol.Container(
                    name="main",
                    module=protocol.InlineModule(data=base64.b64encode(module)),
                    argv0="none",
                    args=args,
                    env=tuple(
                        protocol.EnvironmentVariable(name=n, value=SecretStr(v))
                        for n, v in zip("ABC", "123", strict=True)
                    ),
                    mounts=(protocol.VolumeMount(volume="files", mount_path="/mnt/storage"),),
                ),
            ),
            volumes=(
                protocol.FilesVolume(
                    name="files",
                    files=(protocol.VolumeFile(path="bacon_ipsum.txt", data=base64.b64encode(b"from a file")),),
                ),
            ),
        ),
    )


async def _ended(client: RunnerClient, workload_id: str) -> protocol.WorkloadStatus:
    async with asyncio.timeout(60):
        while (status := await client.get(workload_id)).phase is not Phase.ENDED:
            await asyncio.sleep(0.02)
    return status


async def _log(client: RunnerClient, workload_id: str) -> str:
    async with client.log(workload_id, "main", protocol.LogOptions()) as pieces:
        return b"".join([piece async for piece in pieces]).decode()


def test_the_same_log_three_hundred_times(runner: RunnerProcess, certificates: Certificates) -> None:
    async def work(client: RunnerClient) -> None:
        for batch in range(0, 300, 30):
            ids = [f"run-{number}" for number in range(batch, batch + 30)]
            await asyncio.gather(*(client.put(i, _put(1, HELLO, args=("one", "two"))) for i in ids))
            for workload_id in ids:
                status = await _ended(client, workload_id)
                state = status.containers[0].state
                assert isinstance(state, protocol.Terminated)
                assert (state.exit_code, state.reason) == (0, "Completed")
                assert await _log(client, workload_id) == LOG
                assert await client.delete(workload_id, epoch=1, sequence=2, grace_seconds=0) is None

    talk(runner, certificates, work)
    assert list((runner.state / "logs").iterdir()) == []
    # They are out of sight at once and removed in the background.
    assert wait_for(lambda: not list((runner.state / "volumes").iterdir()), timeout_seconds=60)


def test_no_handshake_without_the_installations_certificate(
    runner: RunnerProcess, certificates: Certificates, tmp_path: Path
) -> None:
    stranger = Certificates(tmp_path)
    for certificate in (None, stranger.operator, certificates.runner):
        context = ssl.create_default_context(cafile=str(certificates.ca.cert_file))
        context.check_hostname = False
        if certificate is not None:
            context.load_cert_chain(certificate.cert, certificate.key)
        with httpx.Client(verify=context, trust_env=False) as client, pytest.raises(httpx.TransportError):
            client.get(f"{runner.url}/v1/info")


def test_changes_count_in_their_order(runner: RunnerProcess, certificates: Certificates) -> None:
    async def work(client: RunnerClient) -> None:
        sleeper = wat.binary(wat.sleeps())
        await client.put("ordered", _put(5, sleeper))
        with pytest.raises(Refused) as stale:
            await client.put("ordered", _put(4, sleeper))
        assert stale.value.refusal.reason is RefusalReason.STALE_SEQUENCE
        with pytest.raises(Refused) as malformed:
            await client.put("Not_A_Name", _put(6, sleeper))
        assert malformed.value.refusal.reason is RefusalReason.INVALID
        await client.delete("ordered", epoch=1, sequence=6, grace_seconds=0)
        await _gone(client, "ordered", sequence=7)
        with pytest.raises(Refused) as late:
            await client.put("ordered", _put(5, sleeper))
        assert late.value.refusal.reason is RefusalReason.STALE_SEQUENCE

        await client.put("newer-term", _put(1, sleeper, epoch=9))
        with pytest.raises(Refused) as deposed:
            await client.put("older-term", _put(99, sleeper, epoch=8))
        assert deposed.value.refusal.reason is RefusalReason.STALE_EPOCH
        assert deposed.value.refusal.epoch == 9
        await client.delete("newer-term", epoch=9, sequence=2, grace_seconds=0)
        await _gone(client, "newer-term", sequence=3, epoch=9)

    talk(runner, certificates, work)


async def _gone(client: RunnerClient, workload_id: str, *, sequence: int, epoch: int = 1) -> None:
    async with asyncio.timeout(30):
        while await client.delete(workload_id, epoch=epoch, sequence=sequence, grace_seconds=0) is not None:
            await asyncio.sleep(0.02)
            sequence += 1


def test_the_watch_gives_a_snapshot_then_changes(runner: RunnerProcess, certificates: Certificates) -> None:
    async def work(client: RunnerClient) -> None:
        sleeper = wat.binary(wat.sleeps())
        await client.put("before", _put(1, sleeper, epoch=20))
        seen: list[str] = []
        async with asyncio.timeout(60), aclosing(client.watch()) as events:
            async for event in events:
                match event:
                    case protocol.StatusEvent(status=status):
                        seen.append(f"status {status.id}")
                    case protocol.SyncedEvent(info=info):
                        seen.append("synced")
                        assert info.runner == "runner-a"
                        await client.put("after", _put(1, sleeper, epoch=20))
                    case protocol.GoneEvent(id=gone):
                        seen.append(f"gone {gone}")
                        break
                if seen[-1] == "status after" and "deleting" not in seen:
                    seen.append("deleting")
                    await client.delete("before", epoch=20, sequence=2, grace_seconds=0)
                    await _gone(client, "before", sequence=3, epoch=20)
        assert seen.index("status before") < seen.index("synced") < seen.index("status after")
        assert seen[-1] == "gone before"
        await client.delete("after", epoch=20, sequence=2, grace_seconds=0)
        await _gone(client, "after", sequence=3, epoch=20)

    talk(runner, certificates, work)


def test_a_body_that_is_no_workload_is_refused_without_repeating_it(
    runner: RunnerProcess, certificates: Certificates
) -> None:
    context = ssl.create_default_context(cafile=str(certificates.ca.cert_file))
    context.check_hostname = False
    context.load_cert_chain(certificates.operator.cert, certificates.operator.key)
    with httpx.Client(verify=context, trust_env=False) as client:
        body = _put(1, b"x").to_json().replace(b'"sequence":1', b'"sequence":"s3cret"')
        answer = client.put(f"{runner.url}/v1/workloads/w", content=body)
        assert answer.status_code == 400
        assert answer.json()["reason"] == "Invalid"
        assert "sequence" in answer.json()["message"]
        assert "s3cret" not in answer.text
        assert client.get(f"{runner.url}/v1/nothing").status_code == 404
        assert client.get(f"{runner.url}/v1/workloads/none").json()["reason"] == "NotFound"


def test_killed_with_its_guests(certificates: Certificates, tmp_path: Path) -> None:
    """SIGKILL of the supervisor: no executor and no guest outlives it."""
    process = RunnerProcess(tmp_path, certificates, "doomed")
    process.start()
    try:
        pids: list[int] = []

        async def work(client: RunnerClient) -> None:
            module = wat.binary(wat.spins())
            for number in range(3):
                await client.put(f"spin-{number}", _put(1, module))
            async with asyncio.timeout(60):
                for number in range(3):
                    while not isinstance((await client.get(f"spin-{number}")).containers[0].state, protocol.Running):
                        await asyncio.sleep(0.05)
            assert process.process is not None
            pids.extend(_descendants(process.process.pid))

        talk(process, certificates, work)
        assert len(pids) >= 4, "the executor and three guests"
        process.kill()
        _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    finally:
        process.close()


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _wait(condition: Callable[[], bool]) -> None:
    assert wait_for(condition, timeout_seconds=30)
