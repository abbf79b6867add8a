"""A WasmWorkload → Workloads, one for each instance of it."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import datetime

from wherry_operator.models import (
    ModuleSource,
    Object,
    ResourceSelector,
    WasmWorkloadSpec,
    WorkloadProbe,
    WorkloadResources,
)
from wherry_operator.resolve import environment, files, network, pull_secrets, quantity, revision
from wherry_operator.resolve.container import variables, wire_probe
from wherry_operator.resolve.downward import Downward, Host, field_error, pod_field
from wherry_operator.resolve.objects import Kind, Missing, Objects, Reference, ResolveError
from wherry_operator.resolve.pod import ARGV0_ANNOTATION
from wherry_operator.resolve.revision import Resolved
from wherry_operator.resolve.volumes import volume
from wherry_runner import protocol

CONTAINER = "module"
"""The name of the one container that a WasmWorkload has on its runner."""

OUTSIDE_THE_TEMPLATE = frozenset(
    {
        "className",
        "replicas",
        "suspend",
        "strategy",
        "minReadySeconds",
        "progressDeadlineSeconds",
        "revisionHistoryLimit",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
        "http.port",
        "http.service",
    }
)
"""Fields of the spec that say how many and how long, and by which Service, never what is run: a change of them restarts
nothing. Whatever is not named here does, also a default that a newer CRD writes into old objects: so fields of the template
get no default there. `A.B` is the field B of A."""

_WITHIN = {
    outer: frozenset(name.removeprefix(f"{outer}.") for name in OUTSIDE_THE_TEMPLATE if name.startswith(f"{outer}."))
    for outer in {name.partition(".")[0] for name in OUTSIDE_THE_TEMPLATE if "." in name}
}

REVISION_LETTERS = 10
"""Of the template's hash, in the names of instances."""

