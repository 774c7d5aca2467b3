"""How outcomes are shown: a table for the terminal, JSON for programs, and the part of the docs that a run writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from .outcomes import Outcome, Results, spread

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
HEADINGS = ("compared", "messages", "rounds", "ours", "held against", "ratio", "promised", "")
_LEFT = (0, 6, 7)


def cells(outcome: Outcome) -> tuple[str, ...]:
    """Return a row of the table."""
    one = outcome.comparison
    ratio = "" if outcome.ratio is None else f"{outcome.ratio:.2f}"
    return (
        one.name,
        " and ".join(f"{number:,}" for number in outcome.messages),
        str(outcome.rounds or ""),
        _figure(outcome.ours, one.unit, outcome.our_spread),
        _figure(outcome.against, one.unit, outcome.their_spread),
        ratio,
        promise(outcome),
        outcome.mark,
    )


def promise(outcome: Outcome) -> str:
    """Say what is promised."""
    one = outcome.comparison
    if one.promised is None:
        return ""
    match one.kind:
        case "ratio":
            return f"ratio at least {one.promised:g}"
        case "at most above":
            return f"at most {one.promised:g}{one.unit} more"
        case kind:
            return f"{kind} {one.promised:,g}{one.unit}"


def _figure(value: float | None, unit: str, spread: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    if spread is None or spread[0] == spread[1]:
        return f"{_number(value)}{unit}"
    return f"{_number(value)}{unit} ({_number(spread[0])}–{_number(spread[1])})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(outcomes: Sequence[Outcome], title: str) -> Table:
    """Return the table for a terminal."""
    shown = Table(title=title, title_justify="left")
    for number, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="left" if number in _LEFT else "right")
    for outcome in outcomes:
        shown.add_row(*cells(outcome))
    return shown


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """Say why figures are missing or cases failed, each reason once."""
    found = [f"missing: {one.missing}" for one in outcomes if one.missing]
    return list(dict.fromkeys(found + [f"failed: {one.failed}" for one in outcomes if one.failed]))


def as_json(
    outcomes: Sequence[Outcome], results: Results, *, machine: Mapping[str, Any], versions: Mapping[str, str],
    run: Mapping[str, Any], complete: bool = True,
) -> str:  # fmt: skip
    """Return a run as JSON: figures with their spread, outcomes, versions, the machine, and what each round gave."""
    figures = {
        case: {name: spread(rows, name) for name in sorted({name for row in rows for name in _numbers(row)})}
        for case, rows in results.items()
    }
    compared = [
        {
            "name": one.comparison.name,
            "ours": one.comparison.ours,
            "against": one.comparison.against,
            "figure": one.comparison.figure,
            "kind": one.comparison.kind,
            "promised": one.comparison.promised,
            "rounds": one.rounds,
            "messages": one.messages,
            "our_figure": one.ours,
            "their_figure": one.against,
            "ratio": one.ratio,
            "kept": one.kept,
            "missing": one.missing,
            "failed": one.failed,
        }
        for one in outcomes
    ]
    whole = {
        "complete": complete, "run": run, "machine": machine, "versions": versions, "comparisons": compared,
        "cases": figures, "rows": results,
    }  # fmt: skip
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _numbers(row: Mapping[str, Any]) -> list[str]:
    return [name for name, value in row.items() if isinstance(value, int | float)]


def as_markdown(
    outcomes: Sequence[Outcome], *, machine: Mapping[str, Any], versions: Mapping[str, str], title: str, chart: str
) -> str:
    """Return what stands in the docs between the markers."""
    lines = [f"{title}.", "", "Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + ".", ""]
    lines += ["Versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()) + ".", ""]
    lines += [f"![Messages a second, ours and others']({chart})", ""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|---|--:|--:|--:|--:|--:|---|---|"]
    lines += ["| " + " | ".join(cells(one)) + " |" for one in outcomes]
    lines += ["", *(f"* {reason}" for reason in reasons(outcomes))]
    return "\n".join(lines).strip() + "\n"


def write_between_markers(page: Path, text: str) -> None:
    """Put the text between the markers of a page; raise ValueError when it has none."""
    whole = page.read_text("utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page.name} has no markers {BEGIN} and {END} to write between.")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", "utf-8")
