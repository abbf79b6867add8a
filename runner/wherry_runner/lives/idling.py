"""Servers that nobody asks: how long that is so, and who asks first afterwards.

One that rests has no process. Its port stays open here, so a client that comes waits in its queue and is answered by the process
that is started for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from wherry_runner.http_counts import HttpCounts

LOOK_SECONDS = 1.0
"""How late it is noticed, at most, that a server has been idle for long enough."""


async def is_idle(read: Callable[[], HttpCounts | None], seconds: float) -> bool:
    """Wait until a server has had no request for so long. False: it has ended. Open connections without one don't keep it up."""
    loop = asyncio.get_running_loop()
    done, since = -1, loop.time()
    while (counts := read()) is not None:
        now_done = sum(counts.answers) + counts.refused + counts.failed + counts.overdue
        if counts.requests or now_done != done:
            done, since = now_done, loop.time()
        elif loop.time() - since >= seconds:
            return True
        await asyncio.sleep(min(LOOK_SECONDS, seconds / 4))
    return False


def called(listener: int) -> asyncio.Future[None]:
    """Done once a client is in the queue of a listening socket, which may be closed meanwhile. Whoever waits no more cancels it.
    Raises OSError."""
    loop = asyncio.get_running_loop()
    found = loop.create_future()
    # Of our own: the number of one that others close may be somebody else's before the loop is told.
    watched = os.dup(listener)

    def note() -> None:
        if not found.done():
            found.set_result(None)

    def forget(_: asyncio.Future[None]) -> None:
        loop.remove_reader(watched)
        os.close(watched)

    loop.add_reader(watched, note)
    found.add_done_callback(forget)
    return found
