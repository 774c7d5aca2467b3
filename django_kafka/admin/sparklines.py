"""How often something happened over time, as small bars in an SVG: no script, and no style but that of the sheet."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from . import showing

_STEP, _BAR, _HEIGHT = 5, 4, 24
"""Width of a step and of its bar, and the height of the highest one, in the picture's own units."""


def sparkline(begins: datetime, step: timedelta, counts: tuple[int, ...], *, large: bool = False) -> SafeString:
    """Draw counts of steps of time, the first of which begins at `begins`; who cannot see it hears the sum."""
    most, total = max(counts, default=0), sum(counts)
    hours = len(counts) * step / timedelta(hours=1)
    period = _("%d hours") % hours if hours <= 48 else _("%d days") % (hours / 24)
    says = _("%(total)s failures in %(period)s, at most %(most)s in one step") % {
        "total": total, "period": period, "most": most,
    }  # fmt: skip
    bars = format_html_join(
        "",
        '<rect x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>',
        (
            (
                place * _STEP,
                _HEIGHT - _high(count, most),
                _BAR,
                _high(count, most),
                _title(begins + place * step, count),
            )
            for place, count in enumerate(counts)
            if count
        ),
    )
    width = len(counts) * _STEP
    return format_html(
        '<svg class="lynx-kafka-spark{}" viewBox="0 0 {} {}" preserveAspectRatio="xMinYMax" role="img" aria-label="{}">'
        '<line class="lynx-kafka-grid" x1="0" y1="{}" x2="{}" y2="{}"></line>{}</svg>',
        " lynx-kafka-large" if large else "", width, _HEIGHT + 1, says, _HEIGHT + 0.5, width, _HEIGHT + 0.5, bars,
    )  # fmt: skip


def _high(count: int, most: int) -> int:
    # What is there is seen, however little it is.
    return max(2, round(_HEIGHT * count / most))


def _title(at: datetime, count: int) -> str:
    return f"{showing.moment(at)}: {count}"
