"""Carrying out replay jobs, one piece of one lane after another; any number of executors may do so at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from django.db.models import F

from ... import logs, retries
from ...exceptions import ConfigurationError
from ...models import JobLane, Replay, ReplayJob
from ..claiming import ClaimLost
from ..replaying import replays
from ..stopping import Stop
from . import pieces, ramp, steering
from .claiming import SWEPT, LaneClaims
from .handling import Handling
from .rows import waiting_in
from .sending import Sending
from .settling import Outcomes, Settled, cancel_waiting, settle

log = logs.of(__name__)

_TURN = 5.0
"""Seconds after which a lane is given back, so that others have their turn."""
_FIRST = 16
"""Letters of the first piece of a lane, until it is known how long its handlers take."""
_CANCELLED_AT_ONCE = 2000


class JobExecutor:
    """Carries out pieces of replay jobs; used by one thread. Close it in the end."""

    def __init__(self, consumers: Sequence[str] | None = None, *, ids: Sequence[int] | None = None) -> None:
        """Take jobs of these consumers (None: of all), or only the jobs with these ids."""
        self._consumers, self._ids = consumers, ids
        self._claims = LaneClaims(consumers, ids)
        self._lane: JobLane | None = None
        self._until = 0.0
        self._careful = False
        self._size = _FIRST

    def rest(self) -> None:
        """Give back the lane that is held between two pieces of it, so that others go on with it."""
        if self._lane is not None:
            self._release(self._lane)

    def close(self) -> None:
        """Give back what is held, for good."""
        self.rest()
        self._claims.close()

    def tidy_up(self) -> None:
        """Do nothing: who carries out single replays does."""

    def run_next(self, stop: Stop | None = None) -> Settled | None:
        """Carry out a piece of a job and return what became of it; None when there is nothing to do now.

        A piece that meets an outage gives its lane back, and the error is raised: try again after a pause. A job that
        settings do not allow any more, such as one of a consumer that they do not have, is paused.
        """
        stop = stop or threading.Event()
        while True:
            lane = self._next_lane()
            if lane is None:
                # The last lane of a step has nothing left: the job goes on, or has come to its end.
                if stop.is_set() or not ramp.go_on(self._consumers, self._ids):
                    return None
                continue
            try:
                done = self._work(lane, stop)
            except ClaimLost:
                self._lane = None
                raise
            except BaseException as error:
                self._release(lane)
                if not _is_of_settings(error):
                    raise
                # Others' jobs can go on without them.
                steering.pause(lane.job, why=str(error))
                log.warning("job=%s paused: %s", lane.job_id, error)
                continue
            if done is not None:
                return done

    def _next_lane(self) -> JobLane | None:
        if (held := self._lane) is not None:
            if time.monotonic() < self._until:
                # Its job may have been paused since; its claim may have been lost.
                found = self._claims.mine(held).select_related("job").first()
                if found is not None:
                    self._lane = found
                    return found
                self._lane = None
            else:
                self._release(held)
        taken = self._claims.take()
        if taken is None:
            return None
        lane, ran_out = taken
        self._lane, self._until, self._size = lane, time.monotonic() + _TURN, _FIRST
        self._careful = ran_out and lane.job.target != Replay.Target.TOPIC
        try:
            if lane.cursor or lane.unsettled:
                settle(self._claims, lane, Outcomes())
            if self._careful:
                self._blame(lane)
        except BaseException:
            self._release(lane)
            raise
        return lane

    def _blame(self, lane: JobLane) -> None:
        """Note that a process ended while it had a lane: the letter that is next in it may be why."""
        log.warning("lane=%s taken over from %s", lane, lane.executor)
        first = pieces.read(lane, 1)
        replays().filter(pk__in=[each.pk for each in first]).update(deaths=F("deaths") + 1)

    def _release(self, lane: JobLane) -> None:
        self._lane = None
        self._claims.release(lane)

    def _work(self, lane: JobLane, stop: Stop) -> Settled | None:
        job = lane.job
        if job.state == ReplayJob.State.CANCELLING:
            done = cancel_waiting(self._claims, lane, _CANCELLED_AT_ONCE)
            if not waiting_in(lane).exists():
                self._pass(lane, SWEPT)
            return done
        if job.state != ReplayJob.State.RUNNING or lane.passed > job.step:
            self._release(lane)
            return None
        found = pieces.read(lane, self._most(job))
        if not found:
            self._pass(lane, job.step + 1)
            return None
        found = found[: ramp.reserve(job, len(found))]
        if not found:
            self._release(lane)
            return None
        done = self._carry_out(lane, found, stop)
        if done.failed:
            ramp.judge(job.pk)
        if job.rate is not None:
            # The next letters are for whoever asks first once they may be taken.
            self._release(lane)
        return done

    def _most(self, job: ReplayJob) -> int:
        most = pieces.MOST if job.target == Replay.Target.TOPIC else self._size
        return most if job.rate is None else min(most, max(1, int(job.rate)))

    def _pass(self, lane: JobLane, passed: int) -> None:
        """Note that a lane has nothing left of the steps up to this one, and give it back."""
        self._lane = None
        self._claims.release(lane, passed=passed)

    def _carry_out(self, lane: JobLane, found: Sequence[Replay], stop: Stop) -> Settled:
        if lane.job.target == Replay.Target.TOPIC:
            return self._send(lane, found)
        begun = time.monotonic()
        done = Handling(self._claims, lane, stop, careful=self._careful).run(found)
        self._careful = False
        took = max(time.monotonic() - begun, 0.001)
        # As many as there is time for: their payloads are read for nothing else.
        self._size = max(1, min(pieces.MOST, int(2 * done.done / took)))
        return done

    def _send(self, lane: JobLane, found: Sequence[Replay]) -> Settled:
        sending = Sending()
        sending.run(found)
        for tried in range(10):
            try:
                done = settle(self._claims, lane, sending.known)
                break
            except ClaimLost:
                raise
            except Exception as error:
                conflict = isinstance(retries.decide(error, policy=retries.once()), retries.Again)
                if not conflict or tried == 9:
                    raise
        if sending.outage is not None:
            raise sending.outage
        return done


def _is_of_settings(error: BaseException) -> bool:
    """Tell whether settings are wrong; a login that is refused is of the process, and may be let in later."""
    if not isinstance(error, ConfigurationError):
        return False
    return not isinstance(retries.decide(error, policy=retries.once()), retries.Wait)
