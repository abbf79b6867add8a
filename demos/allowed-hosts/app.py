# mypy: ignore-errors
"""Asks for a page every two seconds, and prints what came of it: an ordinary program in Python, with its standard library."""

import encodings.idna  # noqa: F401 (used by socket, and not there any more when it runs)
import os
import time
import urllib.request

import wit_world.exports

PAUSE_SECONDS = 2


class Run(wit_world.exports.Run):
    def run(self) -> None:
        while True:
            print(ask(os.environ["URL"]), flush=True)
            time.sleep(PAUSE_SECONDS)


def ask(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return f"{answer.status}: {answer.read(200).decode().strip()}"
    except OSError:
        return "no answer"
