"""Real guests on real volumes: what they see of them, what they can do to them, and what they can't."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.processes import wait_for
from tests.runner.conftest import Play
from tests.runner.harness import Bench
from tests.support.executors import native_directory
from tests.support.runner import Certificates, RunnerProcess
from tests.support.volumes import ID, container, empty_dir, folder_of, made, mount, preopens, volume
from wherry_runner import protocol
from wherry_runner.execution.engine import Limits, Preopen, StartRefused
from wherry_runner.protocol import Volume, VolumeMount
from wherry_runner.volumes import HostPath, VolumeError, Volumes

CONFIG = volume({"app.yaml": "a: 1", "tls/ca.crt": "ca"}, name="config")
SECRET = volume({"token": "hunter2"}, secret=True, name="secret", mode=0o400)
DATA = empty_dir("data")
CACHE = empty_dir("cache", medium="Memory")
ALL: list[Volume] = [CONFIG, SECRET, DATA, CACHE]


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Volumes]:
    (tmp_path / "host" / "open").mkdir(parents=True)
    (tmp_path / "host" / "closed").mkdir()
    (tmp_path / "host" / "closed" / "secret").write_text("not yours")
    with made(tmp_path, host_paths=[HostPath(prefix=str(tmp_path / "host" / "open"))]) as volumes:
        volumes.write(ID, ALL)
        yield volumes


def given(volumes: Volumes, *mounts: VolumeMount, name: str = "main") -> tuple[Preopen, ...]:
    return tuple(preopens(volumes, mounts, ALL, name=name).values())


async def ends(bench: Bench, tool: bytes, mounts: tuple[Preopen, ...], *words: str) -> tuple[int, str]:
    """How the tool ends with these words, and what it printed."""
    outcome = await bench.run(tool, *words, preopens=mounts)
    return outcome.exit.exit_code, outcome.text("stdout")


def test_files_are_read_whole_and_by_themselves_and_never_written(play: Play, tool: bytes, volumes: Volumes) -> None:
    mounts = given(
        volumes,
        mount("config", "/etc/config"),
        mount("config", "/etc/app/config.yaml", "app.yaml"),
        mount("secret", "/etc/app/token", "token"),
        mount("config", "/tls", "tls"),
    )

    async def scenario(bench: Bench) -> None:
        for path, text in (
            ("/etc/config/app.yaml", "a: 1"),
            ("/etc/config/tls/ca.crt", "ca"),
            ("/etc/app/config.yaml", "a: 1"),
            ("/etc/app/token", "hunter2"),
            ("/tls/ca.crt", "ca"),
        ):
            assert await ends(bench, tool, mounts, "read", path) == (0, text)
            for words in (
                ("create", path, "x"),
                ("remove", path),
                ("move", path, path + "2"),
                ("link", "x", path + "2"),
            ):
                assert (await ends(bench, tool, mounts, *words))[0] == 1, words
        code, listed = await ends(bench, tool, mounts, "list", "/etc/app")
        assert (code, sorted(listed.split())) == (0, ["config.yaml", "token"])

    play(scenario)


def test_a_running_guest_sees_a_change_of_a_volume_and_none_of_a_single_file(
    play: Play, tool: bytes, volumes: Volumes
) -> None:
    mounts = given(volumes, mount("config", "/config"), mount("config", "/single/app.yaml", "app.yaml"))

    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "await", "/config/app.yaml", "a: 2", preopens=mounts)
        await bench.said(guest, b"awaiting\n")
        volumes.write(ID, [volume({"app.yaml": "a: 2"}, name="config"), *ALL[1:]])
        assert (await bench.end(guest)).text() == "awaiting\nseen\n"
        assert await ends(bench, tool, mounts, "read", "/single/app.yaml") == (0, "a: 1")

    play(scenario)


@pytest.mark.parametrize("name", ["data", "cache"])
def test_two_guests_share_an_empty_dir(play: Play, tool: bytes, volumes: Volumes, name: str) -> None:
    async def scenario(bench: Bench) -> None:
        writer = given(volumes, mount(name, "/out"), name="writer")
        reader = given(volumes, mount(name, "/in", read_only=True), name="reader")
        waiting = await bench.start(tool, "await", "/in/note", "hello", preopens=reader)
        await bench.said(waiting, b"awaiting\n")
        # Renamed, for a reader must not see half of it.
        assert await ends(bench, tool, writer, "create", "/out/new", "hello") == (0, "")
        assert await ends(bench, tool, writer, "move", "/out/new", "/out/note") == (0, "")
        assert (await bench.end(waiting)).text() == "awaiting\nseen\n"
        assert (await ends(bench, tool, reader, "remove", "/in/note"))[0] == 1
        # What is there stays for the container's next run.
        assert await ends(bench, tool, given(volumes, mount(name, "/m")), "read", "/m/note") == (0, "hello")

    play(scenario)


def test_parts_of_an_empty_dir_are_mounted_by_themselves(play: Play, tool: bytes, volumes: Volumes) -> None:
    async def scenario(bench: Bench) -> None:
        part = given(volumes, mount("data", "/part", "deep/er"))
        assert await ends(bench, tool, part, "create", "/part/state", "1") == (0, "")
        assert (await ends(bench, tool, part, "read", "/part/../../secret"))[0] == 1
        single = given(volumes, mount("data", "/var/state", "deep/er/state"))
        assert await ends(bench, tool, single, "create", "/var/state", "2") == (0, "")
        assert await ends(bench, tool, given(volumes, mount("data", "/all")), "read", "/all/deep/er/state") == (0, "2")
        fixed = given(volumes, mount("data", "/var/state", "deep/er/state", read_only=True))
        assert (await ends(bench, tool, fixed, "create", "/var/state", "3"))[0] == 1
        assert await ends(bench, tool, fixed, "read", "/var/state") == (0, "2")

    play(scenario)


def test_a_guest_does_not_get_out_by_a_link_that_it_plants(
    play: Play, tool: bytes, volumes: Volumes, tmp_path: Path
) -> None:
    """Once by walking through it, and once by having its next run, or a neighbour's, start with it."""
    secret = tmp_path / "host" / "closed"
    targets = [str(secret), "../../../../../host/closed", "../../../files/config", "/proc/self/root", "/"]

    async def scenario(bench: Bench) -> None:
        mounts = given(volumes, mount("data", "/data"))
        for target in targets:
            await ends(bench, tool, mounts, "link", target, "/data/out")
            (folder := folder_of(volumes, DATA)).joinpath("out").unlink(missing_ok=True)
            (folder / "out").symlink_to(target)  # an engine may refuse to make it: somebody else was here
            for path in ("/data/out/secret", "/data/out/app.yaml", "/data/out/etc/passwd"):
                assert (await ends(bench, tool, mounts, "read", path))[0] == 1
                assert (await ends(bench, tool, mounts, "create", path, "x"))[0] == 1
            for sub_path in ("out", "out/secret", "out/new"):
                with pytest.raises(VolumeError, match="leads out"):
                    given(volumes, mount("data", "/m", sub_path), name="neighbour")
        planned = given(volumes, mount("data", "/m", "sub"))
        (folder / "sub").rmdir()
        (folder / "sub").symlink_to(secret)
        with pytest.raises(StartRefused, match="leads out"):
            await bench.run(tool, "read", "/m/secret", preopens=planned)
        assert [path.name for path in secret.iterdir()] == ["secret"]

    play(scenario)


