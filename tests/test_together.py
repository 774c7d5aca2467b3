"""One transaction for many messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction

from django_kafka import conf, handlers, services, signals, tallies
from django_kafka.clients.embedded import Request
from django_kafka.consuming.handling import HandlerThread
from django_kafka.consuming.lanes import Lanes
from django_kafka.consuming.together import Care
from django_kafka.exceptions import Retry, Skip
from django_kafka.messages import Message
from django_kafka.models import DeadLetterAttempt
from tests.app.models import Effect
from tests.consuming import NAME, Seen, Workplace
from tests.databases import added, of_postgresql
from tests.refusing import refusing
from tests.sending import read, values
from tests.servers import PostgreSQL
from tests.servers.processes import wait_until
from tests.test_handling import Far, effects, far, leave_effect
from tests.test_messages import Raw

__all__ = ["far"]


class Events:
    """A handler that leaves an effect, and notes when it runs and when that is committed."""

    __module__ = "tests.test_together"

    def __init__(self, then: Callable[[Message], Any] | None = None) -> None:
        self.__qualname__ = f"Events-{id(self)}"
        self.then = then
        self.log: list[tuple[str, int]] = []

    def __call__(self, message: Message) -> None:
        offset = message.offset
        self.log.append(("run", offset))
        leave_effect(message)
        transaction.on_commit(lambda: self.log.append(("committed", offset)))
        if self.then is not None:
            self.then(message)

    def of(self, kind: str) -> list[int]:
        return [offset for what, offset in self.log if what == kind]


def landed(far: Far, count: int) -> list[int]:
    return [int(one) for one in values(read(far.cluster, "landed", count))]


def handled(workplace: Workplace, offset: int) -> None:
    wait_until(lambda: workplace.committed() == {0: offset})


def consume(workplace: Workplace, handler: Callable[..., Any], **options: Any) -> None:
    workplace.consume(handler, **{"transaction": "batch", "enable_auto_commit": False, **options})


def test_messages_that_come_together_are_committed_together(workplace: Workplace) -> None:
    seen = Events()
    consume(workplace, seen)
    workplace.send(range(50))
    with workplace.worker() as worker:
        handled(workplace, 50)
    assert worker.tally.handled == 50
    assert effects() == list(range(50)) == seen.of("run") == seen.of("committed")
    kinds = "".join(kind[0] for kind, _offset in seen.log)
    assert "r" * 10 in kinds, "Many run before one is committed."


def test_nothing_is_settled_before_the_commit_of_its_transaction(workplace: Workplace) -> None:
    goes_on = threading.Event()
    seen = Events(lambda message: message.value == 2 and goes_on.wait(30))
    consume(workplace, seen)
    workplace.send(range(4))
    with workplace.worker() as worker:
        wait_until(lambda: 2 in seen.of("run"))
        # The first message may have come by itself.
        began = seen.log.index(("run", seen.of("run")[len(seen.of("committed"))]))
        before = len(seen.of("committed"))
        assert before < 2
        assert began == 2 * before
        handled(workplace, before)
        assert worker.succeeded() == before
        goes_on.set()
        handled(workplace, 4)


def test_the_guilty_message_alone_becomes_a_letter(workplace: Workplace) -> None:
    def fail_on_three(message: Message) -> None:
        if message.value == 3:
            raise ValueError("three")

    seen = Events(fail_on_three)
    consume(workplace, seen)
    workplace.send(range(8))
    with workplace.worker():
        handled(workplace, 8)
    assert effects() == [0, 1, 2, 4, 5, 6, 7] == seen.of("committed")
    (letter,) = workplace.letters()
    assert (letter.offset, letter.attempts, letter.error_message) == (3, 1, "three")
    assert seen.of("run").count(3) == 1


def test_effects_are_those_of_one_transaction_a_message_however_many_fail(workplace: Workplace) -> None:
    def fail_sometimes(message: Message) -> None:
        if message.value % 7 == 3:
            raise ValueError("seven")

    seen = Events(fail_sometimes)
    consume(workplace, seen)
    workplace.send(range(200))
    with workplace.worker():
        handled(workplace, 200)
    good = [number for number in range(200) if number % 7 != 3]
    assert effects() == good == seen.of("committed")
    assert [letter.offset for letter in workplace.letters()] == [number for number in range(200) if number % 7 == 3]
    assert len(seen.of("run")) < 2.5 * 200, "Savepoints keep most of what is good from being run again."


@pytest.mark.parametrize("failing", [0, 1, 30])
def test_what_it_produces_leaves_with_the_commit_and_never_for_what_was_rolled_back(
    workplace: Workplace, far: Far, failing: int
) -> None:
    def produce(message: Message) -> None:
        services.produce("landed", None, message.value)
        if failing and message.value % (60 // failing) == 1:
            raise ValueError

    kafka = {**far.kafka, "producers": {"default": {"cluster": "far"}}}
    consume(workplace, Events(produce), kafka=kafka)
    workplace.send(range(60))
    with workplace.worker():
        handled(workplace, 60)
    bad = [number for number in range(60) if failing and number % (60 // failing) == 1]
    good = [number for number in range(60) if number not in bad]
    assert [letter.offset for letter in workplace.letters()] == bad
    assert landed(far, len(good)) == good


def test_each_message_waits_for_its_own_records(workplace: Workplace, far: Far) -> None:
    def produce(message: Message) -> None:
        if message.value >= 2:
            services.produce("landed", None, message.value)

    consume(workplace, Events(produce), kafka={**far.kafka, "producers": {"default": {"cluster": "far"}}})
    far.cluster.broker_down(1)
    workplace.send(range(5))
    with workplace.worker():
        handled(workplace, 2)
        assert effects() == list(range(5))
        far.cluster.broker_up(1)
        handled(workplace, 5)
    assert not workplace.letters()


def test_a_record_that_is_refused_makes_a_letter_of_its_own_message(workplace: Workplace, far: Far) -> None:
    def produce(message: Message) -> None:
        if message.value == 2:
            services.produce("landed", None, message.value)

    consume(workplace, Events(produce), kafka={**far.kafka, "producers": {"default": {"cluster": "far"}}})
    far.cluster.push_errors(Request.PRODUCE, "TOPIC_AUTHORIZATION_FAILED")
    workplace.send(range(4))
    with workplace.worker():
        handled(workplace, 4)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.error_type) == (2, "django_kafka.exceptions.DeliveryForbidden")
    assert effects() == [0, 1, 2, 3]


@pytest.mark.parametrize("trouble", ["marks for rollback", "closes the connection", "breaks a savepoint"])
@pytest.mark.parametrize("failing", [0, 5])
def test_a_handler_that_spoils_the_transaction_is_the_one_that_failed(
    workplace: Workplace, trouble: str, failing: int
) -> None:
    def spoil(message: Message) -> None:
        if failing and message.value < 20 and message.value % failing == 0:
            raise ValueError
        if message.value != 23:
            return
        if trouble == "closes the connection":
            connection.close()
        elif trouble == "marks for rollback":
            transaction.set_rollback(True)
        else:
            try:
                with transaction.atomic(savepoint=False):
                    raise KeyError
            except KeyError:
                pass

    consume(workplace, Events(spoil))
    workplace.send(range(30))
    with workplace.worker():
        handled(workplace, 30)
    *_others, letter = workplace.letters()
    bad = [*(range(0, 20, failing) if failing else ()), 23]
    assert [one.offset for one in workplace.letters()] == bad
    assert letter.error_type == "django.db.transaction.TransactionManagementError"
    assert effects() == [number for number in range(30) if number not in bad]


def test_a_commit_that_is_refused_is_traced_to_its_message(workplace: Workplace) -> None:
    def leave_a_dangling_row(message: Message) -> None:
        if message.value == 5:
            # Its foreign key is looked at by the COMMIT.
            DeadLetterAttempt.objects.create(letter_id=2**40, number=1, at="2026-01-01T00:00Z", origin="worker")

    consume(workplace, Events(leave_a_dangling_row))
    workplace.send(range(9))
    with workplace.worker():
        handled(workplace, 9)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.error_type, letter.attempts) == (5, "django.db.utils.IntegrityError", 1)
    assert effects() == [0, 1, 2, 3, 4, 6, 7, 8]


def test_an_outage_lets_those_before_it_be_and_uses_up_no_attempt(workplace: Workplace) -> None:
    down = threading.Event()
    down.set()
    attempts: list[int] = []

    def need(message: Message) -> None:
        if message.value == 3:
            attempts.append(message.attempt)
            if down.is_set():
                raise OperationalError("connection to server was lost")

    consume(workplace, Events(need))
    workplace.send(range(6))
    with workplace.worker() as worker:
        before = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= before + 2)
        assert effects() == [0, 1, 2]
        handled(workplace, 3)
        down.clear()
        handled(workplace, 6)
    assert set(attempts) == {1}
    assert not workplace.letters()


def test_a_failing_hook_is_no_failure_of_any_message(workplace: Workplace, far: Far) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    def handle(message: Message) -> None:
        if message.value == 2:
            transaction.on_commit(fail)
        services.produce("landed", None, message.value)

    consume(workplace, Events(handle), kafka={**far.kafka, "producers": {"default": {"cluster": "far"}}})
    workplace.send(range(5))
    with workplace.worker() as worker:
        handled(workplace, 5)
    assert worker.tally.hook_errors == 1
    assert effects() == list(range(5))
    assert sorted(landed(far, 5)) == list(range(5)), "The records behind the failed hook are sent as well."


@pytest.mark.parametrize("error", [SystemExit, MemoryError])
def test_what_stops_the_worker_leaves_nothing_of_the_transaction(
    workplace: Workplace, error: type[BaseException]
) -> None:
    def stop(message: Message) -> None:
        if message.value == 2:
            raise error

    seen = Events(stop)
    consume(workplace, seen)
    workplace.send(range(4))
    worker = workplace.start()
    workplace.ended(worker)
    assert isinstance(worker.error, error)
    assert effects() == seen.of("committed")
    assert len(effects()) < 2, "The message before it was rolled back with it."
    assert workplace.committed() == {0: len(effects())}
    assert not workplace.letters()


def test_a_message_is_tried_again_alone(workplace: Workplace) -> None:
    attempts: list[int] = []

    def handle(message: Message) -> None:
        if message.value == 2:
            attempts.append(message.attempt)
            if message.attempt < 3:
                raise Retry(after=0.01)

    seen = Events(handle)
    consume(workplace, seen, retry={"max_retries": 3})
    workplace.send(range(5))
    with workplace.worker():
        handled(workplace, 5)
    assert attempts == [1, 2, 3]
    assert seen.of("committed") == list(range(5)) == effects()


def test_a_skipped_message_leaves_no_effects_and_takes_none_along(workplace: Workplace, far: Far) -> None:
    def skip(message: Message) -> None:
        if message.value % 3 == 1:
            services.produce_with("now", "landed", None, message.value)
            raise Skip("not ours")

    producers = {"default": {"cluster": "far"}, "now": {"cluster": "far", "send": "immediate"}}
    consume(workplace, Events(skip), kafka={**far.kafka, "producers": producers})
    workplace.send(range(12))
    with workplace.worker() as worker:
        handled(workplace, 12)
    assert worker.tally.skipped == 4
    assert effects() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert landed(far, 4) == [1, 4, 7, 10]


def test_a_stop_ends_the_transaction_early_and_commits_it(workplace: Workplace) -> None:
    def handle(message: Message) -> None:
        if message.value == 3:
            worker.stop()
            wait_until(lambda: all(lane.interrupted for lane in worker.lanes))

    seen = Events(handle)
    consume(workplace, seen)
    workplace.send(range(100))
    worker = workplace.start()
    workplace.ended(worker)
    assert effects() == seen.of("run") == [0, 1, 2, 3]
    assert workplace.committed() == {0: 4}


def test_a_transaction_is_not_kept_open_for_long(workplace: Workplace) -> None:
    seen = Events(lambda _message: time.sleep(0.15))
    consume(workplace, seen)
    workplace.send(range(8))
    with workplace.worker():
        handled(workplace, 8)
    kinds = "".join(kind[0] for kind, _offset in seen.log)
    assert "rr" in kinds
    assert "rrrrrr" not in kinds


def test_signals_tell_of_what_is_committed_and_nothing_else(workplace: Workplace) -> None:
    told: list[tuple[str, int]] = []

    def note(kind: str) -> Callable[..., None]:
        return lambda sender, message, **_event: told.append((kind, message.offset))

    receivers = {"handling": note("handling"), "handled": note("handled"), "failed": note("failed")}

    def fail_on_two(message: Message) -> None:
        if message.value == 2:
            raise ValueError

    signals.message_handling.connect(receivers["handling"])
    signals.message_handled.connect(receivers["handled"])
    signals.handler_failed.connect(receivers["failed"])
    try:
        consume(workplace, Events(fail_on_two))
        workplace.send(range(5))
        with workplace.worker():
            handled(workplace, 5)
    finally:
        signals.message_handling.disconnect(receivers["handling"])
        signals.message_handled.disconnect(receivers["handled"])
        signals.handler_failed.disconnect(receivers["failed"])
    assert [offset for kind, offset in told if kind == "handled"] == [0, 1, 3, 4]
    assert [offset for kind, offset in told if kind == "failed"] == [2]
    assert told.index(("handled", 1)) < told.index(("failed", 2)), "What came before it is committed first."
    assert {offset for kind, offset in told if kind == "handling"} == set(range(5))


def test_keys_keep_their_order_while_lanes_are_spread(workplace: Workplace) -> None:
    runs: list[tuple[bytes | None, int]] = []

    def handle(message: Message) -> None:
        time.sleep(0.03 if message.value % 40 == 0 else 0.001)
        runs.append((message.raw_key, message.value))

    seen = Events(handle)
    consume(workplace, seen, ordering="key", concurrency=4, database="default")
    for number in range(240):
        workplace.send([number], key=b"%d" % (number % 6))
    with workplace.worker():
        handled(workplace, 240)
    committed = sorted(seen.of("committed"))
    assert committed == list(range(240)), "Each is committed once."
    for key in range(6):
        mine = [number for raw, number in runs if raw == b"%d" % key]
        assert [number for place, number in enumerate(mine) if number not in mine[:place]] == sorted(set(mine))


def test_a_partition_that_is_lost_before_the_commit_is_rolled_back(workplace: Workplace) -> None:
    place = ("flights", 0)

    def lose(message: Message) -> None:
        leave_effect_of(message)
        if message.offset == 2:
            lanes.halt([place])
            lanes.drop([lane])

    workplace.settings.KAFKA = {
        "consumers": {NAME: {"group_id": "g", "transaction": "batch", "topics": {"flights": {}}}}
    }
    handlers.subscribe("flights", lose, consumer=NAME)
    try:
        lanes = Lanes()
        lane = lanes.open(place)
        lanes.take(lane, [Raw(topic="flights", offset=number) for number in range(5)], 0)
        failures: list[BaseException] = []
        consumer = conf.consumer(NAME)
        thread = HandlerThread("inline", consumer, "g", lanes, tallies.of_consumer(NAME), failures.append)
        taken = lanes.next(1)
        assert taken is lane
        piece = lane.slices[0]
        thread.run_inline(lane)
    finally:
        handlers.forget(lose)
    assert not failures
    assert (piece.done, Effect.objects.count()) == (0, 0)


def leave_effect_of(message: Message) -> None:
    Effect.objects.create(topic=message.topic, partition=0, offset=message.offset)


def test_a_letter_that_is_refused_holds_the_messages_behind_it(workplace: Workplace) -> None:
    def fail_on_two(message: Message) -> None:
        if message.value == 2:
            raise ValueError

    seen = Events(fail_on_two)
    consume(workplace, seen)
    with workplace.worker() as worker:
        with refusing("lynx_kafka_deadletter"):
            workplace.send(range(6))
            wait_until(lambda: worker.tally.waits >= 2)
            handled(workplace, 2)
            assert effects() == [0, 1]
        handled(workplace, 6)


def test_care_follows_how_far_failures_are_apart() -> None:
    care = Care()
    assert care.step() is None
    for _ in range(10):
        care.succeeded(100)
        care.failed()
    frequent = care.step()
    assert frequent is not None
    assert 12 <= frequent <= 24
    for _ in range(20):
        care.failed()
    assert care.step() == 1
    care.succeeded(2000)
    assert care.step() is None


@pytest.fixture
def limited(workplace: Workplace, postgresql: PostgreSQL, django_db_blocker: Any) -> Iterator[Any]:
    # After the workplace, whose tests may use only the databases that were there before.
    with added("limited", django_db_blocker, **of_postgresql(postgresql)) as found:
        with found.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS runs")
            cursor.execute("CREATE TABLE runs (number int)")
        found.close()
        yield found


def _execute(sql: str, *parameters: Any) -> Any:
    with connections["limited"].cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone() if cursor.description else None


def _runs() -> list[int]:
    with connections["limited"].cursor() as cursor:
        cursor.execute("SELECT number FROM runs ORDER BY number")
        return [number for (number,) in cursor.fetchall()]


@pytest.mark.usefixtures("limited")
class TestOnPostgreSQL:
    def test_a_connection_that_is_ended_in_the_middle_is_an_outage(self, workplace: Workplace) -> None:
        ended: list[int] = []

        def handle(message: Message) -> None:
            _execute("INSERT INTO runs VALUES (%s)", message.value)
            if message.value == 3 and not ended:
                ended.append(1)
                _execute("SELECT pg_terminate_backend(pg_backend_pid())")

        consume(workplace, Seen(handle), database="limited")
        workplace.send(range(6))
        with workplace.worker():
            handled(workplace, 6)
        assert _runs() == list(range(6))
        assert not workplace.letters()

    def test_a_commit_that_is_not_answered_has_all_of_them_handled_again(self, workplace: Workplace) -> None:
        ended: list[int] = []

        def handle(message: Message) -> None:
            _execute("INSERT INTO runs VALUES (%s)", message.value)
            if message.value == 5 and not ended:
                ended.append(1)
                connections["limited"].connection.pgconn.finish()

        seen = Seen(handle)
        consume(workplace, seen, database="limited")
        workplace.send(range(6))
        with workplace.worker() as worker:
            seen.wait(7)
            handled(workplace, 6)
        assert worker.tally.unknown_commits == 1
        assert seen.values.count(5) == 2
        assert _runs() == list(range(6))
        assert not workplace.letters()

    def test_an_error_that_a_handler_caught_is_its_own(self, workplace: Workplace) -> None:
        def handle(message: Message) -> None:
            _execute("INSERT INTO runs VALUES (%s)", message.value)
            if message.value == 3:
                try:
                    _execute("SELECT 1 / 0")
                except Exception:  # noqa: BLE001  # as handlers do
                    return

        consume(workplace, Seen(handle), database="limited")
        workplace.send(range(6))
        with workplace.worker():
            handled(workplace, 6)
        (letter,) = workplace.letters()
        assert (letter.offset, letter.error_type) == (3, "django.db.transaction.TransactionManagementError")
        assert _runs() == [0, 1, 2, 4, 5]

    def test_each_message_has_a_time_limit_of_its_own(self, workplace: Workplace) -> None:
        had: list[tuple[float, float, float]] = []

        def handle(message: Message) -> None:
            if message.value == 0:
                time.sleep(0.35)
            before = message.time_left or 0.0
            (setting,) = _execute("SELECT extract(epoch FROM current_setting('statement_timeout')::interval)")
            had.append((before, float(setting), message.time_left or 0.0))

        consume(workplace, Seen(handle), database="limited", timeout="30s")
        workplace.send(range(2))
        with workplace.worker():
            handled(workplace, 2)
        assert had[0][1] <= 29.65
        # In milliseconds. Nor is it held to what was left of the message before it.
        assert all(after - 0.001 <= setting <= before for before, setting, after in had)

    def test_a_limit_is_gone_for_a_handler_without_one(self, workplace: Workplace) -> None:
        settings: list[str] = []

        def note(_message: Message) -> None:
            settings.append(_execute("SHOW statement_timeout")[0])

        plain, hasty = Seen(note), Seen(note)
        handlers.kafka_handler(topics=workplace.topic, consumer=NAME, header={"kind": "hasty"}, timeout="30s")(hasty)
        try:
            consume(workplace, plain, database="limited")
            workplace.send([0], headers=[("kind", b"hasty")])
            workplace.send([1])
            with workplace.worker():
                handled(workplace, 2)
        finally:
            handlers.forget(hasty)
        assert settings[0] != "0"
        assert settings[1] == "0"
