"""WebAssembly in its text format, made to order: components, and core modules that no C compiler makes.

(Everyday core modules are in `tests/support/wat.py`.)
"""

from __future__ import annotations


def component(
    *,
    says: str = "hello from a component\n",
    complains: str = "",
    ends: str = "ok",
    imports: str = "",
    exports_as: str = "wasi:cli/run@0.2.0",
) -> str:
    """A WASI 0.2 command: writes to stdout and stderr, and then `ends`: ok, err, exit (wasi:cli/exit), trap."""
    after = {
        "ok": "(i32.const 0)",
        "err": "(i32.const 1)",
        "exit": "(call $exit (i32.const 1)) (i32.const 0)",
        "trap": "unreachable",
    }[ends]
    return f"""(component
  {imports}
  (import "wasi:io/error@0.2.0" (instance $errors (export "error" (type (sub resource)))))
  (alias export $errors "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $stream (sub resource)))
    (alias outer 1 $error (type $outer-error))
    (export "error" (type $error (eq $outer-error)))
    (type $failure (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $failure)))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $stream)) (param "contents" (list u8)) (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $stream))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (alias outer 1 $stream (type $outer)) (export "output-stream" (type $s (eq $outer)))
    (export "get-stdout" (func (result (own $s))))))
  (import "wasi:cli/stderr@0.2.0" (instance $stderr
    (alias outer 1 $stream (type $outer)) (export "output-stream" (type $s (eq $outer)))
    (export "get-stderr" (func (result (own $s))))))
  (import "wasi:cli/exit@0.2.0" (instance $exiting (export "exit" (func (param "status" (result))))))
  (core module $libc (memory (export "memory") 1))
  (core instance $libc (instantiate $libc))
  (core func $stdout (canon lower (func $stdout "get-stdout")))
  (core func $stderr (canon lower (func $stderr "get-stderr")))
  (core func $exit (canon lower (func $exiting "exit")))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush")
    (memory (core memory $libc "memory"))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "stdout" (func $stdout (result i32)))
    (import "host" "stderr" (func $stderr (result i32)))
    (import "host" "exit" (func $exit (param i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (data (i32.const 64) "{_escaped(says)}")
    (data (i32.const 4096) "{_escaped(complains)}")
    (func $greet (call $write (call $stdout) (i32.const 64) (i32.const {len(says)}) (i32.const 0)))
    (func $grumble (call $write (call $stderr) (i32.const 4096) (i32.const {len(complains)}) (i32.const 0)))
    (func $crash {after if ends == "trap" else ""})
    (func (export "run") (result i32) (call $greet) (call $grumble) (call $crash) {after}))
  (core instance $main (instantiate $main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "stdout" (func $stdout)) (export "stderr" (func $stderr)) (export "exit" (func $exit))
      (export "write" (func $write))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $run (export "run" (func $run)))
  (export "{exports_as}" (instance $run)))"""


OUTGOING_HTTP = """
  (import "wasi:http/outgoing-handler@0.2.0" (instance (export "nothing" (func))))"""
"""An import that no guest of ours is given."""

TCP_SOCKETS = """
  (import "wasi:sockets/network@0.2.0" (instance $network (export "network" (type (sub resource)))))
  (alias export $network "network" (type $net))
  (import "wasi:sockets/instance-network@0.2.0" (instance
    (alias outer 1 $net (type $outer)) (export "network" (type $n (eq $outer)))
    (export "instance-network" (func (result (own $n))))))"""
"""Imports that come with the standard libraries of Rust and Go, used or not."""

SPINS_AT_START = """(module
  (memory (export "memory") 1)
  (func $spin (loop $again (br $again)))
  (start $spin)
  (func (export "_start")))"""
"""Runs forever before its `_start`, in the module's own start function."""

LIBRARY = """(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"""

REACTOR = """(module (func (export "_initialize")) (func (export "handle")) (memory (export "memory") 1))"""

PREVIEW_0 = """(module (import "wasi_unstable" "proc_exit" (func (param i32))) (func (export "_start")))"""

UNKNOWN_IMPORT = """(module (import "wasi_snapshot_preview1" "sock_open" (func (param i32) (result i32)))
  (func (export "_start")) (memory (export "memory") 1))"""
"""A function of one runtime's own, under WASI's name."""


def _escaped(text: str) -> str:
    return "".join(f"\\{byte:02x}" for byte in text.encode())
