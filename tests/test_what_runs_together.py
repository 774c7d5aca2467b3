"""What handlers do to a transaction or a list that they share, and what becomes of the others in it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, transaction

from django_kafka import conf, handlers, services, signals, tallies
from django_kafka.consuming.handling import HandlerThread
from django_kafka.consuming.lanes import Lanes
from django_kafka.exceptions import BatchFailed
from django_kafka.handlers import kafka_handler
from django_kafka.messages import Message
from django_kafka.models import DeadLetterAttempt
from tests.consuming import NAME, Workplace
from tests.servers.processes import wait_until
from tests.test_handling import Far, effects, far, leave_effect
from tests.test_lists import Lists
from tests.test_lists import consume as consume_lists
from tests.test_messages import Raw
from tests.test_together import Events, consume, handled
from tests.test_together_in_trouble import BOTH, Ledger, Shared, ledger, named

__all__ = ["far", "ledger"]

OFTEN = pytest.mark.parametrize("failing", [0, 5])
"""How many messages apart failures are: without savepoints, and with them."""


def dangle() -> None:
    """Write a row whose foreign key is looked at by the COMMIT."""
    DeadLetterAttempt.objects.create(letter_id=2**40, number=1, at="2026-01-01T00:00Z", origin="worker")


@OFTEN
def test_what_a_handler_rolls_back_by_itself_is_its_own_affair(workplace: Workplace, failing: int) -> None:
    def handle(message: Message) -> None:
        if failing and message.value < 20 and message.value % failing == 0:
            raise ValueError
        try:
            with transaction.atomic():
                leave_effect(message)
                raise KeyError
        except KeyError:
            pass

    consume(workplace, Events(handle))
    workplace.send(range(30))
    with workplace.worker():
        handled(workplace, 30)
    bad = list(range(0, 20, failing)) if failing else []
    assert [letter.offset for letter in workplace.letters()] == bad
    assert effects() == [number for number in range(30) if number not in bad], "One of each: those of the inner block."


@OFTEN
def test_each_message_is_told_once_and_is_given_up_after_as_many_attempts(workplace: Workplace, failing: int) -> None:
    told: list[int] = []
    attempts: list[int] = []

    def note(sender: str, message: Message, **_event: Any) -> None:
        told.append(message.offset)

    def handle(message: Message) -> None:
        if message.value == 23:
            attempts.append(message.attempt)
            raise ValueError
        if failing and message.value < 20 and message.value % failing == 4 and message.attempt == 1:
            raise ValueError

    signals.message_handled.connect(note)
    try:
        seen = Events(handle)
        consume(workplace, seen, retry={"max_retries": 2, "backoff": "1ms"})
        workplace.send(range(30))
        with workplace.worker() as worker:
            handled(workplace, 30)
        assert worker.tally.handled == 29
    finally:
        signals.message_handled.disconnect(note)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.attempts) == (23, 3)
    assert attempts == [1, 2, 3]
    good = [number for number in range(30) if number != 23]
    assert told == good == effects() == seen.of("committed")


def test_a_stop_while_those_before_a_failed_one_run_again_ends_there(workplace: Workplace) -> None:
    failed: list[int] = []

    def handle(message: Message) -> None:
        if message.value == 2 and failed:
            worker.stop()
            wait_until(lambda: all(lane.halted for lane in worker.lanes))
        if message.value == 5:
            failed.append(1)
            raise ValueError

    consume(workplace, Events(handle))
    workplace.send(range(9))
    worker = workplace.start()
    workplace.ended(worker)
    assert effects() == [0, 1, 2]
    assert workplace.committed() == {0: 3}
    assert not workplace.letters(), "The one that failed has an attempt before it when it is read again."


def test_a_message_that_met_an_outage_is_tried_alone(workplace: Workplace) -> None:
    met: list[int] = []

    def need(message: Message) -> None:
        if message.value == 5 and len(met) < 2:
            met.append(1)
            raise OperationalError("connection to server was lost")

    seen = Shared("one by one", need)
    seen.consume(workplace)
    workplace.send(range(12))
    with workplace.worker():
        handled(workplace, 12)
    assert [some for some in seen.together if 5 in some][-2:] == [[5], [5]]
    assert effects() == list(range(12))


@BOTH
def test_a_held_key_is_not_overtaken_by_what_came_with_it(workplace: Workplace, kind: str) -> None:
    def fail(message: Message) -> None:
        if message.value == 4:
            raise ValueError

    seen = Shared(kind, fail)
    seen.consume(workplace, on_dead_letter="hold_key")
    for number in range(12):
        workplace.send([number], key=b"%d" % (number % 3))
    with workplace.worker() as worker:
        handled(workplace, 12)
    assert worker.tally.parked == 2
    assert effects() == [0, 1, 2, 3, 5, 6, 8, 9, 11]
    assert workplace.letters()[0].offset == 4


@pytest.mark.parametrize("ordering", ["key", "unordered"])
def test_lists_of_dealt_messages_are_no_longer_than_what_is_fetched_at_once(
    workplace: Workplace, ordering: str
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def wait(messages: list[Message]) -> None:
        if any(message.value == 1 for message in messages):
            begun.set()
            assert goes_on.wait(20)

    seen = Lists(wait)
    consume_lists(workplace, seen, ordering=ordering, concurrency=1, max_poll_records=10)
    workplace.send(range(2), key_of=lambda _value: b"one")
    with workplace.worker() as worker:
        assert begun.wait(20)
        workplace.send(range(2, 300), key_of=lambda _value: b"one")
        wait_until(lambda: worker.lanes.in_flight >= 290)
        goes_on.set()
        handled(workplace, 300)
    assert sorted(effects()) == list(range(300))
    assert max(map(len, seen.calls)) <= 10
    if ordering == "key":
        assert effects() == list(range(300))


def test_a_list_whose_commit_is_refused_is_halved(workplace: Workplace) -> None:
    def handle(messages: list[Message]) -> None:
        if any(message.value == 5 for message in messages):
            dangle()

    consume_lists(workplace, Lists(handle))
    workplace.send(range(9))
    with workplace.worker():
        handled(workplace, 9)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.attempts, letter.error_type) == (5, 1, "django.db.utils.IntegrityError")
    assert effects() == [0, 1, 2, 3, 4, 6, 7, 8]


def test_a_list_whose_handler_caught_what_broke_its_transaction_has_failed(workplace: Workplace) -> None:
    def handle(messages: list[Message]) -> None:
        if any(message.value == 5 for message in messages):
            try:
                with transaction.atomic(savepoint=False):
                    raise IntegrityError
            except IntegrityError:
                pass

    consume_lists(workplace, Lists(handle))
    workplace.send(range(9))
    with workplace.worker():
        handled(workplace, 9)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.error_type) == (5, "django.db.transaction.TransactionManagementError")
    assert effects() == [0, 1, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("answer", [False, [], {0: "failed"}, ValueError("returned")])
def test_what_a_handler_of_lists_returns_is_ignored(workplace: Workplace, answer: object) -> None:
    seen = Lists()

    def handle(messages: list[Message]) -> object:
        seen.calls.append([message.offset for message in messages])
        return answer

    consume_lists(workplace, named(handle), transaction="none")
    workplace.send(range(6))
    with workplace.worker():
        handled(workplace, 6)
    assert [offset for call in seen.calls for offset in call] == list(range(6))
    assert not workplace.letters()


@pytest.mark.parametrize("kind", ["message", "none"])
@pytest.mark.parametrize("how", ["raised", "named"])
def test_a_memory_error_of_a_list_stops_the_worker(workplace: Workplace, kind: str, how: str) -> None:
    def handle(messages: list[Message]) -> None:
        # The first message may come by itself.
        if len(messages) == 1:
            return
        if how == "raised":
            raise MemoryError
        raise BatchFailed({message: MemoryError() for message in messages})

    seen = Lists(handle)
    consume_lists(workplace, seen, transaction=kind)
    workplace.send(range(20))
    worker = workplace.start()
    workplace.ended(worker)
    assert isinstance(worker.error, MemoryError)
    assert [call for call in seen.calls if len(call) > 1] == [seen.calls[-1]], "It is not halved."
    assert workplace.committed() == {0: len(seen.calls) - 1}
    assert not workplace.letters()


@pytest.mark.parametrize("kind", ["message", "none"])
def test_tombstones_and_poison_stand_in_the_middle_of_a_list(workplace: Workplace, kind: str) -> None:
    read: list[Any] = []

    def handle(messages: list[Message]) -> None:
        values = [message.value for message in messages]
        read.extend(values)

    consume_lists(workplace, Lists(handle), transaction=kind)
    workplace.send([0, 1, None, 3, b"!no json", None, 6, 7])
    with workplace.worker():
        handled(workplace, 8)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.category, bytes(letter.value or b"")) == (4, "serialization", b"!no json")
    assert read == [0, 1, None, 3, None, 6, 7]


def test_an_outage_that_a_list_named_for_all_is_waited_for_once(workplace: Workplace) -> None:
    down = threading.Event()
    down.set()

    def name_all(messages: list[Message]) -> None:
        if down.is_set():
            raise BatchFailed({one: OperationalError("connection to server was lost") for one in messages})

    consume_lists(workplace, Lists(name_all))
    workplace.send(range(40))
    with workplace.worker() as worker:
        before = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= before + 2)
        down.clear()
        waits = worker.tally.waits
        handled(workplace, 40)
        assert worker.tally.waits <= waits + 1
    assert effects() == list(range(40))
    assert not workplace.letters()


@BOTH
def test_a_failure_that_is_waited_for_is_told(workplace: Workplace, kind: str) -> None:
    told: list[tuple[int, str]] = []

    def note(sender: str, message: Message, error: Exception, **_event: Any) -> None:
        told.append((message.offset, type(error).__name__))

    down = threading.Event()
    down.set()

    def need(message: Message) -> None:
        # The first one may come by itself.
        if message.value and down.is_set():
            raise OperationalError("connection to server was lost")

    signals.handler_failed.connect(note)
    try:
        seen = Shared(kind, need)
        seen.consume(workplace)
        workplace.send(range(20))
        with workplace.worker() as worker:
            wait_until(lambda: len(told) >= 2)
            down.clear()
            handled(workplace, 20)
        assert len(told) == worker.tally.waits
    finally:
        signals.handler_failed.disconnect(note)
    assert set(told) <= {(0, "OperationalError"), (1, "OperationalError")}


@pytest.mark.parametrize("then", ["comes back", "fails"])
def test_a_list_whose_partition_is_lost_leaves_nothing(workplace: Workplace, then: str) -> None:
    place = ("flights", 0)

    def lose(messages: list[Message]) -> None:
        for message in messages:
            leave_effect_of(message)
        lanes.halt([place])
        lanes.drop([lane])
        if then == "fails":
            raise ValueError

    kafka = {"consumers": {NAME: {"group_id": "g", "topics": {"flights": {}}, "retry": {"max_retries": 0}}}}
    workplace.settings.KAFKA = kafka
    kafka_handler(topics="flights", consumer=NAME, batch=True)(lose)
    try:
        lanes = Lanes()
        lane = lanes.open(place)
        lanes.take(lane, [Raw(topic="flights", offset=number) for number in range(5)], 0)
        failures: list[BaseException] = []
        tally = tallies.of_consumer(NAME)
        thread = HandlerThread("inline", conf.consumer(NAME), "g", lanes, tally, failures.append)
        assert lanes.next(1) is lane
        piece = lane.slices[0]
        thread.run_inline(lane)
    finally:
        handlers.forget(lose)
    assert not failures
    assert (piece.done, effects()) == (0, [])
    assert not workplace.letters()


def leave_effect_of(message: Message) -> None:
    leave_effect(Message(Raw(topic=message.topic, offset=message.offset, value=b"1"), message_decoder(message)))


def message_decoder(message: Message) -> Any:
    return handlers.for_topic(NAME, message.topic).decoder


def test_a_stop_lets_a_list_end_and_settles_it(workplace: Workplace) -> None:
    def stop(messages: list[Message]) -> None:
        worker.stop()
        wait_until(lambda: all(lane.halted for lane in worker.lanes))

    seen = Lists(stop)
    consume_lists(workplace, seen, own={"batch_size": 5})
    workplace.send(range(20))
    worker = workplace.start()
    workplace.ended(worker)
    assert len(seen.calls) == 1
    assert effects() == seen.calls[0]
    assert workplace.committed() == {0: len(effects())}


@OFTEN
def test_a_limit_holds_for_no_message_behind_that_has_none(workplace: Workplace, ledger: Ledger, failing: int) -> None:
    limits: list[tuple[int, str]] = []

    def fail(message: Message) -> None:
        if failing and message.value % failing == 0:
            raise ValueError

    def plain(message: Message) -> None:
        limits.append((message.value, ledger.execute("SHOW statement_timeout")[0]))
        fail(message)

    def hasty(message: Message) -> None:
        assert ledger.execute("SHOW statement_timeout")[0] != "0"
        fail(message)

    named(plain)
    named(hasty)
    kafka_handler(topics=workplace.topic, consumer=NAME, header={"kind": "hasty"}, timeout="30s")(hasty)
    try:
        consume(workplace, plain, database="ledger")
        for start in range(0, 60, 3):
            workplace.send([start], headers=[("kind", b"hasty")])
            workplace.send([start + 1, start + 2])
        with workplace.worker():
            handled(workplace, 60)
    finally:
        handlers.forget(hasty)
    assert {value for value, _limit in limits} == {value for value in range(60) if value % 3}
    assert {limit for _value, limit in limits} == {"0"}
    assert len(workplace.letters()) == (60 // failing if failing else 0)


def test_one_that_fails_among_others_waits_in_a_retry_topic(workplace: Workplace) -> None:
    attempts: list[tuple[int, int]] = []

    def fail_once(message: Message) -> None:
        attempts.append((message.value, message.attempt))
        if message.value % 4 == 2 and message.attempt == 1:
            raise ValueError

    seen = Shared("one by one", fail_once)
    seen.consume(workplace, retry={"mode": "topics", "max_retries": 1, "backoff": "10ms"})
    workplace.cluster.create_topic(f"{workplace.group}.{workplace.topic}.retry.1", 1)
    workplace.send(range(12))
    with workplace.worker():
        wait_until(lambda: len(effects()) == 12)
        handled(workplace, 12)
    assert [one for one in attempts if one[1] == 2] == [(2, 2), (6, 2), (10, 2)]
    assert not workplace.letters()


def test_the_records_of_one_that_is_tried_alone_are_waited_for(workplace: Workplace, far: Far) -> None:
    def handle(message: Message) -> None:
        if message.value == 3 and message.attempt == 1:
            raise ValueError
        if message.value == 3:
            services.produce("landed", None, message.value)

    kafka = {**far.kafka, "producers": {"default": {"cluster": "far"}}}
    consume(workplace, Events(handle), kafka=kafka, retry={"max_retries": 1, "backoff": "1ms"})
    far.cluster.broker_down(1)
    workplace.send(range(6))
    with workplace.worker():
        wait_until(lambda: len(effects()) == 6)
        handled(workplace, 3)
        far.cluster.broker_up(1)
        handled(workplace, 6)


@BOTH
def test_a_commit_that_is_refused_is_told_of_its_message_alone(workplace: Workplace, kind: str) -> None:
    failed: list[int] = []

    def note(sender: str, message: Message, **_event: Any) -> None:
        failed.append(message.offset)

    def handle(message: Message) -> None:
        if message.value == 5:
            dangle()

    signals.handler_failed.connect(note)
    try:
        Shared(kind, handle).consume(workplace)
        workplace.send(range(16))
        with workplace.worker():
            handled(workplace, 16)
    finally:
        signals.handler_failed.disconnect(note)
    assert failed == [5]


def test_one_whose_commit_is_refused_when_the_one_behind_it_failed_is_told_of_too(workplace: Workplace) -> None:
    failed: list[int] = []

    def note(sender: str, message: Message, **_event: Any) -> None:
        failed.append(message.offset)

    def handle(message: Message) -> None:
        if message.value == 1:
            dangle()
        if message.value == 2:
            raise ValueError

    signals.handler_failed.connect(note)
    try:
        Shared("one by one", handle).consume(workplace)
        workplace.send(range(8))
        with workplace.worker():
            handled(workplace, 8)
    finally:
        signals.handler_failed.disconnect(note)
    assert failed == [1, 2] == [letter.offset for letter in workplace.letters()]


def test_without_a_transaction_what_a_list_did_not_name_is_told(workplace: Workplace) -> None:
    told: list[int] = []

    def note(sender: str, message: Message, **_event: Any) -> None:
        told.append(message.offset)

    def name(messages: list[Message]) -> None:
        bad = {message: ValueError() for message in messages if message.value in (3, 7)}
        if bad:
            raise BatchFailed(bad)

    signals.message_handled.connect(note)
    try:
        consume_lists(workplace, Lists(name), transaction="none")
        workplace.send(range(12))
        with workplace.worker():
            handled(workplace, 12)
    finally:
        signals.message_handled.disconnect(note)
    assert sorted(told) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]


def test_a_list_that_meets_a_conflict_is_given_again_at_once(workplace: Workplace, ledger: Ledger) -> None:
    met: list[int] = []

    def handle(messages: list[Message]) -> None:
        for message in messages:
            ledger.execute("INSERT INTO runs VALUES (%s)", message.value)
            if message.value == 7 and not met:
                met.append(1)
                ledger.conflict("lock timeout")

    consume_lists(workplace, named(handle), database="ledger")
    workplace.send(range(12))
    with workplace.worker() as worker:
        handled(workplace, 12)
    assert worker.tally.contentions == 1
    assert ledger.runs() == list(range(12))
    assert not workplace.letters()
