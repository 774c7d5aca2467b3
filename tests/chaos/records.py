"""What is sent: records in a fixed order for each seed, each with the outcome that it must come to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

KEYS = 60
POISON = b"\xff\x00 "
"""How values begin that cannot be decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One consumer with a topic, a group and books of its own."""

    name: str
    """The consumer."""
    share: float
    """How many records it gets of each that the plain one gets."""
    retries: int = 0
    """How many retry topics it has."""

    @property
    def topic(self) -> str:
        return f"chaos.{self.name}"

    @property
    def output(self) -> str:
        """Where its handlers produce to."""
        return f"{self.topic}.out"

    @property
    def retry_topics(self) -> list[str]:
        return [f"{self.name}.{self.topic}.retry.{number}" for number in range(1, self.retries + 1)]


PLAIN = Course(name="plain", share=1.0)
"""Its lanes wait while a message is tried again, and go on after a dead letter."""
FORWARDED = Course(name="forwarded", share=0.3, retries=2)
"""What fails there goes through retry topics."""
HELD = Course(name="held", share=0.3)
"""A dead letter holds its key there."""
ONCE = Course(name="once", share=0.3)
"""Its effects take place once."""
MOST = Course(name="most", share=0.3)
"""Its messages are handled at most once."""
COURSES = (PLAIN, FORWARDED, HELD)
"""Those of every run."""
GUARDED = {"effect_once": ONCE, "at_most_once": MOST}
"""By its guarantee, the one that a run has besides."""


class Sort(StrEnum):
    """What a record is for."""

    PLAIN = "plain"
    """Its handler leaves an effect."""
    ECHO = "echo"
    """Its handler leaves an effect and produces a record."""
    FLAKY = "flaky"
    """Its handler fails at the first attempt and leaves an effect at the next."""
    FAILING = "failing"
    """Its handler leaves an effect, produces a record, and then fails, always."""
    POISON = "poison"
    """It cannot be decoded."""

    @property
    def lettered(self) -> bool:
        """Whether it must end as a dead letter. All others must be handled."""
        return self in (Sort.FAILING, Sort.POISON)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How often what is sent. A record is of the first sort below whose turn it is, else plain."""

    seed: int
    """What the keys follow from."""
    poison: int
    """Every so many records one is poison."""
    failing: int
    """The same for one that fails."""
    flaky: int
    """The same for one that fails once."""
    echo: int
    """The same for one whose handler produces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record to send."""

    number: int
    """Its number in the run, from 0."""
    key: str
    """Its key."""
    sequence: int
    """Its number among the records of its key, from 0."""
    sort: Sort
    """What it is for."""

    @property
    def value(self) -> bytes | dict[str, Any]:
        """What is given to `produce`."""
        if self.sort is Sort.POISON:
            return POISON + f"{self.key} {self.sequence}".encode()
        return {"sequence": self.sequence, "sort": str(self.sort)}


def stream(mixture: Mixture) -> Iterator[Record]:
    """Yield the records of a run, without end."""
    chance = random.Random(f"{mixture.seed} keys")
    sequences: Counter[str] = Counter()
    number = 0
    while True:
        key = f"key-{chance.randrange(KEYS)}"
        yield Record(number=number, key=key, sequence=sequences[key], sort=_sort(number + 1, mixture))
        sequences[key] += 1
        number += 1


def _sort(turn: int, mixture: Mixture) -> Sort:
    for sort in (Sort.POISON, Sort.FAILING, Sort.FLAKY, Sort.ECHO):
        if not turn % getattr(mixture, sort):
            return sort
    return Sort.PLAIN
