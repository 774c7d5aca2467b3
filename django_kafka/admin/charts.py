"""What a worker did in the last minutes, drawn: numbers become the places of bars and lines in an SVG.

No script, and neither style nor colour: those are in the style sheet, so that the strictest policy shows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.template.defaultfilters import filesizeformat
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..history import MINUTES
from ..models import Worker
from ..monitoring import analytics
from ..monitoring.figures import ConsumerMetrics, ConsumerWindow, Percentiles
from . import showing

WIDTH, HEIGHT = 360, 128
"""Of a chart, in its own units."""
_CEILING, _BASE = 18.0, 108.0
"""Where its upper edge is, and where nothing is."""
_STEP = WIDTH / MINUTES
_GAP = 4.0
"""Between two bars."""
PERCENTILES = ("p50", "p95", "p99")
"""Each a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One minute, as a rectangle."""

    x: str
    """Its left side."""
    y: str
    """Its upper side."""
    width: str
    """How wide it is."""
    height: str
    """How high it is."""
    title: str
    """What it says where a pointer rests on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One percentile, as a path of steps."""

    name: str
    """What it is called, and its class in the style sheet."""
    path: str
    """The path; "" where there was nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One of the charts."""

    name: str
    """A word for ids."""
    title: str
    """What it shows."""
    says: str
    """The same as its picture, in a sentence."""
    top: str
    """What its upper edge stands for; "" where there was nothing."""
    bars: Sequence[Bar] = ()
    """Its minutes, without those in which there was nothing."""
    lines: Sequence[Line] = ()
    """Its percentiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A window as a line of a table."""

    name: str
    """When it was."""
    cells: Sequence[str]
    """What is in it, in the order of the headings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All that the page shows of a worker's last minutes."""

    charts: Sequence[Chart]
    """Throughput, failed attempts, how long handlers took, and how old messages were."""
    windows: Sequence[Row]
    """The last 1, 5 and 15 minutes."""
    minutes: Sequence[Row]
    """Each minute, the last one first."""
    connections: str
    """How many stand, were made, and broke."""
    width: int = WIDTH
    """Of each chart."""
    height: int = HEIGHT
    """Of each chart."""
    ceiling: float = _CEILING
    """Where the upper edge of each is."""
    base: float = _BASE
    """Where nothing is."""


def of(worker: Worker) -> Figures | None:
    """Return what a worker says of its last minutes; None when it says nothing that this version reads."""
    metrics = analytics.of_worker(worker)
    return None if metrics is None else of_metrics(metrics)


def of_metrics(metrics: ConsumerMetrics) -> Figures:
    """Return what all workers of a consumer did in their last minutes."""
    minutes, made = metrics.history, metrics.connections
    names = {"1m": _("1 minute"), "5m": _("5 minutes"), "15m": _("15 minutes")}
    return Figures(
        charts=[_throughput(minutes), _failures(minutes), _durations(minutes), _ages(minutes)],
        windows=[Row(name=names[name], cells=_cells(one)) for name, one in metrics.windows.items()],
        minutes=[Row(name=_before(number), cells=_cells(one)) for number, one in enumerate(reversed(minutes))],
        connections=_("active %(active)s, made %(total)s, failed %(errors)s")
        % {"active": made.active, "total": made.total, "errors": made.errors},
    )


def _throughput(minutes: Sequence[ConsumerWindow]) -> Chart:
    sentence = _("Messages handled per second: %(least)s to %(most)s, %(last)s in the last minute.")
    values = [one.handled_per_second for one in minutes]
    return _chart("throughput", _("Handled per second"), sentence, values)


def _failures(minutes: Sequence[ConsumerWindow]) -> Chart:
    sentence = _("Failed attempts in a minute: %(least)s to %(most)s, %(last)s in the last one.")
    values = [float(sum(one.errors.values())) for one in minutes]
    return _chart("failures", _("Failed attempts per minute"), sentence, values)


def _chart(name: str, title: str, sentence: str, values: Sequence[float]) -> Chart:
    top = _round_up(max(values, default=0.0))
    least, most, last = min(values, default=0.0), max(values, default=0.0), values[-1] if values else 0.0
    says = sentence % {"least": rounded(least), "most": rounded(most), "last": rounded(last)}
    return Chart(name=name, title=title, says=says, top=rounded(top) if top else "", bars=_bars(values, top))


