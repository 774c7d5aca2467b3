"""Dead-letter topics of other systems: their messages become letters here, and can be replayed to where they failed.

A letter keeps the coordinates that the message has in the dead-letter topic, which make it unique, and tells beside
them where the record failed. Nothing of a message keeps it from being stored: what cannot be read the letter says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from django.db import transaction
from django.utils import timezone

from .. import conf
from ..envelopes import claim_check
from ..exceptions import ReplayRefused
from ..execution import leave_foreign_transaction
from ..messages import Message
from ..models import DeadLetter, DeadLetterAttempt, Replay
from ..models.dead_letters import encode_headers, fingerprint, key_hash, trace_of
from ..signals import message_dead_lettered
from . import foreign
from .failures import Failure
from .recording import Finish, has_content_of, named_letter
from .rows import add_attempt, insert, stored_before

UNKNOWN_ERROR = "unknown"
"""The type of an error that a dead-letter topic does not tell."""


def store(
    consumer: conf.Consumer,
    group_id: str,
    messages: Sequence[Message],
    format: str,
    *,
    still_ours: Callable[[], None],
    finish: Finish | None = None,
) -> int:
    """Store messages of one partition of a dead-letter topic as letters, all or none; return how many are new.

    A message that was stored before is left as it is, whatever became of its letter. `still_ours` is asked last of all
    before the COMMIT and raises `PartitionLost`. Whatever else is raised means: nothing is stored. `finish` is a
    part of the same transaction.
    """
    using = conf.kafka().dead_letters.database
    still_ours()
    leave_foreign_transaction(using)
    with transaction.atomic(using=using):
        letters = [_letter(consumer, group_id, message, format) for message in messages]
        known = stored_before(using, letters)
        new: list[tuple[Message, DeadLetter]] = []
        for message, letter in zip(messages, letters, strict=True):
            place = letter.offset, letter.fingerprint
            if place not in known and not _came_back(using, message, letter):
                new.append((message, letter))
                known.add(place)
        insert(using, [(letter, _failure(letter)) for _message, letter in new], DeadLetterAttempt.Origin.IMPORT)
        if finish is not None:
            finish([message.offset for message in messages])
        still_ours()
    if message_dead_lettered.receivers:
        for message, letter in new:
            message_dead_lettered.send_robust(consumer.name, message=message, letter=letter, error=_failure(letter))
    return len(new)


def _letter(consumer: conf.Consumer, group_id: str, message: Message, format: str) -> DeadLetter:
    headers = message.headers
    origin = foreign.read(headers, format)
    stored_headers = encode_headers(headers)
    now = timezone.now()
    return DeadLetter(
        cluster=consumer.cluster,
        consumer=consumer.name,
        group_id=group_id,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        fingerprint=fingerprint(message.timestamp_ms, message.raw_key, stored_headers, message.raw_value),
        timestamp_ms=message.timestamp_ms,
        key=message.raw_key,
        key_hash=key_hash(message.raw_key),
        value=message.raw_value,
        payload_name=claim_check.name_in(message.raw_value),
        stored_headers=stored_headers,
        trace_id=trace_of(headers),
        imported_as=origin.format,
        origin_topic=origin.topic,
        origin_partition=origin.partition,
        origin_offset=origin.offset,
        origin_timestamp_ms=origin.timestamp_ms,
        origin_group=origin.group,
        unread="\n".join(origin.unread),
        handler=origin.handler,
        category=origin.category,
        error_type=origin.error_type or UNKNOWN_ERROR,
        error_message=origin.error_message,
        traceback=origin.traceback,
        attempts=origin.attempts,
        first_failed_at=now,
        last_failed_at=now,
    )


def _came_back(using: str, message: Message, letter: DeadLetter) -> bool:
    """Add an attempt to the letter whose replay failed again where it came from, if this message is one.

    The header that names it comes from outside: it counts only for a letter of this topic with the very same key and
    value, and each message only once.
    """
    if (named := named_letter(message)) is None:
        return False
    known = DeadLetter.objects.using(using).select_for_update().exclude(imported_as="")
    same = {"cluster": letter.cluster, "group_id": letter.group_id, "topic": letter.topic}
    first = known.filter(pk=named, **same).first()
    if first is None or not has_content_of(first, message):
        return False
    reporter = f"{letter}/{letter.fingerprint[:16]}"
    if not first.attempt_set.filter(reported_by=reporter).exists():
        add_attempt(using, first, _failure(letter), DeadLetterAttempt.Origin.IMPORT)
        first.attempt_set.filter(number=first.attempts, reported_by="").update(reported_by=reporter)
    return True


def _failure(letter: DeadLetter) -> Failure:
    return Failure(
        error_type=letter.error_type,
        error_message=letter.error_message,
        traceback=letter.traceback,
        category=letter.category,
        handler=letter.handler,
        at=letter.last_failed_at,
    )


def home(letter: DeadLetter) -> str:
    """Return the topic that a replay of a letter is sent to; "" when nobody knows it.

    For an imported one that is its original topic: what settings say, else what its headers said.
    """
    if not letter.imported_as:
        return letter.topic
    settings = conf.kafka()
    consumer = settings.consumers.get(letter.consumer)
    for topic in consumer.topics.values() if consumer else ():
        if topic.original is not None and settings.prefixed(topic.name) == letter.topic:
            return settings.prefixed(topic.original)
    return letter.origin_topic


def refuse(letter: DeadLetter, target: str, to_topic: str = "") -> None:
    """Raise `ReplayRefused` when an imported letter cannot be replayed to a target."""
    if not letter.imported_as:
        return
    if target != Replay.Target.TOPIC:
        raise ReplayRefused(
            f"It was imported from {letter.topic}: what failed on it runs elsewhere. Replay it to its topic."
        )
    if not (to_topic or home(letter)):
        path = f'KAFKA["consumers"]["{letter.consumer}"]["topics"]["…"]["original"]'
        raise ReplayRefused(f"Its headers do not name its original topic. Name it in {path} for {letter.topic}.")
