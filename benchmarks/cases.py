"""Run one case: each runs in a process of its own and prints one line of JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import django

from django_kafka.exceptions import NotAvailable

from .comparisons import LOADS
from .settings import HANDLER, MESSAGES, SERVER

Case = Callable[[], Generator[None, None, dict[str, Any] | None]]
SUBJECTS = (
    "producing", "consuming", "databases", "waiting", "latency", "memory", "scaling", "failing", "secured", "watching",
    "jobs", "schemas",
)  # fmt: skip
"""The modules whose functions are cases."""


def find(name: str) -> Case:
    """Return a case; modules are imported when Django is ready, since some hold models."""
    for subject in SUBJECTS:
        module = import_module(f"benchmarks.{subject}")
        found = vars(module).get(name)
        if found is not None and found.__module__ == module.__name__:
            case: Case = found
            return case
    raise SystemExit(f"There is no case {name!r}; known with loads of their own: {', '.join(LOADS)}.")


def main(name: str) -> None:
    """Run a case: what comes before its first `yield` is not measured, nor what comes after its second.

    What a case returns is added to its figures, or stands for them.
    """
    if name.startswith("our_") or SERVER or HANDLER:
        django.setup()
    try:
        figures = measure(find(name))
    except NotAvailable as error:
        figures = {"missing": f"not available yet: {error}"}
    print(json.dumps(figures))


def measure(made: Case) -> dict[str, Any]:
    """Return what a case did a second, the peak of its memory, its share of the cores, and what it says itself."""
    case, returned = made(), None
    started = cpu = seconds = 0.0
    try:
        next(case)
        started, cpu = time.perf_counter(), time.process_time()
        next(case)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        next(case)
    except StopIteration as end:
        returned = end.value
    if not seconds:
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    usual = {"per_second": MESSAGES / seconds, "cores": cpu / seconds, "peak_mib": peak_mib()}
    return {**usual, **(returned or {})}


def peak_mib() -> float:
    """Return the most memory that this process held; getrusage would count what the parent held before exec."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1])
