"""Dead-letter topics, both ways: ours get what was given up, and those of other systems come to the same desk."""

from __future__ import annotations

import signal
import struct
from collections.abc import Callable
from typing import Any

from django_kafka.messages import LETTER_HEADER
from tests.journeys.project import Project
from tests.journeys.steps import QUICK, query, read, wait_committed, wait_letters, wait_said
from tests.servers.processes import Program, wait_until

HEADERS: list[tuple[str, bytes | None]] = [("type", b"landed"), ("twice", b"1"), ("twice", None)]
POISON = b'{"n": \xff'


def stop(worker: Program) -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0


def publishing(project: Project, topic: str, **consumer: Any) -> str:
    """Declare a consumer whose dead letters go to a topic, which is not there yet; return its name."""
    project.consumer("journey", topic, **consumer)
    project.kafka |= {"producers": {"default": {}}, "dead_letters": {"topic": "{group}.{topic}.dlt"}}
    return f"{project.group}.{topic}.dlt"


def bad(count: int, partition: int = 0) -> list[dict[str, Any]]:
    """Records that nobody can read."""
    return [
        {"key": f"key-{number}", "value": POISON + str(number).encode(), "headers": HEADERS, "partition": partition,
         "timestamp": 1_600_000_000_000 + number}
        for number in range(count)
    ]  # fmt: skip


def spring(topic: str, partition: int, offset: int) -> list[tuple[str, bytes | None]]:
    """The headers that Spring adds, in its bytes."""
    return [
        *HEADERS,
        ("kafka_dlt-original-topic", topic.encode()),
        ("kafka_dlt-original-partition", struct.pack(">i", partition)),
        ("kafka_dlt-original-offset", struct.pack(">q", offset)),
        ("kafka_dlt-original-timestamp", struct.pack(">q", 1_600_000_000_000)),
        ("kafka_dlt-exception-fqcn", b"java.lang.IllegalStateException"),
        ("kafka_dlt-exception-message", b"no \xff stock"),
    ]


def test_what_is_given_up_waits_for_its_topic_and_is_there_when_its_offset_is_committed(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic(), partitions=3)
    letters = publishing(project, name)
    sent = project.produce([*bad(2), *bad(2, 2), {"value": {"n": 1}, "partition": 1}], name)

    worker = project.manage("kafka_consume")
    wait_letters(project, name, 2)
    wait_said(worker, f"{letters} does not take its dead letter (", times=5)
    wait_until(lambda: project.committed(name)[1] == 1, message="the partition without letters did not go on")
    assert project.committed(name) == {0: 0, 1: 1, 2: 0}, "rows are there, records are not"
    project.create_topic(letters, partitions=3)
    wait_committed(project, name)
    stop(worker)

    records = read(project, letters)
    originals = [one for one in sent if one.value != b'{"n": 1}']
    assert [(one.partition(), one.key(), one.value()) for one in records] == [
        (one.partition, one.key, one.value) for one in originals
    ]
    for record, original in zip(records, originals, strict=True):
        headers = record.headers() or []
        assert headers[:3] == HEADERS
        told = dict(headers[3:])
        assert told["lynx-kafka-dead-letter-topic"] == name.encode()
        assert told["lynx-kafka-dead-letter-offset"] == str(original.offset).encode()
        assert told["lynx-kafka-dead-letter-category"] == b"serialization"
        assert told["lynx-kafka-dead-letter-attempts"] == b"1"
        assert record.timestamp()[1] // 1000 == 1_600_000_000
    assert [letter["attempts"] for letter in project.letters(name)] == [1] * 4, "waiting for the topic is no attempt"
    project.assert_ledger(name, settled=True, once=True)


