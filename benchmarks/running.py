"""Servers, topics, and cases that run in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from confluent_kafka.admin import AdminClient, NewTopic

from . import environments
from .comparisons import LOADS, Load

LIMIT = 1800.0
"""Seconds after which a case has failed."""
USUAL = Load()


class Broker(Protocol):
    """What the cases talk to."""

    address: str
    """Host and port."""

    def admin(self) -> AdminClient:
        """Return a client that makes topics."""


class Bench:
    """The servers, and the topics that are filled."""

    def __init__(self, broker: Broker, dsn: Callable[[], str], messages: int) -> None:
        self.broker = broker
        self.dsn = dsn
        self.messages = messages
        self.versions: dict[str, str] = {}
        self._filled: dict[tuple[int, ...], str] = {}

    def run(self, case: str) -> dict[str, Any]:
        """Run a case once; return its figures, or {"missing": why}, or {"failed": why}."""
        load = LOADS.get(case, USUAL)
        messages = load.messages or max(1, int(self.messages / load.of))
        try:
            command = self._command(case)
        except environments.Missing as reason:
            return {"missing": str(reason)}
        topic = self._full(load, messages) if load.filled else self._topic(load.partitions)
        row = self._measure(command, topic, messages, load)
        self.versions |= row.pop("versions", {})
        return row

    def _command(self, case: str) -> list[str]:
        peer = environments.peer_of(case)
        if peer is None:
            return [sys.executable, "-m", "benchmarks.cases", case]
        program = Path(__file__).parent / "peers" / f"with_{peer}.py"
        return [str(environments.interpreter(peer)), str(program), case.partition("_")[2]]

    def _full(self, load: Load, messages: int) -> str:
        of = (messages, load.partitions, load.keys, load.size)
        if of not in self._filled:
            topic = self._topic(load.partitions)
            how = "each_partition" if messages == load.partitions else "fill"
            row = self._measure(self._command(how), topic, messages, load)
            if "failed" in row:
                raise RuntimeError(f"A topic of {messages:,} messages could not be filled: {row['failed']}")
            self._filled[of] = topic
        return self._filled[of]

    def _topic(self, partitions: int) -> str:
        name = f"bench-{uuid.uuid4().hex[:8]}"
        admin = (
            self.broker.admin()
        )  # kept until the answer is here: a client that is collected takes its requests along
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result()
        return name

    def _measure(self, command: list[str], topic: str, messages: int, load: Load) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="lynx-kafka-bench-") as directory:
            environment = {
                # A path of ours would have the peers' programs find our package instead of theirs.
                **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                "BENCH_BROKERS": self.broker.address,
                "BENCH_TOPIC": topic,
                "BENCH_GROUP": f"bench-{uuid.uuid4().hex[:8]}",
                "BENCH_MESSAGES": str(messages),
                "BENCH_PARTITIONS": str(load.partitions),
                "BENCH_KEYS": str(load.keys or messages),
                "BENCH_SIZE": str(load.size),
                "BENCH_HANDLER": load.handler,
                "BENCH_CONSUMER": json.dumps(dict(load.consumer)),
                "BENCH_DIRECTORY": directory,
                "BENCH_DATABASE": self.dsn() if load.database else "",
                "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
            }
            return finish(command, environment, LIMIT)


def finish(command: Sequence[str], environment: dict[str, str], limit: float) -> dict[str, Any]:
    """Run a program to its end and return the JSON of its last line; whatever happens, nothing it started stays."""
    with tempfile.TemporaryFile() as errors:
        program = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        try:
            output, _ = program.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return {"failed": f"It still ran after {limit:g} s."}
        finally:
            try:
                os.killpg(program.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            program.wait()
            if program.stdout is not None:
                program.stdout.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if program.returncode:
        print(said, file=sys.stderr)
        last = (said.strip().splitlines() or ["It said nothing."])[-1]
        return {"failed": f"Code {program.returncode}. {last[:300]}"}
    row: dict[str, Any] = json.loads(output.splitlines()[-1])
    return row


def run_rounds(
    run: Callable[[str], dict[str, Any]], cases: Sequence[str], rounds: int, say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """Run every case in turn, round by round; what is missing or has failed is not run again."""
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    took: dict[str, float] = {}
    for number in range(1, rounds + 1):
        for place, case in enumerate(cases):
            if results[case] and not results[case][-1].keys().isdisjoint({"missing", "failed"}):
                continue
            started = time.monotonic()
            results[case].append(row := run(case))
            took[case] = time.monotonic() - started
            left = _left(cases, place, rounds - number, took)
            say(f"round {number} of {rounds}  {case:24} {_shown(row):>16}  {left}")
    return dict(results)


def _left(cases: Sequence[str], place: int, rounds: int, took: dict[str, float]) -> str:
    usual = sum(took.values()) / len(took)
    this_round = sum(took.get(case, usual) for case in cases[place + 1 :])
    seconds = this_round + rounds * sum(took.get(case, usual) for case in cases)
    return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


def _shown(row: dict[str, Any]) -> str:
    if found := next((name for name in ("missing", "failed") if name in row), ""):
        return found
    if found := next((name for name in ("p99_ms", "seconds") if name in row), ""):
        return f"{found} {row[found]:.3g}"
    return f"{row['per_second']:,.0f}/s"
