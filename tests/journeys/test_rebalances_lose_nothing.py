"""Promises 4, 5 and 6: workers come and go while traffic flows; handlers may outlast polls and partitions."""

from __future__ import annotations

import copy
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, assigned, in_order, numbered, wait_committed, wait_effects, wait_said
from tests.servers.processes import wait_until

SLOW, AWAITED = "tests.app.handlers.slow", "tests.app.handlers.slow_and_awaited"
SHORT_POLLS = {"session.timeout.ms": 6000, "max.poll.interval.ms": 6000}


@contextmanager
def traffic(project: Project, name: str, most: int = 4000) -> Iterator[None]:
    """Send records all the while, 20 at a time."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def send() -> None:
        try:
            for _ in range(most // 20):
                project.produce(numbered(20, keys=40, seconds=0.005), name)
                if ended.wait(0.1):
                    break
        except BaseException as error:  # noqa: BLE001  # told to the test just below
            failures.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures, failures


@pytest.mark.parametrize(
    ("ordering", "handler", "settings"),
    [
        ("partition", SLOW, {"concurrency": 2}),
        ("partition", SLOW, {"concurrency": 2, "transaction": "batch"}),
        ("key", SLOW, {"concurrency": 2}),
        ("key", AWAITED, {"concurrency": 50, "transaction": "none"}),
    ],
    ids=["partition", "together", "key", "key-awaited"],
)
def test_workers_that_join_leave_and_die_lose_nothing_and_keep_the_order(
    project: Project, topic: Callable[..., str], ordering: str, handler: str, settings: dict[str, Any]
) -> None:
    name = project.create_topic(topic(), partitions=6)
    project.consumer("journey", name, handler, ordering=ordering, **settings, **QUICK)
    with traffic(project, name):
        first = project.manage("kafka_consume")
        wait_effects(project, name, 50)
        second = project.manage("kafka_consume")
        third = project.manage("kafka_consume")
        wait_said(second, f"assigned={name}")
        wait_said(third, f"assigned={name}")
        wait_effects(project, name, len(project.effects(name)) + 50)
        first.send_signal(signal.SIGTERM)
        assert first.finish() == 0
        fourth = project.manage("kafka_consume")
        wait_said(fourth, f"assigned={name}")
        second.kill()
        second.wait(10)
        third.send_signal(signal.SIGINT)
        assert third.finish() == 0
        wait_until(lambda: all(assigned(fourth, name, number) for number in range(6)), message="not all came over")

    wait_committed(project, name, 40)
    fourth.send_signal(signal.SIGTERM)
    assert fourth.finish() == 0

    in_order(project, name, ordering)
    project.assert_ledger(name, settled=True)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_orderly_rebalances_repeat_nothing(project: Project, topic: Callable[..., str], protocol: str) -> None:
    name = project.create_topic(topic(), partitions=6)
    project.consumer("journey", name, SLOW, concurrency=2, options={"group.protocol": protocol})
    with traffic(project, name):
        first = project.manage("kafka_consume")
        wait_effects(project, name, 20)
        second = project.manage("kafka_consume")
        wait_said(second, f"assigned={name}")
        wait_effects(project, name, len(project.effects(name)) + 20)
        first.send_signal(signal.SIGTERM)
        assert first.finish() == 0
        wait_until(lambda: all(assigned(second, name, number) for number in range(6)), message="not all came over")

    wait_committed(project, name, 40)
    second.send_signal(signal.SIGTERM)
    assert second.finish() == 0

    in_order(project, name)
    project.assert_ledger(name, settled=True, once=True)


def test_a_handler_may_run_longer_than_the_poll_interval_and_keeps_its_partition(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, "tests.app.scenes.gated_before", concurrency=2, options=SHORT_POLLS)
    project.produce([{"partition": 0, "value": {"seconds": 9}}, {"partition": 0, "value": {}}], name)
    worker = project.manage("kafka_consume")
    wait_said(worker, f"assigned={name}")
    project.produce([{"partition": 1, "value": {}}], name)

    wait_effects(project, name, 1)
    assert [effect.partition for effect in project.effects(name)] == [1], "The other partition goes on."
    wait_effects(project, name, 3)
    wait_committed(project, name)
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    assert "lost=" not in worker.output()
    project.assert_ledger(name, settled=True, once=True)


def test_a_handler_that_outlives_its_partition_neither_commits_nor_writes_a_letter(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic(), partitions=2)
    gate, begun, mended = tmp_path / "gate", tmp_path / "begun", tmp_path / "mended"
    handler = "tests.app.scenes.gated_before"
    project.consumer("journey", name, handler, concurrency=2, options=SHORT_POLLS)
    waiting = {"begun": str(begun), "gate": str(gate), "raise": "ValueError", "mended": str(mended)}
    for partition in (0, 1):
        project.produce([{"partition": partition, "value": waiting}], name)
        project.produce([{"partition": partition, "value": {"n": number}} for number in range(20)], name)
    old = project.manage("kafka_consume")
    wait_until(begun.exists, message="the gated messages did not begin")

    new = project.manage("kafka_consume", env={"JOURNEY_KAFKA": with_ignored_gate(project)})
    wait_until(lambda: assigned(new, name, 0) or assigned(new, name, 1), message="no partition moved")
    moved = 0 if assigned(new, name, 0) else 1
    wait_said(old, "is handled again by the next owner")
    wait_until(lambda: project.committed(name)[moved] == 21, message="the new owner did not go on")
    gate.touch()
    # The other partition's message fails in the worker that still owns it, so its letter is due; the moved one's not.
    wait_until(lambda: project.committed(name)[1 - moved] == 21, message="the old worker did not go on")
    old.send_signal(signal.SIGTERM)
    assert old.finish() == 0
    new.send_signal(signal.SIGTERM)
    assert new.finish() == 0

    assert [(letter["partition"], letter["offset"], letter["attempts"]) for letter in project.letters()] == [
        (1 - moved, 0, 1)
    ]
    assert project.committed(name) == {0: 21, 1: 21}
    project.assert_ledger(name, settled=True, once=True)


def with_ignored_gate(project: Project) -> str:
    """The setting KAFKA for a worker whose handler waits for nothing."""
    kafka = copy.deepcopy(project.kafka)
    for topic in kafka["consumers"]["journey"]["topics"].values():
        topic["handler"] = "tests.app.handlers.record"
    return json.dumps(kafka)
