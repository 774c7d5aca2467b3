"""What people may do with dead letters: which letters a verb fits, what it does, and the log entry of who did it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from .. import conf
from ..dead_letters import dry_runs, erasing, holds, permits, replaying
from ..models import DeadLetter, Replay
from .asking import enter
from .lists import MOST_LOOKED_THROUGH, names_of

Letters = QuerySet[DeadLetter]

_PIECE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One thing that people may do with letters."""

    name: str
    """In URLs and as the action's name."""
    label: Any
    """On buttons."""
    question: Any
    """Heads the confirmation page; counts."""
    hints: tuple[Any, ...]
    """What the person should know first."""
    done: Any
    """The message afterwards; counts."""
    refused: Any
    """The message about letters that it does not fit; counts."""
    logged: str
    """In the history of each letter. Kept in English, since it is stored."""
    fits: Callable[[Letters], Letters]
    """Which letters it may be done with."""
    act: Callable[..., object]
    """Does it with the letters of these ids, for a person."""
    permit: permits.Verb = permits.Verb.REPLAY
    """What the person must be permitted to do."""
    asks_for_replay: bool = False
    """Whether somebody has to carry it out afterwards."""
    releases: bool = False
    """Whether it is the end of a letter, so that what is parked behind it is released."""
    noted: bool = False
    """Whether `act` itself writes into the audit."""
    of_groups: bool = True
    """Whether it may be done with all open letters of a failure group."""
    of_lists: bool = True
    """Whether it may be done with letters that were selected in the list."""
    asks_topic: bool = False
    """Whether the person is asked for the name of a topic, which `act` gets as well."""
    cautious: bool = field(default=False)
    """Whether its button is shown as one to think about."""


@dataclass(slots=True)
class Outcome:
    """What became of it."""

    done: int = 0
    """Letters it was done with."""
    refused: int = 0
    """Letters it does not fit (any more)."""
    forbidden: int = 0
    """Letters of consumers with which the person may not do it."""
    consumers: set[str] = field(default_factory=set)
    """The consumers whose letters they are."""
    released: bool = False
    """Whether messages may have been parked behind a letter that was given up: replays of them are asked for."""


def carry_out(verb: Verb, chosen: Letters, user: Any) -> Outcome:
    """Do it with all chosen letters, piece by piece, and enter each into the admin's history."""
    using = conf.kafka().dead_letters.database
    outcome = Outcome()
    permitted = permits.allowed(user, verb.permit, chosen)
    outcome.forbidden = chosen.count() - permitted.count() if permitted is not chosen else 0
    for ids in _pieces(permitted):
        with transaction.atomic(using=using):
            if verb.releases:
                holds.lock_of(using, ids)
            fitting = verb.fits(replaying.letters().filter(pk__in=ids)).order_by("pk").select_for_update()
            found = list(fitting.only("topic", "partition", "offset", "consumer", "hold"))
            verb.act([letter.pk for letter in found], user)
            enter(found, DeadLetter, user, verb.logged, verb="" if verb.noted else verb.name)
        outcome.done += len(found)
        outcome.refused += len(ids) - len(found)
        outcome.released |= verb.releases and any(letter.hold_id is not None for letter in found)
        outcome.consumers.update(letter.consumer for letter in found)
    return outcome


def _pieces(chosen: Letters) -> Iterator[list[int]]:
    """Walk through the ids in their order: what the verb changes does not move those that are still to come."""
    ids = chosen.order_by("pk").values_list("pk", flat=True)
    last = -1
    while piece := list(ids.filter(pk__gt=last)[:_PIECE]):
        yield piece
        last = piece[-1]


def _open_and_idle(letters: Letters) -> Letters:
    return letters.filter(state=DeadLetter.State.OPEN).exclude(replaying.outstanding())


def _own_and_idle(letters: Letters) -> Letters:
    # What failed on an imported letter runs elsewhere.
    return _open_and_idle(letters).filter(imported_as="")


def _free_and_idle(letters: Letters) -> Letters:
    # One that holds its key would come to its topic behind all that waits for it.
    return _open_and_idle(letters).filter(hold__isnull=True)


def _discarded(letters: Letters) -> Letters:
    return letters.filter(state=DeadLetter.State.DISCARDED, erased_at__isnull=True).exclude(replaying.outstanding())


def _whole_and_idle(letters: Letters) -> Letters:
    # Whoever carries a replay out has the payload already.
    running = replaying.replays().filter(letter=OuterRef("pk"), state__in=Replay.OUTSTANDING)
    return letters.filter(erased_at__isnull=True).exclude(Exists(running.exclude(replaying.unclaimed())))


