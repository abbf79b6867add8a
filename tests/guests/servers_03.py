"""Components in WebAssembly's text format that serve HTTP (wasi:http/handler 0.3)."""

from __future__ import annotations

from tests.guests.libc import LIBC
from tests.guests.servers import ERROR_CODE

TRAILERS = "(future (result (option (own $fields)) (error $error-code)))"
"""What a body ends with, within the types of `wasi:http`."""

SERVER_03 = f"""(component
  (import "wasi:clocks/monotonic-clock@0.3.0" (instance $clock
    (export "wait-for" (func async (param "how-long" u64)))))
  (import "wasi:cli/types@0.3.0" (instance $cli
    (type $codes (enum "io" "illegal-byte-sequence" "pipe")) (export "error-code" (type (eq $codes)))))
  (alias export $cli "error-code" (type $cli-error))
  (import "wasi:cli/stdout@0.3.0" (instance $stdout
    (alias outer 1 $cli-error (type $outer)) (export "error-code" (type $c (eq $outer)))
    (export "write-via-stream" (func (param "data" (stream u8)) (result (future (result (error $c))))))))
  (import "wasi:http/types@0.3.0" (instance $types
    {ERROR_CODE}
    (type $schemes (variant (case "HTTP") (case "HTTPS") (case "other" string)))
    (export "scheme" (type $scheme (eq $schemes)))
    (type $wrong (variant (case "invalid-syntax") (case "forbidden") (case "immutable") (case "size-exceeded")
      (case "other" $text)))
    (export "header-error" (type $header-error (eq $wrong)))
    (export "fields" (type $fields (sub resource)))
    (export "request" (type $request (sub resource)))
    (export "request-options" (type $options (sub resource)))
    (export "response" (type $response (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[method]fields.append" (func (param "self" (borrow $fields)) (param "name" string) (param "value" (list u8))
      (result (result (error $header-error)))))
    (export "[method]request.get-path-with-query" (func (param "self" (borrow $request)) (result (option string))))
    (export "[method]request.get-authority" (func (param "self" (borrow $request)) (result (option string))))
    (export "[static]request.consume-body" (func (param "this" (own $request)) (param "res" (future (result (error $error-code))))
      (result (tuple (stream u8) {TRAILERS}))))
    (export "[static]request.new" (func (param "headers" (own $fields)) (param "contents" (option (stream u8)))
      (param "trailers" {TRAILERS}) (param "options" (option (own $options)))
      (result (tuple (own $request) (future (result (error $error-code)))))))
    (export "[method]request.set-scheme"
      (func (param "self" (borrow $request)) (param "scheme" (option $scheme)) (result (result))))
    (export "[method]request.set-authority"
      (func (param "self" (borrow $request)) (param "authority" (option string)) (result (result))))
    (export "[method]request.set-path-with-query"
      (func (param "self" (borrow $request)) (param "path-with-query" (option string)) (result (result))))
    (export "[static]response.new" (func (param "headers" (own $fields)) (param "contents" (option (stream u8)))
      (param "trailers" {TRAILERS}) (result (tuple (own $response) (future (result (error $error-code)))))))))
  (alias export $types "fields" (type $fields))
  (alias export $types "request" (type $request))
  (alias export $types "response" (type $response))
  (alias export $types "error-code" (type $error-code))
  (import "wasi:http/client@0.3.0" (instance $client
    (alias outer 1 $request (type $outer-request)) (export "request" (type $request (eq $outer-request)))
    (alias outer 1 $response (type $outer-response)) (export "response" (type $response (eq $outer-response)))
    (alias outer 1 $error-code (type $outer-error)) (export "error-code" (type $code (eq $outer-error)))
    (export "send" (func async (param "request" (own $request)) (result (result (own $response) (error $code)))))))
  (type $bytes (stream u8))
  (type $trailers {TRAILERS})
  (type $result (future (result (error $error-code))))
  (type $printed (future (result (error $cli-error))))
  (type $answer (result (own $response) (error $error-code)))
  {LIBC}
  (core func $sleep (canon lower (func $clock "wait-for")))
  (core func $print (canon lower (func $stdout "write-via-stream")))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $append (canon lower (func $types "[method]fields.append")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $path (canon lower (func $types "[method]request.get-path-with-query")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $authority (canon lower (func $types "[method]request.get-authority")
    (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $consume (canon lower (func $types "[static]request.consume-body") (memory (core memory $memory))))
  (core func $request (canon lower (func $types "[static]request.new") (memory (core memory $memory))))
  (core func $set-scheme (canon lower (func $types "[method]request.set-scheme") (memory (core memory $memory))))
  (core func $set-authority (canon lower (func $types "[method]request.set-authority") (memory (core memory $memory))))
  (core func $set-path (canon lower (func $types "[method]request.set-path-with-query") (memory (core memory $memory))))
  (core func $response (canon lower (func $types "[static]response.new") (memory (core memory $memory))))
  (core func $drop-request (canon resource.drop $request))
  (core func $ask (canon lower (func $client "send") (memory (core memory $memory)) (realloc (core func $realloc))))
  (core func $open (canon stream.new $bytes))
  (core func $send (canon stream.write $bytes async (memory (core memory $memory))))
  (core func $receive (canon stream.read $bytes async (memory (core memory $memory))))
  (core func $close (canon stream.drop-writable $bytes))
  (core func $let-go (canon stream.drop-readable $bytes))
  (core func $open-trailers (canon future.new $trailers))
  (core func $send-trailers (canon future.write $trailers async (memory (core memory $memory))))
  (core func $close-trailers (canon future.drop-writable $trailers))
  (core func $forget-trailers (canon future.drop-readable $trailers))
  (core func $open-result (canon future.new $result))
  (core func $send-result (canon future.write $result async (memory (core memory $memory))))
  (core func $close-result (canon future.drop-writable $result))
  (core func $forget-result (canon future.drop-readable $result))
  (core func $await-printed (canon future.read $printed async (memory (core memory $memory))))
  (core func $forget-printed (canon future.drop-readable $printed))
  (core func $new-set (canon waitable-set.new))
  (core func $join (canon waitable.join))
  (core func $wait (canon waitable-set.wait (memory (core memory $memory))))
  (core func $return (canon task.return (result $answer) (memory (core memory $memory))))
  (core module $main
    (import "libc" "memory" (memory 2))
    (import "host" "sleep" (func $sleep (param i64)))
    (import "host" "print" (func $print (param i32) (result i32)))
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "append" (func $append (param i32 i32 i32 i32 i32 i32)))
    (import "host" "path" (func $path (param i32 i32)))
    (import "host" "authority" (func $authority (param i32 i32)))
    (import "host" "consume" (func $consume (param i32 i32 i32)))
    (import "host" "request" (func $request (param i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "set-scheme" (func $set-scheme (param i32 i32 i32 i32 i32) (result i32)))
    (import "host" "set-authority" (func $set-authority (param i32 i32 i32 i32) (result i32)))
    (import "host" "set-path" (func $set-path (param i32 i32 i32 i32) (result i32)))
    (import "host" "response" (func $response (param i32 i32 i32 i32 i32)))
    (import "host" "drop-request" (func $drop-request (param i32)))
    (import "host" "ask" (func $ask (param i32 i32)))
    (import "host" "open" (func $open (result i64)))
    (import "host" "send" (func $send (param i32 i32 i32) (result i32)))
    (import "host" "receive" (func $receive (param i32 i32 i32) (result i32)))
    (import "host" "close" (func $close (param i32)))
    (import "host" "let-go" (func $let-go (param i32)))
    (import "host" "open-trailers" (func $open-trailers (result i64)))
    (import "host" "send-trailers" (func $send-trailers (param i32 i32) (result i32)))
    (import "host" "close-trailers" (func $close-trailers (param i32)))
    (import "host" "forget-trailers" (func $forget-trailers (param i32)))
    (import "host" "open-result" (func $open-result (result i64)))
    (import "host" "send-result" (func $send-result (param i32 i32) (result i32)))
    (import "host" "close-result" (func $close-result (param i32)))
    (import "host" "forget-result" (func $forget-result (param i32)))
    (import "host" "await-printed" (func $await-printed (param i32 i32) (result i32)))
    (import "host" "forget-printed" (func $forget-printed (param i32)))
    (import "host" "new-set" (func $new-set (result i32)))
    (import "host" "join" (func $join (param i32 i32)))
    (import "host" "wait" (func $wait (param i32 i32) (result i32)))
    (import "host" "return" (func $return (param i32 i32 i32 i64 i32 i32 i32 i32)))
    (data (i32.const 1024) "hello over HTTP\\0a")
    (data (i32.const 1056) "asked\\0a")
    (data (i32.const 1072) "half\\0a")
    (data (i32.const 1088) "grpc-status0")
    (data (i32.const 1120) "afterwards\\0a")
    (data (i32.const 1152) "/")
    (global $asked (mut i32) (i32.const 0))
    (global $set (mut i32) (i32.const 0))
    ;; Of the answer: its body's stream, and its trailers.
    (global $to (mut i32) (i32.const 0))
    (global $last (mut i32) (i32.const 0))
    (func $low (param $pair i64) (result i32) (i32.wrap_i64 (local.get $pair)))
    (func $high (param $pair i64) (result i32) (i32.wrap_i64 (i64.shr_u (local.get $pair) (i64.const 32))))
    ;; What a read or a write gave, once it is done.
    (func $await (param $handle i32) (param $gave i32) (result i32)
      (if (i32.ne (local.get $gave) (i32.const -1)) (then (return (local.get $gave))))
      (if (i32.eqz (global.get $set)) (then (global.set $set (call $new-set))))
      (call $join (local.get $handle) (global.get $set))
      (drop (call $wait (global.get $set) (i32.const 48)))
      (call $join (local.get $handle) (i32.const 0))
      (i32.load (i32.const 52)))
    ;; Write to a stream; whether somebody took it.
    (func $write-to (param $stream i32) (param $at i32) (param $length i32) (result i32) (local $gave i32)
      (loop $more
        (local.set $gave
          (call $await (local.get $stream) (call $send (local.get $stream) (local.get $at) (local.get $length))))
        (if (i32.and (local.get $gave) (i32.const 15)) (then (return (i32.const 0))))
        (local.set $gave (i32.shr_u (local.get $gave) (i32.const 4)))
        (local.set $at (i32.add (local.get $at) (local.get $gave)))
        (local.set $length (i32.sub (local.get $length) (local.get $gave)))
        (br_if $more (local.get $length)))
      (i32.const 1))
    (func $write (param $at i32) (param $length i32) (result i32)
      (call $write-to (global.get $to) (local.get $at) (local.get $length)))
    (func $answer (param $response i32)
      (call $return (i32.const 0) (local.get $response) (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0)))
    ;; The answer's head, with a body that is still to come.
    (func $begin (local $body i64) (local $trailers i64)
      (local.set $body (call $open))
      (local.set $trailers (call $open-trailers))
      (global.set $to (call $high (local.get $body)))
      (global.set $last (call $high (local.get $trailers)))
      (call $response (call $fields) (i32.const 1) (call $low (local.get $body)) (call $low (local.get $trailers))
        (i32.const 64))
      (call $forget-result (i32.load (i32.const 68)))
      (call $answer (i32.load (i32.const 64))))
    ;; Trailers: none, or these.
    (func $end-with (param $some i32) (param $trailers i32)
      (call $close (global.get $to))
      (i32.store8 (i32.const 128) (i32.const 0))
      (i32.store8 (i32.const 136) (local.get $some))
      (i32.store (i32.const 140) (local.get $trailers))
      (drop (call $await (global.get $last) (call $send-trailers (global.get $last) (i32.const 128))))
      (call $close-trailers (global.get $last)))
    (func $end (call $end-with (i32.const 0) (i32.const 0)))
    (func $say (param $at i32) (param $length i32)
      (call $begin)
      (drop (call $write (local.get $at) (local.get $length)))
      (call $end))
    (func $greet (call $say (i32.const 1024) (i32.const 16)))
    ;; How many requests this instance has had, as one digit.
    (func $count
      (i32.store8 (i32.const 1104) (i32.add (i32.const 48) (global.get $asked)))
      (call $say (i32.const 1104) (i32.const 1)))
    ;; An answer that is not finished, and not given up either.
    (func $hold
      (call $begin)
      (drop (call $write (i32.const 1024) (i32.const 16))))
    ;; With a trailer, as gRPC has it.
    (func $trail (local $trailers i32)
      (call $begin)
      (drop (call $write (i32.const 1024) (i32.const 16)))
      (local.set $trailers (call $fields))
      (call $append (local.get $trailers) (i32.const 1088) (i32.const 11) (i32.const 1099) (i32.const 1) (i32.const 32))
      (call $end-with (i32.const 1) (local.get $trailers)))
    ;; The body's stream is at 80 then, and its trailers at 84.
    (func $take-body (param $request i32) (local $result i64)
      (local.set $result (call $open-result))
      (call $consume (local.get $request) (call $low (local.get $result)) (i32.const 80))
      (i32.store8 (i32.const 128) (i32.const 0))
      (drop (call $await (call $high (local.get $result))
        (call $send-result (call $high (local.get $result)) (i32.const 128))))
      (call $close-result (call $high (local.get $result))))
    ;; How much of the body came to 8192; 0 at its end.
    (func $read (result i32)
      (i32.shr_u (call $await (i32.load (i32.const 80))
        (call $receive (i32.load (i32.const 80)) (i32.const 8192) (i32.const 4096))) (i32.const 4)))
    (func $drop-body
      (call $let-go (i32.load (i32.const 80)))
      (call $forget-trailers (i32.load (i32.const 84))))
    (func $echo (param $request i32) (local $length i32)
      (call $take-body (local.get $request))
      (call $begin)
      (block $over (loop $more
        (br_if $over (i32.eqz (local.tee $length (call $read))))
        (br_if $more (call $write (i32.const 8192) (local.get $length)))))
      (call $drop-body)
      (call $end))
    ;; Reads the body to its end, and then greets.
    (func $drain (param $request i32)
      (call $take-body (local.get $request))
      (loop $more (br_if $more (call $read)))
      (call $drop-body)
      (call $greet))
    ;; The request's body is the answer's, and the guest is done.
    (func $forward (param $request i32)
      (call $take-body (local.get $request))
      (call $response (call $fields) (i32.const 1) (i32.load (i32.const 80)) (i32.load (i32.const 84)) (i32.const 64))
      (call $forget-result (i32.load (i32.const 68)))
      (call $answer (i32.load (i32.const 64))))
    (func $pour
      (call $begin)
      (loop $more (br_if $more (call $write (i32.const 1024) (i32.const 4096))))
      (call $end))
    (func $log (param $at i32) (param $length i32) (local $ends i64) (local $printed i32)
      (local.set $ends (call $open))
      (local.set $printed (call $print (call $low (local.get $ends))))
      (drop (call $write-to (call $high (local.get $ends)) (local.get $at) (local.get $length)))
      (call $close (call $high (local.get $ends)))
      (drop (call $await (local.get $printed) (call $await-printed (local.get $printed) (i32.const 128))))
      (call $forget-printed (local.get $printed)))
    ;; Sends a request to whom the path names behind its letter; answers what comes, or an error's number.
    (func $send-out (param $at i32) (param $length i32) (local $trailers i64) (local $last i32) (local $wrote i32)
      (local.set $trailers (call $open-trailers))
      (local.set $last (call $high (local.get $trailers)))
      (call $request (call $fields) (i32.const 0) (i32.const 0) (call $low (local.get $trailers)) (i32.const 0) (i32.const 0)
        (i32.const 64))
      (call $forget-result (i32.load (i32.const 68)))
      (if (call $set-scheme (i32.load (i32.const 64)) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0))
        (then unreachable))
      (if (call $set-authority (i32.load (i32.const 64)) (i32.const 1) (local.get $at) (local.get $length))
        (then unreachable))
      (if (call $set-path (i32.load (i32.const 64)) (i32.const 1) (i32.const 1152) (i32.const 1)) (then unreachable))
      (i64.store (i32.const 128) (i64.const 0))
      (i64.store (i32.const 136) (i64.const 0))
      (local.set $wrote (call $send-trailers (local.get $last) (i32.const 128)))
      (call $ask (i32.load (i32.const 64)) (i32.const 256))
      (drop (call $await (local.get $last) (local.get $wrote)))
      (call $close-trailers (local.get $last))
      (if (i32.eqz (i32.load8_u (i32.const 256))) (then (call $answer (i32.load (i32.const 264))) (return)))
      (i32.store8 (i32.const 1104) (i32.add (i32.const 48) (i32.div_u (i32.load8_u (i32.const 264)) (i32.const 10))))
      (i32.store8 (i32.const 1105) (i32.add (i32.const 48) (i32.rem_u (i32.load8_u (i32.const 264)) (i32.const 10))))
      (call $say (i32.const 1104) (i32.const 2)))
    (func $do (param $request i32) (local $at i32) (local $what i32)
      (global.set $asked (i32.add (global.get $asked) (i32.const 1)))
      (call $path (local.get $request) (i32.const 0))
      ;; The letter behind the slash says what to do.
      (local.set $at (i32.add (i32.load (i32.const 4)) (i32.const 2)))
      (local.set $what (i32.load8_u (i32.sub (local.get $at) (i32.const 1))))
      (if (i32.eq (local.get $what) (i32.const 101)) (then (call $echo (local.get $request)) (return))) ;; e
      (if (i32.eq (local.get $what) (i32.const 114)) (then (call $drain (local.get $request)) (return))) ;; r
      (if (i32.eq (local.get $what) (i32.const 102)) (then (call $forward (local.get $request)) (return))) ;; f
      (if (i32.eq (local.get $what) (i32.const 117)) (then ;; u
        (call $authority (local.get $request) (i32.const 16))
        (call $drop-request (local.get $request))
        (call $say (i32.load (i32.const 20)) (i32.load (i32.const 24))) (return)))
      (call $drop-request (local.get $request))
      (if (i32.eq (local.get $what) (i32.const 108)) (then (call $log (i32.const 1056) (i32.const 6)))) ;; l
      (if (i32.eq (local.get $what) (i32.const 103)) (then (call $trail) (return))) ;; g
      (if (i32.eq (local.get $what) (i32.const 99)) (then (call $count) (return))) ;; c
      (if (i32.eq (local.get $what) (i32.const 107)) (then (call $hold) (return))) ;; k
      (if (i32.eq (local.get $what) (i32.const 112)) (then (call $pour) (return))) ;; p
      (if (i32.eq (local.get $what) (i32.const 113)) (then (return))) ;; q
      (if (i32.eq (local.get $what) (i32.const 111)) (then ;; o
        (call $send-out (local.get $at) (i32.sub (i32.load (i32.const 8)) (i32.const 2))) (return)))
      (if (i32.eq (local.get $what) (i32.const 98)) (then ;; b
        (call $return (i32.const 1) (i32.const 37) (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
          (i32.const 0))
        (return)))
      (if (i32.eq (local.get $what) (i32.const 97)) (then ;; a
        (call $greet)
        (call $sleep (i64.const 300000000))
        (call $log (i32.const 1120) (i32.const 11)) (return)))
      (if (i32.eq (local.get $what) (i32.const 115)) (then (loop $forever (br $forever)))) ;; s
      (if (i32.eq (local.get $what) (i32.const 119)) (then (call $sleep (i64.const 500000000)))) ;; w
      (if (i32.eq (local.get $what) (i32.const 110)) (then (call $sleep (i64.const 3600000000000)))) ;; n
      (if (i32.eq (local.get $what) (i32.const 116)) (then unreachable)) ;; t
      (if (i32.eq (local.get $what) (i32.const 104)) (then ;; h
        (call $begin)
        (drop (call $write (i32.const 1072) (i32.const 5)))
        (call $sleep (i64.const 50000000))
        unreachable))
      (if (i32.eq (local.get $what) (i32.const 109)) (then ;; m
        (if (i32.lt_s (memory.grow (i32.const 256)) (i32.const 0)) (then unreachable))
        (call $sleep (i64.const 500000000))))
      (call $greet))
    ;; The task is over when it returns; who waited did so in the middle.
    (func (export "handle") (param $request i32) (result i32) (call $do (local.get $request)) (i32.const 0))
    (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
  (core instance $main (instantiate $main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "sleep" (func $sleep)) (export "print" (func $print)) (export "fields" (func $fields))
      (export "append" (func $append)) (export "path" (func $path)) (export "authority" (func $authority))
      (export "consume" (func $consume)) (export "request" (func $request)) (export "set-scheme" (func $set-scheme))
      (export "set-authority" (func $set-authority)) (export "set-path" (func $set-path))
      (export "response" (func $response))
      (export "drop-request" (func $drop-request)) (export "ask" (func $ask)) (export "open" (func $open))
      (export "send" (func $send)) (export "receive" (func $receive)) (export "close" (func $close))
      (export "let-go" (func $let-go)) (export "open-trailers" (func $open-trailers))
      (export "send-trailers" (func $send-trailers)) (export "close-trailers" (func $close-trailers))
      (export "forget-trailers" (func $forget-trailers)) (export "open-result" (func $open-result))
      (export "send-result" (func $send-result)) (export "close-result" (func $close-result))
      (export "forget-result" (func $forget-result)) (export "await-printed" (func $await-printed))
      (export "forget-printed" (func $forget-printed)) (export "new-set" (func $new-set)) (export "join" (func $join))
      (export "wait" (func $wait)) (export "return" (func $return))))))
  (func $handle async (param "request" (own $request)) (result $answer)
    (canon lift (core func $main "handle") async (memory (core memory $memory)) (callback (core func $main "callback"))))
  (instance $exported (export "handle" (func $handle)))
  (export "wasi:http/handler@0.3.0" (instance $exported)))"""
"""Answers as `servers.SERVER` does, by the same letters. Beside those: f(orward the request's body as the answer's), u (whom
the URI names), b(ad: answers with an error code), a(fterwards: goes on when its answer is over), and o with an authority
behind it (send a request there, and answer what it answers, or an error's number)."""
