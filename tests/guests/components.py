"""Components in WebAssembly's text format that each use one thing of the host's, and tell by their output or exit code."""

from __future__ import annotations

_STREAMS = """
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
    (export "get-stdout" (func (result (own $s))))))"""

_RUN = """
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $run))"""

RANDOM = f"""(component {_STREAMS}
  (import "wasi:random/random@0.2.0" (instance $secure (export "get-random-u64" (func (result u64)))))
  (import "wasi:random/insecure@0.2.0" (instance $insecure (export "get-insecure-random-u64" (func (result u64)))))
  (import "wasi:random/insecure-seed@0.2.0" (instance $seed (export "insecure-seed" (func (result (tuple u64 u64))))))
  (core module $libc (memory (export "memory") 1))
  (core instance $libc (instantiate $libc))
  (core func $stdout (canon lower (func $stdout "get-stdout")))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush")
    (memory (core memory $libc "memory"))))
  (core func $secure (canon lower (func $secure "get-random-u64")))
  (core func $insecure (canon lower (func $insecure "get-insecure-random-u64")))
  (core func $seed (canon lower (func $seed "insecure-seed") (memory (core memory $libc "memory"))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "stdout" (func $stdout (result i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (import "host" "secure" (func $secure (result i64)))
    (import "host" "insecure" (func $insecure (result i64)))
    (import "host" "seed" (func $seed (param i32)))
    (func $digits (param $to i32) (param $number i64) (local $digit i64) (local $end i32)
      (local.set $end (i32.add (local.get $to) (i32.const 16)))
      (loop $more
        (local.set $digit (i64.and (local.get $number) (i64.const 15)))
        (i64.store8 (local.get $to) (i64.add (local.get $digit) (select (i64.const 48) (i64.const 87)
          (i64.lt_u (local.get $digit) (i64.const 10)))))
        (local.set $number (i64.shr_u (local.get $number) (i64.const 4)))
        (local.set $to (i32.add (local.get $to) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $to) (local.get $end))))
      (i32.store8 (local.get $to) (i32.const 10)))
    (func (export "run") (result i32)
      (call $seed (i32.const 0))
      (call $digits (i32.const 64) (call $secure))
      (call $digits (i32.const 81) (call $insecure))
      (call $digits (i32.const 98) (i64.load (i32.const 0)))
      (call $digits (i32.const 115) (i64.load (i32.const 8)))
      (call $write (call $stdout) (i32.const 64) (i32.const 68) (i32.const 16))
      (i32.const 0)))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "stdout" (func $stdout)) (export "write" (func $write)) (export "secure" (func $secure))
    (export "insecure" (func $insecure)) (export "seed" (func $seed))))))
  {_RUN})"""
"""Prints four random numbers: a secure one, an insecure one, and the two of the insecure seed."""

WAITS_WITHOUT_NUMBER = f"""(component
  (import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $outer)) (export "pollable" (type $p (eq $outer)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core module $main
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    (func (export "run") (result i32)
      (loop $more (drop (call $subscribe (i64.const 3600000000000))) (br $more))
      unreachable))
  (core instance $main (instantiate $main (with "host" (instance (export "subscribe" (func $subscribe))))))
  {_RUN})"""
"""Makes the host remember something, again and again; uses no memory of its own."""

SOCKET_ERRORS = (
    "unknown",
    "access-denied",
    "not-supported",
    "invalid-argument",
    "out-of-memory",
    "timeout",
    "concurrency-conflict",
    "not-in-progress",
    "would-block",
    "invalid-state",
    "new-socket-limit",
    "address-not-bindable",
    "address-in-use",
    "remote-unreachable",
    "connection-refused",
    "connection-reset",
    "connection-aborted",
    "datagram-too-large",
    "name-unresolvable",
    "temporary-resolver-failure",
    "permanent-resolver-failure",
)
"""The error codes of `wasi:sockets/network`."""

_ERROR_CODES = " ".join(f'"{name}"' for name in SOCKET_ERRORS)

