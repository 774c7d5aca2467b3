"""Where consumers stand in their topics: `python manage.py kafka_offsets flights --to-time 2h`."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ... import conf
from ...exceptions import ConfigurationError
from ...legible import printable
from ...offsets import resetting
from ...offsets.standing import Books
from . import _offsets
from ._moments import moment
from ._operator import agrees, somebody_is_there, user
from ._table import table

_TARGETS = ("to_earliest", "to_latest", "to_offset", "to_time", "shift")


class Command(BaseCommand):
    """Show where the groups of consumers stand; move one on request."""

    help = (
        "Show for each partition that a consumer reads what its group has committed, and how far behind it is. With "
        "--to-earliest, --to-latest, --to-offset, --to-time or --shift, show what moving the group there would change, "
        "and with --execute move it. Its workers have to be stopped for that."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("names", nargs="*", metavar="consumer", help="default: all that are enabled")
        parser.add_argument(
            "--topic", action="append", metavar="TOPIC", help="only this one, with its prefix; may be given again"
        )
        parser.add_argument(
            "--partition", type=_number, action="append", metavar="N", help="only this one; may be given again"
        )
        parser.add_argument("--to-earliest", action="store_true", help="read all that is there again")
        parser.add_argument("--to-latest", action="store_true", help="skip all that is there")
        parser.add_argument("--to-offset", type=_number, metavar="N", help="read from this offset on")
        parser.add_argument(
            "--to-time", metavar="TIME",
            help="read what was sent since 2026-11-23, 2026-11-23T15:00, 2026-11-23T15:00+01:00, or 2h (ago)",
        )  # fmt: skip
        parser.add_argument(
            "--shift", type=_difference, metavar="N", help="skip N messages, or read as many again: --shift=-100"
        )
        parser.add_argument("--execute", action="store_true", help="do it, instead of only saying what would be done")
        parser.add_argument(
            "--no-input", "--noinput", action="store_false", dest="interactive", help="do not ask for confirmation"
        )
        parser.add_argument("--json", action="store_true", help="write one JSON object, for programs")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Show, or move."""
        given = [name for name in _TARGETS if _is_given(options[name])]
        if len(given) > 1:
            raise CommandError(f"Say one of {', '.join(map(_option, given))}: a group goes to one place.")
        if options["execute"] and not given:
            raise CommandError(f"Say where to: {', '.join(map(_option, _TARGETS))}.")
        try:
            books = self._books(options, moving=bool(given))
            if given:
                self._move(books[0], _target(given[0], options), options)
            else:
                self._show(books, options)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error

    def _books(self, options: dict[str, Any], *, moving: bool) -> list[Books]:
        """Return the books of the consumers that are meant."""
        known = conf.kafka().consumers
        for name in options["names"]:
            if name not in known:
                raise CommandError(_unknown(name, list(known)))
        names = list(dict.fromkeys(options["names"]))
        if moving and len(names) != 1:
            raise CommandError("Name the one consumer whose group is to be moved.")
        books = list(map(Books, names or [one.name for one in known.values() if one.enabled and one.group_id]))
        if not books:
            raise CommandError('KAFKA["consumers"] has no enabled consumer with a group.')
        topics = [topic for one in books for topic in one.topics]
        for topic in options["topic"] or ():
            if topic not in topics:
                raise CommandError(_unread(topic, topics, names))
        if options["topic"]:
            books = [one for one in books if set(one.topics) & set(options["topic"])]
        return books

    def _show(self, books: Sequence[Books], options: dict[str, Any]) -> None:
        wanted = options["topic"] or ()
        stands = [
            one.stand([topic for topic in one.topics if topic in wanted], options["partition"] or ()) for one in books
        ]
        if options["json"]:
            self.stdout.write(json.dumps({"consumers": list(map(_offsets.stand_as_dict, stands))}, indent=2))
            return
        for number, stand in enumerate(stands):
            if number:
                self.stdout.write("")
            self._say(_offsets.headings(stand))
            if stand.partitions:
                table(self.stdout, _offsets.COLUMNS, list(map(_offsets.row, stand.partitions)))
            self._say(_offsets.remarks(stand))

    def _move(self, books: Books, target: resetting.Target, options: dict[str, Any]) -> None:
        # What waits in retry topics was read from the others: to read both again would handle it twice.
        topics = options["topic"] or [name for name in books.topics if name not in books.retries]
        if not topics:
            raise CommandError(f"Consumer {books.consumer.name!r} reads no topic.")
        stand = books.stand(topics, options["partition"] or ())
        moves = resetting.plan(books, stand, target)
        if not options["json"]:
            self._say(_offsets.headings(stand)[:1])
            table(self.stdout, _offsets.MOVE_COLUMNS, list(map(_offsets.move_row, moves)))
            self._say([move.note for move in moves if move.note])
            if books.retries.difference(topics):
                self._say(["Its retry topics stay as they are; name them with --topic to move them as well."])
        changes = any(move.changes for move in moves)
        if options["execute"] and changes:
            resetting.refuse_while_used(stand)
            question = f"{_offsets.summary(moves, 'This resets')}."
            if options["interactive"] and somebody_is_there() and not agrees(self.stderr, question):
                raise CommandError("Nothing was changed.")
            stand = resetting.carry_out(books, moves, user=user())
        if options["json"]:
            done = options["execute"] and changes
            self.stdout.write(json.dumps(_offsets.moves_as_dict(stand, moves, executed=done), indent=2))
        elif not changes:
            self.stdout.write("The group is there already: nothing to change.")
        elif options["execute"]:
            self.stdout.write(
                f"{_offsets.summary(moves, 'Reset')}. Group {printable(stand.group_id)} stands there now."
            )
        else:
            if stand.users:
                self._say([f"To be stopped before: {', '.join(stand.users)}."])
            self.stdout.write(f"{_offsets.summary(moves, 'Would reset')}. Nothing was changed. To do it:")
            self.stdout.write(f"  {_again(options)}")

    def _say(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self.stdout.write(printable(sentence))


def _target(name: str, options: dict[str, Any]) -> resetting.Target:
    match name:
        case "to_earliest":
            return resetting.Earliest()
        case "to_latest":
            return resetting.Latest()
        case "to_offset":
            return resetting.Offset(options["to_offset"])
        case "shift":
            return resetting.Shift(options["shift"])
        case _:
            at = moment("--to-time", options["to_time"])
            if at > datetime.now(UTC):
                raise CommandError(
                    f"--to-time {options['to_time']!r} is in the future; to skip what is there: --to-latest."
                )
            return resetting.Since(at)


def _again(options: dict[str, Any]) -> str:
    """Return the command line that does what was shown."""
    words = ["python", "manage.py", "kafka_offsets", *options["names"]]
    for name in ("topic", "partition"):
        words += [f"--{name}={value}" for value in options[name] or ()]
    for name in _TARGETS:
        if _is_given(options[name]):
            words.append(_option(name) if options[name] is True else f"{_option(name)}={options[name]}")
    return printable(shlex.join([*words, "--execute"]))


def _is_given(value: Any) -> bool:
    return value is not None and value is not False  # 0 is an offset


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _unknown(name: str, known: list[str]) -> str:
    """Say that settings have no such consumer, the nearest ones first."""
    nearest = difflib.get_close_matches(name, known, n=3)
    has = f"it has: {', '.join([*nearest, *(one for one in known if one not in nearest)])}" if known else "it is empty"
    return f'KAFKA["consumers"] has no {name!r}; {has}.'


def _unread(topic: str, topics: list[str], names: list[str]) -> str:
    """Say that nobody reads a topic, and what is read."""
    who = " and ".join(map(repr, names)) if names else "the project's consumers"
    reads = f"what is read: {', '.join(dict.fromkeys(topics))}" if topics else "nothing is read"
    return printable(f"{topic!r} is no topic of {who}; {reads}.")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 63:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _difference(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a whole number other than 0, such as -100")
    return int(text)
