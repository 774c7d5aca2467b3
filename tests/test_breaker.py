"""The surge breaker as a machine: when it opens, how it probes, when it lets letters be written, and how it closes."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from django_kafka.conf import CircuitBreaker
from django_kafka.consuming.breaker import Breaker, Permit, State

PATIENCE = 900.0


def breaker(ratio: float = 0.5, window: int = 10, cooldown: float = 30.0, patience: float = PATIENCE) -> Breaker:
    return Breaker(CircuitBreaker(failure_ratio=ratio, window=window, cooldown=cooldown), patience)


def opened(*, at: float = 0.0, **settings: float) -> Breaker:
    """Return one that has just opened."""
    made = breaker(**settings)  # type: ignore[arg-type]
    while not made.failed(at, 0, "ValueError") and not made.writing:
        pass
    return made


def permit(made: Breaker, now: float) -> Permit:
    answer = made.admit(now, 0)
    assert isinstance(answer, Permit), answer
    return answer


@pytest.mark.parametrize(
    ("ratio", "window", "outcomes", "opens_at"),
    [
        (0.5, 10, "fffff", 5),
        (0.5, 10, "ffff", None),
        (0.5, 10, "ffffssssssf", None),
        (0.5, 10, "ffffsssssf", 10),
        (0.5, 10, "sfsfsfsfsf", 10),
        (0.5, 10, "ssfssfssfssfssfssf", None),
        (0.5, 10, "s" * 1000 + "fffff", 1005),
        (0.3, 10, "fff", 3),
        (1.0, 3, "ff" + "s" + "ff" + "s", None),
        (1.0, 3, "fsfff", 5),
        (0.01, 10, "f", 1),
        (0.5, 1, "ssf", 3),
        (0.5, 3, "ff", 2),
    ],
)
def test_it_opens_when_failures_among_the_last_messages_reach_the_ratio(
    ratio: float, window: int, outcomes: str, opens_at: int | None
) -> None:
    made = breaker(ratio, window)
    succeeded, opened_after = 0, None
    for number, outcome in enumerate(outcomes, 1):
        if outcome == "s":
            succeeded += 1
        elif made.failed(0.0, succeeded, "ValueError"):
            opened_after = number
            break
    assert opened_after == opens_at
    assert (made.state is State.OPEN) == (opens_at is not None)


def test_failures_before_it_opens_become_letters_and_the_one_that_opens_it_waits() -> None:
    made = breaker()
    assert [made.failed(0.0, 0, "ValueError") for _ in range(5)] == [False] * 4 + [True]


def test_it_says_why_it_opened_with_the_most_frequent_error() -> None:
    made = breaker()
    for error in ("KeyError", "ValueError", "ValueError", "KeyError", "ValueError"):
        made.failed(0.0, 2, error)
    assert made.reason == "5 of the last 5 messages failed, 3 of them with ValueError"


def test_all_failures_wait_while_it_is_open() -> None:
    made = opened()
    assert all(made.failed(float(now), 0, "ValueError") for now in range(100))


def test_nothing_begins_before_the_cooldown_is_over_and_one_message_begins_then() -> None:
    made = opened(at=100.0)
    assert made.admit(129.9, 0) is False
    assert made.pause(129.9) == pytest.approx(0.1)
    assert permit(made, 130.0).most == 1
    assert made.admit(130.0, 0) is False


def test_each_round_of_probes_that_succeeds_doubles_the_next_until_it_closes() -> None:
    made = opened(window=100)
    now, sizes = 30.0, []
    while made.state is not State.CLOSED:
        given = permit(made, now)
        sizes.append(given.most)
        made.answer(given, given.most)
    assert sizes == [1, 2, 4, 8, 16, 32, 64]
    assert made.admit(now, 0) is True


def test_a_round_is_shared_by_lanes_and_what_one_does_not_use_is_given_to_the_next() -> None:
    made = opened(window=100)
    for _ in range(3):
        made.answer(given := permit(made, 30.0), given.most)
    first = permit(made, 30.0)
    assert first.most == 8
    made.answer(first, 3)
    second = permit(made, 30.0)
    assert second.most == 5
    assert made.admit(30.0, 0) is False
    made.answer(second, 5)
    assert permit(made, 30.0).most == 16


def test_a_probe_that_fails_opens_it_for_another_cooldown() -> None:
    made = opened(window=100)
    made.answer(given := permit(made, 30.0), given.most)
    given = permit(made, 31.0)
    assert made.failed(40.0, 0, "ValueError") is True
    made.answer(given, 1)
    assert made.state is State.OPEN
    assert made.admit(69.9, 0) is False
    assert permit(made, 70.0).most == 1, "it begins with one again"
    assert made.episode == 1


def test_an_attempt_that_fails_and_will_be_made_again_fails_as_a_probe_and_counts_for_nothing_else() -> None:
    made = breaker()
    for _ in range(100):
        made.stumbled(0.0)
    assert made.state is State.CLOSED
    made = opened()
    permit(made, 30.0)
    made.stumbled(35.0)
    assert (made.state, made.admit(64.0, 0)) == (State.OPEN, False)


def test_an_answer_to_an_earlier_round_counts_for_nothing() -> None:
    made = opened(window=100)
    old = permit(made, 30.0)
    made.failed(31.0, 0, "ValueError")
    new = permit(made, 61.0)
    made.answer(old, 1)
    assert made.admit(61.0, 0) is False
    made.answer(new, 1)
    assert permit(made, 61.0).most == 2


def test_a_probe_that_is_never_answered_does_not_hold_the_others_for_longer_than_a_cooldown() -> None:
    made = opened()
    permit(made, 30.0)
    assert made.pause(30.0) == 30.0
    assert made.admit(59.0, 0) is False
    assert permit(made, 60.0).most == 1


def test_when_patience_is_over_everything_begins_and_letters_are_written_but_it_stays_open() -> None:
    made = opened(at=50.0)
    assert made.pause(50.0 + PATIENCE - 5) == 0.0
    now = 50.0 + PATIENCE
    assert made.admit(now, 0) is True
    assert (made.state, made.writing) == (State.OPEN, True)
    assert not any(made.failed(now + each, 0, "ValueError") for each in range(1000))
    assert (made.state, made.writing) == (State.OPEN, True)


def test_patience_is_counted_from_when_it_first_opened_whatever_probes_did() -> None:
    made = opened(cooldown=100.0)
    now = 0.0
    while not made.writing:
        now += 100.0
        answer = made.admit(now, 0)
        if isinstance(answer, Permit):
            made.answer(answer, answer.most)
            permit(made, now)
            made.failed(now, 0, "ValueError")
    assert now == PATIENCE


def test_a_consumer_with_few_messages_keeps_its_patience_while_its_probes_succeed() -> None:
    made = opened(window=100)
    made.answer(permit(made, 30.0), 1)
    made.look(3 * PATIENCE, 1)
    assert (made.state, made.writing) == (State.PROBING, False)
    assert permit(made, 3 * PATIENCE).most == 2


def test_a_probe_that_fails_when_patience_is_over_becomes_a_letter() -> None:
    made = opened(window=100)
    made.answer(permit(made, 30.0), 1)
    permit(made, 3 * PATIENCE)
    assert made.failed(3 * PATIENCE, 1, "ValueError") is False
    assert (made.state, made.writing) == (State.OPEN, True)


def test_probes_that_are_never_answered_use_up_patience() -> None:
    made = opened(window=100)
    permit(made, PATIENCE - 1)
    assert made.admit(PATIENCE, 0) is False
    assert made.pause(PATIENCE) == 29.0
    assert made.admit(PATIENCE + 29, 0) is True


def test_without_patience_it_says_so_and_holds_nothing() -> None:
    made = breaker(patience=0.0)
    assert [made.failed(1.0, 0, "ValueError") for _ in range(5)] == [False] * 5
    assert (made.state, made.writing, made.admit(1.0, 0)) == (State.OPEN, True, True)


def test_when_letters_are_written_it_closes_after_a_window_of_messages_of_which_few_failed() -> None:
    made = opened()
    now = PATIENCE
    assert made.admit(now, 100) is True
    for _ in range(4):
        made.failed(now, 100, "ValueError")
    made.admit(now, 105)
    assert made.writing, "nine messages are no window"
    assert made.admit(now, 106) is True
    assert (made.state, made.writing) == (State.CLOSED, False)


def test_when_letters_are_written_it_stays_open_as_long_as_too_many_fail() -> None:
    made = opened()
    assert made.admit(PATIENCE, 0) is True
    succeeded = 0
    for _ in range(100):
        made.failed(PATIENCE, succeeded, "ValueError")
        succeeded += 1
        made.admit(PATIENCE, succeeded)
        assert made.writing
    made.admit(PATIENCE, succeeded + 1)
    assert made.state is State.CLOSED


def test_an_operator_closes_it_and_counting_begins_anew() -> None:
    made = opened()
    made.close()
    assert made.admit(0.0, 0) is True
    assert [made.failed(0.0, 0, "ValueError") for _ in range(5)] == [False] * 4 + [True]
    assert made.episode == 2


@dataclass
class World:
    """Lanes that ask the breaker as handler threads do, over a clock of its own; and a second, simple count."""

    random: random.Random
    made: Breaker
    ratio: float
    failure_rate: float = 0.0
    now: float = 1000.0
    succeeded: int = 0
    permits: list[Permit] = field(default_factory=list)
    outcomes: deque[bool] = field(default_factory=deque)
    letters: int = 0
    opened_at: float | None = None

    def step(self) -> None:
        self.now += self.random.choice((0.0, 0.001, 0.1, 1.0, 7.0))
        before = self.made.state, self.made.writing
        match self.random.randrange(4):
            case 0 | 1:
                self.begin(before)
            case 2 if self.permits:
                self.end(self.permits.pop(self.random.randrange(len(self.permits))))
            case _ if before[0] is State.CLOSED or before[1]:
                self.handle_freely(before)
        self.look(before)

    def begin(self, before: tuple[State, bool]) -> None:
        answer = self.made.admit(self.now, self.succeeded)
        if isinstance(answer, Permit):
            assert answer.most >= 1
            self.permits.append(answer)
            mine = sum(one.most for one in self.permits if one.number == answer.number)
            assert mine <= self.made.window, "more probes than a window"
        elif answer is False:
            assert self.made.pause(self.now) > 0, "it says to ask again now and has no other answer"
        else:
            assert self.made.state is State.CLOSED or self.made.writing

    def end(self, permit: Permit) -> None:
        good = 0
        for _ in range(self.random.randint(0, permit.most)):
            if self.random.random() < self.failure_rate:
                self.fail()
                break
            good += 1
            self.succeed()
        self.made.answer(permit, good)

    def handle_freely(self, before: tuple[State, bool]) -> None:
        for _ in range(self.random.randint(1, 5)):
            if self.random.random() < self.failure_rate:
                if self.fail():
                    return
            else:
                self.succeed()

    def succeed(self) -> None:
        self.succeeded += 1
        self.outcomes.append(True)

    def fail(self) -> bool:
        counted = self.made.state is State.CLOSED
        self.outcomes.append(False)
        waits = self.made.failed(self.now, self.succeeded, "ValueError")
        if counted:
            last = list(self.outcomes)[-self.made.window :]
            surge = last.count(False) >= self.ratio * self.made.window - 1e-9
            assert (self.made.state is State.OPEN) == surge, last
        if not waits:
            self.letters += 1
            assert self.made.state is State.CLOSED or self.made.writing
        return waits

    def look(self, before: tuple[State, bool]) -> None:
        if before[0] is State.CLOSED and self.made.state is not State.CLOSED:
            self.opened_at = self.now
        if self.opened_at is not None and self.now >= self.opened_at + self.made.patience:
            answer = self.made.admit(self.now, self.succeeded)
            assert answer is True or self.made.state is State.PROBING, "held for longer than patience"
            if isinstance(answer, Permit):
                self.permits.append(answer)
        if self.made.state is State.CLOSED and (self.opened_at is not None or before[0] is not State.CLOSED):
            self.opened_at = None
            self.outcomes.clear()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_it_opens_at_the_ratio_holds_while_open_and_never_beyond_patience(seed: int) -> None:
    chance = random.Random(seed)
    ratio, window = chance.choice((0.1, 0.3, 0.5, 0.9, 1.0)), chance.choice((1, 2, 5, 10, 100))
    made = breaker(ratio, window, cooldown=chance.choice((0.1, 5.0, 30.0)), patience=chance.choice((0.0, 20.0, 900.0)))
    world = World(chance, made, ratio)
    for _ in range(60):
        world.failure_rate = chance.choice((0.0, 0.0, 0.05, 0.5, 1.0))
        for _ in range(chance.randint(1, 80)):
            world.step()
    world.failure_rate = 0.0
    for _ in range(20_000):
        world.step()
        if made.state is State.CLOSED:
            break
    assert made.state is State.CLOSED, "it does not close although all messages succeed"
