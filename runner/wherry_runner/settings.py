"""What a runner is told at its start: flags, each with an environment variable behind it."""

from __future__ import annotations

import argparse
import math
import os
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wherry_runner.execution import confinement, native
from wherry_runner.execution.engine import HttpBounds
from wherry_runner.lives import network
from wherry_runner.lives.backoff import BackOffSettings
from wherry_runner.lives.listeners import PortRange
from wherry_runner.lives.network import NetworkAround
from wherry_runner.logs.budget import FILES_PER_CONTAINER, LEAST_FILE_BYTES
from wherry_runner.modules.compile import CompileSettings, at_once
from wherry_runner.modules.hosts import RegistrySettings
from wherry_runner.modules.pull import PullSettings
from wherry_runner.modules.store import StoreLimits
from wherry_runner.resources import cgroup
from wherry_runner.resources.limits import LimitDefaults
from wherry_runner.volumes import Claim, HostPath


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One runner."""

    name: str
    node: str
    address: str
    listen: str
    port: int
    """0: any free one; printed in the log."""
    health_listen: str
    health_port: int
    cert_file: Path
    key_file: Path
    client_ca_file: Path
    """The installation's own. What a client may do, its certificate's name says (`tls.Role`)."""
    state_directory: Path
    memory_directory: Path
    """A tmpfs: Secrets are written nowhere else."""
    volumes_memory_directory: Path | None
    """A tmpfs for emptyDirs in memory, best one of its own with a size; None: there are none."""
    host_paths: tuple[HostPath, ...]
    claims: tuple[Claim, ...]
    """Folders of this runner that workloads may mount."""
    executor_directory: Path | None
    """Where the native executor is; None: the python executor runs."""
    wasi_03: bool
    pooling_allocator: bool
    require_confinement: frozenset[str]
    """Names of `execution/confinement.py`, without which the runner must not start."""
    cpu_millicores: int
    memory_bytes: int
    max_workloads: int
    processes: int
    """That the cgroup and the machine allow to this runner, threads included."""
    defaults: LimitDefaults
    guest_listen: str
    """The address on which containers' ports are opened."""
    guest_ports: PortRange
    http: HttpBounds
    network: NetworkAround
    log_file_bytes: int
    log_budget_bytes: int
    """0: what `app.py` finds fit for the disk."""
    leave_seconds: float
    termination_grace_seconds: float
    compile: CompileSettings
    pull: PullSettings
    modules: StoreLimits
    back_off: BackOffSettings
    log_level: str


T = TypeVar("T")


class SettingsError(Exception):
    """A setting is missing or wrong; the message names the flag and says what to give."""


LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

EXECUTORS = ("auto", "native", "python")

EXECUTOR_DIRECTORIES = (
    Path("/usr/local/libexec/wherry"),  # images
    Path(__file__).resolve().parents[1] / "executor" / "bin",  # a checkout, after `make executor`
)

OVERHEAD_BYTES = 192 << 20
"""What supervisor and executor take themselves: measured with 5,000 guests, and some room."""

DEFAULT_MEMORY_LIMIT_BYTES = 256 << 20
LEAST_MEMORY_BYTES = 16 << 20
"""Offering less to guests is a mistake of whoever made the cgroup."""

MAX_COMPILE_SECONDS = 3600
"""A compiler that is at it for so long keeps others from theirs; the largest modules take half a minute of one core."""

LEAST_HEAD_BYTES = 8 << 10
"""What the server's library takes at least."""

LEAST_HTTP_SECONDS, MAX_HTTP_SECONDS = 0.1, 86_400.0

DESCRIPTORS = range(64, 65_537)
"""Below, a guest with a few folders can't start (`execution/adapter.py`)."""

