"""What a run says: the seed first, then everything that it does, then its verdict."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .books import Books
from .plan import Fault, Kind, Plan
from .records import Course
from .verdict import Finding

MOST_SHOWN = 8
"""How many of the things that broke a promise are printed; all of them are kept."""


class Report:
    """Prints with the seconds since the beginning."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()

    def seed(self, plan: Plan) -> None:
        """Print what the run follows from."""
        self.console.print(f"[bold]seed {plan.seed}[/bold], {plan.seconds:.0f} s: {plan.scenario}")

    def say(self, sentence: str) -> None:
        """Print what is done."""
        self.console.print(f"[dim]{time.monotonic() - self._began:6.1f} s[/dim]  {escape(sentence)}", highlight=False)

    def trouble(self, sentence: str) -> None:
        """Print what should not have happened."""
        self.console.print(
            f"[dim]{time.monotonic() - self._began:6.1f} s[/dim]  [red]{escape(sentence)}[/red]", highlight=False
        )

    def faults(self, plan: Plan, done: Sequence[Fault]) -> None:
        """Print what was done, kind by kind."""
        counts = Counter(fault.kind for fault in done)
        planned = Counter(fault.kind for fault in plan.faults)
        table = Table("fault", "struck", "planned", title="What was done")
        for kind in Kind:
            table.add_row(str(kind), str(counts[kind]), str(planned[kind]))
        self.console.print(table)

    def books(self, found: Mapping[Course, Books]) -> None:
        """Print how much there is to judge."""
        table = Table("books", *(course.name for course in found), title="What came of it")
        for name, count in _COUNTS.items():
            table.add_row(name, *(count(books) for books in found.values()))
        self.console.print(table)

    def verdict(self, plan: Plan, findings: Sequence[Finding], directory: str) -> None:
        """Print the verdict, and what broke each promise that is broken."""
        table = Table("promise", "looked at", "verdict", title=f"Verdict on seed {plan.seed}")
        for finding in findings:
            answer = "[green]kept[/green]" if finding.kept else f"[bold red]BROKEN {len(finding.broken):,}×[/bold red]"
            table.add_row(finding.promise, f"{finding.looked_at:,}", answer)
        self.console.print(table)
        for finding in findings:
            if finding.kept:
                continue
            self.console.print(f"[bold red]{escape(finding.promise)}[/bold red]")
            for sentence in finding.broken[:MOST_SHOWN]:
                self.console.print(f"  {escape(sentence)}", highlight=False, soft_wrap=True)
            if len(finding.broken) > MOST_SHOWN:
                self.console.print(f"  and {len(finding.broken) - MOST_SHOWN:,} more")
        if directory:
            self.console.print(
                f"The books (verdict.json, effects-*.json, …), the log of every process and of every server are in "
                f"{directory}. The same plan again: make chaos SEED={plan.seed} MINUTES={plan.seconds / 60:g} "
                f"GUARANTEE={plan.scenario.guarantee}",
                highlight=False,
                soft_wrap=True,
            )


def _sorts(books: Books) -> str:
    counts = Counter(str(one.sort) for one in books.acknowledged)
    return ", ".join(f"{count:,} {sort}" for sort, count in sorted(counts.items()))


def _handled(books: Books) -> int:
    return len({effect.place for effect in books.effects})


_COUNTS: dict[str, Callable[[Books], str]] = {
    "records sent": lambda books: f"{len(books.sent):,}",
    "acknowledged": lambda books: f"{len(books.acknowledged):,}",
    "of them": _sorts,
    "handled": lambda books: f"{_handled(books):,}",
    "handled again": lambda books: f"{len(books.effects) - _handled(books):,}",
    "stored twice by the sender's client": lambda books: f"{books.stored_twice:,}",
    "dead letters": lambda books: f"{sum(not letter.parked for letter in books.letters):,}",
    "parked": lambda books: f"{sum(letter.parked for letter in books.letters):,}",
    "in retry topics": lambda books: ", ".join(f"{len(one.records):,}" for one in books.retried.values()) or "0",
    "records that handlers produced": lambda books: f"{len(books.echoes):,}",
    "processes that ended": lambda books: f"{len(books.ends):,}",
    "looks at what is committed": lambda books: f"{len(books.samples):,}",
}
