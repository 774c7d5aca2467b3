"""Health: each condition broken on purpose, with a real worker on the embedded cluster."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from health_check.base import HealthCheck
from pytest_django import Settings

from django_kafka import health, services, signals
from django_kafka.clients import consumer
from django_kafka.clients.embedded import Cluster, Request
from django_kafka.consuming.crew import Crew
from django_kafka.exceptions import Unhealthy
from django_kafka.messages import Message
from django_kafka.models import Worker as Row
from django_kafka.models import WorkerPartition
from django_kafka.monitoring import lag, probes
from django_kafka.producers import producers
from tests.consuming import NAME, Seen, Workplace
from tests.letters import dead_letter
from tests.sending import NOBODY, use
from tests.servers.processes import wait_until
from tests.test_circuits import Fault

pytestmark = pytest.mark.django_db(transaction=True)

FAST: dict[str, Any] = {"heartbeats": {"interval": "100ms"}, "producers": {}}
TELLS = {"options": {"statistics.interval.ms": 100}}


@contextmanager
def at_work(*, free: Callable[[], None] = lambda: None) -> Iterator[Crew]:
    """Run a whole worker process's crew; `free` lets go what it is stuck at."""
    crew = Crew([NAME])
    thread = threading.Thread(target=crew.run)
    thread.start()
    try:
        yield crew
    finally:
        free()
        crew.stop()
        thread.join(30)
    assert not thread.is_alive()


def answers(crew: Crew) -> tuple[int, int]:
    """Return what `/live` and `/ready` answer."""
    return crew.routes[probes.LIVE]().status, crew.routes[probes.READY]().status


def probe(which: str) -> str:
    """Run the probe of an orchestrator that has no HTTP; return why it says no."""
    try:
        call_command("kafka_status", "--probe", which, stdout=io.StringIO())
    except CommandError as error:
        return str(error)
    return ""


def asked(check: HealthCheck) -> str:
    """Return what django-health-check shows of a check: "" when it is well."""
    result = asyncio.run(check.get_result())
    return str(result.error or "")


def problems(kind: str) -> str:
    lag.forget()
    found = services.get_health_status()
    return " ".join(" ".join(one.problems) for one in found.components if one.kind == kind)


def test_all_is_well_with_a_worker_that_works_and_its_rows_tell_how_it_is(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2, kafka=FAST)
    assert problems("consumer") == "None of its workers was heard of lately."
    assert probe("live") == "", "Nobody is killed because nothing is heard of him."
    assert probe("ready") == "No worker of this host was heard of lately."
    workplace.send(range(3))
    with at_work() as crew:
        seen.wait(3)
        wait_until(lambda: answers(crew) == (200, 200))
        wait_until(lambda: probe("ready") == "")
        assert probe("live") == ""
        wait_until(lambda: problems("consumer") == "")
        services.check_health()
        found = services.get_health_status()
        assert (found.healthy, found.last_error) == (True, None)
        assert json.loads(json.dumps(found.as_dict()))["components"][0]["kind"] == "broker"
        assert [asked(one) for one in (health.Kafka(), health.Broker(), health.Consumer(NAME))] == ["", "", ""]
        wait_until(lambda: Row.objects.get().lag == 0, message="its clients know the ends of partitions")
        row = Row.objects.get()
        assert (row.state, row.in_flight, row.not_live, row.not_ready) == ("running", 0, "", "")
        assert row.memory is not None
        assert row.memory > 1_000_000
        assert row.rebalance_age is not None
        assert set(WorkerPartition.objects.values_list("worker", "topic", "partition")) == {
            (row.pk, workplace.topic, 0), (row.pk, workplace.topic, 1),
        }  # fmt: skip
    assert not WorkerPartition.objects.exists()
    assert not Row.objects.exists()


def test_a_poll_loop_that_is_stuck_is_not_alive(workplace: Workplace) -> None:
    go_on = threading.Event()

    def stick(**_event: Any) -> None:
        go_on.wait(30)

    signals.partitions_assigned.connect(stick)
    try:
        workplace.consume(Seen(), kafka={**FAST, "health": {"max_poll_age": "1s"}})
        with at_work(free=go_on.set) as crew:
            wait_until(lambda: answers(crew) == (503, 503))
            assert b"It has not polled for" in crew.routes[probes.LIVE]().body
            wait_until(lambda: "It has not polled for" in probe("live"))
            wait_until(lambda: "It has not polled for" in problems("consumer"))
            with pytest.raises(Unhealthy, match="It has not polled for"):
                services.check_health()
            assert "It has not polled for" in asked(health.Consumer(NAME))
            go_on.set()
            wait_until(lambda: answers(crew) == (200, 200))
    finally:
        go_on.set()
        signals.partitions_assigned.disconnect(stick)


