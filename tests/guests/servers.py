"""Components in WebAssembly's text format that serve HTTP (wasi:http/incoming-handler 0.2)."""

from __future__ import annotations

from tests.guests.libc import LIBC

ERROR_CODE = """
    (type $text (option string)) (type $u8-option (option u8)) (type $u16-option (option u16))
    (type $u32-option (option u32)) (type $u64-option (option u64))
    (type $dns (record (field "rcode" $text) (field "info-code" $u16-option)))
    (export "DNS-error-payload" (type $dns-error (eq $dns)))
    (type $tls (record (field "alert-id" $u8-option) (field "alert-message" $text)))
    (export "TLS-alert-received-payload" (type $tls-alert (eq $tls)))
    (type $size (record (field "field-name" $text) (field "field-size" $u32-option)))
    (export "field-size-payload" (type $field-size (eq $size)))
    (type $field-size-option (option $field-size))
    (type $code (variant
      (case "DNS-timeout") (case "DNS-error" $dns-error) (case "destination-not-found") (case "destination-unavailable")
      (case "destination-IP-prohibited") (case "destination-IP-unroutable") (case "connection-refused")
      (case "connection-terminated") (case "connection-timeout") (case "connection-read-timeout")
      (case "connection-write-timeout") (case "connection-limit-reached") (case "TLS-protocol-error")
      (case "TLS-certificate-error") (case "TLS-alert-received" $tls-alert) (case "HTTP-request-denied")
      (case "HTTP-request-length-required") (case "HTTP-request-body-size" $u64-option)
      (case "HTTP-request-method-invalid") (case "HTTP-request-URI-invalid") (case "HTTP-request-URI-too-long")
      (case "HTTP-request-header-section-size" $u32-option) (case "HTTP-request-header-size" $field-size-option)
      (case "HTTP-request-trailer-section-size" $u32-option) (case "HTTP-request-trailer-size" $field-size)
      (case "HTTP-response-incomplete") (case "HTTP-response-header-section-size" $u32-option)
      (case "HTTP-response-header-size" $field-size) (case "HTTP-response-body-size" $u64-option)
      (case "HTTP-response-trailer-section-size" $u32-option) (case "HTTP-response-trailer-size" $field-size)
      (case "HTTP-response-transfer-coding" $text) (case "HTTP-response-content-coding" $text)
      (case "HTTP-response-timeout") (case "HTTP-upgrade-failed") (case "HTTP-protocol-error") (case "loop-detected")
      (case "configuration-error") (case "internal-error" $text)))
    (export "error-code" (type $error-code (eq $code)))"""
"""Everything of `error-code`, for who sets an answer has to name its type in full."""

