"""Metrics for Prometheus: what a process answers when it is scraped."""

from __future__ import annotations

import prometheus_client

from .server import Answer


def exposition() -> Answer:
    """Return all metrics of this process, the project's own included."""
    return Answer(200, prometheus_client.CONTENT_TYPE_LATEST, prometheus_client.generate_latest())
