"""Keys that are held: parked behind their dead letter, released in order, never overtaken."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, connections
from pytest_django import Settings

from django_kafka import conf, handlers
from django_kafka.consuming.handling import HandlerThread
from django_kafka.consuming.parking import HoldingThread
from django_kafka.dead_letters import holds, recording, replaying
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.failures import Failure
from django_kafka.dead_letters.parking import Parking, park
from django_kafka.exceptions import PartitionLost, ReplayRefused
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, Hold, Replay
from tests.consuming import Seen, Workplace
from tests.letters import dead_letter
from tests.refusing import refusing
from tests.servers.processes import wait_until

HOLD = {"on_dead_letter": "hold_key", "auto_commit_interval": "100ms"}


class Troubled:
    """A handler's condition: values in `bad` fail."""

    def __init__(self, *bad: Any) -> None:
        self.bad = set(bad)

    def __call__(self, message: Message) -> None:
        if message.value in self.bad:
            raise ValueError(f"{message.value} is bad")


def states(workplace: Workplace) -> list[str]:
    return [letter.state for letter in workplace.letters()]


def carry_out_all(ids: list[int] | None = None) -> int:
    """Carry out what is asked for in this thread, and return how many replays that were."""
    executor = Executor(ids=ids)
    try:
        return sum(1 for _ in carry_out(executor, stop=threading.Event(), waiting=lambda error, pause: None))
    finally:
        executor.close()


def replay_head(workplace: Workplace) -> int:
    head = DeadLetter.objects.get(group_id=workplace.group, state="open")
    assert replaying.request([head.pk], name="somebody").count == 1
    return carry_out_all()


# In a worker


def test_later_messages_of_a_key_are_parked_while_others_go_on_and_are_released_in_order(workplace: Workplace) -> None:
    troubled = Troubled(1)
    seen = Seen(troubled)
    workplace.consume(seen, **HOLD)
    for number in range(8):
        workplace.send([number], key=b"a" if number % 2 else b"b")
    with workplace.worker() as worker:
        wait_until(lambda: workplace.committed() == {0: 8})
        assert worker.tally.parked >= 3
    assert seen.values == [0, 2, 4, 6]
    assert states(workplace) == ["open", "parked", "parked", "parked"]
    parked = workplace.letters()[1]
    assert (parked.key, parked.value, parked.attempts, parked.error_type) == (b"a", b"3", 0, "")

    troubled.bad.clear()
    assert replay_head(workplace) == 4

    assert seen.values == [0, 2, 4, 6, 1, 3, 5, 7]
    assert states(workplace) == ["resolved"] * 4
    assert not Hold.objects.exists()
    assert [replay.requested_by_name for replay in Replay.objects.order_by("pk")] == ["somebody"] * 4
    assert DeadLetter.objects.filter(hold__isnull=False).count() == 0


def test_a_released_message_that_fails_holds_the_rest(workplace: Workplace) -> None:
    troubled = Troubled(0, 2)
    seen = Seen(troubled)
    workplace.consume(seen, **HOLD)
    workplace.send(range(4), key=b"a")
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 4})
    troubled.bad.discard(0)

    replay_head(workplace)

    assert seen.values == [0, 1]
    assert states(workplace) == ["resolved", "resolved", "open", "parked"]
    head = workplace.letters()[2]
    assert (head.attempts, head.error_message, head.category) == (1, "2 is bad", "handler")
    assert head.attempt_set.get().error_message == "2 is bad"
    troubled.bad.clear()
    replay_head(workplace)
    assert seen.values == [0, 1, 2, 3]
    assert not Hold.objects.exists()


def test_the_key_flows_again_when_nothing_is_parked_any_more(workplace: Workplace) -> None:
    troubled = Troubled(0)
    seen = Seen(troubled)
    workplace.consume(seen, **HOLD)
    workplace.send(range(2), key=b"a")
    with workplace.worker() as worker:
        wait_until(lambda: states(workplace) == ["open", "parked"])
        troubled.bad.clear()
        replay_head(workplace)
        parked = worker.tally.parked
        workplace.send([2, 3], key=b"a")
        seen.wait(4)
        assert worker.tally.parked == parked
        (lane,) = worker.lanes
        assert lane.held_keys == {}
    assert seen.values == [0, 1, 2, 3]


