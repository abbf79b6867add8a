"""What a guest's end means: every way to end, and last words that lie."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from wherry_runner.execution.channel import Exited, Report
from wherry_runner.execution.endings import Kill, guest_exit, nice_value
from wherry_runner.execution.engine import Limits

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LIMITS = Limits(memory_bytes=64 << 20, fuel=1000)
DEADLINE = Kill(reason="DeadlineExceeded", message="too long")


def report(outcome: str, message: str = "", *, memory_refused: bool = False) -> Report:
    return Report(outcome=outcome, exit_code=0, message=message, memory_refused=memory_refused)


@pytest.mark.parametrize(
    ("exited", "said", "kill", "limits", "expected"),
    [
        pytest.param(
            Exited(guest="g", exit_code=0), report("exited"), None, LIMITS, (0, "Completed", ""), id="success"
        ),
        pytest.param(Exited(guest="g", exit_code=3), report("exited"), None, LIMITS, (3, "Error", ""), id="failure"),
        pytest.param(
            Exited(guest="g", exit_code=134),
            report("trapped", "wasm trap: x"),
            None,
            LIMITS,
            (134, "Error", "wasm trap: x"),
            id="trap",
        ),
        pytest.param(
            Exited(guest="g", exit_code=128),
            report("failed", "could not run"),
            None,
            LIMITS,
            (128, "Error", "could not run"),
            id="not run",
        ),
        pytest.param(Exited(guest="g", exit_code=7), None, None, LIMITS, (7, "Error", ""), id="without a word"),
        pytest.param(
            Exited(guest="g", signal=11),
            None,
            None,
            LIMITS,
            (139, "Error", "its process died of signal 11 (SIGSEGV)"),
            id="crash",
        ),
        pytest.param(
            Exited(guest="g", signal=99),
            None,
            None,
            LIMITS,
            (227, "Error", "its process died of signal 99"),
            id="odd signal",
        ),
        # Killed.
        pytest.param(
            Exited(guest="g", signal=9),
            None,
            DEADLINE,
            LIMITS,
            (137, "DeadlineExceeded", "too long"),
            id="killed by us",
        ),
        pytest.param(
            Exited(guest="g", signal=9),
            None,
            None,
            LIMITS,
            (137, "Error", "its process was killed from outside (SIGKILL)"),
            id="killed by others",
        ),
        pytest.param(
            Exited(guest="g", exit_code=0),
            report("exited"),
            DEADLINE,
            LIMITS,
            (0, "Completed", ""),
            id="ended before the kill",
        ),
        # Memory.
        pytest.param(
            Exited(guest="g", exit_code=134),
            report("trapped", "wasm trap: unreachable", memory_refused=True),
            None,
            LIMITS,
            (137, "OOMKilled", "wanted more memory than its limit, 64Mi\nwasm trap: unreachable"),
            id="out of memory",
        ),
        pytest.param(
            Exited(guest="g", exit_code=0),
            report("exited", memory_refused=True),
            None,
            LIMITS,
            (0, "Completed", ""),
            id="lived with a refusal",
        ),
        # Fuel.
        pytest.param(
            Exited(guest="g", exit_code=134),
            report("outOfFuel", "at main"),
            None,
            LIMITS,
            (134, "OutOfFuel", "used up its fuel, 1000\nat main"),
            id="out of fuel",
        ),
        # Last words that don't fit.
        pytest.param(
            Exited(guest="g", exit_code=3),
            report("exited", "forged"),
            None,
            LIMITS,
            (3, "Error", ""),
            id="too many words",
        ),
        pytest.param(
            Exited(guest="g", exit_code=3),
            report("outOfFuel", "x", memory_refused=True),
            None,
            Limits(),
            (3, "Error", "x"),
            id="limits that it has not",
        ),
        pytest.param(
            Exited(guest="g", exit_code=3),
            report("outOfFuel", "x"),
            None,
            LIMITS,
            (3, "Error", "x"),
            id="fuel without a trap",
        ),
    ],
)
def test_ends(
    exited: Exited, said: Report | None, kill: Kill | None, limits: Limits, expected: tuple[int, str, str]
) -> None:
    end = guest_exit(exited, said, kill, limits=limits, finished_at=NOW)
    assert (end.exit_code, end.reason, end.message) == expected
    assert end.finished_at == NOW


def test_what_it_used_is_passed_on() -> None:
    exited = Exited(guest="g", exit_code=0, max_rss_bytes=1 << 20, cpu_nanoseconds=5)
    end = guest_exit(exited, None, None, limits=LIMITS, finished_at=NOW)
    assert (end.peak_memory_bytes, end.cpu_nanoseconds) == (1 << 20, 5)
    unknown = guest_exit(Exited(guest="g", exit_code=0), None, None, limits=LIMITS, finished_at=NOW)
    assert (unknown.peak_memory_bytes, unknown.cpu_nanoseconds) == (None, None)


@pytest.mark.parametrize(("bytes_", "shown"), [(3 << 30, "3Gi"), (1536 << 10, "1536Ki"), (1000, "1000"), (0, "0")])
def test_a_limit_is_shown_as_it_is_written(bytes_: int, shown: str) -> None:
    end = guest_exit(
        Exited(guest="g", exit_code=1),
        report("exited", memory_refused=True),
        None,
        limits=Limits(memory_bytes=bytes_),
        finished_at=NOW,
    )
    assert end.message == f"wanted more memory than its limit, {shown}"


@pytest.mark.parametrize(
    ("millicores", "nice"), [(None, 19), (0, 19), (1, 19), (20, 18), (100, 10), (500, 3), (1000, 0), (64_000, 0)]
)
def test_weight_as_niceness(millicores: int | None, nice: int) -> None:
    assert nice_value(millicores) == nice
