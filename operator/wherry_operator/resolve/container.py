"""A Pod's container → a container of the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import SecretStr, ValidationError

from wherry_operator.models import (
    Container,
    HttpGet,
    Lifecycle,
    LifecycleHandler,
    Probe,
    VolumeMount,
    WorkloadHttpGet,
    WorkloadProbe,
)
from wherry_operator.resolve import environment, quantity
from wherry_operator.resolve.downward import Downward
from wherry_operator.resolve.objects import Objects, ResolveError
from wherry_runner import protocol

HTTP_PORT = "http"
"""The name of the port that counts, where a container has several."""


def container(
    spec: Container,
    *,
    namespace: str,
    objects: Objects,
    downward: Downward,
    argv0: Any,
    network: protocol.Network | None = None,
    instance_reuse: int | None = None,
) -> protocol.Container:
    """A container, resolved. Raises ResolveError."""
    return protocol.Container(**_fields(spec, namespace, objects, downward, argv0, instance_reuse), network=network)


def init_container(
    spec: Container,
    *,
    namespace: str,
    objects: Objects,
    downward: Downward,
    argv0: Any,
    network: protocol.Network | None = None,
    instance_reuse: int | None = None,
) -> protocol.InitContainer:
    """An init container or a sidecar, resolved. Raises ResolveError."""
    policy = spec.restart_policy
    if policy not in (None, "Always"):
        raise ResolveError(
            f"initContainers: {spec.name}: restartPolicy {policy} is not supported; Always (a sidecar) is"
        )
    return protocol.InitContainer(
        **_fields(spec, namespace, objects, downward, argv0, instance_reuse),
        network=network,
        restart_policy="Always" if policy else None,
    )


def _fields(
    spec: Container,
    namespace: str,
    objects: Objects,
    downward: Downward,
    argv0: Any,
    instance_reuse: int | None,
) -> dict[str, Any]:
    values = environment.environment(
        spec.env or (),
        spec.env_from or (),
        namespace=namespace,
        objects=objects,
        downward=downward,
        container=spec.name,
    )
    try:
        wanted = spec.resources
        resources = quantity.resources((wanted and wanted.requests) or {}, (wanted and wanted.limits) or {})
    except ValueError as error:
        raise ResolveError(f"containers: {spec.name}: resources: {error}") from None
    hooks = spec.lifecycle or Lifecycle()
    return {
        "name": spec.name,
        "module": protocol.ImageModule(reference=spec.image, pull_policy=spec.image_pull_policy),
        "command": environment.arguments(spec.command or (), values, where=f"containers: {spec.name}: command"),
        "args": environment.arguments(spec.args or (), values, where=f"containers: {spec.name}: args"),
        "argv0": argv0,
        "env": variables(values),
        "working_dir": spec.working_dir or "",
        "mounts": tuple(_mount(mount, values) for mount in spec.volume_mounts or ()),
        "resources": resources,
        "stdin": bool(spec.stdin),
        "stdin_once": bool(spec.stdin_once),
        **{kind: _probe(getattr(spec, kind), spec) for kind in ("startup_probe", "liveness_probe", "readiness_probe")},
        "post_start": _hook(hooks.post_start, spec),
        "pre_stop": _hook(hooks.pre_stop, spec),
        "http": _server(spec, instance_reuse),
        "listens": tuple(
            protocol.ListenPort(port=port, protocol=kind, movable=kind == "TCP") for port, kind in listening_ports(spec)
        ),
    }


def _server(spec: Container, instance_reuse: int | None) -> protocol.HttpServer | None:
    port = serving_port(spec)
    return None if port is None else protocol.HttpServer(port=port, movable=True, instance_reuse=instance_reuse)


def _probe(probe: Probe | None, spec: Container) -> protocol.Probe | None:
    """A probe of a Pod's container. Raises ResolveError."""
    if probe is None:
        return None
    asked = probe.http_get or probe.tcp_socket or probe.grpc
    if asked is None:
        raise ResolveError(f"containers: {spec.name}: a probe must have httpGet, tcpSocket or grpc")
    return wire_probe(probe, port=_port(asked.port, spec, what="probe"), where=f"containers: {spec.name}: ")


