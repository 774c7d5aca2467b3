"""The command kafka_status: what it shows of workers, for people and for programs, and what it asks them for."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.utils import timezone

from django_kafka.clients.embedded import Cluster
from django_kafka.models import Worker

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One for all tests here, which are about rows: it answers at once that there is nothing."""
    with Cluster(partitions=1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def consumers(settings: Any, cluster: Cluster) -> None:
    settings.KAFKA = {
        "brokers": cluster.bootstrap_servers.split(","),
        "consumers": {"ops": {"group_id": "ops"}, "audit": {"group_id": "a"}},
    }


def worker(name: str, *, seen: float = 0.0, **fields: Any) -> Worker:
    """Store the row of a worker that was last heard of so many seconds ago."""
    now = timezone.now()
    stored: Worker = Worker.objects.create(
        **{
            "id": name,
            "consumer": "ops",
            "group_id": "ops",
            "host": f"host-{name}",
            "pid": 4711,
            "version": "0.1.0",
            "started_at": now - timedelta(hours=2),
            "seen_at": now - timedelta(seconds=seen),
            **fields,
        }
    )
    return stored


def tripped(name: str, **fields: Any) -> Worker:
    """Store the row of a worker whose circuit is open."""
    reason = "50 of the last 64 messages failed, 48 of them with ValueError"
    opened = {"circuit": "open", "circuit_episode": 2, "circuit_reason": reason, "circuit_opened_at": timezone.now()}
    return worker(name, **{**opened, **fields})


def status(*arguments: str) -> str:
    out = io.StringIO()
    call_command("kafka_status", *arguments, stdout=out)
    return out.getvalue()


def refused(*arguments: str) -> str:
    with pytest.raises(CommandError) as caught:
        status(*arguments)
    return str(caught.value)


def rows(said: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of the plain table that has a heading, by their headings."""
    lines = said.splitlines()
    first = next(number for number, line in enumerate(lines) if heading in re.split(" {2,}", line))
    heads = [(one.group(), one.start()) for one in re.finditer(r"\S+( \S+)*", lines[first])]
    ends = [start for _name, start in heads[1:]] + [1000]
    found = []
    for line in lines[first + 1 :]:
        if not line or ": " in line:
            break
        found.append(
            {name: line[start:end].strip() for (name, start), end in zip(heads, ends, strict=True)},
        )
    return found


def test_without_workers_it_says_how_to_start_one() -> None:
    said = status()
    assert "No worker was heard of. Start one: python manage.py kafka_consume\n" in said
    assert [(one["consumer"], one["workers"]) for one in rows(said, "trend")] == [("ops", "0"), ("audit", "0")]


def test_each_worker_has_a_line_with_what_it_is_and_did() -> None:
    worker(
        "one", handled=1234567, dead_lettered=8, partitions=4, waiting=1, waits_for="the database is unavailable",
        state="waiting", not_ready="It waits: the database is unavailable", memory=100 * 2**20, in_flight=1200,
        last_error="builtins.ValueError at flights[0]@7",
    )  # fmt: skip
    worker("two", consumer="audit", group_id="a", seen=7200.0)
    worker("three", consumer="audit", group_id="a", state="stuck", not_live="Its poll loop has ended.")

    said = status()

    stuck, gone, waiting = rows(said, "last seen")
    assert gone == {
        "consumer": "audit", "group": "a", "worker": "host-two:4711", "state": "gone", "last seen": "2 h ago",
        "partitions": "0", "in flight": "0", "memory": "-", "handled": "0", "handled/s": "-", "dead letters": "0",
        "circuit": "closed",
    }  # fmt: skip
    assert (stuck["worker"], stuck["state"]) == ("host-three:4711", "stuck")
    assert re.fullmatch(r"\d s ago", waiting.pop("last seen"))
    assert waiting == {
        "consumer": "ops", "group": "ops", "worker": "host-one:4711", "state": "waiting",
        "partitions": "4 (1 waiting)", "in flight": "1,200", "memory": "100 MiB", "handled": "1,234,567",
        "handled/s": "-", "dead letters": "8", "circuit": "closed",
    }  # fmt: skip
    assert said.splitlines()[-3:] == [
        "audit host-three:4711: only a restart helps it: Its poll loop has ended.",
        "ops host-one:4711: waits for: the database is unavailable",
        "ops host-one:4711: its last error: builtins.ValueError at flights[0]@7",
    ]
    assert [(one["consumer"], one["workers"], one["state"]) for one in rows(said, "trend")] == [
        ("ops", "1", "waiting"), ("audit", "1", "-"),
    ]  # fmt: skip


def test_those_of_one_supervisor_stand_together_in_their_order() -> None:
    worker("two", host="web", pid=4, supervisor=9, number=2)
    worker("alone", host="web", pid=3)
    worker("one", host="web", pid=5, supervisor=9, number=1)

    shown = [one["worker"] for one in rows(status(), "last seen")]

    assert set(shown) == {"web:3", "web:4 (2 below 9)", "web:5 (1 below 9)"}
    assert shown.index("web:5 (1 below 9)") + 1 == shown.index("web:4 (2 below 9)")


def test_a_consumer_that_only_workers_know_is_shown_too() -> None:
    worker("old", consumer="former", group_id="f", seen=60.0)

    said = status()

    assert rows(said, "trend")[-1]["consumer"] == "former"
    assert rows(said, "trend")[-1]["state"] == "not declared"
    assert "not declared" not in status("ops")


def test_an_open_circuit_is_shown_with_its_reason() -> None:
    tripped("one")
    tripped("two", circuit="open", circuit_writing=True, circuit_close_asked=2)

    said = status()

    assert "open, writing letters" in said
    reason = "50 of the last 64 messages failed, 48 of them with ValueError"
    assert re.search(rf"ops host-one:4711: its circuit opened \d s ago: {reason}\n", said)
    assert said.count("it was asked to close its circuit") == 1


def test_only_the_named_consumers_are_shown() -> None:
    worker("one")
    worker("two", consumer="audit")

    assert "host-two" not in status("ops")
    assert "host-one" in status("ops", "audit")


def test_json_has_everything_for_programs() -> None:
    tripped("one", handled=5, waiting=2, waits_for="x", partitions=3)
    worker("two", consumer="audit", seen=3600.0)

    whole = json.loads(status("--json"))

    audit, ops = whole["workers"]
    assert (ops["consumer"], ops["group"], ops["host"], ops["pid"], ops["alive"]) == (
        "ops", "ops", "host-one", 4711, True,
    )  # fmt: skip
    assert (ops["handled"], ops["dead_lettered"], ops["partitions"], ops["waiting"]) == (5, 0, 3, 2)
    assert ops["circuit"]["state"] == "open"
    assert ops["circuit"]["close_asked"] is False
    assert ops["circuit"]["reason"].startswith("50 of the last 64")
    assert audit["alive"] is False
    assert audit["circuit"] == {
        "state": "closed", "writing_letters": False, "opened_at": None, "reason": "", "close_asked": False,
    }  # fmt: skip
    assert [(one["name"], one["circuit"], one["workers"]) for one in whole["consumers"]] == [
        ("ops", "open", 1), ("audit", None, 0),
    ]  # fmt: skip
    only = json.loads(status("--json", "audit"))
    assert only["workers"] == [audit]
    assert [one["name"] for one in only["consumers"]] == ["audit"]


def test_json_without_workers_has_an_empty_list() -> None:
    assert json.loads(status("--json"))["workers"] == []


def test_heartbeats_that_are_switched_off_are_no_workers_that_are_gone(settings: Any) -> None:
    worker("one")
    settings.KAFKA = {**settings.KAFKA, "heartbeats": {"enabled": False}}

    said = status()

    assert 'Workers are not known: KAFKA["heartbeats"] is switched off.' in said
    assert "gone" not in said
    assert [one["workers"] for one in rows(said, "trend")] == ["-", "-"]
    whole = json.loads(status("--json"))
    assert (whole["heartbeats"], whole["workers"]) == (False, None)


def test_a_database_that_is_away_is_a_sentence_and_the_rest_goes_on() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE lynx_kafka_worker RENAME TO away")
    # PostgreSQL refuses whatever comes after an error in the same transaction: what the test needs is one of its own.
    try:
        with transaction.atomic():
            said = status()
            whole = json.loads(status("--json"))
            no_such = refused("opz")
            transaction.set_rollback(True)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO lynx_kafka_worker")

    assert re.search(r"^Database 'default' cannot be read \(\w+Error\)\.$", said, re.MULTILINE)
    assert [one["consumer"] for one in rows(said, "trend")] == ["ops", "audit"]
    assert "No worker was heard of" not in said
    assert whole["workers"] is None
    assert whole["problem"].startswith("Database 'default' cannot be read")
    assert no_such.startswith("KAFKA[\"consumers\"] has no 'opz'")


@pytest.mark.parametrize("time", ["0", "100ms", "1d", "soon", "-1s", "nan"])
def test_an_interval_that_makes_no_sense_is_refused(time: str) -> None:
    with pytest.raises(CommandError, match="--interval"):
        status(f"--interval={time}")


def test_closing_asks_each_living_worker_of_the_consumer_whose_circuit_is_not_closed() -> None:
    tripped("one")
    tripped("two", circuit="probing", circuit_episode=7)
    tripped("three", consumer="audit")
    tripped("dead", seen=3600.0)
    worker("four")

    said = status("--close-breaker", "ops")

    assert said == "Asked 2 of its workers; each closes its circuit within 5 s.\n"
    asked = dict(Worker.objects.values_list("id", "circuit_close_asked"))
    assert asked == {"one": 2, "two": 7, "three": None, "dead": None, "four": None}


def test_closing_what_is_closed_or_unknown_is_refused() -> None:
    worker("one")

    assert refused("--close-breaker", "ops") == "No worker of consumer 'ops' that lives has an open circuit."
    assert refused("--close-breaker", "opz") == "KAFKA[\"consumers\"] has no 'opz'; it has: ops, audit."
    assert refused("opz") == "KAFKA[\"consumers\"] has no 'opz'; it has: ops, audit."


def test_what_strangers_chose_is_not_obeyed_by_a_terminal() -> None:
    worker("one", group_id="g\x1b[31m", waiting=1, waits_for="\x1b[2J")

    assert "\x1b" not in status()


def test_settings_that_cannot_work_are_said_in_a_sentence(settings: Any) -> None:
    settings.KAFKA = {"consumers": {"ops": {"concurrency": 0}}}

    assert "concurrency" in refused()
