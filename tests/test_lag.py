"""Lag from the brokers' point of view: of groups that live, wait, are dead, or may not be looked at."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from functools import partial

import pytest
from confluent_kafka.admin import ResourceType
from django.db import connection
from pytest_django import Settings

from django_kafka.clients.embedded import Cluster
from django_kafka.messages import Message
from django_kafka.monitoring import lag
from tests.consuming import NAME, Seen, Workplace
from tests.secured import PASSWORDS, SecuredKafka
from tests.secured.logins import password
from tests.sending import NOBODY, took_less_than
from tests.servers.processes import wait_until
from tests.test_metrics_of_groups import at_port


def an_hour_ago() -> int:
    """Return it in milliseconds, as records say it."""
    return round((time.time() - 3600) * 1000)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "_READ_EVERY", 0.0)
    monkeypatch.setattr(lag, "heard", partial(lag.heard, max_age=0.0))


def now(name: str = NAME) -> lag.GroupLag:
    """Ask brokers."""
    return lag.of_consumer(name, max_age=0)


def by_partition(found: lag.GroupLag) -> dict[int, int | None]:
    return {one.partition: one.lag for one in found.partitions}


def test_it_is_right_before_a_group_begins_while_it_waits_and_when_it_is_dead(
    workplace: Workplace, impatient: None
) -> None:
    go_on = threading.Event()

    def handle(message: Message) -> None:
        if message.offset == 4:
            assert go_on.wait(20)

    seen = Seen(handle)
    workplace.consume(
        seen, partitions=2, concurrency=2, enable_auto_commit=False, max_poll_records=1, transaction="none"
    )
    sent = an_hour_ago()
    workplace.send(range(10), partition=0, timestamp=sent)
    workplace.send(range(3), partition=1)

    found = now()
    assert (found.consumer, found.group_id, found.messages, found.members) == (NAME, workplace.group, 13, 0)
    assert by_partition(found) == {0: 10, 1: 3}
    assert found.reason == "", "That the embedded cluster describes no groups is no trouble."
    assert found.seconds == pytest.approx(3600, abs=60)

    with workplace.worker():
        seen.wait(7)
        wait_until(lambda: by_partition(now()) == {0: 6, 1: 0}, message="what a handler is stuck at is behind")
        found = now()
        assert found.seconds == pytest.approx(3600, abs=60)
        assert [one.seconds for one in found.partitions if one.lag == 0] == [0.0]
        assert found.partitions[0].next_at == datetime.fromtimestamp(sent / 1000, UTC)
        go_on.set()
        seen.wait(13)
        wait_until(lambda: now().messages == 0)
        assert now().seconds == 0.0
    workplace.send(range(5), partition=1)
    found = now()
    assert by_partition(found) == {0: 0, 1: 5}, "Nobody is there, and still it is known."
    assert found.seconds is not None
    assert 0 < found.seconds < 60


def test_brokers_are_asked_once_in_a_few_seconds_whoever_wants_to_know(workplace: Workplace) -> None:
    workplace.consume(Seen())
    answers: list[lag.ClusterLag] = []
    threads = [threading.Thread(target=lambda: answers.append(lag.of_cluster())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert len(set(map(id, answers))) == 1
    assert lag.of_consumer(NAME) is answers[0].groups[NAME]
    assert lag.of_cluster(max_age=0) is not answers[0]


def test_who_may_not_wait_gets_what_is_known_and_it_is_asked_anew_behind_him(workplace: Workplace) -> None:
    workplace.consume(Seen())
    workplace.send([1])
    with took_less_than(1):
        assert lag.known() == []
    (first,) = wait_until(lag.known)
    assert first.groups[NAME].messages == 1
    workplace.send([2])
    assert lag.known() == [first]
    wait_until(lambda: lag.known(max_age=0)[0].groups[NAME].messages == 2)


def test_only_some_messages_are_fetched_for_their_times_and_others_have_their_turn(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(lag, "_READ_AT_ONCE", 2)
    workplace.consume(Seen(), partitions=5)
    for partition in range(5):
        workplace.send([1], partition=partition, timestamp=an_hour_ago() + partition)
    known = [sum(one.next_at is not None for one in now().partitions) for _ in range(3)]
    assert known == [2, 4, 5]
    assert now().messages == 5


def test_a_cluster_that_does_not_answer_says_why_and_soon_and_others_are_known(
    workplace: Workplace, settings: Settings
) -> None:
    workplace.consume(Seen())
    workplace.send([1])
    settings.KAFKA = {
        **settings.KAFKA,
        "clusters": {"eu": {"brokers": [NOBODY], "connection": {"timeout": "1s"}}},
        "consumers": {**settings.KAFKA["consumers"], "far": {"group_id": "far", "cluster": "eu"}},
    }
    with took_less_than(5):
        far = lag.of_consumer("far")
    assert far.messages is None
    assert far.seconds is None
    assert "Cluster 'eu' does not say which topics it has" in far.reason
    assert lag.of_cluster("eu").reason == far.reason
    assert lag.of_consumer(NAME).messages == 1
    with took_less_than(0.1):
        lag.of_consumer("far")


def test_groups_whose_coordinator_is_away_are_waited_for_all_together(settings: Settings) -> None:
    with Cluster(brokers=2) as cluster:
        cluster.create_topic("flights", 1)
        cluster.partition_leader("flights", 0, 1)
        names = [f"group-{number}" for number in range(12)]
        settings.KAFKA = {
            "brokers": cluster.bootstrap_servers.split(","),
            "connection": {"timeout": "2s"},
            "consumers": {name: {"group_id": name, "topics": ["flights"]} for name in names},
        }
        assert all(one.reason == "" for one in lag.of_cluster(max_age=0).groups.values())
        cluster.broker_down(2)

        def late() -> list[str]:
            """Return the reasons of all groups; none while a question was on its way when the broker ended."""
            reasons = [one.reason for one in lag.of_cluster(max_age=0).groups.values()]
            return reasons if all(not one or " within " in one for one in reasons) else []

        reasons = wait_until(late)
        away = [reason.rpartition(" within ")[2] for reason in reasons if reason]
        # Three times 2 s for the first of them: a page does not wait so long for each, one after another.
        assert away[:2] == ["2 s"] * 2
        assert away[-1] == "1 s"
        assert away == sorted(away, reverse=True)
        assert "" in reasons, "Others are known."
        cluster.broker_up(2)
        wait_until(lambda: all(one.reason == "" for one in lag.of_cluster(max_age=0).groups.values()))


def test_a_consumer_that_cannot_run_has_a_reason(workplace: Workplace, settings: Settings) -> None:
    workplace.consume(Seen())
    off = {"off": {"group_id": "off", "enabled": False}, "alone": {}}
    settings.KAFKA = {**settings.KAFKA, "consumers": {**settings.KAFKA["consumers"], **off}}
    for name in off:
        assert now(name).reason == "It is switched off, or has no group."
    assert now().reason == ""


def test_a_topic_that_is_not_there_is_named(workplace: Workplace, settings: Settings) -> None:
    workplace.consume(Seen(), topics={workplace.topic: {}, "nowhere": {}})
    workplace.send([1])
    found = now()
    assert found.missing == ("nowhere",)
    assert found.messages == 1


def test_where_claims_are_they_go_before_what_is_committed(workplace: Workplace) -> None:
    from django_kafka.models import Claim

    seen = Seen()
    workplace.consume(seen, guarantee="effect_once")
    workplace.send(range(4))
    with workplace.worker():
        seen.wait(4)
        wait_until(lambda: now().messages == 0)
    Claim.objects.update(offset=1)
    assert now().messages == 3
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE lynx_kafka_claim RENAME TO away")
    try:
        found = now()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO lynx_kafka_claim")
    assert found.messages == 0
    assert found.reason.startswith("Database 'default' does not say what is claimed (")


def test_who_may_not_look_at_a_group_gets_a_reason_and_no_error_and_metrics_tell_of_all_of_it(
    place: Workplace, secured: SecuredKafka, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    alice = secured.settings("SAFE", password("SCRAM-SHA-512"))
    place.consume(seen, kafka=alice)
    place.send(range(3))
    with place.worker():
        seen.wait(3)
        wait_until(lambda: (now().state, now().members, now().messages) == ("stable", 1, 0))
        alive = {"consumer_lag 0": 0, "group_lag 0": 0, "group_members": 1, "group_known": 1}
        wait_until(lambda: at_port() == alive)
    wait_until(lambda: now().state == "empty")
    place.send(range(2))
    dead = {"consumer_lag 0": 2, "group_lag 0": 2, "group_members": 0, "group_known": 1}
    wait_until(lambda: at_port() == dead, message="the documented name is right of the dead, too")

    secured.allow("bob", ResourceType.TOPIC, place.topic)
    bob = secured.settings("SAFE", password("SCRAM-SHA-512", user="bob"))
    place.settings.KAFKA = {**place.settings.KAFKA, **bob}
    found = wait_until(lambda: one if not (one := now()).missing else None)
    assert (found.state, found.partitions, found.messages) == ("unknown", (), None)
    assert place.group in found.reason
    assert "bob" in found.reason
    assert found.reason.count("refuses") == 1
    assert PASSWORDS["bob"] not in found.reason
    assert lag.of_cluster().reason == ""
    assert at_port() == {"group_known": 0}
    assert len([one for one in caplog.messages if "lag is not known in full" in one and "bob" in one]) == 1
    assert PASSWORDS["bob"] not in caplog.text
