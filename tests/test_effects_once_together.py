"""`guarantee: "effect_once"` with many messages in one transaction, or given to a handler as a list."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, transaction

from django_kafka import services, signals
from django_kafka.clients.embedded import Request
from django_kafka.deliveries import Delivery
from django_kafka.exceptions import BatchFailed, Skip
from django_kafka.handlers import kafka_handler
from django_kafka.messages import Message
from django_kafka.models import Claim, DeadLetterAttempt, SettledMessage
from tests.app.models import Effect
from tests.consuming import NAME, Seen, Workplace, keys_apart
from tests.refusing import refusing
from tests.servers.processes import wait_until
from tests.test_effect_once import claim, effects, leave_effect, settled
from tests.test_handling import Far, far

__all__ = ["far"]

KINDS = pytest.mark.parametrize("kind", ["batch", "lists"])


def pairs(*some: str) -> pytest.MarkDecorator:
    """Have a test run with these kinds and orderings, each written as "batch key": all of them would take long."""
    return pytest.mark.parametrize(("kind", "ordering"), [tuple(one.split()) for one in some])


class OfLists:
    """A handler of lists that gives each message to another one, and names none that fails."""

    __module__ = "tests.test_effects_once_together"

    def __init__(self, each: Callable[[Message], Any]) -> None:
        self.__qualname__ = f"OfLists-{id(self)}"
        self.each = each

    def __call__(self, messages: list[Message]) -> None:
        for message in messages:
            self.each(message)


def consume(workplace: Workplace, kind: str, each: Callable[[Message], Any], **options: Any) -> Seen:
    """Have messages handled once, one by one or several at a time."""
    seen = Seen(each)
    handler: Callable[..., Any] = seen
    if kind == "lists":
        handler = kafka_handler(topics=workplace.topic, consumer=NAME, batch=True)(OfLists(seen))
    shared = "batch" if kind == "batch" else "message"
    options = {"circuit_breaker": {"enabled": False}, "transaction": shared, **options}
    workplace.consume(handler, guarantee="effect_once", **options)
    return seen


@pairs("batch partition", "batch key", "lists unordered")
def test_offsets_are_where_the_effects_are(workplace: Workplace, kind: str, ordering: str) -> None:
    committed: list[int] = []

    def handle(message: Message) -> None:
        leave_effect(message)
        transaction.on_commit(lambda: committed.append(Effect.objects.count()))

    consume(workplace, kind, handle, ordering=ordering)
    workplace.send(range(80), key_of=lambda value: b"%d" % (value % 3))
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 80})
        wait_until(lambda: (claim().offset, claim().epoch) == (80, 1))
    assert effects() == list(range(80))
    assert len(set(committed)) < 40, "many were committed together"
    assert not SettledMessage.objects.exists()


@pytest.mark.parametrize("trouble", ["a handler that fails", "a COMMIT that is refused"])
@pairs("batch partition", "lists key")
def test_no_commit_has_effects_without_their_offsets_or_offsets_without_their_effects(
    workplace: Workplace, kind: str, ordering: str, trouble: str
) -> None:
    known: list[tuple[set[int], set[int]]] = []

    def handle(message: Message) -> None:
        leave_effect(message)
        if message.value in (5, 20, 21):
            if trouble == "a handler that fails":
                raise ValueError
            # Its foreign key is looked at by the COMMIT.
            DeadLetterAttempt.objects.create(letter_id=2**40, number=1, at="2026-01-01T00:00Z", origin="worker")
        transaction.on_commit(note)

    def note(*_about: Any, **_event: Any) -> None:
        known.append((settled(), {*effects(), *(letter.offset for letter in workplace.letters())}))

    signals.message_dead_lettered.connect(note)
    try:
        consume(workplace, kind, handle, ordering=ordering)
        workplace.send(range(40), key=b"k")
        with workplace.worker():
            wait_until(lambda: settled() == set(range(40)))
    finally:
        signals.message_dead_lettered.disconnect(note)
    assert [letter.offset for letter in workplace.letters()] == [5, 20, 21]
    assert effects() == [number for number in range(40) if number not in (5, 20, 21)]
    assert all(offsets == there for offsets, there in known), known
    steps = sorted({len(offsets) for offsets, _there in known})
    assert max(after - before for before, after in itertools.pairwise(steps)) > 3, "many came together"


@pairs("message partition", "message key", "batch partition", "lists key")
def test_who_was_overtaken_can_write_nothing(
    workplace: Workplace, caplog: pytest.LogCaptureFixture, kind: str, ordering: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    runs: list[int] = []
    failed: list[Any] = []

    def handle(message: Message) -> None:
        runs.append(message.offset)
        if message.offset == 1 and runs.count(1) == 1:
            begun.set()
            assert go_on.wait(20)
        leave_effect(message)

    def note(sender: str, **event: Any) -> None:
        failed.append(event)

    signals.handler_failed.connect(note)
    consume(workplace, kind, handle, ordering=ordering, heartbeat_interval="100ms")
    workplace.send(range(6), key=b"k")
    try:
        with workplace.worker():
            assert begun.wait(20)
            before = claim().epoch
            # As another worker does that is given the partition while this one believes to have it.
            Claim.objects.update(epoch=before + 1)
            go_on.set()
            wait_until(lambda: settled() == set(range(6)))
            wait_until(lambda: len(effects()) == 6)
    finally:
        signals.handler_failed.disconnect(note)
    assert effects() == list(range(6)), "the first run of them left nothing"
    assert runs.count(1) == 2
    others = runs[runs.index(1) + 1 : len(runs) - runs[::-1].index(1) - 1]
    assert bool(set(others) - {0}) == (kind != "message"), "others ran in the transaction that was rolled back, or none"
    assert claim().epoch == before + 2, "it was claimed anew"
    assert "is rolled back: another worker has claimed its partition" in caplog.text
    assert not failed, "that was no failure of the handler"
    assert not workplace.letters()


@pairs("batch key", "lists partition")
def test_whoever_takes_over_meanwhile_finds_each_effect_once(workplace: Workplace, kind: str, ordering: str) -> None:
    """The claim is taken away again and again, while some messages fail and some are skipped."""

    def handle(message: Message) -> None:
        leave_effect(message)
        if message.value % 17 == 3:
            raise ValueError
        if message.value % 19 == 4:
            raise Skip("not ours")

    consume(workplace, kind, handle, ordering=ordering, concurrency=2, heartbeat_interval="100ms")
    with workplace.worker() as worker:
        for turn in range(2):
            for key in (b"a", b"b"):
                workplace.send(range(50), key=key)
            wait_until(lambda turn=turn: len(effects()) > 85 * turn + 20)
            Claim.objects.update(epoch=claim().epoch + 1)
        wait_until(lambda: settled() == set(range(200)), 60)
        assert worker.error is None
    bad = {number for number in range(200) if number % 50 % 17 == 3}
    skipped = {number for number in range(200) if number % 50 % 19 == 4}
    assert effects() == sorted(set(range(200)) - bad - skipped)
    assert {letter.offset for letter in workplace.letters()} == bad
    assert claim().epoch >= 3


@KINDS
def test_a_letter_and_its_offset_are_there_together(workplace: Workplace, kind: str) -> None:
    known: list[tuple[int, bool]] = []

    def handle(message: Message) -> None:
        leave_effect(message)
        if message.value % 4 == 2:
            raise ValueError("bad")

    def note(sender: str, message: Message, **_event: Any) -> None:
        known.append((message.offset, claim().offset == message.offset + 1))

    signals.message_dead_lettered.connect(note)
    try:
        consume(workplace, kind, handle)
        workplace.send(range(12))
        with refusing("lynx_kafka_deadletter"), workplace.worker() as worker:
            before = worker.tally.waits
            wait_until(lambda: worker.tally.waits >= before + 2)
            assert settled() == set(effects()) == {0, 1}, "without its letter a message is not settled"
        with workplace.worker():
            wait_until(lambda: settled() == set(range(12)))
    finally:
        signals.message_dead_lettered.disconnect(note)
    assert known == [(2, True), (6, True), (10, True)]
    assert [letter.attempts for letter in workplace.letters()] == [1, 1, 1]


@KINDS
def test_what_is_skipped_is_settled(workplace: Workplace, kind: str) -> None:
    def handle(message: Message) -> None:
        leave_effect(message)
        if message.value in (3, 9):
            raise Skip("not for us")

    consume(workplace, kind, handle)
    workplace.send(range(10))
    with workplace.worker():
        wait_until(lambda: settled() == set(range(10)))
    assert effects() == [0, 1, 2, 4, 5, 6, 7, 8]


@pairs("batch partition", "lists key")
def test_what_is_parked_is_settled(workplace: Workplace, kind: str, ordering: str) -> None:
    def handle(message: Message) -> None:
        if message.value == 1:
            raise ValueError("bad")
        leave_effect(message)

    consume(workplace, kind, handle, on_dead_letter="hold_key", ordering=ordering)
    workplace.send(range(12), key_of=lambda value: b"a" if value % 2 else b"b")
    with workplace.worker():
        wait_until(lambda: settled() == set(range(12)))
    assert effects() == [0, 2, 4, 6, 8, 10]
    assert [letter.state for letter in workplace.letters()] == ["open", *["parked"] * 5]


def test_messages_that_a_list_named_are_letters_and_the_others_have_their_effects_once(workplace: Workplace) -> None:
    class Names(OfLists):
        def __call__(self, messages: list[Message]) -> None:
            super().__call__(messages)
            bad = {one: ValueError() if one.value % 2 else Skip("old") for one in messages if one.value in (3, 7, 8)}
            if bad:
                raise BatchFailed(bad)

    handler = kafka_handler(topics=workplace.topic, consumer=NAME, batch=True)(Names(leave_effect))
    workplace.consume(handler, guarantee="effect_once", ordering="key")
    workplace.send(range(12), key=b"k")
    with workplace.worker():
        wait_until(lambda: settled() == set(range(12)))
    assert effects() == [0, 1, 2, 4, 5, 6, 9, 10, 11]
    assert [(letter.offset, letter.attempts) for letter in workplace.letters()] == [(3, 1), (7, 1)]


def test_messages_that_overtook_others_are_not_handled_again(workplace: Workplace) -> None:
    stuck, keys = threading.Event(), keys_apart(3, 2)
    stuck.set()

    def handle(message: Message) -> None:
        if message.raw_key == keys[0] and stuck.is_set():
            raise OperationalError("connection to server was lost")
        leave_effect(message)

    consume(workplace, "batch", handle, ordering="key", concurrency=2)
    workplace.send([99], key=b"first")
    workplace.send(range(30), key_of=lambda value: keys[value % 3])
    with workplace.worker():
        wait_until(lambda: len(effects()) == 21)
        wait_until(lambda: len(settled()) == 21)
    stuck.clear()
    with workplace.worker():
        wait_until(lambda: claim().offset == 31)
        wait_until(lambda: workplace.committed() == {0: 31})
    assert effects() == list(range(31))
    assert not SettledMessage.objects.exists()


@KINDS
def test_records_are_acknowledged_before_the_effects_are_committed(workplace: Workplace, kind: str) -> None:
    states: list[str] = []
    sent: list[Delivery] = []

    def handle(message: Message) -> None:
        leave_effect(message)
        delivery = services.produce(f"{workplace.topic}.out", "k", message.value)
        sent.append(delivery)
        transaction.on_commit(lambda: states.append(delivery.state))

    consume(workplace, kind, handle, kafka={"producers": {"default": {}}})
    workplace.send(range(20))
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 20})
    assert states == ["acknowledged"] * 20
    assert [delivery.offset for delivery in sent] == list(range(20)), "each was sent once"


def test_a_record_that_is_refused_takes_the_effects_of_its_own_message_back(workplace: Workplace, far: Far) -> None:
    runs: list[int] = []

    def handle(message: Message) -> None:
        runs.append(message.value)
        leave_effect(message)
        if message.value in (4, 9):
            services.produce("landed", "k", message.value)

    consume(workplace, "batch", handle, kafka={**far.kafka, "producers": {"default": {"cluster": "far"}}})
    far.cluster.push_errors(Request.PRODUCE, "TOPIC_AUTHORIZATION_FAILED")
    workplace.send(range(16))
    with workplace.worker():
        wait_until(lambda: settled() == set(range(16)))
    bad = [letter.offset for letter in workplace.letters()]
    # The client may go on refusing for a moment, and with it the other record.
    assert bad in ([4], [4, 9])
    assert effects() == [number for number in range(16) if number not in bad]
    assert {letter.attempts for letter in workplace.letters()} == {1}
    assert runs.count(4) == 1, "it is known whose record it is"


def test_the_offset_of_a_transaction_that_was_rolled_back_is_not_kept(workplace: Workplace) -> None:
    down = threading.Event()
    down.set()

    def handle(message: Message) -> None:
        leave_effect(message)
        if message.value == 7 and down.is_set():
            raise OperationalError("connection to server was lost")

    consume(workplace, "batch", handle)
    workplace.send(range(10))
    with workplace.worker() as worker:
        before = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= before + 3)
    assert settled() == set(effects())
    assert len(effects()) in range(1, 8)
    down.clear()
    with workplace.worker():
        wait_until(lambda: settled() == set(range(10)))
    assert effects() == list(range(10))
    assert not workplace.letters()
