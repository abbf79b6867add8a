"""Where an operator begins: with its settings, and with little else. What it is made of (`app.py`) is imported when it is needed:
most of this process's memory, and of no use to one that waits for the lead."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from wherry_operator.errors import StartError
from wherry_operator.settings import Settings, SettingsError, parse
from wherry_operator.waiting import stage
from wherry_runner import tls_buffers


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `wherry-operator`."""
    try:
        settings = parse(argv)
    except SettingsError as error:
        sys.exit(f"wherry-operator: {error}")
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLogger().level))
    tls_buffers.make_small()
    try:
        asyncio.run(run(settings))
    except (StartError, OSError) as error:
        sys.exit(f"wherry-operator: {error}")


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, or until this process may not lead any more. Raises StartError, OSError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if not stage.possible(settings, os.environ):
        await _app().run(settings, stop)
        return
    waiting = stage.Stage(settings, os.environ)
    try:
        handed = await waiting.wait(stop)
        if handed is not None:
            # In a thread: probes are answered meanwhile, and what is passed on to the leader goes on.
            app = await asyncio.to_thread(_app)
            await app.run(settings, stop, handed)
    finally:
        await waiting.close()


def _app() -> ModuleType:
    return importlib.import_module("wherry_operator.app")
