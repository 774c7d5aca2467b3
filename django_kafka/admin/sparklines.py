"""How often something happened over time, as small bars in an SVG: no script, and no style but that of the sheet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import get_current_timezone_name
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from . import showing

_STEP, _BAR, _HEIGHT = 5, 4, 24
"""Width of a step and of its bar, and the height of the highest one, in the picture's own units."""
_WIDE = 120
"""Width of a line."""


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


def trendline(points: Sequence[tuple[float, int]]) -> SafeString | str:
    """Draw how a number moved, of times in seconds; "" until there are two. Who cannot see it hears first and last."""
    if len(points) < 2:
        return ""
    # As many as can be seen apart.
    some = [*points[:: max(1, len(points) // _WIDE)], points[-1]]
    begins, most = some[0][0], max(value for _at, value in some) or 1
    over = max(some[-1][0] - begins, 1.0)
    says = _("from %(first)s to %(last)s in %(minutes)s min") % {
        "first": some[0][1], "last": some[-1][1], "minutes": max(1, round(over / 60)),
    }  # fmt: skip
    places = " ".join(
        f"{_WIDE * (at - begins) / over:.1f},{1 + _HEIGHT - _HEIGHT * value / most:.1f}" for at, value in some
    )
    return format_html(
        '<svg class="lynx-kafka-spark" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<polyline points="{}"></polyline></svg>',
        _WIDE, _HEIGHT + 2, says, places,
    )  # fmt: skip


def _high(count: int, most: int) -> int:
    # What is there is seen, however little it is.
    return max(2, round(_HEIGHT * count / most))


def _title(at: datetime, count: int) -> str:
    return f"{_moment(at, get_language(), get_current_timezone_name())}: {count}"


@lru_cache(2000)
def _moment(at: datetime, _language: str | None, _zone: str) -> str:
    # The bars of all lines of a list are of the same hours, and to write them takes half of its time.
    return showing.moment(at)
