"""The dashboard and the alert rules ask for no series, and by no label, that a worker does not have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from django_kafka import services
from django_kafka.monitoring import metrics
from django_kafka.monitoring.families import FAMILIES
from tests.consuming import Seen, Workplace
from tests.secured import SecuredKafka
from tests.secured.logins import password
from tests.servers.processes import wait_until

HERE = Path(__file__).resolve().parents[1] / "docs" / "monitoring"
SERIES = re.compile(r"(lynx_kafka_\w+)(?:\{([^}]*)\})?")

Found = dict[str, list[dict[str, str]]]
"""Labels of all samples, by the name of their series."""


def expressions() -> Iterator[tuple[str, str]]:
    """Yield all of both files, each with the texts that are shown beside its values."""
    dashboard = json.loads((HERE / "grafana.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    rules = yaml.safe_load((HERE / "alerts.yml").read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["expr"], rule["annotations"]["summary"]


def series(text: str) -> Found:
    """Read an exposition. What is declared and has no samples is not there."""
    found: Found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def problem(expression: str, shown: str, found: Found) -> str:
    """Return what an expression asks for that is not there; "" when it finds all."""
    parts = re.split(r"\b(?:and|or|unless)\b", expression)
    for part in parts:
        if found_out := _problem(part, found):
            return found_out
    named = set(re.findall(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}", shown))
    there = set.intersection(*(_grouped(part)[0] for part in parts))
    return f"It shows {named - there}, which it leaves out." if named - there else ""


def _problem(part: str, found: Found) -> str:
    names = SERIES.findall(part)
    if not names:
        return "It asks for nothing."
    for name, matchers in names:
        if name not in found:
            return f"There is no sample of {name}."
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', matchers))
        if not any(wanted.items() <= labels.items() for labels in found[name]):
            return f"No sample of {name} has {wanted}."
        if missing := set.union(*_grouped(part)) - found[name][0].keys():
            return f"{name} has no label {', '.join(missing)}."
    return ""


def _grouped(part: str) -> list[set[str]]:
    """Return the labels by which values are put together, the outermost first."""
    return [{label.strip() for label in by.split(",")} for by in re.findall(r"by \(([^)]*)\)", part)]


def test_every_expression_finds_its_series_with_its_labels(place: Workplace, secured: SecuredKafka) -> None:
    seen = Seen()
    login = secured.settings("SAFE", password("SCRAM-SHA-512"))
    place.consume(seen, transaction="none", kafka={"producers": {"default": {}}, **login})
    place.send(range(5))
    services.produce(place.topic, None, {}).result(20)
    with place.worker() as worker:
        worker.now()
        seen.wait(6)
        wait_until(lambda: all(one.lag == 0 for one in worker.now().partitions))
        # Of groups only brokers that tell of members tell all; the first scrape has them asked.
        found = wait_until(lambda: one if "lynx_kafka_group_members" in (one := exposed()) else None)

    asked = list(expressions())
    assert len(asked) > 25
    for expression, shown in asked:
        assert not problem(expression, shown, found), expression
    named = {name for expression, _shown in asked for name, _matchers in SERIES.findall(expression)}
    assert {one.name for one in FAMILIES if "group" in one.name} <= named


def exposed() -> Found:
    return series(metrics.exposition().body.decode())


@pytest.mark.parametrize(
    ("expression", "shown", "sentence"),
    [
        ("sum(rate(a_total[5m]))", "", "It asks for nothing."),
        ("sum by (consumer) (lynx_kafka_invented)", "", "There is no sample of lynx_kafka_invented."),
        ("sum by (consumer) (lynx_kafka_empty)", "", "There is no sample of lynx_kafka_empty."),
        ('max by (consumer) (lynx_kafka_lag{state="x"})', "", "No sample of lynx_kafka_lag has {'state': 'x'}."),
        ("max by (consumer, state) (lynx_kafka_lag)", "", "lynx_kafka_lag has no label state."),
        ("max by (consumer) (lynx_kafka_lag)", "{{topic}}", "It shows {'topic'}, which it leaves out."),
        ("max by (consumer) (lynx_kafka_lag)", "{{ $labels.topic }}", "It shows {'topic'}, which it leaves out."),
        ("max by (consumer) (lynx_kafka_lag) > 0", "{{ $labels.consumer }} {{consumer}}", ""),
    ],
)
def test_what_is_not_there_is_noticed(expression: str, shown: str, sentence: str) -> None:
    found = series(
        "# TYPE lynx_kafka_empty gauge\n# TYPE lynx_kafka_lag gauge\n"
        'lynx_kafka_lag{consumer="a",topic="b",partition="0"} 1\n'
    )
    assert problem(expression, shown, found) == sentence
