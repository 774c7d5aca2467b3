"""Promise 9: however much waits, a worker holds a bounded part of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import Producer

from tests.journeys.project import Project
from tests.journeys.steps import numbered, wait_committed, wait_effects
from tests.servers.processes import Program, wait_until

MIB = 1 << 20


def peak(program: Program) -> int:
    """The most memory that a process has had, in bytes."""
    with open(f"/proc/{program.pid}/status") as status:
        line = next(each for each in status if each.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def test_a_worker_with_a_slow_handler_and_200_000_waiting_messages_stays_small(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=4)
    project.consumer("journey", name, "tests.app.handlers.slow", concurrency=2, max_in_flight=10_000)
    padding = "x" * 500
    project.produce(
        ({"partition": n % 4, "value": {"n": n, "seconds": 0.01, "p": padding}} for n in range(200_000)), name
    )
    project.produce([{"partition": 0, "value": {"last": True}}], name)
    worker = project.manage("kafka_consume")
    wait_effects(project, name, 600, 40)

    assert peak(worker) < 150 * MIB, f"{peak(worker) / MIB:.0f} MiB"
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0
    project.assert_ledger(name, once=True)


def test_messages_in_flight_are_bounded_by_their_bytes(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, max_in_flight_bytes=1_000_000, max_poll_records=10)
    project.produce(({"partition": n % 2, "value": {"n": n, "p": "x" * 100_000}} for n in range(300)), name)
    worker = project.manage("kafka_consume")

    wait_until(lambda: project.all_committed(name), 40, every=0.5)
    assert peak(worker) < 150 * MIB, f"{peak(worker) / MIB:.0f} MiB"
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    project.assert_ledger(name, settled=True, once=True)


BOMBS = {"gzip": 16 * MIB, "lz4": 16 * MIB, "zstd": 16 * MIB, "snappy": 6 * MIB}
"""What comes out by codec: several hundred times of what is sent, with snappy 20 times."""


def test_batches_that_inflate_become_letters_and_take_a_few_times_the_memory_of_what_comes_out(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name, max_payload="1MiB")
    # JSON of which Python would make twenty times as much.
    values = {codec: b"[%s[]]" % (b"[]," * (size // 3)) for codec, size in BOMBS.items()}
    for codec, value in values.items():
        # The broker takes a batch of 1 MiB, whatever comes out of it.
        options = {"compression.type": codec, "message.max.bytes": 1_000_000_000}
        producer = Producer({"bootstrap.servers": project.cluster.address, **options})
        producer.produce(name, value)
        assert producer.flush(30) == 0
        project.produce([{"value": {"after": codec}}], name)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    assert peak(worker) < 100 * MIB + 5 * sum(BOMBS.values()), f"{peak(worker) / MIB:.0f} MiB"
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0

    assert [effect.payload for effect in project.effects(name)] == [{"after": codec} for codec in BOMBS]
    letters = project.letters()
    assert all(bytes(letter["value"]) == value for letter, value in zip(letters, values.values(), strict=True))
    assert {letter["error_type"].rpartition(".")[2] for letter in letters} == {"PayloadTooLarge"}


def test_a_partition_that_is_stuck_leaves_room_for_the_others(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = project.create_topic(topic(), partitions=2)
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    project.consumer("journey", name, "tests.app.scenes.gated_before", concurrency=2, max_in_flight=20)
    project.produce([{"partition": 0, "value": {"begun": str(begun), "gate": str(gate)}}], name)
    project.produce([{"partition": 0, **record} for record in numbered(500)], name)
    project.manage("kafka_consume")
    wait_until(begun.exists)
    project.produce([{"partition": 1, **record} for record in numbered(100)], name)

    wait_effects(project, name, 100)
    assert {effect.partition for effect in project.effects(name)} == {1}
    gate.touch()
    wait_committed(project, name)
    project.assert_ledger(name, settled=True, once=True)
