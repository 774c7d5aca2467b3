"""What is done about a failed attempt: the pure decision.

match decide(error, attempt, policy):
    case Again(): …             a database conflict: at once, and no attempt is used up
    case Wait(reason): …        an outage: the lane waits and tries again, and no attempt is used up
    case Retry(after): …        the lane waits so many seconds, then comes the next attempt
    case Skip(reason): …        the message is settled as it is
    case DeadLetter(category): … no further attempt
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, NoReturn

from django.utils.module_loading import import_string

from . import categories, conf, exceptions, logs, subscriptions
from .categories import Kind, Nature, UnknownCommit
from .conf.schema import CATEGORIES
from .exceptions import ConfigurationError, shown
from .messages import Message

log = logs.of(__name__)


@dataclass(frozen=True, slots=True)
class Again:
    """Contention: a database conflict that goes away when tried again."""


@dataclass(frozen=True, slots=True)
class Wait:
    """An outage: something the message needs is down."""

    reason: str
    """What is down, for people."""
    category: str = "outage"
    """What it is counted by."""
    after: float | None = None
    """Seconds after which the other side wants to be asked again; None: nobody said."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Another attempt."""

    after: float
    """Seconds until then."""
    category: str = "handler"
    """What the failed attempt is counted by."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Settled without having been handled, on purpose."""

    reason: str
    """Why, for people."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Given up: stored with its error."""

    category: str
    """What it is counted by."""
    expected: bool = False
    """Whether it tells only of this message: poison, or given up on purpose. A surge of failures is of the others."""


Verdict = Again | Wait | Retry | Skip | DeadLetter


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The `retry` settings of a consumer, or of one of its topics, with every path resolved."""

    max_retries: int = 0
    """Attempts beyond the first."""
    backoff: float = 1.0
    """Seconds before the first of them."""
    multiplier: float = 2.0
    """Each wait is this many times the one before."""
    max_backoff: float = 60.0
    """No wait is longer."""
    jitter: float = 0.0
    """The part of a wait, up and down, that is left to chance."""
    retry_on: tuple[type[BaseException], ...] = ()
    """Only these are tried again; none: all."""
    give_up_on: tuple[type[BaseException], ...] = ()
    """These are not; it goes before everything else."""
    judge: Callable[[BaseException, int, Message | None], Any] | None = None
    """The project's own decision."""
    judge_path: str = ""
    """Where that was imported from."""
    topics: bool = False
    """Whether a message waits for another attempt in a retry topic."""
    error_categories: categories.Own = field(default_factory=dict)
    """Exceptions of the project, and the category that each belongs to."""

    def delay(self, attempt: int) -> float:
        """Return how many seconds to wait after that attempt (from 1) has failed."""
        try:
            wait = min(self.max_backoff, self.backoff * self.multiplier ** (attempt - 1))
        except OverflowError:
            wait = self.max_backoff
        return max(0.0, min(self.max_backoff, wait * random.uniform(1 - self.jitter, 1 + self.jitter)))


ONCE = Policy()
"""One attempt, and no exceptions of the project's own."""


def once() -> Policy:
    """Return the policy of one attempt that knows the project's own exceptions. Raises `ConfigurationError`."""
    return Policy(error_categories=categories.own())


def policy_for(consumer: conf.Consumer, topic: str) -> Policy:
    """Return the policy of `consumer` for `topic`, named with its prefix. Raises `ConfigurationError`."""
    return policy_of(consumer, subscriptions.settings_of(consumer, topic))


def policy_of(consumer: conf.Consumer, own: conf.ConsumerTopic | None) -> Policy:
    """Return the policy of `consumer` for what settings say of a topic; None: nothing. Raises `ConfigurationError`."""
    place = f'KAFKA["consumers"]["{consumer.name}"]'
    if own is not None and own.retry is not None:
        return policy(own.retry, f'{place}["topics"]["{own.name}"]["retry"]')
    return policy(consumer.retry, f'{place}["retry"]')


