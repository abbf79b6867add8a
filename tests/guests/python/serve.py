# mypy: ignore-errors
"""A guest in Python whose own sockets listen: serve WHAT..., each of these in turn.

tcp:HOST:PORT            listens, says so, and echoes what each connection sends, one after the other, without end
http:HOST:PORT           listens, says so, and greets who asks on each connection, one after the other, without end
udp:HOST:PORT            binds, says so, and echoes each datagram, without end
try:tcp:HOST:PORT        listens, prints how that went, and lets go
try:udp:HOST:PORT        binds, prints how that went, and lets go
send:HOST:PORT           sends a datagram from a socket that it binds to nothing
"""

import encodings.idna  # noqa: F401 (used by socket, and not there any more when it runs)
import socket
import sys

import wit_world.exports

KINDS = {"tcp": socket.SOCK_STREAM, "http": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}

GREETING = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\nConnection: close\r\n\r\nhello over HTTP\n"


def _bound(kind: str, host: str, port: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, KINDS[kind])
    opened.bind((host.strip("[]"), int(port)))
    if kind != "udp":
        opened.listen()
    return opened


def echo_connections(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data)


def greet_connections(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        with connection:
            asked = b""
            while b"\r\n\r\n" not in asked and (data := connection.recv(4096)):
                asked += data
            connection.sendall(GREETING)


def echo_datagrams(bound: socket.socket) -> None:
    while True:
        data, sender = bound.recvfrom(4096)
        bound.sendto(data, sender)


SERVES = {"tcp": echo_connections, "http": greet_connections, "udp": echo_datagrams}


class Run(wit_world.exports.Run):
    def run(self) -> None:
        for what in sys.argv[1:]:
            deed, rest = what.split(":", 1)
            try:
                if deed == "try":
                    kind, where = rest.split(":", 1)
                    _bound(kind, *where.rsplit(":", 1)).close()
                elif deed == "send":
                    host, port = rest.rsplit(":", 1)
                    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"ping", (host, int(port)))
                else:
                    serving = _bound(deed, *rest.rsplit(":", 1))
                    print(f"{what}: listens", flush=True)
                    SERVES[deed](serving)
                said = "done"
            except OSError as error:
                said = f"{type(error).__name__} {error}"
            print(f"{what}: {said}", flush=True)