LOOKS_UP_LOCALHOST = f"""(component
  (import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow 0))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:sockets/network@0.2.0" (instance $network
    (export "network" (type (sub resource)))
    (type $four (tuple u8 u8 u8 u8)) (export "ipv4-address" (type $v4 (eq $four)))
    (type $six (tuple u16 u16 u16 u16 u16 u16 u16 u16)) (export "ipv6-address" (type $v6 (eq $six)))
    (type $either (variant (case "ipv4" $v4) (case "ipv6" $v6))) (export "ip-address" (type (eq $either)))
    (type $codes (enum {_ERROR_CODES}))
    (export "error-code" (type (eq $codes)))))
  (alias export $network "network" (type $net))
  (alias export $network "error-code" (type $code))
  (alias export $network "ip-address" (type $address))
  (import "wasi:sockets/instance-network@0.2.0" (instance $default
    (alias outer 1 $net (type $outer)) (export "network" (type $n (eq $outer)))
    (export "instance-network" (func (result (own $n))))))
  (import "wasi:sockets/ip-name-lookup@0.2.0" (instance $lookup
    (alias outer 1 $net (type $outer-net)) (export "network" (type $n (eq $outer-net)))
    (alias outer 1 $code (type $outer-code)) (export "error-code" (type $c (eq $outer-code)))
    (export "resolve-address-stream" (type $addresses (sub resource)))
    (alias outer 1 $pollable (type $outer-pollable)) (export "pollable" (type $p (eq $outer-pollable)))
    (alias outer 1 $address (type $outer-address)) (export "ip-address" (type $a (eq $outer-address)))
    (export "[method]resolve-address-stream.subscribe" (func (param "self" (borrow $addresses)) (result (own $p))))
    (export "[method]resolve-address-stream.resolve-next-address" (func (param "self" (borrow $addresses))
      (result (result (option $a) (error $c)))))
    (export "resolve-addresses" (func (param "network" (borrow $n)) (param "name" string)
      (result (result (own $addresses) (error $c)))))))
  (import "wasi:cli/exit@0.2.0" (instance $exiting (export "exit-with-code" (func (param "status-code" u8)))))
  (core module $libc (memory (export "memory") 1))
  (core instance $libc (instantiate $libc))
  (core func $network (canon lower (func $default "instance-network")))
  (core func $resolve (canon lower (func $lookup "resolve-addresses") (memory (core memory $libc "memory"))))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $subscribe (canon lower (func $lookup "[method]resolve-address-stream.subscribe")))
  (core func $next (canon lower (func $lookup "[method]resolve-address-stream.resolve-next-address")
    (memory (core memory $libc "memory"))))
  (core func $exit (canon lower (func $exiting "exit-with-code")))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "network" (func $network (result i32)))
    (import "host" "resolve" (func $resolve (param i32 i32 i32 i32)))
    (import "host" "block" (func $block (param i32)))
    (import "host" "subscribe" (func $subscribe (param i32) (result i32)))
    (import "host" "next" (func $next (param i32 i32)))
    (import "host" "exit" (func $exit (param i32)))
    (data (i32.const 64) "localhost")
    (func (export "run") (result i32)
      (call $resolve (call $network) (i32.const 64) (i32.const 9) (i32.const 0))
      (if (i32.load8_u (i32.const 0)) (then (call $exit (i32.load8_u (i32.const 4)))))
      (call $block (call $subscribe (i32.load (i32.const 4))))
      (call $next (i32.load (i32.const 4)) (i32.const 16))
      (if (i32.load8_u (i32.const 16)) (then (call $exit (i32.load8_u (i32.const 18)))))
      (call $exit (i32.const 255))
      unreachable))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "network" (func $network)) (export "resolve" (func $resolve)) (export "exit" (func $exit))
    (export "block" (func $block)) (export "subscribe" (func $subscribe)) (export "next" (func $next))))))
  {_RUN})"""
"""Its exit code is the error of a name lookup, at once or when its first address is asked for: an index of `SOCKET_ERRORS`;
255 if there was none."""

