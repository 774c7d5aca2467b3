"""What `kafka_status` says, in columns and sentences: for the screen, and as plain text where none can be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ...legible import printable
from ...models import DeadLetter, Worker
from ...monitoring import heartbeats
from ...monitoring.figures import ConsumerWindow
from ...monitoring.overview import COUNTED_TO, Consumer, Overview, Partition
from ._moments import ago, span
from ._table import table

Row = TypeVar("Row")
MOST = 10
"""Partitions that are shown when there are more: the worst. On a screen also workers and sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """How directions are written."""

    growing: str
    shrinking: str
    steady: str


WORDS = Signs(growing="growing", shrinking="shrinking", steady="steady")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[Row]):
    """A column of a table."""

    heading: str
    """What stands above it."""
    text: Callable[[Row, Signs], str]
    """What stands in it."""
    right: bool = False
    """Whether it is of numbers."""
    name: bool = False
    """Whether it is of names, which may be cut."""
    wide: bool = False
    """Whether it is left out where there is little room."""
    wrong: Callable[[Row], bool] = lambda _row: False
    """Whether what stands in it asks for somebody to look."""


def count(number: int | None) -> str:
    """Return a number of messages."""
    if number is None:
        return "-"
    return f"{number:,}" if number < 10_000_000 else _short(number)


def rate(per_second: float | None) -> str:
    """Return how many there are in a second, in a few letters."""
    if per_second is None:
        return "-"
    if per_second < 10 and per_second != int(per_second):
        return f"{per_second:.1f}"
    return f"{per_second:,.0f}" if per_second < 10_000 else _short(per_second)


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:,.1f}{letter}"
    return f"{number / 1e3:,.1f}k"


def state(one: Consumer, asking: bool) -> str:
    """Return the word for what matters most about a consumer."""
    found = one.state
    return "-" if not found or (found == "asking" and not asking) else found


def _trend(one: Consumer, signs: Signs) -> str:
    if one.trend is None or one.trend.direction is None:
        return "-"
    match one.trend.direction:
        case "growing":
            return f"{signs.growing} {rate(one.trend.change)}/s"
        case "shrinking" if one.trend.until_empty is not None:
            return f"{signs.shrinking} {span(one.trend.until_empty)} left"
        case _:
            return signs.steady


def _letters(one: Consumer, state: DeadLetter.State) -> str:
    if one.dead_letters is None:
        return "-"
    number = one.dead_letters[state]
    return f"{number:,}+" if number >= COUNTED_TO else f"{number:,}"


def _last_minute(one: Consumer) -> ConsumerWindow | None:
    return one.figures.windows["1m"] if one.figures is not None else None


def _errors(one: Consumer) -> int | None:
    return sum(window.errors.values()) if (window := _last_minute(one)) is not None else None


def _latency(window: ConsumerWindow | None) -> str:
    if window is None or (seconds := window.duration.p95) is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else span(seconds)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else span(seconds)


def consumer_columns(asking: frozenset[str]) -> tuple[Column[Consumer], ...]:
    """Return the columns of consumers; `asking`: the clusters that have not answered yet."""

    def stands(one: Consumer) -> str:
        return state(one, one.cluster in asking)

    return (
        Column(heading="consumer", name=True, text=lambda one, _: one.name),
        Column(heading="group", name=True, text=lambda one, _: one.group_id, wide=True),
        Column(
            heading="state", text=lambda one, _: stands(one),
            wrong=lambda one: not one.declared or bool(one.waiting or one.paused)
            or one.circuit not in (None, Worker.Circuit.CLOSED),
        ),
        Column(
            heading="members", right=True, wide=True,
            text=lambda one, _: "-" if one.group is None or one.group.state == "unknown" else str(one.group.members),
        ),
        Column(
            heading="lag", right=True, text=lambda one, _: count(one.group.messages if one.group else None),
            wrong=lambda one: one.trend is not None and one.trend.direction == "growing",
        ),
        Column(
            heading="trend", text=_trend,
            wrong=lambda one: one.trend is not None and one.trend.direction == "growing",
        ),
        Column(heading="oldest", right=True, text=lambda one, _: _seconds(one.group.seconds if one.group else None)),
        Column(heading="in/s", right=True, text=lambda one, _: rate(one.trend.produced if one.trend else None)),
        Column(heading="out/s", right=True, text=lambda one, _: rate(one.trend.consumed if one.trend else None)),
        Column(
            heading="err/min", right=True, text=lambda one, _: count(_errors(one)),
            wrong=lambda one: bool(_errors(one)),
        ),
        Column(heading="p95", right=True, wide=True, text=lambda one, _: _latency(_last_minute(one))),
        Column(
            heading="letters", right=True, text=lambda one, _: _letters(one, DeadLetter.State.OPEN),
            wrong=lambda one: bool(one.dead_letters and one.dead_letters[DeadLetter.State.OPEN]),
        ),
        Column(
            heading="parked", right=True, wide=True, text=lambda one, _: _letters(one, DeadLetter.State.PARKED)
        ),
        Column(
            heading="workers", right=True, text=lambda one, _: count(one.workers),
            wrong=lambda one: one.enabled and one.workers == 0,
        ),
    )  # fmt: skip


