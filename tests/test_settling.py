"""What becomes of a message whose attempt failed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from django_kafka import services, signals
from django_kafka.clients.embedded import Cluster, Request
from django_kafka.exceptions import Reject, Retry, Skip
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, DeadLetterAttempt
from tests.app.models import Effect
from tests.consuming import Seen, Workplace
from tests.refusing import refusing
from tests.servers.processes import wait_until

SOON = {"max_retries": 3, "backoff": "10ms", "jitter": 0.0}
NEVER = {"failure_ratio": 1.0, "window": 1_000_000}
LATE = {"max_retries": 3, "backoff": "1h", "max_backoff": "1h"}


def leave_effect(message: Message) -> None:
    Effect.objects.create(
        topic=message.topic, partition=message.partition, offset=message.offset, payload=message.value
    )


class Failing:
    """A handler that leaves an effect and then raises what it is given, attempt by attempt, for one offset."""

    __module__ = "tests.test_settling"

    def __init__(self, *errors: BaseException, offset: int = 1) -> None:
        self.errors = list(errors)
        self.offset = offset
        self.attempts: list[int] = []
        self.at: list[float] = []

    def __call__(self, message: Message) -> None:
        leave_effect(message)
        if message.partition == 0 and message.offset == self.offset:
            self.attempts.append(message.attempt)
            self.at.append(time.monotonic())
            if self.errors:
                raise self.errors.pop(0)


def attempts(letter: DeadLetter) -> list[tuple[int, str]]:
    return list(DeadLetterAttempt.objects.filter(letter=letter).values_list("number", "error_message"))


def test_a_message_that_fails_is_tried_again_in_its_place_and_its_effects_are_there_once(workplace: Workplace) -> None:
    failing = Failing(ValueError("one"), KeyError("two"))
    seen = Seen(failing)
    workplace.consume(seen, retry=SOON)
    workplace.send([0, 1, 2])
    with workplace.worker() as worker:
        seen.wait(3)
        assert (worker.tally.retries, worker.tally.failures["handler"]) == (2, 2)
    assert failing.attempts == [1, 2, 3]
    assert seen.of(0) == [0, 1, 2]
    assert sorted(Effect.objects.values_list("offset", flat=True)) == [0, 1, 2]
    assert not workplace.letters()
    assert workplace.committed() == {0: 3}


def test_the_last_attempt_makes_a_letter_that_knows_them_all(workplace: Workplace) -> None:
    failing = Failing(*(ValueError(f"attempt {number}") for number in range(1, 9)))
    seen = Seen(failing)
    workplace.consume(seen, retry=SOON)
    workplace.send([0, 1, 2])
    with workplace.worker():
        seen.wait(2)
        wait_until(workplace.letters)
    (letter,) = workplace.letters()
    assert failing.attempts == [1, 2, 3, 4]
    assert (letter.attempts, letter.error_message, letter.category) == (4, "attempt 4", "handler")
    assert attempts(letter) == [(number, f"attempt {number}") for number in range(1, 5)]
    assert letter.first_failed_at < letter.last_failed_at
    assert seen.of(0) == [0, 2]


@pytest.mark.parametrize("transaction", ["message", "batch"])
def test_what_a_handler_does_to_its_message_is_gone_at_the_next_attempt_and_not_in_the_letter(
    workplace: Workplace, transaction: str
) -> None:
    given: list[Any] = []

    def spoil(message: Message) -> None:
        given.append((message.attempt, dict(message.value), list(message.headers)))
        with pytest.raises(AttributeError):
            message.offset = 7  # type: ignore[misc]
        message.attempt = 99
        message.value.clear()
        assert isinstance(message.headers, tuple), "nothing can be added to it"
        raise ValueError("bad")

    retry = {"max_retries": 1, "backoff": "10ms"}
    workplace.consume(spoil, retry=retry, transaction=transaction)
    workplace.send([{"id": 1}], headers=[("h", b"1")])
    with workplace.worker():
        wait_until(lambda: workplace.letters())
    assert given == [(attempt, {"id": 1}, [("h", b"1")]) for attempt in (1, 2)]
    (letter,) = workplace.letters()
    assert (letter.offset, letter.attempts, letter.error_message) == (0, 2, "bad")
    assert (bytes(letter.value or b""), [tuple(one) for one in letter.headers]) == (b'{"id": 1}', [("h", b"1")])


def test_of_many_attempts_the_last_ones_are_stored(workplace: Workplace) -> None:
    failing = Failing(*(ValueError(f"attempt {number}") for number in range(1, 99)), offset=0)
    workplace.consume(Seen(failing), retry={"max_retries": 30, "backoff": "1ms", "multiplier": 1})
    workplace.send([0])
    with workplace.worker():
        wait_until(workplace.letters)
    (letter,) = workplace.letters()
    assert letter.attempts == 31
    assert attempts(letter) == [(number, f"attempt {number}") for number in range(21, 32)]


def test_the_waits_grow_and_another_partition_goes_on_meanwhile(workplace: Workplace) -> None:
    failing = Failing(*(ValueError(f"attempt {number}") for number in range(1, 99)), offset=0)
    seen = Seen(failing)
    retry = {"max_retries": 99, "backoff": "200ms", "max_backoff": "400ms", "jitter": 0.0}
    workplace.consume(seen, partitions=2, retry=retry)
    workplace.send([0], partition=0)
    with workplace.worker():
        wait_until(lambda: failing.attempts)
        workplace.send(range(5), partition=1)
        wait_until(lambda: len(seen.of(1)) == 5, message="the one thread did not go on with the other partition")
        wait_until(lambda: len(failing.attempts) >= 3)
        failing.errors.clear()
        seen.wait(6)
    first, second, third, *_others = failing.at
    assert second - first >= 0.2
    assert third - second >= 0.4


def test_a_handler_says_how_long_to_wait_but_not_how_often(workplace: Workplace) -> None:
    failing = Failing(*(Retry(after=0.3) for _ in range(9)), offset=0)
    workplace.consume(Seen(failing), retry={"max_retries": 1, "backoff": "1h", "max_backoff": "1h"})
    workplace.send([0])
    with workplace.worker():
        wait_until(workplace.letters)
    assert failing.attempts == [1, 2]
    assert failing.at[1] - failing.at[0] >= 0.3


def test_a_worker_stops_at_once_while_a_message_waits_and_the_next_one_counts_anew(workplace: Workplace) -> None:
    failing = Failing(ValueError("one"), offset=0)
    seen = Seen(failing)
    workplace.consume(seen, retry=LATE)
    workplace.send([0])
    with workplace.worker():
        wait_until(lambda: failing.attempts)
    # It has ended, and did not wait for an hour.
    assert workplace.committed() == {0: 0}
    with workplace.worker():
        seen.wait(1)
    assert failing.attempts == [1, 1]


def test_a_revoke_takes_a_partition_that_waits_at_once_and_the_next_owner_counts_anew(workplace: Workplace) -> None:
    failing = Failing(*(ValueError(f"attempt {number}") for number in range(1, 99)), offset=0)
    workplace.consume(Seen(failing), partitions=2, retry=LATE)
    workplace.send([0], partition=0)
    with workplace.worker() as first:
        wait_until(lambda: failing.attempts)
        with workplace.worker():
            wait_until(lambda: len(first.lanes) == 1)
        wait_until(lambda: len(first.lanes) == 2)
        wait_until(lambda: len(failing.attempts) > 1)
    assert set(failing.attempts) == {1}
    assert not workplace.letters()


def test_what_is_skipped_is_settled_and_counted_and_leaves_nothing(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    failed: list[Any] = []

    def note(**event: Any) -> None:
        failed.append(event["error"])

    signals.handler_failed.connect(note)
    seen = Seen(Failing(Skip("nobody waits for it")))
    workplace.consume(seen, retry=LATE)
    workplace.send([0, 1, 2])
    try:
        with caplog.at_level(logging.INFO, "django_kafka"), workplace.worker() as worker:
            seen.wait(2)
            assert worker.tally.skipped == 1
    finally:
        signals.handler_failed.disconnect(note)
    assert workplace.committed() == {0: 3}
    assert seen.of(0) == [0, 2]
    assert sorted(Effect.objects.values_list("offset", flat=True)) == [0, 2]
    assert not workplace.letters()
    assert not failed, "to skip is no failure"
    assert "offset=1 skipped: nobody waits for it" in caplog.text


def test_what_is_rejected_is_a_letter_at_once_with_its_reason_and_its_cause(workplace: Workplace) -> None:
    def reject(message: Message) -> None:
        try:
            int(message.value)
        except ValueError as error:
            raise Reject("no flight has that number") from error

    workplace.consume(reject, retry=LATE)
    workplace.send(["x"])
    with workplace.worker():
        wait_until(workplace.letters)
    (letter,) = workplace.letters()
    assert letter.error_type == "django_kafka.exceptions.Reject"
    assert letter.error_message.startswith("no flight has that number (ValueError: invalid literal")
    assert "invalid literal" in letter.traceback
    assert letter.attempts == 1


def test_a_letter_after_asking_for_another_attempt_is_about_what_was_met(workplace: Workplace) -> None:
    def again(message: Message) -> None:
        try:
            int(message.value)
        except ValueError as error:
            raise Retry(after=0) from error

    workplace.consume(again, retry={"max_retries": 1})
    workplace.send(["x"])
    with workplace.worker():
        wait_until(workplace.letters)
    (letter,) = workplace.letters()
    assert (letter.error_type, letter.attempts) == ("ValueError", 2)


def test_poison_has_one_attempt(workplace: Workplace) -> None:
    workplace.consume(Seen(lambda message: message.value and None), retry=LATE)
    workplace.send([b"\xff not json"])
    with workplace.worker():
        wait_until(workplace.letters)
    assert [letter.attempts for letter in workplace.letters()] == [1]


def test_a_topic_has_retries_of_its_own(workplace: Workplace) -> None:
    failing = Failing(*(ValueError("again") for _ in range(9)), offset=0)
    workplace.consume(
        Seen(failing), topics={workplace.topic: {"retry": {"max_retries": 1, "backoff": "1ms"}}}, retry=LATE
    )
    workplace.send([0])
    with workplace.worker():
        wait_until(workplace.letters)
    assert failing.attempts == [1, 2]


def cannot_decide(error: BaseException, attempt: int, message: Message) -> Any:
    """Fail when it should decide."""
    raise LookupError(f"{message.offset} {attempt} {error}")


def skip_what_is_old(error: BaseException, attempt: int, message: Message) -> Any:
    """Decide for a project."""
    return Skip("old") if message.value == 1 else 0.01 * attempt


def test_a_decision_that_fails_is_said_in_the_letter_and_loses_nothing(workplace: Workplace) -> None:
    failing = Failing(ValueError("its own"), ValueError("its own"), offset=0)
    workplace.consume(Seen(failing), retry={**SOON, "max_retries": 1, "decide": "tests.test_settling.cannot_decide"})
    workplace.send([0])
    with workplace.worker():
        wait_until(workplace.letters)
    (letter,) = workplace.letters()
    assert (letter.error_type, letter.error_message, letter.attempts) == ("ValueError", "its own", 2)
    assert "tests.test_settling.cannot_decide could not decide about it (LookupError: 0 2 its own)" in letter.traceback


def test_a_projects_own_decision_holds(workplace: Workplace) -> None:
    failing = Failing(*(ValueError(f"attempt {number}") for number in range(1, 9)), offset=0)

    def fail_on_both(message: Message) -> None:
        failing(message)
        if message.value == 1:
            raise ValueError("old")

    seen = Seen(fail_on_both)
    workplace.consume(seen, retry={"max_retries": 2, "decide": "tests.test_settling.skip_what_is_old"})
    workplace.send([0, 1, 2])
    with workplace.worker():
        seen.wait(1)
    assert failing.attempts == [1, 2, 3]
    assert [(letter.offset, letter.attempts) for letter in workplace.letters()] == [(0, 3)]
    assert workplace.committed() == {0: 3}


def test_every_failed_attempt_is_told(workplace: Workplace) -> None:
    told: list[tuple[int, str]] = []

    def note(**event: Any) -> None:
        told.append((event["message"].attempt, str(event["error"])))

    signals.handler_failed.connect(note)
    try:
        failing = Failing(ValueError("a"), ValueError("b"), offset=0)
        seen = Seen(failing)
        workplace.consume(seen, retry=SOON)
        workplace.send([0])
        with workplace.worker():
            seen.wait(1)
    finally:
        signals.handler_failed.disconnect(note)
    assert told == [(1, "a"), (2, "b")]


def test_an_outage_between_attempts_uses_none_up(workplace: Workplace) -> None:
    failing = Failing(ValueError("a"), ConnectionRefusedError("down"), ConnectionRefusedError("down"), ValueError("b"))
    seen = Seen(failing)
    workplace.consume(seen, retry={**SOON, "max_retries": 2})
    workplace.send([0, 1, 2])
    with workplace.worker() as worker:
        seen.wait(3)
        assert worker.tally.outages["network"] == 2
    assert failing.attempts == [1, 2, 2, 2, 3]
    assert not workplace.letters()


# With records


@pytest.fixture
def far() -> Iterator[Cluster]:
    """A second cluster, which the consumer's own does not depend on, for what handlers produce."""
    with Cluster(partitions=1) as cluster:
        cluster.create_topic("landed")
        yield cluster


