"""Asks a gRPC server as users do, by Google's own library: `python -m tests.support.grpc_client ADDRESS`.

In a process of its own, for the library's threads and descriptors outlive its channels. The server is `tests/guests/grpc.c`.
Prints a JSON object: the answers, and the status of a method that there is not.
"""

from __future__ import annotations

import itertools
import json
import queue
import sys

import grpc

CALLS = 50
SECONDS = 60.0
"""For an answer that takes milliseconds."""


def text(value: str) -> bytes:
    """A message whose field 1 is a short text."""
    return bytes([1 << 3 | 2, len(value)]) + value.encode()


def greeted_each(channel: grpc.Channel) -> list[str]:
    """A talk over one call: the next is said when the answer to the one before has come."""
    saying: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    answers = channel.stream_stream("/boats.Harbour/GreetEach")(iter(saying.get, None), timeout=SECONDS)
    heard = []
    for number in range(CALLS):
        saying.put(text(f"boat {number}"))
        heard.append(next(answers))
    saying.put(None)
    return [answer[2:].decode() for answer in itertools.chain(heard, answers)]


def main() -> None:
    """Many calls at once, those that stream one way, the other and both, and one that fails."""
    with grpc.insecure_channel(sys.argv[1]) as channel:
        greet = channel.unary_unary("/boats.Harbour/Greet")
        calls = [greet.future(text(f"boat {number}"), timeout=SECONDS) for number in range(CALLS)]
        greetings = [call.result()[2:].decode() for call in calls]
        thrice = channel.unary_stream("/boats.Harbour/GreetThrice")(text("Ada"), timeout=SECONDS)
        streamed = [answer[2:].decode() for answer in thrice]
        names = iter([text(name) for name in ("Ada", "Bo", "Cy")])
        all_of_them = channel.stream_unary("/boats.Harbour/GreetAll")(names, timeout=SECONDS)[2:].decode()
        talk = greeted_each(channel)
        sunk = channel.unary_unary("/boats.Harbour/Sink").future(b"", timeout=SECONDS)
        said = {
            "greetings": greetings,
            "streamed": streamed,
            "all": all_of_them,
            "talk": talk,
            "status": sunk.code().name,
        }
        print(json.dumps(said))


if __name__ == "__main__":
    main()
