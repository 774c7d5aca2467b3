"""What one shared transaction does: how often it has savepoints, what it runs again, how long it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import transaction

from django_kafka import conf, handlers, services, tallies
from django_kafka.consuming import together
from django_kafka.consuming.handling import HandlerThread
from django_kafka.consuming.lane import Lane
from django_kafka.consuming.lanes import Lanes
from django_kafka.consuming.together import Care, Joint, Outcome
from django_kafka.exceptions import Skip
from django_kafka.gathering import here
from django_kafka.handlers import kafka_handler
from django_kafka.messages import Message
from tests.consuming import NAME, Workplace
from tests.sending import read, values
from tests.test_handling import Far, effects, far, leave_effect
from tests.test_messages import Raw
from tests.test_together_in_trouble import Ledger, ledger, named

__all__ = ["far", "ledger"]

SAVEPOINTS = pytest.mark.parametrize("step", [None, 3])
"""How many messages apart they are."""


class Bench:
    """A handler thread in the calling one, and a slice of messages for it."""

    def __init__(self, settings: Any, handler: Callable[[Message], Any], messages: list[Raw], **options: Any) -> None:
        consumer = {"group_id": "g", "transaction": "batch", "topics": {"flights": {}}, "retry": {"max_retries": 0}}
        settings.KAFKA = {**options.pop("kafka", {}), "consumers": {NAME: {**consumer, **options}}}
        handlers.subscribe("flights", handler, consumer=NAME)
        self.lanes = Lanes()
        self.failures: list[BaseException] = []
        self.thread = HandlerThread(
            "inline", conf.consumer(NAME), "g", self.lanes, tallies.of_consumer(NAME), self.failures.append
        )
        self.partition = self.lanes.open(("flights", 3))
        self.lanes.take(self.partition, messages, 0)
        taken = self.lanes.next(1)
        assert taken is not None
        self.lane: Lane = taken
        self.piece = self.lane.slices[0]

    def joint(self, step: int | None) -> Outcome:
        """Run all of them in one transaction, with savepoints so far apart."""
        care = Care()
        if step is not None:
            for _ in range(12):
                care.succeeded(step)
                care.failed()
        assert care.step() == step
        self.thread._begin()
        try:
            found = handlers.for_topic(NAME, "flights")
            self.running = Joint(self.thread.execution, self.lane, self.piece, found, care)
            outcome = self.running.run(len(self.piece.messages))
        finally:
            here.end()
        self.care = care
        return outcome

    def time_is_over(self) -> None:
        """Let no message of the transaction begin any longer, without waiting until it is so."""
        self.running._deadline = 0.0


@contextmanager
def bench(workplace: Workplace, handler: Callable[[Message], Any], messages: list[Raw], **more: Any) -> Iterator[Bench]:
    try:
        yield Bench(workplace.settings, named(handler), messages, **more)
    finally:
        handlers.forget(handler)


def raws(count: int) -> list[Raw]:
    return [Raw(offset=number, value=b"%d" % number) for number in range(count)]


@SAVEPOINTS
def test_while_failures_are_recent_only_what_came_after_the_last_savepoint_runs_again(
    workplace: Workplace, step: int | None
) -> None:
    runs: list[int] = []

    def handle(message: Message) -> None:
        runs.append(message.offset)
        leave_effect(message)
        if message.offset == 7:
            raise ValueError

    with bench(workplace, handle, raws(9)) as one:
        outcome = one.joint(step)
    assert (outcome.done, type(outcome.failed)) == (7, ValueError)
    assert runs == [*range(8), *(range(7) if step is None else [6])]
    assert effects() == list(range(7))
    assert one.care.step() is not None, "The next ones have savepoints."


@SAVEPOINTS
def test_what_runs_again_after_a_failure_is_not_ended_for_its_time(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, step: int | None
) -> None:
    """It would be begun again and again, and the message that failed never be given up."""
    monkeypatch.setattr(together, "SECONDS", 60)
    runs: list[int] = []

    def handle(message: Message) -> None:
        runs.append(message.offset)
        leave_effect(message)
        # In the first run as well as when those before run again.
        if message.offset == 2 or runs.count(0) == 2:
            one.time_is_over()
        if message.offset == 2:
            raise ValueError

    with bench(workplace, handle, raws(5)) as one:
        outcome = one.joint(step)
    assert (outcome.done, type(outcome.failed)) == (2, ValueError)
    assert runs == [0, 1, 2, 0, 1]
    assert effects() == [0, 1]


@SAVEPOINTS
def test_what_was_not_begun_in_time_is_left_for_the_next_transaction(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, step: int | None
) -> None:
    monkeypatch.setattr(together, "SECONDS", 60)
    runs: list[int] = []

    def handle(message: Message) -> None:
        runs.append(message.offset)
        leave_effect(message)
        if message.offset == 4:
            one.time_is_over()

    with bench(workplace, handle, raws(9)) as one:
        outcome = one.joint(step)
    assert (outcome.done, outcome.failed) == (5, None)
    assert runs == effects() == list(range(5))


def test_no_more_than_500_messages_share_a_transaction(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SECONDS", 60)
    lengths: list[int] = []
    run: list[int] = []

    def committed() -> None:
        lengths.append(len(run))
        run.clear()

    def handle(message: Message) -> None:
        if not run:
            transaction.on_commit(committed)
        run.append(message.offset)

    with bench(workplace, handle, raws(1200), max_poll_records=2000) as one:
        one.thread.run_inline(one.lane)
    assert not one.failures
    assert lengths == [500, 500, 200]


def test_what_comes_while_letters_wait_runs_by_itself(workplace: Workplace) -> None:
    runs: list[int] = []
    waiting: dict[int, int] = {}
    last_at_commit: dict[int, int] = {}

    def handle(message: Message) -> None:
        runs.append(message.offset)
        waiting[message.offset] = len(one.piece.failed)
        if message.offset < 5:
            raise ValueError
        transaction.on_commit(lambda: last_at_commit.update({message.offset: runs[-1]}))

    with bench(workplace, handle, raws(12)) as one:
        one.thread.run_inline(one.lane)
    assert not one.failures
    assert [waiting[offset] for offset in range(3, 7)] == [1, 2, 3, 0], "Letters wait, until one succeeds."
    assert last_at_commit[5] == 5, "They do not wait for others than that one."
    assert last_at_commit[6] == 11


def test_a_limit_is_lifted_again_after_a_rollback_to_a_savepoint(workplace: Workplace, ledger: Ledger) -> None:
    limits: list[tuple[int, str]] = []

    def plain(message: Message) -> None:
        limits.append((message.offset, ledger.execute("SHOW statement_timeout")[0]))
        if message.offset == 5:
            raise ValueError

    def hasty(message: Message) -> None:
        limits.append((message.offset, ledger.execute("SHOW statement_timeout")[0]))

    named(hasty)
    kafka_handler(topics="flights", consumer=NAME, header={"kind": "hasty"}, timeout="30s")(hasty)
    # Three in front of the second savepoint have a limit, and it is lifted behind that.
    messages = [
        Raw(offset=number, value=b"1", headers=[("kind", b"hasty" if number < 3 else b"plain")]) for number in range(7)
    ]
    try:
        with bench(workplace, plain, messages, database="ledger") as one:
            outcome = one.joint(3)
    finally:
        handlers.forget(hasty)
    assert outcome.done == 5
    assert [offset for offset, _limit in limits] == [0, 1, 2, 3, 4, 5, 3, 4]
    assert [limit != "0" for _offset, limit in limits] == [True] * 3 + [False] * 5


def test_what_a_skipped_message_promised_is_gone(workplace: Workplace, far: Far) -> None:
    def skip(message: Message) -> None:
        services.produce("landed", None, message.offset)
        if message.offset == 2:
            services.produce_with("now", "landed", None, 200)
            raise Skip("not ours")

    producers = {"default": {"cluster": "far"}, "now": {"cluster": "far", "send": "immediate"}}
    with bench(workplace, skip, raws(4), kafka={**far.kafka, "producers": producers}) as one:
        one.thread.run_inline(one.lane)
        assert not one.failures
        assert one.piece.done == 4
        sent = values(read(far.cluster, "landed", 4))
    assert sorted(map(int, sent)) == [0, 1, 3, 200]


def test_a_skipped_message_waits_for_what_it_sent_at_once(workplace: Workplace, far: Far) -> None:
    def skip(message: Message) -> None:
        if message.offset == 2:
            services.produce_with("now", "landed", None, 200)
            raise Skip("not ours")

    producers = {"now": {"cluster": "far", "send": "immediate", "delivery_timeout": "1h"}}
    far.cluster.broker_down(1)
    with bench(workplace, skip, raws(4), kafka={**far.kafka, "producers": producers}) as one:
        one.thread.run_inline(one.lane)
        assert not one.failures
        assert (one.piece.done, one.piece.settled) == (4, 2)
        assert [index for index, _sent in one.piece.sent] == [2]
        far.cluster.broker_up(1)
        one.piece.sent[0][1].delivery.result(20)
