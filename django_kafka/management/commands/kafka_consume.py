"""Run consumers: `python manage.py kafka_consume [names…]`."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError, SystemCheckError
from django.utils import autoreload

from ... import conf, logs
from ...consuming import leash, supervisor, worker
from ...consuming.connections import LimitCheck
from ...consuming.crew import Crew
from ...exceptions import ConfigurationError
from ...monitoring import metrics, probes, wire
from ...monitoring.server import serving
from ._signals import StopSignals, say

_LEAVE_WITHIN = 5.0
"""Seconds that a reload waits for running handlers."""
_ASKED_WITHIN = 5.0
"""Seconds that the end waits for a database that was asked something and does not answer."""
_MOST_PORT = 65535
_MOST_PROCESSES = 1000
"""As for the setting `processes`."""

Layout = list[list[conf.Consumer]]


class Command(BaseCommand):
    """Receive messages and run their handlers, until stopped."""

    help = (
        "Receive messages and run their handlers. The first SIGTERM or SIGINT finishes what runs, commits and leaves "
        "the group; a second one stops at once: what was not finished is read again."
    )
    number: int | None = None
    """Of this process below a supervisor."""
    wire: Connection | None = None
    """Over which the supervisor asks it."""
    from_command_line = False
    """Whether the process was started for this command, and can be started so again."""

    def run_from_argv(self, argv: list[str]) -> None:
        """Run as the command line says."""
        self.from_command_line = True
        super().run_from_argv(argv)

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("names", nargs="*", metavar="name", help="consumers to run (default: all that are enabled)")
        parser.add_argument(
            "--processes",
            type=_whole(_MOST_PROCESSES),
            metavar="N",
            help="run each in N processes, whatever settings say",
        )
        parser.add_argument(
            "--max-messages", type=_whole(), metavar="N", help="stop after N messages per consumer; runs one process"
        )
        parser.add_argument("--until-empty", action="store_true", help="stop when nothing is left to read")
        parser.add_argument(
            "--reload", action="store_true", help="start again when code changes; for development, runs one process"
        )
        parser.add_argument(
            "--metrics-port",
            type=_whole(_MOST_PORT, least=0),
            metavar="N",
            help="answer Prometheus on this port, one for all processes; 0: on a free one, which the log names",
        )
        parser.add_argument(
            "--metrics-address",
            default="127.0.0.1",
            metavar="A",
            help="the address of this host to do so at (default: %(default)s); 0.0.0.0 for all of them",
        )

    def execute(self, *arguments: Any, **options: Any) -> str | None:
        """Tell a supervisor, by the exit code, of an error that would only come again."""
        try:
            self.number, self.wire = leash.take_number(), wire.take()
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if self.number is not None:
            leash.name_process(self.number)
        try:
            return super().execute(*arguments, **options)
        except CommandError as error:
            configured = isinstance(error, SystemCheckError) or isinstance(error.__cause__, ConfigurationError)
            if self.number is not None and configured:
                error.returncode = supervisor.EXIT_CONFIGURATION
            raise

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Run the consumers."""
        try:
            # A supervisor makes no client, and a worker says some things before it makes its first one.
            logs.obey(conf.kafka().logging.level)
            names = options["names"] or [one.name for one in conf.kafka().consumers.values() if one.enabled]
            if not names:
                raise CommandError('KAFKA["consumers"] has no enabled consumer.')
            if len(set(names)) < len(names):
                raise CommandError('A consumer is named twice; for more of it there are "processes" and --processes.')
            self._run_layout(supervisor.layout([conf.consumer(name) for name in names], options["processes"]), options)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error

    def _run_layout(self, layout: Layout, options: dict[str, Any]) -> None:
        if self.number is not None:
            self._run_below_supervisor(layout, options)
            return
        if len(layout) > 1 and (why := self._why_one_process(options)):
            self.stdout.write(f"One process, not {len(layout)}: {why}")
            layout = layout[:1]
        if len(layout) > 1:
            self._supervise(layout, options)
        elif options["reload"]:
            # Runs in a thread below the reloader, whose main thread takes the signals; files that change end the
            # process, and unfinished messages are read again.
            autoreload.run_with_reloader(self._run, layout[0], options)
        else:
            self._run(layout[0], options)

    def _why_one_process(self, options: dict[str, Any]) -> str | None:
        """Return why all consumers run in this one process whatever settings say, if they do."""
        for option, why in (
            ("reload", "--reload starts it again when code changes."),
            ("max_messages", "--max-messages counts in one."),
        ):
            if options[option]:
                if options["processes"]:
                    raise CommandError(f"--processes {options['processes']} cannot be: {why}")
                return why
        if not self.from_command_line:
            # Other processes would have neither the settings nor the database that a test has put in place.
            return "kafka_consume was called by a program, and others know nothing of what that has changed."
        return None

    def _supervise(self, layout: Layout, options: dict[str, Any]) -> None:
        for consumer in layout[0]:
            worker.ready(consumer.name)
        sweep = options["until_empty"] and any(conf.through_topics(consumer) for consumer in layout[0])
        port: int | None = options["metrics_port"]
        chief = supervisor.Supervisor(
            autoreload.get_child_arguments(),
            len(layout),
            until_empty=options["until_empty"],
            again=sweep,
            wired=port is not None,
        )
        routes = {
            "/metrics": lambda: metrics.together(chief.ask(metrics.PORTABLE)),
            probes.LIVE: lambda: probes.together(probes.LIVE, chief.ask(probes.LIVE)),
            probes.READY: lambda: probes.together(probes.READY, chief.ask(probes.READY)),
        }
        self.stdout.write(f"Consuming with {_shown(layout)}. Stop with Ctrl-C.")
        self.stdout.flush()
        with _StopAll() as stop, _limits_checked(layout), serving(options["metrics_address"], port, routes):
            chief.run(stop)
            stop.over = True
        if stop.at_once:
            sys.exit(128 + (stop.number or 0))
        if chief.reason is not None:
            raise CommandError(chief.reason)

    def _run_below_supervisor(self, layout: Layout, options: dict[str, Any]) -> None:
        number = self.number or 0
        if number > len(layout):
            raise ConfigurationError(
                f'Process {number} has no consumer: settings want {len(layout)} "processes" by now. Start anew.'
            )
        crew = _crew(layout[number - 1], options, number)
        with _StopOne(crew), wire.answering(self.wire, crew.routes):
            leash.Leash(crew.stop).start()
            supervisor.let_signals_through()
            crew.run()
        _tell(crew)

    def _run(self, consumers: Sequence[conf.Consumer], options: dict[str, Any]) -> None:
        try:
            crew = _crew(consumers, options)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Consuming with {_names(consumers)}. Stop with Ctrl-C.")
        server = serving(options["metrics_address"], options["metrics_port"], crew.routes)
        if threading.current_thread() is threading.main_thread():
            # Around what comes after the crew, too: a database that does not answer is waited for there.
            with _Stop(crew), _limits_checked([consumers]), server:
                crew.run()
        else:
            with _limits_checked([consumers]), server:
                _run_below_reloader(crew)
        _tell(crew)


