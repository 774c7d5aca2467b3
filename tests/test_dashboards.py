"""The dashboard and the alert rules ask for no series, and by no label, that a worker does not have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from django_kafka import services
from django_kafka.monitoring import metrics
from tests.consuming import Seen, Workplace
from tests.servers.processes import wait_until

HERE = Path(__file__).resolve().parents[1] / "docs" / "monitoring"
SERIES = re.compile(r"(lynx_kafka_\w+)(?:\{([^}]*)\})?")


def expressions() -> list[str]:
    """Return all of both files."""
    dashboard = json.loads((HERE / "grafana.json").read_text("utf-8"))
    rules = yaml.safe_load((HERE / "alerts.yml").read_text("utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_every_expression_finds_its_series_with_its_labels(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, transaction="none", kafka={"producers": {"default": {}}})
    workplace.send(range(5))
    services.produce(workplace.topic, None, {}).result(20)
    with workplace.worker() as worker:
        worker.now()
        seen.wait(6)
        wait_until(lambda: all(one.lag == 0 for one in worker.now().partitions), 10)
        text = metrics.exposition().body.decode()
    series: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)

    asked = expressions()
    assert len(asked) > 20
    for expression in asked:
        names = SERIES.findall(expression)
        assert names, expression
        for name, matchers in names:
            assert name in series, f"{name} of {expression}"
            wanted = dict(re.findall(r'(\w+)="([^"]*)"', matchers))
            assert any(wanted.items() <= labels.items() for labels in series[name]), expression
            grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(",")}
            assert grouped <= series[name][0].keys(), expression
