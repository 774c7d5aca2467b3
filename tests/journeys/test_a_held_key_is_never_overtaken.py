"""A dead letter holds its key: what comes later waits in the database, through kills, and follows it in order."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, query, wait_committed, wait_effects
from tests.servers.processes import wait_until

GATED = "tests.app.scenes.gated"
KEYS = 12


def orders(project: Project, name: str) -> dict[str, list[int]]:
    """The numbers of each key in the order in which they were first handled."""
    found: dict[str, list[int]] = {}
    for effect in project.effects(name):
        numbers = found.setdefault(str(effect.key), [])
        if effect.payload["n"] not in numbers:
            numbers.append(effect.payload["n"])
    return found


def test_a_held_key_is_never_overtaken(project: Project, topic: Callable[..., str], tmp_path: Path) -> None:
    name = project.create_topic(topic(), partitions=4)
    mended = tmp_path / "mended"
    project.consumer(
        "journey", name, GATED, on_dead_letter="hold_key", enable_auto_commit=False, concurrency=2, **QUICK
    )
    bad = {"raise": "ValueError", "mended": str(mended)}

    def send(first: int, count: int, **more: object) -> None:
        """Send the next numbers, keys interleaved; the third message of two keys is bad."""
        numbers = range(first, first + count)
        values = [{"n": n, **more, **(bad if n in (2 * KEYS + 5, 2 * KEYS + 8) else {})} for n in numbers]
        project.produce([{"key": f"key-{value['n'] % KEYS}", "value": value} for value in values], name)

    send(0, 20 * KEYS, seconds=0.005)
    first = project.manage("kafka_consume")
    wait_until(lambda: held(project) == 2, 40, "no key was held")
    wait_until(lambda: parked(project) >= 5, 40, "nothing was parked")
    first.kill()
    first.wait(10)
    project.assert_ledger(name)

    second = project.manage("kafka_consume")
    send(20 * KEYS, 5 * KEYS)
    wait_committed(project, name, 60)
    project.assert_ledger(name, settled=True)
    assert parked(project) == 2 * 22
    assert orders(project, name)["key-5"] == [5, KEYS + 5]
    assert orders(project, name)["key-0"] == list(range(0, 25 * KEYS, KEYS)), "Other keys flow."
    second.kill()
    second.wait(10)

    mended.touch()
    third = project.manage("kafka_consume")
    project.run(
        "shell", "-c",
        "from django_kafka.dead_letters import replaying as r; "
        "r.request(r.letters().filter(state='open').values_list('pk', flat=True))",
    )  # fmt: skip
    wait_until(lambda: parked(project) < 2 * 22, 40, "nothing was released")
    # In the midst of it: more messages come, and the one who releases is killed.
    send(25 * KEYS, 5 * KEYS)
    third.kill()
    third.wait(10)
    # Its claim would run out by itself after a minute.
    query(project, "UPDATE lynx_kafka_replay SET claimed_at = claimed_at - interval '2 minutes' RETURNING id")
    fourth = project.manage("kafka_consume")
    wait_until(lambda: held(project) == 0, 60, "the keys are still held")
    send(30 * KEYS, 2 * KEYS)
    wait_effects(project, name, 32 * KEYS)
    wait_committed(project, name)
    fourth.send_signal(signal.SIGTERM)
    assert fourth.finish() == 0

    found = orders(project, name)
    assert found == {f"key-{key}": list(range(key, 32 * KEYS, KEYS)) for key in range(KEYS)}
    project.assert_ledger(name, settled=True)
    assert query(project, "SELECT DISTINCT state FROM lynx_kafka_deadletter") == [("resolved",)]


def held(project: Project) -> int:
    """How many keys are held."""
    return int(query(project, "SELECT count(*) FROM lynx_kafka_hold")[0][0])


def parked(project: Project) -> int:
    """How many messages are parked."""
    return int(query(project, "SELECT count(*) FROM lynx_kafka_deadletter WHERE state = 'parked'")[0][0])
