"""Components in WebAssembly's text format that use WASI 0.3's wasi:sockets, and tell by their exit code."""

from __future__ import annotations

from typing import Literal

from tests.guests.libc import LIBC

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
  {LIBC}
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
  {LIBC}
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


_PLACES = """
    (type $r4 (record (field "port" u16) (field "address" $ipv4))) (export "ipv4-socket-address" (type $s4 (eq $r4)))
    (type $r6 (record (field "port" u16) (field "flow-info" u32) (field "address" $ipv6) (field "scope-id" u32)))
    (export "ipv6-socket-address" (type $s6 (eq $r6)))
    (type $where (variant (case "ipv4" $s4) (case "ipv6" $s6))) (export "ip-socket-address" (type $place (eq $where)))"""

BIND_FAILED, LISTEN_FAILED = 100, 150
"""Of those that listen: what is added to the place of an error of theirs."""


def _opened(kind: Literal["tcp", "udp"]) -> str:
    """A function that makes a socket and binds it."""
    return f"""
    (func $bound (param $port i32) (param $a i32) (param $b i32) (param $c i32) (param $d i32) (result i32) (local $socket i32)
      (call $open (i32.const 0) (i32.const 0))
      (if (i32.load8_u (i32.const 0)) (then (call $exit (i32.load8_u (i32.const 4)))))
      (local.set $socket (i32.load (i32.const 4)))
      (call $bind (local.get $socket) (i32.const 0) (local.get $port)
        (local.get $a) (local.get $b) (local.get $c) (local.get $d)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
      (if (i32.load8_u (i32.const 0)) (then
        (call $exit (i32.add (i32.const {BIND_FAILED}) (i32.load8_u (i32.const 4))))))
      (local.get $socket))"""


_BIND = "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)"


def echoes(host: str, port: int, *, binds: bool = True) -> str:
    """Listens by TCP at a port, and sends what each connection sends back over it, one after the other and without end."""
    bound = f"(call $bound {_numbers(host, port)})" if binds else "(call $unbound)"
    return f"""(component
  {_EXITING}
  (import "wasi:sockets/types@0.3.0" (instance $types {_TYPES} {_PLACES}
    (export "tcp-socket" (type $socket (sub resource)))
    (export "[static]tcp-socket.create" (func (param "address-family" $family) (result (result (own $socket) (error $code)))))
    (export "[method]tcp-socket.bind" (func (param "self" (borrow $socket)) (param "local-address" $place)
      (result (result (error $code)))))
    (type $comers (stream (own $socket)))
    (export "[method]tcp-socket.listen" (func (param "self" (borrow $socket)) (result (result $comers (error $code)))))
    (export "[method]tcp-socket.receive" (func (param "self" (borrow $socket))
      (result (tuple (stream u8) (future (result (error $code)))))))
    (export "[method]tcp-socket.send" (func (param "self" (borrow $socket)) (param "data" (stream u8))
      (result (future (result (error $code))))))))
  (alias export $types "tcp-socket" (type $socket))
  (alias export $types "error-code" (type $code))
  (type $sockets (stream (own $socket)))
  (type $done (future (result (error $code))))
  {LIBC}
  (core func $exit (canon lower (func $exiting "exit-with-code")))
  (core func $open (canon lower (func $types "[static]tcp-socket.create")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $bind (canon lower (func $types "[method]tcp-socket.bind")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $listen (canon lower (func $types "[method]tcp-socket.listen")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $receive (canon lower (func $types "[method]tcp-socket.receive") (memory (core memory $memory))))
  (core func $send (canon lower (func $types "[method]tcp-socket.send")))
  (core func $accept (canon stream.read $sockets async (memory (core memory $memory))))
  (core func $sent (canon future.read $done async (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $forget (canon future.drop-readable $done))
  (core func $close (canon resource.drop $socket))
  (core func $new-set (canon waitable-set.new))
  (core func $join (canon waitable.join))
  (core func $wait (canon waitable-set.wait (memory (core memory $memory))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "exit" (func $exit (param i32)))
    (import "host" "open" (func $open (param i32 i32)))
    (import "host" "bind" (func $bind {_BIND}))
    (import "host" "listen" (func $listen (param i32 i32)))
    (import "host" "receive" (func $receive (param i32 i32)))
    (import "host" "send" (func $send (param i32 i32) (result i32)))
    (import "host" "accept" (func $accept (param i32 i32 i32) (result i32)))
    (import "host" "sent" (func $sent (param i32 i32) (result i32)))
    (import "host" "forget" (func $forget (param i32)))
    (import "host" "close" (func $close (param i32)))
    (import "host" "new-set" (func $new-set (result i32)))
    (import "host" "join" (func $join (param i32 i32)))
    (import "host" "wait" (func $wait (param i32 i32) (result i32)))
    (global $set (mut i32) (i32.const 0))
    {_opened("tcp")}
    (func $unbound (result i32)
      (call $open (i32.const 0) (i32.const 0))
      (i32.load (i32.const 4)))
    (func $await (param $handle i32) (param $gave i32)
      (if (i32.ne (local.get $gave) (i32.const -1)) (then (return)))
      (call $join (local.get $handle) (global.get $set))
      (drop (call $wait (global.get $set) (i32.const 48)))
      (call $join (local.get $handle) (i32.const 0)))
    (func (export "run") (result i32) (local $comers i32) (local $socket i32) (local $sending i32)
      (global.set $set (call $new-set))
      (call $listen {bound} (i32.const 0))
      (if (i32.load8_u (i32.const 0)) (then
        (call $exit (i32.add (i32.const {LISTEN_FAILED}) (i32.load8_u (i32.const 4))))))
      (local.set $comers (i32.load (i32.const 4)))
      (loop $next
        (call $await (local.get $comers) (call $accept (local.get $comers) (i32.const 64) (i32.const 1)))
        (local.set $socket (i32.load (i32.const 64)))
        (call $receive (local.get $socket) (i32.const 72))
        ;; What comes goes back: the stream is the host's at both ends.
        (local.set $sending (call $send (local.get $socket) (i32.load (i32.const 72))))
        (call $await (local.get $sending) (call $sent (local.get $sending) (i32.const 80)))
        (call $forget (local.get $sending))
        (call $forget (i32.load (i32.const 76)))
        (call $close (local.get $socket))
        (br $next))
      unreachable))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "exit" (func $exit)) (export "open" (func $open)) (export "bind" (func $bind)) (export "listen" (func $listen))
    (export "receive" (func $receive)) (export "send" (func $send)) (export "accept" (func $accept))
    (export "sent" (func $sent)) (export "forget" (func $forget)) (export "close" (func $close))
    (export "new-set" (func $new-set)) (export "join" (func $join)) (export "wait" (func $wait))))))
  {_RUN})"""


