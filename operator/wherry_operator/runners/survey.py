"""Asks all runners that are connected the same, side by side: a slow one must not cost the others' answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from wherry_operator.runners.client import RunnerClient, RunnerError
from wherry_operator.runners.registry import RunnerState

log = logging.getLogger(__name__)

ASK_SECONDS = 3.0
"""For one answer: metrics-server gives up a node after 10 s."""

_Answer = TypeVar("_Answer")


class Runners(Protocol):
    """What of `RunnerRegistry` is used here."""

    def states(self) -> tuple[RunnerState, ...]:
        """All runners."""
        ...

    def client(self, name: str) -> RunnerClient | None:
        """How to call one."""
        ...


async def survey(
    runners: Runners, what: str, ask: Callable[[RunnerClient], Awaitable[_Answer]]
) -> dict[str, _Answer | None]:
    """The answer of each connected runner, by its name; None of one that gave none in time, which is logged.

    :param what: what is asked for, for the log.
    """

    async def one(client: RunnerClient) -> _Answer | None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await ask(client)
        except TimeoutError:
            log.warning("%s does not say within %.0f s %s", client, ASK_SECONDS, what)
        except RunnerError as error:
            log.warning("%s does not say %s: %s", client, what, error)
        return None

    clients = [client for each in runners.states() if each.connected and (client := runners.client(each.name))]
    answers = await asyncio.gather(*map(one, clients))
    return {client.name: answer for client, answer in zip(clients, answers, strict=True)}
