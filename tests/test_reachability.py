from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import transaction
from pytest_django import Settings

from django_kafka import conf
from django_kafka.batches import produce_batch
from django_kafka.clients.embedded import Cluster
from django_kafka.exceptions import CircuitOpen, DeliveryFailed
from django_kafka.producers import producers
from django_kafka.producing import produce
from django_kafka.reachability import Reachability
from django_kafka.signals import circuit_closed, circuit_opened
from tests.sending import NOBODY, read, took_less_than, use, values
from tests.servers.processes import wait_until

SOON = {"threshold": "300ms", "cooldown": "200ms"}


class Brokers:
    """Brokers that answer or not, and count what is asked and acknowledged."""

    def __init__(self) -> None:
        self.there = False
        self.asked = 0
        self.acknowledged = 0

    def answer(self) -> bool:
        self.asked += 1
        return self.there


def watched(brokers: Brokers, **settings: Any) -> Reachability:
    circuit = conf.ProducerCircuit(**{"threshold": 30.0, "cooldown": 5.0, **settings})
    return Reachability(circuit, lambda: brokers.acknowledged, brokers.answer)


class TestTheCircuit:
    def test_it_opens_after_the_threshold_when_nobody_answers(self) -> None:
        brokers = Brokers()
        found = watched(brokers)
        found.lost("all down", 100.0)
        assert [(found.look(now), found.open) for now in (100.0, 129.9, 130.0, 131.0)] == [
            (False, False), (False, False), (True, True), (False, True),
        ]  # fmt: skip
        assert (brokers.asked, found.reason, found.out_of_reach(140.0)) == (1, "all down", 40.0)

    def test_it_stays_closed_when_somebody_answers_after_all(self) -> None:
        brokers = Brokers()
        found = watched(brokers)
        found.lost("all down", 100.0)
        brokers.there = True
        assert (found.look(130.0), found.open, found.reason) == (False, False, None)

    def test_an_answer_closes_it_and_is_asked_for_once_a_cooldown(self) -> None:
        brokers = Brokers()
        found = watched(brokers)
        found.lost("all down", 0.0)
        assert found.look(30.0)
        assert [found.look(now / 10) for now in range(301, 400)] == [False] * 99
        assert brokers.asked == 2
        brokers.there = True
        assert (found.look(40.0), found.open, found.reason) == (True, False, None)

    def test_a_record_that_arrives_closes_it_unasked(self) -> None:
        brokers = Brokers()
        found = watched(brokers)
        found.lost("all down", 0.0)
        assert found.look(30.0)
        brokers.acknowledged += 1
        assert (found.reason, found.look(30.1), found.open, brokers.asked) == (None, True, False, 1)

    def test_trouble_that_is_told_again_does_not_begin_anew(self) -> None:
        brokers = Brokers()
        found = watched(brokers)
        found.lost("all down", 0.0)
        found.lost("all down", 29.0)
        assert found.look(30.0)

    def test_trouble_after_a_recovery_begins_anew(self) -> None:
        brokers = Brokers()
        found = watched(brokers)
        found.lost("all down", 0.0)
        brokers.acknowledged += 1
        found.lost("all down again", 29.0)
        assert not found.look(30.0)
        assert (found.reason, found.look(59.0)) == ("all down again", True)

    def test_switched_off_it_never_opens_and_asks_nobody(self) -> None:
        brokers = Brokers()
        found = watched(brokers, enabled=False)
        found.lost("all down", 0.0)
        assert (found.look(1000.0), found.open, brokers.asked, found.reason) == (False, False, 0, "all down")


@pytest.fixture
def told() -> Iterator[list[tuple[str, str | None]]]:
    events: list[tuple[str, str | None]] = []

    def opened(sender: Any, reason: str, **_event: Any) -> None:
        events.append((f"{sender} open", reason))

    def closed(sender: Any, **_event: Any) -> None:
        events.append((f"{sender} closed", None))

    circuit_opened.connect(opened)
    circuit_closed.connect(closed)
    yield events
    circuit_opened.disconnect(opened)
    circuit_closed.disconnect(closed)


