"""`kafka_replay --jobs`: carry out replay jobs, and show how far they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from django.core.management.base import CommandError
from django.db.models import Sum

from ...dead_letters import jobs
from ...dead_letters.carrying import carry_out
from ...dead_letters.executing import Executor
from ...dead_letters.jobs.running import JobExecutor
from ...dead_letters.jobs.settling import Settled
from ...dead_letters.stopping import Stop
from ...legible import printable
from ...models import Replay, ReplayJob
from ._progress import Progress, progress

_LOOK_EVERY = 0.3
_GOING_ON = (ReplayJob.State.RUNNING, ReplayJob.State.CANCELLING)


class Ending(Stop, Protocol):
    """What ends a command early."""

    deadline: float

    @property
    def reason(self) -> str:
        """Why, for people."""

    @property
    def returncode(self) -> int:
        """What the process ends with."""

    def reached(self) -> bool:
        """Tell whether it is time to end."""


def chosen_jobs(numbers: Sequence[int]) -> list[int]:
    """Return the jobs with these ids, or all that go on; raise `CommandError` for one that there is not."""
    if not numbers:
        return list(jobs.all_jobs().filter(state__in=_GOING_ON).order_by("pk").values_list("pk", flat=True))
    known = dict(jobs.all_jobs().filter(pk__in=numbers).values_list("pk", "state"))
    for number in numbers:
        if number not in known:
            raise CommandError(f"There is no replay job {number}.")
        if known[number] == ReplayJob.State.PAUSED:
            raise CommandError(f"Replay job {number} is paused: resume it in the admin first.")
    return list(dict.fromkeys(numbers))


def carry_out_jobs(out: Any, ids: Sequence[int], ending: Ending) -> None:
    """Carry out jobs until they are at their end or paused; raise `CommandError` when letters are left or failed."""
    rows = jobs.all_jobs().filter(pk__in=ids)
    total = rows.aggregate(total=Sum("total"))["total"] or 0
    with progress(out, total) as shown:
        before = sum(row.done for row in rows)
        shown.advance(before)
        _until_none_goes_on(ids, ending, shown)
        shown.advance(max(0, sum(row.done for row in rows.all()) - shown.done))
    _sum_up(out, list(rows.order_by("pk").all()), ending)


def _until_none_goes_on(ids: Sequence[int], ending: Ending, shown: Progress) -> None:
    executor = JobExecutor(ids=ids)
    found: Iterator[Settled]
    try:
        while not ending.reached():
            released: list[int] = []
            found = carry_out(executor, stop=ending, deadline=ending.deadline, waiting=shown.wait)
            for done in found:
                shown.advance(done.done)
                released += done.released
            _follow(released, ending, shown)
            if not jobs.all_jobs().filter(pk__in=ids, state__in=_GOING_ON).exists():
                return
            # Others have its lanes, or its rate allows none now.
            ending.wait(_LOOK_EVERY)
    finally:
        executor.close()


def _follow(released: Sequence[int], ending: Ending, shown: Progress) -> None:
    """Carry out the replays of messages that were parked behind letters of the jobs."""
    if not released:
        return
    executor = Executor(ids=released)
    found: Iterator[Replay]
    try:
        found = carry_out(executor, stop=ending, deadline=ending.deadline, waiting=shown.wait)
        for replay in found:
            shown.say(f"Released: {replay.letter} {replay.state}")
    finally:
        executor.close()


def _sum_up(out: Any, rows: Sequence[ReplayJob], ending: Ending) -> None:
    for row in rows:
        out.write(
            f"Job {row.pk} is {row.state}. Succeeded: {row.succeeded}, failed: {row.failed}, left behind an earlier "
            f"failure: {row.behind}, skipped: {row.skipped}, cancelled: {row.cancelled}, left: {row.left}."
        )
        if row.state_reason:
            out.write(printable(row.state_reason))
    if left := sum(row.left for row in rows if row.state != ReplayJob.State.PAUSED):
        numbers = " ".join(str(row.pk) for row in rows)
        raise CommandError(
            f"{ending.reason}; left: {left}. A worker carries it out, or: python manage.py kafka_replay --jobs "
            f"{numbers}",
            returncode=ending.returncode,
        )
    if any(row.state == ReplayJob.State.PAUSED for row in rows):
        raise CommandError("A job is paused.", returncode=1)
    if failed := sum(row.failed + row.behind for row in rows):
        raise CommandError(f"Open again: {failed}; the errors are with the letters.", returncode=1)
