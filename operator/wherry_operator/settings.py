"""What an operator is told at its start: flags, each with an environment variable behind it."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from wherry_operator.scope import Scope

LONGEST_NODE_NAME = 52
"""For which a certificate can be asked: the signer wants `system:node:NAME`, and X.509 has 64 characters for it."""

LEASE_DURATION_SECONDS = 13
"""Of the leader's Lease: how long the others wait for a silent leader. With the second until they see its last renewal, and one
to begin with, another is at work 15 s after a leader died (fail-over ≤ 15 s)."""

NODE_LEASE_DURATION_SECONDS = 40
"""Of the virtual Node's Lease, as a kubelet's (nodeLeaseDurationSeconds)."""

NODE_LEASE_RENEW_SECONDS = 10.0
"""A quarter of the duration, as a kubelet renews it."""


@dataclass(frozen=True, kw_only=True)
class RunnerAddress:
    """A runner and where it is: named in the settings, or found through EndpointSlices."""

    name: str
    url: str
    """`https://host:port`."""
    node: str = ""
    """The node that it is on, where that is known before it answers."""


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """How the operator shows itself to runners, and how it knows them."""

    ca_file: Path
    cert_file: Path
    key_file: Path
    server_name: str = "wherry-runner"
    """The one name in every runner's certificate: one key serves all runners of an installation (design §2)."""


@dataclass(frozen=True, kw_only=True)
class CertificateFiles:
    """A server's certificate and its key."""

    cert_file: Path
    key_file: Path


@dataclass(frozen=True, kw_only=True)
class KubeletSettings:
    """The virtual node's HTTPS endpoint."""

    address: str
    """The IP that the Node publishes and the API server calls."""
    listen: str
    port: int
    """0: any free one; the Node publishes what was bound."""
    cert_file: Path
    key_file: Path
    certificate: Literal["files", "self-signed", "csr"]
    """Who brings these two files: somebody else, or `serving.py`, which makes one or has it signed."""
    client_ca_file: Path | None
    """None: read from ConfigMap kube-system/extension-apiserver-authentication."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One operator. The node's name and the class are data: two installations live side by side in one cluster."""

    node_name: str
    class_name: str
    namespace: str
    """Where the operator lives: its leader Lease is there."""
    identity: str
    """Who holds the leader Lease. A process with the same identity takes it over at once: never give one to two."""
    runners: tuple[RunnerAddress, ...]
    """Named one by one; none where `runner_service` finds them."""
    runner_tls: ClientTls
    """Files that are brought, or that are made here: `certificates`."""
    kubelet: KubeletSettings
    health_listen: str
    health_port: int
    max_pods: int
    taint_value: str = "wasm32-wasi"
    """Of the Node's two taints. Another one keeps a second installation's Pods apart."""
    node_owner: str = ""
    """A ClusterRole of the release that the Node goes with; empty: none."""
    runner_service: str = ""
    """The headless Service, in `namespace`, whose EndpointSlices say where runners are; empty: `runners` says it."""
    runner_loss_seconds: float = 60.0
    """How long a runner is silent before what it has is started elsewhere (design §3.7)."""
    unpublish_seconds: float = 2.0
    """Between the moment when no new client is led to an instance of a WasmWorkload, and its end: as long as a proxy on a node
    takes to hear of it, and to follow (kube-proxy's minSyncPeriod is 1 s)."""
    api_listen: str = "0.0.0.0"
    api_port: int = 8443
    """Of the aggregated API, which the API server calls; 0: any free one."""
    api_certificate: CertificateFiles | None = None
    """None: the kubelet endpoint's."""
    certificates: Literal["files", "own"] = "files"
    """Who brings the certificates between operator and runners: somebody else, or `reconcile/issuing.py`, which makes them and
    keeps Secrets with the runners' in `namespace`."""
    resync_seconds: float = 60.0
    """Pause between two metadata-only LISTs that find what a watch missed (kopf never synthesises a deletion)."""
    reference_ttl_seconds: float = 60.0
    """A referenced ConfigMap or Secret is read at most this often; changes reach files within one and a half of it."""
    service_account_tokens: bool = False
    """Whether Pods get the tokens of their service accounts that they ask for."""
    scope: Scope = field(default_factory=Scope)
    """The namespaces whose Pods and WasmWorkloads are taken."""
    claims: frozenset[str] = frozenset()
    """PersistentVolumeClaims that the runners offer to Pods of their namespaces: `NAMESPACE/NAME`."""
    log_level: str = "INFO"


