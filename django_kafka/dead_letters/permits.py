"""Who may do what: asked of Django's permissions, for all rows first, and then for those of one consumer.

Nobody may do anything unless it was given; superusers may do all. A backend that knows objects can give a team its own
consumers: it is asked `user.has_perm(permission, row)`, where the row has a `consumer`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from django.db.models import Model, Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from .. import conf
from ..models import Claim, DeadLetter, FailureGroup, Hold, Replay, Worker

_APP = "lynx_kafka"


class Verb(StrEnum):
    """What people may do, each with a permission of its own."""

    VIEW = "view"
    """Look at rows, and at payloads as far as masking lets it. Django's own permission of the row's model."""
    VIEW_PAYLOAD = "view_payload"
    """Look at unmasked payloads: keys, values, headers, raw bytes."""
    REPLAY = "replay"
    """Ask for replays and cancel them."""
    EDIT = "edit"
    """Alter a message and replay it."""
    DISCARD = "discard"
    """Give letters up, and open them again."""
    MANAGE_JOBS = "manage_jobs"
    """Pause, resume and cancel replay jobs."""
    CONTROL_WORKERS = "control_workers"
    """Close circuits, pause, seek, stop."""
    EXPORT = "export"
    """Take letters out as a file, and bring them back in."""
    ERASE = "erase"
    """Erase a person's data."""
    ANNOTATE = "annotate"
    """Say what becomes of a failure group, who looks after it, and what is to be known of it."""


_OF_VERB: dict[Verb, tuple[str, type[Model]]] = {
    Verb.VIEW_PAYLOAD: ("view_payload_deadletter", DeadLetter),
    Verb.REPLAY: ("replay_deadletter", DeadLetter),
    Verb.EDIT: ("edit_deadletter", DeadLetter),
    Verb.DISCARD: ("discard_deadletter", DeadLetter),
    Verb.MANAGE_JOBS: ("manage_replayjob", DeadLetter),
    Verb.CONTROL_WORKERS: ("control_worker", Worker),
    Verb.EXPORT: ("export_deadletter", DeadLetter),
    Verb.ERASE: ("erase_deadletter", DeadLetter),
    Verb.ANNOTATE: ("change_failuregroup", FailureGroup),
}
"""The permission of each verb, and what one must be allowed to view besides."""
_WITH_PAYLOAD = (Verb.EDIT,)
"""They show payloads, and need that permission too."""

_MISSING = {
    Verb.VIEW: gettext_lazy("You are not permitted to view this."),
    Verb.VIEW_PAYLOAD: gettext_lazy("You are not permitted to view payloads."),
    Verb.REPLAY: gettext_lazy("You are not permitted to replay dead letters."),
    Verb.EDIT: gettext_lazy("You are not permitted to edit dead letters."),
    Verb.DISCARD: gettext_lazy("You are not permitted to discard dead letters."),
    Verb.MANAGE_JOBS: gettext_lazy("You are not permitted to manage replay jobs."),
    Verb.CONTROL_WORKERS: gettext_lazy("You are not permitted to control workers."),
    Verb.EXPORT: gettext_lazy("You are not permitted to export dead letters."),
    Verb.ERASE: gettext_lazy("You are not permitted to erase data."),
    Verb.ANNOTATE: gettext_lazy("You are not permitted to change failure groups."),
}


def refusal(user: Any, verb: Verb, row: Any = None) -> str:
    """Return why a person may not do something with a row, as a sentence that names what is missing; "": they may.

    Without a row it is asked for all rows, of all consumers; `anywhere` asks whether there may be any.
    """
    for needed, permission in _needed(verb, _model(row)):
        if not _has(user, permission, row):
            sentence = _("%(sentence)s It needs the permission %(permission)s.")
            return sentence % {"sentence": _MISSING[needed], "permission": permission}
    return ""