def test_a_worker_that_is_killed_between_the_row_and_the_record_leaves_no_letter_out_of_its_topic(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic())
    letters = publishing(project, name, **QUICK)
    project.produce(bad(1), name)
    killed = project.manage("kafka_consume")
    wait_letters(project, name, 1)
    wait_said(killed, "does not take its dead letter (")
    killed.kill()
    killed.wait(10)

    project.create_topic(letters)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    stop(worker)

    (letter,) = project.letters(name)
    assert letter["attempts"] == 2, "it was read, and failed, once more"
    (record,) = read(project, letters)
    assert record.value() == POISON + b"0"
    assert dict(record.headers() or [])["lynx-kafka-dead-letter-attempts"] == b"2"


def test_letters_of_another_system_are_imported_once_replayed_and_come_back_to_their_rows(
    project: Project, topic: Callable[..., str]
) -> None:
    orders = project.create_topic(topic("orders"), partitions=3)
    name = project.create_topic(f"{orders}.DLT")
    project.consumer("desk", name, **QUICK, auto_commit_interval="1h")
    project.kafka["consumers"]["desk"]["topics"] = {name: {"import": "auto"}}
    project.kafka["producers"] = {"default": {}}
    project.produce(
        [{"key": f"o-{n}", "value": POISON, "headers": spring(orders, 2, 2**33 + n)} for n in range(250)], name
    )
    killed = project.manage("kafka_consume")
    wait_letters(project, name, 250)
    killed.kill()
    killed.wait(10)
    assert project.committed(name) == {0: 0}, "it was killed before it committed anything"

    project.produce([{"key": "o-plain", "value": b"", "headers": []}], name)
    worker = project.manage("kafka_consume")
    wait_letters(project, name, 251)
    stop(worker)
    assert project.committed(name) == {0: 251}
    rows = project.letters(name)
    assert [row["offset"] for row in rows] == list(range(251))
    assert {row["attempts"] for row in rows} == {1}
    first, plain = rows[0], rows[-1]
    assert (first["origin_topic"], first["origin_partition"], first["origin_offset"]) == (orders, 2, 2**33)
    assert (first["error_type"], first["error_message"]) == ("java.lang.IllegalStateException", "no \\xff stock")
    assert first["unread"] == "kafka_dlt-exception-message is not UTF-8."
    assert (plain["imported_as"], plain["origin_topic"]) == ("plain", "")

    said = project.run("kafka_replay", "--id", first["id"], "--id", plain["id"], "--target", "topic")
    assert "Succeeded: 1, failed: 0, cancelled: 1" in said
    assert 'Its headers do not name its original topic. Name it in KAFKA["consumers"]["desk"]' in said
    (record,) = read(project, orders)
    assert (record.key(), record.value()) == (b"o-0", POISON)
    assert record.headers() == [*HEADERS, (LETTER_HEADER, str(first["id"]).encode())]

    # The other system fails on it again, and keeps the headers that it came with.
    again = [*(record.headers() or []), *spring(orders, 0, 0)[3:]]
    project.produce([{"key": record.key(), "value": record.value(), "headers": again}], name)
    worker = project.manage("kafka_consume")
    states = "SELECT state, attempts FROM lynx_kafka_deadletter ORDER BY id LIMIT 1"
    wait_until(lambda: query(project, states) == [("open", 2)], message="it did not come back to its letter")
    stop(worker)
    assert len(project.letters(name)) == 251


def test_an_import_waits_while_the_database_is_down(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic("orders.DLT"))
    project.consumer("desk", name)
    project.kafka["consumers"]["desk"]["topics"] = {name: {"import": "spring"}}
    project.produce([{"value": b"1", "headers": spring("orders", 0, 1)}], name)
    worker = project.manage("kafka_consume")
    wait_letters(project, name, 1)

    project.server.stop()
    project.produce([{"value": str(n), "headers": spring("orders", 0, n)} for n in range(2, 500)], name)
    wait_said(worker, "its messages could not be imported (", times=2)
    project.server.start()

    wait_committed(project, name)
    stop(worker)
    assert [row["offset"] for row in project.letters(name)] == list(range(499))
    assert {(row["state"], row["imported_as"], row["attempts"]) for row in project.letters(name)} == {
        ("open", "spring", 1)
    }
