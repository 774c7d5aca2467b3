"""Carrying out replays: the one place where a dead letter gets its other chance."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from django.db import connections, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from .. import conf, correlation, handlers, logs, retries, tallies
from ..deliveries import Delivery
from ..exceptions import ConfigurationError, DeliveryTimeout, KafkaError, ReplayRefused
from ..execution import Execution
from ..gathering import Gathered, here
from ..messages import LETTER_HEADER, Message
from ..models import DeadLetter, DeadLetterAttempt, Replay
from ..producers import producers
from ..producing import send_now
from ..signals import dead_letter_replayed
from . import grouping, holds, importing, retention
from .failures import Failure
from .foreign import without
from .publishing import producer_for
from .replaying import LEASE, letters, replays, unclaimed
from .rows import add_attempt, me

log = logs.of(__name__)

_COMMITTED_READS = (1, 2)
"""psycopg's names for READ UNCOMMITTED, which is the same in PostgreSQL, and READ COMMITTED."""
_ADD_UP_EVERY = 5.0
"""Seconds between two times of adding up failures."""
_PRUNE_EVERY = 600.0
"""Seconds between two times of deleting letters whose time is over."""
_PRUNED_AT_ONCE = 5000
"""Of them, before somebody's replay is looked for again."""
_MOST_DEATHS = 3
"""So many processes may end while they carry out one replay."""
_CONFLICTS = 10
"""So many times in a row somebody may park behind a letter while it is resolved, under REPEATABLE READ."""


class Stop(Protocol):
    """What tells an executor to stop, such as an event."""

    def is_set(self) -> bool:
        """Tell whether to stop."""

    def wait(self, timeout: float) -> bool:
        """Wait until it is time to stop, for `timeout` seconds at most, and tell whether it is."""


class ClaimLost(KafkaError):
    """Somebody else has taken the replay over; what was done for it here is rolled back."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A dead letter, read like the message that it was."""

    letter: DeadLetter
    """The row."""

    def topic(self) -> str:
        """Return the topic it came from."""
        return self.letter.topic

    def partition(self) -> int:
        """Return the partition it came from."""
        return self.letter.partition

    def offset(self) -> int:
        """Return its offset there."""
        return self.letter.offset

    def timestamp(self) -> tuple[int, int]:
        """Return its kind (0: none) and milliseconds since the epoch."""
        return (0, -1) if self.letter.timestamp_ms is None else (1, self.letter.timestamp_ms)

    def key(self) -> bytes | None:
        """Return its key."""
        return None if self.letter.key is None else bytes(self.letter.key)

    def value(self) -> bytes | None:
        """Return its value."""
        return None if self.letter.value is None else bytes(self.letter.value)

    def headers(self) -> list[tuple[str, bytes | None]]:
        """Return its headers."""
        return self.letter.headers


