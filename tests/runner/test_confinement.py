"""What confines guests: every gate tried on the real kernel, with both executors' sandboxes, and on kernels that lack some."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.build import cache_directory
from tests.runner.conftest import Play
from tests.runner.harness import Bench
from tests.support import executors, intruder
from tests.support.onlooker import threads
from tests.support.runner import Certificates, environment

ROOT = Path(__file__).resolve().parents[2]

LANDLOCK_ABI = 6
"""The least by which all that is said below of Landlock is true."""

AS_NOBODY = (
    *("setpriv", f"--reuid={intruder.NOBODY}", f"--regid={intruder.NOBODY}", "--clear-groups"),
    # So that it finds the interpreter below a home folder of root's: the one right that it keeps.
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
    "--bounding-set=-all,+dac_read_search",
)

OUTCOMES = """
                            none            landlock  seccomp  all

fork                        ok              ok        EPERM    EPERM
clone                       ok              ok        EPERM    EPERM
clone3                      EINVAL          EINVAL    ENOSYS   ENOSYS
execve                      ok              EACCES    SIGSYS   SIGSYS
execve readable             ENOEXEC         EACCES    SIGSYS   SIGSYS
unshare                     ?               ?         SIGSYS   SIGSYS

signal parent               ok              EPERM     EPERM    EPERM
signal parent's thread      ok              EPERM     EPERM    EPERM
signal everybody            ?               ?         EPERM    EPERM
have parent signalled       ok              ok        EPERM    EPERM
ptrace parent               ok              EPERM     SIGSYS   SIGSYS
read parent's memory        ok              EPERM     SIGSYS   SIGSYS
open parent's memory        ok              EACCES    ok       EACCES

unix socket                 ok              ok        EPERM    EPERM
tcp socket                  ok              ok        EPERM    EPERM
udp socket                  ok              ok        EPERM    EPERM
socket pair                 ok              ok        EPERM    EPERM
tcp connect                 ECONNREFUSED    EACCES    EPERM    EPERM
tcp bind                    ok              EACCES    EPERM    EPERM
abstract socket             ok              EPERM     EPERM    EPERM

read outside                ok              EACCES    ok       EACCES
create outside              ok              EACCES    ok       EACCES
truncate outside            ok              EACCES    ok       EACCES
list root                   ok              EACCES    ok       EACCES
open own memory             ok              EACCES    ok       EACCES
follow link outside         ok              EACCES    ok       EACCES
move outside                ok              EACCES    ok       EACCES
move in                     ok              EACCES    ok       EACCES
link in                     ok              EXDEV     ok       EXDEV
change mode outside         ok              ok        EPERM    EPERM
change folder               ok              ok        EPERM    EPERM
stat outside                ok              ok        ok       ok
set times outside           ok              ok        ok       ok
read link outside           ok              ok        ok       ok
mount                       ?               ?         SIGSYS   SIGSYS

read readable               ok              ok        ok       ok
write readable              ok              EACCES    ok       EACCES
create in readable          ok              EACCES    ok       EACCES
write writable              ok              ok        ok       ok
create in writable          ok              ok        ok       ok
make and remove             ok              ok        ok       ok
make a pipe                 ok              EACCES    EPERM    EPERM

read log                    ok              EACCES    ok       EACCES
make a folder beside log    ok              EACCES    ok       EACCES

map code                    ok              ok        EPERM    EPERM
make code                   ok              ok        EPERM    EPERM
memory file                 ok              ok        EPERM    EPERM
become dumpable             ok              ok        EPERM    EPERM
change limits               ok              ok        EPERM    EPERM
bpf                         ?               ?         SIGSYS   SIGSYS
io_uring                    ?               ?         SIGSYS   SIGSYS
userfaultfd                 ?               ?         SIGSYS   SIGSYS
keyring                     ?               ?         SIGSYS   SIGSYS

thread                      ok              ok        ok       ok
signal oneself              ok              ok        ok       ok
abort                       SIGABRT         SIGABRT   SIGABRT  SIGABRT
map data                    ok              ok        ok       ok
random                      ok              ok        ok       ok
sleep                       ok              ok        ok       ok
"""
"""What comes of each attempt (`tests/support/intruder.py`) behind which gates; a question mark: the kernel's own matter. Without
any, what is forbidden later works: nothing else forbids it."""

OF_THE_LOG = {
    # Its output goes to the supervisor: the log's folder is not its own.
    "python": """
