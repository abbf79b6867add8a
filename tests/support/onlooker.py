"""Runs a guest, and looks at its process as another process of the same user.

`python -m tests.support.onlooker EXECUTOR FOLDER` prints a JSON object: what confines guests here, how a short guest ended,
and what could be had of a running guest and, for comparison, of a plain process.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.runner.harness import bench
from tests.support import wat

_PTRACE_SEIZE, _PTRACE_DETACH = 0x4206, 17

_libc = ctypes.CDLL(None, use_errno=True)


def _ptrace(pid: int) -> None:
    if _libc.ptrace(_PTRACE_SEIZE, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "")


def _read_memory(pid: int) -> None:
    with open(f"/proc/{pid}/maps") as file:
        start = next(int(line.split("-")[0], 16) for line in file if " r" in line)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        memory.read(8)


LOOKS: dict[str, Callable[[int], object]] = {
    "open its memory": lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)),
    "read its memory": _read_memory,
    "see its descriptors": lambda pid: os.readlink(f"/proc/{pid}/fd/0"),
    "read its environment": lambda pid: Path(f"/proc/{pid}/environ").read_bytes(),
    "ptrace it": _ptrace,
}


def look(pid: int) -> dict[str, str]:
    """What comes of each: `ok` or the name of an errno. By a child, whose end also ends what it traces."""
    results = {}
    for name, attempt in LOOKS.items():
        child = os.fork()
        if child == 0:
            try:
                attempt(pid)
                os._exit(0)
            except OSError as error:
                os._exit(error.errno or 255)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        results[name] = errno.errorcode[code] if code else "ok"
    return results


def threads(pid: int) -> list[dict[str, str]]:
    """What the kernel says of each of a process's threads."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return [dict(re.findall(r"^(Seccomp|NoNewPrivs|Threads|Uid|CapEff):\t(.*)$", text, re.MULTILINE)) for text in texts]


async def main(executor: str, folder: Path, plain: int) -> None:
    """Run it, beside a plain process."""
    async with bench(executor, folder, folder / "store") as opened:
        short = await opened.run(wat.binary(wat.exits(3, says="short")))
        guest = await opened.start(wat.binary(wat.sleeps(says="awake")))
        await opened.said(guest, b"awake\n")
        seen = {
            "confinement": opened.engine.confinement.model_dump(),
            "exit code": short.exit.exit_code,
            "message": short.exit.message,
            "text": short.text(),
            "threads": threads(guest.pid),
            "had of the guest": look(guest.pid),
            "had of a plain process": look(plain),
        }
        guest.guest.kill()
        await guest.guest.wait()
    print(json.dumps(seen))


if __name__ == "__main__":
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        asyncio.run(main(sys.argv[1], Path(sys.argv[2]), process.pid))