def _crew(consumers: Sequence[conf.Consumer], options: dict[str, Any], number: int | None = None) -> Crew:
    names = [consumer.name for consumer in consumers]
    return Crew(names, max_messages=options["max_messages"], until_empty=options["until_empty"], number=number)


def _tell(crew: Crew) -> None:
    if crew.error is not None:
        raise CommandError(f"Stopped by {type(crew.error).__name__}: {crew.error}") from crew.error


@contextmanager
def _limits_checked(layout: Sequence[Sequence[conf.Consumer]]) -> Iterator[None]:
    """Have databases asked meanwhile whether they have enough connections."""
    check = LimitCheck(layout)
    check.start()
    try:
        yield
    finally:
        check.join(_ASKED_WITHIN)


class _Stop(StopSignals):
    """What signals do: the first asks, the second ends the process. Neither raises."""

    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self._crew = crew

    def first(self, number: int) -> None:
        self._crew.stop()
        say(b"Finishing what runs; once more to stop at once.\n")

    def again(self, number: int) -> None:
        say(b"Stopped at once; what was not finished is read again.\n")
        os._exit(128 + number)


class _StopOne(_Stop):
    """The same in a process below a supervisor, which a Ctrl-C reaches twice: from the terminal, and as its wish."""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            super()._receive(number, frame)


class _StopAll(StopSignals):
    """What signals tell a supervisor."""

    at_once = False
    over = False
    """Whether all processes have ended."""

    def first(self, number: int) -> None:
        say(b"Finishing what runs; once more to stop at once.\n")

    def again(self, number: int) -> None:
        if not self.at_once:
            self.at_once = True
            say(b"Stopped at once; what was not finished is read again.\n")
        if self.over:
            os._exit(128 + number)


def _run_below_reloader(crew: Crew) -> None:
    """Run a crew that leaves its groups when the reloader ends the process.

    A member that just vanishes keeps its partitions from the next process until its session times out.
    """
    ended = threading.Event()

    def leave() -> None:
        crew.stop()
        ended.wait(_LEAVE_WITHIN)

    atexit.register(leave)
    try:
        crew.run()
    finally:
        ended.set()
        atexit.unregister(leave)


def _names(consumers: Sequence[conf.Consumer]) -> str:
    return ", ".join(consumer.name for consumer in consumers)


def _shown(layout: Layout) -> str:
    """Return which consumers run in how many processes."""
    counts = {one.name: sum(one in consumers for consumers in layout) for one in layout[0]}
    return ", ".join(f"{name} in {count} process{'es' * (count > 1)}" for name, count in counts.items())


def _whole(most: int | None = None, *, least: int = 1) -> Callable[[str], int]:
    """Return what reads a number from `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most and int(text) > most):
            raise ArgumentTypeError(f"{text!r} is not a whole number from {least}{f' to {most}' if most else ''}")
        return int(text)

    return read
