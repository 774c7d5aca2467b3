"""Rows that say which workers are alive."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from django.db import connections
from django.utils import timezone

from .. import __version__, conf
from ..models import Worker

log = logging.getLogger(__name__)

_STALE_AFTER = 3
"""Beats missed before a worker counts as gone."""
_FORGOTTEN_AFTER = 720
"""Beats missed before its row is deleted: an hour at the default interval."""


def alive(consumer: str) -> bool:
    """Tell whether a worker of `consumer` was heard of lately."""
    workers = Worker.objects.using(conf.kafka().dead_letters.database)
    return workers.filter(consumer=consumer, seen_at__gte=alive_since()).exists()


def alive_since() -> datetime:
    """Return when a worker was last heard of at the earliest, if it still counts as alive."""
    return timezone.now() - timedelta(seconds=conf.kafka().heartbeats.interval * _STALE_AFTER)


class Heartbeat(threading.Thread):
    """Writes one row for each consumer of this process, every `heartbeats.interval`, and deletes them at the end."""

    def __init__(self, consumers: Sequence[tuple[conf.Consumer, str]]) -> None:
        super().__init__(name="kafka-heartbeat", daemon=True)
        self._settings = conf.kafka()
        self._database = self._settings.dead_letters.database
        self._ended = threading.Event()
        now = timezone.now()
        self._rows = [
            Worker(
                id=uuid.uuid4().hex,
                cluster=consumer.cluster,
                consumer=consumer.name,
                group_id=group_id,
                host=socket.gethostname()[:255],
                pid=os.getpid(),
                version=__version__,
                started_at=now,
            )
            for consumer, group_id in consumers
        ]
        self._failing = False

    def run(self) -> None:
        """Beat until the end. A database that is down is waited for."""
        try:
            self._try(self._forget_the_dead)
            self._try(self._beat)
            while not self._ended.wait(self._settings.heartbeats.interval):
                self._try(self._beat)
            self._try(self._remove_rows)
        finally:
            connections[self._database].close()

    def end(self) -> None:
        """Delete the rows and stop."""
        self._ended.set()
        self.join(5)

    def _beat(self) -> None:
        now = timezone.now()
        for row in self._rows:
            row.seen_at = now
        rows = Worker.objects.using(self._database)
        rows.bulk_create(self._rows, update_conflicts=True, unique_fields=["id"], update_fields=["seen_at"])

    def _remove_rows(self) -> None:
        Worker.objects.using(self._database).filter(pk__in=[row.pk for row in self._rows]).delete()

    def _forget_the_dead(self) -> None:
        bound = timezone.now() - timedelta(seconds=self._settings.heartbeats.interval * _FORGOTTEN_AFTER)
        Worker.objects.using(self._database).filter(seen_at__lt=bound).delete()

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
            self._failing = False
        except Exception as error:  # noqa: BLE001  # heartbeats must never end a worker
            if not self._failing:
                log.warning("heartbeat failed: %s", type(error).__name__)
            self._failing = True
            connections[self._database].close()
