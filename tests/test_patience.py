"""Patience: when an outage that one message meets is taken for that message's own fault."""

from __future__ import annotations

import random
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import InterfaceError, OperationalError
from django.utils import timezone

from django_kafka import conf
from django_kafka.categories import UnknownCommit
from django_kafka.consuming.patience import NOBODY, Elsewhere, Neighbours, Outage, is_of_database
from django_kafka.exceptions import BrokersUnreachable
from django_kafka.messages import Message
from django_kafka.models import Worker as WorkerRow
from django_kafka.monitoring.heartbeats import Heartbeat
from tests.consuming import Seen, Workplace
from tests.servers.processes import wait_until

PATIENCE = 900.0
EVERY = 15.0


def neighbours(succeeded: int, *, lanes: int = 4, waiting: int = 1) -> Neighbours:
    return Neighbours(succeeded=succeeded, lanes=lanes, waiting=waiting)


def verdict(spells: list[bool], *, every: float = EVERY, patience: float = PATIENCE, **lanes: int) -> bool:
    """Let a message wait so many times; each says whether a neighbour succeeded meanwhile."""
    now, succeeded = 1000.0, 50
    outage = Outage(7, now, succeeded)
    for got_on in spells:
        now += every
        succeeded += got_on
        outage.met_again(now, succeeded)
    return outage.is_its_own_fault(now, patience, neighbours(succeeded, **lanes))


ALL = [True] * 60
NONE = [False] * 60


@pytest.mark.parametrize(
    ("spells", "its_own"),
    [
        (ALL, True),
        (ALL[:59], False),
        (NONE, False),
        (NONE * 100, False),
        ([True] * 20 + [False] * 40, False),
        ([True] * 40 + [False] * 20, False),
        ([False] * 40 + [True] * 20, False),
        ([False] * 60 + [True] * 60, True),
        ([False, False, False, True] * 15, True),
        ([True] + [False] * 58 + [True], False),
        ([False] * 60 * 24 + [True] * 60, True),
    ],
)
def test_neighbours_must_get_on_all_the_time(spells: list[bool], its_own: bool) -> None:
    assert verdict(spells) is its_own


@pytest.mark.parametrize(
    ("lanes", "waiting", "its_own"),
    [(1, 1, True), (2, 1, True), (2, 2, False), (4, 2, False), (5, 2, True), (12, 5, True), (12, 6, False)],
)
def test_a_message_is_blamed_alone_or_when_fewer_than_half_of_the_lanes_wait(
    lanes: int, waiting: int, its_own: bool
) -> None:
    assert verdict(ALL, lanes=lanes, waiting=waiting) is its_own


def test_a_patience_shorter_than_its_waits_takes_three_of_them() -> None:
    assert verdict([True, True], patience=1.0) is False
    assert verdict([True, True, True], patience=1.0) is True
    assert verdict([True, False, True], patience=1.0) is False


def test_neighbours_in_other_workers_count_like_those_in_this_one() -> None:
    here, elsewhere = neighbours(10, lanes=1, waiting=1), neighbours(5, lanes=3, waiting=1)
    assert here + elsewhere == neighbours(15, lanes=4, waiting=2)
    assert here + NOBODY == here


@pytest.mark.parametrize("seed", range(20))
def test_without_a_neighbour_that_succeeds_it_waits_for_ever_whatever_the_times(seed: int) -> None:
    chance = random.Random(seed)
    patience = chance.choice((0.0, 1.0, 60.0, PATIENCE))
    lanes = chance.randint(1, 12)
    now = 0.0
    outage = Outage(0, now, 9)
    for _ in range(300):
        now += chance.choice((0.0, 0.2, 1.0, 15.0))
        outage.met_again(now, 9)
        assert not outage.is_its_own_fault(now, patience, neighbours(9, lanes=lanes, waiting=1))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_never_blamed_before_patience_is_over(seed: int) -> None:
    chance = random.Random(seed)
    now = began = chance.uniform(0, 1e6)
    outage = Outage(0, now, 0)
    for number in range(1, 400):
        now += chance.choice((0.2, 1.0, 15.0))
        outage.met_again(now, number)
        blamed = outage.is_its_own_fault(now, PATIENCE, neighbours(number))
        assert blamed is (now - began >= PATIENCE)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


LOST = OperationalError("could not connect to server")


@pytest.mark.parametrize(
    ("error", "of_database"),
    [
        (LOST, True),
        (InterfaceError("connection already closed"), True),
        (UnknownCommit(), True),
        (caused(RuntimeError("booking failed"), LOST), True),
        (ExceptionGroup("both", [ConnectionError(), caused(KeyError(), LOST)]), True),
        (ConnectionRefusedError(), False),
        (socket.gaierror(-2, "Name or service not known"), False),
        (BrokersUnreachable("no broker"), False),
        (ExceptionGroup("both", [ConnectionError(), KeyError()]), False),
    ],
)
def test_a_database_is_known_wherever_it_is_in_an_error(error: Exception, of_database: bool) -> None:
    assert is_of_database(error) is of_database


def test_errors_that_lead_back_to_themselves_are_looked_at_for_a_while_only() -> None:
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    assert not is_of_database(one)


