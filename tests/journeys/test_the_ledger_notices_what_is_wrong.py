"""The books that every journey is judged by: they must complain when something is lost, repeated or made up."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.journeys.project import Project, Sent


@pytest.fixture
def sent(project: Project, topic: Callable[..., str]) -> list[Sent]:
    """Ten records in one partition."""
    name = project.create_topic(topic(), partitions=1)
    return project.produce([{"key": "k", "value": {"n": number}} for number in range(10)], topic=name)


def test_what_is_neither_handled_nor_committed_may_wait(project: Project, sent: list[Sent]) -> None:
    project.assert_ledger(sent[0].topic)
    assert not project.all_committed(sent[0].topic)

    with pytest.raises(AssertionError, match=r"Not settled, the first .*10 uncommitted"):
        project.assert_ledger(sent[0].topic, settled=True)


def test_a_committed_record_without_an_effect_is_lost(project: Project, sent: list[Sent]) -> None:
    handle(project, [line for line in sent if line.offset != 4])
    commit(project, sent[0].topic, 10)

    assert project.all_committed(sent[0].topic)
    with pytest.raises(AssertionError, match=r"1 lost, the first \[\('.*', 0, 4\)\]"):
        project.assert_ledger(sent[0].topic)


def test_a_repeated_effect_is_allowed_unless_once_was_asked_for(project: Project, sent: list[Sent]) -> None:
    handle(project, [*sent, sent[2]])
    commit(project, sent[0].topic, 10)

    project.assert_ledger(sent[0].topic, settled=True)
    with pytest.raises(AssertionError, match="More than once"):
        project.assert_ledger(sent[0].topic, once=True)


def test_an_effect_of_a_record_that_nobody_sent_is_strange(project: Project, sent: list[Sent]) -> None:
    project.ledger.pop()
    handle(project, sent)

    with pytest.raises(AssertionError, match="1 that nobody sent"):
        project.assert_ledger(sent[0].topic)


def test_an_empty_ledger_proves_nothing(project: Project, topic: Callable[..., str]) -> None:
    with pytest.raises(AssertionError, match="proves nothing"):
        project.assert_ledger(project.create_topic(topic()))


def test_another_groups_effects_do_not_count(project: Project, sent: list[Sent]) -> None:
    handle(project, sent, group="another")
    commit(project, sent[0].topic, 10)

    with pytest.raises(AssertionError, match="10 lost"):
        project.assert_ledger(sent[0].topic)


def handle(project: Project, lines: list[Sent], group: str | None = None) -> None:
    """Write effects as a handler would have."""
    with psycopg.connect(project.dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            'INSERT INTO tests_effect ("group", topic, partition, "offset", created) VALUES (%s, %s, %s, %s, now())',
            [(group or project.group, *line.place) for line in lines],
        )


def commit(project: Project, topic: str, offset: int) -> None:
    """Commit an offset as a worker would have."""
    consumer = Consumer({"bootstrap.servers": project.cluster.address, "group.id": project.group})
    project.ask(lambda: consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False) or [])
    consumer.close()
