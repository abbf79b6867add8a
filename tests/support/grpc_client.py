"""Asks a gRPC server as users do, by Google's own library: `python -m tests.support.grpc_client ADDRESS`.

In a process of its own, for the library's threads and descriptors outlive its channels. The server is `tests/guests/grpc.c`.
Prints a JSON object: the answers, and the status of a method that there is not.
"""

from __future__ import annotations

import json
import sys

import grpc

CALLS = 50
SECONDS = 60.0
"""For an answer that takes milliseconds."""


def text(value: str) -> bytes:
    """A message whose field 1 is a short text."""
    return bytes([1 << 3 | 2, len(value)]) + value.encode()


def main() -> None:
    """Many calls at once, one that streams, and one that fails."""
    with grpc.insecure_channel(sys.argv[1]) as channel:
        greet = channel.unary_unary("/boats.Harbour/Greet")
        calls = [greet.future(text(f"boat {number}"), timeout=SECONDS) for number in range(CALLS)]
        greetings = [call.result()[2:].decode() for call in calls]
        thrice = channel.unary_stream("/boats.Harbour/GreetThrice")(text("Ada"), timeout=SECONDS)
        streamed = [answer[2:].decode() for answer in thrice]
        sunk = channel.unary_unary("/boats.Harbour/Sink").future(b"", timeout=SECONDS)
        print(json.dumps({"greetings": greetings, "streamed": streamed, "status": sunk.code().name}))


if __name__ == "__main__":
    main()
