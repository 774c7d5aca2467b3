"""The command kafka_topics: which topics the project needs, and how the missing ones are made."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import NewTopic
from django.core.management import CommandError, call_command
from pytest_django import Settings

from django_kafka.clients.embedded import Cluster, announced
from django_kafka.needed_topics import Needed, needed
from tests.servers import Kafka
from tests.servers.processes import wait_until

HANDLER = "tests.app.handlers.record"


def use(settings: Settings, name: str = "flights", brokers: str = "127.0.0.1:1", **more: Any) -> None:
    topics = {name: {"handler": HANDLER}}
    consumer = {"group_id": "g", "topics": topics, "retry": {"mode": "topics", "max_retries": 2}}
    settings.KAFKA = {
        "brokers": brokers.split(","),
        "connection": {"timeout": "5s"},
        "producers": {"default": {}},
        "consumers": {"ops": consumer},
        "dead_letters": {"topic": "{topic}.dlt"},
        **more,
    }


def run(*arguments: str) -> tuple[str, str]:
    """Return what the command says, and why its exit code is not 0."""
    out = io.StringIO()
    try:
        call_command("kafka_topics", *arguments, stdout=out)
    except CommandError as error:
        return out.getvalue(), str(error) if error.returncode == 1 else f"exit code {error.returncode}"
    return out.getvalue(), ""


def told(*arguments: str) -> dict[str, tuple[str, Any, Any]]:
    """Return state, partitions and replicas of each topic, as programs get them."""
    rows = json.loads(run("--json", *arguments)[0])["topics"]
    return {row["topic"]: (row["state"], row["partitions"], row["replication_factor"]) for row in rows}


def create(kafka: Kafka, name: str, partitions: int) -> None:
    admin = kafka.admin()  # held until the answer is there
    admin.create_topics([NewTopic(name, partitions, 1)], operation_timeout=30)[name].result(30)
    wait_until(lambda: name in admin.list_topics(timeout=10).topics, message="the broker did not hear of it")


# What is needed


def test_what_settings_and_handlers_name_is_needed(settings: Settings) -> None:
    producers = {"default": {"topic": "events", "topics": {"audit": {}}}, "off": {"enabled": False, "topic": "never"}}
    imports = {"group_id": "desk", "topics": {"old.DLT": {"import": "auto"}}}
    off = {"enabled": False, "group_id": "g", "topics": {"dark": {"handler": HANDLER}}}
    use(settings, topic_prefix="stage.", producers=producers)
    settings.KAFKA["consumers"] |= {"desk": imports, "off": off}
    settings.KAFKA = {**settings.KAFKA}

    assert [(one.name.removeprefix("stage."), one.uses) for one in needed()] == [
        ("audit", ("written by default",)),
        ("events", ("written by default",)),
        ("flights", ("read by ops",)),
        ("flights.dlt", ("dead letters of ops",)),
        ("g.flights.retry.1", ("retry 1 of ops",)),
        ("g.flights.retry.2", ("retry 2 of ops",)),
        ("old.DLT", ("read by desk",)),
    ]
    origin = ("default", "stage.flights")
    assert {one.name for one in needed() if one.models == {origin}} == {
        "stage.flights.dlt",
        "stage.g.flights.retry.1",
        "stage.g.flights.retry.2",
    }


def test_a_topic_with_several_uses_is_needed_once(settings: Settings) -> None:
    use(settings, producers={"default": {"topic": "flights"}}, dead_letters={"topic": "all.dlt"})
    assert Needed(cluster="default", name="flights", uses=("read by ops", "written by default")) in needed()
    assert len(needed()) == 4


# The command


def test_without_brokers_it_says_so(settings: Settings) -> None:
    use(settings, connection={"timeout": "1s"})
    out, error = run()
    assert out == ""
    assert "Cluster 'default' does not say which topics it has" in error


def test_it_shows_what_is_missing_and_changes_nothing(settings: Settings, embedded: Cluster) -> None:
    use(settings, brokers=embedded.bootstrap_servers)
    embedded.create_topic("flights", 3)

    out, error = run()

    lines = {line.split()[1]: line.split() for line in out.splitlines()[1:]}
    assert lines["flights"] == ["default", "flights", "read", "by", "ops", "3", "1", "there"]
    assert lines["g.flights.retry.1"] == [
        "default",
        "g.flights.retry.1",
        "retry",
        "1",
        "of",
        "ops",
        "3",
        "1",
        "missing",
    ]
    assert error == "3 topics are missing. `python manage.py kafka_topics --create` makes what is missing."
    assert told()["flights.dlt"] == ("missing", 3, 1), "looking makes nothing"


def test_a_project_without_topics_is_in_order(settings: Settings) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"]}
    assert run() == ("Settings and handlers name no topic.\n", "")


def test_what_nobody_needs_is_not_shown(settings: Settings, embedded: Cluster) -> None:
    use(settings, brokers=embedded.bootstrap_servers)
    assert run("flights", "nobodys")[1] == "The project does not need nobodys."
    assert list(told("flights")) == ["flights"]


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5", "٣", "1000000"])
def test_a_wrong_number_is_refused(settings: Settings, count: str) -> None:
    use(settings)
    with pytest.raises(CommandError, match="is not a number from 1 to 100000"):
        call_command("kafka_topics", "--create", f"--partitions={count}")


def test_the_embedded_cluster_makes_topics_as_it_does(settings: Settings, embedded: Cluster, tmp_path: Path) -> None:
    settings.BASE_DIR = tmp_path
    use(settings, brokers="embedded")
    with announced(embedded):
        assert set(told("--create").values()) == {("created", 4, 1)}
        assert run()[1] == ""


def test_retry_topics_are_made_like_their_origin_and_the_rest_as_it_says(
    settings: Settings, kafka: Kafka, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    other = topic("events")
    use(settings, name, kafka.address, producers={"default": {"topic": other}})
    create(kafka, name, 5)

    made = told("--create", "--partitions", "2", "--replication-factor", "1")

    assert made == {
        name: ("there", 5, 1),
        f"{name}.dlt": ("created", 5, 1),
        f"g.{name}.retry.1": ("created", 5, 1),
        f"g.{name}.retry.2": ("created", 5, 1),
        other: ("created", 2, 1),
    }
    assert {state for state, *_layout in told().values()} == {"there"}
    assert run()[1] == ""


def test_what_is_made_in_the_same_run_is_a_model_too(
    settings: Settings, kafka: Kafka, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    use(settings, name, kafka.address)
    assert {layout[1:] for layout in told("--create", "--partitions", "7").values()} == {(7, 1)}


def test_fewer_partitions_than_the_origin_are_noted(
    settings: Settings, kafka: Kafka, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    use(settings, name, kafka.address)
    create(kafka, name, 2)
    create(kafka, f"g.{name}.retry.1", 1)
    out, error = run("--create")
    assert error == ""
    assert "there: fewer partitions than its origin, which has 2" in out


def test_a_refused_topic_is_named_with_the_reason(settings: Settings, kafka: Kafka, topic: Callable[..., str]) -> None:
    name = topic("flights")
    use(settings, name, kafka.address)
    out, error = run("--create", name, "--replication-factor", "9")
    assert "refused: " in out
    assert error == "1 topic is missing."
