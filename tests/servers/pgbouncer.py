"""PgBouncer in transaction mode before a PostgreSQL server."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import psycopg

from .postgresql import PostgreSQL, unprivileged
from .processes import Program, Server, Unavailable, free_port, wait_ready

KEPT = "/usr/sbin/pgbouncer"  # where Debian puts it, which is on root's PATH only
CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={server} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
"""


class PgBouncer(Server):
    """A pooler whose clients share `pool` connections to each database of the server."""

    name = "PgBouncer"

    def __init__(self, server: PostgreSQL, pool: int = 3) -> None:
        super().__init__()
        self.server = server
        self.pool = pool
        self.port = free_port()
        self.program: Program | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def dsn_of(self, database: str) -> str:
        """The address of one of the server's databases through it."""
        return f"postgresql://{self.server.user}@{self.address}/{database}"

    def start(self) -> None:
        if self.program is not None and self.program.poll() is None:
            return
        binary = shutil.which("pgbouncer") or KEPT
        if not Path(binary).exists():
            raise Unavailable("pgbouncer is not installed (Debian package: pgbouncer).")
        home, account = self.home(), unprivileged()
        file = home / "pgbouncer.ini"
        file.write_text(
            CONFIGURATION.format(server=self.server.port, user=self.server.user, port=self.port, pool=self.pool)
        )
        if account is not None:
            shutil.chown(home, account)
        self.program = Program.start([binary, file], log=home / "server.log", user=account, cwd=home)
        wait_ready(self.program, self._answers, name=self.name)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def kill(self) -> None:
        self._end()

    def _end(self, *signals: signal.Signals) -> None:
        if self.program is not None:
            self.program.end(*signals)
            self.program = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn_of("postgres"), connect_timeout=2, prepare_threshold=None).close()
        except psycopg.Error:
            return False
        return True
