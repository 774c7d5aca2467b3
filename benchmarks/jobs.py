"""Replay jobs: letters to a topic, and letters to a handler with one INSERT and one transaction each."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

from django.db import connections, transaction
from django.utils import timezone

from .databases import Effect, insert, prepare
from .settings import KEYS, MESSAGES, TOPIC

EXECUTORS = 2
"""Processes that share a job, as two workers do, or two of Celery's."""
_AT_ONCE = 5000
"""Letters of one bulk_create."""


def our_job_to_topic() -> Generator[None, None, dict[str, Any]]:
    """A job that sends letters to their topic, by one executor; each is acknowledged and resolved."""
    yield from _carry_out("topic")
    return {}


def our_job_to_topic_shared() -> Generator[None, None, dict[str, Any]]:
    """The same job, shared by two executors in processes of their own."""
    yield from _carry_out("topic", executors=EXECUTORS)
    return {}


def our_job_to_handler() -> Generator[None, None, dict[str, Any]]:
    """A job whose letters go to a handler with one INSERT, by one executor."""
    yield from _carry_out("handler")
    found = Effect.objects.count()
    assert found == MESSAGES, f"{found} rows of {MESSAGES}"
    return {}


def raw_handler() -> Iterator[None]:
    """The same handler on the same letters in a plain loop, each in its transaction, and nothing else."""
    from django_kafka.dead_letters.stored import StoredMessage
    from django_kafka.handlers import for_topic
    from django_kafka.messages import Message
    from django_kafka.models import DeadLetter

    _write()
    decoder = for_topic("bench", TOPIC).decoder
    yield
    last = 0
    while found := list(DeadLetter.objects.filter(pk__gt=last).order_by("pk")[:500]):
        for letter in found:
            with transaction.atomic():
                insert(Message(StoredMessage(letter), decoder))
        last = found[-1].pk
    yield


def _carry_out(target: str, executors: int = 1) -> Iterator[None]:
    from django_kafka.dead_letters import jobs, replaying
    from django_kafka.models import DeadLetter

    _write()
    (job,) = jobs.create(replaying.letters(), target=target, name="benchmarks")
    yield
    if executors == 1:
        _execute()
    else:
        _share(executors)
    yield
    progress = jobs.progress(job)
    assert (progress.state, progress.succeeded) == ("finished", MESSAGES), progress
    resolved = DeadLetter.objects.filter(state=DeadLetter.State.RESOLVED).count()
    assert resolved == MESSAGES, f"{resolved} resolved of {MESSAGES}"


def _execute() -> None:
    from django_kafka.dead_letters.jobs.running import JobExecutor

    executor = JobExecutor(["bench"])
    try:
        while executor.run_next() is not None:
            pass
    finally:
        executor.close()


def _share(executors: int) -> None:
    connections.close_all()
    children = [_fork() for _ in range(executors)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), codes


def _fork() -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _execute()
        code = 0
    finally:
        os._exit(code)


def _write() -> None:
    from django_kafka.models import DeadLetter
    from django_kafka.models.dead_letters import key_hash

    prepare()
    now = timezone.now()
    keys = [b"key %d" % number for number in range(KEYS)]
    hashes = [key_hash(key) for key in keys]
    for start in range(0, MESSAGES, _AT_ONCE):
        DeadLetter.objects.bulk_create(
            DeadLetter(
                consumer="bench", group_id="bench", topic=TOPIC, partition=0, offset=number,
                fingerprint=f"{number:064}", key=keys[number % KEYS], key_hash=hashes[number % KEYS], value=b"v" * 200,
                handler="benchmarks.databases.insert", category="failure", error_type="ValueError",
                error_message="a value that is wrong", traceback="a line of a traceback\n" * 30, attempts=1,
                first_failed_at=now, last_failed_at=now,
            )
            for number in range(start, min(MESSAGES, start + _AT_ONCE))
        )  # fmt: skip
