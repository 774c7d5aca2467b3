"""A piece of a job whose letters go to their handlers: one after another, and what became of them is written together.

Each handler runs in a transaction of its own, as always. Where that is of the database that has the letters, it moves
the cursor of its lane in the same transaction: what has happened is known exactly, whatever ends this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from django.db.models import F

from ... import conf, correlation, handlers, logs, retries, tallies
from ...exceptions import shown
from ...execution import Execution
from ...gathering import Gathered, here
from ...messages import Message
from ...models import JobLane, Replay
from .. import decoding
from ..claiming import ClaimLost
from ..executing import obstacle
from ..failures import Failure, told
from ..masking import masking
from ..outcomes import verdict as verdict_of
from ..replaying import replays
from ..stopping import Stop
from ..stored import StoredMessage
from ..targets import await_all, shares_its_row
from . import steering
from .claiming import LaneClaims
from .pieces import Key
from .settling import Outcomes, Settled, settle

log = logs.of(__name__)

SECONDS = 1.0
"""After so many a piece ends, so that the page of a job shows what happened."""
_MOST_UNSETTLED = 100
"""Letters that the row of a lane names at the most."""
_CONFLICTS = 10
"""So many times in a row a letter is tried again at once after a conflict in the database."""


class Handling:
    """Runs the handlers of one lane's letters, and writes what became of them."""

    def __init__(self, claims: LaneClaims, lane: JobLane, stop: Stop, *, careful: bool) -> None:
        """`careful`: write what became of each at once, since one of them may have killed a process."""
        self._claims, self._lane, self._stop, self._careful = claims, lane, stop, careful
        self._consumer = conf.consumer(lane.job.consumer)
        database = conf.kafka().dead_letters.database
        together = self._consumer.transaction != "none" and self._consumer.database == database
        self._shares = together and shares_its_row(database)
        self._done = Settled(job=lane.job_id, consumer=lane.job.consumer)
        self._waits_for = ""
        self._stopped: set[Key] = set()
        """Keys whose later letters must not run now."""
        self._begin([])

    def _begin(self, read: Sequence[Replay]) -> None:
        self._known = Outcomes()
        self._read: list[Replay] = list(read)
        self._unsettled: list[int] = []
        self._promised: list[tuple[Replay, Gathered, str, Message]] = []
        self._keys_promised: set[Key] = set()
        self._pending = False

    def run(self, piece: Sequence[Replay]) -> Settled:
        """Run the handlers of these replays, as many as there is time for, and return what became of them.

        Raises what meets an outage, after what is known was written; `ClaimLost`; and what stops a process.
        """
        self._read = list(piece)
        deadline = time.monotonic() + SECONDS
        for replay in piece:
            late = time.monotonic() >= deadline
            if late or self._stop.is_set() or self._waits_for or len(self._unsettled) >= _MOST_UNSETTLED:
                break
            key = Key.of(replay.letter)
            if key in self._keys_promised:
                self._confirm()
            if key in self._stopped:
                self._unsettled.append(replay.pk)
                continue
            if not self._one(replay) and key is not None:
                self._stopped.add(key)
            if self._careful:
                self._write()
        self._write()
        return self._done

    def _one(self, replay: Replay) -> bool:
        """Run one, and tell whether later ones of its key may run."""
        self._pending = True
        if (found := obstacle(replay)) is not None:
            state, reason = found
            self._pass_over(replay)
            if state == Replay.State.FAILED:
                self._known.failed.append((replay, None, reason))
                return False
            self._known.skipped.append((replay, reason))
            return True
        for _ in range(_CONFLICTS):
            try:
                self._handle(replay)
            except ClaimLost:
                raise
            except BaseException as error:
                if not isinstance(error, Exception) or retries.stops_worker(error):
                    self._write_if_possible()
                    if not isinstance(error, KeyboardInterrupt):
                        replays().filter(pk=replay.pk).update(deaths=F("deaths") + 1)
                    raise
                verdict = verdict_of(error, replay, self._message)
                if isinstance(verdict, retries.Again):
                    last = error
                    continue
                return self._judge(replay, error, verdict)
            return True
        self._write_if_possible()
        raise last

    def _judge(self, replay: Replay, error: Exception, verdict: retries.Verdict) -> bool:
        match verdict:
            case retries.Skip(reason):
                self._pass_over(replay)
                self._known.succeeded.append((replay, f"Skipped: {told(reason, self._message)}"))
                return True
            case retries.DeadLetter(category):
                self._pass_over(replay)
                self._known.failed.append((replay, *self._failure(error, category, self._message)))
                return False
        # An outage. Whether it came before or after a COMMIT the cursor tells whoever goes on.
        self._write_if_possible()
        raise error

    def _failure(self, error: Exception, category: str, message: Message | None) -> tuple[Failure, str]:
        failure = Failure.of(retries.blamed(error), category=category, handler=self._path, message=message)
        return failure, f"{failure.error_type}: {failure.error_message}"

    def _pass_over(self, replay: Replay) -> None:
        self._unsettled.append(replay.pk)

    def _handle(self, replay: Replay) -> None:
        letter = replay.letter
        self._path, self._message = letter.handler, None
        found = handlers.for_topic(self._consumer.name, letter.topic)
        message = self._message = Message(StoredMessage.of(replay), found.decoder, letter.attempts + 1)
        gathered = here.begin()

        def finish() -> None:
            # In the transaction of the handler's effects.
            if self._shares:
                self._mark(replay, produced=bool(gathered.sent or gathered.promised))

        try:
            execution = Execution(self._consumer, tallies.of_consumer(self._consumer.name), gathered)
            execution.replayed = letter.traceback
            self._path = found.match(message).path
            with correlation.about(message):
                execution.run(message, found, finish)
        finally:
            here.end()
        produced = bool(gathered.sent)
        if produced or (self._shares and gathered.promised):
            self._promised.append((replay, gathered, self._path, message))
            self._unsettled.append(replay.pk)
            if (key := Key.of(letter)) is not None:
                self._keys_promised.add(key)
        if not self._shares:
            self._surely(lambda: self._mark(replay, produced=False))

    def _mark(self, replay: Replay, *, produced: bool) -> None:
        """Move the cursor of the lane over a letter whose handler has succeeded."""
        unsettled = [*self._unsettled, replay.pk] if produced else self._unsettled
        if unsettled:
            ours = bool(self._claims.mine(self._lane).update(cursor=replay.pk, unsettled=unsettled))
        else:
            ours = self._claims.move(self._lane, replay.pk)
        if not ours:
            raise ClaimLost(f"Lane {self._lane} was taken over.")

    def _confirm(self) -> None:
        """Wait until what handlers produced is acknowledged, and send again what an outage kept back."""
        promised, self._promised = self._promised, []
        self._keys_promised.clear()
        for replay, gathered, path, message in promised:
            try:
                await_all(gathered, self._stop)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # a handler's producer may raise anything
                self._path = path
                if not self._judge_produced(replay, error, message) and (key := Key.of(replay.letter)) is not None:
                    self._stopped.add(key)
                continue
            self._known.succeeded.append((replay, ""))

    def _judge_produced(self, replay: Replay, error: Exception, message: Message) -> bool:
        """Judge a record that was not delivered, and tell whether later letters of the same key may run."""
        match verdict_of(error, replay, message):
            case retries.Skip(reason):
                self._known.succeeded.append((replay, f"Skipped: {told(reason, message)}"))
                return True
            case retries.DeadLetter(category):
                self._known.failed.append((replay, *self._failure(error, category, message)))
            case _ if self._stop.is_set():
                log.info("replay=%s runs again: it was told to stop, and its records may be lost", replay.pk)
            case _:
                # The project wants to wait for what never comes by itself, and its handler has committed.
                # Masked now, while its payload is at hand: it stands on the page of the job.
                said = decoding.knowing(masking(), replay.letter).text(told(shown(error), message))
                self._waits_for = (
                    f"What the handler of {replay.letter} produced was not delivered, and is waited for "
                    f"({type(error).__name__}: {said}). When the job goes on, the handler runs again."
                )
        return False

    def _write(self) -> None:
        self._confirm()
        if self._waits_for:
            self._surely(lambda: steering.pause(self._lane.job, why=self._waits_for))
            log.warning("job=%s paused: %s", self._lane.job_id, self._waits_for)
        if self._pending:
            self._surely(self._settle)

    def _settle(self) -> None:
        self._done.add(settle(self._claims, self._lane, self._known, self._read))
        self._begin(self._read)

    def _surely(self, do: Callable[[], object]) -> None:
        """Do something whose letters' effects are committed: a conflict must not have their handlers run again."""
        for _ in range(_CONFLICTS):
            try:
                do()
                return
            except ClaimLost:
                raise
            except Exception as error:
                if not isinstance(retries.decide(error, policy=retries.once()), retries.Again):
                    raise
        do()

    def _write_if_possible(self) -> None:
        """Write what is known before an error that is raised; what cannot be written is found out by the cursor."""
        try:
            self._write()
        except Exception as error:  # noqa: BLE001  # the one that is raised says more
            log.warning("lane=%s not settled yet: %s", self._lane, type(error).__name__)