def test_a_host_folder_is_written_and_what_is_beside_it_is_not_reached(
    play: Play, tool: bytes, volumes: Volumes, tmp_path: Path
) -> None:
    spec = protocol.HostPathVolume(name="host", path=str(tmp_path / "host/open/made"), type="DirectoryOrCreate")
    volumes.write(ID, [*ALL, spec])
    mounts = tuple(preopens(volumes, [mount("host", "/host")], [spec]).values())

    async def scenario(bench: Bench) -> None:
        assert await ends(bench, tool, mounts, "create", "/host/file", "1") == (0, "")
        assert (tmp_path / "host" / "open" / "made" / "file").read_text() == "1"
        for path in ("/host/../../closed/secret", str(tmp_path / "host" / "closed" / "secret")):
            assert (await ends(bench, tool, mounts, "read", path))[0] == 1

    play(scenario)


def test_a_single_file_does_not_outgrow_the_limit_of_its_volume(play: Play, tool: bytes, volumes: Volumes) -> None:
    limited = empty_dir("limited", medium="Memory", limit=1 << 20)
    volumes.write(ID, [limited])
    spec = container(mount("limited", "/data"))
    largest = volumes.largest_file(ID, spec, [limited])
    mounts = volumes.preopens(ID, spec, [limited])

    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(
            tool, "fill", "/data/file", str(8 << 20), preopens=mounts, limits=Limits(file_bytes=largest)
        )
        assert outcome.exit.exit_code == 1
        assert (folder_of(volumes, limited) / "file").stat().st_size == 1 << 20

    play(scenario)


