"""A broker that goes away and comes back, or comes late: the worker says what it waits for, and loses nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import numbered, wait_committed, wait_effects, wait_said

pytestmark = pytest.mark.own_brokers


def test_a_broker_that_crashes_in_mid_stream_loses_nothing(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, "tests.app.handlers.slow", concurrency=2)
    project.produce(numbered(400, seconds=0.01), name)
    worker = project.manage("kafka_consume")
    wait_effects(project, name, 100)

    project.cluster.kill()
    wait_said(worker, "_ALL_BROKERS_DOWN")
    wait_effects(project, name, 150)
    project.cluster.start()
    project.produce(numbered(50), name)
    wait_committed(project, name, 60)
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    assert project.letters() == []
    project.assert_ledger(name, settled=True)


def test_a_worker_that_starts_before_its_broker_says_why_it_waits(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name)
    project.produce(numbered(20), name)
    project.cluster.stop()
    worker = project.manage("kafka_consume")
    wait_said(worker, "trying again until one answers")
    assert worker.poll() is None
    lines = len(worker.output().splitlines())
    assert lines < 40, f"{lines} lines for one broker that is down."

    project.cluster.start()
    wait_committed(project, name, 60)
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    project.assert_ledger(name, settled=True, once=True)
