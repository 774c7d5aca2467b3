"""The poller: the one thread that touches the client. It fetches and commits watermarks, as a member of its group."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from .. import conf, logs
from ..clients import properties
from ..clients.consumer import ConsumerClient, is_fatal
from ..clients.sizes import size_of
from ..tallies import ConsumerTally
from .bounds import Bounds
from .commits import Commits
from .controlling import Steering
from .finding import Finder
from .lane import Place
from .lanes import Lanes
from .member import Member
from .partition import Partition

log = logs.of(__name__)

_POLL = 0.1
"""Seconds the client waits for a first message, and so the longest a stop or a commit waits for the poller."""
_TEND = 0.02
"""Seconds between two looks at watermarks and pauses, which cost a step per partition."""
_MOMENT = 0.002
"""Seconds between two looks at whether there is room, where messages are dealt to lanes."""
_ENDS = 1.0
"""Seconds between two looks at where the logs of partitions end, as the client knows it."""
_NEAR_THE_END = 0.005
"""Seconds of a poll that nothing is to come to: it then takes as long as it may."""


class Poller(Member):
    """Polls for one consumer until it is stopped, has taken `limit` messages, or finds its partitions empty."""

    claims = False
    """Whether it begins partitions where a database says."""

    def __init__(
        self,
        consumer: conf.Consumer,
        group_id: str,
        topics: Collection[str],
        lanes: Lanes,
        tally: ConsumerTally,
        *,
        worker: object = None,
        limit: int | None = None,
        until_empty: bool = False,
        finder: Finder | None = None,
    ) -> None:
        super().__init__(consumer, lanes, tally, worker)
        self.error: BaseException | None = None
        """What ended it, when that was not a wish."""
        self._topics: Collection[str] = topics if finder is None else ()
        self._finder = finder
        self._limit = limit
        self._taken = 0
        self._until_empty = until_empty
        chosen = properties.for_consumer(consumer, conf.cluster(consumer.cluster), group_id)
        if until_empty:
            chosen["enable.partition.eof"] = True
        self.max_poll_interval = int(str(chosen.get("max.poll.interval.ms", 300_000))) / 1000
        """Seconds after which the group takes a member that does not poll for dead."""
        self._drain_at_most = self.max_poll_interval / 2
        self._client = self._connect(chosen)
        every = int(str(chosen["auto.commit.interval.ms"])) / 1000 if consumer.enable_auto_commit else 0.0
        self._commits = Commits(self._client, lanes, every=every)
        self._bounds = Bounds(consumer, lanes)
        self._patience = _POLL
        """Seconds that the next fetch waits for a first message."""
        self._tended = 0.0
        self.polled = time.monotonic()
        """When it polled last, by the monotonic clock."""
        self.watched = 0.0
        """Until when the ends of partitions are looked at, because somebody asks for lags."""
        self._ends_at = 0.0
        self._ended_now: set[Place] = set()
        self.steering = Steering(self)

    @property
    def unsteady(self) -> float:
        """For how many seconds it has had no settled place in its group. For any thread."""
        return self._client.unsteady if self._topics or not self._knows else 0.0

    @property
    def _knows(self) -> bool:
        """Whether it knows which topics there are to read; without any it need not be in its group."""
        return self._finder is None or self._finder.done

    @property
    def away(self) -> bool:
        """Whether brokers are out of reach. For any thread."""
        return self._client.away

    def _connect(self, chosen: dict[str, Any]) -> ConsumerClient:
        """Return the client of these properties."""
        return ConsumerClient(self.consumer.name, chosen, self)

    def run(self) -> None:
        """Poll until the end, then finish what runs, commit and leave the group."""
        try:
            if self._finder is None:
                self._client.subscribe(self._topics)
            else:
                self._finder.start()
            while not (self.stopping.is_set() or self._finished()):
                self._turn()
        except BaseException as error:  # noqa: BLE001  # said by the worker; the group is left in any case
            self.error = error
        finally:
            if self._finder is not None:
                self._finder.end()
            self._leave()

    def _subscribe_anew(self, topics: list[str]) -> None:
        """Read these topics from now on. Those that are read already go on where they are."""
        if set(topics) != set(self._topics):
            self._expect_more()
            self._client.subscribe(topics)
        self._topics = topics

    def _finished(self) -> bool:
        if self._until_empty and self._knows and not self._topics:
            return not self.lanes.in_flight
        if self.lanes.in_flight or not (self._assigned_once and self._knows) or self.steering.waits:
            return False
        if self._has_enough():
            return True
        if not self._until_empty or time.monotonic() < self._quiet_from:
            return False
        # What is paused is not waited for.
        left = [one for one in self.lanes if one.suspended is None or one.suspended.seek is not None]
        return all(one.at_end and (one.expected or 0) > one.awaits for one in left)

    def _has_enough(self) -> bool:
        return self._limit is not None and self._taken >= self._limit

    def _turn(self) -> None:
        if self._has_enough():
            # Its last messages may take longer than a client may go unpolled.
            self._bounds.full = True
            self.lanes.wait_for_room(lambda: not self.lanes.in_flight, _TEND)
        if self._finder is not None and (news := self._finder.news()) is not None:
            self._subscribe_anew(news)
        most = self._room()
        if most > 0 or self._bounds.full:
            self._bounds.found_room()
            messages = self._fetch(max(most, 1))
            if messages and not self._has_enough():
                self._hand_out(messages)
            self._note_ends()
        else:
            self._wait_for_room()
        now = time.monotonic()
        if now - self._tended >= _TEND or most <= 0:
            self._tended = now
            self.steering.tend()
            partitions = list(self.lanes) if self._bounds.full or self._has_enough() else self.lanes.stirred()
            self._throttle(partitions)
            self._commits.settle(partitions)
            self.lanes.spread(partitions)
            if self._ends_at <= now < self.watched:
                self._look_at_ends(now)

    def _look_at_ends(self, now: float) -> None:
        self._ends_at = now + _ENDS
        for partition in self.lanes:
            # The client hears of an end with what it fetches: of what is out it would tell an old one.
            partition.end = -1 if partition.suspended is not None else self._client.end_of(partition.place)

    def _room(self) -> int:
        """Return how many messages may be fetched now."""
        room = self._bounds.room()
        return room if self._limit is None else min(room, self._limit - self._taken)

    def _wait_for_room(self) -> None:
        """Leave off fetching for a moment; when that is not enough, pause, so that polling can go on."""
        self._bounds.left_off()
        if self.lanes.splits:
            # Only the poller moves a watermark that has gaps behind it, and with that makes room.
            self.stopping.wait(_MOMENT)
        else:
            self.lanes.wait_for_room(self._bounds.below_low_mark, _POLL)

    def _fetch(self, most: int) -> list[Any]:
        self._revoked_now.clear()
        self._assigned_now.clear()
        self._replaced_now.clear()
        messages: list[Any] = []
        try:
            messages = self._client.fetch(most, _NEAR_THE_END if self._has_enough() else self._patience)
        except Exception as error:  # noqa: BLE001  # what it had taken off the queue is lost to it: fetch it again
            self._fetch_again(error)
        self.polled = time.monotonic()
        if self._assigned_now:
            self._begin()
        return messages

    def _begin(self) -> None:
        """Have what was just assigned fetched."""
        # A pause outlives a revocation; a new assignment begins unpaused whatever was before.
        mine = [one for place in self._assigned_now if (one := self.lanes.get(place)) is not None]
        self._client.resume([one.place for one in self.steering.arrived(mine)])
        if self._replaced_now:
            # Left and come back within one call: what it returned may be from before.
            self._start_over(self._replaced_now)
        else:
            self._keep_paused()

    def _keep_paused(self) -> None:
        if out := [one.place for one in self.lanes if one.suspended is not None]:
            self._client.pause(out)

    def _fetch_again(self, error: Exception) -> None:
        if is_fatal(error):
            raise error
        log.warning("consumer=%s fetching failed: %s; it is done again", self.consumer.name, type(error).__name__)
        self._client.seek(self._next_offsets())
        if unknown := [partition.place for partition in self.lanes if partition.expected is None]:
            self._start_over(unknown)

    def _start_over(self, places: Collection[Place]) -> None:
        self._client.start_over(places, self._next_offsets())
        self._keep_paused()
        self._store_again()

    def _next_offsets(self) -> dict[Place, int]:
        return {one.place: one.expected for one in self.lanes if one.expected is not None}

    def _store_again(self) -> None:
        """Have watermarks stored once more after an assignment, which has the client forget what was stored."""
        if not self._client.incremental:
            for partition in self.lanes:
                partition.stored = -1

    def _hand_out(self, messages: list[Any]) -> None:
        tally = self.tally
        fetched = 0
        for place, group in self._client.by_partition(messages):
            partition = self.lanes.get(place)
            if partition is None or partition.halted or place in self._replaced_now:
                if partition is not None and (out := partition.suspended) is not None and out.position is None:
                    # Fetched in the call that assigned it.
                    out.position = group[0].offset()
                continue
            self._notice_jump(partition, group)
            partition.at_end = False
            values, others = size_of(group)
            size = values + others
            self._give(partition, group, size)
            self._taken += len(group)
            topic = tally.of_topic(place[0])
            topic.received += len(group)
            topic.bytes += values
            fetched += size
        self._bounds.fetched(len(messages), fetched)
        tally.fetched.add(len(messages))

    def _give(self, partition: Partition, messages: list[Any], size: int) -> None:
        """Hand out what was fetched of a partition."""
        self.lanes.take(partition, messages, size)

    def _notice_jump(self, partition: Partition, group: list[Any]) -> None:
        first, last = group[0].offset(), group[-1].offset()
        if (partition.expected is not None and first != partition.expected) or last - first + 1 != len(group):
            self.tally.offset_jumps += 1
            log.info(
                "consumer=%s topic=%s partition=%s offsets %s to %s are not consecutive (expected %s, %s messages): "
                "compaction, transactions, retention, or a topic made anew",
                self.consumer.name, *partition.place, first, last, partition.expected, len(group),
            )  # fmt: skip
        partition.expected = last + 1

    def _note_ends(self) -> None:
        for place in self._ended_now:
            if (partition := self.lanes.get(place)) is not None and place not in self._replaced_now:
                partition.at_end = True
        self._ended_now.clear()

    def _throttle(self, partitions: Collection[Partition]) -> None:
        """Pause partitions that wait and, when the worker is full, those that fill it; resume them at the low mark."""
        free = [one for one in partitions if one.suspended is None]
        pause, resume = self._bounds.changes(free, enough=self._has_enough())
        if pause:
            self._client.pause(pause)
        if resume:
            self._client.resume(resume)

    @property
    def committing(self) -> bool:
        """Whether a commit has no answer yet."""
        return self._client.committing

    def pause(self, places: Collection[Place]) -> None:
        """Fetch no more of these partitions."""
        self._client.pause(places)

    def commit_at(self, place: Place, offset: int) -> None:
        """Have the group where an operator wants it."""
        self._client.commit_at(place, offset)

    def set_aside(self, partition: Partition) -> int | None:
        """Let nothing more begin of a partition; return where it stands, if that is known by now."""
        self.lanes.halt([partition.place])
        return None

    def is_through(self, partition: Partition) -> bool:
        """Tell whether nothing of a partition runs any more that was set aside."""
        return not partition.busy

    def conclude(self, partition: Partition) -> tuple[int | None, set[int]]:
        """Store how far it is; return the offset that is to be read next, and those beyond it that are settled."""
        self._commits.settle([partition])
        return partition.position, partition.settled_beyond() if partition.splits else set()

    def put_back(self, partition: Partition, where: int | None, *, moved: bool, idle: bool) -> bool:
        """Have a partition fetched from an offset (None: from where its group is), or stay there when `idle`.

        `moved`: the group is to have that offset. Tells whether the client could do it.
        """
        try:
            if where is not None:
                self._client.go_on(partition.place, where)
                self._commits.expect()
            else:
                self._client.resume([partition.place])
            if idle:
                self._client.pause([partition.place])
        except Exception as error:
            if is_fatal(error):
                raise
            log.warning(
                "consumer=%s topic=%s partition=%s cannot be fetched from offset %s: %s; it is tried again",
                self.consumer.name, *partition.place, where, type(error).__name__,
            )  # fmt: skip
            return False
        if moved and where is not None:
            self._client.commit_at(partition.place, where)
        partition.expected = where
        if not idle:
            partition.at_end = partition.paused = partition.halted = partition.interrupted = False
        return True

    def at_end(self, place: Place) -> None:
        """Note that a partition has nothing more for now."""
        self._ended_now.add(place)
