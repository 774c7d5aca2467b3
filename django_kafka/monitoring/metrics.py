"""Metrics for Prometheus: computed from tallies when somebody asks.

`register` puts them beside all others of the process, where django-prometheus's view and a worker's own port find them.
What a process below a supervisor has is handed to that one as JSON, and shown with a label that says whose it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import prometheus_client
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from .. import conf, logs
from ..exceptions import ConfigurationError
from ..tallies import Histogram
from . import mirror
from .families import FAMILIES, OF_GROUPS, Family, Scene
from .server import Answer

log = logs.of(__name__)

PORTABLE = "/metrics.json"
"""The path at which they are handed to a supervisor."""
JSON = "application/json"
PROCESS = "process"
"""The label that tells processes of one supervisor apart."""
PROCESS_UP = "lynx_kafka_process_up"
"""Whether a process below a supervisor has answered."""
_WEB, _WORKER, _PART = "web", "worker", "part"
"""Who is asked: a process by the project's own view, one with a port of ours, or one below a supervisor that has it."""
_ASKS = {"nowhere": (), "workers": (_WORKER,), "everywhere": (_WEB, _WORKER)}
"""Who of them asks brokers in its turn, by `KAFKA["metrics"]["groups"]`. A supervisor does so for its processes."""
_asked: ContextVar[str] = ContextVar("django_kafka_metrics_asked", default=_WEB)


class Collector:
    """What Prometheus's client asks for our metrics."""

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values; nothing is looked at."""
        return [_metric(family) for family in FAMILIES]

    def collect(self) -> Iterator[Metric]:
        """Return them as they are now."""
        return _read(FAMILIES)


def _read(families: Iterable[Family]) -> Iterator[Metric]:
    scene = Scene(asks=_asks())
    for family in families:
        metric = _metric(family)
        for labels, value in family.read(scene):
            _add(metric, family, dict(zip(family.labels, labels, strict=True)), value)
        yield metric


def _asks() -> bool:
    try:
        return _asked.get() in _ASKS[conf.kafka().metrics.groups]
    except ConfigurationError:
        return False


@contextmanager
def _as(who: str) -> Iterator[None]:
    token = _asked.set(who)
    try:
        yield
    finally:
        _asked.reset(token)


def _metric(family: Family) -> Metric:
    return Metric(family.name.removesuffix("_total"), family.means, family.kind)


def _add(metric: Metric, family: Family, labels: dict[str, str], value: float | Histogram) -> None:
    if not isinstance(value, Histogram):
        metric.add_sample(family.name, labels, value)
        return
    for bound, count in zip(_bounds(value), accumulate(value.counts), strict=True):
        metric.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, count)
    metric.add_sample(f"{family.name}_count", labels, count)
    metric.add_sample(f"{family.name}_sum", labels, value.sum)


def _bounds(histogram: Histogram) -> list[str]:
    return [*map(floatToGoString, histogram.bounds), "+Inf"]


def register() -> None:
    """Have our metrics shown with all others of this process. Nothing is opened, and nothing counted yet."""
    mirror.register()
    try:
        prometheus_client.REGISTRY.register(Collector())
    except ValueError as error:
        # Somebody has metrics of these names, or it was done before.
        log.info("metrics are not registered: %s", error)


def exposition() -> Answer:
    """Return all metrics of this process, the project's own included, as Prometheus reads them."""
    with _as(_WORKER):
        return _shown(prometheus_client.REGISTRY)


def _shown(registry: Any) -> Answer:
    return Answer(200, prometheus_client.CONTENT_TYPE_LATEST, prometheus_client.generate_latest(registry))


def portable() -> Answer:
    """Return the same as JSON, for the supervisor."""
    with _as(_PART):
        found = list(prometheus_client.REGISTRY.collect())
    told = [
        [metric.name, metric.documentation, metric.type, [[one.name, one.labels, one.value] for one in metric.samples]]
        for metric in found
    ]
    return Answer(200, JSON, json.dumps(told).encode())


def together(answers: Mapping[int, Answer | None]) -> Answer:
    """Return the metrics of all processes of a supervisor, None is one that has not answered; and those of groups."""
    with _as(_WORKER):
        metrics = {metric.name: metric for metric in _read(OF_GROUPS)}
    up = Metric(PROCESS_UP, "1 for a process of this supervisor that answered, 0 for one that did not.", "gauge")
    for number, answer in sorted(answers.items()):
        read = answer is not None and answer.status == 200
        up.add_sample(PROCESS_UP, {PROCESS: str(number)}, float(read))
        for name, means, kind, samples in json.loads(answer.body) if answer is not None and read else ():
            metric = metrics.get(name)
            if metric is None:
                metric = metrics[name] = Metric(name, means, kind)
            for sample, labels, value in samples:
                metric.add_sample(sample, _of_process(labels, number), value)
    return _shown(_Ready([up, *metrics.values()]))


def _of_process(labels: dict[str, str], number: int) -> dict[str, str]:
    if PROCESS in labels:
        # As Prometheus itself does with a label that it has, too.
        labels[f"exported_{PROCESS}"] = labels[PROCESS]
    labels[PROCESS] = str(number)
    return labels


class _Ready(CollectorRegistry):
    """Metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._metrics
