"""Replays: asked for in the admin or by command, carried out by whoever claims them, safe to interrupt anywhere.

A request is a row. An executor (a worker, a Celery task, the command) claims the oldest one, renews its claim while it
works, and brings it to its end in one compare-and-set. A claim that is no longer renewed is taken over. Whether it is
renewed goes by the clock of the database: those of executors differ, and may be stepped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from .. import conf
from ..models import DeadLetter, Replay
from ..models.dead_letters import key_hash
from . import holds

LEASE = 60.0
"""Seconds after which a claim that was not renewed is taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """What became of a request to replay letters."""

    count: int
    """Letters whose replay is now asked for."""
    refused: int
    """Letters that are resolved, discarded, or being replayed already."""
    consumers: frozenset[str]
    """The consumers whose letters they are."""


def letters() -> QuerySet[DeadLetter]:
    """Return all dead letters, from the database that keeps them."""
    return DeadLetter.objects.using(conf.kafka().dead_letters.database)


def with_key(key: bytes) -> Q:
    """Return a condition: the letter has exactly this key."""
    return Q(key_hash=key_hash(key), key=key)


def replays() -> QuerySet[Replay]:
    """Return all replays, from the database that keeps them."""
    return Replay.objects.using(conf.kafka().dead_letters.database)


def outstanding(prefix: str = "") -> Exists:
    """Return a condition: the letter (of the outer query) has a replay that is not at its end."""
    return Exists(replays().filter(letter=OuterRef(f"{prefix}pk"), state__in=Replay.OUTSTANDING))


def unclaimed() -> Q:
    """Return a condition: the replay is asked for, and nobody works on it (any more)."""
    expired = Now() - timedelta(seconds=LEASE)
    return Q(state=Replay.State.REQUESTED) | Q(state=Replay.State.RUNNING, claimed_at__lt=expired)


def request(
    chosen: Iterable[int],
    *,
    target: str = Replay.Target.HANDLER,
    topic: str = "",
    user: Any = None,
    name: str = "",
) -> Requested:
    """Ask for a replay of the letters with these ids.

    Only open letters without an outstanding replay are taken. With the target "topic", `topic` names another one than
    their own, without the prefix; it is in the cluster that they came from. `user` is the person who asks, `name` who
    or what asks where there is none. Nothing runs here.

    Raises `ReplayRefused` when one of them holds its key back and is to be sent to a topic, and `ConfigurationError`
    when Kafka would refuse the name of the topic.
    """
    to_topic = aim(target, topic)
    count = refused = 0
    consumers: set[str] = set()
    for ids in _pieces(sorted(set(chosen))):
        with transaction.atomic(using=conf.kafka().dead_letters.database):
            if target == Replay.Target.TOPIC:
                _refuse_held(ids)
            ready = letters().filter(pk__in=ids, state=DeadLetter.State.OPEN).exclude(outstanding())
            found = dict(ready.select_for_update().values_list("pk", "consumer"))
            now = timezone.now()
            rows = [
                Replay(
                    letter_id=pk,
                    target=target,
                    to_topic=to_topic,
                    requested_by_id=None if user is None else user.pk,
                    requested_by_name=name or name_of(user),
                    requested_at=now,
                )
                for pk in ids
                if pk in found
            ]
            # A request that another one overtook is dropped by the constraint, not by this look.
            replays().bulk_create(rows, ignore_conflicts=True)
        count += len(rows)
        refused += len(ids) - len(rows)
        consumers.update(found.values())
    return Requested(count=count, refused=refused, consumers=frozenset(consumers))


def aim(target: str, topic: str) -> str:
    """Return the topic of a replay as Kafka knows it; "": that of its letter.

    Raises `ValueError` for a target that there is not, or that has no topic, and `ConfigurationError` for a name that
    Kafka refuses.
    """
    if target not in Replay.Target.values:
        raise ValueError(f"The target {target!r} is not one of: {', '.join(Replay.Target.values)}.")
    if not topic:
        return ""
    if target != Replay.Target.TOPIC:
        raise ValueError(f"A replay with the target {target!r} is sent to no topic; it names {topic!r}.")
    return conf.kafka().prefixed(conf.topic_name(topic))


def cancel(chosen: Iterable[int]) -> int:
    """Take back replays of the letters with these ids that nobody works on; return how many.

    That is those that nobody has begun, and those whose executor was killed: a handler that kills its process would
    otherwise be tried again and again. What is part of a job is cancelled with that.
    """
    waiting = replays().filter(unclaimed(), job__isnull=True)
    return sum(
        waiting.filter(letter__in=ids).update(state=Replay.State.CANCELLED, finished_at=timezone.now())
        for ids in _pieces(sorted(set(chosen)))
    )


def _refuse_held(ids: Sequence[int]) -> None:
    held = letters().filter(pk__in=ids, state=DeadLetter.State.OPEN, hold__isnull=False)
    if (first := held.order_by("pk").first()) is not None:
        holds.refuse(first, Replay.Target.TOPIC)


def discard(chosen: Iterable[int], *, user: Any = None, name: str = "") -> int:
    """Give up the open letters with these ids for good; return how many. Those that are being replayed stay.

    What is parked behind one of them is released: replays of it are asked for, by `user` or `name` as in `request`.
    """
    using = conf.kafka().dead_letters.database
    by = Replay(requested_by_id=None if user is None else user.pk, requested_by_name=name or name_of(user))
    count = 0
    for ids in _pieces(sorted(set(chosen))):
        with transaction.atomic(using=using):
            holds.lock_of(using, ids)
            count += _move(ids, DeadLetter.State.OPEN, DeadLetter.State.DISCARDED)
            given_up = letters().filter(pk__in=ids, state=DeadLetter.State.DISCARDED, hold__isnull=False)
            for letter_id, hold_id in given_up.order_by("pk").values_list("pk", "hold_id"):
                holds.let_go(using, letter_id, hold_id, by)
    return count


def reopen(chosen: Iterable[int]) -> int:
    """Open discarded letters again; return how many. They hold no key: later messages have been handled already.

    What was erased stays as it is: there is nothing to replay.
    """
    return _move(chosen, DeadLetter.State.DISCARDED, DeadLetter.State.OPEN)


def _move(chosen: Iterable[int], old: str, new: str) -> int:
    settled = None if new == DeadLetter.State.OPEN else timezone.now()
    whole = Q(erased_at__isnull=True) if new == DeadLetter.State.OPEN else Q()
    return sum(
        letters().filter(whole, pk__in=ids, state=old).exclude(outstanding()).update(state=new, settled_at=settled)
        for ids in _pieces(sorted(set(chosen)))
    )


def _pieces(ids: Sequence[int], size: int = 500) -> Iterable[Sequence[int]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def name_of(user: Any) -> str:
    """Return what a person is called in rows."""
    return "" if user is None else str(user.get_username())[:200]
