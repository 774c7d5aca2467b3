"""Take dead letters out, bring them back, erase, index: `python manage.py kafka_letters export --older-than 30d`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import IO, Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import QuerySet
from django.utils import timezone

from ...dead_letters import At, Forgotten, audit, erasing, exporting, replaying, restoring, searching
from ...dead_letters.rows import me
from ...exceptions import BadArchive, ConfigurationError, PayloadMissing, RegistryUnavailable, StorageUnavailable
from ...legible import printable
from ...models import DeadLetter
from ._operator import agrees, somebody_is_there, user
from ._progress import progress
from ._selection import add_filters, described, duration, filtered

_OF_AUDIT = {"jsonl": exporting.audit_json_lines, "csv": exporting.audit_csv_lines}


class Command(BaseCommand):
    """Export letters and the audit, import letters, erase what letters say of a person, and make them searchable."""

    help = (
        "Export dead letters as JSON lines or CSV, bring JSON lines back, erase what letters say of a person, or take "
        "the words anew by which letters are found."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="export|import|forget|index")
        export = verbs.add_parser("export", help="write letters; all of them unless options choose")
        add_filters(export)
        _add_states(export)
        export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="jsonl (default) can come back")
        export.add_argument("--masked", action="store_true", help="without what settings mask; cannot come back")
        export.add_argument("--audit", action="store_true", help="the audit instead of letters")
        export.add_argument("--output", metavar="FILE", default="-", help="a new file; - (default): standard output")
        export.add_argument(
            "--without-payloads", action="store_true", help="leave out what letters refer to in storages"
        )
        bring = verbs.add_parser("import", help="store letters that are not there")
        bring.add_argument("file", help="JSON lines of an export; -: standard input")
        bring.add_argument("--dry-run", action="store_true", help="only look at every line")
        bring.add_argument(
            "--without-payloads", action="store_true", help="leave nothing in storages, of what letters refer to there"
        )
        forget = verbs.add_parser("forget", help="erase what letters say of a person")
        add_filters(forget)
        _add_states(forget)
        forget.add_argument("--path", metavar="PATH", help="that have --value there: passenger.email")
        forget.add_argument("--value", metavar="TEXT", help="what is found at --path")
        forget.add_argument("--reason", default="", help="why, for the audit")
        forget.add_argument("--dry-run", action="store_true", help="only say what would be erased")
        forget.add_argument("--yes", action="store_true", help="do not ask")
        index = verbs.add_parser("index", help="take the words by which letters are found, where masking has changed")
        index.add_argument("--all", action="store_true", help="of all letters, whatever was masked")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Do one of them."""
        try:
            match options["verb"]:
                case "export":
                    self._export(options)
                case "import":
                    self._import(options)
                case "index":
                    self._index_all() if options["all"] else self._index()
                case _:
                    self._forget(options)
        except (BadArchive, ConfigurationError, PayloadMissing, RegistryUnavailable, StorageUnavailable) as error:
            raise CommandError(str(error)) from error

    def _export(self, options: dict[str, Any]) -> None:
        lines: Iterator[str]
        if options["audit"]:
            if _chooses(options) or options["masked"]:
                raise CommandError("--audit exports the whole audit: leave the other options out.")
            lines = _OF_AUDIT[options["format"]]()
        else:
            letters, masked, noting = _chosen(options), options["masked"], self._note(options)
            if options["format"] == "csv":
                lines = exporting.csv_lines(letters, masked=masked, noting=noting)
            else:
                wanted = not options["without_payloads"]
                lines = exporting.json_lines(
                    letters, masked=masked, noting=noting, payloads=wanted, lacking=self._say_lacking
                )
        count = 0
        with ExitStack() as stack:
            output = self._output(options["output"], stack)
            for line in lines:
                output.write(line)
                count += 1
        self.stderr.write(f"Written: {count} lines.")

    def _say_lacking(self, letter: DeadLetter, why: str) -> None:
        self.stderr.write(printable(f"{letter}: without its payload: {why}"))

    def _note(self, options: dict[str, Any]) -> exporting.Noting:
        details = {"format": options["format"], "masked": options["masked"]}
        return lambda letters: audit.note(_who("export"), exporting.VERB, letters, details=details)

    def _output(self, name: str, stack: ExitStack) -> Any:
        if name == "-":
            return _Raw(self.stdout)
        try:
            return stack.enter_context(open(name, "x", encoding="utf-8", newline=""))
        except OSError as error:
            raise CommandError(f"{name} cannot be written: {error.strerror}.") from error

    def _import(self, options: dict[str, Any]) -> None:
        with ExitStack() as stack:
            try:
                source: IO[str] = (
                    sys.stdin
                    if options["file"] == "-"
                    else stack.enter_context(open(options["file"], encoding="utf-8", errors="replace"))
                )
            except OSError as error:
                raise CommandError(f"{options['file']} cannot be read: {error.strerror}.") from error
            payloads = not options["without_payloads"]
            done = restoring.restore(_lines(source), dry_run=options["dry_run"], payloads=payloads)
        if done.payloads:
            self.stdout.write(f"Payloads left in storages: {done.payloads}.")
        ending = " Nothing was stored." if options["dry_run"] else ""
        self.stdout.write(f"New: {done.new}, known: {done.known}, erased before: {done.erased}.{ending}")

    def _forget(self, options: dict[str, Any]) -> None:
        if (options["path"] is None) != (options["value"] is None):
            raise CommandError("--path and --value go together.")
        if not (_chooses(options) or options["path"]):
            raise CommandError("Say whom: --key, --path with --value, or other options that choose letters.")
        found = _dry(options)
        self.stdout.write(f"{_shown(found)} would be erased.")
        if options["dry_run"] or not found.letters:
            self.stdout.write("Nothing was done.")
            self._say_running(found)
            return
        if not options["yes"]:
            if not somebody_is_there():
                raise CommandError("Nobody can be asked: say --yes.")
            if not agrees(self.stderr, "This cannot be taken back."):
                raise CommandError("Nothing was done.")
        done = erasing.forget(**_whom(options), name=_who("forget"), reason=options["reason"])
        self.stdout.write(f"{_shown(done)} were erased.")
        self._say_running(done)

    def _index(self) -> None:
        with progress(self.stdout, searching.count_due(), "Indexing") as shown:
            while found := searching.catch_up():
                shown.advance(found)
        self.stdout.write(f"Words were taken from {shown.done} letters.")
        if left := searching.count_due():
            self.stderr.write(f"{left} are in use or new: workers take their words, or do this once more.")

    def _index_all(self) -> None:
        last = 0
        with progress(self.stdout, replaying.letters().count(), "Indexing") as shown:
            while (taken := searching.take_anew(last)) != (0, 0):
                last, found = taken
                shown.advance(found)
        self.stdout.write(f"Words were taken from {shown.done} letters.")

    def _say_running(self, done: Forgotten) -> None:
        if done.running:
            named = ", ".join(done.running[:10])
            raise CommandError(f"Left alone: {len(done.running)} that are being replayed ({named}). Say it again soon.")


