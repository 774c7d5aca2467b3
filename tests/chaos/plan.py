"""The plan of a run: which faults strike when, and how the consumer is set up. All of it follows from the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from .records import COURSES, GUARDED, Course, Mixture


class Subject(StrEnum):
    """Whom a fault strikes. One fault at a time for each of them, so that faults of different subjects overlap."""

    WORKERS = "workers"
    BROKERS = "brokers"
    DATABASE = "database"
    LETTERS = "letters"
    HANDLERS = "handlers"
    CLOCK = "clock"
    CLAIMS = "claims"


class Kind(StrEnum):
    """What happens."""

    KILL = "worker killed"
    STOP = "worker stopped"
    STOP_TWICE = "worker stopped by two signals"
    FREEZE = "worker frozen"
    STORM = "workers join and leave"
    KILL_BROKER = "broker killed"
    RESTART_BROKER = "broker restarted"
    KILL_CONTROLLER = "controller killed"
    RESTART_DATABASE = "database restarted"
    CRASH_DATABASE = "database crashed"
    CUT_CONNECTIONS = "connections cut by the server"
    LOCK_TABLE = "table locked"
    FULL_DISK = "no room for dead letters"
    SLOW_HANDLER = "handler slower than max.poll.interval.ms"
    STEP_CLOCK = "clock stepped"
    TAKE_CLAIMS = "claims taken by a stranger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sort:
    """One kind of fault and how long it may last."""

    kind: Kind
    """What happens."""
    lasts: tuple[float, float] = (0.0, 0.0)
    """Seconds, from and to."""
    takes: float = 0.0
    """Seconds that it needs besides, as for a server to come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suit:
    """The faults of one subject. They are dealt from a shuffled deck, so that each comes up before any comes again."""

    sorts: tuple[Sort, ...]
    """The deck."""
    gap: tuple[float, float]
    """Seconds between the end of a fault and the next, from and to."""


