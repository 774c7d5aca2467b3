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
from dataclasses import dataclass

from confluent_kafka.admin import NewTopic

from tests.servers import Kafka


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of our cases, the raw one it is held against, and what the project promises."""

    name: str
    """What is compared, for people."""
    ours: str
    """Our case."""
    raw: str
    """The raw case."""
    at_least: float
    """The ratio that is promised."""


COMPARISONS = (
    Comparison("produce one by one", "our_produce", "raw_produce", 0.6),
    Comparison("produce in batches", "our_produce_batch", "raw_produce_batch", 0.9),
    Comparison("consume, against the client's best", "our_consume", "raw_consume", 0.4),
    Comparison("consume, against the client's defaults", "our_consume", "raw_consume_plain", 1.0),
)
MOST_MEMORY_MIB = 150.0

Results = dict[str, list[dict[str, float]]]


def main() -> int:
    """Measure and print; return 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="words of the comparisons to run (default: all)")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    chosen = [one for one in COMPARISONS if not options.names or any(word in one.name for word in options.names)]
    with Kafka() as kafka:
        kafka.start()
        results = _measure(kafka, chosen, options.messages, options.rounds)
    return _report(chosen, results, options)


def _measure(kafka: Kafka, chosen: list[Comparison], messages: int, rounds: int) -> Results:
    filled = _topic(kafka)
    _run("raw_produce", kafka, filled, messages)
    results: Results = defaultdict(list)
    cases = list(dict.fromkeys(case for one in chosen for case in (one.raw, one.ours)))
    for number in range(rounds):
        for case in cases:
            topic = filled if "consume" in case else _topic(kafka)
            results[case].append(_run(case, kafka, topic, messages))
            print(f"round {number + 1} {case:20} {results[case][-1]['per_second']:12,.0f}/s", flush=True)
    return results


def _topic(kafka: Kafka) -> str:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    admin = kafka.admin()  # kept until the answer is here: a client that is collected takes its requests along
    admin.create_topics([NewTopic(name, 4, 1)])[name].result()
    return name


def _run(case: str, kafka: Kafka, topic: str, messages: int) -> dict[str, float]:
    environment = {
        **os.environ,
        "BENCH_BROKERS": kafka.address,
        "BENCH_TOPIC": topic,
        "BENCH_GROUP": f"bench-{uuid.uuid4().hex[:8]}",
        "BENCH_MESSAGES": str(messages),
    }
    command = [sys.executable, "-m", "benchmarks.cases", case]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=600)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _report(chosen: list[Comparison], results: Results, options: argparse.Namespace) -> int:
    print(f"\n{options.messages:,} messages of 200 bytes, 4 partitions, medians of {options.rounds} rounds\n")
    print(f"{'':42}{'raw/s':>12}{'ours/s':>12}{'ratio':>8}{'promised':>10}")
    kept = True
    for one in chosen:
        raw, ours = (statistics.median(row["per_second"] for row in results[case]) for case in (one.raw, one.ours))
        ratio = ours / raw
        kept &= ratio >= one.at_least
        print(f"{one.name:42}{raw:12,.0f}{ours:12,.0f}{ratio:8.2f}{one.at_least:>8.2f} {_mark(ratio >= one.at_least)}")
    if "our_consume" in results:
        peak = max(row["peak_mib"] for row in results["our_consume"])
        kept &= peak <= MOST_MEMORY_MIB
        name, mark = "worker memory, MiB, all messages waiting", _mark(peak <= MOST_MEMORY_MIB)
        print(f"{name:42}{'':12}{peak:12,.0f}{'':8}{MOST_MEMORY_MIB:>8.0f} {mark}")
    return 0 if kept else 1


def _mark(kept: bool) -> str:
    return "✓" if kept else "✗"


if __name__ == "__main__":
    sys.exit(main())
