"""Start a broker, run every case in turn for several rounds, and show medians and ratios: `make bench`."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import psycopg
from rich.console import Console

from tests.servers import Kafka, PostgreSQL

from . import chart, report
from .comparisons import COMPARISONS, LOADS, UnknownWord, cases_of, chosen
from .machine import machine, versions
from .outcomes import weigh
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
    options = parser.parse_args(arguments)
    try:
        comparisons = chosen(options.words)
    except UnknownWord as error:
        parser.error(str(error))
    if options.write and len(comparisons) < len(COMPARISONS):
        parser.error("--write needs a run of everything: the docs show one run.")
    # An end by signal leaves no server behind: the stack below is unwound.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    # Piped into a file the table would be cut at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    cases = cases_of(comparisons)
    with ExitStack() as stack:
        broker = stack.enter_context(Kafka())
        named = versions()
        dsn = ""
        if any(case in LOADS and LOADS[case].database for case in cases):
            database = stack.enter_context(PostgreSQL(durable=True))
            dsn = database.dsn
            with psycopg.connect(dsn) as connection:
                named["PostgreSQL"] = str(connection.info.server_version // 10000)
        bench = Bench(broker, lambda: dsn, options.messages)
        results = run_rounds(bench.run, cases, options.rounds, lambda line: print(line, flush=True))
    outcomes = [weigh(one, results) for one in comparisons]
    title = f"{options.messages:,} messages of 200 bytes, 4 partitions, medians of {options.rounds} rounds"
    console.print(report.table(outcomes, title))
    for reason in report.reasons(outcomes):
        console.print(reason, markup=False)
    named |= bench.versions
    run = {"messages": options.messages, "rounds": options.rounds, "words": options.words}
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_text(report.as_json(outcomes, results, machine=machine(), versions=named, run=run), "utf-8")
    if options.write:
        CHART.write_text(chart.draw(results), "utf-8")
        text = report.as_markdown(outcomes, machine=machine(), versions=named, title=title, chart=CHART.name)
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
        sys.exit("Stopped; everything that was started has ended.")