def policy(retry: conf.Retry, place: str) -> Policy:
    """Return what a `retry` block means; `place` is its path in settings. Raises `ConfigurationError`."""

    def classes(key: str) -> tuple[type[BaseException], ...]:
        return tuple(categories.exception_at(path, f'{place}["{key}"]') for path in getattr(retry, key))

    return Policy(
        max_retries=retry.max_retries,
        backoff=retry.backoff,
        multiplier=retry.multiplier,
        max_backoff=retry.max_backoff,
        # In a retry topic those behind wait for the first one: only waits of one length end in their order.
        jitter=0.0 if retry.mode == "topics" else retry.jitter,
        retry_on=classes("retry_on"),
        give_up_on=classes("give_up_on"),
        judge=_judge(retry.decide, f'{place}["decide"]') if retry.decide else None,
        judge_path=retry.decide or "",
        topics=retry.mode == "topics",
        error_categories=categories.own(),
    )


def _judge(path: str, place: str) -> Callable[..., Any]:
    try:
        found = import_string(path)
    except ImportError as error:
        raise ConfigurationError(f"{place} is {path!r}, which cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigurationError(f"{place} is {path!r}, which is of type {type(found).__name__}, not a function.")
    return found  # type: ignore[no-any-return]


def stops_worker(error: BaseException) -> bool:
    """Tell whether an error is about the process and not about a message, alone or in a group with others."""
    if isinstance(error, BaseExceptionGroup):
        return any(stops_worker(one) for one in error.exceptions)
    return isinstance(error, MemoryError) or not isinstance(error, Exception)


def decide(error: BaseException, attempt: int = 1, policy: Policy = ONCE, message: Message | None = None) -> Verdict:
    """Return what to do about an attempt (from 1) that failed; `message` is for the project's own decision."""
    if isinstance(error, (exceptions.Skip, exceptions.Reject, *policy.give_up_on)):
        return _of_one(error, attempt, policy)
    if policy.judge is not None and not isinstance(error, UnknownCommit):
        answer = _answer(error, attempt, policy, message)
        if answer is not None:
            return _bounded(answer, error, attempt, policy)
    if isinstance(error, BaseExceptionGroup):
        return _of_group(error, attempt, policy)
    return _of_one(error, attempt, policy)


def blamed(error: BaseException) -> BaseException:
    """Return the error that a dead letter is about: what a handler met before it asked for another attempt."""
    return (_origin(error) or error) if isinstance(error, exceptions.Retry) else error


def _origin(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _of_one(error: BaseException, attempt: int, policy: Policy) -> Verdict:
    if isinstance(error, exceptions.Skip):
        return Skip(error.reason)
    if isinstance(error, exceptions.Ruling):
        nature = categories.of(_origin(error) or error, policy.error_categories)
        if isinstance(error, exceptions.Retry):
            return _again_after(error.after, nature.category, attempt, policy)
        return DeadLetter(nature.category, expected=True)
    nature = categories.of(error, policy.error_categories)
    if isinstance(error, policy.give_up_on):
        return DeadLetter(nature.category, expected=True)
    match nature.kind:
        case Kind.CONTENTION:
            return Again()
        case Kind.OUTAGE:
            return Wait(nature.reason, nature.category, nature.after)
        case Kind.POISON:
            return DeadLetter(nature.category, expected=True)
        case Kind.PERMANENT:
            return DeadLetter(nature.category)
    if policy.retry_on and not isinstance(error, policy.retry_on):
        return DeadLetter(nature.category)
    return _again_after(None, nature.category, attempt, policy)


def _again_after(after: float | None, category: str, attempt: int, policy: Policy) -> Verdict:
    if attempt > policy.max_retries:
        return DeadLetter(category)
    return Retry(policy.delay(attempt) if after is None else after, category)


def _of_group(group: BaseExceptionGroup[Any], attempt: int, policy: Policy) -> Verdict:
    """Decide about errors that came together: what can never succeed, then an outage, then a conflict, then the rest.

    While something is down, what failed beside it may have failed because of it. One that asks to be skipped counts
    only when all do.
    """
    verdicts = [_of_one(one, attempt, policy) for one in _leaves(group)]
    failures = [one for one in verdicts if not isinstance(one, Skip)]
    if not failures:
        return verdicts[0]
    return min(failures, key=_urgency)


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for one in group.exceptions:
        found += _leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found


def _urgency(verdict: Verdict) -> tuple[int, float]:
    match verdict:
        case DeadLetter(expected=True):
            return 0, 0.0
        case Wait(after=after):
            return 1, -(after or 0.0)
        case Again():
            return 2, 0.0
        case Retry(after=after):
            return 4, -after
    return 3, 0.0


def _answer(error: BaseException, attempt: int, policy: Policy, message: Message | None) -> Verdict | None:
    """Return what the project's own function decides; None when it leaves that to us, or fails: the letter tells."""
    assert policy.judge is not None
    try:
        return _understood(policy.judge(error, attempt, message), error, attempt, policy)
    except Exception as broken:
        if stops_worker(broken):
            raise
        sentence = f"{policy.judge_path} could not decide about it ({type(broken).__name__}: {shown(broken)})"
        log.error("error=%s %s; the other settings did", type(error).__name__, sentence)
        note = f"{sentence}; the other settings did."
        # An error may be one object that is raised again and again.
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        return None


def _understood(answer: object, error: BaseException, attempt: int, policy: Policy) -> Verdict | None:
    category = categories.of(error, policy.error_categories).category
    match answer:
        case None | Again() | Skip():
            return answer
        case Wait(after=after):
            seconds = None if after is None else _seconds(after)
            return replace(answer, category=_known(answer.category), after=seconds)
        case DeadLetter():
            return replace(answer, category=_known(answer.category))
        case Retry(after=after):
            return Retry(_seconds(after), _known(answer.category))
        case exceptions.Retry(after=None):
            return Retry(policy.delay(attempt), category)
        case exceptions.Retry(after=float() as after):
            return Retry(after, category)
        case exceptions.Skip(reason=reason):
            return Skip(reason)
        case exceptions.Reject():
            return DeadLetter(category, expected=True)
        case bool():
            _refuse(answer)
        case int() | float() | timedelta():
            return Retry(_seconds(answer), category)
    _refuse(answer)


def _seconds(after: float | timedelta) -> float:
    seconds = exceptions.Retry(after).after
    assert seconds is not None
    return seconds


def _known(category: str) -> str:
    # Counted and stored: no column of the letter takes another one, and its message would wait for ever.
    if category not in CATEGORIES:
        raise ValueError(f"its category is {category!r}; allowed: {', '.join(CATEGORIES)}")
    return category


def _refuse(answer: object) -> NoReturn:
    allowed = "None, seconds, a timedelta, Retry, Skip or Reject"
    raise TypeError(f"it returned {type(answer).__name__}; allowed: {allowed}")


def _bounded(verdict: Verdict, error: BaseException, attempt: int, policy: Policy) -> Verdict:
    """Hold the project's decision to what holds for every retry: poison has none, and there are only so many."""
    if not isinstance(verdict, Retry):
        return verdict
    nature: Nature = categories.of(error, policy.error_categories)
    if nature.kind is Kind.POISON:
        return DeadLetter(nature.category, expected=True)
    return verdict if attempt <= policy.max_retries else DeadLetter(verdict.category)


def pause(waits: int, *, first: float = 0.2, longest: float = 15.0) -> float:
    """Return how many seconds to wait the `waits`-th time in a row (from 1): doubling, with jitter."""
    return min(longest, first * 2.0 ** min(waits - 1, 20)) * random.uniform(0.8, 1.2)
