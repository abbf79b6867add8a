"""`kubectl wherry port-forward`: local ports that lead to an instance of a WasmWorkload."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from argparse import Namespace
from dataclasses import dataclass

from wherry_cli.cluster import Cluster, Connection
from wherry_cli.errors import CliError

_PIECE_BYTES = 32 << 10


@dataclass(frozen=True)
class Ports:
    """One of the command's arguments."""

    local: int
    """0: any free one."""
    remote: int


def parse(text: str) -> Ports:
    """`LOCAL:REMOTE`, `REMOTE` for the same on both sides, `:REMOTE` for any local one. Raises CliError."""
    local, colon, remote = text.rpartition(":")
    try:
        found = Ports(int(local or 0) if colon else int(remote), int(remote))
    except ValueError:
        found = Ports(-1, -1)
    if not 0 <= found.local < 1 << 16 or not 0 < found.remote < 1 << 16:
        raise CliError(f'error: "{text}" is no pair of ports: want LOCAL:REMOTE, as 8080:80')
    return found


def run(cluster: Cluster, given: Namespace) -> int:
    """Forward until interrupted. Raises CliError."""
    wanted = [parse(text) for text in given.ports]
    cluster.get(given.name)  # what is not there is said now, not with the first connection
    listening = [(_listen(given.address, ports.local), ports.remote) for ports in wanted]
    for each, remote in listening:
        print(f"Forwarding from {given.address}:{each.getsockname()[1]} -> {remote}", flush=True)
    threads = [
        threading.Thread(target=_accept, args=(each, cluster, given.name, remote, given.instance), daemon=True)
        for each, remote in listening
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


def _listen(address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port))
    except OSError as error:
        raise CliError(f"error: unable to listen on {address}:{port}: {error.strerror}") from error


def _accept(listening: socket.socket, cluster: Cluster, name: str, remote: int, instance: str) -> None:
    port = listening.getsockname()[1]
    while True:
        client, _ = listening.accept()
        print(f"Handling connection for {port}", flush=True)
        threading.Thread(target=_forward, args=(client, cluster, name, remote, instance), daemon=True).start()


def _forward(client: socket.socket, cluster: Cluster, name: str, remote: int, instance: str) -> None:
    with client:
        try:
            with cluster.connect(name, remote, instance) as instance_side:
                threading.Thread(target=_send, args=(client, instance_side), daemon=True).start()
                for piece in instance_side:
                    client.sendall(piece)
        except CliError as error:
            print(error, file=sys.stderr, flush=True)
        except OSError:
            pass  # the client has gone
        finally:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)  # so that `_send`, too, hears of it


def _send(client: socket.socket, instance_side: Connection) -> None:
    try:
        while piece := client.recv(_PIECE_BYTES):
            instance_side.send(piece)
        instance_side.end()
    except (OSError, CliError):
        pass  # either side has gone
