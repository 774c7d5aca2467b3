"""Handlers that a journey directs: each record's value says when to wait, and what to do at the end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.db import connection

from django_kafka import services
from django_kafka.handlers import kafka_handler

from .handlers import record

if TYPE_CHECKING:
    from django_kafka.messages import Message

PATIENCE = 60.0
"""Seconds after which a scene that nobody lets go on fails, so that a broken journey ends."""


def gated(message: Message) -> None:
    """Leave one effect, then wait for a file, then fail: each as far as the value says so.

    `begun`: a file that is made when the effect is there, not yet committed. `gate`: a file to wait for; `raise`: the
    name of what is raised then, unless the file `mended` is there.
    """
    record(message)
    _play(message.value or {}, message)


def gated_before(message: Message) -> None:
    """Wait and maybe fail as `gated` does, but before the effect: no connection is held meanwhile."""
    _play(message.value or {}, message)
    record(message)


def _play(value: dict[str, Any], message: Message) -> None:
    if "seconds" in value:
        time.sleep(value["seconds"])
    if "begun" in value:
        Path(value["begun"]).touch()
    if "gate" in value:
        _wait_for(Path(value["gate"]))
    if "raise" in value and not Path(value.get("mended", "/nowhere")).exists():
        raise FAILURES[value["raise"]](f"asked for by {message.topic}[{message.partition}]@{message.offset}")


FAILURES: dict[str, type[BaseException]] = {
    one.__name__: one for one in (ValueError, ConnectionRefusedError, SystemExit, KeyboardInterrupt, MemoryError)
}


def _wait_for(gate: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Nobody made {gate}.")
        time.sleep(0.01)


def deadly(message: Message) -> None:
    """End the process there and then when the value has a "kill"; else take its "seconds" and leave one effect."""
    value = message.value
    if value.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(value.get("seconds", 0))
    record(message)


def forward(message: Message) -> None:
    """Leave one effect, send the value on to the topic that it names, then go on as `gated` does."""
    record(message)
    value = message.value
    services.produce(value["to"], message.raw_key, {"n": value["n"]})
    _play(value, message)


def announced(message: Message) -> None:
    """Say that the handler runs, take the value's "seconds", then leave one effect."""
    print(f"announced {message.partition}@{message.offset}", flush=True)
    time.sleep(message.value.get("seconds", 0))
    record(message)


def announced_all(messages: list[Message]) -> None:
    """Do the same for each message of a list."""
    for message in messages:
        announced(message)


if topic := os.environ.get("JOURNEY_LISTS"):
    kafka_handler(topics=topic, consumer="journey", batch=True)(announced_all)


def show_connection(message: Message) -> None:
    """Leave one effect that tells which database connection made it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    record(message)
    with connection.cursor() as cursor:
        cursor.execute(
            'UPDATE tests_effect SET payload = %s::jsonb WHERE topic = %s AND partition = %s AND "offset" = %s',
            [f'{{"pid": {pid}}}', message.topic, message.partition, message.offset],
        )


def sleep_in_database(message: Message) -> None:
    """Have the database sleep for as many seconds as the value's "sleep" says, then leave one effect."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [message.value["sleep"]])
    record(message)


def fail_first(message: Message) -> None:
    """Leave one effect, and fail in as many attempts as the value's "fails" says."""
    record(message)
    if message.attempt <= message.value.get("fails", 0):
        raise ValueError(f"attempt {message.attempt}")
