"""The process that asks, `python -m tests.chaos.asking`, as a web process does for health pages, metrics and the admin.

Whatever is away, it has an answer to everything, and is there in the end.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter

import django

EVERY = 0.2
"""Seconds between two questions."""


def main() -> None:
    """Ask until told to stop."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    django.setup()
    from django.conf import settings
    from django.db import close_old_connections

    # Less than a coordinator is away when its broker ends.
    settings.KAFKA["connection"] = {**settings.KAFKA.get("connection", {}), "timeout": "1s"}
    answers: Counter[str] = Counter()
    while not stop.wait(EVERY):
        # As before and after each request.
        close_old_connections()
        answers[ask()] += 1
    print("Nothing is asked any more:", dict(answers), flush=True)


def ask() -> str:
    """Ask for all there is, and return how it is."""
    from prometheus_client import generate_latest

    from django_kafka import services
    from django_kafka.monitoring import lag

    lag.forget()
    services.get_metrics()
    generate_latest()
    return "healthy" if services.get_health_status().healthy else "unhealthy"


if __name__ == "__main__":
    main()
