"""Held keys in the lanes: messages whose key is held are parked instead of run.

The lane's owner is the only one that begins holds of its partition, so what it knows of held keys is never too little:
it reads them before its first message, and adds those of letters that it stores. Holds end elsewhere, when a replay
settles the last letter; that is seen when the next message of such a key comes, under the lock of its hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .. import conf, logs
from ..dead_letters import holds
from ..dead_letters.parking import Parking, park
from ..exceptions import PartitionLost
from ..handlers import TopicHandlers
from ..messages import Message
from .handling import HandlerThread
from .lane import Lane
from .slices import Slice

log = logs.of(__name__)


class HoldingThread(HandlerThread):
    """Works on lanes whose keys may be held. Without held keys it looks at nothing, once for each slice."""

    def _execute(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        call: Callable[[Message], Any],
        end: int | None = None,
    ) -> float | None:
        """Run messages as far as their keys are free, or park those that come next."""
        if lane.partition.held_keys is None:
            try:
                lane.partition.held_keys = holds.of_partition(self.consumer, self.group_id, *lane.place)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is: without them nothing may be begun
                return self.settler.waits.for_something(lane, f"its held keys cannot be read ({type(error).__name__})")
        if lane.partition.held_keys:
            last = min(one for one in (end, lane.until, len(piece.messages)) if one is not None)
            place = next(self._held(lane.partition.held_keys, piece, last), None)
            if place == piece.done:
                return self._park(lane, piece, found, call)
            end = last if place is None else place
        return super()._execute(lane, piece, found, call, end)

    def _recall(self, lane: Lane, piece: Slice, found: TopicHandlers) -> float | None:
        """Be done with the next message as its handler of lists said; park it if an earlier one holds its key now."""
        raw = piece.messages[piece.done]
        if piece.known[raw.offset() or 0] is None or raw.key() not in (lane.partition.held_keys or ()):
            return super()._recall(lane, piece, found)
        del piece.known[raw.offset() or 0]
        return self._park(lane, piece, found, self.execution.callable_for(found))

    @staticmethod
    def _held(keys: dict[bytes, int], piece: Slice, end: int) -> Iterator[int]:
        messages = piece.messages
        return (index for index in range(piece.done, end) if messages[index].key() in keys)

    def _park(self, lane: Lane, piece: Slice, found: TopicHandlers, call: Callable[[Message], Any]) -> float | None:
        """Park the next message; return how many seconds the lane must wait, or None: go on."""
        message = Message(piece.messages[piece.done], found.decoder)
        key, keys = message.raw_key, lane.partition.held_keys
        assert key is not None
        assert keys is not None
        limit = self.consumer.hold_key_limit
        try:
            parking = park(
                self.consumer, self.group_id, message,
                count=keys[key] >= limit, still_ours=lane.still_ours, finish=lane.partition.finish,
            )  # fmt: skip
        except PartitionLost:
            return None
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever kept it from being written: the message is not settled
            return self.settler.waits.for_something(lane, f"a message could not be parked ({type(error).__name__})")
        if parking is Parking.FULL:
            lane.full = True
            return self.settler.waits.for_something(
                lane, f"{limit} messages of one key are parked already (hold_key_limit)"
            )
        if parking is Parking.BEFORE:
            return super()._execute(lane, piece, found, call, piece.done + 1)
        lane.full, lane.outage = False, None
        lane.waits = lane.failing = 0
        if parking is Parking.FREE:
            del keys[key]
            return None
        keys[key] = min(keys[key] + 1, limit)
        piece.done += 1
        self.tally.of_topic(lane.place[0]).parked += 1
        log.info(
            "consumer=%s topic=%s partition=%s offset=%s parked: its key is held",
            self.consumer.name, message.topic, message.partition, message.offset,
        )  # fmt: skip
        return None


def thread_of(consumer: conf.Consumer) -> type[HandlerThread]:
    """Return the kind of handler threads that a consumer needs."""
    return HoldingThread if holds.keeps(consumer) else HandlerThread
