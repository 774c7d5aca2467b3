"""Claims: how far a consumer's effects have come, kept in the database that has the effects.

A worker claims a partition before its first message, which gives it a new epoch. From then on each of its transactions
moves the claim past its messages, if the claim still has that epoch and is not past them already; else nothing of the
transaction stays. So the effects of a message are there once, whoever else believes to own the partition.

    take()                  claim a partition
    Claimed.settle()        in a transaction: move the claim past the messages whose effects it has
    Claimed.settled_of()    which messages are settled, after a COMMIT that was not answered
    of_group(), reset()     show and move claims from outside
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import IntegrityError, connections, transaction
from django.db.models import F
from django.utils import timezone

from . import conf
from .clients.admin import Unreachable
from .clients.events import Place
from .clients.groups import Log
from .exceptions import ConfigurationError, PartitionLost
from .execution import leave_foreign_transaction
from .models import Claim, SettledMessage

_PATIENCE = 5000
"""Milliseconds that a claim waits for a transaction of the former owner that is about to COMMIT."""
_MENDS = "`python manage.py kafka_offsets` shows where it stands, and sets where to go on"


class ClaimRefused(ConfigurationError):
    """A claim and the log of its partition do not fit; only a person can say where to go on."""


@dataclass(slots=True, eq=False)
class Claimed:
    """A claim in the hands of a worker."""

    pk: int
    """Of its row."""
    database: str
    """The alias of the database that has it, and the effects."""
    place: Place
    """The partition."""
    epoch: int
    """The one that this worker was given."""
    offset: int
    """The first message that was not settled when it was claimed."""
    apart: bool
    """Whether messages overtake one another, so that each is noted by itself."""
    settled: set[int] = field(default_factory=set)
    """Those beyond `offset` that were settled by then."""
    moved_to: int = 0
    """Where its row was moved last, where messages are noted apart."""
    fenced: bool = False
    """Whether a transaction found that the claim is somebody else's, or past its messages."""
    doubts: set[Any] = field(default_factory=set)
    """Lanes whose last COMMIT was not answered."""

    def settle(self, offsets: Sequence[int]) -> None:
        """Move the claim past these messages, in their order, as part of the transaction that has their effects.

        Raises `PartitionLost`, after which the transaction must not be committed.
        """
        if not (self._note(offsets) if self.apart else self._move(offsets)):
            self.fenced = True
            topic, partition = self.place
            raise PartitionLost(f"{topic}[{partition}] was claimed by another worker, or its offset was set anew.")

    def _move(self, offsets: Sequence[int]) -> bool:
        connection = connections[self.database]
        table, offset = map(connection.ops.quote_name, (Claim._meta.db_table, "offset"))
        with connection.cursor() as cursor:
            # Not through the ORM, whose own part would be as much again for each message.
            cursor.execute(
                f"UPDATE {table} SET {offset} = %s WHERE id = %s AND epoch = %s AND {offset} <= %s",
                [offsets[-1] + 1, self.pk, self.epoch, offsets[0]],
            )
            return bool(cursor.rowcount == 1)

    def _note(self, offsets: Sequence[int]) -> bool:
        connection = connections[self.database]
        if connection.vendor != "postgresql":
            mine = Claim.objects.using(self.database).filter(pk=self.pk, epoch=self.epoch, offset__lte=min(offsets))
            if not mine.update(epoch=self.epoch):
                return False
            try:
                SettledMessage.objects.using(self.database).bulk_create(
                    [SettledMessage(claim_id=self.pk, offset=one) for one in offsets]
                )
            except IntegrityError:
                return False
            return True
        names = Claim._meta.db_table, SettledMessage._meta.db_table, "offset"
        claims, settled, offset = map(connection.ops.quote_name, names)
        with connection.cursor() as cursor:
            # Lanes of one partition share the lock, so that they need not COMMIT one after another; a claim waits for
            # all of them, and they for it.
            cursor.execute(
                f"INSERT INTO {settled} (claim_id, {offset}) SELECT claim.id, one FROM {claims} claim, "
                f"unnest(%s::bigint[]) one WHERE claim.id = %s AND claim.epoch = %s AND claim.{offset} <= %s "
                "FOR SHARE OF claim ON CONFLICT DO NOTHING",
                [list(offsets), self.pk, self.epoch, min(offsets)],
            )
            return bool(cursor.rowcount == len(offsets))

    def settled_of(self, offsets: Collection[int]) -> set[int]:
        """Return which of these messages are settled. Raises `PartitionLost`."""
        leave_foreign_transaction(self.database)
        rows = Claim.objects.using(self.database).filter(pk=self.pk)
        found = rows.values_list("epoch", "offset").first()
        if found is None or found[0] != self.epoch:
            self.fenced = True
            raise PartitionLost(f"{self.place[0]}[{self.place[1]}] was claimed by another worker.")
        noted = SettledMessage.objects.using(self.database).filter(claim=self.pk)
        beyond = noted.filter(offset__range=(min(offsets), max(offsets)))
        known = set(beyond.values_list("offset", flat=True))
        return {one for one in offsets if one < found[1] or one in known}

    def advance(self, offset: int) -> None:
        """Move the claim to the watermark, and forget the messages below it; where messages are noted apart."""
        if offset <= self.moved_to:
            return
        leave_foreign_transaction(self.database)
        with transaction.atomic(using=self.database):
            mine = Claim.objects.using(self.database).filter(pk=self.pk, epoch=self.epoch)
            if mine.update(offset=offset):
                SettledMessage.objects.using(self.database).filter(claim=self.pk, offset__lt=offset).delete()
        self.moved_to = offset


