"""The topics that the project needs: `python manage.py kafka_topics`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError
from dataclasses import dataclass
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ... import conf
from ...clients.admin import BROKERS_DECIDE, Layout, TopicAdmin
from ...exceptions import ConfigurationError
from ...legible import printable
from ...needed_topics import Needed, Place, needed
from . import _topics
from ._operator import agrees, somebody_is_there
from ._table import table

_SHOW, _APPLY = "show", "apply"
_WORDS = (_SHOW, "plan", _APPLY, "check")
_COLUMNS = ("cluster", "topic", "used for", "partitions", "replicas", "state")
_TIMEOUT = 15.0


@dataclass(slots=True, kw_only=True)
class _Found:
    """A topic that is needed, and how it stands."""

    needed: Needed
    layout: Layout
    """As it is, or would be made."""
    state: str
    """there, missing, created or refused."""
    note: str = ""

    @property
    def place(self) -> Place:
        return self.needed.cluster, self.needed.name


class Command(BaseCommand):
    """Show the topics that the project needs; make the missing ones on request."""

    help = (
        "show (also without a word): the topics that settings and handlers name, with retry topics and dead-letter "
        "topics, and whether they exist; --create makes what is missing. plan: how they differ from what settings "
        "declare. apply: make them so. check: the same as plan, with an exit code for scripts. The exit code is 1 "
        "while a topic is missing (show), anything differs (check), or something was not done (apply)."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument(
            "names", nargs="*", metavar="show|plan|apply|check topic",
            help="what to do, and only these topics, with their prefix",
        )  # fmt: skip
        parser.add_argument("--create", action="store_true", help="make the missing ones")
        parser.add_argument(
            "--partitions", type=_count, default=BROKERS_DECIDE, metavar="N",
            help="for topics that belong to no other one; default: as brokers are set up",
        )  # fmt: skip
        parser.add_argument(
            "--replication-factor", type=_count, default=BROKERS_DECIDE, metavar="N",
            help="for the same; default: as brokers are set up",
        )  # fmt: skip
        parser.add_argument("--force", action="store_true", help="apply what loses messages, too")
        parser.add_argument(
            "--no-input", "--noinput", action="store_false", dest="interactive", help="do not ask for confirmation"
        )
        parser.add_argument("--json", action="store_true", help="write one JSON object, for programs")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Look, do what was asked for, and show it."""
        usual = Layout(partitions=options["partitions"], replication=options["replication_factor"])
        word, *names = options["names"] or [_SHOW]
        if word not in _WORDS:
            word, names = _SHOW, options["names"]
        if options["create"] and word != _SHOW:
            raise CommandError(f"--create goes with {_SHOW}; `apply` makes what is missing as well.")
        options["names"] = names
        if word != _SHOW:
            try:
                self._compare(word, usual, options)
            except ConfigurationError as error:
                raise CommandError(str(error)) from error
            return
        try:
            found = [
                one
                for cluster in sorted({each.cluster for each in needed()})
                for one in _look(cluster, usual, options["names"], create=options["create"])
            ]
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if unknown := set(options["names"]) - {one.needed.name for one in found}:
            raise CommandError(f"The project does not need {', '.join(map(printable, sorted(unknown)))}.")
        if options["json"]:
            self.stdout.write(json.dumps({"topics": [_as_dict(one) for one in found]}, indent=2))
        elif found:
            table(self.stdout, _COLUMNS, [_row(one) for one in found])
        else:
            self.stdout.write("Settings and handlers name no topic.")
        if missing := sum(one.state in ("missing", "refused") for one in found):
            are = "1 topic is" if missing == 1 else f"{missing} topics are"
            hint = "" if options["create"] else " `python manage.py kafka_topics --create` makes what is missing."
            raise CommandError(f"{are} missing.{hint}")

    def _compare(self, word: str, usual: Layout, options: dict[str, Any]) -> None:
        """Plan, check or apply."""
        names = options["names"]
        if unknown := set(names) - _topics.known(names):
            raise CommandError(f"The project does not need {', '.join(map(printable, sorted(unknown)))}.")
        steps = _topics.planned(names, usual)
        if word == _APPLY and steps:
            if not options["json"]:
                _topics.show(self.stdout, steps)
            question = f"This makes {_changes(len(steps))}."
            if options["interactive"] and somebody_is_there() and not agrees(self.stderr, question):
                raise CommandError("Nothing was changed.")
            steps = []
            for step in _topics.apply(names, usual, force=options["force"]):
                steps.append(step)
                if not options["json"]:
                    self.stdout.write(printable(f"{step.change.topic}: {step.change.what}: {_topics.note(step)}"))
        if options["json"]:
            self.stdout.write(json.dumps({"changes": [one.as_dict() for one in steps]}, indent=2))
        elif not steps:
            self.stdout.write("All topics are as they are to be.")
        elif word != _APPLY:
            _topics.show(self.stdout, steps)
        if word == "check" and steps:
            raise CommandError(f"{_changes(len(steps))} to make: see `python manage.py kafka_topics plan`.")
        if word == _APPLY and (left := sum(one.state != "done" for one in steps)):
            raise CommandError(f"Not done: {_changes(left)}.")


