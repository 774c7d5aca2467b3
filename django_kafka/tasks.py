"""The Celery task that carries out replays and jobs, where Celery is installed: found by `autodiscover_tasks()`."""

from __future__ import annotations

from typing import Any

from .carriers import CARRY_OUT_REPLAYS, LONGEST, carry_out_for, jobs_wait

try:
    from celery import shared_task  # type: ignore[import-untyped,unused-ignore]
except ImportError:
    shared_task = None

_AGAIN_AFTER = 30
"""Seconds until the next task when nothing could be done; how soon the replay of a killed one is looked at again."""


if shared_task is not None:

    @shared_task(  # type: ignore[untyped-decorator,unused-ignore]
        name=CARRY_OUT_REPLAYS, bind=True, acks_late=True, ignore_result=True, max_retries=None
    )
    def carry_out_replays(task: Any, consumer: str) -> None:
        """Carry out the requested replays of one consumer; ask for another turn while some are left."""
        if not carry_out_for(consumer, LONGEST):
            # A job with a rate has letters again in a moment.
            raise task.retry(countdown=1 if jobs_wait(consumer) else _AGAIN_AFTER)
