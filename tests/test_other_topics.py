"""Replays to another topic than that of their letter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pytest_django import Settings

from django_kafka.clients.embedded import Cluster
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.executing import Executor
from django_kafka.exceptions import ConfigurationError, DeliveryFailed, ReplayRefused
from django_kafka.models import DeadLetter, DeadLetterAttempt, Hold, Replay
from django_kafka.testing import produced
from tests.letters import dead_letter

KAFKA: dict[str, Any] = {
    "brokers": ["127.0.0.1:1"],
    "connection": {"timeout": "1s"},
    "topic_prefix": "air.",
    "producers": {"default": {"topics": {"sent": {}}}},
    "consumers": {"ops": {"group_id": "ops", "topics": {"flights": {"handler": "tests.app.handlers.record"}}}},
}


@pytest.fixture(autouse=True)
def _desk(settings: Settings) -> None:
    settings.KAFKA = KAFKA


@pytest.fixture
def executor(db: None) -> Iterator[Executor]:
    mine = Executor()
    yield mine
    mine.close()


@pytest.fixture
def root(client: Client, db: None) -> User:
    user = User.objects.create_superuser("root")
    client.force_login(user)
    return user


def letter_of(**fields: Any) -> DeadLetter:
    return dead_letter({"n": 1}, topic="air.flights", **fields)


def test_a_letter_goes_to_another_topic_with_the_prefix_and_its_id(executor: Executor) -> None:
    letter = letter_of(headers=[("a", b"1")])
    with produced() as records:
        assert replaying.request([letter.pk], target="topic", topic="gates").count == 1
        replay = executor.run_next()
    assert replay is not None
    assert (replay.state, replay.to_topic) == ("succeeded", "air.gates")
    assert replay.result.startswith("air.gates[0]@")
    (record,) = records
    assert (record.topic, record.raw_key, record.raw_value) == ("air.gates", b"UA 1545", b'{"n": 1}')
    assert record.headers == (("a", b"1"), ("lynx-kafka-dead-letter", str(letter.pk).encode()))
    letter.refresh_from_db()
    assert (letter.state, letter.attempts) == ("resolved", 1)


@pytest.mark.parametrize("topic", ["über", "a b", "x" * 246, "^pattern", "a\0"])
def test_a_name_that_kafka_refuses_is_refused(db: None, topic: str) -> None:
    with pytest.raises(ConfigurationError, match="no name for a topic"):
        replaying.request([letter_of().pk], target="topic", topic=topic)
    assert not Replay.objects.exists()


@pytest.mark.parametrize("target", ["handler", "dry-run"])
def test_a_handler_is_no_topic(db: None, target: str) -> None:
    with pytest.raises(ValueError, match="is sent to no topic"):
        replaying.request([letter_of().pk], target=target, topic="gates")


def test_a_letter_that_holds_its_key_does_not_leave_it(db: None) -> None:
    hold = Hold.objects.create(
        cluster="default", group_id="ops", topic="air.flights", partition=0, key=b"K", key_hash="x",
        consumer="ops", since="2026-01-01T00:00:00Z",
    )  # fmt: skip
    with pytest.raises(ReplayRefused, match="holds its key back"):
        replaying.request([letter_of(hold=hold).pk], target="topic", topic="gates")


def test_an_imported_letter_whose_origin_nobody_knows_can_go_somewhere(executor: Executor) -> None:
    letter = letter_of(imported_as="spring", headers=[("kafka_dlt-exception-message", b"x"), ("a", b"1")])
    with produced() as records:
        replaying.request([letter.pk], target="topic")
        executor.run_next()
        assert Replay.objects.get().state == "cancelled"
        replaying.request([letter.pk], target="topic", topic="orders")
        executor.run_next()
    assert [name for name, _value in records[0].headers] == ["a", "lynx-kafka-dead-letter"]
    assert records[0].topic == "air.orders"


def test_a_topic_that_is_not_there_is_no_failure_of_the_letter(
    executor: Executor, settings: Settings, embedded: Cluster, topic: Callable[..., str]
) -> None:
    there = topic()
    embedded.create_topic(f"air.{there}", 1)
    settings.KAFKA = {**KAFKA, "brokers": [embedded.bootstrap_servers]}
    letter = letter_of()
    replaying.request([letter.pk], target="topic", topic="nowhere")
    replay = executor.run_next()
    assert replay is not None
    assert (replay.state, replay.result) == (
        "cancelled", "There is no topic 'air.nowhere' in cluster 'default'.",
    )  # fmt: skip
    assert DeadLetterAttempt.objects.count() == 1
    replaying.request([letter.pk], target="topic", topic=there)
    replay = executor.run_next()
    assert replay is not None
    assert replay.state == "succeeded"
    # And nobody made the other one by asking for it.
    replaying.request([letter_of().pk], target="topic", topic="nowhere")
    again = executor.run_next()
    assert again is not None
    assert again.state == "cancelled"


def test_while_no_broker_answers_it_is_asked_for_again(executor: Executor) -> None:
    replaying.request([letter_of().pk], target="topic", topic="gates")
    with pytest.raises(DeliveryFailed):
        executor.run_next()
    assert Replay.objects.get().state == "requested"


# In the admin


def url(letter: DeadLetter) -> str:
    return reverse("admin:lynx_kafka_deadletter_replay-to-other-topic", args=[letter.pk])


def test_a_person_names_the_topic(client: Client, root: User) -> None:
    letter = letter_of()
    page = client.get(url(letter)).content.decode()
    assert '<option value="flights">' in page
    assert '<option value="sent">' in page
    assert "aria-invalid" not in page
    answer = client.post(url(letter), {"confirmed": "yes", "to_topic": " gates "}, follow=True)
    assert "A replay of 1 dead letter was asked for." in answer.content.decode()
    assert Replay.objects.get().to_topic == "air.gates"
    assert "gates" in LogEntry.objects.get().change_message
    assert "air.gates" in answer.content.decode()


@pytest.mark.parametrize("name", ["", "  ", "über", "<script>alert(1)</script>", "a\u202eb", "x" * 300])
def test_a_wrong_name_comes_back(client: Client, root: User, name: str) -> None:
    letter = letter_of()
    answer = client.post(url(letter), {"confirmed": "yes", "to_topic": name})
    assert answer.status_code == 200
    text = answer.content.decode()
    assert 'aria-invalid="true"' in text
    assert "<script>alert" not in text
    assert not Replay.objects.exists()


def test_a_topic_that_is_not_there_is_told_of_at_once(
    client: Client, root: User, settings: Settings, embedded: Cluster
) -> None:
    settings.KAFKA = {**KAFKA, "brokers": [embedded.bootstrap_servers]}
    answer = client.post(url(letter_of()), {"confirmed": "yes", "to_topic": "nowhere"})
    assert "There is no topic" in answer.content.decode()
    assert not Replay.objects.exists()


def test_several_letters_and_a_whole_group_go_too(client: Client, root: User) -> None:
    letters = [letter_of(), letter_of(), letter_of(state="resolved")]
    chosen = {"action": "replay-to-other-topic", "_selected_action": [each.pk for each in letters], "index": "0"}
    listing = reverse("admin:lynx_kafka_deadletter_changelist") + "?state=all"
    asked = client.post(listing, chosen)
    assert "Send 2 dead letters to another topic?" in asked.content.decode()
    hidden = dict(asked.context["hidden"]) | {"_selected_action": chosen["_selected_action"]}
    wrong = client.post(listing, {**hidden, "to_topic": "über"})
    assert "no name for a topic" in wrong.content.decode()
    client.post(listing, {**hidden, "to_topic": "gates"})
    assert set(Replay.objects.values_list("letter", "to_topic")) == {(each.pk, "air.gates") for each in letters[:2]}


# On the command line


def test_the_command_takes_a_topic(db: None) -> None:
    letters = [letter_of(), letter_of()]
    out = StringIO()
    with produced() as records:
        call_command("kafka_replay", "--all", "--target", "topic", "--to-topic", "gates", stdout=out)
    assert [record.topic for record in records] == ["air.gates"] * 2
    assert "Succeeded: 2" in out.getvalue()
    assert DeadLetter.objects.filter(state="resolved").count() == len(letters)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--to-topic", "gates"], "needs --target topic"),
        (["--to-topic", "gates", "--target", "handler"], "needs --target topic"),
        (["--to-topic", "", "--target", "topic"], "names a topic"),
        (["--to-topic", "über", "--target", "topic"], "no name for a topic"),
        (["--to-topic", "über", "--target", "topic", "--dry-run"], "no name for a topic"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(db: None, options: list[str], sentence: str) -> None:
    letter_of()
    with pytest.raises(CommandError, match=sentence):
        call_command("kafka_replay", "--all", *options)
    assert not Replay.objects.exists()


def test_the_command_says_where_it_would_go(db: None) -> None:
    letter_of()
    out = StringIO()
    call_command("kafka_replay", "--all", "--target", "topic", "--to-topic", "gates", "--dry-run", stdout=out)
    assert "Would replay to the topic air.gates" in out.getvalue()


# Letters of one trace

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_letters_of_the_same_trace_stand_beside_one(client: Client, root: User) -> None:
    mine, same, other = letter_of(trace_id=TRACE), letter_of(trace_id=TRACE, key=b"x"), letter_of(key=b"y")
    third = letter_of(trace_id="f" * 32, key=b"z")
    page = client.get(reverse("admin:lynx_kafka_deadletter_change", args=[mine.pk])).content.decode()
    part = page.partition('id="trace"')[2].partition("</table>")[0]
    assert f"@{same.offset}<" in part
    assert f"@{other.offset}<" not in part
    assert f"@{third.offset}<" not in part
    listing = reverse("admin:lynx_kafka_deadletter_changelist")
    with CaptureQueriesContext(connection) as queries:
        found = client.get(listing, {"trace_of": mine.pk, "state": "all"})
    assert {each.pk for each in found.context["cl"].result_list} == {mine.pk, same.pk}
    assert len(queries) < 30
    assert not client.get(listing, {"trace_of": other.pk}).context["cl"].result_list
    assert (
        'id="trace"' not in client.get(reverse("admin:lynx_kafka_deadletter_change", args=[other.pk])).content.decode()
    )
