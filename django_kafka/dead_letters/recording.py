"""The one place that stores a dead letter."""

from __future__ import annotations

import logging
import os
import socket
import traceback as tracebacks
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import CodeType
from typing import Any, Self

from django.db import IntegrityError, connections, models, transaction
from django.db.models import F
from django.utils import timezone

from .. import conf, retries
from ..exceptions import PartitionLost
from ..execution import leave_foreign_transaction
from ..messages import LETTER_HEADER, Message
from ..models import DeadLetter, DeadLetterAttempt
from ..models.dead_letters import encode_headers, fingerprint
from ..signals import message_dead_lettered
from . import holds

log = logging.getLogger(__name__)

MOST_EARLIER = 10
"""Attempts before the last one that are stored with a letter."""
_BYTES_TOGETHER = 4 * 1024 * 1024
"""Of messages and tracebacks that go into one statement; a single message may always."""


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
    attempt: int = 1
    """Which attempt it was, of those that this worker made one after another."""
    earlier: tuple[Failure, ...] = ()
    """The attempts before it, in their order; of many only the last ones."""

    @classmethod
    def of(
        cls, error: BaseException, *, category: str, handler: str, attempt: int = 1, earlier: Iterable[Failure] = ()
    ) -> Self:
        """Return the failure that `error` stands for."""
        kind = type(error)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        return cls(
            error_type=storable(name)[:300],
            error_message=storable(_text(error)),
            traceback=storable(_traceback(error)),
            category=category,
            handler=handler[:500],
            at=timezone.now(),
            attempt=attempt,
            earlier=tuple(earlier),
        )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  # an exception class of the project's own may fail to describe itself
        return f"<{type(error).__name__} that cannot be shown: {type(broken).__name__}>"


_stacks: dict[tuple[tuple[CodeType, int], ...], str] = {}
"""Where errors came from, as text: when all messages fail it is one and the same place."""
_MOST_STACKS = 100


def _traceback(error: BaseException) -> str:
    """Return what `traceback` says, which would take longer than to store the letter."""
    chained = error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__)
    if chained or isinstance(error, BaseExceptionGroup):
        return "".join(tracebacks.format_exception(error))
    place = tuple((frame.f_code, line) for frame, line in tracebacks.walk_tb(error.__traceback__))
    if (stack := _stacks.get(place)) is None:
        if len(_stacks) >= _MOST_STACKS:
            _stacks.clear()
        stack = _stacks[place] = "".join(tracebacks.format_tb(error.__traceback__))
    head = "Traceback (most recent call last):\n" if place else ""
    return "".join([head, stack, *tracebacks.format_exception_only(error)])


def storable(text: str) -> str:
    """Return a text that every database takes."""
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
    leave_foreign_transaction(using)
    with transaction.atomic(using=using):
        letter = _store(using, consumer, group_id, message, failure)
        still_ours()
    if message_dead_lettered.receivers:
        message_dead_lettered.send_robust(consumer.name, message=message, letter=letter, error=failure)
    return letter


def _store(using: str, consumer: conf.Consumer, group_id: str, message: Message, failure: Failure) -> DeadLetter:
    held = holds.identity(consumer, group_id, message) if holds.keeps(consumer) else None
    # The hold first, then its letters: so does whoever parks or releases.
    hold_id = None if held is None else holds.begin(using, held, consumer.name, message.raw_key or b"")
    replayed = _replayed_letter(using, consumer, group_id, message)
    letter = replayed or _row(using, _new(consumer, group_id, message, failure))
    if hold_id is not None and letter.hold_id != hold_id:
        letter.hold_id = hold_id
        letter.save(using=using, update_fields=["hold"])
    add_attempt(using, letter, failure, DeadLetterAttempt.Origin.WORKER)
    return letter


def record_all(
    consumer: conf.Consumer,
    group_id: str,
    failed: Sequence[tuple[Message, Failure]],
    *,
    still_ours: Callable[[], None],
) -> list[DeadLetter]:
    """Store messages as dead letters, as `record` does; return the rows, which may be only those of the first ones.

    They are stored in one transaction. When the database refuses one of them, the first one is stored by itself; so it
    is when keys are held.
    """
    some = _first(failed)
    if len(some) > 1 and not holds.keeps(consumer):
        try:
            return _record_together(consumer, group_id, some, still_ours)
        except PartitionLost:
            raise
        except Exception as error:
            if retries.stops_worker(error) or not isinstance(retries.decide(error), retries.DeadLetter):
                raise
            log.info("consumer=%s letters are stored one by one: %s", consumer.name, type(error).__name__)
    message, failure = failed[0]
    return [record(consumer, group_id, message, failure, still_ours=still_ours)]


