"""The page in between: what is about to be done is asked first, done once, and entered into the history."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import django
from django.contrib.admin import ModelAdmin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from ..dead_letters import audit

SHOWN = 5
"""Rows named on the page."""


def page_context(admin: ModelAdmin[Any], title: str, list_url: str) -> dict[str, Any]:
    """Return what all pages of ours need."""
    return {
        "opts": admin.opts,
        "media": admin.media,
        "title": title,
        # Django 6.1 made them a list.
        "breadcrumbs_tag": "ol" if django.VERSION >= (6, 1) else "div",
        "list_url": list_url,
    }


def selected(request: HttpRequest, action: str) -> list[tuple[str, str]]:
    """Return the hidden fields that carry an action of the list and its selection through the page."""
    fields = [("action", action), ("select_across", request.POST.get("select_across", "0"))]
    return fields + [(ACTION_CHECKBOX_NAME, pk) for pk in request.POST.getlist(ACTION_CHECKBOX_NAME)]


def ask(
    admin: ModelAdmin[Any],
    request: HttpRequest,
    context: dict[str, Any],
    *,
    fits: int,
    first: list[str],
    hidden: list[tuple[str, Any]],
) -> HttpResponse:
    """Return the page: how many rows it is about, the first of them by name, and what the answer carries along."""
    whole = {
        **admin.admin_site.each_context(request),
        **context,
        "fits": fits,
        "first": first,
        "more": max(0, fits - len(first)),
        "hidden": [*hidden, ("confirmed", "yes")],
    }
    request.current_app = admin.admin_site.name
    return TemplateResponse(request, "admin/lynx_kafka/confirmation.html", whole)


def enter(
    rows: Collection[Model], model: type[Model], user: Any, sentence: str, *, verb: str, reason: str = ""
) -> None:
    """Enter into the history of each row, and into the audit, what a person did to it. Part of a transaction.

    A `verb` that is "" is in the audit already.
    """
    if verb:
        audit.note(user, verb, rows, reason=reason)
    content_type = ContentType.objects.get_for_model(model)
    LogEntry.objects.bulk_create(
        LogEntry(
            user_id=user.pk,
            content_type_id=content_type.pk,
            object_id=str(row.pk),
            object_repr=str(row)[:200],
            action_flag=CHANGE,
            change_message=sentence,
        )
        for row in rows
    )
