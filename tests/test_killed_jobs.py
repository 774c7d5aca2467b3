"""Replay jobs whose executor dies before or after any of its statements: nothing is lost, and nothing is done twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_kafka.dead_letters import holds, jobs, replaying
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.jobs.running import JobExecutor
from django_kafka.exceptions import Skip
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, DeadLetterAttempt, Hold, JobLane, Replay, ReplayJob
from tests.app.models import Effect
from tests.letters import dead_letter

BROKEN, SKIPPED, PARKED = 1, 2, (100,)


def handle(message: Message) -> None:
    """Leave an effect; one message fails always, and one is not wanted."""
    Effect.objects.create(topic=message.topic, partition=message.partition, offset=message.offset)
    if message.offset == BROKEN:
        raise ValueError("still broken")
    if message.offset == SKIPPED:
        raise Skip("not ours")


@pytest.fixture(autouse=True)
def _consumers(settings: Any) -> None:
    consumer = {"group_id": "ops", "topics": {"flights": {"handler": "tests.test_killed_jobs.handle"}}}
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "consumers": {"ops": {**consumer, "retry": {"max_retries": 0}, "on_dead_letter": "hold_key"}},
    }


class Killed(BaseException):
    """The process is no more."""


class Kill:
    """Kills whoever asks the database, before or after its statement of this number; for the dead, nothing is done."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left, self.after, self.dead = at, after, False

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if self.dead and not sql.startswith("ROLLBACK"):
            raise Killed
        self.left -= 1
        if self.left < 0:
            self.dead = True
            if self.after:
                execute(sql, params, many, context)
            raise Killed
        return execute(sql, params, many, context)


def emptied() -> None:
    for model in (Replay, ReplayJob, DeadLetterAttempt, DeadLetter, Hold, Effect):
        model.objects.all().delete()


def letters() -> None:
    """Store letters of two keys, and one that holds its key with another parked behind it."""
    key = b"held"
    hold = Hold.objects.create(
        consumer="ops", group_id="ops", topic="flights", partition=0, key=key, key_hash=holds.key_hash(key),
        since=timezone.now(),
    )  # fmt: skip
    for offset in range(4):
        dead_letter({}, offset=offset, key=b"key 0" if offset != BROKEN else b"key 1")
    dead_letter({}, offset=99, key=key, hold=hold)
    for offset in PARKED:
        dead_letter({}, offset=offset, key=key, hold=hold, state="parked")


def made() -> ReplayJob:
    """Make a job of them."""
    (job,) = jobs.create(replaying.letters().filter(state="open"), name="tests", ramp=[2])
    # Those with nothing in them are passed and no more: most of the statements are of them.
    JobLane.objects.filter(job=job).exclude(name__in=Replay.objects.values("lane")).delete()
    return job


def carry_out_all() -> None:
    """Do all that there is to do, as another process would when claims have run out."""
    past = timezone.now() - timedelta(minutes=2)
    JobLane.objects.exclude(claim="").update(claimed_at=past)
    Replay.objects.filter(state="running").update(claimed_at=past)
    mine, single = JobExecutor(), Executor()
    try:
        while mine.run_next() is not None or single.run_next() is not None:
            pass
    finally:
        mine.close()
        single.close()


def until_killed(at: int, kind: type[JobExecutor | Executor], *, after: bool) -> bool:
    """Carry out what there is until it is killed; tell whether it was."""
    kill = Kill(at, after=after)
    mine = kind()
    try:
        with connection.execute_wrapper(kill):
            while mine.run_next() is not None:
                pass
    except Killed:
        return True
    finally:
        mine._claims._ended.set()
        connection.close()
    return False


def check(said: str) -> None:
    """Each letter has come to its end once, and its effects are there once."""
    effects = Counter(Effect.objects.values_list("offset", flat=True))
    assert effects == Counter((0, 3, 99, *PARKED)), said
    states = dict(DeadLetter.objects.values_list("offset", "state"))
    assert {offset for offset, state in states.items() if state != "resolved"} == {BROKEN}, said
    assert states[BROKEN] == "open", said
    assert not Replay.objects.filter(state__in=Replay.OUTSTANDING).exists(), said
    assert not Hold.objects.exists(), said
    tried = Counter(DeadLetterAttempt.objects.filter(origin="replay").values_list("letter__offset", "succeeded"))
    assert set(tried.values()) == {1}, (said, tried)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.django_db(transaction=True)
def test_a_kill_around_any_statement_of_single_replays_loses_nothing_and_does_nothing_twice(after: bool) -> None:
    at, killed = 0, True
    while killed:
        emptied()
        letters()
        replaying.request(replaying.letters().filter(state="open").values_list("pk", flat=True), name="tests")

        killed = until_killed(at, Executor, after=after)
        carry_out_all()

        said = f"killed {'after' if after else 'before'} statement {at}"
        check(said)
        assert Counter(Replay.objects.values_list("state", flat=True)) == {"succeeded": 5, "failed": 1}, said
        at += 1
    assert at > 40, at


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.django_db(transaction=True)
def test_a_kill_around_any_statement_loses_nothing_and_does_nothing_twice(after: bool) -> None:
    at, killed = 0, True
    while killed:
        emptied()
        letters()
        job = made()

        killed = until_killed(at, JobExecutor, after=after)
        carry_out_all()

        said = f"killed {'after' if after else 'before'} statement {at}"
        check(said)
        progress = jobs.progress(job)
        assert (progress.state, progress.left, progress.total) == ("finished", 0, 5), said
        assert (progress.succeeded, progress.failed, progress.behind, progress.skipped) == (4, 1, 0, 0), said
        counted = Counter(Replay.objects.filter(job=job).values_list("state", flat=True))
        assert counted == {"succeeded": 4, "failed": 1}, said
        at += 1
    assert at > 40, at