def _first(failed: Sequence[tuple[Message, Failure]]) -> list[tuple[Message, Failure]]:
    """Return as many of the first ones as may go into one statement."""
    found: list[tuple[Message, Failure]] = []
    size = 0
    for message, failure in failed:
        size += len(message.raw_key or b"") + len(message.raw_value or b"") + len(failure.traceback)
        if found and size > _BYTES_TOGETHER:
            break
        found.append((message, failure))
    return found


def _record_together(
    consumer: conf.Consumer,
    group_id: str,
    failed: Sequence[tuple[Message, Failure]],
    still_ours: Callable[[], None],
) -> list[DeadLetter]:
    using = conf.kafka().dead_letters.database
    still_ours()
    leave_foreign_transaction(using)
    with transaction.atomic(using=using):
        letters = [_new(consumer, group_id, message, failure) for message, failure in failed]
        known = stored_before(using, letters)
        fresh = []
        for place, (letter, (message, failure)) in enumerate(zip(letters, failed, strict=True)):
            if (letter.offset, letter.fingerprint) in known or message.header(LETTER_HEADER) is not None:
                letters[place] = _store(using, consumer, group_id, message, failure)
            else:
                letter.attempts = failure.attempt
                fresh.append((letter, failure))
        insert(using, fresh, DeadLetterAttempt.Origin.WORKER)
        still_ours()
    if message_dead_lettered.receivers:
        for letter, (message, failure) in zip(letters, failed, strict=True):
            message_dead_lettered.send_robust(consumer.name, message=message, letter=letter, error=failure)
    return letters


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
        **_latest(failure),
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


def _new(consumer: conf.Consumer, group_id: str, message: Message, failure: Failure) -> DeadLetter:
    first = (*failure.earlier, failure)[0].at
    return new_letter(consumer, group_id, message, first_failed_at=first, **_latest(failure))


def _latest(failure: Failure) -> dict[str, Any]:
    """Return what a letter has of its latest failure."""
    return {
        "error_type": failure.error_type,
        "error_message": failure.error_message,
        "traceback": failure.traceback,
        "category": failure.category,
        "handler": failure.handler,
        "last_failed_at": failure.at,
    }


def _row(using: str, new: DeadLetter) -> DeadLetter:
    """Return the row of a message, stored now unless it was before."""
    same = new.same().using(using).select_for_update()
    if (known := same.first()) is not None:
        return known
    try:
        with transaction.atomic(using=using):
            new.save(using=using, force_insert=True)
    except IntegrityError:
        # Another worker stored it in between, as may happen around a rebalance; or the database refuses it.
        if (known := same.first()) is None:
            raise
        return known
    return new


def _replayed_letter(using: str, consumer: conf.Consumer, group_id: str, message: Message) -> DeadLetter | None:
    """Return the letter whose replay to the topic this message is, if it is one.

    The header comes from outside: it counts only for a letter of this group with the very same key and value.
    """
    if (named := named_letter(message)) is None:
        return None
    letters = DeadLetter.objects.using(using).select_for_update()
    letter = letters.filter(pk=named, cluster=consumer.cluster, group_id=group_id, topic=message.topic).first()
    if letter is None:
        return None
    same = has_content_of(letter, message) and _own(letter.headers) == _own(message.headers)
    return letter if same else None


def named_letter(message: Message) -> int | None:
    """Return the id of the letter that the header of a message names; the header may come from anybody."""
    header = message.header(LETTER_HEADER)
    if header is None or len(header) > 20 or not header.isdigit() or int(header) >= 1 << 63:
        return None
    return int(header)


def has_content_of(letter: DeadLetter, message: Message) -> bool:
    """Tell whether a letter has the very same key and value."""
    return (_bytes(letter.key), _bytes(letter.value)) == (message.raw_key, message.raw_value)


def _own(headers: Iterable[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    return [pair for pair in headers if pair[0] != LETTER_HEADER]


def _bytes(stored: bytes | memoryview | None) -> bytes | None:
    return None if stored is None else bytes(stored)
