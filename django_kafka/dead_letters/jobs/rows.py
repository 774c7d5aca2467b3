"""The rows of jobs, from the database that has the dead letters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from django.db import connections
from django.db.models import QuerySet

from ... import conf
from ...models import JobLane, Replay, ReplayJob
from ..replaying import replays


def jobs() -> QuerySet[ReplayJob]:
    """Return all replay jobs."""
    return ReplayJob.objects.using(conf.kafka().dead_letters.database)


def lanes() -> QuerySet[JobLane]:
    """Return the lanes of all jobs that are not at their end."""
    return JobLane.objects.using(conf.kafka().dead_letters.database)


def waiting_in(lane: JobLane) -> QuerySet[Replay]:
    """Return the replays of a lane that are not at their end, in their order."""
    return replays().filter(job=lane.job_id, lane=lane.name, state=Replay.State.REQUESTED).order_by("pk")


_PAIRS = {
    "postgresql": "unnest(%s::bigint[], %s::text[]) AS pair(id, result)",
    "sqlite": "(SELECT value ->> 0 AS id, value ->> 1 AS result FROM json_each(%s)) AS pair",
}


def end_each(using: str, ended: Sequence[Replay], fields: Sequence[str]) -> int:
    """Write these fields of replays that wait, which are alike but for their results; return how many did wait."""
    connection = connections[using]
    match connection.vendor:
        case "postgresql":
            pairs: list[Any] = [[each.pk for each in ended], [each.result for each in ended]]
        case "sqlite":
            pairs = [json.dumps([[each.pk, each.result] for each in ended])]
        case _:
            return replays().bulk_update(ended, [*fields, "result"])
    # What Django makes of it, a CASE with a WHEN for each, takes ten times as long as all else of a piece.
    quote, table = connection.ops.quote_name, connection.ops.quote_name(Replay._meta.db_table)
    columns = [Replay._meta.get_field(name) for name in fields]
    changes = ", ".join(f"{quote(column.column)} = %s" for column in columns)  # type: ignore[union-attr,arg-type]
    values = [column.get_db_prep_save(getattr(ended[0], column.attname), connection) for column in columns]  # type: ignore[union-attr]
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {table} SET {changes}, result = pair.result FROM {_PAIRS[connection.vendor]} "
            f"WHERE {table}.id = pair.id AND {table}.state = %s",
            [*values, *pairs, Replay.State.REQUESTED.value],
        )
        return int(cursor.rowcount)
