"""Promise 13: with `effect_once` the effects of every message are there once, whatever becomes of its workers."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from tests.journeys.project import Project
from tests.journeys.steps import (
    QUICK,
    assigned,
    execute,
    in_order,
    numbered,
    query,
    wait_committed,
    wait_effects,
    wait_said,
)
from tests.journeys.test_rebalances_lose_nothing import traffic
from tests.journeys.wire import Wire
from tests.servers.processes import wait_until

ONCE = {"guarantee": "effect_once", **QUICK}
SLOW, GATED = "tests.app.handlers.slow", "tests.app.scenes.gated"
ORDERINGS = pytest.mark.parametrize("ordering", ["partition", "key", "unordered"])


@ORDERINGS
def test_kills_in_mid_transaction_leave_each_effect_once(
    project: Project, topic: Callable[..., str], tmp_path: Path, ordering: str
) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, GATED, concurrency=2, ordering=ordering, **ONCE)
    records = numbered(500, keys=20, seconds=0.002)
    scenes = [(tmp_path / f"begun-{turn}", tmp_path / f"gate-{turn}") for turn in range(3)]
    for turn, (begun, gate) in enumerate(scenes):
        records[100 + 120 * turn]["value"] |= {"begun": str(begun), "gate": str(gate)}
    project.produce(records, name)
    for begun, gate in scenes:
        worker = project.manage("kafka_consume")
        wait_until(begun.exists, 40)
        worker.kill()
        worker.wait(10)
        gate.touch()
        project.assert_ledger(name, once=True)
    project.manage("kafka_consume")

    wait_committed(project, name, 60)

    project.assert_ledger(name, settled=True, once=True)
    if ordering != "unordered":
        in_order(project, name, ordering)
    claimed = 'SELECT partition, "offset" FROM lynx_kafka_claim ORDER BY partition'
    wait_until(lambda: query(project, claimed) == sorted(project.committed(name).items()))


@pytest.mark.parametrize(("ordering", "protocol"), [("partition", "classic"), ("key", "classic"), ("key", "consumer")])
def test_workers_that_join_leave_and_die_repeat_no_effect(
    project: Project, topic: Callable[..., str], ordering: str, protocol: str
) -> None:
    name = project.create_topic(topic(), partitions=6)
    quick = QUICK if protocol == "classic" else {}
    settings = {"guarantee": "effect_once", "options": {"group.protocol": protocol}, **quick}
    project.consumer("journey", name, SLOW, concurrency=2, ordering=ordering, **settings)
    with traffic(project, name):
        first = project.manage("kafka_consume")
        wait_effects(project, name, 50)
        second = project.manage("kafka_consume")
        third = project.manage("kafka_consume")
        wait_said(second, f"assigned={name}")
        wait_said(third, f"assigned={name}")
        wait_effects(project, name, len(project.effects(name)) + 50)
        first.send_signal(signal.SIGTERM)
        assert first.finish() == 0
        fourth = project.manage("kafka_consume")
        wait_said(fourth, f"assigned={name}")
        second.kill()
        second.wait(10)
        third.send_signal(signal.SIGINT)
        assert third.finish() == 0
        # Under the new protocol the broker's own session timeout, 45 s, has to pass for the one that was killed.
        wait_until(lambda: all(assigned(fourth, name, number) for number in range(6)), 80, message="not all came over")
    wait_committed(project, name, 60)
    fourth.send_signal(signal.SIGTERM)
    assert fourth.finish() == 0

    in_order(project, name, ordering)
    project.assert_ledger(name, settled=True, once=True)


@pytest.mark.parametrize("ordering", ["partition", "key"])
def test_a_worker_that_wakes_up_after_another_took_over_rolls_back(
    project: Project, topic: Callable[..., str], tmp_path: Path, ordering: str
) -> None:
    name = project.create_topic(topic())
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    project.consumer("journey", name, GATED, ordering=ordering, **ONCE)
    # Of one key, and so with nothing beside it: stopped between its claim and COMMIT, it would hold up whoever claims.
    records = numbered(100, keys=1)
    records[40]["value"] |= {"begun": str(begun), "gate": str(gate)}
    project.produce(records, name)
    zombie = project.manage("kafka_consume")
    wait_until(begun.exists)
    wait_until(lambda: query(project, 'SELECT "offset" FROM lynx_kafka_claim') == [(40,)])
    # In mid-transaction: its effect is written, and not committed.
    zombie.freeze()
    gate.touch()
    heir = project.manage("kafka_consume")
    wait_committed(project, name, 60)
    before = len(project.effects(name))
    assert before == 100
    zombie.send_signal(signal.SIGCONT)
    wait_said(zombie, "is rolled back: another worker has claimed its partition")
    project.produce(numbered(50), name)

    wait_committed(project, name, 60)

    project.assert_ledger(name, settled=True, once=True)
    for program in (zombie, heir):
        program.send_signal(signal.SIGTERM)
        assert program.finish() == 0


def test_a_topic_that_was_made_anew_stops_until_somebody_says_where_to_go_on(
    project: Project, topic: Callable[..., str]
) -> None:
    name, other = project.create_topic(topic()), project.create_topic(topic("other"))
    project.consumer("journey", [name, other], **ONCE)
    project.produce(numbered(20), name)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0
    admin = project.cluster.admin()  # held until the answer is there
    admin.delete_topics([name], operation_timeout=30)[name].result(30)
    wait_until(lambda: name not in admin.list_topics(timeout=30).topics)
    project.ledger.clear()
    project.create_topic(name)
    # As many and more: by its offset alone nobody would notice.
    project.produce(numbered(30), name)
    project.produce(numbered(5), other)
    worker = project.manage("kafka_consume")

    wait_said(worker, "it was deleted and made anew")
    wait_committed(project, other)
    assert "kafka_offsets" in worker.output()
    assert len(project.effects(name)) == 20, "nothing of the new topic is handled"

    execute(
        project, f"UPDATE lynx_kafka_claim SET epoch = epoch + 1, \"offset\" = 0, topic_id = '' WHERE topic = '{name}'"
    )
    wait_effects(project, name, 50)


def test_messages_that_retention_deleted_stop_their_partition(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, **ONCE)
    project.produce([{"partition": number % 2, "value": {}} for number in range(20)], name)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0
    project.produce([{"partition": number % 2, "value": {}} for number in range(20)], name)
    place = TopicPartition(name, 0, 15)
    admin = project.cluster.admin()  # held until the answer is there
    admin.delete_records([place])[place].result(30)
    worker = project.manage("kafka_consume")

    wait_said(worker, "messages before 15 are deleted, and those from 10 on were not handled")
    wait_until(lambda: project.committed(name) == {0: 10, 1: 20}, message="the other partition did not go on")
    assert len(project.effects(name)) == 30


@pytest.mark.parametrize(
    ("kind", "ordering"), [("message", "partition"), ("batch", "partition"), ("batch", "key"), ("lists", "partition")]
)
def test_a_commit_that_was_not_answered_is_looked_up(
    project: Project, topic: Callable[..., str], kind: str, ordering: str
) -> None:
    name = project.create_topic(topic())
    handler = "tests.app.scenes.announced"
    if kind == "lists":
        handler, project.extra_env["JOURNEY_LISTS"] = "tests.app.scenes.announced_all", name
    transaction = "batch" if kind == "batch" else "message"
    project.consumer("journey", name, handler, transaction=transaction, ordering=ordering, **ONCE)
    several = kind != "message"
    with Wire(project.server.port, effects=2 if several else 1) as wire:
        worker = project.manage("kafka_consume", env={"JOURNEY_DATABASE_PORT": str(wire.port)})
        project.produce(numbered(10), name)
        wait_committed(project, name)
        wire.cut_after_commit.set()
        project.produce(numbered(100), name)
        wait_committed(project, name)
        worker.send_signal(signal.SIGTERM)
        assert worker.finish() == 0
    assert not wire.cut_after_commit.is_set(), "no COMMIT was cut off"
    assert "its COMMIT was not answered" in worker.output()
    assert f"{' more' * several} whose COMMIT was not answered is handled" in worker.output()
    assert worker.output().count("announced ") == 110, "no handler ran twice"
    assert "is rolled back" not in worker.output(), "all of them were known to be handled"
    project.assert_ledger(name, settled=True, once=True)
