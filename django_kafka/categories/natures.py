"""What an error can be, apart from what is done about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    """Whose fault an error is, and whether it may end by itself."""

    FAULT = auto()
    """The handler's or the message's; another attempt may succeed."""
    PERMANENT = auto()
    """The handler's; every attempt would end like this."""
    POISON = auto()
    """The message's; it can never be handled."""
    OUTAGE = auto()
    """Nobody's here: something that the message needs is down."""
    CONTENTION = auto()
    """Nobody's: a database conflict that goes away when tried again."""


@dataclass(frozen=True, slots=True)
class Nature:
    """What an error is."""

    category: str
    """What it is counted by."""
    kind: Kind = Kind.FAULT
    """Whose fault it is."""
    reason: str = ""
    """What is down, for people; only of an outage."""
    after: float | None = None
    """Seconds after which the other side wants to be asked again, when it said so."""


class UnknownCommit(Exception):
    """A COMMIT was sent and the connection broke before its answer: it may or may not have happened."""
