"""Filters of the lists."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from ..dead_letters import replaying
from ..models import DeadLetter


class StateFilter(admin.SimpleListFilter):
    """Where letters stand; those that wait for somebody unless asked otherwise."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return the states, and all of them."""
        return [*DeadLetter.State.choices, ("all", _("All"))]

    def value(self) -> str | None:
        """Return what is chosen."""
        return super().value() or DeadLetter.State.OPEN

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Return the links, without Django's own one for "all", which would mean "open" here."""
        return islice(super().choices(changelist), 1, None)

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        """Return the letters in that state."""
        return queryset if self.value() == "all" else queryset.filter(state=self.value())


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
