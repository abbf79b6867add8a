"""What an emptyDir's limit means: what it adds to a workload's memory, and what is said when it is exceeded. Pure."""

from __future__ import annotations

from wherry_runner import protocol


def memory_bytes(workload: protocol.Workload, *, default_limit_bytes: int) -> int:
    """What the volumes in memory add to what a workload needs.

    Each adds its sizeLimit, for so much can be written to it. One without adds the memory limits of the workload's containers,
    which then are its limit. Kubernetes adds nothing: there, what is written counts as memory of the container that writes.

    `default_limit_bytes`: the memory limit of a container that names none.
    """
    without = limit_in_memory(workload, default_limit_bytes=default_limit_bytes)
    return sum(
        volume.size_limit_bytes or without
        for volume in workload.volumes
        if isinstance(volume, protocol.EmptyDirVolume) and volume.medium == "Memory"
    )


def limit_in_memory(workload: protocol.Workload, *, default_limit_bytes: int) -> int:
    """The limit of a volume in memory that names none: all memory limits of the containers that run at once, together."""
    sidecars = [each for each in workload.init_containers if each.restart_policy == "Always"]
    return sum(_limit(each.resources, default_limit_bytes) for each in (*workload.containers, *sidecars))


def _limit(resources: protocol.Resources, default: int) -> int:
    """As `limits.limits` has it."""
    if resources.memory_limit_bytes is not None:
        return resources.memory_limit_bytes
    return max(default, resources.memory_request_bytes or 0)


def exceeded(volume: str, limit_bytes: int) -> str:
    """The kubelet's words (pkg/kubelet/eviction/helpers.go)."""
    return f'Usage of EmptyDir volume "{volume}" exceeds the limit "{quantity(limit_bytes)}".'


def quantity(size: int) -> str:
    """Bytes as Kubernetes writes a quantity: the largest unit that says it exactly. https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/"""
    for base, units in ((1024, ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki")), (1000, ("E", "P", "T", "G", "M", "k"))):
        for power, unit in zip(range(len(units), 0, -1), units, strict=True):
            if size and size % base**power == 0:
                return f"{size // base**power}{unit}"
    return str(size)
