"""Small modules in WebAssembly's text format, made to order."""

from __future__ import annotations

from pathlib import Path

import wasmtime

_IMPORTS = """
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
"""


def exits(code: int, *, says: str = "a line") -> str:
    """Prints a line and exits with a code."""
    return _module(says, f"(call $proc_exit (i32.const {code}))")


def traps(*, says: str = "about to trap") -> str:
    """Prints a line and executes `unreachable`."""
    return _module(says, "unreachable")


def sleeps(says: str = "awake", *, seconds: int = 3600, then_exits: int = 0) -> str:
    """Prints a line, sleeps, and exits with a code."""
    # A clock subscription of 48 bytes at 1024: userdata, tag 0 (clock), clock 1 (monotonic), timeout, precision, flags 0.
    body = f"""
    (i32.store (i32.const 1040) (i32.const 1))
    (i64.store (i32.const 1048) (i64.const {seconds * 10**9}))
    (drop (call $poll_oneoff (i32.const 1024) (i32.const 1104) (i32.const 1) (i32.const 1200)))
    (call $proc_exit (i32.const {then_exits}))"""
    return _module(says, body)


def echoes(says: str = "ready", *, exits: int = 0, reads: int = 0) -> str:
    """Prints a line, then whatever it reads to stdout and to stderr, and exits with a code at the end of its input.

    `reads`: after so many it exits in any case.
    """
    body = f"""
    (block $over
      (loop $again
        (i32.store (i32.const 16) (i32.const 2048))
        (i32.store (i32.const 20) (i32.const 1024))
        (drop (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 20)))
        (br_if $over (i32.eqz (i32.load (i32.const 20))))
        (drop (call $fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 8)))
        (drop (call $fd_write (i32.const 2) (i32.const 16) (i32.const 1) (i32.const 8)))
        (i32.store (i32.const 24) (i32.add (i32.load (i32.const 24)) (i32.const 1)))
        (br_if $over (i32.eq (i32.load (i32.const 24)) (i32.const {reads})))
        (br $again)))
    (call $proc_exit (i32.const {exits}))"""
    return _module(says, body)


def spins(*, says: str = "spinning") -> str:
    """Prints a line, and then neither ends nor calls its host."""
    return _module(says, "(loop $again (br $again))")


def binary(text: str) -> bytes:
    """The module in binary form."""
    return bytes(wasmtime.wat2wasm(text))


def write(text: str, path: Path) -> Path:
    """Write a module as a binary file, and return its path."""
    path.write_bytes(binary(text))
    return path


def _module(says: str, body: str) -> str:
    line = (says + "\n").encode()
    escaped = "".join(f"\\{byte:02x}" for byte in line)
    return f"""(module {_IMPORTS}
  (data (i32.const 64) "{escaped}")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const {len(line)}))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    {body}))
"""
