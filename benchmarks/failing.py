"""What failing costs: cases with a handler that inserts into PostgreSQL, with letters, and with lanes that wait."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event, Semaphore

import django
from confluent_kafka import Producer
from django.db import connection

from django_kafka.exceptions import Retry
from django_kafka.messages import Message

from .settings import BROKERS, MESSAGES, PARTITIONS, TOPIC

EVERY = 100
"""One of so many messages fails."""
PAUSED_SECONDS = 20.0
"""For how long waiting lanes are watched."""


def insert_or_fail(message: Message) -> None:
    """Handle a message with one INSERT, but fail for good at one percent of them."""
    from .databases import insert

    insert(message)
    if message.offset % EVERY == EVERY // 2:
        raise ValueError(f"offset {message.offset} is no departure time")


def fail(message: Message) -> None:
    """Fail for good before the first query."""
    raise ValueError(f"offset {message.offset} is no departure time")


def put_off(message: Message) -> None:
    """Have a message tried again much later."""
    raise Retry(after=3600)


def our_insert_failing() -> Iterator[None]:
    """A worker with one INSERT and one transaction a message, one percent of which fail for good."""
    yield from _work(letters=MESSAGES // EVERY)


def our_insert_in_batches_failing() -> Iterator[None]:
    """The same with one transaction for many messages."""
    yield from _work(letters=MESSAGES // EVERY)


def our_letters() -> Iterator[None]:
    """Two worker processes, one for each core, that make a dead letter of each message."""
    from django_kafka.models import DeadLetter

    from .databases import prepare

    prepare()
    spawn = multiprocessing.get_context("spawn")
    ready, over = spawn.Semaphore(0), spawn.Event()
    workers = [spawn.Process(target=_serve, args=(ready, over), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert ready.acquire(timeout=60)
    yield
    producer = Producer({"bootstrap.servers": BROKERS, "linger.ms": 5})
    for number in range(MESSAGES):
        producer.produce(TOPIC, b"v" * 200, b"key-%d" % number)
        if not number % 1000:
            producer.poll(0)
    producer.flush()
    sequence = "SELECT last_value FROM lynx_kafka_deadletter_id_seq"
    while _answer(sequence) < MESSAGES:
        assert all(worker.is_alive() for worker in workers)
        time.sleep(0.05)
    over.set()
    for worker in workers:
        worker.join()
    yield
    assert DeadLetter.objects.count() == MESSAGES


def _serve(ready: Semaphore, over: Event) -> None:
    django.setup()
    from django_kafka.consuming.worker import Worker

    worker = Worker("bench")
    worker.start()
    while len(worker.lanes) != PARTITIONS // 2:
        time.sleep(0.01)
    ready.release()
    while not over.wait(0.2):
        assert worker.error is None, worker.error
    worker.stop()
    worker.join()
    worker.close()


def _answer(query: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return int(cursor.fetchone()[0])


def _work(letters: int) -> Iterator[None]:
    from django_kafka.consuming.worker import Worker
    from django_kafka.models import DeadLetter

    from .databases import prepare

    prepare()
    worker = Worker("bench", max_messages=MESSAGES)
    worker.start()
    while not worker.tally.received:
        time.sleep(0.0005)
    yield
    worker.join()
    worker.close()
    stored = DeadLetter.objects.count()
    assert worker.error is None, worker.error
    assert abs(stored - letters) <= letters * 0.1, (stored, letters)
    assert worker.tally.handled + stored == MESSAGES, (worker.tally.handled, stored)


def our_paused_lanes() -> Iterator[None]:
    """A worker whose lanes all wait for the next attempt at their message, one message in each partition."""
    from django_kafka.consuming.worker import Worker

    from .databases import prepare

    prepare()
    worker = Worker("bench")
    worker.start()
    while sum(lane.held for lane in worker.lanes) < MESSAGES:
        assert worker.error is None, worker.error
        time.sleep(0.1)
    yield
    time.sleep(PAUSED_SECONDS)
    yield
    worker.stop()
    worker.join()
    worker.close()