PARTITIONS: tuple[Column[Partition], ...] = (
    Column(heading="partition", name=True, text=lambda one, _: f"{one.known.topic}[{one.known.partition}]"),
    Column(heading="consumer", name=True, text=lambda one, _: one.consumer),
    Column(heading="position", right=True, wide=True, text=lambda one, _: _offset(one.known.position)),
    Column(heading="end", right=True, wide=True, text=lambda one, _: _offset(one.known.log.high)),
    Column(
        heading="lag", right=True, text=lambda one, _: count(one.known.lag), wrong=lambda one: one.known.lag is None
    ),
    Column(heading="oldest", right=True, text=lambda one, _: _seconds(one.known.seconds)),
    Column(heading="in flight", right=True, text=lambda one, _: count(one.in_flight)),
    Column(heading="worker", name=True, text=lambda one, _: one.worker or "-"),
    Column(
        heading="waits for",
        name=True,
        text=lambda one, _: one.waits_for,
        wrong=lambda one: bool(one.waits_for),
        wide=True,
    ),
)


def _offset(offset: int | None) -> str:
    return "-" if offset is None else str(offset)


def worker_columns(paces: Mapping[str, float]) -> tuple[Column[Any], ...]:
    """Return the columns of workers; `paces`: how many messages they handle in a second, by their ids."""
    return (
        Column(heading="consumer", name=True, text=lambda one, _: one.consumer),
        Column(heading="group", name=True, text=lambda one, _: one.group_id, wide=True),
        Column(heading="worker", name=True, text=lambda one, _: one.address),
        Column(
            heading="state", text=lambda one, _: one.state if heartbeats.is_alive(one) else "gone",
            wrong=lambda one: bool(not heartbeats.is_alive(one) or one.not_live or one.not_ready),
        ),
        Column(heading="last seen", text=lambda one, _: ago(one.seen_at, one.asked_at)),
        Column(
            heading="partitions", right=True, wrong=lambda one: bool(one.waiting),
            text=lambda one, _: f"{one.partitions} ({one.waiting} waiting)" if one.waiting else str(one.partitions),
        ),
        Column(heading="in flight", right=True, wide=True, text=lambda one, _: f"{one.in_flight:,}"),
        Column(heading="memory", right=True, wide=True, text=lambda one, _: _memory(one.memory)),
        Column(heading="handled", right=True, wide=True, text=lambda one, _: f"{one.handled:,}"),
        Column(heading="handled/s", right=True, text=lambda one, _: rate(paces.get(one.pk))),
        Column(heading="dead letters", right=True, wide=True, text=lambda one, _: f"{one.dead_lettered:,}"),
        Column(
            heading="circuit", wrong=lambda one: one.circuit != Worker.Circuit.CLOSED,
            text=lambda one, _: f"{one.circuit}, writing letters" if one.circuit_writing else one.circuit,
        ),
    )  # fmt: skip


def _memory(memory: int | None) -> str:
    return "-" if memory is None else f"{memory / 2**20:,.0f} MiB"


def partitions(overview: Overview, most: int | None) -> tuple[Sequence[Partition], str]:
    """Return those to show, at most so many, None: all; and a sentence about the others."""
    found = [each for one in overview.consumers for each in one.partitions]
    return _folded(found, most, _badness, "partitions")


