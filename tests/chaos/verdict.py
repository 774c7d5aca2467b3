"""The verdict: which promises the books show to be broken. Pure, so that it can be tested on books made up for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from . import settled
from .books import Books, Effect, End, Letter
from .plan import MAX_POLL_SECONDS
from .records import Sort
from .sending import Sent

LEAST_RECORDS = 100
WORKER_KILLED, DEATHS = "django_kafka.exceptions.WorkerKilled", 3
"""The error type of letters of what seems to kill its workers, and how many of them it takes."""
WAITED_FOR = MAX_POLL_SECONDS / 2 * 0.9
"""Seconds that a handler may take and be waited for when its partition leaves; less than the worker's own bound."""
_SLACK = 0.01
"""Seconds: the moment of a COMMIT is taken a bit before, that of a leave a bit after."""
REASONS = {
    Sort.POISON: ("serialization", "django_kafka.exceptions.DecodeError"),
    Sort.FAILING: ("handler", "tests.chaos.handlers.PlannedFailure"),
}
"""Category and error type of the letters that are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How one promise fared."""

    promise: str
    """What is promised."""
    looked_at: int
    """How many things could have broken it."""
    broken: tuple[str, ...] = ()
    """What did."""

    @property
    def kept(self) -> bool:
        return not self.broken


def judge(books: Books, promises: Iterable[Promise] | None = None, about: str = "") -> list[Finding]:
    """Hold the books against every promise: those of a consumer that waits and goes on, or others, named with words."""
    return [
        Finding(promise=about + promise, looked_at=count(books), broken=tuple(find(books)))
        for promise, count, find in (PROMISES if promises is None else promises)
    ]


# --- effects ----------------------------------------------------------------------------------------------------------


def made_up(books: Books) -> Iterator[str]:
    """Name effects and letters of what nobody sent."""
    named = books.named
    yield from (str(effect) for effect in books.effects if (effect.key, effect.sequence) not in named)
    known = {letter.id for letter, _one in books.lettered}
    yield from (str(letter) for letter in books.letters if letter.id not in known)


def half(books: Books) -> Iterator[str]:
    """Name effects of which only the first statement was committed."""
    yield from (str(effect) for effect in books.effects if not effect.whole)


def not_rolled_back(books: Books) -> Iterator[str]:
    """Name effects of records whose handler always fails, or cannot even be called."""
    wrong = {(one.key, one.sequence): one for one in books.sent if one.sort.lettered}
    for effect in books.effects:
        if (effect.key, effect.sequence) in wrong:
            yield f"{wrong[effect.key, effect.sequence]}: {effect}"


def overtaken(books: Books) -> Iterator[str]:
    """Name first effects that came before that of an earlier message of their key, or of their partition.

    Repeats are left out here: what is handled again has been in order before, and see `went_back`.
    """
    latest_of_key: dict[str, Effect] = {}
    latest_of_partition: dict[int, Effect] = {}
    seen: set[tuple[int, int]] = set()
    names: set[tuple[str, int]] = set()
    for effect in books.effects:
        if effect.place in seen:
            continue
        seen.add(effect.place)
        before, ahead = latest_of_key.get(effect.key), latest_of_partition.get(effect.partition)
        again = (effect.key, effect.sequence) in names  # the client stored it twice
        names.add((effect.key, effect.sequence))
        if before is not None and effect.sequence < before.sequence and not again:
            yield f"{effect} after {before}"
        elif books.by_partition and ahead is not None and effect.offset < ahead.offset:
            yield f"{effect} after {ahead}"
        latest_of_key[effect.key] = max(effect, latest_of_key.get(effect.key, effect), key=lambda one: one.sequence)
        latest_of_partition[effect.partition] = max(
            effect, latest_of_partition.get(effect.partition, effect), key=lambda one: one.offset
        )


def went_back(books: Books) -> Iterator[str]:
    """Name effects of a worker that went back while it kept the partition.

    Whoever gets a partition starts where the group committed, and goes on in order from there: handling again begins
    with an assignment. Only the same message may come twice, when its COMMIT was not answered.
    """
    latest: dict[tuple[object, ...], Effect] = {}
    for effect in books.effects:
        lane = (effect.worker, effect.tenure, effect.partition, None if books.by_partition else effect.key)
        before = latest.get(lane)
        if before is not None and effect.offset < before.offset:
            yield f"{effect} after {before}"
        latest[lane] = effect


def not_waited_for(books: Books) -> Iterator[str]:
    """Name effects that came after their worker had let go of the partition, although it should have waited for them.

    A handler that outlives half of `max.poll.interval.ms` is not waited for, nor is one whose partition was taken away.
    """
    left = {(one.worker, one.tenure, one.partition): one for one in books.leaves if not one.lost}
    for effect in books.effects:
        leave = left.get((effect.worker, effect.tenure, effect.partition))
        if leave is not None and effect.committed_at > leave.at + _SLACK and effect.ran < WAITED_FOR:
            late = effect.committed_at - leave.at
            yield f"{effect}, {late:.3f} s after the partition had left, and the handler took {effect.ran:.3f} s"


def not_produced(books: Books) -> Iterator[str]:
    """Name messages that were settled without the record that their handler produced."""
    wanted = {(one.key, one.sequence): one for one in books.sent if one.sort is Sort.ECHO}
    handled = {(effect.key, effect.sequence) for effect in books.effects}
    for key in sorted(wanted.keys() & handled - books.echoes.keys()):
        yield f"{wanted[key]}: its handler ran and the record that it produced is not there"