def to(cluster: Cluster) -> dict[str, Any]:
    return {
        "clusters": {"far": {"brokers": cluster.bootstrap_servers.split(","), "connection": {"timeout": "1s"}}},
        "producers": {"default": {"cluster": "far", "delivery_timeout": "500ms", "send": "immediate"}},
    }


def test_a_record_that_kafka_refuses_is_sent_again_and_its_handler_does_not_run_again(
    workplace: Workplace, far: Cluster
) -> None:
    runs: list[int] = []

    def produce(message: Message) -> None:
        runs.append(message.attempt)
        services.produce("landed", None, message.value)

    kafka = to(far)
    kafka["producers"]["default"]["acks"] = "1"
    workplace.consume(produce, kafka=kafka, retry={**SOON, "backoff": "300ms"}, enable_auto_commit=False)
    far.push_errors(Request.PRODUCE, "TOPIC_AUTHORIZATION_FAILED")
    workplace.send([0])
    with workplace.worker() as worker:
        wait_until(lambda: workplace.committed() == {0: 1})
        assert worker.tally.failures["authorization"]
    assert runs == [1]
    assert not workplace.letters()


@pytest.mark.parametrize("transaction", ["none", "message"])
def test_what_went_out_before_its_message_was_skipped_is_waited_for(
    workplace: Workplace, far: Cluster, transaction: str
) -> None:
    def produce(message: Message) -> None:
        services.produce("landed", None, message.value)
        raise Skip("told")

    kafka = to(far)
    kafka["producers"]["default"]["delivery_timeout"] = "20s"
    workplace.consume(produce, kafka=kafka, transaction=transaction, enable_auto_commit=False)
    far.broker_down(1)
    workplace.send([0])
    with workplace.worker() as worker:
        wait_until(lambda: worker.tally.skipped)
        assert workplace.committed() == {0: 0}
        far.broker_up(1)
        wait_until(lambda: workplace.committed() == {0: 1})
    assert not workplace.letters()


