"""Who carries replay jobs out, as processes of their own: workers, Celery, Django's tasks, the command; and kills."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from pytest_django import Settings

from django_kafka import carriers
from django_kafka.clients.embedded import Cluster
from django_kafka.dead_letters import jobs, replaying
from django_kafka.messages import LETTER_HEADER
from django_kafka.models import ReplayJob
from tests.desk import Desk
from tests.letters import dead_letter
from tests.servers import Kafka, PostgreSQL, Redis

MAKE = "from django_kafka.dead_letters import jobs, replaying as r; from django_kafka import carriers; "
EXPIRE = "UPDATE lynx_kafka_joblane SET claimed_at = '2026-01-01 00:00:00' WHERE claim <> ''"
STATES = "SELECT state, succeeded, failed FROM lynx_kafka_replayjob"


def make(desk: Desk, arguments: str = "r.letters()", *, before: str = "") -> list[str]:
    """Make a job, and return what was said, who carries it out last."""
    text = f"{before}{MAKE}jobs.create({arguments}); print(carriers.dispatch('ops'))"
    return desk.run("shell", "-v0", "-c", text).split()


def test_a_running_worker_carries_a_job_out(embedded: Cluster, topic: Callable[..., str], tmp_path: Path) -> None:
    name = topic("flights")
    embedded.create_topic(name, partitions=1)
    desk = Desk.on_sqlite(tmp_path, brokers=embedded.bootstrap_servers, topic=name, kafka={"heartbeats": {}})
    try:
        desk.write(*[{"n": number} for number in range(30)], {"bad": True})
        desk.rows("UPDATE lynx_kafka_deadletter SET key = NULL, key_hash = ''")
        worker = desk.start("kafka_consume")
        desk.wait_until(lambda: desk.rows("SELECT * FROM lynx_kafka_worker"), worker)

        assert make(desk)[-1] == "worker"

        desk.wait_until(lambda: desk.rows(STATES) == [("finished", 30, 1)], worker)
        worker.send_signal(signal.SIGTERM)
        assert worker.finish() == 0
        assert len(desk.runs()) == 31
    finally:
        desk.close()


def test_a_celery_worker_carries_a_job_out(tmp_path: Path, redis_server: Redis) -> None:
    desk = Desk.on_sqlite(tmp_path)
    (tmp_path / "desk_celery.py").write_text(
        "from celery import Celery\n"
        f"app = Celery('desk', broker='redis://{redis_server.address}/2')\n"
        "app.autodiscover_tasks()\n"
    )
    try:
        desk.write(*[{"n": number} for number in range(20)])
        worker = desk.start("-A", "desk_celery", "worker", "-P", "solo", "--without-gossip", module="celery")

        assert make(desk, before="import desk_celery; ")[-1] == "celery"

        desk.wait_until(lambda: desk.rows(STATES) == [("finished", 20, 0)], worker)
        assert len(desk.runs()) == 20
    finally:
        desk.close()


def a_task_of_django_carries_a_job_out(tmp_path: Path) -> None:
    desk = Desk.on_sqlite(tmp_path)
    with (tmp_path / "desk_settings.py").open("a") as settings:
        settings.write('INSTALLED_APPS = [*INSTALLED_APPS, "django_tasks_db"]\n')
        settings.write('TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}\n')
    try:
        desk.run("migrate", "-v0")
        desk.write(*[{"n": number} for number in range(20)])
        assert make(desk)[-1] == "tasks"

        desk.run("db_worker", "--batch", "-v0")

        assert desk.rows(STATES) == [("finished", 20, 0)]
        assert len(desk.runs()) == 20
    finally:
        desk.close()


def tasks_that_django_does_not_have_are_said_and_the_command_does_it(
    settings: Settings, caplog: pytest.LogCaptureFixture, db: None
) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "ops"}}}
    settings.TASKS = {"default": {"BACKEND": "django_tasks.backends.database.DatabaseBackend"}}

    assert carriers.dispatch("ops") == "command"

    assert "TASKS cannot be used" in caplog.text
    assert "django.tasks" in caplog.text


# Which of them there is depends on Django, which has tasks since 6.0: none is skipped.
if find_spec("django.tasks"):
    test_a_task_of_django_carries_a_job_out = a_task_of_django_carries_a_job_out
else:
    test_tasks_that_django_does_not_have_are_said = tasks_that_django_does_not_have_are_said_and_the_command_does_it


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("backend", "carrier"),
    [
        ("django.tasks.backends.immediate.ImmediateBackend", "command"),
        ("django.tasks.backends.dummy.DummyBackend", "command"),
        (None, "command"),
    ],
)
def test_a_backend_that_would_run_it_in_the_request_is_not_taken(
    settings: Settings, backend: str | None, carrier: str
) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "ops"}}}
    if backend is not None:
        settings.TASKS = {"default": {"BACKEND": backend}}

    assert carriers.dispatch("ops") == carrier


@pytest.mark.django_db
def test_a_turn_ends_in_time_and_tells_that_something_is_left(settings: Settings) -> None:
    topics = {"flights": {"handler": "tests.app.handlers.ignore"}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops", "topics": topics}}}
    for number in range(30):
        dead_letter({}, offset=number)
    (job,) = jobs.create(replaying.letters())

    assert not carriers.carry_out_for("ops", 0)
    assert carriers.carry_out_for("ops", 60)
    assert jobs.progress(job).succeeded == 30
    # A paused job is nothing that anybody has to come back for.
    ReplayJob.objects.update(state="paused")
    assert carriers.carry_out_for("ops", 60)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A project on SQLite, without Kafka."""
    made = Desk.on_sqlite(tmp_path)
    yield made
    made.close()


