"""A port on which nothing listens."""

from __future__ import annotations

import itertools
import os
import re
import socket

_FIRST, _END = 10_000, 20_000
"""Below the ports that the kernel gives away (net.ipv4.ip_local_port_range, from 32768 on), and those of a runner's guests:
what is not yet listened on would else be the client's end of any connection of the machine meanwhile, or another server's."""

_WORKERS = 16
"""Tests run beside each other in so many processes at most that meet on no port."""


def _own() -> range:
    each = (_END - _FIRST) // _WORKERS
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % _WORKERS
    return range(_FIRST + worker * each, _FIRST + (worker + 1) * each)


# Another run of the tests has another number: a port that one has just given up is not the first that the next asks for.
_turn = itertools.count(os.getpid())


def free_port() -> int:
    """One of 127.0.0.1 that was free a moment ago, and that no other test gets for a while. Raises OSError when all are taken."""
    own = _own()
    for _ in own:
        port = own[next(_turn) % len(own)]
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise OSError(f"no port is free from {own[0]} to {own[-1]}")
