"""Probes of real processes: over HTTP through a supervisor, and by the command where the database is away."""

from __future__ import annotations

import os
import re
import signal
import urllib.error
import urllib.request

import pytest

from tests.servers.processes import Program, free_port, wait_until
from tests.test_metrics_over_http import Field, place, scrape

pytestmark = pytest.mark.slow

__all__ = ["place"]


def ask(port: int, path: str) -> tuple[int, str]:
    """Return status and text of an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def pids(chief: Program, number: int) -> list[int]:
    """Return the ids that a process of a supervisor has had."""
    return [int(found) for found in re.findall(rf"process={number} pid=(\d+) started", chief.output())]


def test_a_supervisor_answers_for_its_processes_and_another_worker_goes_on_without_the_port(place: Field) -> None:
    port = free_port()
    chief = place.start("kafka_consume", "--processes", "2", "--metrics-port", str(port))
    wait_until(lambda: f"answers at http://127.0.0.1:{port}: /live /metrics /ready" in chief.output())
    wait_until(lambda: ask(port, "/ready") == (200, "ok\n"))
    assert ask(port, "/live") == (200, "ok\n")

    def lag() -> float | None:
        """Return what the supervisor itself tells of the group, once."""
        found = scrape(port)
        mine = [labels for name, labels in found.samples if name == "lynx_kafka_group_lag"]
        assert not any("process" in dict(labels) for labels in mine)
        return found.sum("lynx_kafka_group_lag", topic=place.topic) if mine else None

    other = place.start("kafka_consume", "--metrics-port", str(port))
    wait_until(lambda: "cannot be had" in other.output())
    place.send(range(20))
    wait_until(lambda: place.count("tests_effect") == place.sent["handled"])
    wait_until(lambda: lag() is not None)
    other.send_signal(signal.SIGTERM)
    assert other.finish() == 0, other.output()
    assert "Two workers on one host need two ports: --metrics-port." in other.output()

    (first,) = pids(chief, 2)
    os.kill(first, signal.SIGSTOP)
    wait_until(lambda: ask(port, "/ready") == (503, "process 2 does not answer\n"))
    assert ask(port, "/live") == (200, "ok\n"), "To start all of them anew would not help."
    os.kill(first, signal.SIGCONT)
    wait_until(lambda: ask(port, "/ready") == (200, "ok\n"))
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "process 2 does not answer" in ask(port, "/ready")[1])
    assert ask(port, "/live") == (200, "ok\n")


def test_a_database_that_is_away_makes_nobody_dead(place: Field) -> None:
    there = str(place.directory / "no such directory" / "db.sqlite3")
    for which, code in (("live", 0), ("ready", 1)):
        probe = place.start("kafka_status", "--probe", which, env={"METRICS_DATABASE": there})
        assert probe.finish() == code, probe.output()
        assert "he rows of workers cannot be read (OperationalError)" in probe.output()
        assert "Traceback" not in probe.output()
