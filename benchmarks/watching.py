"""What it costs that everything is counted or traced, that somebody looks every second; and how long a look takes.

Counting cannot be switched off. So the cases without it take it out of the package's code, in their own process: what
is done for each message or record. The few sums that are left are for a slice of up to 500 messages; and how many
records were acknowledged, by which a producer knows that its brokers are within reach again.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from statistics import median, quantiles
from types import ModuleType
from typing import Any

from .consuming import work
from .producing import produce_all
from .settings import KAFKA, MESSAGES

_EVERY = 1.0
"""Seconds between two scrapes: Prometheus usually leaves 15 to 60."""
_SCRAPES = 200
_SILENT: dict[str, Any] = {"options": {"statistics.interval.ms": 0}}


def our_consume_watched() -> Iterator[None]:
    """A worker with a handler that does nothing, scraped every second."""
    with _port() as url, _scraped(url):
        yield from work()


def our_consume_uncounted() -> Iterator[None]:
    """The same without scrapes, histograms and the client's statistics."""
    from django_kafka import tallies
    from django_kafka.consuming import handling, timing

    KAFKA["consumers"]["bench"] |= _SILENT
    _replace(tallies.Histogram, "add", lambda *_value, **_more: None)
    _replace(timing.Stopwatch, "begin", lambda _self, _topic, _piece, call: call)
    _replace(timing.Stopwatch, "end", lambda *_counts, **_more: None)
    _replace(handling, "take_ages", lambda _topic, _piece: None)
    yield from work()


def our_produce_watched() -> Iterator[None]:
    """`services.produce` with its delivery, scraped every second."""
    with _port() as url, _scraped(url):
        yield from produce_all()


def our_produce_uncounted() -> Iterator[None]:
    """The same without scrapes, counters and the client's statistics."""
    from django_kafka import alike

    KAFKA["producers"]["default"] |= _SILENT
    _without_tally(alike, "_taker")
    yield from produce_all()


def our_consume_traced() -> Iterator[None]:
    """A worker with a handler that does nothing, a span for each message."""
    with _traced():
        yield from work()


def our_produce_traced() -> Iterator[None]:
    """`services.produce` with its delivery, a span and two headers for each record."""
    with _traced():
        yield from produce_all()


def our_scrape() -> Generator[None, None, dict[str, Any]]:
    """A scrape of a worker that has all partitions, over HTTP."""
    from django_kafka.consuming.worker import Worker

    worker = Worker("bench")
    worker.start()
    with _port() as url:
        while worker.tally.handled < MESSAGES or b"\nlynx_kafka_group_lag{" not in _scrape(url):
            time.sleep(0.1)
        yield
        took = []
        for _number in range(_SCRAPES):
            began = time.perf_counter()
            _scrape(url)
            took.append(1000 * (time.perf_counter() - began))
        yield
    worker.stop()
    worker.join()
    return {"p50_ms": median(took), "p95_ms": quantiles(took, n=20)[-1]}


@contextmanager
def _traced() -> Iterator[None]:
    """Have every span recorded, and exported to nowhere by OpenTelemetry's own thread."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    yield
    provider.shutdown()


@contextmanager
def _port() -> Iterator[str]:
    """Answer `/metrics` at a free port meanwhile; yield where."""
    from django_kafka.monitoring import metrics
    from django_kafka.monitoring.server import serving

    with serving("127.0.0.1", 0, {"/metrics": metrics.exposition}) as server:
        assert server is not None
        assert server.listening.wait(10)
        yield f"{server.url}/metrics"


@contextmanager
def _scraped(url: str) -> Iterator[None]:
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(_EVERY):
            _scrape(url)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _scrape(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        body: bytes = answer.read()
    return body


def _replace(where: Any, name: str, by: Callable[..., Any]) -> None:
    assert callable(getattr(where, name)), name
    setattr(where, name, by)


def _without_tally(module: ModuleType, name: str) -> None:
    """Make a function of a module anew without the statements that count into `tally`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(module, name))))
    counting = _Counting()
    tree = ast.fix_missing_locations(counting.visit(tree))
    assert counting.found == 2, f"{name} counts in {counting.found} places; it did so in 2"
    exec(compile(tree, module.__file__ or name, "exec"), vars(module))


class _Counting(ast.NodeTransformer):
    """Takes out what adds to `tally` for metrics only, or depends on it."""

    def __init__(self) -> None:
        self.found = 0

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST | None:
        return node if ast.unparse(node.target) == "tally.acknowledged" else self._unless(node, node.target)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        kept = self._unless(node, node.test)
        return None if kept is None else self.generic_visit(kept)

    def _unless(self, node: ast.AST, about: ast.AST) -> ast.AST | None:
        if not any(isinstance(one, ast.Name) and one.id == "tally" for one in ast.walk(about)):
            return node
        self.found += 1
        return None
