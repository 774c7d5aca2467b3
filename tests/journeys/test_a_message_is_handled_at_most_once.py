"""`at_most_once`: whatever becomes of workers, no handler gets a message twice, and what is lost is bounded."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, numbered, wait_committed, wait_effects, wait_letters, wait_said
from tests.journeys.test_rebalances_lose_nothing import traffic
from tests.journeys.wire import Wire
from tests.servers.processes import wait_until

FETCH = 20
MOST = {"guarantee": "at_most_once", "max_poll_records": FETCH, "concurrency": 2, **QUICK}


def begun(project: Project) -> Counter[str]:
    """How many times a handler was begun with each message, in all workers."""
    return Counter(line for one in project.programs for line in re.findall(r"announced (\S+)", one.output()))


@pytest.mark.parametrize("ordering", ["partition", "key"])
def test_kills_and_zombies_repeat_nothing(project: Project, topic: Callable[..., str], ordering: str) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, "tests.app.scenes.announced", ordering=ordering, **MOST)
    project.produce(numbered(800, keys=30, seconds=0.01), name)
    kills = 3
    for turn in range(kills):
        worker = project.manage("kafka_consume")
        wait_effects(project, name, 60 * (turn + 1), 40)
        worker.kill()
        worker.wait(10)
    zombie = project.manage("kafka_consume")
    wait_effects(project, name, 60 * (kills + 1), 40)
    zombie.freeze()
    project.manage("kafka_consume")
    wait_committed(project, name, 60)
    zombie.send_signal(signal.SIGCONT)
    wait_said(zombie, "lost=")
    project.produce(numbered(50), name)
    wait_committed(project, name, 60)

    last = {line.place for line in project.ledger[-50:]}
    wait_until(lambda: last <= {effect.place for effect in project.effects(name)})
    handled = Counter(effect.place for effect in project.effects(name))
    assert max(handled.values()) == 1
    assert set(begun(project).values()) == {1}, "nor was a handler begun twice"
    lost = len(project.ledger) - len(handled)
    # Of each partition what was committed in one fetch; of the zombie as well.
    assert lost <= (kills + 1) * 2 * FETCH, lost
    assert not project.letters()


def test_orderly_rebalances_and_stops_lose_nothing(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=6)
    project.consumer("journey", name, "tests.app.scenes.announced", **MOST)
    with traffic(project, name):
        first = project.manage("kafka_consume")
        wait_effects(project, name, 20)
        second = project.manage("kafka_consume")
        wait_said(second, f"assigned={name}")
        wait_effects(project, name, len(project.effects(name)) + 50)
        first.send_signal(signal.SIGTERM)
        assert first.finish() == 0
        wait_effects(project, name, len(project.effects(name)) + 50)
    wait_until(lambda: len(project.effects(name)) == len(project.ledger), 40)
    second.send_signal(signal.SIGTERM)
    assert second.finish() == 0

    project.assert_ledger(name, settled=True, once=True)
    assert set(begun(project).values()) == {1}


def test_a_commit_that_was_not_answered_is_not_handled_again(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name, "tests.app.scenes.announced", **MOST)
    with Wire(project.server.port) as wire:
        worker = project.manage("kafka_consume", env={"JOURNEY_DATABASE_PORT": str(wire.port)})
        project.produce(numbered(10), name)
        wait_effects(project, name, 10)
        wire.cut_after_commit.set()
        project.produce(numbered(10), name)
        wait_effects(project, name, 20)
        wait_letters(project, name, 1)
        worker.send_signal(signal.SIGTERM)
        assert worker.finish() == 0
    (letter,) = project.letters(name)
    assert (letter["attempts"], letter["state"]) == (1, "open"), "somebody has to look whether it is handled"
    assert letter["error_type"].endswith("UnknownCommit")
    assert set(begun(project).values()) == {1}
    assert len(project.effects(name)) == 20
