"""Rows for every page of the desk, as workers and people leave them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.utils import timezone
from pytest_django import Settings

from django_kafka import conf
from django_kafka.dead_letters import grouping, groups, jobs, recording, replaying
from django_kafka.dead_letters.failures import Failure
from django_kafka.history import Counts, Span
from django_kafka.messages import Message
from django_kafka.models import (
    Claim,
    Control,
    DeadLetter,
    FailureGroup,
    Hold,
    Pause,
    Replay,
    ReplayJob,
    SettledMessage,
    Worker,
)
from django_kafka.models.dead_letters import key_hash
from django_kafka.monitoring import packing
from django_kafka.monitoring.figures import Connections, Reported
from django_kafka.serializers import TopicDecoder
from django_kafka.tallies import AGES, SECONDS, Histogram
from tests.letters import dead_letter as any_letter
from tests.test_recording import Raw

TRACEBACK = """Traceback (most recent call last):
  File "/srv/airline/flights/kafka_handlers.py", line 35, in flight_departed
    departed=clock(line["dep_time"]),
             ~~~~~^^^^^^^^^^^^^^^^^^
  File "/srv/airline/flights/kafka_handlers.py", line 53, in clock
    hour, minute = divmod(int(text), 100)
                          ~~~^^^^^^
ValueError: invalid literal for int() with base 10: 'NA'
"""
FLIGHT = {"year": "2013", "month": "2", "day": "8", "dep_time": "NA", "carrier": "UA", "flight": "1545", "dest": "IAH"}
HANDLER = "flights.kafka_handlers.flight_departed"


def configure(settings: Settings) -> None:
    """Name the consumer that the rows are of; nothing is reachable."""
    topics = {"flights": {"handler": "tests.app.handlers.fail_on_bad"}}
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "connection": {"timeout": "1s"},
        "release": "2026.11",
        "dead_letters": {"edit": True},
        "heartbeats": {"interval": "1m"},  # looking at all pages takes longer than workers are believed otherwise
        "consumers": {"ops": {"group_id": "ops", "topics": topics}},
    }


def fill(many: int = 3) -> None:
    """Make rows of each kind: `many` failures of three causes, letters in each state, replays, workers, claims."""
    now = timezone.now()
    failed("ValueError", "invalid literal for int() with base 10: 'NA'", many)
    failed("KeyError", "'tailnum'", many)
    failed("django.db.utils.IntegrityError", "duplicate key value violates unique constraint", many)
    first, second, third = FailureGroup.objects.order_by("pk")
    groups.annotate(first.pk, owner="Ada", note="Cancelled flights have no departure time.")
    groups.set_state([second.pk], FailureGroup.State.ACKNOWLEDGED, by="ada")
    FailureGroup.objects.filter(pk=third.pk).update(
        state=FailureGroup.State.REGRESSED, state_since=now, regressed_in="2026.11"
    )
    letter = dead_letter(
        FLIGHT, headers=[("trace", b"5f"), ("source", b"tower")], traceback=TRACEBACK, handler=HANDLER,
        error_message="invalid literal for int() with base 10: 'NA'", failure_group=first,
    )  # fmt: skip
    dead_letter(FLIGHT)
    dead_letter(FLIGHT, state=DeadLetter.State.RESOLVED, settled_at=now)
    dead_letter(FLIGHT, state=DeadLetter.State.DISCARDED, settled_at=now)
    replaying.request([letter.pk], target=Replay.Target.HANDLER, user=None)
    for number in range(many):
        Replay.objects.create(
            letter=dead_letter(FLIGHT), target=Replay.Target.TOPIC, state=Replay.State.FAILED,
            requested_by_name="ada", requested_at=now - timedelta(minutes=number), finished_at=now,
            executor="ops-1:17", result="The broker did not answer.",
        )  # fmt: skip
    for state in (ReplayJob.State.RUNNING, ReplayJob.State.PAUSED, ReplayJob.State.FINISHED):
        _job(state)
    _hold()
    _control()
    for number in range(many):
        _worker(number)
        claim = Claim.objects.create(
            cluster="default", group_id="ops", topic="flights", partition=number, offset=4_100 + number, epoch=3,
            consumer="ops", worker="ops-1:17", claimed_at=now, topic_id="mG5kZ0nHTnqkO1mHzKQ2xw",
        )  # fmt: skip
        SettledMessage.objects.create(claim=claim, offset=4_200)


def dead_letter(value: Any, **fields: Any) -> DeadLetter:
    """Store a letter with an offset as real ones have."""
    return any_letter(value, **{"offset": 1_400_000 + DeadLetter.objects.count(), **fields})


def failed(error_type: str, text: str, count: int) -> None:
    """Store letters of one cause as a worker does."""
    offset = DeadLetter.objects.count() + 100
    failures = []
    for number in range(count):
        one = Failure.of(ValueError(text), category="handler", handler=HANDLER)
        object.__setattr__(one, "error_type", error_type)
        object.__setattr__(one, "traceback", TRACEBACK)
        failures.append((Message(Raw(offset=offset + number), TopicDecoder("text", "json")), one))
    recording.record_all(conf.consumer("ops"), "ops", failures, still_ours=lambda: None)
    grouping.add_up()


def _job(state: str) -> None:
    """A job with a letter of each outcome, in the middle of its second step or at its end."""
    now = timezone.now()
    chosen = [dead_letter({**FLIGHT, "flight": str(number)}).pk for number in range(5)]
    reason = "The handler of release 2026.11 knows cancelled flights."
    (job,) = jobs.create(
        chosen,
        rate=0.5,
        ramp=[1, 10, 100],
        failure_ratio=0.2,
        reason=reason,
        description="ValueError: 'NA'",
        name="ada",
    )
    outcomes = [Replay.State.SUCCEEDED, Replay.State.FAILED, Replay.State.SKIPPED]
    if state == ReplayJob.State.FINISHED:
        outcomes += [Replay.State.CANCELLED, Replay.State.SUCCEEDED]
    for replay, outcome in zip(job.replays.order_by("pk"), outcomes, strict=False):
        Replay.objects.filter(pk=replay.pk).update(
            state=outcome, finished_at=now, executor="ops-1:17", result="KeyError: 'tailnum'" * (outcome == "failed")
        )
    counts: dict[str, Any] = {name: outcomes.count(name) for name in ("succeeded", "failed", "skipped", "cancelled")}
    if state == ReplayJob.State.PAUSED:
        counts["state_reason"] = "1 of 3 letters of step 2 failed."
    if state == ReplayJob.State.FINISHED:
        counts["finished_at"] = now
    ReplayJob.objects.filter(pk=job.pk).update(state=state, step=1, begun_at=now, **counts)


def _control() -> None:
    now = timezone.now()
    place = {"cluster": "default", "consumer": "ops", "group_id": "ops"}
    Pause.objects.create(**place, topic="flights", partition=2, paused_by="ada", paused_at=now, reason="New gates")
    for state in (Control.State.REQUESTED, Control.State.DONE, Control.State.FAILED):
        Control.objects.create(
            **place, topic="flights", partition=2, verb=Control.Verb.SEEK, number=1_400_000, state=state,
            reason="The gates of the morning again", requested_by="ada", requested_at=now,
            expires_at=now + timedelta(minutes=5), taken_by_name="" if state == "requested" else "ops on ops-1:17",
            result="" if state == "requested" else "1,234 messages are read again.",
        )  # fmt: skip


def _hold() -> None:
    hold = Hold.objects.create(
        group_id="ops", topic="flights", partition=1, key=b"UA 15", key_hash=key_hash(b"UA 15"), consumer="ops",
        since=timezone.now(),
    )  # fmt: skip
    dead_letter(FLIGHT, key=b"UA 15", partition=1, hold=hold)
    dead_letter(FLIGHT, key=b"UA 15", partition=1, hold=hold, state=DeadLetter.State.PARKED, error_type="")


def _worker(number: int) -> None:
    now = timezone.now()
    minutes = [_minute(4_000 + 700 * (at % 5), at % 4) for at in range(15)]
    reported = Reported(minutes=minutes, connections=Connections(active=3, total=5, errors=1))
    circuit: dict[str, Any] = {}
    if number == 1:
        circuit = {"circuit": Worker.Circuit.OPEN, "circuit_opened_at": now, "circuit_episode": 1,
                   "circuit_reason": "61 of the last 100 attempts failed.", "waiting": 2}  # fmt: skip
    Worker.objects.create(
        id=f"worker-{number}", consumer="ops", group_id="ops", host="ops-1", pid=17 + number, version="0.1.0",
        started_at=now - timedelta(hours=3), seen_at=now - timedelta(hours=number // 2), state="running",
        memory=91_000_000, in_flight=120, lag=1_234 * number, handled=81_000, dead_lettered=9, partitions=4,
        figures=json.loads(json.dumps(packing.packed(reported))), **circuit,
    )  # fmt: skip


def _minute(handled: int, failures: int) -> Span:
    durations, ages = Histogram(SECONDS), Histogram(AGES)
    durations.add(0.004, handled)
    durations.add(0.09, handled // 20 + 1)
    ages.add(0.2, handled)
    return Span(
        seconds=60.0,
        counts=Counts(
            messages=handled, bytes=handled * 300, handled=handled, durations=tuple(durations.counts),
            ages=tuple(ages.counts), errors={"handler": failures} if failures else {}, dead_lettered=failures,
        ),
    )  # fmt: skip
