"""The schemas that registries have to have, as the settings of producers and consumers name them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import conf, handlers, serializers, subscriptions
from .clients import schema_registry
from .clients.schema_registry import Contract
from .conf.values import did_you_mean
from .exceptions import ConfigurationError, UnknownName

_Client = conf.Producer | conf.Consumer


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """A schema that is needed."""

    contract: Contract
    """The schema, and its subject in the registry of a cluster."""
    uses: tuple[str, ...]
    """What for, in words."""
    written: bool
    """Whether something is written with it; else it is only what readers want to have."""
    registered: bool
    """Whether who writes it registers it, too, so that it may come later."""
    names: frozenset[str]
    """What it may be asked for by: its subject, its topics, with their prefix and without, and who uses it."""


@dataclass(slots=True, kw_only=True)
class _Uses:
    words: list[str]
    names: set[str]
    written: bool
    registered: bool


def needed() -> list[Needed]:
    """Return the schemas of all consumers and producers that are enabled, what others refer to before those.

    Topics that only code names, in `produce`, are known where the subject is the schema's own name. Asks no registry.
    Raises `ConfigurationError`.
    """
    found: dict[Contract, _Uses] = {}
    for contract, use in (*_of_producers(), *_of_consumers()):
        _note(found, contract, use)
    order = _depths(found)
    return [
        Needed(
            contract=one, uses=tuple(uses.words), written=uses.written, registered=uses.written and uses.registered,
            names=frozenset(uses.names | {one.subject}),
        )
        for one, uses in sorted(
            found.items(), key=lambda pair: (pair[0].cluster, order[pair[0]], pair[0].subject, pair[0].text)
        )
    ]  # fmt: skip


def chosen(names: Sequence[str]) -> list[Needed]:
    """Return those that go by these names, with what they refer to; all of them when there are none.

    Raises `UnknownName` for a name that none goes by, and what `needed` raises.
    """
    every = needed()
    if not names:
        return every
    known = frozenset(name for one in every for name in one.names)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, tuple(sorted(known))) or f"There are: {', '.join(sorted(known))}."
            raise UnknownName(f"No schema of the project belongs to {name!r}. {hint}")
    some = {one.contract for one in every if not one.names.isdisjoint(names)}
    while more := {each for one in some for each in _before(one, [one.contract for one in every])} - some:
        some |= more
    return [one for one in every if one.contract in some]


_Use = tuple[Contract, _Uses]


def _of_producers() -> Iterator[_Use]:
    for producer in conf.kafka().producers.values():
        if producer.enabled:
            own = None if producer.topic is None or producer.has_topic_template else producer.topic
            topics: list[tuple[str | None, Any]] = [(own, producer.topics.get(own or ""))]
            topics += [(name, one) for name, one in producer.topics.items() if name != own]
            for topic, settings in topics:
                yield from _of(producer, topic, settings, f"written by {producer.name}", written=True)


def _of_consumers() -> Iterator[_Use]:
    for consumer in conf.kafka().consumers.values():
        if consumer.enabled:
            for topic in handlers.topics(consumer.name):
                own = subscriptions.settings_of(consumer, conf.kafka().prefixed(topic))
                if own is None or not own.imports:
                    yield from _of(consumer, topic, own, f"read by {consumer.name}", written=False)
            for one in subscriptions.patterns(consumer.name):
                own = consumer.topics.get(one.text)
                yield from _of(consumer, None, own, f"read by {consumer.name}", written=False)


def _of(client: _Client, topic: str | None, own: Any, use: str, *, written: bool) -> Iterator[_Use]:
    prefixed = "" if topic is None else conf.kafka().prefixed(topic)
    for part in ("key", "value"):
        codec = serializers.of_part(client, own, prefixed, part)
        if not isinstance(codec, schema_registry.Codec) or (topic is None and codec.options.subject != "record"):
            continue
        try:
            contract = schema_registry.contract(codec)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"The function {codec.options.subject!r} names no subject for {part}s of {topic!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if contract is not None:
            names = {client.name} | ({topic, prefixed} if topic else set())
            yield contract, _Uses(words=[use], names=names, written=written, registered=codec.registers or not written)


def _note(found: dict[Contract, _Uses], contract: Contract, use: _Uses) -> None:
    known = found.setdefault(contract, _Uses(words=[], names=set(), written=False, registered=True))
    known.words += [one for one in use.words if one not in known.words]
    known.names |= use.names
    known.written |= use.written
    known.registered &= use.registered
    for one in contract.imports:
        words = [f"imported by {contract.subject}"]
        _note(found, one, _Uses(words=words, names=set(), written=use.written, registered=use.registered))


def _before(contract: Contract, every: Iterable[Contract]) -> list[Contract]:
    """Return those that have to be registered before a schema, because it refers to them."""
    subjects = {one.subject for one in contract.references}
    return [
        one
        for one in every
        if one.cluster == contract.cluster and one != contract and (one.subject in subjects or one in contract.imports)
    ]


def _depths(every: Iterable[Contract]) -> dict[Contract, int]:
    """Return how many others stand one behind the other before each."""
    every, found = list(every), dict[Contract, int]()

    def depth(contract: Contract, seen: frozenset[Contract]) -> int:
        if contract not in found and contract not in seen:
            before = [depth(one, seen | {contract}) for one in _before(contract, every)]
            found[contract] = 1 + max(before) if before else 0
        return found.get(contract, 0)

    for one in every:
        depth(one, frozenset())
    return found
