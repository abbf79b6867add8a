"""Components in WebAssembly's text format that send requests (wasi:http/outgoing-handler 0.2)."""

from __future__ import annotations

from tests.guests.libc import LIBC
from tests.guests.servers import ERROR_CODE

ERRORS = (
    "DNS-timeout",
    "DNS-error",
    "destination-not-found",
    "destination-unavailable",
    "destination-IP-prohibited",
    "destination-IP-unroutable",
    "connection-refused",
    "connection-terminated",
    "connection-timeout",
    "connection-read-timeout",
    "connection-write-timeout",
    "connection-limit-reached",
    "TLS-protocol-error",
    "TLS-certificate-error",
    "TLS-alert-received",
    "HTTP-request-denied",
)
"""The first of the error codes of `wasi:http/types`."""

FIRST_ERROR = 100
"""What an exit code adds to an error's place."""


def outcome(exit_code: int) -> int | str:
    """What `sends` ended with: the hundreds of a status, or the name of an error."""
    return exit_code if exit_code < FIRST_ERROR else ERRORS[exit_code - FIRST_ERROR]


def sends(authority: str, *, path: str = "/", https: bool = False) -> str:
    """Sends a request; its exit code is an `outcome`."""
    return _component(authority, path, https, 1)


def sends_many(authority: str, count: int) -> str:
    """Sends so many requests at once; its exit code is how many were answered."""
    return _component(authority, "/", False, count)


def sends_on(authority: str, *, rounds: int, together: int) -> str:
    """Sends so many requests at once, and again when all are answered, so many times; its exit code is 0 if all were."""
    return _component(authority, "/", False, together, rounds)


