"""The one place that stores a dead letter."""

from __future__ import annotations

import os
import socket
import traceback as tracebacks
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from django.db import IntegrityError, connections, transaction
from django.db.models import F
from django.utils import timezone

from .. import conf
from ..messages import LETTER_HEADER, Message
from ..models import DeadLetter, DeadLetterAttempt
from ..models.dead_letters import encode_headers, fingerprint
from ..signals import message_dead_lettered


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed, as plain values that can be stored later."""

    error_type: str
    """Dotted name of the exception type."""
    error_message: str
    """What it says."""
    traceback: str
    """Where it came from."""
    category: str
    """What it is counted by."""
    handler: str
    """The dotted path of the handler; "" when none was found."""
    at: datetime
    """When it happened."""

    @classmethod
    def of(cls, error: BaseException, *, category: str, handler: str) -> Self:
        """Return the failure that `error` stands for."""
        kind = type(error)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        return cls(
            error_type=_storable(name)[:300],
            error_message=_storable(_text(error)),
            traceback=_storable("".join(tracebacks.format_exception(error))),
            category=category,
            handler=handler[:500],
            at=timezone.now(),
        )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  # an exception class of the project's own may fail to describe itself
        return f"<{type(error).__name__} that cannot be shown: {type(broken).__name__}>"


def _storable(text: str) -> str:
    # PostgreSQL text takes neither NUL nor lone surrogates.
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def record(
    consumer: conf.Consumer, group_id: str, message: Message, failure: Failure, *, still_ours: Callable[[], None]
) -> DeadLetter:
    """Store `message` as a dead letter in a transaction of its own and return the row.

    A repeat of the same message adds an attempt and reopens its row. `still_ours` is asked last of all before the
    COMMIT and raises `PartitionLost` when the message has a new owner. Whatever else is raised means: not stored.
    """
    using = conf.kafka().dead_letters.database
    still_ours()
    connection = connections[using]
    if not (connection.in_atomic_block or connection.get_autocommit()):
        # A handler left a transaction of its own open, in which atomic() would commit nothing.
        connection.close()
    with transaction.atomic(using=using):
        letter = _replayed_letter(using, consumer, group_id, message) or _row(
            using, consumer, group_id, message, failure
        )
        add_attempt(using, letter, failure, DeadLetterAttempt.Origin.WORKER)
        still_ours()
    if message_dead_lettered.receivers:
        message_dead_lettered.send_robust(consumer.name, message=message, letter=letter, error=failure)
    return letter


def add_attempt(using: str, letter: DeadLetter, failure: Failure, origin: str) -> None:
    """Add a failed attempt to a letter and open it (again)."""
    changes: dict[str, Any] = {
        "attempts": F("attempts") + 1,
        "state": DeadLetter.State.OPEN,
        "settled_at": None,
        "error_type": failure.error_type,
        "error_message": failure.error_message,
        "traceback": failure.traceback,
        "category": failure.category,
        "handler": failure.handler,
        "last_failed_at": failure.at,
    }
    DeadLetter.objects.using(using).filter(pk=letter.pk).update(**changes)
    letter.refresh_from_db(using=using, fields=list(changes))
    DeadLetterAttempt.objects.using(using).create(
        letter=letter,
        number=letter.attempts,
        at=failure.at,
        origin=origin,
        worker=me(),
        error_type=failure.error_type,
        error_message=failure.error_message,
        traceback=failure.traceback,
    )


def me() -> str:
    """Return what names this process in rows."""
    return f"{socket.gethostname()}:{os.getpid()}"[:200]


def _row(using: str, consumer: conf.Consumer, group_id: str, message: Message, failure: Failure) -> DeadLetter:
    stored_headers = encode_headers(message.headers)
    identity: dict[str, Any] = {
        "cluster": consumer.cluster,
        "group_id": group_id,
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "fingerprint": fingerprint(message.timestamp_ms, message.raw_key, stored_headers, message.raw_value),
    }
    letters = DeadLetter.objects.using(using)
    if (known := letters.select_for_update().filter(**identity).first()) is not None:
        return known
    try:
        with transaction.atomic(using=using):
            return letters.create(
                **identity,
                consumer=consumer.name,
                timestamp_ms=message.timestamp_ms,
                key=message.raw_key,
                value=message.raw_value,
                stored_headers=stored_headers,
                category=failure.category,
                error_type=failure.error_type,
                first_failed_at=failure.at,
                last_failed_at=failure.at,
            )
    except IntegrityError:
        # Another worker stored it in between, as may happen around a rebalance; or the database refuses it.
        if (known := letters.select_for_update().filter(**identity).first()) is None:
            raise
        return known


def _replayed_letter(using: str, consumer: conf.Consumer, group_id: str, message: Message) -> DeadLetter | None:
    """Return the letter whose replay to the topic this message is, if it is one.

    The header comes from outside: it counts only for a letter of this group with the very same key and value.
    """
    header = message.header(LETTER_HEADER)
    if header is None or len(header) > 20 or not header.isdigit() or int(header) >= 1 << 63:
        return None
    letters = DeadLetter.objects.using(using).select_for_update()
    letter = letters.filter(pk=int(header), cluster=consumer.cluster, group_id=group_id, topic=message.topic).first()
    if letter is None:
        return None
    stored = _bytes(letter.key), _bytes(letter.value), _own(letter.headers)
    return letter if stored == (message.raw_key, message.raw_value, _own(message.headers)) else None


def _own(headers: Iterable[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    return [pair for pair in headers if pair[0] != LETTER_HEADER]


def _bytes(stored: bytes | memoryview | None) -> bytes | None:
    return None if stored is None else bytes(stored)
