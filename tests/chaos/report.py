"""What a run says: the seed first, then everything that it does, then its verdict."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .books import Books
from .plan import Fault, Kind, Plan
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

    def books(self, books: Books) -> None:
        """Print how much there is to judge."""
        sorts = Counter(str(one.sort) for one in books.acknowledged)
        handled = len({effect.place for effect in books.effects})
        table = Table("books", "count", title="What came of it")
        table.add_row("records sent", f"{len(books.sent):,}")
        table.add_row("acknowledged", f"{len(books.acknowledged):,}")
        table.add_row("of them", ", ".join(f"{count:,} {sort}" for sort, count in sorted(sorts.items())))
        table.add_row("handled", f"{handled:,}")
        table.add_row("handled again", f"{len(books.effects) - handled:,}")
        table.add_row("stored twice by the sender's client", f"{books.stored_twice:,}")
        table.add_row("dead letters", f"{len(books.letters):,}")
        table.add_row("records that handlers produced", f"{len(books.echoes):,}")
        table.add_row("processes that ended", f"{len(books.ends):,}")
        table.add_row("looks at what is committed", f"{len(books.samples):,}")
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
                f"The books (verdict.json, effects.json, …), the log of every process and of every server are in "
                f"{directory}. The same plan again: make chaos SEED={plan.seed} MINUTES={plan.seconds / 60:g}",
                highlight=False,
                soft_wrap=True,
            )
