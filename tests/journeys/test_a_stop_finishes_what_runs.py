"""Promise 8: the first SIGTERM or SIGINT finishes what runs, commits and leaves the group; a second stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import assigned, numbered, wait_committed, wait_effects, wait_said
from tests.servers.processes import Program, wait_until

GATED = "tests.app.scenes.gated"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that lets the gated message go on."""
    return tmp_path / "gate"


def in_the_middle(project: Project, name: str, gate: Path, pace: float = 0.05, **settings: object) -> Program:
    """Send 20 records and start a worker; come back while it runs the 11th, which waits for the gate.

    Those after it take `pace` seconds each: a worker that does not stop is still on its way when it is looked at.
    """
    begun = gate.with_name("begun")
    project.consumer("journey", name, GATED, **settings)
    records = numbered(11) + numbered(9, seconds=pace)
    records[10]["value"] |= {"begun": str(begun), "gate": str(gate)}
    project.produce(records, name)
    worker = project.manage("kafka_consume")
    wait_until(begun.exists, message="the gated message did not begin")
    return worker


@pytest.mark.parametrize(
    ("number", "protocol"), [(signal.SIGTERM, "classic"), (signal.SIGINT, "classic"), (signal.SIGTERM, "consumer")]
)
def test_the_running_message_is_finished_and_nothing_is_repeated(
    project: Project, topic: Callable[..., str], gate: Path, number: signal.Signals, protocol: str
) -> None:
    name = project.create_topic(topic())
    worker = in_the_middle(project, name, gate, 0.5, options={"group.protocol": protocol}, auto_commit_interval="1h")

    worker.send_signal(number)
    wait_said(worker, "Finishing what runs")
    gate.touch()

    assert worker.finish() == 0
    handled = [effect.offset for effect in project.effects(name)]
    assert handled == list(range(len(handled)))
    assert 11 <= len(handled) <= 13, "The running message is finished, and no others are begun."
    assert project.committed(name) == {0: len(handled)}
    next_worker = project.manage("kafka_consume")
    # The group was left: the next worker does not wait for the session of the first to end, which takes 45 s.
    wait_effects(project, name, 20, 40)
    next_worker.send_signal(number)
    assert next_worker.finish() == 0
    project.assert_ledger(name, settled=True, once=True)


def test_a_second_signal_stops_at_once_and_loses_nothing(
    project: Project, topic: Callable[..., str], gate: Path
) -> None:
    name = project.create_topic(topic())
    worker = in_the_middle(project, name, gate, session_timeout="6s", heartbeat_interval="1s")

    worker.send_signal(signal.SIGTERM)
    wait_said(worker, "Finishing what runs")
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)

    # Nobody has opened the gate, before which the message would have waited for a minute.
    assert worker.finish() == 128 + signal.SIGTERM
    assert len(project.effects(name)) == 10, "The effect of the unfinished message is rolled back."
    gate.touch()
    project.consumer("journey", name, GATED, session_timeout="6s", heartbeat_interval="1s")
    project.manage("kafka_consume")
    wait_committed(project, name)
    project.assert_ledger(name, settled=True)


def test_the_partitions_of_a_stopped_worker_go_on_elsewhere_at_once(
    project: Project, topic: Callable[..., str], gate: Path
) -> None:
    name = project.create_topic(topic())
    worker = in_the_middle(project, name, gate)
    other = project.manage("kafka_consume")
    wait_said(other, "assigned=")

    gate.touch()
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0
    # Not when the session of the first has ended, which takes 45 s.
    wait_until(lambda: assigned(other, name), 40, "the other worker did not get the partition")

    wait_committed(project, name)
    project.assert_ledger(name, settled=True, once=True)


def test_a_stop_in_the_midst_of_a_rebalance_ends_promptly(project: Project, topic: Callable[..., str]) -> None:
    """As when all workers are replaced one by one: each stops while its successor joins."""
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, "tests.app.handlers.slow", concurrency=2)
    project.produce(numbered(3000, keys=50, seconds=0.01), name)
    worker = project.manage("kafka_consume")
    wait_said(worker, f"assigned={name}")
    for _ in range(4):
        successor = project.manage("kafka_consume")
        wait_said(successor, " started")
        worker.send_signal(signal.SIGTERM)
        assert worker.finish() == 0
        worker = successor

    wait_said(worker, f"assigned={name}")
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0
    assert project.effects(name)
    project.assert_ledger(name, once=True)


@pytest.mark.own_brokers
def test_a_stop_during_an_outage_of_the_brokers_ends(project: Project, topic: Callable[..., str], gate: Path) -> None:
    name = project.create_topic(topic())
    worker = in_the_middle(project, name, gate, session_timeout="6s", heartbeat_interval="1s")
    project.cluster.kill()
    gate.touch()
    wait_effects(project, name, 11)

    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0
    project.cluster.start()

    project.manage("kafka_consume")
    wait_committed(project, name, 30)
    project.assert_ledger(name, settled=True)