def test_held_keys_are_read_by_the_next_owner_before_it_handles_anything(workplace: Workplace) -> None:
    seen = Seen(Troubled(0))
    workplace.consume(seen, **HOLD)
    workplace.send([0], key=b"a")
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 1})
    workplace.send([1], key=b"a")
    workplace.send([2], key=b"b")
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 3})
    assert seen.values == [2]
    assert states(workplace) == ["open", "parked"]


def test_what_a_crash_repeats_is_handled_before_the_letter_that_holds_its_key(workplace: Workplace) -> None:
    troubled = Troubled(2)
    seen = Seen(troubled)
    workplace.consume(seen, **HOLD)
    workplace.send(range(5), key=b"a")
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 5})
    assert (seen.values, states(workplace)) == ([0, 1], ["open", "parked", "parked"])

    workplace.set_back(0)
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 5})

    assert seen.values == [0, 1, 0, 1]
    assert states(workplace) == ["open", "parked", "parked"]


def test_while_held_keys_cannot_be_read_nothing_is_begun(workplace: Workplace, settings: Settings) -> None:
    seen = Seen()
    workplace.consume(seen, **HOLD)
    workplace.send([0], key=b"a")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE lynx_kafka_hold RENAME TO hidden")
    try:
        with workplace.worker() as worker:
            wait_until(lambda: any("held keys cannot be read" in lane.reason for lane in worker.lanes))
            assert not seen.values
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE hidden RENAME TO lynx_kafka_hold")
            seen.wait(1)
    finally:
        tables = connection.introspection.table_names()
        if "hidden" in tables:
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE hidden RENAME TO lynx_kafka_hold")


def test_messages_without_a_key_are_never_held(workplace: Workplace) -> None:
    seen = Seen(Troubled(0))
    workplace.consume(seen, **HOLD)
    workplace.send(range(3))
    with workplace.worker():
        seen.wait(2)
        wait_until(lambda: workplace.committed() == {0: 3})
    assert seen.values == [1, 2]
    assert states(workplace) == ["open"]
    assert not Hold.objects.exists()


def test_a_key_is_held_in_its_own_partition_only(workplace: Workplace) -> None:
    seen = Seen(Troubled(0))
    workplace.consume(seen, partitions=2, **HOLD)
    workplace.send([0], partition=0, key=b"a")
    with workplace.worker():
        wait_until(lambda: states(workplace) == ["open"])
        workplace.send([1], partition=1, key=b"a")
        workplace.send([2], partition=0, key=b"a")
        wait_until(lambda: workplace.committed() == {0: 2, 1: 1})
    assert seen.values == [1]


def test_what_cannot_be_parked_is_not_settled(workplace: Workplace) -> None:
    seen = Seen(Troubled(0))
    workplace.consume(seen, **HOLD)
    workplace.send([0], key=b"a")
    with workplace.worker() as worker:
        wait_until(lambda: states(workplace) == ["open"])
        with refusing("lynx_kafka_deadletter"):
            workplace.send([1], key=b"a")
            wait_until(lambda: any("could not be parked" in lane.reason for lane in worker.lanes))
            (lane,) = worker.lanes
            assert lane.in_flight == 1
            assert workplace.committed()[0] <= 1
        wait_until(lambda: states(workplace) == ["open", "parked"])
        wait_until(lambda: workplace.committed() == {0: 2})
    assert not seen.values


