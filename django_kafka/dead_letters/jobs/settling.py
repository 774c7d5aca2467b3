"""What became of the letters of a piece, written in one transaction, for many of them at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from ... import conf, logs, retries, tallies
from ...models import DeadLetter, DeadLetterAttempt, JobLane, Replay
from ...signals import dead_letter_replayed
from .. import holds
from ..claiming import ClaimLost
from ..failures import Failure
from ..replaying import letters, replays
from ..rows import add_attempts, add_successes, me
from .claiming import LaneClaims
from .rows import end_each, jobs, waiting_in

log = logs.of(__name__)


@dataclass(slots=True)
class Outcomes:
    """What is known of a piece, and not written yet."""

    succeeded: list[tuple[Replay, str]] = field(default_factory=list)
    """Replays, and what their result says."""
    failed: list[tuple[Replay, Failure | None, str]] = field(default_factory=list)
    """Replays, the attempt that failed (None: it was not tried), and the result."""
    skipped: list[tuple[Replay, str]] = field(default_factory=list)
    """Replays that were not tried, and why."""


@dataclass(slots=True, kw_only=True)
class Settled:
    """How many replays of a piece came to which end."""

    job: int
    """The job."""
    consumer: str
    """Whose letters they are."""
    succeeded: int = 0
    """Letters that are resolved."""
    failed: int = 0
    """Letters that failed again."""
    skipped: int = 0
    """Letters that were not tried."""
    behind: int = 0
    """Letters that stay because an earlier one of their key failed."""
    cancelled: int = 0
    """Letters whose replay was cancelled with the job."""
    released: list[int] = field(default_factory=list)
    """Replays of messages that were parked behind one of the letters."""

    @property
    def done(self) -> int:
        """All of them."""
        return self.succeeded + self.failed + self.skipped + self.behind + self.cancelled

    def add(self, other: Settled) -> None:
        """Add the counts of another piece."""
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.skipped += other.skipped
        self.behind += other.behind
        self.cancelled += other.cancelled
        self.released += other.released


def settle(claims: LaneClaims, lane: JobLane, known: Outcomes, read: Iterable[Replay] = ()) -> Settled:
    """Write what is known of a lane's replays, and settle those that its cursor says have succeeded.

    `read` are replays that need not be read again, with their letters. Raises `ClaimLost` when somebody else has the
    lane: then nothing of it is written.
    """
    using = conf.kafka().dead_letters.database
    job = lane.job
    done = Settled(job=job.pk, consumer=job.consumer)
    with transaction.atomic(using=using):
        # Its row first: nobody takes the lane over, or moves its cursor, from here on.
        if not claims.mine(lane).update(claimed_at=Now()):
            raise ClaimLost(f"Lane {lane} was taken over.")
        succeeded = [*known.succeeded, *((each, "") for each in _behind_cursor(claims, lane, read))]
        if job.target == Replay.Target.TOPIC:
            done.succeeded = _resolve_sent(using, succeeded)
        else:
            done.succeeded = _resolve_handled(using, succeeded, done.released)
        done.failed = _fail(using, known.failed)
        for reason, group in groupby(sorted(known.skipped, key=lambda each: each[1]), key=lambda each: each[1]):
            done.skipped += _end([each for each, _reason in group], Replay.State.SKIPPED, reason)
        for replay, _failure, _result in known.failed:
            done.behind += _leave_behind(lane, replay)
        claims.mine(lane).update(cursor=0, unsettled=[])
        _count(done)
    _tell(job.consumer, [each for each, _ in succeeded], [each for each, _, _ in known.failed], done)
    return done


def _behind_cursor(claims: LaneClaims, lane: JobLane, read: Iterable[Replay]) -> list[Replay]:
    """Return the replays whose handlers' transactions have committed and that are not settled yet."""
    found = claims.mine(lane).values_list("cursor", "unsettled").get()
    cursor, unsettled = found
    if not cursor:
        return []
    ids = waiting_in(lane).filter(pk__lte=cursor).values_list("pk", flat=True)
    passed = set(ids).difference(unsettled)
    known = {each.pk: each for each in read if each.pk in passed}
    if missing := passed.difference(known):
        # Of an executor that is no more; their payloads are not needed.
        rows = replays().filter(pk__in=missing).select_related("letter")
        heavy = ("letter__key", "letter__value", "letter__stored_headers", "letter__traceback")
        known |= {each.pk: each for each in rows.defer(*heavy)}
    return [known[pk] for pk in sorted(known)]


def _resolve_sent(using: str, sent: Sequence[tuple[Replay, str]]) -> int:
    if not sent:
        return 0
    now = timezone.now()
    for replay, result in sent:
        replay.state, replay.result, replay.finished_at, replay.executor = Replay.State.SUCCEEDED, result, now, me()
    rows = [replay for replay, _result in sent]
    count = end_each(using, rows, ["state", "finished_at", "executor"])
    of_attempts: dict[int, list[int]] = defaultdict(list)
    for replay in rows:
        of_attempts[replay.letter.attempts].append(replay.letter_id)
    for attempts, ids in of_attempts.items():
        # A consumer may have read the record and failed already: then that stands.
        letters().filter(pk__in=ids, attempts=attempts).update(state=DeadLetter.State.RESOLVED, settled_at=now)
    return count


