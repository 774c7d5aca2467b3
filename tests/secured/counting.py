"""A way to a broker on which connections are counted."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.servers.processes import free_port


@contextmanager
def counted(address: str) -> Iterator[tuple[str, list[str]]]:
    """Forward to an address until the end, and note from where each connection came."""
    host, port = address.split(":")
    came: list[str] = []
    pairs: list[tuple[socket.socket, socket.socket]] = []
    threads: list[threading.Thread] = []

    def start(target: object, *arguments: object) -> None:
        threads.append(threading.Thread(target=target, args=arguments, daemon=True))  # type: ignore[arg-type]
        threads[-1].start()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def forward(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, (_host, client_port) = server.accept()
                came.append(str(client_port))
                pair = client, socket.create_connection((host, int(port)))
                pairs.append(pair)
                start(pump, *pair)
                start(pump, *reversed(pair))

    # Not any port that is free now: clients of a server that had it before, of this process or another, still call.
    with socket.create_server(("127.0.0.1", free_port())) as server:
        start(forward, server)
        try:
            yield f"localhost:{server.getsockname()[1]}", came
        finally:
            server.shutdown(socket.SHUT_RDWR)
            threads[0].join(5)
            for pair in pairs:
                for one in pair:
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(5)
            for pair in pairs:
                for one in pair:
                    one.close()
