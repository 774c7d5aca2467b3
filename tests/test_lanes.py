from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from django_kafka.consuming.lane import Lane, Place
from django_kafka.consuming.lanes import Lanes
from django_kafka.consuming.partition import Partition
from django_kafka.consuming.slices import Slice
from tests.servers.processes import wait_until

P0: Place = ("flights", 0)
P1: Place = ("flights", 1)


class Raw:
    """As much of a message as lanes look at."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset

    def __len__(self) -> int:
        return 10


def raws(first: int, count: int) -> list[Any]:
    return [Raw(offset) for offset in range(first, first + count)]


def settled_offset(lane: Partition) -> int | None:
    message = lane.settled_message()
    return None if message is None else message.offset()


def finish(lanes: Lanes, lane: Lane) -> None:
    lane.slices[0].done = len(lane.slices[0].messages)
    lanes.give_back(lane)


def test_slices_of_a_lane_come_one_after_another() -> None:
    lanes = Lanes()
    lane = lanes.open(P0)
    lanes.take(lane, raws(0, 3), 30)
    lanes.take(lane, raws(3, 2), 20)
    assert lanes.next(0) is lane
    assert lanes.next(0) is None, "a lane is in one thread at most"
    finish(lanes, lane)
    assert settled_offset(lane) == 2
    assert lanes.next(0) is lane
    finish(lanes, lane)
    assert lanes.next(0) is None
    assert settled_offset(lane) == 4
    assert (lanes.in_flight, lanes.bytes) == (0, 0)


def test_what_arrives_while_a_lane_is_worked_on_waits_for_it() -> None:
    lanes = Lanes()
    lane = lanes.open(P0)
    lanes.take(lane, raws(0, 1), 10)
    assert lanes.next(0) is lane
    lanes.take(lane, raws(1, 1), 10)
    assert lanes.next(0) is None
    finish(lanes, lane)
    assert lanes.next(0) is lane


def test_a_lane_that_waits_is_not_given_out_before_its_time_and_holds_up_no_other() -> None:
    lanes = Lanes()
    waiting, other = lanes.open(P0), lanes.open(P1)
    lanes.take(waiting, raws(0, 1), 10)
    assert lanes.next(0) is waiting
    lanes.give_back(waiting, wait=60)
    lanes.take(waiting, raws(1, 1), 10)
    lanes.take(other, raws(0, 1), 10)
    assert lanes.next(0) is other
    began = time.monotonic()
    lanes.give_back(other, wait=0.2)
    assert lanes.next(30) is other
    assert time.monotonic() - began >= 0.2
    finish(lanes, other)
    assert lanes.next(0.05) is None


def test_the_watermark_stops_at_the_first_message_whose_records_are_not_acknowledged() -> None:
    lanes = Lanes()
    lane = lanes.open(P0)
    lanes.take(lane, raws(0, 5), 50)
    assert lanes.next(0) is lane
    piece = lane.slices[0]
    piece.unsettled = 2
    piece.done = 5
    assert settled_offset(lane) == 1
    lanes.give_back(lane)
    assert lanes.in_flight == 5, "a slice that waits for acknowledgements is not finished"
    assert lanes.next(0) is lane
    piece.unsettled = None
    lanes.give_back(lane)
    assert settled_offset(lane) == 4
    assert lanes.in_flight == 0


def test_a_halted_lane_begins_nothing_more_even_when_its_wait_ends() -> None:
    lanes = Lanes()
    ready, waiting = lanes.open(P0), lanes.open(P1)
    lanes.take(waiting, raws(0, 1), 10)
    assert lanes.next(0) is waiting
    lanes.give_back(waiting, wait=0.01)
    lanes.take(ready, raws(0, 1), 10)
    assert lanes.halt([P0, P1]) == [ready, waiting]
    assert lanes.next(0.1) is None
    assert lanes.drain([ready, waiting], 0)
    lanes.drop([ready, waiting])
    assert (len(lanes), lanes.in_flight, lanes.bytes) == (0, 0, 0)


def test_a_lane_that_is_dropped_while_it_is_worked_on_counts_until_it_comes_back() -> None:
    lanes = Lanes()
    lane = lanes.open(P0)
    lanes.take(lane, raws(0, 3), 30)
    lanes.take(lane, raws(3, 2), 20)
    assert lanes.next(0) is lane
    lanes.halt([P0])
    assert not lanes.drain([lane], 0.01)
    lanes.drop([lane])
    assert lane.lost
    assert (lanes.in_flight, lanes.bytes) == (3, 30)
    lanes.give_back(lane)
    assert (lanes.in_flight, lanes.bytes) == (0, 0)
    assert lanes.next(0) is None


def test_a_partition_that_comes_back_has_a_lane_of_its_own() -> None:
    lanes = Lanes()
    old = lanes.open(P0)
    lanes.take(old, raws(0, 3), 30)
    assert lanes.next(0) is old
    lanes.halt([P0])
    new = lanes.open(P0)
    lanes.drop([old])
    assert lanes.get(P0) is new
    lanes.take(new, raws(0, 3), 30)
    assert lanes.next(0) is new
    finish(lanes, new)
    finish(lanes, old)
    assert settled_offset(new) == 2
    assert (lanes.in_flight, lanes.bytes) == (0, 0)


def test_a_thread_that_is_stuck_after_many_quick_messages_holds_up_no_other() -> None:
    lanes = Lanes()
    stuck, other = lanes.open(P0), lanes.open(P1)
    for number in range(100):
        lanes.take(stuck, raws(number * 100, 100), 1000)
        assert lanes.next(0) is stuck
        finish(lanes, stuck)
    lanes.take(stuck, raws(10_000, 1), 10)
    assert lanes.next(0) is stuck
    answers: list[tuple[Lane | None, float]] = []
    thread = threading.Thread(target=lambda: answers.append((lanes.next(20), time.monotonic())))
    thread.start()
    wait_until(lambda: lanes.idle == 1)
    began = time.monotonic()
    lanes.take(other, raws(0, 1), 10)
    thread.join(30)
    ((lane, at),) = answers
    assert lane is other
    assert at - began < 10, "not when its patience ends"


def test_closing_sends_waiting_threads_home() -> None:
    lanes = Lanes()
    answers: list[Lane | None] = []
    thread = threading.Thread(target=lambda: answers.append(lanes.next(60)))
    thread.start()
    lanes.close()
    thread.join(30)
    assert answers == [None]


def test_room_is_told_as_soon_as_there_is_some() -> None:
    lanes = Lanes()
    lane = lanes.open(P0)
    lanes.take(lane, raws(0, 3), 30)
    assert not lanes.wait_for_room(lambda: lanes.in_flight == 0, 0.01)
    threading.Timer(0.05, lambda: finish(lanes, lane)).start()
    assert lanes.wait_for_room(lambda: lanes.in_flight == 0, 10)


class Interrupted(Slice):
    """A slice whose handler thread does one more step after the reader's n-th look at it."""

    looks: int | None = None
    step: Callable[[], None]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in {"done", "unsettled"} and (looks := super().__getattribute__("looks")) is not None:
            self.looks = looks - 1
            if looks == 1:
                self.looks = None
                super().__getattribute__("step")()
        return found


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_look_between_two_steps_never_sees_a_message_settled_whose_record_is_under_way(looks: int) -> None:
    piece = Interrupted(raws(0, 3), 30, done=1)

    def execute_one_that_produces() -> None:
        piece.unsettled = 1
        piece.done = 2

    piece.step, piece.looks = execute_one_that_produces, looks
    assert piece.settled <= 1


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_look_while_the_last_record_is_acknowledged_gets_a_number(looks: int) -> None:
    piece = Interrupted(raws(0, 3), 30, done=3, unsettled=1)
    piece.step, piece.looks = (lambda: setattr(piece, "unsettled", None)), looks
    assert piece.settled in {1, 3}