# --- a whole runner ---------------------------------------------------------------------------------------------------


@pytest.fixture
def put(
    tmp_path: Path, executor: str
) -> Iterator[Callable[[protocol.WorkloadPut], Callable[[], protocol.WorkloadStatus]]]:
    """Puts a workload on a runner's process, and returns what asks for its status."""
    certificates = Certificates(tmp_path / "pki")
    (tmp_path / "ram").mkdir()
    flags = ["--executor", executor, "--volumes-memory-directory", str(tmp_path / "ram")]
    if executor == "native":
        flags += ["--executor-directory", str(native_directory())]
    runner = RunnerProcess(tmp_path, certificates, "a", flags)
    context = ssl.create_default_context(cafile=str(certificates.ca.cert_file))
    context.check_hostname = False  # the runner's name is not its address
    context.load_cert_chain(certificates.operator.cert, certificates.operator.key)
    runner.start()
    with httpx.Client(base_url=runner.url, verify=context, trust_env=False, timeout=30) as client:

        def run(body: protocol.WorkloadPut) -> Callable[[], protocol.WorkloadStatus]:
            answer = client.put("/v1/workloads/w", content=body.to_json())
            assert answer.status_code == 200, answer.text
            return lambda: protocol.WorkloadStatus.model_validate_json(client.get("/v1/workloads/w").content)

        yield run
    runner.close()
    assert list((tmp_path / "ram").iterdir()) == []
    assert not (runner.state / "volumes").exists()


def test_a_workload_that_fills_its_memory_volume_is_evicted(
    put: Callable[[protocol.WorkloadPut], Callable[[], protocol.WorkloadStatus]], tool: bytes
) -> None:
    module = protocol.InlineModule(data=base64.b64encode(tool))
    mounts = (mount("scratch", "/scratch"),)
    words = [("fill", "/scratch/one", "700000"), ("fill", "/scratch/two", "700000"), ("wait",)]
    status = put(
        protocol.WorkloadPut(
            epoch=1,
            sequence=1,
            template_hash="t",
            workload=protocol.Workload(
                owner=protocol.Owner(kind="Pod", namespace="n", name="p", uid="u"),
                restart_policy=protocol.RestartPolicy.NEVER,
                containers=tuple(
                    protocol.Container(name=f"c{number}", module=module, args=args, mounts=mounts)
                    for number, args in enumerate(words)
                ),
                volumes=(empty_dir("scratch", medium="Memory", limit=1 << 20),),
            ),
        )
    )
    assert wait_for(lambda: status().phase is protocol.Phase.ENDED, timeout_seconds=120)
    failure = status().failure
    assert failure is not None
    assert (failure.reason, failure.message) == (
        "Evicted",
        'Usage of EmptyDir volume "scratch" exceeds the limit "1Mi".',
    )
