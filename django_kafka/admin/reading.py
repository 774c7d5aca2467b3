"""An admin for reading only, of what a person may see."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.text import capfirst

from ..dead_letters import permits
from . import reaching, refusing
from .refusing import Actions, RefusedLabel

_COMPARED = ("", "__exact", "__isnull", "__gte", "__lt")
"""How filters of Django's own compare a column; the last two are for times."""


class ReadOnly(admin.ModelAdmin):  # type: ignore[type-arg]  # generic for the type checker only
    """No form adds, alters or deletes anything; lists have the rows of the consumers that a person may look at."""

    action_form = Actions
    consumer_field = "consumer"
    """What leads to the name of a row's consumer."""

    @property
    def media(self) -> forms.Media:
        """Return our style sheet and what selects rows; Django's list of 300 KiB of scripts is for forms that write."""
        return forms.Media(css={"all": ["lynx_kafka/admin.css"]}, js=["admin/js/actions.js"])

    @property
    def urls(self) -> list[Any]:
        """The admin's URLs; whatever is refused there is refused with its reason, and an outage is told."""
        return reaching.all_watched(refusing.all_guarded(self.get_urls(), self.admin_site), self.admin_site)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: rows come from workers."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: rows are what happened."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: retention deletes."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tell whether the person may look at a row; without one: whether there may be any, so that lists open."""
        if obj is None:
            return permits.anywhere(request.user, permits.Verb.VIEW, self.model)
        return permits.may(request.user, permits.Verb.VIEW, obj)

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Tell whether the person sees the list on the index of the admin."""
        return self.has_view_permission(request)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows that the person may look at. What is read of each is said by `rows`."""
        return permits.allowed(request.user, permits.Verb.VIEW, self.rows(), field=self.consumer_field)

    def rows(self) -> QuerySet[Any]:
        """Return the rows of all consumers, as lists need them."""
        raise NotImplementedError

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Tell whether a list may be filtered by a parameter: only as one of its own filters is.

        Django lets anybody compare any column of the list with anything, beginnings and regular expressions included:
        so what is masked, or not shown at all, could be found out by guessing.
        """
        allowed: set[str] = set()
        for each in self.list_filter:
            if isinstance(each, type):
                allowed.add(str(each.parameter_name))  # type: ignore[attr-defined]
            else:
                name = each[0] if isinstance(each, tuple | list) else each
                allowed.update(f"{name}{how}" for how in _COMPARED)
        return lookup in allowed

    def get_action_choices(  # type: ignore[override,unused-ignore]  # Django 6.1 has one argument more
        self, request: HttpRequest, default_choices: Any = None, action_location: Any = None
    ) -> list[tuple[str, Any]]:
        """Return the actions; those that the person may do nowhere with the reason, and disabled."""
        given = {"default_choices": default_choices, "action_location": action_location}
        named = {name: value for name, value in given.items() if value is not None}
        choices = []
        functions = self.get_actions(request)
        for name, label in super().get_action_choices(request, **named):
            found = functions.get(name)
            # Before Django 6.1 it is a tuple.
            function = found[0] if isinstance(found, tuple) else getattr(found, "func", None)
            verb = getattr(function, "permit", None)
            refusal = "" if verb is None else refusing.refusal_anywhere(request.user, verb)
            choices.append((name, RefusedLabel(f"{label} – {refusal}") if refusal else label))
        return choices

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list, or act on what was chosen in it: without ids that no row can have, which Django trips over."""
        if request.method == "POST" and ACTION_CHECKBOX_NAME in request.POST:
            posted = request.POST.copy()
            possible = [each for each in posted.getlist(ACTION_CHECKBOX_NAME) if self.may_be_id(each)]
            posted.setlist(ACTION_CHECKBOX_NAME, possible)
            request.POST = posted  # type: ignore[assignment]
        title = capfirst(str(self.opts.verbose_name_plural))  # not “Select … to view”
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    def one_of(self, request: HttpRequest, rows: QuerySet[Any], object_id: str) -> Any:
        """Return the row of this id for a page that only shows it. Raises `PermissionDenied` and `Http404`."""
        if request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        row = rows.filter(pk=object_id).first() if self.may_be_id(object_id) else None
        if row is not None:
            refusing.demand(request.user, permits.Verb.VIEW, row)
        elif not self.has_view_permission(request):
            raise refusing.Refused(permits.refusal(request.user, permits.Verb.VIEW, self.model()))
        else:
            raise Http404
        return row

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the row of this id; None also for what no row can have."""
        return super().get_object(request, object_id, from_field) if self.may_be_id(object_id) else None

    def may_be_id(self, text: str) -> bool:
        """Tell whether a row can have this id, so that a database takes it."""
        try:
            self.opts.pk.clean(text, None)
        except ValidationError:
            return False
        return "\0" not in text