SERVER = f"""(component
  (import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow 0))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $outer)) (export "pollable" (type $p (eq $outer)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
  (import "wasi:io/error@0.2.0" (instance $errors (export "error" (type (sub resource)))))
  (alias export $errors "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "input-stream" (type $in (sub resource)))
    (export "output-stream" (type $out (sub resource)))
    (alias outer 1 $error (type $outer-error))
    (export "error" (type $error (eq $outer-error)))
    (type $failure (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $failure)))
    (export "[method]input-stream.blocking-read"
      (func (param "self" (borrow $in)) (param "len" u64) (result (result (list u8) (error $stream-error)))))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $out)) (param "contents" (list u8)) (result (result (error $stream-error)))))))
  (alias export $streams "input-stream" (type $input))
  (alias export $streams "output-stream" (type $output))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (alias outer 1 $output (type $outer)) (export "output-stream" (type $s (eq $outer)))
    (export "get-stdout" (func (result (own $s))))))
  (import "wasi:http/types@0.2.0" (instance $types
    (alias outer 1 $input (type $outer-in)) (export "input-stream" (type $in (eq $outer-in)))
    (alias outer 1 $output (type $outer-out)) (export "output-stream" (type $out (eq $outer-out)))
    {ERROR_CODE}
    (export "fields" (type $fields (sub resource)))
    (export "incoming-request" (type $request (sub resource)))
    (export "incoming-body" (type $incoming-body (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "outgoing-body" (type $body (sub resource)))
    (export "response-outparam" (type $outparam (sub resource)))
    (type $wrong (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
    (export "header-error" (type $header-error (eq $wrong)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[method]fields.append" (func (param "self" (borrow $fields)) (param "name" string) (param "value" (list u8))
      (result (result (error $header-error)))))
    (export "[method]incoming-request.path-with-query"
      (func (param "self" (borrow $request)) (result (option string))))
    (export "[method]incoming-request.consume"
      (func (param "self" (borrow $request)) (result (result (own $incoming-body)))))
    (export "[method]incoming-body.stream" (func (param "self" (borrow $incoming-body)) (result (result (own $in)))))
    (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $response))))
    (export "[method]outgoing-response.body" (func (param "self" (borrow $response)) (result (result (own $body)))))
    (export "[method]outgoing-body.write" (func (param "self" (borrow $body)) (result (result (own $out)))))
    (export "[static]outgoing-body.finish"
      (func (param "this" (own $body)) (param "trailers" (option (own $fields))) (result (result (error $error-code)))))
    (export "[static]response-outparam.set" (func (param "param" (own $outparam))
      (param "response" (result (own $response) (error $error-code)))))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $outparam))
  {LIBC}
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $stdout (canon lower (func $stdout "get-stdout")))
  (core func $read (canon lower (func $streams "[method]input-stream.blocking-read")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush") (memory (core memory $memory))))
  (core func $drop-out (canon resource.drop $output))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $append (canon lower (func $types "[method]fields.append") (memory (core memory $memory))))
  (core func $path (canon lower (func $types "[method]incoming-request.path-with-query")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $consume (canon lower (func $types "[method]incoming-request.consume") (memory (core memory $memory))))
  (core func $stream (canon lower (func $types "[method]incoming-body.stream") (memory (core memory $memory))))
  (core func $response (canon lower (func $types "[constructor]outgoing-response")))
  (core func $body (canon lower (func $types "[method]outgoing-response.body") (memory (core memory $memory))))
  (core func $body-write (canon lower (func $types "[method]outgoing-body.write") (memory (core memory $memory))))
  (core func $finish (canon lower (func $types "[static]outgoing-body.finish")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $set (canon lower (func $types "[static]response-outparam.set")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core module $main
    (import "libc" "memory" (memory 2))
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "host" "block" (func $block (param i32)))
    (import "host" "stdout" (func $stdout (result i32)))
    (import "host" "read" (func $read (param i32 i64 i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (import "host" "drop-out" (func $drop-out (param i32)))
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "append" (func $append (param i32 i32 i32 i32 i32 i32)))
    (import "host" "path" (func $path (param i32 i32)))
    (import "host" "consume" (func $consume (param i32 i32)))
    (import "host" "stream" (func $stream (param i32 i32)))
    (import "host" "response" (func $response (param i32) (result i32)))
    (import "host" "body" (func $body (param i32 i32)))
    (import "host" "body-write" (func $body-write (param i32 i32)))
    (import "host" "finish" (func $finish (param i32 i32 i32 i32)))
    (import "host" "set" (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
    (data (i32.const 1024) "hello over HTTP\\0a")
    (data (i32.const 1056) "asked\\0a")
    (data (i32.const 1072) "half\\0a")
    (data (i32.const 1088) "grpc-status0")
    (global $asked (mut i32) (i32.const 0))
    (func $sleep (param $nanoseconds i64) (call $block (call $subscribe (local.get $nanoseconds))))
    ;; The answer's head, and the stream of its body; the body itself is at 16.
    (func $begin (param $out i32) (result i32) (local $answer i32)
      (local.set $answer (call $response (call $fields)))
      (call $body (local.get $answer) (i32.const 12))
      (call $set (local.get $out) (i32.const 0) (local.get $answer) (i32.const 0) (i64.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
      (call $body-write (i32.load (i32.const 16)) (i32.const 20))
      (i32.load (i32.const 24)))
    (func $end (param $stream i32)
      (call $drop-out (local.get $stream))
      (call $finish (i32.load (i32.const 16)) (i32.const 0) (i32.const 0) (i32.const 32)))
    (func $greet (param $out i32) (local $stream i32)
      (local.set $stream (call $begin (local.get $out)))
      (call $write (local.get $stream) (i32.const 1024) (i32.const 16) (i32.const 32))
      (call $end (local.get $stream)))
    ;; How many requests this instance has had, as one digit.
    (func $count (param $out i32) (local $stream i32)
      (local.set $stream (call $begin (local.get $out)))
      (i32.store8 (i32.const 1104) (i32.add (i32.const 48) (global.get $asked)))
      (call $write (local.get $stream) (i32.const 1104) (i32.const 1) (i32.const 32))
      (call $end (local.get $stream)))
    ;; An answer that is not finished, and not given up either.
    (func $hold (param $out i32)
      (call $write (call $begin (local.get $out)) (i32.const 1024) (i32.const 16) (i32.const 32)))
    ;; With a trailer, as gRPC has it.
    (func $trail (param $out i32) (local $stream i32) (local $trailers i32)
      (local.set $stream (call $begin (local.get $out)))
      (call $write (local.get $stream) (i32.const 1024) (i32.const 16) (i32.const 32))
      (call $drop-out (local.get $stream))
      (local.set $trailers (call $fields))
      (call $append (local.get $trailers) (i32.const 1088) (i32.const 11) (i32.const 1099) (i32.const 1) (i32.const 32))
      (call $finish (i32.load (i32.const 16)) (i32.const 1) (local.get $trailers) (i32.const 32)))
    (func $echo (param $request i32) (param $out i32) (local $from i32) (local $to i32)
      (call $consume (local.get $request) (i32.const 48))
      (call $stream (i32.load (i32.const 52)) (i32.const 56))
      (local.set $from (i32.load (i32.const 60)))
      (local.set $to (call $begin (local.get $out)))
      (block $over (loop $more
        (call $read (local.get $from) (i64.const 4096) (i32.const 64))
        (br_if $over (i32.load8_u (i32.const 64)))
        (call $write (local.get $to) (i32.load (i32.const 68)) (i32.load (i32.const 72)) (i32.const 32))
        (br $more)))
      (call $end (local.get $to)))
    ;; Reads the body to its end, and then greets.
    (func $drain (param $request i32) (param $out i32) (local $from i32)
      (call $consume (local.get $request) (i32.const 48))
      (call $stream (i32.load (i32.const 52)) (i32.const 56))
      (local.set $from (i32.load (i32.const 60)))
      (block $over (loop $more
        (call $read (local.get $from) (i64.const 4096) (i32.const 64))
        (br_if $over (i32.load8_u (i32.const 64)))
        (br $more)))
      (call $greet (local.get $out)))
    (func $pour (param $out i32) (local $stream i32)
      (local.set $stream (call $begin (local.get $out)))
      (block $over (loop $more
        (call $write (local.get $stream) (i32.const 1024) (i32.const 4096) (i32.const 32))
        (br_if $over (i32.load8_u (i32.const 32)))
        (br $more)))
      (call $drop-out (local.get $stream)))
    (func (export "handle") (param $request i32) (param $out i32) (local $what i32) (local $stream i32)
      (global.set $asked (i32.add (global.get $asked) (i32.const 1)))
      (call $path (local.get $request) (i32.const 0))
      ;; The letter behind the slash says what to do.
      (local.set $what (i32.load8_u (i32.add (i32.load (i32.const 4)) (i32.const 1))))
      (if (i32.eq (local.get $what) (i32.const 108)) (then ;; l: log
        (call $write (call $stdout) (i32.const 1056) (i32.const 6) (i32.const 32))))
      (if (i32.eq (local.get $what) (i32.const 101)) (then ;; e: echo
        (call $echo (local.get $request) (local.get $out)) (return)))
      (if (i32.eq (local.get $what) (i32.const 114)) (then ;; r: read
        (call $drain (local.get $request) (local.get $out)) (return)))
      (if (i32.eq (local.get $what) (i32.const 103)) (then ;; g: a trailer
        (call $trail (local.get $out)) (return)))
      (if (i32.eq (local.get $what) (i32.const 99)) (then ;; c: count
        (call $count (local.get $out)) (return)))
      (if (i32.eq (local.get $what) (i32.const 107)) (then ;; k: keep an answer
        (call $hold (local.get $out)) (return)))
      (if (i32.eq (local.get $what) (i32.const 115)) (then ;; s: spin
        (loop $forever (br $forever))))
      (if (i32.eq (local.get $what) (i32.const 119)) (then ;; w: wait half a second
        (call $sleep (i64.const 500000000))))
      (if (i32.eq (local.get $what) (i32.const 110)) (then ;; n: never
        (call $sleep (i64.const 3600000000000))))
      (if (i32.eq (local.get $what) (i32.const 116)) (then ;; t: trap
        unreachable))
      (if (i32.eq (local.get $what) (i32.const 113)) (then ;; q: quit without an answer
        (return)))
      (if (i32.eq (local.get $what) (i32.const 104)) (then ;; h: half an answer, then a trap
        (local.set $stream (call $begin (local.get $out)))
        (call $write (local.get $stream) (i32.const 1072) (i32.const 5) (i32.const 32))
        (call $sleep (i64.const 50000000))
        unreachable))
      (if (i32.eq (local.get $what) (i32.const 112)) (then ;; p: pour
        (call $pour (local.get $out)) (return)))
      (if (i32.eq (local.get $what) (i32.const 109)) (then ;; m: 16 MiB of memory, for half a second
        (if (i32.lt_s (memory.grow (i32.const 256)) (i32.const 0)) (then unreachable))
        (call $sleep (i64.const 500000000))))
      (call $greet (local.get $out))))
  (core instance $main (instantiate $main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "subscribe" (func $subscribe)) (export "block" (func $block)) (export "stdout" (func $stdout))
      (export "read" (func $read)) (export "write" (func $write)) (export "drop-out" (func $drop-out))
      (export "fields" (func $fields)) (export "append" (func $append)) (export "path" (func $path))
      (export "consume" (func $consume))
      (export "stream" (func $stream)) (export "response" (func $response)) (export "body" (func $body))
      (export "body-write" (func $body-write)) (export "finish" (func $finish)) (export "set" (func $set))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $main "handle")))
  (component $handler
    (import "request-type" (type $request (sub resource)))
    (import "outparam-type" (type $outparam (sub resource)))
    (import "handle" (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))))
    (export "incoming-request" (type $request))
    (export "response-outparam" (type $outparam))
    (export "handle" (func $handle)))
  (instance $exported (instantiate $handler
    (with "request-type" (type $request)) (with "outparam-type" (type $outparam)) (with "handle" (func $handle))))
  (export "wasi:http/incoming-handler@0.2.0" (instance $exported)))"""
"""Answers `hello over HTTP`; the first letter of the path says what it does before or instead: l(og), e(cho), r(ead the
body), c(ount this instance's requests), g(RPC's trailer), k(eep an answer without an end), s(pin), w(ait half a second),
n(ever answer), t(rap), q(uit without an answer), h(alf an answer, then a trap), p(our without end), m(emory: 16 MiB, for half
a second)."""