def may(user: Any, verb: Verb, row: Any = None) -> bool:
    """Tell whether a person may do something with a row; without one: with all rows, of all consumers."""
    return all(_has(user, permission, row) for _verb, permission in _needed(verb, _model(row)))


def anywhere(user: Any, verb: Verb, model: type[Model] = DeadLetter) -> bool:
    """Tell whether a person may do something with the rows of any consumer, so that a list is worth opening."""
    return consumers_of(user, verb, model) != frozenset()


def consumers_of(user: Any, verb: Verb, model: type[Model] = DeadLetter) -> frozenset[str] | None:
    """Return the consumers whose rows a person may do something with; None: all.

    Asked for each consumer that is known, of settings or of stored rows, with a row of `model` that is not stored. What
    was answered is kept with the user object, as Django keeps permissions.
    """
    if may_all(user, verb, model):
        return None
    remembered: dict[Any, frozenset[str]] = user.__dict__.setdefault("_lynx_kafka_consumers", {})
    if (verb, model) not in remembered:
        if "known" not in remembered:
            remembered["known"] = known_consumers()
        remembered[verb, model] = frozenset(
            one for one in remembered["known"] if _may_with(user, verb, _row(model, one))
        )
    return remembered[verb, model]


def may_all(user: Any, verb: Verb, model: type[Model] = DeadLetter) -> bool:
    """Tell whether a person may do something with all rows of a model."""
    return all(_has(user, permission, None) for _verb, permission in _needed(verb, model))


def allowed(
    user: Any, verb: Verb, rows: QuerySet[Any], *, field: str = "consumer", model: type[Model] | None = None
) -> QuerySet[Any]:
    """Return those of these rows that a person may do something with; `field` leads to the name of their consumer."""
    consumers = consumers_of(user, verb, model or rows.model)
    return rows if consumers is None else rows.filter(**{f"{field}__in": sorted(consumers)})


def within(consumers: frozenset[str] | None, field: str = "consumer") -> Q:
    """Return a condition: the row is of one of these consumers; None: of any."""
    return Q() if consumers is None else Q(**{f"{field}__in": sorted(consumers)})


def known_consumers() -> frozenset[str]:
    """Return the names of the consumers of settings and of stored rows: some are not in settings any more."""
    whole = conf.reading().kafka
    using = whole.dead_letters.database
    # Each letter that failed is in a group, and what is parked stands behind such a one.
    first, *others = (
        model._default_manager.using(using).order_by().values_list("consumer", flat=True)
        for model in (FailureGroup, Hold, Claim, Worker)
    )
    return frozenset(whole.consumers) | frozenset(first.union(*others).order_by())


def _needed(verb: Verb, model: type[Model]) -> Iterable[tuple[Verb, str]]:
    """Return the permissions that a verb needs, what is to be seen first."""
    if verb == Verb.VIEW:
        yield verb, f"{_APP}.view_{model._meta.model_name}"
        return
    own, seen = _OF_VERB[verb]
    yield Verb.VIEW, f"{_APP}.view_{seen._meta.model_name}"
    if verb in _WITH_PAYLOAD:
        yield Verb.VIEW_PAYLOAD, f"{_APP}.{_OF_VERB[Verb.VIEW_PAYLOAD][0]}"
    yield verb, f"{_APP}.{own}"


def _model(row: Any) -> type[Model]:
    return DeadLetter if row is None else type(row)


def _has(user: Any, permission: str, row: Any) -> bool:
    # Django's own backend says no whenever it is asked with an object.
    return bool(user.has_perm(permission) or (row is not None and user.has_perm(permission, row)))


def _may_with(user: Any, verb: Verb, row: Model) -> bool:
    return all(_has(user, permission, row) for _verb, permission in _needed(verb, type(row)))


def _row(model: type[Model], consumer: str) -> Model:
    if model is Replay:
        return Replay(letter=DeadLetter(consumer=consumer))
    return model(consumer=consumer)
