"""What a bench prints: ratios against a named peer measured in the same run, figures beside them, and whether one was missed."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One promise: ours over the peer's, within a limit."""

    what: str
    ours: float
    peer: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def value(self) -> float:
        """Ours in relation to the peer's."""
        return self.ours / self.peer

    @property
    def kept(self) -> bool:
        """Whether the promise holds."""
        over = self.at_most is not None and self.value > self.at_most
        under = self.at_least is not None and self.value < self.at_least
        return not (over or under)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number, with the limit that it must keep if there is one."""

    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def kept(self) -> bool:
        """Whether it is within its limit."""
        over = self.at_most is not None and self.value > self.at_most
        under = self.at_least is not None and self.value < self.at_least
        return not (over or under)


@dataclass
class Report:
    """All that one run measured."""

    ratios: list[Ratio] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def ratio(self, what: str, ours: float, peer: float, unit: str, **limit: float) -> None:
        """Note a ratio, and print it at once: a run takes minutes."""
        made = Ratio(what=what, ours=ours, peer=peer, unit=unit, **limit)
        self.ratios.append(made)
        print(f"  {_ratio_line(made)}", flush=True)

    def figure(self, what: str, value: float, unit: str, **limit: float) -> None:
        """Note a figure, and print it at once."""
        made = Figure(what=what, value=value, unit=unit, **limit)
        self.figures.append(made)
        print(f"  {_figure_line(made)}", flush=True)

    def markdown(self) -> str:
        """The tables of bench/README.md."""
        lines = ["| | ours | peer | ratio | must be |", "|---|---|---|---|---|"]
        for item in self.ratios:
            missed = "" if item.kept else " **missed**"
            lines.append(
                f"| {item.what} | {_number(item.ours)} {item.unit} | {_number(item.peer)} {item.unit} | "
                f"{item.value:.2f} x | {_limit(item, ' x')}{missed} |"
            )
        lines += ["", "| | | must be |", "|---|---|---|"]
        for figure in self.figures:
            missed = "" if figure.kept else " **missed**"
            lines.append(
                f"| {figure.what} | {_number(figure.value)} {figure.unit} | {_limit(figure, f' {figure.unit}')}{missed} |"
            )
        return "\n".join(lines)

    def conclude(self, setting: str, *, binding: bool = True) -> None:
        """Print the tables and where they are from; ends the process with 1 where a promise was missed, if they are binding."""
        python = f"Python {platform.python_version()}"
        print(f"\n{os.cpu_count()} cores, Linux {platform.release()}, {python}, {setting}\n")
        print(self.markdown())
        if binding and self.missed:
            sys.exit("missed:\n  " + "\n  ".join(self.missed))

    def record(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            "ratios": [{**asdict(each), "value": each.value} for each in self.ratios],
            "figures": [asdict(each) for each in self.figures],
        }

    @property
    def missed(self) -> list[str]:
        """What was promised and not kept."""
        return [_ratio_line(item) for item in self.ratios if not item.kept] + [
            _figure_line(item) for item in self.figures if not item.kept
        ]


def given(parser: argparse.ArgumentParser, known: Collection[str]) -> argparse.Namespace:
    """The command line, with `sections`: those that it names, or all that are known."""
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(known)}; default: all")
    found = parser.parse_args()
    if unknown := set(found.sections) - set(known):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    found.sections = found.sections or list(known)
    return found


def p50(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    """The 99th percentile, by the nearest rank."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def _ratio_line(item: Ratio) -> str:
    return (
        f"{item.what}: {_number(item.ours)} {item.unit} against {_number(item.peer)} {item.unit}: {item.value:.2f} x"
        f"{_judged(item, ' x')}"
    )


def _figure_line(item: Figure) -> str:
    return f"{item.what}: {_number(item.value)} {item.unit}{_judged(item, f' {item.unit}')}"


def _judged(item: Ratio | Figure, unit: str) -> str:
    limit = _limit(item, unit)
    return f" ({limit}{'' if item.kept else ': MISSED'})" if limit else ""


def _limit(item: Ratio | Figure, unit: str) -> str:
    if item.at_most is not None:
        return f"≤ {item.at_most:g}{unit}"
    return f"≥ {item.at_least:g}{unit}" if item.at_least is not None else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
