"""A way to the database server that loses the answer to a COMMIT."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Wire:
    """A way to the database server that can be cut between a COMMIT of a handler and its answer."""

    def __init__(self, server: int, effects: int = 1) -> None:
        """Cut a COMMIT of so many effects at least."""
        self.server = server
        self.effects = effects
        self.cut_after_commit = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Wire:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        for one in (self._listener, *self._open):
            one.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.server))
            self._open += [client, server]
            state = {"effects": 0, "commit": 0}
            threading.Thread(target=self._carry, args=(client, server, state, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, state, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, state: dict[str, int], asks: bool) -> None:
        with closing_both(source, target):
            while data := source.recv(65536):
                if asks:
                    # Only the connection of a handler, which writes effects.
                    state["effects"] += data.count(b'INSERT INTO "tests_effect"')
                    state["commit"] = state["effects"] >= self.effects and b"COMMIT" in data
                    if b"COMMIT" in data:
                        state["effects"] = 0
                elif state["commit"] and b"COMMIT" in data and self.cut_after_commit.is_set():
                    self.cut_after_commit.clear()
                    return
                target.sendall(data)


@contextmanager
def closing_both(*sockets: socket.socket) -> Iterator[None]:
    """Close both ends as soon as one has ended."""
    try:
        yield
    except OSError:
        pass
    finally:
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                one.close()
