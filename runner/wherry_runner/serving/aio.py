"""aiohttp's server, as every file here has it: without its client, of which a runner has no use (3 MiB of memory)."""

from __future__ import annotations

import importlib.metadata

from wherry_runner.lean_imports import bare

with bare("aiohttp") as packages:
    for package in packages.values():
        package.__dict__["__version__"] = importlib.metadata.version("aiohttp")  # as its __init__ has it
    from aiohttp import web
    from aiohttp.typedefs import Middleware

__all__ = ["Middleware", "web"]
