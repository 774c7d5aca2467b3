"""Promise 7: what can never be handled goes straight to the dead letters, byte for byte."""

from __future__ import annotations

import signal
from collections.abc import Callable

from django_kafka.models.dead_letters import decode_headers
from tests.journeys.project import Project
from tests.journeys.steps import read, wait_committed

HEADERS = [("type", b"landed"), ("nul", b"a\0b"), ("twice", b"1"), ("twice", b"2"), ("empty", b""), ("none", None)]


def test_poison_becomes_a_letter_and_everything_else_is_handled(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name)
    project.produce(
        [
            {"key": b"tombstone", "value": None, "headers": HEADERS},
            {"key": b"bad json", "value": b'{"n": ', "headers": HEADERS},
            {"key": b"\xff\xfe\0", "value": b"\xff\0\xfe", "headers": HEADERS},
            {"key": b"empty", "value": b""},
            {"key": None, "value": None},
            {"key": b"fine", "value": {"n": 1}, "headers": HEADERS},
        ],
        name,
    )
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0

    assert [effect.offset for effect in project.effects(name)] == [0, 4, 5]
    letters = {letter["offset"]: letter for letter in project.letters()}
    assert sorted(letters) == [1, 2, 3]
    for message in read(project, name):
        if (letter := letters.get(message.offset() or 0)) is not None:
            assert (letter["key"], letter["value"]) == (message.key(), message.value())
            assert decode_headers(letter["stored_headers"]) == (message.headers() or [])
            assert letter["timestamp_ms"] == message.timestamp()[1]
            assert letter["category"] == "serialization"
            assert letter["attempts"] == 1
    project.assert_ledger(name, settled=True, once=True)


def test_a_letter_replayed_to_its_topic_has_the_same_bytes(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name)
    project.kafka["producers"] = {"default": {"serializer": "json"}}
    project.produce([{"key": b"\xff\0", "value": b"\0{", "headers": HEADERS}], name)
    project.run("kafka_consume", "--until-empty")
    project.assert_ledger(name, settled=True, once=True)

    project.run("kafka_replay", "--all", "--target", "topic")

    first, second = read(project, name)
    assert (second.key(), second.value()) == (first.key(), first.value())
    assert (second.headers() or [])[: len(HEADERS)] == HEADERS


def test_a_message_that_no_handler_matches_is_poison(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic())
    project.consumer("journey", name)
    dispatch = [{"header": {"type": "landed"}, "handler": "tests.app.handlers.record"}]
    project.kafka["consumers"]["journey"]["topics"] = {name: {"dispatch": dispatch}}
    project.produce(
        [
            {"value": {"n": 0}, "headers": [("type", b"landed")]},
            {"value": {"n": 1}, "headers": [("type", b"cancelled")]},
            {"value": {"n": 2}},
            {"value": {"n": 3}, "headers": [("type", None)]},
        ],
        name,
    )
    project.run("kafka_consume", "--until-empty")

    assert [effect.offset for effect in project.effects(name)] == [0]
    assert [(letter["offset"], letter["error_type"].rpartition(".")[2]) for letter in project.letters()] == [
        (1, "NoHandler"),
        (2, "NoHandler"),
        (3, "NoHandler"),
    ]
    project.assert_ledger(name, settled=True, once=True)
