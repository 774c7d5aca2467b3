"""The command kafka_offsets: what it shows of groups, what it would move, and what it moves."""

from __future__ import annotations

import getpass
import io
import json
import logging
import os
import pty
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from confluent_kafka import Consumer, TopicPartition
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from django_kafka import claims, conf
from django_kafka.clients import reading
from django_kafka.clients.admin import Unreachable
from django_kafka.clients.embedded import Cluster
from django_kafka.clients.groups import Ends
from django_kafka.models import Tenure, Worker
from tests.consuming import NAME, Seen, Workplace
from tests.servers.processes import free_port, wait_until

HANDLER = "tests.app.handlers.record"
ALLOWED = "write 2026-11-23, 2026-11-23T15:00, or 2h for two hours ago."
INSTEAD = "say where to: --to-earliest."


def offsets(*arguments: str) -> str:
    out = io.StringIO()
    call_command("kafka_offsets", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def refused(*arguments: str) -> str:
    with pytest.raises(CommandError) as caught:
        offsets(*arguments)
    return str(caught.value)


def told(*arguments: str) -> dict[str, Any]:
    """Return what programs are told of the consumer."""
    whole = json.loads(offsets("--json", *arguments))
    (one,) = whole.get("consumers", [whole])
    return one  # type: ignore[no-any-return]


def rows(said: str) -> list[list[str]]:
    """Return the cells of the rows of a table whose topic has a dot in its name."""
    lines = [[cell.strip() for cell in line.split("  ") if cell] for line in said.splitlines()]
    return [cells for cells in lines if len(cells) > 3 and cells[0] != "topic"]


def moved(place: Workplace, *arguments: str) -> dict[int, int]:
    """Move the consumer's group, and return what it has committed then."""
    offsets(NAME, "--execute", "--no-input", *arguments)
    return place.committed()


@pytest.fixture
def place(workplace: Workplace) -> Workplace:
    """A consumer on two partitions: ten messages a minute apart until now, and in the other four of two hours ago."""
    workplace.consume(Seen(), partitions=2)
    now = round(time.time() * 1000)
    for number in range(10):
        workplace.send([number], timestamp=now - (9 - number) * 60_000)
    workplace.send(range(4), partition=1, timestamp=now - 2 * 3_600_000)
    return workplace


# What it shows


def test_a_group_that_never_committed_is_shown_as_such(place: Workplace) -> None:
    said = offsets()

    assert f"ops: group {place.group} on cluster default" in said
    assert 'It has committed nothing; it begins as "auto_offset_reset" says: earliest.' in said
    assert rows(said) == [
        [place.topic, "0", "nothing", "0 to 10", "10", "9 min ago", "-"],
        [place.topic, "1", "nothing", "0 to 4", "4", "2 h ago", "-"],
    ]


def test_a_group_that_has_committed_is_shown_with_what_is_left(place: Workplace) -> None:
    assert moved(place, "--to-offset=7", "--partition=0") == {0: 7, 1: 0}

    assert rows(offsets(NAME)) == [
        [place.topic, "0", "7", "0 to 10", "3", "2 min ago", "-"],
        [place.topic, "1", "nothing", "0 to 4", "4", "2 h ago", "-"],
    ]


def test_programs_are_told_everything(place: Workplace) -> None:
    moved(place, "--to-offset=7", "--partition=0")

    one = told()

    first, second = one.pop("partitions")
    assert one == {
        "consumer": NAME,
        "cluster": "default",
        "group": place.group,
        "state": "unknown",  # the embedded cluster does not tell
        "protocol": None,
        "members": [],
        "workers": [],
        "missing_topics": [],
    }
    assert (first["committed"], first["low"], first["high"], first["lag"]) == (7, 0, 10, 3)
    assert datetime.now(UTC) - datetime.fromisoformat(first["next_at"]) > timedelta(minutes=1.9)
    assert (second["committed"], second["lag"], second["retry"], second["gone"]) == (None, 4, False, False)


def test_only_the_topics_and_partitions_that_are_named_are_shown(place: Workplace) -> None:
    assert [cells[1] for cells in rows(offsets("--partition=1"))] == ["1"]
    assert [cells[1] for cells in rows(offsets(f"--topic={place.topic}"))] == ["0", "1"]


def test_where_nothing_is_left_to_read_there_is_no_next_message(place: Workplace) -> None:
    moved(place, "--to-latest")

    assert [cells[2:6] for cells in rows(offsets())] == [["10", "0 to 10", "0", "-"], ["4", "0 to 4", "0", "-"]]


def test_an_offset_that_the_log_does_not_have_is_said(place: Workplace) -> None:
    commit(place, {0: 50})

    said = offsets()

    assert (
        f'{place.topic}[0]: offset 50 is not in its log any more; a worker begins as "auto_offset_reset" says' in said
    )
    assert rows(said)[0][2:5] == ["50", "0 to 10", "10"]


@pytest.mark.parametrize(
    ("settings_", "lag"),
    [
        ({"auto_offset_reset": "latest"}, 0),
        ({"auto_offset_reset": "error"}, None),
        ({"options": {"auto.offset.reset": "largest"}}, 0),
        ({"options": {"auto.offset.reset": "smallest"}}, 10),
    ],
)
def test_without_an_offset_it_is_as_far_behind_as_it_would_begin(
    place: Workplace, settings_: dict[str, Any], lag: int | None
) -> None:
    with_consumer(place, **settings_)

    assert told()["partitions"][0]["lag"] == lag


def test_topics_that_do_not_exist_are_said(place: Workplace) -> None:
    with_consumer(place, topics={place.topic: {}, "nowhere": {"handler": HANDLER}})

    assert offsets().endswith("The cluster has no topic nowhere.\n")
    assert refused(NAME, "--to-earliest") == "Cluster 'default' has no topic nowhere."


def test_who_has_a_partition_is_shown_as_its_heartbeat_says(place: Workplace) -> None:
    worker(place, "here", partition=1)
    worker(place, "gone", seen=3600.0, partition=0)

    assert [cells[-1] for cells in rows(offsets())] == ["-", "here:4711"]
    assert told()["workers"] == [{"host": "here", "pid": 4711}]


def test_without_the_rows_of_workers_it_shows_the_rest_and_moves_nothing(place: Workplace) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE lynx_kafka_worker RENAME TO lynx_kafka_worker_away")
        try:
            said, why = offsets(), refused(NAME, "--to-latest", "--execute")
        finally:
            cursor.execute("ALTER TABLE lynx_kafka_worker_away RENAME TO lynx_kafka_worker")

    assert "The rows of workers cannot be read (" in said
    assert len(rows(said)) == 2
    assert "must be known before it is moved" in why
    assert place.committed() == {0: 0, 1: 0}


# What it would move


def test_without_execute_nothing_is_changed_and_it_says_how(place: Workplace) -> None:
    moved(place, "--to-offset=2", "--partition=0")

    said = offsets(NAME, "--to-latest", "--partition=0", "--partition=1")

    assert rows(said) == [
        [place.topic, "0", "2 (of 7 min ago)", "10 (end)", "-", "8"],
        [place.topic, "1", "nothing (of 2 h ago)", "4 (end)", "-", "4"],
    ]
    assert said.splitlines()[-2:] == [
        "Would reset 2 partitions: 0 messages read again, 12 messages skipped. Nothing was changed. To do it:",
        f"  python manage.py kafka_offsets {NAME} --partition=0 --partition=1 --to-latest --execute",
    ]
    assert place.committed() == {0: 2, 1: 0}


def test_programs_are_told_what_would_move_and_what_has_moved(place: Workplace) -> None:
    move = {"topic": place.topic, "partition": 0, "from": None, "to": 9, "read_again": 0, "skipped": 9, "note": ""}

    (planned,) = told(NAME, "--to-offset=9", "--partition=0")["moves"]
    done = told(NAME, "--to-offset=9", "--partition=0", "--execute", "--no-input")

    assert datetime.fromisoformat(planned.pop("at")) <= datetime.now(UTC)
    assert planned == {**move, "now": None}
    assert done["executed"] is True
    assert (done["moves"][0]["from"], done["moves"][0]["now"]) == (None, 9)


def test_who_is_to_be_stopped_is_said_before_it_is_tried(place: Workplace) -> None:
    worker(place, "here", partition=1)

    assert "To be stopped before: worker here:4711." in offsets(NAME, "--to-latest")
    assert told(NAME, "--to-latest")["to_be_stopped"] == ["worker here:4711"]


# What it moves


def test_it_goes_to_the_end_and_back_to_the_beginning(place: Workplace) -> None:
    assert moved(place, "--to-latest") == {0: 10, 1: 4}
    assert moved(place, "--to-earliest", "--partition=1") == {0: 10, 1: 0}
    assert offsets(NAME, "--to-earliest", "--partition=1", "--execute").endswith(
        "The group is there already: nothing to change.\n"
    )


def test_it_shifts_and_stops_at_the_ends(place: Workplace) -> None:
    moved(place, "--to-offset=3")

    assert moved(place, "--shift=-2") == {0: 1, 1: 1}
    assert f"{place.topic}[0] begins at 0: it goes there, not to -9." in offsets(NAME, "--shift", "-10")
    assert f"{place.topic}[1] ends at 4: it goes there, not to 7." in offsets(NAME, "--shift=6")
    assert moved(place, "--shift=6") == {0: 7, 1: 4}


def test_it_goes_to_the_first_message_since_a_time(place: Workplace) -> None:
    assert moved(place, "--to-time=150s") == {0: 7, 1: 4}
    at = datetime.now(UTC) - timedelta(seconds=330)
    assert moved(place, f"--to-time={at.isoformat()}", "--partition=0") == {0: 4, 1: 4}
    assert moved(place, "--to-time=7d") == {0: 0, 1: 0}


def test_a_time_without_an_offset_is_in_the_time_zone_of_the_project(place: Workplace, settings: Settings) -> None:
    settings.TIME_ZONE = "Asia/Kathmandu"
    there = timezone.localtime(datetime.now(UTC) - timedelta(seconds=90), ZoneInfo("Asia/Kathmandu"))

    with timezone.override(None):
        assert moved(place, f"--to-time={there:%Y-%m-%dT%H:%M:%S}", "--partition=0") == {0: 8, 1: 0}


def test_where_nothing_was_sent_since_it_goes_to_the_end_and_says_so(place: Workplace) -> None:
    place.cluster.create_topic("quiet", 1)
    with_consumer(place, topics={"quiet": {"handler": HANDLER}})

    said = offsets(NAME, "--to-time=1s", "--execute", "--no-input")

    assert "quiet[0] has no message since then: it goes to its end." in said
    assert place.committed("quiet") == {0: 0}
    assert told()["partitions"][0]["committed"] == 0


def test_a_time_that_could_not_be_looked_up_to_the_end_is_no_reason_to_skip(place: Workplace) -> None:
    logs = {(place.topic, 0): Ends(low=0, high=10)}

    assert reading.since(conf.consumer(NAME), place.group, logs, 0, 5.0) == {(place.topic, 0): 0}
    with pytest.raises(Unreachable, match=r"The messages of .*\[0\] could not be read within 0 s"):
        reading.since(conf.consumer(NAME), place.group, logs, 0, 0.0)


def test_retry_topics_are_shown_and_stay_unless_they_are_named(place: Workplace) -> None:
    with_consumer(place, retry={"mode": "topics", "max_retries": 1})
    retry = f"{place.group}.{place.topic}.retry.1"
    place.cluster.create_topic(retry, 1)

    assert rows(offsets())[-1][:2] == [retry, "0"]
    assert "Its retry topics stay as they are; name them with --topic" in offsets(NAME, "--to-latest")
    moved(place, "--to-latest")
    assert told(f"--topic={retry}")["partitions"][0]["committed"] is None
    moved(place, "--to-latest", f"--topic={retry}")
    assert told(f"--topic={retry}")["partitions"][0]["committed"] == 0


def test_a_claim_goes_before_what_is_committed_and_moves_with_it(place: Workplace) -> None:
    with_consumer(place, guarantee="effect_once")
    consumer = conf.consumer(NAME)
    commit(place, {0: 4})
    before = claims.reset(consumer, place.group, (place.topic, 0), 6)

    assert rows(offsets())[0][2:5] == ["4 (claim 6)", "0 to 10", "4"]
    assert moved(place, "--shift=-4", "--partition=0") == {0: 2, 1: 0}
    (after,) = claims.of_group("default", "default", place.group)
    assert (after.offset, after.epoch) == (2, before.epoch + 1)


def test_a_claim_beyond_the_log_is_said_and_moved(place: Workplace) -> None:
    with_consumer(place, guarantee="effect_once")
    claims.reset(conf.consumer(NAME), place.group, (place.topic, 0), 60)

    assert f"{place.topic}[0]: its claim is at 60, which is not in its log" in offsets()
    assert told()["partitions"][0]["lag"] is None
    assert moved(place, "--to-earliest")[0] == 0
    assert claims.of_group("default", "default", place.group)[0].offset == 0


def test_who_moved_what_is_logged(place: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "django_kafka.offsets")

    offsets(NAME, "--to-offset=1")
    moved(place, "--to-offset=1")

    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"consumer={NAME} group={place.group} user={getpass.getuser()} offsets reset: "
        f"{place.topic}[0] nothing -> 1, {place.topic}[1] nothing -> 1"
    )


