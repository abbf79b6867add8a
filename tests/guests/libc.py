"""What components in WebAssembly's text format have of a C library: a memory, and whom the canonical ABI asks for room in it."""

from __future__ import annotations

LIBC = """
  (core module $libc (memory (export "memory") 2)
    (global $next (mut i32) (i32.const 65536))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
      (if (i32.gt_u (i32.add (global.get $next) (local.get 3)) (i32.const 131072)) (then
        (global.set $next (i32.const 65536))))
      (local.set $at (global.get $next))
      (global.set $next (i32.and (i32.add (i32.add (local.get $at) (local.get 3)) (i32.const 7)) (i32.const -8)))
      (local.get $at)))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))"""
"""The first page is the guest's own. The second is given out, and then given out again: what came first must be done with."""
