"""Throughput and latency of the last minutes: of this process from what it kept, of all workers from their rows."""

from __future__ import annotations

import json
import math
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from django_kafka import conf, history, services, tallies
from django_kafka.clients.embedded import Cluster
from django_kafka.consuming.crew import Crew
from django_kafka.exceptions import DeliveryFailed
from django_kafka.history import Counts, History, Span
from django_kafka.messages import Message
from django_kafka.models import Worker
from django_kafka.monitoring import analytics, figures, packing
from django_kafka.monitoring.figures import Connections, Reported
from django_kafka.monitoring.heartbeats import Heartbeat
from django_kafka.tallies import AGES, SECONDS, Histogram
from tests.consuming import NAME, Seen, Workplace
from tests.desk import Desk
from tests.sending import NOBODY, use
from tests.servers.processes import wait_until

PERCENTS = (50, 95, 99)


class Clock:
    """A clock that goes when it is told to, and the history that looks at it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.history = History(lambda: self.now)

    def go(self, seconds: float, each: Callable[[], object] = lambda: None, step: float = 1.0) -> None:
        """Let time pass; do something in each step, and look as often as threads do."""
        for _ in range(round(seconds / step)):
            self.now += step
            each()
            self.history.look()

    def windows(self, name: str = "ops") -> dict[str, tuple[float, int]]:
        """Return how long each window of a consumer is, and how many messages it has."""
        found = figures.of_consumer([Reported(minutes=self.history.of_consumer(name))]).windows
        return {name: (window.seconds, window.messages) for name, window in found.items()}


@pytest.fixture
def clock() -> Clock:
    return Clock()


def receive(count: int, name: str = "ops") -> Callable[[], None]:
    """Return what counts so many messages."""

    def count_them() -> None:
        tallies.of_consumer(name).of_topic("flights").received += count

    return count_them


# Percentiles


@pytest.mark.parametrize("bounds", [SECONDS, AGES], ids=["seconds", "ages"])
def test_a_percentile_is_in_the_bucket_of_the_true_one(bounds: tuple[float, ...]) -> None:
    rng = random.Random(1)
    for number in (1, 2, 3, 19, 20, 21, 99, 100, 101, 700, 5000):
        for spread in (0.1, 1.0, 3.0):
            values = sorted(rng.lognormvariate(-4.0, spread) for _ in range(number))
            histogram = Histogram(bounds)
            for value in values:
                histogram.add(value)
            for percent in PERCENTS:
                true = values[math.ceil(percent * number / 100) - 1]
                found = figures.percentile(bounds, tuple(histogram.counts), percent)
                upper = next(bound for bound in bounds if bound >= true)
                lower = max((bound for bound in bounds if bound < true), default=0.0)
                assert found is not None
                assert lower < found <= upper, (number, spread, percent, true)


def test_percentiles_of_nothing_are_none_and_what_is_above_all_bounds_is_the_last_bound() -> None:
    assert figures.percentile(SECONDS, (0,) * (len(SECONDS) + 1), 99) is None
    histogram = Histogram(SECONDS)
    histogram.add(4000.0, 3)
    assert [figures.percentile(SECONDS, tuple(histogram.counts), percent) for percent in PERCENTS] == [300.0] * 3


def test_percentiles_of_several_processes_are_those_of_all_values_together() -> None:
    quick, slow = Histogram(SECONDS), Histogram(SECONDS)
    quick.add(0.002, 990)
    slow.add(8.0, 10)
    reports = [
        Reported(minutes=[Span(seconds=60.0, counts=Counts(durations=tuple(one.counts)))]) for one in (quick, slow)
    ]

    duration = figures.of_consumer(reports).windows["1m"].duration

    # Their mean would be four seconds.
    assert duration.count == 1000
    assert [0.001 < (value or 0) <= 0.0025 for value in (duration.p50, duration.p95, duration.p99)] == [True] * 3


# What a process keeps


def test_windows_are_differences_of_what_was_counted(clock: Clock) -> None:
    clock.go(600, receive(10))
    clock.go(60, receive(3))

    assert clock.windows() == {"1m": (60.0, 180), "5m": (300.0, 2580), "15m": (660.0, 6180)}
    spans = clock.history.of_consumer("ops")
    assert [(one.seconds, one.counts.messages) for one in spans] == [(60.0, 180)] + [(60.0, 600)] * 10


def test_a_window_that_begins_between_two_moments_is_longer_and_its_rate_is_right(clock: Clock) -> None:
    clock.go(200, receive(10))
    clock.go(3, receive(10))

    (seconds, messages) = clock.windows()["1m"]

    assert 60 <= seconds < 60 + history.STEP
    assert messages == seconds * 10


def test_what_counts_nothing_any_more_falls_to_zero(clock: Clock) -> None:
    clock.go(120, receive(10))
    clock.go(70)
    assert clock.windows()["1m"] == (60.0, 0)
    assert clock.windows()["5m"][1] == 1200
    clock.go(400)
    assert clock.windows()["5m"] == (300.0, 0)
    assert clock.windows()["15m"][1] == 1200
    clock.go(900)
    assert [messages for _seconds, messages in clock.windows().values()] == [0, 0, 0]


def test_what_is_counted_for_the_first_time_in_an_old_process_is_spread_over_the_window(clock: Clock) -> None:
    # Nobody looks in a process that has neither producer nor worker.
    clock.now += 7200
    receive(0, "new")()
    clock.history.take()
    receive(120, "new")()
    clock.now += 2

    assert clock.windows("new") == {"1m": (60.0, 120), "5m": (300.0, 120), "15m": (900.0, 120)}


def test_a_young_process_has_short_windows(clock: Clock) -> None:
    clock.go(20, receive(5))

    assert clock.windows() == dict.fromkeys(("1m", "5m", "15m"), (20.0, 100))


def test_where_nobody_looked_a_window_says_how_long_it_is(clock: Clock) -> None:
    clock.history.take()
    clock.now += 1000
    receive(500)()

    assert clock.windows() == dict.fromkeys(("1m", "5m", "15m"), (1000.0, 500))


def test_a_tally_that_begins_is_kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(history._history, "_clock", lambda: now)
    history.forget()
    now += 1000
    receive(500)()
    now += 100
    receive(100)()

    # Nobody looked before, but it is known that all of it was counted since then.
    (newest, *older) = history.of_consumer("ops")
    assert (newest.seconds, newest.counts.messages) == (100.0, 600)
    assert not any(one.counts.messages for one in older)


def test_memory_is_bounded_and_what_stands_still_is_kept_once(clock: Clock) -> None:
    receive(1, "still")()
    for _ in range(3):
        clock.go(3600, receive(7), step=2.0)
        # Asking often takes nobody's place.
        for _ in range(500):
            clock.now += 0.001
            clock.history.take()
    moments = list(clock.history._moments)

    assert len(moments) <= 182
    assert moments[0].at <= clock.now - 900
    assert len({id(one.consumers["still"]) for one in moments}) == 1
    assert len({id(one.consumers["ops"]) for one in moments}) == len(moments)


def test_asking_every_second_leaves_the_moments_that_windows_begin_with(clock: Clock) -> None:
    for _ in range(900):
        clock.now += 1.0
        receive(10)()
        clock.history.take()

    assert [messages // round(seconds) for seconds, messages in clock.windows().values()] == [10, 10, 10]


def test_a_forked_child_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(history._history, "_clock", lambda: now)
    history.forget()
    now += 1
    receive(5)()
    now += 100

    def counted() -> tuple[float, int]:
        spans = history.of_consumer("ops")
        return sum(one.seconds for one in spans), sum(one.counts.messages for one in spans)

    child = os.fork()
    if child == 0:
        receive(2)()
        now += 1
        os._exit(0 if counted() == (1.0, 2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert counted() == (101.0, 5)


# What get_metrics returns


def test_a_producer_tells_what_it_delivered_and_what_failed(embedded: Cluster, settings: Settings, db: None) -> None:
    made = {
        "default": {"send": "immediate", "options": {"statistics.interval.ms": 100}},
        "away": {"send": "immediate", "cluster": "away", "delivery_timeout": "200ms"},
        "off": {"enabled": False},
        "idle": {},
    }
    use(settings, embedded.bootstrap_servers, made, clusters={"away": {"brokers": [NOBODY]}})
    for number in range(20):
        services.produce("flights", None, {"n": number}).result(10)
    with pytest.raises(DeliveryFailed) as lost:
        services.produce_with("away", "flights", None, {}).result(10)
    wait_until(lambda: services.get_metrics().producers["default"].connections.active)

    metrics = services.get_metrics()

    window = metrics.producers["default"].windows["1m"]
    assert (window.messages, window.bytes) == (20, sum(len(f'{{"n":{n}}}') for n in range(20)))
    assert window.messages_per_second == 20 / window.seconds
    assert window.duration.count == 20
    assert 0 < (window.duration.p50 or 0) <= (window.duration.p99 or 0) < 5
    assert metrics.producers["away"].windows["15m"].errors == {lost.value.category: 1}
    assert metrics.producers["away"].windows["1m"].messages == 0
    assert sorted(metrics.producers) == ["away", "default", "idle"]
    assert (metrics.producers["idle"].windows["15m"].messages, metrics.producers["idle"].windows["1m"].errors) == (
        0,
        {},
    )
    assert metrics.incomplete is None
    read = json.loads(json.dumps(metrics.as_dict()))
    assert read["producers"]["default"]["windows"]["1m"]["duration"]["p99"] == window.duration.p99
    assert read["producers"]["default"]["history"][-1]["messages"] == 20
    assert read["at"] == metrics.at.isoformat()


def test_its_serving_thread_keeps_moments_until_it_is_closed(
    embedded: Cluster, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "STEP", 0.05)
    use(settings, embedded.bootstrap_servers)
    services.produce("flights", None, {}).result(10)
    moments = history._history._moments
    before = len(moments)
    wait_until(lambda: len(moments) > before + 3)
    # What comes after the last look is not lost either.
    monkeypatch.setattr(history, "look", lambda: None)
    services.produce("flights", None, {}).result(10)

    services.close("default")

    assert moments[-1].producers["default"].messages == 2


def test_a_worker_tells_what_it_handled_and_what_failed_once(workplace: Workplace) -> None:
    def handle(message: Message) -> None:
        if message.value % 10 == 0:
            raise ValueError(message.value)

    seen = Seen(handle)
    heartbeats = {"interval": "100ms"}
    workplace.consume(
        seen, kafka={"heartbeats": heartbeats}, retry={"max_retries": 1, "backoff": "1ms"},
        options={"statistics.interval.ms": 100},
    )  # fmt: skip
    workplace.send(range(40))
    crew = Crew([NAME])
    thread = threading.Thread(target=crew.run)
    thread.start()
    try:
        wait_until(lambda: crew.workers[0].tally.dead_lettered == 4)
        seen.wait(36)
        row = wait_until(lambda: next((one for one in Worker.objects.all() if told(one) == (36, 4)), None))
        metrics = services.get_metrics()
    finally:
        crew.stop()
        thread.join(30)

    window = metrics.consumers[NAME].windows["1m"]
    assert (window.messages, window.handled, window.dead_lettered) == (40, 36, 4)
    assert (window.errors, window.retries, window.outages) == ({"handler": 8}, 4, {})
    assert (window.duration.count, window.age.count) == (44, 40)
    assert metrics.consumers[NAME].connections.active
    # Its own row says the same, and is not counted once more.
    assert metrics.consumers[NAME].workers == 1
    assert metrics.incomplete is None
    assert row is not None
    said = analytics.of_worker(row)
    assert said is not None
    assert replace(said.windows["1m"], **_of_time(window)) == window


def told(worker: Worker) -> tuple[int, int]:
    """Return how many messages were handled, and dead-lettered, as a row says."""
    said = analytics.of_worker(worker)
    return (0, 0) if said is None else (said.windows["15m"].handled, said.windows["15m"].dead_lettered)


def _of_time(window: Any) -> dict[str, Any]:
    return {name: getattr(window, name) for name in ("seconds", *(one for one in dir(window) if "per_second" in one))}


def test_slow_handlers_count_when_each_is_done(workplace: Workplace) -> None:
    gate = threading.Event()
    seen = Seen(lambda message: gate.wait(20) if message.value == 7 else None)
    workplace.consume(seen, transaction="none")
    workplace.send(range(10))
    with workplace.worker() as worker:
        try:
            seen.wait(7)
            # That is told when a slice ends.
            assert worker.tally.handled < 7
            wait_until(lambda: services.get_metrics().consumers[NAME].windows["1m"].handled == 7)
        finally:
            gate.set()
        seen.wait(10)
        wait_until(lambda: worker.tally.handled == 10)
        assert services.get_metrics().consumers[NAME].windows["1m"].handled == 10


def test_a_worker_process_keeps_moments_without_heartbeats(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "STEP", 0.05)
    workplace.consume(Seen(), kafka={"heartbeats": {"enabled": False}})
    crew = Crew([NAME])
    thread = threading.Thread(target=crew.run)
    thread.start()
    moments = history._history._moments
    before = len(moments)
    try:
        wait_until(lambda: len(moments) > before + 3)
        incomplete = services.get_metrics().incomplete
    finally:
        crew.stop()
        thread.join(30)
    assert "heartbeats" in (incomplete or "")


# What workers write


def report(handled: int, seconds: float = 60.0, took: float = 0.002) -> Reported:
    durations = Histogram(SECONDS)
    durations.add(took, handled)
    span = Span(seconds=seconds, counts=Counts(handled=handled, messages=handled, durations=tuple(durations.counts)))
    return Reported(minutes=[span], connections=Connections(active=1, total=2, errors=3))


def row(name: str, *, seen: float = 0.0, **fields: Any) -> Worker:
    now = timezone.now()
    usual = {"consumer": "ops", "group_id": "g", "host": "h", "pid": 1, "version": "1", "started_at": now}
    stored: Worker = Worker.objects.create(id=name, **{**usual, "seen_at": now - timedelta(seconds=seen), **fields})
    return stored


@pytest.fixture
def consumers(settings: Settings, db: None) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "g"}, "idle": {"group_id": "i"}, "off": {"enabled": False}}}


def test_figures_of_living_workers_are_summed(consumers: None) -> None:
    row("a", figures=packing.packed(report(600)))
    row("b", figures=packing.packed(report(60, seconds=6.0)))
    row("dead", seen=3600, figures=packing.packed(report(1000)))

    metrics = services.get_metrics()

    ops = metrics.consumers["ops"]
    assert (ops.workers, ops.connections) == (2, Connections(active=2, total=4, errors=6))
    # The younger has handled nothing before it began.
    assert (ops.windows["1m"].seconds, ops.windows["1m"].handled_per_second) == (60.0, 11.0)
    assert [one.handled for one in ops.history] == [660]
    assert (metrics.consumers["idle"].workers, metrics.consumers["idle"].history) == (0, ())
    assert metrics.consumers["idle"].windows["1m"].handled_per_second == 0.0
    assert sorted(metrics.consumers) == ["idle", "ops"]
    assert metrics.incomplete is None


STRANGE = (
    {}, [], None, "x", {"format": 99, "connections": [0, 0, 0], "minutes": []}, {"format": 1},
    {"format": 1, "connections": [0, 0], "minutes": []}, {"format": 1, "connections": [0, 0, 0], "minutes": [7]},
    {"format": 1, "connections": [0, 0, 0], "minutes": [["<b>"]]},
    {"format": 1, "connections": [0, 0, 0], "minutes": [[-1.0]]},
    {"format": 1, "connections": [0, 0, 0], "minutes": [[10**400]]},
    {"format": 1, "connections": [0, 0, 0], "minutes": [[60.0, 1.5]]},
    {"format": 1, "connections": [0, 0, 0], "minutes": [[60.0, 1, 1, 1, [17, 1, 1]]]},
    {"format": 1, "connections": [0, 0, 0], "minutes": [[60.0, 1, 1, 1, [-1, 1]]]},
    {"format": 1, "connections": [0, 0, 0], "minutes": [[60.0, 1, 1, 1, [], [], 0, 0, ["handler"]]]},
)  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE, ids=str)
def test_figures_of_another_version_are_left_out_and_said(consumers: None, strange: Any) -> None:
    stored = row("a", figures=strange if strange is not None else 0)
    row("b", figures=packing.packed(report(60)))

    metrics = services.get_metrics()

    assert (metrics.consumers["ops"].workers, metrics.consumers["ops"].windows["1m"].handled) == (1, 60)
    assert "Of 1 workers" in (metrics.incomplete or "")
    assert analytics.of_worker(stored) is None


@pytest.mark.django_db(transaction=True)
def test_a_database_that_does_not_answer_costs_only_what_others_say(settings: Settings) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "g"}}}
    receive(5)()
    with connection.schema_editor() as editor:
        editor.alter_db_table(Worker, "lynx_kafka_worker", "elsewhere")
    try:
        metrics = services.get_metrics()
    finally:
        with connection.schema_editor() as editor:
            editor.alter_db_table(Worker, "elsewhere", "lynx_kafka_worker")

    assert metrics.consumers["ops"].windows["1m"].messages == 5
    assert metrics.incomplete is not None
    assert metrics.incomplete.startswith("Database 'default' does not answer (")


def test_what_is_written_is_read_again_and_small(clock: Clock) -> None:
    rng = random.Random(1)
    topic = tallies.of_consumer("ops").of_topic("flights")

    def work() -> None:
        topic.received += 5000
        topic.bytes += 5000 * 220
        for _ in range(20):
            topic.durations.add(rng.lognormvariate(-6, 1.0), 250)
            topic.ages.add(rng.lognormvariate(-2, 1.0), 250)
        topic.failures["handler"] += 1
        topic.failed_durations.add(0.3)

    clock.go(1200, work)
    minutes = clock.history.of_consumer("ops")
    assert len(minutes) == 15

    text = json.dumps(packing.packed(Reported(minutes=minutes, connections=Connections(active=1, total=2, errors=3))))

    read = packing.unpacked(json.loads(text))
    assert read is not None
    assert [one.counts for one in read.minutes] == [one.counts for one in minutes]
    assert [one.seconds for one in read.minutes] == [one.seconds for one in minutes]
    assert read.connections == Connections(active=1, total=2, errors=3)
    # docs/analytics.md says so of 5,000 messages a second.
    assert len(text) < 3500
    idle = json.dumps(packing.packed(Reported(minutes=[Span(seconds=60.0)] * 15)))
    assert len(idle) < 200


@pytest.mark.django_db(transaction=True)
def test_not_every_beat_writes_figures(settings: Settings) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "g"}}, "heartbeats": {"interval": "5s"}}
    beat = Heartbeat([(conf.consumer("ops"), "g")])
    written: list[bool] = []

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "ON CONFLICT" in sql and "lynx_kafka_worker" in sql:
            written.append('"figures" = EXCLUDED' in sql)
        return execute(sql, params, many, context)

    begin = beat._beat

    def watched() -> None:
        if not connection.execute_wrappers:
            connection.execute_wrappers.append(watch)
        begin()

    beat._beat = watched  # type: ignore[method-assign]
    beat.start()
    for number in range(1, 6):
        wait_until(lambda number=number: len(written) >= number)
        beat.wake()
    beat.end()

    assert written[:5] == [True, False, False, False, False]


@pytest.mark.slow
def test_two_processes_of_a_supervisor_are_summed(tmp_path: Path, embedded: Cluster) -> None:
    embedded.create_topic("flights", 2)
    soon = {"session_timeout": "1500ms", "heartbeat_interval": "300ms"}
    brokers, heartbeats = embedded.bootstrap_servers, {"interval": "200ms"}
    desk = Desk.on_sqlite(tmp_path, brokers=brokers, options={"processes": 2, **soon}, kafka={"heartbeats": heartbeats})

    def told() -> list[int]:
        rows = desk.rows("SELECT figures FROM lynx_kafka_worker")
        reports[:] = [one for (text,) in rows if (one := packing.unpacked(json.loads(text)))]
        return [figures.of_consumer([one]).windows["1m"].handled for one in reports]

    reports: list[Reported] = []
    try:
        program = desk.start("kafka_consume")
        have = "SELECT count(DISTINCT worker) FROM lynx_kafka_workerpartition"
        desk.wait_until(lambda: desk.rows(have) == [(2,)], program)
        client = Producer({"bootstrap.servers": brokers, "log_level": 0})
        for number in range(40):
            client.produce("flights", b"{}", partition=number % 2)
        assert client.flush(10) == 0
        desk.wait_until(lambda: told() == [20, 20], program)
    finally:
        desk.close()
    assert figures.of_consumer(reports).windows["1m"].duration.count == 40
