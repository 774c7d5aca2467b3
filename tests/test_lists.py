"""Handlers that take lists."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError
from pytest_django import Settings

from django_kafka import handlers, services, signals
from django_kafka.clients.embedded import Request
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.replaying import request
from django_kafka.exceptions import BatchFailed, ConfigurationError, HandlerTimeout, Reject, Retry, Skip
from django_kafka.handlers import for_topic, kafka_handler
from django_kafka.messages import Message, Messages
from django_kafka.models import DeadLetter
from django_kafka.serializers import TopicDecoder
from django_kafka.testing import consume as consume_inline
from django_kafka.testing import record
from tests.consuming import NAME, Seen, Workplace
from tests.servers.processes import wait_until
from tests.test_handling import Far, effects, far, leave_effect
from tests.test_messages import Raw
from tests.test_together import handled

__all__ = ["far"]


class Lists:
    """A handler of lists that leaves an effect for each message, and keeps what it was given."""

    __module__ = "tests.test_lists"

    def __init__(self, then: Callable[[Messages], Any] | None = None) -> None:
        self.__qualname__ = f"Lists-{id(self)}"
        self.then = then
        self.calls: list[list[int]] = []
        self.attempts: list[list[int]] = []

    def __call__(self, messages: Messages) -> None:
        self.calls.append([message.offset for message in messages])
        self.attempts.append([message.attempt for message in messages])
        for message in messages:
            if message.raw_value is not None and message.raw_value[:1] != b"!":
                leave_effect(message)
        if self.then is not None:
            self.then(messages)


class Fails:
    """Names messages with these values."""

    def __init__(self, *values: Any, error: Callable[[], Exception] = ValueError) -> None:
        self.values = values
        self.error = error

    def __call__(self, messages: Messages) -> None:
        bad = {message: self.error() for message in messages if message.value in self.values}
        if bad:
            raise BatchFailed(bad)


def consume(
    workplace: Workplace, handler: Callable[..., Any], *, own: dict[str, Any] | None = None, **more: Any
) -> None:
    kafka_handler(topics=workplace.topic, consumer=NAME, batch=True, **(own or {}))(handler)
    workplace.consume(handler, **{"enable_auto_commit": False, **more})


def longest(seen: Lists) -> int:
    return max(map(len, seen.calls))


@pytest.mark.parametrize("kind", ["message", "batch", "none"])
def test_a_list_is_what_came_together(workplace: Workplace, kind: str) -> None:
    seen = Lists()
    consume(workplace, seen, transaction=kind)
    workplace.send(range(60))
    with workplace.worker() as worker:
        handled(workplace, 60)
    assert worker.tally.handled == 60
    assert longest(seen) > 10
    assert [offset for call in seen.calls for offset in call] == list(range(60)) == effects()


def test_a_list_is_no_longer_than_its_handler_wants(workplace: Workplace) -> None:
    seen = Lists()
    consume(workplace, seen, own={"batch_size": 7})
    workplace.send(range(30))
    with workplace.worker():
        handled(workplace, 30)
    assert longest(seen) == 7


def test_messages_that_were_named_are_letters_and_the_others_are_given_again(workplace: Workplace) -> None:
    seen = Lists(Fails(3, 7))
    consume(workplace, seen)
    workplace.send(range(12))
    with workplace.worker():
        handled(workplace, 12)
    assert [(letter.offset, letter.attempts, letter.error_type) for letter in workplace.letters()] == [
        (3, 1, "ValueError"),
        (7, 1, "ValueError"),
    ]
    assert effects() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert sum(3 in call for call in seen.calls) == 1, "It is not given again."


def test_without_a_transaction_what_was_not_named_is_handled(workplace: Workplace) -> None:
    seen = Lists(Fails(3, 7))
    consume(workplace, seen, transaction="none")
    workplace.send(range(12))
    with workplace.worker() as worker:
        handled(workplace, 12)
    assert worker.tally.handled == 10
    assert [letter.offset for letter in workplace.letters()] == [3, 7]
    assert sorted(offset for call in seen.calls for offset in call) == list(range(12)), "None is given twice."


@pytest.mark.parametrize("kind", ["message", "none"])
def test_a_list_that_fails_as_a_whole_is_halved_until_the_guilty_one_is_alone(workplace: Workplace, kind: str) -> None:
    def fail(messages: Messages) -> None:
        if any(message.value in (5, 20) for message in messages):
            raise ValueError("one of them")

    seen = Lists(fail)
    consume(workplace, seen, transaction=kind)
    workplace.send(range(32))
    with workplace.worker():
        handled(workplace, 32)
    assert [(letter.offset, letter.attempts) for letter in workplace.letters()] == [(5, 1), (20, 1)]
    assert [5] in seen.calls
    assert [20] in seen.calls
    if kind == "message":
        assert effects() == [number for number in range(32) if number not in (5, 20)]
    assert len(seen.calls) < 30


def test_an_outage_of_the_list_is_waited_for_and_uses_up_no_attempt(workplace: Workplace) -> None:
    down = threading.Event()
    down.set()

    def need(_messages: Messages) -> None:
        if down.is_set():
            raise OperationalError("connection to server was lost")

    seen = Lists(need)
    consume(workplace, seen)
    workplace.send(range(20))
    with workplace.worker() as worker:
        before = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= before + 3)
        assert effects() == []
        down.clear()
        handled(workplace, 20)
    assert effects() == list(range(20))
    assert {attempt for call in seen.attempts for attempt in call} == {1}
    assert not workplace.letters()


def test_a_named_message_is_tried_again_alone(workplace: Workplace) -> None:
    def handle(messages: Messages) -> None:
        bad = {one: Retry(after=0.01) for one in messages if one.value == 4 and one.attempt < 3}
        if bad:
            raise BatchFailed(bad)

    seen = Lists(handle)
    consume(workplace, seen, retry={"max_retries": 3})
    workplace.send(range(8))
    with workplace.worker():
        handled(workplace, 8)
    again = [
        (call, attempts)
        for call, attempts in zip(seen.calls, seen.attempts, strict=True)
        if attempts != [1] * len(call)
    ]
    assert again == [([4], [2]), ([4], [3])]
    assert effects() == list(range(8))


def test_a_named_message_may_be_skipped_or_rejected(workplace: Workplace) -> None:
    def handle(messages: Messages) -> None:
        rulings: dict[int, Exception] = {2: Skip("old"), 5: Reject("wrong")}
        bad = {message: rulings[message.value] for message in messages if message.value in rulings}
        if bad:
            raise BatchFailed(bad)

    consume(workplace, Lists(handle), retry={"max_retries": 3})
    workplace.send(range(8))
    with workplace.worker() as worker:
        handled(workplace, 8)
    assert worker.tally.skipped == 1
    assert [letter.offset for letter in workplace.letters()] == [5]
    assert effects() == [0, 1, 3, 4, 6, 7]


def test_a_ruling_about_nobody_is_about_the_message_that_it_is_raised_for_alone(workplace: Workplace) -> None:
    def handle(messages: Messages) -> None:
        if any(message.value == 6 for message in messages):
            raise Skip("six")

    consume(workplace, Lists(handle))
    workplace.send(range(10))
    with workplace.worker() as worker:
        handled(workplace, 10)
    assert worker.tally.skipped == 1
    assert effects() == [0, 1, 2, 3, 4, 5, 7, 8, 9]


def test_poison_is_found_without_halving(workplace: Workplace) -> None:
    def read(messages: Messages) -> None:
        for message in messages:
            assert message.value is not None

    seen = Lists(read)
    consume(workplace, seen)
    workplace.send([0, 1, 2, b"!no json", 4, 5, 6, 7])
    with workplace.worker():
        handled(workplace, 8)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.category) == (3, "serialization")
    assert effects() == [0, 1, 2, 4, 5, 6, 7]
    assert len(seen.calls) <= 4


def test_naming_a_message_that_is_not_in_the_list_is_an_error_of_the_handler(workplace: Workplace) -> None:
    def handle(messages: Messages) -> None:
        if any(message.value == 1 for message in messages):
            raise BatchFailed({Message(Raw(offset=99), TopicDecoder("text", "json")): ValueError("who?")})

    consume(workplace, Lists(handle))
    workplace.send(range(4))
    with workplace.worker():
        handled(workplace, 4)
    (letter,) = workplace.letters()
    assert letter.offset == 1
    assert letter.error_message.endswith("which is not in the list it was given.")


def test_the_messages_of_a_list_cannot_be_exchanged(workplace: Workplace) -> None:
    tried: list[int] = []

    def change(messages: Messages) -> None:
        mine: Any = messages
        with pytest.raises(AttributeError):
            mine.clear()
        with pytest.raises(TypeError):
            mine[0] = mine[-1]
        tried.append(len(messages))

    consume(workplace, change)
    workplace.send(range(1))
    with workplace.worker():
        handled(workplace, 1)
    assert tried == [1]
    assert not workplace.letters()


def test_a_list_gives_all_its_values_and_names_the_one_that_cannot_be_read(workplace: Workplace) -> None:
    given: list[list[Any]] = []

    class Keeps(Lists):
        def __call__(self, messages: Messages) -> None:
            self.calls.append([])
            given.append(messages.values())

    seen = Keeps()
    consume(workplace, seen)
    workplace.send([0, 1, None, 3, b"!no json", 5, 6, 7])
    with workplace.worker():
        handled(workplace, 8)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.category) == (4, "serialization")
    assert [value for call in given for value in call] == [0, 1, None, 3, 5, 6, 7]
    assert len(seen.calls) <= 5, "It is not looked for by halves."


def test_what_stops_the_worker_settles_nothing_of_the_list(workplace: Workplace) -> None:
    def stop(_messages: Messages) -> None:
        raise SystemExit

    consume(workplace, Lists(stop))
    workplace.send(range(4))
    worker = workplace.start()
    workplace.ended(worker)
    assert isinstance(worker.error, SystemExit)
    assert effects() == []
    assert workplace.committed() == {0: 0}


def test_a_list_is_settled_when_all_its_records_are_acknowledged(workplace: Workplace, far: Far) -> None:
    def produce(messages: Messages) -> None:
        # The first message may come by itself.
        if messages[0].value:
            services.produce("landed", None, len(messages))

    seen = Lists(produce)
    consume(workplace, seen, kafka={**far.kafka, "producers": {"default": {"cluster": "far"}}})
    far.cluster.broker_down(1)
    workplace.send([0])
    with workplace.worker():
        handled(workplace, 1)
        workplace.send(range(1, 5))
        wait_until(lambda: len(effects()) > 1)
        assert workplace.committed() == {0: 1}
        far.cluster.broker_up(1)
        handled(workplace, 5)
    assert effects() == list(range(5))


def test_a_record_that_is_refused_makes_a_letter_that_says_whose_it_may_be(workplace: Workplace, far: Far) -> None:
    def produce(messages: Messages) -> None:
        if len(messages) > 1:
            services.produce("landed", None, 1)

    consume(workplace, Lists(produce), kafka={**far.kafka, "producers": {"default": {"cluster": "far"}}})
    far.cluster.push_errors(Request.PRODUCE, "TOPIC_AUTHORIZATION_FAILED")
    workplace.send(range(20))
    with workplace.worker():
        handled(workplace, 20)
    (letter,) = workplace.letters()
    assert letter.error_type == "django_kafka.exceptions.DeliveryForbidden"
    assert "The record was produced by a call for " in letter.traceback
    assert effects() == list(range(20))


def test_lists_are_runs_of_messages_for_the_same_handler(workplace: Workplace) -> None:
    plain, lists = Seen(), Lists()
    kafka_handler(topics=workplace.topic, consumer=NAME, header={"kind": "many"}, batch=True)(lists)
    workplace.consume(plain, enable_auto_commit=False)
    workplace.send(range(10), headers=[("kind", b"many")])
    workplace.send(range(10, 15))
    workplace.send(range(15, 25), headers=[("kind", b"many")])
    try:
        with workplace.worker():
            handled(workplace, 25)
    finally:
        handlers.forget(lists)
    assert plain.values == [10, 11, 12, 13, 14]
    assert [offset for call in lists.calls for offset in call] == [*range(10), *range(15, 25)]
    assert not any({9, 15} <= set(call) for call in lists.calls)


def test_a_held_key_is_not_overtaken_by_others_of_its_list(workplace: Workplace) -> None:
    consume(workplace, Lists(Fails(2, 6)), on_dead_letter="hold_key")
    for number in range(9):
        workplace.send([number], key=b"%d" % (number % 2))
    with workplace.worker():
        handled(workplace, 9)
    assert workplace.letters()[0].offset == 2
    assert effects() == [0, 1, 3, 5, 7], "What has the key of the letter is parked, also what was named with it."


def test_a_time_limit_is_for_the_call(workplace: Workplace) -> None:
    left: list[float | None] = []

    def handle(messages: Messages) -> None:
        left.extend(message.time_left for message in messages)
        if len(messages) > 1 or messages[0].value == 3:
            time.sleep(0.45)
            leave_effect(messages[0])

    consume(workplace, Lists(handle), own={"timeout": "400ms"})
    workplace.send(range(4))
    with workplace.worker():
        handled(workplace, 4)
    assert None not in left
    (letter,) = workplace.letters()
    assert (letter.offset, letter.category) == (3, "timeout")
    assert letter.error_type == f"django_kafka.exceptions.{HandlerTimeout.__name__}"


def test_signals_tell_of_each_message_of_a_list(workplace: Workplace) -> None:
    told: list[tuple[str, int]] = []

    def note(kind: str) -> Callable[..., None]:
        return lambda sender, message, **_event: told.append((kind, message.offset))

    taken, gone = note("handled"), note("failed")
    signals.message_handled.connect(taken)
    signals.handler_failed.connect(gone)
    try:
        consume(workplace, Lists(Fails(2)))
        workplace.send(range(5))
        with workplace.worker():
            handled(workplace, 5)
    finally:
        signals.message_handled.disconnect(taken)
        signals.handler_failed.disconnect(gone)
    assert [offset for kind, offset in told if kind == "handled"] == [0, 1, 3, 4]
    assert [offset for kind, offset in told if kind == "failed"] == [2]


def test_retry_topics_give_it_lists_of_one(workplace: Workplace) -> None:
    def handle(messages: Messages) -> None:
        bad: dict[Message, Exception] = {one: ValueError() for one in messages if one.value == 1 and one.attempt == 1}
        if bad:
            raise BatchFailed(bad)

    seen = Lists(handle)
    consume(workplace, seen, retry={"mode": "topics", "max_retries": 1, "backoff": "10ms"})
    workplace.cluster.create_topic(f"{workplace.group}.{workplace.topic}.retry.1", 1)
    workplace.send(range(4))
    with workplace.worker():
        wait_until(lambda: len(effects()) == 4)
    assert ([1], [2]) in list(zip(seen.calls, seen.attempts, strict=True))
    assert sorted(effects()) == [0, 1, 2, 3]


def test_a_replay_gives_it_a_list_of_one(workplace: Workplace) -> None:
    mended: list[int] = []

    def handle(messages: Messages) -> None:
        of = zip(messages, messages.values(), strict=True)
        bad: dict[Message, Exception] = {one: ValueError("one") for one, value in of if value == 1 and not mended}
        if bad:
            raise BatchFailed(bad)

    seen = Lists(handle)
    consume(workplace, seen)
    workplace.send(range(3))
    with workplace.worker():
        handled(workplace, 3)
    (letter,) = workplace.letters()
    executor = Executor([NAME])
    try:
        request([letter.pk])
        assert executor.run_next() is not None
        letter.refresh_from_db()
        assert (letter.state, letter.attempts, letter.error_type) == (DeadLetter.State.OPEN, 2, "ValueError")
        mended.append(1)
        request([letter.pk])
        executor.run_next()
    finally:
        executor.close()
    letter.refresh_from_db()
    assert letter.state == DeadLetter.State.RESOLVED
    assert seen.calls[-1] == [1]


def take_list(messages: Messages) -> None:
    """What settings name by its path."""
    taken.append([message.value for message in messages])


def with_event(event: Any, message: Message) -> None:
    """Not what takes a list."""


taken: list[list[Any]] = []


@pytest.fixture
def registered() -> Iterator[None]:
    kafka_handler(topics="elsewhere", consumer=NAME, batch=True, batch_size=3)(take_list)
    yield
    handlers.forget(take_list)
    taken.clear()


@pytest.mark.usefixtures("registered", "transactional_db")
class TestNamedInSettings:
    def test_it_takes_lists_as_it_was_registered(self, settings: Settings) -> None:
        path = f"{__name__}.take_list"
        topics = {"flights": {"handler": path}, "elsewhere": {}}
        settings.KAFKA = {"consumers": {NAME: {"group_id": "g", "topics": topics}}}
        handler = for_topic(NAME, "flights").default
        assert handler is not None
        assert (handler.call_all, handler.most) == (take_list, 3)

    def test_tests_may_run_it_on_records(self, settings: Settings) -> None:
        topics = {"flights": {"handler": f"{__name__}.take_list"}}
        settings.KAFKA = {"producers": {"default": {}}, "consumers": {NAME: {"group_id": "g", "topics": topics}}}
        outcome = consume_inline([record("flights", None, 1), record("flights", None, 2)], consumer=NAME)
        assert (outcome.handled, taken) == (2, [[1], [2]])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": True, "batch_size": 0}, "batch_size is 0; allowed: None, or a number of messages from 1."),
        ({"batch": True, "batch_size": "7"}, "batch_size is '7'; allowed"),
        ({"batch_size": 7}, "batch_size is 7, but only a handler with batch=True takes a list."),
    ],
)
def test_a_size_that_makes_no_sense_is_an_error(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        kafka_handler(topics="flights", **options)


def with_three(first: Any, second: Any, third: Any) -> None: ...


def test_a_handler_of_lists_takes_lists(settings: Settings) -> None:
    settings.KAFKA = {"consumers": {NAME: {"group_id": "g", "topics": {"flights": {}}}}}
    kafka_handler(topics="flights", consumer=NAME, batch=True)(with_three)
    try:
        with pytest.raises(ConfigurationError, match=r"must take \(messages\), \(events\) or \(events, messages\)\."):
            for_topic(NAME, "flights")
    finally:
        handlers.forget(with_three)


async def lists_later(messages: Messages) -> None: ...


def test_a_coroutine_takes_no_list(settings: Settings) -> None:
    settings.KAFKA = {"consumers": {NAME: {"group_id": "g", "topics": {"flights": {}}, "transaction": "none"}}}
    kafka_handler(topics="flights", consumer=NAME, batch=True)(lists_later)
    try:
        with pytest.raises(ConfigurationError, match=r"is `async def`; it cannot take lists \(batch=True\)"):
            for_topic(NAME, "flights")
    finally:
        handlers.forget(lists_later)


def test_what_fails_in_a_list_is_named_by_messages_and_their_errors() -> None:
    message = Message(Raw(), TopicDecoder("text", "json"))
    wrong: Any
    for wrong in ({}, [message], "all"):
        with pytest.raises(TypeError, match="BatchFailed takes a mapping of messages to their errors"):
            BatchFailed(wrong)
    with pytest.raises(TypeError, match="it must be an exception"):
        BatchFailed({message: "late"})  # type: ignore[dict-item]


@pytest.mark.parametrize("how", ["raised", "unreadable", "all named"])
def test_records_of_a_call_that_failed_without_a_transaction_hold_up_nothing(
    workplace: Workplace, far: Far, how: str
) -> None:
    """They are no part of the calls that come after it, which may succeed."""
    calls: list[int] = []

    def handle(messages: Messages) -> None:
        calls.append(len(messages))
        if len(messages) == 1 or len(calls) > 2:
            return
        # Refused, which would make a letter of whatever waits for it.
        services.produce_with("now", "landed", None, "refused")
        if how == "raised":
            raise ValueError
        if how == "all named":
            raise BatchFailed({message: Skip("not ours") for message in messages})
        for message in messages:
            assert message.value is not None

    producers = {"now": {"cluster": "far", "send": "immediate"}}
    own: dict[str, Any] = {"transaction": "none", "kafka": {**far.kafka, "producers": producers}}
    far.cluster.push_errors(Request.PRODUCE, *["TOPIC_AUTHORIZATION_FAILED"] * 4)
    consume(workplace, handle, **own)
    workplace.send([b"0", b"1", b"2", b"!no json" if how == "unreadable" else b"3", *[b"4"] * 4])
    with workplace.worker():
        handled(workplace, 8)
    assert max(calls) > 1
    assert [(one.offset, one.category) for one in workplace.letters()] == (
        [(3, "serialization")] if how == "unreadable" else []
    )