def test_the_command_carries_out_jobs_and_says_how_they_ended(desk: Desk) -> None:
    desk.write({"n": 1}, {"bad": True}, {"n": 3})
    desk.rows('UPDATE lynx_kafka_deadletter SET "offset" = id')
    assert make(desk)[-1] == "command"

    ended = desk.run("kafka_replay", "--jobs", code=1)

    assert "Job 1 is finished. Succeeded: 1, failed: 1, left behind an earlier failure: 1, skipped: 0" in ended
    assert "No replay job goes on." in desk.run("kafka_replay", "--jobs")
    assert "There is no replay job 7." in desk.run("kafka_replay", "--jobs", "7", code=1)
    assert "leave all but --timeout out" in desk.run("kafka_replay", "--jobs", "--all", code=1)


def test_an_interrupted_command_leaves_the_job_to_others(desk: Desk) -> None:
    desk.write(*[{"n": number, "gate": "open"} if number == 3 else {"n": number} for number in range(8)])
    desk.rows('UPDATE lynx_kafka_deadletter SET "offset" = id')
    make(desk)
    first = desk.start("kafka_replay", "--jobs", "1")
    desk.wait_until(lambda: len(desk.runs()) == 4, first)
    first.send_signal(signal.SIGINT)
    (desk.home / "open").touch()

    assert first.finish() == 130
    assert "left: 4" in first.output()
    assert desk.rows("SELECT count(*) FROM lynx_kafka_joblane WHERE claim <> ''") == [(0,)]
    assert "Succeeded: 8" in desk.run("kafka_replay", "--jobs")
    assert len(desk.runs()) == 8


def test_a_job_that_is_paused_is_no_success(desk: Desk) -> None:
    desk.write({"bad": True}, {"n": 1})
    desk.rows("UPDATE lynx_kafka_deadletter SET key = NULL, key_hash = '', \"offset\" = id")
    make(desk, "r.letters(), ramp=[1], failure_ratio=0.5")

    ended = desk.run("kafka_replay", "--jobs", code=1)

    assert "Job 1 is paused." in ended
    assert "In step 1 1 of 1 letters failed, more than the bound of 0.5." in ended
    assert "is paused: resume it" in desk.run("kafka_replay", "--jobs", "1", code=1)


