"""The image that holds a Pod's namespaces: ten lines of C, static, FROM nothing.

The machine's C compiler makes it; where there is none that links statically, zig's does, which takes a minute at first.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster.errors import BuildFailed
from tests.cluster.images import archive
from tests.cluster.images.cache import cached
from tests.cluster.nodeparts import PAUSE_IMAGE

_SOURCE = Path(__file__).with_suffix(".c")

_FLAGS = ("-static", "-Os", "-s")

_ZIG = (sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-musl")


def archive_file() -> Path:
    """Return the image's tar, as `ctr images import` takes it; built at first, in seconds.

    :raises BuildFailed: the compilers refused.
    """
    ingredients = repr((_SOURCE.read_bytes(), _FLAGS, PAUSE_IMAGE))
    return cached("pause", ingredients, _make) / "pause.tar"


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        program, layer, layout = (Path(work) / each for each in ("pause", "layer.tar", "layout"))
        _compile(program)
        archive.tar(layer, {"pause": program})
        archive.write_layout(layout, PAUSE_IMAGE, layer, {"Entrypoint": ["/pause"], "User": "65535"})
        archive.tar_layout(layout, folder / "pause.tar")


def _compile(program: Path) -> None:
    machines = shutil.which("cc")
    compilers = [(machines,), _ZIG] if machines else [_ZIG]
    for compiler in compilers:
        done = subprocess.run(
            [*compiler, *_FLAGS, "-o", str(program), str(_SOURCE)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
    raise BuildFailed(f"can't compile {_SOURCE}:\n{done.stderr}")
