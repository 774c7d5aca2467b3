"""The promises of a consumer whose retries go through topics: nothing lost on the way, nothing back too soon. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from . import settled, verdict
from .books import Books
from .records import Sort
from .verdict import Promise, each
from .world import BACKOFF, MULTIPLIER

_SLACK = 0.1
"""Seconds: due times are in milliseconds, and a step of the clock is seen a bit after it was made."""
_SEEN_LATE = 1.0
"""Seconds around a step of the clock in which nobody can say which time a process had."""

Place = tuple[int, int]


def _outcomes(books: Books) -> dict[Place, float]:
    """Return when each message was handled, with what its handler produced, or had a dead letter."""
    found: dict[Place, float] = {}
    echo = {(one.key, one.sequence) for one in books.sent if one.sort is Sort.ECHO}
    for effect in books.effects:
        name = effect.key, effect.sequence
        at = max(effect.committed_at, books.echoes.get(name, math.inf) if name in echo else 0.0)
        found[effect.place] = min(found.get(effect.place, math.inf), at)
    for letter in books.letters:
        found[letter.place] = min(found.get(letter.place, math.inf), letter.stored_at)
    return found


def _sent_on(books: Books, number: int) -> dict[Place, float]:
    """Return when each message first was in the retry topic of that number (from 0)."""
    found: dict[Place, float] = {}
    for first, at in list(books.retried.values())[number].records.values() if number < len(books.retried) else ():
        found[first] = min(found.get(first, math.inf), at)
    return found


def _earliest(*moments: Mapping[Place, float]) -> dict[Place, float]:
    return {place: min(one.get(place, math.inf) for one in moments) for place in {p for one in moments for p in one}}


def lost(books: Books) -> Iterator[str]:
    """Name what was acknowledged and is neither handled nor a dead letter, nor uncommitted in any topic."""
    there = set(_outcomes(books))
    for topic in books.retried.values():
        committed = topic.samples[-1].committed if topic.samples else {}
        there |= {first for place, (first, _at) in topic.records.items() if place[1] >= committed.get(place[0], 0)}
    committed = books.samples[-1].committed if books.samples else {}
    for one in books.acknowledged:
        if one.place is not None and one.place not in there and one.place[1] < committed.get(one.place[0], 0):
            yield str(one)


def unfinished(books: Books) -> Iterator[str]:
    """Name partitions, of retry topics as well, whose end was not committed, although all faults were over."""
    yield from settled.unfinished(books)
    for name, topic in books.retried.items():
        committed = topic.samples[-1].committed if topic.samples else {}
        for partition, offset in topic.records:
            if offset >= committed.get(partition, 0):
                yield f"{name} partition {partition} offset {offset} is not committed"


def early(books: Books) -> Iterator[str]:
    """Name commits, in retry topics as well, that came before what they cover was handled, stored, or sent on."""
    outcomes = _outcomes(books)
    records = {one.place: str(one) for one in books.acknowledged if one.place is not None}
    yield from settled.too_early(records, _earliest(outcomes, _sent_on(books, 0)), books.samples)
    for number, (name, topic) in enumerate(books.retried.items(), 1):
        moments = _earliest(outcomes, _sent_on(books, number))
        records = {place: f"{name} {place}, first at {first}" for place, (first, _at) in topic.records.items()}
        known = {place: moments.get(first, math.inf) for place, (first, _at) in topic.records.items()}
        yield from settled.too_early(records, known, topic.samples)


def too_soon(books: Books) -> Iterator[str]:
    """Name attempts that began before the wait after the attempt before was over.

    Judged only while no clock is ahead: what was sent at a time that has not come yet is not believed to be early.
    """
    first: dict[tuple[Place, int], float] = {}
    for run in books.begun:
        key = run.place, run.attempt
        first[key] = min(first.get(key, math.inf), run.at)
    for (place, attempt), at in sorted(first.items()):
        before = first.get((place, attempt - 1))
        if before is None or not _true(books, before, at):
            continue
        wait = BACKOFF * MULTIPLIER ** (attempt - 2)
        if at < before + wait - _SLACK:
            yield f"partition {place[0]} offset {place[1]}: attempt {attempt} {at - before:.3f} s after the one before"


def _true(books: Books, begin: float, end: float) -> bool:
    """Tell whether the clock stood still between two moments, and was not ahead."""
    if any(begin - _SEEN_LATE <= at <= end + _SEEN_LATE for at, _off in books.steps):
        return False
    return next((off for at, off in reversed(books.steps) if at < begin), 0.0) <= 0


def elsewhere(books: Books) -> Iterator[str]:
    """Name letters that name another topic than the one in which their message came first."""
    from_retry = set(books.retried)
    yield from (f"{letter} names {letter.topic}" for letter in books.letters if letter.topic in from_retry)


def given_up_early(books: Books) -> Iterator[str]:
    """Name messages that failed and have a letter, and were not in all retry topics before."""
    there = [_sent_on(books, number) for number in range(len(books.retried))]
    for letter, one in books.lettered:
        if one.sort is Sort.FAILING and letter.error_type != verdict.WORKER_KILLED:
            for number, places in enumerate(there, 1):
                if letter.place not in places:
                    yield f"{one} was never in retry topic {number}: {letter}"


def nothing_proved(books: Books) -> Iterator[str]:
    """Say why the books are too thin for a verdict."""
    yield from verdict.nothing_proved(books)
    yield from (f"nothing was sent to {name}" for name, topic in books.retried.items() if not topic.records)


def _retried(books: Books) -> int:
    return sum(len(topic.records) for topic in books.retried.values())


PROMISES: tuple[Promise, ...] = (
    ("what is committed is handled, a dead letter, or waits", each("acknowledged"), lost),
    ("in the end everything is committed", _retried, unfinished),
    ("nothing is committed before it is settled or sent on", each("samples"), early),
    ("a message comes back when it is due", _retried, too_soon),
    ("a dead letter has every attempt behind it", each("letters"), given_up_early),
    ("dead letters name where their message came first", each("letters"), elsewhere),
    ("a message has one dead letter", each("letters"), verdict.not_once),
    ("no dead letter is caused by an outage", each("letters"), verdict.by_outage),
    ("dead letters say what was wrong", each("letters"), verdict.wrong_reason),
    ("dead letters hold the bytes that were sent", each("letters"), verdict.changed),
    ("effects are committed whole", each("effects"), verdict.half),
    ("effects of a failed handler are rolled back", each("effects"), verdict.not_rolled_back),
    ("effects and letters are of what was sent", each("effects"), verdict.made_up),
    ("what a handler produced is there", each("echoes"), verdict.not_produced),
    ("what a failed handler produced is not there", each("echoes"), verdict.produced_in_vain),
    ("the run had something to judge", each("sent"), nothing_proved),
)
