"""A WasmWorkload → a Workload: one instance of it."""

from __future__ import annotations

import base64
import binascii
import re

from wherry_operator.models import ModuleSource, Object, WasmWorkloadSpec
from wherry_operator.resolve import environment, files
from wherry_operator.resolve.objects import Kind, Missing, Objects, Reference, ResolveError
from wherry_operator.resolve.pod import ARGV0_ANNOTATION, Resolved, digest, pod_field, revision_of, variables
from wherry_runner import protocol

CONTAINER = "module"
"""The name of the one container that a WasmWorkload has on its runner."""

_FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels[", "metadata.annotations[")


def references(workload: Object) -> set[Reference]:
    """The ConfigMaps and Secrets that the WasmWorkload refers to."""
    spec = WasmWorkloadSpec.model_validate(workload["spec"])
    found = files.references(spec.volumes or ()) | environment.references(spec.env or (), spec.env_from or ())
    if spec.module.config_map_key_ref is not None:
        found.add(Reference(Kind.CONFIG_MAP, spec.module.config_map_key_ref.name))
    return found


def resolve(workload: Object, objects: Objects) -> Resolved:
    """The WasmWorkload as a workload. Raises ResolveError."""
    metadata = workload["metadata"]
    spec = WasmWorkloadSpec.model_validate(workload["spec"])

    def field(path: str) -> str:
        if not path.startswith(_FIELDS):
            raise files.field_error(path)
        return pod_field(workload, path)

    values = environment.environment(
        spec.env or (), spec.env_from or (), namespace=metadata["namespace"], objects=objects, field=field
    )
    argv0 = (metadata.get("annotations") or {}).get(ARGV0_ANNOTATION)
    if argv0 not in (None, "auto", "none"):
        raise ResolveError(f"annotation {ARGV0_ANNOTATION} must be auto or none, not {argv0!r}")
    container = protocol.Container(
        name=CONTAINER,
        module=_module(spec, metadata["namespace"], objects),
        args=tuple(environment.expand(text, values) for text in spec.args or ()),
        argv0=argv0,
        env=variables(values),
        mounts=tuple(
            protocol.VolumeMount(volume=mount.name, mount_path=mount.mount_path, read_only=True)
            for mount in spec.volume_mounts or ()
        ),
    )
    resolved = protocol.Workload(
        owner=protocol.Owner(
            kind="WasmWorkload", namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]
        ),
        containers=(container,),
        volumes=tuple(
            files.volume_files(volume, namespace=metadata["namespace"], objects=objects, field=field)
            for volume in spec.volumes or ()
        ),
        restart_policy=spec.restart_policy,
    )
    template = {key: value for key, value in workload["spec"].items() if key != "className"}
    return Resolved(workload=resolved, template_hash=digest(template), content_revision=digest(revision_of(resolved)))


def _module(spec: WasmWorkloadSpec, namespace: str, objects: Objects) -> protocol.Module:
    source: ModuleSource = spec.module
    if source.image is not None:
        policy = spec.image_pull_policy or default_pull_policy(source.image)
        return protocol.ImageModule(reference=source.image, pull_policy=protocol.PullPolicy(policy))
    if source.inline is not None:
        return protocol.InlineModule(data=base64.b64encode(_inline(source.inline)))
    if source.config_map_key_ref is None:
        raise ResolveError("spec.module: give exactly one of image, configMapKeyRef and inline")
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