class _Raw:
    """Writes to a command's output as it is."""

    def __init__(self, output: Any) -> None:
        self._output = output

    def write(self, text: str) -> None:
        self._output.write(text, ending="")


def _add_states(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--state", choices=DeadLetter.State.values, action="append", help="in this state; again: or that"
    )
    parser.add_argument("--older-than", type=duration, metavar="TIME", help="that failed last before that: 30d, 12h")


def _chooses(options: dict[str, Any]) -> bool:
    return described(options) or options["state"] is not None or options["older_than"] is not None


def _chosen(options: dict[str, Any]) -> QuerySet[DeadLetter]:
    letters = filtered(replaying.letters(), options)
    if options["id"] is not None:
        letters = letters.filter(pk__in=[each for each in options["id"] if 0 < each < 1 << 63])
    if options["state"] is not None:
        letters = letters.filter(state__in=options["state"])
    if options["older_than"] is not None:
        letters = letters.filter(last_failed_at__lt=timezone.now() - timedelta(seconds=options["older_than"]))
    return letters


def _whom(options: dict[str, Any]) -> dict[str, Any]:
    chosen = _chosen(options)
    if options["path"] is not None:
        return {"whom": At(path=options["path"], value=options["value"]), "among": chosen}
    return {"whom": erasing.ALL, "among": chosen}


def _dry(options: dict[str, Any]) -> Forgotten:
    return erasing.forget(**_whom(options), dry_run=True)


def _shown(done: Forgotten) -> str:
    counts = done.counts()
    running = counts.pop("running")
    text = ", ".join(f"{name}: {count}" for name, count in counts.items())
    return f"{text} ({running} being replayed)" if running else text


def _who(verb: str) -> str:
    return f"kafka_letters {verb} {user()} {me()}"[:200]


def _lines(source: IO[str]) -> Iterator[str]:
    """Return lines, none of them longer than a letter may be: a file of something else is not read into memory."""
    while line := source.readline(restoring.LONGEST + 1):
        yield line
