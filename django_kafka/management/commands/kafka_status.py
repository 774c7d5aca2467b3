"""How everything is: `python manage.py kafka_status`."""

from __future__ import annotations

import json
import socket
import time
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseFailure
from django.db.models import QuerySet

from ... import conf
from ...exceptions import ConfigurationError
from ...legible import printable
from ...models import Worker
from ...monitoring import heartbeats
from ...monitoring.observer import Observer
from . import _status

try:
    from . import _live, _screen
except ImportError:  # rich is optional
    _live = _screen = None  # type: ignore[assignment]

_INTERVAL = 2.0
"""Seconds from one look to the next."""
_SHORTEST, _LONGEST = 0.2, 3600.0


class Command(BaseCommand):
    """Show consumers, partitions, workers and dead letters; close circuits on request."""

    help = (
        "Show consumers with their groups, lag, throughput and dead letters, their partitions, and the workers that "
        "were heard of: in a terminal as a screen that is drawn anew until q is pressed, else once. The exit code is 0 "
        "whatever the state, but with --probe."
    )
    requires_system_checks: list[str] = []  # what is wrong elsewhere is no reason not to see how everything is

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("names", nargs="*", metavar="name", help="only these consumers and their workers")
        parser.add_argument("--once", action="store_true", help="show one picture and end, also in a terminal")
        parser.add_argument("--json", action="store_true", help="write one JSON object, for programs")
        parser.add_argument(
            "--all", action="store_true", help="show everything, not only the worst partitions and workers"
        )
        parser.add_argument(
            "--interval", type=_seconds, metavar="TIME",
            help="how often the screen is drawn anew, as 500ms; default: 2s. With --once or --json: look twice, so far "
            "apart, for throughput and trends",
        )  # fmt: skip
        parser.add_argument(
            "--close-breaker", metavar="CONSUMER", help="ask the workers of this consumer to close their open circuits"
        )
        parser.add_argument(
            "--probe", choices=("live", "ready"), help="only tell by the exit code how the workers of this host are"
        )

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Show, or ask."""
        if options["probe"]:
            self._probe(options["probe"], options["names"])
            return
        try:
            workers = Worker.objects.using(conf.kafka().dead_letters.database)
            if (consumer := options["close_breaker"]) is not None:
                self._close(workers, consumer)
                return
            for name in options["names"]:
                _must_exist(workers, name)
            self._show(options)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error

    def _probe(self, which: str, names: list[str]) -> None:
        """Raise `CommandError` when the workers of this host are not as asked.

        Nobody is called dead because nothing is heard of him: the database may be why. Then he is only not ready.
        """
        try:
            rows = Worker.objects.using(conf.kafka().dead_letters.database).filter(host=socket.gethostname()[:255])
            mine = list(heartbeats.living(rows.filter(consumer__in=names) if names else rows))
        except (ConfigurationError, DatabaseFailure) as error:
            if which == "ready":
                raise CommandError(f"The rows of workers cannot be read ({type(error).__name__}).") from error
            self.stdout.write(f"live, as far as is known: the rows of workers cannot be read ({type(error).__name__})")
            return
        if which == "ready" and not mine:
            if not conf.kafka().heartbeats.enabled:
                raise CommandError(
                    'Nothing is heard of workers: KAFKA["heartbeats"]["enabled"] is False. Ask /ready at their '
                    "--metrics-port."
                )
            raise CommandError("No worker of this host was heard of lately.")
        reasons = [(one, one.not_live if which == "live" else one.not_ready) for one in mine]
        if found := [f"{one}: {reason}" for one, reason in reasons if reason]:
            raise CommandError(printable("; ".join(found)))
        self.stdout.write(which)

    def _close(self, workers: QuerySet[Worker], consumer: str) -> None:
        _must_exist(workers, consumer)
        asked = heartbeats.ask_to_close(workers.filter(consumer=consumer))
        if not asked:
            raise CommandError(f"No worker of consumer {consumer!r} that lives has an open circuit.")
        interval = conf.kafka().heartbeats.interval
        self.stdout.write(f"Asked {asked} of its workers; each closes its circuit within {interval:g} s.")

    def _show(self, options: dict[str, Any]) -> None:
        observer, interval = Observer(options["names"]), options["interval"]
        drawn = _screen is not None and not options["json"] and self.stdout.isatty()
        console = _screen.console(self.stdout, no_color=options["no_color"]) if drawn else None
        if console is not None and not options["once"] and not console.is_dumb_terminal:
            _live.show(console, observer, _INTERVAL if interval is None else interval, whole=options["all"])
            return
        most = None if options["all"] else _status.MOST
        overview = observer.look(wait=True, max_age=0)
        if interval is not None:
            time.sleep(interval)
            most = None if options["all"] else _status.MOST
        overview = observer.look(wait=True, max_age=0)
        if options["json"]:
            self.stdout.write(json.dumps(overview.as_dict(), indent=2))
        elif console is not None:
            console.print(_screen.Picture(overview, most=most))
        else:
            _status.write(self.stdout, overview, most)
            if _screen is None and self.stdout.isatty():
                self.stdout.write("A screen that is drawn anew: pip install 'django-lynx-kafka[rich]'")


def _seconds(text: str) -> float:
    try:
        span = text if text.strip()[-1:].isalpha() else float(text)
        return conf.parse_duration(span, "it", least=_SHORTEST, most=_LONGEST)
    except ConfigurationError as error:
        raise ArgumentTypeError(str(error)) from error


def _must_exist(workers: QuerySet[Worker], name: str) -> None:
    known = conf.kafka().consumers
    try:
        there = name in known or workers.filter(consumer=name).exists()
    except DatabaseFailure:
        there = False
    if not there:
        has = f"it has: {', '.join(known)}" if known else "it is empty"
        raise CommandError(f'KAFKA["consumers"] has no {name!r}; {has}.')
