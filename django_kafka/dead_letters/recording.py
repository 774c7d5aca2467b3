"""The one place that stores a dead letter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from django.db import IntegrityError, transaction

from .. import conf, logs, retries
from ..envelopes import claim_check
from ..exceptions import PartitionLost
from ..execution import leave_foreign_transaction
from ..messages import LETTER_HEADER, Message
from ..models import DeadLetter, DeadLetterAttempt
from ..signals import message_dead_lettered
from . import holds
from .failures import Failure
from .rows import add_attempt, insert, latest, new_letter, stored_before

log = logs.of(__name__)

_BYTES_TOGETHER = 4 * 1024 * 1024
"""Of messages and tracebacks that go into one statement; a single message may always."""


Finish = Callable[[Sequence[int]], None]
"""Part of a transaction that settles messages, called with their offsets last of all before the COMMIT."""


def record(
    consumer: conf.Consumer,
    group_id: str,
    message: Message,
    failure: Failure,
    *,
    still_ours: Callable[[], None],
    finish: Finish | None = None,
) -> DeadLetter:
    """Store `message` as a dead letter in a transaction of its own and return the row.

    A repeat of the same message adds an attempt and reopens its row. `still_ours` is asked last of all before the
    COMMIT and raises `PartitionLost` when the message has a new owner. Whatever else is raised means: not stored.
    `finish` is a part of the same transaction.
    """
    using = conf.kafka().dead_letters.database
    still_ours()
    leave_foreign_transaction(using)
    with transaction.atomic(using=using):
        letter = _store(using, consumer, group_id, message, failure)
        if finish is not None:
            finish([message.offset])
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
    finish: Finish | None = None,
) -> list[DeadLetter]:
    """Store messages as dead letters, as `record` does; return the rows, which may be only those of the first ones.

    They are stored in one transaction. When the database refuses one of them, the first one is stored by itself; so it
    is when keys are held.
    """
    some = _first(failed)
    if not holds.keeps(consumer):
        try:
            return _record_together(consumer, group_id, some, still_ours, finish)
        except PartitionLost:
            raise
        except Exception as error:
            if retries.stops_worker(error) or not isinstance(retries.decide(error), retries.DeadLetter):
                raise
            if len(some) > 1:
                log.info("consumer=%s letters are stored one by one: %s", consumer.name, type(error).__name__)
    message, failure = failed[0]
    return [record(consumer, group_id, message, failure, still_ours=still_ours, finish=finish)]


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
    finish: Finish | None,
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
        if finish is not None:
            finish([message.offset for message, _failure in failed])
        still_ours()
    if message_dead_lettered.receivers:
        for letter, (message, failure) in zip(letters, failed, strict=True):
            message_dead_lettered.send_robust(consumer.name, message=message, letter=letter, error=failure)
    return letters


def find(consumer: conf.Consumer, group_id: str, message: Message) -> DeadLetter | None:
    """Return the letter of a message; None when it has none."""
    using = conf.kafka().dead_letters.database
    leave_foreign_transaction(using)
    return new_letter(consumer, group_id, message).same().using(using).first()


def _new(consumer: conf.Consumer, group_id: str, message: Message, failure: Failure) -> DeadLetter:
    first = (*failure.earlier, failure)[0].at
    return new_letter(consumer, group_id, message, first_failed_at=first, **latest(failure))


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
    """Tell whether a letter has the very same key and value; one that was erased has nobody's."""
    if letter.erased_at is not None or _bytes(letter.key) != message.raw_key:
        return False
    # What is replayed may be in a storage once more.
    return claim_check.same(_bytes(letter.value), message.raw_value)


def _own(headers: Iterable[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    return [pair for pair in headers if pair[0] != LETTER_HEADER]


def _bytes(stored: bytes | memoryview | None) -> bytes | None:
    return None if stored is None else bytes(stored)
