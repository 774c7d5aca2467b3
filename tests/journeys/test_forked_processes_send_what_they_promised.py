"""Promise 10: a producer that was used before a fork works after it, and every child flushes at its end."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.request
from collections.abc import Callable

from celery import Celery

from tests.journeys.project import Project
from tests.journeys.steps import note, read, wait_said
from tests.servers import Redis
from tests.servers.processes import free_port, wait_until

COUNT = 60
LINGERING = {"default": {"batch_timeout": "3s"}}
"""Records wait in the client for so long that those of a process that ends are still there."""


def assert_sent_and_handled(project: Project, name: str) -> None:
    """Every number is in the topic once, and is handled once."""
    messages = read(project, name)
    assert sorted(json.loads(message.value() or b"{}")["n"] for message in messages) == list(range(COUNT + 1))
    note(project, messages)
    project.run("kafka_consume", "--until-empty")
    project.assert_ledger(name, settled=True, once=True)


def test_gunicorn_with_a_preloaded_application(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=3)
    project.consumer("journey", name)
    project.kafka["producers"] = LINGERING
    address = f"127.0.0.1:{free_port()}"
    server = project.start(
        [sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "-b", address, "--no-control-socket",
         "tests.app.web:application"],
        env={"JOURNEY_TOPIC": name, "JOURNEY_URLS": "tests.app.web"},
    )  # fmt: skip
    wait_said(server, "Booting worker", times=2)

    def send(number: int) -> str:
        with urllib.request.urlopen(f"http://{address}/send/{number}/", timeout=20) as answer:
            return str(answer.read().decode())

    pids = {send(number) for number in range(1, COUNT + 1)}
    server.send_signal(signal.SIGTERM)

    assert server.finish() == 0, server.output()
    assert str(server.pid) not in pids
    assert "undelivered" not in server.output()
    assert_sent_and_handled(project, name)


def test_celery_prefork(project: Project, topic: Callable[..., str], redis_server: Redis) -> None:
    name = project.create_topic(topic(), partitions=3)
    project.consumer("journey", name)
    project.kafka["producers"] = LINGERING
    project.extra_env["JOURNEY_CELERY_BROKER"] = redis_server.dsn
    worker = project.start(
        [sys.executable, "-m", "celery", "-A", "tests.app.jobs", "worker", "-P", "prefork", "-c", "2", "-l", "INFO",
         "--without-gossip", "--without-mingle", "-Q", name],
        env={"JOURNEY_TOPIC": name},
    )  # fmt: skip
    wait_said(worker, "ready.")
    # Not as the current one: what runs later in this process must not take its broker for the project's.
    with Celery(broker=redis_server.dsn, set_as_current=False) as sender:
        for number in range(1, COUNT + 1):
            sender.send_task("tests.send", args=[number], queue=name)
    wait_until(lambda: len(re.findall(r"Sent \d+ in \d+", worker.output())) == COUNT, message="not all tasks ran")
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0, worker.output()
    pids = set(re.findall(r"Sent \d+ in (\d+)", worker.output()))
    assert len(pids) == 2
    assert str(worker.pid) not in pids
    assert "undelivered" not in worker.output()
    assert_sent_and_handled(project, name)
