"""`kubectl wherry …` as people call it: the real kubectl finds the plugin on PATH."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.cluster.provider import kubectl_environment
from tests.cluster.registry import Registry
from tests.guests.servers import SERVER
from tests.support import executors, wat
from tests.support.installation import ROOT
from tests.support.kube import MIRRORED, Workspace

Done = subprocess.CompletedProcess[str]
Wherry = Callable[..., Done]

TIMEOUT_SECONDS = 90.0


def _environment(space: Workspace, home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kubectl_environment(), "KUBECONFIG": str(space.cluster.kubeconfig), "PATH": path, "HOME": str(home)}


def _hears_ctrl_c() -> None:
    """What a shell runs in the background ignores SIGINT, and so do these tests' processes then."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _command(space: Workspace, *words: str) -> list[str]:
    head, dashes, tail = list(words), [], []
    if "--" in head:
        at = head.index("--")
        head, dashes, tail = head[:at], ["--"], head[at + 1 :]
    program = str(space.cluster.kubectl_program())
    return [program, "wherry", *head, "-n", space.namespace, *dashes, *tail]


@pytest.fixture
def wherry(space: Workspace, tmp_path: Path) -> Wherry:
    """Runs `kubectl wherry` in the test's namespace."""

    def run(*words: str) -> Done:
        return subprocess.run(
            _command(space, *words),
            env=_environment(space, tmp_path),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    return run


def test_logs(space: Workspace, wherry: Wherry) -> None:
    space.workload("talks", module={"inline": wat.exits(0, says="hello")}, restartPolicy="Never")
    space.wait_phase("talks", "Succeeded", kind="wasmworkload")
    for words in (["talks"], ["-f", "talks"], ["talks", "--tail=5", "--since", "1h"]):
        done = wherry("logs", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    assert wherry("logs", "talks", "--prefix").stdout == f"[{space.instance('talks')['name']}/module] hello\n"


def test_a_log_that_is_followed_comes_as_it_is_written(space: Workspace, tmp_path: Path) -> None:
    space.workload("stays", module={"inline": wat.sleeps("awake")})
    space.kubectl("wait", "--for=condition=Ready", "ww/stays", "--timeout=60s")
    following = subprocess.Popen(
        _command(space, "logs", "-f", "stays"), env=_environment(space, tmp_path), stdout=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    with following.stdout as output:
        assert output.readline() == "awake\n"
        space.kubectl("delete", "ww", "stays")  # its end is the log's
        assert following.wait(TIMEOUT_SECONDS) in (0, 1)


def test_failures_are_in_kubectls_words(space: Workspace, wherry: Wherry) -> None:
    for command in (["logs", "nobody"], ["why", "nobody"]):
        done = wherry(*command)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr == 'Error from server (NotFound): wasmworkloads.wherry.dev "nobody" not found\n'


def test_run_a_local_module_to_its_exit_code(space: Workspace, wherry: Wherry, tmp_path: Path) -> None:
    text = tmp_path / "seven.wat"
    text.write_text(wat.exits(7, says="from here"))
    done = wherry("run", str(text), "--rm", "--name=seven")
    assert (done.returncode, done.stdout) == (7, "from here\n"), done.stderr
    assert space.get("wasmworkload", "seven") is None
    binary = wat.write(wat.exits(0, says="in bytes"), tmp_path / "fine.wasm")
    done = wherry("run", str(binary), "--name=fine")
    assert (done.returncode, done.stdout) == (0, "in bytes\n"), done.stderr
    assert (space.get("wasmworkload", "fine") or {})["spec"]["module"] == {
        "inline": base64.b64encode(binary.read_bytes()).decode()
    }


def test_run_says_why_the_api_server_refuses(wherry: Wherry, tmp_path: Path) -> None:
    text = tmp_path / "any.wat"
    text.write_text(wat.exits(0))
    done = wherry("run", str(text), "--name=No_Name")
    assert done.returncode == 1
    assert done.stderr.startswith('The WasmWorkload "No_Name" is invalid: metadata.name: Invalid value: ')


def test_ctrl_c_takes_away_what_was_to_be_removed(space: Workspace, tmp_path: Path) -> None:
    text = tmp_path / "long.wat"
    text.write_text(wat.sleeps("awake"))
    running = subprocess.Popen(
        _command(space, "run", str(text), "--rm", "--name=long"),
        env=_environment(space, tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_hears_ctrl_c,
    )
    assert running.stdout is not None
    with running.stdout as output:
        assert output.readline() == "awake\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(TIMEOUT_SECONDS) == 130
    space.wait(lambda: space.get("wasmworkload", "long") is None, "it is gone")


def test_push_and_run_with_arguments_and_environment(space: Workspace, registry: Registry, wherry: Wherry) -> None:
    module = ROOT / "demos" / "hello-world-rust" / "hello.wasm"
    pushed = wherry("push", str(module), f"{registry.address}/tests/cli:v1")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.startswith(f"{registry.address}/tests/cli@sha256:")
    digest = pushed.stdout.strip().split("@")[1]
    done = wherry("run", f"{MIRRORED}/tests/cli@{digest}", "--rm", "--env", "WHO=me", "--", "to", "-n")
    assert "WHO=me" in done.stdout and '"to", "-n"]' in done.stdout, done.stderr


def test_push_takes_the_credentials_of_docker_login(wherry: Wherry, tmp_path: Path) -> None:
    module = wat.write(wat.exits(0), tmp_path / "m.wasm")
    with Registry(tmp_path / "private", htpasswd={"me": "hunter2"}) as private:
        target = f"{private.address}/tests/cli:v1"
        refused = wherry("push", str(module), target)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"error: can't push to {target}: ") and "Traceback" not in refused.stderr
        login = {"auths": {private.address: {"auth": base64.b64encode(b"me:hunter2").decode()}}}
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker" / "config.json").write_text(json.dumps(login))
        done = wherry("push", str(module), target)
        assert done.returncode == 0, done.stderr
        assert "hunter2" not in done.stdout + done.stderr


def test_why(space: Workspace, wherry: Wherry) -> None:
    space.workload("waits", module={"image": f"{MIRRORED}/nobody/has:this"})
    space.wait(lambda: "ErrImagePull" in str(space.get("ww", "waits")), "the pull has failed")
    done = wherry("why", "waits")
    assert done.returncode == 0
    assert done.stdout.startswith("waits waits: ") and len(done.stdout.splitlines()) == 1
    space.workload("done", module={"inline": wat.exits(0)}, restartPolicy="Never")
    space.wait_phase("done", "Succeeded", kind="wasmworkload")
    assert wherry("why", "done").stdout == "done is done: it ended well and will not run again\n"


def test_a_rollout_is_followed_and_taken_back(space: Workspace, wherry: Wherry) -> None:
    space.workload("rolls", module={"inline": wat.sleeps()}, args=["first"], replicas=2)
    assert wherry("rollout", "status", "rolls").stdout.endswith('wasmworkload "rolls" successfully rolled out\n')
    missing = wherry("rollout", "undo", "rolls", "--to-revision=7")
    assert (missing.returncode, missing.stdout) == (1, "")

    def numbers() -> list[str]:
        rows = wherry("rollout", "history", "rolls").stdout.splitlines()[1:]
        return [row.split()[0] for row in rows]

    space.wait(lambda: numbers() == ["1*"], "the first revision is remembered")
    space.workload("rolls", module={"inline": wat.sleeps()}, args=["second"], env=[{"name": "A", "value": "1"}])
    assert wherry("rollout", "status", "rolls").returncode == 0
    space.wait(lambda: numbers() == ["1", "2*"], "so is the second")
    space.workload("rolls", module={"inline": "(module)"}, progressDeadlineSeconds=2)
    stuck = wherry("rollout", "status", "rolls")
    assert stuck.returncode == 1
    assert "ProgressDeadlineExceeded" in stuck.stderr
    space.kubectl("scale", "ww/rolls", "--replicas=3")
    undone = wherry("rollout", "undo", "rolls")
    assert (undone.stdout, undone.stderr) == ("wasmworkload.wherry.dev/rolls rolled back to revision 2\n", "")
    assert wherry("rollout", "status", "rolls").returncode == 0
    spec = (space.get("ww", "rolls") or {})["spec"]
    assert (spec["args"], spec["replicas"], spec["env"]) == (["second"], 3, [{"name": "A", "value": "1"}])
    assert wherry("rollout", "undo", "rolls", "--to-revision", "1").returncode == 0
    assert wherry("rollout", "status", "rolls").returncode == 0
    spec = (space.get("ww", "rolls") or {})["spec"]
    assert (spec["args"], spec["replicas"], spec.get("env")) == (["first"], 3, None)
    space.wait(lambda: numbers() == ["2", "3*"], "what came back is the newest")
    space.kubectl("delete", "ww", "rolls")
    listed = ["get", "controllerrevisions", "-n", space.namespace, "-o", "name"]
    space.wait(lambda: not space.cluster.kubectl(*listed).stdout, "its revisions went with it")


def test_port_forward(space: Workspace, tmp_path: Path) -> None:
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    space.workload("web", module={"inline": SERVER}, http={"port": 8080})
    space.kubectl("wait", "--for=condition=Ready", "ww/web", "--timeout=60s")
    forwarding = subprocess.Popen(
        _command(space, "port-forward", "web", ":8080", ":81"),
        env=_environment(space, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hears_ctrl_c,
    )
    assert forwarding.stdout is not None and forwarding.stderr is not None
    with forwarding.stdout as output, forwarding.stderr as errors:
        ports = []
        for remote in (8080, 81):
            found = re.fullmatch(rf"Forwarding from 127\.0\.0\.1:(\d+) -> {remote}\n", output.readline())
            assert found is not None
            ports.append(int(found[1]))
        for _ in range(3):
            assert httpx.get(f"http://127.0.0.1:{ports[0]}/", trust_env=False).text == "hello over HTTP\n"
        large = b"x" * 1_000_000
        answer = httpx.post(f"http://127.0.0.1:{ports[0]}/echo", content=large, trust_env=False, timeout=60)
        assert len(answer.content) >= len(large)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{ports[1]}/", trust_env=False)
        assert 'wasmworkload "web" has no port 81: it has 8080' in errors.readline()
        forwarding.send_signal(signal.SIGINT)
        assert forwarding.wait(TIMEOUT_SECONDS) == 130