def produced_in_vain(books: Books) -> Iterator[str]:
    """Name records of handlers whose transaction was rolled back."""
    right = {(one.key, one.sequence) for one in books.sent if one.sort is Sort.ECHO}
    for key, sequence in sorted(books.echoes.keys() - right):
        yield f"{key} {sequence}: its handler failed, and the record that it produced is there"


# --- dead letters -----------------------------------------------------------------------------------------------------


def by_outage(books: Books) -> Iterator[str]:
    """Name letters of messages that nothing was wrong with."""
    for letter, one in books.lettered:
        if not one.sort.lettered and not killed_its_workers(letter, books):
            yield f"{one}: {letter}, in the hands of {books.deaths.get(letter.place, 0)} workers that were killed"


def killed_its_workers(letter: Letter, books: Books) -> bool:
    """Tell whether it says so, and is right: it cannot know that the run killed them."""
    return letter.error_type == WORKER_KILLED and books.deaths.get(letter.place, 0) >= DEATHS


def wrong_reason(books: Books) -> Iterator[str]:
    """Name letters that say something else than what was wrong with their message."""
    for letter, one in books.lettered:
        reason = REASONS.get(one.sort)
        if reason in (None, (letter.category, letter.error_type)) or killed_its_workers(letter, books):
            continue
        yield f"{one}: {letter}"


def not_once(books: Books) -> Iterator[str]:
    """Name messages that have more than one letter."""
    for place, count in sorted(Counter(letter.place for letter in books.letters).items()):
        if count > 1:
            yield f"partition {place[0]} offset {place[1]} has {count} letters"


def changed(books: Books) -> Iterator[str]:
    """Name letters that do not hold the bytes that were sent."""
    sorts = {one.place: one for one in books.acknowledged}
    for letter in books.letters:
        one = sorts.get(letter.place)
        if one is None:
            continue
        raw = one.raw_value
        if letter.key != one.key.encode() or (isinstance(raw, bytes) and letter.value != raw):
            yield f"{one}: {letter} holds {letter.key!r} and {letter.value!r}"


# --- processes, and the run itself ------------------------------------------------------------------------------------


def died(books: Books) -> Iterator[str]:
    """Name processes that ended otherwise than the run ended them."""
    yield from (str(end) for end in books.ends if not _as_asked(end))


def unpolled(books: Books) -> Iterator[str]:
    """Name workers that did not poll for so long that the client gave their partitions up."""
    yield from (f"{end.name} did not poll for {MAX_POLL_SECONDS:g} s ({end.log})" for end in books.ends if end.unpolled)


def _as_asked(end: End) -> bool:
    killed, terminated = -9, -15
    match end.asked:
        case "SIGKILL":
            return end.code == killed
        case "SIGTERM" | "two SIGTERM" if not end.working:
            # Python had not come as far as to take signals over.
            return end.code in (0, terminated, 143)
        case "SIGTERM":
            return end.code == 0
        case "two SIGTERM":
            # The second one may come when Python is on its way out and has given signals back.
            return end.code in (0, terminated, 143)
    return False


def out_of_order(books: Books) -> Iterator[str]:
    """Name acknowledged records that stand in the log before an earlier one of their key."""
    latest: dict[str, Sent] = {}
    for one in books.acknowledged:
        before = latest.get(one.key)
        if before is not None and (one.offset or 0) <= (before.offset or 0):
            yield f"{one} after {before}"
        latest[one.key] = one


def nothing_proved(books: Books) -> Iterator[str]:
    """Say why the books are too thin for a verdict."""
    if len(books.acknowledged) < LEAST_RECORDS:
        yield f"only {len(books.acknowledged)} records were acknowledged"
    if len(books.samples) < 2:
        yield f"the committed offsets were read {len(books.samples)} times"
    for sort in Sort:
        if not any(one.sort is sort for one in books.acknowledged):
            yield f"no record of sort {sort} was acknowledged"


Count = Callable[[Books], int]


def each(name: str) -> Count:
    return lambda books: len(getattr(books, name))


Promise = tuple[str, Count, Callable[[Books], Iterable[str]]]
PROMISES: tuple[Promise, ...] = (
    ("what is committed is handled or a dead letter", each("acknowledged"), settled.lost),
    ("in the end everything is committed", each("log_ends"), settled.unfinished),
    ("nothing is committed before it is settled", each("samples"), settled.early),
    ("commits do not go back to those of a former owner", each("samples"), settled.rewound),
    ("a key and a partition are handled in order", each("effects"), overtaken),
    ("what is handled again begins with an assignment", each("effects"), went_back),
    ("a partition leaves when its handler has ended", each("leaves"), not_waited_for),
    ("effects are committed whole", each("effects"), half),
    ("effects of a failed handler are rolled back", each("effects"), not_rolled_back),
    ("effects and letters are of what was sent", each("effects"), made_up),
    ("what a handler produced is there", each("echoes"), not_produced),
    ("what a failed handler produced is not there", each("echoes"), produced_in_vain),
    ("no dead letter is caused by an outage", each("letters"), by_outage),
    ("dead letters say what was wrong", each("letters"), wrong_reason),
    ("a message has one dead letter", each("letters"), not_once),
    ("dead letters hold the bytes that were sent", each("letters"), changed),
    ("processes end only when they are ended", each("ends"), died),
    ("workers poll whatever their handlers do", each("ends"), unpolled),
    ("records of a key stand in the order in which they were sent", each("acknowledged"), out_of_order),
    ("the run had something to judge", each("sent"), nothing_proved),
)
