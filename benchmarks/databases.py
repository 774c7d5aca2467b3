"""One row a message into PostgreSQL, and replays of dead letters."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import psycopg
from confluent_kafka import Consumer
from django.core.management import call_command
from django.db import connection, models, transaction
from django.utils import timezone

from django_kafka.messages import Message

from .consuming import BEST_CONSUMER, work
from .settings import MESSAGES, SERVER, TOPIC

AT_ONCE = 500
"""Rows of one bulk_create."""


class Effect(models.Model):  # noqa: DJ008  # nobody looks at one
    """What a handler leaves."""

    partition = models.IntegerField()
    place = models.BigIntegerField()
    body = models.BinaryField()

    class Meta:
        app_label = "benchmarks"
        db_table = "effect"
        managed = False


def prepare() -> None:
    """Make the database anew."""
    with psycopg.connect(SERVER, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS bench")
        admin.execute("CREATE DATABASE bench")
    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE effect (id bigserial PRIMARY KEY, partition int, place bigint, body bytea)")
    connection.close()


def insert(message: Message) -> None:
    """Handle a message with one INSERT."""
    _insert(message.partition, message.offset, message.raw_value)


def _insert(partition: int, place: int, body: bytes | None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO effect (partition, place, body) VALUES (%s, %s, %s)", [partition, place, body])


def insert_all(messages: Sequence[Message]) -> None:
    """Handle a list of messages with one bulk_create."""
    Effect.objects.bulk_create(
        [Effect(partition=one.partition, place=one.offset, body=one.raw_value) for one in messages]
    )


def raw_insert() -> Iterator[None]:
    """A plain loop: `atomic()` and one INSERT for each message, its offset stored after."""
    consumer, taken = _raw_consumer()
    done = 0
    yield
    while True:
        for message in taken:
            with transaction.atomic():
                _insert(message.partition(), message.offset(), message.value())
            consumer.store_offsets(message)
        done += len(taken)
        if done >= MESSAGES:
            break
        taken = consumer.consume(AT_ONCE, 0.1)
    yield
    _all_there()


def raw_insert_bulk() -> Iterator[None]:
    """A plain loop: one `bulk_create` in a transaction for what `consume(500)` returns."""
    consumer, taken = _raw_consumer()
    done = 0
    yield
    while True:
        rows = [Effect(partition=one.partition(), place=one.offset(), body=one.value()) for one in taken]
        with transaction.atomic():
            Effect.objects.bulk_create(rows)
        for message in taken:
            consumer.store_offsets(message)
        done += len(taken)
        if done >= MESSAGES:
            break
        taken = consumer.consume(AT_ONCE, 0.1)
    yield
    _all_there()


def _raw_consumer() -> tuple[Consumer, list[Any]]:
    prepare()
    consumer = Consumer({**BEST_CONSUMER, "group.id": uuid.uuid4().hex, "enable.auto.offset.store": False})
    consumer.subscribe([TOPIC])
    while not (taken := consumer.consume(AT_ONCE, 0.1)):
        pass
    return consumer, taken


def our_insert() -> Iterator[None]:
    """A worker with one INSERT and one transaction for each message."""
    yield from _ours()


def our_insert_in_batches() -> Iterator[None]:
    """The same handler with one transaction for many messages."""
    yield from _ours()


def our_insert_bulk() -> Iterator[None]:
    """A handler that takes a list, with one bulk_create."""
    from django_kafka.handlers import kafka_handler

    kafka_handler(topics=TOPIC, consumer="bench", batch=True)(insert_all)
    yield from _ours()


def _ours() -> Iterator[None]:
    prepare()
    yield from work()
    _all_there()


def _all_there() -> None:
    found = Effect.objects.count()
    assert found == MESSAGES, f"{found} rows of {MESSAGES}"


def our_replay() -> Generator[None, None, dict[str, Any]]:
    """Replays of dead letters to a handler that succeeds at once, by one executor."""
    from django_kafka.dead_letters.executing import Executor
    from django_kafka.dead_letters.replaying import request
    from django_kafka.models import DeadLetter

    prepare()
    now = timezone.now()
    DeadLetter.objects.bulk_create(
        DeadLetter(
            consumer="bench", group_id="bench", topic=TOPIC, partition=0, offset=number, fingerprint=f"{number:064}",
            key=b"key", value=b"v" * 200, handler="benchmarks.consuming.ignore", category="failure",
            error_type="ValueError", attempts=1, first_failed_at=now, last_failed_at=now,
        )
        for number in range(MESSAGES)
    )  # fmt: skip
    request(DeadLetter.objects.values_list("pk", flat=True), name="benchmarks")
    executor = Executor(["bench"])
    yield
    while executor.run_next() is not None:
        pass
    yield
    executor.close()
    resolved = DeadLetter.objects.filter(state=DeadLetter.State.RESOLVED).count()
    assert resolved == MESSAGES, f"{resolved} resolved of {MESSAGES}"
    return {}