def _port(port: int | str, spec: Container, *, what: str) -> int:
    """The number of a port that a probe or a hook names. Raises ResolveError."""
    if isinstance(port, int):
        return port
    found = next((each.container_port for each in spec.ports or () if each.name == port), None)
    if found is None:
        raise ResolveError(f'containers: {spec.name}: a {what} names the port "{port}", and no port has that name')
    return found


def _hook(hook: LifecycleHandler | None, spec: Container) -> protocol.Hook | None:
    """A hook of a Pod's container. Raises ResolveError."""
    if hook is None:
        return None
    try:
        if hook.sleep is not None:
            return protocol.Hook(sleep_seconds=hook.sleep.seconds)
        if hook.http_get is not None:
            port = _port(hook.http_get.port, spec, what="hook")
            return protocol.Hook(port=port, path=_path(hook.http_get), headers=_headers(hook.http_get))
    except ValidationError as error:
        raise ResolveError(f"containers: {spec.name}: a hook's {_first(error)}") from None
    raise ResolveError(f"containers: {spec.name}: a hook must have httpGet or sleep")


def wire_probe(probe: Probe | WorkloadProbe, *, port: int | None, where: str) -> protocol.Probe:
    """A probe, with the kubelet's defaults (pkg/apis/core/v1/defaults.go). Raises ResolveError."""
    try:
        return protocol.Probe(
            port=port,
            path=_path(probe.http_get) if probe.http_get is not None else None,
            headers=_headers(probe.http_get) if probe.http_get is not None else (),
            grpc_service=(probe.grpc.service or "") if isinstance(probe, Probe) and probe.grpc is not None else None,
            initial_delay_seconds=probe.initial_delay_seconds or 0,
            period_seconds=probe.period_seconds or 10,
            timeout_seconds=probe.timeout_seconds or 1,
            success_threshold=getattr(probe, "success_threshold", None) or 1,
            failure_threshold=probe.failure_threshold or 3,
            grace_seconds=getattr(probe, "termination_grace_period_seconds", None),
        )
    except ValidationError as error:
        raise ResolveError(f"{where}a probe's {_first(error)}") from None


def _path(asked: HttpGet | WorkloadHttpGet) -> str:
    given = asked.path or "/"
    return given if given.startswith("/") else f"/{given}"


def _headers(asked: HttpGet | WorkloadHttpGet) -> tuple[protocol.ProbeHeader, ...]:
    return tuple(protocol.ProbeHeader(name=each.name, value=each.value) for each in asked.http_headers or ())


def _first(error: ValidationError) -> str:
    """Which field is wrong, and how; not its value."""
    (first, *_) = error.errors(include_input=False, include_url=False)
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def serving_port(spec: Container) -> int | None:
    """The port on which a container serves, if its module is a server: a module has one, so of several the one called
    `http`, else the first of TCP."""
    ports = [each for each in spec.ports or () if each.protocol in (None, "TCP")]
    named = next((each for each in ports if each.name == HTTP_PORT), None)
    return (named or ports[0]).container_port if ports else None


def listening_ports(spec: Container) -> tuple[tuple[int, Literal["TCP", "UDP"]], ...]:
    """The ports on which a container's own sockets may listen, if its module is a command: each that it names."""
    found: dict[tuple[int, Literal["TCP", "UDP"]], None] = {}
    for each in spec.ports or ():
        if each.protocol in (None, "TCP"):
            found[each.container_port, "TCP"] = None
        elif each.protocol == "UDP":
            found[each.container_port, "UDP"] = None
    return tuple(found)


def _mount(mount: VolumeMount, values: Mapping[str, str]) -> protocol.VolumeMount:
    sub_path = mount.sub_path or ""
    if mount.sub_path_expr:
        sub_path = environment.expand_all(mount.sub_path_expr, values, where=f"subPathExpr of mount {mount.mount_path}")
    return protocol.VolumeMount(
        volume=mount.name, mount_path=mount.mount_path, read_only=bool(mount.read_only), sub_path=sub_path
    )


def variables(values: Mapping[str, str]) -> tuple[protocol.EnvironmentVariable, ...]:
    """Variables for the wire, sorted by name."""
    return tuple(
        protocol.EnvironmentVariable(name=name, value=SecretStr(value)) for name, value in sorted(values.items())
    )