OPENS_A_SOCKET = f"""(component
  (import "wasi:sockets/network@0.2.0" (instance $network
    (type $codes (enum {_ERROR_CODES}))
    (export "error-code" (type (eq $codes)))
    (type $families (enum "ipv4" "ipv6"))
    (export "ip-address-family" (type (eq $families)))))
  (alias export $network "error-code" (type $code))
  (alias export $network "ip-address-family" (type $family))
  (import "wasi:sockets/tcp@0.2.0" (instance $tcp (export "tcp-socket" (type (sub resource)))))
  (alias export $tcp "tcp-socket" (type $socket))
  (import "wasi:sockets/tcp-create-socket@0.2.0" (instance $create
    (alias outer 1 $code (type $outer-code)) (export "error-code" (type $c (eq $outer-code)))
    (alias outer 1 $family (type $outer-family)) (export "ip-address-family" (type $f (eq $outer-family)))
    (alias outer 1 $socket (type $outer-socket)) (export "tcp-socket" (type $s (eq $outer-socket)))
    (export "create-tcp-socket" (func (param "address-family" $f) (result (result (own $s) (error $c)))))))
  (import "wasi:cli/exit@0.2.0" (instance $exiting (export "exit-with-code" (func (param "status-code" u8)))))
  (core module $libc (memory (export "memory") 1))
  (core instance $libc (instantiate $libc))
  (core func $open (canon lower (func $create "create-tcp-socket") (memory (core memory $libc "memory"))))
  (core func $exit (canon lower (func $exiting "exit-with-code")))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "open" (func $open (param i32 i32)))
    (import "host" "exit" (func $exit (param i32)))
    (func (export "run") (result i32)
      (call $open (i32.const 0) (i32.const 0))
      (if (i32.load8_u (i32.const 0)) (then (call $exit (i32.load8_u (i32.const 4)))))
      (call $exit (i32.const 255))
      unreachable))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "open" (func $open)) (export "exit" (func $exit))))))
  {_RUN})"""
"""Its exit code is the error of opening a TCP socket, an index of `SOCKET_ERRORS`; 255 if there was none."""

WRITES_BY_WASI_03 = """(component
  (import "wasi:cli/types@0.3.0" (instance $types
    (type $codes (enum "io" "illegal-byte-sequence" "pipe")) (export "error-code" (type (eq $codes)))))
  (alias export $types "error-code" (type $code))
  (type $bytes (stream u8))
  (type $done (future (result (error $code))))
  (import "wasi:cli/stdout@0.3.0" (instance $stdout
    (alias outer 1 $code (type $outer)) (export "error-code" (type $c (eq $outer)))
    (export "write-via-stream" (func (param "data" (stream u8)) (result (future (result (error $c))))))))
  (core module $libc (memory (export "memory") 1))
  (core instance $libc (instantiate $libc))
  (core func $open (canon stream.new $bytes))
  (core func $send (canon stream.write $bytes async (memory (core memory $libc "memory"))))
  (core func $close (canon stream.drop-writable $bytes))
  (core func $receive (canon future.read $done async (memory (core memory $libc "memory"))))
  (core func $print (canon lower (func $stdout "write-via-stream")))
  (core func $new-set (canon waitable-set.new))
  (core func $join (canon waitable.join))
  (core func $wait (canon waitable-set.wait (memory (core memory $libc "memory"))))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "open" (func $open (result i64)))
    (import "host" "send" (func $send (param i32 i32 i32) (result i32)))
    (import "host" "close" (func $close (param i32)))
    (import "host" "receive" (func $receive (param i32 i32) (result i32)))
    (import "host" "print" (func $print (param i32) (result i32)))
    (import "host" "new-set" (func $new-set (result i32)))
    (import "host" "join" (func $join (param i32 i32)))
    (import "host" "wait" (func $wait (param i32 i32) (result i32)))
    (data (i32.const 64) "hello by a stream\\n")
    (func $await (param $handle i32) (param $answer i32) (local $set i32)
      (if (i32.eq (local.get $answer) (i32.const -1)) (then
        (local.set $set (call $new-set))
        (call $join (local.get $handle) (local.get $set))
        (drop (call $wait (local.get $set) (i32.const 0)))
        (call $join (local.get $handle) (i32.const 0)))))
    (func (export "run") (result i32) (local $ends i64) (local $to i32) (local $result i32)
      (local.set $ends (call $open))
      (local.set $to (i32.wrap_i64 (i64.shr_u (local.get $ends) (i64.const 32))))
      (local.set $result (call $print (i32.wrap_i64 (local.get $ends))))
      (call $await (local.get $to) (call $send (local.get $to) (i32.const 64) (i32.const 18)))
      (call $close (local.get $to))
      (call $await (local.get $result) (call $receive (local.get $result) (i32.const 32)))
      (i32.load8_u (i32.const 32))))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "open" (func $open)) (export "send" (func $send)) (export "close" (func $close))
    (export "receive" (func $receive)) (export "print" (func $print)) (export "new-set" (func $new-set))
    (export "join" (func $join)) (export "wait" (func $wait))))))
  (func $run async (result (result)) (canon lift (core func $main "run")))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.3.0" (instance $run)))"""
"""A command of WASI 0.3 that hands the host a stream to print, waits until that is done, and ends as that did."""
