from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.urls import reverse

from django_kafka import conf, deadlines
from django_kafka.consuming import watchdog
from django_kafka.consuming.crew import Crew
from django_kafka.consuming.watchdog import Watchdog
from django_kafka.consuming.worker import Worker
from django_kafka.messages import Message
from django_kafka.models import Worker as Row
from django_kafka.monitoring.heartbeats import Heartbeat
from django_kafka.signals import handler_overran
from tests.consuming import NAME, Seen, Workplace
from tests.servers.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
PATIENCE = 20.0


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """What a handler that hangs waits for."""
    event = threading.Event()
    yield event
    event.set()


def hang_on(value: str, go_on: threading.Event) -> Callable[[Message], Any]:
    def handle(message: Message) -> None:
        if message.value == value:
            assert go_on.wait(PATIENCE)

    return handle


def overran() -> bool:
    """Whether it is past its limit, and has come as far as to the line that hangs."""
    return any(one.message.value == "slow" and "go_on.wait" in one.stack() for one in deadlines.overdue(NAME))


def test_a_handler_that_hangs_is_reported_once_with_its_place_and_its_stack(
    workplace: Workplace, go_on: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(hang_on("slow", go_on))
    workplace.consume(seen, timeout="100ms", transaction="none")
    workplace.send(["quick", "slow"])
    with workplace.worker() as worker:
        dog = Watchdog([worker])
        wait_until(overran)
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                dog.look()
        (report,) = [one for one in caplog.messages if "its limit" in one]
        assert f"consumer={NAME} topic={workplace.topic} partition=0 offset=1" in report
        assert "its limit is 0.1 s" in report
        assert "assert go_on.wait(PATIENCE)" in report, "The stack shows the line that hangs."
        assert worker.tally.overruns == 1
        go_on.set()
        seen.wait(2)
        wait_until(lambda: not deadlines.running)
        with caplog.at_level(logging.WARNING):
            dog.look()
        assert "came back after" in caplog.text
    assert workplace.committed() == {0: 2}, "What comes back late has succeeded."
    assert workplace.letters() == []
    worker.tally.overruns = 0


def test_other_partitions_go_on_and_when_all_threads_hang_that_is_said(
    workplace: Workplace, go_on: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(hang_on("slow", go_on))
    workplace.consume(seen, partitions=2, concurrency=2, timeout="50ms", transaction="none")
    workplace.send(["slow"], partition=0)
    with workplace.worker() as worker:
        dog = Watchdog([worker])
        wait_until(overran)
        dog.look()
        workplace.send(["quick"], partition=1)
        seen.wait(1)
        assert seen.places == [(1, 0)]
        dog.look()
        assert "all that it may run at a time" not in caplog.text
        workplace.send(["slow"], partition=1)
        wait_until(lambda: len(deadlines.overdue(NAME)) == 2)
        for _ in range(2):
            dog.look()
        assert caplog.text.count("all that it may run at a time (2) is past the limit") == 1
        go_on.set()
        seen.wait(3)


def test_a_signal_tells_of_it(workplace: Workplace, go_on: threading.Event) -> None:
    told: list[dict[str, Any]] = []

    def receive(sender: str, **event: Any) -> None:
        told.append({"sender": sender, **event})

    workplace.consume(Seen(hang_on("slow", go_on)), timeout="50ms", transaction="none")
    workplace.send(["slow"])
    handler_overran.connect(receive)
    try:
        with workplace.worker() as worker:
            wait_until(overran)
            Watchdog([worker]).look()
            go_on.set()
    finally:
        handler_overran.disconnect(receive)
    (event,) = told
    assert (event["sender"], event["message"].offset) == (NAME, 0)
    assert event["seconds"] > 0.05
    assert "go_on.wait" in event["stack"]


def test_what_hangs_stands_in_the_row_of_the_worker_and_in_the_admin(
    workplace: Workplace, go_on: threading.Event, admin_client: Any
) -> None:
    workplace.consume(
        Seen(hang_on("slow", go_on)), timeout="50ms", transaction="none", kafka={"heartbeats": {"interval": "100ms"}}
    )
    workplace.send(["slow"])
    beat = Heartbeat([(conf.consumer(NAME), workplace.group)])
    with workplace.worker():
        beat.start()
        try:
            row = wait_until(lambda: Row.objects.exclude(hangs=[]).first())
            (one,) = row.hangs
            assert (one["topic"], one["partition"], one["offset"], one["limit"]) == (workplace.topic, 0, 0, 0.05)
            assert one["seconds"] > 0.05
            page = admin_client.get(reverse("admin:lynx_kafka_worker_changelist")).content.decode()
            assert f"{workplace.topic}[0]@0" in page
            said = StringIO()
            call_command("kafka_status", stdout=said)
            assert f"past its time limit of 0.05 s: {one['handler']} on {workplace.topic}[0]@0" in said.getvalue()
            go_on.set()
            wait_until(lambda: Row.objects.filter(hangs=[]).exists())
        finally:
            beat.end()


@pytest.mark.parametrize("limit", [None, "30s"])
def test_a_process_has_a_watchdog_only_when_a_handler_has_a_limit(workplace: Workplace, limit: str | None) -> None:
    alive: list[str] = []
    seen = Seen(lambda _message: alive.extend(thread.name for thread in threading.enumerate()))
    workplace.consume(seen, timeout=limit)
    workplace.send([1])
    Crew([NAME], until_empty=True).run()
    assert seen.places == [(0, 0)]
    assert ("kafka-watchdog" in alive) == (limit is not None)
    assert not any(thread.name == "kafka-watchdog" for thread in threading.enumerate())


def test_it_looks_by_itself(
    workplace: Workplace, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "LOOK_EVERY", 0.05)
    workplace.consume(Seen(hang_on("slow", go_on)), timeout="50ms", transaction="none")
    workplace.send(["slow"])
    with workplace.worker() as worker:
        dog = Watchdog([worker])
        dog.start()
        try:
            wait_until(lambda: "its limit is 0.05 s" in caplog.text)
            go_on.set()
            wait_until(lambda: "came back after" in caplog.text)
        finally:
            dog.end()


def test_a_worker_names_its_handler_threads(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, concurrency=3)
    workplace.send([1])
    with workplace.worker() as worker:
        seen.wait(1)
        assert isinstance(worker, Worker)
        assert len(worker.handler_threads) == 3
        assert seen.threads <= worker.handler_threads
