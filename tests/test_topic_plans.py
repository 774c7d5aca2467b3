"""Topics as settings declare them: what is planned, what is done, and what is left alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)
from django.core.management import CommandError, call_command
from pytest_django import Settings

from django_kafka import conf
from django_kafka.clients.admin import Layout, Property
from django_kafka.clients.embedded import Cluster
from django_kafka.needed_topics import Needed
from django_kafka.topic_plans import Change, Kind, Standing, plan
from tests.doctoring import Told
from tests.secured import SecuredKafka, logins
from tests.sending import read
from tests.servers import Kafka
from tests.servers.processes import wait_until
from tests.test_kafka_topics import create, run, use

A = Layout(partitions=3, replication=1)


def needs(name: str, *models: str) -> Needed:
    return Needed(
        cluster="default", name=name, uses=("read by ops",), models=frozenset(("default", one) for one in models)
    )


def changes(
    declared: Mapping[str, Mapping[str, Any]],
    there: Mapping[str, Layout] | None = None,
    config: Mapping[str, Mapping[str, Property]] | None = None,
    *needed: Needed,
) -> list[Change]:
    topics = {name: conf.Topic(name=name, **one) for name, one in declared.items()}
    return plan(needed, topics, Standing(layouts=there or {}, config=config or {}))


def own(value: str) -> Property:
    return Property(value=value, own=True)


def inherited(value: str) -> Property:
    return Property(value=value, own=False)


# --- what is planned --------------------------------------------------------------------------------------------------


def test_what_is_missing_is_made_as_declared() -> None:
    [one] = changes({"a": {"partitions": 6, "replication_factor": 3, "config": {"retention.ms": "9", "x": None}}})
    assert (one.kind, one.what) == (Kind.CREATE, "6 partitions, 3 replicas, retention.ms=9")
    assert (one.layout, one.config) == (Layout(partitions=6, replication=3), {"retention.ms": "9"})
    [one] = changes({"a": {}})
    assert one.what == "partitions as brokers decide, replicas as brokers decide"


def test_what_has_messages_of_another_is_made_like_it_after_it() -> None:
    found = changes({"z": {"partitions": 7}}, None, None, needs("a.retry", "z"), needs("z"))
    assert [(one.topic, one.layout.partitions) for one in found] == [("z", 7), ("a.retry", 7)]
    found = changes({}, {"z": Layout(partitions=5, replication=3)}, None, needs("a.retry", "z"), needs("z"))
    assert [(one.topic, one.layout) for one in found] == [("a.retry", Layout(partitions=5, replication=3))]
    found = changes({"a.retry": {"partitions": 2}}, {"z": A}, None, needs("a.retry", "z"))
    assert [one.layout.partitions for one in found] == [2], "What is declared wins."


def test_partitions_are_added_and_never_taken_away() -> None:
    [one] = changes({"a": {"partitions": 6}}, {"a": A})
    assert (one.kind, one.what, one.loses) == (Kind.GROW, "3 → 6 partitions", "")
    assert "keys go to other partitions" in one.note
    [one] = changes({"a": {"partitions": 1}}, {"a": A})
    assert (one.kind, one.what) == (Kind.IMPOSSIBLE, "3 → 1 partitions")
    [one] = changes({}, {"z": A, "a.retry": Layout(partitions=1, replication=1)}, None, needs("a.retry", "z"))
    assert (one.kind, one.layout.partitions) == (Kind.GROW, 3)
    assert not changes({}, {"z": A, "r": Layout(partitions=9, replication=2)}, None, needs("r", "z")), (
        "More do no harm."
    )


def test_replicas_are_not_moved() -> None:
    [one] = changes({"a": {"replication_factor": 3}}, {"a": A})
    assert (one.kind, one.what) == (Kind.IMPOSSIBLE, "1 → 3 replicas")


@pytest.mark.parametrize(
    ("key", "old", "new", "loses"),
    [
        ("retention.ms", "1000", "2000", ""),
        ("retention.ms", "1000", "-1", ""),
        ("retention.ms", "2000", "1000", "older messages than that"),
        ("retention.ms", "-1", "1000", "older messages than that"),
        ("retention.bytes", "5", "4", "what is more than that"),
        ("cleanup.policy", "delete", "compact", "what the new policy does not keep"),
        ("cleanup.policy", "compact", "compact,delete", "what the new policy does not keep"),
        ("cleanup.policy", "compact,delete", "delete", ""),
        ("max.message.bytes", "5", "4", ""),
        ("min.insync.replicas", "1", "2", ""),
    ],
)
def test_properties_that_differ_are_set(key: str, old: str, new: str, loses: str) -> None:
    [one] = changes({"a": {"config": {key: new}}}, {"a": A}, {"a": {key: inherited(old)}})
    assert (one.kind, one.what, one.loses, one.config) == (Kind.CONFIGURE, f"{key}: {old} → {new}", loses, {key: new})


def test_properties_that_are_as_declared_or_not_declared_stay() -> None:
    there = {"a": {"retention.ms": own("9"), "segment.ms": own("8"), "x": inherited("7")}}
    assert not changes({"a": {"config": {"retention.ms": "9", "x": None}}}, {"a": A}, there)
    [one] = changes({"a": {"config": {"retention.ms": None}}}, {"a": A}, there)
    assert (one.what, one.config, one.loses) == (
        "retention.ms: 9 → as brokers decide",
        {"retention.ms": None},
        "older messages than that",
    )


def test_properties_that_are_not_seen_or_not_known_are_said() -> None:
    [one] = changes({"a": {"config": {"retention.ms": "9"}}}, {"a": A})
    assert one.kind is Kind.IMPOSSIBLE
    assert "may not see its properties" in one.note
    [one] = changes({"a": {"config": {"retention.mss": "9"}}}, {"a": A}, {"a": {}})
    assert (one.kind, one.note) == (Kind.IMPOSSIBLE, "these brokers know no such property of topics")


def test_what_is_to_be_gone_is_deleted_and_says_who_uses_it() -> None:
    [one] = changes({"a": {"delete": True}}, {"a": A, "others": A}, None, needs("a"))
    assert (one.kind, one.what, one.loses) == (Kind.DELETE, "3 partitions; it is read by ops", "all its messages")
    assert not changes({"a": {"delete": True}})


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_declare_topics_of_each_cluster(settings: Settings) -> None:
    settings.KAFKA = {
        "topic_prefix": "stage.",
        "topics": {"flights": {"partitions": 6, "config": {"retention.ms": 604800000, "preallocate": True}}},
        "clusters": {"eu": {"brokers": ["b:1"], "topics": [{"name": "flights", "delete": True}, "plain"]}},
    }
    kafka = conf.kafka()
    flights = kafka.clusters["default"].topics["flights"]
    assert flights == conf.Topic(
        name="flights", partitions=6, config={"retention.ms": "604800000", "preallocate": "true"}
    )
    assert kafka.clusters["eu"].topics == {
        "flights": conf.Topic(name="flights", delete=True),
        "plain": conf.Topic(name="plain"),
    }


@pytest.mark.parametrize(
    ("topics", "said"),
    [
        ({"a b": {}}, "'a b' is no name for a topic"),
        ({"a": {"partitions": 0}}, '["a"]["partitions"] is 0'),
        ({"a": {"partition": 1}}, 'Did you mean "partitions"?'),
        ({"a": {"config": {"retention.ms": [1]}}}, '["config"]["retention.ms"]'),
        ({"a": {"delete": True, "partitions": 2}}, "is to be deleted, and says how it is to be"),
        ("a", "a dict by name, or a list of topics"),
    ],
)
def test_wrong_declarations_are_named(settings: Settings, topics: Any, said: str) -> None:
    settings.KAFKA = {"topics": topics}
    assert said in "\n".join(f"{one.message} {one.hint}" for one in conf.problems())


# --- the command ------------------------------------------------------------------------------------------------------


def told(*arguments: str) -> list[tuple[str, str, str]]:
    """Return topic, change and state of each, as programs get them."""
    rows = json.loads(run(*arguments, "--json", "--no-input")[0])["changes"]
    return [(row["topic"], row["change"], row["state"]) for row in rows]


def properties(kafka: Kafka, name: str) -> dict[str, str]:
    admin = kafka.admin()
    [answer] = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name)]).values()
    return {one.name: one.value for one in answer.result(30).values()}


def partitions(kafka: Kafka, name: str) -> int:
    admin = kafka.admin()
    found = admin.list_topics(timeout=10).topics
    return len(found[name].partitions) if name in found else 0


def test_a_project_becomes_what_its_settings_say(settings: Settings, kafka: Kafka, topic: Callable[..., str]) -> None:
    name, audit, old = topic("flights"), topic("audit"), topic("old")
    create(kafka, name, 2)
    create(kafka, old, 1)
    declared: dict[str, Any] = {
        name: {"partitions": 4, "config": {"retention.ms": 3600000}},
        audit: {"partitions": 1, "config": {"cleanup.policy": "compact"}},
        f"{name}.dlt": {"config": {"retention.ms": -1}},
        old: {"delete": True},
    }
    use(settings, name, kafka.address, topics=declared)
    expected = [
        (audit, "create"),
        (name, "configure"),
        (name, "add partitions"),
        (old, "delete"),
        (f"{name}.dlt", "create"),
        (f"g.{name}.retry.1", "create"),
        (f"g.{name}.retry.2", "create"),
    ]
    assert sorted((topic, change) for topic, change, _state in told("plan")) == sorted(expected)
    out, error = run("check")
    assert error == "7 changes to make: see `python manage.py kafka_topics plan`."
    assert "loses older messages than that: needs --force" in out
    assert partitions(kafka, name) == 2, "Neither changes anything."

    out, error = run("apply", "--no-input")
    assert error == "Not done: 2 changes."
    assert "left: it loses all its messages; --force does it" in out
    wait_until(lambda: partitions(kafka, f"{name}.dlt") == 4, message="those with its messages have as many partitions")
    assert [partitions(kafka, f"g.{name}.retry.{number}") for number in (1, 2)] == [4, 4]
    assert (partitions(kafka, name), partitions(kafka, old)) == (4, 1)
    assert properties(kafka, audit)["cleanup.policy"] == "compact"
    assert properties(kafka, f"{name}.dlt")["retention.ms"] == "-1"
    assert properties(kafka, name)["retention.ms"] != "3600000"

    assert sorted(told("apply", "--force")) == [(name, "configure", "done"), (old, "delete", "done")]
    wait_until(lambda: partitions(kafka, old) == 0)
    assert properties(kafka, name)["retention.ms"] == "3600000"
    assert run("check") == ("All topics are as they are to be.\n", "")
    assert run("apply") == ("All topics are as they are to be.\n", "")

    declared[name] = {"partitions": 4, "config": {"retention.ms": None}}
    settings.KAFKA = {**settings.KAFKA, "topics": {**declared, name: declared[name]}}
    assert told("apply", name, "--force") == [(name, "configure", "done")]
    wait_until(lambda: properties(kafka, name)["retention.ms"] != "3600000")


def test_the_doctor_says_what_is_not_as_declared(settings: Settings, kafka: Kafka, topic: Callable[..., str]) -> None:
    name, missing = topic("flights"), topic("missing")
    create(kafka, name, 2)
    declared = {name: {"partitions": 3}, missing: {}}
    settings.KAFKA = {"brokers": [kafka.address], "producers": {"default": {"topic": name}}, "topics": declared}
    told = {one["of"]: one for one in Told().of("declared topics")}
    assert told[name]["saw"] == f"{name!r} is not as settings declare it: add partitions, 2 → 3 partitions."
    assert told[name]["mend"] == f"python manage.py kafka_topics apply {name}"
    assert told[missing]["saw"].startswith(f"{missing!r} is not as settings declare it: create, ")
    assert run("apply", "--no-input")[1] == ""
    [well] = Told().of("declared topics")
    assert (well["state"], well["saw"]) == ("ok", "2 topics are as settings declare them.")


def test_messages_outlive_all_that_is_not_forced(settings: Settings, kafka: Kafka, topic: Callable[..., str]) -> None:
    from django_kafka.producing import produce

    name = topic("flights")
    create(kafka, name, 2)
    use(settings, name, kafka.address, topics={name: {"partitions": 1, "config": {"retention.bytes": 0}}})
    deliveries = [produce(name, str(number), number) for number in range(10)]
    assert all(one.result(30) for one in deliveries)
    assert [one for one in told("apply", name) if one[2] == "done"] == []
    assert len(read(kafka.address, name, 10)) == 10
    out, error = run("apply", name, "--force", "--no-input")
    assert "left: Kafka takes no partition away" in out
    assert error == "Not done: 1 change."


def test_what_brokers_refuse_is_said_and_the_rest_is_done(
    settings: Settings, kafka: Kafka, topic: Callable[..., str]
) -> None:
    name, other = topic("wrong"), topic("right")
    use(settings, name, kafka.address, topics={name: {"config": {"retention.ms": "soon"}}, other: {"partitions": 2}})
    states = {one[0]: one[2] for one in told("apply", name, other)}
    assert states == {name: "refused", other: "done"}
    [row] = json.loads(run("apply", name, "--json", "--no-input")[0])["changes"]
    assert "retention.ms" in row["why"]


def test_a_login_that_may_not_look_is_told(
    settings: Settings, secured: SecuredKafka, topic: Callable[..., str]
) -> None:
    name = topic("hidden")
    secured.create_topic(name)
    seen = AclBinding(
        ResourceType.TOPIC, name, ResourcePatternType.LITERAL, "User:bob", "*", AclOperation.DESCRIBE,
        AclPermissionType.ALLOW,
    )  # fmt: skip
    admin = secured.admin()
    admin.create_acls([seen])[seen].result(10)
    login = secured.settings("LOGIN", logins.password("SCRAM-SHA-256", "bob"))
    settings.KAFKA = {**login, "topics": {name: {"config": {"retention.ms": 1}}}}

    def told() -> tuple[str, str]:
        return run("check")

    wait_until(lambda: "may not see its properties (DESCRIBE_CONFIGS)" in told()[0])
    assert told()[1] == "1 change to make: see `python manage.py kafka_topics plan`."


def test_an_answer_is_waited_for_where_somebody_is_there(
    settings: Settings, embedded: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(settings, brokers=embedded.bootstrap_servers)
    from django_kafka.management.commands import kafka_topics

    monkeypatch.setattr(kafka_topics, "somebody_is_there", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    out, error = run("apply")
    assert error == "Nothing was changed."
    assert "flights.dlt" in out
    embedded.create_topic("flights", 3)
    assert run("plan", "nobodys")[1] == "The project does not need nobodys."
    with pytest.raises(CommandError, match="--create goes with show"):
        call_command("kafka_topics", "apply", "--create")
