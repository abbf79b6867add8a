"""What a guest's end means: from how its process ended, its last word and its limits to what its container's status says.

Pure. Of the last word only what fits the process's own end is believed: a guest that broke out of its module could write
anything there, and must gain no more by it than another message.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from datetime import datetime

from wherry_runner.execution.channel import Exited, Report
from wherry_runner.execution.engine import KILLED_EXIT_CODE, TRAP_EXIT_CODE, GuestExit, Limits

_WEAKEST = 19
"""The highest nice value: the least CPU."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Why we ended a guest."""

    reason: str
    message: str


def guest_exit(
    message: Exited, report: Report | None, kill: Kill | None, *, limits: Limits, finished_at: datetime
) -> GuestExit:
    """How a guest ended."""
    code, reason, text = _ended(message, report, kill, limits)
    return GuestExit(
        exit_code=code,
        reason=reason,
        message=text,
        finished_at=finished_at,
        peak_memory_bytes=message.max_rss_bytes or None,
        cpu_nanoseconds=message.cpu_nanoseconds or None,
    )


def _ended(message: Exited, report: Report | None, kill: Kill | None, limits: Limits) -> tuple[int, str, str]:
    """Exit code, reason, message."""
    if message.signal == signal.SIGKILL:
        if kill is not None:
            return KILLED_EXIT_CODE, kill.reason, kill.message
        return KILLED_EXIT_CODE, "Error", "its process was killed from outside (SIGKILL)"
    if message.signal is not None or message.exit_code is None:
        return 128 + (message.signal or 0), "Error", f"its process died of {_signal_name(message.signal or 0)}"
    code = message.exit_code & 0xFF
    if code == 0:
        return 0, "Completed", ""
    if report is None:
        return code, "Error", ""
    said = "" if report.outcome == "exited" else report.message
    if report.memory_refused and limits.memory_bytes is not None:
        text = f"wanted more memory than its limit, {_binary(limits.memory_bytes)}"
        return KILLED_EXIT_CODE, "OOMKilled", f"{text}\n{said}".rstrip()
    if report.outcome == "outOfFuel" and limits.fuel is not None and code == TRAP_EXIT_CODE:
        return code, "OutOfFuel", f"used up its fuel, {limits.fuel}\n{said}".rstrip()
    return code, "Error", said


def nice_value(cpu_weight_millicores: int | None) -> int:
    """The nice value, 0 to 19, that gives about this weight against others: each step is a factor of 1.25 (sched(7)).

    A whole core's weight, and any above, is 0: an unprivileged process can't be given more than its parent has.
    """
    if not cpu_weight_millicores:
        return _WEAKEST
    return max(0, min(_WEAKEST, round(math.log(1000 / cpu_weight_millicores, 1.25))))


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _binary(size: int) -> str:
    """Bytes as a limit is written: 64Mi, 1500000."""
    for unit, shift in (("Gi", 30), ("Mi", 20), ("Ki", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)
