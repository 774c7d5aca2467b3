"""What is done about a failed attempt, as tables: no database, no broker, no clock."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from pytest_django import Settings

from django_kafka import conf, exceptions, retries
from django_kafka.categories import UnknownCommit
from django_kafka.exceptions import ConfigurationError, DecodeError, EncodeError, NoHandler, Reject
from django_kafka.retries import Again, DeadLetter, Policy, Retry, Skip, Verdict, Wait, decide, pause, stops_worker


class BookingFailed(Exception):
    """An error of a project."""


class Hopeless(BookingFailed):
    """Another one."""


DOWN = OperationalError("could not connect to server")
WAIT = Wait("the database is unavailable (OperationalError)")
CONFLICT = OperationalError(1213, "Deadlock found")
USUAL = Policy(max_retries=3, backoff=1.0, multiplier=2.0, max_backoff=60.0, jitter=0.0)


def policy(**changes: Any) -> Policy:
    return Policy(**{"max_retries": 3, "jitter": 0.0, **changes})


def raised_from(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "attempt", "policy", "verdict"),
    [
        # The exponential backoff, and its end
        (ValueError(), 1, USUAL, Retry(1.0)),
        (ValueError(), 2, USUAL, Retry(2.0)),
        (ValueError(), 3, USUAL, Retry(4.0)),
        (ValueError(), 4, USUAL, DeadLetter("handler")),
        (ValueError(), 1, policy(max_retries=0), DeadLetter("handler")),
        (ValueError(), 1, policy(max_retries=1, backoff=0.0), Retry(0.0)),
        (ValueError(), 9, policy(max_retries=9), Retry(60.0)),
        (ValueError(), 2**30, policy(max_retries=2**31, multiplier=1000.0), Retry(60.0)),
        (ValueError(), 3, policy(multiplier=1.0), Retry(1.0)),
        (TimeoutError(), 1, USUAL, Retry(1.0, "timeout")),
        (TimeoutError(), 4, USUAL, DeadLetter("timeout")),
        # What has no further attempt, or does not use one up
        (DecodeError("x"), 1, USUAL, DeadLetter("serialization", expected=True)),
        (NoHandler("x"), 1, USUAL, DeadLetter("serialization", expected=True)),
        (EncodeError("x"), 1, USUAL, DeadLetter("serialization")),
        (DOWN, 1, USUAL, WAIT),
        (DOWN, 99, USUAL, WAIT),
        (CONFLICT, 99, USUAL, Again()),
        (UnknownCommit(), 99, USUAL, Wait("the database did not answer a COMMIT")),
        # retry_on
        (ValueError(), 1, policy(retry_on=(BookingFailed,)), DeadLetter("handler")),
        (Hopeless(), 1, policy(retry_on=(BookingFailed,)), Retry(1.0)),
        (Hopeless(), 4, policy(retry_on=(BookingFailed,)), DeadLetter("handler")),
        (DOWN, 1, policy(retry_on=(BookingFailed,)), WAIT),
        (CONFLICT, 1, policy(retry_on=(BookingFailed,)), Again()),
        # give_up_on, which wins
        (Hopeless(), 1, policy(give_up_on=(BookingFailed,)), DeadLetter("handler", expected=True)),
        (Hopeless(), 1, policy(give_up_on=(Hopeless,), retry_on=(Hopeless,)), DeadLetter("handler", expected=True)),
        (DOWN, 1, policy(give_up_on=(OperationalError,)), DeadLetter("outage", expected=True)),
        (ValueError(), 1, policy(give_up_on=(BookingFailed,)), Retry(1.0)),
        # What a handler raises on purpose
        (exceptions.Retry(), 2, USUAL, Retry(2.0)),
        (exceptions.Retry(after=90), 1, USUAL, Retry(90.0)),
        (exceptions.Retry(after=timedelta(minutes=5)), 3, USUAL, Retry(300.0)),
        (exceptions.Retry(after=0), 1, USUAL, Retry(0.0)),
        (exceptions.Retry(after=90), 4, USUAL, DeadLetter("handler")),
        (exceptions.Retry(after=1), 1, policy(retry_on=(BookingFailed,)), Retry(1.0)),
        (raised_from(exceptions.Retry(), TimeoutError()), 1, USUAL, Retry(1.0, "timeout")),
        (raised_from(exceptions.Retry(), DOWN), 4, USUAL, DeadLetter("outage")),
        (exceptions.Skip("too old"), 1, USUAL, Skip("too old")),
        (exceptions.Skip("too old"), 9, policy(max_retries=0), Skip("too old")),
        (Reject("not ours"), 1, USUAL, DeadLetter("handler", expected=True)),
        (raised_from(Reject("not ours"), TimeoutError()), 1, USUAL, DeadLetter("timeout", expected=True)),
        # The project's own categories
        (Hopeless(), 99, policy(error_categories={BookingFailed: "outage"}), Wait("Hopeless stands for an outage")),
        (Hopeless(), 1, policy(error_categories={Hopeless: "serialization"}), DeadLetter("serialization", True)),
        (Hopeless(), 1, policy(error_categories={Hopeless: "timeout"}), Retry(1.0, "timeout")),
        # Several at once
        (ExceptionGroup("g", [ValueError(), TimeoutError()]), 1, USUAL, Retry(1.0)),
        (ExceptionGroup("g", [ValueError(), TimeoutError()]), 4, USUAL, DeadLetter("handler")),
        (ExceptionGroup("g", [ValueError(), DOWN]), 1, USUAL, WAIT),
        (ExceptionGroup("g", [ValueError(), DOWN]), 4, USUAL, WAIT),
        (ExceptionGroup("g", [CONFLICT, ExceptionGroup("h", [DOWN])]), 1, USUAL, WAIT),
        (ExceptionGroup("g", [CONFLICT, ValueError()]), 1, USUAL, Again()),
        (ExceptionGroup("g", [DOWN, DecodeError("x")]), 1, USUAL, DeadLetter("serialization", expected=True)),
        (ExceptionGroup("g", [DOWN, Reject("x")]), 1, USUAL, DeadLetter("handler", expected=True)),
        (ExceptionGroup("g", [exceptions.Retry(5), exceptions.Retry(9)]), 1, USUAL, Retry(9.0)),
        (ExceptionGroup("g", [exceptions.Skip("a"), exceptions.Skip("b")]), 1, USUAL, Skip("a")),
        (ExceptionGroup("g", [exceptions.Skip("a"), ValueError()]), 1, USUAL, Retry(1.0)),
        (ExceptionGroup("g", [ValueError()]), 1, policy(give_up_on=(ValueError,)), DeadLetter("handler", True)),
        (ExceptionGroup("g", [ValueError()]), 1, policy(give_up_on=(ExceptionGroup,)), DeadLetter("handler", True)),
    ],
    ids=lambda value: f"{type(value).__name__} {value}"[:60],
)
def test_each_attempt_has_its_verdict(error: Exception, attempt: int, policy: Policy, verdict: Verdict) -> None:
    assert decide(error, attempt, policy) == verdict


def test_without_a_policy_there_is_one_attempt() -> None:
    assert decide(ValueError()) == DeadLetter("handler")
    assert decide(DOWN) == WAIT


def test_max_retries_3_means_4_attempts() -> None:
    verdicts = [decide(ValueError(), attempt, USUAL) for attempt in range(1, 6)]
    assert [type(one) for one in verdicts] == [Retry, Retry, Retry, DeadLetter, DeadLetter]


@pytest.mark.parametrize(
    ("attempt", "low", "high"), [(1, 0.75, 1.25), (2, 1.5, 2.5), (3, 3.0, 5.0), (4, 6.0, 8.0), (60, 6.0, 8.0)]
)
def test_jitter_goes_both_ways_but_never_above_the_ceiling(attempt: int, low: float, high: float) -> None:
    jittery = policy(jitter=0.25, max_backoff=8.0)
    found = [jittery.delay(attempt) for _ in range(500)]
    assert all(low <= one <= high for one in found)
    assert min(found) < (low + high) / 2 < max(found)


def test_whole_jitter_never_goes_below_nothing() -> None:
    assert all(0.0 <= policy(jitter=1.0).delay(1) <= 2.0 for _ in range(500))


@pytest.mark.parametrize("after", [-1, float("nan"), float("inf"), 1e12, timedelta(seconds=-1), timedelta(days=10_000)])
def test_a_handler_that_asks_for_an_absurd_wait_is_told_so(after: Any) -> None:
    with pytest.raises(ValueError, match="allowed: from 0 to"):
        exceptions.Retry(after=after)


@pytest.mark.parametrize("after", ["5s", True, [], b"1"])
def test_a_handler_that_asks_for_what_is_no_time_is_told_so(after: Any) -> None:
    with pytest.raises(TypeError, match="allowed: a number of seconds"):
        exceptions.Retry(after=after)


def test_a_ruling_is_no_error_of_kafka() -> None:
    for one in (exceptions.Retry(), exceptions.Skip("x"), Reject("x")):
        assert not isinstance(one, exceptions.KafkaError), "`except KafkaError` in a handler must let it through"


def test_a_letter_is_about_what_was_met_before_another_attempt_was_asked_for() -> None:
    cause = ValueError("the reason")
    assert retries.blamed(raised_from(exceptions.Retry(), cause)) is cause
    unchained = exceptions.Retry()
    unchained.__context__ = cause
    assert retries.blamed(unchained) is cause
    unchained.__suppress_context__ = True
    assert retries.blamed(unchained) is unchained
    rejected = raised_from(Reject("no such flight"), cause)
    assert retries.blamed(rejected) is rejected
    assert str(rejected) == "no such flight (ValueError: the reason)"


# The project's own decision


def judged(answer: Any, error: Exception, attempt: int = 1, **changes: Any) -> Verdict:
    return decide(error, attempt, policy(judge=lambda *_asked: answer, judge_path="bank.judge", **changes))


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (None, Retry(1.0)),
        (7, Retry(7.0)),
        (0.5, Retry(0.5)),
        (timedelta(minutes=1), Retry(60.0)),
        (exceptions.Retry(), Retry(1.0)),
        (exceptions.Retry(after=5), Retry(5.0)),
        (exceptions.Skip("old"), Skip("old")),
        (Reject("no"), DeadLetter("handler", expected=True)),
        (Retry(3.0, "timeout"), Retry(3.0, "timeout")),
        (Skip("old"), Skip("old")),
        (DeadLetter("authorization"), DeadLetter("authorization")),
        (Wait("the bank is down"), Wait("the bank is down")),
        (Again(), Again()),
    ],
    ids=repr,
)
def test_a_function_of_the_project_decides(answer: Any, verdict: Verdict) -> None:
    assert judged(answer, ValueError()) == verdict


def test_it_gets_the_error_the_attempt_and_the_message() -> None:
    asked: list[Any] = []
    error = ValueError()
    decide(error, 2, policy(judge=lambda *all_of_it: asked.append(all_of_it)), None)
    assert asked == [(error, 2, None)]


def test_max_retries_holds_for_it_too_and_poison_is_never_tried_again() -> None:
    assert judged(5, ValueError(), 3) == Retry(5.0)
    assert judged(5, ValueError(), 4) == DeadLetter("handler")
    assert judged(5, DecodeError("x")) == DeadLetter("serialization", expected=True)
    assert judged(exceptions.Skip("undecodable"), DecodeError("x")) == Skip("undecodable")


def test_it_is_not_asked_about_what_was_decided_on_purpose_or_is_unknown() -> None:
    assert judged(Skip("no"), Hopeless(), give_up_on=(Hopeless,)) == DeadLetter("handler", expected=True)
    assert judged(Skip("no"), Reject("x")) == DeadLetter("handler", expected=True)
    assert isinstance(judged(Skip("no"), UnknownCommit()), Wait)


@pytest.mark.parametrize(
    "answer",
    [
        True, "retry", -1, float("nan"), Ellipsis, Retry, Retry(-5.0), ValueError(), 10**400, [5],
        Wait("down", after=float("nan")), Wait("down", after=-1.0), Wait("down", after=float("inf")),
        Wait("down", "sunspots"), DeadLetter("sunspots" * 9), DeadLetter(None), DeadLetter([]), Retry(1.0, "sunspots"),  # type: ignore[arg-type]
    ],
    ids=repr,
)  # fmt: skip
def test_nonsense_leaves_the_decision_to_us_and_is_said(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("its own")
    with caplog.at_level(logging.ERROR):
        assert judged(answer, error) == Retry(1.0)
        assert judged(answer, error, 4) == DeadLetter("handler")
    (note,) = error.__notes__
    assert note.startswith("bank.judge could not decide about it (")
    assert "bank.judge could not decide" in caplog.text


def test_a_function_that_raises_leaves_the_decision_to_us_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def judge(*_asked: Any) -> Any:
        raise LookupError("which bank?")

    error, asked = ValueError("its own"), policy(judge=judge, judge_path="bank.judge")
    assert decide(error, 1, asked) == Retry(1.0)
    assert error.__notes__ == [
        "bank.judge could not decide about it (LookupError: which bank?); the other settings did."
    ]
    assert decide(DOWN, 1, asked) == WAIT


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(), ExceptionGroup("g", [MemoryError()])])
def test_a_function_that_meets_the_end_of_the_process_is_no_failure(error: BaseException) -> None:
    def judge(*_asked: Any) -> Any:
        raise error

    with pytest.raises(type(error)):
        decide(ValueError(), 1, policy(judge=judge))


# From settings


def consumer(**topic: Any) -> dict[str, Any]:
    usual = {"max_retries": 5, "backoff": "2s", "jitter": 0.0, "retry_on": ["builtins.ValueError"]}
    return {
        "topic_prefix": "test.",
        "error_categories": {"outage": ["tests.test_retries.Hopeless"]},
        "consumers": {"ops": {"group_id": "ops", "topics": {"flights": topic, "gates": {}}, "retry": usual}},
    }


class Unsayable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_a_decision_that_fails_with_an_error_that_cannot_be_shown_leaves_it_to_us() -> None:
    def judge(*_asked: Any) -> Any:
        raise Unsayable

    error = ValueError("its own")
    assert decide(error, 1, policy(judge=judge, judge_path="bank.judge")) == Retry(1.0)
    assert "Unsayable that cannot be shown" in error.__notes__[0]


def judge_of_the_tests(*_asked: Any) -> None:
    """Leave it to us."""


def test_a_topic_has_its_own_policy_and_else_that_of_its_consumer(settings: Settings) -> None:
    own = {"max_retries": 1, "give_up_on": ["builtins.KeyError"], "decide": "tests.test_retries.judge_of_the_tests"}
    settings.KAFKA = consumer(retry=own)
    flights = retries.policy_for(conf.consumer("ops"), "test.flights")
    gates = retries.policy_for(conf.consumer("ops"), "test.gates")
    assert (flights.max_retries, flights.backoff, flights.retry_on) == (1, 2.0, (ValueError,))
    assert (flights.give_up_on, flights.judge) == ((KeyError,), judge_of_the_tests)
    assert (gates.max_retries, gates.give_up_on, gates.judge) == (5, (), None)
    assert flights.error_categories == gates.error_categories == {Hopeless: "outage"}


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"retry_on": ["no.where"]}, "\"retry_on\"] is 'no.where', which cannot be imported"),
        ({"give_up_on": ["os.getcwd"]}, "\"give_up_on\"] is 'os.getcwd', which is of type builtin_function_or_method"),
        ({"decide": "no.where"}, "\"decide\"] is 'no.where', which cannot be imported"),
        ({"decide": "tests.test_retries.DOWN"}, "which is of type OperationalError, not a function"),
    ],
)
def test_a_path_that_cannot_be_used_is_an_error_with_its_place(
    settings: Settings, own: dict[str, Any], words: str
) -> None:
    settings.KAFKA = consumer(retry=own)
    with pytest.raises(ConfigurationError) as raised:
        retries.policy_for(conf.consumer("ops"), "test.flights")
    assert str(raised.value).startswith('KAFKA["consumers"]["ops"]["topics"]["flights"]["retry"]')
    assert words in str(raised.value)


# What is not about the message


def test_pauses_double_up_to_the_longest_with_some_jitter() -> None:
    for waits, middle in ((1, 0.2), (2, 0.4), (5, 3.2), (8, 15.0), (1000, 15.0)):
        found = {pause(waits) for _ in range(50)}
        assert all(0.8 * middle <= one <= 1.2 * middle for one in found)
        assert len(found) > 1


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        (MemoryError(), True),
        (SystemExit(), True),
        (KeyboardInterrupt(), True),
        (ExceptionGroup("g", [ValueError(), MemoryError()]), True),
        (ExceptionGroup("g", [ValueError(), ExceptionGroup("deep", [MemoryError()])]), True),
        (BaseExceptionGroup("g", [ValueError(), SystemExit()]), True),
        (ValueError(), False),
        (OperationalError(), False),
        (ExceptionGroup("g", [ValueError(), OperationalError()]), False),
    ],
)
def test_what_is_about_the_process_stops_the_worker_also_in_a_group(error: BaseException, stops: bool) -> None:
    assert stops_worker(error) is stops
