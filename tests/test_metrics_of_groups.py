"""What metrics say of groups as brokers see them: in which processes, of the living and of the dead."""

from __future__ import annotations

import json
import time
from functools import partial

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import Settings

from django_kafka.monitoring import lag, metrics
from tests.consuming import NAME, Seen, Workplace
from tests.sending import NOBODY, took_less_than
from tests.servers.processes import wait_until
from tests.test_kafka_connections import connections

Found = dict[str, float]


@pytest.fixture(autouse=True)
def _asked_at_each_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "heard", partial(lag.heard, max_age=0.0))
    monkeypatch.setattr(lag, "_READ_EVERY", 0.0)


def samples(text: str, *names: str) -> Found:
    """Return the values of some metrics, by name without prefix, topic left out, and partition."""
    wanted = {f"lynx_kafka_{name}" for name in names}
    return {
        f"{one.name.removeprefix('lynx_kafka_')} {one.labels.get('partition', '')}".strip(): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if one.name in wanted and one.labels["consumer"] == NAME
    }


ALL = ("consumer_lag", "group_lag", "group_members", "group_known")


def at_port(*names: str) -> Found:
    """Scrape as at the port of a worker."""
    return samples(metrics.exposition().body.decode(), *(names or ALL))


def in_web(*names: str) -> Found:
    """Scrape as django-prometheus's view does."""
    return samples(prometheus_client.generate_latest(prometheus_client.REGISTRY).decode(), *(names or ALL))


def below_supervisor() -> set[str]:
    """Return which of them a process below a supervisor tells that."""
    told = json.loads(metrics.portable().body)
    return {name for name, _means, _kind, found in told if found} & {f"lynx_kafka_{one}" for one in ALL}


def test_who_asks_brokers_and_opens_connections_for_it_is_a_setting(workplace: Workplace, settings: Settings) -> None:
    workplace.consume(Seen(), partitions=2)
    workplace.send(range(3), partition=1, timestamp=round((time.time() - 3600) * 1000))
    port = int(workplace.cluster.bootstrap_servers.rpartition(":")[2])
    before = connections(port)

    assert (in_web(), below_supervisor()) == ({}, set())
    settings.KAFKA = {**settings.KAFKA, "metrics": {"groups": "nowhere"}}
    assert at_port() == {}
    assert connections(port) == before, "Nobody who was not asked to look has looked."

    settings.KAFKA = {**settings.KAFKA, "metrics": {"groups": "workers"}}
    with took_less_than(1):
        assert at_port() == {}, "It waits for nobody."
    wait_until(lambda: at_port() == {"group_lag 0": 0, "group_lag 1": 3, "group_known": 1})
    assert connections(port) > before
    seconds = wait_until(lambda: at_port("group_lag_seconds"))
    assert seconds == {"group_lag_seconds 0": 0, "group_lag_seconds 1": pytest.approx(3600, abs=60)}
    assert (in_web(), below_supervisor()) == ({}, set())

    settings.KAFKA = {**settings.KAFKA, "metrics": {"groups": "everywhere"}}
    wait_until(lambda: in_web() == {"group_lag 0": 0, "group_lag 1": 3, "group_known": 1})
    assert below_supervisor() == set()
    assert samples(metrics.together({}).body.decode(), *ALL) == in_web(), "A supervisor asks for all its processes."


def test_what_was_heard_long_ago_is_not_told(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    workplace.consume(Seen())
    workplace.send([1])
    wait_until(lambda: at_port("group_lag") == {"group_lag 0": 1})
    monkeypatch.setattr(lag, "_HEARD", -1.0)
    assert at_port("group_lag") == {}


def test_a_cluster_that_is_away_is_not_known_and_the_log_has_the_reason_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.KAFKA = {
        "brokers": [NOBODY], "connection": {"timeout": "1s"},
        "consumers": {NAME: {"group_id": "g", "topics": {"t": {}}}},
    }  # fmt: skip
    wait_until(lambda: at_port() == {"group_known": 0})
    first = lag.of_cluster()
    wait_until(lambda: at_port() and lag.of_cluster(max_age=60) is not first)
    said = [one for one in caplog.messages if one.startswith("cluster=default lag is not known in full: Cluster")]
    assert len(said) == 1
    assert "does not say which topics it has" in said[0]