def is_open() -> bool:
    return producers["default"].reachability.open


class TestProducing:
    pytestmark = pytest.mark.django_db(transaction=True)

    @pytest.fixture
    def name(self, embedded: Cluster, settings: Settings, topic: Callable[..., str]) -> str:
        use(settings, embedded.bootstrap_servers, {"default": {"circuit_breaker": SOON}})
        made = topic()
        embedded.create_topic(made)
        return made

    def test_brokers_that_go_and_come(self, embedded: Cluster, name: str, told: list[tuple[str, str | None]]) -> None:
        produce(name, None, 0, partition=0).result()
        embedded.broker_down()
        queued = produce(name, None, 1, partition=0)
        wait_until(is_open)
        # At once: not when it has waited for brokers for as long as `connection.timeout` says, which is 10 s here.
        with (
            took_less_than(5),
            pytest.raises(CircuitOpen, match="takes no records: its brokers have been out"),
        ):
            produce(name, None, 2, partition=0)
        with pytest.raises(CircuitOpen, match="0 of the 3 records of the batch were taken before"):
            produce_batch(name, [{"key": b"k", "value": b"v"}] * 3)
        with pytest.raises(CircuitOpen, match="0 of the 1 records of the batch were taken before"):
            produce_batch(name, [{"key": b"k", "value": b"v", "partition": 0}])
        embedded.broker_up()
        assert queued.result(20).offset == 1
        wait_until(lambda: not is_open())
        assert produce(name, None, 3, partition=0).result(20).offset == 2
        assert values(read(embedded, name, 3)) == [0, 1, 3]
        wait_until(lambda: len(told) == 2)
        assert [event for event, _reason in told] == ["default open", "default closed"]
        assert "out of reach for" in (told[0][1] or "")

    def test_inside_a_transaction_it_is_said_before_the_commit(self, embedded: Cluster, name: str) -> None:
        produce(name, None, 0).result()
        embedded.broker_down()
        wait_until(is_open)
        with pytest.raises(CircuitOpen), transaction.atomic():
            produce(name, None, 1)
        embedded.broker_up()
        wait_until(lambda: not is_open())

    def test_what_was_promised_before_it_opened_fails_after_the_commit(self, embedded: Cluster, name: str) -> None:
        produce(name, None, 0).result()
        with transaction.atomic():
            delivery = produce(name, None, 1)
            embedded.broker_down()
            wait_until(is_open)
        assert isinstance(delivery.error, CircuitOpen)
        embedded.broker_up()
        wait_until(lambda: not is_open())

    def test_who_waits_for_room_hears_of_it(self, settings: Settings) -> None:
        full = {"options": {"queue.buffering.max.messages": 2}, "delivery_timeout": "30s", "circuit_breaker": SOON}
        use(settings, NOBODY, {"default": full}, connection={"timeout": "20s"})
        for number in range(2):
            produce("full", None, number)
        with took_less_than(15), pytest.raises(CircuitOpen):
            produce("full", None, 2)
        producers.close("default", 0)

    def test_what_is_queued_is_given_up_only_by_its_own_timeout(self, settings: Settings) -> None:
        use(settings, NOBODY, {"default": {"circuit_breaker": SOON, "delivery_timeout": "2s"}})
        began = time.monotonic()
        delivery = produce("flights", None, 1)
        wait_until(is_open)
        assert delivery.state == "pending"
        with pytest.raises(DeliveryFailed):
            delivery.result(20)
        assert time.monotonic() - began >= 2

    def test_switched_off_it_queues_on(self, settings: Settings) -> None:
        use(settings, NOBODY, {"default": {"circuit_breaker": {"enabled": False, **SOON}}})
        produce("flights", None, 1)
        wait_until(lambda: producers["default"].unreachable() is not None)
        looked = producers["default"].reachability
        until = time.monotonic() + 1
        wait_until(lambda: looked.out_of_reach(time.monotonic()) > 0.6 and time.monotonic() > until)
        assert produce("flights", None, 2).state == "pending"