def test_at_the_limit_the_lane_waits_and_says_so(workplace: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    troubled = Troubled(0)
    seen = Seen(troubled)
    workplace.consume(seen, **HOLD, hold_key_limit=2)
    workplace.send(range(5), key=b"a")
    with workplace.worker() as worker:
        wait_until(lambda: worker.report()["waiting"] == 1)
        assert worker.report()["waits_for"] == "2 messages of one key are parked already (hold_key_limit)"
        assert "waits" in caplog.text
        assert states(workplace) == ["open", "parked", "parked"]
        assert workplace.committed()[0] <= 3
        troubled.bad.clear()
        replay_head(workplace)
        seen.wait(5, 40)
        assert worker.report()["waiting"] == 0
    assert seen.values == [0, 1, 2, 3, 4]
    assert not Hold.objects.exists()


def test_a_consumer_that_goes_on_looks_at_no_keys(workplace: Workplace) -> None:
    workplace.consume(Seen())
    with workplace.worker() as plain:
        assert {type(thread) for thread in plain._threads} == {HandlerThread}
    workplace.settings.KAFKA = {
        **workplace.settings.KAFKA, "consumers": {"ops": {**workplace.settings.KAFKA["consumers"]["ops"], **HOLD}},
    }  # fmt: skip
    with workplace.worker() as holding:
        assert {type(thread) for thread in holding._threads} == {HoldingThread}


# Parking and releasing


class Raw:
    """A message as the client gives it."""

    def __init__(self, offset: int, *, key: bytes | None = b"a", partition: int = 0, topic: str = "flights") -> None:
        self._place = topic, partition, offset
        self._key = key

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._place[2]

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes:
        return str(self._place[2]).encode()

    def headers(self) -> list[tuple[str, bytes | None]]:
        return []


log: list[int] = []
bad: set[int] = set()


def handle(message: Message) -> None:
    """Write down what is handled."""
    if message.offset in bad:
        raise ValueError("bad")
    log.append(message.offset)


@pytest.fixture
def consumer(settings: Settings, transactional_db: None) -> conf.Consumer:
    """A consumer that holds keys, without a worker."""
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "consumers": {
            "ops": {
                "group_id": "ops",
                "topics": {"flights": {"handler": "tests.test_holds.handle"}},
                "retry": {"max_retries": 0},
                **HOLD,
            }
        },
    }
    log.clear()
    bad.clear()
    return conf.consumer("ops")


def message(offset: int, **more: Any) -> Message:
    return Message(Raw(offset, **more), handlers.decoder_for("ops", "flights"))


def nobody_else() -> None:
    """The partition is ours."""


def fail(consumer: conf.Consumer, offset: int, **more: Any) -> DeadLetter:
    failure = Failure.of(ValueError("bad"), category="handler", handler="tests.test_holds.handle")
    return recording.record(consumer, "ops", message(offset, **more), failure, still_ours=nobody_else)


def parking(consumer: conf.Consumer, offset: int, *, count: bool = False, **more: Any) -> Parking:
    return park(consumer, "ops", message(offset, **more), count=count, still_ours=nobody_else)


def test_a_repeated_message_is_not_parked_twice(consumer: conf.Consumer) -> None:
    fail(consumer, 0)
    assert [parking(consumer, number) for number in (1, 2, 0, 1, 2)] == [Parking.PARKED] * 5
    letters = DeadLetter.objects.order_by("pk")
    assert [(letter.offset, letter.state, letter.attempts) for letter in letters] == [
        (0, "open", 1), (1, "parked", 0), (2, "parked", 0),
    ]  # fmt: skip


def test_a_repeat_of_a_message_that_was_released_is_not_parked_behind_the_others(consumer: conf.Consumer) -> None:
    head = fail(consumer, 0)
    for number in (1, 2):
        parking(consumer, number)
    bad.add(2)
    replaying.request([head.pk])
    carry_out_all()
    assert log == [0, 1]

    assert parking(consumer, 1) is Parking.PARKED

    assert DeadLetter.objects.get(offset=1).state == "resolved"


def test_a_repeat_of_what_came_before_the_letter_is_not_parked_behind_it(consumer: conf.Consumer) -> None:
    fail(consumer, 5)
    assert [parking(consumer, number) for number in (3, 6, 4)] == [Parking.BEFORE, Parking.PARKED, Parking.BEFORE]
    assert list(DeadLetter.objects.order_by("pk").values_list("offset", flat=True)) == [5, 6]


