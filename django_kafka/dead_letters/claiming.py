"""Claims on replays: one at a time for an executor, renewed while it is carried out, given back or lost."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from .. import logs
from ..exceptions import KafkaError
from ..models import Replay
from .replaying import LEASE, replays, unclaimed
from .rows import me

log = logs.of(__name__)


class ClaimLost(KafkaError):
    """Somebody else has taken the replay over; what was done for it here is rolled back."""


class Claims:
    """The claims of one executor. Close it in the end."""

    def __init__(self, database: str) -> None:
        """Keep them in the rows of this database."""
        self.database = database
        """Where replays and letters are."""
        self._claim = uuid.uuid4().hex
        self._ended = threading.Event()
        self._running: int | None = None
        self._keeper = threading.Thread(target=self._keep, name="kafka-replay-lease", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Renew no more."""
        self._ended.set()
        self._keeper.join(5)

    def take(self, waiting: QuerySet[Replay]) -> Replay | None:
        """Claim the oldest of these that nobody works on; return it with its letter, or None when there is none."""
        while True:
            found = waiting.filter(unclaimed()).order_by("id").values("pk", "state", "claim").first()
            if found is None:
                return None
            # Unclaimed it must be still: whoever has it may have renewed its claim since.
            mine = replays().filter(unclaimed(), **found)
            # A claim that was not given back: whoever had it is dead, or cannot reach the database.
            deaths = F("deaths") + (1 if found["state"] == Replay.State.RUNNING else 0)
            claim = {"claim": self._claim, "claimed_at": Now(), "executor": me()}
            if mine.update(state=Replay.State.RUNNING, deaths=deaths, **claim):
                return replays().select_related("letter").get(pk=found["pk"])

    @contextmanager
    def renewed(self, replay: Replay) -> Iterator[None]:
        """Renew the claim on this one until the block ends, so that a long handler is not taken over."""
        self._running = replay.pk
        try:
            yield
        finally:
            self._running = None

    def _keep(self) -> None:
        while not self._ended.wait(LEASE / 4):
            if (running := self._running) is None:
                continue
            try:
                replays().filter(pk=running, claim=self._claim).update(claimed_at=Now())
            except Exception as error:  # noqa: BLE001  # the next turn tries again; the final compare-and-set decides
                log.warning("replay=%s claim not renewed: %s", running, type(error).__name__)
            finally:
                connections[self.database].close()

    def finish(self, replay: Replay, state: str, result: str, *, report: bytes | None = None) -> None:
        """Bring a replay to its end; raise `ClaimLost` when it is no longer claimed here."""
        mine = replays().filter(pk=replay.pk, state=Replay.State.RUNNING, claim=self._claim)
        if not mine.update(state=state, result=result, report=report, finished_at=timezone.now()):
            raise ClaimLost(f"Replay {replay.pk} was taken over or cancelled.")

    def release(self, replay: Replay, deaths: int = 0) -> None:
        """Ask for the replay again; when even that fails, its claim runs out by itself."""
        mine = replays().filter(pk=replay.pk, state=Replay.State.RUNNING, claim=self._claim)
        try:
            mine.update(state=Replay.State.REQUESTED, claim="", claimed_at=None, deaths=F("deaths") + deaths)
        except Exception as error:  # noqa: BLE001
            log.warning("replay=%s not released: %s; it is taken over in %g s", replay.pk, type(error).__name__, LEASE)
            connections[self.database].close()
