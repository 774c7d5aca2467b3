"""What `kafka_topics plan`, `apply` and `check` do."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ... import conf
from ...clients.admin import BROKERS_DECIDE, Layout, TopicAdmin
from ...needed_topics import needed
from ...topic_plans import Change, Kind, changes
from ._table import table

_COLUMNS = ("cluster", "topic", "change", "what", "note")
_TIMEOUT = 15.0


@dataclass(slots=True, kw_only=True)
class Step:
    """A change of one cluster, and what became of it."""

    cluster: str
    """The name of the cluster."""
    change: Change
    """What is to be done."""
    state: str = "planned"
    """planned, done, refused, or left."""
    why: str = ""
    """Why it was refused or left."""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        one = self.change
        return {
            "cluster": self.cluster, "topic": one.topic, "change": one.kind.value, "what": one.what,
            "loses": one.loses, "note": one.note, "state": self.state, "why": self.why,
        }  # fmt: skip


def planned(names: Collection[str], usual: Layout) -> list[Step]:
    """Return what has to be done on all clusters; only to the topics of these names, if there are any.

    Raises `Unreachable`.
    """
    return [
        Step(cluster=cluster.name, change=change)
        for cluster in _clusters()
        for change in _plan_of(cluster, usual)
        if not names or change.topic in names
    ]


def known(names: Collection[str]) -> set[str]:
    """Return those of the names that settings and handlers know."""
    declared = {conf.kafka().prefixed(name) for cluster in conf.kafka().clusters.values() for name in cluster.topics}
    return set(names) & (declared | {one.name for one in needed()})


def apply(names: Collection[str], usual: Layout, *, force: bool) -> Iterator[Step]:
    """Do it, and yield each step when it is done.

    What is made or grown first is looked at again before those that have to be like it.
    """
    done: set[tuple[str, str, str]] = set()
    for dependents in (False, True):
        models = {(one.cluster, one.name) for one in needed() if one.models}
        for step in planned(names, usual):
            place = (step.cluster, step.change.topic, step.change.what)
            if ((step.cluster, step.change.topic) in models) is dependents and place not in done:
                done.add(place)
                _carry_out(step, force=force)
                yield step


def _clusters() -> list[conf.Cluster]:
    used = {one.cluster for one in needed()}
    return [one for name, one in sorted(conf.kafka().clusters.items()) if name in used or one.topics]


def _plan_of(cluster: conf.Cluster, usual: Layout) -> list[Change]:
    return [_as_usual(one, usual) for one in changes(_admin(cluster))]


def _as_usual(change: Change, usual: Layout) -> Change:
    """Return it with what the command was told, where brokers would decide."""
    if change.kind is not Kind.CREATE or usual == Layout():
        return change
    one = change.layout
    layout = Layout(
        partitions=usual.partitions if one.partitions == BROKERS_DECIDE else one.partitions,
        replication=usual.replication if one.replication == BROKERS_DECIDE else one.replication,
    )
    return replace(change, layout=layout)


def _admin(cluster: conf.Cluster) -> TopicAdmin:
    return TopicAdmin(cluster, min(_TIMEOUT, max(1.0, cluster.connection.timeout)))


def _carry_out(step: Step, *, force: bool) -> None:
    change = step.change
    if change.kind is Kind.IMPOSSIBLE:
        step.state, step.why = "left", change.note
    elif change.loses and not force:
        step.state, step.why = "left", f"it loses {change.loses}; --force does it"
    else:
        why = _do(_admin(conf.cluster(step.cluster)), change)
        step.state, step.why = ("refused", why) if why else ("done", "")


def _do(admin: TopicAdmin, change: Change) -> str:
    name = change.topic
    match change.kind:
        case Kind.CREATE:
            config = {key: value for key, value in change.config.items() if value is not None}
            why = admin.create({name: change.layout}, {name: config}).get(name, "")
            if not why:
                admin.layouts(made=[name])
            return why
        case Kind.GROW:
            return admin.grow(name, change.layout.partitions)
        case Kind.CONFIGURE:
            return admin.configure(name, change.config)
        case _:
            return admin.delete(name)


def show(out: Any, steps: list[Step]) -> None:
    """Write the steps as a table."""
    rows = [(one.cluster, one.change.topic, one.change.kind.value, one.change.what, note(one)) for one in steps]
    table(out, _COLUMNS, rows)


def note(step: Step) -> str:
    """Return what became of a step, or what has to be known before it."""
    if step.state != "planned":
        return f"{step.state}: {step.why}" if step.why else step.state
    loses = f"loses {step.change.loses}: needs --force" if step.change.loses else ""
    return "; ".join(filter(None, (loses, step.change.note)))
