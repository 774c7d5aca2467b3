"""What tests of the sending half share: settings, a bare reader, and programs that send."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition
from pytest_django import Settings

from django_kafka.clients.embedded import Cluster
from tests.servers.processes import Program

ROOT = Path(__file__).resolve().parent.parent
NOBODY = "127.0.0.1:1"
"""Nothing listens there."""

_BEGIN = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import tests.settings
tests.settings.KAFKA = json.loads(os.environ["SENDING_KAFKA"])
tests.settings.LOGGING = {
    "version": 1,
    "handlers": {"stream": {"class": "logging.StreamHandler"}},
    "loggers": {"django_kafka": {"handlers": ["stream"], "level": "WARNING"}},
}
import django
django.setup()
from django_kafka import services
topic = sys.argv[1]
"""


def use(settings: Settings, brokers: str, producers: dict[str, Any] | None = None, **more: Any) -> None:
    """Set KAFKA for a test: producers that soon give up brokers that are not there, and wait for those that are."""
    own = {"default": {}, **(producers or {})}
    patience = {"timeout": "1s" if brokers == NOBODY else "10s"}
    settings.KAFKA = {"brokers": brokers.split(","), "connection": patience, "producers": own, **more}


def read(cluster: Cluster | str, topic: str, count: int, seconds: float = 20) -> list[Message]:
    """Return the first `count` messages of a topic, by partition and offset, read by a bare client."""
    brokers = cluster if isinstance(cluster, str) else cluster.bootstrap_servers
    client = Consumer({"bootstrap.servers": brokers, "group.id": "reader", "enable.auto.commit": False, "log_level": 0})
    deadline = time.monotonic() + seconds
    found: list[Message] = []
    try:
        partitions: list[int] = []
        while not partitions:
            partitions = list(client.list_topics(topic, timeout=10).topics[topic].partitions)
            assert time.monotonic() < deadline, f"{topic} has no partitions."
        client.assign([TopicPartition(topic, number, 0) for number in partitions])
        while len(found) < count:
            found += [one for one in client.consume(count, 0.1) if one.error() is None]
            assert time.monotonic() < deadline, f"{len(found)} of {count} messages of {topic} arrived."
    finally:
        client.close()
    return sorted(found, key=lambda one: (one.partition() or 0, one.offset() or 0))


def values(messages: list[Message]) -> list[Any]:
    """Return their values as JSON says them."""
    return [json.loads(one.value() or b"null") for one in messages]


def program(
    code: str, kafka: dict[str, Any], topic: str, seconds: float = 60, *, first: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, which begins with `first`, Django set up, `services` and `topic`."""
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "SENDING_KAFKA": json.dumps(kafka)}
    env["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as home:
        said, wrong = Path(home, "out"), Path(home, "err")
        command = [sys.executable, "-c", first + _BEGIN + code, topic]
        running = Program.start(command, log=said, errors=wrong, env=env, cwd=ROOT, anew=bool(first))
        try:
            ended = running.wait(seconds)
        finally:
            running.end()
        return subprocess.CompletedProcess(command, ended, said.read_text(), wrong.read_text())


def send_and_leave(topic: str, brokers: str, word: str) -> None:
    """Send without waiting, in a child of multiprocessing, which imports this module before Django is set up."""
    import django
    from django.conf import settings

    # Before the handlers of apps are looked for, which reads them.
    if settings.KAFKA["brokers"] != [brokers]:
        settings.KAFKA = {"brokers": [brokers]}
    django.setup()
    from django_kafka import services

    for number in range(50):
        services.produce(topic, None, f"{word} {number}")


@contextmanager
def took_less_than(seconds: float) -> Iterator[None]:
    """Fail when what is inside takes longer."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"It took {took:.1f} s; less than {seconds} s were allowed."
