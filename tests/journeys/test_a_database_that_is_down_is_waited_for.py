"""Promises 2 and 3: an outage of the database is nobody's fault, and a letter that cannot be written is not settled."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.journeys.project import Project
from tests.journeys.steps import (
    execute,
    numbered,
    query,
    wait_committed,
    wait_effects,
    wait_letters,
    wait_said,
)
from tests.servers.processes import Program, wait_until

SHORT_POLLS = {"session.timeout.ms": 6000, "max.poll.interval.ms": 6000}


def stop(worker: Program) -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0


def attempts(project: Project) -> list[Any]:
    return query(project, 'SELECT partition, "offset", attempts, error_type FROM lynx_kafka_deadletter ORDER BY 1, 2')


def test_letters_that_are_due_during_an_outage_are_written_after_it(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic(), partitions=2)
    gate = tmp_path / "gate"
    project.consumer(
        "journey", name, "tests.app.scenes.gated_before", concurrency=2, transaction="none", options=SHORT_POLLS
    )
    for partition in (0, 1):
        begun = str(tmp_path / f"begun-{partition}")
        project.produce([{"partition": partition, "value": {"n": number}} for number in range(10)], name)
        project.produce(
            [{"partition": partition, "value": {"begun": begun, "gate": str(gate), "raise": "ValueError"}}], name
        )
        project.produce([{"partition": partition, "value": {"n": number}} for number in range(10)], name)
    worker = project.manage("kafka_consume")
    wait_until(lambda: all((tmp_path / f"begun-{partition}").exists() for partition in (0, 1)))

    project.server.stop()
    began = time.monotonic()
    gate.touch()
    wait_said(worker, "its dead letter could not be written", times=4)
    # Longer than max.poll.interval.ms: a worker that does not poll loses its partitions meanwhile.
    wait_until(lambda: time.monotonic() - began > 7)
    assert project.committed(name) == {0: 10, 1: 10}
    project.server.start()
    wait_letters(project, name, 2)
    wait_committed(project, name)
    stop(worker)

    assert "lost=" not in worker.output()
    assert worker.output().count(" assigned=") == 1
    assert attempts(project) == [(0, 10, 1, "ValueError"), (1, 10, 1, "ValueError")]
    project.assert_ledger(name, settled=True, once=True)


def test_an_outage_while_handling_makes_no_letter(project: Project, topic: Callable[..., str], tmp_path: Path) -> None:
    name = project.create_topic(topic(), partitions=2)
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    project.consumer("journey", name, "tests.app.scenes.gated", concurrency=2)
    project.produce(numbered(50), name)
    project.produce([{"partition": 0, "value": {"begun": str(begun), "gate": str(gate)}}], name)
    project.produce(numbered(50), name)
    worker = project.manage("kafka_consume")
    wait_until(begun.exists)

    project.server.kill()
    project.produce([{"partition": 1, "value": {"n": 1}}], name)
    gate.touch()
    wait_said(worker, "the database", times=4)
    project.server.start()
    wait_committed(project, name)
    stop(worker)

    assert project.letters() == []
    project.assert_ledger(name, settled=True)


def test_a_table_that_refuses_letters_keeps_its_partition_waiting_and_no_other(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, "tests.app.handlers.fail_on_bad", concurrency=2)
    execute(
        project,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
    )
    execute(
        project,
        "CREATE TRIGGER full_disk BEFORE INSERT ON lynx_kafka_deadletter FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    project.produce([{"partition": 0, "value": {"bad": True}}, {"partition": 0, "value": {"n": 1}}], name)
    worker = project.manage("kafka_consume")
    wait_said(worker, "its dead letter could not be written", times=3)
    project.produce([{"partition": 1, "value": {"n": 2}}], name)
    wait_effects(project, name, 1)
    wait_until(lambda: project.committed(name) == {0: 0, 1: 1}, message="the other partition was not committed")

    execute(project, "DROP TRIGGER full_disk ON lynx_kafka_deadletter")
    wait_committed(project, name)
    stop(worker)

    assert attempts(project) == [(0, 0, 1, "ValueError")]
    project.assert_ledger(name, settled=True, once=True)


def test_an_idle_worker_outlives_a_restart_of_the_database(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name)
    project.produce(numbered(5), name)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)

    project.server.restart()
    project.produce(numbered(5), name)
    wait_committed(project, name)
    stop(worker)

    assert project.letters() == []
    project.assert_ledger(name, settled=True, once=True)


def test_connections_are_per_thread_and_kept(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=3)
    project.consumer("journey", name, "tests.app.scenes.show_connection", concurrency=3)
    worker = project.manage("kafka_consume", env={"PGAPPNAME": "worker"})
    for _ in range(5):
        project.produce(numbered(60), name)
        wait_committed(project, name)
        open_now = query(project, "SELECT pid FROM pg_stat_activity WHERE application_name = 'worker'")
        # Three handler threads, heartbeats, replays.
        assert len(open_now) <= 5, open_now
    stop(worker)

    pids = {effect.payload["pid"] for effect in project.effects(name)}
    assert 1 <= len(pids) <= 3, f"{len(pids)} connections handled 300 messages."
    project.assert_ledger(name, settled=True, once=True)
