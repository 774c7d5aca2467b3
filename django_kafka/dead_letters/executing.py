"""Carrying out replays: the one place where a dead letter gets its other chance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from django.db.models import QuerySet

from .. import conf, retries, tallies
from ..exceptions import ReplayRefused
from ..models import DeadLetter, Replay
from ..signals import dead_letter_replayed
from . import dry_runs, holds, importing, targets
from .claiming import ClaimLost, Claims
from .outcomes import Carried
from .replaying import replays
from .stopping import Stop
from .tidying import Tidying

_MOST_DEATHS = 3
"""So many processes may end while they carry out one replay."""


class Executor:
    """Claims replays one at a time and carries them out; used by one thread. Close it in the end."""

    def __init__(
        self,
        consumers: Sequence[str] | None = None,
        *,
        ids: Sequence[int] | None = None,
        before_each: Callable[[], None] = lambda: None,
    ) -> None:
        """Take replays of letters of these consumers (None: of all), or only the replays with these ids.

        `before_each` is called when one is claimed, before it is carried out, which may take long.
        """
        self._before_each = before_each
        self._consumers = consumers
        self._ids = ids
        self.followed: list[int] = []
        """The replays of messages that were parked behind a letter, in the order in which they were released here."""
        self._due: set[int] = set()
        """Those of them that have not come to their end here."""
        self._database = conf.kafka().dead_letters.database
        self._stop: Stop = threading.Event()
        self._tidying = Tidying()
        self._claims = Claims(self._database)

    def close(self) -> None:
        """Renew no more."""
        self._claims.close()

    def tidy_up(self) -> None:
        """Add failures that were counted to their groups, and delete what is kept no longer, each every so often."""
        self._tidying.do_what_is_due(self._stop)

    def run_next(self, stop: Stop | None = None) -> Replay | None:
        """Claim the oldest replay and carry it out; return it, or None when there is none to claim.

        A replay that meets an outage is asked for again, and the error is raised: try again after a pause. `stop` ends
        the wait for records that its handler produced.
        """
        self._stop = stop or threading.Event()
        replay = self._claims.take(self._mine())
        if replay is None:
            return None
        with self._claims.renewed(replay):
            self._before_each()
            self._carry_out(replay)
        self._due.discard(replay.pk)
        replay.refresh_from_db(using=self._database)
        if replay.target == Replay.Target.DRY_RUN:
            return replay
        tallies.of_consumer(replay.letter.consumer).replays[replay.state] += 1
        dead_letter_replayed.send_robust(replay.letter.consumer, letter=replay.letter, replay=replay)
        return replay

    def _mine(self) -> QuerySet[Replay]:
        mine = replays().filter(job__isnull=True)
        if self._consumers is not None:
            mine = mine.filter(letter__consumer__in=self._consumers)
        if self._ids is not None:
            mine = mine.filter(pk__in=[*self._ids, *self._due])
        return mine

    def _carry_out(self, replay: Replay) -> None:
        carried = Carried(replay, self._claims)
        if (reason := obstacle(replay)) is not None:
            self._claims.finish(replay, *reason)
            return
        try:
            if replay.target == Replay.Target.DRY_RUN:
                self._unless_refused(carried, _run_dry)
            elif replay.target == Replay.Target.TOPIC:
                self._unless_refused(carried, targets.to_topic)
            else:
                targets.to_handler(carried, self._stop)
        except ClaimLost:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) or retries.stops_worker(error):
                self._claims.release(replay, deaths=0 if isinstance(error, KeyboardInterrupt) else 1)
                raise
            if replay.target == Replay.Target.DRY_RUN:
                self._claims.release(replay)
                raise
            # A handler may raise anything; it is stored with the letter.
            carried.failed(error)
        finally:
            released = [each.pk for each in carried.released]
            self.followed += released
            self._due.update(released)

    def _unless_refused(self, carried: Carried, carry_out: Callable[[Carried], None]) -> None:
        try:
            carry_out(carried)
        except ReplayRefused as refusal:
            self._claims.finish(carried.replay, Replay.State.CANCELLED, str(refusal))


def _run_dry(carried: Carried) -> None:
    dry_runs.finish(carried, dry_runs.run(carried))


def obstacle(replay: Replay) -> tuple[str, str] | None:
    """Return how a replay ends that may not be carried out, and why; None when it may."""
    letter = replay.letter
    if letter.state != DeadLetter.State.OPEN:
        return Replay.State.CANCELLED, f"The letter is {letter.get_state_display()}."
    if replay.deaths >= _MOST_DEATHS:
        sentence = f"{replay.deaths} processes ended while they carried it out; it was not tried again."
        return Replay.State.FAILED, sentence
    try:
        importing.refuse(letter, replay.target, replay.to_topic)
        holds.refuse(letter, replay.target)
    except ReplayRefused as refusal:
        return Replay.State.CANCELLED, str(refusal)
    return None
