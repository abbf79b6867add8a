"""The settings of both processes: flags, the variables behind them, and what is said of a wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wherry_operator import settings as operator
from wherry_runner import settings as runner
from wherry_runner.lives.backoff import BackOffSettings

OPERATOR = [
    *("--runner", "one=https://10.0.0.1:8443/", "--runner-ca", "ca", "--runner-cert", "c", "--runner-key", "k"),
    *("--kubelet-cert", "kc", "--kubelet-key", "kk", "--address", "10.0.0.7"),
]
RUNNER = ["--cert", "c", "--key", "k", "--client-ca", "ca", "--name", "one", "--node", "n"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("WHERRY_"):
            monkeypatch.delenv(name)


def test_an_operator_with_what_it_needs_has_the_documented_defaults() -> None:
    found = operator.parse(OPERATOR)
    assert found.runners == (operator.RunnerAddress(name="one", url="https://10.0.0.1:8443"),)
    assert (found.node_name, found.class_name, found.namespace) == ("wherry", "wherry", "wherry")
    assert (found.kubelet.listen, found.kubelet.port, found.kubelet.client_ca_file) == ("0.0.0.0", 10250, None)
    assert (found.runner_tls.ca_file, found.runner_tls.server_name) == (Path("ca"), "wherry-runner")
    assert (found.resync_seconds, found.reference_ttl_seconds) == (60, 60)
    assert (found.log_level, found.max_pods) == ("INFO", 1000)


def test_an_operator_that_makes_its_certificates_is_given_none() -> None:
    arguments = ["--runner-service", "runners", "--address", "10.0.0.7", "--certificate-dir", "/made"]
    found = operator.parse([*arguments, "--certificates", "own"])
    assert found.certificates == "own"
    assert found.api_certificate is not None
    files = (
        found.runner_tls.ca_file,
        found.runner_tls.key_file,
        found.api_certificate.key_file,
        found.kubelet.key_file,
    )
    assert {file.parent for file in files} == {Path("/made")}
    assert len(set(files)) == len(files)


def test_a_runner_with_what_it_needs_has_the_documented_defaults() -> None:
    found = runner.parse(RUNNER)
    assert (found.name, found.node, found.port, found.health_port) == ("one", "n", 8443, 8080)
    assert found.back_off == BackOffSettings()
    assert found.cpu_millicores >= 1000
    assert found.memory_bytes > 1 << 20
    assert found.state_directory == Path("/var/lib/wherry")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (OPERATOR[2:], "missing: --runner "),
        (
            [],
            "missing: --runner or --runner-service, --runner-ca, --runner-cert, --runner-key, --address",
        ),
        ([*OPERATOR, "--node-name", "Wherry"], "--node-name must be a DNS subdomain name (RFC 1123), not 'Wherry'"),
        ([*OPERATOR, "--class-name", "a_b"], "--class-name must be a DNS subdomain name"),
        ([*OPERATOR, "--address", "localhost"], "--address must be an IP address, not 'localhost'"),
        ([*OPERATOR, "--runner", "two"], "--runner wants NAME=https://HOST:PORT, not 'two'"),
        ([*OPERATOR, "--runner", "two=http://x:1"], "--runner wants NAME=https://HOST:PORT"),
        ([*OPERATOR, "--runner", "T=https://x:1"], "--runner wants NAME=https://HOST:PORT"),
        ([*OPERATOR, "--runner", "one=https://x:1"], "--runner: each name only once"),
        ([*OPERATOR, "--runner-service", "runners"], "runners are either named or found"),
        ([*OPERATOR, "--runner-loss-seconds", "0"], "--runner-loss-seconds must be above 0"),
        ([*OPERATOR, "--resync-seconds", "0"], "--resync-seconds and --reference-ttl-seconds must be above 0"),
        ([*OPERATOR, "--kubelet-key", ""], "--kubelet-cert and --kubelet-key: give both"),
        ([*OPERATOR, "--api-cert", "x"], "--api-cert and --api-key: give both"),
        ([*OPERATOR, "--certificates", "x"], "--certificates must be files or own, not 'x'"),
        ([*OPERATOR, "--certificates", "own"], "--certificates own: they are made, so give none of --runner-ca"),
        ([*OPERATOR, "--kubelet-certificate", "x"], "--kubelet-certificate must be self-signed or csr, not 'x'"),
        ([*OPERATOR, "--kubelet-certificate", "csr", "--node-name", "n" * 53], "--node-name must have at most 52"),
        ([*OPERATOR, "--log-level", "loud"], "--log-level must be one of DEBUG, INFO, WARNING, ERROR, not 'loud'"),
    ],
)
def test_a_wrong_setting_of_an_operator_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(operator.SettingsError, match=re.escape(says)):
        operator.parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "missing: --cert, --key, --client-ca"),
        ([*RUNNER, "--name", "One"], "--name must be a DNS subdomain name"),
        ([*RUNNER, "--node", ""], "--node must be a DNS subdomain name"),
        ([*RUNNER, "--back-off-initial", "0"], "--back-off-initial must be above 0"),
        ([*RUNNER, "--back-off-max", "5"], "--back-off-max no less than it"),
        ([*RUNNER, "--registry-mirror", "docker.io"], "--registry-mirror wants HOST=VALUE, not 'docker.io'"),
        ([*RUNNER, "--registry-mirror", "docker.io=x"], "--registry-mirror wants HOST=http(s)://…, not 'x'"),
        ([*RUNNER, "--registry-ca", "=x"], "--registry-ca wants HOST=VALUE"),
        ([*RUNNER, "--log-level", "loud"], "--log-level must be one of"),
    ],
)
def test_a_wrong_setting_of_a_runner_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(runner.SettingsError, match=re.escape(says)):
        runner.parse(arguments)


@pytest.mark.parametrize("arguments", [["--unheard-of", "1"], ["--port", "many"], ["--help"]])
def test_an_unknown_flag_and_a_wrong_number_end_the_process_with_a_hint(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        runner.parse([*RUNNER, *arguments])
    shown = capsys.readouterr()
    assert "wherry-runner" in shown.out + shown.err


def test_every_flag_has_a_variable_behind_it_and_the_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WHERRY_NODE_NAME": "sea",
        "WHERRY_KUBELET_PORT": "0",
        "WHERRY_RUNNERS": "two=https://b:1, three=https://c:1,",
        "WHERRY_CLASS_NAME": "boats",
        "WHERRY_RUNNER_CA": "other",
    }.items():
        monkeypatch.setenv(name, value)
    found = operator.parse(OPERATOR[2:])
    assert (found.node_name, found.kubelet.port, found.class_name) == ("sea", 0, "boats")
    assert found.runner_tls.ca_file == Path("ca")
    assert [item.name for item in found.runners] == ["two", "three"]
    assert [item.name for item in operator.parse(OPERATOR).runners] == ["one"]
    assert operator.parse([*OPERATOR, "--node-name", "lake"]).node_name == "lake"


def test_the_runners_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WHERRY_RUNNER_PORT": "0",
        "WHERRY_RUNNER_BACK_OFF_INITIAL": "0.5",
        "WHERRY_RUNNER_REGISTRY_MIRROR": "docker.io=http://a, ghcr.io=https://b",
        "WHERRY_RUNNER_INSECURE_REGISTRY": "r:5000",
        "WHERRY_RUNNER_REGISTRY_CA": "r:1=/ca.pem",
        "WHERRY_RUNNER_LOG_LEVEL": "debug",
    }.items():
        monkeypatch.setenv(name, value)
    found = runner.parse(RUNNER)
    assert (found.port, found.back_off.initial, found.log_level) == (0, 0.5, "DEBUG")
    registries = found.pull.registries
    assert registries.mirrors == {"docker.io": "http://a", "ghcr.io": "https://b"}
    assert registries.insecure_registries == frozenset({"r:5000"})
    assert registries.ca_files == {"r:1": Path("/ca.pem")}
    given = runner.parse([*RUNNER, "--registry-mirror", "quay.io=https://c"]).pull.registries.mirrors
    assert given == {"quay.io": "https://c"}
