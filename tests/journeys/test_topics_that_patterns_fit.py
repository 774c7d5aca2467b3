"""Topics that come while workers run lose nothing, whatever becomes of the workers that find them."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, numbered, wait_committed, wait_effects, wait_letters

SLOW, FAILS = "tests.app.handlers.slow", "tests.app.handlers.fail_on_bad"


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_topics_come_while_workers_join_and_die_and_each_effect_is_there_once(
    project: Project, topic: Callable[..., str], protocol: str
) -> None:
    name = topic()
    quick = QUICK if protocol == "classic" else {}
    settings = {"guarantee": "effect_once", "options": {"group.protocol": protocol}, "find_topics_interval": "200ms"}
    project.consumer("journey", f"^{name}\\.[a-z]+$", SLOW, concurrency=2, **settings, **quick)
    topics = [project.create_topic(f"{name}.{letter}", partitions=2) for letter in "ab"]
    for one in topics:
        project.produce(numbered(200, seconds=0.005), one)
    first = project.manage("kafka_consume")
    wait_effects(project, topics[0], 20)
    topics.append(project.create_topic(f"{name}.c", partitions=3))
    project.produce(numbered(200, seconds=0.005), topics[2])
    second = project.manage("kafka_consume")
    wait_effects(project, topics[2], 20)
    first.kill()
    first.wait(10)
    topics.append(project.create_topic(f"{name}.d"))
    project.produce(numbered(100, seconds=0.005), topics[3])

    for one in topics:
        wait_committed(project, one, 90)
    second.send_signal(signal.SIGTERM)
    assert second.finish() == 0
    for one in topics:
        project.assert_ledger(one, settled=True, once=True)


def test_letters_that_go_to_topics_do_not_come_back_by_the_pattern(project: Project, topic: Callable[..., str]) -> None:
    name = topic()
    project.kafka["dead_letters"] = {"topic": "{topic}.dlq"}
    project.kafka["producers"] = {"default": {}}
    project.consumer("journey", f"^{name}.*", FAILS, find_topics_interval="200ms")
    project.create_topic(f"{name}.dlq")
    project.create_topic(name)
    project.produce([{"key": "k", "value": {"n": 1, "bad": True}}, {"key": "k", "value": {"n": 2}}], name)
    worker = project.manage("kafka_consume", "--until-empty")

    assert worker.finish() == 0
    wait_letters(project, name, 1)
    project.produce([{"key": "k", "value": {"n": 3}}], name)
    worker = project.manage("kafka_consume", "--until-empty")
    assert worker.finish() == 0
    project.assert_ledger(name, settled=True, once=True)
    assert [row["topic"] for row in project.letters()] == [name]
    assert project.committed(f"{name}.dlq") == {0: 0}
