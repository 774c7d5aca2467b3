"""Celery, which carries out replays where no worker does: whether its broker answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import carriers
from .findings import Chain, Finding, Step, error, unseen, well


def chain(seconds: float) -> Chain:
    """Return the check."""
    # Celery's current application is one of the thread that asks, and the check has a thread of its own.
    app = carriers.application()
    step = Step(checks=("celery",), look=lambda: _look(app, seconds))
    return Chain(part="celery", seconds=seconds, steps=(step,))


def _look(app: Any, seconds: float) -> Iterator[Finding]:
    if app is None:
        yield unseen("celery", "Celery is not installed; replays are carried out by workers, or by kafka_replay")
        return
    if not app.conf.broker_write_url:
        yield unseen("celery", "Celery has no broker in its settings; workers carry replays out, or kafka_replay does")
        return
    where = carriers.broker_shown(app)
    try:
        carriers.reach_broker(app, seconds)
    except Exception as trouble:  # noqa: BLE001  # every transport has errors of its own
        saw = f"Celery's broker {where} does not answer ({type(trouble).__name__})."
        yield error("celery", saw, "Look at CELERY_BROKER_URL, and whether it runs. Workers carry replays out anyway.")
        return
    yield well("celery", f"Celery's broker {where} answers.")
