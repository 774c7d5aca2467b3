"""The handler that is put to the test, in the workers' processes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.db import connection
from django.dispatch import receiver

from django_kafka import services
from django_kafka.signals import partitions_assigned, partitions_revoked

from .clock import true_time
from .plan import BEGUN_FILE, LEFT_FILE, SLOW_FILE
from .records import HELD, Sort

if TYPE_CHECKING:
    from django_kafka.messages import Message

_BEGIN = """
    INSERT INTO chaos_effect (topic, partition, "offset", key, sequence, worker, pid, tenure)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING id
"""
_END = "UPDATE chaos_effect SET whole = true, ran = %s WHERE id = %s"

_LINGERS, _LINGER = 20, 0.25
"""One handler in so many takes so many seconds, so that rebalances and kills find some of them running."""
_CONTROL = Path(os.environ["CHAOS_CONTROL"])
_WORKER = os.environ.get("CHAOS_WORKER", "")
_tenures: Counter[tuple[str, int]] = Counter()
"""How many times each partition came to this process."""


class PlannedFailure(Exception):
    """What a record that must fail fails with."""


class PassingFailure(Exception):
    """What a record that must fail once fails with."""


@receiver(partitions_assigned, dispatch_uid="tests.chaos")
def _count(*, partitions: list[tuple[str, int]], **_event: Any) -> None:
    _tenures.update(partitions)


@receiver(partitions_revoked, dispatch_uid="tests.chaos")
def _note(*, partitions: list[tuple[str, int]], lost: bool, **_event: Any) -> None:
    """Write down when partitions left: sent when nothing of theirs runs any more, or is waited for no longer."""
    now = true_time()
    for place in partitions:
        _write(LEFT_FILE, topic=place[0], partition=place[1], tenure=_tenures[place], at=now, lost=lost)


def _write(name: str, **line: Any) -> None:
    """Append a line to a file that all workers share, at once."""
    file = os.open(_CONTROL / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, json.dumps({"worker": _WORKER, **line}).encode() + b"\n")
    finally:
        os.close(file)


def work(message: Message) -> None:
    """Leave an effect in two steps, with whatever the record asks for in between."""
    began, tenure = time.monotonic(), _tenures[message.topic, message.partition]
    key, value = (message.raw_key or b"").decode(), message.value
    sort, sequence = Sort(value["sort"]), value["sequence"]
    place = message.topic, message.partition, message.offset
    where = dict(zip(("topic", "partition", "offset"), place, strict=True))
    _write(BEGUN_FILE, **where, thread=threading.get_ident(), attempt=message.attempt, at=true_time())
    early = sequence % 2
    if early:
        _be_slow()
    with connection.cursor() as cursor:
        cursor.execute(_BEGIN, [*place, key, sequence, _WORKER, os.getpid(), tenure])
        (effect,) = cursor.fetchone()
    if sort in (Sort.ECHO, Sort.FAILING):
        services.produce(f"{message.topic}.out", key, {"sequence": sequence})
    if sort is Sort.FLAKY and message.attempt == 1:
        raise PassingFailure(f"{key} {sequence}, first attempt")
    if sort is Sort.FAILING and not (message.topic == HELD.topic and _mended(place)):
        raise PlannedFailure(f"{key} {sequence}")
    if not sequence % _LINGERS:
        time.sleep(_LINGER)
    if not early:
        _be_slow()
    with connection.cursor() as cursor:
        cursor.execute(_END, [time.monotonic() - began, effect])


def _mended(place: tuple[str, int, int]) -> bool:
    with connection.cursor() as cursor:
        cursor.execute('SELECT 1 FROM chaos_mended WHERE partition = %s AND "offset" = %s', place[1:])
        return cursor.fetchone() is not None


def _be_slow() -> None:
    """Take as long as the file says, if there is one that nobody has taken."""
    asked = _CONTROL / SLOW_FILE
    taken = Path(f"{asked}-{os.getpid()}-{time.monotonic_ns()}")
    if not asked.exists():
        return
    try:
        asked.rename(taken)
    except FileNotFoundError:
        return  # another thread or process was faster
    time.sleep(float(taken.read_text()))
