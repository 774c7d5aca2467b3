from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from django_kafka.consuming.lane import Lane, Place
from django_kafka.consuming.lanes import Lanes
from django_kafka.consuming.partition import Partition

P0: Place = ("flights", 0)
MANY = 10**12
"""So many lanes that no two keys of a test share one."""


class Raw:
    """As much of a message as lanes look at."""

    def __init__(self, offset: int, key: bytes | None) -> None:
        self._offset = offset
        self._key = key

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def __len__(self) -> int:
        return 10


def raws(first: int, *keys: bytes | None) -> list[Any]:
    return [Raw(offset, key) for offset, key in enumerate(keys, first)]


def opened(ordering: str = "key", width: int = 8) -> tuple[Lanes, Partition]:
    """Return lanes, and a partition whose first message is done, so that it deals what comes now."""
    lanes = Lanes(ordering, width)
    partition = lanes.open(P0)
    lanes.take(partition, raws(0, b"first"), 10)
    assert lanes.next(0) is partition
    finish(lanes, partition)
    assert partition.dealing
    assert settled(lanes, partition) == 0
    return lanes, partition


def finish(lanes: Lanes, lane: Lane) -> None:
    lane.slices[0].done = len(lane.slices[0].messages)
    lanes.give_back(lane)


def settled(lanes: Lanes, partition: Partition) -> int | None:
    message = lanes.settled(partition)
    return None if message is None else message.offset()


def taken(lanes: Lanes) -> list[Lane]:
    """Take all lanes that have messages."""
    found = []
    while (lane := lanes.next(0)) is not None:
        found.append(lane)
    return found


def offsets(lane: Lane) -> list[int | None]:
    return [message.offset() for piece in lane.slices for message in piece.messages[piece.done :]]


def test_the_first_message_is_handled_alone_and_then_the_rest_is_dealt() -> None:
    lanes = Lanes("key", MANY)
    partition = lanes.open(P0)
    lanes.take(partition, raws(0, b"a", b"b", b"a", b"c"), 40)
    assert taken(lanes) == [partition]
    assert partition.single
    partition.slices[0].done = 1
    lanes.give_back(partition)
    assert sorted(map(offsets, taken(lanes))) == [[1], [2], [3]]
    assert settled(lanes, partition) == 0


def test_messages_of_one_key_are_in_one_lane_in_their_order() -> None:
    lanes, partition = opened(width=MANY)
    lanes.take(partition, raws(1, b"a", b"b", b"a"), 30)
    lanes.take(partition, raws(4, b"b", b"a"), 20)
    assert sorted(map(offsets, taken(lanes))) == [[1, 3, 5], [2, 4]]


def test_messages_without_a_key_have_no_order_to_keep() -> None:
    lanes, partition = opened()
    lanes.take(partition, raws(1, *[None] * 8), 80)
    assert len(taken(lanes)) == 8


def test_unordered_messages_are_dealt_in_turn() -> None:
    lanes, partition = opened("unordered", 4)
    lanes.take(partition, raws(1, *[b"same"] * 6), 60)
    assert sorted(map(offsets, taken(lanes))) == [[1, 5], [2, 6], [3], [4]]
    assert partition.busy == 4


def test_the_watermark_stops_before_the_first_message_that_a_lane_has_not_settled() -> None:
    lanes, partition = opened(width=MANY)
    lanes.take(partition, raws(1, b"a", b"b", b"c", b"d"), 40)
    a, b, c, d = sorted(taken(lanes), key=lambda lane: offsets(lane)[0] or 0)
    finish(lanes, d)
    finish(lanes, a)
    assert settled(lanes, partition) == 1
    finish(lanes, c)
    assert settled(lanes, partition) == 1
    assert lanes.in_flight == 4, "all of a fetch counts until the watermark has passed it"
    finish(lanes, b)
    assert settled(lanes, partition) == 4
    assert (lanes.in_flight, lanes.bytes) == (0, 0)


def test_a_record_that_is_not_acknowledged_holds_the_watermark_whoever_is_further() -> None:
    lanes, partition = opened(width=MANY)
    lanes.take(partition, raws(1, b"a", b"b"), 20)
    a, b = sorted(taken(lanes), key=lambda lane: offsets(lane)[0] or 0)
    a.slices[0].unsettled, a.slices[0].done = 0, 1
    lanes.give_back(a)
    finish(lanes, b)
    assert settled(lanes, partition) == 0


def test_what_waits_for_another_attempt_holds_up_only_its_key() -> None:
    lanes, partition = opened(width=1)
    lanes.take(partition, raws(1, b"bad", b"good", b"bad", b"good"), 40)
    (lane,) = taken(lanes)
    lanes.give_back(lane, wait=60)
    (others,) = taken(lanes)
    assert (offsets(lane), offsets(others)) == ([1, 3], [2, 4])
    lanes.take(partition, raws(5, b"bad", b"good"), 20)
    finish(lanes, others)
    assert offsets(lane) == [1, 3, 5], "what comes later of that key stays behind it"
    (others,) = taken(lanes)
    finish(lanes, others)
    assert settled(lanes, partition) == 0
    assert [one.held for one in partition.lanes if one.slices] == [True]


