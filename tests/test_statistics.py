"""The client's own statistics: of this version, of others, and of none that anybody knows."""

from __future__ import annotations

import json
import logging
from typing import Any

import confluent_kafka
import pytest

from django_kafka.clients.embedded import Cluster
from django_kafka.clients.statistics import Connections
from django_kafka.tallies import ConsumerTally
from tests.servers.processes import wait_until

STEADY = '"join_state": "steady"'


@pytest.fixture
def told(embedded: Cluster) -> dict[str, Any]:
    """What the library tells of a consumer that has its place."""
    embedded.create_topic("flights", 1)
    found: list[str] = []
    client = confluent_kafka.Consumer(
        {
            "bootstrap.servers": embedded.bootstrap_servers, "group.id": "ops", "statistics.interval.ms": 50,
            "stats_cb": found.append, "client.id": 'the "brokers" of \\',
        }
    )  # fmt: skip
    try:
        client.subscribe(["flights"])
        wait_until(lambda: client.poll(0.05) is None and found and STEADY in found[-1])
    finally:
        client.close()
    steady = next(one for one in found if STEADY in one)
    with pytest.raises(ValueError, match="delimiter"):
        json.loads(steady)  # the library writes the name of a client as it is: its statistics may be no JSON
    known = Connections(ConsumerTally())
    known.note(steady)
    assert (known.away, known.unsteady_since) == (False, None)
    return dict(json.loads("{" + steady[steady.index('"brokers":') :]))


def noted(text: str, times: int = 2) -> tuple[Connections, ConsumerTally]:
    tally = ConsumerTally()
    connections = Connections(tally)
    connections.away = True
    for _time in range(times):
        connections.note(text)
    return connections, tally


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


def test_what_other_versions_tell_is_read_as_far_as_it_can_be_and_said_once(
    told: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    connections, tally = noted(json.dumps(told))
    assert (connections.away, connections.unsteady_since) == (False, None)
    # The connection that it began with may stand or be gone by then.
    standing = sum(one["state"] == "UP" for one in told["brokers"].values())
    made = sum(one["connects"] for one in told["brokers"].values())
    assert (tally.connections_active, tally.connections_total) == (standing, made)
    assert standing

    huge = {**told, "topics": {f"t{number}": {"partitions": {}} for number in range(20_000)}}
    connections, tally = noted(json.dumps(huge))
    assert (tally.connections_active, connections.unsteady_since) == (standing, None)
    assert warnings(caplog) == []

    brokers = {
        name: {**{key: one[key] for key in one if key != "connects"}, "connections": 1}
        for name, one in told["brokers"].items()
    }
    connections, tally = noted(json.dumps({**told, "brokers": brokers}))
    assert (tally.connections_active, tally.connections_total) == (0, 0), "nothing rather than half of it"
    assert (connections.away, connections.unsteady_since) == (False, None), "what can be read is read"
    (said,) = warnings(caplog)
    assert said.startswith(f"the statistics of librdkafka {confluent_kafka.libversion()[0]} do not tell of connections")
    assert "KeyError: 'connects'" in said

    caplog.clear()
    connections, tally = noted(json.dumps({**told, "cgrp": {"state": "up"}}))
    assert (tally.connections_active, connections.away) == (standing, False)
    assert connections.unsteady_since is not None, "It is not known to have its place."
    (said,) = warnings(caplog)
    assert "do not tell of groups as others do (KeyError: 'join_state')" in said

    connections, tally = noted(json.dumps({**told, "cgrp": {"state": "wait-coord", "join_state": "init"}}))
    assert connections.away


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", '{"brokers": []}', '{"brokers": {"a": null}}', '{"brokers": {', '{"brokers":{"a":' + "[" * 100_000,
     '{"brokers": {"a": {"state": "UP", "connects": "many"}}, "cgrp": 1}'],
)  # fmt: skip
def test_what_is_no_statistics_raises_nothing_and_is_not_taken_for_brokers_that_are_away(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    connections, tally = noted(text)
    assert not connections.away
    assert (tally.connections_active, tally.connections_total) == (0, 0)
    assert len(warnings(caplog)) in (1, 2), "a line for each part that cannot be read"
    assert len(set(warnings(caplog))) == len(warnings(caplog))
    assert all(len(one) < 400 for one in warnings(caplog))


def test_a_log_that_cannot_be_written_is_no_reason_to_raise_where_messages_would_be_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_record: logging.LogRecord) -> bool:
        raise OSError("no space left")

    monkeypatch.setattr(logging.getLogger("django_kafka.clients.statistics"), "filters", [fail])
    noted("no statistics")
