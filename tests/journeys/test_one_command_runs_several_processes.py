"""`processes`: a supervisor runs workers, starts them again when they die, and ends with them; and none without it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import (
    QUICK,
    in_order,
    numbered,
    query,
    wait_committed,
    wait_effects,
    wait_said,
)
from tests.servers.processes import Program, wait_until
from tests.test_servers import alive

GATED = "tests.app.scenes.gated"
SLOW = "tests.app.handlers.slow"


def pids(program: Program) -> dict[int, int]:
    """The process that a supervisor started last for each number."""
    return {int(number): int(pid) for number, pid in re.findall(r"process=(\d+) pid=(\d+) started", program.output())}


def all_assigned(program: Program, numbers: tuple[int, ...] = (1, 2)) -> bool:
    """Whether each of its processes has said what it was assigned."""
    return all(
        re.search(rf"process={number} consumer=\S+ assigned=(?!nothing)", program.output()) for number in numbers
    )


def ended(numbers: dict[int, int]) -> bool:
    return not any(alive(pid) for pid in numbers.values())


def stop(program: Program, seconds: float = 30) -> None:
    """Stop it and see that none of its processes is left."""
    started = pids(program)
    program.send_signal(signal.SIGTERM)
    assert program.finish(seconds) == 0
    assert ended(started)


def waiting_in_each(project: Project, name: str, gate: Path) -> Program:
    """Have each of two processes run a message that waits for the gate, with messages behind it."""
    project.produce([{"partition": number, "value": {"n": 0}} for number in (0, 1)], name)
    program = project.manage("kafka_consume")
    wait_until(lambda: all_assigned(program), 40, "not both have a partition")
    for number in (0, 1):
        held = {"begun": str(gate.with_name(f"begun{number}")), "gate": str(gate)}
        project.produce([{"partition": number, "value": held}], name)
    for number in (0, 1):
        wait_until(gate.with_name(f"begun{number}").exists, message="a gated message did not begin")
        project.produce([{"partition": number, "value": {"seconds": 0.3}} for _ in range(20)], name)
    return program


@pytest.mark.parametrize("whom", ["the supervisor", "the group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_every_process_finish_what_runs(
    project: Project, topic: Callable[..., str], tmp_path: Path, number: signal.Signals, whom: str
) -> None:
    """Ctrl-C in a terminal and some service managers signal the whole group, so that a process hears it twice."""
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, GATED, processes=2, auto_commit_interval="1h", heartbeat_interval="1s")
    gate = tmp_path / "gate"
    program = waiting_in_each(project, name, gate)
    started = pids(program)

    if whom == "the group":
        os.killpg(program.pid, number)
    else:
        program.send_signal(number)
    wait_said(program, "Finishing what runs")
    time.sleep(0.5)  # long enough for a second signal to do its harm
    assert all(alive(pid) for pid in started.values())
    gate.touch()

    assert program.finish() == 0
    assert ended(started)
    assert len(project.effects(name)) >= 4, "What ran was finished."
    assert len(project.effects(name)) < 20, "Nothing more was begun."
    assert sum(project.committed(name).values()) == len(project.effects(name))
    project.assert_ledger(name, once=True)


def test_the_second_signal_ends_all_at_once(project: Project, topic: Callable[..., str], tmp_path: Path) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, GATED, processes=2, **QUICK)
    gate = tmp_path / "gate"
    program = waiting_in_each(project, name, gate)
    started = pids(program)

    program.send_signal(signal.SIGINT)
    wait_said(program, "Finishing what runs")
    program.send_signal(signal.SIGINT)

    # Nobody has opened the gate, before which both would have waited for a minute.
    assert program.finish() == 128 + signal.SIGINT
    assert ended(started)
    assert len(project.effects(name)) == 2, "What ran was rolled back."
    gate.touch()
    again = project.manage("kafka_consume")
    wait_committed(project, name, 40)
    stop(again)
    project.assert_ledger(name, settled=True)


@pytest.mark.parametrize("while_starting", [True, False])
def test_processes_whose_supervisor_is_killed_finish_and_leave(
    project: Project, topic: Callable[..., str], tmp_path: Path, while_starting: bool
) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, GATED, processes=2, auto_commit_interval="1h", heartbeat_interval="1s")
    if while_starting:
        program = project.manage("kafka_consume")
        wait_said(program, "process=2 pid=")
        program.kill()
        program.wait(10)
        wait_until(lambda: ended(pids(program)), message="they outlived their supervisor")
        return
    gate = tmp_path / "gate"
    program = waiting_in_each(project, name, gate)

    program.kill()
    program.wait(10)
    wait_until(lambda: program.output().count("the supervisor is gone") == 2, message="they did not notice")
    assert not ended(pids(program)), "They finish what runs."
    gate.touch()

    wait_until(lambda: ended(pids(program)), message="they outlived their supervisor")
    assert sum(project.committed(name).values()) == len(project.effects(name)) < 20
    project.assert_ledger(name, once=True)
    # They left their group: the next ones do not wait for a session of 45 s to end.
    again = project.manage("kafka_consume")
    wait_effects(project, name, len(project.ledger), 40)
    stop(again)
    project.assert_ledger(name, settled=True, once=True)


@pytest.mark.parametrize("ordering", ["partition", "key"])
def test_a_process_that_is_killed_is_started_again_and_nothing_is_lost(
    project: Project, topic: Callable[..., str], ordering: str
) -> None:
    name = project.create_topic(topic(), partitions=6)
    project.kafka["heartbeats"] = {"interval": "300ms"}
    project.consumer("journey", name, SLOW, processes=2, concurrency=2, ordering=ordering, **QUICK)
    project.produce(numbered(1500, keys=40, seconds=0.02), name)
    program = project.manage("kafka_consume")
    wait_until(lambda: all_assigned(program), 40, "not both have partitions")
    wait_effects(project, name, 100)
    before = pids(program)

    os.kill(before[2], signal.SIGKILL)
    wait_said(program, "process=2 was killed by SIGKILL")
    wait_until(lambda: pids(program)[2] != before[2], message="it was not started again")

    wait_committed(project, name, 60)
    assert pids(program)[1] == before[1], "The other process went on."
    stop(program)
    assert project.letters(name) == []
    in_order(project, name, ordering)
    project.assert_ledger(name, settled=True)


def test_processes_share_out_partitions_and_orderly_rebalances_repeat_nothing(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=6)
    project.consumer("journey", name, SLOW, processes=2, concurrency=2, heartbeat_interval="1s")
    project.produce(numbered(1200, keys=40, seconds=0.01), name)
    program = project.manage("kafka_consume")
    wait_until(lambda: all_assigned(program), 40, "not both have partitions")
    # One that is ended by itself is started again like one that dies, and hands over what it has.
    os.kill(pids(program)[1], signal.SIGTERM)
    wait_said(program, "process=1 ended with code 0")

    wait_committed(project, name, 60)
    rows = query(project, "SELECT number, pid, supervisor FROM lynx_kafka_worker")
    assert {number: pid for number, pid, _supervisor in rows} == pids(program)
    assert len({supervisor for _number, _pid, supervisor in rows}) == 1
    stop(program)
    in_order(project, name)
    project.assert_ledger(name, settled=True, once=True)


@pytest.mark.parametrize("end", [{"kill": True}, {"raise": "SystemExit"}], ids=["SIGKILL", "SystemExit"])
def test_a_message_that_kills_its_process_three_times_becomes_a_dead_letter(
    project: Project, topic: Callable[..., str], end: dict[str, Any]
) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.kafka["heartbeats"] = {"interval": "300ms"}
    handler = "tests.app.scenes.deadly" if "kill" in end else "tests.app.scenes.gated_before"
    project.consumer("journey", name, handler, processes=2, **QUICK)
    records = [{**record, "partition": number % 2} for number, record in enumerate(numbered(60))]
    records[21]["value"] = {"n": 21, **end}
    sent = project.produce(records, name)
    (culprit,) = [one for one in sent if b'"n": 21,' in (one.value or b"")]
    program = project.manage("kafka_consume")

    wait_committed(project, name, 120)

    def deaths() -> list[str]:
        return re.findall(r"process=\d (was killed by SIGKILL|ended with code 1) after", program.output())

    wait_until(lambda: len(deaths()) >= 3, message="fewer than three deaths are told")
    stop(program)
    assert len(deaths()) == 3
    (letter,) = project.letters(name)
    assert (letter["topic"], letter["partition"], letter["offset"]) == culprit.place
    assert letter["error_type"] == "django_kafka.exceptions.WorkerKilled"
    in_order(project, name)
    project.assert_ledger(name, settled=True)


def test_until_empty_ends_when_every_process_has_found_its_partitions_empty(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=5)
    project.consumer("journey", name, SLOW, heartbeat_interval="1s", processes=3)
    project.produce(numbered(600, keys=40, seconds=0.01), name)
    program = project.manage("kafka_consume", "--until-empty")
    assert program.finish(60) == 0
    project.assert_ledger(name, settled=True, once=True)


def test_until_empty_leaves_nothing_in_retry_topics_nor_what_a_dead_process_had(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic("f"), partitions=4)
    project.kafka["heartbeats"] = {"interval": "300ms"}
    project.consumer(
        "journey", name, "tests.app.scenes.fail_first", processes=2,
        retry={"mode": "topics", "max_retries": 2, "backoff": "500ms"}, **QUICK,
    )  # fmt: skip
    project.run("kafka_topics", "--create")
    records = [{**one, "partition": n % 4} for n, one in enumerate(numbered(400, fails=0))]
    for number in range(0, 400, 7):
        records[number]["value"]["fails"] = 2
    project.produce(records, name)
    program = project.manage("kafka_consume", "--until-empty")
    wait_effects(project, name, 20, 40)
    os.kill(pids(program)[2], signal.SIGKILL)

    assert program.finish(90) == 0
    handled = {effect.payload["n"] for effect in project.effects()}
    assert handled == set(range(400))
    assert project.letters() == []


def test_consumers_with_one_process_and_with_more_are_run_by_one_command(
    project: Project, topic: Callable[..., str]
) -> None:
    one, more = project.create_topic(topic("one"), partitions=2), project.create_topic(topic("more"), partitions=2)
    project.consumer("single", one, group_id=f"{project.group}-single")
    project.consumer("double", more, processes=2)
    program = project.manage("kafka_consume")
    wait_said(program, "Consuming with single in 1 process, double in 2 processes.")
    project.produce(numbered(20), one)
    project.produce(numbered(20), more)
    wait_committed(project, one, group=f"{project.group}-single")
    wait_committed(project, more)
    output = program.output()
    stop(program)
    assert re.search(r"process=1 consumer=single \S+ \S+ started", output)
    assert re.search(r"process=2 consumer=double \S+ \S+ started", output)
    assert not re.search(r"process=2 consumer=single", output)


def test_a_configuration_that_cannot_work_ends_the_whole_and_starts_nothing(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name, "tests.app.handlers.nobody")
    program = project.manage("kafka_consume", "--processes", 2, "--skip-checks")
    assert program.finish() == 1
    assert "tests.app.handlers.nobody" in program.output()
    assert pids(program) == {}


def test_a_process_that_finds_itself_wrongly_configured_is_not_started_again(
    project: Project, topic: Callable[..., str]
) -> None:
    """As when settings were changed under a running supervisor. This property is refused only by the client itself."""
    name = project.create_topic(topic())
    project.consumer("journey", name, options={"no.such.property": 1})
    program = project.manage("kafka_consume", "--processes", 2, "--skip-checks")
    assert program.finish() == 1
    assert "no.such.property" in program.output()
    assert "cannot work as it is configured; its reason is above." in program.output()
    assert "is started again" not in program.output()
    assert ended(pids(program))


def test_a_process_that_settings_want_no_longer_says_so(project: Project, topic: Callable[..., str]) -> None:
    project.consumer("journey", project.create_topic(topic()), processes=2)
    program = project.manage("kafka_consume", env={"DJANGO_KAFKA_PROCESS": "3"})
    assert program.finish() == 78
    assert 'Process 3 has no consumer: settings want 2 "processes" by now.' in program.output()
