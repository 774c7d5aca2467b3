"""A bar chart as SVG, readable on light and dark pages: medians, and a line from the least to the greatest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .outcomes import Results, spread

WIDTH, LABEL, BAR, GAP, HEAD, EDGE = 760, 250, 18, 8, 34, 10
# With a ground of its own: a page may be dark where the system that shows it is light.
STYLE = """
svg{background:#fff}text{font:13px system-ui,sans-serif;fill:#1f2328}.head{font-weight:600;font-size:14px}
.other{fill:#8c959f}.ours{fill:#0969da}line{stroke:#1f2328;stroke-width:2}
@media (prefers-color-scheme:dark){
svg{background:#0d1117}text{fill:#e6edf3}.other{fill:#6e7681}.ours{fill:#4493f8}line{stroke:#e6edf3}
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Bars that are compared with each other."""

    title: str
    """What they count."""
    bars: tuple[tuple[str, str], ...]
    """(label, case) each."""


GROUPS = (
    Group(
        title="Produced and confirmed, a second",
        bars=(
            ("raw client, one by one", "raw_produce"),
            ("ours, one by one", "our_produce"),
            ("ours, batch", "our_produce_batch"),
            ("aiokafka", "aiokafka_produce"),
            ("RegioHelden django-kafka", "regiohelden_produce"),
            ("FastStream", "faststream_produce"),
        ),
    ),
    Group(
        title="Consumed by a handler that does nothing, a second",
        bars=(
            ("raw client, best properties", "raw_consume"),
            ("raw client, its defaults", "raw_consume_plain"),
            ("ours", "our_consume"),
            ("ours, batch handler", "our_consume_batch"),
            ("ours, order by key", "our_consume_many_keys"),
            ("aiokafka", "aiokafka_consume"),
            ("RegioHelden django-kafka", "regiohelden_consume"),
            ("FastStream", "faststream_consume"),
        ),
    ),
    Group(
        title="One row a message into PostgreSQL, a second",
        bars=(
            ("plain loop, atomic() each", "raw_insert"),
            ("ours, transaction a message", "our_insert"),
            ("ours, transaction a batch", "our_insert_in_batches"),
            ("plain bulk_create loop", "raw_insert_bulk"),
            ("ours, bulk handler", "our_insert_bulk"),
        ),
    ),
)


def draw(results: Results, groups: Sequence[Group] = GROUPS) -> str:
    """Return the chart; a bar without a figure is left out, and a group without any."""
    parts: list[str] = []
    top = 0
    for group in groups:
        found = [(label, case, spread(results.get(case, ()), "per_second")) for label, case in group.bars]
        bars = [bar for bar in found if bar[2]]
        if bars:
            parts.append(f'<text class="head" x="{EDGE}" y="{top + 20}">{escape(group.title)}</text>')
            top = _bars(parts, bars, top + HEAD) + GAP
    size = f'viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><style>{STYLE}</style>{"".join(parts)}</svg>\n'


def _bars(parts: list[str], bars: Sequence[tuple[str, str, dict[str, float]]], top: int) -> int:
    most = max(figure["max"] for _label, _case, figure in bars) or 1.0
    room = WIDTH - LABEL - 100
    for label, case, figure in bars:
        kind = "ours" if case.startswith("our_") else "other"
        width, least, greatest = (max(1.0, figure[name] / most * room) for name in ("median", "min", "max"))
        parts.append(f'<text x="{EDGE}" y="{top + 14}">{escape(label)}</text>')
        parts.append(f'<rect class="{kind}" x="{LABEL}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2"/>')
        middle = top + BAR / 2
        parts.append(f'<line x1="{LABEL + least:.1f}" x2="{LABEL + greatest:.1f}" y1="{middle}" y2="{middle}"/>')
        parts.append(f'<text x="{LABEL + greatest + 6:.1f}" y="{top + 14}">{figure["median"]:,.0f}</text>')
        top += BAR + GAP
    return top
