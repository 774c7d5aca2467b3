"""Run consumers: `python manage.py kafka_consume [names…]`."""

from __future__ import annotations

import atexit
import os
import threading
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import autoreload

from ... import conf
from ...consuming.crew import Crew
from ...exceptions import ConfigurationError
from ._signals import StopSignals, say

_LEAVE_WITHIN = 5.0
"""Seconds that a reload waits for running handlers."""


class Command(BaseCommand):
    """Receive messages and run their handlers, until stopped."""

    help = (
        "Receive messages and run their handlers. The first SIGTERM or SIGINT finishes what runs, commits and leaves "
        "the group; a second one stops at once: what was not finished is read again."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("names", nargs="*", metavar="name", help="consumers to run (default: all that are enabled)")
        parser.add_argument("--max-messages", type=_positive, metavar="N", help="stop after N messages per consumer")
        parser.add_argument("--until-empty", action="store_true", help="stop when nothing is left to read")
        parser.add_argument("--reload", action="store_true", help="start again when code changes; for development")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Run the consumers."""
        try:
            names = options["names"] or [one.name for one in conf.kafka().consumers.values() if one.enabled]
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if not names:
            raise CommandError('KAFKA["consumers"] has no enabled consumer.')
        if len(set(names)) < len(names):
            raise CommandError("A consumer is named twice; run a second worker process for more of it.")
        if options["reload"]:
            # Runs in a thread below the reloader, whose main thread takes the signals; files that change end the
            # process, and unfinished messages are read again.
            autoreload.run_with_reloader(self._run, names, options)
        else:
            self._run(names, options)

    def _run(self, names: list[str], options: dict[str, Any]) -> None:
        try:
            crew = Crew(names, max_messages=options["max_messages"], until_empty=options["until_empty"])
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Consuming with {', '.join(names)}. Stop with Ctrl-C.")
        if threading.current_thread() is threading.main_thread():
            with _Stop(crew):
                crew.run()
        else:
            _run_below_reloader(crew)
        if crew.error is not None:
            raise CommandError(f"Stopped by {type(crew.error).__name__}: {crew.error}") from crew.error


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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)
