from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from django.core.management import CommandError, call_command

from django_kafka.clients.embedded import Cluster
from django_kafka.messages import Message
from tests.consuming import Seen, Workplace
from tests.servers.processes import Program, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent

SETTINGS = """
import json, os
from tests.settings import *
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["CONSUME_DATABASE"]}}
KAFKA = json.loads(os.environ["CONSUME_KAFKA"])
INSTALLED_APPS = [*INSTALLED_APPS, "planes"]
LOGGING = {
    "version": 1, "handlers": {"stream": {"class": "logging.StreamHandler"}},
    "loggers": {"django_kafka": {"handlers": ["stream"], "level": "INFO"}},
}
"""
HANDLERS = """
import pathlib, time
from django_kafka.handlers import kafka_handler
from tests.app.handlers import record
STARTED = pathlib.Path({started!r})
GATE, HURRY = STARTED.with_name("gate"), STARTED.with_name("hurry")

@kafka_handler(topics={topic!r}, consumer="ops")
def fly(message):
    STARTED.write_text(str(message.offset))
    time.sleep(0 if HURRY.exists() else message.value.get("seconds", 0))
    while message.value.get("gate") and not GATE.exists():
        time.sleep(0.01)
    record(message)
    {more}
"""


class Project:
    """A Django project on disk, with a handler that is found by itself, run as real processes."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self.topic = f"flights.{uuid.uuid4().hex[:8]}"
        self.started = directory / "started"
        self.database = directory / "db.sqlite3"
        self.programs: list[Program] = []
        cluster.create_topic(self.topic, 1)
        (directory / "project_settings.py").write_text(SETTINGS)
        (directory / "planes").mkdir()
        (directory / "planes" / "__init__.py").write_text("")
        self.write_handlers()
        kafka = {
            "brokers": cluster.bootstrap_servers.split(","),
            # So that it does not take long to be known that a worker is dead.
            "heartbeats": {"interval": "1s"},
            "consumers": {"ops": {"group_id": self.topic, "session_timeout": "1500ms", "heartbeat_interval": "300ms"}},
        }
        self.env = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "project_settings",
            "PYTHONPATH": f"{directory}{os.pathsep}{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "CONSUME_DATABASE": str(self.database),
            "CONSUME_KAFKA": json.dumps(kafka),
        }
        migrate = self.start("migrate", "--verbosity=0")
        assert migrate.finish(60) == 0, migrate.output()

    def write_handlers(self, more: str = "", top: str = "") -> None:
        code = HANDLERS.format(topic=self.topic, started=str(self.started), more=more) + textwrap.dedent(top)
        (self.directory / "planes" / "kafka_handlers.py").write_text(code)

    def start(self, *arguments: str) -> Program:
        log = self.directory / f"{len(self.programs)}.log"
        command = [sys.executable, "-m", "django", *arguments]
        self.programs.append(Program.start(command, log=log, env=self.env, cwd=self.directory))
        return self.programs[-1]

    def send(self, *values: Any) -> None:
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap_servers})
        for value in values:
            producer.produce(self.topic, json.dumps(value).encode(), partition=0)
        assert producer.flush(10) == 0

    def effects(self) -> list[int]:
        database = sqlite3.connect(self.database, timeout=10)
        try:
            return [row[0] for row in database.execute('SELECT "offset" FROM tests_effect ORDER BY id')]
        finally:
            database.close()

    def runs(self, offset: int) -> bool:
        return self.started.exists() and self.started.read_text() == str(offset)


@pytest.fixture
def project(tmp_path: Path, embedded: Cluster) -> Iterator[Project]:
    made = Project(tmp_path, embedded)
    yield made
    for program in made.programs:
        program.end()
        print(program.output())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_finishes_what_runs_and_commits(project: Project, number: signal.Signals) -> None:
    project.send({}, {"gate": True}, *[{"seconds": 0.3}] * 10)
    worker = project.start("kafka_consume")
    wait_until(lambda: project.runs(1))
    worker.send_signal(number)
    wait_until(lambda: "Finishing what runs" in worker.output())
    project.started.with_name("gate").touch()
    assert worker.finish() == 0, worker.output()
    handled = project.effects()
    assert handled == list(range(len(handled)))
    assert 2 <= len(handled) < 6, "The running message is finished, and hardly another one is begun."
    assert "Finishing what runs; once more to stop at once." in worker.output()
    assert f"handled={len(handled)}" in worker.output()
    project.started.with_name("hurry").touch()
    again = project.start("kafka_consume", "ops", "--until-empty")
    assert again.finish() == 0, again.output()
    assert project.effects() == list(range(12)), "nothing was repeated and nothing was lost"


def test_the_second_signal_ends_it_at_once_and_the_message_is_read_again(project: Project) -> None:
    project.send({}, {"gate": True})
    worker = project.start("kafka_consume", "ops")
    wait_until(lambda: project.runs(1))
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "Finishing what runs" in worker.output())
    worker.send_signal(signal.SIGTERM)
    # Nobody has opened the gate: the message would have gone on for ever.
    assert worker.finish() == 128 + signal.SIGTERM
    assert "Stopped at once" in worker.output()
    assert project.effects() == [0]
    project.started.with_name("gate").touch()
    again = project.start("kafka_consume", "ops", "--until-empty")
    assert again.finish() == 0, again.output()
    # Its end was no leaving, so that even what was settled may come once more.
    assert project.effects() in ([0, 1], [0, 0, 1])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_signal_ends_it_at_once_when_all_is_done_and_only_the_end_takes_long(
    project: Project, processes: int
) -> None:
    # A database that is asked for its limits and does not answer is what the command waits for last of all.
    ended = project.started.with_name("ended")
    slow = f"""
    from django_kafka.consuming import connections
    def join(self, timeout):
        import pathlib
        pathlib.Path({str(ended)!r}).touch()
        time.sleep(60)
    connections.LimitCheck.join = join
    """
    project.write_handlers(top=slow)
    project.send({}, {})
    worker = project.start("kafka_consume", "ops", "--processes", str(processes))
    wait_until(lambda: project.effects() == [0, 1])
    worker.send_signal(signal.SIGTERM)
    wait_until(ended.exists)
    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 128 + signal.SIGTERM, worker.output()
    if processes == 1:
        project.write_handlers()
        again = project.start("kafka_consume", "ops", "--until-empty")
        assert again.finish() == 0, again.output()
    assert project.effects() == [0, 1], "what was done is committed"


def test_a_signal_works_when_nobody_reads_what_is_said(project: Project) -> None:
    import subprocess

    project.send({"seconds": 1})
    command = [sys.executable, "-m", "django", "kafka_consume"]
    worker = subprocess.Popen(command, env=project.env, cwd=project.directory, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: project.runs(0))
        assert worker.stderr is not None
        worker.stderr.close()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()
    assert project.effects() == [0]


def test_a_handler_that_asks_the_process_to_end_fails_the_command(project: Project) -> None:
    project.write_handlers("raise SystemExit(0)")
    project.send({})
    worker = project.start("kafka_consume")
    assert worker.finish() == 1
    assert "CommandError: Stopped by SystemExit" in worker.output()
    assert project.effects() == []


def test_reload_starts_again_when_code_changes_and_soon_gets_its_partitions_back(project: Project) -> None:
    worker = project.start("kafka_consume", "--reload")
    project.send({})
    wait_until(lambda: project.effects() == [0])
    time.sleep(1.1)  # the reloader looks at times of change once a second
    project.write_handlers("record(message)")
    wait_until(lambda: worker.output().count("Consuming with ops") == 2)
    project.send({})
    wait_until(lambda: len(project.effects()) >= 3)
    assert project.effects() == [0, 1, 1]
    assert "stopped" in worker.output(), "the worker before left its group"
    worker.end(signal.SIGINT)


def test_called_from_a_program_it_gives_signals_back(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen)
    workplace.send([1, 2])
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    out = io.StringIO()
    call_command("kafka_consume", "ops", max_messages=2, stdout=out)
    assert seen.values == [1, 2]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert out.getvalue() == "Consuming with ops. Stop with Ctrl-C.\n"
    assert workplace.committed() == {0: 2}


def test_called_from_a_program_ctrl_c_finishes_what_runs(workplace: Workplace) -> None:
    def interrupt(message: Message) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)

    seen = Seen(interrupt)
    workplace.consume(seen, max_poll_records=1)
    workplace.send([1])
    call_command("kafka_consume", "ops", stdout=io.StringIO())
    assert seen.values == [1]
    assert workplace.committed() == {0: 1}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["opps"], "'opps'; it has: ops"),
        (["ops", "ops"], "named twice"),
        (["ops", "--max-messages", "0"], "'0' is not a whole number from 1"),
        (["ops", "--max-messages", "many"], "'many' is not a whole number from 1"),
    ],
)
def test_wrong_arguments_get_a_sentence(workplace: Workplace, arguments: list[str], sentence: str) -> None:
    workplace.consume(Seen())
    with pytest.raises(CommandError, match=sentence):
        call_command("kafka_consume", *arguments)


def test_without_consumers_it_says_so(settings: Any) -> None:
    settings.KAFKA = {}
    with pytest.raises(CommandError, match="no enabled consumer"):
        call_command("kafka_consume")


def test_settings_that_cannot_work_are_named(settings: Any) -> None:
    settings.KAFKA = {"consumers": {"ops": {"concurrency": 0}}}
    with pytest.raises(CommandError, match="concurrency"):
        call_command("kafka_consume")


def test_a_worker_that_cannot_start_joins_no_group(workplace: Workplace) -> None:
    workplace.consume(Seen(), group_id="")
    with pytest.raises(CommandError, match="has no group"):
        call_command("kafka_consume")
    assert not [one for one in threading.enumerate() if one.name.startswith("kafka-ops")]
