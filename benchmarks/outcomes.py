"""What came out of the runs: medians, ratios, and whether promises were kept."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .comparisons import Comparison

Row = Mapping[str, Any]
"""What one run of a case printed: figures; or {"missing": why}; or {"failed": why}."""
Results = Mapping[str, Sequence[Row]]
"""Case → its rows, one a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A comparison with its figures."""

    comparison: Comparison
    """What was compared."""
    ours: float | None = None
    """Our median, or our worst where the bound is a ceiling."""
    against: float | None = None
    """The other one's median."""
    ratio: float | None = None
    """Ours divided by the other's."""
    our_spread: tuple[float, float] | None = None
    """Our least and our greatest."""
    their_spread: tuple[float, float] | None = None
    """The other one's."""
    rounds: int = 0
    """How many times each was measured."""
    messages: tuple[int, ...] = ()
    """On how many messages: ours, and the other one where that was given others."""
    kept: bool | None = None
    """Whether the promise was kept; None: nothing was promised, or there is no figure."""
    missing: str = ""
    """Why there is no figure."""
    failed: str = ""
    """Why the case failed; a failed case breaks its promise."""

    @property
    def mark(self) -> str:
        """A tick, a cross, a dash for nothing promised, or that it is missing."""
        if self.missing:
            return "missing"
        return {True: "✓", False: "✗", None: "–"}[self.kept]


def weigh(comparison: Comparison, results: Results) -> Outcome:
    """Hold a comparison's figures against each other and against what is promised."""
    for case in filter(None, (comparison.ours, comparison.against)):
        rows = results.get(case, ())
        if failed := next((row["failed"] for row in rows if "failed" in row), None):
            return Outcome(comparison=comparison, kept=False, failed=f"{case}: {failed}")
        if missing := next((row["missing"] for row in rows if "missing" in row), None if rows else "not run"):
            return Outcome(comparison=comparison, missing=f"{case}: {missing}")
    figure = comparison.figure
    ours = [float(row[figure]) for row in results[comparison.ours]]
    # The worst counts where a single excess is one too many.
    mine = max(ours) if comparison.kind == "at most" else statistics.median(ours)
    own = Outcome(
        comparison=comparison, ours=mine, our_spread=(min(ours), max(ours)), rounds=len(ours),
        messages=_messages(results, comparison.ours),
    )  # fmt: skip
    if not comparison.against:
        return replace(own, kept=_kept(comparison, mine, 0.0))
    other = [float(row[figure]) for row in results[comparison.against]]
    theirs = statistics.median(other)
    return replace(
        own, against=theirs, their_spread=(min(other), max(other)), ratio=mine / theirs if theirs else None,
        rounds=min(len(ours), len(other)), messages=_messages(results, comparison.ours, comparison.against),
        kept=_kept(comparison, mine, theirs),
    )  # fmt: skip


def _messages(results: Results, *cases: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(row["messages"] for case in cases for row in results[case] if "messages" in row))


def _kept(comparison: Comparison, ours: float, theirs: float) -> bool | None:
    promised = comparison.promised
    if promised is None:
        return None
    match comparison.kind:
        case "ratio":
            return ours >= promised * theirs
        case "at least":
            return ours >= promised
        case "at most":
            return ours <= promised
        case "at most above":
            return ours <= theirs + promised


def spread(rows: Sequence[Row], figure: str) -> dict[str, float]:
    """Return the least, the middle and the greatest of a figure; empty where there is none."""
    found = [float(row[figure]) for row in rows if figure in row]
    return {"min": min(found), "median": statistics.median(found), "max": max(found)} if found else {}
