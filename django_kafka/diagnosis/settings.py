"""The settings themselves: what system checks say, and what is allowed and may still surprise."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from django.core import checks

from .. import conf
from ..checks import KAFKA
from .findings import Finding, error, note, warning, well

_DEVELOPMENT = "django_kafka.E013"
"""The embedded cluster in production, which is said where it is looked for."""
_HERE = ("django_kafka.W007", "django_kafka.W060")
"""What is only a warning where checks run elsewhere than workers: this command runs where they do."""
_USUAL_PART = 3
"""Heartbeats that a session has room for."""


def look() -> Iterator[Finding]:
    """Yield what system checks say, those for deployment too."""
    found = [one for one in checks.run_checks(tags=[KAFKA], include_deployment_checks=True) if one.id != _DEVELOPMENT]
    for one in found:
        made = error if one.level >= checks.ERROR or one.id in _HERE else warning
        hint = f"{one.hint} " if one.hint else ""
        number = (one.id or "").removeprefix("django_kafka.")
        yield made("settings", f"{one.msg} ({number})", f"{hint}docs/settings.md has {number}.", id=one.id)
    if not found:
        yield well("settings", "KAFKA is read, and system checks have nothing to say about it.")


def unsafe(names: Collection[str] = ()) -> Iterator[Finding]:
    """Yield what settings allow and one may not expect; of some consumers only, when `names` is not empty."""
    settings = conf.kafka()
    found: list[Finding] = []
    for consumer in settings.consumers.values():
        if consumer.enabled and (not names or consumer.name in names or consumer.cluster in names):
            found += _of_consumer(consumer)
    for producer in settings.producers.values():
        if producer.enabled and (not names or producer.cluster in names):
            found += _of_producer(producer)
    if settings.logging.enable_sarama_logger:
        saw = 'KAFKA["logging"]["enable_sarama_logger"] is True: librdkafka logs each thing it does.'
        found.append(note("unsafe", saw, "Leave it out where it is not needed."))
    yield from found or [well("unsafe", "Nothing is set that one would not expect.")]


def _of_consumer(consumer: conf.Consumer) -> Iterator[Finding]:
    path = f'KAFKA["consumers"]["{consumer.name}"]'
    if consumer.guarantee == "effect_once" and consumer.enable_auto_commit:
        saw = (
            f"{path} has effect_once, and enable_auto_commit True. What counts is the offset in the database; the one "
            f"in Kafka is a copy, up to {consumer.auto_commit_interval:g} s behind, and misleads who goes by it."
        )
        yield note("unsafe", saw, f'Set {path}["enable_auto_commit"] to False, if anybody reads lag from Kafka.',
                   of=consumer.name)  # fmt: skip
    if consumer.guarantee == "at_most_once":
        saw = f"{path} has at_most_once: messages are lost when a worker ends while it handles them."
        yield note("unsafe", saw, "Choose another guarantee, if that is not meant.", of=consumer.name)
    if str(consumer.options.get("group.protocol")).lower() != "consumer":
        yield from _of_session(consumer, path)


def _of_session(consumer: conf.Consumer, path: str) -> Iterator[Finding]:
    session = consumer.session_timeout or _seconds(consumer, "session.timeout.ms", 45.0)
    beat = consumer.heartbeat_interval or _seconds(consumer, "heartbeat.interval.ms", 3.0)
    if beat * _USUAL_PART > session:
        saw = (
            f"{path} has heartbeats every {beat:g} s and a session of {session:g} s: one that is late ends the "
            "membership, and partitions go elsewhere."
        )
        mend = f'Make "heartbeat_interval" a third of "session_timeout" at most: {session / _USUAL_PART:g} s.'
        yield warning("unsafe", saw, mend, of=consumer.name)


def _seconds(consumer: conf.Consumer, name: str, usual: float) -> float:
    text = str(consumer.options.get(name, ""))
    return int(text) / 1000 if text.isdecimal() else usual


def _of_producer(producer: conf.Producer) -> Iterator[Finding]:
    path = f'KAFKA["producers"]["{producer.name}"]'
    if (acks := producer.effective_acks) != "all":
        what = "nobody confirms records" if acks == "0" else "a record is lost when the one broker that has it ends"
        yield note("unsafe", f"{path} has acks {acks}: {what}.", 'Set "acks" to "all", if that is not meant.',
                   of=producer.name)  # fmt: skip
    if producer.effective_acks == "all" and not producer.is_idempotent:
        saw = f"{path} is not idempotent: a record that is sent again may be there twice, and after later ones."
        yield note("unsafe", saw, 'Leave "idempotent" out.', of=producer.name)
