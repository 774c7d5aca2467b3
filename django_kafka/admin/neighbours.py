"""Letters beside one: those of the same key, and those of the same trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from ..dead_letters import permits, replaying
from ..models import DeadLetter
from . import showing
from .badges import badge
from .filters import KeyFilter, TraceFilter

_NEIGHBOURS = 5
"""Letters before and after one."""


def neighbours_of(letter: DeadLetter, user: Any, url: Callable[..., str]) -> list[dict[str, Any]]:
    """Return a few letters before and after one that a person may see, for each way in which there are some.

    `url` leads to pages of letters.
    """
    letters = permits.allowed(user, permits.Verb.VIEW, replaying.letters())
    found = []
    if letter.key_hash:
        same = letters.filter(key_hash=letter.key_hash, topic=letter.topic, consumer=letter.consumer)
        found.append(("neighbours", _("Letters of the same key"), same, KeyFilter.parameter_name))
    if letter.trace_id:
        same = letters.filter(trace_id=letter.trace_id)
        found.append(("trace", _("Letters of the same trace"), same, TraceFilter.parameter_name))
    shown = []
    for name, title, others, parameter in found:
        if rows := _around(letter, others, url):
            query = urlencode([(str(parameter), str(letter.pk)), ("state", "all")])
            shown.append({"id": name, "title": title, "shown": rows, "all": f"{url('changelist')}?{query}"})
    return shown


def _around(letter: DeadLetter, others: QuerySet[DeadLetter], url: Callable[..., str]) -> list[dict[str, Any]]:
    others = others.only("topic", "partition", "offset", "state", "error_type", "last_failed_at")
    before = list(others.filter(pk__lt=letter.pk).order_by("-pk")[:_NEIGHBOURS])
    after = list(others.filter(pk__gt=letter.pk).order_by("pk")[:_NEIGHBOURS])
    return [
        {
            "url": url("change", one.pk),
            "place": showing.topic(str(one)),
            "state": badge(one.state, one.get_state_display()),
            "error_type": showing.line(one.error_type.rpartition(".")[2]),
            "last_failed_at": one.last_failed_at,
        }
        for one in (*reversed(before), *after)
    ]
