"""Filters of the lists."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeGuard

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..dead_letters import groups, parking, permits, replaying
from ..models import DeadLetter
from . import showing
from .lists import NamesFilter


class StandingFilter(admin.SimpleListFilter):
    """In which state rows are; those that need somebody unless asked otherwise."""

    title = _("state")
    parameter_name = "state"
    usual: str
    """The choice where nothing was chosen."""

    def value(self) -> str | None:
        """Return what is chosen."""
        value = super().value()
        return value if value in dict(self.lookup_choices) else self.usual

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Return the links, without Django's own one for "all", which would mean the usual ones here."""
        return islice(super().choices(changelist), 1, None)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows in that state."""
        return queryset if self.value() == "all" else queryset.filter(state=self.value())


class StateFilter(StandingFilter):
    """Where letters stand; those that wait for somebody unless asked otherwise."""

    usual = DeadLetter.State.OPEN

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return the states, and all of them."""
        return [*DeadLetter.State.choices, ("all", _("All"))]


class ConsumerFilter(admin.SimpleListFilter):
    """Rows of one consumer; offered are those that the person may look at, without looking through the table."""

    title = _("consumer")
    parameter_name = "consumer"

    def __init__(self, request: HttpRequest, params: Any, model: Any, model_admin: Any) -> None:
        self.field = model_admin.consumer_field
        super().__init__(request, params, model, model_admin)

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return the consumers."""
        mine = permits.consumers_of(request.user, permits.Verb.VIEW, model_admin.model)
        names = permits.known_consumers() if mine is None else mine
        return [(name, showing.line(name)) for name in sorted(names)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows of that consumer."""
        return queryset if (name := self.value()) is None else queryset.filter(**{self.field: name})


class ReplayFilter(admin.SimpleListFilter):
    """Whether a replay was asked for and is not at its end."""

    title = _("replay")
    parameter_name = "replay"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [("outstanding", _("asked for or running")), ("none", _("not asked for"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter] | None:
        """Return the letters with or without one."""
        match self.value():
            case "outstanding":
                return queryset.filter(replaying.outstanding())
            case "none":
                return queryset.exclude(replaying.outstanding())
        return None


class CategoryFilter(NamesFilter):
    """Why letters failed, by the categories that failure groups have: letters have no index of these alone."""

    def names(self, model: Any, column: str, consumers: frozenset[str] | None) -> list[str]:
        """Return those that groups have, and that of parked letters."""
        found = groups.groups().filter(permits.within(consumers)).order_by()
        return sorted({*found.values_list("category", flat=True).distinct(), parking.CATEGORY})


class AttemptsFilter(admin.SimpleListFilter):
    """How often a letter was tried."""

    title = _("attempts")
    parameter_name = "tried"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [("once", _("once")), ("some", _("2 to 5 times")), ("often", _("more than 5 times"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter] | None:
        """Return the letters that were."""
        match self.value():
            case "once":
                return queryset.filter(attempts__lte=1)
            case "some":
                return queryset.filter(attempts__range=(2, 5))
            case "often":
                return queryset.filter(attempts__gt=5)
        return None


class _Of(admin.SimpleListFilter):
    """One that a link leads to, and that is shown only then, to be taken away again."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return what was chosen."""
        value = self.used_parameters.get(str(self.parameter_name), "")
        return [(value, self.label(request.user, int(value)))] if _is_id(value) else []

    def label(self, user: Any, pk: int) -> str:
        """Return what it is called."""
        raise NotImplementedError


class GroupFilter(_Of):
    """Letters of one failure group."""

    title = _("failure group")
    parameter_name = "of_group"

    def label(self, user: Any, pk: int) -> str:
        """Return the group as text."""
        mine = permits.allowed(user, permits.Verb.VIEW, groups.groups(), model=DeadLetter)
        return showing.line(str(mine.filter(pk=pk).first() or "?"))

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        """Return its letters."""
        value = self.value()
        return queryset.filter(failure_group=int(value)) if _is_id(value) else queryset


class KeyFilter(_Of):
    """Letters that have the key of another one."""

    title = _("key")
    parameter_name = "key_of"

    def label(self, user: Any, pk: int) -> str:
        """Return the letter whose key it is."""
        letter = (
            permits.allowed(user, permits.Verb.VIEW, replaying.letters())
            .filter(pk=pk)
            .only("topic", "partition", "offset")
            .first()
        )
        return gettext("that of %s") % showing.topic(str(letter or "?"))

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        """Return letters of the same topic with its key."""
        value = self.value()
        if not _is_id(value):
            return queryset
        mine = permits.allowed(request.user, permits.Verb.VIEW, replaying.letters())
        letter = mine.filter(pk=int(value)).only("topic", "key", "key_hash").first()
        if letter is None or letter.key is None:
            return queryset.none()
        return queryset.filter(replaying.with_key(bytes(letter.key)), topic=letter.topic)


class TraceFilter(_Of):
    """Letters of the trace of another one."""

    title = _("trace")
    parameter_name = "trace_of"

    def label(self, user: Any, pk: int) -> str:
        """Return the letter whose trace it is."""
        mine = permits.allowed(user, permits.Verb.VIEW, replaying.letters())
        letter = mine.filter(pk=pk).only("topic", "partition", "offset").first()
        return gettext("that of %s") % showing.topic(str(letter or "?"))

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        """Return letters of its trace."""
        value = self.value()
        if not _is_id(value):
            return queryset
        mine = permits.allowed(request.user, permits.Verb.VIEW, replaying.letters())
        letter = mine.filter(pk=int(value)).only("trace_id").first()
        if letter is None or not letter.trace_id:
            return queryset.none()
        return queryset.filter(trace_id=letter.trace_id)


def _is_id(text: str | None) -> TypeGuard[str]:
    return text is not None and text.isascii() and text.isdigit() and len(text) < 19
