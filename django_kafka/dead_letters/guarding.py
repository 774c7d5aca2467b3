"""The transaction of a dry run: always rolled back, and the only place where its handler may do anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import connections, transaction

from ..exceptions import ReplayRefused
from ..execution import refuse_broken

_ENDS = re.compile(
    r"(?:^(?:END|ABORT|BEGIN|START|PREPARE\s+TRANSACTION)|(?:^|;)\s*(?:COMMIT|ROLLBACK(?!\s+(?:WORK\s+)?TO)))\b",
    re.IGNORECASE,
)
"""What begins or ends transactions; Django's own statements of savepoints do not."""
_COMMENT = re.compile(r"/\*.*?\*/|--[^\n]*", re.S)
_OF_SAVEPOINTS = ("SAVEPOINT", "RELEASE", "ROLLBACK TO")
_OPEN = (2, 3)
"""libpq's names for a connection within a transaction, and in one that failed."""


class Guarded:
    """What happened in the transaction."""

    def __init__(self, connection: Any) -> None:
        self.queries = 0
        """Statements that the handler had executed, without those of savepoints."""
        self.hooks: list[Any] = []
        """What it wants to be called on commit, as it stood when it came back."""
        self.refused: str | None = None
        """Why it cannot be run without effects, when that showed."""
        self._connection = connection
        self._before = len(connection.run_on_commit)
        self._transaction = _transaction_of(connection)

    def refuse(self, reason: str) -> None:
        """Raise `ReplayRefused`, and remember it: the handler may catch it."""
        self.refused = self.refused or reason
        raise ReplayRefused(reason)

    def see(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Count a statement, unless it would end the transaction."""
        text = _COMMENT.sub(" ", sql if isinstance(sql, str) else str(sql)).strip()
        if _ENDS.search(text):
            self.refuse(f"Its handler ends its transaction by itself: {text[:100]}")
        self.queries += not text.upper().startswith(_OF_SAVEPOINTS)
        return execute(sql, params, many, context)

    def finish(self) -> None:
        """Look at what the handler left; raise what its COMMIT would have raised."""
        if self.refused is not None:
            raise ReplayRefused(self.refused)
        refuse_broken(self._connection)
        if _transaction_of(self._connection) != self._transaction:
            self.refuse("Its handler ended its transaction by itself, past Django: what it did before that has stayed.")
        self.hooks = [each[1] for each in self._connection.run_on_commit[self._before :]]
        # Where constraints wait for the COMMIT, which does not come.
        self._connection.check_constraints()


def _transaction_of(connection: Any) -> Any:
    """Return what tells a transaction from others, as far as the database says."""
    if connection.vendor != "postgresql":
        raw = connection.connection
        return getattr(raw, "in_transaction", None)
    with connection.cursor() as cursor:
        cursor.execute("SELECT txid_current()")
        return cursor.fetchone()[0]


class _Elsewhere:
    """What stands in the way of statements and commit hooks on another database."""

    def __init__(self, guarded: Guarded, own: str, alias: str) -> None:
        self._guarded = guarded
        self._reason = f"Its handler uses database {alias!r} as well; only what it does in {own!r} can be rolled back."

    def statement(self, *_arguments: Any) -> Any:
        self._guarded.refuse(self._reason)

    def hook(self, *_arguments: Any, **_options: Any) -> None:
        self._guarded.refuse(self._reason)


@contextmanager
def rolled_back(database: str) -> Iterator[Guarded]:
    """Open a transaction that is rolled back whatever happens in the block, and refuse what is outside of it.

    Raises what the block raises, what the COMMIT would have raised, and `ReplayRefused`.
    """
    connection: Any = connections[database]
    connection.rollback_exc = None
    with transaction.atomic(using=database):
        try:
            with ExitStack() as stack:
                guarded = Guarded(connection)
                for each in connections.all():
                    if each.alias == database:
                        stack.enter_context(each.execute_wrapper(guarded.see))
                        continue
                    elsewhere = _Elsewhere(guarded, database, each.alias)
                    stack.enter_context(each.execute_wrapper(elsewhere.statement))
                    each.on_commit = elsewhere.hook  # type: ignore[method-assign]
                    stack.callback(_forget, each, "on_commit")
                try:
                    yield guarded
                except Exception:
                    if guarded.refused is not None:
                        raise ReplayRefused(guarded.refused) from None
                    raise
                stack.close()
                guarded.finish()
        finally:
            if connection.in_atomic_block:
                transaction.set_rollback(True, using=database)


def _forget(connection: Any, name: str) -> None:
    connection.__dict__.pop(name, None)
