"""What an observer sees of a cluster, its consumers, their workers and dead letters."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from django_kafka import conf
from django_kafka.consuming.worker import Worker
from django_kafka.messages import Message
from django_kafka.monitoring import observer as observing
from django_kafka.monitoring.heartbeats import Heartbeat
from django_kafka.monitoring.observer import Observer
from django_kafka.monitoring.overview import Consumer, Overview
from tests.consuming import NAME, Seen, Workplace
from tests.letters import dead_letter
from tests.sending import NOBODY, took_less_than
from tests.servers.processes import wait_until

DOCS = (Path(__file__).resolve().parents[1] / "docs" / "status.md").read_text()
BEAT = {"heartbeats": {"interval": "100ms"}}


@contextmanager
def beating(workplace: Workplace, worker: Worker) -> Iterator[None]:
    beat = Heartbeat([(conf.consumer(NAME), workplace.group)], [worker])
    beat.start()
    try:
        yield
    finally:
        beat.end()


def only(overview: Overview) -> Consumer:
    (found,) = [one for one in overview.consumers if one.name == NAME]
    return found


def has_come_so_far(one: Consumer, *, handled: int, behind: int) -> bool:
    known = one.figures is not None and one.group is not None
    return known and (one.figures.windows["1m"].handled, one.group.messages) == (handled, behind)  # type: ignore[union-attr]


def undocumented(value: object, key: str = "") -> set[str]:
    """Return the keys of JSON that its page does not name. What is in windows and hangs is told elsewhere."""
    match value:
        case dict() if key not in ("windows", "dead_letters"):
            return {name for name in value if f"`{name}`" not in DOCS} | {
                one for name, inner in value.items() for one in undocumented(inner, name)
            }
        case list() if key != "hangs":
            return {one for inner in value for one in undocumented(inner)}
        case _:
            return set()


def test_it_is_there_at_once_and_brokers_are_asked_behind_it(workplace: Workplace) -> None:
    workplace.consume(Seen(), partitions=2)
    workplace.send(range(3))
    observer = Observer()

    with CaptureQueriesContext(
        connection,
    ) as queries:
        expected = observer.expected()
    assert not queries.captured_queries
    assert [(one.name, one.asked_at) for one in expected.clusters] == [("default", None)]
    assert (only(expected).group, only(expected).dead_letters, expected.workers) == (None, None, None)
    with took_less_than(1):
        first = observer.look()
    assert first.clusters[0].asked_at is None
    assert first.workers == ()

    later = wait_until(lambda: one if (one := observer.look()).clusters[0].asked_at else None)
    assert later.clusters[0].topics == 1
    found = only(later)
    assert found.group is not None
    assert (found.group.messages, found.group_id, found.trend) == (3, workplace.group, None)
    assert [(one.known.partition, one.known.lag, one.worker) for one in found.partitions] == [
        (0, 3, None),
        (1, 0, None),
    ]
    assert observer.look(wait=True, max_age=0).clusters[0].asked_at > later.clusters[0].asked_at


def test_what_workers_say_stands_beside_what_brokers_say(workplace: Workplace) -> None:
    go_on = threading.Event()

    def handle(message: Message) -> None:
        if message.value == "bad":
            raise ValueError
        if message.partition == 1:
            assert go_on.wait(30)

    seen = Seen(handle)
    workplace.consume(seen, partitions=2, concurrency=2, max_poll_records=1, transaction="none", kafka=BEAT)
    workplace.send(["bad", *range(20)])
    workplace.send(range(5), partition=1)
    observer = Observer()

    def look() -> Consumer:
        return only(observer.look(wait=True, max_age=0))

    before = look()
    assert before.group is not None
    assert (before.workers, before.circuit, before.figures, before.group.messages) == (0, None, None, 26)
    with workplace.worker() as worker, beating(workplace, worker):
        seen.wait(20)
        found = wait_until(lambda: one if has_come_so_far(one := look(), handled=20, behind=5) else None)
        assert (found.workers, found.waiting, found.circuit) == (1, 0, "closed")
        assert found.dead_letters == {"open": 1, "parked": 0, "resolved": 0, "discarded": 0}
        assert [(one.known.lag, bool(one.worker)) for one in found.partitions] == [(0, True), (5, True)]
        assert found.partitions[1].in_flight
        assert found.trend is not None
        assert found.trend.direction == "shrinking"
        assert found.trend.until_empty is not None
        assert [lag for _at, lag in found.history][0 :: len(found.history) - 1] == [26, 5]

        whole = json.loads(json.dumps(observer.look(wait=True, max_age=0).as_dict()))
        (shown,) = whole["consumers"]
        assert (shown["lag"], shown["dead_letters"]["open"], shown["workers"]) == (5, 1, 1)
        assert shown["windows"]["1m"]["errors"] == {"handler": 1}
        assert (shown["partitions"][0]["position"], shown["partitions"][1]["position"]) == (21, None)
        assert shown["partitions"][1]["worker"] == found.partitions[1].worker
        assert whole["workers"][0]["partitions"] == 2
        assert not undocumented(whole)
        go_on.set()
        seen.wait(25)
        wait_until(lambda: look().group.messages == 0)  # type: ignore[union-attr]
    assert look().workers == 0


def test_brokers_that_are_away_are_a_reason_and_the_rest_goes_on(workplace: Workplace, settings: Settings) -> None:
    workplace.consume(Seen())
    workplace.send([1])
    settings.KAFKA = {
        **settings.KAFKA,
        "clusters": {"eu": {"brokers": [NOBODY], "connection": {"timeout": "1s"}}},
        "consumers": {**settings.KAFKA["consumers"], "far": {"group_id": "far", "cluster": "eu"}},
    }
    dead_letter({"n": 1}, consumer="far")
    found = Observer().look(wait=True)

    assert [(one.name, bool(one.reason), one.topics) for one in found.clusters] == [
        ("default", False, 1), ("eu", True, None),
    ]  # fmt: skip
    near, far = found.consumers
    assert near.group is not None
    assert near.group.messages == 1
    assert (far.group, far.partitions) == (None, ())
    assert far.dead_letters is not None
    assert far.dead_letters["open"] == 1
    assert json.loads(json.dumps(found.as_dict()))["consumers"][1]["lag"] is None


def test_only_what_was_named_is_looked_at(workplace: Workplace, settings: Settings) -> None:
    workplace.consume(Seen())
    others = {"far": {"group_id": "far"}, "off": {"group_id": "off", "enabled": False}, "alone": {}}
    settings.KAFKA = {**settings.KAFKA, "consumers": {**settings.KAFKA["consumers"], **others}}

    assert [(one.name, one.enabled) for one in Observer(["off", "alone"]).expected().consumers] == [
        ("off", False), ("alone", False),
    ]  # fmt: skip
    assert Observer(["off"]).look(wait=True).clusters == ()
    assert len(Observer().expected().consumers) == 4


@pytest.mark.django_db
def test_dead_letters_are_counted_in_one_statement_and_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "COUNTED_TO", 3)
    for number in range(5):
        dead_letter({"n": number})
    dead_letter({"n": 5}, state="parked")
    dead_letter({"n": 6}, consumer="audit's %s", state="resolved")

    with CaptureQueriesContext(connection) as queries:
        found = observing.count_letters("default", ["ops", "audit's %s", "none"])

    assert len(queries) == 1
    assert found == {
        "ops": {"open": 3, "parked": 1, "resolved": 0, "discarded": 0},
        "audit's %s": {"open": 0, "parked": 0, "resolved": 1, "discarded": 0},
        "none": {"open": 0, "parked": 0, "resolved": 0, "discarded": 0},
    }
    assert observing.count_letters("default", []) == {}
