from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_kafka import tallies
from django_kafka.consuming import deaths
from django_kafka.consuming.crew import Crew
from django_kafka.consuming.gate import Gate
from django_kafka.consuming.lane import Lane
from django_kafka.consuming.lanes import Lanes
from django_kafka.consuming.suspicion import Suspicion
from django_kafka.messages import Message
from django_kafka.models import Tenure
from django_kafka.models import Worker as Row
from tests.consuming import NAME, Seen, Workplace
from tests.refusing import refusing
from tests.servers.processes import wait_until


class TestWhatDeathsTell:
    @pytest.mark.parametrize(
        ("known", "begins", "then"),
        [
            # The first death tells nothing about a message.
            (Suspicion(), 7, Suspicion(deaths=1)),
            # Nor does the next when nothing was marked as running, or what was has been committed.
            (Suspicion(deaths=1), 7, Suspicion(deaths=1)),
            (Suspicion(deaths=1, first=3, last=6), 7, Suspicion(deaths=1)),
            # What ran at the second is run alone.
            (Suspicion(deaths=1, first=3, last=9), 2, Suspicion(deaths=2, first=3, last=9)),
            (Suspicion(deaths=1, first=3, last=9), 5, Suspicion(deaths=2, first=5, last=9)),
            (Suspicion(deaths=1, first=3, last=9), 9, Suspicion(deaths=2, first=9, last=9)),
            # A death meanwhile, of another partition's message, does not change that.
            (Suspicion(deaths=2, first=3, last=9), 3, Suspicion(deaths=2, first=3, last=9)),
            (Suspicion(deaths=2, first=3, last=9), 10, Suspicion(deaths=1)),
            # What ran alone is the one, unless it was settled.
            (
                Suspicion(deaths=2, first=3, last=9, alone=4, timestamp_ms=99),
                2,
                Suspicion(deaths=3, guilty=4, timestamp_ms=99),
            ),
            (Suspicion(deaths=2, first=3, last=9, alone=4), 5, Suspicion(deaths=2, first=5, last=9)),
            # A death before its letter was stored acquits nobody.
            (Suspicion(deaths=3, guilty=4), 2, Suspicion(deaths=3, guilty=4)),
            (Suspicion(deaths=3, guilty=4), 5, Suspicion(deaths=1)),
        ],
    )
    def test_after_a_death(self, known: Suspicion, begins: int, then: Suspicion) -> None:
        assert known.after_death(begins) == then

    @pytest.mark.parametrize(
        ("known", "begins", "then"),
        [
            (Suspicion(), 7, Suspicion()),
            (Suspicion(deaths=1, first=3, last=9), 3, Suspicion(deaths=1)),
            (Suspicion(deaths=2, first=3, last=9), 3, Suspicion(deaths=2, first=3, last=9)),
            (Suspicion(deaths=2, first=3, last=9, alone=4), 4, Suspicion(deaths=2, first=3, last=9)),
            (Suspicion(deaths=2, first=3, last=9), 10, Suspicion()),
            (Suspicion(deaths=3, guilty=4), 4, Suspicion(deaths=3, guilty=4)),
            (Suspicion(deaths=3, guilty=4), 5, Suspicion()),
        ],
    )
    def test_after_a_partition_was_given_back(self, known: Suspicion, begins: int, then: Suspicion) -> None:
        assert known.after_handover(begins) == then

    def test_three_deaths_of_one_message_come_to_its_letter_wherever_the_commits_stand(self) -> None:
        first = Suspicion().after_death(0)
        second = Suspicion(deaths=first.deaths, first=40, last=43).after_death(17)
        third = Suspicion(deaths=second.deaths, first=42, last=43, alone=42).after_death(17)
        assert third.guilty == 42


