"""Ways to the brokers: a cluster and a login, and the producers and consumers that go there with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import conf, subscriptions
from ..clients import properties
from ..clients.credentials import Properties
from ..clients.groups import login_of
from ..needed_topics import Access, Needed, needed

MOST_FOUND = 100
"""Topics that patterns of a consumer fit of which more is asked than that they are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A cluster, a login, and who uses them."""

    cluster: conf.Cluster
    """Where it leads."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """librdkafka's own properties of its clients that the way depends on; mostly there are none."""
    consumers: tuple[conf.Consumer, ...] = ()
    """Who reads there."""
    producers: tuple[conf.Producer, ...] = ()
    """Who sends there."""

    @property
    def part(self) -> str:
        """What it is called in a report."""
        named = f"cluster {self.cluster.name}"
        if not self.own:
            return named
        who = [f"consumer {one.name}" for one in self.consumers] + [f"producer {one.name}" for one in self.producers]
        return f"{named} as {' and '.join(who)}"

    def properties(self) -> Properties:
        """Return what a client needs for it. Raises `ConfigurationError`."""
        return properties.for_cluster(self.cluster).with_(self.own)

    def topics(self, there: Collection[str] = ()) -> list[tuple[Needed, tuple[Access, ...]]]:
        """Return the topics that its producers and consumers need, and what they do there.

        With those that patterns fit of the topics that are `there`.
        """
        mine = {("consumer", one.name) for one in self.consumers} | {("producer", one.name) for one in self.producers}
        found = []
        for topic in needed():
            accesses = tuple(one for one in topic.accesses if (one.kind, one.client) in mine)
            if topic.cluster == self.cluster.name and accesses:
                found.append((topic, accesses))
        named = {topic.name for topic, _accesses in found}
        for consumer in self.consumers:
            access = Access("consumer", consumer.name, "READ")
            for name in subscriptions.of_patterns(consumer.name, there)[:MOST_FOUND]:
                if name not in named:
                    use = f"read by {consumer.name}"
                    found.append((Needed(cluster=self.cluster.name, name=name, uses=(use,)), (access,)))
        return found


def ways(names: Collection[str] = ()) -> list[Way]:
    """Return the ways of all clusters, or of those clusters and consumers that are named.

    A named cluster is looked at as a whole, and of the cluster of a named consumer what that consumer needs.
    """
    settings = conf.kafka()
    consumers = [one for one in settings.consumers.values() if one.enabled]
    producers = [one for one in settings.producers.values() if one.enabled]
    whole = {name for name in settings.clusters if name in names} if names else set(settings.clusters)
    some = whole | {one.cluster for one in consumers if one.name in names}
    found = []
    for name in sorted(some):
        mine = [one for one in consumers if one.cluster == name and (name in whole or one.name in names)]
        others = [one for one in producers if one.cluster == name and name in whole]
        found += _of_cluster(settings.clusters[name], mine, others)
    return found


def _of_cluster(
    cluster: conf.Cluster, consumers: Iterable[conf.Consumer], producers: Iterable[conf.Producer]
) -> list[Way]:
    logins: dict[frozenset[tuple[str, Any]], tuple[list[conf.Consumer], list[conf.Producer]]] = {}
    for consumer in consumers:
        logins.setdefault(frozenset(login_of(consumer).items()), ([], []))[0].append(consumer)
    for producer in producers:
        logins.setdefault(frozenset(login_of(producer).items()), ([], []))[1].append(producer)
    if not logins:
        return [Way(cluster=cluster)]
    return [
        Way(cluster=cluster, own=dict(own), consumers=tuple(mine), producers=tuple(others))
        for own, (mine, others) in sorted(logins.items(), key=lambda pair: len(pair[0]))
    ]
