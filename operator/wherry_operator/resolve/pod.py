"""A Pod → a Workload."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from wherry_operator.models import Object, PodSpec
from wherry_operator.resolve import downward as downwards
from wherry_operator.resolve import environment, fields, files, network, pull_secrets, revision
from wherry_operator.resolve.container import container, init_container
from wherry_operator.resolve.downward import Host
from wherry_operator.resolve.objects import Objects, Reference, ResolveError, Unsupported
from wherry_operator.resolve.revision import Resolved
from wherry_operator.resolve.tokens import Tokens
from wherry_operator.resolve.volumes import KINDS, volume
from wherry_runner import protocol

ARGV0_ANNOTATION = "wherry.dev/argv0"
"""`auto` puts the module's name first also for modules packed in Krustlet's way, `none` leaves it out for all others too
(design §6); without the annotation it depends on the packing."""

REUSE_ANNOTATION = "wherry.dev/instance-reuse"
"""Requests that one instance of a server's module serves, one after the other; without it each request has its own."""


def refusals(pod: Object, *, claims: Collection[str] = ()) -> list[str]:
    """What the Pod asks for and a module can't have, each naming its field; empty if there is nothing.

    `claims`: PersistentVolumeClaims that runners offer, as `NAMESPACE/NAME`.
    """
    spec = pod["spec"]
    found = [f"spec.{field}: {why}" for field, why in fields.REFUSED_OF_POD.items() if spec.get(field)]
    for kind in ("initContainers", "containers"):
        refused = fields.REFUSED_OF_CONTAINER | (fields.REFUSED_OF_MAIN_CONTAINER if kind == "containers" else {})
        for index, item in enumerate(spec.get(kind) or ()):
            found += [f"spec.{kind}[{index}].{field}: {why}" for field, why in refused.items() if item.get(field)]
            for probe in fields.PROBES:
                where = f"spec.{kind}[{index}].{probe}"
                found += [f"{where}.{field}: {why}" for field, why in _asked(item.get(probe), fields.REFUSED_OF_PROBE)]
            lifecycle, where = item.get("lifecycle") or {}, f"spec.{kind}[{index}].lifecycle"
            found += [f"{where}.{field}: {why}" for field, why in _asked(lifecycle, fields.REFUSED_OF_LIFECYCLE)]
            for hook in fields.HOOKS:
                refused_of_hook = _asked(lifecycle.get(hook), fields.REFUSED_OF_HOOK)
                found += [f"{where}.{hook}.{field}: {why}" for field, why in refused_of_hook]
            for number, port in enumerate(item.get("ports") or ()):
                where = f"spec.{kind}[{index}].ports[{number}]"
                found += [f"{where}.{field}: {why}" for field, why in fields.REFUSED_OF_PORT.items() if port.get(field)]
    for index, item in enumerate(spec.get("volumes") or ()):
        for field in sorted(set(item) - {"name", *KINDS}):
            why = f"volumes of this kind are not supported; {', '.join(KINDS[:-1])} and {KINDS[-1]} are"
            found.append(f"spec.volumes[{index}].{field}: {why}")
        if source := item.get("persistentVolumeClaim"):
            claim = f"{pod['metadata']['namespace']}/{source['claimName']}"
            if claim not in claims:
                found.append(f"spec.volumes[{index}].persistentVolumeClaim: {fields.REFUSED_CLAIM.format(claim)}")
    return found


def _asked(of: Object | None, refused: Mapping[str, str]) -> list[tuple[str, str]]:
    """Which of the refused fields are set, and why they are refused."""

    def asks(field: str) -> bool:
        kind, _, inner = field.partition(".")
        value = ((of or {}).get(kind) or {}).get(inner) if inner else (of or {}).get(kind)
        return value is not None and value not in ("", "HTTP")

    return [(field, why) for field, why in refused.items() if asks(field)]


def check(pod: Object, *, claims: Collection[str] = ()) -> None:
    """Raises Unsupported: the spec has a field that is refused (`refusals`)."""
    if refused := refusals(pod, claims=claims):
        raise Unsupported("; ".join(refused))


def references(pod: Object) -> set[Reference]:
    """The ConfigMaps and Secrets that the Pod refers to."""
    spec = PodSpec.model_validate(pod["spec"])
    found = files.references(spec.volumes or ())
    found |= pull_secrets.references(secret.name for secret in spec.image_pull_secrets or ())
    for item in (*(spec.init_containers or ()), *spec.containers):
        found |= environment.references(item.env or (), item.env_from or ())
    return found


def resolve(
    pod: Object,
    objects: Objects,
    *,
    now: datetime,
    host: Host | None = None,
    tokens: Tokens | None = None,
    claims: Collection[str] = (),
) -> Resolved:
    """The Pod as a workload. Its deadline counts from its `status.startTime`, before that is written from `now`.

    `tokens`: of its service account, those that its volumes ask for; None: it gets none.
    `claims`: as `refusals` has it. Raises ResolveError.
    """
    check(pod, claims=claims)
    metadata = pod["metadata"]
    namespace = metadata["namespace"]
    spec = PodSpec.model_validate(pod["spec"])
    downward = downwards.of_pod(pod, spec, host or Host())
    annotations = metadata.get("annotations") or {}
    argv0 = annotations.get(ARGV0_ANNOTATION)
    if argv0 not in (None, "auto", "none"):
        raise ResolveError(f"annotation {ARGV0_ANNOTATION} must be auto or none, not {argv0!r}")
    reach = network.of_pod(annotations)
    reuse = _instance_reuse(annotations.get(REUSE_ANNOTATION))
    secrets = pull_secrets.read((secret.name for secret in spec.image_pull_secrets or ()), objects)
    grace = spec.termination_grace_period_seconds
    given: dict[str, Any] = {
        "namespace": namespace,
        "objects": objects,
        "downward": downward,
        "argv0": argv0,
        "network": reach,
        "instance_reuse": reuse,
    }
    workload = protocol.Workload(
        owner=protocol.Owner(kind="Pod", namespace=namespace, name=metadata["name"], uid=metadata["uid"]),
        init_containers=tuple(init_container(item, **given) for item in spec.init_containers or ()),
        containers=tuple(container(item, **given) for item in spec.containers),
        volumes=tuple(
            volume(item, namespace=namespace, objects=objects, downward=downward, tokens=tokens)
            for item in spec.volumes or ()
        ),
        restart_policy=spec.restart_policy,
        termination_grace_period_seconds=30 if grace is None else grace,
        deadline=_deadline(pod, spec, now),
        credentials=secrets.credentials,
    )
    return Resolved(
        workload=workload,
        # Of a Pod only images and resources (`resize.py`) can change: for another image the kubelet restarts a container.
        template_hash=revision.digest(
            [[item.name, item.image] for item in (*(spec.init_containers or ()), *spec.containers)]
        ),
        content_revision=revision.of(workload),
        complaints=secrets.complaints,
    )


def _instance_reuse(text: str | None) -> int | None:
    if text is None:
        return None
    most = protocol.MAX_INSTANCE_REUSE
    if not re.fullmatch("[0-9]{1,7}", text) or not 1 <= int(text) <= most:
        raise ResolveError(f"annotation {REUSE_ANNOTATION} must be a number from 1 to {most}, not {text!r}")
    return int(text)


def _deadline(pod: Object, spec: PodSpec, now: datetime) -> datetime | None:
    if spec.active_deadline_seconds is None:
        return None
    started = (pod.get("status") or {}).get("startTime")
    since = datetime.fromisoformat(started) if started else now
    return since + timedelta(seconds=spec.active_deadline_seconds)
