"""Promise 1: a crash repeats a message, it never loses one, and leaves no half of an effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, numbered, wait_committed, wait_effects
from tests.servers.processes import wait_until

GATED = "tests.app.scenes.gated"


@pytest.mark.parametrize("transaction", ["message", "none"])
def test_what_was_not_committed_is_handled_again(
    project: Project, topic: Callable[..., str], tmp_path: Path, transaction: str
) -> None:
    name = project.create_topic(topic())
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    project.consumer("journey", name, GATED, transaction=transaction, enable_auto_commit=False, **QUICK)
    records = numbered(400)
    records[250]["value"] |= {"begun": str(begun), "gate": str(gate)}
    project.produce(records, name)
    worker = project.manage("kafka_consume")
    wait_until(begun.exists)
    worker.kill()
    worker.wait(10)

    before = len(project.effects(name))
    assert before == (250 if transaction == "message" else 251), "A transaction leaves no half of the killed message."
    project.assert_ledger(name)
    gate.touch()
    project.manage("kafka_consume")
    wait_committed(project, name)

    project.assert_ledger(name, settled=True)


@pytest.mark.parametrize("ordering", ["partition", "key", "unordered"])
def test_many_kills_in_mid_traffic_lose_nothing(project: Project, topic: Callable[..., str], ordering: str) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, "tests.app.handlers.slow", concurrency=2, ordering=ordering, **QUICK)
    project.produce(numbered(600, seconds=0.01), name)
    for step in (50, 150):
        worker = project.manage("kafka_consume")
        wait_effects(project, name, step)
        worker.kill()
        worker.wait(10)
        project.assert_ledger(name)
    project.manage("kafka_consume")

    wait_committed(project, name, 40)

    project.assert_ledger(name, settled=True)
