"""Lifecycle hooks: what is done right after a container has started, and before it is asked to end.

By the kubelet's rules (pkg/kubelet/lifecycle/handlers.go): an answer by HTTP is a success, whatever its status. A container is
asked on its own port only, as by its probes.
"""

from __future__ import annotations

import asyncio

from wherry_runner import protocol
from wherry_runner.lives import asking
from wherry_runner.lives.asking import Target

LEAST_SECONDS = 2.0
"""That a container has to end, if its hook took all of its grace period (kuberuntime_container.go,
minimumGracePeriodInSeconds)."""

READ_BYTES = 64 << 10


class HookError(Exception):
    """A hook has failed; the message is the kubelet's."""


async def run(hook: protocol.Hook, target: Target, *, container: str, owner: protocol.Owner) -> None:
    """Do what a hook says; bounded by nothing but who cancels it. Raises HookError."""
    if hook.sleep_seconds is not None:
        return await asyncio.sleep(hook.sleep_seconds)
    path, port = hook.path or "/", target.port_for(hook.port)
    host = asking.host(target.address, port or hook.port or 0)
    try:
        if port is None:
            raise ConnectionRefusedError
        await _get(asking.request(path, hook.headers, host=host, agent="kube-lifecycle/wherry"), target.address, port)
    except ConnectionRefusedError:
        why = f"dial tcp {host}: connect: connection refused"
    except (OSError, ValueError) as error:
        why = str(error)
    else:
        return
    pod = f"{owner.name}_{owner.namespace}({owner.uid})"
    raise HookError(
        f'HTTP lifecycle hook ({path}) for Container "{container}" in Pod "{pod}" failed - '
        f'error: Get "http://{host}{path}": {why}'
    )


async def _get(request: bytes, address: str, port: int) -> None:
    """Ask by HTTP, and wait for the whole answer. Raises OSError, ValueError."""
    reader, writer = await asyncio.open_connection(address, port, limit=READ_BYTES)
    try:
        writer.write(request)
        if not (await reader.readline()).startswith(b"HTTP/"):
            raise ValueError("EOF" if reader.at_eof() else "malformed HTTP response")
        while await reader.read(READ_BYTES):
            pass
    finally:
        writer.transport.abort()