class TestTheGate:
    def lanes(self, gate: Gate, *partitions: int) -> tuple[Lanes, list[Lane]]:
        lanes = Lanes()
        gate.join(lanes)
        opened = [lanes.open(("flights", number)) for number in partitions]
        for lane in opened:
            lanes.take(lane, [object()], 1)  # type: ignore[list-item]
        return lanes, opened

    def test_nothing_begins_beside_the_one_and_what_runs_is_waited_for(self) -> None:
        gate = Gate()
        lanes, (one, two, three) = self.lanes(gate, 0, 1, 2)
        others, (four,) = self.lanes(gate, 3)
        assert lanes.next(0) is one
        assert lanes.next(0) is two
        assert not gate.close(one), "Two still runs."
        assert lanes.next(0) is None
        assert others.next(0) is None, "Nor does a lane of another consumer begin."
        lanes.give_back(two)
        assert gate.close(one)
        assert not gate.close(two), "There is only one at a time."
        assert lanes.next(0) is None
        lanes.give_back(one)
        assert lanes.next(0) is one, "It may go on itself."
        gate.open(two)
        assert lanes.next(0) is None
        gate.open(one)
        assert {lanes.next(0), lanes.next(0)} == {two, three}
        assert others.next(0) is four

    def test_a_thread_that_waits_for_a_lane_of_another_consumer_is_woken(self) -> None:
        gate = Gate()
        _lanes, (one,) = self.lanes(gate, 0)
        others, (two,) = self.lanes(gate, 1)
        assert gate.close(one)
        found: list[Lane | None] = []
        thread = threading.Thread(target=lambda: found.append(others.next(30)))
        thread.start()
        began = time.monotonic()
        gate.open(one)
        thread.join(10)
        assert found == [two]
        assert time.monotonic() - began < 5

    def test_one_that_leaves_before_its_turn_holds_nobody_up(self) -> None:
        gate = Gate()
        lanes, (one, two) = self.lanes(gate, 0, 1)
        assert lanes.next(0) is one
        assert gate.close(one)
        lanes.halt([one.place])
        assert lanes.next(0) is None, "It still runs."
        lanes.give_back(one)
        assert lanes.next(0) is two

    def test_a_replay_and_the_one_exclude_each_other(self) -> None:
        gate = Gate()
        _lanes, (one,) = self.lanes(gate, 0)
        with gate.beside() as allowed:
            assert allowed
            assert not gate.close(one)
        assert gate.close(one)
        with gate.beside() as allowed:
            assert not allowed
        gate.open(one)
        with gate.beside() as allowed:
            assert allowed


FAST: dict[str, Any] = {"heartbeats": {"interval": "100ms"}}


def history(workplace: Workplace, partition: int = 0, *, worker: str = "dead", **known: Any) -> Tenure:
    """Write what a former worker left."""
    return Tenure.objects.create(
        cluster="default", group_id=workplace.group, topic=workplace.topic, partition=partition, worker=worker, **known
    )


def heard_of(name: str, seconds_ago: float) -> Row:
    now = timezone.now()
    return Row.objects.create(
        id=name, consumer=NAME, group_id="g", host="h", pid=1, version="1", started_at=now,
        seen_at=now - timedelta(seconds=seconds_ago),
    )  # fmt: skip


def known(partition: int = 0) -> dict[str, Any]:
    return Tenure.objects.values("worker", "deaths", "first", "last", "alone", "guilty").get(partition=partition)


CLEAN = {"worker": "", "deaths": 0, "first": None, "last": None, "alone": None, "guilty": None}


def run(**options: Any) -> None:
    """Run a whole worker process until nothing is left to read."""
    Crew([NAME], until_empty=True, **options).run()


