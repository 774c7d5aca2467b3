"""Send real flights, watch them handled and dead-lettered, check the sums, serve the admin."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.urls import reverse
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from django_kafka import conf, services
from django_kafka.clients import embedded
from django_kafka.exceptions import KafkaError
from django_kafka.models import DeadLetter
from django_kafka.records import Record
from testproject.flights import source
from testproject.flights.models import Flight

from .backlog import Backlog
from .processes import Child, DemoError
from .schemas import Reporting
from .screen import Numbers, Screen

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / ".demo"

USUAL = 55_893
"""Flights that are sent unless FLIGHTS says otherwise: those of January and October, as filed."""

SLICE = 500
"""Flights that are sent at a time."""

REPORTED = 2_000
"""Flights that are reported with schemas as well, when there is a registry."""

STALLED = 60.0
"""Seconds without anything settled after which the demo gives up."""

console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the environment asks for."""

    flights: int
    """How many to send."""
    serve: bool
    """Whether to serve the admin afterwards."""
    port: int
    """Where, if PORT says so; 0 for any."""

    @classmethod
    def read(cls, environment: dict[str, str]) -> Wishes:
        """Read FLIGHTS, SERVE and PORT."""
        flights, serve = environment.get("FLIGHTS") or str(USUAL), environment.get("SERVE") or "1"
        port = environment.get("PORT") or "0"
        count = source.COUNT if flights == "all" else int(flights) if flights.isdecimal() else 0
        if not 1 <= count <= source.COUNT:
            raise DemoError(f"FLIGHTS={flights} is neither all nor a number from 1 to {source.COUNT}.")
        if serve not in ("0", "1"):
            raise DemoError(f"SERVE={serve} is neither 0 nor 1.")
        if not port.isdecimal() or int(port) > 65535:
            raise DemoError(f"PORT={port} is not a port.")
        return cls(flights=count, serve=serve == "1", port=int(port))


class Sending:
    """The flights on their way, and the count of what should become of them."""

    def __init__(self, worker: Child, total: int) -> None:
        self.sent = self.departed = self.cancelled = 0
        self.began = time.monotonic()
        self._worker = worker
        self._total = total
        self._backlog = Backlog("flights", "operations")
        self._screen = Screen(total)
        self._drawn = 0.0

    def run(self, flights: Iterator[dict[str, str]]) -> float:
        """Send them all, wait until all are settled, and return the seconds it took."""
        try:
            with Live(console=console, refresh_per_second=4) as live:
                while batch := list(islice(flights, SLICE)):
                    self._wait(live, lambda: not self._backlog.full)
                    self._send(batch)
                self._wait(live, lambda: self._backlog.waiting == 0)
                took = time.monotonic() - self.began
                live.update(self._screen.show(self.numbers()))
        finally:
            console.print()
            # Before the broker goes: clients complain about one that is gone.
            self._backlog.close()
            services.close("default")
        return took

    def numbers(self) -> Numbers:
        """Count."""
        handled, dead = Flight.objects.count(), DeadLetter.objects.count()
        return Numbers(sent=self.sent, handled=handled, dead_lettered=dead, waiting=self._backlog.waiting)

    def disagreements(self) -> list[str]:
        """Compare file, Kafka and database, and return a sentence for each difference."""
        numbers = self.numbers()
        sums = [
            ("sent, and handled + dead-lettered", numbers.sent, numbers.handled + numbers.dead_lettered),
            ("sent, and committed by the worker", numbers.sent, self._backlog.settled),
            ("flights with a departure time in the file, and rows of flights", self.departed, numbers.handled),
            ("cancelled flights in the file, and rows of dead letters", self.cancelled, numbers.dead_lettered),
        ]
        return [f"{what}: {left:,} and {right:,}" for what, left, right in sums if left != right]

    def _send(self, flights: list[dict[str, str]]) -> None:
        records = [Record(key=flight["carrier"] + flight["flight"], value=flight) for flight in flights]
        sizes = [len(json.dumps(record.value)) + len(record.key) for record in records]
        deliveries = [delivery.result() for delivery in services.produce_batch("flights", records)]
        self._backlog.add(zip(deliveries, sizes, strict=True))
        cancelled = sum(flight["dep_time"] == "NA" for flight in flights)
        self.sent += len(flights)
        self.cancelled += cancelled
        self.departed += len(flights) - cancelled

    def _wait(self, live: Live, done: Callable[[], bool]) -> None:
        before, since = self._backlog.settled, time.monotonic()
        while True:
            now = time.monotonic()
            if now - self._drawn > 0.25:
                self._worker.check()
                self._backlog.look()
                live.update(self._screen.show(self.numbers()))
                self._drawn = now
            if done():
                return
            if self._backlog.settled > before:
                before, since = self._backlog.settled, now
            elif now - since > STALLED:
                raise DemoError(f"The worker has settled nothing for {STALLED:.0f} s; see {self._worker.log}.")
            time.sleep(0.05)


