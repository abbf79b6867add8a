"""Wires a runner, and orders its start and its end. Every other file gets what it needs from here."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.metadata
import logging
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from wherry_runner import metrics, network_counts, protocol, tls_buffers, unused_memory
from wherry_runner.execution import confinement, orphans, process
from wherry_runner.execution.engine import Engine, EngineError
from wherry_runner.execution.native import NativeEngine
from wherry_runner.execution.python import PythonEngine
from wherry_runner.http_counts import HttpCounts
from wherry_runner.journal.journals import Journals
from wherry_runner.lives.listeners import Listeners
from wherry_runner.lives.supervisor import Supervisor
from wherry_runner.lives.surroundings import Room
from wherry_runner.logs import budget
from wherry_runner.logs.allowances import Allowances
from wherry_runner.logs.budget import LogBudget
from wherry_runner.logs.folders import LogFolders
from wherry_runner.metrics import Metrics
from wherry_runner.modules.library import Modules
from wherry_runner.resources import admission
from wherry_runner.resources.admission import Admission, Amounts
from wherry_runner.resources.memory_watch import MemoryWatch, Watched
from wherry_runner.resources.usage import RunningContainer, Usage
from wherry_runner.serving import api, health
from wherry_runner.serving.condition import Condition
from wherry_runner.serving.health import Health
from wherry_runner.serving.listening import Server, serve
from wherry_runner.serving.tls import ServerTls, TlsError
from wherry_runner.settings import Settings, SettingsError, parse
from wherry_runner.volumes import SizeWatch, Volumes, memory_bytes

log = logging.getLogger("wherry_runner")

AGAIN_SECONDS = 10.0
"""After an error of ours, a task that is to run for ever begins anew."""


MANY_DESCRIPTORS = 16_384
"""Those of some thousand guests and their clients; for more the table still grows."""


class StartError(Exception):
    """The runner can't do here what it was told to; the message says what."""


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `wherry-runner`."""
    try:
        settings = parse(argv)
    except SettingsError as error:
        sys.exit(f"wherry-runner: {error}")
    for name in ("httpx", "httpcore"):  # they log headers and whole addresses, and what is signed or secret in them
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    tls_buffers.make_small()
    try:
        asyncio.run(run(settings))
    except (EngineError, OSError, StartError, TlsError) as error:
        sys.exit(f"wherry-runner: {error}")


def _spare_the_collector() -> None:
    """What is here now stays, and need not be looked through for garbage again and again."""
    gc.collect()
    gc.freeze()


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; a second one cuts the guests' grace short."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: hurry.set() if stop.is_set() else stop.set())
    process.raise_descriptor_limit()
    process.make_room_for_descriptors(MANY_DESCRIPTORS)
    process.become_subreaper()  # what an executor leaves behind comes to us, and ends with us
    tls = ServerTls(cert_file=settings.cert_file, key_file=settings.key_file, client_ca_file=settings.client_ca_file)
    state = settings.state_directory
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    budget_bytes = budget.budget(settings.log_budget_bytes, disk_bytes=_disk_bytes(state))

    async with AsyncExitStack() as ending:  # what is made first ends last
        volumes = Volumes(
            state / "volumes",
            settings.memory_directory,
            volumes_memory_directory=settings.volumes_memory_directory,
            host_paths=settings.host_paths,
            claims=settings.claims,
        )
        volumes.clear()
        ending.callback(volumes.close)
        servers: list[Server] = []
        ending.push_async_callback(_close_all, servers)
        tasks: list[asyncio.Task[None]] = []
        ending.push_async_callback(_cancel_all, tasks)

        counts = Metrics()
        logs_at_most = budget.max_containers(budget_bytes)
        allowances = Allowances(slots=logs_at_most + 1, default_bytes=budget.LEAST_FILE_BYTES)
        ending.callback(allowances.close)
        logs = LogBudget(allowances, budget_bytes=budget_bytes, file_bytes=settings.log_file_bytes)
        engine = _engine(settings, allowances)
        modules = Modules(
            state / "modules",
            engine=engine,
            pull=settings.pull,
            compile=settings.compile,
            limits=settings.modules,
            in_use=lambda: supervisor.module_digests_in_use(),
            metrics=counts,
        )
        ending.push_async_callback(modules.close)
        ending.push_async_callback(engine.close)
        admitted = Admission(
            _offered(settings, logs=logs_at_most),
            default_memory_request_bytes=settings.defaults.memory_request_bytes,
            descriptors_per_guest=_descriptors_per_guest(settings),
            volume_bytes=functools.partial(memory_bytes, default_limit_bytes=settings.defaults.memory_limit_bytes),
        )
        supervisor = Supervisor(
            room=Room(
                engine=engine,
                modules=modules,
                volumes=volumes,
                logs=LogFolders(state / "logs"),
                log_slots=logs,
                back_off=settings.back_off,
                defaults=settings.defaults,
                listeners=Listeners(settings.guest_listen, settings.guest_ports),
                http=settings.http,
                network=settings.network,
                metrics=counts,
            ),
            journals=Journals(state / "journal"),
            admission=admitted,
            max_workloads=settings.max_workloads,
        )
        ending.push_async_callback(_close_supervisor, supervisor, settings.termination_grace_seconds, hurry)

        await engine.open()
        if missing := confinement.missing(settings.require_confinement, engine.confinement):
            raise StartError(missing)
        disk = health.disk(state)
        well = Health(ready={"executor": engine.complaint}, works={"disk": disk, "certificate": tls.complaint})
        usage = Usage(
            running=lambda: _running(supervisor),
            executor_pid=lambda: engine.executor_pid,
            workloads=lambda: sum(supervisor.phases().values()),
            requested=lambda: (admitted.requested_millicores, admitted.requested_bytes),
        )
        counts.follow(
            lambda: metrics.State(
                running=sum(1 for _ in supervisor.running_guests()),
                workloads=supervisor.phases(),
                executor_losses=engine.losses,
                module_store_bytes=modules.used_bytes,
                log_budget_bytes=budget_bytes,
                log_allowed_bytes=logs.allowed_bytes,
                memory_offered_bytes=settings.memory_bytes,
                memory_requested_bytes=admitted.requested_bytes,
                cpu_offered_millicores=settings.cpu_millicores,
                cpu_requested_millicores=admitted.requested_millicores,
                http=_http_counts(supervisor),
                network_refused=_network_refused(supervisor),
            )
        )
        memory_watch = MemoryWatch(
            watched=lambda: _watched(supervisor),
            executor_pid=lambda: engine.executor_pid,
            on_kill=counts.memory_killed,
        )
        size_watch = SizeWatch(volumes, supervisor.evict)
        keepers = (memory_watch.run, size_watch.run, logs.keep, orphans.keep_reaping, unused_memory.keep_giving_back)
        tasks.extend(asyncio.create_task(_for_ever(keep)) for keep in keepers)

        condition = Condition(
            memory=(memory_watch.complaint,),
            disk=(disk, modules.complaint),
            processes=(admitted.complaint,),
            images=modules.images,
        )
        app = api.application(supervisor, _info(settings, engine), usage=usage, condition=condition, counts=counts)
        servers.append(await serve(app, settings.listen, settings.port, tls.context))
        servers.append(await serve(api.health_application(well), settings.health_listen, settings.health_port))
        well.serving = True
        _spare_the_collector()
        log.info(
            "runner %s ready: API on port %d, health on port %d, engine %s",
            settings.name, *(server.port for server in servers), engine.name,
        )  # fmt: skip
        await stop.wait()
        log.info("stopping")
        well.serving = False
        await _unless(hurry, supervisor.leave(settings.leave_seconds))


# --- what is made of the settings -------------------------------------------------------------------------------------


def _engine(settings: Settings, allowances: Allowances) -> PythonEngine | NativeEngine:
    """Raises EngineLost."""
    if settings.executor_directory is None:
        return PythonEngine(allowances=allowances)
    return NativeEngine(
        settings.executor_directory,
        allowances=allowances,
        wasi_03=settings.wasi_03,
        pooling_allocator=settings.pooling_allocator,
    )


def _offered(settings: Settings, *, logs: int) -> Amounts:
    """What there is for workloads: of what the runner needs too, some is kept back."""
    descriptors = process.raise_descriptor_limit()
    return Amounts(
        memory_bytes=settings.memory_bytes,
        millicores=settings.cpu_millicores,
        workloads=settings.max_workloads,
        processes=admission.after_reserve(settings.processes, reserve=admission.RESERVED_PROCESSES),
        descriptors=admission.after_reserve(descriptors, reserve=admission.RESERVED_DESCRIPTORS),
        logs=logs,
    )


def _descriptors_per_guest(settings: Settings) -> int:
    writes_logs = settings.executor_directory is not None
    return admission.DESCRIPTORS_PER_GUEST + (0 if writes_logs else admission.DESCRIPTORS_PER_LOG)


def _info(settings: Settings, engine: Engine) -> protocol.RunnerInfo:
    return protocol.RunnerInfo(
        runner=settings.name,
        node=settings.node,
        address=settings.address,
        instance=secrets.token_hex(8),
        wherry_version=importlib.metadata.version("wherry"),
        engines=(engine.name,),
        features=tuple(sorted(engine.features)),
        confinement=engine.confinement,
        cpu_millicores=settings.cpu_millicores,
        memory_bytes=settings.memory_bytes,
        max_workloads=settings.max_workloads,
        default_memory_request_bytes=settings.defaults.memory_request_bytes,
        default_memory_limit_bytes=settings.defaults.memory_limit_bytes,
    )


def _disk_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize


# --- the supervisor's guests, as others want them ---------------------------------------------------------------------


def _running(supervisor: Supervisor) -> list[RunningContainer]:
    return [
        RunningContainer(
            workload=each.workload_id,
            container=each.container,
            container_id=each.container_id,
            started_at=each.started_at,
            pid=each.guest.pid,
            log_folder=each.log_folder,
        )
        for each in supervisor.running_guests()
    ]


def _http_counts(supervisor: Supervisor) -> HttpCounts:
    counted = (each.guest.http_counts() for each in supervisor.running_guests())
    return sum((counts for counts in counted if counts is not None), HttpCounts())


def _network_refused(supervisor: Supervisor) -> network_counts.NetworkCounts:
    counted = (each.guest.network_counts() for each in supervisor.running_guests())
    return functools.reduce(network_counts.add, counted, network_counts.NONE)


def _watched(supervisor: Supervisor) -> list[Watched]:
    return [
        Watched(
            workload=each.workload_id,
            container=each.container,
            request_bytes=each.request_bytes,
            guaranteed=each.limit_bytes is not None and each.limit_bytes <= each.request_bytes,
            guest=each.guest,
        )
        for each in supervisor.running_guests()
    ]


# --- servers and tasks ------------------------------------------------------------------------------------------------


async def _close_all(servers: list[Server]) -> None:
    for server in servers:
        await server.close()


async def _close_supervisor(supervisor: Supervisor, grace_seconds: float, hurry: asyncio.Event) -> None:
    if not await _unless(hurry, supervisor.close(grace_seconds)):
        await supervisor.close()


async def _unless(hurry: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Do the work, unless there is no time for it any more; whether it was done."""
    task, hurried = asyncio.create_task(work), asyncio.create_task(hurry.wait())
    await asyncio.wait([task, hurried], return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


async def _for_ever(keep: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await keep()
        except Exception:
            log.exception("an error of ours")
        await asyncio.sleep(AGAIN_SECONDS)


async def _cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
