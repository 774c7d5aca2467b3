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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from confluent_kafka.admin import AdminClient, NewTopic

from . import environments
from .comparisons import LOADS, Load
from .outcomes import Results

LIMIT = 300.0
"""Seconds after which a case has failed, on up to a million messages; on more it may take longer in proportion."""
USUAL = Load()
SECURED = Load(secured=True)
Row = dict[str, Any]
_NO_FIGURES = ("missing", "failed")


class Broker(Protocol):
    """What the cases talk to."""

    address: str
    """Host and port."""

    def admin(self) -> AdminClient:
        """Return a client that makes topics."""


class SecuredBroker(Protocol):
    """What the cases talk to that log in; whoever makes and fills its topics does not."""

    address: str
    """Host and port, for those."""

    def admin(self) -> AdminClient:
        """Return a client that makes topics."""

    def way(self, name: str) -> str:
        """Return host and port of a listener."""

    def login(self) -> dict[str, Any]:
        """Return what is under `security` in KAFKA."""


class NotFilled(Exception):
    """A topic could not be filled; says why."""


class Bench:
    """The servers, and the topics that are filled."""

    def __init__(
        self, broker: Broker, dsn: Callable[[], str], messages: int, *, secured: SecuredBroker | None = None,
        registry: str = "",
    ) -> None:  # fmt: skip
        self.broker = broker
        self.secured = secured
        self.registry = registry
        self.dsn = dsn
        self.messages = messages
        self.versions: dict[str, str] = {}
        self._filled: dict[tuple[int, ...], str] = {}

    def warm_up(self) -> None:
        """Fill the usual topics: a broker that has just started is slow, which whoever came first would pay for."""
        self._full(USUAL, self.messages)
        if self.secured is not None:
            self._full(SECURED, self.messages)

    def run(self, case: str) -> Row:
        """Run a case once; return its figures, or {"missing": why}, or {"failed": why}."""
        load = LOADS.get(case, USUAL)
        messages = load.messages or max(1, int(self.messages / load.of))
        try:
            command = self._command(case)
            topic = self._full(load, messages) if load.filled else self._topic(load)
        except environments.Missing as reason:
            return {"missing": str(reason)}
        except NotFilled as reason:
            return {"failed": str(reason)}
        row = self._measure(command, topic, messages, load, logs_in=load.secured)
        if not load.filled:
            self._remove(topic, load)
        self.versions |= row.pop("versions", {})
        return {"messages": messages, **row}

    def _command(self, case: str) -> list[str]:
        peer = environments.peer_of(case)
        if peer is None:
            return [sys.executable, "-m", "benchmarks.cases", case]
        program = Path(__file__).parent / "peers" / f"with_{peer}.py"
        return [str(environments.interpreter(peer)), str(program), case.partition("_")[2]]

    def _full(self, load: Load, messages: int) -> str:
        of = (messages, load.partitions, load.keys, load.size, load.secured)
        if of not in self._filled:
            topic = self._topic(load)
            how = "each_partition" if messages == load.partitions else "fill"
            row = self._measure(self._command(how), topic, messages, load)
            if "failed" in row:
                raise NotFilled(f"A topic of {messages:,} messages could not be filled: {row['failed']}")
            self._filled[of] = topic
        return self._filled[of]

    def _broker(self, load: Load) -> Broker:
        if not load.secured:
            return self.broker
        if self.secured is None:
            raise environments.Missing("no secured broker was started")
        return self.secured

    def _topic(self, load: Load) -> str:
        name = f"bench-{uuid.uuid4().hex[:8]}"
        # Kept until the answer is here: a client that is collected takes its requests along.
        admin = self._broker(load).admin()
        admin.create_topics([NewTopic(name, load.partitions, 1)])[name].result()
        return name

    def _remove(self, topic: str, load: Load) -> None:
        """Remove what a case has filled, which would fill the disk in the end."""
        admin = self._broker(load).admin()
        admin.delete_topics([topic])[topic].result()

    def _measure(self, command: list[str], topic: str, messages: int, load: Load, *, logs_in: bool = False) -> Row:
        address, login = self._broker(load).address, ""
        if logs_in and self.secured is not None:
            address, login = self.secured.way("SAFE"), json.dumps(self.secured.login())
        with tempfile.TemporaryDirectory(prefix="lynx-kafka-bench-") as directory:
            environment = {
                # A path of ours would have the peers' programs find our package instead of theirs.
                **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                "BENCH_BROKERS": address,
                "BENCH_SECURITY": login,
                "BENCH_TOPIC": topic,
                "BENCH_GROUP": f"bench-{uuid.uuid4().hex[:8]}",
                "BENCH_MESSAGES": str(messages),
                "BENCH_PARTITIONS": str(load.partitions),
                "BENCH_KEYS": str(load.keys or messages),
                "BENCH_SIZE": str(load.size),
                "BENCH_HANDLER": load.handler,
                "BENCH_CONSUMER": json.dumps(dict(load.consumer)),
                "BENCH_DIRECTORY": directory,
                "BENCH_REGISTRY": self.registry if load.registry else "",
                "BENCH_DATABASE": self.dsn() if load.database else "",
                "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
            }
            return finish(command, environment, LIMIT * max(1.0, messages / 1_000_000))


def finish(command: Sequence[str], environment: dict[str, str], limit: float) -> Row:
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
    row: Row = json.loads(output.splitlines()[-1])
    return row


def run_rounds(
    run: Callable[[str], Row],
    cases: Sequence[str],
    rounds: int,
    say: Callable[[str], None],
    *,
    before: Results | None = None,
    usual: Mapping[str, float] | None = None,
    keep: Callable[[dict[str, list[Row]]], None] = lambda _results: None,
) -> dict[str, list[Row]]:
    """Run every case in turn, round by round, and every second round backwards, so that nobody always comes first.

    What is missing or has failed is not run again, nor what an interrupted run did `before`. `usual` guesses how many
    seconds a case takes. `keep` is called with all there is after each case.
    """
    results: dict[str, list[Row]] = defaultdict(list)
    for case, found in (before or {}).items():
        results[case].extend(map(dict, found))
    took = dict(usual or {})
    for number in range(1, rounds + 1):
        order = list(cases) if number % 2 else list(reversed(cases))
        left = [case for case in order if not _has(results[case], number)]
        while left:
            case = left.pop(0)
            started = time.monotonic()
            row = run(case)
            took[case] = row["took_seconds"] = round(time.monotonic() - started, 1)
            results[case].append(row)
            keep(results)
            seconds = _seconds_of(left, took) + (rounds - number) * _seconds_of(_running(cases, results), took)
            say(f"round {number} of {rounds}  {case:30} {_shown(row):>16}  {_time(seconds)} left")
    return dict(results)


def _has(rows: Sequence[Row], number: int) -> bool:
    return len(rows) >= number or bool(rows and not rows[-1].keys().isdisjoint(_NO_FIGURES))


def _running(cases: Sequence[str], results: Mapping[str, Sequence[Row]]) -> list[str]:
    return [case for case in cases if not (results[case] and not results[case][-1].keys().isdisjoint(_NO_FIGURES))]


def _seconds_of(cases: Sequence[str], took: Mapping[str, float]) -> float:
    usual = sum(took.values()) / len(took)
    return sum(took.get(case, usual) for case in cases)


def _time(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"


def _shown(row: Row) -> str:
    if found := next((name for name in _NO_FIGURES if name in row), ""):
        return found
    if found := next((name for name in ("p99_ms", "seconds") if name in row), ""):
        return f"{found} {row[found]:.3g}"
    return f"{row['per_second']:,.0f}/s"
