"""A project in a directory, for commands that run as processes of their own, on a SQLite file or PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.servers import PostgreSQL
from tests.servers.processes import Program, wait_until

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = """
from tests.settings import *

DATABASES = {"default": %(database)r}
KAFKA = %(kafka)r
"""

HANDLERS = """
import os
import time
from pathlib import Path

from tests.app.handlers import record

HERE = Path(__file__).parent


def handle(message):
    \"\"\"Note each run, whatever becomes of it; leave an effect; then do what the value says.\"\"\"
    with open(HERE / "runs", "ab", buffering=0) as runs:
        runs.write(b"%d\\n" % message.offset)
    record(message)
    value = message.value or {}
    deadline = time.monotonic() + 60
    while "gate" in value and not (HERE / value["gate"]).exists():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody opened the gate")
        time.sleep(0.01)
    time.sleep(value.get("seconds", 0))
    if value.get("bad") and not (HERE / "mended").exists():
        raise ValueError("still bad")
"""


@dataclass(slots=True)
class Desk:
    """The project, its database and its processes."""

    home: Path
    """Where it lives."""
    database: dict[str, Any]
    """As in DATABASES."""
    brokers: str = "127.0.0.1:1"
    """Where Kafka is; nothing listens there unless a test says so."""
    topic: str = "flights"
    """What its consumer "ops" reads."""
    options: dict[str, Any] = field(default_factory=dict)
    """What else its consumer is told."""
    kafka: dict[str, Any] = field(default_factory=dict)
    """What else is in KAFKA."""
    programs: list[Program] = field(default_factory=list)
    """Every process that was started."""

    @classmethod
    def on_sqlite(cls, home: Path, **fields: Any) -> Desk:
        """Make one on a SQLite file."""
        options = {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": "PRAGMA journal_mode=WAL;"}
        return cls(
            home, {"ENGINE": "django.db.backends.sqlite3", "NAME": str(home / "db"), "OPTIONS": options}, **fields
        )._made()

    @classmethod
    def on_postgresql(cls, home: Path, server: PostgreSQL, **fields: Any) -> Desk:
        """Make one in a database of its own."""
        name = f"desk_{uuid.uuid4().hex[:10]}"
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        database = {"ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": "postgres", "HOST": "127.0.0.1"}
        return cls(home, {**database, "PORT": str(server.port)}, **fields)._made()

    def _made(self) -> Desk:
        consumer = {
            "group_id": "ops",
            "topics": {self.topic: {"handler": "desk_handlers.handle"}},
            "retry": {"max_retries": 0},
            # The embedded cluster waits that long for a member that left before it lets the next one in.
            "session_timeout": "3s",
            "heartbeat_interval": "500ms",
            **self.options,
        }
        kafka = {"brokers": [self.brokers], "consumers": {"ops": consumer}, **self.kafka}
        (self.home / "desk_settings.py").write_text(SETTINGS % {"database": self.database, "kafka": kafka})
        (self.home / "desk_handlers.py").write_text(HANDLERS)
        (self.home / "runs").touch()
        self.run("migrate", "-v0")
        return self

    def start(self, *arguments: str, module: str = "django") -> Program:
        """Start a management command, or a command of another module."""
        path = os.pathsep.join([str(ROOT), str(self.home)])
        env = {**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "desk_settings", "PYTHONUNBUFFERED": "1"}
        log = self.home / f"{len(self.programs)}.log"
        program = Program.start([sys.executable, "-m", module, *arguments], log=log, env=env, cwd=self.home)
        self.programs.append(program)
        return program

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a management command to its end and return what it said."""
        program = self.start(*arguments)
        ended = program.finish(60)
        assert ended == code, f"{arguments} ended with {ended}:\n{program.output()}"
        return program.output()

    def write(self, *values: dict[str, Any]) -> list[int]:
        """Store a letter for each value and return their ids."""
        lines = [
            "from tests.letters import dead_letter",
            f"for value in {list(values)!r}:",
            f"    dead_letter(value, topic={self.topic!r})",
        ]
        text = "\n".join(lines)
        self.run("shell", "-v0", "-c", text)
        return [row[0] for row in self.rows("SELECT id FROM lynx_kafka_deadletter ORDER BY id")]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return rows of its database, by a bare connection."""
        if self.database["ENGINE"].endswith("sqlite3"):
            connection = sqlite3.connect(self.database["NAME"], timeout=20)
            try:
                with connection:
                    return connection.execute(sql).fetchall()
            finally:
                connection.close()
        with psycopg.connect(
            dbname=self.database["NAME"], user="postgres", host="127.0.0.1", port=self.database["PORT"]
        ) as postgresql:
            cursor = postgresql.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def runs(self) -> list[str]:
        """Return the offset of each run of the handler."""
        return (self.home / "runs").read_text().split()

    def wait_until(self, what: Callable[[], object], program: Program) -> None:
        """Wait until something is so; fail with the program's output."""
        wait_until(lambda: what() or program.poll() is not None, 40, program.output())
        assert what(), program.output()

    def close(self) -> None:
        """End what still runs."""
        for program in self.programs:
            program.end()