def test_the_command_goes_on_with_other_jobs_when_settings_do_not_have_the_consumer_of_one(desk: Desk) -> None:
    desk.write(*[{"n": number} for number in range(4)])
    desk.rows("UPDATE lynx_kafka_deadletter SET consumer = 'gone' WHERE id <= 2")
    make(desk)

    ended = desk.run("kafka_replay", "--jobs", code=1)

    assert "Job 1 is paused. Succeeded: 0" in ended
    assert "'gone'" in ended
    assert "Job 2 is finished. Succeeded: 2" in ended
    assert "Traceback" not in ended


def test_what_a_killed_executor_had_sent_is_sent_again_and_nothing_is_lost(
    kafka: Kafka, postgresql: PostgreSQL, topic: Callable[..., str], tmp_path: Path
) -> None:
    name, count = topic("flights"), 6000
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.create_topics([NewTopic(name, num_partitions=2)])[name].result(20)
    desk = Desk.on_postgresql(tmp_path, postgresql)
    settings = tmp_path / "desk_settings.py"
    settings.write_text(settings.read_text().replace("127.0.0.1:1", kafka.bootstrap_servers))
    _write_letters(desk, name, count)
    try:
        make(desk, "r.letters(), target='topic'")
        killed = desk.start("kafka_replay", "--jobs")
        desk.wait_until(lambda: desk.rows("SELECT succeeded FROM lynx_kafka_replayjob") > [(0,)], killed)
        killed.end(signal.SIGKILL)
        assert desk.rows("SELECT state FROM lynx_kafka_replayjob") == [("running",)]
        desk.rows(EXPIRE)
        assert f"Succeeded: {count}" in desk.run("kafka_replay", "--jobs")

        sent = _ledger(kafka, name)
        told = dict(desk.rows("SELECT letter_id, result FROM lynx_kafka_replay WHERE state = 'succeeded'"))
        assert len(told) == count
        # What the report says of each letter is where the broker has it; what was sent twice is of one piece at most.
        assert all(sent[place] == letter for letter, place in told.items())
        assert set(sent.values()) == set(told)
        assert len(sent) - count <= 500
        assert desk.rows("SELECT state, count(*) FROM lynx_kafka_deadletter GROUP BY 1") == [("resolved", count)]
    finally:
        desk.close()


def _write_letters(desk: Desk, topic: str, count: int) -> None:
    with psycopg.connect(
        dbname=desk.database["NAME"], user="postgres", host="127.0.0.1", port=desk.database["PORT"]
    ) as database:
        desk.write({"n": 0})
        row = "SELECT * FROM lynx_kafka_deadletter"
        columns = [each.name for each in database.execute(f"{row} LIMIT 0".encode()).description or ()]
        given: dict[str, str] = {
            "id": "number", '"offset"': "number", "fingerprint": "md5(number::text)", "topic": f"'{topic}'",
            "key": "('key ' || number % 500)::bytea", "key_hash": "left(md5((number % 500)::text), 16)",
        }  # fmt: skip
        names = [f'"{each}"' if each == "offset" else each for each in columns]
        values = ", ".join(given.get(each, each) for each in names)
        insert = (
            f"INSERT INTO lynx_kafka_deadletter ({', '.join(names)}) "
            f"SELECT {values} FROM lynx_kafka_deadletter, generate_series(100, {count + 98}) AS number"
        )
        database.execute(insert.encode())
        database.execute(f"UPDATE lynx_kafka_deadletter SET topic = '{topic}'".encode())


def _ledger(kafka: Kafka, topic: str) -> dict[str, int]:
    """Return the letter of each record, by its place, as a bare client reads them."""
    client = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": uuid.uuid4().hex})
    found: dict[str, int] = {}
    try:
        ends: dict[int, int] = {}
        for partition in range(2):
            _low, ends[partition] = client.get_watermark_offsets(TopicPartition(topic, partition), timeout=20)
        client.assign([TopicPartition(topic, partition, 0) for partition in range(2)])
        while len(found) < sum(ends.values()):
            for message in client.consume(500, 5):
                assert message.error() is None
                headers: dict[str, Any] = dict(message.headers() or ())
                place = f"{topic}[{message.partition()}]@{message.offset()}"
                found[place] = int(headers[LETTER_HEADER])
    finally:
        client.close()
    return found