def test_other_workers_are_heard_from_the_second_time_on() -> None:
    elsewhere = Elsewhere()
    elsewhere.hear([("a", 1000, 4, 0), ("b", 50, 2, 1)])
    assert elsewhere.neighbours == Neighbours(succeeded=0, lanes=6, waiting=1)
    elsewhere.hear([("a", 1003, 4, 0), ("b", 50, 2, 1), ("new", 7, 1, 0)])
    assert elsewhere.neighbours == Neighbours(succeeded=3, lanes=7, waiting=1)
    elsewhere.hear([("b", 51, 2, 0)])
    assert elsewhere.neighbours == Neighbours(succeeded=4, lanes=2, waiting=0)
    elsewhere.hear([("b", 0, 2, 0)])
    assert elsewhere.neighbours.succeeded == 4, "a worker that began anew has lost nothing"
    elsewhere.hear_nothing()
    elsewhere.hear([("b", 99, 2, 0)])
    assert elsewhere.neighbours.succeeded == 4, "what happened while nobody listened proves nothing about now"


class Subject:
    """As much of a worker as heartbeats need."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.heard: list[list[tuple[str, int, int, int]] | None] = []

    def report(self) -> dict[str, Any]:
        return {"waiting": self.waiting, "partitions": 2}

    def partitions(self) -> dict[Any, Any]:
        return {}

    def close_circuit(self, episode: int) -> bool:
        return False

    def hear(self, others: Any) -> None:
        self.heard.append(None if others is None else list(others))


@pytest.mark.django_db(transaction=True)
def test_a_worker_hears_how_living_workers_of_its_group_fare_while_it_waits(settings: Any) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "g"}}, "heartbeats": {"interval": "100ms"}}
    now = timezone.now()
    # Alive for as long as the test takes, whose beats are short.
    later = now + timedelta(hours=1)
    for name, group, seen in (("one", "g", later), ("other", "h", later), ("dead", "g", now.replace(year=2020))):
        WorkerRow.objects.create(
            id=name, consumer="ops", group_id=group, host="h", pid=1, version="1", started_at=now, seen_at=seen,
            handled=5, partitions=3, waiting=1,
        )  # fmt: skip
    waits, goes_on = Subject(1), Subject(0)
    beats = [Heartbeat([(conf.consumer("ops"), group)], [one]) for group, one in (("g", waits), ("x", goes_on))]
    for beat in beats:
        beat.start()
    try:
        wait_until(lambda: waits.heard and goes_on.heard)
    finally:
        for beat in beats:
            beat.end()
    assert waits.heard[0] == [("one", 5, 3, 1)]
    assert goes_on.heard[0] is None


class Host:
    """A handler that cannot reach the host of some messages: those of a partition, whose value is "bad"."""

    def __init__(self, error: Exception, *partitions: int) -> None:
        self.error = error
        self.partitions = partitions

    def __call__(self, message: Message) -> None:
        if message.partition in self.partitions and message.value == "bad":
            raise self.error
        if message.value == "slow":
            time.sleep(0.02)


GONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_a_message_that_alone_meets_an_outage_becomes_a_letter_with_that_reason(workplace: Workplace) -> None:
    seen = Seen(Host(GONE, 0))
    workplace.consume(seen, partitions=2, concurrency=2, outage_patience="2s", transaction="none")
    workplace.send(["good", "bad", "good", "good"], partition=0)
    workplace.send(["slow"] * 1000, partition=1)
    began = time.monotonic()
    with workplace.worker() as worker:
        wait_until(lambda: worker.report()["waiting"] == 1)
        assert "gaierror" in worker.report()["waits_for"]
        wait_until(lambda: seen.of(0) == [0, 2, 3], 40, "the partition is held")
        assert time.monotonic() - began >= 2
        assert worker.report()["waiting"] == 0
    (letter,) = workplace.letters()
    assert (letter.offset, letter.category, letter.error_type) == (1, "outage", "socket.gaierror")
    assert "while other messages of the consumer succeeded" in letter.traceback


@pytest.mark.parametrize(
    ("error", "partitions", "neighbours"),
    [
        (GONE, (0,), []),
        (GONE, (0, 1), ["bad"]),
        (OperationalError("could not connect to server"), (0,), ["slow"] * 1000),
    ],
    ids=["nobody else", "the others too", "the database"],
)
def test_an_outage_that_is_no_message_s_fault_is_waited_for_without_end(
    workplace: Workplace, error: Exception, partitions: tuple[int, ...], neighbours: list[str]
) -> None:
    seen = Seen(Host(error, *partitions))
    workplace.consume(seen, partitions=2, concurrency=2, outage_patience="500ms", transaction="none")
    workplace.send(["bad", "good"], partition=0)
    workplace.send(neighbours, partition=1)
    with workplace.worker() as worker:
        waits = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= waits + 5 * len(partitions), 40)
        assert seen.of(0) == []
    assert not workplace.letters()


def test_workers_elsewhere_bear_witness_for_a_partition_that_is_alone_in_its_own(workplace: Workplace) -> None:
    seen = Seen(Host(GONE, 0))
    workplace.consume(seen, outage_patience="500ms", transaction="none")
    workplace.send(["bad", "good"])
    ended = threading.Event()
    with workplace.worker() as worker:

        def witness() -> None:
            handled = 0
            while not ended.wait(0.05):
                handled += 1
                worker.hear([("elsewhere", handled, 1, 0)])

        thread = threading.Thread(target=witness)
        thread.start()
        try:
            wait_until(lambda: seen.of(0) == [1], 40)
        finally:
            ended.set()
            thread.join()
    assert [letter.category for letter in workplace.letters()] == ["outage"]