_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def parse(argv: Sequence[str] | None = None, *, root: Path = Path("/")) -> Settings:
    """Settings from flags and WHERRY_RUNNER_* variables. Raises SettingsError; exits on --help and unknown flags.

    `root` is where /proc and /sys are: what the machine and the cgroup grant decides what is not given.
    """
    given = _parser().parse_args(argv)
    missing = [
        flag
        for flag, value in {"--cert": given.cert, "--key": given.key, "--client-ca": given.client_ca}.items()
        if not value
    ]
    if missing:
        raise SettingsError(f"missing: {', '.join(missing)} (see wherry-runner --help)")
    for flag, value in {"--name": given.name, "--node": given.node}.items():
        if not _DNS_SUBDOMAIN.fullmatch(value):
            raise SettingsError(f"{flag} must be a DNS subdomain name (RFC 1123), not {value!r}")
    if given.back_off_initial <= 0 or given.back_off_max < given.back_off_initial:
        raise SettingsError("--back-off-initial must be above 0, and --back-off-max no less than it")
    _check_numbers(given)
    granted = cgroup.grants(root)
    memory = _memory(given, granted)
    executor_directory = _executor_directory(given.executor, given.executor_directory)
    if given.wasi_0_3 and executor_directory is None:
        raise SettingsError("--wasi-0.3 wants the native executor, and the python one would run here")
    if given.pooling_allocator and executor_directory is None:
        raise SettingsError("--pooling-allocator wants the native executor, and the python one would run here")
    if given.log_level.upper() not in LOG_LEVELS:
        raise SettingsError(f"--log-level must be one of {', '.join(LOG_LEVELS)}, not {given.log_level!r}")
    mirrors = _pairs("--registry-mirror", _repeated("--registry-mirror", given.registry_mirror))
    for url in mirrors.values():
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"--registry-mirror wants HOST=http(s)://…, not {url!r}")
    return Settings(
        name=given.name,
        node=given.node,
        address=given.address,
        listen=given.listen,
        port=given.port,
        health_listen=given.health_listen,
        health_port=given.health_port,
        cert_file=Path(given.cert),
        key_file=Path(given.key),
        client_ca_file=Path(given.client_ca),
        state_directory=Path(given.state_directory),
        memory_directory=Path(given.memory_directory),
        volumes_memory_directory=Path(given.volumes_memory_directory) if given.volumes_memory_directory else None,
        host_paths=_each("--host-path", HostPath.parse, given.host_path),
        claims=_each("--claim", Claim.parse, given.claim),
        executor_directory=executor_directory,
        wasi_03=given.wasi_0_3,
        pooling_allocator=given.pooling_allocator,
        require_confinement=_required_confinement(given.require_confinement),
        cpu_millicores=given.cpu_millicores or granted.cpu_millicores or _cores() * 1000,
        memory_bytes=memory.offered_bytes,
        max_workloads=given.max_workloads,
        processes=_processes(granted, root),
        defaults=LimitDefaults(
            memory_request_bytes=given.default_memory_request_bytes,
            memory_limit_bytes=memory.default_limit_bytes,
            descriptors=given.default_descriptors,
            log_bytes_per_second=given.log_bytes_per_second or None,
        ),
        guest_listen=given.guest_listen or given.address or "127.0.0.1",
        guest_ports=_port_range(given.guest_ports),
        http=HttpBounds(
            max_requests=given.http_max_requests,
            max_connections=given.http_max_connections,
            request_seconds=given.http_request_seconds,
            head_seconds=given.http_head_seconds,
            idle_seconds=given.http_idle_seconds,
            head_bytes=given.http_head_bytes,
        ),
        network=_network(given),
        log_file_bytes=given.log_file_bytes,
        log_budget_bytes=given.log_budget_bytes,
        leave_seconds=given.leave_seconds,
        termination_grace_seconds=given.termination_grace_seconds,
        compile=memory.compile,
        pull=PullSettings(
            registries=RegistrySettings(
                mirrors=mirrors,
                insecure_registries=frozenset(_repeated("--insecure-registry", given.insecure_registry)),
                ca_files={
                    host: Path(path)
                    for host, path in _pairs("--registry-ca", _repeated("--registry-ca", given.registry_ca)).items()
                },
            ),
            max_module_bytes=given.max_module_bytes,
        ),
        modules=StoreLimits(
            quota_bytes=given.modules_quota_bytes, free_bytes=given.modules_free_bytes or StoreLimits().free_bytes
        ),
        back_off=BackOffSettings(initial=given.back_off_initial, maximum=given.back_off_max),
        log_level=given.log_level.upper(),
    )


