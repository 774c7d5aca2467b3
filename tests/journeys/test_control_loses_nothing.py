"""Control on a real broker, with books: pauses outlive those who have them, seeks lose nothing, and stops drain."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, assigned, in_order, numbered, query, wait_committed, wait_effects, wait_said
from tests.journeys.test_rebalances_lose_nothing import SLOW, traffic
from tests.servers.processes import wait_until

HEARTBEATS = {"interval": "300ms"}


def control(project: Project, call: str) -> list[int]:
    """Have something asked for in a process of its own; return the ids of the requests."""
    lines = [
        "import json",
        "from django_kafka import controls",
        "from django_kafka.controls import Offset, Offsets, Shift, Since",
        "from django_kafka.models import Worker",
        f"found = {call}",
        "found = found[1] if isinstance(found, tuple) else [found]",
        "print('requests', json.dumps([one.pk for one in found]))",
    ]
    said = project.run("shell", "-v0", "-c", "\n".join(lines))
    return list(json.loads(said.rpartition("requests ")[2]))


def done(project: Project, ids: list[int], state: str = "done") -> list[str]:
    """Wait until requests have come to their end; return what became of them."""
    some = ",".join(map(str, ids))
    statement = f"SELECT state, result FROM lynx_kafka_control WHERE id IN ({some}) ORDER BY id"

    def ended() -> bool:
        return all(one[0] not in ("requested", "accepted") for one in query(project, statement))

    wait_until(ended, 40, "the requests are not done")
    rows = query(project, statement)
    assert {one[0] for one in rows} == {state}, rows
    return [one[1] for one in rows]


def of_partition(project: Project, name: str, number: int) -> list[int]:
    return [one.offset for one in project.effects(name) if one.partition == number]


def stop(*workers: Any) -> None:
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    for worker in workers:
        assert worker.finish() == 0


@pytest.mark.parametrize("settings", [
    {"concurrency": 2}, {"concurrency": 2, "ordering": "key"}, {"guarantee": "effect_once"},
], ids=["partition", "key", "effect-once"])  # fmt: skip
def test_a_paused_partition_stays_so_while_workers_come_go_and_die(
    project: Project, topic: Callable[..., str], settings: dict[str, Any]
) -> None:
    name = project.create_topic(topic(), partitions=4)
    project.kafka["heartbeats"] = HEARTBEATS
    project.consumer("journey", name, SLOW, **settings, **QUICK)
    with traffic(project, name):
        first, second = project.manage("kafka_consume"), project.manage("kafka_consume")
        wait_said(first, f"assigned={name}")
        wait_said(second, f"assigned={name}")
        wait_effects(project, name, 100)
        asked = control(project, f"controls.pause('journey', topic={name!r}, partition=1, user='anna', reason='x')")
        assert done(project, asked) == ["1 partition paused; what ran is finished."]
        before = len(of_partition(project, name, 1))
        third = project.manage("kafka_consume")
        wait_said(third, f"assigned={name}")
        first.kill()
        first.wait(10)
        stop(second)
        wait_until(lambda: all(assigned(third, name, number) for number in range(4)), 40, "not all came over")
        others = len(project.effects(name))
        project.produce(numbered(400, keys=40), name)
        wait_effects(project, name, others + 100)
        assert len(of_partition(project, name, 1)) == before
        done(project, control(project, "controls.resume('journey', user='ben')"))
        wait_until(lambda: len(of_partition(project, name, 1)) > before, 30, "it does not go on")
    wait_committed(project, name, 60)
    stop(third)

    in_order(project, name, settings.get("ordering", "partition"))
    project.assert_ledger(name, settled=True, once="guarantee" in settings)


@pytest.mark.parametrize("settings", [
    {"concurrency": 2}, {"concurrency": 2, "ordering": "key"}, {"guarantee": "effect_once"},
    {"guarantee": "effect_once", "ordering": "key", "concurrency": 2},
], ids=["partition", "key", "effect-once", "effect-once-key"])  # fmt: skip
def test_a_seek_back_in_the_midst_of_traffic_handles_all_from_there_again(
    project: Project, topic: Callable[..., str], settings: dict[str, Any]
) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.kafka["heartbeats"] = HEARTBEATS
    project.consumer("journey", name, SLOW, **settings, **QUICK)
    first, second = project.manage("kafka_consume"), project.manage("kafka_consume")
    wait_said(first, f"assigned={name}")
    wait_said(second, f"assigned={name}")
    # Not before: what is handled while partitions change hands may be handled again, which is none of the seek's.
    project.produce(numbered(200), name)
    with traffic(project, name, 1000):
        whole = set(range(61))
        wait_until(lambda: whole <= set(of_partition(project, name, 0)), 30, "there is too little to go back")
        [result] = done(
            project, control(project, f"controls.seek('journey', Offset(30), topic={name!r}, partitions=[0])")
        )
    assert "read again" in result
    was = int(result.partition("was at ")[2].partition(":")[0])

    def again() -> set[int]:
        return {offset for offset, count in Counter(of_partition(project, name, 0)).items() if count > 1}

    # With claims the group has at first what it had before.
    wait_until(lambda: set(range(30, was)) <= again(), 60, "not all is read again")
    wait_committed(project, name, 60)
    stop(first, second)

    times = Counter(of_partition(project, name, 0))
    assert min(again()) == 30
    # With lanes by key more may be settled beyond the first that is not, and that is read again as well.
    assert again() == set(range(30, was)) or settings.get("ordering") == "key"
    assert max(times.values()) == 2
    assert max(Counter(of_partition(project, name, 1)).values()) == 1
    project.assert_ledger(name, settled=True)


def test_a_seek_whose_worker_is_killed_is_done_by_the_next(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic())
    project.kafka["heartbeats"] = HEARTBEATS
    project.consumer("journey", name, "tests.app.scenes.gated_before", **QUICK)
    project.produce(numbered(20), name)
    first = project.manage("kafka_consume")
    wait_committed(project, name)
    project.produce([{"value": {"seconds": 30}}], name)
    wait_until(lambda: query(project, "SELECT 1 FROM lynx_kafka_worker WHERE in_flight > 0"), 20, "nothing runs")
    asked = control(project, "controls.seek('journey', Offset(5))")
    wait_until(lambda: query(project, "SELECT 1 FROM lynx_kafka_control WHERE state = 'accepted'"), 20, "not taken")
    first.kill()
    first.wait(10)
    second = project.manage("kafka_consume")
    done(project, asked)
    wait_until(lambda: of_partition(project, name, 0).count(19) == 2, 30, "it is not read again")
    second.kill()
    second.wait(10)

    times = Counter(of_partition(project, name, 0))
    assert {offset for offset in range(20) if times[offset] == 2} == set(range(5, 20))


def test_a_worker_that_is_stopped_drains_and_others_take_over(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=4)
    project.kafka["heartbeats"] = HEARTBEATS
    project.consumer("journey", name, SLOW, concurrency=2)
    with traffic(project, name):
        first = project.manage("kafka_consume")
        wait_effects(project, name, 40)
        second = project.manage("kafka_consume")
        wait_said(second, f"assigned={name}")
        call = f"controls.stop_worker(Worker.objects.get(pid={first.pid}), user='anna')"
        assert done(project, control(project, call)) == ["It has finished what ran, and left its group."]
        assert first.finish() == 0
        wait_until(lambda: all(assigned(second, name, number) for number in range(4)), 40, "not all came over")
    wait_committed(project, name, 40)
    stop(second)

    in_order(project, name)
    project.assert_ledger(name, settled=True, once=True)
