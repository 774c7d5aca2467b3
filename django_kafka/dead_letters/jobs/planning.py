"""Making a job: the selection is frozen by the database itself, however many letters it has."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connections, transaction
from django.db.models import Case, Count, Expression, F, IntegerField, QuerySet, Value, When
from django.db.models.constants import OnConflict
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Mod, Substr
from django.utils import timezone

from ... import conf
from ...models import DeadLetter, JobLane, Replay, ReplayJob
from ...models.jobs import LANES
from ..replaying import aim, letters, name_of, outstanding, replays
from .rows import jobs, lanes

MOST_STEPS = 20
"""Steps of a ramp."""


def fitting(chosen: QuerySet[DeadLetter], target: str) -> QuerySet[DeadLetter]:
    """Return those of the letters that can be replayed to a target now."""
    ready = chosen.filter(state=DeadLetter.State.OPEN).exclude(outstanding())
    # What failed on an imported letter runs elsewhere; one that holds its key would come behind all that waits for it.
    return ready.filter(hold__isnull=True) if target == Replay.Target.TOPIC else ready.filter(imported_as="")


def create(
    chosen: QuerySet[DeadLetter] | Iterable[int],
    *,
    target: str = Replay.Target.HANDLER,
    topic: str = "",
    user: Any = None,
    name: str = "",
    reason: str = "",
    description: str = "",
    rate: float | None = None,
    ramp: Sequence[int] = (),
    failure_ratio: float | None = None,
) -> list[ReplayJob]:
    """Make a job for each consumer that has letters among the chosen ones, and return the jobs.

    `chosen` are letters or their ids. What is not open, or is being replayed already, is left out and counted. With
    the target "topic", `topic` names another one than their own, without the prefix. `rate` is in letters per second;
    `ramp` has the sizes of the first steps, such as `[1, 10, 100]`; the job pauses when more than `failure_ratio` (0
    to 1) of the letters of a step fail. `user` is the person who asks, `name` who or what asks where there is none.
    Nothing runs here.

    Raises `ValueError` for values that cannot be meant, and `ConfigurationError` when Kafka would refuse the name of
    the topic.
    """
    to_topic = aim(target, topic)
    _check(target, rate, ramp, failure_ratio)
    using = conf.kafka().dead_letters.database
    # By their ids alone: whatever else the query reads or joins stays inside.
    wanted: Any = _by_ids(using, chosen) if not isinstance(chosen, QuerySet) else chosen.order_by().values("pk")
    mine = letters().filter(pk__in=wanted)
    made = []
    with transaction.atomic(using=using):
        for consumer, count in mine.order_by("consumer").values_list("consumer").annotate(Count("pk")):
            job = jobs().create(
                consumer=consumer,
                target=target,
                to_topic=to_topic,
                description=description[:500],
                reason=reason,
                requested_by_id=None if user is None else user.pk,
                requested_by_name=(name or name_of(user))[:200],
                requested_at=timezone.now(),
                rate=rate,
                ramp=list(ramp),
                failure_ratio=failure_ratio,
                after=replays().order_by("-pk").values_list("pk", flat=True).first() or 0,
            )
            job.total = _freeze(using, fitting(mine.filter(consumer=consumer), target), job)
            if not job.total:
                job.delete()
                continue
            job.left_out = max(0, count - job.total)
            job.allowed = last_of_step(job, after=job.after)
            job.save(using=using, update_fields=["total", "left_out", "allowed"])
            lanes().bulk_create(JobLane(job=job, name=lane) for lane in LANES)
            made.append(job)
    return made


def _check(target: str, rate: float | None, ramp: Sequence[int], failure_ratio: float | None) -> None:
    if target == Replay.Target.DRY_RUN:
        raise ValueError("A job replays letters; a dry run is of one.")
    check_rate(rate)
    if len(ramp) > MOST_STEPS or not all(isinstance(size, int) and 0 < size < 10**12 for size in ramp):
        raise ValueError(f"The ramp {list(ramp)!r} has to be at most {MOST_STEPS} numbers of letters, each 1 or more.")
    if failure_ratio is not None and not 0 <= failure_ratio <= 1:
        raise ValueError(f"The failure ratio {failure_ratio!r} is not between 0 and 1.")


def check_rate(rate: float | None) -> None:
    """Raise `ValueError` for a rate that cannot be meant."""
    if rate is not None and not (math.isfinite(rate) and 0.001 <= rate <= 1_000_000):
        raise ValueError(f"The rate {rate!r} is not between 0.001 and 1000000 letters a second.")


def _by_ids(using: str, ids: Iterable[int]) -> Any:
    """Return what the letters with these ids are found by: one parameter, since databases bound their number."""
    numbers = sorted(set(map(int, ids)))
    match connections[using].vendor:
        case "postgresql":
            return RawSQL("SELECT unnest(%s::bigint[])", [numbers])
        case "sqlite":
            return RawSQL("SELECT value FROM json_each(%s)", [json.dumps(numbers)])
    return numbers


def _freeze(using: str, chosen: QuerySet[DeadLetter], job: ReplayJob) -> int:
    """Ask for a replay of each letter as part of the job, in one statement; return how many they are.

    In the order of their partitions, which is that of keys. A letter whose replay somebody else asks for at the same
    moment is left out by the constraint.
    """
    connection = connections[using]
    given: dict[str, Any] = {
        "letter_id": F("pk"),
        "lane": _lane(),
        "target": job.target,
        "to_topic": job.to_topic,
        "requested_by_id": job.requested_by_id,
        "requested_by_name": job.requested_by_name,
        "requested_at": job.requested_at,
        "job_id": job.pk,
    }
    columns, shown = [], {}
    for field in Replay._meta.concrete_fields:
        if field.primary_key:
            continue
        value = given.get(field.attname, field.get_default())
        if not isinstance(value, Expression | F):
            value = Value(value, output_field=field)
            # In a SELECT PostgreSQL has to be told what a bare parameter is; SQLite would cast a date to a number.
            value = Cast(value, field) if connection.vendor == "postgresql" else value
        columns.append(connection.ops.quote_name(str(field.column)))
        shown[f"of_{field.attname}"] = value
    rows = chosen.order_by("topic", "partition", "offset", "pk").annotate(**shown).values_list(*shown)
    select, parameters = rows.query.get_compiler(using).as_sql()
    insert = connection.ops.insert_statement(on_conflict=OnConflict.IGNORE)
    table = connection.ops.quote_name(Replay._meta.db_table)
    suffix = connection.ops.on_conflict_suffix_sql([], OnConflict.IGNORE, [], [])
    with connection.cursor() as cursor:
        cursor.execute(f"{insert} {table} ({', '.join(columns)}) {select} {suffix}", parameters)
        return int(cursor.rowcount)


def _lane() -> Case:
    """Return the lane of a letter: letters of one key share one; those without a key are spread."""
    place = Cast(Mod(F("pk"), len(LANES)), IntegerField()) + 1
    spread = Substr(Value(LANES), place, 1)
    return Case(When(key_hash="", then=spread), default=Substr("key_hash", 1, 1))


def last_of_step(job: ReplayJob, *, after: int) -> int | None:
    """Return the last replay of the step that a job is in, which begins after another; None: it has all others."""
    if job.step >= len(job.ramp):
        return None
    size = job.ramp[job.step]
    ids = replays().filter(job=job, pk__gt=after).order_by("pk").values_list("pk", flat=True)
    found: int | None = ids[size - 1 : size].first()
    return found
