"""Replay dead letters: `python manage.py kafka_replay --consumer flights --error ValueError`."""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import InterfaceError, OperationalError, transaction
from django.db.models import Count, Max, QuerySet

from ...dead_letters import audit, replaying, targets
from ...dead_letters.carrying import carry_out
from ...dead_letters.executing import Executor
from ...dead_letters.rows import me
from ...exceptions import ConfigurationError, DeliveryFailed, ReplayRefused
from ...models import DeadLetter, Replay
from ._jobs import carry_out_jobs, chosen_jobs
from ._operator import user
from ._progress import Progress, progress
from ._selection import add_filters, chosen_letters, described, duration
from ._signals import StopSignals, say

_PIECE = 500
_VERBS = {
    (Replay.Target.HANDLER, False): "replay",
    (Replay.Target.DRY_RUN, False): "dry-run",
    (Replay.Target.TOPIC, False): "replay-to-topic",
    (Replay.Target.TOPIC, True): "replay-to-other-topic",
}
"""What the audit calls it: by target, and whether a topic was named."""
_LOOK_EVERY = 0.5
_GO_ON = "A worker carries it out, or: python manage.py kafka_replay --requested"


class Command(BaseCommand):
    """Ask for replays of open dead letters and carry them out."""

    help = (
        "Replay open dead letters: run their handlers again, or send them to their topics again. The first Ctrl-C or "
        "SIGTERM finishes the one that runs and leaves the rest asked for; a second one stops at once."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        add_filters(parser)
        parser.add_argument("--all", action="store_true", help="every open letter; needed when nothing else chooses")
        parser.add_argument(
            "--target",
            choices=(Replay.Target.HANDLER.value, Replay.Target.TOPIC.value),
            help="run the handler again (default), or send to the topic again",
        )
        parser.add_argument("--to-topic", metavar="NAME", help="send to this topic instead, named without the prefix")
        parser.add_argument("--requested", action="store_true", help="carry out what was asked for already")
        parser.add_argument(
            "--jobs", nargs="*", type=int, metavar="ID", help="carry out these replay jobs (none: all that go on)"
        )
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        parser.add_argument("--timeout", type=duration, metavar="TIME", help="stop after this long, such as 90s or 10m")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Ask, carry out, sum up."""
        if options["jobs"] is not None:
            self._jobs(options)
            return
        if options["requested"] and options["target"]:
            raise CommandError("--requested takes each replay with its own target: leave --target out.")
        if options["to_topic"] is not None and (options["target"] != Replay.Target.TOPIC or not options["to_topic"]):
            raise CommandError("--to-topic names a topic, and needs --target topic.")
        try:
            letters = chosen_letters(options)
            replays = self._requested(letters, options) if options["requested"] else None
            if options["dry_run"]:
                self._say_what(letters, replays, options)
                return
            ids = self._ask(letters, options) if replays is None else list(replays.values_list("pk", flat=True))
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if not ids:
            self.stdout.write("There is nothing to replay.")
            return
        ending = _Ending(options["timeout"])
        try:
            with ending, progress(self.stdout, len(ids)) as shown:
                followed: list[int] = []
                for start in range(0, len(ids), _PIECE):
                    followed += self._carry_out(ids[start : start + _PIECE], ending, shown)
            self._sum_up(list(dict.fromkeys([*ids, *followed])), ending)
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                f"{ending.reason} while the database is unavailable ({type(error).__name__}); what was not carried out "
                f"stays asked for. {_GO_ON}",
                returncode=ending.returncode,
            ) from error

    def _jobs(self, options: dict[str, Any]) -> None:
        others = ("all", "requested", "target", "dry_run")
        if described(options) or any(options[name] for name in others):
            raise CommandError("--jobs takes jobs as they were made: leave all but --timeout out.")
        ids = chosen_jobs(options["jobs"])
        if not ids:
            self.stdout.write("No replay job goes on.")
            return
        ending = _Ending(options["timeout"])
        try:
            with ending:
                carry_out_jobs(self.stdout, ids, ending)
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                f"{ending.reason} while the database is unavailable ({type(error).__name__}); the rest is left. A "
                "worker carries it out, or: python manage.py kafka_replay --jobs",
                returncode=ending.returncode,
            ) from error

    def _requested(self, letters: QuerySet[DeadLetter], options: dict[str, Any]) -> QuerySet[Replay]:
        waiting = replaying.replays().filter(state__in=Replay.OUTSTANDING, job__isnull=True).order_by("pk")
        return waiting.filter(letter__in=letters) if described(options) else waiting

    def _say_what(
        self, letters: QuerySet[DeadLetter], replays: QuerySet[Replay] | None, options: dict[str, Any]
    ) -> None:
        if replays is not None:
            letters = replaying.letters().filter(pk__in=replays.values("letter"))
            verb = "carry out the replays that were asked for, of"
        else:
            letters = letters.exclude(replaying.outstanding())
            verb = f"replay to the {options['target'] or Replay.Target.HANDLER}"
            if options["to_topic"]:
                verb += f" {replaying.aim(Replay.Target.TOPIC, options['to_topic'])}"
        groups = letters.order_by().values("consumer", "topic", "error_type").annotate(count=Count("pk"))
        count = 0
        for group in groups.order_by("consumer", "topic", "error_type"):
            count += group["count"]
            self.stdout.write("{count:>8}  {consumer}  {topic}  {error_type}".format(**group))
        self.stdout.write(f"Would {verb} {_letters(count)}. Nothing was done.")

    def _ask(self, letters: QuerySet[DeadLetter], options: dict[str, Any]) -> list[int]:
        """Ask for all of them first, so that whatever ends this command leaves them asked for; return the replays."""
        before = replaying.replays().aggregate(last=Max("pk"))["last"] or 0
        name = f"kafka_replay {user()} {me()}"[:200]
        target = options["target"] or Replay.Target.HANDLER
        topic = options["to_topic"] or ""
        if topic:
            self._look_for(replaying.aim(target, topic), letters)
        ids: list[int] = []
        refused = last = 0
        if target == Replay.Target.TOPIC and (held := letters.filter(hold__isnull=False).count()):
            letters = letters.filter(hold__isnull=True)
            self.stderr.write(f"Left alone: {_letters(held)} that hold their keys back; replay them to the handler.")
        while piece := list(letters.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:_PIECE]):
            last = piece[-1]
            with transaction.atomic(using=letters.db):
                refused += replaying.request(piece, target=target, topic=topic, name=name).refused
                mine = replaying.replays().filter(pk__gt=before, letter__in=piece, requested_by_name=name)
                asked = dict(mine.order_by("pk").values_list("pk", "letter"))
                found = replaying.letters().filter(pk__in=asked.values()).order_by("pk")
                verb = _VERBS[target, bool(topic)]
                audit.note(name, verb, found.only("topic", "partition", "offset", "consumer"))
            ids += asked
        if refused:
            self.stderr.write(f"Left alone: {_letters(refused)}, whose replay was asked for already (see --requested).")
        return ids

    def _look_for(self, topic: str, letters: QuerySet[DeadLetter]) -> None:
        """Refuse a topic that a cluster of these letters does not have; while nobody answers, it is asked for later."""
        for cluster in letters.order_by("cluster").values_list("cluster", flat=True).distinct():
            try:
                targets.refuse_missing(cluster, topic)
            except ReplayRefused as refusal:
                raise CommandError(str(refusal)) from refusal
            except DeliveryFailed as error:
                self.stderr.write(f"Whether there is a topic {topic} is looked at when it is sent: {error}")

    def _carry_out(self, ids: list[int], ending: _Ending, shown: Progress) -> list[int]:
        """Carry out these replays and those of messages that this releases; return the latter."""
        executor = Executor(ids=ids)
        seen: set[int] = set()
        try:
            while True:
                for replay in carry_out(executor, stop=ending, deadline=ending.deadline, waiting=shown.wait):
                    seen.add(replay.pk)
                    shown.finished(replay)
                if ending.reached() or not self._running_elsewhere(ids):
                    break
                ending.wait(_LOOK_EVERY)
        finally:
            executor.close()
        ended = replaying.replays().filter(pk__in=ids).exclude(state__in=Replay.OUTSTANDING)
        if others := ended.exclude(pk__in=seen.intersection(ids)).count():
            shown.finished_elsewhere(others)
        return executor.followed

    def _running_elsewhere(self, ids: list[int]) -> bool:
        """Tell whether a worker has taken one of ours; it ends there, or its claim runs out and comes to us."""
        try:
            return replaying.replays().filter(pk__in=ids, state__in=Replay.OUTSTANDING).exists()
        except (OperationalError, InterfaceError):
            return True  # the next turn waits for the database

    def _sum_up(self, ids: list[int], ending: _Ending) -> None:
        counts: Counter[str] = Counter()
        for start in range(0, len(ids), _PIECE):
            found = replaying.replays().filter(pk__in=ids[start : start + _PIECE]).order_by()
            counts.update(dict(found.values_list("state").annotate(Count("pk"))))
        left = sum(counts[state] for state in Replay.OUTSTANDING)
        succeeded, failed, cancelled = (counts[state] for state in ("succeeded", "failed", "cancelled"))
        self.stdout.write(f"Succeeded: {succeeded}, failed: {failed}, cancelled: {cancelled}, left: {left}.")
        if left:
            raise CommandError(
                f"{ending.reason}; left, and still asked for: {_letters(left)}. {_GO_ON}",
                returncode=ending.returncode,
            )
        if failed:
            raise CommandError(f"{_letters(failed)} failed again; the new errors are with them.", returncode=1)


class _Ending(StopSignals):
    """What ends the command early: signals and the timeout. Signals raise nothing: what runs is finished."""

    def __init__(self, timeout: float | None) -> None:
        super().__init__()
        self.deadline = float("inf") if timeout is None else time.monotonic() + timeout

    @property
    def reason(self) -> str:
        return "Stopped" if self.is_set() else "The time is over"

    @property
    def returncode(self) -> int:
        return 1 if self.number is None else 128 + self.number

    def reached(self) -> bool:
        return self.is_set() or time.monotonic() >= self.deadline

    def first(self, number: int) -> None:
        say(b"Finishing the one that runs; once more to stop at once.\n")

    def again(self, number: int) -> None:
        say(b"Stopped at once; what ran is taken over when its claim runs out, after a minute.\n")
        os._exit(128 + number)


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"
