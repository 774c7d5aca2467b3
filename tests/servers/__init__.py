"""Real servers for the tests: Kafka, PostgreSQL, PgBouncer and Redis, on loopback, free ports and data of their own.

Each is a context manager with `start`, `stop`, `kill` and `restart`; stopping keeps the data, leaving the `with` block
removes it. `python -m tests.servers kafka postgresql` runs them in the foreground and prints their addresses.
"""

from __future__ import annotations

from .kafka import Kafka
from .pgbouncer import PgBouncer
from .postgresql import PostgreSQL
from .processes import Server, Unavailable
from .redis import Redis

__all__ = ["Kafka", "PgBouncer", "PostgreSQL", "Redis", "Server", "Unavailable"]