@pytest.mark.parametrize(("answer", "at"), [("yes", 10), ("no", 0), ("", 0)])
def test_on_a_terminal_it_asks(place: Workplace, monkeypatch: pytest.MonkeyPatch, answer: str, at: int) -> None:
    master, slave = pty.openpty()
    with os.fdopen(master, "w") as keyboard, os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        keyboard.write(f"{answer}\n")
        keyboard.flush()
        if answer == "yes":
            said = offsets(NAME, "--to-latest", "--partition=0", "--execute")
            assert "This resets 1 partition: 0 messages read again, 10 messages skipped. Type 'yes' to go on: " in said
        else:
            assert refused(NAME, "--to-latest", "--partition=0", "--execute") == "Nothing was changed."
    assert place.committed()[0] == at


def test_what_a_worker_has_handled_is_handled_again_from_there(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen)
    workplace.send(range(6))
    with workplace.worker(until_empty=True):
        seen.wait(6)

    moved(workplace, "--to-offset=4")

    with workplace.worker(until_empty=True):
        seen.wait(8)
    assert seen.of(0) == [0, 1, 2, 3, 4, 5, 4, 5]


# What it refuses


def test_it_does_not_move_a_group_with_a_worker_that_is_alive(place: Workplace) -> None:
    worker(place, "here", partition=1)
    worker(place, "gone", seen=3600.0, partition=0)

    assert refused(NAME, "--to-latest", "--execute") == (
        f"Group '{place.group}' is in use; stop these first, and try again when they are gone: worker here:4711."
    )
    assert place.committed() == {0: 0, 1: 0}


