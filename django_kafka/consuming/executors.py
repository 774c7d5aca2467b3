"""Threads for what coroutines call in threads, whose database connections are cared for like those of handlers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext

from ..execution import Connections

P = ParamSpec("P")
T = TypeVar("T")
_LOOK_EVERY = 1.0
"""Seconds between two looks at the connections of a thread that has nothing to do."""
_Call = tuple["Future[Any]", Callable[[], Any]]


class HandlerThreads(ThreadPoolExecutor):
    """Calls functions in up to so many threads, begun when they are needed.

    Not those of its base, which keeps the process alive for them and leaves their connections to the garbage collector.
    """

    def __init__(self, name: str, most: int) -> None:
        super().__init__(most)
        self._name = name
        self._most = most
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._ours: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._guard = threading.Lock()
        self._ended = False

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a function called; return what it will return. Raises `RuntimeError` after the end."""
        with self._guard:
            if self._ended:
                raise RuntimeError("The worker has ended; nothing more can be called in its threads.")
            future: Future[T] = Future()
            self._calls.put((future, lambda: function(*args, **kwargs)))
            if not self._idle.acquire(blocking=False) and len(self._ours) < self._most:
                # A daemon, so that a second signal can end the process while a handler runs.
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._ours)}", daemon=True)
                self._ours.append(thread)
                thread.start()
        return future

    def _work(self) -> None:
        connections = Connections()
        try:
            while True:
                try:
                    call = self._calls.get(timeout=_LOOK_EVERY)
                except Empty:
                    connections.rest()
                    continue
                if call is None:
                    return
                connections.tend()
                _do(*call, self._idle.release)
                # Neither it nor what it kept alive until the next one comes.
                del call
        finally:
            connections.close()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End its threads when they have done what they were asked for, and close their connections."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        with self._guard:
            ours = [] if self._ended else self._ours
            self._ended = True
        for _thread in ours:
            self._calls.put(None)
        if wait:
            for thread in self._ours:
                thread.join()


def _do(future: Future[Any], call: Callable[[], Any], idle: Callable[[], None]) -> None:
    """Call it; `idle` is called first, so that whoever is told of the end and asks for more begins no other thread."""
    if not future.set_running_or_notify_cancel():
        idle()
        return
    try:
        found = call()
    except BaseException as error:  # noqa: BLE001  # for whoever awaits it
        idle()
        future.set_exception(error)
        del error
    else:
        idle()
        future.set_result(found)


@contextmanager
def sensitive(name: str, number: int) -> Iterator[list[Context]]:
    """Have so many threads for what is thread-sensitive, such as the ORM; yield a context for each.

    All thread-sensitive functions that are called in a context, or in a copy of it, run in its thread.
    """
    threads = [HandlerThreads(f"{name}-{place}", 1) for place in range(number)]
    keys = [ThreadSensitiveContext() for _ in threads]
    contexts = [Context() for _ in threads]
    for thread, key, context in zip(threads, keys, contexts, strict=True):
        SyncToAsync.context_to_thread_executor[key] = thread
        context.run(SyncToAsync.thread_sensitive_context.set, key)
    try:
        yield contexts
    finally:
        for key in keys:
            SyncToAsync.context_to_thread_executor.pop(key, None)
        for thread in threads:
            thread.shutdown(wait=False)
        for thread in threads:
            thread.shutdown()
