"""The workers that were heard of, and the members of groups that are none of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .. import __version__, conf
from ..models import Worker
from ..monitoring import heartbeats
from .findings import Finding, State, note, warning, well


def look(alias: str, consumers: Sequence[conf.Consumer]) -> Iterator[Finding]:
    """Yield how the workers of each consumer fare, by their heartbeats."""
    if not consumers:
        yield note("workers", "No consumer is switched on.")
        return
    names = [one.name for one in consumers]
    rows = Worker.objects.using(alias).filter(consumer__in=names)
    heard = set(heartbeats.living(rows).values_list("pk", flat=True))
    for consumer in consumers:
        mine = [row for row in rows if row.consumer == consumer.name]
        alive = [row for row in mine if row.pk in heard]
        yield from _of_consumer(consumer.name, alive, gone=len(mine) - len(alive))


def _of_consumer(name: str, alive: list[Worker], gone: int) -> Iterator[Finding]:
    facts: dict[str, Any] = {
        "alive": len(alive),
        "gone": gone,
        "groups": sorted({(row.cluster, row.group_id) for row in alive}),
    }
    start = f"python manage.py kafka_consume {name}"
    silent = f" {gone} ended without saying so, or cannot reach the database." if gone else ""
    if not alive:
        yield warning("workers", f"No worker of {name!r} is heard of.{silent}", start, of=name, **facts)
        return
    troubles = list(_troubles(name, alive))
    yield from troubles
    count = f"{len(alive)} worker{'s' if len(alive) != 1 else ''} of {name!r}"
    saw = f"{count} {'are' if len(alive) != 1 else 'is'} alive.{silent}"
    yield (note if gone else well)("workers", saw, of=name, **facts)


def _troubles(name: str, alive: list[Worker]) -> Iterator[Finding]:
    for row in alive:
        if row.circuit != Worker.Circuit.CLOSED:
            saw = f"The circuit of {row.address} is {row.circuit}: {row.circuit_reason}"
            mend = f"Mend what fails; `python manage.py kafka_status --close-breaker {name}` ends the pause."
            yield warning("workers", saw, mend, of=name)
        if row.waiting:
            saw = f"{row.address} waits with {row.waiting} of {row.partitions} partitions: {row.waits_for}."
            yield warning("workers", saw, "It goes on by itself when that is mended.", of=name)
        for hang in row.hangs:
            place = f"{hang['topic']}[{hang['partition']}]@{hang['offset']}"
            saw = f"{row.address} is past the time limit of {hang['handler']} on {place}, for {hang['seconds']:g} s."
            yield warning("workers", saw, "Its stack is in the log of that worker.", of=name)
    others = sorted({row.version for row in alive} - {__version__})
    if others:
        saw = f"Workers run django_kafka {', '.join(others)}, and this is {__version__}."
        yield note("workers", saw, "Restart them after a deployment.", of=name)


def strangers(found: Iterable[tuple[str, Finding]]) -> Iterator[tuple[str, Finding]]:
    """Yield the part and a finding for each group that has more members than workers of it are heard of.

    `found` are the findings of all parts; those of groups and of workers are compared.
    """
    findings = list(found)
    workers = [one for _part, one in findings if one.check == "workers" and "groups" in one.facts]
    if not workers or not conf.kafka().heartbeats.enabled:
        return
    heard = {one.of: one for one in workers}
    for part, one in findings:
        if one.check != "group" or one.state is not State.WELL or one.of not in heard:
            continue
        members, alive = one.facts["members"], heard[one.of].facts["alive"]
        if len(members) > _of_group(workers, str(one.facts["group"])):
            who = ", ".join(sorted({f"{member['client_id']} at {member['host']}" for member in members}))
            saw = f"Group {one.facts['group']!r} has {len(members)} members ({who}), and {alive} workers are heard of."
            mend = (
                "The others belong to another application, to workers with another database, or to one that was "
                f'killed a moment ago: if it is not yours alone, change KAFKA["consumers"]["{one.of}"]["group_id"].'
            )
            yield part, warning("strangers", saw, mend, of=one.of)


def _of_group(workers: Iterable[Finding], group_id: str) -> int:
    return sum(one.facts["alive"] for one in workers if group_id in {group for _cluster, group in one.facts["groups"]})