class Watched(Partition):
    """A lane whose handler thread goes on after the reader's n-th look at it."""

    looks: int | None = None
    step: Callable[[], None]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in {"watermark", "slices"} and (looks := super().__getattribute__("looks")) is not None:
            self.looks = looks - 1
            if looks == 1:
                self.looks = None
                super().__getattribute__("step")()
        return found


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_look_while_a_slice_is_finished_never_goes_back_behind_an_earlier_one(looks: int, more: bool) -> None:
    lanes = Lanes()
    lane = Watched(P0)
    lanes.take(lane, raws(0, 5), 50)
    assert lanes.next(0) is lane
    finish(lanes, lane)
    lanes.take(lane, raws(5, 5), 50)
    if more:
        lanes.take(lane, raws(10, 5), 50)
    assert lanes.next(0) is lane
    lane.slices[0].done = 3
    assert settled_offset(lane) == 7
    lane.step, lane.looks = (lambda: finish(lanes, lane)), looks
    assert (settled_offset(lane) or 0) >= 7


class Ledger:
    """What handler threads did to a lane, kept beside it."""

    def __init__(self, lane: Partition) -> None:
        self.lane = lane
        self.inside = 0
        self.executed: list[int] = []
        self.settled = -1
        self.next = 0


class Play:
    """Threads that work on lanes as handlers do, while one thread does what a poller may."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lanes = Lanes()
        self.books: dict[int, Ledger] = {}
        self.wrong: list[str] = []
        self.threads = [threading.Thread(target=self.handle, args=(seed * 10 + number,)) for number in range(3)]

    def handle(self, seed: int) -> None:
        mine = random.Random(seed)
        while not self.lanes.closed:
            lane = self.lanes.next(0.05)
            if lane is not None:
                self.work(lane, mine)

    def work(self, lane: Lane, mine: random.Random) -> None:
        book = self.books[id(lane)]
        book.inside += 1
        if book.inside > 1:
            self.wrong.append("two threads in one lane")
        piece = lane.slices[0]
        wait = None
        while piece.done < len(piece.messages) and not lane.halted:
            if mine.random() < 0.1:
                wait = mine.choice([None, 0.0, 0.001, 0.01])
                break
            book.executed.append(piece.messages[piece.done].offset())
            if piece.unsettled is None and mine.random() < 0.2:
                piece.unsettled = piece.done
            if piece.unsettled is None:
                book.settled = book.executed[-1]
            piece.done += 1
            if mine.random() < 0.2:
                time.sleep(0)
        if piece.unsettled is not None and mine.random() < 0.7:
            book.settled = book.executed[-1]
            piece.unsettled = None
        book.inside -= 1
        self.lanes.give_back(lane, wait=wait)

    def poll(self, turns: int) -> None:
        committed: dict[int, int] = {}
        for _ in range(turns):
            place = ("flights", self.random.randrange(4))
            lane = self.lanes.get(place)
            if lane is None:
                lane = self.lanes.open(place)
                self.books[id(lane)] = Ledger(lane)
            chance = self.random.random()
            if chance < 0.6:
                count = self.random.randint(1, 8)
                book = self.books[id(lane)]
                self.lanes.take(lane, raws(book.next, count), count * 10)
                book.next += count
            elif chance < 0.65:
                self.revoke(lane)
            for one in self.lanes:
                offset = settled_offset(one)
                if offset is None:
                    continue
                if offset > self.books[id(one)].settled:
                    self.wrong.append(f"watermark {offset} passed what is settled")
                if offset < committed.get(id(one), -1):
                    self.wrong.append(f"watermark went back to {offset}")
                committed[id(one)] = offset
            time.sleep(self.random.choice([0, 0, 0.0005]))

    def revoke(self, lane: Partition) -> None:
        (halted,) = self.lanes.halt([lane.place])
        self.lanes.drain([halted], self.random.choice([0, 0.001, 1]))
        self.lanes.drop([halted])

    def run(self) -> None:
        for thread in self.threads:
            thread.start()
        try:
            self.poll(400)
            while sum(len(book.executed) for book in self.books.values()) <= 100:
                self.poll(10)
            left = self.lanes.halt()
            assert self.lanes.drain(left, 10)
            self.lanes.drop(left)
        finally:
            self.lanes.close()
            for thread in self.threads:
                thread.join(10)


@pytest.mark.parametrize("round_", range(5))
def test_in_any_order_of_events_lanes_keep_their_order_and_their_books(round_: int) -> None:
    seed = random.randrange(10**6)
    print(f"round {round_}, seed {seed}")
    play = Play(seed)
    play.run()
    assert not play.wrong, play.wrong[:3]
    for book in play.books.values():
        assert book.executed == list(range(len(book.executed)))
    assert sum(len(book.executed) for book in play.books.values()) > 100
    assert (play.lanes.in_flight, play.lanes.bytes) == (0, 0)


def test_only_lanes_that_run_or_changed_are_looked_at() -> None:
    lanes = Lanes()
    waiting, running = lanes.open(P0), lanes.open(P1)
    assert set(lanes.stirred()) == {waiting, running}, "new ones"
    assert lanes.stirred() == []
    for lane in (waiting, running):
        lanes.take(lane, raws(0, 2), 20)
    assert set(lanes.stirred()) == {waiting, running}
    assert lanes.next(0) is waiting
    lanes.give_back(waiting, wait=60)
    assert lanes.next(0) is running
    assert set(lanes.stirred()) == {waiting, running}
    assert lanes.stirred() == [running], "as long as it runs; one that waits is left alone"
    finish(lanes, running)
    assert lanes.stirred() == [running], "and once more for what it did last"
    assert lanes.stirred() == []


def test_a_lane_that_left_while_it_ran_is_not_looked_at() -> None:
    lanes = Lanes()
    former = lanes.open(P0)
    lanes.take(former, raws(0, 2), 20)
    assert lanes.next(0) is former
    lanes.drop([former])
    mine = lanes.open(P0)
    finish(lanes, former)
    assert lanes.stirred() == [mine]


def test_a_bell_rings_when_there_may_be_a_lane_and_says_when_to_look_anyway() -> None:
    lanes = Lanes()
    rung: list[int] = []
    lanes.ring(lambda: rung.append(1))
    lane, other = lanes.open(P0), lanes.open(P1)
    assert (rung, lanes.due_in()) == ([], 1.0)
    lanes.take(lane, raws(0, 2), 20)
    assert rung
    assert lanes.next(0) is lane
    assert lanes.next(0) is None, "It does not wait."

    rung.clear()
    lanes.give_back(lane, wait=0.5)
    assert rung, "Somebody has to look when the wait is over."
    assert 0.0 < lanes.due_in() <= 0.5
    wait_until(lambda: lanes.due_in() == 0.0)
    assert lanes.next(0) is lane

    for ring in (lanes.wake, lambda: lanes.take(other, raws(0, 1), 10), lanes.close):
        rung.clear()
        ring()
        assert rung
