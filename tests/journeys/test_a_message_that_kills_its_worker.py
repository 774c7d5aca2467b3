"""Promise 12: a message that kills its worker three times is run alone and then dead-lettered, and no other one is."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, in_order, numbered, query, wait_effects
from tests.servers.processes import wait_until

DEADLY = "tests.app.scenes.deadly"


class Service:
    """What keeps a worker running as a service manager does: it starts another one when it dies."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.codes: list[int] = []
        self.worker = project.manage("kafka_consume")

    def tend(self) -> None:
        code = self.worker.poll()
        if code is not None:
            self.codes.append(code)
            self.worker = self.project.manage("kafka_consume")

    def until(self, condition: Callable[[], Any], seconds: float, message: str) -> None:
        """Keep it running until a condition holds."""

        def tended() -> Any:
            self.tend()
            return condition()

        wait_until(tended, seconds, message, every=0.1)

    def stop(self) -> None:
        self.worker.send_signal(signal.SIGTERM)
        assert self.worker.finish() == 0


@pytest.mark.parametrize("transaction", ["message", "batch"])
def test_it_dies_three_times_and_no_more(project: Project, topic: Callable[..., str], transaction: str) -> None:
    name = project.create_topic(topic(), partitions=3)
    project.kafka["heartbeats"] = {"interval": "300ms"}
    project.consumer("journey", name, DEADLY, concurrency=2, transaction=transaction, **QUICK)
    records = [{**record, "partition": number % 3} for number, record in enumerate(numbered(300, seconds=0.005))]
    records[250]["value"] = {"n": 250, "kill": True}
    sent = project.produce(records, name)
    (culprit,) = [one for one in sent if one.value == b'{"n": 250, "kill": true}']
    service = Service(project)

    service.until(lambda: project.all_committed(name), 120, "the topic was not committed")

    service.tend()
    service.stop()
    assert service.codes == [-signal.SIGKILL] * 3
    (letter,) = project.letters(name)
    assert (letter["topic"], letter["partition"], letter["offset"]) == culprit.place
    assert letter["error_type"] == "django_kafka.exceptions.WorkerKilled"
    assert "3 workers in a row died with this message" in letter["error_message"]
    assert letter["category"] == "handler"
    assert bytes(letter["value"]) == culprit.value
    project.assert_ledger(name, settled=True)
    in_order(project, name)
    rows = query(
        project, "SELECT worker, deaths, first, last, alone, guilty FROM lynx_kafka_tenure WHERE partition = 1"
    )
    assert rows == [("", 0, None, None, None, None)], "Nothing is held against anybody any more."


def test_one_that_ends_it_by_an_exception_that_is_no_failure_comes_to_the_same_end(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.kafka["heartbeats"] = {"interval": "300ms"}
    project.consumer("journey", name, "tests.app.scenes.gated_before", **QUICK)
    records = [{**record, "partition": number % 2} for number, record in enumerate(numbered(40))]
    records[11]["value"] = {"n": 11, "raise": "SystemExit"}
    project.produce(records, name)
    service = Service(project)

    service.until(lambda: project.all_committed(name), 60, "the topic was not committed")

    service.stop()
    assert service.codes == [1, 1, 1]
    (letter,) = project.letters(name)
    assert (letter["partition"], letter["error_type"]) == (1, "django_kafka.exceptions.WorkerKilled")
    project.assert_ledger(name, settled=True)
    in_order(project, name)


def test_workers_that_are_killed_from_outside_accuse_nobody(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.kafka["heartbeats"] = {"interval": "300ms"}
    project.consumer("journey", name, DEADLY, concurrency=2, **QUICK)
    project.produce(numbered(900, seconds=0.01), name)
    service = Service(project)
    chance = random.Random(20130101)
    for kill in range(3):
        # Each has handled something of its own before it is killed at a moment that nothing in it tells of.
        wait_effects(project, name, len(project.effects(name)) + 100, 60)
        time.sleep(chance.uniform(0, 0.3))
        service.worker.kill()
        service.worker.wait(10)
        service.tend()
        assert len(service.codes) == kill + 1

    service.until(lambda: project.all_committed(name), 60, "the topic was not committed")

    service.stop()
    assert service.codes == [-signal.SIGKILL] * 3
    assert project.letters(name) == []
    project.assert_ledger(name, settled=True)
    in_order(project, name)
