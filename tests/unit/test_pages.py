"""The documentation's console examples, as tests read them, and the picture of a recording."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from bench.pictures import picture
from demos.recording import LONGEST_PAUSE_SECONDS, image, shortened
from tests.support import pages

PAGE = """\
# A page

## First

```c
int main(void);
```

```console
$ kubectl apply -f a.yaml
a created
$ kubectl create x \\
    --name=a
$ kubectl apply -f - <<'END'
kind: A
END
$ kubectl get a
NAME   READY   NODE     AGE
a      1/1     node-a   1s
…
```

## Second
"""


def test_commands_are_read_with_all_their_lines_and_what_they_print(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    text = pages.section(page, "First")
    assert pages.examples(text, "c") == ["int main(void);\n"]
    assert [(each.text, each.told) for each in pages.commands(text)] == [
        ("kubectl apply -f a.yaml", ("a created",)),
        ("kubectl create x \\\n    --name=a", ()),
        ("kubectl apply -f - <<'END'\nkind: A\nEND", ()),
        ("kubectl get a", ("NAME   READY   NODE     AGE", "a      1/1     node-a   1s", "…")),
    ]


def test_a_table_is_shown_whatever_its_age_and_node(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    *_, table = pages.commands(pages.section(page, "First"))
    assert table.shows("NAME READY NODE AGE\na 1/1 other 5m\nb 1/1 other 5m\n")
    assert not table.shows("NAME READY NODE AGE\na 0/1 other 5m\n")
    assert not table.shows("")


def test_a_recording_shows_every_line_and_shortens_pauses() -> None:
    lines = shortened([(0.0, "$ make demo"), (100.0, "# <said>"), (100.5, "x" * 500)])
    assert [at for at, _ in lines] == [0.0, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS + 0.5]
    texts = [each.text or "" for each in ElementTree.fromstring(image(lines)).iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:2] == ["$ make demo", "# <said>"]
    assert texts[2].endswith("x…")


def test_the_picture_has_two_bars_for_each_ratio() -> None:
    ratio = {"what": "memory & more", "ours": 1.0, "peer": 10.0, "unit": "KiB", "at_most": 0.2, "at_least": None}
    root = ElementTree.fromstring(picture({"ratios": [{**ratio, "value": 0.1}]}))
    widths = [float(each.get("width", "0")) for each in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[-1] == 10 * widths[-2]
