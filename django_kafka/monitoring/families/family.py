"""What a metric is, what one scrape looks at, and the ways of reading values that several metrics share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from django.utils.functional import cached_property

from ... import tallies
from ...tallies import ConsumedTopic, ConsumerTally, Histogram, ProducedTopic, ProducerTally
from .. import lag, working
from ..lag import GroupLag
from ..working import WorkerNow

Labels = tuple[str, ...]
Sample = tuple[Labels, "float | Histogram"]
Read = Callable[["Scene"], Iterable[Sample]]

OF_PRODUCED, OF_CONSUMED, OF_CONSUMER = ("producer", "topic"), ("consumer", "topic"), ("consumer",)
"""The labels that most metrics have."""


class Scene:
    """What one scrape looks at, so that all of it is of one moment, and is asked for once."""

    def __init__(self, *, asks: bool = False) -> None:
        """`asks`: brokers may be asked for groups, which takes connections of its own."""
        self.producers: dict[str, ProducerTally] = tallies.producers()
        self.consumers: dict[str, ConsumerTally] = tallies.consumers()
        self._asks = asks

    @cached_property
    def workers(self) -> list[WorkerNow]:
        """The workers of this process."""
        return working.now()

    @cached_property
    def groups(self) -> list[GroupLag]:
        """The groups of all consumers as far as brokers were heard; nothing where they are not to be asked."""
        return lag.heard() if self._asks else []

    def produced(self) -> Iterator[tuple[Labels, ProducedTopic]]:
        """Yield each topic of each producer, and its labels."""
        for name, tally in self.producers.items():
            for topic, one in list(tally.topics.items()):
                yield (name, topic), one

    def consumed(self) -> Iterator[tuple[Labels, ConsumedTopic]]:
        """Yield each topic of each consumer, and its labels."""
        for name, tally in self.consumers.items():
            for topic, one in list(tally.topics.items()):
                yield (name, topic), one


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric."""

    name: str
    """As Prometheus knows it."""
    kind: Literal["counter", "gauge", "histogram"]
    """What it is."""
    means: str
    """What it means, in a sentence."""
    labels: Labels
    """The names of its labels."""
    read: Read = field(repr=False)
    """What returns its values."""
    adds_up: bool = True
    """Whether the values of several processes make a sum; else the highest of them counts."""


def of_produced(value: Callable[[ProducedTopic], float]) -> Read:
    """Return what reads a value of each topic of a producer."""
    return lambda scene: ((labels, value(one)) for labels, one in scene.produced())


def of_consumed(value: Callable[[ConsumedTopic], float]) -> Read:
    """Return what reads a value of each topic of a consumer."""
    return lambda scene: ((labels, value(one)) for labels, one in scene.consumed())


def of_consumer(value: Callable[[ConsumerTally], float]) -> Read:
    """Return what reads a value of each consumer."""
    return lambda scene: (((name,), value(tally)) for name, tally in scene.consumers.items())


def histograms(found: Iterable[tuple[Labels, Histogram]]) -> Iterator[Sample]:
    """Return those that have values: without any there is nothing to show but dozens of zeros."""
    return ((labels, histogram) for labels, histogram in found if any(histogram.counts))
