"""From `services.produce` in one process to an effect in another, once each, and committed to the end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import note, numbered, query, read, wait_committed, wait_effects, wait_said
from tests.servers.processes import wait_until


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_every_record_that_a_django_process_sent_has_one_effect(
    project: Project, topic: Callable[..., str], protocol: str
) -> None:
    name = project.create_topic(topic(), partitions=3)
    project.consumer("journey", name, options={"group.protocol": protocol})
    sender = project.start([sys.executable, "-m", "tests.journeys.scripts.produce", name, "300"])
    assert sender.finish() == 0, sender.output()
    note(project, read(project, name))
    assert len(project.ledger) == 300

    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    assert sorted(effect.payload["n"] for effect in project.effects(name)) == list(range(300))
    assert project.letters() == []
    project.assert_ledger(name, settled=True, once=True)


def test_without_auto_commit_each_slice_is_committed_at_once(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=1)
    project.consumer("journey", name, enable_auto_commit=False, auto_commit_interval="1h")
    project.produce(numbered(50), name)
    project.manage("kafka_consume")

    wait_committed(project, name)

    project.assert_ledger(name, settled=True, once=True)


def test_with_auto_commit_the_watermark_is_committed_on_an_interval_and_at_the_end(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=1)
    project.consumer("journey", name, auto_commit_interval="1s")
    worker = project.manage("kafka_consume")
    project.produce(numbered(50), name)
    wait_committed(project, name)
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0

    project.consumer("journey", name, auto_commit_interval="1h")
    worker = project.manage("kafka_consume")
    project.produce(numbered(50), name)
    wait_effects(project, name, 100)
    assert project.committed(name) == {0: 50}
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    project.assert_ledger(name, settled=True, once=True)


def test_two_consumers_in_one_process_each_handle_everything(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=2)
    other = f"{project.group}-other"
    project.consumer("first", name)
    project.consumer("second", name, group_id=other, concurrency=2)
    project.consumer("off", name, group_id="never", enabled=False)
    project.produce(numbered(100), name)
    worker = project.manage("kafka_consume")

    wait_committed(project, name)
    wait_committed(project, name, group=other)
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    # The effects of both bear the group of their process.
    effects = project.effects(name)
    assert len(effects) == 200
    assert len({effect.place for effect in effects}) == 100
    assert project.committed(name, "never") == {0: 0, 1: 0}
    project.assert_ledger(name, settled=True)


def test_a_worker_that_finds_no_topic_says_so_and_works_when_it_comes(
    project: Project, topic: Callable[..., str]
) -> None:
    name = topic()
    project.consumer("journey", name)
    worker = project.manage("kafka_consume")
    wait_said(worker, "kafka_topics --create")

    project.create_topic(name)
    project.produce(numbered(5), name)
    wait_committed(project, name)

    project.assert_ledger(name, settled=True, once=True)


def test_the_heartbeat_of_a_worker_is_there_while_it_runs(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name)
    project.produce(numbered(1), name)
    worker = project.manage("kafka_consume")
    rows = wait_until(lambda: query(project, "SELECT consumer, group_id, pid FROM lynx_kafka_worker"))
    assert rows == [("journey", project.group, worker.pid)]
    wait_committed(project, name)
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    assert query(project, "SELECT 1 FROM lynx_kafka_worker") == []
    project.assert_ledger(name, settled=True, once=True)
