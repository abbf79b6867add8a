"""A Pod → a Workload."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from wherry_operator.models import Container, Object, PodSpec
from wherry_operator.resolve import environment, files
from wherry_operator.resolve.objects import Objects, Reference, ResolveError
from wherry_runner import protocol

ARGV0_ANNOTATION = "wherry.dev/argv0"
"""`auto` puts the module's name first also for modules packed in Krustlet's way, `none` leaves it out for all others too
(design §6); without the annotation it depends on the packing."""

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")

_REFUSED_SPEC = {
    "initContainers": "init containers are not supported",
    "activeDeadlineSeconds": "activeDeadlineSeconds is not supported on the Pod; set it on its Job",
    "hostNetwork": "a module has no network of its node",
    "hostPID": "a module has no processes",
    "hostIPC": "a module has no IPC",
    "resourceClaims": "devices can't be given to modules",
}
_REFUSED_CONTAINER = {
    "livenessProbe": "probes are not supported",
    "readinessProbe": "probes are not supported",
    "startupProbe": "probes are not supported",
    "lifecycle": "lifecycle hooks are not supported",
    "workingDir": "WASI has no working directory; use absolute paths",
    "volumeDevices": "block devices can't be given to modules",
    "restartPolicyRules": "restartPolicyRules is not supported",
}
_VOLUMES = {"name", "configMap", "secret", "projected", "downwardAPI"}


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A workload ready to be sent."""

    workload: protocol.Workload
    template_hash: str
    content_revision: str


def refusals(pod: Object) -> list[str]:
    """What the Pod asks for and a module can't have, each naming its field; empty if there is nothing."""
    spec = pod["spec"]
    found = [f"spec.{field}: {why}" for field, why in _REFUSED_SPEC.items() if spec.get(field)]
    for index, container in enumerate(spec["containers"]):
        found += [
            f"spec.containers[{index}].{field}: {why}"
            for field, why in _REFUSED_CONTAINER.items()
            if container.get(field)
        ]
        for number, mount in enumerate(container.get("volumeMounts") or ()):
            for field in ("subPath", "subPathExpr"):
                if mount.get(field):
                    where = f"spec.containers[{index}].volumeMounts[{number}].{field}"
                    found.append(f"{where}: is not supported; mount the whole volume")
    for index, volume in enumerate(spec.get("volumes") or ()):
        for field in sorted(set(volume) - _VOLUMES):
            found.append(
                f"spec.volumes[{index}].{field}: volumes of this kind are not supported; "
                "configMap, secret, projected and downwardAPI are"
            )
    return found


def references(pod: Object) -> set[Reference]:
    """The ConfigMaps and Secrets that the Pod refers to."""
    spec = PodSpec.model_validate(pod["spec"])
    found = files.references(spec.volumes or ())
    for container in spec.containers:
        found |= environment.references(container.env or (), container.env_from or ())
    return found


def resolve(pod: Object, objects: Objects, *, host_ip: str = "") -> Resolved:
    """The Pod as a workload. Raises ResolveError."""
    if refused := refusals(pod):
        raise ResolveError("; ".join(refused))
    metadata = pod["metadata"]
    spec = PodSpec.model_validate(pod["spec"])

    def field(path: str) -> str:
        return pod_field(pod, path, host_ip=host_ip)

    volumes = tuple(
        files.volume_files(volume, namespace=metadata["namespace"], objects=objects, field=field)
        for volume in spec.volumes or ()
    )
    grace = spec.termination_grace_period_seconds
    workload = protocol.Workload(
        owner=protocol.Owner(kind="Pod", namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]),
        containers=tuple(_container(container, pod, objects, field) for container in spec.containers),
        volumes=volumes,
        restart_policy=spec.restart_policy,
        termination_grace_period_seconds=30 if grace is None else grace,
    )
    return Resolved(
        workload=workload,
        # Of a Pod nothing but images can change: the kubelet restarts a container for that, and for nothing else.
        template_hash=digest([[container.name, container.image] for container in spec.containers]),
        content_revision=digest(revision_of(workload)),
    )


def _container(container: Container, pod: Object, objects: Objects, field: Callable[[str], str]) -> protocol.Container:
    values = environment.environment(
        container.env or (),
        container.env_from or (),
        namespace=pod["metadata"]["namespace"],
        objects=objects,
        field=field,
    )
    argv0 = (pod["metadata"].get("annotations") or {}).get(ARGV0_ANNOTATION)
    if argv0 not in (None, "auto", "none"):
        raise ResolveError(f"annotation {ARGV0_ANNOTATION} must be auto or none, not {argv0!r}")
    return protocol.Container(
        name=container.name,
        module=protocol.ImageModule(reference=container.image, pull_policy=container.image_pull_policy),
        command=tuple(environment.expand(text, values) for text in container.command or ()),
        args=tuple(environment.expand(text, values) for text in container.args or ()),
        argv0=argv0,
        env=variables(values),
        mounts=tuple(
            protocol.VolumeMount(volume=mount.name, mount_path=mount.mount_path, read_only=bool(mount.read_only))
            for mount in container.volume_mounts or ()
        ),
    )


def pod_field(pod: Object, path: str, *, host_ip: str = "") -> str:
    """The value of a fieldRef (pkg/fieldpath and pkg/kubelet/kubelet_pods.go). Raises ResolveError."""
    metadata = pod["metadata"]
    if match := _SUBSCRIPT.fullmatch(path):
        return str((metadata.get(match[1]) or {}).get(match[2], ""))
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(metadata[path.removeprefix("metadata.")])
        case "metadata.labels" | "metadata.annotations":
            pairs = metadata.get(path.removeprefix("metadata.")) or {}
            return "\n".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sorted(pairs.items()))
        case "spec.nodeName":
            return str(pod["spec"].get("nodeName", ""))
        case "spec.serviceAccountName":
            return str(pod["spec"].get("serviceAccountName", ""))
        case "status.hostIP" | "status.hostIPs":
            return host_ip
        case "status.podIP" | "status.podIPs":
            return ""
    raise files.field_error(path)


def variables(values: dict[str, str]) -> tuple[protocol.EnvironmentVariable, ...]:
    """Variables for the wire, sorted by name."""
    return tuple(
        protocol.EnvironmentVariable(name=name, value=SecretStr(value)) for name, value in sorted(values.items())
    )


def revision_of(workload: protocol.Workload) -> Any:
    """All of a workload that may change while it runs, for `content_revision`."""
    return (
        [
            # An inline module may stand in a ConfigMap: another one there is the one of the next run.
            hashlib.sha256(container.module.data).hexdigest()
            if isinstance(container.module, protocol.InlineModule)
            else ""
            for container in workload.containers
        ]
        + [
            [[file.path, file.mode, base64.b64encode(file.data).decode()] for file in volume.files]
            for volume in workload.volumes
        ]
        + [[[item.name, item.value.get_secret_value()] for item in container.env] for container in workload.containers]
    )


def digest(value: Any) -> str:
    """A stable name for a JSON value. Cryptographic: it may be of Secrets, and is kept where others read."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
