"""`helm test`: asks each operator behind a headless Service whether it is ready, and the one that leads for its runners."""

import re
import socket
import sys
import time
import urllib.request
from urllib.parse import urlsplit

PATIENCE_SECONDS = 100


def ask(address: str, port: int, path: str) -> str:
    """What one operator answers. Raises OSError."""
    host = f"[{address}]" if ":" in address else address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{host}:{port}{path}", timeout=5) as answer:
        return answer.read().decode()


def ready_runners(metrics: str) -> float | None:
    """How many the leader has; None: it is not the leader."""
    values = dict(re.findall(r"^(wherry_operator_\S+) (\S+)$", metrics, re.MULTILINE))
    if float(values.get("wherry_operator_leader", 0)) != 1:
        return None
    return float(values.get('wherry_operator_runners{state="ready"}', 0))


def problem(host: str, port: int) -> str:
    """What is wrong now; empty: nothing."""
    try:
        addresses = sorted({found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
        found = []
        for address in addresses:
            ask(address, port, "/readyz")
            found.append(ready_runners(ask(address, port, "/metrics")))
    except OSError as error:
        return f"{error}"
    leaders = [runners for runners in found if runners is not None]
    if len(leaders) != 1:
        return f"{len(leaders)} of {len(found)} operators lead; one must"
    return "" if leaders[0] else "no runner is connected; the operator's log says why"


def main(url: str) -> None:
    """Look until nothing is wrong, or patience is over: then exit with a sentence."""
    service = urlsplit(url)
    end = time.monotonic() + PATIENCE_SECONDS
    while said := problem(service.hostname, service.port):
        if time.monotonic() > end:
            sys.exit(said)
        time.sleep(1)
    print("operators are ready, one leads, and it has a runner")


if __name__ == "__main__":
    main(sys.argv[1])
