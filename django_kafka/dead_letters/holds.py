"""Held keys: what stands behind a dead letter of its key, and who comes next when that is settled.

A hold is there as long as a letter of its key is open or parked. Whoever parks behind it or takes a letter out of it
writes its row first, so each waits for the other: either the hold is still there and the message is parked, or it is
gone and nothing is left behind that a later message could overtake.

A released message is a letter with a replay that is asked for: it is carried out, interrupted and taken over as any
other. Only when it is resolved the next one is released.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Count, F, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from .. import conf
from ..exceptions import ReplayRefused
from ..messages import Message
from ..models import DeadLetter, Hold, Replay
from ..models.holds import key_hash

_LIVE = (DeadLetter.State.OPEN, DeadLetter.State.PARKED)


def keeps(consumer: conf.Consumer) -> bool:
    """Tell whether a consumer holds keys."""
    return consumer.on_dead_letter == "hold_key"


def identity(consumer: conf.Consumer, group_id: str, message: Message) -> dict[str, Any] | None:
    """Return what makes the hold of a message's key unique; None without a key: such a message has no order.

    A key is held in its partition: that is where its messages have an order.
    """
    if message.raw_key is None:
        return None
    return {
        "cluster": consumer.cluster,
        "group_id": group_id,
        "topic": message.topic,
        "partition": message.partition,
        "key_hash": key_hash(message.raw_key),
    }


def of_partition(consumer: conf.Consumer, group_id: str, topic: str, partition: int) -> dict[bytes, int]:
    """Return the held keys of a partition, and how many messages are parked behind each."""
    using = conf.kafka().dead_letters.database
    place = {"cluster": consumer.cluster, "group_id": group_id, "topic": topic, "partition": partition}
    found = Hold.objects.using(using).filter(**place).order_by()
    counted = found.annotate(parked=Count("letters", filter=Q(letters__state=DeadLetter.State.PARKED)))
    return {bytes(key): parked for key, parked in counted.values_list("key", "parked")}


def lock(using: str, identity: dict[str, Any]) -> int | None:
    """Wait for whoever changes a hold, and return its id; None when there is none (any more)."""
    found = Hold.objects.using(using).filter(**identity)
    if not found.update(changes=F("changes") + 1):
        return None
    pk: int = found.values_list("pk", flat=True).get()
    return pk


def begin(using: str, identity: dict[str, Any], consumer: str, key: bytes) -> int:
    """Hold a key, unless it is held already, and return the hold's id. Part of a transaction."""
    if (known := lock(using, identity)) is not None:
        return known
    try:
        with transaction.atomic(using=using):
            made = Hold.objects.using(using).create(**identity, consumer=consumer, key=key, since=timezone.now())
            return int(made.pk)
    except IntegrityError:
        # Another worker began it in between, as may happen around a rebalance.
        if (known := lock(using, identity)) is None:
            raise
        return known


def parked(using: str, hold_id: int) -> int:
    """Return how many messages are parked."""
    return DeadLetter.objects.using(using).filter(hold=hold_id, state=DeadLetter.State.PARKED).count()


def is_before(using: str, hold_id: int, message: Message) -> bool:
    """Tell whether a message comes before all that a hold keeps.

    By its time as well: in a topic that was made anew offsets begin again, and what is held is older.
    """
    letters = DeadLetter.objects.using(using).filter(hold=hold_id, state__in=_LIVE)
    first = letters.order_by("offset").values_list("offset", "timestamp_ms").first()
    return first is not None and message.offset < first[0] and (message.timestamp_ms or 0) <= (first[1] or 0)


def head(using: str, hold_id: int) -> DeadLetter | None:
    """Return the letter that others are parked behind, with its coordinates only."""
    letters = DeadLetter.objects.using(using).filter(hold=hold_id, state=DeadLetter.State.OPEN)
    return letters.only("topic", "partition", "offset").order_by("id").first()


def heads(holds: QuerySet[Hold]) -> QuerySet[DeadLetter]:
    """Return the first letter of each of these holds."""
    letters = DeadLetter.objects.using(conf.kafka().dead_letters.database)
    first = letters.filter(hold=OuterRef("pk"), state__in=_LIVE).order_by("id").values("pk")[:1]
    return letters.filter(pk__in=holds.order_by().annotate(first=Subquery(first)).values("first"))


def lock_of(using: str, letters: Collection[int]) -> None:
    """Lock the holds of the letters with these ids, before anybody locks the letters. Part of a transaction."""
    found = Hold.objects.using(using).filter(letters__in=letters).order_by("pk").values_list("pk", flat=True)
    ids = sorted(set(found))
    list(Hold.objects.using(using).filter(pk__in=ids).order_by("pk").select_for_update().values_list("pk"))


def let_go(using: str, letter_id: int, hold_id: int, replay: Replay) -> Replay | None:
    """Take a letter that is settled out of its hold, and ask for a replay of the next one.

    `replay` has who asks. Returns the next replay; None when nothing is parked behind the letter: then the key flows
    again, unless another letter of it is open. Part of the transaction that settles the letter.
    """
    hold = Hold.objects.using(using).filter(pk=hold_id)
    letters = DeadLetter.objects.using(using)
    if not hold.update(changes=F("changes") + 1):
        return None
    letters.filter(pk=letter_id).update(hold=None)
    first = letters.filter(hold=hold_id, state__in=_LIVE).order_by("id").only("state").first()
    if first is None:
        hold.delete()
        return None
    if first.state != DeadLetter.State.PARKED:
        return None
    letters.filter(pk=first.pk).update(state=DeadLetter.State.OPEN)
    return Replay.objects.using(using).create(
        letter_id=first.pk,
        target=Replay.Target.HANDLER,
        requested_by_id=replay.requested_by_id,
        requested_by_name=replay.requested_by_name,
        requested_at=timezone.now(),
    )


def refuse(letter: DeadLetter, target: str) -> None:
    """Raise `ReplayRefused` when a replay would break the order of the letter's key."""
    if letter.hold_id is None or target == Replay.Target.DRY_RUN:
        return
    if target == Replay.Target.TOPIC:
        raise ReplayRefused(
            f"{letter} holds its key back: sent to a topic, it would come behind all that waits for it. "
            "Replay it to its handler, or discard it."
        )
    using = conf.kafka().dead_letters.database
    before = DeadLetter.objects.using(using).filter(hold=letter.hold_id, state__in=_LIVE, pk__lt=letter.pk)
    if (first := before.order_by("id").first()) is not None:
        raise ReplayRefused(f"{first} has the same key and comes before {letter}: replay or discard that one first.")
