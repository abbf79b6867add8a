"""Runs `make demo` and makes an image of it: what the terminal showed, line by line, at the time at which it did.

    .venv/bin/python -m demos.recording          writes docs/demo.svg

Nothing is invented: each line is one that the demo printed. Only long lines are cut, and pauses shortened.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

IMAGE = ROOT / "docs" / "demo.svg"

COLUMNS = 118

LONGEST_PAUSE_SECONDS = 1.5

STAYS_SECONDS = 8.0
"""The last line, before it begins again."""

CHARACTER, LINE, MARGIN = 7.8, 17, 14
"""In pixels, of a monospaced font of 13."""

_STYLE = """\
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d6dbe1; white-space: pre }
.typed { fill: #ffffff; font-weight: bold }
.said { fill: #8fc7a3 }
@media (prefers-reduced-motion: no-preference) { text { animation: shown TOTALs step-end infinite; opacity: 0 } }
"""


def record(command: Sequence[str]) -> list[tuple[float, str]]:
    """Run a command, and return each line that it prints, with the seconds since its start.

    :raises subprocess.CalledProcessError: it failed.
    """
    began = time.monotonic()
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic() - began, line.rstrip("\n")))
            print(line, end="", flush=True)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return lines


def shortened(lines: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The same lines with no pause longer than it takes to read on."""
    found, now, before = [], 0.0, 0.0
    for at, text in lines:
        now += min(at - before, LONGEST_PAUSE_SECONDS)
        before = at
        found.append((now, text))
    return found


def image(lines: Sequence[tuple[float, str]]) -> str:
    """The lines as an SVG image: each appears at its time, and all stand there where nothing moves."""
    total = (lines[-1][0] if lines else 0.0) + STAYS_SECONDS
    width = round(COLUMNS * CHARACTER + 2 * MARGIN)
    height = len(lines) * LINE + 2 * MARGIN
    times = sorted({at for at, _ in lines})
    frames = [
        f"@keyframes at{number} {{ 0% {{ opacity: 0 }} {at / total:.2%} {{ opacity: 1 }} }}"
        for number, at in enumerate(times)
    ]
    body = []
    for row, (at, text) in enumerate(lines):
        kind = "typed" if text.startswith("$ ") else "said" if text.startswith("# ") else ""
        shown = text if len(text) <= COLUMNS else f"{text[: COLUMNS - 1]}…"
        style = f"animation-name: at{times.index(at)}"
        place = f'x="{MARGIN}" y="{MARGIN + row * LINE + 12}"'
        body.append(f'<text {place} class="{kind}" style="{style}">{escape(shown)}</text>')
    style = _STYLE.replace("TOTAL", f"{total:.1f}").replace("shown ", "at0 ")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            "<title>make demo, in a terminal</title>",
            f"<style>{style}{''.join(frames)}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#1d2229"/>',
            *body,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Record, and write the image."""
    IMAGE.write_text(image(shortened([(0.0, "$ make demo"), *record([sys.executable, "-m", "demos.demo"])])))
    print(f"wrote {IMAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
