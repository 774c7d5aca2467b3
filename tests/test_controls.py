"""Control of workers: requests are taken by whoever has the partition, carried out by its poller, and answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from django_kafka import claims, controls
from django_kafka.consuming import controlling
from django_kafka.consuming.controls import expire
from django_kafka.consuming.crew import Crew
from django_kafka.consuming.worker import Worker as Working
from django_kafka.controls import ControlRefused, Offset, Shift, Since
from django_kafka.exceptions import UnknownName
from django_kafka.messages import Message
from django_kafka.models import AuditEntry, Claim, Control, Pause, Worker, WorkerPartition
from django_kafka.monitoring import health, lag, metrics
from tests.app.models import Effect
from tests.consuming import NAME, Seen, Workplace
from tests.servers.processes import wait_until

GUARANTEES = pytest.mark.parametrize("guarantee", ["at_most_once", "at_least_once", "effect_once"])
BEATS = {"heartbeats": {"interval": "600ms"}}


@contextmanager
def crew() -> Iterator[Working]:
    """Run the consumer as a process does, with heartbeats; stop it in the end."""
    one = Crew([NAME])
    thread = threading.Thread(target=_run, args=(one,))
    thread.start()
    try:
        wait_until(lambda: Worker.objects.filter(consumer=NAME).exists())
        yield one.workers[0]
    finally:
        one.stop()
        thread.join(30)
    assert not thread.is_alive()
    assert one.error is None


def _run(one: Crew) -> None:
    try:
        one.run()
    finally:
        connection.close()


def done(control: Control, state: str = "done") -> Control:
    """Wait until a request has come to its end; return it as it is then."""

    def look() -> bool:
        control.refresh_from_db()
        return control.state not in Control.OUTSTANDING

    wait_until(look, 30, "the request is not done")
    assert control.state == state, control.result
    return control


def quiet(seen: Seen, seconds: float = 1.0) -> bool:
    """Tell whether nothing is handled for a while."""
    before = len(seen.places)
    time.sleep(seconds)
    return len(seen.places) == before


@GUARANTEES
@pytest.mark.parametrize("ordering", ["partition", "key"])
def test_a_paused_consumer_handles_nothing_until_it_is_resumed(
    workplace: Workplace, guarantee: str, ordering: str
) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2, guarantee=guarantee, ordering=ordering, kafka=BEATS)
    workplace.send(range(20))
    with crew() as worker:
        seen.wait(20)
        asked = controls.pause(NAME, user="anna", reason="the gate moves")
        assert asked.state == "requested"
        assert done(asked).result == "2 partitions paused; what ran is finished."
        assert "anna" in worker.paused
        workplace.send(range(20, 40))
        workplace.send(range(40, 50), partition=1)
        assert quiet(seen)
        assert worker.lanes.in_flight == 0
        done(controls.resume(NAME, user="ben"))
        seen.wait(50)
        assert worker.paused == ""
    assert sorted(seen.values) == list(range(50))
    assert not Pause.objects.exists()


@GUARANTEES
def test_one_partition_is_paused_and_the_others_go_on(workplace: Workplace, guarantee: str) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2, guarantee=guarantee, kafka=BEATS)
    with crew():
        done(controls.pause(NAME, topic=workplace.topic, partition=0))
        workplace.send(range(5), partition=0)
        workplace.send(range(5, 10), partition=1)
        seen.wait(5)
        assert quiet(seen)
        assert seen.of(1) == list(range(5))
        with pytest.raises(ControlRefused, match="not paused"):
            controls.resume(NAME, topic=workplace.topic, partition=1)
        done(controls.resume(NAME, topic=workplace.topic, partition=0))
        seen.wait(10)
    assert seen.of(0) == list(range(5))


@GUARANTEES
@pytest.mark.parametrize("ordering", ["partition", "key", "unordered"])
def test_what_was_fetched_when_a_pause_came_is_handled_once_after_it(
    workplace: Workplace, guarantee: str, ordering: str
) -> None:
    held, gate = threading.Event(), threading.Event()

    def wait(message: Message) -> None:
        if message.value % 7 == 3:
            held.set()
            gate.wait(30)

    seen = Seen(wait)
    # In several fetches, of which some wait to be committed where that comes before handling.
    few = {"concurrency": 3, "max_poll_records": 12}
    workplace.consume(seen, guarantee=guarantee, ordering=ordering, kafka=BEATS, **few)
    workplace.send(range(60), key_of=lambda number: b"%d" % (number % 6))
    with crew() as worker:
        wait_until(held.is_set)
        asked = controls.pause(NAME)
        wait_until(lambda: all(one.suspended for one in worker.lanes))
        wait_until(lambda: Control.objects.get().state != "requested")
        time.sleep(1.5)
        assert Control.objects.get().state == "accepted"
        gate.set()
        done(asked)
        before = len(seen.places)
        assert quiet(seen)
        assert before < 60
        done(controls.resume(NAME))
        seen.wait(60)
    assert Counter(seen.values) == Counter(range(60))


def test_a_pause_is_not_done_because_of_one_before_it(workplace: Workplace) -> None:
    held, gate = threading.Event(), threading.Event()

    def wait(message: Message) -> None:
        held.set()
        gate.wait(30)

    seen = Seen(wait)
    # Rows of partitions are as old as that, and looks come every second.
    workplace.consume(seen, kafka={"heartbeats": {"interval": "4s"}})
    with crew() as worker:
        wait_until(lambda: len(worker.lanes) == 1)
        done(controls.pause(NAME))
        controls.resume(NAME)
        workplace.send([1])
        wait_until(held.is_set, every=0.01)
        assert WorkerPartition.objects.get().paused, "its row is as it was before"
        asked = controls.pause(NAME)
        wait_until(lambda: all(one.suspended for one in worker.lanes))
        wait_until(lambda: not WorkerPartition.objects.get().paused)
        asked.refresh_from_db()
        assert asked.state == "accepted", asked.result
        gate.set()
        assert done(asked).result == "1 partition paused; what ran is finished."
    seen.wait(1)


def test_a_pause_survives_those_who_have_it(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2, kafka=BEATS)
    with crew() as first:
        wait_until(lambda: len(first.lanes) == 2)
        done(controls.pause(NAME, topic=workplace.topic, partition=0))
        workplace.send(range(5), partition=0)
        with crew() as second:
            wait_until(lambda: len(first.lanes) == len(second.lanes) == 1)
            workplace.send(range(5, 8), partition=1)
            seen.wait(3)
            assert quiet(seen)
    with crew():
        workplace.send(range(8, 10), partition=1)
        seen.wait(5)
        assert quiet(seen)
        assert seen.of(0) == []
        done(controls.resume(NAME))
        seen.wait(10)
    assert seen.of(0) == list(range(5))


def test_a_pause_without_workers_holds_for_whoever_starts(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, kafka=BEATS)
    workplace.send(range(5))
    asked = controls.pause(NAME, reason="night")
    Control.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert controls.requests().get(pk=asked.pk).overdue
    assert expire("default") == 1
    asked.refresh_from_db()
    assert "whoever starts next" in asked.result
    with crew() as worker:
        wait_until(lambda: len(worker.lanes) == 1)
        assert quiet(seen)
        assert seen.places == []
        done(controls.resume(NAME))
        seen.wait(5)


@GUARANTEES
@pytest.mark.parametrize("ordering", ["partition", "key"])
def test_a_seek_back_reads_again_what_the_dry_run_said(workplace: Workplace, guarantee: str, ordering: str) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2, guarantee=guarantee, ordering=ordering, kafka=BEATS)
    workplace.send(range(30), key_of=lambda number: b"%d" % (number % 5))
    workplace.send(range(30, 40), partition=1)
    with crew():
        seen.wait(40)
        wait_until(lambda: workplace.committed() == {0: 30, 1: 10})
        # Where messages overtake one another, claims are moved every second.
        wait_until(lambda: not Claim.objects.exclude(offset__in=(10, 30)).exists())
        planned, nothing = controls.seek(NAME, Offset(12), topic=workplace.topic, partitions=[0], dry_run=True)
        assert (planned.again, planned.skipped, nothing) == (18, 0, [])
        assert quiet(seen)
        _planned, [asked] = controls.seek(NAME, Offset(12), topic=workplace.topic, partitions=[0], user="anna")
        assert done(asked).result == "It goes on at 12, and was at 30: 18 messages read again."
        seen.wait(40 + planned.again)
        workplace.send([40])
        seen.wait(41 + planned.again)
        assert quiet(seen)
        assert Counter(seen.of(0)) == Counter([*range(31), *range(12, 30)])
        assert sorted(seen.of(1)) == list(range(10))
        wait_until(lambda: workplace.committed() == {0: 31, 1: 10})


@GUARANTEES
def test_a_seek_forward_skips_what_the_dry_run_said(workplace: Workplace, guarantee: str) -> None:
    seen = Seen()
    workplace.consume(seen, guarantee=guarantee, kafka=BEATS)
    workplace.send(range(5))
    with crew():
        seen.wait(5)
        wait_until(lambda: workplace.committed() == {0: 5})
        done(controls.pause(NAME))
        workplace.send(range(5, 30))
        planned, [asked] = controls.seek(NAME, Shift(15))
        assert (planned.again, planned.skipped) == (0, 15)
        assert done(asked).result == "It goes on at 20, and was at 5: 15 messages skipped."
        assert quiet(seen)
        done(controls.resume(NAME))
        seen.wait(15)
        assert quiet(seen)
    assert seen.of(0) == [*range(5), *range(20, 30)]
    assert workplace.committed() == {0: 30}


@GUARANTEES
def test_a_seek_by_time_in_the_midst_of_traffic_loses_nothing(workplace: Workplace, guarantee: str) -> None:
    seen = Seen(lambda message: time.sleep(0.002))
    workplace.consume(seen, guarantee=guarantee, concurrency=2, kafka=BEATS)
    now = round(time.time() * 1000)
    for number in range(10):
        workplace.send(range(number * 10, number * 10 + 10), timestamp=now - (10 - number) * 60_000)
    with crew():
        seen.wait(40)
        at = datetime.fromtimestamp(now / 1000 - 9 * 60, UTC)
        planned, asked = controls.seek(NAME, Since(at))
        assert ([move.to for move in planned.moves], len(asked)) == ([10], 1), planned.moves
        workplace.send(range(100, 150))
        for one in asked:
            done(one)

        def went_back() -> int | None:
            handled = seen.of(0)
            return next((index for index in range(1, len(handled)) if handled[index] < handled[index - 1]), None)

        # First that: what the group has, and what was handled, may be from before.
        wait_until(went_back, 30, "nothing is read again")
        wait_until(lambda: workplace.committed() == {0: 150} and seen.of(0)[-1] == 149)
        assert quiet(seen)
    handled, back = seen.of(0), went_back()
    assert set(handled) == set(range(150))
    assert handled[back:] == list(range(10, 150))


def test_effects_of_a_seek_are_there_once_for_each_reading(workplace: Workplace) -> None:
    def leave(message: Message) -> None:
        Effect.objects.create(topic=message.topic, partition=0, offset=message.offset, payload=message.value)

    seen = Seen(leave)
    workplace.consume(seen, guarantee="effect_once", kafka=BEATS)
    workplace.send(range(20))
    with crew():
        wait_until(lambda: Effect.objects.count() == 20)
        epoch = Claim.objects.get().epoch
        _planned, [asked] = controls.seek(NAME, Offset(5))
        done(asked)
        wait_until(lambda: Effect.objects.count() == 35)
        assert Claim.objects.get().epoch > epoch
        assert quiet(seen)
        assert Claim.objects.get().offset == 20
    assert Counter(Effect.objects.values_list("offset", flat=True)) == Counter([*range(20), *range(5, 20)])


@GUARANTEES
def test_a_seek_to_where_the_group_stands_moves_a_worker_that_is_further(workplace: Workplace, guarantee: str) -> None:
    seen = Seen()
    workplace.consume(seen, guarantee=guarantee, kafka=BEATS, auto_commit_interval="60s")
    workplace.send(range(10))
    with crew():
        seen.wait(10)
    assert workplace.committed() == {0: 10}
    with crew():
        workplace.send(range(10, 40))
        seen.wait(40)
        _planned, asked = controls.seek(NAME, Offset(10))
        for one in asked:
            done(one)
        seen.wait(70)
    assert seen.of(0) == [*range(40), *range(10, 40)]


def test_a_seek_without_workers_moves_the_group_at_once(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, kafka=BEATS)
    workplace.send(range(10))
    with crew():
        seen.wait(10)
    _planned, [asked] = controls.seek(NAME, Offset(4), user="anna")
    assert asked.state == "done"
    assert "6 read again" in asked.result
    assert workplace.committed() == {0: 4}
    with crew():
        seen.wait(16)
    assert seen.of(0) == [*range(10), *range(4, 10)]


def test_a_worker_drains_and_stops(workplace: Workplace) -> None:
    gate = threading.Event()
    seen = Seen(lambda message: gate.wait(30) and None)
    workplace.consume(seen, kafka=BEATS)
    workplace.send(range(3))
    one = Crew([NAME])
    thread = threading.Thread(target=_run, args=(one,))
    thread.start()
    try:
        wait_until(lambda: one.workers[0].lanes.in_flight == 3)
        wait_until(lambda: Worker.objects.exists())
        asked = controls.stop_worker(Worker.objects.get(), user="anna")
        wait_until(lambda: Control.objects.get().state == "accepted")
        assert thread.is_alive()
        gate.set()
        assert done(asked).result == "It has finished what ran, and left its group."
        thread.join(20)
        assert not thread.is_alive()
    finally:
        gate.set()
        one.stop()
        thread.join(20)
    assert workplace.committed()[0] == len(seen.places) > 0
    assert not Worker.objects.exists()


def test_a_breaker_is_closed(workplace: Workplace) -> None:
    mended = threading.Event()

    def fail(message: Message) -> None:
        if not mended.is_set():
            raise ValueError

    seen = Seen(fail)
    breaker = {"failure_ratio": 0.5, "window": 4, "cooldown": "1m"}
    workplace.consume(seen, circuit_breaker=breaker, kafka=BEATS)
    workplace.send(range(20))
    with crew() as worker:
        wait_until(lambda: worker.circuit.limited)
        wait_until(lambda: Worker.objects.filter(circuit="open").exists())
        mended.set()
        row = Worker.objects.get()
        assert done(controls.close_breaker(row, user="anna")).result == "It is closed."
        wait_until(lambda: workplace.committed() == {0: 20})
        row.refresh_from_db()
        with pytest.raises(ControlRefused, match="is closed"):
            controls.close_breaker(row)


def living(pk: str, group: str, **fields: Any) -> Worker:
    """A row of a worker that was heard of just now."""
    now = timezone.now()
    usual = {
        "consumer": NAME,
        "group_id": group,
        "host": "h",
        "pid": 1,
        "version": "1",
        "started_at": now,
        "seen_at": now,
    }
    return Worker.objects.create(id=pk, **{**usual, **fields})


def test_a_request_whose_worker_died_is_taken_by_the_next_owner(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, kafka=BEATS)
    workplace.send(range(10))
    with crew():
        seen.wait(10)
    dead = living("dead", workplace.group, seen_at=timezone.now() - timedelta(minutes=5))
    alive = living("alive", workplace.group)
    WorkerPartition.objects.create(worker=dead.pk, topic=workplace.topic, partition=0)
    _planned, [asked] = controls.seek(NAME, Offset(4))
    alive.delete()
    Control.objects.update(state="accepted", taken_by=dead.pk)
    with crew():
        assert done(asked).result.startswith("It goes on at 4")
        seen.wait(16)
    assert seen.of(0) == [*range(10), *range(4, 10)]


def test_a_request_that_nobody_takes_expires_with_its_reason(workplace: Workplace) -> None:
    workplace.consume(Seen(), partitions=2, kafka=BEATS)
    alive = living("alive", workplace.group)
    asked = controls.stop_worker(alive)
    alive.delete()
    assert expire("default") == 0
    Control.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    found = controls.requests().get(pk=asked.pk)
    assert (found.state, found.overdue) == ("requested", True), "who only looks writes nothing"
    assert expire("default") == 1
    found = controls.requests().get(pk=asked.pk)
    assert (found.state, found.overdue, "Nobody took it" in found.result) == ("expired", False, True)
    taken = controls.stop_worker(living("alive", workplace.group))
    Control.objects.filter(pk=taken.pk).update(state="accepted", taken_by="alive", expires_at=asked.requested_at)
    assert expire("default") == 0
    Worker.objects.all().delete()
    assert expire("default") == 1
    taken.refresh_from_db()
    assert taken.result == "The worker that took it is gone."


def test_an_expired_request_is_never_carried_out(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, kafka=BEATS)
    workplace.send(range(10))
    with crew():
        seen.wait(10)
    alive = living("alive", workplace.group)
    _planned, [asked] = controls.seek(NAME, Offset(4))
    alive.delete()
    Control.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    with crew():
        done(asked, "expired")
        assert quiet(seen)
    assert len(seen.places) == 10


@pytest.mark.parametrize("to", [0, 50])
@pytest.mark.parametrize("end", ["expired", "taken"])
def test_a_seek_that_is_given_up_while_what_runs_is_waited_for_moves_nothing(
    workplace: Workplace, to: int, end: str
) -> None:
    held, gate = threading.Event(), threading.Event()

    def leave(message: Message) -> None:
        if message.value == 10 and not held.is_set():
            held.set()
            gate.wait(30)
        Effect.objects.create(topic=message.topic, partition=0, offset=message.offset, payload=message.value)

    seen = Seen(leave)
    workplace.consume(seen, guarantee="effect_once", kafka=BEATS)
    workplace.send(range(60))
    with crew() as worker:
        wait_until(held.is_set)
        paused = controls.pause(NAME)
        wait_until(lambda: Control.objects.get(pk=paused.pk).state == "accepted")
        _planned, [asked] = controls.seek(NAME, Offset(to))
        wait_until(lambda: [one for one in worker.lanes if one.suspended and one.suspended.seek])
        # As somebody sees it to whom this worker was silent for too long.
        later = timezone.now() + timedelta(hours=1)
        other = living("other", "elsewhere", seen_at=later)
        given_up = {"state": "expired"} if end == "expired" else {"taken_by": other.pk}
        Control.objects.filter(pk=asked.pk).update(**given_up)
        gate.set()
        done(paused)
        wait_until(lambda: not [one for one in worker.lanes if one.suspended and one.suspended.seek])
        asked.refresh_from_db()
        assert (asked.result, Claim.objects.get().offset) == ("", 11)
        Control.objects.filter(pk=asked.pk).update(state="expired")
        _planned, [another] = controls.seek(NAME, Offset(5))
        assert done(another).result == "It goes on at 5, and was at 11: 6 messages read again."
        controls.resume(NAME)
        wait_until(lambda: Effect.objects.count() == 66, 30, "it does not go on")
        assert quiet(seen)
    assert Counter(Effect.objects.values_list("offset", flat=True)) == Counter([*range(60), *range(5, 11)])


def test_a_seek_of_a_worker_that_was_taken_for_dead_tells_that_it_was_carried_out(workplace: Workplace) -> None:
    held, gate = threading.Event(), threading.Event()

    def wait(message: Message) -> None:
        if message.value == 10 and not held.is_set():
            held.set()
            gate.wait(30)

    seen = Seen(wait)
    workplace.consume(seen, kafka=BEATS)
    workplace.send(range(20))
    with crew() as worker:
        wait_until(held.is_set)
        _planned, [asked] = controls.seek(NAME, Offset(5))
        wait_until(lambda: [one for one in worker.lanes if one.suspended and one.suspended.seek])
        Control.objects.filter(pk=asked.pk).update(state="expired")
        gate.set()
        wait_until(lambda: Control.objects.get(pk=asked.pk).state == "done")
        asked.refresh_from_db()
        assert asked.result == "It goes on at 5, and was at 11: 6 messages read again."
        seen.wait(26)
    assert seen.of(0) == [*range(11), *range(5, 20)]


def test_a_claim_that_was_moved_is_moved_also_when_nobody_said_so(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset, failed = claims.reset, []

    def lose_the_answer(*arguments: Any) -> Claim:
        moved = reset(*arguments)
        if not failed:
            failed.append(1)
            transaction.on_commit(_fail)
        return moved

    def _fail() -> None:
        raise OperationalError("the server closed the connection unexpectedly")

    monkeypatch.setattr(claims, "reset", lose_the_answer)
    seen = Seen()
    workplace.consume(seen, guarantee="effect_once", kafka=BEATS)
    workplace.send(range(20))
    with crew():
        wait_until(lambda: Claim.objects.filter(offset=20).exists())
        done(controls.pause(NAME))
        _planned, [asked] = controls.seek(NAME, Offset(5))
        done(asked)
        _planned, [other] = controls.seek(NAME, Offset(8))
        assert done(other).result == "It goes on at 8, and was at 5: 3 messages skipped."
        controls.resume(NAME)
        seen.wait(32)
        assert quiet(seen)
    assert failed
    assert seen.of(0) == [*range(20), *range(8, 20)]


def test_a_resume_is_done_without_the_partitions_that_somebody_pauses_meanwhile(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=3, kafka=BEATS)
    with crew():
        done(controls.pause(NAME))
        with transaction.atomic():
            resumed = controls.resume(NAME)
            paused = controls.pause(NAME, topic=workplace.topic, partition=0)
        assert done(resumed).result == "2 partitions going on. 1 partition stays paused: somebody paused it meanwhile."
        done(paused)
        done(controls.resume(NAME))

        done(controls.pause(NAME))
        with transaction.atomic():
            resumed = controls.resume(NAME)
            for number in range(3):
                controls.pause(NAME, topic=workplace.topic, partition=number)
        assert done(resumed, "expired").result == "Somebody paused it meanwhile."
        # What the first one waits for is not waited for twice.
        with transaction.atomic():
            first = controls.resume(NAME)
            controls.pause(NAME, topic=workplace.topic, partition=1)
            second = controls.resume(NAME)
        assert done(first, "expired").result == "Somebody asked for it once more."
        assert done(second).result == "3 partitions going on."


def test_what_is_wanted_of_everything_ends_what_was_wanted_of_a_part(workplace: Workplace) -> None:
    workplace.consume(Seen(), partitions=2, kafka=BEATS)
    place: dict[str, Any] = {"topic": workplace.topic, "partition": 0}
    part = controls.pause(NAME, **place)
    controls.resume(NAME)
    assert done(part, "expired").result == "Somebody wanted the opposite meanwhile."
    controls.pause(NAME, **place)
    part = controls.resume(NAME, **place)
    whole = controls.pause(NAME)
    assert done(part, "expired").result == "Somebody wanted the opposite meanwhile."
    assert Control.objects.get(pk=whole.pk).state == "requested"
    controls.pause(NAME, **place)
    assert Control.objects.get(pk=whole.pk).state == "requested"
    controls.resume(NAME)
    part = controls.pause(NAME, **place)
    controls.pause(NAME)
    assert Control.objects.get(pk=part.pk).state == "requested"


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_what_a_living_worker_waits_for_in_vain_comes_to_an_end(workplace: Workplace, verb: str) -> None:
    seen = Seen()
    workplace.consume(seen, kafka=BEATS)
    place: dict[str, Any] = {"topic": workplace.topic, "partition": 7}
    with crew():
        asked = controls.pause(NAME, **place)
        if verb == "resume":
            asked = controls.resume(NAME, **place)
        wait_until(lambda: Control.objects.get(pk=asked.pk).state == "accepted")
        Control.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        assert done(asked, "expired").result == "No worker had the partition in time; whoever gets it obeys."


def test_a_pause_that_what_runs_keeps_waiting_says_so_and_holds(workplace: Workplace) -> None:
    held, gate = threading.Event(), threading.Event()

    def wait(message: Message) -> None:
        if message.value == 3 and not held.is_set():
            held.set()
            gate.wait(30)

    seen = Seen(wait)
    workplace.consume(seen, partitions=2, kafka=BEATS)
    workplace.send(range(10))
    with crew():
        wait_until(held.is_set)
        asked = controls.pause(NAME)
        wait_until(lambda: sorted(WorkerPartition.objects.values_list("paused", flat=True)) == [False, True])
        wait_until(lambda: Control.objects.get(pk=asked.pk).state == "accepted")
        Control.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        said = done(asked, "expired").result
        assert said == "1 of 2 partitions paused in time; the others follow when what runs is finished."
        gate.set()
        wait_until(lambda: set(WorkerPartition.objects.values_list("paused", flat=True)) == {True})
        assert quiet(seen)
        assert len(seen.places) == 4
        done(controls.resume(NAME))
        seen.wait(10)


def test_a_pause_that_is_gone_is_waited_for_no_more(workplace: Workplace) -> None:
    workplace.consume(Seen(), kafka=BEATS)
    with crew():
        with transaction.atomic():
            asked = controls.pause(NAME)
            Pause.objects.all().delete()
        assert done(asked, "expired").result == "Somebody resumed it meanwhile."


def test_two_who_ask_at_once_are_told(workplace: Workplace) -> None:
    workplace.consume(Seen(), partitions=2, kafka=BEATS)
    workplace.send(range(5))
    living("alive", workplace.group)
    controls.pause(NAME, user="anna", reason="first")
    with pytest.raises(ControlRefused, match=r"Paused by anna since .*: first"):
        controls.pause(NAME, user="ben")
    controls.seek(NAME, Offset(3), topic=workplace.topic, partitions=[0], user="anna")
    with pytest.raises(ControlRefused, match="not done yet"):
        controls.seek(NAME, Offset(2), topic=workplace.topic, partitions=[0], user="ben")
    assert Control.objects.filter(verb="seek").count() == 1
    resumed = controls.resume(NAME, user="ben")
    assert Control.objects.get(verb="pause").state == "expired"
    assert resumed.state == "requested"
    with pytest.raises(ControlRefused, match="not paused"):
        controls.resume(NAME, user="anna")


def test_what_cannot_be_is_refused(workplace: Workplace, settings: Any) -> None:
    workplace.consume(Seen(), kafka=BEATS)
    with pytest.raises(UnknownName):
        controls.pause("other")
    with pytest.raises(ControlRefused, match="no topic of consumer"):
        controls.pause(NAME, topic="other", partition=0)
    with pytest.raises(ControlRefused, match="or neither"):
        controls.pause(NAME, topic=workplace.topic)
    with pytest.raises(ControlRefused, match="no number"):
        controls.pause(NAME, topic=workplace.topic, partition=-1)
    with pytest.raises(ControlRefused, match="no topic of consumer"):
        controls.seek(NAME, Offset(0), topic="other")
    gone = living("gone", workplace.group, seen_at=timezone.now() - timedelta(minutes=5))
    with pytest.raises(ControlRefused, match="not heard of"):
        controls.stop_worker(gone)
    settings.KAFKA = {**settings.KAFKA, "heartbeats": {"enabled": False}}
    with pytest.raises(ControlRefused, match="heartbeats"):
        controls.pause(NAME)
    assert not Control.objects.exists()
    assert not Pause.objects.exists()


def test_who_wanted_what_is_in_the_audit(workplace: Workplace) -> None:
    workplace.consume(Seen(), kafka=BEATS)
    controls.pause(NAME, topic=workplace.topic, partition=0, user="anna", reason="the gate moves")
    entry = AuditEntry.objects.get()
    assert (entry.user_name, entry.verb, entry.consumer, entry.topic, entry.reason) == (
        "anna", "control: pause", NAME, workplace.topic, "the gate moves",
    )  # fmt: skip


def test_health_and_metrics_say_who_paused(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2, kafka=BEATS)
    workplace.send(range(3))
    with crew() as worker:
        seen.wait(3)
        wait_until(lambda: workplace.committed()[0] == 3)
        done(controls.pause(NAME, user="anna", reason="the gate moves"))
        workplace.send(range(3, 10))
        assert worker.vitals().state == "paused"
        assert worker.vitals().not_live == ""
        wait_until(lambda: Worker.objects.get().state == "paused")
        component = health.consumer(NAME)
        assert any("Paused by anna since" in problem and "the gate moves" in problem for problem in component.problems)
        assert lag.of_consumer(NAME, max_age=0).messages == 7
        said = metrics.exposition().body.decode()
        assert f'lynx_kafka_consumer_partitions_paused_by_operator{{consumer="{NAME}"}} 2' in said.replace(".0", "")
        rows = WorkerPartition.objects.all()
        assert all(row.paused and "anna" in row.waits_for for row in rows)


def test_a_worker_that_cannot_reach_the_database_goes_on_with_what_it_knew(
    workplace: Workplace,
) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2, kafka=BEATS)
    with crew() as worker:
        done(controls.pause(NAME, topic=workplace.topic, partition=0))
        with hidden():
            workplace.send(range(5), partition=0)
            workplace.send(range(5), partition=1)
            seen.wait(5)
            assert quiet(seen, 2.5)
            assert worker.alive
        done(controls.resume(NAME))
        seen.wait(10)


@contextmanager
def hidden() -> Iterator[None]:
    """Have nobody know what is paused."""
    table = Pause._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO hidden")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE hidden RENAME TO {table}")


@GUARANTEES
def test_a_worker_that_begins_waits_to_hear_what_is_paused_but_not_for_ever(
    workplace: Workplace, guarantee: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2, guarantee=guarantee, kafka=BEATS)
    workplace.send(range(5))
    with hidden(), crew() as worker:
        wait_until(lambda: len(worker.lanes) == 2)
        assert quiet(seen)
        assert seen.places == []
        monkeypatch.setattr(controlling, "UNKNOWN_FOR", 0.0)
        seen.wait(5)
    assert seen.of(0) == list(range(5))