# Many letters


def fail_always(message: Message) -> None:
    raise ValueError(f"at {message.offset}")


def test_when_all_fail_their_letters_are_stored_together_in_order(workplace: Workplace) -> None:
    workplace.consume(fail_always, enable_auto_commit=False, circuit_breaker=NEVER)
    workplace.send(range(600))
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 600}, 40)
    found = workplace.letters()
    assert [letter.offset for letter in found] == list(range(600))
    assert [letter.error_message for letter in found] == [f"at {number}" for number in range(600)]
    assert [letter.pk for letter in found] == sorted(letter.pk for letter in found)
    assert {letter.attempts for letter in found} == {1}
    assert DeadLetterAttempt.objects.filter(letter__group_id=workplace.group, number=1).count() == 600


def test_letters_that_are_refused_hold_their_lane_also_when_all_fail(workplace: Workplace) -> None:
    workplace.consume(fail_always, enable_auto_commit=False, circuit_breaker=NEVER)
    with workplace.worker() as worker:
        with refusing("lynx_kafka_deadletter"):
            workplace.send(range(100))
            wait_until(lambda: worker.tally.waits >= 2)
            assert workplace.committed() == {0: 0}
        wait_until(lambda: workplace.committed() == {0: 100}, 40)
    assert [letter.offset for letter in workplace.letters()] == list(range(100))


