"""What somebody may not do: shown disabled with the reason, and refused with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from django import forms
from django.contrib.admin import AdminSite
from django.contrib.admin.helpers import ActionForm
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver
from django.utils.translation import gettext as _

from ..dead_letters import audit, permits

View = Callable[..., HttpResponse]


class Refused(PermissionDenied):
    """Something that the person may not do; its text is the sentence that says why."""


def demand(user: Any, verb: permits.Verb, row: Any = None) -> None:
    """Raise `Refused` when a person may not do something with a row; without one: with all rows."""
    if sentence := permits.refusal(user, verb, row):
        raise Refused(sentence)


def demand_anywhere(user: Any, verb: permits.Verb, model: type[Model] | None = None) -> None:
    """Raise `Refused` when a person may do something with the rows of no consumer."""
    if sentence := refusal_anywhere(user, verb, model):
        raise Refused(sentence)


def refusal_anywhere(user: Any, verb: permits.Verb, model: type[Model] | None = None) -> str:
    """Return why a person may do something with the rows of no consumer; "" when there are some."""
    of = {} if model is None else {"model": model}
    if permits.anywhere(user, verb, **of):
        return ""
    return permits.refusal(user, verb, None if model is None else model())


def guarded(view: View, site: AdminSite) -> View:
    """Return a view that says why it refuses, and whose entries in the audit have the client's address."""

    @wraps(view)
    def guarding(request: HttpRequest, *arguments: Any, **named: Any) -> HttpResponse:
        with audit.coming_from(str(request.META.get("REMOTE_ADDR") or "")):
            try:
                return view(request, *arguments, **named)
            except Refused as refused:
                request.current_app = site.name
                context = {**site.each_context(request), "title": _("Permission denied"), "sentence": str(refused)}
                return TemplateResponse(request, "admin/lynx_kafka/refused.html", context, status=403)

    return guarding


def all_guarded(patterns: Iterable[URLPattern | URLResolver], site: AdminSite) -> list[URLPattern | URLResolver]:
    """Return URL patterns with their views guarded."""
    return [
        URLPattern(each.pattern, guarded(each.callback, site), each.default_args, each.name)
        if isinstance(each, URLPattern)
        else each
        for each in patterns
    ]


class RefusedLabel(str):
    """The label of an action that is shown and cannot be chosen."""

    __slots__ = ()


class _Select(forms.Select):
    def create_option(self, name: str, value: Any, label: Any, *arguments: Any, **named: Any) -> dict[str, Any]:
        option = super().create_option(name, value, label, *arguments, **named)
        if isinstance(label, RefusedLabel):
            option["attrs"]["disabled"] = True
        return option


class Actions(ActionForm):
    """The form of a list's actions, with those that are refused disabled."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        field = self.fields["action"]
        field.widget = _Select(attrs=field.widget.attrs)
