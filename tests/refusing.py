"""A table that refuses new rows for a while, as a full disk or a quota makes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

_FUNCTION = """
    CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'quota' USING ERRCODE = 'check_violation'; END $$
"""
_REFUSE = {
    "sqlite": ["CREATE TRIGGER refuse BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'quota'); END"],
    "postgresql": [_FUNCTION, "CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"],
}
_ACCEPT = {"sqlite": "DROP TRIGGER refuse", "postgresql": "DROP TRIGGER refuse ON {table}"}


@contextmanager
def refusing(table: str) -> Iterator[None]:
    """Refuse every INSERT into `table` with an IntegrityError that says "quota", for as long as the block runs."""
    for statement in _REFUSE[connection.vendor]:
        _execute(statement.format(table=table))
    try:
        yield
    finally:
        _execute(_ACCEPT[connection.vendor].format(table=table))


def _execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