_OF_INSTANCE = ("instance.name", "instance.index")
_FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels[", "metadata.annotations[")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who an instance is."""

    name: str
    index: int


def template(workload: Object) -> Object:
    """The part of the spec that says what is run."""
    found = {}
    for key, value in workload["spec"].items():
        if key not in OUTSIDE_THE_TEMPLATE:
            within = _WITHIN.get(key)
            found[key] = {k: v for k, v in value.items() if k not in within} if within else value
    return found


def template_hash(workload: Object) -> str:
    """A name for what is run; instances of another one are replaced."""
    return revision.digest(template(workload))


def revision_of(workload: Object) -> str:
    """The same, in short, for names."""
    return template_hash(workload)[:REVISION_LETTERS]


def is_individual(workload: Object) -> bool:
    """Whether one instance gets another environment than the next."""
    spec = WasmWorkloadSpec.model_validate(workload["spec"])
    sources = (variable.value_from for variable in spec.env or ())
    return any(source and source.field_ref and source.field_ref.field_path in _OF_INSTANCE for source in sources)


def references(workload: Object) -> set[Reference]:
    """The ConfigMaps and Secrets that the WasmWorkload refers to."""
    spec = WasmWorkloadSpec.model_validate(workload["spec"])
    found = files.references(spec.volumes or ()) | environment.references(spec.env or (), spec.env_from or ())
    found |= pull_secrets.references(secret.name for secret in spec.image_pull_secrets or ())
    if spec.module.config_map_key_ref is not None:
        found.add(Reference(Kind.CONFIG_MAP, spec.module.config_map_key_ref.name))
    return found


def resolve(
    workload: Object, objects: Objects, *, instance: Identity | None = None, deadline: datetime | None = None
) -> Resolved:
    """An instance of the WasmWorkload as a workload. Raises ResolveError.

    Without `instance` it is what all instances share: its `content_revision` is that of each, for what sets an instance
    apart never changes.
    """
    metadata = workload["metadata"]
    spec = WasmWorkloadSpec.model_validate(workload["spec"])
    identity = instance or Identity(name=metadata["name"], index=0)

    def field(path: str) -> str:
        match path:
            case "instance.name":
                return identity.name
            case "instance.index":
                return str(identity.index)
        if not path.startswith(_FIELDS):
            raise field_error(path)
        return pod_field(workload, path, Host())

    def resource(selector: ResourceSelector, _: str) -> str:
        raise ResolveError(f"resourceFieldRef {selector.resource} is not supported for a WasmWorkload")

    downward = Downward(field=field, resource=resource)
    values = environment.environment(
        spec.env or (), spec.env_from or (), namespace=metadata["namespace"], objects=objects, downward=downward
    )
    argv0 = (metadata.get("annotations") or {}).get(ARGV0_ANNOTATION)
    if argv0 not in (None, "auto", "none"):
        raise ResolveError(f"annotation {ARGV0_ANNOTATION} must be auto or none, not {argv0!r}")
    container = protocol.Container(
        name=CONTAINER,
        module=_module(spec, metadata["namespace"], objects),
        args=environment.arguments(spec.args or (), values, where="args"),
        argv0=argv0,
        env=variables(values),
        mounts=tuple(
            protocol.VolumeMount(
                volume=mount.name,
                mount_path=mount.mount_path,
                read_only=bool(mount.read_only),
                sub_path=mount.sub_path or "",
            )
            for mount in spec.volume_mounts or ()
        ),
        resources=_resources(spec),
        http=_http(spec),
        startup_probe=_probe(spec.startup_probe, "startupProbe"),
        liveness_probe=_probe(spec.liveness_probe, "livenessProbe"),
        readiness_probe=_probe(spec.readiness_probe, "readinessProbe"),
        network=network.of_workload(spec.network),
    )
    secrets = pull_secrets.read((secret.name for secret in spec.image_pull_secrets or ()), objects)
    resolved = protocol.Workload(
        owner=protocol.Owner(
            kind="WasmWorkload", namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]
        ),
        containers=(container,),
        volumes=tuple(
            volume(item, namespace=metadata["namespace"], objects=objects, downward=downward)
            for item in spec.volumes or ()
        ),
        restart_policy=spec.restart_policy,
        termination_grace_period_seconds=spec.termination_grace_period_seconds,
        deadline=deadline,
        credentials=secrets.credentials,
    )
    return Resolved(
        workload=resolved,
        template_hash=template_hash(workload),
        content_revision=revision.of(resolved),
        complaints=secrets.complaints,
    )


def _http(spec: WasmWorkloadSpec) -> protocol.HttpServer | None:
    """Without a port: each instance gets one of its runner's range, so that several fit on one runner."""
    if spec.http is None:
        return None
    return protocol.HttpServer(
        max_requests=spec.http.max_requests,
        request_seconds=spec.http.request_timeout_seconds,
        instance_reuse=spec.http.instance_reuse,
        idle_seconds=spec.http.idle.after_seconds if spec.http.idle else None,
    )


def _probe(probe: WorkloadProbe | None, name: str) -> protocol.Probe | None:
    """One of its own port, whichever that is. Raises ResolveError."""
    return None if probe is None else wire_probe(probe, port=None, where=f"spec.{name}: ")


def _resources(spec: WasmWorkloadSpec) -> protocol.Resources:
    wanted = spec.resources or WorkloadResources()
    try:
        return quantity.resources(
            wanted.requests.model_dump() if wanted.requests else {},
            wanted.limits.model_dump() if wanted.limits else {},
            fuel=wanted.fuel,
        )
    except ValueError as error:
        raise ResolveError(f"spec.resources: {error}") from None


def _module(spec: WasmWorkloadSpec, namespace: str, objects: Objects) -> protocol.Module:
    source: ModuleSource = spec.module
    if source.image is not None:
        policy = spec.image_pull_policy or default_pull_policy(source.image)
        return protocol.ImageModule(reference=source.image, pull_policy=protocol.PullPolicy(policy))
    if source.inline is not None:
        return protocol.InlineModule(data=base64.b64encode(_inline(source.inline)))
    if source.url is not None and source.sha256 is not None:
        policy = protocol.PullPolicy(spec.image_pull_policy or "IfNotPresent")
        return protocol.UrlModule(url=source.url, sha256=source.sha256, pull_policy=policy)
    if source.config_map_key_ref is None:
        raise ResolveError("spec.module: give exactly one of image, url (with sha256), configMapKeyRef and inline")
    name, key = source.config_map_key_ref.name, source.config_map_key_ref.key
    match objects[Reference(Kind.CONFIG_MAP, name)]:
        case Missing(message=message):
            raise ResolveError(f"{message}; spec.module.configMapKeyRef needs it")
        case found if key in found.data:
            return protocol.InlineModule(
                data=base64.b64encode(found.data[key]), source=f'ConfigMap "{name}", key "{key}"'
            )
    raise ResolveError(f"couldn't find key {key} in ConfigMap {namespace}/{name}; spec.module.configMapKeyRef needs it")


def _inline(text: str) -> bytes:
    """Text format as it is; everything else is base64. Raises ResolveError."""
    if text.lstrip().startswith(("(", ";")):
        return text.encode()
    try:
        return base64.b64decode(re.sub(r"\s+", "", text), validate=True)
    except (binascii.Error, ValueError):
        raise ResolveError(
            "spec.module.inline is neither WebAssembly's text format, which begins with an opening parenthesis, nor base64"
        ) from None


def default_pull_policy(image: str) -> str:
    """Always for the tag "latest" or none, else IfNotPresent (pkg/apis/core/v1/defaults.go)."""
    if "@" in image:
        return "IfNotPresent"
    tag = image.rpartition("/")[2].partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"