CLOCK_FILE, SLOW_FILE = "clock", "slow"
"""Files that tell the processes by how many seconds their clock is off, and how long the next message takes."""
BEGUN_FILE, LEFT_FILE = "begun.jsonl", "left.jsonl"
"""Files in which workers note what they begin to handle, and which partitions leave them."""
MAX_POLL_SECONDS = 6.0
SESSION_SECONDS = 4.0
PROTOCOLS = ("eager", "cooperative", "consumer")
"""Ways in which partitions are shared out: all at once, in steps, and by the broker."""
CLOCK_STEPS = (-86_400.0, -3_600.0, -7.0, 7.0, 3_600.0, 86_400.0, 31_536_000.0)
"""Seconds by which the wall clock may be off."""
STEPPED = Sort(kind=Kind.STEP_CLOCK)
SUITS = {
    Subject.WORKERS: Suit(
        sorts=(
            Sort(kind=Kind.KILL, lasts=(0.0, 3.0)),
            Sort(kind=Kind.KILL, lasts=(0.0, 0.5)),
            Sort(kind=Kind.STOP, lasts=(0.0, 2.0), takes=2.0),
            Sort(kind=Kind.STOP_TWICE, lasts=(0.0, 1.0)),
            Sort(kind=Kind.FREEZE, lasts=(SESSION_SECONDS / 2, SESSION_SECONDS * 2)),
            Sort(kind=Kind.STORM, lasts=(3.0, 8.0), takes=2.0),
        ),
        gap=(1.0, 6.0),
    ),
    Subject.BROKERS: Suit(
        sorts=(
            Sort(kind=Kind.KILL_BROKER, lasts=(1.0, 8.0), takes=10.0),
            Sort(kind=Kind.RESTART_BROKER, lasts=(0.0, 4.0), takes=10.0),
            Sort(kind=Kind.KILL_CONTROLLER, lasts=(1.0, 6.0), takes=10.0),
        ),
        gap=(4.0, 12.0),
    ),
    Subject.DATABASE: Suit(
        sorts=(
            Sort(kind=Kind.CUT_CONNECTIONS),
            Sort(kind=Kind.RESTART_DATABASE, lasts=(0.0, 4.0), takes=1.0),
            Sort(kind=Kind.CUT_CONNECTIONS),
            Sort(kind=Kind.LOCK_TABLE, lasts=(1.0, MAX_POLL_SECONDS * 1.2)),
            Sort(kind=Kind.CRASH_DATABASE, lasts=(0.0, 6.0), takes=1.0),
        ),
        gap=(3.0, 10.0),
    ),
    Subject.LETTERS: Suit(sorts=(Sort(kind=Kind.FULL_DISK, lasts=(3.0, 10.0)),), gap=(6.0, 20.0)),
    Subject.HANDLERS: Suit(
        sorts=(Sort(kind=Kind.SLOW_HANDLER, lasts=(MAX_POLL_SECONDS * 1.1, MAX_POLL_SECONDS * 1.6)),), gap=(3.0, 12.0)
    ),
    Subject.CLOCK: Suit(sorts=(STEPPED,), gap=(5.0, 15.0)),
    Subject.CLAIMS: Suit(sorts=(Sort(kind=Kind.TAKE_CLAIMS),), gap=(4.0, 12.0)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is done to the system."""

    at: float
    """Seconds after the first record was sent. It comes later when its subject is still busy with the one before."""
    subject: Subject
    """Whom it strikes."""
    kind: Kind
    """What happens."""
    seconds: float
    """How long it lasts; for a step of the clock, by how much that is off."""
    number: int
    """Which worker or broker: this one of them, counted round."""

    def __str__(self) -> str:
        if self.subject in (Subject.WORKERS, Subject.BROKERS):
            return f"{self.kind} (number {self.number}, {self.seconds:.1f} s)"
        return (
            f"{self.kind} ({self.seconds:+,.0f} s)"
            if self.subject is Subject.CLOCK
            else (f"{self.kind} ({self.seconds:.1f} s)" if self.seconds else str(self.kind))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How the consumer and what it receives are set up."""

    protocol: str
    """How partitions are shared out: one of PROTOCOLS."""
    auto_commit: bool
    """The consumer's `enable_auto_commit`."""
    concurrency: int
    """Handler threads in each worker."""
    workers: int
    """How many workers there are while nobody comes or goes."""
    mixture: Mixture
    """What is sent; to the other consumers the same with keys of their own."""
    guarantee: str
    """The guarantee of one more consumer: one of GUARDED, or "at_least_once", which all others have: no more."""
    transaction: str
    """The `transaction` of that one."""
    ordering: str
    """Its `ordering`."""

    @property
    def courses(self) -> tuple[Course, ...]:
        """All consumers."""
        return (*COURSES, GUARDED[self.guarantee]) if self.guarantee in GUARDED else COURSES

    def __str__(self) -> str:
        commits = "on an interval" if self.auto_commit else "after each slice"
        mixture = self.mixture
        return (
            f"{self.workers} workers of {self.concurrency} threads, assignment {self.protocol}, commits {commits}; of "
            f"the records every {mixture.poison}th is poison, every {mixture.failing}th fails, every "
            f"{mixture.flaky}th fails once, every {mixture.echo}th is passed on; beside those of at_least_once one of "
            f"{self.guarantee}, transaction {self.transaction}, ordering {self.ordering}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run."""

    seed: int
    """What all of it follows from."""
    seconds: float
    """How long faults strike."""
    scenario: Scenario
    """The set-up."""
    faults: tuple[Fault, ...]
    """All faults in the order of their time."""

    @classmethod
    def draw(cls, seed: int, seconds: float, guarantee: str | None = None) -> Plan:
        """Return the plan of a seed, or with a guarantee that is not drawn. A longer run begins like a shorter one."""
        faults = [fault for subject in Subject for fault in _deal(seed, subject, seconds)]
        faults.sort(key=lambda fault: (fault.at, fault.subject))
        return cls(seed=seed, seconds=seconds, scenario=_scenario(seed, guarantee), faults=tuple(faults))

    def of(self, subject: Subject) -> list[Fault]:
        """Return the faults of one subject."""
        return [fault for fault in self.faults if fault.subject is subject]


def _scenario(seed: int, guarantee: str | None) -> Scenario:
    chance, own = random.Random(f"{seed} scenario"), random.Random(f"{seed} guarantee")
    return Scenario(
        # In turn, so that a few seeds in a row see all of them.
        protocol=PROTOCOLS[seed % len(PROTOCOLS)],
        auto_commit=bool(seed % 2),
        concurrency=chance.randint(2, 4),
        workers=chance.randint(2, 3),
        mixture=Mixture(
            seed=seed,
            poison=chance.randint(40, 90),
            failing=chance.randint(30, 60),
            flaky=chance.randint(25, 50),
            echo=chance.randint(4, 9),
        ),
        # In turn as well; not with every second seed, as `auto_commit` is.
        guarantee=guarantee or list(GUARDED)[seed // 2 % len(GUARDED)],
        transaction=own.choice(("message", "batch")),
        ordering=own.choice(("partition", "key")),
    )


def _deal(seed: int, subject: Subject, seconds: float) -> Iterator[Fault]:
    # A stream of its own for each subject: more faults of one do not change those of the others.
    chance = random.Random(f"{seed} {subject}")
    suit = SUITS[subject]
    deck: list[Sort] = []
    at = chance.uniform(2.0, 2.0 + suit.gap[1] / 2)
    while at < seconds:
        if not deck:
            deck = list(suit.sorts)
            chance.shuffle(deck)
        sort = deck.pop()
        lasts = chance.choice(CLOCK_STEPS) if sort is STEPPED else round(chance.uniform(*sort.lasts), 1)
        yield Fault(at=round(at, 1), subject=subject, kind=sort.kind, seconds=lasts, number=chance.randint(1, 6))
        at += (0.0 if sort is STEPPED else lasts) + sort.takes + chance.uniform(*suit.gap)