def test_a_key_that_was_set_apart_goes_back_to_the_others_when_it_is_done() -> None:
    lanes, partition = opened(width=1)
    lanes.take(partition, raws(1, b"bad", b"good"), 20)
    (lane,) = taken(lanes)
    lanes.give_back(lane, wait=0.3)
    (others,) = taken(lanes)
    finish(lanes, others)
    assert lanes.next(30) is lane
    finish(lanes, lane)
    assert settled(lanes, partition) == 2
    lanes.take(partition, raws(3, b"bad", b"good"), 20)
    (lane,) = taken(lanes)
    assert offsets(lane) == [3, 4]


def test_an_outage_is_waited_for_by_whole_lanes() -> None:
    lanes, partition = opened(width=1)
    lanes.take(partition, raws(1, b"a", b"b"), 20)
    (lane,) = taken(lanes)
    lane.waits = 1
    lanes.give_back(lane, wait=60)
    assert taken(lanes) == []


def test_keys_that_share_a_lane_are_told_apart_for_threads_without_work() -> None:
    lanes, partition = opened(width=1)
    lanes.take(partition, raws(1, b"a", b"b", b"a", b"c", b"b"), 50)
    (lane,) = taken(lanes)
    second, third = lanes.next(10), lanes.next(10)
    assert second is not None
    assert third is not None
    assert lanes.next(0.01) is None, "what is left has to wait for its keys"
    assert [offsets(one) for one in (lane, second, third)] == [[1, 3], [2, 5], [4]]
    assert lane.interrupted, "so that it begins nothing that another thread has now"
    for one in (third, second, lane):
        finish(lanes, one)
    assert settled(lanes, partition) == 5


def test_quick_messages_are_not_told_apart() -> None:
    lanes, partition = opened(width=1)
    lanes._pace = 1e-4
    lanes.take(partition, raws(1, b"a", b"b"), 20)
    (lane,) = taken(lanes)
    assert lanes.next(0.01) is None
    assert not lane.interrupted


def test_messages_that_run_together_are_not_told_apart() -> None:
    lanes, partition = opened(width=1)
    lanes.take(partition, raws(1, b"a", b"b"), 20)
    (lane,) = taken(lanes)
    lane.several = True
    assert lanes.next(0.01) is None
    assert not lane.interrupted


def test_a_message_that_runs_for_long_holds_up_only_its_key_while_threads_are_idle() -> None:
    lanes, partition = opened(width=1)
    lanes._pace = 1e-4  # the others were quick
    lanes.take(partition, raws(1, b"slow", b"quick", b"slow"), 30)
    (lane,) = taken(lanes)
    found: list[Lane | None] = []
    idle = threading.Thread(target=lambda: found.append(lanes.next(10)))
    idle.start()
    deadline = time.monotonic() + 10
    while not found and time.monotonic() < deadline:
        lanes.spread([partition])
        time.sleep(0.001)
    idle.join()
    (quick,) = found
    assert quick is not None
    assert offsets(quick) == [2]
    assert lane.interrupted, "so that it begins nothing that another thread has now"
    assert offsets(lane) == [1, 3]
    finish(lanes, quick)
    assert settled(lanes, partition) == 0
    finish(lanes, lane)
    assert settled(lanes, partition) == 3


def test_a_topic_that_stays_in_order_is_not_dealt() -> None:
    lanes = Lanes("key", 8, ["flights"])
    assert not lanes.open(P0).splits


def test_a_partition_that_left_counts_what_runs_until_it_comes_back() -> None:
    lanes, partition = opened(width=MANY)
    lanes.take(partition, raws(1, b"a", b"b", b"c"), 30)
    one = lanes.next(0)
    assert one is not None
    lanes.halt([P0])
    assert not lanes.drain([partition], 0.01)
    lanes.drop([partition])
    assert lanes.in_flight == 1
    lanes.give_back(one)
    assert (lanes.in_flight, lanes.bytes, partition.occupied) == (0, 0, set())
    assert lanes.next(0) is None


