"""What has to be done so that the topics of a cluster are as settings, handlers and their origins ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from . import conf
from .clients.admin import BROKERS_DECIDE, Layout, Property, TopicAdmin
from .needed_topics import Needed, needed


class Kind(StrEnum):
    """What is done to a topic."""

    CREATE = "create"
    GROW = "add partitions"
    CONFIGURE = "configure"
    DELETE = "delete"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing to do."""

    topic: str
    """As Kafka knows it."""
    kind: Kind
    """What."""
    what: str
    """From what to what, in words."""
    loses: str = ""
    """Which messages are lost by it, in words; "" when none is. It is done only when that is forced."""
    note: str = ""
    """What else has to be known before."""
    layout: Layout = field(default_factory=Layout)
    """How many partitions and replicas it is to have."""
    config: Mapping[str, str | None] = field(default_factory=dict)
    """Properties to set; None: back to what brokers have by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the topics of a cluster are."""

    layouts: Mapping[str, Layout]
    """By name, as Kafka knows it; only those that are there."""
    config: Mapping[str, Mapping[str, Property]]
    """The same; those whose properties this login may not see are missing."""


def changes(admin: TopicAdmin) -> list[Change]:
    """Return what has to be done on the cluster of a client. Raises `Unreachable`."""
    cluster = admin.cluster
    mine = [one for one in needed() if one.cluster == cluster.name]
    declared = {conf.kafka().prefixed(name): one for name, one in cluster.topics.items()}
    layouts = admin.layouts()
    asked = [name for name, one in declared.items() if one.config and name in layouts]
    return plan(mine, declared, Standing(layouts=layouts, config=admin.properties(asked)))


def plan(wanted: Sequence[Needed], declared: Mapping[str, conf.Topic], standing: Standing) -> list[Change]:
    """Return what has to be done on one cluster: origins first, so that others can be made like them.

    `declared` is by name as Kafka knows it. Topics that neither settings nor handlers name are nobody's business here.
    """
    names = {one.name: one for one in wanted}
    order = sorted({*names, *declared}, key=lambda name: (bool(name in names and names[name].models), name))
    goals: dict[str, Layout] = {}
    changes: list[Change] = []
    for name in order:
        own = declared.get(name) or conf.Topic(name=name)
        there = standing.layouts.get(name)
        if own.delete:
            changes += [_deletion(name, there, names.get(name))] if there is not None else []
            continue
        goal = goals[name] = _goal(own, names.get(name), standing.layouts, goals)
        if there is None:
            changes.append(_creation(name, goal, own))
            continue
        changes += _spread(name, own, goal, there)
        changes += _configuration(name, own, standing.config.get(name))
    return changes


def _goal(own: conf.Topic, needed: Needed | None, layouts: Mapping[str, Layout], goals: Mapping[str, Layout]) -> Layout:
    """Return how a topic is to be: as declared, else like those whose messages it has, else as brokers decide."""
    models = [_largest(layouts.get(name), goals.get(name)) for _cluster, name in (needed.models if needed else ())]
    return Layout(
        partitions=own.partitions or max((one.partitions for one in models), default=BROKERS_DECIDE),
        replication=own.replication_factor or max((one.replication for one in models), default=BROKERS_DECIDE),
    )


def _largest(*layouts: Layout | None) -> Layout:
    known = [one for one in layouts if one is not None]
    return Layout(
        partitions=max((one.partitions for one in known), default=BROKERS_DECIDE),
        replication=max((one.replication for one in known), default=BROKERS_DECIDE),
    )


def _creation(name: str, goal: Layout, own: conf.Topic) -> Change:
    config = {key: value for key, value in own.config.items() if value is not None}
    what = [_count(goal.partitions, "partition"), _count(goal.replication, "replica")]
    what += [f"{key}={value}" for key, value in sorted(config.items())]
    return Change(topic=name, kind=Kind.CREATE, what=", ".join(what), layout=goal, config=config)


def _count(number: int, what: str) -> str:
    if number == BROKERS_DECIDE:
        return f"{what}s as brokers decide"
    return f"{number} {what}{'' if number == 1 else 's'}"


def _spread(name: str, own: conf.Topic, goal: Layout, there: Layout) -> Iterator[Change]:
    if goal.partitions > there.partitions:
        yield Change(
            topic=name, kind=Kind.GROW, layout=goal,
            what=f"{there.partitions} → {goal.partitions} partitions",
            note="keys go to other partitions from then on: drain it before, where their order matters",
        )  # fmt: skip
    elif own.partitions is not None and own.partitions < there.partitions:
        yield Change(
            topic=name, kind=Kind.IMPOSSIBLE,
            what=f"{there.partitions} → {goal.partitions} partitions",
            note="Kafka takes no partition away: declare what it has, or go over to a new topic",
        )  # fmt: skip
    if own.replication_factor not in (None, there.replication):
        yield Change(
            topic=name, kind=Kind.IMPOSSIBLE,
            what=f"{there.replication} → {goal.replication} replicas",
            note="partitions are moved between brokers by Kafka's own kafka-reassign-partitions",
        )  # fmt: skip


def _configuration(name: str, own: conf.Topic, there: Mapping[str, Property] | None) -> Iterator[Change]:
    if not own.config:
        return
    if there is None:
        note = "this login may not see its properties (DESCRIBE_CONFIGS), so they are not compared"
        yield Change(topic=name, kind=Kind.IMPOSSIBLE, what=", ".join(sorted(own.config)), note=note)
        return
    for key in sorted(own.config):
        wanted, found = own.config[key], there.get(key)
        if found is None and wanted is not None:
            note = "these brokers know no such property of topics"
            yield Change(topic=name, kind=Kind.IMPOSSIBLE, what=f"{key}={wanted}", note=note)
        elif found is not None and wanted is None and found.own:
            what = f"{key}: {found.value} → as brokers decide"
            yield Change(topic=name, kind=Kind.CONFIGURE, what=what, loses=_lost(key), config={key: None})
        elif found is not None and wanted is not None and found.value != wanted:
            loses = _lost(key) if _takes_away(key, found.value, wanted) else ""
            what = f"{key}: {found.value} → {wanted}"
            yield Change(topic=name, kind=Kind.CONFIGURE, what=what, loses=loses, config={key: wanted})


_KEPT = {
    "retention.ms": "older messages than that",
    "retention.bytes": "what is more than that",
    "cleanup.policy": "what the new policy does not keep",
    "delete.retention.ms": "tombstones",
}
"""Properties that let brokers delete messages, and which. https://kafka.apache.org/documentation/#topicconfigs"""


def _lost(key: str) -> str:
    return _KEPT.get(key, "")


def _takes_away(key: str, old: str, new: str) -> bool:
    """Tell whether less is kept under the new value than under the old one."""
    if key == "cleanup.policy":
        return not set(new.replace(" ", "").split(",")) <= set(old.replace(" ", "").split(","))
    try:
        before, after = int(old), int(new)
    except ValueError:
        return True  # brokers will say what they think of it
    return after >= 0 and (before < 0 or after < before)


def _deletion(name: str, there: Layout, needed: Needed | None) -> Change:
    used = f"; it is {', '.join(needed.uses)}" if needed is not None else ""
    count = _count(there.partitions, "partition")
    return Change(topic=name, kind=Kind.DELETE, what=f"{count}{used}", loses="all its messages")
