"""The Celery task that carries out replays, and the choice of who does. Works without Celery, which is an extra."""

from __future__ import annotations

import threading
import time
from enum import StrEnum
from functools import partial
from typing import Any, Final

from django.db import transaction

from . import conf, logs
from .conf.secrets import without_login
from .dead_letters import replaying
from .dead_letters.carrying import carry_out
from .dead_letters.executing import Executor
from .models import Replay
from .monitoring import heartbeats

try:
    from celery import current_app, shared_task  # type: ignore[import-untyped,unused-ignore]
    from celery._state import _get_active_apps  # type: ignore[import-untyped,unused-ignore]
except ImportError:
    current_app = shared_task = None

log = logs.of(__name__)

CARRY_OUT_REPLAYS: Final = "django_kafka.carry_out_replays"
"""The name by which the task is sent; it never changes."""

_LONGEST = 300.0
"""Seconds after which one task ends, and asks for the next one when replays are left."""
_AGAIN_AFTER = 30
"""Seconds until that one; also how soon the replay of a killed task is looked at again."""
_CONNECT_TIMEOUT = 3


class Carrier(StrEnum):
    """Who carries out the replays of a consumer."""

    WORKER = "worker"
    """One of its workers, which looks every second."""
    CELERY = "celery"
    """A Celery task, which was sent."""
    COMMAND = "command"
    """Nobody by itself: `python manage.py kafka_replay --requested` does."""
    UNREACHABLE = "celery-unreachable"
    """Celery should have, but its broker does not answer; so the command."""


def dispatch(consumer: str) -> Carrier:
    """Say who carries out the requested replays of `consumer`: a live worker, else Celery, else the command."""
    if heartbeats.alive(consumer):
        return Carrier.WORKER
    if (app := application()) is None or not app.conf.broker_write_url:
        return Carrier.COMMAND
    try:
        reach_broker(app, _CONNECT_TIMEOUT)
    except Exception as error:  # noqa: BLE001  # every transport has errors of its own, and the page must not fail
        log.warning("consumer=%s Celery's broker cannot be reached: %s", consumer, type(error).__name__)
        return Carrier.UNREACHABLE
    # The requests are part of the transaction that is open (ATOMIC_REQUESTS): a task that is quicker finds nothing.
    transaction.on_commit(partial(_send_task, app, consumer), using=conf.kafka().dead_letters.database, robust=True)
    return Carrier.CELERY


def application() -> Any:
    """Return the Celery application of the project: the first that has a broker; None without Celery."""
    if current_app is None:
        return None
    # As the current one it is known to the thread only that made it, and web servers answer in others.
    current = current_app._get_current_object()
    return next((app for app in (current, *_get_active_apps()) if app.conf.broker_write_url), current)


def reach_broker(app: Any, seconds: float) -> None:
    """Connect to the broker of a Celery application. Raises what its transport raises."""
    with app.connection_for_write(connect_timeout=seconds) as connection:
        connection.ensure_connection(max_retries=1, timeout=seconds)


def broker_shown(app: Any) -> str:
    """Return the address of its broker as it may be shown."""
    with app.connection_for_write() as connection:
        return without_login(str(connection.as_uri()))


def _send_task(app: Any, consumer: str) -> None:
    # Only after a look at the connection: sending waits much longer for a broker that does not answer.
    with app.connection_for_write(connect_timeout=_CONNECT_TIMEOUT) as connection:
        app.send_task(CARRY_OUT_REPLAYS, args=[consumer], connection=connection, retry=False, ignore_result=True)


def carry_out_for(consumer: str, seconds: float) -> bool:
    """Carry out the replays of `consumer` for so many seconds at most; tell whether none is left."""
    executor = Executor([consumer])

    def waiting(error: Exception, pause: float) -> None:
        log.warning("consumer=%s replays wait %.1f s: %s", consumer, pause, type(error).__name__)

    try:
        deadline = time.monotonic() + seconds
        done = sum(1 for _ in carry_out(executor, stop=threading.Event(), deadline=deadline, waiting=waiting))
        log.info("consumer=%s replays carried out: %d", consumer, done)
    finally:
        executor.close()
    # One that runs elsewhere counts: when its executor was killed, the next task takes it over.
    return not replaying.replays().filter(letter__consumer=consumer, state__in=Replay.OUTSTANDING).exists()


if shared_task is not None:

    @shared_task(  # type: ignore[untyped-decorator,unused-ignore]
        name=CARRY_OUT_REPLAYS, bind=True, acks_late=True, ignore_result=True, max_retries=None
    )
    def carry_out_replays(task: Any, consumer: str) -> None:
        """Carry out the requested replays of one consumer; ask for another turn while some are left."""
        if not carry_out_for(consumer, _LONGEST):
            raise task.retry(countdown=_AGAIN_AFTER)
