"""The promises about what is committed: nothing too early, nothing lost, nothing forgotten. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from .books import Books, Effect, Sample
from .records import Sort


def _outcomes(books: Books) -> set[tuple[int, int]]:
    return {effect.place for effect in books.effects} | {letter.place for letter in books.letters}


def lost(books: Books) -> Iterator[str]:
    """Name what was acknowledged and committed, but neither handled nor dead-lettered."""
    there, committed = _outcomes(books), books.samples[-1].committed if books.samples else {}
    for one in books.acknowledged:
        if one.place not in there and one.offset is not None and one.offset < committed.get(one.partition or 0, 0):
            yield str(one)


def unfinished(books: Books) -> Iterator[str]:
    """Name partitions whose end was not committed, although all faults were over."""
    committed = books.samples[-1].committed if books.samples else {}
    for partition, end in sorted(books.log_ends.items()):
        if committed.get(partition, 0) < end:
            yield f"partition {partition} is committed up to {committed.get(partition, 0)} of {end}"


def early(books: Books) -> Iterator[str]:
    """Name commits that were there before everything below them was settled."""
    settled: dict[tuple[int, int], float] = {}
    for effect in books.effects:
        settled[effect.place] = min(settled.get(effect.place, math.inf), effect.committed_at)
    for letter in books.letters:
        settled[letter.place] = min(settled.get(letter.place, math.inf), letter.stored_at)
    for one in books.acknowledged:
        if one.sort is Sort.ECHO and one.place in settled:
            settled[one.place] = max(settled[one.place], books.echoes.get((one.key, one.sequence), math.inf))
    records = {one.place: str(one) for one in books.acknowledged if one.place is not None}
    yield from too_early(records, settled, books.samples)


def too_early(
    records: Mapping[tuple[int, int], str], settled: Mapping[tuple[int, int], float], samples: Sequence[Sample]
) -> Iterator[str]:
    """Name records, each a sentence, that a sample shows to be committed before the moment at which they were settled.

    Both by place; what was never settled has no moment.
    """
    by_partition: dict[int, list[int]] = defaultdict(list)
    for partition, offset in sorted(records):
        by_partition[partition].append(offset)
    for partition, offsets in by_partition.items():
        times = [settled.get((partition, offset), math.inf) for offset in offsets]
        latest = list(accumulate(times, max))
        told: set[int] = set()
        for sample in samples:
            below = bisect_left(offsets, sample.committed.get(partition, 0))
            if not below or latest[below - 1] <= sample.at:
                continue
            for index in range(below):
                if times[index] > sample.at and index not in told:
                    told.add(index)
                    later = "never" if times[index] == math.inf else f"{times[index] - sample.at:.3f} s later"
                    yield f"{records[partition, offsets[index]]} was committed at {sample.at:.3f} and settled {later}"


def rewound(books: Books) -> Iterator[str]:
    """Name commits that went back to what a former owner of the partition had come to.

    An owner's own commits may overtake each other on their way, when the client sends one again that a broker did not
    answer; its next commit mends that. What a former owner commits, nobody expects. What an owner has come to begins
    at dead letters as well as at effects.
    """
    lettered = {letter.place for letter in books.letters}
    by_partition: dict[int, list[Effect]] = defaultdict(list)
    for effect in books.effects:
        by_partition[effect.partition].append(effect)
    times = {partition: [effect.committed_at for effect in effects] for partition, effects in by_partition.items()}
    before: dict[int, int] = {}
    for sample in books.samples:
        for partition, offset in sample.committed.items():
            known = bisect_left(times.get(partition, []), sample.at)
            if offset < before.get(partition, 0) and known:
                own = by_partition[partition][known - 1]
                tenure = [one for one in by_partition[partition][:known] if _same_tenure(one, own)]
                first = min(one.offset for one in tenure)
                while (partition, first - 1) in lettered:
                    first -= 1
                if offset <= first:
                    yield f"partition {partition} went from {before[partition]} back to {offset} at {sample.at:.3f}"
            before[partition] = offset


def _same_tenure(one: Effect, other: Effect) -> bool:
    return (one.worker, one.tenure) == (other.worker, other.tenure)
