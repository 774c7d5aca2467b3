"""The chain of one way to the brokers, from the addresses in settings to what is in the topics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

from .. import conf
from ..clients.asking import Unreachable
from ..clients.credentials import Properties
from ..clients.inspecting import Cluster, Inspector
from ..clients.refusals import Refusals
from ..clients.scrubbing import Scrubber
from ..conf.registries import KINDS
from ..exceptions import AuthenticationFailed, ConfigurationError
from . import clocks, encryption, features, groups, reaching, registries, topics
from .budget import Budget, Late, side_by_side
from .encryption import Encryption
from .findings import Chain, Finding, State, Step, error, note, unseen, warning, well
from .targets import Target, split
from .ways import Way

_MOST = 64
"""Brokers that are looked at one by one."""
_REACHING, _ASKING = 0.4, 0.5
"""Which part of the time that is left may be spent on reaching brokers, and on each question to them."""


class Look:
    """One way, looked at step by step; each step keeps what the next ones need."""

    def __init__(self, way: Way, seconds: float) -> None:
        self.way = way
        self.budget = Budget(seconds)
        self._scrubber: Scrubber | None = None
        self._reached: set[tuple[str, int]] = set()
        self._properties: Properties
        self._encryption: Encryption | None
        self._inspector: Inspector
        self._cluster: Cluster

    def scrub(self, text: str) -> str:
        """Return a text without the secrets of this way."""
        return self._scrubber(text) if self._scrubber is not None else text

    def chain(self) -> Chain:
        """Return its checks in their order."""
        return Chain(
            part=self.way.part,
            seconds=self.budget.seconds,
            scrub=self.scrub,
            steps=(
                Step(checks=("brokers",), look=self._find, essential=True),
                Step(checks=("certificates",), look=self._files, essential=True),
                Step(checks=("registry",), look=self._registry),
                Step(checks=reaching.CHECKS, look=self._reach, essential=True),
                Step(checks=("login",), look=self._log_in, essential=True),
                Step(checks=("advertised",), look=self._advertised),
                Step(checks=("topics", "permissions"), look=self._topics),
                Step(checks=("group",), look=self._groups),
                Step(checks=("clock",), look=self._clock),
            ),
        )

    def _find(self) -> Iterator[Finding]:
        setting = f'{self.way.cluster.path}["brokers"]'
        try:
            self._properties = self.way.properties()
        except ConfigurationError as trouble:
            yield error("brokers", str(trouble), f"Start it, or name the brokers of a real cluster in {setting}.")
            return
        self._scrubber = Scrubber(self._properties)
        self._encryption = encryption.of(self._properties, self.way.cluster.path)
        servers = str(self._properties["bootstrap.servers"])
        if self.way.cluster.embedded:
            yield note("brokers", f"The embedded cluster runs at {servers}: for development, and it deletes data.")
        else:
            yield well("brokers", f"{setting} names {servers}.", addresses=servers.split(","))

    def _files(self) -> Iterator[Finding]:
        if self._encryption is None:
            yield unseen("certificates", "TLS is off")
        else:
            yield from self._encryption.files()

    def _reach(self) -> Iterator[Finding]:
        setting = f'{self.way.cluster.path}["brokers"]'
        addresses = [split(one) for one in str(self._properties["bootstrap.servers"]).split(",")]
        targets = [self._target(*one, named_by=f"{setting} has", mend=f"Look at {setting}.") for one in addresses]
        answers = list(self._look_at(targets, self.budget.part(_REACHING)))
        bad = [any(one.state is State.ERROR for one in found) for _target, found in answers]
        for (target, found), failed in zip(answers, bad, strict=True):
            if not failed:
                self._reached.add((target.host, target.port))
            # Clients need one address to begin with.
            yield from found if all(bad) or not failed else map(_softened, found)

    def _target(self, host: str, port: int, *, named_by: str, mend: str) -> Target:
        found = self._properties
        return Target(
            host=host, port=port, named_by=named_by, mend=mend, path=self.way.cluster.path, encryption=self._encryption,
            family=str(found.get("broker.address.family", "any")),
            mechanism=_mechanism(found),
            lacks=lambda abilities, of: features.lacking(abilities, self.way.producers, self.way.consumers, of),
        )  # fmt: skip

    def _look_at(self, targets: list[Target], budget: Budget) -> Iterator[tuple[Target, list[Finding]]]:
        own = budget.part(0.9)
        answers = side_by_side(budget, [partial(reaching.look, target, own) for target in targets])
        for target, answer in zip(targets, answers, strict=True):
            if isinstance(answer, Late):
                answer = [error("tcp", f"No answer within {budget.seconds:.1f} s.", target.mend, of=str(target))]
            yield target, answer

    def _log_in(self) -> Iterator[Finding]:
        path = f'{self.way.cluster.path}["security"]'
        try:
            self._inspector = Inspector(self.way.cluster, self.way.own)
            self._cluster = self._inspector.cluster(self.budget.part(_ASKING).left)
        except AuthenticationFailed as trouble:
            yield error("login", str(trouble), f"Mend {path}, or have the brokers know this login.")
            return
        except Unreachable as trouble:
            saw = f"{trouble}. Its addresses answer."
            yield error("login", saw, "Look at the log of the brokers; with --timeout they get more time.")
            return
        except ConfigurationError as trouble:
            yield error("login", str(trouble), f"Look at {path}.")
            return
        finally:
            self._learn()
        count = len(self._cluster.brokers)
        yield well(
            "login",
            f"Brokers answer {Refusals(self._properties, self.scrub).who()}: cluster "
            f"{self._cluster.id or '(without a name)'}, {count} broker{'s' if count != 1 else ''}.",
            cluster=self._cluster.id, brokers=count,
        )  # fmt: skip

    def _learn(self) -> None:
        # What the client has learnt, such as tokens, is not in settings.
        with suppress(AttributeError):
            own, theirs = self._scrubber, self._inspector.scrub
            if own is not None:
                self._scrubber = theirs

    def _advertised(self) -> Iterator[Finding]:
        """Look at the brokers where they say that they are, which is where clients go after the first question."""
        mend = "Mend `advertised.listeners` of that broker, or make its name known here."
        targets = []
        for number, address in sorted(self._cluster.brokers.items()):
            host, port = split(address)
            if (host, port) not in self._reached:
                targets.append(self._target(host, port, named_by=f"broker {number} says it has", mend=mend))
        failed = 0
        for _target, found in self._look_at(targets[:_MOST], self.budget.part(_REACHING)):
            for one in found:
                if one.state in (State.ERROR, State.WARNING):
                    failed += 1
                    yield replace(one, check="advertised", saw=f"{one.of}: {one.check}: {one.saw}")
        brokers = self._cluster.brokers
        if not failed:
            where = ", ".join(f"{number} at {address}" for number, address in sorted(brokers.items())[:_MOST])
            yield well("advertised", f"Brokers can be reached where they say they are: {where}.")
        if len(targets) > _MOST:
            yield note("advertised", f"Of {len(targets)} brokers {_MOST} were looked at.")

    def _topics(self) -> Iterator[Finding]:
        yield from topics.look(self.way, self._cluster, self._inspector, self.budget.part(_ASKING).left)
        yield from topics.declared(self.way, self.budget.part(_ASKING).left)

    def _groups(self) -> Iterator[Finding]:
        yield from groups.look(self.way, self._inspector, self.budget.part(_ASKING).left)

    def _clock(self) -> Iterator[Finding]:
        names = [topic.name for topic, _accesses in self.way.topics(self._cluster.topics)]
        found = {name: self._cluster.topics[name].partitions for name in names if name in self._cluster.topics}
        yield clocks.of_records(self._inspector.newest(found, self.budget.part(_ASKING).left), bool(found))

    def _registry(self) -> Iterator[Finding]:
        found = list(registries.look(self.way.cluster, self.budget.part(_ASKING).left, _kinds(self.way)))
        yield from found
        if all(one.state is not State.ERROR for one in found):
            yield from registries.compare(self.way.cluster, self.budget.part(_ASKING).left)


def _kinds(way: Way) -> frozenset[str]:
    """Return the serializers of a way that need a schema registry."""
    clients: list[conf.Producer | conf.Consumer] = [*way.producers, *way.consumers]
    found: set[str | None] = set()
    for client in clients:
        for one in (client, *client.topics.values()):
            found |= {one.serializer, one.key_serializer}
    return frozenset(kind for kind in KINDS if kind in found)


def _mechanism(found: Properties) -> str:
    if not str(found.get("security.protocol", "")).upper().startswith("SASL"):
        return ""
    return str(found.get("sasl.mechanisms", found.get("sasl.mechanism", "GSSAPI"))).upper()


def _softened(found: Finding) -> Finding:
    if found.state is not State.ERROR:
        return found
    return warning(
        found.check, f"{found.saw} Another address answers, so that clients find the cluster.", found.mend, of=found.of,
        **found.facts,
    )  # fmt: skip


def seconds_for(cluster: conf.Cluster, timeout: float | None) -> float:
    """Return how long a cluster is looked at."""
    return timeout if timeout is not None else max(1.0, cluster.connection.timeout)