def _check_numbers(given: argparse.Namespace) -> None:
    """Of each number, whether it makes sense by itself. Raises SettingsError."""
    for name, least in (
        ("cpu_millicores", 0),
        ("memory_bytes", 0),
        ("max_workloads", 1),
        ("max_module_bytes", 1),
        ("modules_quota_bytes", 1),
        ("modules_free_bytes", 0),
        ("default_memory_request_bytes", 0),
        ("default_memory_limit_bytes", 0),
        ("log_bytes_per_second", 0),
        ("log_file_bytes", LEAST_FILE_BYTES),
        ("log_budget_bytes", 0),
        ("leave_seconds", 0),
        ("termination_grace_seconds", 0),
        ("compile_memory_bytes", 0),
        ("compile_seconds", 1),
        ("http_max_requests", 1),
        ("http_max_connections", 1),
        ("http_request_seconds", LEAST_HTTP_SECONDS),
        ("http_head_seconds", LEAST_HTTP_SECONDS),
        ("http_idle_seconds", LEAST_HTTP_SECONDS),
        ("http_head_bytes", LEAST_HEAD_BYTES),
    ):
        if not getattr(given, name) >= least:  # nor a float that is no number
            raise SettingsError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(given, name)}")
    for name in ("port", "health_port"):
        if not 0 <= getattr(given, name) <= 65_535:
            raise SettingsError(f"--{name.replace('_', '-')} must be a port, 0 to 65535, not {getattr(given, name)}")
    if given.default_descriptors not in DESCRIPTORS:
        raise SettingsError(
            f"--default-descriptors must be between {DESCRIPTORS[0]} and {DESCRIPTORS[-1]}, not {given.default_descriptors}"
        )
    for name, most in (
        ("http_max_requests", 10_000),
        ("http_max_connections", 50_000),
        ("http_request_seconds", MAX_HTTP_SECONDS),
        ("http_head_seconds", MAX_HTTP_SECONDS),
        ("http_idle_seconds", MAX_HTTP_SECONDS),
        ("http_head_bytes", 1 << 20),
    ):
        if getattr(given, name) > most:
            raise SettingsError(f"--{name.replace('_', '-')} may be {most} at most, not {getattr(given, name)}")
    if given.compile_seconds > MAX_COMPILE_SECONDS:
        raise SettingsError(
            f"--compile-seconds may be {MAX_COMPILE_SECONDS} at most, an hour, not {given.compile_seconds}"
        )
    if 0 < given.log_budget_bytes < FILES_PER_CONTAINER * LEAST_FILE_BYTES:
        raise SettingsError(
            f"--log-budget-bytes must be at least {FILES_PER_CONTAINER * LEAST_FILE_BYTES}, which serves one container, "
            f"not {given.log_budget_bytes}"
        )


@dataclass(frozen=True, kw_only=True)
class _Memory:
    offered_bytes: int
    default_limit_bytes: int
    compile: CompileSettings


