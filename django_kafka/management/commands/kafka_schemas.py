"""The schemas that the project needs: `python manage.py kafka_schemas`."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ... import schema_plans
from ...conf.values import did_you_mean
from ...exceptions import ConfigurationError, UnknownName
from ...legible import printable
from ...needed_schemas import Needed, chosen
from ...schema_plans import Standing, State
from . import _schemas
from ._operator import agrees, somebody_is_there

_CHECK, _REGISTER, _DIFF = "check", "register", "diff"
_WORDS = (_CHECK, _REGISTER, _DIFF)
_UNDONE, _BLIND = 1, 2
"""Exit codes: something differs or was not done; a registry did not answer, or settings cannot be read."""


class Command(BaseCommand):
    """Compare the schemas of the project with those of its registries; register them on request."""

    help = (
        "check (also without a word): the schemas that settings name, whether their registries have them, and whether "
        "these take those that are new for compatible. register: have the registries have them, what others refer to "
        "first. diff: how they differ from the newest ones there. The exit code is 1 while a schema is missing, "
        "changed or incompatible (check), or something was not registered (register), and 2 when a registry does not "
        "answer or settings cannot be read."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument(
            "names", nargs="*", metavar="check|register|diff name",
            help="what to do, and only the schemas of these subjects, topics, producers or consumers",
        )  # fmt: skip
        parser.add_argument(
            "--no-input", "--noinput", action="store_false", dest="interactive", help="do not ask for confirmation"
        )
        parser.add_argument("--json", action="store_true", help="write one JSON object, for programs")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Look, do what was asked for, and show it."""
        word, *names = options["names"] or [_CHECK]
        if word not in _WORDS:
            word, names = _CHECK, options["names"]
        try:
            wanted = _wanted(names, of_word=bool(options["names"]) and options["names"][0] not in _WORDS)
            found = list(schema_plans.look(wanted))
            if word == _REGISTER:
                found = self._register(wanted, found, options)
        except ConfigurationError as error:
            raise CommandError(str(error), returncode=_BLIND) from error
        if options["json"]:
            told = [_schemas.as_dict(one, differences=word == _DIFF) for one in found]
            self.stdout.write(json.dumps({"schemas": told}, indent=2))
        elif not wanted:
            self.stdout.write("Settings name no schema whose subject is known before something is sent.")
        elif word == _DIFF:
            _schemas.show_differences(self.stdout, self.style, found)
        elif word == _CHECK:
            _schemas.show(self.stdout, found)
        _end(word, found)

    def _register(self, wanted: Sequence[Needed], found: list[Standing], options: dict[str, Any]) -> list[Standing]:
        """Show what is to be done, ask, do it, and return what became of it."""
        due = [one for one in found if one.is_due]
        open_ones = [one for one in found if not one.is_well]
        if not options["json"]:
            if open_ones:
                _schemas.show(self.stdout, open_ones)
            else:
                self.stdout.write("The registries have all schemas.")
        if not due:
            return open_ones
        question = f"This registers {_schemas.count(len(due))}."
        if options["interactive"] and somebody_is_there() and not agrees(self.stderr, question):
            raise CommandError("Nothing was registered.")
        done = []
        for one in schema_plans.register([each.needed for each in open_ones]):
            done.append(one)
            if not options["json"]:
                self.stdout.write(printable(f"{one.needed.contract.subject}: {_schemas.state(one)}"))
        return done


def _wanted(names: Sequence[str], *, of_word: bool) -> list[Needed]:
    try:
        return chosen(names)
    except UnknownName as error:
        if of_word and (hint := did_you_mean(names[0], _WORDS)):
            raise ConfigurationError(f"{error} Of the words {', '.join(_WORDS)}: {hint}") from None
        raise


def _end(word: str, found: Sequence[Standing]) -> None:
    """End with the exit code for what was found."""
    open_ones = [one for one in found if not one.is_well]
    blind = dict.fromkeys(one.why for one in open_ones if one.state is State.UNKNOWN)
    known = [one for one in open_ones if one.state is not State.UNKNOWN]
    told = []
    if word == _CHECK and known:
        told.append(f"{_schemas.summary(known)}: see `python manage.py kafka_schemas diff`.")
    if word == _REGISTER and known:
        told.append(f"Not registered: {_schemas.count(len(known))}.")
    if blind or told:
        raise CommandError(printable(" ".join([*told, *blind])), returncode=_BLIND if blind else _UNDONE)
