# mypy: ignore-errors
"""A guest in Python, which componentize-py makes a WASI 0.2 component: program FILE [panic].

All of the standard library that it needs is imported here: the component is made from a Python that has begun already.
"""

import os
import random
import sys
import time

import wit_world.exports


class Run(wit_world.exports.Run):
    def run(self) -> None:
        print("args", sys.argv[1:])
        print("env", sorted(os.environ.items()))
        print("input", repr(sys.stdin.read()))
        with open(sys.argv[1]) as file:
            print("file", file.read())
        print("random", len({random.SystemRandom().random() for _ in range(100)}), flush=True)
        time.sleep(0.001)
        print("slept", file=sys.stderr, flush=True)
        if "panic" in sys.argv:
            raise ValueError("as asked")
