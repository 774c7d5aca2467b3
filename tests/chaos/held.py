"""The promises of a consumer that holds keys: nothing of a key is handled before what came earlier. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from . import settled, verdict
from .books import Books, Letter
from .records import Sort
from .verdict import Promise, each, killed_its_workers

PARKED = ("parked", "")
"""Category and error type of a message that waits and has not failed."""
REASONS = {**verdict.REASONS, Sort.FLAKY: ("handler", "tests.chaos.handlers.PassingFailure")}
"""A message that fails once does so when it is released, too: a release is one attempt."""

_Moment = tuple[float, str, int, tuple[int, int]]


def _moments(books: Books) -> list[_Moment]:
    """Return when each message was first handled or given up for good: the moment, its key and number, its place."""
    first: dict[tuple[int, int], _Moment] = {}
    for effect in books.effects:
        first.setdefault(effect.place, (effect.committed_at, effect.key, effect.sequence, effect.place))
    for letter, one in books.lettered:
        if letter.discarded_at is not None:
            at = min(letter.discarded_at, first.get(letter.place, (math.inf,))[0])
            first[letter.place] = (at, one.key, one.sequence, letter.place)
    return sorted(first.values())


def _overtakings(books: Books) -> Iterator[tuple[_Moment, _Moment]]:
    """Yield what came after a later message of its key, and that one."""
    latest: dict[str, _Moment] = {}
    names: set[tuple[str, int]] = set()
    for moment in _moments(books):
        _at, key, sequence, _place = moment
        ahead = latest.get(key)
        if ahead is not None and sequence < ahead[2] and (key, sequence) not in names:
            yield moment, ahead
        names.add((key, sequence))  # once more, when the sender's client stored it twice
        if ahead is None or sequence > ahead[2]:
            latest[key] = moment


def _told(late: _Moment, ahead: _Moment) -> str:
    return f"{late[1]} {late[2]} {late[3]} came {late[0] - ahead[0]:.3f} s after {ahead[2]} {ahead[3]}"


def overtaken(books: Books) -> Iterator[str]:
    """Name messages that were passed by one of their key that was not parked."""
    parked = {letter.place for letter in books.letters if letter.parked}
    yield from (_told(late, ahead) for late, ahead in _overtakings(books) if ahead[3] not in parked)


def out_of_turn(books: Books) -> Iterator[str]:
    """Name messages that were passed by one of their key that had been parked."""
    parked = {letter.place for letter in books.letters if letter.parked}
    yield from (_told(late, ahead) for late, ahead in _overtakings(books) if ahead[3] in parked)


def early(books: Books) -> Iterator[str]:
    """Name commits that came before what they cover was handled, with what it produced, or stored."""
    echo = {(one.key, one.sequence) for one in books.sent if one.sort is Sort.ECHO}
    moments = {letter.place: letter.stored_at for letter in books.letters}
    for effect in books.effects:
        name = effect.key, effect.sequence
        at = max(effect.committed_at, books.echoes.get(name, math.inf) if name in echo else 0.0)
        moments[effect.place] = min(moments.get(effect.place, math.inf), at)
    records = {one.place: str(one) for one in books.acknowledged if one.place is not None}
    yield from settled.too_early(records, moments, books.samples)


def still_held(books: Books) -> Iterator[str]:
    """Name letters that are open or parked, although all faults were over and somebody saw to them."""
    yield from (f"{letter.state}: {letter}" for letter in books.letters if letter.state in ("open", "parked"))


def parked_alone(books: Books) -> Iterator[str]:
    """Name messages that were parked although no letter of their key was there."""
    heads: dict[bytes, float] = {}
    for letter in sorted(books.letters, key=lambda one: one.id):
        key = bytes(letter.key or b"")
        if not letter.parked:
            heads.setdefault(key, letter.stored_at)
        elif heads.get(key, math.inf) > letter.stored_at:
            yield str(letter)


def resolved_for_nothing(books: Books) -> Iterator[str]:
    """Name letters that are resolved although their handler left no effect."""
    done = {effect.place for effect in books.effects}
    yield from (str(one) for one in books.letters if one.state == "resolved" and one.place not in done)


def by_outage(books: Books) -> Iterator[str]:
    """Name letters of messages that nothing was wrong with, unless they were but parked."""
    yield from (f"{one}: {letter}" for letter, one in books.lettered if not _right(letter, one.sort, books))


def _right(letter: Letter, sort: Sort, books: Books) -> bool:
    said = letter.category, letter.error_type
    return said == REASONS.get(sort) or (said == PARKED and letter.parked) or killed_its_workers(letter, books)


def not_rolled_back(books: Books) -> Iterator[str]:
    """Name effects of what fails for which nobody had mended the handler."""
    wrong = {one.place: one for one in books.acknowledged if one.sort.lettered}
    stored = {letter.place: letter.stored_at for letter in books.letters}
    for effect in books.effects:
        one = wrong.get(effect.place)
        if one is not None and (one.sort is Sort.POISON or effect.committed_at < stored.get(effect.place, math.inf)):
            yield f"{one}: {effect}"


def nothing_proved(books: Books) -> Iterator[str]:
    """Say why the books are too thin for a verdict."""
    yield from verdict.nothing_proved(books)
    if not any(letter.parked for letter in books.letters):
        yield "no message was parked"


def _parked(books: Books) -> int:
    return sum(letter.parked for letter in books.letters)


PROMISES: tuple[Promise, ...] = (
    ("what is committed is handled, a dead letter, or parked", each("acknowledged"), settled.lost),
    ("in the end everything is committed", each("log_ends"), settled.unfinished),
    ("nothing is committed before it is settled or parked", each("samples"), early),
    ("nothing overtakes a dead letter of its key", each("effects"), overtaken),
    ("parked messages are released in their order", _parked, out_of_turn),
    ("messages are parked behind a dead letter only", _parked, parked_alone),
    ("in the end every key flows", each("letters"), still_held),
    ("what is resolved was handled", each("letters"), resolved_for_nothing),
    ("a message has one dead letter", each("letters"), verdict.not_once),
    ("no dead letter is caused by an outage", each("letters"), by_outage),
    ("dead letters hold the bytes that were sent", each("letters"), verdict.changed),
    ("effects are committed whole", each("effects"), verdict.half),
    ("effects of a failed handler are rolled back", each("effects"), not_rolled_back),
    ("effects and letters are of what was sent", each("effects"), verdict.made_up),
    ("what a handler produced is there", each("echoes"), verdict.not_produced),
    ("the run had something to judge", each("sent"), nothing_proved),
)
