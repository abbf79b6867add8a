"""Processes whose wall clock is set while they run, as on a machine whose date somebody or NTP corrects."""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


class JumpingClock:
    """What all processes with `environment` take for the date. Needs a C compiler; a static program is not deceived."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        library, file = folder / "jumping_clock.so", folder / "seconds-ahead"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, _SOURCE], check=True)
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._ahead = mmap.mmap(opened.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(file)}
        """For whom the clock is."""

    def jump(self, seconds_ahead: int) -> None:
        """Set it to so many seconds ahead of the true time; 0: to the true time."""
        self._ahead[:] = struct.pack("=q", seconds_ahead)
