"""Rows of dead letters and of their attempts: made, inserted many at a time, and added to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connections, models
from django.db.models import F

from .. import conf
from ..messages import Message
from ..models import DeadLetter, DeadLetterAttempt
from ..models.dead_letters import encode_headers, fingerprint
from .failures import Failure


def new_letter(consumer: conf.Consumer, group_id: str, message: Message, **fields: Any) -> DeadLetter:
    """Return the row of a message that is not stored yet."""
    headers = encode_headers(message.headers)
    key, value, timestamp = message.raw_key, message.raw_value, message.timestamp_ms
    return DeadLetter(
        cluster=consumer.cluster,
        group_id=group_id,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        fingerprint=fingerprint(timestamp, key, headers, value),
        consumer=consumer.name,
        timestamp_ms=timestamp,
        key=key,
        value=value,
        stored_headers=headers,
        **fields,
    )


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
    _insert(using, [letter for letter, _failure in fresh])
    _insert(using, [one for letter, failure in fresh for one in _attempts(letter, failure, origin)])


def _insert(using: str, rows: Sequence[DeadLetter] | Sequence[DeadLetterAttempt]) -> None:
    """Insert new rows and give them their ids."""
    connection = connections[using]
    if not rows:
        return
    if not connection.features.can_return_rows_from_bulk_insert:
        for one in rows:
            one.save(using=using, force_insert=True)
        return
    if connection.vendor != "postgresql":
        type(rows[0])._default_manager.using(using).bulk_create(rows)  # type: ignore[arg-type]
        return
    # As Django does it where no column is binary: one array for each column takes a fraction of the time.
    options = rows[0]._meta
    fields = [field for field in options.concrete_fields if not field.primary_key]
    quote = connection.ops.quote_name
    columns = ", ".join(quote(str(field.column)) for field in fields)
    arrays = ", ".join(f"%s::{field.rel_db_type(connection) if field.is_relation else field.db_type(connection)}[]"
                       for field in fields)  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(options.db_table)} ({columns}) SELECT * FROM UNNEST({arrays}) "
            f"RETURNING {quote(str(options.pk.column))}",
            [[_plain(getattr(row, field.attname)) for row in rows] for field in fields],
        )
        for row, (pk,) in zip(rows, cursor.fetchall(), strict=True):
            row.pk = pk


def _plain(value: Any) -> Any:
    # A choice is a text with more to it, which the database's library does not know.
    return value.value if isinstance(value, models.Choices) else value


def stored_before(using: str, letters: Sequence[DeadLetter]) -> set[tuple[int, str]]:
    """Return offset and fingerprint of letters that have a row already; they are of messages of one partition."""
    if not letters:
        return set()
    one = letters[0]
    place = {"cluster": one.cluster, "group_id": one.group_id, "topic": one.topic, "partition": one.partition}
    rows = DeadLetter.objects.using(using).filter(**place, offset__in=[letter.offset for letter in letters])
    return set(rows.values_list("offset", "fingerprint"))


def add_attempt(using: str, letter: DeadLetter, failure: Failure, origin: str) -> None:
    """Add a failed attempt, and those before it, to a letter and open it (again)."""
    changes: dict[str, Any] = {
        "attempts": F("attempts") + failure.attempt,
        "state": DeadLetter.State.OPEN,
        "settled_at": None,
        **latest(failure),
    }
    DeadLetter.objects.using(using).filter(pk=letter.pk).update(**changes)
    letter.refresh_from_db(using=using, fields=list(changes))
    DeadLetterAttempt.objects.using(using).bulk_create(_attempts(letter, failure, origin))


def _attempts(letter: DeadLetter, failure: Failure, origin: str) -> Iterator[DeadLetterAttempt]:
    before = letter.attempts - failure.attempt
    for one in (*failure.earlier, failure):
        yield DeadLetterAttempt(
            letter=letter,
            number=before + one.attempt,
            at=one.at,
            origin=origin,
            worker=me(),
            error_type=one.error_type,
            error_message=one.error_message,
            traceback=one.traceback,
        )


def me() -> str:
    """Return what names this process in rows."""
    return f"{socket.gethostname()}:{os.getpid()}"[:200]