def test_a_handler_that_is_stuck_past_twice_its_bound_is_not_alive(workplace: Workplace) -> None:
    go_on = threading.Event()
    seen = Seen(lambda _message: go_on.wait(30))
    workplace.consume(seen, timeout="200ms", transaction="none", kafka=FAST)
    workplace.send([1])
    with at_work(free=go_on.set) as crew:
        wait_until(lambda: answers(crew) == (503, 503))
        assert b"its limit is 0.2 s" in crew.routes[probes.LIVE]().body
        wait_until(lambda: "its limit is 0.2 s" in probe("live"))
        go_on.set()
        wait_until(lambda: answers(crew) == (200, 200))


def test_a_poll_loop_that_is_dead_is_not_alive_whatever_its_handlers_do(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    seen = Seen(lambda _message: go_on.wait(30))
    workplace.consume(seen, transaction="none", kafka=FAST)
    workplace.send([1])
    with at_work(free=go_on.set) as crew:
        wait_until(lambda: seen.threads)
        wait_until(lambda: answers(crew) == (200, 200))

        def fail(*_arguments: Any) -> None:
            raise SystemError("a bug of the client")

        poller = crew.workers[0]._poller
        monkeypatch.setattr(poller, "_turn", fail)
        # It would finish what runs before it leaves its group.
        wait_until(lambda: answers(crew) == (503, 503))
        monkeypatch.setattr(consumer, "_CLOSE_AT_MOST", 0.2)
        monkeypatch.setattr(poller._client, "fetch", fail)
        # Now it has left, and the whole crew is told to stop; that is no stop that anybody wished for.
        wait_until(poller.stopping.is_set)
        assert answers(crew) == (503, 503)
        assert crew.routes[probes.LIVE]().body == b"ops: Its poll loop has ended.\n"
        wait_until(lambda: "Its poll loop has ended." in probe("live"))
        wait_until(lambda: "Its poll loop has ended." in problems("consumer"))


def test_a_group_that_gives_no_place_is_not_healthy_however_long_and_no_reason_to_start_again(
    workplace: Workplace, embedded: Cluster
) -> None:
    # As in a group whose members come and go so often that it never comes to rest.
    embedded.push_errors(Request.JOIN_GROUP, *["REBALANCE_IN_PROGRESS"] * 10_000)
    workplace.consume(
        Seen(), session_timeout="500ms", heartbeat_interval="100ms",
        options={**TELLS["options"], "max.poll.interval.ms": 500},
        kafka={**FAST, "health": {"max_poll_age": "30s"}},  # not as soon as a busy machine lets the poller wait
    )  # fmt: skip
    with at_work() as crew:
        poller = crew.workers[0]._poller
        assert poller.max_poll_interval == 0.5
        wait_until(lambda: poller.unsteady > 2 * poller.max_poll_interval)
        assert answers(crew) == (200, 503)
        wait_until(lambda: "It has had no settled place in its group for" in problems("consumer"))
        assert "no settled place" in probe("ready")
        assert probe("live") == ""
        embedded.clear_errors(Request.JOIN_GROUP)
        wait_until(lambda: answers(crew) == (200, 200))


def test_a_worker_that_joins_its_group_is_not_ready_yet_and_no_reason_for_an_alarm(
    workplace: Workplace, embedded: Cluster
) -> None:
    embedded.push_errors(Request.JOIN_GROUP, *["REBALANCE_IN_PROGRESS"] * 10_000)
    workplace.consume(Seen(), session_timeout="500ms", heartbeat_interval="100ms", **TELLS, kafka=FAST)
    with at_work() as crew:
        wait_until(lambda: "no settled place" in probe("ready"))
        assert answers(crew) == (200, 503)
        assert problems("consumer") == ""
        services.check_health()
        embedded.clear_errors(Request.JOIN_GROUP)
        wait_until(lambda: answers(crew) == (200, 200))


def test_an_open_circuit_is_not_healthy_and_not_ready(workplace: Workplace) -> None:
    fault = Fault()
    workplace.consume(Seen(fault), circuit_breaker={"window": 10, "cooldown": "1h"}, transaction="none", kafka=FAST)
    workplace.send(range(20))
    with at_work(free=fault.broken.clear) as crew:
        wait_until(lambda: b"ops: Its circuit is open: " in crew.routes[probes.READY]().body)
        assert answers(crew) == (200, 503)
        wait_until(lambda: "Its circuit is open: " in problems("consumer"))
        with pytest.raises(Unhealthy, match="Its circuit is open: "):
            services.check_health()
        assert "Its circuit is open: " in probe("ready")
        assert probe("live") == ""


def test_a_handler_that_is_stuck_while_an_outage_is_waited_for_is_told_and_no_reason_to_start_again(
    workplace: Workplace,
) -> None:
    mended = threading.Event()

    def handle(message: Message) -> None:
        if message.partition:
            raise ConnectionRefusedError
        mended.wait(30)

    workplace.consume(
        Seen(handle), partitions=2, concurrency=2, timeout="200ms", transaction="none", kafka=FAST,
    )  # fmt: skip
    for partition in range(2):
        workplace.send([1], partition=partition)
    with at_work(free=mended.set) as crew:
        wait_until(lambda: "runs past its limit of 0.2 s" in problems("consumer"))
        assert "It waits: " in problems("consumer")
        assert answers(crew) == (200, 503)
        assert probe("live") == ""


def test_without_heartbeats_workers_answer_as_ever_and_nobody_misses_their_rows(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, kafka={**FAST, "heartbeats": {"enabled": False}})
    workplace.send([1])
    with at_work() as crew:
        seen.wait(1)
        wait_until(lambda: answers(crew) == (200, 200))
        assert not Row.objects.exists()
        services.check_health()
        (found,) = [one for one in services.get_health_status().components if one.kind == "consumer"]
        assert found.detail["workers"] is None
        assert probe("live") == ""
        assert probe("ready").startswith("Nothing is heard of workers")
    services.check_health()


def test_a_worker_that_waits_for_an_outage_is_alive_and_not_ready(workplace: Workplace) -> None:
    mended = threading.Event()

    def handle(_message: Message) -> None:
        if not mended.is_set():
            raise ConnectionRefusedError("password=hunter2 is refused")

    seen = Seen(handle)
    workplace.consume(seen, transaction="none", kafka=FAST)
    workplace.send([1])
    with at_work(free=mended.set) as crew:
        wait_until(lambda: answers(crew) == (200, 503))
        wait_until(lambda: "It waits: " in probe("ready"))
        assert probe("live") == ""
        assert "It waits: " in problems("consumer")
        mended.set()
        seen.wait(1)
        wait_until(lambda: answers(crew) == (200, 200))
        row = Row.objects.get()
    assert "hunter2" not in repr(services.get_health_status()) + repr(row.__dict__)


def test_brokers_that_are_away_are_an_outage_for_workers_and_a_broker_that_is_not_healthy(
    workplace: Workplace, embedded: Cluster
) -> None:
    workplace.consume(Seen(), kafka=FAST, **TELLS)
    with at_work() as crew:
        wait_until(lambda: answers(crew) == (200, 200))
        embedded.broker_down()
        wait_until(lambda: answers(crew) == (200, 503))
        assert "does not say which topics it has" in problems("broker")
        assert "does not say which topics it has" in asked(health.Broker())
        wait_until(lambda: "Its brokers are out of reach" in probe("ready"))
        assert probe("live") == ""
        embedded.broker_up()
        wait_until(lambda: answers(crew) == (200, 200), 60)


def test_letters_and_lag_over_their_bounds_are_told(workplace: Workplace, settings: Settings) -> None:
    workplace.consume(Seen(), kafka=FAST)
    workplace.send(range(5), timestamp=round((time.time() - 3600) * 1000))
    dead_letter(consumer=NAME)
    dead_letter(consumer=NAME)
    assert problems("dead_letters") == ""
    settings.KAFKA = {**settings.KAFKA, "health": {"max_dead_letters": 1, "max_lag": 4, "max_lag_age": "2h"}}
    assert problems("dead_letters") == "It has 2 open dead letters; allowed are 1."
    assert "It is 5 messages behind; allowed are 4." in problems("consumer")
    assert "s old" not in problems("consumer")
    settings.KAFKA = {**settings.KAFKA, "health": {"max_lag_age": "1m"}}
    assert re.search(r"The next message that it reads is 36\d\d s old; allowed are 60 s\.", problems("consumer"))
    settings.KAFKA = {**settings.KAFKA, "health": {"max_dead_letters": 1, "max_lag": 4}}
    assert asked(health.DeadLetters(NAME, most=2)) == ""
    assert "2 open dead letters" in asked(health.DeadLetters(NAME))
    assert "5 messages behind; allowed are 4" in asked(health.Consumer(NAME))
    assert "messages behind" not in asked(health.Consumer(NAME, max_lag=5))


def test_a_producer_whose_brokers_are_away_is_not_healthy_and_no_secret_is_on_any_page(settings: Settings) -> None:
    sasl = {"enabled": True, "mechanism": "PLAIN", "username": "alice", "password": "hunter2-of-alice"}
    settings.KAFKA = {
        "brokers": [NOBODY], "security": {"sasl": sasl}, "connection": {"timeout": "1s"}, "producers": {"default": {}},
        "consumers": {NAME: {"group_id": "g", "topics": {"t": {}}}}, "heartbeats": {"interval": "100ms"},
    }  # fmt: skip
    assert problems("producer") == "", "It has sent nothing yet."
    with pytest.raises(TimeoutError):
        services.produce("t", None, 1).result()
    assert "No broker can be reached" in problems("producer")
    checks = [health.Kafka(), health.Broker(), health.Producer(), health.Consumer(NAME), health.DeadLetters(NAME)]
    pages = [asked(one) for one in checks] + [repr(one) for one in checks] + [str(one.labels) for one in checks]
    found = services.get_health_status()
    assert not found.healthy
    assert found.last_error is not None
    with pytest.raises(Unhealthy) as caught:
        services.check_health()
    pages += [repr(found), json.dumps(found.as_dict()), str(caught.value)]
    assert "hunter2" not in " ".join(pages)


def test_a_lag_that_is_not_known_is_not_within_its_bound_and_a_database_that_is_away_is_told_without_its_words(
    workplace: Workplace, embedded: Cluster, settings: Settings
) -> None:
    workplace.consume(Seen(), kafka=FAST)
    embedded.broker_down()
    assert "Its lag is not known" not in problems("consumer"), "Without a bound nobody asked."
    settings.KAFKA = {**settings.KAFKA, "health": {"max_lag": 4}}
    assert "Its lag is not known: Cluster 'default' does not say" in problems("consumer")
    embedded.broker_up()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE lynx_kafka_worker RENAME TO away")
    try:
        kind = "ProgrammingError" if connection.vendor == "postgresql" else "OperationalError"
        assert problems("consumer") == f"Database 'default' does not answer ({kind})."
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO lynx_kafka_worker")


def test_a_producer_that_takes_no_records_is_not_healthy(embedded: Cluster, settings: Settings) -> None:
    use(settings, embedded.bootstrap_servers)
    services.produce("t", None, 1).result(10)
    assert problems("producer") == ""
    producers["default"].reachability.open = True
    assert problems("producer").startswith("Producer 'default' takes no records: its brokers have been out of reach")


def test_a_supervisor_is_alive_while_a_process_is_started_again_and_ready_when_all_are() -> None:
    well, ill = probes.answer([]), probes.answer(["ops: stuck"])
    assert probes.together(probes.LIVE, {1: well, 2: None}).status == 200
    assert probes.together(probes.READY, {1: well, 2: None}).body == b"process 2 does not answer\n"
    assert probes.together(probes.LIVE, {1: well, 2: ill}).body == b"process 2: ops: stuck\n"
    assert probes.together(probes.READY, {1: well, 2: well}).status == 200


def test_a_worker_that_has_done_what_it_was_to_do_is_not_stuck(workplace: Workplace) -> None:
    workplace.consume(Seen())
    workplace.send([0])
    worker = workplace.start(max_messages=1)
    workplace.ended(worker)
    assert (worker.vitals().state, worker.vitals().not_live) == ("stopping", "")
