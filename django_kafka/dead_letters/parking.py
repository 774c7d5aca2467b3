"""Parking: a message whose key is held is stored behind the dead letter, and is settled with that."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from django.db import transaction
from django.utils import timezone

from .. import conf
from ..execution import leave_foreign_transaction
from ..messages import Message
from ..models import DeadLetter
from . import holds, searching
from .recording import Finish
from .rows import new_letter

CATEGORY = "parked"
"""What a parked message has instead of an error's category."""


class Parking(Enum):
    """What became of a message whose key was held."""

    PARKED = auto()
    """It is stored, now or before."""
    FREE = auto()
    """Its key is not held any more: it may be handled."""
    BEFORE = auto()
    """It comes before what is held, so a crash repeats it: it is to be handled again, ahead of that."""
    FULL = auto()
    """So many are parked already that it has to wait. Nothing is stored."""


def park(
    consumer: conf.Consumer,
    group_id: str,
    message: Message,
    *,
    count: bool,
    still_ours: Callable[[], None],
    finish: Finish | None = None,
) -> Parking:
    """Store `message` behind the dead letter of its key, in a transaction of its own, and return what became of it.

    A message that has a letter already, because a crash repeated it, gets no second one. `count` has those that are
    parked counted, for the limit. `still_ours` is asked last of all before the COMMIT and raises `PartitionLost`.
    Whatever else is raised means: not stored. `finish` is a part of the same transaction when the message is parked.
    """
    using = conf.kafka().dead_letters.database
    identity = holds.identity(consumer, group_id, message)
    if identity is None:
        return Parking.FREE
    still_ours()
    leave_foreign_transaction(using)
    with transaction.atomic(using=using):
        # Written first: whoever releases waits until this is committed, or this sees that the hold is gone.
        hold_id = holds.lock(using, identity)
        if hold_id is None:
            return Parking.FREE
        now = timezone.now()
        letter = new_letter(
            consumer, group_id, message,
            state=DeadLetter.State.PARKED, hold_id=hold_id, category=CATEGORY, first_failed_at=now, last_failed_at=now,
        )  # fmt: skip
        if not letter.same().using(using).exists():
            if holds.is_before(using, hold_id, message):
                return Parking.BEFORE
            if count and holds.parked(using, hold_id) >= consumer.hold_key_limit:
                return Parking.FULL
            letter.save(using=using, force_insert=True)
            searching.mark(using, letter.pk)
        if finish is not None:
            finish([message.offset])
        still_ours()
    return Parking.PARKED
