"""Whether everything works: brokers, schema registries, producers of this process, consumers, dead letters.

Nothing here raises for what is down: each component says in a sentence what is wrong with it. No sentence has a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import Error as DatabaseFailure

from .. import conf
from ..clients import schema_registry
from ..exceptions import KafkaError
from ..models import DeadLetter, Worker
from ..producers import producers
from . import heartbeats, lag

_REGISTRY = 5.0
"""Seconds that a schema registry may take for its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One thing that can be well or not."""

    kind: str
    """broker, registry, producer, consumer or dead_letters."""
    name: str
    """Of the cluster, producer or consumer."""
    problems: tuple[str, ...] = ()
    """What is wrong, in sentences; nothing when it is healthy."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """What is known besides: numbers and words, for programs."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {' '.join(self.problems) or 'healthy'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthStatus:
    """How everything is."""

    components: tuple[Component, ...]
    """Each with its own state."""

    @property
    def healthy(self) -> bool:
        """Whether all are healthy."""
        return all(one.healthy for one in self.components)

    @property
    def last_error(self) -> str | None:
        """What is wrong with the first that is not healthy; None when all are."""
        return next((str(one) for one in self.components if not one.healthy), None)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "healthy": self.healthy,
            "last_error": self.last_error,
            "components": [
                {"kind": one.kind, "name": one.name, "healthy": one.healthy, "problems": list(one.problems),
                 "detail": dict(one.detail)}
                for one in self.components
            ],
        }  # fmt: skip


def status() -> HealthStatus:
    """Return how everything is that settings declare and that is enabled. Raises `ConfigurationError`."""
    return HealthStatus(components=tuple(_components()))


def _components() -> Iterator[Component]:
    whole = conf.kafka()
    consumers = [one for one in whole.consumers.values() if one.enabled]
    made = [one for one in whole.producers.values() if one.enabled]
    for name in dict.fromkeys([*(one.cluster for one in consumers), *(one.cluster for one in made)]):
        yield broker(name)
        if whole.clusters[name].schema_registry.url:
            yield registry(name)
    for each in made:
        yield producer(each.name)
    for one in consumers:
        yield consumer(one.name)
        yield dead_letters(one.name)


def broker(cluster: str = "default") -> Component:
    """Tell whether a cluster answers, asked with the project's own login. One without topics is healthy."""
    found = lag.of_cluster(cluster)
    problems = (found.reason,) if found.reason else ()
    return Component(kind="broker", name=cluster, problems=problems, detail={"topics": found.topics})


def registry(cluster: str = "default") -> Component:
    """Tell whether the schema registry of a cluster answers, asked with the project's own login."""
    detail: dict[str, Any] = {}

    def ask() -> list[str]:
        return schema_registry.of(cluster).types()

    try:
        detail["types"] = sorted(schema_registry.within(_REGISTRY, ask))
    except KafkaError as error:
        return Component(kind="registry", name=cluster, problems=(str(error),))
    except schema_registry.TooSlow as error:
        url = conf.cluster(cluster).schema_registry.url
        return Component(kind="registry", name=cluster, problems=(f"The schema registry at {url}: {error}",))
    return Component(kind="registry", name=cluster, detail=detail)


def producer(name: str | None = None) -> Component:
    """Tell whether the producer of this process reaches its brokers; one that has sent nothing yet is healthy."""
    name = conf.producer(name).name
    if name not in producers:
        return Component(kind="producer", name=name, detail={"used": False})
    made = producers[name]
    problems = []
    if made.reachability.open:
        problems.append(str(made.refusal()))
    elif (why := made.unreachable()) is not None:
        problems.append(made.refused_login() or f"No broker can be reached: {why}")
    return Component(kind="producer", name=name, problems=tuple(problems), detail={"used": True})


def consumer(name: str | None = None, *, max_lag: int | None = None, max_lag_age: float | None = None) -> Component:
    """Tell whether a consumer makes progress: its workers, their polling, places and circuits, and its lag.

    Bounds that are not given are those of `KAFKA["health"]`; `max_lag_age` is in seconds.
    """
    settings, bounds = conf.consumer(name), conf.kafka().health
    behind = lag.of_consumer(settings.name)
    problems: list[str] = []
    detail: dict[str, Any] = {"group": behind.state, "lag": behind.messages, "lag_seconds": behind.seconds}
    if conf.kafka().heartbeats.enabled:
        problems += _asked_of_database(lambda: _of_workers(settings, detail))
    else:
        detail["workers"] = None
    most = bounds.max_lag if max_lag is None else max_lag
    if most is not None and behind.messages is not None and behind.messages > most:
        problems.append(f"It is {behind.messages} messages behind; allowed are {most}.")
    oldest = bounds.max_lag_age if max_lag_age is None else max_lag_age
    if oldest is not None and behind.seconds is not None and behind.seconds > oldest:
        problems.append(f"The next message that it reads is {behind.seconds:.0f} s old; allowed are {oldest:g} s.")
    if behind.reason:
        detail["unknown"] = behind.reason
        if (most is not None or oldest is not None) and behind.messages is None:
            problems.append(f"Its lag is not known: {behind.reason}")
    return Component(kind="consumer", name=settings.name, problems=tuple(problems), detail=detail)


_PASSING = ("joining", "stopping")
"""States of a worker that every deploy brings with it."""


def _of_workers(settings: conf.Consumer, detail: dict[str, Any]) -> list[str]:
    rows = Worker.objects.using(conf.kafka().dead_letters.database).filter(consumer=settings.name)
    workers = list(heartbeats.living(rows))
    detail["workers"] = len(workers)
    detail["states"] = sorted(one.state for one in workers)
    if not workers:
        return ["None of its workers was heard of lately."]
    return [f"{one.address}: {one.not_ready}" for one in workers if one.not_ready and one.state not in _PASSING] + [
        f"{one.address}: {hang['handler']} runs past its limit of {hang['limit']:g} s, for {hang['seconds']:g} s."
        for one in workers
        if not one.not_live
        for hang in one.hangs
        if hang["seconds"] > 2 * hang["limit"]
    ]


def dead_letters(name: str | None = None, *, most: int | None = None) -> Component:
    """Tell whether a consumer has no more open dead letters than allowed: `most`, else as `KAFKA["health"]` says."""
    settings, detail = conf.consumer(name), dict[str, Any]()
    bound = conf.kafka().health.max_dead_letters if most is None else most

    def count() -> list[str]:
        letters = DeadLetter.objects.using(conf.kafka().dead_letters.database)
        detail["open"] = found = letters.filter(consumer=settings.name, state=DeadLetter.State.OPEN).count()
        return (
            [f"It has {found} open dead letters; allowed are {bound}."] if bound is not None and found > bound else []
        )

    problems = _asked_of_database(count)
    return Component(kind="dead_letters", name=settings.name, problems=tuple(problems), detail=detail)


def _asked_of_database(ask: Callable[[], list[str]]) -> list[str]:
    try:
        return ask()
    except DatabaseFailure as error:
        alias = conf.kafka().dead_letters.database
        # Only its kind: what a database says may name users and hosts.
        return [f"Database {alias!r} does not answer ({type(error).__name__})."]
