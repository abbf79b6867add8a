"""What an executor is told of a run: from a container's spec, its module, and what its workload has."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from wherry_runner import protocol
from wherry_runner.execution.engine import (
    NETWORK,
    CompiledModule,
    Engine,
    GuestLog,
    GuestSpec,
    HttpBounds,
    HttpServing,
    Listening,
    ModuleKind,
    NetworkFields,
    Preopen,
)
from wherry_runner.lives import network
from wherry_runner.lives.listeners import Listener, Reservation
from wherry_runner.lives.surroundings import Surroundings
from wherry_runner.logs import folders as log_folders
from wherry_runner.resources.limits import limits


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run that is to be."""

    guest_spec: GuestSpec
    restart_count: int
    listener: Listener | None
    """The one that the spec names by its number."""


def plan(
    spec: protocol.Container,
    module: CompiledModule,
    around: Surroundings,
    *,
    restart_count: int,
    log_slot: int,
    listener: Listener | None,
    reserved: Sequence[Reservation],
) -> Plan:
    """The next run, with an id of its own and a folder for its log. No run before it may go on. Raises VolumeError, OSError."""
    folder = around.room.logs.of(around.id, spec.name)
    told = guest_spec(
        spec,
        module,
        around,
        container_id=secrets.token_hex(32),
        log=GuestLog(path=log_folders.log_file(folder, restart_count), slot=log_slot),
        listener=listener,
        reserved=reserved,
    )
    log_folders.make(folder)
    return Plan(guest_spec=told, restart_count=restart_count, listener=listener)


def guest_spec(
    spec: protocol.Container,
    module: CompiledModule,
    around: Surroundings,
    *,
    container_id: str,
    log: GuestLog,
    listener: Listener | None = None,
    reserved: Sequence[Reservation] = (),
) -> GuestSpec:
    """All that an executor needs; `listener`: of a server; `reserved`: ports of a command. Makes folders for the mounts of this
    run, so none before it may go on. Raises VolumeError."""
    preopens: tuple[Preopen, ...] = ()
    file_bytes = None
    if spec.mounts:
        volumes, room = around.volumes, around.room
        preopens = room.volumes.preopens(around.id, spec, volumes)
        file_bytes = room.volumes.largest_file(around.id, spec, volumes)
    return GuestSpec(
        guest_id=container_id,
        module=module,
        argv=argv(spec, module),
        environment=tuple((item.name, item.value.get_secret_value()) for item in spec.env),
        preopens=preopens,
        working_dir=spec.working_dir,
        stdin=spec.stdin,
        log=log,
        limits=limits(spec.resources, around.room.defaults, file_bytes=file_bytes),
        http=None if listener is None else _serving(spec, around.room.http, listener),
        listening=tuple(Listening(protocol=each.protocol, named=each.wanted, at=each.address) for each in reserved),
        network=network.grant(spec.network, around.room.network),
        network_fields=network.FIELDS.get(around.owner.kind, NetworkFields()),
    )


def listens(spec: protocol.Container, module: CompiledModule, engine: Engine) -> tuple[protocol.ListenPort, ...]:
    """The ports on which a command's own sockets may listen. WASI 0.1 has no way to, and not every executor."""
    if module.kind is not ModuleKind.COMPONENT or NETWORK not in engine.features:
        return ()
    return tuple({(each.port, each.protocol): each for each in spec.listens}.values())


def _serving(spec: protocol.Container, defaults: HttpBounds, listener: Listener) -> HttpServing:
    given = spec.http or protocol.HttpServer()
    bounds = dataclasses.replace(
        defaults,
        max_requests=given.max_requests or defaults.max_requests,
        request_seconds=given.request_seconds or defaults.request_seconds,
        instance_reuse=given.instance_reuse or defaults.instance_reuse,
    )
    return HttpServing(listener=listener.descriptor, bounds=bounds)


def argv(spec: protocol.Container, module: CompiledModule) -> tuple[str, ...]:
    """The guest's argv, by the rule of design §6."""
    if spec.command:
        return (*spec.command, *spec.args)
    named = not module.packed_by_krustlet if spec.argv0 is None else spec.argv0 == "auto"
    args = (*module.entrypoint_args, *(spec.args or module.image_args))
    return (module.name, *args) if named else args
