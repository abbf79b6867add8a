"""A TLS connection's memory: asyncio offers no setting for it, so a Python that has changed it must be noticed."""

from __future__ import annotations

import asyncio
import ssl
from asyncio import sslproto

import pytest

from wherry_runner import tls_buffers


async def buffer_of_a_new_connection() -> int:
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made = sslproto.SSLProtocol(loop, asyncio.Protocol(), context, loop.create_future(), server_hostname="runner")
    size = len(made.get_buffer(-1))
    made.connection_lost(None)
    return size


def test_a_connection_has_a_small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", sslproto.SSLProtocol.max_size)  # as it was, afterwards
    before = asyncio.run(buffer_of_a_new_connection())
    tls_buffers.make_small()
    assert asyncio.run(buffer_of_a_new_connection()) == tls_buffers.READ_BYTES < before
