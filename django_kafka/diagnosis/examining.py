"""All chains side by side, each in its time, and what they found in one report."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .. import conf
from ..exceptions import ConfigurationError, UnknownName
from . import clusters, databases, jobs, settings, workers
from .findings import Chain, Finding, State, error, unseen, worst
from .ways import ways

_OTHERS = 10.0
"""Seconds for what is no cluster, at most."""
_GRACE = 0.5
"""Seconds that a chain gets beyond its time for saying that it is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What was found about one part of the project."""

    name: str
    """settings, cluster …, database …, celery."""
    findings: tuple[Finding, ...]
    """In the order of the checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found."""

    parts: tuple[Part, ...]
    """In the order in which they are shown."""
    seconds: float
    """How long it took."""

    @property
    def state(self) -> State:
        """The worst of it: well, a warning, or an error."""
        return worst(one for part in self.parts for one in part.findings)


def examine(names: Collection[str] = (), timeout: float | None = None) -> Report:
    """Look at everything, or at the clusters and consumers that are named, and return what was found.

    Each cluster is given `timeout` seconds, its `connection.timeout` when that is None. Raises `UnknownName`.
    """
    began = time.monotonic()
    found = list(settings.look())
    parts = [Part(name="settings", findings=tuple(found))]
    try:
        conf.kafka()
    except ConfigurationError:
        why = "settings cannot be read"
        others = ("clusters", "databases", "celery")
        parts += [Part(name=each, findings=(unseen(each, why),)) for each in others]
    else:
        _must_exist(names)
        parts = [Part(name="settings", findings=(*found, *settings.unsafe(names)))]
        parts += _connected(_run(list(_chains(names, timeout))))
    return Report(parts=tuple(parts), seconds=time.monotonic() - began)


def _must_exist(names: Iterable[str]) -> None:
    whole = conf.kafka()
    known = dict.fromkeys([*whole.clusters, *whole.consumers])
    for name in names:
        if name not in known:
            raise UnknownName(f"KAFKA has no cluster or consumer {name!r}; it has: {', '.join(known)}.")
        if name not in whole.clusters and not whole.consumers[name].enabled:
            raise UnknownName(f"Consumer {name!r} is switched off.")


def _chains(names: Collection[str], timeout: float | None) -> Iterator[Chain]:
    found = ways(names)
    for way in found:
        yield clusters.Look(way, clusters.seconds_for(way.cluster, timeout)).chain()
    consumers = [one for way in found for one in way.consumers]
    others = min(_OTHERS, _OTHERS if timeout is None else timeout)
    for alias in databases.aliases(consumers):
        yield databases.Look(alias, others, consumers).chain()
    yield jobs.chain(others)


def _connected(parts: list[Part]) -> list[Part]:
    """Return the parts with what only several of them together tell."""
    every = [(part.name, one) for part in parts for one in part.findings]
    more: dict[str, list[Finding]] = {}
    for name, finding in workers.strangers(every):
        more.setdefault(name, []).append(finding)
    return [replace(part, findings=(*part.findings, *more.get(part.name, ()))) for part in parts]


def _run(chains: list[Chain]) -> list[Part]:
    walks = [_Walk(chain) for chain in chains]
    for walk in walks:
        walk.start()
    return [Part(name=walk.chain.part, findings=walk.findings()) for walk in walks]


class _Walk(threading.Thread):
    """One chain, walked along. It goes on unheard when its time is over, and does not keep the process from ending."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(name="kafka-doctor", daemon=True)
        self.chain = chain
        self._ends = time.monotonic() + chain.seconds + _GRACE
        self._found: list[tuple[Finding, ...]] = []
        """Of each step that is done."""

    def run(self) -> None:
        try:
            for step in self.chain.steps:
                found = self._take(step.look, step.checks[0])
                self._found.append(found)
                if step.essential and any(one.state is State.ERROR for one in found):
                    break
        finally:
            self.chain.close()

    def _take(self, look: Any, check: str) -> tuple[Finding, ...]:
        found: list[Finding] = []
        try:
            for one in look():
                found.append(_without(one, self.chain.scrub))
        except Exception as trouble:  # noqa: BLE001  # one check that fails must not hide the others
            # What the error says may hold anything.
            saw = f"The check itself failed ({type(trouble).__name__})."
            found.append(error(check, saw, "This is a defect of django_kafka, if nothing above explains it."))
        return tuple(found)

    def findings(self) -> tuple[Finding, ...]:
        """Return what was found when the time is over, and what was not looked at."""
        self.join(max(0.0, self._ends - time.monotonic()))
        late, done = self.is_alive(), list(self._found)
        found = [one for step in done for one in step]
        rest = self.chain.steps[len(done) :]
        why = next((f"because {one.check} failed" for one in reversed(found) if one.state is State.ERROR), "")
        if late and rest:
            saw = f"There is no answer within {self.chain.seconds:g} s."
            found.append(error(rest[0].checks[0], saw, "Give it more time with --timeout, or look at what is asked."))
            why, rest = "time is over", rest[1:]
        return (*found, *(unseen(check, why) for step in rest for check in step.checks))


def _without(found: Finding, scrub: Any) -> Finding:
    return replace(found, saw=scrub(found.saw), mend=scrub(found.mend), facts=_scrubbed(dict(found.facts), scrub))


def _scrubbed(value: Any, scrub: Any) -> Any:
    match value:
        case str():
            return scrub(value)
        case dict():
            return {key: _scrubbed(inner, scrub) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_scrubbed(inner, scrub) for inner in value]
        case _:
            return value
