"""The event loop of a worker: it runs `async def` handlers, a task for each message. What blocks is done aside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from contextvars import Context
from queue import SimpleQueue
from typing import Any

from .. import conf, coroutines, handlers
from ..dead_letters import holds
from ..gathering import Gathered
from ..handlers import TopicHandlers
from ..messages import Message
from ..tallies import ConsumerTally
from . import guarantees
from .asides import Aside, asides_of, is_held
from .executors import HandlerThreads, sensitive
from .forwarding import Forwarded
from .handling import LAST_WAIT, SHORT_WAIT, HandlerThread, until_due
from .lane import Lane
from .lane_threads import LaneThread
from .lanes import Lanes
from .message_tasks import begin, callable_for, message_of, result_of
from .slices import Slice
from .timing import take_ages

SENSITIVE_THREADS = 8
"""Threads for what handlers call that is thread-sensitive, such as the ORM, at most; each has its connections."""
ASIDE_THREADS = 4
"""Threads that settle what failed, at most; each has its connections."""
_OTHER_THREADS = 32
"""Threads for what handlers give to `asyncio.to_thread`, at most."""
_IN_A_ROW = 32
"""Messages of a lane that run one after another before others get a turn, though none of them awaits anything."""


class EventLoop(LaneThread):
    """Takes up to `concurrency` lanes at a time and runs their messages on one event loop."""

    def _prepare(self) -> None:
        self._holds = holds.keeps(self.consumer)
        self._asides: SimpleQueue[Aside | None] = SimpleQueue()
        number = min(self.consumer.concurrency, ASIDE_THREADS)
        about = self.consumer, self.group_id, self.lanes, self.tally, self.stop_worker
        self._threads = asides_of(f"{self.name}-aside", number, *about)
        for thread in self._threads:
            thread.attach(self, self._asides)
        self._loop: Any = None
        """The event loop, once it runs."""
        self._over = False
        self._free = self.consumer.concurrency
        self._turns: set[asyncio.Task[None]] = set()
        self._bases: list[Context] = []
        self._turn_number = 0
        self._rung = False
        self._look: asyncio.TimerHandle | None = None
        self._asked: float | None = None
        self._awaited: set[Future[BaseException | None]] = set()

    def succeeded_now(self) -> int:
        """Return how many messages have succeeded, counted up to this moment; for other threads."""
        return self.succeeded + sum(thread.succeeded_now() for thread in self._threads)

    def run(self) -> None:
        """Work until the lanes are closed."""
        number = min(self.consumer.concurrency, SENSITIVE_THREADS)
        try:
            with sensitive(f"{self.name}-sync", number) as self._bases, self._beside():
                with asyncio.Runner() as runner:
                    self._loop = runner.get_loop()
                    try:
                        runner.run(self._serve())
                    finally:
                        # What is cancelled from here on is no message's failure.
                        self._over = True
        except BaseException as error:  # noqa: BLE001  # a worker that handles nothing must not look alive
            self.stop_worker(error)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            for future in list(self._awaited):
                _answer(future, _ended())
            for _thread in self._threads:
                self._asides.put(None)
            for thread in self._threads:
                thread.join()

    async def _serve(self) -> None:
        self._loop.set_default_executor(HandlerThreads(f"{self.name}-thread", _OTHER_THREADS))
        self._ended = asyncio.Event()
        self.lanes.ring(self._ring)
        self._fill()
        await self._ended.wait()

    def _ring(self) -> None:
        """Have lanes looked for; called by any thread, with locks held."""
        # Without a free place nobody has to be told: whoever frees one looks.
        if self._free and not self._rung:
            self._rung = True
            self._soon(self._fill)

    def _soon(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call)

    def _fill(self) -> None:
        """Take lanes as long as there are some; stop the worker when that fails, which the loop would only log."""
        self._rung = False
        try:
            self._take()
        except BaseException as error:  # noqa: BLE001  # as in `run`
            self.stop_worker(error)
            self._ended.set()

    def _take(self) -> None:
        """Begin turns as long as there are places and lanes, then see when to look again."""
        while self._free and (lane := self.lanes.next(0.0)) is not None:
            self._free -= 1
            self._turn_number += 1
            turn = self._loop.create_task(self._turn(lane, self._bases[self._turn_number % len(self._bases)]))
            self._turns.add(turn)
            turn.add_done_callback(self._turns.discard)
        self.lanes.idle = self._free
        if self.lanes.closed:
            if self._free == self.consumer.concurrency:
                self._ended.set()
        elif self._free:
            self._look_at(self._loop.time() + self.lanes.due_in())

    def _look_at(self, when: float) -> None:
        if self._look is not None:
            if self._look.when() <= when:
                return
            self._look.cancel()
        self._look = self._loop.call_at(when, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self._fill()

    def freed(self) -> None:
        """Note that a lane that was put aside is given back; called by the thread that had it."""
        self._soon(self._vacate)

    def _vacate(self) -> None:
        self._free += 1
        self._fill()

    async def _turn(self, lane: Lane | None, base: Context) -> None:
        """Work on a lane, then on others as long as there are some."""
        while lane is not None:
            try:
                kept = await self._work_on(lane, base)
            except BaseException as error:  # noqa: BLE001  # not a message's: stop, so that it is read again
                kept = self._put_aside(lane, 0, broken=_ended() if self._over else error)
            if not kept:
                return
            lane = self.lanes.next(0.0)
        self._vacate()

    async def _work_on(self, lane: Lane, base: Context) -> bool:
        """Run and settle what is left of the first slice of a lane; tell whether that, and not an aside, gave it back.

        As `HandlerThread.work` does; whatever may block is left to an aside.
        """
        piece = lane.slices[0]
        found = handlers.for_topic(self.consumer.name, lane.place[0])
        if lane.wary or found.imports is not None:
            return self._put_aside(lane, 0)
        call = callable_for(self.consumer.name, found)
        if lane.permit is not None:
            lane.until = piece.done + lane.permit.most
        if lane.single:
            lane.until = piece.done + 1
        topic = self.tally.of_topic(lane.place[0])
        done = in_a_row = 0
        while True:
            if piece.failed and self.settler.letters.due(lane, piece):
                return self._put_aside(lane, done)
            if lane.interrupted or piece.done in (len(piece.messages), lane.until):
                break
            if found.retry is not None and (left := until_due(lane, piece, found.retry)) is not None:
                if piece.failed:
                    return self._put_aside(lane, done)
                if piece.sent:
                    break
                return self._give_back(lane, done, left)
            if self._holds and (lane.partition.held_keys is None or is_held(lane, piece)):
                return self._put_aside(lane, done)
            gathered = Gathered()
            began = time.perf_counter()
            task = begin(self._loop, call, message_of(piece, found), gathered, base)
            if not task.done():
                in_a_row = 0
                try:
                    error = await task
                except asyncio.CancelledError as late:
                    error = coroutines.cancelled(late)
                if self._over:
                    raise _ended()
            else:
                error = result_of(task)
                in_a_row += 1
                if in_a_row == _IN_A_ROW:
                    in_a_row = 0
                    await asyncio.sleep(0)
            seconds = time.perf_counter() - began
            if error is not None:
                topic.failed_durations.add(seconds)
                return self._put_aside(lane, done, error, gathered)
            topic.durations.add(seconds)
            done += 1
            self._succeed(lane, piece, gathered)
            topic.handled += 1
            if not in_a_row:
                take_ages(topic, piece)
        return await self._confirm(lane, piece, done) if piece.sent else self._give_back(lane, done)

    def _succeed(self, lane: Lane, piece: Slice, gathered: Gathered) -> None:
        if gathered.sent:
            piece.await_later(gathered)
        gathered.close()
        piece.done += 1
        self.succeeded += 1
        lane.waits = lane.failing = 0
        lane.outage = None

    def run_one(self, found: TopicHandlers, message: Message, gathered: Gathered) -> Future[BaseException | None]:
        """Run a message for another thread, which waits for what it fails with."""
        future: Future[BaseException | None] = Future()
        self._awaited.add(future)

        def start() -> None:
            task = begin(self._loop, callable_for(self.consumer.name, found), message, gathered, self._bases[0])
            task.add_done_callback(end)

        def end(task: asyncio.Task[BaseException | None]) -> None:
            self._awaited.discard(future)
            _answer(future, _ended() if self._over else result_of(task))

        self._soon(start)
        if self._over:
            _answer(future, _ended())
        return future

    def _put_aside(
        self,
        lane: Lane,
        done: int,
        error: BaseException | None = None,
        gathered: Gathered | None = None,
        *,
        broken: BaseException | None = None,
    ) -> bool:
        self._asides.put(Aside(lane=lane, succeeded=done, error=error, gathered=gathered, broken=broken))
        return False

    def _give_back(self, lane: Lane, done: int, wait: float | None = None) -> bool:
        try:
            if lane.slices:
                take_ages(self.tally.of_topic(lane.place[0]), lane.slices[0])
        finally:
            if lane.permit is not None and self.lanes.circuit is not None:
                self.lanes.circuit.answer(lane.permit, done)
            self.lanes.give_back(lane, wait=wait)
        return True

    async def _confirm(self, lane: Lane, piece: Slice, done: int) -> bool:
        """Wait until the records that the slice produced are acknowledged; an aside sees to those that are not."""
        if piece.resend and not lane.partition.lost:
            return self._put_aside(lane, done)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WAIT if lane.halted else SHORT_WAIT):
                for _index, sent in list(piece.sent):
                    if not sent.delivery.done():
                        with suppress(Exception):
                            await sent.delivery
        while piece.sent and not lane.partition.lost:
            _index, sent = piece.sent[0]
            state = sent.delivery.state
            if state == "failed":
                return self._put_aside(lane, done)
            if state != "acknowledged":
                return self._give_back(lane, done, 0.0)
            if isinstance(sent, Forwarded):
                self.settler.expect(sent)
            piece.acknowledge()
            lane.waits = 0
            lane.outage = None
        return self._give_back(lane, done)

    def unanswered(self) -> float:
        """Return for how many seconds it has not come round since it was last asked; ask it anew when it has."""
        asked = self._asked
        if asked is not None:
            return time.monotonic() - asked
        if self._loop is not None:
            self._asked = time.monotonic()
            self._soon(self._came_round)
        return 0.0

    def _came_round(self) -> None:
        self._asked = None


def _answer(future: Future[BaseException | None], error: BaseException | None) -> None:
    with suppress(InvalidStateError):  # it is answered
        future.set_result(error)


def _ended() -> SystemExit:
    """Return what stops the worker although nothing of a message did."""
    return SystemExit("The event loop has ended before its handlers.")


def threads_of(
    consumer: conf.Consumer,
    group_id: str,
    lanes: Lanes,
    tally: ConsumerTally,
    stop_worker: Callable[[BaseException], None],
) -> list[HandlerThread] | list[EventLoop]:
    """Return the threads that handle the messages of a consumer: one event loop, or `concurrency` handler threads."""
    name = f"kafka-{consumer.name}"
    if handlers.on_an_event_loop(consumer.name):
        return [EventLoop(f"{name}-loop", consumer, group_id, lanes, tally, stop_worker)]
    kind = guarantees.thread_of(consumer)
    return [
        kind(f"{name}-{number}", consumer, group_id, lanes, tally, stop_worker)
        for number in range(consumer.concurrency)
    ]