append to log               ok              EACCES    ok       EACCES
rotate log                  ok              EACCES    ok       EACCES
move log out                ok              EACCES    ok       EACCES
""",
    "native": """
append to log               ok              ok        ok       ok
rotate log                  ok              ok        ok       ok
move log out                ok              EXDEV     ok       EXDEV
""",
}


@pytest.fixture(scope="session")
def native_sandbox() -> Path:
    """The native executor's sandbox as a library, which cargo builds in seconds."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is missing: the native executor's sandbox can't be built")
    target = cache_directory() / "sandbox-target"
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--target-dir", str(target)]
    subprocess.run(command, cwd=ROOT / "tests" / "support" / "sandbox_library", check=True)
    return target / "release" / "libsandbox_library.so"


@pytest.fixture(params=executors.EXECUTORS)
def sandbox(request: pytest.FixtureRequest) -> tuple[str, str]:
    """An executor, and what the intruder calls its sandbox."""
    if request.param == "python":
        return "python", "python"
    return "native", str(request.getfixturevalue("native_sandbox"))


def _json(*command: str | Path, prefix: tuple[str, ...] = ()) -> Any:
    """What a program of ours prints."""
    done = subprocess.run([*prefix, sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _expected(executor: str, gates: str) -> dict[str, str]:
    head, *lines = [line for line in (OUTCOMES + OF_THE_LOG[executor]).splitlines() if line]
    column = head.split().index(gates)
    rows = [re.split(r" {2,}", line) for line in lines]
    return {name: outcomes[column] for name, *outcomes in rows}


@pytest.mark.parametrize("gates", intruder.GATES)
def test_each_gate_stops_what_it_should_and_nothing_that_a_module_needs(
    sandbox: tuple[str, str], gates: str, tmp_path: Path
) -> None:
    executor, chosen = sandbox
    intruder.furnish(tmp_path)
    told = _json("tests.support.intruder", chosen, gates, tmp_path)
    no_new_privileges, abi, seccomp = told["found"]
    if gates in ("all", "landlock") and abi < LANDLOCK_ABI:
        pytest.skip(f"this kernel has version {abi} of Landlock, and the expectations are of {LANDLOCK_ABI}")
    assert no_new_privileges and seccomp
    expected = _expected(executor, gates)
    assert expected.keys() == told["outcomes"].keys()
    outcomes = {name: "?" if expected[name] == "?" else outcome for name, outcome in told["outcomes"].items()}
    assert outcomes == expected


def test_trying_the_gates_leaves_the_executor_as_it_was(sandbox: tuple[str, str], tmp_path: Path) -> None:
    intruder.furnish(tmp_path)
    before = dict(re.findall(r"^(\w+):\t(.*)$", Path("/proc/self/status").read_text(), re.MULTILINE))
    told = _json("tests.support.intruder", sandbox[1], "none", tmp_path)
    after = dict(re.findall(r"^(\w+):\t(.*)$", told["status after probe"], re.MULTILINE))
    assert after["Threads"] == "1"
    for name in ("NoNewPrivs", "Seccomp"):
        assert after[name] == before[name]


def test_every_thread_of_a_guest_is_confined(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        confinement = bench.engine.confinement
        assert confinement.no_new_privileges and confinement.seccomp and confinement.landlock_abi > 0
        guest = await bench.start(tool, "wait")
        await bench.said(guest, b"waiting\n")
        found = threads(guest.pid)
        assert 1 <= len(found) <= 2
        assert {(thread["NoNewPrivs"], thread["Seccomp"]) for thread in found} == {("1", "2")}

    play(scenario)


def test_processes_of_the_same_user_can_not_look_into_a_guest(executor: str, tmp_path: Path) -> None:
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        prefix = AS_NOBODY
        os.chown(tmp_path, intruder.NOBODY, intruder.NOBODY)
    told = _json("tests.support.onlooker", executor, tmp_path, prefix=prefix)
    assert (told["exit code"], told["text"]) == (3, "short\n"), told["message"]
    assert set(told["had of a plain process"].values()) == {"ok"}, "the attempts themselves work"
    assert set(told["had of the guest"].values()) <= {"EACCES", "EPERM"}


@pytest.mark.parametrize(
    ("lacks", "confinement"),
    [
        ("landlock", {"no_new_privileges": True, "landlock_abi": 0, "seccomp": True}),
        ("seccomp", {"no_new_privileges": True, "seccomp": False}),
        ("landlock,seccomp", {"no_new_privileges": True, "landlock_abi": 0, "seccomp": False}),
    ],
)
def test_an_older_kernel_runs_guests_with_what_it_has(
    executor: str, lacks: str, confinement: dict[str, object], tmp_path: Path
) -> None:
    older = (sys.executable, "-m", "tests.support.older_kernel", lacks)
    told = _json("tests.support.onlooker", executor, tmp_path, prefix=older)
    assert told["confinement"] == {**told["confinement"], **confinement}
    assert (told["exit code"], told["text"]) == (3, "short\n"), told["message"]


def test_a_gate_that_was_found_and_does_not_close_is_an_error(sandbox: tuple[str, str], tmp_path: Path) -> None:
    """Never less than was found: the kernel forgets Landlock after the probe."""
    intruder.furnish(tmp_path)
    script = "\n".join(
        (
            "import sys",
            "from tests.support import intruder, older_kernel",
            "from wherry_runner.execution import seccomp",
            "probe, confine = intruder.gates_of(sys.argv[1])",
            "found = probe()",
            "seccomp.load(seccomp.encode(older_kernel.lacking({'landlock'})))",
            "confine(found)",
            "print('confined')",
        )
    )
    code = f"import os; os.chdir({str(tmp_path)!r})\n{script}"
    command = [sys.executable, "-c", code, sandbox[1]]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode != 0
    assert "this process can't be confined by Landlock" in done.stdout
    assert "confined\n" not in done.stdout


def test_a_server_takes_connections_and_can_make_none(native_sandbox: Path) -> None:
    script = f"""
import ctypes, errno, json, socket
library = ctypes.CDLL({str(native_sandbox)!r})
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
client.sendall(b"question")
loose, datagrams = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
address = listener.getsockname()
assert library.apply_as_server(library.probe()) == 0

def tried(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def serve():
    taken, _ = listener.accept()
    assert taken.recv(100) == b"question"
    taken.send(b"answer")
    taken.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b"answer"
    taken.close()

print(json.dumps({{
    "serve": tried(serve),
    "socket": tried(lambda: socket.socket()),
    "socketpair": tried(lambda: socket.socketpair()),
    "connect": tried(lambda: loose.connect(address)),
    "bind": tried(lambda: loose.bind(("127.0.0.1", 0))),
    "listen": tried(lambda: loose.listen()),
    "sendto": tried(lambda: datagrams.sendto(b"x", address)),
    "sendto that connects": tried(lambda: loose.sendto(b"x", socket.MSG_FASTOPEN, address)),
    "sendmsg": tried(lambda: datagrams.sendmsg([b"x"], [], 0, address)),
    "setsockopt": tried(lambda: listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)),
}}))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    outcomes = json.loads(done.stdout)
    assert outcomes.pop("serve") == "ok"
    assert outcomes == dict.fromkeys(outcomes, "EPERM")


def test_a_network_is_its_ports_and_nothing_that_listens(native_sandbox: Path) -> None:
    script = f"""
import ctypes, errno, json, socket
library = ctypes.CDLL({str(native_sandbox)!r})
servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
granted, other = (server.getsockname() for server in servers)
datagrams = socket.socket(type=socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
found = library.probe()
assert library.apply_with_network(found, granted[1]) == 0
FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK

def make(family=socket.AF_INET, kind=socket.SOCK_STREAM):
    return socket.socket(family, kind | FLAGS)

def tried(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def bound():
    stream = make()
    stream.bind(("127.0.0.1", 0))
    return stream

print(json.dumps({{
    "landlock": found & 255,
    "connect": tried(lambda: make().connect(granted)),
    "another port": tried(lambda: make().connect(other)),
    "datagram": tried(lambda: make(kind=socket.SOCK_DGRAM).sendto(b"x", datagrams.getsockname())),
    "bind any": tried(bound),
    "bind one": tried(lambda: make().bind(("127.0.0.1", 12345))),
    "listen": tried(lambda: bound().listen()),
    "fast open": tried(lambda: make().sendto(b"x", socket.MSG_FASTOPEN, other)),
    "unix": tried(lambda: make(socket.AF_UNIX)),
    "netlink": tried(lambda: make(socket.AF_NETLINK, socket.SOCK_RAW)),
    "raw": tried(lambda: make(kind=socket.SOCK_RAW)),
    "option": tried(lambda: make().setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")),
    "message": tried(lambda: make(kind=socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, datagrams.getsockname())),
}}))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    outcomes = json.loads(done.stdout)
    # TCP is Landlock's since version 4.
    by_landlock = "EACCES" if outcomes.pop("landlock") >= 4 else "ok"
    assert outcomes.pop("connect") == "EINPROGRESS"
    assert outcomes.pop("another port") == ("EACCES" if by_landlock == "EACCES" else "EINPROGRESS")
    assert (outcomes.pop("datagram"), outcomes.pop("bind any"), outcomes.pop("bind one")) == ("ok", "ok", by_landlock)
    assert outcomes == dict.fromkeys(outcomes, "EPERM")


def test_who_may_listen_does_so_on_its_port_and_connects_to_nobody(native_sandbox: Path) -> None:
    script = f"""
import ctypes, errno, json, socket
library = ctypes.CDLL({str(native_sandbox)!r})
with socket.socket() as one, socket.socket() as other:
    one.bind(("127.0.0.1", 0))
    other.bind(("127.0.0.1", 0))
    own, free = one.getsockname(), other.getsockname()
elsewhere = socket.create_server(("127.0.0.1", 0)).getsockname()
found = library.probe()
assert library.apply_listening(found, own[1]) == 0
FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK

def make(kind=socket.SOCK_STREAM):
    return socket.socket(socket.AF_INET, kind | FLAGS)

def tried(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def serve():
    stream = make()
    stream.bind(own)
    stream.listen()
    assert tried(stream.accept) == "EAGAIN"

print(json.dumps({{
    "landlock": found & 255,
    "serve": tried(serve),
    "bind another": tried(lambda: make().bind(free)),
    "datagram": tried(lambda: make(socket.SOCK_DGRAM).bind(free)),
    "connect": tried(lambda: make().connect(elsewhere)),
    "connect a datagram socket": tried(lambda: make(socket.SOCK_DGRAM).connect(elsewhere)),
    "fast open": tried(lambda: make().sendto(b"x", socket.MSG_FASTOPEN, elsewhere)),
    "unix": tried(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | FLAGS)),
}}))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    outcomes = json.loads(done.stdout)
    by_landlock = "EACCES" if outcomes.pop("landlock") >= 4 else "ok"
    # Landlock knows nothing of UDP: its ports are decided in the host's calls alone.
    assert (outcomes.pop("serve"), outcomes.pop("datagram")) == ("ok", "ok")
    assert outcomes.pop("bind another") == by_landlock
    assert outcomes == dict.fromkeys(outcomes, "EPERM")


def test_a_runner_does_not_start_without_what_it_requires(executor: str, tmp_path: Path) -> None:
    pki = Certificates(tmp_path)
    command = [
        *(sys.executable, "-m", "tests.support.older_kernel", "landlock"),
        *(sys.executable, "-m", "wherry_runner", *executors.flags(executor), "--port", "0", "--health-port", "0"),
        *("--cert", pki.runner.cert, "--key", pki.runner.key, "--client-ca", pki.ca.cert_file),
        *("--state-directory", tmp_path / "state", "--require-confinement", "no-new-privileges,landlock,seccomp"),
    ]
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert "wherry-runner: --require-confinement: guests can't be confined by landlock here" in done.stderr
    assert "seccomp and" not in done.stderr