class Executor:
    """Claims replays one at a time and carries them out; used by one thread. Close it in the end."""

    def __init__(self, consumers: Sequence[str] | None = None, *, ids: Sequence[int] | None = None) -> None:
        """Take replays of letters of these consumers (None: of all), or only the replays with these ids."""
        self._consumers = consumers
        self._ids = ids
        self.followed: list[int] = []
        """The replays of messages that were parked behind a letter, in the order in which they were released here."""
        self._due: set[int] = set()
        """Those of them that have not come to their end here."""
        self._add_up_at = 0.0
        # Not all workers of a deploy at once, and those that live for seconds never.
        self._prune_at = time.monotonic() + random.uniform(_PRUNE_EVERY / 10, _PRUNE_EVERY)
        self._claim = uuid.uuid4().hex
        self._database = conf.kafka().dead_letters.database
        self._ended = threading.Event()
        self._running: int | None = None
        self._message: Message | None = None
        """What the handler runs on; None of a replay to the topic."""
        self._stop: Stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="kafka-replay-lease", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Renew no more."""
        self._ended.set()
        self._keeper.join(5)

    def tidy_up(self) -> None:
        """Add failures that were counted to their groups, and delete what is kept no longer, each every so often."""
        now = time.monotonic()
        if now >= self._add_up_at:
            self._add_up_at = now + _ADD_UP_EVERY
            if grouping.add_up() >= grouping.TOGETHER:
                self._add_up_at = now
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_EVERY
            if retention.prune(most=_PRUNED_AT_ONCE, go_on=lambda: not self._stop.is_set()) >= _PRUNED_AT_ONCE:
                self._prune_at = now

    def run_next(self, stop: Stop | None = None) -> Replay | None:
        """Claim the oldest replay and carry it out; return it, or None when there is none to claim.

        A replay that meets an outage is asked for again, and the error is raised: try again after a pause. `stop` ends
        the wait for records that its handler produced.
        """
        self._stop = stop or threading.Event()
        replay = self._claim_next()
        if replay is None:
            return None
        self._running = replay.pk
        try:
            self._carry_out(replay)
        finally:
            self._running = None
        self._due.discard(replay.pk)
        replay.refresh_from_db(using=self._database)
        tallies.of_consumer(replay.letter.consumer).replays[replay.state] += 1
        dead_letter_replayed.send_robust(replay.letter.consumer, letter=replay.letter, replay=replay)
        return replay

    def _claim_next(self) -> Replay | None:
        while True:
            waiting = replays().filter(unclaimed())
            if self._consumers is not None:
                waiting = waiting.filter(letter__consumer__in=self._consumers)
            if self._ids is not None:
                waiting = waiting.filter(pk__in=[*self._ids, *self._due])
            found = waiting.order_by("id").values("pk", "state", "claim").first()
            if found is None:
                return None
            # Unclaimed it must be still: whoever has it may have renewed its claim since.
            mine = replays().filter(unclaimed(), **found)
            # A claim that was not given back: whoever had it is dead, or cannot reach the database.
            deaths = F("deaths") + (1 if found["state"] == Replay.State.RUNNING else 0)
            claim = {"claim": self._claim, "claimed_at": Now(), "executor": me()}
            if mine.update(state=Replay.State.RUNNING, deaths=deaths, **claim):
                return replays().select_related("letter").get(pk=found["pk"])

    def _keep(self) -> None:
        """Renew the claim of what runs, so that a long handler is not taken over."""
        while not self._ended.wait(LEASE / 4):
            if (running := self._running) is None:
                continue
            try:
                replays().filter(pk=running, claim=self._claim).update(claimed_at=Now())
            except Exception as error:  # noqa: BLE001  # the next turn tries again; the final compare-and-set decides
                log.warning("replay=%s claim not renewed: %s", running, type(error).__name__)
            finally:
                connections[self._database].close()

    def _carry_out(self, replay: Replay) -> None:
        letter = replay.letter
        if letter.state != DeadLetter.State.OPEN:
            self._finish(replay, Replay.State.CANCELLED, f"The letter is {letter.get_state_display()}.")
            return
        if replay.deaths >= _MOST_DEATHS:
            sentence = f"{replay.deaths} processes ended while they carried it out; it was not tried again."
            self._finish(replay, Replay.State.FAILED, sentence)
            return
        path = letter.handler
        self._message = None
        try:
            importing.refuse(letter, replay.target)
            holds.refuse(letter, replay.target)
        except ReplayRefused as refusal:
            self._finish(replay, Replay.State.CANCELLED, str(refusal))
            return
        try:
            if replay.target == Replay.Target.TOPIC:
                self._to_topic(replay)
            else:
                path = self._to_handler(replay)
        except ClaimLost:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) or retries.stops_worker(error):
                self._release(replay, deaths=0 if isinstance(error, KeyboardInterrupt) else 1)
                raise
            # A handler may raise anything; it is stored with the letter.
            self._failed(replay, error, path)

    def _to_handler(self, replay: Replay) -> str:
        consumer = conf.consumer(replay.letter.consumer)
        found = handlers.for_topic(consumer.name, replay.letter.topic)
        message = self._message = Message(StoredMessage(replay.letter), found.decoder, replay.letter.attempts + 1)
        gathered = here.begin()
        together = consumer.transaction != "none" and consumer.database == self._database and self._shares_its_row()
        resolved = False

        def finish() -> None:
            nonlocal resolved
            # In the transaction of the handler's effects, unless its records have yet to be acknowledged.
            if together and not (gathered.sent or gathered.promised):
                self._resolve(replay)
                resolved = True

        try:
            execution = Execution(consumer, tallies.of_consumer(consumer.name), gathered)
            execution.replayed = replay.letter.traceback
            with correlation.about(message):
                execution.run(message, found, finish)
                self._await(gathered)
        finally:
            here.end()
        if not resolved:
            self._resolve_handled(replay)
        return found.match(message).path

    def _shares_its_row(self) -> bool:
        """Tell whether a transaction may update the row of a replay whose claim is renewed meanwhile.

        Under REPEATABLE READ and above PostgreSQL refuses that, each time anew.
        """
        connection: Any = connections[self._database]
        if connection.vendor != "postgresql":
            return True
        connection.ensure_connection()
        return connection.isolation_level in (None, *_COMMITTED_READS)

    def _await(self, gathered: Gathered) -> None:
        """Wait until what the handler produced is acknowledged; send again what an outage kept back.

        Its effects are committed: to run it again would repeat them.
        """
        tries = 0
        for sent in gathered.sent:
            while True:
                try:
                    _acknowledged(sent.delivery)
                    break
                except MemoryError:
                    raise
                except Exception as error:
                    tries += 1
                    outage = isinstance(retries.decide(error, policy=retries.once()), retries.Wait)
                    if not outage or self._stop.wait(retries.pause(tries)):
                        raise
                    sent.again()

    def _to_topic(self, replay: Replay) -> None:
        letter = replay.letter
        stored = StoredMessage(letter)
        # A message of ours keeps what others wrote on it; an imported one has it from its dead-letter topic.
        headers = without(stored.headers(), letter.imported_as)
        headers.append((LETTER_HEADER, str(letter.pk).encode()))
        route = producers[producer_for(letter.cluster).name].route_to(importing.home(letter))
        delivery = _acknowledged(send_now(route, (stored.value(), stored.key(), -1, headers, 0)))
        self._resolve(replay, f"{delivery.topic}[{delivery.partition}]@{delivery.offset}")

    def _resolve_handled(self, replay: Replay) -> None:
        """Resolve a letter whose effects are committed: a database conflict must not have its handler run again."""
        for _ in range(_CONFLICTS):
            try:
                return self._resolve(replay)
            except Exception as error:
                if not isinstance(retries.decide(error, policy=retries.once()), retries.Again):
                    raise
        return self._resolve(replay)

    def _resolve(self, replay: Replay, result: str = "") -> None:
        letter = replay.letter
        with transaction.atomic(using=self._database):
            self._finish(replay, Replay.State.SUCCEEDED, result)
            row = letters().filter(pk=letter.pk)
            settled = {"state": DeadLetter.State.RESOLVED, "settled_at": timezone.now()}
            if replay.target == Replay.Target.TOPIC:
                # No run of a handler. A consumer may have read the record and failed already: then that stands.
                row.filter(attempts=letter.attempts).update(**settled)
                return
            self._let_go(replay)
            row.update(attempts=F("attempts") + 1, **settled)
            DeadLetterAttempt.objects.using(self._database).create(
                letter=letter, number=letter.attempts + 1, at=timezone.now(), origin=DeadLetterAttempt.Origin.REPLAY,
                worker=me(), succeeded=True,
            )  # fmt: skip

    def _let_go(self, replay: Replay) -> None:
        # Read now: the letter may have begun to hold its key while its handler ran.
        hold_id = letters().filter(pk=replay.letter_id).values_list("hold_id", flat=True).first()
        if hold_id is None:
            return
        released = holds.let_go(self._database, replay.letter_id, hold_id, replay)
        if released is not None:
            self.followed.append(released.pk)
            self._due.add(released.pk)

    def _failed(self, replay: Replay, error: Exception, path: str) -> None:
        match retries.decide(error, replay.letter.attempts + 1, self._policy(replay), self._message):
            case retries.Skip(reason):
                self._resolve(replay, f"Skipped: {reason}")
            case retries.DeadLetter(category):
                failure = Failure.of(retries.blamed(error), category=category, handler=path)
                with transaction.atomic(using=self._database):
                    self._finish(replay, Replay.State.FAILED, f"{failure.error_type}: {failure.error_message}")
                    add_attempt(self._database, replay.letter, failure, DeadLetterAttempt.Origin.REPLAY)
            case _:
                self._release(replay)
                raise error

    def _policy(self, replay: Replay) -> retries.Policy:
        """Return what decides about a replay that failed: it is one attempt, and can be asked for again."""
        try:
            if self._message is None:
                return retries.once()
            consumer = conf.consumer(replay.letter.consumer)
            return replace(retries.policy_for(consumer, replay.letter.topic), max_retries=0)
        except ConfigurationError as wrong:
            log.warning("replay=%s %s", replay.pk, wrong)
            return retries.ONCE

    def _finish(self, replay: Replay, state: str, result: str) -> None:
        mine = replays().filter(pk=replay.pk, state=Replay.State.RUNNING, claim=self._claim)
        if not mine.update(state=state, result=result, finished_at=timezone.now()):
            raise ClaimLost(f"Replay {replay.pk} was taken over or cancelled.")

    def _release(self, replay: Replay, deaths: int = 0) -> None:
        """Ask for the replay again; when even that fails, its claim runs out by itself."""
        mine = replays().filter(pk=replay.pk, state=Replay.State.RUNNING, claim=self._claim)
        try:
            mine.update(state=Replay.State.REQUESTED, claim="", claimed_at=None, deaths=F("deaths") + deaths)
        except Exception as error:  # noqa: BLE001
            log.warning("replay=%s not released: %s; it is taken over in %g s", replay.pk, type(error).__name__, LEASE)
            connections[self._database].close()


def _acknowledged(delivery: Delivery) -> Delivery:
    """Wait for a delivery, however long: its delivery timeout bounds that.

    Giving up earlier would leave the record in the queue, and send it again beside it.
    """
    said = False
    while True:
        try:
            return delivery.result()
        except DeliveryTimeout as error:
            if not said:
                log.warning("waiting for what is sent in a replay: %s", error)
            said = True