def _memory(given: argparse.Namespace, granted: cgroup.Grants) -> _Memory:
    """Shares the memory out: to the runner itself, to compilers, to guests. Raises SettingsError."""
    whole = cgroup.machine_memory_bytes() if granted.memory_bytes is None else granted.memory_bytes
    whose = "this machine's memory" if granted.memory_bytes is None else "its cgroup's memory limit"
    compiler = given.compile_memory_bytes or min(CompileSettings().memory_bytes, whole // 4)
    offered = given.memory_bytes
    if offered > whole - OVERHEAD_BYTES:
        raise SettingsError(
            f"--memory-bytes may be {max(0, whole - OVERHEAD_BYTES)} at most, not {offered}: of {whose}, {whole} bytes, "
            f"the runner itself takes {OVERHEAD_BYTES}"
        )
    if offered == 0:
        offered = whole // 2 if granted.memory_bytes is None else whole - OVERHEAD_BYTES - compiler
        if offered < LEAST_MEMORY_BYTES:
            raise SettingsError(
                f"{whose}, {whole} bytes, leaves nothing for guests: the runner itself takes {OVERHEAD_BYTES} bytes and a "
                f"compiler {compiler}; allow it more, or give --memory-bytes or --compile-memory-bytes"
            )
    limit = given.default_memory_limit_bytes
    if limit > offered:
        raise SettingsError(f"--default-memory-limit-bytes may be {offered} at most, which is offered, not {limit}")
    limit = limit or min(DEFAULT_MEMORY_LIMIT_BYTES, offered)
    if given.default_memory_request_bytes > limit:
        raise SettingsError(
            f"--default-memory-request-bytes may be {limit} at most, the default limit, "
            f"not {given.default_memory_request_bytes}"
        )
    left = max(0, whole - OVERHEAD_BYTES - offered)
    settings = CompileSettings(
        memory_bytes=compiler,
        wall_seconds=given.compile_seconds,
        cpu_seconds=math.ceil(given.compile_seconds * _cores()),
        at_once=at_once(cores=_cores(), budget_bytes=left, memory_bytes=compiler),
    )
    return _Memory(offered_bytes=offered, default_limit_bytes=limit, compile=settings)


def _executor_directory(executor: str, directory: str) -> Path | None:
    """Where the native executor is; None: the python one is to be used. Raises SettingsError."""
    if executor not in EXECUTORS:
        raise SettingsError(f"--executor must be one of {', '.join(EXECUTORS)}, not {executor!r}")
    if executor == "python":
        return None
    directories = (Path(directory),) if directory else EXECUTOR_DIRECTORIES
    found = native.find_native(directories)
    # A folder that is named is meant: falling back in silence would run guests without their confinement.
    if found is None and (executor == "native" or directory):
        raise SettingsError(
            f"no native executor in {' or '.join(map(str, directories))}: {native.EXECUTOR} and {native.COMPILER} must both "
            "be there (`make executor` builds them); --executor python does without"
        )
    return found


def _processes(granted: cgroup.Grants, root: Path) -> int:
    return min(number for number in (granted.processes, cgroup.machine_processes(root)) if number is not None)


def _cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def _variable(flag: str) -> str | None:
    return os.environ.get("WHERRY_RUNNER_" + re.sub("[-.]", "_", flag.removeprefix("--")).upper())


def _switched_on(flag: str) -> bool:
    """Whether a flag without a value is set by its variable. Raises SettingsError."""
    given = (_variable(flag) or "").lower()
    if given in ("1", "true", "yes"):
        return True
    if given in ("", "0", "false", "no"):
        return False
    raise SettingsError(f"the variable of {flag} must be true or false, not {given!r}")


def _required_confinement(text: str) -> frozenset[str]:
    try:
        return confinement.parse(text)
    except ValueError as error:
        raise SettingsError(f"--require-confinement: {error}") from None


def _port_range(text: str) -> PortRange:
    try:
        return PortRange.parse(text)
    except ValueError as error:
        raise SettingsError(f"--guest-ports: {error}") from None


def _network(given: argparse.Namespace) -> NetworkAround:
    try:
        nameservers = tuple(map(network.socket_address, _repeated("--nameserver", given.nameserver)))
    except ValueError as error:
        raise SettingsError(f"--nameserver wants IP or IP:PORT: {error}") from None
    try:
        protected = network.protected(
            networks=_repeated("--protected-network", given.protected_network),
            api_server=os.environ.get("KUBERNETES_SERVICE_HOST", ""),
            own_addresses=(given.address, given.guest_listen),
            api_port=given.port,
            own_ports=(given.port, given.health_port),
        )
    except ValueError as error:
        raise SettingsError(f"--protected-network wants an address or a network: {error}") from None
    certificates = ""
    if given.network_ca:
        try:
            certificates = Path(given.network_ca).read_text()
            ssl.create_default_context(cadata=certificates)
        except (OSError, ValueError, ssl.SSLError) as error:
            raise SettingsError(f"--network-ca: {given.network_ca} has no certificates: {error}") from None
    return NetworkAround(nameservers=nameservers, protected=protected, certificates=certificates)


def _each(flag: str, parse: Callable[[str], T], given: Sequence[str]) -> tuple[T, ...]:
    try:
        return tuple(parse(text) for text in _repeated(flag, given))
    except ValueError as error:
        raise SettingsError(f"{flag}: {error}") from None


def _repeated(flag: str, given: Sequence[str]) -> Sequence[str]:
    """What the flag was given, else what its variable lists."""
    return given or [text.strip() for text in (_variable(flag) or "").split(",") if text.strip()]


def _pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key or not value:
            raise SettingsError(f"{flag} wants HOST=VALUE, not {text!r}")
        pairs[key] = value
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wherry-runner",
        description="Pulls, compiles and runs WebAssembly modules for an operator.",
        epilog="Each flag can be given as an environment variable instead: --state-directory is "
        "WHERRY_RUNNER_STATE_DIRECTORY; those that may be repeated take a list separated by commas.",
    )

    def flag(name: str, default: str | float, text: str) -> None:
        given = _variable(name)
        shown = f" (default {default})" if default not in ("", 0) else ""
        parser.add_argument(name, default=default if given is None else given, type=type(default), help=text + shown)

    def switch(name: str, text: str) -> None:
        field = re.sub("[-.]", "_", name.removeprefix("--"))
        parser.add_argument(name, dest=field, action="store_true", default=_switched_on(name), help=text)

    def repeated(name: str, metavar: str, text: str) -> None:
        parser.add_argument(name, action="append", metavar=metavar, default=[], help=text)

    host = socket.gethostname().lower()
    flag("--name", host, "name of this runner; unique in its installation")
    flag("--node", host, "name of the node that it runs on")
    flag("--address", "", "IP that Pods on this runner report as hostIP")
    flag("--listen", "0.0.0.0", "address that the API listens on")
    flag("--port", 8443, "port of the API; 0 picks a free one")
    flag("--health-listen", "0.0.0.0", "address of the plain HTTP health endpoint")
    flag("--health-port", 8080, "its port; 0 picks a free one")
    flag("--cert", "", "serving certificate (PEM)")
    flag("--key", "", "its key (PEM)")
    flag("--client-ca", "", "CA of the operator's client certificate (PEM)")
    flag("--state-directory", "/var/lib/wherry", "where modules, logs, volumes and the journal are kept")
    flag("--memory-directory", "/dev/shm", "a tmpfs for Secrets")
    flag("--volumes-memory-directory", "/dev/shm", "a tmpfs for emptyDirs with medium Memory; empty: they are refused")
    flag("--executor", "auto", "native, python, or auto: native where it is found")
    flag("--executor-directory", "", "where the native executor is, if not in a usual place")
    switch("--wasi-0.3", "run WASI 0.3 commands and servers too; upstream calls that experimental")
    switch("--pooling-allocator", "keep memory for servers' next instances: faster, and more memory for each server")
    flag(
        "--require-confinement",
        "",
        f"refuse to start where the kernel lacks one of these: a list of {', '.join(confinement.GATES)}, separated by commas",
    )
    flag("--cpu-millicores", 0, "CPU offered to guests; 0: the cgroup's quota, else all of the machine's")
    flag(
        "--memory-bytes", 0, "memory offered to guests; 0: the cgroup's limit less our own, else half of the machine's"
    )
    flag("--max-workloads", 5000, "workloads accepted at most")
    flag("--default-memory-request-bytes", 1 << 20, "kept for a container that names neither request nor limit")
    flag("--default-memory-limit-bytes", 0, "limit of a container that names none; 0: 256 MiB, or all if that is less")
    flag("--default-descriptors", 256, "open files of a container at most")
    flag("--guest-listen", "", "address on which servers' ports are opened; empty: that of --address, else 127.0.0.1")
    flag("--guest-ports", "20000-29999", "ports for servers that name none")
    flag("--http-max-requests", 100, "requests that a server works on at once; one more is answered 503")
    flag("--http-max-connections", 1000, "connections of a server at most")
    flag("--http-request-seconds", 60.0, "for a request, until its guest is done with it")
    flag("--http-head-seconds", 10.0, "for a request's head to come, from its first byte on")
    flag(
        "--http-idle-seconds", 75.0, "for a connection's next request to begin, and for a client to take of its answer"
    )
    flag("--http-head-bytes", 32 << 10, "a request's head at most")
    flag("--network-ca", "", "authorities that guests' outbound https believes beside the well-known ones (PEM)")
    flag("--log-bytes-per-second", 0, "output of a container at most; 0: no limit")
    flag("--log-file-bytes", 10 << 20, "size of a log file at most; a container has four")
    flag("--log-budget-bytes", 0, "all logs together; 0: 10 GiB, or a tenth of the disk if that is less")
    flag("--leave-seconds", 10.0, "for servers to be led away from, before that, when the runner is stopped; at most")
    flag("--termination-grace-seconds", 20.0, "for containers to end by themselves when the runner is stopped")
    flag("--compile-memory-bytes", 0, "memory of one compiler; 0: 2 GiB, or a quarter of what there is if that is less")
    flag("--compile-seconds", 120.0, "for one compilation at most, by the clock")
    flag("--max-module-bytes", 256 << 20, "largest module pulled")
    flag("--modules-quota-bytes", 10 << 30, "modules and compiled code kept on disk at most")
    flag("--modules-free-bytes", 0, "left free on that disk; 0: 512 MiB, or a twentieth of the disk if that is less")
    flag("--back-off-initial", 10.0, "seconds before the second restart of a container, doubled for each further one")
    flag("--back-off-max", 300.0, "seconds between two restarts at most")
    flag("--log-level", "INFO", "DEBUG, INFO, WARNING or ERROR")
    repeated("--registry-mirror", "HOST=URL", "ask URL instead of the registry HOST; may be repeated")
    repeated("--registry-ca", "HOST=FILE", "CA of the registry HOST; may be repeated")
    repeated("--insecure-registry", "HOST", "allow plain http to the registry HOST; may be repeated")
    repeated("--nameserver", "IP[:PORT]", "asked for guests' names instead of those of resolv.conf; may be repeated")
    repeated("--protected-network", "CIDR", "guests reach it only if they name it by address; may be repeated")
    repeated(
        "--claim",
        "NAMESPACE/NAME=PATH[:ro]",
        "PATH is what that PersistentVolumeClaim holds, for Pods of its namespace; may be repeated",
    )
    repeated("--host-path", "PREFIX[:ro]", "allow hostPath volumes below PREFIX, with :ro for reading; may be repeated")
    return parser
