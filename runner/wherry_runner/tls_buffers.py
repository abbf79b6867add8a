"""What a TLS connection takes of memory, in both processes: the wire between them is most of their connections."""

from __future__ import annotations

from asyncio import sslproto

READ_BYTES = 64 << 10
"""What is read from a connection at once: four TLS records."""


def make_small() -> None:
    """Have connections that are made from now on read no more at once than `READ_BYTES`.

    asyncio's `SSLProtocol` reads up to 256 KiB into a buffer that it zeroes when a connection is made: 18 MiB for the 70 that an
    operator has open in a burst, which the C library keeps afterwards.
    """
    sslproto.SSLProtocol.max_size = READ_BYTES
