"""What settings guarantee decides which poller and which handler threads a consumer has, once and for all."""

from __future__ import annotations

from collections.abc import Iterator

from .. import conf, coroutines, handlers
from ..dead_letters import holds
from . import parking
from .claimed_handling import ClaimedHoldingThread, ClaimedThread
from .claimed_polling import ClaimingPoller
from .committed_handling import CommittedThread
from .committed_polling import CommittingPoller
from .handling import HandlerThread
from .polling import Poller

_POLLERS: dict[str, type[Poller]] = {
    "at_most_once": CommittingPoller,
    "at_least_once": Poller,
    "effect_once": ClaimingPoller,
}
Problem = tuple[str, str, str]
"""The id of a check, a sentence, and a way out."""


def poller_of(consumer: conf.Consumer) -> type[Poller]:
    """Return the kind of poller that a consumer needs."""
    return _POLLERS[consumer.guarantee]


def thread_of(consumer: conf.Consumer) -> type[HandlerThread]:
    """Return the kind of handler threads that a consumer needs."""
    if consumer.guarantee == "effect_once":
        return ClaimedHoldingThread if holds.keeps(consumer) else ClaimedThread
    if consumer.guarantee == "at_most_once":
        return CommittedThread
    return parking.thread_of(consumer)


def problems(consumer: str | None = None) -> list[Problem]:
    """Return what keeps a consumer (None: all that are enabled) from its guarantee."""
    every = conf.kafka().consumers.values()
    mine = [one for one in every if one.name == consumer or (consumer is None and one.enabled)]
    return [problem for one in mine if one.guarantee != "at_least_once" for problem in _of(one)]


def _of(consumer: conf.Consumer) -> Iterator[Problem]:
    path = f'KAFKA["consumers"]["{consumer.name}"]'
    letters = conf.kafka().dead_letters.database
    if consumer.guarantee == "effect_once" and consumer.database != letters:
        sentence = (
            f'{path} has guarantee "effect_once" and database {consumer.database!r}, but dead letters are kept in '
            f"{letters!r}: a second database has transactions of its own."
        )
        yield "E050", sentence, 'Keep both in one: `dead_letters["database"]` and the consumer\'s `database`.'
    for registration in handlers.registrations(consumer.name):
        try:
            function = registration.resolve()
        except Exception:  # noqa: BLE001  # another check says so
            continue
        # With effect_once coroutines have no transaction to be in, which is a check of its own.
        if consumer.guarantee == "at_most_once" and coroutines.is_coroutine(function):
            sentence = f'{path} has guarantee "at_most_once", and its handler {registration.path!r} is `async def`.'
            yield "E051", sentence, "Make it a plain function: what is on an event loop is tried again."