def test_what_fails_slowly_does_not_wait_for_company(workplace: Workplace) -> None:
    go_on = threading.Semaphore(0)
    begun: list[int] = []

    def fail_slowly(message: Message) -> None:
        begun.append(message.offset)
        go_on.acquire(timeout=60)
        raise ValueError(f"at {message.offset}")

    workplace.consume(fail_slowly)
    workplace.send(range(20))
    with workplace.worker():
        for _ in range(5):
            go_on.release()
        wait_until(lambda: len(begun) == 6)
        assert len(workplace.letters()) < 5, "Those that fail one after another may wait for each other."
        time.sleep(0.6)  # longer than they may
        go_on.release()
        wait_until(lambda: len(workplace.letters()) == 6, message="they waited for the rest of their slice")
        for _ in range(20):
            go_on.release()
        wait_until(lambda: len(workplace.letters()) == 20)


def test_a_message_that_succeeds_ends_the_row(workplace: Workplace) -> None:
    gate = threading.Event()

    def fail_but_not_all(message: Message) -> None:
        if message.offset == 7:
            gate.wait(20)
        if message.offset % 8 != 6:
            raise ValueError

    workplace.consume(Seen(fail_but_not_all))
    workplace.send(range(24))
    with workplace.worker():
        wait_until(lambda: len(workplace.letters()) == 6)
        gate.set()
        wait_until(lambda: len(workplace.letters()) == 21)
