"""Rows of dead letters and of their attempts: made, inserted many at a time, and added to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models import F
from django.utils import timezone

from .. import conf
from ..envelopes import claim_check
from ..messages import Message
from ..models import DeadLetter, DeadLetterAttempt, LetterWords
from ..models.dead_letters import encode_headers, fingerprint, key_hash, trace_of
from . import grouping, searching
from .failures import Failure


def new_letter(consumer: conf.Consumer, group_id: str, message: Message, **fields: Any) -> DeadLetter:
    """Return the row of a message that is not stored yet."""
    pairs = message.headers
    headers = encode_headers(pairs)
    key, value, timestamp = message.raw_key, message.raw_value, message.timestamp_ms
    values = {
        **_empty(),
        "cluster": consumer.cluster,
        "group_id": group_id,
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "fingerprint": fingerprint(timestamp, key, headers, value),
        "consumer": consumer.name,
        "timestamp_ms": timestamp,
        "key": key,
        "key_hash": key_hash(key),
        "value": value,
        "payload_name": claim_check.name_in(value),
        "stored_headers": headers,
        "trace_id": trace_of(pairs) if pairs else "",
        **fields,
    }
    # By position: Django takes twice as long to sort out keywords.
    return DeadLetter(*values.values())  # type: ignore[misc]


@cache
def _empty() -> dict[str, Any]:
    """Return what a letter has unless it is said otherwise, by the names of its columns, in their order."""
    # No field of ours has a column of another name.
    return {field.attname: field.get_default() for field in DeadLetter._meta.concrete_fields}


def latest(failure: Failure) -> dict[str, Any]:
    """Return what a letter has of its latest failure."""
    return {
        "error_type": failure.error_type,
        "error_message": failure.error_message,
        "traceback": failure.traceback,
        "category": failure.category,
        "handler": failure.handler,
        "last_failed_at": failure.at,
    }


def insert(using: str, fresh: Sequence[tuple[DeadLetter, Failure]], origin: str) -> None:
    """Insert letters that have no rows yet, and the attempts that made them."""
    if not fresh:
        return
    grouping.assign(using, fresh)
    connection = connections[using]
    letters = [letter for letter, _failure in fresh]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # psycopg 3; COPY takes a third of the time of an INSERT, here and in the server.
            if hasattr(cursor, "copy"):
                _give_ids(connection, cursor, letters)
                _copy(connection, cursor, DeadLetter, _empty(), map(_values, letters))
                attempts = (row for letter, failure in fresh for row in _attempt_rows(letter, failure, origin))
                _copy(connection, cursor, DeadLetterAttempt, ("letter_id", *_OF_ATTEMPT), attempts)
                # Words are taken from them later: that takes as long as all the rest.
                _copy(connection, cursor, LetterWords, ("letter_id",), ((letter.pk,) for letter in letters))
                for letter in letters:
                    # As Django's own inserts leave it: receivers of the signal read and save it where it is.
                    letter._state.adding, letter._state.db = False, using
                return
    _insert(using, letters)
    _insert(using, [attempt for letter, failure in fresh for attempt in _attempts(letter, failure, origin)])
    LetterWords.objects.using(using).bulk_create([LetterWords(letter_id=letter.pk) for letter in letters])


def _insert(using: str, rows: Sequence[DeadLetter] | Sequence[DeadLetterAttempt]) -> None:
    """Insert new rows and give them their ids."""
    if connections[using].features.can_return_rows_from_bulk_insert:
        type(rows[0])._default_manager.using(using).bulk_create(rows)  # type: ignore[arg-type]
    else:
        for one in rows:
            one.save(using=using, force_insert=True)


def _give_ids(connection: BaseDatabaseWrapper, cursor: CursorWrapper, letters: Sequence[DeadLetter]) -> None:
    table = connection.ops.quote_name(DeadLetter._meta.db_table)
    sequence = "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)"
    cursor.execute(sequence, [table, len(letters)])
    for letter, (pk,) in zip(letters, cursor.fetchall(), strict=True):
        letter.pk = pk


def _copy(
    connection: BaseDatabaseWrapper,
    cursor: CursorWrapper,
    model: type[models.Model],
    columns: Iterable[str],
    rows: Iterable[Sequence[Any]],
) -> None:
    quote = connection.ops.quote_name
    names = ", ".join(map(quote, columns))
    with connection.wrap_database_errors, cursor.copy(f"COPY {quote(model._meta.db_table)} ({names}) FROM STDIN") as to:
        for row in rows:
            to.write_row(row)


def _values(letter: DeadLetter) -> tuple[Any, ...]:
    # A choice is a text with more to it, which the database's library does not know.
    letter.state = str(letter.state)
    return tuple(letter.__dict__[name] for name in _empty())


def stored_before(using: str, letters: Sequence[DeadLetter]) -> set[tuple[int, str]]:
    """Return offset and fingerprint of letters that have a row already; only those of the first one's partition."""
    if not letters:
        return set()
    one = letters[0]
    place = {"cluster": one.cluster, "group_id": one.group_id, "topic": one.topic, "partition": one.partition}
    # They are neighbours, so that a range is exact enough, and cheaper than hundreds of numbers.
    around = min(letter.offset for letter in letters), max(letter.offset for letter in letters)
    rows = DeadLetter.objects.using(using).filter(**place, offset__range=around)
    return set(rows.values_list("offset", "fingerprint"))