@pytest.mark.slow
def test_on_the_embedded_cluster_it_notices_members_that_no_heartbeat_tells_of(place: Workplace) -> None:
    worker = place.start()
    wait_until(lambda: place.committed() == {0: 10, 1: 4}, message="nothing was handled")

    assert refused(NAME, "--to-earliest", "--execute") == (
        f"Group '{place.group}' has members: not every partition came to a new one."
    )

    place.stop(worker)
    assert place.committed() == {0: 10, 1: 4}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("opz", "KAFKA[\"consumers\"] has no 'opz'; it has: ops, audit."),
        ("audi --to-latest", "KAFKA[\"consumers\"] has no 'audi'; it has: audit, ops."),
        ("--to-earliest", "Name the one consumer whose group is to be moved."),
        ("ops audit --to-earliest", "Name the one consumer whose group is to be moved."),
        ("ops --execute", "Say where to: --to-earliest, --to-latest, --to-offset, --to-time, --shift."),
        ("ops --to-earliest --to-offset=0", "Say one of --to-earliest, --to-offset: a group goes to one place."),
        ("ops --to-offset=-1", "Error: argument --to-offset: '-1' is not a whole number from 0"),
        ("ops --shift=0", "Error: argument --shift: '0' is not a whole number other than 0, such as -100"),
        ("ops --shift=x", "Error: argument --shift: 'x' is not a whole number other than 0, such as -100"),
        ("ops --partition=x --to-latest", "Error: argument --partition: 'x' is not a whole number from 0"),
        ("ops --to-time=2999-01-01", "--to-time '2999-01-01' is in the future; to skip what is there: --to-latest."),
        ("ops --to-time=soon", f"--to-time 'soon' is no time; {ALLOWED}"),
        ("ops --topic=trains", "'trains' is no topic of 'ops'; what is read: {topic}."),
        ("ops --partition=2", "{topic} has the partitions 0 to 1, not 2."),
        ("ops --partition=7 --partition=9 --to-latest", "{topic} has the partitions 0 to 1, not 7, 9."),
        ("ops --to-offset=5", "{topic}[1] has offsets from 0 to 4 (its end), not 5."),
        ("ops --shift=2 --partition=0", f"{{topic}}[0] has no committed offset to shift from; {INSTEAD}"),
        ("audit", "Consumer 'audit' has no group: set its \"group_id\", or KAFKA[\"group_id\"]."),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_a_sentence(place: Workplace, arguments: str, sentence: str) -> None:
    kafka = place.settings.KAFKA
    audit = {"topics": {place.topic: {"handler": HANDLER}}}
    place.settings.KAFKA = {**kafka, "consumers": {**kafka["consumers"], "audit": audit}}

    assert refused(*arguments.split()) == sentence.format(topic=place.topic)
    assert place.committed() == {0: 0, 1: 0}


