"""Redis, in memory only."""

from __future__ import annotations

import signal
import socket

from .processes import Program, Server, found, free_port, wait_ready


class Redis(Server):
    """One server that keeps nothing on disk."""

    name = "Redis"

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.program: Program | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def dsn(self) -> str:
        return f"redis://{self.address}/0"

    def start(self) -> None:
        if self.program is not None and self.program.poll() is None:
            return
        server = found("redis-server", "redis-server")
        home = self.home()
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", home]
        self.program = Program.start([server, *options], log=home / "server.log")
        wait_ready(self.program, self._answers, name=self.name)

    def stop(self) -> None:
        if self.program is not None:
            self.program.end(signal.SIGTERM)
            self.program = None

    def kill(self) -> None:
        if self.program is not None:
            self.program.end()
            self.program = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
