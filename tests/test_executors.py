"""Threads for what coroutines call in threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from django.db import connection, connections

from django_kafka.consuming.executors import HandlerThreads, sensitive
from tests.app.models import Effect
from tests.servers.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def names(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_threads_begin_when_they_are_needed_and_end_in_the_end() -> None:
    threads = HandlerThreads("few", 2)
    assert names("few") == []
    assert threads.submit(threading.get_ident).result(20) == threads.submit(threading.get_ident).result(20)
    assert len(names("few")) == 1, "One that is idle is taken before another begins."
    together = threading.Barrier(2, timeout=20)
    waits = [threads.submit(together.wait) for _ in range(2)]
    assert sorted(one.result(20) for one in waits) == [0, 1]
    assert len(names("few")) == 2
    threads.shutdown()
    assert names("few") == []
    with pytest.raises(RuntimeError, match="The worker has ended"):
        threads.submit(print)


def test_what_is_raised_reaches_who_asked_and_what_was_cancelled_is_left() -> None:
    threads = HandlerThreads("one", 1)
    go_on, ran = threading.Event(), []
    first = threads.submit(go_on.wait, 20)
    second = threads.submit(ran.append, 1)
    assert second.cancel()
    go_on.set()
    assert first.result(20)

    def stop() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        threads.submit(stop).result(20)
    assert threads.submit(int, "7").result(20) == 7, "The thread goes on."
    threads.shutdown()
    assert ran == []
    with pytest.raises(CancelledError):
        second.result(0)


def test_connections_are_their_own_cared_for_and_closed() -> None:
    threads = HandlerThreads("db", 1)
    mine: list[Any] = []

    def query() -> int:
        mine.append(connections["default"])
        return Effect.objects.count()

    threads.submit(query).result(20)
    assert mine[0] is not connection
    assert mine[0].connection is not None

    def break_it() -> None:
        connections["default"].connection.close()
        connections["default"].errors_occurred = True

    threads.submit(break_it).result(20)
    assert threads.submit(query).result(20) == 0, "A connection that broke is replaced before the next call."
    threads.shutdown()
    assert mine[0].connection is None


def test_what_is_thread_sensitive_is_called_in_the_thread_of_its_context() -> None:
    with sensitive("sync", 2) as contexts:
        kept = len(SyncToAsync.context_to_thread_executor)

        async def where() -> tuple[int, int]:
            return await sync_to_async(threading.get_ident)(), await sync_to_async(threading.get_ident)()

        async def all_of_them() -> list[tuple[int, int]]:
            tasks = [asyncio.create_task(where(), context=base.copy()) for base in contexts for _ in range(2)]
            return list(await asyncio.gather(*tasks))

        found = asyncio.run(all_of_them())
        assert all(one == other for one, other in found)
        assert found[0] == found[1] != found[2] == found[3]
    assert names("sync") == []
    assert len(SyncToAsync.context_to_thread_executor) == kept - 2


def test_an_idle_thread_gives_connections_back_that_settings_do_not_want_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_kafka.execution._IDLE", 0.0)
    monkeypatch.setattr("django_kafka.consuming.executors._LOOK_EVERY", 0.05)
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0)
    threads = HandlerThreads("idle", 1)
    mine: list[Any] = []

    def query() -> None:
        mine.append(connections["default"])
        Effect.objects.count()

    threads.submit(query).result(20)
    wait_until(lambda: mine[0].connection is None)
    threads.shutdown()
