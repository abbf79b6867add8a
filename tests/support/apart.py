"""Runs something in a child process with a network of its own, where addresses other than loopback's are this machine's.

A guest is never to reach loopback by a name; so what names lead to is tested with other addresses, and without a packet
that leaves the machine.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

ADDRESSES = ("198.51.100.7", "10.1.2.3")
"""Of the child's machine, beside loopback's: of TEST-NET-2 (RFC 5737), and a private one."""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000
_SIOCSIFFLAGS, _SIOCSIFADDR = 0x8914, 0x8916
_IFF_UP = 1


def run(work: Callable[[], None]) -> None:
    """Do it in a child with a network of its own. Raises AssertionError if it fails there; its traceback is on stderr."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _go_apart()
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "it failed in its own network (see stderr)"


def _go_apart() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    flags = _CLONE_NEWNET if user == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "no network of its own is allowed here (unshare)")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for number, address in enumerate(ADDRESSES):
            name = f"lo:{number}".encode()
            request = struct.pack("16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(any_socket, _SIOCSIFADDR, request)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
