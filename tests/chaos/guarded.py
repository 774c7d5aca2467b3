"""The promises of consumers whose effects take place once, and of those that handle at most once. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator

from . import settled, verdict
from .books import Books, Letter, Move
from .sending import Sent
from .verdict import Promise, each
from .world import FETCH, PARTITIONS

UNANSWERED = "django_kafka.categories.UnknownCommit"
"""The error type of letters of what may be handled: handled at most once, it is not tried again."""


def repeated(books: Books) -> Iterator[str]:
    """Name messages whose effects are there more than once."""
    for place, count in sorted(Counter(effect.place for effect in books.effects).items()):
        if count > 1:
            yield f"partition {place[0]} offset {place[1]} has {count} effects"


def handled_and_given_up(books: Books) -> Iterator[str]:
    """Name messages that have both an effect and a letter."""
    done = {effect.place: effect for effect in books.effects}
    yield from (f"{letter}: {done[letter.place]}" for letter in books.letters if letter.place in done)


def apart_from_its_offset(books: Books) -> Iterator[str]:
    """Name effects and letters whose transaction did not move the claim past their message.

    A crash between the two would lose the message or repeat it, but hardly one comes at that very moment.
    """
    steps = _steps(books)
    for one in (*books.effects, *books.letters):
        if not any(step.low <= one.offset < step.high for step in steps[one.transaction, one.partition]):
            yield str(one)


def not_its_claim(books: Books) -> Iterator[str]:
    """Name effects of processes whose partition another one had claimed."""
    steps = _steps(books)
    for effect in books.effects:
        for step in steps[effect.transaction, effect.partition]:
            if step.pid != effect.pid:
                yield f"{effect}: process {effect.pid}, and {step.pid} had the claim"


def _steps(books: Books) -> dict[tuple[int, int], list[Move]]:
    found: dict[tuple[int, int], list[Move]] = defaultdict(list)
    for move in books.moves:
        found[move.transaction, move.partition].append(move)
    return found


def handed_on(books: Books) -> Iterator[str]:
    """Name messages that a worker began although another one had."""
    first: dict[tuple[int, int], str] = {}
    for one in books.begun:
        if first.setdefault(one.place, one.worker) != one.worker:
            yield f"partition {one.place[0]} offset {one.place[1]}: {first[one.place]}, then {one.worker}"


def before_its_commit(books: Books) -> Iterator[str]:
    """Name messages that were begun before they were committed, by a sample that was taken after."""
    samples = [one for one in books.samples if one.asked]
    asked = [one.asked for one in samples]
    # What was committed at a sample was so at all later ones: nothing goes back.
    for one in books.begun:
        after = bisect_left(asked, one.at)
        if after < len(samples) and samples[after].committed.get(one.place[0], 0) <= one.place[1]:
            yield (
                f"partition {one.place[0]} offset {one.place[1]} began at {one.at:.3f}, and at {samples[after].at:.3f} "
                f"only {samples[after].committed.get(one.place[0], 0)} was committed"
            )


def went_back(books: Books) -> Iterator[str]:
    """Name commits that went back, which would have messages handled again."""
    latest: dict[int, int] = defaultdict(int)
    for sample in books.samples:
        for partition, offset in sample.committed.items():
            if offset < latest[partition]:
                yield f"partition {partition} went from {latest[partition]} back to {offset} at {sample.at:.3f}"
            latest[partition] = max(latest[partition], offset)


def lost_too_many(books: Books) -> Iterator[str]:
    """Say when more is lost than crashes and rebalances may lose: of each partition what is committed in one fetch."""
    there = {effect.place for effect in books.effects} | {letter.place for letter in books.letters}
    lost = sum(one.place not in there for one in books.acknowledged)
    most = FETCH * (len(books.leaves) + PARTITIONS * len(books.ends))
    if lost > most:
        yield f"{lost} of {len(books.acknowledged)} are neither handled nor dead letters; {most} may be"


def by_outage(books: Books) -> Iterator[str]:
    """Name letters of messages that nothing was wrong with, but that their COMMIT was not answered."""
    yield from (f"{one}: {letter}" for letter, one in _known(books) if not one.sort.lettered)


def wrong_reason(books: Books) -> Iterator[str]:
    """Name letters that say something else than what was wrong with their message, or that nobody knows."""
    for letter, one in _known(books):
        if verdict.REASONS.get(one.sort) not in (None, (letter.category, letter.error_type)):
            yield f"{one}: {letter}"


def _known(books: Books) -> Iterator[tuple[Letter, Sent]]:
    return ((letter, one) for letter, one in books.lettered if letter.error_type != UNANSWERED)


def few_handled(books: Books) -> Iterator[str]:
    """Say why the books are too thin for a verdict; also when next to nothing was handled."""
    yield from verdict.nothing_proved(books)
    good = sum(not one.sort.lettered for one in books.acknowledged)
    if len(books.effects) < good / 2:
        yield f"only {len(books.effects)} of {good} messages were handled"


ONCE_PROMISES: tuple[Promise, ...] = (
    ("every effect is there once", each("effects"), repeated),
    ("what is a dead letter left no effect", each("letters"), handled_and_given_up),
    ("effects and letters are committed with their offsets", each("moves"), apart_from_its_offset),
    ("nobody writes under the claim of another", each("moves"), not_its_claim),
    *verdict.PROMISES,
)
_NOT_OF_MOST = {
    settled.lost, settled.early, settled.rewound, verdict.not_produced, verdict.by_outage, verdict.wrong_reason,
    verdict.nothing_proved, verdict.not_waited_for,
}  # fmt: skip
"""What is not promised to those that handle at most once, or in other words."""
MOST_PROMISES: tuple[Promise, ...] = (
    ("no effect is there twice", each("effects"), repeated),
    ("no worker begins what another one had", each("begun"), handed_on),
    ("nothing begins before it is committed", each("begun"), before_its_commit),
    ("no commit goes back", each("samples"), went_back),
    ("no more is lost than is committed ahead", each("acknowledged"), lost_too_many),
    ("no dead letter is caused by an outage, but by a COMMIT without answer", each("letters"), by_outage),
    ("dead letters say what was wrong", each("letters"), wrong_reason),
    *(one for one in verdict.PROMISES if one[2] not in _NOT_OF_MOST),
    ("the run had something to judge", each("sent"), few_handled),
)