def _resolve_handled(using: str, handled: Sequence[tuple[Replay, str]], released: list[int]) -> int:
    if not handled:
        return 0
    _let_go(using, [replay for replay, _result in handled], released)
    count = 0
    for result, group in groupby(sorted(handled, key=lambda each: each[1]), key=lambda each: each[1]):
        count += _end([replay for replay, _result in group], Replay.State.SUCCEEDED, result)
    ids = [replay.letter_id for replay, _result in handled]
    settled = {"state": DeadLetter.State.RESOLVED, "settled_at": timezone.now()}
    letters().filter(pk__in=ids).update(attempts=F("attempts") + 1, **settled)
    add_successes(using, [replay.letter for replay, _result in handled], DeadLetterAttempt.Origin.REPLAY)
    return count


def _let_go(using: str, handled: Sequence[Replay], released: list[int]) -> None:
    # Read now: a letter may have begun to hold its key while its handler ran.
    held = dict(
        letters().filter(pk__in=[each.letter_id for each in handled], hold__isnull=False).values_list("pk", "hold_id")
    )
    if not held:
        return
    holds.lock_of(using, held)
    for replay in handled:
        hold_id = held.get(replay.letter_id)
        if hold_id is not None and (following := holds.let_go(using, replay.letter_id, hold_id, replay)) is not None:
            released.append(following.pk)


def _fail(using: str, failed: Sequence[tuple[Replay, Failure | None, str]]) -> int:
    count = 0
    for replay, _failure, result in failed:
        count += _end([replay], Replay.State.FAILED, result)
    attempts = [(replay.letter, failure) for replay, failure, _result in failed if failure is not None]
    add_attempts(using, attempts, DeadLetterAttempt.Origin.REPLAY)
    return count


def _end(rows: Sequence[Replay], state: str, result: str) -> int:
    now = timezone.now()
    for replay in rows:
        replay.state, replay.result, replay.finished_at, replay.executor = state, result, now, me()
    waiting = replays().filter(pk__in=[replay.pk for replay in rows], state=Replay.State.REQUESTED)
    return waiting.update(state=state, result=result, finished_at=now, executor=me())


def _leave_behind(lane: JobLane, replay: Replay) -> int:
    """Leave later letters of the same key where they are, so that they do not overtake the one that failed."""
    letter = replay.letter
    if letter.key is None:
        return 0
    same = letters().filter(
        key_hash=letter.key_hash, key=letter.key, topic=letter.topic, partition=letter.partition
    )  # fmt: skip
    later = waiting_in(lane).filter(pk__gt=replay.pk, letter__in=same.values("pk")).order_by()
    result = f"{letter} has the same key, comes before it, and failed."
    return later.update(state=Replay.State.BEHIND, result=result, finished_at=timezone.now(), executor=me())


def _count(done: Settled) -> None:
    if not done.done:
        return
    jobs().filter(pk=done.job).update(
        begun_at=Coalesce("begun_at", Now()),
        succeeded=F("succeeded") + done.succeeded,
        failed=F("failed") + done.failed,
        skipped=F("skipped") + done.skipped,
        behind=F("behind") + done.behind,
        cancelled=F("cancelled") + done.cancelled,
        step_done=F("step_done") + done.succeeded + done.failed,
        step_failed=F("step_failed") + done.failed,
    )


def cancel_waiting(claims: LaneClaims, lane: JobLane, most: int) -> Settled:
    """Cancel what waits in a lane, up to so many at once. Raises `ClaimLost`."""
    using = conf.kafka().dead_letters.database
    done = Settled(job=lane.job_id, consumer=lane.job.consumer)
    with transaction.atomic(using=using):
        if not claims.mine(lane).update(claimed_at=Now()):
            raise ClaimLost(f"Lane {lane} was taken over.")
        ids = list(waiting_in(lane).values_list("pk", flat=True)[:most])
        done.cancelled = replays().filter(pk__in=ids).update(state=Replay.State.CANCELLED, finished_at=timezone.now())
        _count(done)
    return done


def _tell(consumer: str, succeeded: Sequence[Replay], failed: Sequence[Replay], done: Settled) -> None:
    counts: Any = tallies.of_consumer(consumer).replays
    for state in ("succeeded", "failed", "skipped", "behind"):
        if number := getattr(done, state):
            counts[state] += number
    if dead_letter_replayed.receivers:
        _send(consumer, [*succeeded, *failed])


def _send(consumer: str, ended: Sequence[Replay]) -> None:
    """Tell receivers. What became of the letters is committed: nothing may have it written again."""
    try:
        as_they_are = letters().in_bulk({replay.letter_id for replay in ended})
    except Exception as error:
        if retries.stops_worker(error):
            raise
        log.warning("consumer=%s nobody hears of %d replays: %s", consumer, len(ended), type(error).__name__)
        return
    for replay in ended:
        # One that was deleted meanwhile is nothing to hear of.
        if (letter := as_they_are.get(replay.letter_id)) is not None:
            replay.letter = letter
            dead_letter_replayed.send_robust(consumer, letter=letter, replay=replay)
