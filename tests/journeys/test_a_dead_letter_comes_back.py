"""Fail, become a dead letter, be mended, be replayed: resolved, once, whoever is killed on the way."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.journeys.project import Project
from tests.journeys.steps import (
    execute,
    note,
    numbered,
    query,
    read,
    wait_committed,
    wait_effects,
    wait_letters,
)
from tests.servers.processes import wait_until

GATED = "tests.app.scenes.gated"


def states(project: Project) -> list[Any]:
    """State and attempts of every letter."""
    return query(project, "SELECT state, attempts FROM lynx_kafka_deadletter ORDER BY id")


def stop(worker: Any) -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0


def failing(project: Project, name: str, mended: Path, *, count: int = 20, bad: tuple[int, ...] = (3, 7)) -> None:
    """Send records, some of which fail until they are mended, and let a worker settle them."""
    records = numbered(count)
    for number in bad:
        records[number]["value"] |= {"raise": "ValueError", "mended": str(mended)}
        records[number]["headers"] = [("trace", b"a"), ("trace", b"b\0c"), ("empty", None)]
    project.produce(records, name)
    worker = project.manage("kafka_consume", "journey")
    wait_committed(project, name)
    stop(worker)
    assert states(project) == [("open", 1)] * len(bad)
    assert len(project.effects(name)) == count - len(bad)
    project.assert_ledger(name, settled=True, once=True)


def test_a_mended_letter_is_resolved_by_running_its_handler_again(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, GATED)
    failing(project, name, tmp_path / "mended")
    letter = project.letters()[0]
    assert letter["error_type"] == "ValueError"
    assert letter["handler"] == GATED
    assert "in gated" in letter["traceback"]

    too_early = project.manage("kafka_replay", "--all")
    assert too_early.finish() == 1
    assert states(project) == [("open", 2)] * 2, "Not mended yet: the failure comes back to the same letters."
    (tmp_path / "mended").touch()
    project.run("kafka_replay", "--all")

    assert states(project) == [("resolved", 3)] * 2
    places = [effect.place for effect in project.effects(name)]
    assert len(places) == len(set(places)) == 20
    project.assert_ledger(name, settled=True)


def test_a_worker_carries_out_what_was_asked_for_while_it_handles(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, GATED)
    failing(project, name, tmp_path / "mended")
    (tmp_path / "mended").touch()
    request_all(project)

    worker = project.manage("kafka_consume")
    project.produce(numbered(10), name)
    wait_until(lambda: states(project) == [("resolved", 2)] * 2, message="the replays were not carried out")
    wait_effects(project, name, 30)
    wait_committed(project, name)
    stop(worker)

    places = [effect.place for effect in project.effects(name)]
    assert len(places) == len(set(places)) == 30
    project.assert_ledger(name, settled=True)


def test_a_letter_that_fails_again_after_its_way_through_the_topic_is_the_same_letter(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name, GATED)
    project.kafka["producers"] = {"default": {}}
    failing(project, name, tmp_path / "mended", bad=(3,))
    original = read(project, name)[3]

    project.run("kafka_replay", "--all", "--target", "topic")
    assert states(project) == [("resolved", 1)]
    sent = read(project, name)[20:]
    note(project, sent)
    assert [(one.key(), one.value()) for one in sent] == [(original.key(), original.value())]
    headers = sent[0].headers() or []
    assert headers[:3] == [("trace", b"a"), ("trace", b"b\0c"), ("empty", None)]
    assert len(headers) == 4, "One more header says which letter it is."
    worker = project.manage("kafka_consume")
    wait_until(lambda: states(project) == [("open", 2)], message="the failure did not come back to the letter")

    (tmp_path / "mended").touch()
    project.run("kafka_replay", "--all", "--target", "topic")
    note(project, read(project, name)[21:])
    wait_effects(project, name, 20)
    wait_committed(project, name)
    stop(worker)

    assert states(project) == [("resolved", 2)]
    assert len(project.letters()) == 1
    # The copy that failed is in the books under the place of its original.
    copies = [line for line in project.ledger if line.offset == 20]
    project.ledger = [line for line in project.ledger if line.offset != 20]
    assert len(copies) == 1
    project.assert_ledger(name, settled=True)


def test_a_killed_replay_is_taken_over_with_one_outcome(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic())
    gate, begun, mended = tmp_path / "gate", tmp_path / "begun", tmp_path / "mended"
    project.consumer("journey", name, GATED)
    gate.touch()
    records = numbered(5)
    records[2]["value"] |= {"begun": str(begun), "gate": str(gate), "raise": "ValueError", "mended": str(mended)}
    project.produce(records, name)
    worker = project.manage("kafka_consume")
    wait_letters(project, name, 1)
    wait_committed(project, name)
    stop(worker)
    for path in (gate, begun):
        path.unlink()
    mended.touch()

    killed = project.manage("kafka_replay", "--all")
    wait_until(begun.exists, message="the replay did not begin")
    killed.kill()
    killed.wait(10)
    assert states(project) == [("open", 1)]
    assert len(project.effects(name)) == 4, "The half effect of the killed replay is not there."
    gate.touch()
    # Its claim would run out by itself after a minute.
    execute(project, "UPDATE lynx_kafka_replay SET claimed_at = claimed_at - interval '2 minutes'")
    worker = project.manage("kafka_consume")
    wait_until(lambda: states(project) == [("resolved", 2)], message="the replay was not taken over")
    stop(worker)

    assert len(project.effects(name)) == 5
    assert query(project, "SELECT state FROM lynx_kafka_replay") == [("succeeded",)]
    project.assert_ledger(name, settled=True)


def request_all(project: Project) -> None:
    """Ask for replays as the admin does: rows, which somebody else carries out."""
    project.run(
        "shell", "-c",
        "from django_kafka.dead_letters import replaying; "
        "replaying.request(replaying.letters().values_list('pk', flat=True))",
    )  # fmt: skip
