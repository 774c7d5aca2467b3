"""Who carries out replays and jobs: a worker, Celery, Django's own tasks, or the command. Celery is an extra."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.utils.module_loading import import_string

from . import conf, logs
from .conf.secrets import without_login
from .dead_letters import jobs, replaying
from .dead_letters.carrying import Everything, carry_out
from .dead_letters.jobs.settling import Settled
from .models import Replay, ReplayJob
from .monitoring import heartbeats

log = logs.of(__name__)

CARRY_OUT_REPLAYS: Final = "django_kafka.carry_out_replays"
"""The name by which the task is sent; it never changes."""

LONGEST: Final = 300.0
"""Seconds after which one task ends, and asks for the next one when replays are left."""
_CONNECT_TIMEOUT = 3
_TASK = "django_kafka.background.carry_out_replays"
_GOING_ON = (ReplayJob.State.RUNNING, ReplayJob.State.CANCELLING)


class Carrier(StrEnum):
    """Who carries out the replays of a consumer."""

    WORKER = "worker"
    """One of its workers, which looks every second."""
    CELERY = "celery"
    """A Celery task, which was sent."""
    COMMAND = "command"
    """Nobody by itself: `python manage.py kafka_replay --requested` does, or with `--jobs`."""
    TASKS = "tasks"
    """A task of Django's own framework, which was enqueued."""
    UNREACHABLE = "celery-unreachable"
    """Celery should have, but its broker does not answer; so the command."""


def dispatch(consumer: str) -> Carrier:
    """Say who carries out the requested replays and jobs of `consumer`.

    That is a live worker, else Celery, else a task of Django's own framework, else the command.
    """
    if heartbeats.alive(consumer):
        return Carrier.WORKER
    if (app := application()) is None or not app.conf.broker_write_url:
        return _enqueue(consumer) if _has_tasks() else Carrier.COMMAND
    try:
        reach_broker(app, _CONNECT_TIMEOUT)
    except Exception as error:  # noqa: BLE001  # every transport has errors of its own, and the page must not fail
        log.warning("consumer=%s Celery's broker cannot be reached: %s", consumer, type(error).__name__)
        return Carrier.UNREACHABLE
    # The requests are part of the transaction that is open (ATOMIC_REQUESTS): a task that is quicker finds nothing.
    transaction.on_commit(partial(_send_task, app, consumer), using=conf.kafka().dead_letters.database, robust=True)
    return Carrier.CELERY


def _has_tasks() -> bool:
    """Tell whether the project uses Django's own framework of tasks, with a backend that runs them elsewhere."""
    if not settings.is_overridden("TASKS"):  # type: ignore[misc]  # the stubs do not know it
        return False
    backend = settings.TASKS.get("default", {}).get("BACKEND", "")
    # These run a task in the web request, or never.
    return bool(backend) and not backend.startswith(("django.tasks.backends.immediate", "django.tasks.backends.dummy"))


def _enqueue(consumer: str) -> Carrier:
    try:
        task = import_string(_TASK)
    except ImportError as error:
        # Django before 6.0, where the framework may be another package's.
        log.warning("consumer=%s TASKS cannot be used: %s", consumer, error)
        return Carrier.COMMAND
    database = conf.kafka().dead_letters.database
    transaction.on_commit(partial(task.enqueue, consumer), using=database, robust=True)
    return Carrier.TASKS


def application() -> Any:
    """Return the Celery application of the project: the first that has a broker; None without Celery."""
    # Not before somebody asks: it takes half as long as Django itself, and most processes need none of it.
    try:
        from celery import current_app  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
        from celery._state import _get_active_apps  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
    except ImportError:
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
    """Carry out the replays and jobs of `consumer` for so many seconds at most; tell whether nothing is left."""
    executor = Everything([consumer])
    done: Iterator[Replay | Settled]

    def waiting(error: Exception, pause: float) -> None:
        log.warning("consumer=%s replays wait %.1f s: %s", consumer, pause, type(error).__name__)

    try:
        deadline = time.monotonic() + seconds
        done = carry_out(executor, stop=threading.Event(), deadline=deadline, waiting=waiting)
        count = sum(one.done if isinstance(one, Settled) else 1 for one in done)
        log.info("consumer=%s replays carried out: %d", consumer, count)
    finally:
        executor.close()
    # One that runs elsewhere counts: when its executor was killed, the next task takes it over.
    single = replaying.replays().filter(letter__consumer=consumer, state__in=Replay.OUTSTANDING, job__isnull=True)
    going_on = jobs.all_jobs().filter(consumer=consumer, state__in=_GOING_ON)
    return not (single.exists() or going_on.exists())


def jobs_wait(consumer: str) -> bool:
    """Tell whether letters of a job of `consumer` may be taken now, or soon."""
    return jobs.all_jobs().filter(consumer=consumer, state__in=_GOING_ON).exists()
