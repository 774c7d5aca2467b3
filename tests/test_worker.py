from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from django_kafka import signals
from django_kafka.consuming.crew import Crew
from django_kafka.consuming.worker import Worker
from django_kafka.exceptions import ConfigurationError, NotAvailable, UnknownName
from django_kafka.messages import Message
from tests.consuming import NAME, Seen, Workplace
from tests.servers.processes import wait_until


def test_a_worker_handles_what_is_there_and_commits_it(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2)
    workplace.send([1, 2, 3], partition=0)
    workplace.send([4, 5], partition=1)
    with workplace.worker():
        seen.wait(5)
    assert seen.of(0) == [0, 1, 2]
    assert seen.of(1) == [0, 1]
    assert workplace.committed() == {0: 3, 1: 2}
    assert not workplace.letters()


def test_a_message_whose_handler_fails_becomes_a_letter_and_the_next_one_is_handled(workplace: Workplace) -> None:
    def fail_on_two(message: Message) -> None:
        if message.value == 2:
            raise ValueError("two")

    seen = Seen(fail_on_two)
    workplace.consume(seen)
    workplace.send([1, 2, 3])
    with workplace.worker():
        seen.wait(2)
    assert seen.values == [1, 3]
    (letter,) = workplace.letters()
    assert (letter.offset, letter.error_type, letter.error_message) == (1, "ValueError", "two")
    assert workplace.committed() == {0: 3}


def test_partitions_are_handled_in_parallel_and_each_in_its_order(workplace: Workplace) -> None:
    together = threading.Barrier(4, timeout=20)
    met = threading.Event()

    def meet(message: Message) -> None:
        # Four handlers must be at work at once for any of them to go on.
        if message.offset == 0 and not met.is_set():
            together.wait()
            met.set()

    seen = Seen(meet)
    workplace.consume(seen, partitions=8, concurrency=4, max_poll_records=7)
    for partition in range(8):
        workplace.send(range(40), partition=partition)
    with workplace.worker():
        seen.wait(320)
    for partition in range(8):
        assert seen.of(partition) == list(range(40))
    assert len(seen.threads) == 4
    assert workplace.committed() == dict.fromkeys(range(8), 40)


def test_a_crew_that_is_told_to_stop_tells_its_workers_at_once_unless_one_has_failed(workplace: Workplace) -> None:
    # The main thread is inside of the same calls once one has failed, and a signal handler runs in the main thread.
    workplace.consume(Seen())
    crew, failed = Crew([NAME]), Crew([NAME])
    crew.stop()
    assert crew.workers[0]._poller.stopping.is_set()
    failed.workers[0].error = SystemExit(1)
    failed.stop()
    assert not failed.workers[0]._poller.stopping.is_set()
    for made in (crew, failed):
        made.workers[0]._poller._client.close()


def test_the_main_thread_runs_no_handler(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen)
    workplace.send([1])
    with workplace.worker():
        seen.wait(1)
    assert threading.get_ident() not in seen.threads


def test_start_and_stop_are_told_with_the_worker(workplace: Workplace) -> None:
    told: list[tuple[str, Any, Any]] = []

    def started(sender: str, worker: Worker, **_event: Any) -> None:
        told.append(("started", sender, worker))

    def stopped(sender: str, worker: Worker, **_event: Any) -> None:
        told.append(("stopped", sender, worker))

    signals.worker_started.connect(started)
    signals.worker_stopped.connect(stopped)
    try:
        workplace.consume(Seen())
        with workplace.worker() as worker:
            pass
    finally:
        signals.worker_started.disconnect(started)
        signals.worker_stopped.disconnect(stopped)
    assert told == [("started", NAME, worker), ("stopped", NAME, worker)]


def test_receivers_that_fail_do_no_harm(workplace: Workplace) -> None:
    def fail(**_event: Any) -> None:
        raise RuntimeError("receiver")

    every = (
        signals.worker_started, signals.worker_stopped, signals.partitions_assigned, signals.partitions_revoked,
        signals.message_handling, signals.message_handled, signals.handler_failed, signals.message_dead_lettered,
    )  # fmt: skip

    def fail_on_one(message: Message) -> None:
        if message.value == 1:
            raise ValueError

    seen = Seen(fail_on_one)
    for signal in every:
        signal.connect(fail)
    try:
        workplace.consume(seen)
        workplace.send([0, 1, 2])
        with workplace.worker():
            seen.wait(2)
    finally:
        for signal in every:
            signal.disconnect(fail)
    assert seen.values == [0, 2]
    assert len(workplace.letters()) == 1
    assert workplace.committed() == {0: 3}


