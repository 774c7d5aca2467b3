"""Is everything there that the project stands on? `python manage.py kafka_doctor`."""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ... import conf
from ...diagnosis.examining import Report, examine
from ...diagnosis.findings import Finding, State
from ...exceptions import ConfigurationError
from ._diagnosis import show

_WARNINGS, _ERRORS = 1, 2
_CODES = {State.WARNING: _WARNINGS, State.ERROR: _ERRORS}
"""The exit code of what was found, beside 0."""


class Command(BaseCommand):
    """Look at everything that the project stands on; change none of it."""

    help = (
        "Look at settings, clusters, logins, topics, permissions, groups, clocks, databases, Celery and workers, and "
        "say of each what was seen and how to mend it. Changes nothing. The exit code is 0 when all is well, 1 when "
        "there are warnings only, 2 when something does not work."
    )
    requires_system_checks: list[str] = []  # what they find is part of the report

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("names", nargs="*", metavar="name", help="only these clusters and consumers")
        parser.add_argument(
            "--timeout", type=_seconds, metavar="TIME",
            help="for each cluster, such as 5s; default: its connection.timeout",
        )  # fmt: skip
        parser.add_argument("--json", action="store_true", help="write one JSON object, for programs")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Look, and say what was found."""
        logger, quiet = logging.getLogger("django_kafka.client"), logging.NullHandler()
        # Where nobody has configured logging, Python would write the client's troubles between the lines.
        logger.addHandler(quiet)
        try:
            report = examine(options["names"], options["timeout"])
        except ConfigurationError as error:
            raise CommandError(str(error), returncode=_ERRORS) from error
        finally:
            logger.removeHandler(quiet)
        if options["json"]:
            self.stdout.write(json.dumps(_as_dict(report), indent=2))
        else:
            show(self.stdout, report)
        if code := _CODES.get(report.state, 0):
            raise SystemExit(code)


def _as_dict(report: Report) -> dict[str, Any]:
    return {
        "state": report.state.value,
        "seconds": round(report.seconds, 2),
        "checks": [_finding(part.name, one) for part in report.parts for one in part.findings],
    }


def _finding(part: str, one: Finding) -> dict[str, Any]:
    return {
        "part": part, "check": one.check, "of": one.of, "state": one.state.value, "saw": one.saw, "mend": one.mend,
        "facts": dict(one.facts),
    }  # fmt: skip


def _seconds(text: str) -> float:
    try:
        return conf.parse_duration(text if text.strip()[-1:].isalpha() else float(text), least=0.5, most=3600.0)
    except (ValueError, ConfigurationError) as error:
        raise ArgumentTypeError(f"{text!r} is no time from 500ms to 1h, such as 5s") from error
