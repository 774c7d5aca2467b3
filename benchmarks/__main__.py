"""Start a broker, run every case in turn for several rounds, and print medians and ratios."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import uuid
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass

from confluent_kafka.admin import NewTopic

from tests.servers import Kafka, PostgreSQL


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of our cases, what it is held against, and what the project promises."""

    name: str
    """What is compared, for people."""
    ours: str
    """Our case."""
    against: str
    """The case that it is held against."""
    at_least: float
    """The ratio that is promised."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure of one of our cases by itself, and what the project promises."""

    name: str
    """What is measured, for people."""
    ours: str
    """Our case."""
    figure: str
    """Which figure of it; the worst of all rounds counts when it is a ceiling, else the median."""
    promised: float
    ceiling: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What a case gets to do when it is not the usual."""

    handler: str
    """Dotted path of the handler; PostgreSQL is started for it."""
    of: int = 1
    """It takes one of so many of the usual number of messages."""
    messages: int = 0
    """How many it takes whatever the usual number is; 0: what `of` says."""
    partitions: int = 4


COMPARISONS = (
    Comparison("produce one by one", "our_produce", "raw_produce", 0.6),
    Comparison("produce in batches", "our_produce_batch", "raw_produce_batch", 0.9),
    Comparison("consume, against the client's best", "our_consume", "raw_consume", 0.4),
    Comparison("consume, against the client's defaults", "our_consume", "raw_consume_plain", 1.0),
    Comparison("failing, 1 % against none", "our_insert_failing", "our_insert", 0.8),
)
BOUNDS = (
    Bound("consume, peak of the worker's memory, MiB", "our_consume", "peak_mib", 150, True),
    Bound("failing, all of them, letters a second", "our_letters", "per_second", 5000, False),
    Bound("failing, 1,000 lanes that wait, cores", "our_paused_lanes", "cores", 0.01, True),
)
LOADS = {
    "our_insert": Load("benchmarks.failing.insert", of=20),
    "our_insert_failing": Load("benchmarks.failing.insert_or_fail", of=20),
    "our_letters": Load("benchmarks.failing.fail", of=10),
    "our_paused_lanes": Load("benchmarks.failing.put_off", messages=1000, partitions=1000),
}

Results = dict[str, list[dict[str, float]]]


class Bench:
    """The servers, and the topics that are filled."""

    def __init__(self, kafka: Kafka, database: PostgreSQL, messages: int) -> None:
        self.kafka = kafka
        self.database = database
        self.messages = messages
        self._filled: dict[tuple[int, int], str] = {}

    def run(self, case: str) -> dict[str, float]:
        """Run a case in a process of its own and return what it measured."""
        load = LOADS.get(case)
        messages = self.messages if load is None else load.messages or self.messages // load.of
        partitions = 4 if load is None else load.partitions
        fills_it = case.endswith(("produce", "batch", "letters"))
        topic = self._topic(partitions) if fills_it else self._full(messages, partitions)
        return self._measure(case, topic, messages, load)

    def _full(self, messages: int, partitions: int) -> str:
        if (messages, partitions) not in self._filled:
            self._filled[messages, partitions] = topic = self._topic(partitions)
            self._measure("each_partition" if messages == partitions else "raw_produce", topic, messages, None)
        return self._filled[messages, partitions]

    def _topic(self, partitions: int) -> str:
        name = f"bench-{uuid.uuid4().hex[:8]}"
        admin = self.kafka.admin()  # kept until the answer is here: a client that is collected takes its requests along
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result()
        return name

    def _measure(self, case: str, topic: str, messages: int, load: Load | None) -> dict[str, float]:
        environment = {
            **os.environ,
            "BENCH_BROKERS": self.kafka.address,
            "BENCH_TOPIC": topic,
            "BENCH_GROUP": f"bench-{uuid.uuid4().hex[:8]}",
            "BENCH_MESSAGES": str(messages),
            "BENCH_PARTITIONS": str(load.partitions if load else 4),
        }
        if load is not None:
            environment |= {"BENCH_HANDLER": load.handler, "BENCH_DATABASE": self.database.dsn}
        command = [sys.executable, "-m", "benchmarks.cases", case]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=600)
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured


def main() -> int:
    """Measure and print; return 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="words of the comparisons to run (default: all)")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    words = options.names or [""]
    comparisons = [one for one in COMPARISONS if any(word in one.name for word in words)]
    bounds = [one for one in BOUNDS if any(word in one.name for word in words)]
    cases = [case for one in comparisons for case in (one.against, one.ours)] + [one.ours for one in bounds]
    results: Results = defaultdict(list)
    with ExitStack() as stack:
        kafka, database = stack.enter_context(Kafka()), stack.enter_context(PostgreSQL())
        kafka.start()
        if LOADS.keys() & set(cases):
            database.start()
        bench = Bench(kafka, database, options.messages)
        for number in range(options.rounds):
            for case in dict.fromkeys(cases):
                results[case].append(measured := bench.run(case))
                print(f"round {number + 1} {case:20} {measured['per_second']:12,.0f}/s", flush=True)
    print(f"\n{options.messages:,} messages of 200 bytes, 4 partitions, medians of {options.rounds} rounds\n")
    kept = [_compare(one, results) for one in comparisons] + [_bound(one, results) for one in bounds]
    return 0 if all(kept) else 1


def _compare(one: Comparison, results: Results) -> bool:
    against, ours = (statistics.median(row["per_second"] for row in results[case]) for case in (one.against, one.ours))
    kept = ours / against >= one.at_least
    figures = f"{against:12,.0f}/s{ours:12,.0f}/s{ours / against:8.2f}   at least {one.at_least:.2f}"
    print(f"{one.name:42}{figures} {_mark(kept)}")
    return kept


def _bound(one: Bound, results: Results) -> bool:
    figures = [row[one.figure] for row in results[one.ours]]
    figure = max(figures) if one.ceiling else statistics.median(figures)
    kept = figure <= one.promised if one.ceiling else figure >= one.promised
    print(f"{one.name:42}{figure:36,.5g}   {'at most' if one.ceiling else 'at least'} {one.promised:,g} {_mark(kept)}")
    return kept


def _mark(kept: bool) -> str:
    return "✓" if kept else "✗"


if __name__ == "__main__":
    sys.exit(main())