class SettingsError(Exception):
    """A setting is missing or wrong; the message names the flag and says what to give."""


LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Settings from flags and WHERRY_* variables. Raises SettingsError; exits on --help and unknown flags."""
    given = _parser().parse_args(argv)
    runners = tuple(map(_static_runner, _repeated(given.runner, "WHERRY_RUNNERS")))
    brought = {"--runner-ca": given.runner_ca, "--runner-cert": given.runner_cert, "--runner-key": given.runner_key}
    missing = [
        flag
        for flag, value in {
            "--runner or --runner-service": runners or given.runner_service,
            **({} if given.certificates == "own" else brought),
            "--address": given.address,
        }.items()
        if not value
    ]
    if missing:
        raise SettingsError(f"missing: {', '.join(missing)} (see wherry-operator --help)")
    if runners and given.runner_service:
        raise SettingsError("--runner and --runner-service: runners are either named or found, give one of the two")
    if given.runner_loss_seconds <= 0:
        raise SettingsError("--runner-loss-seconds must be above 0")
    if given.unpublish_seconds < 0:
        raise SettingsError("--unpublish-seconds must not be below 0")
    if given.resync_seconds <= 0 or given.reference_ttl_seconds <= 0:
        raise SettingsError("--resync-seconds and --reference-ttl-seconds must be above 0")
    for flag, value in {"--node-name": given.node_name, "--class-name": given.class_name}.items():
        if not _DNS_LABEL.fullmatch(value):
            raise SettingsError(f"{flag} must be a DNS subdomain name (RFC 1123), not {value!r}")
    if not _LABEL_VALUE.fullmatch(given.taint_value):
        raise SettingsError(f"--taint-value must be a value as labels have, not {given.taint_value!r}")
    names = [runner.name for runner in runners]
    if len(set(names)) != len(names):
        raise SettingsError(f"--runner: each name only once, not {', '.join(names)}")
    if bool(given.kubelet_cert) != bool(given.kubelet_key):
        raise SettingsError("--kubelet-cert and --kubelet-key: give both, or none to have one made")
    if given.certificates not in ("files", "own"):
        raise SettingsError(f"--certificates must be files or own, not {given.certificates!r}")
    if given.certificates == "own" and (any(brought.values()) or given.api_cert):
        raise SettingsError(f"--certificates own: they are made, so give none of {', '.join(brought)}, --api-cert")
    if bool(given.api_cert) != bool(given.api_key):
        raise SettingsError("--api-cert and --api-key: give both, or none")
    if given.kubelet_certificate not in ("self-signed", "csr"):
        raise SettingsError(f"--kubelet-certificate must be self-signed or csr, not {given.kubelet_certificate!r}")
    if given.kubelet_certificate == "csr" and len(given.node_name) > LONGEST_NODE_NAME:
        raise SettingsError(f"--kubelet-certificate csr: --node-name must have at most {LONGEST_NODE_NAME} characters")
    if given.service_account_tokens not in ("allow", "deny"):
        raise SettingsError(f"--service-account-tokens must be allow or deny, not {given.service_account_tokens!r}")
    if given.log_level.upper() not in LOG_LEVELS:
        raise SettingsError(f"--log-level must be one of {', '.join(LOG_LEVELS)}, not {given.log_level!r}")
    try:
        ip_address(given.address)
    except ValueError:
        raise SettingsError(f"--address must be an IP address, not {given.address!r}") from None
    made = Path(given.certificate_dir)
    return Settings(
        node_name=given.node_name,
        class_name=given.class_name,
        namespace=given.namespace,
        identity=given.identity,
        runners=runners,
        runner_tls=ClientTls(
            ca_file=Path(given.runner_ca or made / "runners-ca.crt"),
            cert_file=Path(given.runner_cert or made / "runners.crt"),
            key_file=Path(given.runner_key or made / "runners.key"),
            server_name=given.runner_server_name,
        ),
        kubelet=KubeletSettings(
            address=given.address,
            listen=given.kubelet_listen,
            port=given.kubelet_port,
            cert_file=Path(given.kubelet_cert or made / "tls.crt"),
            key_file=Path(given.kubelet_key or made / "tls.key"),
            certificate="files" if given.kubelet_cert else given.kubelet_certificate,
            client_ca_file=Path(given.kubelet_client_ca) if given.kubelet_client_ca else None,
        ),
        health_listen=given.health_listen,
        health_port=given.health_port,
        max_pods=given.max_pods,
        taint_value=given.taint_value,
        node_owner=given.node_owner,
        runner_service=given.runner_service,
        runner_loss_seconds=given.runner_loss_seconds,
        unpublish_seconds=given.unpublish_seconds,
        api_listen=given.api_listen,
        api_port=given.api_port,
        api_certificate=_api_certificate(given, made),
        certificates=given.certificates,
        resync_seconds=given.resync_seconds,
        reference_ttl_seconds=given.reference_ttl_seconds,
        service_account_tokens=given.service_account_tokens == "allow",
        scope=_scope(_repeated(given.watch_namespace, "WHERRY_WATCH_NAMESPACES")),
        claims=frozenset(map(_claim, _repeated(given.claim, "WHERRY_CLAIMS"))),
        log_level=given.log_level.upper(),
    )


def _api_certificate(given: argparse.Namespace, made: Path) -> CertificateFiles | None:
    if given.certificates == "own":
        return CertificateFiles(cert_file=made / "api.crt", key_file=made / "api.key")
    if given.api_cert:
        return CertificateFiles(cert_file=Path(given.api_cert), key_file=Path(given.api_key))
    return None


def _repeated(given: Sequence[str], variable: str) -> list[str]:
    """What a flag was given, else what its variable lists."""
    return [text.strip() for text in given or os.environ.get(variable, "").split(",") if text.strip()]


def _scope(namespaces: Sequence[str]) -> Scope:
    for namespace in namespaces:
        if not _NAMESPACE.fullmatch(namespace):
            raise SettingsError(f"--watch-namespace wants the name of a namespace, not {namespace!r}")
    return Scope(tuple(sorted(set(namespaces))))


def _claim(text: str) -> str:
    parts = text.split("/")
    if len(parts) != 2 or not all(map(_DNS_LABEL.fullmatch, parts)):
        raise SettingsError(f"--claim wants NAMESPACE/NAME, not {text!r}")
    return text


def _static_runner(text: str) -> RunnerAddress:
    name, separator, url = text.partition("=")
    if not separator or not url.startswith("https://") or not _DNS_LABEL.fullmatch(name):
        raise SettingsError(f"--runner wants NAME=https://HOST:PORT, not {text!r}")
    return RunnerAddress(name=name, url=url.rstrip("/"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wherry-operator",
        description="Takes Pods bound to the virtual node and WasmWorkloads, and places them on runners.",
        epilog="Each flag can be given as an environment variable instead: --node-name is WHERRY_NODE_NAME.",
    )

    def flag(name: str, default: str | float, text: str) -> None:
        variable = "WHERRY_" + name.removeprefix("--").replace("-", "_").upper()
        value = os.environ.get(variable, default)
        kind = type(default)
        shown = f" (default {default})" if default != "" else ""
        parser.add_argument(name, default=value, type=kind, help=text + shown)

    flag("--node-name", "wherry", "name of the virtual node")
    flag("--taint-value", "wasm32-wasi", "value of the Node's taints kubernetes.io/arch")
    flag(
        "--node-owner", "", "a ClusterRole of the release: the Node is deleted when it is, with or without an operator"
    )
    flag("--class-name", "wherry", "className of the WasmWorkloads that this installation takes")
    flag("--namespace", "wherry", "namespace of the operator: its leader Lease is there")
    flag(
        "--identity",
        f"{socket.gethostname()}-{os.getpid()}",
        "holder of the leader Lease; unique among replicas",
    )
    flag("--address", "", "IP by which the API server reaches the kubelet endpoint")
    flag("--kubelet-listen", "0.0.0.0", "address that the kubelet endpoint listens on")
    flag("--kubelet-port", 10250, "port of the kubelet endpoint; 0 picks a free one")
    flag("--kubelet-cert", "", "serving certificate of the kubelet endpoint (PEM); without it one is made")
    flag("--kubelet-key", "", "its key (PEM)")
    flag(
        "--kubelet-certificate",
        "self-signed",
        "the one that is made: self-signed, or csr: an administrator approves it",
    )
    flag(
        "--certificate-dir",
        # Not tempfile's: where nothing can be written it finds no folder, and most need none.
        os.path.join(os.environ.get("TMPDIR") or "/tmp", f"wherry-operator-{os.getpid()}"),
        "where certificates that are made here are kept",
    )
    flag("--kubelet-client-ca", "", "CA of client certificates (PEM); without it the cluster's own is read")
    flag("--api-listen", "0.0.0.0", "address of the aggregated API (logs of WasmWorkloads)")
    flag("--api-port", 8443, "its port; 0 picks a free one")
    flag("--api-cert", "", "its serving certificate (PEM); without it, it shows the kubelet endpoint's")
    flag("--api-key", "", "its key (PEM)")
    flag("--runner-service", "", "headless Service, in --namespace, whose EndpointSlices say where runners are")
    flag("--runner-loss-seconds", 60.0, "silence of a runner after which what it has is started elsewhere")
    flag("--unpublish-seconds", 2.0, "between a Service leading to an instance of a WasmWorkload no more, and its end")
    flag(
        "--certificates",
        "files",
        "files: certificates between operator and runners, and the aggregated API's, are brought; own: they are made, and "
        "Secrets in --namespace kept with the runners'",
    )
    flag("--runner-ca", "", "CA of the runners' certificate (PEM)")
    flag("--runner-cert", "", "client certificate shown to runners (PEM)")
    flag("--runner-key", "", "its key (PEM)")
    flag("--runner-server-name", "wherry-runner", "name in the runners' certificate")
    flag("--health-listen", "0.0.0.0", "address of the plain HTTP health endpoint")
    flag("--health-port", 8080, "its port; 0 picks a free one")
    flag("--max-pods", 1000, "pods capacity of the virtual node")
    flag("--resync-seconds", 60.0, "pause between two LISTs that find what a watch missed")
    flag("--reference-ttl-seconds", 60.0, "how often a referenced ConfigMap or Secret is read at most")
    flag("--service-account-tokens", "deny", "allow or deny: whether Pods get tokens of their service accounts")
    flag("--log-level", "INFO", "DEBUG, INFO, WARNING or ERROR")
    parser.add_argument(
        "--runner",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a runner: NAME=https://HOST:PORT; repeat it for more (or WHERRY_RUNNERS, separated by commas)",
    )
    parser.add_argument(
        "--watch-namespace",
        action="append",
        default=[],
        metavar="NAMESPACE",
        help="take Pods and WasmWorkloads of this namespace only; repeat it for more (or WHERRY_WATCH_NAMESPACES, separated by "
        "commas; default: of all)",
    )
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="NAMESPACE/NAME",
        help="a PersistentVolumeClaim that each runner has a --claim for; repeat it for more (or WHERRY_CLAIMS, separated by "
        "commas)",
    )
    return parser
