from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta

import pytest
from django.utils import timezone
from pytest_django import Settings

from django_kafka import conf
from django_kafka.consuming.fates import Fate, Former
from django_kafka.models import Worker
from django_kafka.monitoring.heartbeats import Heartbeat, alive
from tests.refusing import refusing
from tests.servers.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fast(settings: Settings) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "g"}}, "heartbeats": {"interval": "100ms"}}


@contextmanager
def beating() -> Iterator[Heartbeat]:
    beat = Heartbeat([(conf.consumer("ops"), "g")])
    beat.start()
    try:
        yield beat
    finally:
        beat.end()
    assert not beat.is_alive()
    assert beat not in threading.enumerate()


def test_a_worker_is_alive_while_it_beats_and_gone_when_it_has_ended() -> None:
    assert not alive("ops")
    with beating():
        wait_until(lambda: alive("ops"))
        assert not alive("other")
        (row,) = Worker.objects.all()
        assert (row.consumer, row.group_id, row.cluster, row.pid) == ("ops", "g", "default", os.getpid())
    assert not alive("ops")
    assert not Worker.objects.exists()


def test_a_worker_whose_clock_is_a_year_off_is_alive_while_it_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    right = timezone.now

    def wrong() -> datetime:
        a_year = timedelta(days=365) if threading.current_thread().name == "kafka-heartbeat" else timedelta()
        return right() - a_year

    monkeypatch.setattr(timezone, "now", wrong)
    with beating() as beat:
        wait_until(beat.beaten.is_set)
        assert alive("ops")
        (row,) = Worker.objects.all()
        assert abs(row.seen_at - right()) < timedelta(minutes=1)
        former = Former()
        assert former.fate(row.pk, "default") is Fate.UNKNOWN
        wait_until(lambda: former.fate(row.pk, "default") is Fate.ALIVE)


def test_each_beat_is_later_and_no_row_is_added() -> None:
    with beating():
        first = wait_until(Worker.objects.first)
        assert first is not None
        wait_until(lambda: Worker.objects.get().seen_at > first.seen_at)
        assert Worker.objects.get().started_at == first.started_at


def test_a_worker_that_was_killed_counts_as_gone_after_three_beats() -> None:
    now = timezone.now()
    Worker.objects.create(
        id="dead", consumer="ops", group_id="g", host="h", pid=1, version="1", started_at=now,
        seen_at=now - timedelta(seconds=0.4),
    )  # fmt: skip
    assert not alive("ops")


def test_rows_of_the_long_dead_are_deleted_at_the_next_start() -> None:
    old = timezone.now() - timedelta(seconds=1000)
    Worker.objects.create(
        id="dead", consumer="ops", group_id="g", host="h", pid=1, version="1", started_at=old, seen_at=old
    )
    with beating():
        wait_until(lambda: not Worker.objects.filter(pk="dead").exists() and alive("ops"))


def test_a_database_that_refuses_is_said_once_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        with refusing("lynx_kafka_worker"):
            beat = stack.enter_context(beating())
            wait_until(lambda: "heartbeat failed" in caplog.text)
            beat.join(0.5)
            assert beat.is_alive()
            assert caplog.text.count("heartbeat failed") == 1
        wait_until(lambda: alive("ops"))
