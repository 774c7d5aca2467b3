"""Threads beside an event loop: they do for its lanes what blocks. What fails is settled as in handler threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from .. import conf, handlers, logs, retries
from ..execution import Execution
from ..gathering import Gathered, here
from ..handlers import TopicHandlers
from ..messages import Message
from ..tallies import ConsumerTally
from .handling import HandlerThread
from .lane import Lane
from .lanes import Lanes
from .parking import thread_of
from .slices import Slice

log = logs.of(__name__)

_LOOK_EVERY = 1.0
"""Seconds between two looks at the circuit, while nothing comes."""


@dataclass(slots=True, kw_only=True)
class Aside:
    """A lane that an event loop cannot go on with by itself."""

    lane: Lane
    succeeded: int
    """How many of its messages have succeeded since it was taken."""
    error: BaseException | None = None
    """What its next message failed with."""
    gathered: Gathered | None = None
    """What that message produced."""
    broken: BaseException | None = None
    """What went wrong on the loop, and is no message's fault."""


class Host(Protocol):
    """The event loop that the threads are beside."""

    def run_one(self, found: TopicHandlers, message: Message, gathered: Gathered) -> Future[BaseException | None]:
        """Run a message on the loop, for the calling thread, which waits for what it fails with."""

    def freed(self) -> None:
        """Note that a lane is given back."""


class _OnTheLoop(Execution):
    """Has messages run on an event loop, and waits for them."""

    host: Host

    def callable_for(self, handlers: TopicHandlers) -> Callable[[Message], Any]:
        """Return what runs messages of one topic."""

        def run(message: Message) -> None:
            error = self.host.run_one(handlers, message, self.gathered).result()
            if error is not None:
                raise error

        return run


class AsideThread(HandlerThread):
    """Settles what a message on the event loop left behind, and whatever else blocks; it leaves messages to the loop.

    Only while the former worker of a partition may have died of a message does it run some, and waits for each; and
    messages of a held key that come ahead of the letter which holds it.
    """

    execution_kind = _OnTheLoop
    execution: _OnTheLoop
    host: Host
    asides: SimpleQueue[Aside | None]

    def attach(self, host: Host, asides: SimpleQueue[Aside | None]) -> None:
        """Say where lanes come from, and whose they are. To be called before it starts."""
        self.host = host
        self.asides = asides
        self._aside: Aside | None = None

    def _begin(self) -> None:
        super()._begin()
        self.execution.host = self.host

    def run(self) -> None:
        """Work until it is told that there will be no more."""
        try:
            self._begin()
            while True:
                try:
                    aside = self.asides.get(timeout=_LOOK_EVERY)
                except Empty:
                    self.connections.rest()
                else:
                    if aside is None:
                        return
                    self._settle(aside)
                    del aside
                self._tend_circuit()
        except BaseException as error:  # noqa: BLE001  # a worker that settles nothing must not look alive
            self.stop_worker(error)
        finally:
            here.end()
            self.connections.close()

    def _tend_circuit(self) -> None:
        circuit = self.lanes.circuit
        if circuit is not None and circuit.limited:
            circuit.look()
        if circuit is not None and circuit.news:
            circuit.tell()

    def _settle(self, aside: Aside) -> None:
        self._aside = aside
        try:
            self._work_on(aside.lane, aside.succeeded)
        finally:
            self._aside = None
            self.host.freed()

    def work(self, lane: Lane, piece: Slice) -> float | None:
        """Settle what failed, then do what is left to do before messages can run; return as `HandlerThread` does."""
        aside, self._aside = self._aside, None
        if aside is not None and aside.broken is not None:
            raise aside.broken
        if aside is not None and aside.error is not None:
            error, aside.error = aside.error, None
            try:
                if retries.stops_worker(error) or not isinstance(error, Exception):
                    raise error
                wait = self._failed(lane, piece, error, aside.gathered)
            finally:
                del error
            if wait is not None:
                return wait
            if piece.failed and not self.settler.letters.due(lane, piece):
                # To be stored with others.
                return None
        return super().work(lane, piece)

    def _failed(self, lane: Lane, piece: Slice, error: Exception, gathered: Gathered | None) -> float | None:
        found = handlers.for_topic(self.consumer.name, lane.place[0])
        here.now.gathered = gathered
        try:
            wait = self.settler.failed(lane, piece, found, piece.done, error)
        finally:
            here.now.gathered = self.gathered
            if gathered is not None:
                gathered.close()
        if wait is not None and piece.failed and (held := self.settler.letters.store(lane, piece, found)) is not None:
            return max(held, wait)
        return wait

    def _execute(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        call: Callable[[Message], Any],
        end: int | None = None,
    ) -> float | None:
        """Leave messages to the event loop, unless it would put them aside again."""
        if lane.wary or is_held(lane, piece):
            return super()._execute(lane, piece, found, call, end)
        lane.until = piece.done
        return None

    def _confirm(self, lane: Lane, piece: Slice, found: TopicHandlers) -> float | None:
        """Leave it to the event loop to wait for records, unless the lane leaves or one of them failed."""
        if not lane.halted:
            _index, sent = piece.sent[0]
            if piece.resend:
                piece.resend = False
                sent.again()
            if not sent.delivery.done():
                return None
        return super()._confirm(lane, piece, found)


def is_held(lane: Lane, piece: Slice) -> bool:
    """Tell whether the key of the next message is held."""
    keys = lane.partition.held_keys
    return keys is not None and len(keys) > 0 and piece.messages[piece.done].key() in keys


def asides_of(
    name: str,
    number: int,
    consumer: conf.Consumer,
    group_id: str,
    lanes: Lanes,
    tally: ConsumerTally,
    stop_worker: Callable[[BaseException], None],
) -> list[AsideThread]:
    """Return so many threads of the kind that a consumer needs."""
    usual = thread_of(consumer)
    # What its usual kind adds to the execution of messages stands before what is left to the event loop.
    kind = AsideThread if usual is HandlerThread else type("HoldingAside", (usual, AsideThread), {})
    threads: list[AsideThread] = [
        kind(f"{name}-{place}", consumer, group_id, lanes, tally, stop_worker) for place in range(number)
    ]
    return threads
