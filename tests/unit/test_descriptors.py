"""The table of descriptors, in a process of its own: a table never shrinks."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys
from wherry_runner.execution import process

def size():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("FDSize:"))

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
before = size()
process.make_room_for_descriptors(int(sys.argv[2]))
print(before, size())
"""


@pytest.mark.parametrize(("limit", "count", "least"), [(4096, 4096, 4096), (4096, 2000, 2000), (1024, 4096, 1024)])
def test_the_table_is_large_before_it_is_needed(limit: int, count: int, least: int) -> None:
    command = [sys.executable, "-c", _SCRIPT, str(limit), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < least <= after
