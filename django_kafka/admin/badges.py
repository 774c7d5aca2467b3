"""States as small coloured labels."""

from __future__ import annotations

from typing import Any

from django.utils.html import format_html
from django.utils.translation import gettext as _


def badge(state: str, label: Any) -> str:
    """Return a state as a small coloured label."""
    return format_html('<span class="lynx-kafka-badge lynx-kafka-{}">{}</span>', state, label)


def request_badge(control: Any) -> str:
    """Return the state of one of `controls.requests()`; one that nobody took in time is over for everybody."""
    if control.overdue:
        return badge("control-expired", _("not taken in time"))
    return badge(f"control-{control.state}", control.get_state_display())