def _durations(minutes: Sequence[ConsumerWindow]) -> Chart:
    sentence = _("In each minute 99 of 100 attempts took no longer than %(least)s to %(most)s.")
    found = [one.duration for one in minutes]
    return _percentiles("durations", _("How long an attempt took"), sentence, _("No attempt was made."), found)


def _ages(minutes: Sequence[ConsumerWindow]) -> Chart:
    sentence = _("In each minute 99 of 100 messages were no older than %(least)s to %(most)s when they were settled.")
    found = [one.age for one in minutes]
    return _percentiles("ages", _("From produced to settled"), sentence, _("No message was settled."), found)


def _percentiles(name: str, title: str, sentence: str, nothing: str, values: Sequence[Percentiles]) -> Chart:
    found = {one: [getattr(value, one) for value in values] for one in PERCENTILES}
    slowest = [value for value in found["p99"] if value is not None]
    top = _round_up(max(slowest, default=0.0))
    says = sentence % {"least": duration(min(slowest)), "most": duration(max(slowest))} if slowest else nothing
    return Chart(
        name=name,
        title=title,
        says=says,
        top=duration(top) if top else "",
        lines=[Line(name=one, path=_path(steps, top)) for one, steps in found.items()],
    )


def _left(values: Sequence[Any]) -> float:
    """Return where the first value begins: the last one ends on the right."""
    return WIDTH - len(values) * _STEP


def _bars(values: Sequence[float], top: float) -> list[Bar]:
    left, last = _left(values), len(values) - 1
    return [
        Bar(
            x=f"{left + number * _STEP + _GAP / 2:.1f}",
            y=f"{_y(value, top):.1f}",
            width=f"{_STEP - _GAP:.1f}",
            height=f"{_BASE - _y(value, top):.1f}",
            title=f"{_before(last - number)}: {rounded(value)}",
        )
        for number, value in enumerate(values)
        if value
    ]


def _path(values: Sequence[float | None], top: float) -> str:
    left, before, steps = _left(values), None, []
    for number, value in enumerate(values):
        if value is not None:
            x = left + number * _STEP
            steps.append(f"{'M' if before is None else 'L'}{x:.1f} {_y(value, top):.1f}H{x + _STEP:.1f}")
        before = value
    return "".join(steps)


def _y(value: float, top: float) -> float:
    # What is there is seen, however little it is.
    return min(_BASE - (_BASE - _CEILING) * value / top, _BASE - 1) if top else _BASE


def _round_up(value: float) -> float:
    """Return 1, 2 or 5 times a power of ten, not less than a value; 0 for 0."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in (1, 2, 5) if step * power >= value), 10 * power)


def _before(minutes: int) -> str:
    if not minutes:
        return _("the last minute")
    return ngettext("%d minute before", "%d minutes before", minutes) % minutes


def _cells(one: ConsumerWindow) -> list[str]:
    return [
        rounded(one.handled_per_second),
        *(_shown(one.duration, name) for name in PERCENTILES),
        _shown(one.age, "p95"),
        rounded(one.dead_lettered),
        filesizeformat(one.bytes_per_second),
        _failed(one.errors),
    ]


def _failed(errors: Mapping[str, int]) -> str:
    total = rounded(sum(errors.values()))
    # Names of categories may come from the project.
    told = ", ".join(f"{showing.line(name, 40)} {rounded(count)}" for name, count in sorted(errors.items()))
    return f"{total} ({told})" if told else total


def _shown(percentiles: Percentiles, name: str) -> str:
    value = getattr(percentiles, name)
    return "–" if value is None else duration(value)


def rounded(value: float) -> str:
    """Return a number for reading: a whole one as it is, others with at least two digits that say something."""
    if value == round(value) or value >= 100:
        return number_format(round(value), force_grouping=True)
    shown = float(f"{value:.2g}")
    return number_format(shown, max(0, 1 - math.floor(math.log10(shown))))


def duration(value: float) -> str:
    """Return seconds for reading, in the unit that fits."""
    if value < 1:
        return _("%s ms") % rounded(value * 1000)
    return _("%s s") % rounded(value) if value < 120 else _("%s min") % rounded(value / 60)