def test_messages_of_a_topic_that_was_made_anew_are_parked_whatever_their_offsets(consumer: conf.Consumer) -> None:
    fail(consumer, 5)
    anew = Raw(0)
    anew.timestamp = lambda: (1, 1_700_000_000_001)  # type: ignore[method-assign]
    assert park(
        consumer, "ops", Message(anew, handlers.decoder_for("ops", "flights")), count=False, still_ours=nobody_else
    ) is Parking.PARKED  # fmt: skip


def test_only_who_owns_the_partition_parks(consumer: conf.Consumer) -> None:
    fail(consumer, 0)
    asked: list[int] = []

    def lost_in_between() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise PartitionLost("gone")

    with pytest.raises(PartitionLost):
        park(consumer, "ops", message(1), count=False, still_ours=lost_in_between)
    assert DeadLetter.objects.count() == 1


def test_a_discarded_head_releases_what_is_parked(consumer: conf.Consumer) -> None:
    head = fail(consumer, 0)
    for number in (1, 2):
        parking(consumer, number)

    assert replaying.discard([head.pk], name="somebody") == 1
    assert parking(consumer, 3) is Parking.PARKED, "what is released is not handled yet"
    carry_out_all()

    assert log == [1, 2, 3]
    assert not Hold.objects.exists()
    assert parking(consumer, 4) is Parking.FREE
    assert {one.requested_by_name for one in Replay.objects.all()} == {"somebody"}
    assert replaying.reopen([head.pk]) == 1
    assert parking(consumer, 4) is Parking.FREE, "a letter that is opened again holds no key"


def test_several_letters_of_one_key_are_released_one_by_one(consumer: conf.Consumer) -> None:
    first = fail(consumer, 0)
    parking(consumer, 1)
    second = fail(consumer, 2)
    parking(consumer, 3)

    assert replaying.request([second.pk]).count == 1
    carry_out_all()
    refused = Replay.objects.get(letter=second)
    assert refused.state == "cancelled"
    assert "flights[0]@0 has the same key and comes before flights[0]@2" in refused.result
    replaying.request([first.pk])
    carry_out_all()
    assert log == [0, 1]
    assert Hold.objects.exists()
    replaying.request([second.pk])
    carry_out_all()
    assert log == [0, 1, 2, 3]
    assert not Hold.objects.exists()


def test_both_letters_of_a_key_may_be_discarded_at_once(consumer: conf.Consumer) -> None:
    letters = [fail(consumer, 0), fail(consumer, 1)]
    parking(consumer, 2)
    assert replaying.discard([letter.pk for letter in letters]) == 2
    carry_out_all()
    assert log == [2]
    assert not Hold.objects.exists()


def test_a_replay_to_the_topic_is_refused_for_a_letter_that_holds_its_key(consumer: conf.Consumer) -> None:
    letter = fail(consumer, 0)
    with pytest.raises(ReplayRefused, match=r"flights\[0\]@0 holds its key back: .* Replay it to its handler"):
        replaying.request([letter.pk], target="topic")
    assert not Replay.objects.exists()
    # Asked for before the letter began to hold its key.
    other = dead_letter({})
    replaying.request([other.pk], target="topic")
    DeadLetter.objects.filter(pk=other.pk).update(hold=Hold.objects.get())
    carry_out_all()
    assert Replay.objects.get().state == "cancelled"
    assert "holds its key back" in Replay.objects.get().result


def test_the_command_carries_out_what_its_replays_release(consumer: conf.Consumer, capsys: Any) -> None:
    for key in (b"a", b"b"):
        fail(consumer, 10 if key == b"a" else 20, key=key)
        for number in (1, 2):
            parking(consumer, (10 if key == b"a" else 20) + number, key=key)
    call_command("kafka_replay", "--all", "--target", "topic")
    captured = capsys.readouterr()
    assert "Left alone: 2 dead letters that hold their keys back" in captured.err
    call_command("kafka_replay", "--all")
    assert "Succeeded: 6, failed: 0, cancelled: 0, left: 0." in capsys.readouterr().out
    assert [number for number in log if number < 20] == [10, 11, 12]
    assert [number for number in log if number >= 20] == [20, 21, 22]