def add_attempt(using: str, letter: DeadLetter, failure: Failure, origin: str) -> None:
    """Add a failed attempt, and those before it, to a letter and open it (again)."""
    grouping.assign(using, [(letter, failure)])
    changes: dict[str, Any] = {
        "failure_group": letter.failure_group_id,
        "release": letter.release,
        "attempts": F("attempts") + failure.attempt,
        "state": DeadLetter.State.OPEN,
        "settled_at": None,
        **latest(failure),
    }
    DeadLetter.objects.using(using).filter(pk=letter.pk).update(**changes)
    letter.refresh_from_db(using=using, fields=list(changes))
    DeadLetterAttempt.objects.using(using).bulk_create(_attempts(letter, failure, origin))
    # What it failed with has changed, or it was not stored by `insert`.
    searching.mark(using, letter.pk)


def add_attempts(using: str, failed: Sequence[tuple[DeadLetter, Failure]], origin: str) -> None:
    """Do that with many letters, each of them once; in memory they stay as they were."""
    if not failed:
        return
    grouping.assign(using, failed)
    rows: list[DeadLetterAttempt] = []
    for letter, failure in failed:
        changes = {"failure_group": letter.failure_group_id, "release": letter.release, **latest(failure)}
        stored = DeadLetter.objects.using(using).filter(pk=letter.pk)
        stored.update(attempts=F("attempts") + failure.attempt, state=DeadLetter.State.OPEN, settled_at=None, **changes)
        rows += _attempts(letter, failure, origin, before=letter.attempts)
    DeadLetterAttempt.objects.using(using).bulk_create(rows)
    searching.mark_all(using, [letter.pk for letter, _failure in failed])


def add_successes(using: str, letters: Iterable[DeadLetter], origin: str) -> None:
    """Add the attempt that succeeded to each of these letters, which are as they were before it."""
    now, connection = timezone.now(), connections[using]
    rows = [(one.pk, one.attempts + 1, now, str(origin), me(), True, "", "", "", "") for one in letters]
    columns = ("letter_id", *_OF_ATTEMPT)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql" and hasattr(cursor, "copy"):
            _copy(connection, cursor, DeadLetterAttempt, columns, rows)
            return
    made = (DeadLetterAttempt(**dict(zip(columns, row, strict=True))) for row in rows)
    DeadLetterAttempt.objects.using(using).bulk_create(made)


_OF_ATTEMPT = (
    "number", "at", "origin", "worker", "succeeded", "error_type", "error_message", "traceback", "reported_by"
)  # fmt: skip


def _attempts(
    letter: DeadLetter, failure: Failure, origin: str, before: int | None = None
) -> Iterator[DeadLetterAttempt]:
    for letter_id, *values in _attempt_rows(letter, failure, origin, before):
        yield DeadLetterAttempt(letter_id=letter_id, **dict(zip(_OF_ATTEMPT, values, strict=True)))


def _attempt_rows(
    letter: DeadLetter, failure: Failure, origin: str, before: int | None = None
) -> Iterator[tuple[Any, ...]]:
    """Return the values of a letter's id and of `_OF_ATTEMPT` for each attempt of a failure.

    `before` is how many attempts there were before it; None: the letter counts it already.
    """
    before = letter.attempts - failure.attempt if before is None else before
    for one in (*failure.earlier, failure):
        yield (
            letter.pk, before + one.attempt, one.at, str(origin), me(), False,
            one.error_type, one.error_message, one.traceback, "",
        )  # fmt: skip


def me() -> str:
    """Return what names this process in rows."""
    return f"{_host()}:{os.getpid()}"[:200]


@cache
def _host() -> str:
    return socket.gethostname()
