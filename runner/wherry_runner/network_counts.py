"""What the network refused to a guest: counted in the page in which a server counts too (`http_counts.py`).

The layout is `Page` in `runner/executor/src/page.rs`; the numbers are the guest's process's own.
"""

from __future__ import annotations

import os
import struct

REFUSALS = ("name", "address", "socket", "connection")
"""What was refused: a name that no rule covers; an address; a socket without a grant, or one that would serve; a connection
for HTTP where there are too many. In the order of the page."""

_AT = 512
_NUMBERS = struct.Struct(f"={len(REFUSALS)}Q")

NetworkCounts = tuple[int, ...]
"""In the order of REFUSALS."""

NONE: NetworkCounts = (0,) * len(REFUSALS)


def read(descriptor: int) -> NetworkCounts:
    """What a page says now. Raises OSError."""
    return _NUMBERS.unpack(os.pread(descriptor, _NUMBERS.size, _AT))


def add(first: NetworkCounts, second: NetworkCounts) -> NetworkCounts:
    """Both together."""
    return tuple(map(sum, zip(first, second, strict=True)))