def _changes(count: int) -> str:
    return f"{count} change{'' if count == 1 else 's'}"


def _look(cluster: str, usual: Layout, names: list[str], *, create: bool) -> list[_Found]:
    """Return how the topics of one cluster stand, after the missing ones were made."""
    settings = conf.cluster(cluster)
    admin = TopicAdmin(settings, min(_TIMEOUT, max(1.0, settings.connection.timeout)))
    layouts = admin.layouts()
    mine = [each for each in needed() if each.cluster == cluster and (not names or each.name in names)]
    found = []
    for each in mine:
        there = layouts.get(each.name)
        planned = _planned(each, layouts, usual)
        note = ""
        if there is not None and each.models and BROKERS_DECIDE < there.partitions < planned.partitions:
            note = f"fewer partitions than its origin, which has {planned.partitions}"
        found.append(_Found(needed=each, layout=there or planned, state="there" if there else "missing", note=note))
    if create:
        _create(admin, [one for one in found if one.state == "missing"])
    return found


def _planned(topic: Needed, layouts: dict[str, Layout], usual: Layout) -> Layout:
    """Return how a topic is to be made: like those whose messages it has."""
    models = [layouts[name] for cluster, name in topic.models if cluster == topic.cluster and name in layouts]
    return Layout(
        partitions=max((one.partitions for one in models), default=usual.partitions),
        replication=max((one.replication for one in models), default=usual.replication),
    )


def _create(admin: TopicAdmin, missing: list[_Found]) -> None:
    # Those that others are made like come first: how many partitions brokers gave them is known only then.
    layouts = admin.layouts()
    for some in ([one for one in missing if not one.needed.models], [one for one in missing if one.needed.models]):
        for one in some:
            one.layout = _planned(one.needed, layouts, one.layout)
        refused = admin.create({one.needed.name: one.layout for one in some})
        for one in some:
            one.note = refused.get(one.needed.name, "")
            one.state = "refused" if one.note else "created"
        layouts = admin.layouts(made=[one.needed.name for one in some if one.state == "created"])
        for one in some:
            one.layout = layouts.get(one.needed.name, one.layout)


def _row(one: _Found) -> tuple[str, ...]:
    return (
        one.needed.cluster,
        one.needed.name,
        ", ".join(one.needed.uses),
        _number(one.layout.partitions),
        _number(one.layout.replication),
        f"{one.state}: {one.note}" if one.note else one.state,
    )


def _number(count: int) -> str:
    return "default" if count == BROKERS_DECIDE else str(count)


def _as_dict(one: _Found) -> dict[str, Any]:
    return {
        "cluster": one.needed.cluster,
        "topic": one.needed.name,
        "uses": list(one.needed.uses),
        "state": one.state,
        "partitions": None if one.layout.partitions == BROKERS_DECIDE else one.layout.partitions,
        "replication_factor": None if one.layout.replication == BROKERS_DECIDE else one.layout.replication,
        "note": one.note,
    }


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return int(text)
