"""The process that sends, `python -m tests.chaos.sending`: what became of each record it writes into a file.

A line is written before a record is handed over, and one when its delivery says what became of it; each is in the file
before the next step is taken, so that a crash leaves the books true.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django

from .records import Mixture, Record, Sort, stream

if TYPE_CHECKING:
    from django_kafka.services import Delivery

PRODUCER = "sender"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What the books say of one record."""

    number: int
    """Its number in the run."""
    key: str
    """Its key."""
    sequence: int
    """Its number among the records of its key."""
    sort: Sort
    """What it is for."""
    partition: int | None = None
    """Where the broker put it; None when nobody acknowledged it, which does not mean that it is not there."""
    offset: int | None = None
    """The same."""

    @property
    def place(self) -> tuple[int, int] | None:
        """Partition and offset, of a record that was acknowledged."""
        return None if self.partition is None or self.offset is None else (self.partition, self.offset)

    @property
    def raw_value(self) -> bytes | dict[str, Any]:
        """What was sent."""
        return Record(number=self.number, key=self.key, sequence=self.sequence, sort=self.sort).value

    def __str__(self) -> str:
        where = "not acknowledged" if self.place is None else f"partition {self.partition} offset {self.offset}"
        return f"{self.sort} {self.key} {self.sequence} ({where})"


class Book:
    """The file."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, **line: Any) -> None:
        """Write one line, at once."""
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read(file: Path) -> list[Sent]:
    """Return what a file says, in the order in which records were sent."""
    found: dict[int, dict[str, Any]] = {}
    known = {field.name for field in fields(Sent)}
    for line in file.read_text().splitlines():
        said = json.loads(line)
        found.setdefault(said["number"], {}).update({name: said[name] for name in said.keys() & known})
    return [Sent(**{**line, "sort": Sort(line["sort"])}) for line in found.values()]


def main() -> None:
    """Send until told to stop; then wait for what is on its way."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    django.setup()
    book = Book(Path(os.environ["CHAOS_BOOK"]))
    waiting: queue.Queue[tuple[Record, Delivery] | None] = queue.Queue()
    collector = threading.Thread(target=_collect, args=(book, waiting))
    collector.start()
    try:
        _send(stop, book, waiting)
    finally:
        waiting.put(None)
        collector.join()
    print("All that was sent is acknowledged or failed.", flush=True)


def _send(stop: threading.Event, book: Book, waiting: queue.Queue[tuple[Record, Delivery] | None]) -> None:
    from django_kafka import services
    from django_kafka.exceptions import ProduceError

    pause = 1 / (float(os.environ["CHAOS_RATE"]) * float(os.environ["CHAOS_SHARE"]))
    mixture = Mixture(**json.loads(os.environ["CHAOS_MIXTURE"]))
    due = time.monotonic()
    for record in stream(mixture):
        book.note(number=record.number, key=record.key, sequence=record.sequence, sort=record.sort)
        try:
            delivery = services.produce(os.environ["CHAOS_TOPIC"], record.key, record.value, producer=PRODUCER)
        except ProduceError as error:
            book.note(number=record.number, refused=repr(error))
        else:
            waiting.put((record, delivery))
        due = max(due + pause, time.monotonic() - 1)
        if stop.wait(max(0.0, due - time.monotonic())):
            return


def _collect(book: Book, waiting: queue.Queue[tuple[Record, Delivery] | None]) -> None:
    from django_kafka.exceptions import DeliveryTimeout, ProduceError

    while (one := waiting.get()) is not None:
        record, delivery = one
        while True:
            try:
                delivery.result(60)
            except DeliveryTimeout:
                continue
            except ProduceError as error:
                book.note(number=record.number, failed=repr(error))
            else:
                book.note(number=record.number, partition=delivery.partition, offset=delivery.offset)
            break


if __name__ == "__main__":
    main()