def take(
    consumer: conf.Consumer, group_id: str, place: Place, log: Log, *, apart: bool, begins: int | None, worker: str
) -> Claimed | None:
    """Claim a partition: give it a new epoch, and return how far it is.

    `log` is what brokers have of it; without a claim it begins at `begins`, and with None for that too nothing happens:
    None is returned. Raises `ClaimRefused` when only a person can say where to go on, and `Unreachable` when brokers
    have not said enough.
    """
    leave_foreign_transaction(consumer.database)
    identity = _identity(consumer, group_id, place)
    with transaction.atomic(using=consumer.database):
        _wait_briefly(consumer.database)
        rows = Claim.objects.using(consumer.database)
        now = {"consumer": consumer.name, "worker": worker, "claimed_at": timezone.now()}
        # Written first, which waits for transactions that are about to COMMIT, and is what those after it see.
        if not rows.filter(**identity).update(epoch=F("epoch") + 1, **now):
            if begins is None:
                return None
            _refuse_outside(place, begins, log, "its group has committed")
            rows.create(**identity, topic_id=log.topic_id or "", offset=begins, epoch=1, **now)
        row = rows.get(**identity)
        _refuse_other_topic(place, row, log)
        _refuse_outside(place, row.offset, log, "its claim is at")
        settled = _compact(row)
        row.topic_id = log.topic_id or ""
        row.save(using=consumer.database, update_fields=["topic_id", "offset"])
    return Claimed(
        pk=row.pk, database=consumer.database, place=place, epoch=row.epoch, offset=row.offset, apart=apart,
        settled=settled, moved_to=row.offset,
    )  # fmt: skip


def _identity(consumer: conf.Consumer, group_id: str, place: Place) -> dict[str, Any]:
    return {"cluster": consumer.cluster, "group_id": group_id, "topic": place[0], "partition": place[1]}


def _wait_briefly(using: str) -> None:
    connection = connections[using]
    if connection.vendor == "postgresql":
        # A worker that is stopped in mid-transaction would hold up the claims of all others.
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {_PATIENCE}")


def _refuse_other_topic(place: Place, row: Claim, log: Log) -> None:
    topic, partition = place
    if row.topic_id and not log.topic_id:
        # A cluster that did say it before: it may be another topic by now, whose messages would be skipped.
        raise Unreachable(f"The brokers do not say whether {topic!r} is still the topic that was claimed.")
    if row.topic_id not in ("", log.topic_id):
        raise ClaimRefused(
            f"{topic}[{partition}] is of another topic of that name than the one whose messages were handled (id "
            f"{log.topic_id}, was {row.topic_id}): it was deleted and made anew. Nothing of it is handled; {_MENDS}."
        )


def _refuse_outside(place: Place, offset: int, log: Log, whose: str) -> None:
    if log.low <= offset <= log.high:
        return
    topic, partition = place
    what = (
        f"messages before {log.low} are deleted, and those from {offset} on were not handled"
        if offset < log.low
        else f"its log ends at {log.high}"
    )
    raise ClaimRefused(f"{topic}[{partition}]: {whose} offset {offset}, but {what}. Nothing is skipped; {_MENDS}.")


def _compact(row: Claim) -> set[int]:
    """Move a claim past the messages that are settled one after another; return those beyond."""
    noted = SettledMessage.objects.using(row._state.db).filter(claim=row)
    settled = set(noted.values_list("offset", flat=True))
    while row.offset in settled:
        row.offset += 1
    noted.filter(offset__lt=row.offset).delete()
    return {one for one in settled if one > row.offset}


def of_group(database: str, cluster: str, group_id: str) -> list[Claim]:
    """Return the claims of a group, by topic and partition; `group_id` has its prefix."""
    claims = Claim.objects.using(database).filter(cluster=cluster, group_id=group_id)
    return list(claims.order_by("topic", "partition"))


def reset(consumer: conf.Consumer, group_id: str, place: Place, offset: int) -> Claim:
    """Have a partition go on at `offset`, in the topic that has its name now; return its claim.

    A worker that has it can settle nothing more under its old epoch, and claims it anew. `group_id` and the topic of
    `place` have their prefix.
    """
    identity = _identity(consumer, group_id, place)
    with transaction.atomic(using=consumer.database):
        rows = Claim.objects.using(consumer.database)
        now = timezone.now()
        if not rows.filter(**identity).update(epoch=F("epoch") + 1, offset=offset, topic_id="", claimed_at=now):
            rows.create(**identity, offset=offset, epoch=1, consumer=consumer.name, claimed_at=now)
        row = rows.get(**identity)
        SettledMessage.objects.using(consumer.database).filter(claim=row).delete()
    return row
