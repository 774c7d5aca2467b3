"""Pages about rows of a database that is down: a sentence in the admin's look, not an error of the whole site."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import wraps
from typing import Any

from django.contrib.admin import AdminSite
from django.db import DEFAULT_DB_ALIAS, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver
from django.utils.translation import gettext as _

from .. import conf
from ..envelopes.patience import PAGE, patient
from .refusing import View

log = logging.getLogger("django_kafka.admin")


def watched(view: View, site: AdminSite) -> View:
    """Return a view that says so when the database of the dead letters, which is not Django's own, is down.

    It waits no longer for payloads in storages than pages may.
    """

    @wraps(view)
    def watching(request: HttpRequest, *arguments: Any, **named: Any) -> HttpResponse:
        if conf.kafka().dead_letters.database == DEFAULT_DB_ALIAS:
            with patient(PAGE):
                return view(request, *arguments, **named)
        try:
            with patient(PAGE):
                answer = view(request, *arguments, **named)
            if isinstance(answer, TemplateResponse):
                answer.render()  # now: lists read their rows while they are rendered
            return answer
        except (OperationalError, InterfaceError) as error:
            log.warning("the database of dead letters does not answer: error=%s", type(error).__name__)
            request.current_app = site.name
            context = {
                **site.each_context(request),
                "title": _("The database of the dead letters does not answer"),
                "sentence": _("Nothing is lost: workers wait for it as well. Try again in a moment."),
            }
            return TemplateResponse(request, "admin/lynx_kafka/refused.html", context, status=503)

    return watching


def all_watched(patterns: Iterable[URLPattern | URLResolver], site: AdminSite) -> list[URLPattern | URLResolver]:
    """Return URL patterns with their views watched."""
    return [
        URLPattern(each.pattern, watched(each.callback, site), each.default_args, each.name)
        if isinstance(each, URLPattern)
        else each
        for each in patterns
    ]