def echoes_datagrams(host: str, port: int) -> str:
    """Binds a UDP port, and sends each datagram back to who sent it, without end."""
    return f"""(component
  {_EXITING}
  (import "wasi:sockets/types@0.3.0" (instance $types {_TYPES} {_PLACES}
    (export "udp-socket" (type $socket (sub resource)))
    (export "[static]udp-socket.create" (func (param "address-family" $family) (result (result (own $socket) (error $code)))))
    (export "[method]udp-socket.bind" (func (param "self" (borrow $socket)) (param "local-address" $place)
      (result (result (error $code)))))
    (export "[method]udp-socket.receive" (func async (param "self" (borrow $socket))
      (result (result (tuple (list u8) $place) (error $code)))))
    (export "[method]udp-socket.send" (func async (param "self" (borrow $socket)) (param "data" (list u8))
      (param "remote-address" (option $place)) (result (result (error $code)))))))
  {LIBC}
  (core func $exit (canon lower (func $exiting "exit-with-code")))
  (core func $open (canon lower (func $types "[static]udp-socket.create")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $bind (canon lower (func $types "[method]udp-socket.bind")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $receive (canon lower (func $types "[method]udp-socket.receive")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $send (canon lower (func $types "[method]udp-socket.send")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "exit" (func $exit (param i32)))
    (import "host" "open" (func $open (param i32 i32)))
    (import "host" "bind" (func $bind {_BIND}))
    (import "host" "receive" (func $receive (param i32 i32)))
    (import "host" "send" (func $send (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
    {_opened("udp")}
    (func (export "run") (result i32) (local $socket i32)
      (local.set $socket (call $bound {_numbers(host, port)}))
      (loop $next
        (call $receive (local.get $socket) (i32.const 64))
        (if (i32.load8_u (i32.const 64)) (then unreachable))
        (call $send (local.get $socket) (i32.load (i32.const 68)) (i32.load (i32.const 72)) (i32.const 1) (i32.const 0)
          (i32.load16_u (i32.const 80)) (i32.load8_u (i32.const 82)) (i32.load8_u (i32.const 83))
          (i32.load8_u (i32.const 84)) (i32.load8_u (i32.const 85))
          (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 128))
        (if (i32.load8_u (i32.const 128)) (then unreachable))
        (br $next))
      unreachable))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "exit" (func $exit)) (export "open" (func $open)) (export "bind" (func $bind))
    (export "receive" (func $receive)) (export "send" (func $send))))))
  {_RUN})"""


def _numbers(host: str, port: int) -> str:
    """An address of IPv4 as the canonical ABI passes it."""
    return " ".join(f"(i32.const {number})" for number in (port, *map(int, host.split("."))))
