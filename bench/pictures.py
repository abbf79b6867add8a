"""Makes the picture of docs/performance.md of what `make bench-node ARGS=--record` wrote.

.venv/bin/python -m bench.pictures           bench/node_pods.json → docs/performance.svg
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

RECORD = ROOT / "bench" / "node_pods.json"

PICTURE = ROOT / "docs" / "performance.svg"

WIDTH, LABELS, ROW, BAR = 860, 330, 58, 15

OURS, PEER = "#3d7a5a", "#9aa4b1"


def picture(record: dict[str, Any]) -> str:
    """Each ratio as two bars, a module's and a container's; the longer one is as wide as there is room."""
    ratios = record["ratios"]
    height = ROW * len(ratios) + 40
    room = WIDTH - LABELS - 110
    rows = []
    for number, item in enumerate(ratios):
        top, largest = 34 + number * ROW, max(item["ours"], item["peer"])
        rows.append(f'<text x="8" y="{top + 14}">{escape(item["what"])}</text>')
        rows.append(f'<text x="8" y="{top + 31}" class="faint">{item["value"]:.2f} x, {escape(_promise(item))}</text>')
        for line, (value, colour) in enumerate(((item["ours"], OURS), (item["peer"], PEER))):
            y, width = top + line * (BAR + 3), max(2.0, room * value / largest)
            rows.append(f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
            rows.append(f'<text x="{LABELS + width + 6:.1f}" y="{y + 12}">{_number(value)} {item["unit"]}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
            "<title>Modules against containers, on one node, in one run</title>",
            "<style>text { font: 13px system-ui, sans-serif; fill: #24292f } .faint { fill: #57606a }</style>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<rect x="{LABELS}" y="8" width="{BAR}" height="{BAR}" fill="{OURS}"/>',
            f'<text x="{LABELS + 22}" y="20">module</text>',
            f'<rect x="{LABELS + 100}" y="8" width="{BAR}" height="{BAR}" fill="{PEER}"/>',
            f'<text x="{LABELS + 122}" y="20">container</text>',
            *rows,
            "</svg>\n",
        ]
    )


def _promise(item: dict[str, Any]) -> str:
    if item["at_most"] is not None:
        return f"must be ≤ {item['at_most']:g} x"
    return f"must be ≥ {item['at_least']:g} x" if item["at_least"] is not None else "no promise"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    PICTURE.write_text(picture(json.loads(RECORD.read_text())))
    print(f"wrote {PICTURE.relative_to(ROOT)}")
