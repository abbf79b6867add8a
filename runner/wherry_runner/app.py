"""Wires a runner, and orders its start and its end. Every other file gets what it needs from here."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import secrets
import signal
import ssl
import sys
from collections.abc import Sequence

from aiohttp import web

from wherry_runner import api, protocol, tls
from wherry_runner.execution import process
from wherry_runner.execution.engine import EngineError
from wherry_runner.execution.python import PythonEngine
from wherry_runner.journal import Journals
from wherry_runner.modules.library import Modules
from wherry_runner.settings import Settings, SettingsError, parse
from wherry_runner.supervisor import Supervisor
from wherry_runner.volumes import Volumes
from wherry_runner.workload import Room

log = logging.getLogger("wherry_runner")


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `wherry-runner`."""
    try:
        settings = parse(argv)
    except SettingsError as error:
        sys.exit(f"wherry-runner: {error}")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(settings))
    except (EngineError, OSError) as error:
        sys.exit(f"wherry-runner: {error}")


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    state = settings.state_directory
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    volumes = Volumes(state / "volumes", settings.memory_directory)
    volumes.clear()
    journals = Journals(state / "journal")
    journals.forget_old()
    process.become_subreaper()  # what an executor leaves behind comes to us, and ends with us
    engine = PythonEngine()
    modules = Modules(state / "modules", engine_name=engine.name, pull=settings.pull)
    room = Room(
        engine=engine,
        modules=modules,
        volumes=volumes,
        logs_directory=state / "logs",
        back_off=settings.back_off,
    )
    supervisor = Supervisor(room=room, journals=journals, max_workloads=settings.max_workloads)
    supervisor.drop_orphaned_logs()
    info = protocol.RunnerInfo(
        runner=settings.name,
        node=settings.node,
        address=settings.address,
        instance=secrets.token_hex(8),
        wherry_version=importlib.metadata.version("wherry"),
        engines=(engine.name,),
        cpu_millicores=settings.cpu_millicores,
        memory_bytes=settings.memory_bytes,
        max_workloads=settings.max_workloads,
    )
    await engine.open()
    servers: list[web.AppRunner] = []
    try:
        context = tls.server_context(
            cert_file=settings.cert_file, key_file=settings.key_file, client_ca_file=settings.client_ca_file
        )
        port = await _serve(servers, api.application(supervisor, info), settings.listen, settings.port, context)
        health = await _serve(
            servers, api.health_application(lambda: ""), settings.health_listen, settings.health_port, None
        )
        log.info(
            "runner %s ready: API on port %d, health on port %d, engine %s", settings.name, port, health, engine.name
        )
        await stop.wait()
        log.info("stopping")
    finally:
        await supervisor.close()
        await engine.close()
        await modules.close()
        for server in servers:
            await server.cleanup()
        volumes.close()


async def _serve(
    servers: list[web.AppRunner], app: web.Application, host: str, port: int, context: ssl.SSLContext | None
) -> int:
    # Access lines would be one per status change of every workload.
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,  # who no longer follows a log must not be waited for
        shutdown_timeout=1.0,
    )
    await runner.setup()
    servers.append(runner)
    site = web.TCPSite(runner, host, port, ssl_context=context)
    await site.start()
    return int(runner.addresses[0][1])