@pytest.mark.django_db(transaction=True)
class TestTenures:
    def test_a_worker_writes_its_name_down_when_messages_come_and_takes_it_out_at_the_end(
        self, workplace: Workplace
    ) -> None:
        during: list[dict[str, Any]] = []
        seen = Seen(lambda _message: during.append(known()))
        workplace.consume(seen, transaction="none", kafka=FAST)
        workplace.send([1])
        run()
        (one,) = during
        assert len(one.pop("worker")) == 32
        assert one.items() <= CLEAN.items()
        assert known() == CLEAN

    def test_nothing_is_written_per_message_in_normal_times(self, workplace: Workplace) -> None:
        statements: list[str] = []

        def count(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
            statements.append(sql)
            return execute(sql, *rest)

        def handle(message: Message) -> None:
            if message.offset == 0:
                # What this thread does from the second message on, of many slices.
                connection.execute_wrappers.append(count)

        seen = Seen(handle)
        workplace.consume(seen, transaction="none", max_poll_records=50, kafka=FAST)
        workplace.send(range(1000))
        run()
        assert len(seen.places) == 1000
        assert [sql for sql in statements if "tenure" in sql] == []

    def test_a_partition_that_leaves_is_written_off_while_the_worker_goes_on(self, workplace: Workplace) -> None:
        seen = Seen()
        # A session that a busy machine does not miss.
        workplace.consume(seen, partitions=2, transaction="none", session_timeout="4s", kafka=FAST)
        workplace.send([1], partition=0)
        workplace.send([1], partition=1)
        crew = Crew([NAME])
        thread = threading.Thread(target=crew.run)
        thread.start()
        try:
            seen.wait(2)
            with workplace.worker() as other:
                (lane,) = wait_until(lambda: list(other.lanes) if len(other.lanes) == 1 else None)
                wait_until(lambda: known(lane.place[1])["worker"] == "")
                assert known(1 - lane.place[1])["worker"] != ""
        finally:
            crew.stop()
            thread.join(20)
        assert not thread.is_alive()
        assert known(0) == known(1) == CLEAN

    def test_without_heartbeats_nobody_watches(self, workplace: Workplace) -> None:
        seen = Seen()
        workplace.consume(seen, kafka={"heartbeats": {"enabled": False}})
        workplace.send([1])
        run()
        assert seen.places == [(0, 0)]
        assert not Tenure.objects.exists()

    def test_a_database_that_refuses_holds_the_partition_and_nothing_else(
        self, workplace: Workplace, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen = Seen()
        workplace.consume(seen, transaction="none", kafka=FAST)
        workplace.send([1, 2])
        crew = Crew([NAME])
        thread = threading.Thread(target=crew.run)
        try:
            with refusing("lynx_kafka_tenure"):
                thread.start()
                wait_until(lambda: "what deaths have told of it cannot be read or written" in caplog.text)
                assert crew.workers[0].alive
                assert seen.places == []
            seen.wait(2)
        finally:
            crew.stop()
            thread.join(30)
        assert crew.error is None
        assert seen.places == [(0, 0), (0, 1)]


@pytest.mark.django_db(transaction=True)
class TestTheFormerWorker:
    def test_one_whose_row_is_gone_has_died(self, workplace: Workplace) -> None:
        during: list[dict[str, Any]] = []
        workplace.consume(Seen(lambda _message: during.append(known())), transaction="none", kafka=FAST)
        workplace.send([1])
        history(workplace)
        run()
        assert during[0]["deaths"] == 1

    def test_one_that_was_not_heard_of_for_three_beats_has_died(self, workplace: Workplace) -> None:
        during: list[dict[str, Any]] = []
        workplace.consume(Seen(lambda _message: during.append(known())), transaction="none", kafka=FAST)
        workplace.send([1])
        history(workplace)
        heard_of("dead", 0.5)
        run()
        assert during[0]["deaths"] == 1

    def test_one_whose_clock_is_ahead_has_died_when_it_stays_silent(
        self, workplace: Workplace, caplog: pytest.LogCaptureFixture
    ) -> None:
        during: list[dict[str, Any]] = []
        workplace.consume(Seen(lambda _message: during.append(known())), transaction="none", kafka=FAST)
        workplace.send([1])
        history(workplace)
        heard_of("dead", -3600)
        with caplog.at_level("INFO"):
            run()
        assert during[0]["deaths"] == 1
        assert caplog.text.count("waits until it is known whether its former worker is dead") == 1

    def test_one_that_lives_has_not_died_with_its_partition(self, workplace: Workplace) -> None:
        during: list[dict[str, Any]] = []
        workplace.consume(
            Seen(lambda _message: during.append(known())), transaction="none", kafka={"heartbeats": {"interval": "2s"}}
        )
        workplace.send([1])
        history(workplace, worker="living")
        heard_of("living", 0)
        ended = threading.Event()

        def live() -> None:
            while not ended.wait(0.1):
                Row.objects.filter(pk="living").update(seen_at=timezone.now())
            connection.close()

        heart = threading.Thread(target=live)
        heart.start()
        try:
            run()
        finally:
            ended.set()
            heart.join()
        assert during[0]["deaths"] == 0

    def test_a_message_that_stops_its_worker_by_an_exception_has_killed_it(self, workplace: Workplace) -> None:
        def handle(message: Message) -> None:
            if message.value == "exit":
                raise SystemExit

        workplace.consume(Seen(handle), partitions=2, transaction="none", concurrency=1, kafka=FAST)
        workplace.send(["go"], partition=1)
        run()
        workplace.send(["exit"], partition=0)
        crew = Crew([NAME])
        crew.run()
        assert isinstance(crew.error, SystemExit)
        assert known(0)["worker"] != ""
        assert known(1)["worker"] == ""
        assert not Row.objects.exists()

    def test_its_death_is_known_before_others_may_have_its_partitions_though_it_still_beats(
        self, workplace: Workplace
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def handle(message: Message) -> None:
            if message.value == "exit":
                raise SystemExit
            begun.set()
            assert go_on.wait(20)

        workplace.consume(Seen(handle), partitions=2, transaction="none", concurrency=2, kafka=FAST)
        workplace.send(["slow"], partition=1)
        crew = Crew([NAME])
        thread = threading.Thread(target=crew.run)
        thread.start()
        try:
            assert begun.wait(20)
            workplace.send(["exit"], partition=0)
            wait_until(lambda: crew.error is not None, 20, "the worker goes on")
            assert Row.objects.filter(pk=known(1)["worker"]).exists(), "It lives on for what runs."
            assert known(0)["worker"] != ""
            assert not Row.objects.filter(pk=known(0)["worker"]).exists()
        finally:
            go_on.set()
            thread.join()
        assert isinstance(crew.error, SystemExit)
        assert known(0)["worker"] != ""
        assert known(1)["worker"] == ""


@pytest.mark.django_db(transaction=True)
class TestAfterDeaths:
    def test_after_the_first_what_runs_is_marked_and_in_the_end_forgotten(
        self, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deaths, "CAREFUL_FOR", 0.4)
        marks: list[tuple[int, int, int, int]] = []

        def handle(message: Message) -> None:
            now = known()
            marks.append((message.offset, now["deaths"], now["first"] or -1, now["last"] or -1))
            time.sleep(0.01)

        workplace.consume(Seen(handle), transaction="none", auto_commit_interval="10ms", kafka=FAST)
        workplace.send(range(100))
        history(workplace)
        run()
        careful = [one for one in marks if one[1]]
        assert [one[0] for one in marks] == list(range(100))
        assert 0 < len(careful) < 100, "The time of care is over before the end."
        assert careful == marks[: len(careful)]
        assert all(first <= offset <= last for offset, _deaths, first, last in careful[1:])
        steps = [last - first for _offset, _deaths, first, last in careful[1:]]
        assert max(steps, default=0) < 20, "Few at a time, by their pace."
        assert known() == CLEAN

    def test_after_the_second_the_suspects_are_run_alone_and_acquitted(self, workplace: Workplace) -> None:
        running: set[tuple[int, int]] = set()
        together: list[tuple[int, int]] = []
        marks: dict[int, Any] = {}
        lock, both = threading.Lock(), threading.Barrier(2, timeout=20)

        def handle(message: Message) -> None:
            me = message.partition, message.offset
            if message.offset == 0:
                both.wait()
            with lock:
                running.add(me)
                together.extend(one for one in running if len(running) > 1)
            if message.partition == 0:
                marks[message.offset] = known()["alone"]
            time.sleep(0.005 if message.partition == 0 else 0.01)
            with lock:
                together.extend(one for one in running if len(running) > 1)
                running.remove(me)

        seen = Seen(handle)
        workplace.consume(seen, partitions=2, concurrency=2, transaction="none", max_poll_records=5, kafka=FAST)
        workplace.send(range(40), partition=0)
        workplace.send(range(80), partition=1)
        history(workplace, deaths=1, first=10, last=14)
        run()
        assert {offset for offset, mark in marks.items() if mark is not None} == set(range(10, 15))
        assert all(marks[offset] == offset for offset in range(10, 15))
        assert together, "Two threads did work at a time."
        assert not {(0, offset) for offset in range(10, 15)} & set(together)
        assert seen.of(0) == list(range(40))
        assert seen.of(1) == list(range(80))
        assert known() == CLEAN
        assert workplace.letters() == []

    def test_others_make_way_after_the_message_that_runs(self, workplace: Workplace) -> None:
        when: list[int] = []

        def handle(message: Message) -> None:
            if message.partition == 0:
                when.append(len(seen.of(1)))
            elif not when:
                time.sleep(0.05)

        seen = Seen(handle)
        workplace.consume(seen, partitions=2, concurrency=2, transaction="none", kafka=FAST)
        workplace.send(range(400), partition=1)
        history(workplace, deaths=1, first=0, last=0)
        crew = Crew([NAME])
        thread = threading.Thread(target=crew.run)
        thread.start()
        try:
            seen.wait(3)
            workplace.send(["suspect"], partition=0)
            wait_until(lambda: when)
            assert when[0] < 390, "It did not wait for the end of a long slice."
            seen.wait(401)
        finally:
            crew.stop()
            thread.join(30)
        assert seen.of(1) == list(range(400))

    def test_a_handler_that_hangs_elsewhere_does_not_stop_all_others_for_it(
        self, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deaths, "_PATIENCE", 0.2)
        go_on, hangs = threading.Event(), threading.Event()

        def handle(message: Message) -> None:
            if message.value == "hang":
                hangs.set()
                assert go_on.wait(20)
            if message.partition == 0:
                assert go_on.is_set(), "It was not alone."

        seen = Seen(handle)
        workplace.consume(seen, partitions=3, concurrency=3, transaction="none", kafka=FAST)
        workplace.send(["hang"], partition=1)
        history(workplace, deaths=1, first=0, last=0)
        crew = Crew([NAME])
        thread = threading.Thread(target=crew.run)
        thread.start()
        try:
            assert hangs.wait(20)
            workplace.send(["suspect"], partition=0)
            wait_until(lambda: crew.workers[0].lanes.gate.only is not None)  # type: ignore[union-attr]
            workplace.send(["go"], partition=2)
            seen.wait(1)
            assert seen.places == [(2, 0)]
            go_on.set()
            seen.wait(3)
        finally:
            go_on.set()
            crew.stop()
            thread.join(30)
        assert not thread.is_alive()

    def test_after_the_third_the_one_that_ran_alone_becomes_a_dead_letter_and_is_not_run(
        self, workplace: Workplace
    ) -> None:
        seen = Seen()
        workplace.consume(seen, partitions=2, transaction="none", retry={"max_retries": 0}, kafka=FAST)
        workplace.send(range(20), timestamp=1_700_000_000_000)
        before = tallies.of_consumer(NAME).dead_lettered
        history(workplace, deaths=2, first=6, last=9, alone=7, timestamp_ms=1_700_000_000_000)
        run()
        assert seen.of(0) == [one for one in range(20) if one != 7]
        (letter,) = workplace.letters()
        assert (letter.offset, letter.error_type) == (7, "django_kafka.exceptions.WorkerKilled")
        assert "3 workers in a row died with this message" in letter.error_message
        assert letter.category == "handler"
        assert tallies.of_consumer(NAME).dead_lettered == before + 1
        assert workplace.committed()[0] == 20
        assert known() == CLEAN

    def test_a_dead_letter_that_cannot_be_stored_holds_the_partition_before_the_guilty_one(
        self, workplace: Workplace, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen = Seen()
        workplace.consume(seen, transaction="none", kafka=FAST)
        workplace.send(range(4), timestamp=1_700_000_000_000)
        history(workplace, deaths=2, first=1, last=1, alone=1, timestamp_ms=1_700_000_000_000)
        crew = Crew([NAME], until_empty=True)
        thread = threading.Thread(target=crew.run)
        try:
            with refusing("lynx_kafka_deadletter"):
                thread.start()
                wait_until(lambda: "its dead letter could not be written" in caplog.text)
                assert seen.of(0) == [0]
                assert known()["guilty"] == 1, "A death now would not acquit it."
        except BaseException:
            crew.stop()
            raise
        finally:
            thread.join(30)
        assert not thread.is_alive()
        assert seen.of(0) == [0, 2, 3]
        assert [one.offset for one in workplace.letters()] == [1]

    def test_its_dead_letter_waits_for_no_others(self, workplace: Workplace) -> None:
        stored: list[int] = []

        def handle(message: Message) -> None:
            if message.offset < 4:
                raise ZeroDivisionError
            stored.extend(letter.offset for letter in workplace.letters())

        workplace.consume(Seen(handle), transaction="none", retry={"max_retries": 0}, kafka=FAST)
        workplace.send(range(6), timestamp=1_700_000_000_000)
        history(workplace, deaths=2, first=4, last=4, alone=4, timestamp_ms=1_700_000_000_000)
        run()
        assert stored == [0, 1, 2, 3, 4], "Who suffers a surge of failures stores letters together."

    def test_another_message_at_the_same_offset_is_not_blamed(self, workplace: Workplace) -> None:
        seen = Seen()
        workplace.consume(seen, transaction="none", kafka=FAST)
        workplace.send(range(3), timestamp=1_700_000_000_001)
        history(workplace, deaths=2, first=1, last=1, alone=1, timestamp_ms=1_700_000_000_000)
        run()
        assert seen.of(0) == [0, 1, 2]
        assert workplace.letters() == []
        assert known() == CLEAN

    def test_a_failure_while_it_runs_alone_is_an_ordinary_failure(self, workplace: Workplace) -> None:
        def handle(message: Message) -> None:
            if message.offset == 1:
                raise ZeroDivisionError

        seen = Seen(handle)
        workplace.consume(seen, transaction="none", retry={"max_retries": 0}, kafka=FAST)
        workplace.send(range(4))
        history(workplace, deaths=1, first=1, last=2)
        run()
        assert seen.of(0) == [0, 2, 3]
        (letter,) = workplace.letters()
        assert letter.error_type == "ZeroDivisionError"
        assert known() == CLEAN