def test_it_reaches_the_brokers_as_the_consumer_does(place: Workplace) -> None:
    with_consumer(place, options={"security.protocol": "ssl", "ssl.ca.location": "/nowhere"})

    assert refused().startswith("A client for cluster 'default' cannot be made: ")


@pytest.mark.parametrize("arguments", ["", "ops --to-earliest"])
def test_without_brokers_it_says_so(settings: Settings, arguments: str) -> None:
    settings.KAFKA = {
        "brokers": [f"127.0.0.1:{free_port()}"],
        "connection": {"timeout": "1s"},
        "consumers": {"ops": {"group_id": "g", "topics": {"flights": {"handler": HANDLER}}}},
    }
    began = time.monotonic()

    assert "Cluster 'default' does not say which topics it has" in refused(*arguments.split())
    assert time.monotonic() - began < 5


def test_a_consumer_without_topics_has_nothing_to_move(settings: Settings, embedded: Cluster, db: None) -> None:
    settings.KAFKA = {"brokers": embedded.bootstrap_servers.split(","), "consumers": {"ops": {"group_id": "g"}}}

    assert offsets() == "ops: group g on cluster default, whose state this cluster does not tell.\n"
    assert refused("ops", "--to-latest") == "Consumer 'ops' reads no topic."


def test_a_project_without_consumers_is_told(settings: Settings) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"]}
    assert refused() == 'KAFKA["consumers"] has no enabled consumer with a group.'


