"""The topics that producers and consumers need, and what this login may do with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .. import subscriptions
from ..clients.admin import TopicAdmin
from ..clients.asking import Unreachable
from ..clients.inspecting import Cluster, Inspector, Permitted, Topic
from ..exceptions import AuthorizationFailed
from ..needed_topics import Access, Needed
from ..topic_plans import Kind, changes
from .findings import Finding, error, note, unseen, warning, well
from .ways import MOST_FOUND, Way

_SHOWN = 10
"""Partitions that are named one by one."""


def look(way: Way, cluster: Cluster, inspector: Inspector, seconds: float) -> Iterator[Finding]:
    """Yield how the topics of a way stand, and what is forbidden there."""
    wanted = way.topics(cluster.topics)
    yield from _of_patterns(way, cluster)
    if not wanted:
        yield unseen("topics", "settings and handlers name none here")
        yield unseen("permissions", "settings and handlers name no topic here")
        return
    permitted: dict[str, Permitted | Unreachable] = {}
    if cluster.controlled:
        permitted = inspector.topics([topic.name for topic, _accesses in wanted], seconds)
    good: list[tuple[str, Topic]] = []
    allowed: list[str] = []
    blind: list[str] = []
    for topic, accesses in wanted:
        answer = permitted.get(topic.name)
        there = cluster.topics.get(topic.name)
        forbidden = list(_forbidden(topic, accesses, answer))
        yield from forbidden
        if there is None and not forbidden:
            yield _missing(topic)
        elif there is not None:
            troubles = list(_troubles(topic, there, cluster))
            yield from troubles
            good += [] if troubles else [(topic.name, there)]
            if not forbidden:
                told = isinstance(answer, Permitted) and answer.operations is not None
                (allowed if told else blind).append(topic.name)
    if good:
        count = sum(there.partitions for _name, there in good)
        many = f"{len(good)} topics are there, with {count} partitions" if len(good) > 1 else _one(*good[0])
        yield well("topics", f"{many}.", topics={name: there.partitions for name, there in good})
    if allowed:
        yield well("permissions", f"This login may do what is done with {', '.join(allowed)}.", topics=allowed)
    if blind:
        why = "the cluster does not tell" if cluster.controlled else "the cluster has no controller that would tell"
        yield unseen("permissions", f"{why}; looked for: {', '.join(blind)}")


def _of_patterns(way: Way, cluster: Cluster) -> Iterator[Finding]:
    for consumer in way.consumers:
        for one in subscriptions.patterns(consumer.name):
            names = subscriptions.of_patterns(consumer.name, cluster.topics)
            fit = [name for name in names if one.text in subscriptions.ways(consumer.name, name)]
            many = {0: "no topic that this login sees", 1: "1 topic"}.get(len(fit), f"{len(fit)} topics")
            saw = f"The pattern {one.text!r} fits {many}."
            if fit:
                yield well("topics", saw, of=consumer.name, topics=fit[:MOST_FOUND])
            else:
                yield note("topics", saw, "They are read when they come.", of=consumer.name)


def declared(way: Way, seconds: float) -> Iterator[Finding]:
    """Yield how the topics that settings declare for the cluster of a way differ from what they are."""
    if not way.cluster.topics:
        return
    try:
        found = changes(TopicAdmin(way.cluster, seconds, way.own))
    except Unreachable as error_:
        yield unseen("declared topics", str(error_))
        return
    # What clients need is said above when it is missing.
    said = {topic.name for topic, _accesses in way.topics()}
    for one in found:
        if one.kind is not Kind.CREATE or one.topic not in said:
            saw = f"{one.topic!r} is not as settings declare it: {one.kind.value}, {one.what}."
            mend = f"python manage.py kafka_topics apply {one.topic}" if one.kind is not Kind.IMPOSSIBLE else one.note
            yield warning("declared topics", saw, mend, of=one.topic, change=one.kind.value)
    if not found:
        yield well("declared topics", f"{len(way.cluster.topics)} topics are as settings declare them.")


def _one(name: str, there: Topic) -> str:
    return f"{name} is there, with {there.partitions} partition{'s' if there.partitions != 1 else ''}"


def _missing(topic: Needed) -> Finding:
    saw = f"There is no topic {topic.name!r}, {', '.join(topic.uses)}."
    return error("topics", saw, f"python manage.py kafka_topics --create {topic.name}", of=topic.name)


def _troubles(topic: Needed, there: Topic, cluster: Cluster) -> Iterator[Finding]:
    if there.leaderless:
        saw = f"Nobody leads {_partitions(there.leaderless)} of {topic.name!r}: nothing is sent or read there."
        yield error("topics", saw, "Start the brokers that have it, or look at their logs.", of=topic.name)
    elif there.short:
        saw = f"Of {_partitions(there.short)} of {topic.name!r} fewer brokers have all than should."
        yield warning("topics", saw, "A broker is down or behind: look at their logs.", of=topic.name)
    models = [cluster.topics[name].partitions for _cluster, name in topic.models if name in cluster.topics]
    if models and there.partitions < max(models):
        saw = f"{topic.name!r} has {there.partitions} partitions, fewer than its origin, which has {max(models)}."
        yield warning("topics", saw, f"Give it {max(models)}: order by partition is lost otherwise.", of=topic.name)


def _partitions(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (", …" if len(numbers) > _SHOWN else "")
    return f"partition {shown}" if len(numbers) == 1 else f"partitions {shown}"


def _forbidden(topic: Needed, accesses: Sequence[Access], answer: Permitted | Unreachable | None) -> Iterator[Finding]:
    if isinstance(answer, AuthorizationFailed):
        needs = " and ".join(sorted({one.operation for one in accesses}))
        mend = f"Allow {needs} and DESCRIBE on topic {topic.name!r}."
        yield error("permissions", str(answer), mend, of=topic.name)
        return
    if not isinstance(answer, Permitted) or answer.operations is None:
        return
    for operation in sorted({one.operation for one in accesses} - answer.operations):
        who = ", ".join(f"{one.kind} {one.client!r}" for one in accesses if one.operation == operation)
        saw = f"This login may not {operation} topic {topic.name!r}, which {who} needs."
        mend = f"Allow {operation} on topic {topic.name!r} to it, or look at its login."
        yield error("permissions", saw, mend, of=topic.name, allowed=sorted(answer.operations))
