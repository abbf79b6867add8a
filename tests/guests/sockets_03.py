"""Components in WebAssembly's text format that use WASI 0.3's wasi:sockets, and tell by their exit code."""

from __future__ import annotations

from typing import Literal

LOOKUP_FAILED = 200
"""Of `looks_up`: what is added to an error's place among those of `ip-name-lookup`."""

_TYPES = """
    (type $codes (variant (case "access-denied") (case "not-supported") (case "invalid-argument") (case "out-of-memory")
      (case "timeout") (case "invalid-state") (case "address-not-bindable") (case "address-in-use")
      (case "remote-unreachable") (case "connection-refused") (case "connection-broken") (case "connection-reset")
      (case "connection-aborted") (case "datagram-too-large") (case "other" (option string))))
    (export "error-code" (type $code (eq $codes)))
    (type $families (enum "ipv4" "ipv6")) (export "ip-address-family" (type $family (eq $families)))
    (type $four (tuple u8 u8 u8 u8)) (export "ipv4-address" (type $ipv4 (eq $four)))
    (type $eight (tuple u16 u16 u16 u16 u16 u16 u16 u16)) (export "ipv6-address" (type $ipv6 (eq $eight)))
    (type $address (variant (case "ipv4" $ipv4) (case "ipv6" $ipv6)))
    (export "ip-address" (type $ip (eq $address)))"""

_LIBC = """
  (core module $libc (memory (export "memory") 1)
    (global $next (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (local.get $at)))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))"""

_EXITING = (
    '(import "wasi:cli/exit@0.2.0" (instance $exiting (export "exit-with-code" (func (param "status-code" u8)))))'
)

_RUN = """
  (func $run async (result (result)) (canon lift (core func $main "run")))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.3.0" (instance $run))"""


def looks_up(name: str) -> str:
    """Looks a name up; its exit code is the last number of the first address, of IPv4, or `LOOKUP_FAILED` and an error's."""
    return f"""(component
  {_EXITING}
  (import "wasi:sockets/types@0.3.0" (instance $types {_TYPES}))
  (alias export $types "ip-address" (type $ip))
  (import "wasi:sockets/ip-name-lookup@0.3.0" (instance $lookup
    (alias outer 1 $ip (type $outer)) (export "ip-address" (type $ip (eq $outer)))
    (type $codes (variant (case "access-denied") (case "invalid-argument") (case "name-unresolvable")
      (case "temporary-resolver-failure") (case "permanent-resolver-failure") (case "other" (option string))))
    (export "error-code" (type $code (eq $codes)))
    (export "resolve-addresses" (func async (param "name" string) (result (result (list $ip) (error $code)))))))
  {_LIBC}
  (core func $exit (canon lower (func $exiting "exit-with-code")))
  (core func $look-up (canon lower (func $lookup "resolve-addresses")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "look-up" (func $look-up (param i32 i32 i32)))
    (import "host" "exit" (func $exit (param i32)))
    (data (i32.const 1024) "{name}")
    (func (export "run") (result i32)
      (call $look-up (i32.const 1024) (i32.const {len(name)}) (i32.const 0))
      (if (i32.load8_u (i32.const 0))
        (then (call $exit (i32.add (i32.const {LOOKUP_FAILED}) (i32.load8_u (i32.const 4)))))
        (else (call $exit (i32.load8_u (i32.add (i32.load (i32.const 4)) (i32.const 5))))))
      unreachable))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "look-up" (func $look-up)) (export "exit" (func $exit))))))
  {_RUN})"""


def opens(kind: Literal["tcp", "udp"]) -> str:
    """Opens a socket; its exit code is 1 if there is one, 0 if that was denied."""
    return f"""(component
  {_EXITING}
  (import "wasi:sockets/types@0.3.0" (instance $types {_TYPES}
    (export "{kind}-socket" (type $socket (sub resource)))
    (export "[static]{kind}-socket.create" (func (param "address-family" $family)
      (result (result (own $socket) (error $code)))))))
  {_LIBC}
  (core func $exit (canon lower (func $exiting "exit-with-code")))
  (core func $open (canon lower (func $types "[static]{kind}-socket.create")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "open" (func $open (param i32 i32)))
    (import "host" "exit" (func $exit (param i32)))
    (func (export "run") (result i32)
      (call $open (i32.const 0) (i32.const 0))
      (if (i32.eqz (i32.load8_u (i32.const 0))) (then (call $exit (i32.const 1))))
      (if (i32.load8_u (i32.const 4)) (then unreachable))
      (call $exit (i32.const 0))
      unreachable))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "open" (func $open)) (export "exit" (func $exit))))))
  {_RUN})"""