def _asked_for(letters: Letters) -> Letters:
    waiting = replaying.replays().filter(letter=OuterRef("pk"), state=Replay.State.REQUESTED, job__isnull=True)
    return letters.filter(Exists(waiting))


def _to_handler(ids: list[int], user: Any) -> object:
    return replaying.request(ids, target=Replay.Target.HANDLER, user=user)


def _to_topic(ids: list[int], user: Any) -> object:
    return replaying.request(ids, target=Replay.Target.TOPIC, user=user)


def _to_other_topic(ids: list[int], user: Any, topic: str) -> object:
    return replaying.request(ids, target=Replay.Target.TOPIC, topic=topic, user=user)


def _dry_run(ids: list[int], user: Any) -> object:
    return replaying.request(ids, target=Replay.Target.DRY_RUN, user=user)


def _fit_for_dry_runs(letters: Letters) -> Letters:
    fit = Q(pk__in=())
    using = conf.kafka().dead_letters.database
    for consumer, topic in dry_runs.topics(lambda: names_of(DeadLetter, "topic", using, MOST_LOOKED_THROUGH)):
        fit |= Q(consumer=consumer, topic=topic)
    return _own_and_idle(letters).filter(fit)


def naming(verb: Verb, topic: str) -> Verb:
    """Return a verb that asks for a topic, with the answer."""
    return replace(verb, act=partial(verb.act, topic=topic), logged=f"{verb.logged.rstrip('.')} {topic}.")


_ASKED = ngettext_lazy("A replay of %d dead letter was asked for.", "Replays of %d dead letters were asked for.")
_NOT_OPEN = ngettext_lazy(
    "%d dead letter was left alone: it is resolved, discarded or being replayed already.",
    "%d dead letters were left alone: they are resolved, discarded or being replayed already.",
)
_NOT_OPEN_OR_HOLDING = ngettext_lazy(
    "%d dead letter was left alone: it is resolved, discarded, being replayed already, or holds its key back.",
    "%d dead letters were left alone: they are resolved, discarded, being replayed already, or hold their keys back.",
)
_NOT_OPEN_OR_IMPORTED = ngettext_lazy(
    "%d dead letter was left alone: it is resolved, discarded, being replayed already, or was imported.",
    "%d dead letters were left alone: they are resolved, discarded, being replayed already, or were imported.",
)

