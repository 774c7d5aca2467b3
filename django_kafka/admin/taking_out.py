"""Letters taken out of the admin as files, and a person's data erased from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..dead_letters import audit, exporting, permits
from ..envelopes.patience import DOWNLOAD
from ..models import DeadLetter
from . import refusing

Lines = Callable[..., Iterator[str]]


def _action(name: str, label: Any, lines: Lines, ending: str, kind: str) -> Callable[..., HttpResponseBase]:
    @admin.action(description=label)
    def action(admin: Any, request: HttpRequest, chosen: QuerySet[DeadLetter]) -> HttpResponseBase:
        return answer(request, chosen, lines, ending, kind)

    action.__name__ = name
    action.permit = permits.Verb.EXPORT  # type: ignore[attr-defined]
    return action


def answer(
    request: HttpRequest, chosen: QuerySet[DeadLetter], lines: Lines, ending: str, kind: str
) -> HttpResponseBase:
    """Send letters as a file, as it is read. Those who may not see all of these payloads get them masked."""
    refusing.demand_anywhere(request.user, permits.Verb.EXPORT)
    rows = permits.allowed(request.user, permits.Verb.EXPORT, chosen)
    masked = permits.consumers_of(request.user, permits.Verb.VIEW_PAYLOAD) is not None
    address = str(request.META.get("REMOTE_ADDR") or "")

    def note(letters: list[DeadLetter]) -> None:
        # The answer is read when the request is over.
        with audit.coming_from(address):
            audit.note(request.user, exporting.VERB, letters, details={"format": ending, "masked": masked})

    # The list's own query has annotations that an export does not need.
    plain = DeadLetter.objects.using(rows.db).filter(pk__in=rows.order_by().values("pk"))
    sent = StreamingHttpResponse(lines(plain, masked=masked, noting=note), content_type=f"{kind}; charset=utf-8")
    name = f"dead-letters-{timezone.now():%Y%m%d-%H%M%S}.{ending}"
    sent["Content-Disposition"] = f'attachment; filename="{name}"'
    sent["X-Content-Type-Options"] = "nosniff"
    sent["Content-Security-Policy"] = "sandbox; default-src 'none'"
    sent["Cache-Control"] = "no-store"
    return sent


_json_lines = partial(exporting.json_lines, within=DOWNLOAD)

ACTIONS = [
    _action("export-jsonl", _("Export as JSON lines"), _json_lines, "jsonl", "application/jsonl"),
    _action("export-csv", _("Export for spreadsheets (CSV)"), exporting.csv_lines, "csv", "text/csv"),
]
