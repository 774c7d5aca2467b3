"""Taking in the messages of other systems' dead-letter topics: they are stored instead of handled."""

from __future__ import annotations

from itertools import islice

from ..dead_letters import importing
from ..exceptions import PartitionLost
from ..gathering import here
from ..handlers import TopicHandlers
from ..messages import Message
from .lane import Lane
from .settling import Settler
from .slices import Slice

_TOGETHER = 100
"""Messages that are stored in one transaction at most."""


def take_in(settler: Settler, lane: Lane, piece: Slice, found: TopicHandlers) -> float | None:
    """Store what is left of a slice as dead letters; return how many seconds its lane must wait, or None: go on.

    Whatever keeps messages from being stored, they wait: what is imported is never given up.
    """
    assert found.imports is not None
    while piece.done < len(piece.messages) and not lane.halted:
        # After a refusal one by one, so that the others are not refused for one of them.
        end = piece.done + (1 if lane.waits else _TOGETHER)
        some = [Message(raw, found.decoder) for raw in islice(piece.messages, piece.done, end)]
        try:
            new = importing.store(
                settler.consumer, settler.group_id, some, found.imports,
                still_ours=lane.still_ours, finish=lane.partition.finish,
            )  # fmt: skip
        except PartitionLost:
            return None
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the lane waits for it to pass
            return settler.waits.for_something(lane, f"its messages could not be imported ({type(error).__name__})")
        # What receivers of the signal produced is no part of a message.
        here.forget()
        settler.tally.of_topic(lane.place[0]).imported += new
        piece.done += len(some)
        lane.waits = 0
    return None