VERBS = (
    Verb(
        name="replay",
        label=_("Replay to the handler"),
        question=ngettext_lazy("Replay %d dead letter to its handler?", "Replay %d dead letters to their handlers?"),
        hints=(
            _("The handler that this consumer has now runs again on the stored message."),
            _("Nothing is sent to the topic: other consumer groups see nothing of it."),
            _("Later messages of the same key have been handled already: the handler must bear the old one."),
            _("A letter that holds its key back is different: what is parked behind it is handled next, in order."),
            _("A letter is resolved when its handler succeeds; a new failure comes back to the same letter."),
        ),
        done=_ASKED,
        refused=_NOT_OPEN_OR_IMPORTED,
        logged="Asked for a replay to the handler.",
        fits=_own_and_idle,
        act=_to_handler,
        asks_for_replay=True,
    ),
    Verb(
        name="replay-to-topic",
        label=_("Replay to the topic"),
        question=ngettext_lazy(
            "Send %d dead letter to its topic again?", "Send %d dead letters to their topics again?"
        ),
        hints=(
            _("The topic gets the record again, with key, value and headers, and one header more: the letter’s id."),
            _("Every consumer group of the topic reads it again, also those that handled the message already."),
            _("It comes after all that was sent since: the order within its key is not kept."),
            _("A letter is resolved when Kafka has the record; a new failure comes back to the same letter."),
            _("An imported letter goes to its original topic, without the headers of the dead-letter topic."),
        ),
        done=_ASKED,
        refused=_NOT_OPEN_OR_HOLDING,
        logged="Asked for a replay to the topic.",
        fits=_free_and_idle,
        act=_to_topic,
        asks_for_replay=True,
        cautious=True,
    ),
    Verb(
        name="replay-to-other-topic",
        label=_("Replay to another topic"),
        question=ngettext_lazy("Send %d dead letter to another topic?", "Send %d dead letters to another topic?"),
        hints=(
            _("The topic gets the record, with key, value and headers, and one header more: the letter’s id."),
            _("It has to exist in the cluster that the message came from; its name is given without the prefix."),
            _("A letter is resolved when Kafka has the record. What fails there becomes a letter of its own."),
            _("An imported letter goes there without the headers of the dead-letter topic."),
        ),
        done=_ASKED,
        refused=_NOT_OPEN_OR_HOLDING,
        logged="Asked for a replay to the topic.",
        fits=_free_and_idle,
        act=_to_other_topic,
        asks_for_replay=True,
        asks_topic=True,
        cautious=True,
    ),
    Verb(
        name="dry-run",
        label=_("Dry run"),
        question=ngettext_lazy("Run the handler of %d dead letter dry?", "Run the handlers of %d dead letters dry?"),
        hints=(
            _("The handler that this consumer has now runs on the stored message; its transaction is rolled back."),
            _("What it would have produced is shown and not sent; commit hooks do not run. The letter stays as it is."),
            _("What it does elsewhere, such as sending mail, would take place: it was declared free of that."),
        ),
        done=ngettext_lazy("A dry run of %d dead letter was asked for.", "Dry runs of %d dead letters were asked for."),
        refused=ngettext_lazy(
            "%d dead letter was left alone: it is not open, or its handler is not declared fit for dry runs.",
            "%d dead letters were left alone: they are not open, or their handlers are not declared fit for dry runs.",
        ),
        logged="Asked for a dry run.",
        fits=_fit_for_dry_runs,
        act=_dry_run,
        asks_for_replay=True,
        of_groups=False,
        of_lists=False,
    ),
    Verb(
        name="cancel-replay",
        label=_("Cancel the replay"),
        question=ngettext_lazy("Cancel the replay of %d dead letter?", "Cancel the replays of %d dead letters?"),
        hints=(
            _("Only replays that nobody has begun, or whose worker died, can be cancelled. The letters stay open."),
        ),
        done=ngettext_lazy(
            "The replay of %d dead letter was cancelled.", "The replays of %d dead letters were cancelled."
        ),
        refused=ngettext_lazy(
            "%d dead letter was left alone: no replay of it waits.",
            "%d dead letters were left alone: no replay of them waits.",
        ),
        logged="Cancelled the replay.",
        fits=_asked_for,
        act=lambda ids, user: replaying.cancel(ids),
    ),
    Verb(
        name="discard",
        label=_("Discard"),
        question=ngettext_lazy("Discard %d dead letter?", "Discard %d dead letters?"),
        hints=(
            _("Their messages stay unhandled. They are kept, and can be opened again, until their retention is over."),
            _("What is parked behind one of them is released: it is handled next, in order."),
        ),
        done=ngettext_lazy("%d dead letter was discarded.", "%d dead letters were discarded."),
        refused=_NOT_OPEN,
        logged="Discarded.",
        fits=_open_and_idle,
        act=lambda ids, user: replaying.discard(ids, user=user),
        permit=permits.Verb.DISCARD,
        releases=True,
        cautious=True,
    ),
    Verb(
        name="reopen",
        label=_("Open again"),
        question=ngettext_lazy("Open %d discarded dead letter again?", "Open %d discarded dead letters again?"),
        hints=(_("Afterwards they can be replayed."),),
        done=ngettext_lazy("%d dead letter was opened again.", "%d dead letters were opened again."),
        refused=ngettext_lazy(
            "%d dead letter was left alone: it is not discarded.",
            "%d dead letters were left alone: they are not discarded.",
        ),
        logged="Opened again.",
        fits=_discarded,
        of_groups=False,
        act=lambda ids, user: replaying.reopen(ids),
        permit=permits.Verb.DISCARD,
    ),
    Verb(
        name="erase",
        label=_("Erase"),
        question=ngettext_lazy(
            "Erase what %d dead letter says of a person?", "Erase what %d dead letters say of a person?"
        ),
        hints=(
            _("Key, headers, value, errors and tracebacks are erased, here and in attempts and replays. For good."),
            _("A stub is left: coordinates, states and times. Open and parked letters are discarded."),
            _("What is parked behind one of them is released: it is handled next, in order."),
            _("Kafka itself is not touched, nor what handlers stored, nor files that were exported."),
        ),
        done=ngettext_lazy("%d dead letter was erased.", "%d dead letters were erased."),
        refused=ngettext_lazy(
            "%d dead letter was left alone: it is being replayed, or was erased before.",
            "%d dead letters were left alone: they are being replayed, or were erased before.",
        ),
        logged="Erased.",
        fits=_whole_and_idle,
        act=lambda ids, user: erasing.forget(Q(pk__in=ids), user=user),
        permit=permits.Verb.ERASE,
        releases=True,
        noted=True,
        of_groups=False,
        cautious=True,
    ),
)
