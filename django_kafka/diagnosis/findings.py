"""What a check has found, and how checks follow one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """How it stands with what was looked at."""

    WELL = "ok"
    NOTE = "note"
    """Well, but better known."""
    WARNING = "warning"
    ERROR = "error"
    UNSEEN = "not looked at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check has seen."""

    check: str
    """Its name: dns, tls, topics, …"""
    state: State
    """How it stands."""
    saw: str
    """What it saw, in a sentence."""
    mend: str = ""
    """How to mend it; "" when there is nothing to mend."""
    of: str = ""
    """What it looked at, where a check looks at several: an address, a topic, a consumer."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs."""


def well(check: str, saw: str, *, of: str = "", **facts: Any) -> Finding:
    """Return the finding that nothing is wrong."""
    return Finding(check=check, state=State.WELL, saw=saw, of=of, facts=facts)


def note(check: str, saw: str, mend: str = "", *, of: str = "", **facts: Any) -> Finding:
    """Return the finding of something that one should know."""
    return Finding(check=check, state=State.NOTE, saw=saw, mend=mend, of=of, facts=facts)


def warning(check: str, saw: str, mend: str, *, of: str = "", **facts: Any) -> Finding:
    """Return the finding of something that works, or nearly, and will not always."""
    return Finding(check=check, state=State.WARNING, saw=saw, mend=mend, of=of, facts=facts)


def error(check: str, saw: str, mend: str, *, of: str = "", **facts: Any) -> Finding:
    """Return the finding of something that does not work."""
    return Finding(check=check, state=State.ERROR, saw=saw, mend=mend, of=of, facts=facts)


def unseen(check: str, why: str, *, of: str = "") -> Finding:
    """Return the finding that something was not looked at."""
    return Finding(check=check, state=State.UNSEEN, saw=f"{why[:1].upper()}{why[1:]}.", of=of)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A check, or a few that belong together, of a chain."""

    checks: tuple[str, ...]
    """What it looks at; each is not looked at when an essential step before it has failed."""
    look: Callable[[], Iterable[Finding]]
    """Looks."""
    essential: bool = False
    """Whether what comes after it needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Checks of one part of the project, one after the other."""

    part: str
    """What they look at: "cluster default", "database default", …"""
    steps: tuple[Step, ...]
    """In their order."""
    seconds: float
    """How long all of them together may take."""
    scrub: Callable[[str], str] = str
    """Takes the secrets of this part out of what others say."""
    close: Callable[[], None] = lambda: None
    """Gives back what its thread has taken."""


def worst(found: Iterable[Finding]) -> State:
    """Return the worst state of some findings."""
    states = {one.state for one in found}
    return next((state for state in (State.ERROR, State.WARNING) if state in states), State.WELL)