class Play:
    """Threads that work on the lanes of keys as handlers do, while one thread does what a poller may."""

    def __init__(self, seed: int, ordering: str) -> None:
        self.random = random.Random(seed)
        self.ordering = ordering
        self.lanes = Lanes(ordering, self.random.choice([1, 2, 8]))
        self.slow = self.random.choice([0.1, 1.0])
        self.wrong: list[str] = []
        self.books: dict[int, Book] = {}
        self.threads = [threading.Thread(target=self.handle, args=(seed * 10 + number,)) for number in range(4)]

    def handle(self, seed: int) -> None:
        mine = random.Random(seed)
        while not self.lanes.closed:
            lane = self.lanes.next(0.05)
            if lane is not None:
                self.work(lane, mine)

    def work(self, lane: Lane, mine: random.Random) -> None:
        book = self.books[id(lane.partition)]
        piece = lane.slices[0]
        if lane.single:
            lane.until = piece.done + 1
        wait = None
        while not (lane.interrupted or piece.done in (len(piece.messages), lane.until)):
            if mine.random() < 0.05:
                wait = mine.choice([None, 0.0, 0.001, 0.01])
                lane.waits = mine.choice([0, 1])
                break
            message = piece.messages[piece.done]
            self.run(book, message, mine)
            if piece.unsettled is None and mine.random() < 0.1:
                piece.unsettled = piece.done
            with book.lock:
                if piece.unsettled is None:
                    book.settled.add(message.offset() or 0)
                else:
                    book.later[id(piece)].append(message.offset() or 0)
            piece.done += 1
        if piece.unsettled is not None and mine.random() < 0.7:
            with book.lock:
                book.settled.update(book.later.pop(id(piece)))
            piece.unsettled = None
        self.lanes.give_back(lane, wait=wait)

    def run(self, book: Book, message: Any, mine: random.Random) -> None:
        key = message.key()
        with book.lock:
            if key in book.running and self.ordering == "key" and key is not None:
                self.wrong.append(f"two messages of {key} at a time")
            book.running.add(key)
            book.executed[key].append(message.offset())
        if mine.random() < self.slow:
            time.sleep(mine.choice([0, 0.0001, 0.003]))
        with book.lock:
            book.running.discard(key)

    def poll(self, turns: int) -> None:
        for _ in range(turns):
            place = ("flights", self.random.randrange(2))
            partition = self.lanes.get(place)
            if partition is None:
                partition = self.lanes.open(place)
                self.books[id(partition)] = Book(partition)
            book = self.books[id(partition)]
            chance = self.random.random()
            if chance < 0.7:
                keys = self.random.choices([b"a", b"b", b"c", b"d", b"e", None], k=self.random.randint(1, 20))
                self.lanes.take(partition, raws(book.next, *keys), 10 * len(keys))
                book.next += len(keys)
            elif chance < 0.72:
                self.lanes.halt([place])
                self.lanes.drain([partition], self.random.choice([0, 0.001, 1]))
                self.check(partition)
                self.lanes.drop([partition])
            self.lanes.spread(list(self.lanes))
            for one in self.lanes:
                self.check(one)
            time.sleep(self.random.choice([0, 0, 0.0005]))

    def check(self, partition: Partition) -> None:
        book = self.books[id(partition)]
        offset = settled(self.lanes, partition)
        if offset is None:
            return
        with book.lock:
            missing = [one for one in range(book.watermark + 1, offset + 1) if one not in book.settled]
        if missing:
            self.wrong.append(f"watermark {offset} passed {missing[:3]}")
        if offset < book.watermark:
            self.wrong.append(f"watermark went back to {offset}")
        book.watermark = offset

    def finish(self) -> None:
        """Let all that came be done."""
        deadline = time.monotonic() + 30
        while self.lanes.in_flight and time.monotonic() < deadline:
            for one in self.lanes:
                self.check(one)
            time.sleep(0.001)

    def play(self) -> None:
        for thread in self.threads:
            thread.start()
        try:
            self.poll(400)
            self.finish()
            left = self.lanes.halt()
            assert self.lanes.drain(left, 10)
            self.lanes.drop(left)
        finally:
            self.lanes.close()
            for thread in self.threads:
                thread.join(10)


class Book:
    """What handler threads did to a partition, kept beside it."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.lock = threading.Lock()
        self.running: set[bytes | None] = set()
        self.executed: dict[bytes | None, list[int]] = defaultdict(list)
        self.settled: set[int] = set()
        self.later: dict[int, list[int]] = defaultdict(list)
        self.next = 0
        self.watermark = -1


@pytest.mark.parametrize("round_", range(4))
@pytest.mark.parametrize("ordering", ["key", "unordered"])
def test_in_any_order_of_events_keys_keep_their_order_and_partitions_their_books(round_: int, ordering: str) -> None:
    seed = random.randrange(10**6)
    print(f"round {round_}, seed {seed}")
    play = Play(seed, ordering)
    play.play()
    assert not play.wrong, play.wrong[:3]
    for book in play.books.values():
        everything = sorted(offset for offsets in book.executed.values() for offset in offsets)
        assert len(everything) == len(set(everything)), "each message once"
        if ordering == "key":
            for key, offsets in book.executed.items():
                assert key is None or offsets == sorted(offsets), key
        if not book.partition.halted or book.watermark == book.next - 1:
            assert everything == list(range(book.next))
    assert (play.lanes.in_flight, play.lanes.bytes) == (0, 0)