def test_settings_that_cannot_work_are_said_in_a_sentence(settings: Settings) -> None:
    settings.KAFKA = {"consumers": {"ops": {"concurrency": 0}}}
    assert "concurrency" in refused()


# What the tests above share


def with_consumer(place: Workplace, **changed: Any) -> None:
    """Change the settings of the consumer."""
    kafka = place.settings.KAFKA
    place.settings.KAFKA = {**kafka, "consumers": {NAME: {**kafka["consumers"][NAME], **changed}}}


def commit(place: Workplace, offsets: dict[int, int]) -> None:
    """Commit for the group with a bare client."""
    client = Consumer({"bootstrap.servers": place.cluster.bootstrap_servers, "group.id": place.group, "log_level": 0})
    wanted = [TopicPartition(place.topic, partition, offset) for partition, offset in offsets.items()]
    client.commit(offsets=wanted, asynchronous=False)
    client.close()


def worker(place: Workplace, host: str, *, partition: int, seen: float = 0.0) -> None:
    """Store the rows of a worker that was last heard of so many seconds ago, and of its partition."""
    now = timezone.now()
    Worker.objects.create(
        id=host, consumer=NAME, group_id=place.group, host=host, pid=4711, version="0.1.0", started_at=now,
        seen_at=now - timedelta(seconds=seen),
    )  # fmt: skip
    Tenure.objects.create(cluster="default", group_id=place.group, topic=place.topic, partition=partition, worker=host)
