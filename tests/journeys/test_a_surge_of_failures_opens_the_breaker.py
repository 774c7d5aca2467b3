"""Promise 3: when handlers fail in numbers the consumer waits; an outage of one message only is its own fault."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.journeys.project import Project
from tests.journeys.steps import assigned, in_order, query, wait_committed, wait_effects, wait_letters, wait_said
from tests.servers.processes import Program, wait_until

HEARTBEATS = {"interval": "200ms"}
ONCE = {"max_retries": 0}
OPENED, CLOSED = "circuit opened", "circuit closed"


def stop(worker: Program) -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0


def status(project: Project) -> list[dict[str, Any]]:
    said = project.run("kafka_status", "--json")
    return json.loads(said[said.index("{") :])["workers"]


def produce(project: Project, name: str, count: int, value: dict[str, Any], partitions: int = 2) -> None:
    project.produce(
        [{"partition": number % partitions, "value": {"n": number, **value}} for number in range(count)], name
    )


def consume(project: Project, name: str, **settings: Any) -> None:
    project.kafka["heartbeats"] = HEARTBEATS
    project.consumer("journey", name, "tests.app.scenes.gated", concurrency=2, retry=ONCE, **settings)


def test_a_surge_is_waited_out_also_by_a_worker_that_takes_over_from_a_killed_one(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic(), partitions=2)
    mended = tmp_path / "mended"
    quick = {"session_timeout": "6s", "heartbeat_interval": "1s"}
    consume(project, name, circuit_breaker={"window": 20, "cooldown": "500ms"}, **quick)
    produce(project, name, 300, {"raise": "ValueError", "mended": str(mended)})
    first = project.manage("kafka_consume")
    wait_said(first, OPENED)
    wait_until(lambda: [one["circuit"]["state"] for one in status(project)] != ["closed"])
    (shown,) = status(project)
    assert shown["circuit"]["reason"] == "10 of the last 10 messages failed, 10 of them with ValueError"
    wait_letters(project, name, 9)
    first.send_signal(signal.SIGKILL)
    first.finish()
    assert len(project.letters(name)) == 9

    second = project.manage("kafka_consume")
    wait_said(second, OPENED, 40)
    time.sleep(2)  # several probes
    assert len(project.letters(name)) <= 18
    mended.touch()
    wait_committed(project, name, 40)
    wait_said(second, CLOSED)
    stop(second)

    assert second.output().count(OPENED) == second.output().count(CLOSED) == 1
    assert len(project.letters(name)) <= 18
    project.assert_ledger(name, settled=True)
    in_order(project, name)


def test_an_operator_closes_the_circuit_from_the_command_line(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic(), partitions=2)
    mended = tmp_path / "mended"
    consume(project, name, circuit_breaker={"window": 20, "cooldown": "1h"})
    produce(project, name, 100, {"raise": "ValueError", "mended": str(mended)})
    worker = project.manage("kafka_consume")
    wait_said(worker, OPENED)
    mended.touch()
    wait_until(lambda: [one["circuit"]["state"] for one in status(project)] == ["open"])
    assert "10 of the last 10 messages failed" in project.run("kafka_status")

    assert "Asked 1 of its workers" in project.run("kafka_status", "--close-breaker", "journey")
    wait_committed(project, name)
    wait_said(worker, CLOSED)
    wait_until(lambda: [one["circuit"]["state"] for one in status(project)] == ["closed"])
    stop(worker)

    assert len(project.letters(name)) == 9
    project.assert_ledger(name, settled=True, once=True)
    in_order(project, name)


def test_a_surge_that_outlasts_patience_is_written_down_and_holds_no_partition(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=2)
    consume(project, name, circuit_breaker={"window": 20, "cooldown": "500ms"}, outage_patience="3s")
    produce(project, name, 100, {"raise": "ValueError"})
    began = time.monotonic()
    worker = project.manage("kafka_consume")
    wait_said(worker, OPENED)
    wait_committed(project, name)
    assert time.monotonic() - began > 3
    wait_until(lambda: [one["circuit"]["writing_letters"] for one in status(project)] == [True])
    assert "open, writing letters" in project.run("kafka_status")
    produce(project, name, 40, {})
    wait_committed(project, name)
    wait_said(worker, CLOSED)
    stop(worker)

    assert len(project.letters(name)) == 100
    project.assert_ledger(name, settled=True, once=True)


def test_an_outage_that_meets_one_message_is_its_own_fault_when_another_worker_gets_on(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic(), partitions=2)
    consume(project, name, outage_patience="4s")
    workers = [project.manage("kafka_consume") for _ in range(2)]
    wait_until(
        lambda: all(sum(assigned(worker, name, number) for number in (0, 1)) == 1 for worker in workers),
        40,
        "each worker has one partition",
    )
    outage = {"raise": "ConnectionRefusedError"}
    project.produce([{"partition": 0, "value": {"n": 0, **outage}}, {"partition": 0, "value": {"n": 1}}], name)
    project.produce([{"partition": 1, "value": {"n": number, "seconds": 0.05}} for number in range(400)], name)
    wait_letters(project, name, 1, 40)
    wait_committed(project, name, 40)
    for worker in workers:
        stop(worker)

    assert query(project, 'SELECT partition, "offset", category FROM lynx_kafka_deadletter') == [(0, 0, "outage")]
    project.assert_ledger(name, settled=True, once=True)


def test_an_outage_that_meets_all_makes_no_letter_however_long_it_takes(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic(), partitions=2)
    mended = tmp_path / "mended"
    consume(project, name, outage_patience="1s")
    produce(project, name, 20, {"raise": "ConnectionRefusedError", "mended": str(mended)})
    worker = project.manage("kafka_consume")
    wait_said(worker, ": something cannot be reached", 40, times=12)
    wait_until(lambda: [one["waiting"] for one in status(project)] == [2])
    assert project.letters(name) == []
    mended.touch()
    wait_effects(project, name, 20, 40)
    wait_committed(project, name)
    stop(worker)

    assert project.letters(name) == []
    project.assert_ledger(name, settled=True)
