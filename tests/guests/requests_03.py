"""Components in WebAssembly's text format that send requests (wasi:http/client 0.3)."""

from __future__ import annotations

from tests.guests.libc import LIBC
from tests.guests.requests import FIRST_ERROR
from tests.guests.servers import ERROR_CODE
from tests.guests.servers_03 import TRAILERS


def sends_03(authority: str, *, https: bool = False) -> str:
    """Sends a request; its exit code is an `outcome`."""
    return f"""(component
  (import "wasi:cli/exit@0.2.0" (instance $exiting (export "exit-with-code" (func (param "status-code" u8)))))
  (import "wasi:http/types@0.3.0" (instance $types
    {ERROR_CODE}
    (type $schemes (variant (case "HTTP") (case "HTTPS") (case "other" string)))
    (export "scheme" (type $scheme (eq $schemes)))
    (export "fields" (type $fields (sub resource)))
    (export "request" (type $request (sub resource)))
    (export "request-options" (type $options (sub resource)))
    (export "response" (type $response (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[static]request.new" (func (param "headers" (own $fields)) (param "contents" (option (stream u8)))
      (param "trailers" {TRAILERS}) (param "options" (option (own $options)))
      (result (tuple (own $request) (future (result (error $error-code)))))))
    (export "[method]request.set-scheme"
      (func (param "self" (borrow $request)) (param "scheme" (option $scheme)) (result (result))))
    (export "[method]request.set-authority"
      (func (param "self" (borrow $request)) (param "authority" (option string)) (result (result))))
    (export "[method]request.set-path-with-query"
      (func (param "self" (borrow $request)) (param "path-with-query" (option string)) (result (result))))
    (export "[method]response.get-status-code" (func (param "self" (borrow $response)) (result u16)))))
  (alias export $types "fields" (type $fields))
  (alias export $types "request" (type $request))
  (alias export $types "response" (type $response))
  (alias export $types "error-code" (type $error-code))
  (import "wasi:http/client@0.3.0" (instance $client
    (alias outer 1 $request (type $outer-request)) (export "request" (type $request (eq $outer-request)))
    (alias outer 1 $response (type $outer-response)) (export "response" (type $response (eq $outer-response)))
    (alias outer 1 $error-code (type $outer-error)) (export "error-code" (type $code (eq $outer-error)))
    (export "send" (func async (param "request" (own $request)) (result (result (own $response) (error $code)))))))
  (type $trailers {TRAILERS})
  {LIBC}
  (core func $exit (canon lower (func $exiting "exit-with-code")))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $request (canon lower (func $types "[static]request.new") (memory (core memory $memory))))
  (core func $scheme (canon lower (func $types "[method]request.set-scheme") (memory (core memory $memory))))
  (core func $authority (canon lower (func $types "[method]request.set-authority") (memory (core memory $memory))))
  (core func $path (canon lower (func $types "[method]request.set-path-with-query") (memory (core memory $memory))))
  (core func $status (canon lower (func $types "[method]response.get-status-code")))
  (core func $send (canon lower (func $client "send") (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $open-trailers (canon future.new $trailers))
  (core func $send-trailers (canon future.write $trailers async (memory (core memory $memory))))
  (core module $main
    (import "libc" "memory" (memory 2))
    (import "host" "exit" (func $exit (param i32)))
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "request" (func $request (param i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "scheme" (func $scheme (param i32 i32 i32 i32 i32) (result i32)))
    (import "host" "authority" (func $authority (param i32 i32 i32 i32) (result i32)))
    (import "host" "path" (func $path (param i32 i32 i32 i32) (result i32)))
    (import "host" "status" (func $status (param i32) (result i32)))
    (import "host" "send" (func $send (param i32 i32)))
    (import "host" "open-trailers" (func $open-trailers (result i64)))
    (import "host" "send-trailers" (func $send-trailers (param i32 i32) (result i32)))
    (data (i32.const 1024) "{authority}")
    (data (i32.const 2048) "/")
    (func (export "run") (result i32) (local $it i32) (local $trailers i64)
      (local.set $trailers (call $open-trailers))
      (call $request (call $fields) (i32.const 0) (i32.const 0) (i32.wrap_i64 (local.get $trailers)) (i32.const 0)
        (i32.const 0) (i32.const 64))
      (local.set $it (i32.load (i32.const 64)))
      (if (call $scheme (local.get $it) (i32.const 1) (i32.const {int(https)}) (i32.const 0) (i32.const 0))
        (then unreachable))
      (if (call $authority (local.get $it) (i32.const 1) (i32.const 1024) (i32.const {len(authority)})) (then unreachable))
      (if (call $path (local.get $it) (i32.const 1) (i32.const 2048) (i32.const 1)) (then unreachable))
      ;; No trailers; the write is done when the request is sent.
      (drop (call $send-trailers (i32.wrap_i64 (i64.shr_u (local.get $trailers) (i64.const 32))) (i32.const 128)))
      (call $send (local.get $it) (i32.const 256))
      (if (i32.load8_u (i32.const 256)) (then
        (call $exit (i32.add (i32.const {FIRST_ERROR}) (i32.load8_u (i32.const 264))))))
      (call $exit (i32.div_u (call $status (i32.load (i32.const 264))) (i32.const 100)))
      unreachable))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "exit" (func $exit)) (export "fields" (func $fields)) (export "request" (func $request))
    (export "scheme" (func $scheme)) (export "authority" (func $authority)) (export "path" (func $path))
    (export "status" (func $status)) (export "send" (func $send)) (export "open-trailers" (func $open-trailers))
    (export "send-trailers" (func $send-trailers))))))
  (func $run async (result (result)) (canon lift (core func $main "run")))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.3.0" (instance $run)))"""
