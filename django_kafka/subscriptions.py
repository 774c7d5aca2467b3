"""Which topics a consumer reads: those that are named, and those that its patterns fit.

A topic that is named goes before patterns, and these come in their order: those of settings, then those of handlers
that are registered. No pattern takes Kafka's own topics, or the retry and dead-letter topics of this project: these are
read by who names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

from django.core.signals import setting_changed

from . import conf, registry
from .conf.pattern_syntax import ALPHABET, DIGITS
from .conf.patterns import Pattern, example, pattern, template
from .conf.values import LETTERS_PLACES
from .registry import registrations

INTERNAL: Final = "__"
"""What the names of Kafka's own topics begin with."""
Problem = tuple[str, str, str]
"""Check id, sentence and hint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What one consumer reads, without prefix."""

    named: tuple[str, ...]
    patterns: tuple[Pattern, ...]


@cache
def _read(consumer: str) -> _Read:
    declared = dict.fromkeys([*conf.consumer(consumer).topics, *(one.topic for one in registrations(consumer))])
    prefix = conf.kafka().topic_prefix
    return _Read(
        named=tuple(one for one in declared if not conf.is_pattern(one)),
        patterns=tuple(pattern(one, prefix) for one in declared if conf.is_pattern(one)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LeftOut:
    """Names that no pattern takes."""

    letters: tuple[Pattern, ...]
    retries: tuple[Pattern, ...]


@cache
def _left_out() -> _LeftOut:
    settings, gap = conf.kafka(), "\0"
    letters, retries = dict[Pattern, None](), dict[Pattern, None]()
    for consumer in settings.consumers.values():
        if consumer.group_id:
            retry = (f"{consumer.group_id}.", ALPHABET, ".retry.", DIGITS)
            retries[template(retry, settings.topic_prefix)] = None
        if settings.dead_letters.topic is not None:
            names = dict(zip(LETTERS_PLACES, (gap, consumer.group_id, consumer.name), strict=True))
            first, *others = settings.dead_letters.topic.format(**names).split(gap)
            pieces: list[str | frozenset[str]] = [first]
            for one in others:
                pieces += [ALPHABET, one]
            letters[template(pieces, settings.topic_prefix)] = None
    return _LeftOut(letters=tuple(letters), retries=tuple(retries))


def _internal() -> tuple[Pattern, ...]:
    return (template([INTERNAL, ALPHABET]),)


def named(consumer: str) -> list[str]:
    """Return the topics that a consumer names, without prefix: those of settings, then those of its handlers."""
    return list(_read(consumer).named)


def patterns(consumer: str) -> list[Pattern]:
    """Return the patterns of a consumer, in the order in which they are asked."""
    return list(_read(consumer).patterns)


def left_out(topic: str) -> bool:
    """Tell whether no pattern takes a topic, named with its prefix: it is one of Kafka's, or a by-way of ours."""
    apart = _left_out()
    return topic.startswith(INTERNAL) or any(one.fits(topic) for one in (*apart.letters, *apart.retries))


def ways(consumer: str, topic: str) -> list[str]:
    """Return what a consumer reads a topic by, named with its prefix: its name, then patterns; without prefix."""
    return list(_ways(consumer, topic))


# Asked of every topic that a cluster has, and again a few seconds later.
@lru_cache(maxsize=1 << 16)
def _ways(consumer: str, topic: str) -> tuple[str, ...]:
    prefix, read = conf.kafka().topic_prefix, _read(consumer)
    own = topic.removeprefix(prefix) if topic.startswith(prefix) else ""
    found = [own] if own in read.named else []
    if read.patterns and not left_out(topic):
        found += [one.text for one in read.patterns if one.fits(topic)]
    return tuple(found)


def of_patterns(consumer: str, there: Iterable[str]) -> list[str]:
    """Return those of the topics that a cluster has, with prefix, that a consumer reads by a pattern alone."""
    if not (read := _read(consumer)).patterns:
        return []
    own = {conf.kafka().prefixed(one) for one in read.named}
    return sorted(one for one in there if one not in own and _ways(consumer, one))


def settings_of(consumer: conf.Consumer, topic: str) -> conf.ConsumerTopic | None:
    """Return what settings say of a topic, named with its prefix, by its name or else by the first pattern."""
    return next((one for way in _ways(consumer.name, topic) if (one := consumer.topics.get(way)) is not None), None)


def problems(consumer: str | None = None) -> list[Problem]:
    """Return what keeps a consumer (None: all that are enabled) from reading by patterns."""
    return [problem for one in _mine(consumer) for each in patterns(one.name) for problem in _of_pattern(one, each)]


def _of_pattern(consumer: conf.Consumer, each: Pattern) -> Iterator[Problem]:
    own = consumer.topics.get(each.text)
    if ((own and own.retry) or consumer.retry).mode == "topics":
        sentence = f'Consumer {consumer.name!r} reads the pattern {each.text!r} and has retry mode "topics".'
        hint = 'Retry topics are made before their messages come: name the topics, or use mode "blocking" for it.'
        yield "E034", sentence, hint
    apart = _left_out()
    if example(each, but=(*apart.letters, *apart.retries, *_internal())) is None:
        sentence = f"The pattern {each.text!r} of consumer {consumer.name!r} fits no topic that a pattern may take."
        hint = "Kafka's own topics, and retry and dead-letter topics of this project, are read by who names them."
        yield "E035", sentence, hint


def warnings() -> Iterator[Problem]:
    """Yield what one had better know of the patterns of consumers that are enabled."""
    for consumer in _mine(None):
        found, apart = patterns(consumer.name), _left_out()
        kinds = {"dead-letter": apart.letters, "retry": apart.retries if conf.through_topics(consumer) else ()}
        for each in found:
            for kind, those in kinds.items():
                if such := next(filter(None, (example(each, by=(one,)) for one in those)), None):
                    which = f"The pattern {each.text!r} of consumer {consumer.name!r}"
                    sentence = f"{which} fits {kind} topics like {such!r}."
                    yield "W031", sentence, "They are left out. Write a narrower pattern, or name those to be read."
        reset = str(consumer.options.get("auto.offset.reset", consumer.auto_offset_reset)).lower()
        if found and reset in ("latest", "largest", "end"):
            sentence = f"Consumer {consumer.name!r} begins at the end of topics, and those that {found[0].text!r} fits"
            hint = 'What was sent there before is never read: let "auto_offset_reset" be "earliest".'
            yield "W032", f"{sentence} are found some time after they were made.", hint


def _mine(consumer: str | None) -> list[conf.Consumer]:
    found = conf.kafka().consumers.values()
    return [one for one in found if one.name == consumer or (consumer is None and one.enabled)]


def forget() -> None:
    """Have everything looked up anew."""
    _read.cache_clear()
    _ways.cache_clear()
    _left_out.cache_clear()


def _forget_settings(*, setting: str, **_event: Any) -> None:
    if setting == "KAFKA":
        forget()


setting_changed.connect(_forget_settings, dispatch_uid="django_kafka.subscriptions")
registry.on_change.append(forget)
