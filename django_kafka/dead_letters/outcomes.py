"""How a replay ends: its letter is resolved, or has one more failed attempt; what its key held back is let go."""

from __future__ import annotations

from dataclasses import replace

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from .. import conf, logs, retries
from ..exceptions import ConfigurationError
from ..messages import Message
from ..models import DeadLetter, DeadLetterAttempt, Replay
from . import holds
from .claiming import Claims
from .failures import Failure, told
from .replaying import letters
from .rows import add_attempt, me

log = logs.of(__name__)

_CONFLICTS = 10
"""So many times in a row somebody may park behind a letter while it is resolved, under REPEATABLE READ."""


class Postponed(Exception):
    """What a replay failed with is to be waited for, as only its consumer's settings say."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
        """What it failed with."""


class Carried:
    """A replay that is being carried out, under a claim."""

    def __init__(self, replay: Replay, claims: Claims) -> None:
        self.replay = replay
        """The row, with its letter."""
        self.message: Message | None = None
        """What the handler runs on; None of a replay to the topic."""
        self.path = replay.letter.handler
        """The handler that runs; until one is found, that which failed before."""
        self.handled = False
        """Whether its handler has succeeded, and its effects are committed."""
        self.released: list[Replay] = []
        """The replays of messages that were parked behind its letter, and are asked for now."""
        self.claims = claims
        """That of its executor."""
        self.database = claims.database
        """Where replays and letters are."""

    def resolve(self, result: str = "") -> None:
        """Resolve the letter."""
        letter = self.replay.letter
        with transaction.atomic(using=self.database):
            self.claims.finish(self.replay, Replay.State.SUCCEEDED, result)
            row = letters().filter(pk=letter.pk)
            settled = {"state": DeadLetter.State.RESOLVED, "settled_at": timezone.now()}
            if self.replay.target == Replay.Target.TOPIC:
                # No run of a handler. A consumer may have read the record and failed already: then that stands.
                row.filter(attempts=letter.attempts).update(**settled)
                return
            self._let_go()
            row.update(attempts=F("attempts") + 1, **settled)
            DeadLetterAttempt.objects.using(self.database).create(
                letter=letter, number=letter.attempts + 1, at=timezone.now(), origin=DeadLetterAttempt.Origin.REPLAY,
                worker=me(), succeeded=True,
            )  # fmt: skip

    def resolve_handled(self) -> None:
        """Resolve a letter whose effects are committed: a database conflict must not have its handler run again."""
        for _ in range(_CONFLICTS):
            try:
                return self.resolve()
            except Exception as error:
                if not isinstance(retries.decide(error, policy=retries.once()), retries.Again):
                    raise
        return self.resolve()

    def _let_go(self) -> None:
        # Read now: the letter may have begun to hold its key while its handler ran.
        letter_id = self.replay.letter_id
        hold_id = letters().filter(pk=letter_id).values_list("hold_id", flat=True).first()
        if hold_id is None:
            return
        released = holds.let_go(self.database, letter_id, hold_id, self.replay)
        if released is not None:
            self.released.append(released)

    def failed(self, error: Exception) -> None:
        """Store the error with the letter; or, where it is not the letter's fault, ask again and raise it.

        Raises `Postponed` instead where nobody but the consumer's settings calls it an outage.
        """
        letter = self.replay.letter
        verdict, general = self.verdict(error), retries.decide(error, policy=retries.once())
        if self.handled and isinstance(verdict, retries.Again | retries.Wait):
            # A record of its handler was refused for good: to wait for that would repeat the handler's effects.
            verdict = general
        match verdict:
            case retries.Skip(reason):
                self.resolve(f"Skipped: {told(reason, self.message)}")
            case retries.DeadLetter(category):
                failure = Failure.of(retries.blamed(error), category=category, handler=self.path, message=self.message)
                result = f"{failure.error_type}: {failure.error_message}"
                with transaction.atomic(using=self.database):
                    self.claims.finish(self.replay, Replay.State.FAILED, result)
                    add_attempt(self.database, letter, failure, DeadLetterAttempt.Origin.REPLAY)
            case _:
                self.claims.release(self.replay)
                raise Postponed(error) if isinstance(general, retries.DeadLetter) else error

    def verdict(self, error: Exception) -> retries.Verdict:
        """Return what is to be done about an error of this replay."""
        return verdict(error, self.replay, self.message)


def verdict(error: Exception, replay: Replay, message: Message | None) -> retries.Verdict:
    """Return what is to be done about an error of a replay; `message` is None when no handler ran."""
    return retries.decide(error, replay.letter.attempts + 1, _policy(replay, message), message)


def _policy(replay: Replay, message: Message | None) -> retries.Policy:
    """Return what decides about a replay that failed: it is one attempt, and can be asked for again."""
    try:
        if message is None:
            return retries.once()
        consumer = conf.consumer(replay.letter.consumer)
        return replace(retries.policy_for(consumer, replay.letter.topic), max_retries=0)
    except ConfigurationError as wrong:
        log.warning("replay=%s %s", replay.pk, wrong)
        return retries.ONCE
