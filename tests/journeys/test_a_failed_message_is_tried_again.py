"""Retries in place: the order of a partition holds, the others go on, and what waits is handed over at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, assigned, in_order, query, wait_committed, wait_effects, wait_letters, wait_said
from tests.servers.processes import Program, wait_until


def stop(worker: Program) -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0


def failing(project: Project, name: str, *, partition: int = 0, **value: Any) -> None:
    project.produce([{"partition": partition, "value": {"raise": "ValueError", **value}}], name)


def test_a_message_that_succeeds_in_the_end_is_handled_once_and_in_its_place(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name, mended = project.create_topic(topic(), partitions=2), tmp_path / "mended"
    retry = {"max_retries": 50, "backoff": "200ms", "multiplier": 1}
    project.consumer("journey", name, "tests.app.scenes.gated", retry=retry)
    project.produce([{"partition": 0, "value": {"n": 1}}], name)
    failing(project, name, mended=str(mended))
    project.produce([{"partition": 0, "value": {"n": number}} for number in range(20)], name)
    worker = project.manage("kafka_consume")
    wait_said(worker, "attempt=2 failed error=ValueError")

    project.produce([{"partition": 1, "value": {"n": number}} for number in range(50)], name)
    wait_until(lambda: project.committed(name) == {0: 1, 1: 50}, message="the other partition did not go on")
    assert len(project.effects(name)) == 51
    mended.touch()
    wait_committed(project, name)
    stop(worker)

    assert project.letters() == []
    in_order(project, name)
    project.assert_ledger(name, settled=True, once=True)


def test_a_message_that_never_succeeds_is_a_letter_with_every_attempt(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name, "tests.app.scenes.gated", retry={"backoff": "300ms", "jitter": 0})
    failing(project, name)
    project.produce([{"value": {"n": number}} for number in range(10)], name)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    stop(worker)

    (letter,) = project.letters(name)
    assert (letter["attempts"], letter["category"]) == (4, "handler")
    rows = query(project, "SELECT number, error_type, at FROM lynx_kafka_deadletterattempt ORDER BY id")
    assert [row[:2] for row in rows] == [(number, "ValueError") for number in range(1, 5)]
    waits = [(later[2] - earlier[2]).total_seconds() for earlier, later in pairwise(rows)]
    assert all(wait >= least for wait, least in zip(waits, (0.3, 0.6, 1.2), strict=True)), waits
    project.assert_ledger(name, settled=True, once=True)


def test_a_partition_that_waits_moves_at_once_and_its_next_owner_begins_anew(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=2)
    hour = {"max_retries": 3, "backoff": "1h", "max_backoff": "1h"}
    project.consumer("journey", name, "tests.app.scenes.gated", retry=hour, **QUICK)
    for partition in (0, 1):
        failing(project, name, partition=partition)
        project.produce([{"partition": partition, "value": {"n": 1}}], name)
    first = project.manage("kafka_consume")
    wait_said(first, "attempt=1 failed", times=2)

    second = project.manage("kafka_consume")
    wait_until(lambda: any(assigned(second, name, partition) for partition in (0, 1)))
    wait_said(second, "attempt=1 failed")
    assert "attempt=2" not in second.output()

    stop(first)
    stop(second)
    assert project.letters() == []
    assert project.committed(name) == {0: 0, 1: 0}


def test_a_killed_worker_loses_neither_the_message_that_waits_nor_those_behind_it(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name, mended = project.create_topic(topic()), tmp_path / "mended"
    project.consumer("journey", name, "tests.app.scenes.gated", retry={"backoff": "1h", "max_backoff": "1h"}, **QUICK)
    project.produce([{"value": {"n": 1}}], name)
    failing(project, name, mended=str(mended))
    project.produce([{"value": {"n": number}} for number in range(10)], name)
    worker = project.manage("kafka_consume")
    wait_said(worker, "attempt=1 failed")
    wait_effects(project, name, 1)
    worker.kill()
    worker.finish()

    mended.touch()
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    stop(worker)
    assert project.letters() == []
    in_order(project, name)
    project.assert_ledger(name, settled=True)


def test_when_all_fail_none_is_lost_and_none_is_stored_twice(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name, "tests.app.scenes.gated", circuit_breaker={"enabled": False}, **QUICK)
    project.produce([{"value": {"n": number, "raise": "ValueError"}} for number in range(400)], name)
    worker = project.manage("kafka_consume")
    wait_letters(project, name, 100)
    worker.kill()
    worker.finish()
    worker = project.manage("kafka_consume")
    wait_committed(project, name, 60)
    stop(worker)

    assert [letter["offset"] for letter in project.letters(name)] == list(range(400))
    repeated = query(project, "SELECT count(*) FROM lynx_kafka_deadletter WHERE attempts > 2")
    assert repeated == [(0,)]
    assert project.effects(name) == []
    project.assert_ledger(name, settled=True)
