"""Checks for django-health-check 4: `HealthCheckView(checks=["django_kafka.health.Kafka"])`, or one for each part."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable

from django.db import connections
from health_check.base import HealthCheck  # type: ignore[import-untyped]
from health_check.exceptions import ServiceUnavailable  # type: ignore[import-untyped]

from . import conf
from .exceptions import ConfigurationError
from .monitoring import health
from .monitoring.health import Component

__all__ = ["Broker", "Consumer", "DeadLetters", "Kafka", "Producer", "Registry"]


class _Check(HealthCheck):  # type: ignore[misc]  # the library has no types
    # No field: it would be shown, and come first.
    timeout = datetime.timedelta(seconds=15)

    def _components(self) -> tuple[Component, ...]:
        raise NotImplementedError

    # The library runs what is no coroutine in a thread.
    def run(self) -> None:
        """Raise `ServiceUnavailable` with what is wrong."""
        try:
            problems = _with_own_connection(lambda: [str(one) for one in self._components() if not one.healthy])
        except ConfigurationError as error:
            raise ServiceUnavailable(str(error)) from error
        if problems:
            raise ServiceUnavailable(" ".join(problems))


def _with_own_connection(ask: Callable[[], list[str]]) -> list[str]:
    """Ask, and close the connection of this thread if it was opened for that: threads of pages come and go."""
    alias = conf.kafka().dead_letters.database
    mine = connections[alias].connection is None
    try:
        return ask()
    finally:
        if mine:
            connections[alias].close()


@dataclasses.dataclass
class Kafka(_Check):
    """Check everything that settings declare and that is enabled."""

    def _components(self) -> tuple[Component, ...]:
        return health.status().components


@dataclasses.dataclass
class Broker(_Check):
    """Check that a cluster answers, with the project's own login and certificates."""

    cluster: str = "default"

    def _components(self) -> tuple[Component, ...]:
        return (health.broker(self.cluster),)


@dataclasses.dataclass
class Registry(_Check):
    """Check that the schema registry of a cluster answers, with the project's own login and certificates."""

    cluster: str = "default"

    def _components(self) -> tuple[Component, ...]:
        return (health.registry(self.cluster),)


@dataclasses.dataclass
class Producer(_Check):
    """Check that a producer of this process reaches its brokers; the default one when it is not named."""

    name: str | None = None

    def _components(self) -> tuple[Component, ...]:
        return (health.producer(self.name),)


@dataclasses.dataclass
class Consumer(_Check):
    """Check that a consumer makes progress; bounds in messages and seconds go before those of settings."""

    name: str | None = None
    max_lag: int | None = None
    max_lag_age: float | None = None

    def _components(self) -> tuple[Component, ...]:
        return (health.consumer(self.name, max_lag=self.max_lag, max_lag_age=self.max_lag_age),)


@dataclasses.dataclass
class DeadLetters(_Check):
    """Check that a consumer has no more open dead letters than allowed."""

    name: str | None = None
    most: int | None = None

    def _components(self) -> tuple[Component, ...]:
        return (health.dead_letters(self.name, most=self.most),)