def _badness(one: Partition) -> tuple[bool, float, float]:
    """Return what the worst has most of: it waits, it cannot be read, it is behind."""
    return bool(one.waits_for), math.inf if one.known.lag is None else one.known.lag, one.known.seconds or 0.0


def workers(overview: Overview, most: int | None) -> tuple[Sequence[Any], str]:
    """Return those to show, likewise."""
    return _folded(overview.workers or (), most, _trouble, "workers")


def _trouble(worker: Any) -> tuple[bool, bool, int]:
    """Return likewise: it needs somebody, nothing is heard of it, it is behind."""
    alive = heartbeats.is_alive(worker)
    return alive and bool(worker.not_live or worker.not_ready), not alive, worker.lag or 0


def _folded(
    found: Sequence[Row], most: int | None, badness: Callable[[Row], tuple[float, ...]], name: str
) -> tuple[Sequence[Row], str]:
    if most is None or len(found) <= most:
        return found, ""
    return sorted(found, key=badness, reverse=True)[:most], f"and {len(found) - most:,} more {name}"


def asking(overview: Overview) -> frozenset[str]:
    """Return the clusters that have not answered yet."""
    return frozenset(one.name for one in overview.clusters if one.asked_at is None)


def missing(overview: Overview) -> Iterator[str]:
    """Return what stands in the place of tables that would be empty."""
    if not overview.consumers:
        yield 'KAFKA["consumers"] is empty; declare one.'
    if not overview.heartbeats:
        yield 'Workers are not known: KAFKA["heartbeats"] is switched off.'
    if overview.workers == ():
        yield "No worker was heard of. Start one: python manage.py kafka_consume"


def sentences(overview: Overview) -> Iterator[str]:
    """Return what does not fit into tables."""
    if overview.problem:
        yield overview.problem
    for cluster in overview.clusters:
        if cluster.reason:
            yield f"cluster {cluster.name}: {cluster.reason}"
    for one in overview.consumers:
        if one.paused:
            yield f"{one.name}: {one.paused}"
        if one.group is not None:
            if one.group.missing:
                yield f"{one.name}: topics that are not there, or may not be seen: {', '.join(one.group.missing)}"
            if one.group.reason:
                yield f"{one.name}: {one.group.reason}"
        if (window := _last_minute(one)) is not None and window.errors:
            said = ", ".join(f"{name} {number:,}" for name, number in sorted(window.errors.items()))
            yield f"{one.name}: failed attempts in the last minute: {said}"
    for worker in overview.workers or ():
        for sentence in _of_worker(worker):
            yield f"{worker}: {sentence}"


def _of_worker(worker: Any) -> Iterator[str]:
    if worker.circuit != Worker.Circuit.CLOSED:
        since = f" {ago(worker.circuit_opened_at)}" if worker.circuit_opened_at else ""
        yield f"its circuit opened{since}: {worker.circuit_reason}"
        if worker.circuit_close_asked == worker.circuit_episode:
            yield "it was asked to close its circuit"
    if worker.waiting:
        yield f"waits for: {worker.waits_for}"
    for one in worker.hangs:
        place = f"{one['topic']}[{one['partition']}]@{one['offset']}"
        yield f"past its time limit of {one['limit']:g} s: {one['handler']} on {place}, for {one['seconds']:g} s"
    if heartbeats.is_alive(worker):
        if worker.not_live:
            yield f"only a restart helps it: {worker.not_live}"
        elif worker.not_ready and not worker.waiting and worker.circuit == Worker.Circuit.CLOSED:
            yield f"not ready: {worker.not_ready}"
    if worker.last_error:
        yield f"its last error: {worker.last_error}"


def write(out: Any, overview: Overview, most: int | None) -> None:
    """Write it as plain text on the command's `out`, with so many partitions."""
    some, others = partitions(overview, most)
    if overview.consumers:
        _table(out, consumer_columns(asking(overview)), overview.consumers)
        out.write("")
    if some:
        _table(out, PARTITIONS, some)
        if others:
            out.write(f"{others}: --all")
        out.write("")
    if overview.workers:
        _table(out, worker_columns(overview.paces), overview.workers)
    for sentence in (*missing(overview), *sentences(overview)):
        out.write(printable(sentence))


def _table(out: Any, columns: Sequence[Column[Row]], rows: Sequence[Row]) -> None:
    table(out, [one.heading for one in columns], [[one.text(row, WORDS) for one in columns] for row in rows])
