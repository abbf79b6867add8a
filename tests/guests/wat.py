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
    """A WASI 0.2 command: writes to stdout and stderr, and then `ends`: ok, err, exit (wasi:cli/exit), code (42), trap."""
    after = {
        "ok": "(i32.const 0)",
        "err": "(i32.const 1)",
        "exit": "(call $exit (i32.const 1)) (i32.const 0)",
        "code": "(call $exit-with-code (i32.const 42)) (i32.const 0)",
        "trap": "unreachable",
    }[ends]
    # Behind a feature gate of WASI: asked for only where it is used.
    with_code = ends == "code"
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
  (import "wasi:cli/exit@0.2.0" (instance $exiting (export "exit" (func (param "status" (result))))
    {'(export "exit-with-code" (func (param "status-code" u8)))' if with_code else ""}))
  (core module $libc (memory (export "memory") 1))
  (core instance $libc (instantiate $libc))
  (core func $stdout (canon lower (func $stdout "get-stdout")))
  (core func $stderr (canon lower (func $stderr "get-stderr")))
  (core func $exit (canon lower (func $exiting "exit")))
  {'(core func $exit-with-code (canon lower (func $exiting "exit-with-code")))' if with_code else ""}
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush")
    (memory (core memory $libc "memory"))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "stdout" (func $stdout (result i32)))
    (import "host" "stderr" (func $stderr (result i32)))
    (import "host" "exit" (func $exit (param i32)))
    {'(import "host" "exit-with-code" (func $exit-with-code (param i32)))' if with_code else ""}
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
      {'(export "exit-with-code" (func $exit-with-code))' if with_code else ""}
      (export "write" (func $write))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $run (export "run" (func $run)))
  (export "{exports_as}" (instance $run)))"""


def component_that_writes(size: int, *, flushes: bool) -> str:
    """A WASI 0.2 command that writes so many bytes `x` to stdout, each time as many as it is allowed, and returns."""
    pages = size // 65536 + 2
    return f"""(component
  (import "wasi:io/error@0.2.0" (instance $errors (export "error" (type (sub resource)))))
  (alias export $errors "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $stream (sub resource)))
    (alias outer 1 $error (type $outer-error))
    (export "error" (type $error (eq $outer-error)))
    (type $failure (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $failure)))
    (export "[method]output-stream.check-write"
      (func (param "self" (borrow $stream)) (result (result u64 (error $stream-error)))))
    (export "[method]output-stream.write"
      (func (param "self" (borrow $stream)) (param "contents" (list u8)) (result (result (error $stream-error)))))
    (export "[method]output-stream.blocking-flush"
      (func (param "self" (borrow $stream)) (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $stream))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (alias outer 1 $stream (type $outer)) (export "output-stream" (type $s (eq $outer)))
    (export "get-stdout" (func (result (own $s))))))
  (core module $libc (memory (export "memory") {pages}))
  (core instance $libc (instantiate $libc))
  (core func $stdout (canon lower (func $stdout "get-stdout")))
  (core func $check (canon lower (func $streams "[method]output-stream.check-write")
    (memory (core memory $libc "memory"))))
  (core func $write (canon lower (func $streams "[method]output-stream.write")
    (memory (core memory $libc "memory"))))
  (core func $flush (canon lower (func $streams "[method]output-stream.blocking-flush")
    (memory (core memory $libc "memory"))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "stdout" (func $stdout (result i32)))
    (import "host" "check" (func $check (param i32 i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (import "host" "flush" (func $flush (param i32 i32)))
    (func (export "run") (result i32) (local $stream i32) (local $left i32) (local $now i32)
      (memory.fill (i32.const 1024) (i32.const 120) (i32.const {size}))
      (local.set $stream (call $stdout))
      (local.set $left (i32.const {size}))
      (loop $again
        (call $check (local.get $stream) (i32.const 0))
        (if (i32.load8_u (i32.const 0)) (then (return (i32.const 1))))
        (local.set $now (i32.wrap_i64 (i64.load (i32.const 8))))
        (if (i32.gt_u (local.get $now) (local.get $left)) (then (local.set $now (local.get $left))))
        (if (local.get $now) (then
          (call $write (local.get $stream) (i32.const 1024) (local.get $now) (i32.const 0))
          (if (i32.load8_u (i32.const 0)) (then (return (i32.const 1))))
          (local.set $left (i32.sub (local.get $left) (local.get $now)))))
        (if (i32.or (i32.const {int(flushes)}) (i32.eqz (local.get $now))) (then
          (call $flush (local.get $stream) (i32.const 0))
          (if (i32.load8_u (i32.const 0)) (then (return (i32.const 1))))))
        (br_if $again (local.get $left)))
      (i32.const 0)))
  (core instance $main (instantiate $main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "stdout" (func $stdout)) (export "check" (func $check)) (export "write" (func $write))
      (export "flush" (func $flush))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $run)))"""


COMPONENT_THAT_SAYS_WHERE_IT_IS = """(component
  (import "wasi:cli/environment@0.2.0" (instance $environment
    (export "initial-cwd" (func (result (option string))))))
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
  (core module $libc
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
  (core instance $libc (instantiate $libc))
  (core func $stdout (canon lower (func $stdout "get-stdout")))
  (core func $cwd (canon lower (func $environment "initial-cwd")
    (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush")
    (memory (core memory $libc "memory"))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "stdout" (func $stdout (result i32)))
    (import "host" "cwd" (func $cwd (param i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (func (export "run") (result i32)
      (call $cwd (i32.const 0))
      (if (i32.load8_u (i32.const 0)) (then
        (call $write (call $stdout) (i32.load (i32.const 4)) (i32.load (i32.const 8)) (i32.const 16))))
      (i32.const 0)))
  (core instance $main (instantiate $main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "stdout" (func $stdout)) (export "cwd" (func $cwd)) (export "write" (func $write))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $run)))"""
"""Prints its initial working directory, where it has one."""


def command(body: str, *, around: str = "") -> str:
    """A core module whose `_start` is `body`, with `around` beside it."""
    return f"""(module {around} (memory (export "memory") 1) (func $start (export "_start") {body}))"""


TRAPS = {
    "wasm `unreachable` instruction executed": command("unreachable"),
    "out of bounds memory access": command("(drop (i32.load (i32.const 0xfffffff0)))"),
    "integer divide by zero": command("(drop (i32.div_s (i32.const 1) (i32.const 0)))"),
    "integer overflow": command("(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))"),
    "invalid conversion to integer": command("(drop (i32.trunc_f32_s (f32.const nan)))"),
    "undefined element: out of bounds table access": command(
        "(call_indirect (i32.const 7))", around="(table 1 funcref)"
    ),
    "uninitialized element": command("(call_indirect (i32.const 0))", around="(table 1 funcref)"),
    "indirect call type mismatch": command(
        "(call_indirect (i32.const 0))",
        around="(table 1 funcref) (func $other (result i32) (i32.const 1)) (elem (i32.const 0) $other)",
    ),
    "call stack exhausted": command("(call $deeper)", around="(func $deeper (call $deeper))"),
}
"""What WebAssembly forbids, by the words that wasmtime has for it."""

DATA_BEYOND_MEMORY = """(module (memory (export "memory") 1) (data (i32.const 70000) "x") (func (export "_start")))"""
"""It can't be instantiated."""


def memories(count: int, *, pages: int) -> str:
    """A module with so many memories from the start."""
    others = f"(memory {pages})" * (count - 1)
    return f"""(module (memory (export "memory") {pages}) {others} (func (export "_start")))"""


def growing_memories(count: int, *, pages: int) -> str:
    """Grows each of its memories once; its exit code is how many growths succeeded."""
    grow = "(local.set $n (i32.add (local.get $n) (i32.ne (memory.grow {} (i32.const {})) (i32.const -1))))"
    return f"""(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 0) {"(memory 0)" * (count - 1)}
  (func (export "_start") (local $n i32)
    {"".join(grow.format(number, pages) for number in range(count))}
    (call $exit (local.get $n))))"""


def growing_table(elements: int) -> str:
    """Grows a table; exit code 1 if that was refused."""
    return f"""(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1) (table $t 0 funcref)
  (func (export "_start")
    (call $exit (i32.eq (table.grow $t (ref.null func) (i32.const {elements})) (i32.const -1)))))"""


OUTGOING_HTTP = """
  (import "wasi:http/types@0.2.0" (instance (export "fields" (type (sub resource)))))"""
"""An import that only the native executor gives."""

TCP_SOCKETS = """
  (import "wasi:sockets/network@0.2.0" (instance $network (export "network" (type (sub resource)))))
  (alias export $network "network" (type $net))
  (import "wasi:sockets/instance-network@0.2.0" (instance
    (alias outer 1 $net (type $outer)) (export "network" (type $n (eq $outer)))
    (export "instance-network" (func (result (own $n))))))"""
"""Imports that come with the standard libraries of Rust and Go, used or not."""

COMMAND_03 = """(component
  (core module $m (func (export "run") (result i32) (i32.const 0)))
  (core instance $i (instantiate $m))
  (func $run async (result (result)) (canon lift (core func $i "run")))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.3.0" (instance $run)))"""
"""A command of WASI 0.3, whose `run` is an async function."""

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
