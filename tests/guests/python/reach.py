# mypy: ignore-errors
"""A guest in Python that tries to reach out, by its own sockets: reach WHAT..., each of these, and prints a line for it.

lookup:NAME              the addresses of a name
tcp:HOST:PORT            connects (looking a name up first) and prints what comes
udp:HOST:PORT            sends a datagram without connecting, and prints what comes back
connected:HOST:PORT      connects a UDP socket first
listen                   listens on a TCP port
many:HOST:PORT:COUNT     holds so many TCP connections at once, and prints how many there were
"""

import encodings.idna  # noqa: F401 (used by socket, and not there any more when it runs)
import socket
import sys

import wit_world.exports

PATIENCE_SECONDS = 5


def lookup(name: str) -> str:
    found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    return " ".join(sorted({entry[4][0] for entry in found}))


def _address(host: str, port: str, kind: int):
    family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=kind)[0]
    return family, address


def tcp(host: str, port: str) -> str:
    family, address = _address(host, port, socket.SOCK_STREAM)
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.connect(address)
        return stream.recv(100).decode()


def udp(host: str, port: str, *, connects: bool = False) -> str:
    family, address = _address(host, port, socket.SOCK_DGRAM)
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(PATIENCE_SECONDS)
        if connects:
            datagrams.connect(address)
            datagrams.send(b"ping")
        else:
            datagrams.sendto(b"ping", address)
        return datagrams.recv(100).decode()


def connected(host: str, port: str) -> str:
    return udp(host, port, connects=True)


def listen() -> str:
    with socket.socket() as stream:
        stream.bind(("0.0.0.0", 0))
        stream.listen()
        return "listens"


def many(host: str, port: str, count: str) -> str:
    family, address = _address(host, port, socket.SOCK_STREAM)
    streams = []
    why = ""
    try:
        for _ in range(int(count)):
            stream = socket.socket(family, socket.SOCK_STREAM)
            stream.connect(address)
            streams.append(stream)
    except OSError as error:
        why = f" {error}"
    return f"{len(streams)}{why}"


DEEDS = {each.__name__: each for each in (lookup, tcp, udp, connected, listen, many)}


class Run(wit_world.exports.Run):
    def run(self) -> None:
        for what in sys.argv[1:]:
            deed, *rest = what.split(":", 1)
            words = rest[0].rsplit(":", 2 if deed == "many" else 1) if rest and deed != "lookup" else rest
            try:
                said = DEEDS[deed](*words)
            except OSError as error:
                said = f"{type(error).__name__} {error}"
            print(f"{what}: {said}", flush=True)
