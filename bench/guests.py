"""The modules that the runner's benches run."""

from __future__ import annotations

IDLE = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\06\\00\\00\\00")
  (data (i32.const 16) "ready\\0a")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
    ;; a subscription to the monotonic clock, one day from now
    (i32.store8 (i32.const 136) (i32.const 0))
    (i32.store (i32.const 144) (i32.const 1))
    (i64.store (i32.const 152) (i64.const 86400000000000))
    (loop $again (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 320))) (br $again))))"""
"""Prints a line, then sleeps for ever: the least that a module can be."""


def lines(length: int, count: int) -> str:
    """A command that writes `count` lines of `length` bytes, newline included, one write each."""
    return f"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start") (local $left i32)
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const {length}))
    (memory.fill (i32.const 1024) (i32.const 120) (i32.const {length - 1}))
    (i32.store8 (i32.const {1024 + length - 1}) (i32.const 10))
    (local.set $left (i32.const {count}))
    (loop $again
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
      (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))"""


COMPUTE = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 17)
  (data (i32.const 0) "\\10\\00\\00\\00\\05\\00\\00\\00")
  (data (i32.const 16) "done\\0a")
  (func $sieve (local $i i32) (local $j i32)
    (memory.fill (i32.const 65536) (i32.const 0) (i32.const 1000000))
    (local.set $i (i32.const 2))
    (loop $outer
      (if (i32.eqz (i32.load8_u offset=65536 (local.get $i)))
        (then
          (local.set $j (i32.mul (local.get $i) (local.get $i)))
          (if (i32.lt_u (local.get $i) (i32.const 1000))
            (then (loop $inner
              (if (i32.lt_u (local.get $j) (i32.const 1000000))
                (then
                  (i32.store8 offset=65536 (local.get $j) (i32.const 1))
                  (local.set $j (i32.add (local.get $j) (local.get $i)))
                  (br $inner))))))))
      (br_if $outer (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000000)))))
  (func $hash (result i64) (local $h i64) (local $n i32)
    (local.set $h (i64.const 0xcbf29ce484222325))
    (loop $again
      (local.set $h (i64.mul (i64.xor (local.get $h) (i64.extend_i32_u (local.get $n))) (i64.const 0x100000001b3)))
      (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 40000000))))
    (local.get $h))
  (func (export "_start") (local $round i32)
    (loop $again
      (call $sieve)
      (br_if $again (i32.lt_u (local.tee $round (i32.add (local.get $round) (i32.const 1))) (i32.const 40))))
    (drop (call $hash))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))))"""
"""A sieve and a hash: about half a second of work, then a line."""
