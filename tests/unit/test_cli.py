"""The command line: what is read from it, what is made of it, and its words."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from wherry_cli import logs, portforward, push, rollout, run
from wherry_cli.app import main, parse
from wherry_cli.errors import CliError
from wherry_cli.why import why

WASM = b"\0asm\1\0\0\0"
COMPONENT = b"\0asm\x0d\0\1\0"


# --- arguments --------------------------------------------------------------------------------------------------------


def test_flags_of_kubectl_may_stand_before_and_after_the_command() -> None:
    for words in (["-n", "there", "logs", "x"], ["logs", "x", "--namespace=there"]):
        assert parse(words).namespace == "there"
    given = parse(["why", "x"])
    assert (given.namespace, given.context, given.kubeconfig) == (None, None, None)


def test_what_stands_after_two_dashes_is_the_modules() -> None:
    given = parse(["run", "m.wasm", "--rm", "--env", "A=1", "--env=B=2", "--", "-f", "--rm", "--", "x"])
    assert given.arguments == ["-f", "--rm", "--", "x"]
    assert given.rm and given.env == ["A=1", "B=2"]


@pytest.mark.parametrize("words", [[], ["nothing"], ["logs"], ["logs", "x", "--tial=1"], ["logs", "x", "--", "y"]])
def test_a_wrong_command_line_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ([], {}),
        (["-f", "--prefix"], {"follow": "true", "prefix": "true"}),
        (["--tail=0", "-p"], {"tailLines": "0", "previous": "true"}),
        (["--tail=-1"], {}),
        (["--since=1h30m"], {"sinceSeconds": "5400"}),
        (["--since=10ms"], {"sinceSeconds": "1"}),
        (["--since-time", "2026-01-02T03:04:05Z"], {"sinceTime": "2026-01-02T03:04:05Z"}),
        (
            ["--instance=3", "--limit-bytes", "9", "--timestamps"],
            {"instance": "3", "limitBytes": "9", "timestamps": "true"},
        ),
    ],
)
def test_flags_are_the_parameters_of_a_pods_log(words: list[str], query: dict[str, str]) -> None:
    assert logs.query(parse(["logs", "x", *words])) == query


@pytest.mark.parametrize("text", ["5", "s", "5x", "1h 3m", "-5s"])
def test_a_duration_is_kubectls(text: str) -> None:
    with pytest.raises(CliError, match="want a duration"):
        logs.seconds(text)


# --- run --------------------------------------------------------------------------------------------------------------


def test_a_local_module_goes_inline(tmp_path: Path) -> None:
    binary, text = tmp_path / "My Tool.wasm", tmp_path / "tool.wat"
    binary.write_bytes(WASM)
    text.write_text("(module)")
    made = run.workload(str(binary), "", ["A=$(B)"], ["x"])
    assert made["metadata"]["name"].startswith("my-tool-")
    assert made["spec"] == {
        "module": {"inline": base64.b64encode(WASM).decode()},
        "restartPolicy": "Never",
        "env": [{"name": "A", "value": "$$(B)"}],
        "args": ["x"],
    }
    assert run.workload(str(text), "named", [], [])["spec"]["module"] == {"inline": "(module)"}


def test_what_is_no_file_is_an_image() -> None:
    made = run.workload("registry.example/team/report:v1", "", [], [], class_name="two")
    assert made["spec"]["module"] == {"image": "registry.example/team/report:v1"}
    assert made["metadata"]["name"].startswith("report-") and made["spec"]["className"] == "two"


def test_a_large_module_is_to_be_pushed(tmp_path: Path) -> None:
    large = tmp_path / "large.wasm"
    large.write_bytes(WASM + bytes(run.MAX_INLINE_CHARACTERS))
    with pytest.raises(CliError, match="kubectl wherry push"):
        run.workload(str(large), "", [], [])


@pytest.mark.parametrize("module", ["./nowhere.wasm", "nowhere.wat", "/nowhere"])
def test_a_file_that_is_not_there_is_no_image(module: str) -> None:
    with pytest.raises(CliError, match="does not exist"):
        run.workload(module, "", [], [])


# --- push -------------------------------------------------------------------------------------------------------------


def test_the_config_tells_modules_from_components() -> None:
    assert push.config_of(WASM)["os"] == "wasip1"
    assert push.config_of(COMPONENT)["os"] == "wasip2"
    with pytest.raises(CliError, match="no binary WebAssembly"):
        push.config_of(b"(module)")


@pytest.mark.parametrize("reference", ["team/report:v1", "report", "r.example/report@sha256:0"])
def test_a_reference_names_its_registry(reference: str, tmp_path: Path) -> None:
    file = tmp_path / "m.wasm"
    file.write_bytes(WASM)
    with pytest.raises(CliError, match="want REGISTRY/REPOSITORY:TAG"):
        push.push(file, reference, {}, plain_http=False)


def test_what_was_pushed_is_named_by_its_digest() -> None:
    assert (
        push.reference_and_digest("r.example:5000/team/report:v1", "sha256:0") == "r.example:5000/team/report@sha256:0"
    )


# --- why --------------------------------------------------------------------------------------------------------------


def workload(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "report", "generation": 1}, "spec": spec, "status": status or {}}


def status(phase: str, *instances: dict[str, Any], **conditions: Any) -> dict[str, Any]:
    listed = [{"type": kind, "status": value, "message": text} for kind, (value, text) in conditions.items()]
    return {"phase": phase, "observedGeneration": 1, "instances": list(instances), "conditions": listed}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (workload(className="two"), "report waits for an operator: none that serves className two has looked at it"),
        (
            workload(status("Pending", Scheduled=("False", "0/2 runners fit: 2 are not ready"))),
            "report waits for a runner: 0/2 runners fit: 2 are not ready",
        ),
        (
            workload(status("ErrImagePull", {"state": "Waiting", "reason": "ErrImagePull", "message": "no such tag"})),
            "report waits: ErrImagePull: no such tag",
        ),
        (
            workload(status("Running", {"state": "Running", "node": "n1"}, Ready=("True", "")) | {"ready": "1/1"}),
            "report runs: 1/1 ready, on n1",
        ),
        (
            workload(status("Failed", {"state": "Terminated", "reason": "Error", "exitCode": 3})),
            "report has failed and will not run again: Error (exit code 3)",
        ),
        (workload(status("Succeeded")), "report is done: it ended well and will not run again"),
        (
            workload(status("Unknown", {"state": "Running", "runner": "a"})),
            "report may be running: its runner a does not answer",
        ),
        (workload(status("Pending"), suspend=True), "report is suspended: set spec.suspend to false for it to run"),
    ],
)
def test_why_is_one_sentence(body: dict[str, Any], sentence: str) -> None:
    assert why(body) == sentence


def test_a_change_that_was_not_looked_at_is_told() -> None:
    body = workload(status("Succeeded"))
    body["metadata"]["generation"] = 2
    assert why(body).endswith("(its newest change was not looked at yet)")


def test_without_a_cluster_the_words_are_kubectls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["why", "x", "--kubeconfig", str(tmp_path / "nowhere")])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error


# --- rollout ----------------------------------------------------------------------------------------------------------


def revised(number: int, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"wherry.dev/revision": f"hash{number}"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
        "revision": number,
        "data": {"spec": spec, "outside": ["replicas"]},
    }


HISTORY = [revised(1, module={"inline": "x"}, args=["a"]), revised(4, module={"image": "i"})]


def live(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "x", "generation": 2}, "spec": {"replicas": 3, **spec}}


@pytest.mark.parametrize(
    ("text", "local", "remote"), [("8080:80", 8080, 80), ("80", 80, 80), (":80", 0, 80), ("0:65535", 0, 65535)]
)
def test_a_pair_of_ports_is_kubectls(text: str, local: int, remote: int) -> None:
    assert portforward.parse(text) == portforward.Ports(local, remote)


@pytest.mark.parametrize("text", ["", ":", "a", "80:", "80:a", "-1:80", "80:0", "65536:80", "1:2:3", "80:http"])
def test_what_is_no_pair_of_ports_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="is no pair of ports"):
        portforward.parse(text)


def test_the_way_back_replaces_whole_fields_and_keeps_what_is_no_part_of_a_revision() -> None:
    assert rollout.way_back(live(module={"image": "i"}), HISTORY[0]) == [
        {"op": "add", "path": "/spec/args", "value": ["a"]},
        {"op": "add", "path": "/spec/module", "value": {"inline": "x"}},
    ]
    assert rollout.way_back(live(module={"image": "i"}, env=[]), HISTORY[1]) == [{"op": "remove", "path": "/spec/env"}]
    assert rollout.way_back(live(module={"inline": "x"}, args=["b"]), HISTORY[0]) == [
        {"op": "add", "path": "/spec/args", "value": ["a"]}
    ]
    assert rollout.way_back(live(module={"image": "i"}), HISTORY[1]) == []


def test_the_way_back_keeps_that_part_of_a_field_that_is_no_part_of_a_revision() -> None:
    then = revised(1, module={"image": "i"}, http={"maxRequests": 5})
    then["data"]["outside"] += ["http.port", "http.service"]
    now = {"port": 8080, "service": {"name": "other"}}
    assert rollout.way_back(live(module={"image": "i"}, http={"maxRequests": 5, **now}), then) == []
    assert rollout.way_back(live(module={"image": "i"}, http=now), then) == [
        {"op": "add", "path": "/spec/http", "value": {"maxRequests": 5, **now}}
    ]


@pytest.mark.parametrize(
    ("spec", "number", "chosen"),
    [
        ({"module": {"image": "i"}}, 0, 1),
        ({"module": {"image": "bad"}}, 0, 4),  # never ready, so never written down
        ({"module": {"image": "bad"}}, 1, 1),
        ({"module": {"image": "i"}}, 4, 4),
    ],
)
def test_which_revision_is_gone_back_to(spec: dict[str, Any], number: int, chosen: int) -> None:
    assert rollout.choose(live(**spec), HISTORY, number)["revision"] == chosen


@pytest.mark.parametrize(
    ("revisions", "number", "words"),
    [
        ([], 0, "no rollout history found"),
        (HISTORY, 2, "unable to find specified revision 2"),
        (HISTORY[1:], 0, "no revision before the present one"),
    ],
)
def test_where_there_is_no_way_back_it_says_so(revisions: list[dict[str, Any]], number: int, words: str) -> None:
    with pytest.raises(CliError, match=words):
        rollout.choose(live(module={"image": "i"}), revisions, number)


def test_the_history_is_a_table() -> None:
    assert rollout.history(live(module={"image": "i"}), HISTORY).splitlines() == [
        "REVISION   HASH    MODULE   CREATED",
        "1          hash1   inline   2026-01-02T03:04:05Z",
        "4*         hash4   i        2026-01-02T03:04:05Z",
    ]


@pytest.mark.parametrize(
    ("status", "text", "done"),
    [
        ({}, "Waiting for wasmworkload spec update to be observed...", False),
        ({"observedGeneration": 2, "updatedReplicas": 1}, "1 out of 3 new instances have been updated", False),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4}, "1 old instances are pending", False),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3}, "0 of 3 updated instances", False),
        ({"observedGeneration": 2, "conditions": [{"type": "Ready", "status": "True"}]}, "successfully", True),
    ],
)
def test_how_far_a_rollout_is(status: dict[str, Any], text: str, done: bool) -> None:
    said, is_done = rollout.progress({**live(), "status": status})
    assert text in said
    assert is_done is done


def test_a_rollout_that_is_stuck_is_an_error() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "ProgressDeadlineExceeded", "message": "no such image"}
    with pytest.raises(CliError, match="no such image"):
        rollout.progress({**live(), "status": {"observedGeneration": 2, "conditions": [stalled]}})
