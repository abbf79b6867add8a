"""The process that holds up a cluster from the command line, and its control from `up` and `down`.

A control plane dies with the process that started it; so that one outlives `up`, a detached keeper starts it.
`up` hears of its progress over a pipe, as JSON lines: `{"step": ...}`, then `{"ready": ...}` or
`{"error": ...}`. `down` asks the keeper to stop. Both hold a lock on the cluster's folder meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from tests.cluster import build, host, leftovers
from tests.cluster.errors import ClusterError
from tests.cluster.local import LocalCluster
from tests.cluster.node import NodeCluster
from tests.cluster.processes import Identity, tail
from tests.cluster.progress import Progress
from tests.cluster.record import GONE_TIMEOUT_SECONDS, Record
from tests.cluster.running import state_directory

STOP_TIMEOUT_SECONDS = 60.0
"""Several times what a keeper may take to stop everything; then it is killed, and the cluster with it."""

_REPOSITORY = Path(__file__).resolve().parents[2]
_KEEPER_FILE = "keeper.json"


def up(name: str, progress: Progress, *, nodes: int = 0) -> bool:
    """Bring up a cluster that stays; False if it was up already.

    :param nodes: how many real nodes; none: a control plane on loopback.
    :raises ClusterError: it could not be brought up.
    """
    build.kube(progress)  # here, where somebody sees how far it is and can interrupt it
    if nodes:
        host.require()
        build.addons(progress)
        build.registry(progress)
    directory = state_directory() / name
    with _locked(directory, create=True):
        keeper = _keeper_of(directory)
        if keeper is not None and keeper.alive:
            return False
        _clear(directory)
        _start_keeper(name, directory, progress, nodes)
    return True


def down(name: str, progress: Progress) -> bool:
    """Take down what `up` brought up, whatever is left of it; False if there was nothing."""
    directory = state_directory() / name
    with _locked(directory, create=False) as found:
        if not found:
            return False
        keeper = _keeper_of(directory)
        if keeper is not None and keeper.alive:
            progress.step(f"stopping cluster {name!r}")
            _stop_keeper(keeper)
        _clear(directory)
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()
        for folder in (directory.parent, directory.parent.parent):
            with contextlib.suppress(OSError):  # there are other clusters
                folder.rmdir()
    return True


def _start_keeper(name: str, directory: Path, progress: Progress, nodes: int) -> None:
    log = directory / "logs" / "keeper.log"
    log.parent.mkdir(exist_ok=True)
    search_path = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH")]))
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.keeper", name, str(nodes)],
            cwd="/",
            env={**os.environ, "PYTHONPATH": search_path, "WHERRY_STATE": str(directory.parents[1])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        with process.stdout:
            _follow(process.stdout, log, progress)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    # It stays, and init reaps it after us: nothing to wait for.
    process.returncode = 0


def _follow(lines: IO[str], log: Path, progress: Progress) -> None:
    """Show a keeper's progress until it says that the cluster is ready."""
    for line in lines:
        message = json.loads(line)
        if "error" in message:
            raise ClusterError(message["error"])
        if "ready" in message:
            return
        progress.step(message["step"])
    raise ClusterError(f"the cluster's keeper ended unexpectedly; the end of {log}:\n{tail(log)}")


def _stop_keeper(keeper: Identity) -> None:
    keeper.signal(signal.SIGTERM)
    if not keeper.wait_gone(STOP_TIMEOUT_SECONDS):
        keeper.signal(signal.SIGKILL)
        keeper.wait_gone(GONE_TIMEOUT_SECONDS)


def _keeper_of(directory: Path) -> Identity | None:
    try:
        return Identity(**json.loads((directory / _KEEPER_FILE).read_text()))
    except FileNotFoundError:
        return None


def _clear(directory: Path) -> None:
    """Kill and remove what a cluster left; the folder itself, which is locked, stays."""
    if not directory.exists():
        return
    record = Record.load(directory)
    if record is not None:
        record.sweep()
    leftovers.sweep()
    for each in directory.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


@contextlib.contextmanager
def _locked(directory: Path, *, create: bool) -> Iterator[bool]:
    """Lock a cluster's folder itself, so that no lock file is left behind; yield False if there is none."""
    while True:
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if create:
                continue
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # While we waited its owner may have removed it, and somebody may have made another one.
            if directory.exists() and os.path.samestat(os.fstat(descriptor), directory.stat()):
                yield True
                return
        finally:
            os.close(descriptor)


class _PipeProgress(Progress):
    """Progress as messages to `up`."""

    def step(self, text: str) -> None:
        _say(step=text)

    def update(self, text: str) -> None:
        """Leave it out: `up` has built everything already."""


def _say(**message: str | bool) -> None:
    print(json.dumps(message), flush=True)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main(name: str, nodes: int) -> None:
    """Hold up a cluster until told to stop."""
    directory = state_directory() / name
    identity = Identity.of(os.getpid())
    assert identity is not None
    (directory / _KEEPER_FILE).write_text(json.dumps(dataclasses.asdict(identity)))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    cluster: LocalCluster | None = None
    try:
        if nodes:
            cluster = NodeCluster(directory, nodes=nodes, name=name, progress=_PipeProgress())
        else:
            cluster = LocalCluster(directory, name=name, progress=_PipeProgress())
        cluster.up()
        _say(ready=True)
    except ClusterError as error:
        _say(error=str(error))
        sys.exit(1)
    except BaseException:
        if cluster is not None:
            cluster.down()  # told to stop, or `up` was killed: nobody will ask for the logs
        raise
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        while True:
            signal.pause()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        cluster.down()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
