"""The chaos suite itself: its plan follows from the seed, and its verdict notices each thing that may go wrong."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests import run
from tests.chaos import forwarded, guarded, held, records, sending, settled, verdict
from tests.chaos.books import Begun, Books, Effect, End, Leave, Letter, Move, Queue, Sample, deaths
from tests.chaos.plan import PROTOCOLS, Kind, Plan, Subject
from tests.chaos.records import GUARDED, Mixture, Sort
from tests.chaos.sending import Sent

ROOT = Path(__file__).resolve().parents[1]
PARTITIONS = 2
MIXTURE = Mixture(seed=1, poison=40, failing=30, flaky=25, echo=5)
START = 1_000_000.0
LETTER = {
    Sort.POISON: ("serialization", "django_kafka.exceptions.DecodeError"),
    Sort.FAILING: ("handler", "tests.chaos.handlers.PlannedFailure"),
}


def sound(count: int = 200) -> Books:
    """Books in which everything is as it should be: one record each hundredth of a second, settled a bit later."""
    sent, effects, letters = [], [], []
    offsets = [0] * PARTITIONS
    for record in itertools.islice(records.stream(MIXTURE), count):
        partition = int(record.key.removeprefix("key-")) % PARTITIONS
        place = {"partition": partition, "offset": offsets[partition]}
        named = {"key": record.key, "sequence": record.sequence}
        settled = START + record.number / 100
        sent.append(Sent(number=record.number, sort=record.sort, **named, **place))
        if record.sort.lettered:
            category, error = LETTER[record.sort]
            raw = record.value
            letters.append(
                Letter(
                    id=record.number,
                    **place,
                    key=record.key.encode(),
                    value=raw if isinstance(raw, bytes) else json.dumps(raw).encode(),
                    category=category,
                    error_type=error,
                    error_message="",
                    stored_at=settled,
                )
            )
        else:
            who = {"worker": "1.1", "tenure": 1, "whole": True, "ran": 0.01}
            effects.append(Effect(id=record.number, **place, **named, **who, committed_at=settled))
        offsets[partition] += 1
    ends = dict(enumerate(offsets))
    return Books(
        sent=tuple(sent),
        effects=tuple(effects),
        letters=tuple(letters),
        samples=(Sample(at=START, committed=dict.fromkeys(ends, 0)), Sample(at=START + 60, committed=ends)),
        log_ends=ends,
        echoes={(one.key, one.sequence): START + one.number / 100 for one in sent if one.sort is Sort.ECHO},
        deaths={},
        leaves=tuple(
            Leave(worker="1.1", partition=partition, tenure=1, at=START + 50, lost=False) for partition in ends
        ),
        ends=(End(name="sender", asked="SIGTERM", code=0), End(name="worker 1.1", asked="SIGKILL", code=-9)),
    )


def broken(books: Books) -> dict[str, tuple[str, ...]]:
    """What the verdict finds broken."""
    return {finding.promise: finding.broken for finding in verdict.judge(books) if not finding.kept}


def without(books: Books, place: tuple[int, int]) -> Books:
    """The same books, without what came of one message."""
    return replace(
        books,
        effects=tuple(one for one in books.effects if one.place != place),
        letters=tuple(one for one in books.letters if one.place != place),
    )


def the(books: Books, sort: Sort, turn: int = 1) -> Sent:
    """One record of a sort that is not at the edge of the books."""
    return [one for one in books.sent if one.sort is sort][turn]


def effect_of(books: Books, one: Sent) -> Effect:
    return next(effect for effect in books.effects if effect.place == one.place)


def letter_of(books: Books, one: Sent) -> Letter:
    return next(letter for letter in books.letters if letter.place == one.place)


def with_effects(books: Books, *more: Effect) -> Books:
    """The same books with more effects, all in the order of their commits."""
    return replace(books, effects=tuple(sorted((*books.effects, *more), key=lambda one: one.committed_at)))


def with_letter(books: Books, one: Sent, **changes: Any) -> Books:
    """The same books with another letter of a record instead of its own."""
    old = letter_of(books, one)
    return replace(books, letters=tuple(replace(old, **changes) if each is old else each for each in books.letters))


def test_sound_books_break_nothing() -> None:
    assert broken(sound()) == {}


def test_a_record_that_was_committed_and_never_handled_is_lost() -> None:
    books = sound()
    one = the(books, Sort.PLAIN)
    assert one.place is not None

    assert broken(without(books, one.place))["what is committed is handled or a dead letter"] == (str(one),)


def test_a_planned_dead_letter_that_is_missing_is_lost() -> None:
    books = sound()
    one = the(books, Sort.FAILING)
    assert one.place is not None

    assert broken(without(books, one.place))["what is committed is handled or a dead letter"] == (str(one),)


def test_what_is_neither_handled_nor_committed_is_not_lost_but_unfinished() -> None:
    books = sound()
    last = max((one for one in books.sent if one.partition == 0), key=lambda one: one.offset or 0)
    assert last.place is not None
    assert last.offset is not None
    samples = (*books.samples[:-1], replace(books.samples[-1], committed={**books.log_ends, 0: last.offset}))
    found = broken(replace(without(books, last.place), samples=samples, echoes=books.echoes))

    assert list(found) == ["in the end everything is committed"]


def test_a_commit_that_came_before_its_effect_is_early() -> None:
    books = sound()
    one = the(books, Sort.PLAIN)
    assert one.partition is not None
    assert one.offset is not None
    moment = effect_of(books, one).committed_at - 0.001
    sample = Sample(at=moment, committed={one.partition: one.offset + 1})

    found = broken(replace(books, samples=(books.samples[0], sample, books.samples[-1])))

    assert list(found) == ["nothing is committed before it is settled"]
    assert "settled 0.001 s later" in found["nothing is committed before it is settled"][0]


def test_a_commit_that_came_before_its_dead_letter_is_early() -> None:
    books = sound()
    one = the(books, Sort.FAILING)
    found = broken(with_letter(books, one, stored_at=START + 61))

    assert list(found) == ["nothing is committed before it is settled"]


def test_a_commit_that_came_before_the_record_of_the_handler_is_early() -> None:
    books = sound()
    one = the(books, Sort.ECHO)
    found = broken(replace(books, echoes={**books.echoes, (one.key, one.sequence): START + 61}))

    assert list(found) == ["nothing is committed before it is settled"]


def test_a_commit_that_repeats_what_a_former_owner_said_is_a_rewind() -> None:
    books = sound()
    handover = START + 1.0
    effects = tuple(replace(one, worker="2.1") if one.committed_at > handover else one for one in books.effects)
    later = effects[-1].committed_at
    ahead = Sample(at=later, committed=books.log_ends)
    samples = (books.samples[0], ahead, Sample(at=later + 1, committed={0: 3, 1: 3}), books.samples[-1])
    promise = "commits do not go back to those of a former owner"

    found = broken(replace(books, effects=effects, samples=samples))
    assert promise in found

    # The owner's own commits overtook each other: the client sent one again.
    samples = (books.samples[0], ahead, replace(ahead, at=later + 1, committed={0: 60, 1: 60}), books.samples[-1])
    assert promise not in broken(replace(books, effects=effects, samples=samples))


def test_an_owner_that_began_with_a_dead_letter_may_go_back_to_behind_it() -> None:
    books = sound()
    at = max(one.committed_at for one in books.effects)
    pattern, letter = books.effects[0], books.letters[0]
    effects = [replace(pattern, partition=0, offset=n, committed_at=at) for n in (3, 4, 5)]
    samples = (Sample(at=at + 1, committed={0: 6}), Sample(at=at + 2, committed={0: 3}))
    books = replace(books, effects=tuple(effects), samples=samples, letters=())
    assert len(list(settled.rewound(books))) == 1

    books = replace(books, letters=(replace(letter, partition=0, offset=2),))
    assert not list(settled.rewound(books))


def test_a_first_effect_before_that_of_an_earlier_message_of_its_key_is_an_overtaking() -> None:
    books = replace(sound(), by_partition=False)
    first, second = (one for one in books.effects if one.key == "key-3" and one.sequence in (0, 1))
    swapped = {
        first: replace(first, committed_at=second.committed_at, worker="2.1"),
        second: replace(second, committed_at=first.committed_at),
    }
    effects = sorted((swapped.get(one, one) for one in books.effects), key=lambda one: one.committed_at)
    found = broken(replace(books, effects=tuple(effects)))

    assert list(found) == ["a key and a partition are handled in order"]


def test_a_partition_has_an_order_too_unless_only_keys_were_promised_one() -> None:
    books = sound()
    first, second = (one for one in books.effects if one.partition == 0 and one.offset in (1, 2))
    assert first.key != second.key
    swapped = {first: replace(first, committed_at=second.committed_at + 0.001, worker="2.1")}
    effects = sorted((swapped.get(one, one) for one in books.effects), key=lambda one: one.committed_at)
    books = replace(books, effects=tuple(effects))

    assert list(broken(books)) == ["a key and a partition are handled in order"]
    assert broken(replace(books, by_partition=False)) == {}


def test_what_another_worker_repeats_in_order_is_no_overtaking() -> None:
    books = sound()
    again = [
        replace(one, id=one.id + 1000, worker="2.1", committed_at=START + 30 + one.offset / 100)
        for one in books.effects
        if one.partition == 0 and 10 <= one.offset < 40
    ]

    assert broken(with_effects(books, *again)) == {}


def test_a_worker_that_goes_back_without_an_assignment_is_noticed() -> None:
    books = sound()
    one = effect_of(books, the(books, Sort.PLAIN))
    found = broken(with_effects(books, replace(one, id=1000, committed_at=START + 30)))

    assert list(found) == ["what is handled again begins with an assignment"]

    late = replace(one, id=1000, committed_at=START + 30, tenure=2)
    assert broken(with_effects(books, late)) == {}


def test_a_message_whose_commit_was_not_answered_may_come_twice() -> None:
    books = sound()
    one = effect_of(books, the(books, Sort.PLAIN))

    assert broken(with_effects(books, replace(one, id=1000, committed_at=one.committed_at + 0.0001))) == {}


@pytest.mark.parametrize(("ran", "lost", "wrong"), [(0.5, False, True), (5.0, False, False), (0.5, True, False)])
def test_an_effect_that_a_worker_did_not_wait_for_is_noticed(ran: float, lost: bool, wrong: bool) -> None:
    books = sound()
    one = effect_of(books, the(books, Sort.PLAIN))
    late = replace(one, ran=ran, committed_at=one.committed_at + 0.005)
    effects = tuple(late if each is one else each for each in books.effects)
    leave = Leave(worker="1.1", partition=one.partition, tenure=1, at=one.committed_at - 0.009, lost=lost)
    later = tuple(replace(each, tenure=2) if each.committed_at > late.committed_at else each for each in effects)
    found = broken(replace(books, effects=later, leaves=(leave,)))

    assert list(found) == (["a partition leaves when its handler has ended"] if wrong else [])


def test_half_an_effect_is_noticed() -> None:
    books = sound()
    one = effect_of(books, the(books, Sort.PLAIN))
    effects = tuple(replace(each, whole=False) if each is one else each for each in books.effects)

    assert list(broken(replace(books, effects=effects))) == ["effects are committed whole"]


def test_an_effect_of_a_handler_that_failed_is_noticed() -> None:
    books = sound()
    one = the(books, Sort.FAILING)
    template = next(each for each in books.effects if each.partition == one.partition)
    assert one.offset is not None
    left = replace(
        template,
        id=1000,
        offset=one.offset,
        key=one.key,
        sequence=one.sequence,
        committed_at=letter_of(books, one).stored_at,
    )

    assert list(broken(with_effects(books, left))) == ["effects of a failed handler are rolled back"]


def test_an_effect_that_nobody_sent_is_made_up() -> None:
    books = sound()
    one = books.effects[-1]
    strange = replace(one, id=1000, offset=one.offset + 100, key="nobody", committed_at=START + 30)

    assert list(broken(with_effects(books, strange))) == ["effects and letters are of what was sent"]


def test_a_record_that_was_not_acknowledged_may_be_there_all_the_same() -> None:
    books = sound()
    one = the(books, Sort.ECHO)
    unknown = replace(one, partition=None, offset=None)
    books = replace(books, sent=tuple(unknown if each is one else each for each in books.sent))

    assert broken(books) == {}


def test_what_the_client_stored_twice_is_counted_and_breaks_nothing() -> None:
    books = sound()
    second = next(each for each in books.effects if each.sequence == 1 and each.id > 50)
    first = next(each for each in books.effects if (each.key, each.sequence) == (second.key, 0))
    end = books.log_ends[second.partition]
    twice = [
        replace(each, id=1000 + number, offset=end + number, committed_at=START + 30 + number)
        for number, each in enumerate([first, second])
    ]
    poison = letter_of(books, the(books, Sort.POISON))
    more = replace(poison, id=1003, offset=books.log_ends[poison.partition] + 5, stored_at=START + 30)
    books = with_effects(replace(books, letters=(*books.letters, more)), *twice)

    assert (broken(books), books.stored_twice) == ({}, 2)


def test_a_record_of_a_handler_that_is_missing_is_noticed() -> None:
    books = sound()
    one = the(books, Sort.ECHO)
    without_echo = {name: at for name, at in books.echoes.items() if name != (one.key, one.sequence)}
    found = broken(replace(books, echoes=without_echo))

    assert list(found) == ["nothing is committed before it is settled", "what a handler produced is there"]


def test_a_record_of_a_handler_that_failed_is_noticed() -> None:
    books = sound()
    one = the(books, Sort.FAILING)
    found = broken(replace(books, echoes={**books.echoes, (one.key, one.sequence): START}))

    assert list(found) == ["what a failed handler produced is not there"]


def test_a_dead_letter_of_a_sound_message_is_noticed_even_when_it_was_handled_as_well() -> None:
    books = sound()
    one = the(books, Sort.PLAIN)
    assert one.partition is not None
    assert one.offset is not None
    outage = replace(
        books.letters[0],
        id=1000,
        partition=one.partition,
        offset=one.offset,
        key=one.key.encode(),
        error_type="django.db.utils.OperationalError",
    )
    found = broken(replace(books, letters=(*books.letters, outage)))

    assert list(found) == ["no dead letter is caused by an outage"]
    assert "OperationalError" in found["no dead letter is caused by an outage"][0]


@pytest.mark.parametrize(("count", "wrong"), [(3, False), (2, True)])
def test_a_message_that_was_there_at_three_deaths_may_be_given_up(count: int, wrong: bool) -> None:
    books = sound()
    one = the(books, Sort.PLAIN)
    assert one.place is not None
    partition, offset = one.place
    given_up = replace(
        books.letters[0],
        id=1000,
        partition=partition,
        offset=offset,
        key=one.key.encode(),
        error_type=verdict.WORKER_KILLED,
        stored_at=effect_of(books, one).committed_at,
    )
    books = replace(without(books, one.place), deaths={one.place: count})
    found = broken(replace(books, letters=(*books.letters, given_up)))

    assert list(found) == (["no dead letter is caused by an outage"] if wrong else [])


def test_what_a_killed_worker_had_begun_and_not_committed_was_in_its_hands(tmp_path: Path) -> None:
    books = sound()
    first, second, third = books.effects[:3]
    file = tmp_path / "begun.jsonl"
    lines = [("1.1", 1, first), ("1.1", 1, second), ("1.1", 2, third), ("2.1", 1, third), ("3.1", 1, third)]
    text = [
        {"worker": worker, "thread": thread, "topic": "in", "partition": effect.partition, "offset": effect.offset}
        for worker, thread, effect in lines
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in text))
    ends = [
        End(name="1.1", asked="SIGKILL", code=-9),
        End(name="2.1", asked="two SIGTERM", code=143),
        End(name="3.1", asked="SIGTERM", code=0),
    ]
    committed = [replace(second, worker="1.1")]

    assert deaths(file, "in", ends, committed) == {third.place: 2}


@pytest.mark.parametrize("sort", [Sort.POISON, Sort.FAILING])
def test_a_dead_letter_with_another_reason_than_the_planned_one_is_noticed(sort: Sort) -> None:
    books = sound()
    one = the(books, sort)

    found = broken(with_letter(books, one, error_type="django.db.utils.OperationalError"))

    assert list(found) == ["dead letters say what was wrong"]


def test_two_dead_letters_of_one_message_are_noticed() -> None:
    books = sound()
    found = broken(replace(books, letters=(*books.letters, replace(books.letters[0], id=1000))))

    assert list(found) == ["a message has one dead letter"]


def test_a_dead_letter_with_other_bytes_is_noticed() -> None:
    books = sound()
    one = the(books, Sort.POISON)
    assert one.sort is Sort.POISON

    assert list(broken(with_letter(books, one, value=b"\xef\xbf\xbd"))) == [
        "dead letters hold the bytes that were sent"
    ]


@pytest.mark.parametrize(
    ("end", "wrong"),
    [
        (End(name="worker", asked="SIGKILL", code=-9), False),
        (End(name="worker", asked="SIGTERM", code=0), False),
        (End(name="worker", asked="two SIGTERM", code=143), False),
        (End(name="worker", asked="two SIGTERM", code=-15), False),
        (End(name="worker", asked="SIGTERM", code=-15, working=False), False),
        (End(name="worker", asked="SIGTERM", code=-15), True),
        (End(name="worker", asked="SIGTERM", code=1), True),
        (End(name="worker", asked="SIGTERM", code=None), True),
        (End(name="worker", asked="two SIGTERM", code=-11), True),
        (End(name="worker", code=0), True),
        (End(name="worker", code=1), True),
        (End(name="worker", code=-9), True),
    ],
)
def test_a_process_that_ends_otherwise_than_it_was_ended_is_noticed(end: End, wrong: bool) -> None:
    found = broken(replace(sound(), ends=(end,)))

    assert list(found) == (["processes end only when they are ended"] if wrong else [])


def test_a_worker_that_did_not_poll_is_noticed() -> None:
    end = End(name="worker", asked="SIGTERM", code=0, unpolled=True)

    assert list(broken(replace(sound(), ends=(end,)))) == ["workers poll whatever their handlers do"]


def test_records_that_stand_in_another_order_than_they_were_sent_in_are_noticed() -> None:
    books = sound()
    key = books.sent[0].key
    first, second, *_ = (one for one in books.sent if one.key == key)
    swapped = {
        first: replace(first, offset=second.offset),
        second: replace(second, offset=first.offset),
    }
    found = broken(replace(books, sent=tuple(swapped.get(one, one) for one in books.sent)))

    assert "records of a key stand in the order in which they were sent" in found


# --- retry topics -----------------------------------------------------------------------------------------------------


def sent_on(**changes: Any) -> tuple[Books, Sent]:
    """Sound books of one message that was sent to a retry topic and handled there, and that message."""
    books = sound()
    one = the(books, Sort.FLAKY)
    effect = effect_of(books, one)
    late = replace(effect, committed_at=START + 20)
    rest = tuple(sorted((late if each is effect else each for each in books.effects), key=lambda each: each.id))
    at = START + one.number / 100
    queue = Queue(
        records={(0, 0): (effect.place, at + 0.001)},
        samples=(Sample(at=START, committed={0: 0}), Sample(at=START + 60, committed={0: 1})),
    )
    begun = (Begun(place=effect.place, attempt=1, at=at), Begun(place=effect.place, attempt=2, at=at + 1.1))
    return replace(books, effects=rest, retried={"retry.1": queue}, begun=begun, **changes), one


def broken_on_the_way(books: Books) -> list[str]:
    return [finding.promise for finding in verdict.judge(books, forwarded.PROMISES) if not finding.kept]


def test_a_message_that_went_through_a_retry_topic_breaks_nothing() -> None:
    assert "a dead letter has every attempt behind it" in broken_on_the_way(sent_on()[0])
    books, _ = sent_on(letters=tuple(one for one in sound().letters if "PlannedFailure" not in one.error_type))
    sent = tuple(one for one in books.sent if one.sort is not Sort.FAILING)

    assert broken_on_the_way(replace(books, sent=sent)) == ["the run had something to judge"]


def test_a_message_that_was_not_sent_on_before_its_commit_is_noticed() -> None:
    books, one = sent_on()
    assert one.partition is not None
    assert one.offset is not None
    sample = Sample(at=START + one.number / 100 + 0.0005, committed={one.partition: one.offset + 1})

    found = broken_on_the_way(replace(books, samples=(books.samples[0], sample, books.samples[-1])))

    assert "nothing is committed before it is settled or sent on" in found


def test_a_message_that_was_sent_on_and_never_handled_is_lost_unless_it_waits() -> None:
    books, one = sent_on()
    assert one.place is not None
    gone, promise = without(books, one.place), "what is committed is handled, a dead letter, or waits"
    queue = books.retried["retry.1"]

    assert promise in broken_on_the_way(gone)
    waits = replace(queue, samples=queue.samples[:1])
    assert promise not in broken_on_the_way(replace(gone, retried={"retry.1": waits}))


@pytest.mark.parametrize(("off", "wrong"), [(0.0, True), (-3600.0, True), (7.0, False)])
def test_a_retry_before_its_time_is_noticed_unless_a_clock_is_ahead(off: float, wrong: bool) -> None:
    books, _ = sent_on()
    first, second = books.begun
    begun = (first, replace(second, at=first.at + 0.5))

    found = broken_on_the_way(replace(books, begun=begun, steps=((START - 10, off),)))

    assert ("a message comes back when it is due" in found) == wrong


# --- held keys --------------------------------------------------------------------------------------------------------


def parked_behind(books: Books) -> tuple[Books, Sent, Effect]:
    """Books of a consumer that holds keys: a letter that was mended, and the next of its key, parked and released."""
    failed, following = next(
        (one, after)
        for one in books.sent
        if one.sort is Sort.FAILING
        for after in books.effects
        if (after.key, after.sequence) == (one.key, one.sequence + 1)
    )
    letter = letter_of(books, failed)
    released = replace(following, committed_at=START + 31)
    mended = replace(following, id=999, offset=letter.offset, sequence=failed.sequence, committed_at=START + 30)
    waiting = replace(
        letter, id=1000, offset=following.offset, category="parked", error_type="", parked=True, state="resolved",
        stored_at=following.committed_at,
    )  # fmt: skip
    kept = [each for each in books.effects if each.key != failed.key or each.sequence < failed.sequence]
    sent = tuple(each for each in books.sent if each.key != failed.key or each.sequence <= failed.sequence + 1)
    letters = tuple(
        replace(each, state="resolved")
        if each is letter
        else replace(each, state="discarded", discarded_at=each.stored_at)
        for each in books.letters
        if each is letter or "Decode" in each.error_type
    )
    left = tuple(each for each in sent if each.sort is not Sort.FAILING or each is failed)
    books = replace(books, sent=left, effects=(*kept, mended, released), letters=(*letters, waiting))
    return books, failed, released


def broken_of_held(books: Books) -> list[str]:
    return [finding.promise for finding in verdict.judge(books, held.PROMISES) if not finding.kept]


def test_a_held_key_that_was_released_breaks_nothing() -> None:
    assert broken_of_held(parked_behind(sound())[0]) == []


def test_a_message_that_is_handled_before_the_letter_of_its_key_is_mended_overtakes_it() -> None:
    books, _failed, released = parked_behind(sound())
    early = replace(released, committed_at=START + 29)
    letters = tuple(one for one in books.letters if not one.parked)
    books = replace(books, effects=(*books.effects[:-1], early), letters=letters)

    assert broken_of_held(books) == ["nothing overtakes a dead letter of its key", "the run had something to judge"]


def test_a_parked_message_that_is_released_too_soon_is_noticed() -> None:
    books, _failed, released = parked_behind(sound())
    early = replace(released, committed_at=START + 29)

    found = broken_of_held(replace(books, effects=(*books.effects[:-1], early)))

    assert found == ["parked messages are released in their order"]


def test_a_parked_message_that_is_gone_is_lost() -> None:
    books, _failed, released = parked_behind(sound())
    assert "what is committed is handled, a dead letter, or parked" in broken_of_held(without(books, released.place))


def test_a_key_that_is_still_held_in_the_end_is_noticed() -> None:
    books, _failed, _released = parked_behind(sound())
    letters = tuple(replace(one, state="parked") if one.parked else one for one in books.letters)

    assert broken_of_held(replace(books, letters=letters)) == ["in the end every key flows"]


@pytest.mark.parametrize(
    "thin",
    [
        lambda books: sound(50),
        lambda books: replace(books, samples=books.samples[-1:]),
        lambda books: replace(books, sent=tuple(one for one in books.sent if one.sort is not Sort.POISON)),
    ],
    ids=["few records", "few samples", "no poison"],
)
def test_a_run_that_had_little_to_judge_does_not_pass(thin: Callable[[Books], Books]) -> None:
    assert "the run had something to judge" in broken(thin(sound()))


def of_guarded(books: Books) -> Books:
    """The same books with the runs of handlers, and with the steps of claims.

    Each message began when it was committed and before it was settled, in a transaction of its own.
    """
    effects = tuple(replace(one, transaction=one.id, pid=1) for one in books.effects)
    letters = tuple(replace(one, transaction=one.id) for one in books.letters)
    moves = (
        Move(partition=one.partition, low=one.offset, high=one.offset + 1, pid=1, transaction=one.id)
        for one in (*effects, *letters)
    )
    books = replace(books, effects=effects, letters=letters, moves=tuple(moves))
    settled = {one.place: one.committed_at for one in books.effects} | {
        one.place: one.stored_at for one in books.letters
    }
    first, last = books.samples
    return replace(
        books,
        begun=tuple(Begun(place=place, attempt=1, at=at - 0.001, worker="1.1") for place, at in settled.items()),
        samples=(replace(first, asked=first.at - 0.1), replace(last, asked=last.at - 0.1)),
    )


def broken_of_once(books: Books) -> list[str]:
    return [finding.promise for finding in verdict.judge(books, guarded.ONCE_PROMISES) if not finding.kept]


def broken_of_most(books: Books) -> list[str]:
    return [finding.promise for finding in verdict.judge(books, guarded.MOST_PROMISES) if not finding.kept]


def test_sound_books_of_other_guarantees_break_nothing() -> None:
    assert broken_of_once(of_guarded(sound())) == broken_of_most(of_guarded(sound())) == []


def test_an_effect_that_is_there_twice_is_noticed() -> None:
    books = of_guarded(sound())
    last = books.effects[-1]
    again = with_effects(books, replace(last, id=10_000, committed_at=last.committed_at + 1, worker="2.1"))

    assert broken_of_once(again) == ["every effect is there once"]
    assert broken_of_most(again) == ["no effect is there twice"]


def test_effects_of_what_is_a_dead_letter_are_noticed() -> None:
    books = of_guarded(sound())
    one = the(books, Sort.FAILING)
    done = replace(effect_of(books, the(books, Sort.PLAIN)), **place_of(one), committed_at=START + 100)

    assert "what is a dead letter left no effect" in broken_of_once(with_effects(books, done))


def test_an_effect_or_a_letter_apart_from_its_offset_is_noticed() -> None:
    books = of_guarded(sound())
    with_its_offset = "effects and letters are committed with their offsets"
    effect, letter = books.effects[7], books.letters[2]

    for one in (effect, letter):
        moves = tuple(replace(move, transaction=-1) if move.transaction == one.id else move for move in books.moves)
        assert broken_of_once(replace(books, moves=moves)) == [with_its_offset]
    elsewhere = (replace(move, partition=7) if move.transaction == effect.id else move for move in books.moves)
    assert broken_of_once(replace(books, moves=tuple(elsewhere))) == [with_its_offset]


def test_an_effect_under_the_claim_of_another_process_is_noticed() -> None:
    books = of_guarded(sound())
    moves = (replace(books.moves[0], pid=2), *books.moves[1:])

    assert broken_of_once(replace(books, moves=moves)) == ["nobody writes under the claim of another"]


def place_of(one: Sent) -> dict[str, Any]:
    return {"partition": one.partition, "offset": one.offset, "key": one.key, "sequence": one.sequence}


def test_what_is_lost_is_noticed_where_effects_take_place_once_and_allowed_where_they_do_at_most_once() -> None:
    books = of_guarded(sound())
    gone = without(books, the(books, Sort.PLAIN).place or (0, 0))

    assert "what is committed is handled or a dead letter" in broken_of_once(gone)
    assert broken_of_most(gone) == []


def test_losing_more_than_a_fetch_of_each_partition_that_left_is_noticed() -> None:
    books = replace(of_guarded(sound()), leaves=(), ends=())
    gone = without(books, the(books, Sort.PLAIN).place or (0, 0))

    assert broken_of_most(gone) == ["no more is lost than is committed ahead"]


def test_losing_next_to_everything_proves_nothing() -> None:
    books = of_guarded(sound())

    assert "the run had something to judge" in broken_of_most(replace(books, effects=books.effects[:20]))


def test_a_message_that_another_worker_had_begun_is_noticed() -> None:
    books = of_guarded(sound())
    again = replace(books.begun[7], worker="2.1", at=START + 90)

    assert broken_of_most(replace(books, begun=(*books.begun, again))) == ["no worker begins what another one had"]


def test_another_attempt_of_the_same_worker_is_none() -> None:
    books = of_guarded(sound())

    assert broken_of_most(replace(books, begun=(*books.begun, replace(books.begun[7], attempt=2)))) == []


def test_handling_before_the_commit_is_noticed() -> None:
    books = of_guarded(sound())
    place = the(books, Sort.PLAIN).place or (0, 0)
    early = next(one for one in books.begun if one.place == place).at
    # Asked after it began, and it was not committed.
    late = Sample(at=early + 0.2, asked=early + 0.1, committed={0: 0, 1: 0} | {place[0]: place[1]})
    samples = (books.samples[0], late, books.samples[1])

    only = tuple(one for one in books.begun if one.place == place)
    assert broken_of_most(replace(books, begun=only, samples=samples)) == ["nothing begins before it is committed"]


def test_a_commit_that_goes_back_is_noticed() -> None:
    books = of_guarded(sound())
    back = Sample(at=START + 70, asked=START + 69, committed={0: 5, 1: 5})

    found = broken_of_most(replace(books, samples=(*books.samples, back, replace(books.samples[-1], at=START + 80))))

    assert found == ["no commit goes back"]


def test_a_letter_of_an_outage_is_noticed_unless_its_commit_was_not_answered() -> None:
    books = of_guarded(sound())
    one = the(books, Sort.PLAIN)
    letter = replace(
        books.letters[0], id=9_999, partition=one.partition or 0, offset=one.offset or 0, key=one.key.encode(),
        value=json.dumps(one.raw_value).encode(), category="outage",
    )  # fmt: skip

    def broken_with(error: str) -> list[str]:
        return broken_of_most(replace(books, letters=(*books.letters, replace(letter, error_type=error))))

    assert broken_with(guarded.UNANSWERED) == []
    assert broken_with("django.db.utils.OperationalError") == [
        "no dead letter is caused by an outage, but by a COMMIT without answer"
    ]


def test_seeds_take_turns_with_the_guarantees_unless_one_is_chosen() -> None:
    assert {Plan.draw(seed, 1).scenario.guarantee for seed in (1, 2)} == set(GUARDED)
    assert {Plan.draw(seed, 1, "effect_once").scenario.guarantee for seed in (1, 2)} == {"effect_once"}
    assert Plan.draw(1, 1, "at_least_once").scenario.courses == records.COURSES
    drawn = [Plan.draw(seed, 1).scenario for seed in range(20)]
    assert {(one.transaction, one.ordering) for one in drawn} == set(
        itertools.product(("message", "batch"), ("partition", "key"))
    )


def test_the_same_seed_makes_the_same_plan() -> None:
    assert Plan.draw(7, 180) == Plan.draw(7, 180)
    assert Plan.draw(7, 180).faults != Plan.draw(8, 180).faults


def test_three_seeds_in_a_row_share_partitions_out_in_every_way() -> None:
    assert {Plan.draw(seed, 1).scenario.protocol for seed in (1, 2, 3)} == set(PROTOCOLS)


def test_the_plan_does_not_depend_on_the_process() -> None:
    program = "from tests.chaos.plan import Plan; print(Plan.draw(3, 60))"
    plans = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert plans == {f"{Plan.draw(3, 60)}\n"}


def test_a_longer_plan_begins_like_a_shorter_one() -> None:
    short, long = Plan.draw(5, 60), Plan.draw(5, 240)

    assert long.scenario == short.scenario
    assert [fault for fault in long.faults if fault.at < 60] == list(short.faults)


@pytest.mark.parametrize("seed", range(1, 6))
def test_three_minutes_hold_every_kind_of_fault(seed: int) -> None:
    assert {fault.kind for fault in Plan.draw(seed, 180).faults} == set(Kind)


def test_the_short_run_strikes_every_subject() -> None:
    plan = Plan.draw(run.CHAOS.seed, run.CHAOS.minutes * 60)

    assert {fault.subject for fault in plan.faults} == set(Subject)


def test_records_are_counted_by_key_and_each_sort_has_its_turn() -> None:
    some = list(itertools.islice(records.stream(MIXTURE), 300))
    sequences: dict[str, list[int]] = {}
    for record in some:
        sequences.setdefault(record.key, []).append(record.sequence)

    assert all(numbers == list(range(len(numbers))) for numbers in sequences.values())
    assert [record.number for record in some if record.sort is Sort.POISON] == [39, 79, 119, 159, 199, 239, 279]
    assert {record.sort for record in some} == set(Sort)
    assert some == list(itertools.islice(records.stream(MIXTURE), 300))


def test_the_book_of_the_sender_survives_a_crash_between_two_lines(tmp_path: Path) -> None:
    file = tmp_path / "sent.jsonl"
    book = sending.Book(file)
    book.note(number=0, key="key-1", sequence=0, sort=Sort.PLAIN)
    book.note(number=1, key="key-2", sequence=0, sort=Sort.ECHO)
    book.note(number=0, partition=3, offset=12)
    book.note(number=1, failed="DeliveryFailed()")

    assert sending.read(file) == [
        Sent(number=0, key="key-1", sequence=0, sort=Sort.PLAIN, partition=3, offset=12),
        Sent(number=1, key="key-2", sequence=0, sort=Sort.ECHO),
    ]


def test_a_stepped_clock_is_seen_by_everything_but_log_lines_and_monotonic_clocks(tmp_path: Path) -> None:
    program = """
        import logging, sys, time
        from pathlib import Path
        from django.conf import settings
        settings.configure(USE_TZ=True)
        from django.utils import timezone
        from tests.chaos.clock import SteppedClock, TrueTime
        before, monotonic = time.time(), time.monotonic()
        clock = SteppedClock(Path(sys.argv[1]))
        clock.install()
        assert abs(time.time() - before) < 60
        Path(sys.argv[1]).write_text("86400")
        time.sleep(0.25)
        assert abs(time.time() - before - 86400) < 60
        assert abs(time.time_ns() / 1e9 - before - 86400) < 60
        assert abs(timezone.now().timestamp() - before - 86400) < 60
        assert time.monotonic() - monotonic < 60
        record = logging.makeLogRecord({"msg": "x"})
        assert abs(record.created - before - 86400) < 60
        print(TrueTime().formatTime(record))
    """
    before = datetime.now(UTC)
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "clock")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.returncode == 0, said.stderr
    told = datetime.strptime(f"{before:%Y-%m-%d} {said.stdout.strip()} +0000", "%Y-%m-%d %H:%M:%S.%f %z")
    # A day more when midnight passed in between.
    assert min(abs((told - before).total_seconds()), abs((told - before).total_seconds() + 86400)) < 60
