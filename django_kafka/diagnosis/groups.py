"""The groups of consumers: what this login may do with them, and who is in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from .. import conf, handlers
from ..clients.groups import Group
from ..clients.inspecting import Described, Inspector
from ..exceptions import AuthorizationFailed
from .findings import Finding, error, note, unseen, warning, well
from .ways import Way

_RESTLESS = ("preparing rebalancing", "completing rebalancing", "assigning", "reconciling")


def look(way: Way, inspector: Inspector, seconds: float) -> Iterator[Finding]:
    """Yield how the groups of a way's consumers stand."""
    settings = conf.kafka()
    mine = {one.name: settings.prefixed(one.group_id) for one in way.consumers if one.group_id}
    if not mine:
        yield unseen("group", "no consumer with a group is switched on here")
        return
    found = inspector.groups(mine.values(), seconds)
    consumer_of = _consumers_by_group()
    for consumer, group_id in mine.items():
        path = f'KAFKA["consumers"]["{consumer}"]["group_id"]'
        answer = found[group_id]
        if isinstance(answer, Described):
            others = _others(answer.group, consumer_of[way.cluster.name, group_id])
            yield from _of_group(consumer, group_id, path, answer, others)
        elif isinstance(answer, AuthorizationFailed):
            yield error("permissions", str(answer), f"Allow READ on group {group_id!r}.", of=consumer)
            yield unseen("group", "it may not be described", of=consumer)
        else:
            yield error("group", str(answer), f"Look at {path}, and at the log of the brokers.", of=consumer)


def _consumers_by_group() -> dict[tuple[str, str], list[str]]:
    """Return the consumers of each group: several may share one."""
    settings, found = conf.kafka(), dict[tuple[str, str], list[str]]()
    for consumer in settings.consumers.values():
        found.setdefault((consumer.cluster, settings.prefixed(consumer.group_id)), []).append(consumer.name)
    return found


def _others(group: Group, consumers: Collection[str]) -> list[str]:
    """Return the topics that members of a group read, and none of its consumers."""
    read = {topic for member in group.members for topic, _number in member.places}
    return sorted(topic for topic in read if not any(handlers.reads(one, topic) for one in consumers))


def _of_group(consumer: str, group_id: str, path: str, answer: Described, others: list[str]) -> Iterator[Finding]:
    operations = answer.permitted.operations
    if operations is not None and "READ" not in operations:
        saw = f"This login may not READ group {group_id!r}, which consumer {consumer!r} needs."
        yield error("permissions", saw, f"Allow READ on group {group_id!r} to it.", of=consumer)
    group, facts = answer.group, _facts(group_id, answer.group)
    if not group.known:
        yield unseen("group", "the cluster does not tell who is in a group", of=consumer)
        return
    if others:
        who = ", ".join(sorted({str(member) for member in group.members if _reads(member.places, others)}))
        saw = f"Members of group {group_id!r} ({who}) read {', '.join(others)}, which this project does not."
        mend = f"Another application uses this group, or an older version of this one: change {path}."
        yield warning("group", saw, mend, of=consumer, **facts)
    elif group.state in _RESTLESS:
        saw = f"Group {group_id!r} shares its partitions out ({group.state}), and is read by nobody meanwhile."
        yield warning("group", saw, "Look again: it should be over in seconds.", of=consumer, **facts)
    elif group.members:
        count = len(group.members)
        saw = f"Group {group_id!r} is {group.state}, with {count} member{'s' if count != 1 else ''}."
        yield well("group", saw, of=consumer, **facts)
    else:
        how = "has never had a member" if group.state == "none" else "has no members now"
        yield note("group", f"Group {group_id!r} {how}.", f"python manage.py kafka_consume {consumer}", of=consumer,
                   **facts)  # fmt: skip


def _reads(places: Collection[tuple[str, int]], topics: Collection[str]) -> bool:
    return any(topic in topics for topic, _number in places)


def _facts(group_id: str, group: Group) -> dict[str, object]:
    members = [{"client_id": one.client_id, "host": one.host, "partitions": len(one.places)} for one in group.members]
    return {"group": group_id, "state": group.state, "protocol": group.protocol, "members": members}
