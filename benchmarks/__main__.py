"""Start a broker, run every case in turn for several rounds, and show medians and ratios: `make bench`."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from rich.console import Console

from tests.servers import Kafka, PostgreSQL
from tests.servers.registry import Registry

from . import chart, report
from .comparisons import COMPARISONS, LOADS, UnknownWord, cases_of, chosen
from .demanding import demanding
from .keeping import CannotResume, keep, resumed, sources, usual_seconds
from .machine import machine, versions
from .outcomes import Results, weigh
from .running import Bench, run_rounds

HOME = Path(__file__).resolve().parent
LATEST = HOME / "results" / "latest.json"
PAGE = HOME.parent / "docs" / "benchmarks.md"
CHART = HOME.parent / "docs" / "benchmarks.svg"


def main(arguments: list[str] | None = None) -> int:
    """Measure and show; return 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("words", nargs="*", help="words of the comparisons to run (default: all)")
    parser.add_argument("--messages", type=_positive, default=1_000_000)
    parser.add_argument("--rounds", type=_positive, default=3)
    parser.add_argument("--write", action="store_true", help="write table and chart into docs/benchmarks.md")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    options = parser.parse_args(arguments)
    try:
        comparisons = chosen(options.words)
    except UnknownWord as error:
        parser.error(str(error))
    if options.write and len(comparisons) < len(COMPARISONS):
        parser.error("--write needs a run of everything: the docs show one run.")
    run = {"messages": options.messages, "rounds": options.rounds, "words": options.words, "sources": sources()}
    here = machine()
    before: Results = {}
    named = versions()
    try:
        if options.resume:
            before, theirs = resumed(LATEST, run, here)
            named |= theirs | named
    except CannotResume as error:
        parser.error(str(error))
    # An end by signal leaves no server behind: the stack below is unwound.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    # Piped into a file the table would be cut at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=190)
    cases = cases_of(comparisons)
    with ExitStack() as stack:
        broker = stack.enter_context(Kafka())
        dsn = ""
        if any(case in LOADS and LOADS[case].database for case in cases):
            database = stack.enter_context(PostgreSQL(durable=True))
            dsn = database.dsn
            with psycopg.connect(dsn) as connection:
                named["PostgreSQL"] = str(connection.info.server_version // 10000)
        secured = None
        if any(case in LOADS and LOADS[case].secured for case in cases):
            secured = stack.enter_context(demanding(Path(stack.enter_context(TemporaryDirectory()))))
        registry = ""
        if any(case in LOADS and LOADS[case].registry for case in cases):
            registry = stack.enter_context(Registry()).url
        bench = Bench(broker, lambda: dsn, options.messages, secured=secured, registry=registry)

        def keep_all(rows: Results, *, complete: bool = False) -> None:
            weighed = [weigh(one, rows) for one in comparisons]
            everything = named | bench.versions
            keep(LATEST, report.as_json(weighed, rows, machine=here, versions=everything, run=run, complete=complete))

        bench.warm_up()
        results = run_rounds(
            bench.run, cases, options.rounds, lambda line: print(line, flush=True),
            before=before, usual=usual_seconds(LATEST), keep=keep_all,
        )  # fmt: skip
    keep_all(results, complete=True)
    outcomes = [weigh(one, results) for one in comparisons]
    title = (
        f"Up to {options.messages:,} messages of 200 bytes, 4 partitions; medians of {options.rounds} rounds "
        "(least–greatest)"
    )
    console.print(report.table(outcomes, title))
    for reason in report.reasons(outcomes):
        console.print(reason, markup=False)
    if options.write:
        CHART.write_text(chart.draw(results), "utf-8")
        text = report.as_markdown(
            outcomes, machine=here, versions=named | bench.versions, title=title, chart=CHART.name
        )
        report.write_between_markers(PAGE, text)
    return 1 if any(one.kept is False for one in outcomes) else 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped; everything that was started has ended. What was measured is kept: --resume goes on with it.")
