"""The command kafka_status: what it shows of workers, for people and for programs, and what it asks them for."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from django_kafka.models import Worker
from tests.desk import Desk

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def consumers(settings: Any) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops"}, "audit": {"group_id": "a"}}}


def worker(name: str, *, seen: float = 0.0, **fields: Any) -> Worker:
    """Store the row of a worker that was last heard of so many seconds ago."""
    now = timezone.now()
    stored: Worker = Worker.objects.create(
        **{
            "id": name,
            "consumer": "ops",
            "group_id": "ops",
            "host": f"host-{name}",
            "pid": 4711,
            "version": "0.1.0",
            "started_at": now - timedelta(hours=2),
            "seen_at": now - timedelta(seconds=seen),
            **fields,
        }
    )
    return stored


def tripped(name: str, **fields: Any) -> Worker:
    """Store the row of a worker whose circuit is open."""
    reason = "50 of the last 64 messages failed, 48 of them with ValueError"
    opened = {"circuit": "open", "circuit_episode": 2, "circuit_reason": reason, "circuit_opened_at": timezone.now()}
    return worker(name, **{**opened, **fields})


def status(*arguments: str) -> str:
    out = io.StringIO()
    call_command("kafka_status", *arguments, stdout=out)
    return out.getvalue()


def refused(*arguments: str) -> str:
    with pytest.raises(CommandError) as caught:
        status(*arguments)
    return str(caught.value)


def test_without_workers_it_says_how_to_start_one() -> None:
    assert status() == "No worker was heard of. Start one: python manage.py kafka_consume\n"


def test_each_worker_has_a_line_with_what_it_is_and_did() -> None:
    worker("one", handled=1234567, dead_lettered=8, partitions=4, waiting=1, waits_for="the database is unavailable")
    worker("two", consumer="audit", group_id="a", seen=7200.0)

    heads, first, second, sentence = status().splitlines()

    assert heads.split("  ")[0] == "consumer"
    assert [cell.strip() for cell in first.split("  ") if cell] == [
        "audit", "a", "host-two:4711", "gone", "2 h ago", "0", "0", "0", "closed",
    ]  # fmt: skip
    assert re.sub(r"\d s ago", "a moment ago", " | ".join(cell.strip() for cell in second.split("  ") if cell)) == (
        "ops | ops | host-one:4711 | alive | a moment ago | 4 (1 waiting) | 1,234,567 | 8 | closed"
    )
    assert sentence == "ops host-one:4711: waits for: the database is unavailable"


def test_those_of_one_supervisor_stand_together_in_their_order() -> None:
    worker("two", host="web", pid=4, supervisor=9, number=2)
    worker("alone", host="web", pid=3)
    worker("one", host="web", pid=5, supervisor=9, number=1)

    shown = re.findall(r"web:.*?  ", status())

    assert {one.strip() for one in shown} == {"web:3", "web:4 (2 below 9)", "web:5 (1 below 9)"}
    assert " ".join(shown).index("1 below") < " ".join(shown).index("2 below")


def test_an_open_circuit_is_shown_with_its_reason() -> None:
    tripped("one")
    tripped("two", circuit="open", circuit_writing=True, circuit_close_asked=2)

    said = status()

    assert "open, writing letters" in said
    reason = "50 of the last 64 messages failed, 48 of them with ValueError"
    assert re.search(rf"ops host-one:4711: its circuit opened \d s ago: {reason}\n", said)
    assert said.count("it was asked to close its circuit") == 1


def test_only_the_named_consumers_are_shown() -> None:
    worker("one")
    worker("two", consumer="audit")

    assert "host-two" not in status("ops")
    assert "host-one" in status("ops", "audit")


def test_json_has_everything_for_programs() -> None:
    tripped("one", handled=5, waiting=2, waits_for="x", partitions=3)
    worker("two", consumer="audit", seen=3600.0)

    audit, ops = json.loads(status("--json"))["workers"]

    assert (ops["consumer"], ops["group"], ops["host"], ops["pid"], ops["alive"]) == (
        "ops", "ops", "host-one", 4711, True,
    )  # fmt: skip
    assert (ops["handled"], ops["dead_lettered"], ops["partitions"], ops["waiting"]) == (5, 0, 3, 2)
    assert ops["circuit"]["state"] == "open"
    assert ops["circuit"]["close_asked"] is False
    assert ops["circuit"]["reason"].startswith("50 of the last 64")
    assert audit["alive"] is False
    assert audit["circuit"] == {
        "state": "closed", "writing_letters": False, "opened_at": None, "reason": "", "close_asked": False,
    }  # fmt: skip
    assert json.loads(status("--json", "audit"))["workers"] == [audit]


def test_json_without_workers_is_an_empty_list() -> None:
    assert json.loads(status("--json")) == {"workers": []}


def test_closing_asks_each_living_worker_of_the_consumer_whose_circuit_is_not_closed() -> None:
    tripped("one")
    tripped("two", circuit="probing", circuit_episode=7)
    tripped("three", consumer="audit")
    tripped("dead", seen=3600.0)
    worker("four")

    said = status("--close-breaker", "ops")

    assert said == "Asked 2 of its workers; each closes its circuit within 5 s.\n"
    asked = dict(Worker.objects.values_list("id", "circuit_close_asked"))
    assert asked == {"one": 2, "two": 7, "three": None, "dead": None, "four": None}


def test_closing_what_is_closed_or_unknown_is_refused() -> None:
    worker("one")

    assert refused("--close-breaker", "ops") == "No worker of consumer 'ops' that lives has an open circuit."
    assert refused("--close-breaker", "opz") == "KAFKA[\"consumers\"] has no 'opz'; it has: ops, audit."
    assert refused("opz") == "KAFKA[\"consumers\"] has no 'opz'; it has: ops, audit."


def test_what_strangers_chose_is_not_obeyed_by_a_terminal() -> None:
    worker("one", group_id="g\x1b[31m", waiting=1, waits_for="\x1b[2J")

    assert "\x1b" not in status()


def test_settings_that_cannot_work_are_said_in_a_sentence(settings: Any) -> None:
    settings.KAFKA = {"consumers": {"ops": {"concurrency": 0}}}

    assert "concurrency" in refused()


def test_on_a_terminal_it_is_drawn_as_a_table(tmp_path: Path) -> None:
    desk = Desk.on_sqlite(tmp_path)
    desk.run(
        "shell", "-v0", "-c",
        "from django.utils import timezone; from django_kafka.models import Worker; now = timezone.now();"
        "Worker.objects.create(id='w', consumer='ops', group_id='[red]ops', host='h', pid=1, version='1',"
        " started_at=now, seen_at=now)",
    )  # fmt: skip
    script = (
        "import os, sys, django; from django.core.management import call_command; django.setup();"
        f"sys.path.insert(0, {str(tmp_path)!r}); sys.stdout = open(sys.argv[1], 'w');"
        "call_command('kafka_status', stdout=sys.stdout, no_color=True)"
    )
    master, slave = pty.openpty()
    root = Path(__file__).resolve().parents[1]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(tmp_path)]),
        "DJANGO_SETTINGS_MODULE": "desk_settings",
        "COLUMNS": "200",
        "TERM": "xterm",
    }
    with os.fdopen(master, "rb", buffering=0) as terminal:
        done = subprocess.run([sys.executable, "-c", script, os.ttyname(slave)], env=env, check=False, timeout=60)
        shown = terminal.read(65536).decode()
        os.close(slave)
    assert done.returncode == 0
    assert "│" in shown
    assert "[red]ops" in shown
