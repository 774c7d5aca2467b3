"""Retry topics on a real broker: what fails is tried again later, and a worker that is killed loses nothing."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, numbered, query, read, wait_committed, wait_effects, wait_letters, wait_said
from tests.servers.processes import Program, wait_until

FOR_EVER = 99
HANDLER = "tests.app.scenes.fail_first"
RETRY = {"mode": "topics", "max_retries": 3, "backoff": "300ms", "multiplier": 2}


def declare(project: Project, name: str, **consumer: Any) -> list[str]:
    """Declare a consumer that retries through topics; return the names of these."""
    project.consumer("journey", name, HANDLER, **{"retry": RETRY, **consumer})
    project.kafka["producers"] = {"default": {}}
    return [f"{project.group}.{name}.retry.{number}" for number in (1, 2, 3)]


def stop(worker: Program) -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0


def wait_retried(project: Project, topics: list[str], seconds: float = 40) -> None:
    """Wait until everything in the retry topics is committed."""
    for name in topics:
        wait_until(lambda one=name: _all_committed(project, one), seconds, f"{name} was not committed", every=0.5)


def _all_committed(project: Project, name: str) -> bool:
    there = Counter(message.partition() for message in read(project, name))
    return all(count <= project.committed(name)[number or 0] for number, count in there.items())


def test_a_thousand_messages_of_which_some_fail_are_handled_or_letters_though_workers_are_killed(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=4)
    retries = declare(project, name, **QUICK)
    project.run("kafka_topics", "--create")
    records = numbered(1000)
    for number, record in enumerate(records):
        record["headers"] = [("number", str(number).encode())]
        if number % 50 == 0:
            record["value"]["fails"] = FOR_EVER
        elif number % 10 == 0:
            record["value"]["fails"] = 2
    sent = project.produce(records, name)
    for count in (100, 600):
        worker = project.manage("kafka_consume")
        wait_effects(project, name, count)
        worker.kill()
        worker.wait(10)
    worker = project.manage("kafka_consume")

    wait_letters(project, name, 20, 60)
    wait_committed(project, name, 60)
    wait_retried(project, retries, 60)
    stop(worker)

    project.assert_ledger(name, settled=True)
    letters = project.letters()
    bad = [one for one in sent if b'"fails": 99' in (one.value or b"")]
    assert sorted((row["topic"], row["partition"], row["offset"]) for row in letters) == sorted(
        one.place for one in bad
    )
    keys = {one.place: one.key for one in sent}
    for row in letters:
        # A worker that was killed may have handled it twice, each time with all its attempts.
        assert row["attempts"] in (4, 8, 12)
        assert bytes(row["key"]) == keys[row["topic"], row["partition"], row["offset"]]
    assert len({effect.place for effect in project.effects(name)}) == 980
    numbers = query(project, "SELECT count(*), count(DISTINCT (letter_id, number)) FROM lynx_kafka_deadletterattempt")
    assert numbers == [(sum(row["attempts"] for row in letters),) * 2]
    assert {message.partition() for message in read(project, retries[0])} <= {0, 1, 2, 3}


def test_a_missing_retry_topic_holds_the_message_and_names_the_command(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=2)
    retries = declare(project, name)
    program = project.manage("kafka_topics")
    assert program.finish() == 1
    assert "3 topics are missing" in program.output()
    project.produce([{"partition": 0, "value": {"fails": 1}}, {"partition": 1, "value": {}}], name)

    worker = project.manage("kafka_consume")
    wait_said(worker, f"{retries[0]} does not take its message (")
    assert "`python manage.py kafka_topics --create` makes it" in worker.output()
    wait_until(lambda: project.committed(name) == {0: 0, 1: 1}, message="the other partition did not go on")
    project.run("kafka_topics", "--create")
    wait_effects(project, name, 2, 60)
    wait_committed(project, name)
    wait_retried(project, retries)
    stop(worker)

    project.assert_ledger(name, settled=True, once=True)
    assert project.letters() == []


def test_a_replay_to_the_topic_goes_to_the_original_one_and_comes_back_to_its_letter(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic())
    retries = declare(project, name, retry={**RETRY, "max_retries": 1})[:1]
    project.run("kafka_topics", "--create")
    project.produce([{"key": "k", "value": {"fails": FOR_EVER}}], name)
    worker = project.manage("kafka_consume")
    wait_letters(project, name, 1)
    project.run("kafka_replay", "--all", "--target", "topic")
    state = "SELECT topic, state, attempts FROM lynx_kafka_deadletter"
    wait_until(lambda: query(project, state) == [(name, "open", 4)], 30, "it did not come back to its letter")
    stop(worker)
    assert len(read(project, name)) == 2
    assert len(read(project, retries[0])) == 2
