"""Handlers that run side by side on SQLite, which lets one write at a time."""

from __future__ import annotations

import time

import pytest
from django.db import connection

from django_kafka import tallies
from django_kafka.messages import Message
from tests.app.handlers import record
from tests.app.models import Effect
from tests.consuming import Seen, Workplace

pytestmark = pytest.mark.sqlite


def read_then_write(message: Message) -> None:
    """Do what SQLite refuses at once when somebody else has written in between."""
    Effect.objects.count()
    time.sleep(0.001)
    record(message)


@pytest.mark.parametrize("mode", ["DEFERRED", "IMMEDIATE"])
def test_writers_that_meet_wait_for_one_another_and_use_no_attempt(
    workplace: Workplace, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "transaction_mode", mode)
    # SQLite gives the lock to whoever happens to ask for it when it is free: one may wait for long.
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 60)
    seen = Seen(read_then_write)
    workplace.consume(seen, partitions=4, concurrency=4, ordering="key", retry={"max_retries": 0})
    for partition in range(4):
        workplace.send(range(50), partition)
    before = tallies.of_consumer("ops").contentions
    with workplace.worker():
        seen.wait(200, 60)
    met = tallies.of_consumer("ops").contentions - before
    # A read lock that others hold cannot become a write lock; who takes the write lock first waits for it.
    assert (met > 0) == (mode == "DEFERRED")
    assert workplace.letters() == []
    assert Effect.objects.count() == 200
    assert workplace.committed() == dict.fromkeys(range(4), 50)