def test_a_hold_outlives_an_executor_that_is_interrupted(consumer: conf.Consumer) -> None:
    head = fail(consumer, 0)
    for number in (1, 2):
        parking(consumer, number)
    replaying.request([head.pk])
    executor = Executor()
    executor.run_next()
    executor.close()
    assert log == [0]
    assert parking(consumer, 3) is Parking.PARKED
    carry_out_all()
    assert log == [0, 1, 2, 3]


@pytest.fixture
def repeatable_reads(consumer: conf.Consumer) -> Iterator[None]:
    """What transactions read stays as it was when they began, where the database knows levels of that."""
    options = connection.settings_dict["OPTIONS"]
    if connection.vendor == "postgresql":
        connection.close()
        options["isolation_level"] = psycopg.IsolationLevel.REPEATABLE_READ
    yield
    connection.close()
    options.pop("isolation_level", None)


def test_what_is_parked_while_its_key_is_released_is_seen_whatever_the_isolation(
    consumer: conf.Consumer, repeatable_reads: None
) -> None:
    replaying.request([fail(consumer, 0).pk])
    interlopers = [1]

    def park_in_between() -> None:
        assert parking(consumer, interlopers.pop()) is Parking.PARKED
        connections.close_all()

    def park_first(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        # SQLite lets nobody write while another transaction does.
        if interlopers and (sql.startswith('UPDATE "lynx_kafka_hold"') or connection.vendor == "sqlite"):
            thread = threading.Thread(target=park_in_between)
            thread.start()
            thread.join()
        return execute(sql, *arguments)

    with connection.execute_wrapper(park_first):
        carry_out_all()

    assert log == [0, 1], "each is handled once, and none is left behind"
    assert not Hold.objects.exists()


def test_held_keys_of_a_partition_are_counted(consumer: conf.Consumer) -> None:
    fail(consumer, 0)
    parking(consumer, 1)
    fail(consumer, 5, key=b"b\0\xff")
    fail(consumer, 0, partition=1)
    assert holds.of_partition(consumer, "ops", "flights", 0) == {b"a": 1, b"b\0\xff": 0}
    assert holds.of_partition(consumer, "others", "flights", 0) == {}


def test_nobody_overtakes_while_one_parks_and_another_releases(consumer: conf.Consumer) -> None:
    """The race: a message is parked at the moment in which the last one of its key is released."""
    rounds, each = 40, 12
    chance = random.Random(4711)
    freed_early = parked_some = 0
    for number in range(rounds):
        log.clear()
        first = number * 1000
        replaying.request([fail(consumer, first).pk])
        start = threading.Barrier(2)
        pauses = [chance.choice((0, 0, 0.0005, 0.002, 0.006)) for _ in range(each)]
        trouble: list[BaseException] = []
        results: list[Parking] = []

        def lane(first: int = first, start: Any = start, pauses: Any = pauses, trouble: Any = trouble,
                 results: Any = results) -> None:  # fmt: skip
            try:
                held = True
                start.wait(10)
                for offset, pause in enumerate(pauses, first + 1):
                    time.sleep(pause)
                    if held:
                        results.append(_until_it_works(lambda offset=offset: parking(consumer, offset)))
                        held = results[-1] is Parking.PARKED
                    if not held:
                        log.append(offset)
            except BaseException as error:  # noqa: BLE001
                trouble.append(error)
            finally:
                connections.close_all()

        thread = threading.Thread(target=lane)
        thread.start()
        start.wait(10)
        deadline = time.monotonic() + 30
        while thread.is_alive() or Replay.objects.filter(state__in=Replay.OUTSTANDING).exists():
            carry_out_all()
            assert time.monotonic() < deadline
        thread.join()
        assert not trouble
        assert log == list(range(first, first + each + 1)), f"round {number}: {log}"
        assert not Hold.objects.exists()
        freed_early += results[-1] is Parking.FREE
        parked_some += Parking.PARKED in results
    assert freed_early, "no round saw the end of its hold"
    assert parked_some, "no round parked anything"


def _until_it_works(what: Callable[[], Parking]) -> Parking:
    """Try again after a database conflict, as a lane does."""
    for _ in range(200):
        try:
            return what()
        except Exception as error:
            if "locked" not in str(error):
                raise
    raise AssertionError("the database stays locked")
