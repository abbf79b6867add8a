"""What one run of a container may use: what its spec says, and the runner's defaults where it says nothing."""

from __future__ import annotations

from dataclasses import dataclass

from wherry_runner import protocol
from wherry_runner.execution.engine import Limits


@dataclass(frozen=True, kw_only=True)
class LimitDefaults:
    """For containers whose spec does not say."""

    memory_request_bytes: int = 16 << 20
    """What such a container is counted with at admission."""
    memory_limit_bytes: int = 256 << 20
    """Without one, a single module that leaks takes the whole runner along."""
    descriptors: int = 256
    """Open files of a run. Kubernetes has no field for it."""
    log_bytes_per_second: int | None = None
    """Output of a run; None: as fast as the disk takes it. Kubernetes has no field for it."""


def limits(resources: protocol.Resources, defaults: LimitDefaults, *, file_bytes: int | None = None) -> Limits:
    """The limits of a run; `file_bytes`: the largest file that fits into its volumes, if something limits them.

    Who requests more memory than the default limit may have what it requests.
    """
    memory = resources.memory_limit_bytes
    if memory is None:
        memory = max(defaults.memory_limit_bytes, resources.memory_request_bytes or 0)
    weight = resources.cpu_request_millicores
    return Limits(
        memory_bytes=memory,
        cpu_millicores=resources.cpu_limit_millicores,
        # As Kubernetes: a limit without a request requests it.
        cpu_weight_millicores=resources.cpu_limit_millicores if weight is None else weight,
        fuel=resources.fuel,
        descriptors=defaults.descriptors,
        file_bytes=file_bytes,
        log_bytes_per_second=defaults.log_bytes_per_second,
    )
