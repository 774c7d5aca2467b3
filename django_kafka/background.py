"""The task of Django's own framework that carries out replays. Imported only where a project has such tasks (`TASKS`).

Making a task reads the settings; so `carriers` imports this module when it needs it, as workers of the framework do.
"""

from __future__ import annotations

import time
from datetime import timedelta

from django.tasks import DEFAULT_TASK_QUEUE_NAME, default_task_backend, task
from django.utils import timezone

from . import carriers, logs

log = logs.of(__name__)

_LOOK_EVERY = 2.0


def _queue() -> str:
    queues: set[str] = default_task_backend.queues
    return DEFAULT_TASK_QUEUE_NAME if not queues or DEFAULT_TASK_QUEUE_NAME in queues else min(queues)


@task(queue_name=_queue())
def carry_out_replays(consumer: str) -> None:
    """Carry out the requested replays and jobs of one consumer; ask for another turn while some are left."""
    deadline = time.monotonic() + carriers.LONGEST
    while not carriers.carry_out_for(consumer, max(0.0, deadline - time.monotonic())):
        # Left is what may not be taken yet, or what somebody else works on, or had when he was killed.
        if time.monotonic() >= deadline:
            following = carry_out_replays
            if default_task_backend.supports_defer:
                following = following.using(run_after=timezone.now() + timedelta(seconds=1))
            following.enqueue(consumer)
            return
        time.sleep(_LOOK_EVERY)
