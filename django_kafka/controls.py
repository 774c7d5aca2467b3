"""Control of workers from outside: pause and resume, close circuits, seek, stop.

    pause("flights", reason="…")                        until somebody resumes it, whatever restarts meanwhile
    pause("flights", topic="ops.flights", partition=3)
    resume("flights")
    seek("flights", Since(at), dry_run=True)            what would be read again, and what skipped
    close_breaker(worker), stop_worker(worker)

Each call stores a `Control` and is carried out by the workers themselves, within seconds: `requests()` tells how far
they are. Topics and groups are named as Kafka knows them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Case, Q, QuerySet, When
from django.db.models.functions import Now

from . import conf, handlers, subscriptions
from .consuming.controls import expire
from .dead_letters import audit
from .dead_letters.failures import storable
from .exceptions import ConfigurationError
from .membership import topics_and_group
from .models import Control, Pause, Worker
from .models.controls import EVERY
from .monitoring import heartbeats
from .offsets import resetting
from .offsets.resetting import Earliest, Latest, Move, Offset, Offsets, Shift, Since, Target
from .offsets.standing import Books, Stand

__all__ = [
    "ControlRefused", "Earliest", "Latest", "Offset", "Offsets", "Plan", "Shift", "Since", "close_breaker", "pause",
    "pauses", "plan", "requests", "resume", "seek", "stop_worker",
]  # fmt: skip

EXPIRES_AFTER = 60.0
"""Seconds after which a request is given up that no worker has taken."""


class ControlRefused(ConfigurationError):
    """A request that cannot be, or not now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a seek does."""

    stand: Stand
    """Where the group stands now."""
    moves: Sequence[Move]
    """What becomes of each partition; those that stay are among them."""

    @property
    def again(self) -> int:
        """How many messages are read again."""
        return sum(move.again for move in self.changes)

    @property
    def skipped(self) -> int:
        """How many messages are never read."""
        return sum(move.skipped for move in self.changes)

    @property
    def changes(self) -> list[Move]:
        """Those of the partitions that do not stay where they are.

        While workers have them all may: where a worker is, nobody else knows before it has committed.
        """
        return [move for move in self.moves if self.stand.workers or move.to != move.standing.position]


def requests() -> QuerySet[Control]:
    """Return all requests, the last one first; `overdue` of each: whether nobody took it in time.

    Workers give those up, and whoever asks for anything: who only looks writes nothing.
    """
    late = Q(state=Control.State.REQUESTED, expires_at__lt=Now())
    return Control.objects.using(_database()).annotate(overdue=Case(When(late, then=True), default=False))


def pauses() -> QuerySet[Pause]:
    """Return what is paused now."""
    return Pause.objects.using(_database())


def pause(
    consumer: str, *, topic: str = "", partition: int | None = None, user: Any = None, reason: str = ""
) -> Control:
    """Pause a consumer, or one partition of it, until it is resumed: what runs is finished, and nothing more is begun.

    It holds through rebalances and restarts. `user` is the person, or a text that names who wants it. Raises
    `ControlRefused` when it is paused, and `UnknownName` for a consumer that settings lack.
    """
    where = _where(consumer, topic, partition)
    with _storing():
        rows = pauses()
        now = {"paused_by": _name(user), "paused_at": Now(), "reason": _reason(reason)}
        row, new = rows.get_or_create(**where, defaults=now)
        if not new:
            raise ControlRefused(f"{row.sentence}.")
        return _request(where, Control.Verb.PAUSE, user, reason)


def resume(
    consumer: str, *, topic: str = "", partition: int | None = None, user: Any = None, reason: str = ""
) -> Control:
    """Have a consumer go on with all of its partitions, or with one of them. Raises `ControlRefused`, `UnknownName`."""
    where = _where(consumer, topic, partition)
    with _storing():
        rows = pauses().filter(**{name: where[name] for name in ("cluster", "consumer", "group_id")})
        if topic and (whole := rows.filter(topic="").first()) is not None:
            raise ControlRefused(f"The whole consumer is paused; resume that. {whole.sentence}.")
        mine = rows.filter(topic=where["topic"], partition=where["partition"]) if topic else rows
        if not mine.delete()[0]:
            raise ControlRefused("It is not paused.")
        return _request(where, Control.Verb.RESUME, user, reason)


def close_breaker(worker: Worker, *, user: Any = None, reason: str = "") -> Control:
    """Have a worker close its circuit, unless it has closed and opened again by then. Raises `ControlRefused`."""
    if worker.circuit == Worker.Circuit.CLOSED:
        raise ControlRefused("Its circuit is closed.")
    return _request_of(worker, Control.Verb.CLOSE_BREAKER, user, reason, number=worker.circuit_episode)


def stop_worker(worker: Worker, *, user: Any = None, reason: str = "") -> Control:
    """Have a worker finish what runs, commit and leave its group. Raises `ControlRefused`.

    Its process ends when no other consumer works in it; who keeps processes running, as a supervisor, starts it again.
    """
    return _request_of(worker, Control.Verb.STOP, user, reason)


def plan(
    consumer: str, target: Target, *, topic: str = "", partitions: Collection[int] = (), timeout: float | None = None
) -> Plan:
    """Return what a seek would do, and do nothing. `timeout`: seconds that brokers may take for each answer.

    Where workers are in the group it tells of what they have committed; they may be further.

    Without `topic` it is about all topics that the consumer reads, but not its retry topics, which hold what was read
    from these. Raises `ConfigurationError` for what is not there, and `Unreachable`.
    """
    books = _books(consumer, timeout)
    return _planned(books, target, topic, partitions)


def seek(
    consumer: str,
    target: Target,
    *,
    topic: str = "",
    partitions: Collection[int] = (),
    user: Any = None,
    reason: str = "",
    dry_run: bool = False,
    timeout: float | None = None,
) -> tuple[Plan, list[Control]]:
    """Have partitions go on elsewhere; return what that does, and the requests: one for each that moves.

    The worker that has a partition moves it. When nobody is in the group it is moved at once. `dry_run` only tells.
    Raises `ControlRefused`, and what `plan` raises.
    """
    books = _books(consumer, timeout)
    planned = _planned(books, target, topic, partitions)
    if dry_run or not planned.changes:
        return planned, []
    return planned, carry_out(books, planned, user=user, reason=reason)


def carry_out(books: Books, planned: Plan, *, user: Any, reason: str) -> list[Control]:
    """Store the requests of a seek; carry it out when nobody is in the group."""
    stand = planned.stand
    if stand.unheard:
        raise ControlRefused(stand.unheard)
    if stand.users and not stand.workers:
        raise ControlRefused(
            f"Members of group {stand.group_id!r} are no workers that are heard of here: {', '.join(stand.users)}."
        )
    identity = _identity(books.consumer, stand.group_id)
    with _storing():
        controls = [
            _request(
                {**identity, "topic": move.standing.topic, "partition": move.standing.partition},
                Control.Verb.SEEK, user, reason, number=move.to,
            )
            for move in planned.changes
        ]  # fmt: skip
        if not stand.workers:
            resetting.carry_out(books, planned.changes, user=_name(user))
            for control, move in zip(controls, planned.changes, strict=True):
                control.state, control.result = Control.State.DONE, _moved(move)
            mine = Control.objects.using(_database()).filter(pk__in=[control.pk for control in controls])
            for control in controls:
                mine.filter(pk=control.pk).update(state=control.state, finished_at=Now(), result=control.result)
    return controls


def _moved(move: Move) -> str:
    start = move.standing.position
    was = "" if start is None else f", and was at {start}"
    return f"Nobody is in the group. It goes on at {move.to}{was}: {move.again} read again, {move.skipped} skipped."


def _planned(books: Books, target: Target, topic: str, partitions: Collection[int]) -> Plan:
    if isinstance(target, Offsets):
        if strange := {name for name, _number in target.numbers} - set(books.topics):
            raise ControlRefused(f"{', '.join(sorted(strange))} is no topic of consumer {books.consumer.name!r}.")
        stand = books.stand(sorted({name for name, _number in target.numbers}))
        if missing := set(target.numbers) - {one.place for one in stand.partitions}:
            raise ControlRefused(
                f"There is no partition {', '.join(f'{name}[{one}]' for name, one in sorted(missing))}."
            )
        return Plan(stand=stand, moves=resetting.plan(books, stand, target))
    topics = [topic] if topic else [name for name in books.topics if name not in books.retries]
    if topic and topic not in books.topics:
        raise ControlRefused(f"{topic!r} is no topic of consumer {books.consumer.name!r}.")
    stand = books.stand(topics, partitions)
    return Plan(stand=stand, moves=resetting.plan(books, stand, target))


def _books(consumer: str, timeout: float | None) -> Books:
    return Books(consumer) if timeout is None else Books(consumer, timeout=timeout)


def _where(name: str, topic: str, partition: int | None) -> dict[str, Any]:
    """Return what a request is about. Raises `ControlRefused` and `UnknownName`."""
    consumer = conf.consumer(name)
    if not conf.kafka().heartbeats.enabled:
        raise ControlRefused('Workers are not controlled: KAFKA["heartbeats"]["enabled"] is False.')
    origins, group_id = topics_and_group(consumer, handlers.topics(name))
    if bool(topic) != (partition is not None):
        raise ControlRefused("Say topic and partition, or neither.")
    if topic and not handlers.reads(name, topic):
        patterns = [one.text for one in subscriptions.patterns(name)]
        reads = ", ".join([*origins, *patterns, *handlers.retry_topics(name)])
        raise ControlRefused(f"{topic!r} is no topic of consumer {name!r}; it reads {reads}.")
    if partition is not None and not 0 <= partition < 1 << 31:
        raise ControlRefused(f"{partition} is no number of a partition.")
    return {**_identity(consumer, group_id), "topic": topic, "partition": EVERY if partition is None else partition}


def _identity(consumer: conf.Consumer, group_id: str) -> dict[str, Any]:
    return {"cluster": consumer.cluster, "consumer": consumer.name, "group_id": group_id}


def _request_of(worker: Worker, verb: Control.Verb, user: Any, reason: str, *, number: int | None = None) -> Control:
    rows = Worker.objects.using(_database()).filter(pk=worker.pk)
    if not heartbeats.living(rows).exists():
        raise ControlRefused(f"{worker} was not heard of lately.")
    where = {"cluster": worker.cluster, "consumer": worker.consumer, "group_id": worker.group_id}
    with _storing():
        return _request({**where, "worker": worker.pk, "worker_name": str(worker)[:300]}, verb, user, reason, number)


@contextmanager
def _storing() -> Iterator[None]:
    with transaction.atomic(using=_database()):
        # Written before anything is read: SQLite does not let a transaction write whose reading is out of date.
        expire(_database())
        yield


_UNDONE = {Control.Verb.PAUSE: Control.Verb.RESUME, Control.Verb.RESUME: Control.Verb.PAUSE}


def _request(where: dict[str, Any], verb: Control.Verb, user: Any, reason: str, number: int | None = None) -> Control:
    """Store a request, and note who wants it, in the transaction that is open."""
    rows = Control.objects.using(_database())
    if verb in _UNDONE:
        _overtake(where, verb)
    try:
        with transaction.atomic(using=_database()):
            control = rows.create(
                **where, verb=verb, number=number, reason=_reason(reason), requested_by=_name(user),
                requested_at=Now(), expires_at=Now() + timedelta(seconds=_patience()),
            )  # fmt: skip
    except IntegrityError:
        raise ControlRefused("Somebody has asked for the same, and it is not done yet.") from None
    control.refresh_from_db(using=_database())
    note(control, user, reason)
    return control


def _overtake(where: dict[str, Any], verb: Control.Verb) -> None:
    """End the requests that are outstanding and that a pause, or its end, leaves no sense to."""
    mine = {name: value for name, value in where.items() if where["topic"] or name not in ("topic", "partition")}
    rows = Control.objects.using(_database()).filter(**mine, state__in=Control.OUTSTANDING)
    over = {"state": Control.State.EXPIRED, "finished_at": Now()}
    # What is wanted of a whole consumer is wanted of each partition.
    rows.filter(verb=_UNDONE[verb]).update(**over, result="Somebody wanted the opposite meanwhile.")
    # Something was paused, or resumed, since then: else it would have been refused.
    again = rows.filter(verb=verb, topic=where["topic"], partition=where["partition"])
    again.update(**over, result="Somebody asked for it once more.")


def note(control: Control, user: Any, reason: str) -> None:
    """Write down who asked for it."""
    details: dict[str, Any] = {"request": control.pk}
    if control.verb == Control.Verb.SEEK:
        details["offset"] = control.number
    audit.note(user, f"control: {control.verb}", [control], reason=reason, details=details)


def _patience() -> float:
    # Of a worker that dies, another learns only after a while.
    return max(EXPIRES_AFTER, 3 * heartbeats.silence().total_seconds())


def _reason(reason: str) -> str:
    return storable(reason.strip())[:500]


def _name(user: Any) -> str:
    return storable(user if isinstance(user, str) else "" if user is None else str(user.get_username()))[:200]


def _database() -> str:
    return conf.kafka().dead_letters.database


def of_partitions(rows: Iterable[Pause]) -> dict[tuple[str, str, int], Pause]:
    """Return pauses by consumer, topic and partition; those of whole consumers have no topic."""
    return {(one.consumer, one.topic, one.partition): one for one in rows}