def main() -> int:
    """Run the demo and return its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return run(Wishes.read(dict(os.environ)))
    except (DemoError, source.NoFlights, KafkaError) as error:
        console.print(f"[bold red]The demo stops:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; everything that was started is stopped.")
        return 130


def run(wishes: Wishes) -> int:
    """Do what was wished for."""
    if other := embedded.running():
        raise DemoError(f"A kafka_broker runs for this project already, as process {other.pid}; stop that one first.")
    port = free_port(wishes.port) if wishes.serve else 0
    console.print(f"Flights: {source.cache() / source.ARCHIVE}")
    flights = islice(source.read(source.fetch()), wishes.flights)
    with ExitStack() as running:
        fresh_database()
        register_schemas()
        broker = running.enter_context(child("broker", "kafka_broker"))
        broker.wait_until(embedded.running)
        with child("worker", "kafka_consume", "operations") as worker:
            console.print(f"Embedded cluster at {embedded.find()}, one worker; their logs are in {FOLDER}.")
            sending = Sending(worker, wishes.flights)
            took = sending.run(flights)
            if code := worker.stop():
                raise DemoError(f"The worker ended with {code} when asked to stop; see {worker.log}.")
        good = report(sending, took)
        if good and conf.cluster().schema_registry.url:
            good = report_with_schemas(wishes.flights)
        if wishes.serve and good:
            serve(running, port)
        return 0 if good else 1


def fresh_database() -> None:
    """Make an empty database, in place of that of an earlier demo."""
    name = Path(settings.DATABASES["default"]["NAME"])
    for suffix in ("", "-wal", "-shm"):
        name.with_name(name.name + suffix).unlink(missing_ok=True)
    console.print(f"Fresh database: {name}")
    call_command("migrate", verbosity=0)


def register_schemas() -> None:
    """Have the registry know the schemas of the project, when there is one."""
    if not (url := conf.cluster().schema_registry.url):
        return
    console.print(f"Schemas, and the registry at {url}:")
    try:
        call_command("kafka_schemas", "register", "--no-input")
    except CommandError as error:
        raise DemoError(str(error)) from error


def report(sending: Sending, took: float) -> bool:
    """Print the sums and tell whether they agree."""
    numbers = sending.numbers()
    console.print(
        f"{numbers.sent:,} sent = {numbers.handled:,} handled + {numbers.dead_lettered:,} dead-lettered, "
        f"in {took:.1f} s: {numbers.sent / took:,.0f} messages/s"
    )
    disagreements = sending.disagreements()
    for sentence in disagreements:
        console.print(f"[bold red]These should be the same:[/] {sentence}")
    if not disagreements:
        console.print("The file, Kafka's offsets and the database agree.")
    return not disagreements


def report_with_schemas(count: int) -> bool:
    """Have airports report the first flights with schemas, print the sums, and tell whether they agree."""
    flights = list(islice(source.read(source.fetch()), min(count, REPORTED)))
    with child("reports", "kafka_consume", "reports") as worker:
        reporting = Reporting(worker, STALLED)
        try:
            reporting.run(flights)
        finally:
            reporting.close()
            services.close("default")
        if code := worker.stop():
            raise DemoError(f"The worker ended with {code} when asked to stop; see {worker.log}.")
    for topic, sums in reporting.sums().items():
        console.print(f"{topic}: {sums}")
    disagreements = reporting.disagreements()
    for sentence in disagreements:
        console.print(f"[bold red]These should be the same:[/] {sentence}")
    return not disagreements


def serve(running: ExitStack, port: int) -> None:
    """Serve the admin, with a worker that carries out replays, until Ctrl-C."""
    password = secrets.token_urlsafe(9)
    get_user_model().objects.create_superuser("admin", password=password)
    running.enter_context(child("worker", "kafka_consume", *settings.KAFKA["consumers"], "--reload"))
    web = running.enter_context(child("admin", "runserver", "--noreload", f"127.0.0.1:{port}"))
    web.wait_until(lambda: _answers(port))
    letters = reverse("admin:lynx_kafka_deadletter_changelist")
    console.print(
        f"\nThe admin:   [bold]http://127.0.0.1:{port}{letters}[/]\n"
        f"Log in as:   [bold]admin[/], password [bold]{password}[/]\n\n"
        "Cancelled flights have no departure time: the file says NA there, and the handler does not know that word.\n"
        'Mend it: in testproject/flights/kafka_handlers.py write [bold]MISSING = {"", "NA"}[/]. The worker notices.\n'
        "Then select dead letters in the admin and replay them: they become rows, and resolved.\n\n"
        "Ctrl-C ends it.",
    )
    try:
        while True:
            web.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("Stopping.")


def child(name: str, *arguments: str) -> Child:
    """Return a management command to run."""
    return Child(name, *arguments, project=PROJECT, log=FOLDER / f"{name}.log")


def free_port(wished: int) -> int:
    """Return the port that was wished for, or 8000, or any that is free."""
    for port in [wished] if wished else [8000, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                reason = error.strerror
            else:
                return int(probe.getsockname()[1])
    raise DemoError(f"PORT={wished} cannot be used ({reason}). Name another, or none for any that is free.")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
