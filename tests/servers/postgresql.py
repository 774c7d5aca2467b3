"""PostgreSQL from the machine's own packages, with a data directory that lives as long as the tests."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
from pathlib import Path

import psycopg

from .processes import Program, Server, Unavailable, free_port, run, wait_ready

KEPT = Path("/usr/lib/postgresql")  # where Debian keeps the versions side by side


class PostgreSQL(Server):
    """One server without passwords, reachable on loopback only."""

    name = "PostgreSQL"
    user = "postgres"

    def __init__(self, *options: str, durable: bool = False) -> None:
        """Make one with these settings, whose COMMIT waits for the disk, as in production, if it is to be `durable`."""
        super().__init__()
        self.durable = durable
        self.options = options
        self.port = free_port()
        self.program: Program | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def dsn(self) -> str:
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """The address of one of its databases."""
        return f"postgresql://{self.user}@{self.address}/{database}"

    def start(self) -> None:
        if self.program is not None and self.program.poll() is None:
            return
        programs, account = binaries(), unprivileged()
        home = self.home()
        data, log = home / "data", home / "server.log"
        if account is not None:
            shutil.chown(home, account)
        if not data.exists():
            options = ["-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
            run([programs / "initdb", "-D", data, *options], log=log, name="initdb", user=account)
        # Nothing survives the machine, so nothing is forced to disk; what was committed still survives a crash of
        # the server alone.
        options = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
            *self.options,
        ]
        if not self.durable:
            options += ["fsync=off", "full_page_writes=off"]
        arguments = [part for option in options for part in ("-c", option)]
        self.program = Program.start([programs / "postgres", "-D", data, *arguments], log=log, user=account, cwd=home)
        wait_ready(self.program, self._answers, name=self.name)

    def stop(self) -> None:
        self._end(signal.SIGINT, signal.SIGQUIT)

    def kill(self) -> None:
        # SIGQUIT makes it drop everything without writing; SIGKILL would leave its children to notice by themselves.
        self._end(signal.SIGQUIT)

    def _end(self, *signals: signal.Signals) -> None:
        if self.program is not None:
            self.program.end(*signals)
            self.program = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True


def binaries() -> Path:
    """The directory of the newest server programs; they are on the PATH, or where Debian keeps them."""
    on_path = shutil.which("initdb")
    if on_path is not None and Path(on_path).resolve().with_name("postgres").exists():
        return Path(on_path).resolve().parent
    kept = [path.parent for path in KEPT.glob("*/bin/initdb")]
    if not kept:
        raise Unavailable("PostgreSQL's initdb is not installed (Debian package: postgresql).")
    return max(kept, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)])


def unprivileged() -> str | None:
    """The user to run as: PostgreSQL refuses root. None where we are not root."""
    if os.geteuid() != 0:
        return None
    names = {account.pw_name for account in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in names:
            return name
    raise Unavailable("PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody'.")
