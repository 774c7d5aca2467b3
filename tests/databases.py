"""Databases that a test adds to Django's for itself, under an alias."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from tests.servers import PostgreSQL


@contextmanager
def added(alias: str, blocker: Any, **settings: Any) -> Iterator[BaseDatabaseWrapper]:
    """Add a database to Django's, and take it away again."""
    with blocker.unblock():
        connections.databases[alias] = connections.configure_settings({"default": settings})["default"]
        try:
            yield connections[alias]
        finally:
            connections[alias].close()
            del connections[alias]
            del connections.databases[alias]


def of_postgresql(server: PostgreSQL, **more: Any) -> dict[str, Any]:
    """Return Django's settings of one of its databases."""
    address = {"HOST": "127.0.0.1", "PORT": str(server.port), "USER": server.user, "NAME": "postgres"}
    return {"ENGINE": "django.db.backends.postgresql", **address, **more}


def of_sqlite(path: Path | str, **options: Any) -> dict[str, Any]:
    """Return Django's settings of a file that nobody waits for."""
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": {"timeout": 0, **options}}