def _component(authority: str, path: str, https: bool, count: int, rounds: int = 0) -> str:
    again = f"""
      (loop $again
        (local.set $number (i32.const 0))
        (loop $more
          (i32.store (i32.add (i32.const 4096) (i32.shl (local.get $number) (i32.const 2))) (call $send))
          (local.set $number (i32.add (local.get $number) (i32.const 1)))
          (br_if $more (i32.lt_u (local.get $number) (i32.const {count}))))
        (local.set $number (i32.const 0))
        (loop $more
          (call $take (i32.load (i32.add (i32.const 4096) (i32.shl (local.get $number) (i32.const 2)))))
          (local.set $number (i32.add (local.get $number) (i32.const 1)))
          (br_if $more (i32.lt_u (local.get $number) (i32.const {count}))))
        (local.set $round (i32.add (local.get $round) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $round) (i32.const {rounds}))))
      (call $exit (i32.ne (global.get $answered) (i32.const {count * rounds})))
      unreachable"""
    once = f"""
      (loop $more
        (i32.store (i32.add (i32.const 4096) (i32.shl (local.get $number) (i32.const 2))) (call $send))
        (local.set $number (i32.add (local.get $number) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $number) (i32.const {count}))))
      (local.set $number (i32.const 0))
      (loop $more
        (call $receive (i32.load (i32.add (i32.const 4096) (i32.shl (local.get $number) (i32.const 2)))))
        (local.set $number (i32.add (local.get $number) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $number) (i32.const {count}))))
      (call $exit (global.get $answered))
      unreachable"""
    return f"""(component
  (import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow 0))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:cli/exit@0.2.0" (instance $exiting (export "exit-with-code" (func (param "status-code" u8)))))
  (import "wasi:http/types@0.2.0" (instance $types
    (alias outer 1 $pollable (type $outer-pollable)) (export "pollable" (type $p (eq $outer-pollable)))
    {ERROR_CODE}
    (type $schemes (variant (case "HTTP") (case "HTTPS") (case "other" string)))
    (export "scheme" (type $scheme (eq $schemes)))
    (export "fields" (type $fields (sub resource)))
    (export "outgoing-request" (type $request (sub resource)))
    (export "request-options" (type $options (sub resource)))
    (export "incoming-response" (type $response (sub resource)))
    (export "future-incoming-response" (type $future (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[constructor]outgoing-request" (func (param "headers" (own $fields)) (result (own $request))))
    (export "[method]outgoing-request.set-authority"
      (func (param "self" (borrow $request)) (param "authority" (option string)) (result (result))))
    (export "[method]outgoing-request.set-scheme"
      (func (param "self" (borrow $request)) (param "scheme" (option $scheme)) (result (result))))
    (export "[method]outgoing-request.set-path-with-query"
      (func (param "self" (borrow $request)) (param "path-with-query" (option string)) (result (result))))
    (export "[method]future-incoming-response.subscribe" (func (param "self" (borrow $future)) (result (own $p))))
    (export "[method]future-incoming-response.get" (func (param "self" (borrow $future))
      (result (option (result (result (own $response) (error $error-code)))))))
    (export "[method]incoming-response.status" (func (param "self" (borrow $response)) (result u16)))))
  (alias export $types "outgoing-request" (type $request))
  (alias export $types "request-options" (type $options))
  (alias export $types "future-incoming-response" (type $future))
  (alias export $types "incoming-response" (type $response))
  (alias export $types "error-code" (type $error-code))
  (import "wasi:http/outgoing-handler@0.2.0" (instance $handler
    (alias outer 1 $request (type $outer-request)) (export "outgoing-request" (type $r (eq $outer-request)))
    (alias outer 1 $options (type $outer-options)) (export "request-options" (type $o (eq $outer-options)))
    (alias outer 1 $future (type $outer-future)) (export "future-incoming-response" (type $f (eq $outer-future)))
    (alias outer 1 $error-code (type $outer-error)) (export "error-code" (type $e (eq $outer-error)))
    (export "handle" (func (param "request" (own $r)) (param "options" (option (own $o)))
      (result (result (own $f) (error $e)))))))
  {LIBC}
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $exit (canon lower (func $exiting "exit-with-code")))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $request (canon lower (func $types "[constructor]outgoing-request")))
  (core func $authority (canon lower (func $types "[method]outgoing-request.set-authority") (memory (core memory $memory))))
  (core func $scheme (canon lower (func $types "[method]outgoing-request.set-scheme") (memory (core memory $memory))))
  (core func $path (canon lower (func $types "[method]outgoing-request.set-path-with-query") (memory (core memory $memory))))
  (core func $subscribe (canon lower (func $types "[method]future-incoming-response.subscribe")))
  (core func $get (canon lower (func $types "[method]future-incoming-response.get")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $drop-pollable (canon resource.drop $pollable))
  (core func $drop-response (canon resource.drop $response))
  (core func $drop-future (canon resource.drop $future))
  (core func $status (canon lower (func $types "[method]incoming-response.status")))
  (core func $handle (canon lower (func $handler "handle") (memory (core memory $memory)) (realloc (core func $realloc))))
  (core module $main
    (import "libc" "memory" (memory 2))
    (import "host" "block" (func $block (param i32)))
    (import "host" "exit" (func $exit (param i32)))
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "request" (func $request (param i32) (result i32)))
    (import "host" "authority" (func $authority (param i32 i32 i32 i32) (result i32)))
    (import "host" "scheme" (func $scheme (param i32 i32 i32 i32 i32) (result i32)))
    (import "host" "path" (func $path (param i32 i32 i32 i32) (result i32)))
    (import "host" "subscribe" (func $subscribe (param i32) (result i32)))
    (import "host" "get" (func $get (param i32 i32)))
    (import "host" "status" (func $status (param i32) (result i32)))
    (import "host" "handle" (func $handle (param i32 i32 i32 i32)))
    (import "host" "drop-pollable" (func $drop-pollable (param i32)))
    (import "host" "drop-response" (func $drop-response (param i32)))
    (import "host" "drop-future" (func $drop-future (param i32)))
    (data (i32.const 1024) "{authority}")
    (data (i32.const 2048) "{path}")
    (global $answered (mut i32) (i32.const 0))
    ;; Sends one, and gives what it waits for; with an error the program ends, if there is but one.
    (func $send (result i32) (local $it i32)
      (local.set $it (call $request (call $fields)))
      (if (call $authority (local.get $it) (i32.const 1) (i32.const 1024) (i32.const {len(authority)})) (then unreachable))
      (if (call $scheme (local.get $it) (i32.const 1) (i32.const {int(https)}) (i32.const 0) (i32.const 0))
        (then unreachable))
      (if (call $path (local.get $it) (i32.const 1) (i32.const 2048) (i32.const {len(path)})) (then unreachable))
      (call $handle (local.get $it) (i32.const 0) (i32.const 0) (i32.const 0))
      (if (i32.load8_u (i32.const 0)) (then
        (call $exit (i32.add (i32.const {FIRST_ERROR}) (i32.load8_u (i32.const 8))))))
      (i32.load (i32.const 8)))
    (func $receive (param $future i32)
      (call $block (call $subscribe (local.get $future)))
      (call $get (local.get $future) (i32.const 0))
      (if (i32.load8_u (i32.const 16))
        (then (if (i32.eq (i32.const {count}) (i32.const 1))
          (then (call $exit (i32.add (i32.const {FIRST_ERROR}) (i32.load8_u (i32.const 24)))))))
        (else
          (global.set $answered (i32.add (global.get $answered) (i32.const 1)))
          (if (i32.eq (i32.const {count}) (i32.const 1))
            (then (call $exit (i32.div_u (call $status (i32.load (i32.const 24))) (i32.const 100))))))))
    ;; Receives one, and lets go of all that there is of it.
    (func $take (param $future i32) (local $ready i32)
      (local.set $ready (call $subscribe (local.get $future)))
      (call $block (local.get $ready))
      (call $drop-pollable (local.get $ready))
      (call $get (local.get $future) (i32.const 0))
      (if (i32.eqz (i32.load8_u (i32.const 16))) (then
        (global.set $answered (i32.add (global.get $answered) (i32.const 1)))
        (call $drop-response (i32.load (i32.const 24)))))
      (call $drop-future (local.get $future)))
    (func (export "run") (result i32) (local $number i32) (local $round i32) {again if rounds else once}))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "block" (func $block)) (export "exit" (func $exit)) (export "fields" (func $fields))
    (export "request" (func $request)) (export "authority" (func $authority)) (export "scheme" (func $scheme))
    (export "path" (func $path)) (export "subscribe" (func $subscribe)) (export "get" (func $get))
    (export "status" (func $status)) (export "handle" (func $handle))
    (export "drop-pollable" (func $drop-pollable)) (export "drop-response" (func $drop-response))
    (export "drop-future" (func $drop-future))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $run)))"""