def test_max_messages_ends_it_after_as_many(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2)
    workplace.send(range(10), partition=0)
    workplace.send(range(10), partition=1)
    worker = workplace.start(max_messages=7)
    workplace.ended(worker)
    assert worker.error is None
    assert len(seen.places) == 7
    assert sum(workplace.committed().values()) == 7


def test_until_empty_ends_it_when_all_partitions_are_read(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=3)
    workplace.send(range(600), partition=0)
    workplace.send(range(5), partition=2)
    worker = workplace.start(until_empty=True)
    workplace.ended(worker)
    assert (len(seen.of(0)), len(seen.of(2))) == (600, 5)
    assert workplace.committed() == {0: 600, 1: 0, 2: 5}


def test_a_worker_that_waits_for_an_outage_stops_at_once_and_settles_nothing(workplace: Workplace) -> None:
    from django.db import OperationalError

    met = threading.Event()

    def outage(_message: Message) -> None:
        met.set()
        raise OperationalError("could not connect to server")

    workplace.consume(outage)
    workplace.send([1])
    with workplace.worker() as worker:
        assert met.wait(20)
        wait_until(lambda: worker.tally.waits)
    assert workplace.committed() == {0: 0}
    assert not workplace.letters()


def out_of_memory_among_others() -> BaseException:
    return ExceptionGroup("two tasks", [ValueError(), ExceptionGroup("in one", [MemoryError()])])


@pytest.mark.parametrize("transaction", ["message", "none"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError, out_of_memory_among_others])
def test_what_ends_a_process_stops_the_worker_and_the_message_is_read_again(
    workplace: Workplace, error: Callable[[], BaseException], transaction: str
) -> None:
    ends = [error()]
    expected = type(ends[0])

    def end_once(message: Message) -> None:
        if message.value == 2 and ends:
            raise ends.pop()

    seen = Seen(end_once)
    workplace.consume(seen, transaction=transaction)
    workplace.send([1, 2, 3])
    worker = workplace.start()
    workplace.ended(worker)
    assert isinstance(worker.error, expected)
    assert workplace.committed() == {0: 1}
    assert not workplace.letters()
    with workplace.worker():
        seen.wait(3)
    assert seen.values == [1, 2, 3]


def test_a_consumer_that_settings_do_not_have_is_refused_by_name(workplace: Workplace) -> None:
    workplace.consume(Seen())
    with pytest.raises(UnknownName, match="'opps'; it has: ops"):
        Worker("opps")


def test_a_consumer_that_is_switched_off_is_refused(workplace: Workplace) -> None:
    workplace.consume(Seen(), enabled=False)
    with pytest.raises(ConfigurationError, match="'ops' is switched off"):
        Worker(NAME)


def test_a_consumer_without_handlers_is_refused(workplace: Workplace) -> None:
    workplace.settings.KAFKA = {"consumers": {NAME: {"group_id": "g"}}}
    with pytest.raises(ConfigurationError, match="'ops' has no handler: name one"):
        Worker(NAME)


def test_a_consumer_without_a_group_is_refused(workplace: Workplace) -> None:
    workplace.consume(Seen(), group_id="")
    with pytest.raises(ConfigurationError, match="'ops' has no group"):
        Worker(NAME)


def test_a_handler_that_leads_nowhere_is_refused_before_the_group_is_joined(workplace: Workplace) -> None:
    workplace.settings.KAFKA = {
        "consumers": {NAME: {"group_id": "g", "topics": {"flights": {"handler": "tests.app.handlers.nothing"}}}}
    }
    with pytest.raises(ConfigurationError, match=r"tests\.app\.handlers\.nothing"):
        Worker(NAME)


def test_what_this_version_lacks_is_refused_when_it_starts(workplace: Workplace) -> None:
    workplace.consume(Seen(), deduplicate="id")
    with pytest.raises(NotAvailable, match="deduplicate"):
        Worker(NAME)


def test_a_topic_that_comes_later_is_found(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, options={"topic.metadata.refresh.interval.ms": 300, "allow.auto.create.topics": False})
    workplace.settings.KAFKA = {
        **workplace.settings.KAFKA,
        "topic_prefix": "late.",
    }
    with workplace.worker() as worker:
        assert worker.topics == ["late." + workplace.topic]
        workplace.topic = "late." + workplace.topic
        workplace.cluster.create_topic(workplace.topic, 1)
        workplace.send([1])
        seen.wait(1)
