"""Replay jobs: frozen, carried out in pieces by whoever is there, steered by people, and told of to the letter."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_kafka import retries, services, tallies
from django_kafka.categories import UnknownCommit
from django_kafka.clients.embedded import Cluster, Request
from django_kafka.consuming.gate import Gate
from django_kafka.consuming.lanes import Lanes
from django_kafka.consuming.replays import ReplayThread
from django_kafka.dead_letters import jobs, replaying, searching
from django_kafka.dead_letters.carrying import Everything, carry_out
from django_kafka.dead_letters.claiming import ClaimLost
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.jobs import handling, pieces, ramp
from django_kafka.dead_letters.jobs.rows import waiting_in
from django_kafka.dead_letters.jobs.running import JobExecutor
from django_kafka.dead_letters.jobs.sending import Sending
from django_kafka.dead_letters.jobs.settling import Settled
from django_kafka.exceptions import BrokersUnreachable, KafkaError, LoginRefused, Skip
from django_kafka.messages import LETTER_HEADER, Message
from django_kafka.models import DeadLetter, DeadLetterAttempt, Hold, JobLane, LetterWords, Replay, ReplayJob
from django_kafka.models.dead_letters import key_hash
from django_kafka.signals import dead_letter_replayed
from tests.app.models import Effect
from tests.desk import Desk
from tests.letters import dead_letter
from tests.sending import read

broken: set[int] = set()
raised: list[BaseException] = []
ran: list[int] = []
verdicts: dict[int, object] = {}
decided: list[int] = []
do: dict[int, Callable[[], object]] = {}


def handle(message: Message) -> None:
    """Leave an effect, then do or fail what `do`, `raised` and `broken` say."""
    ran.append(message.offset)
    Effect.objects.create(topic=message.topic, partition=message.partition, offset=message.offset)
    if (action := do.get(message.offset)) is not None:
        action()
    if raised:
        raise raised.pop()
    if message.offset in broken:
        raise ValueError("still broken")


def decide(_error: BaseException, _attempt: int, message: Message) -> object:
    """Decide as `verdicts` say about the message that it is given."""
    decided.append(message.offset)
    return verdicts.get(message.offset)


@pytest.fixture(autouse=True)
def consumers(settings: Any) -> None:
    consumer = {"group_id": "ops", "topics": {"flights": {"handler": "tests.test_jobs.handle"}}}
    other = {"group_id": "other", "topics": {"flights": {"handler": "tests.test_jobs.handle"}}}
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "consumers": {"ops": {**consumer, "retry": {"max_retries": 0}}, "other": other},
        "producers": {"default": {}},
    }
    broken.clear()
    raised.clear()
    ran.clear()
    verdicts.clear()
    decided.clear()
    do.clear()


@pytest.fixture
def executor(db: None) -> Iterator[JobExecutor]:
    """One executor of this test."""
    mine = JobExecutor()
    yield mine
    mine.close()


def letters(count: int, **fields: Any) -> list[DeadLetter]:
    keys = fields.pop("keys", None)
    return [
        dead_letter({"n": number}, offset=number, key=keys(number) if keys else f"key {number}".encode(), **fields)
        for number in range(count)
    ]


def made(**options: Any) -> ReplayJob:
    (job,) = jobs.create(replaying.letters(), **options)
    return job


def drain(executor: JobExecutor) -> int:
    return sum(done.done for done in iter(executor.run_next, None))


def effects() -> list[int]:
    return sorted(Effect.objects.values_list("offset", flat=True))


def expire() -> None:
    """Let every claim run out."""
    JobLane.objects.exclude(claim="").update(claimed_at=timezone.now() - timedelta(minutes=2))


def in_threads(count: int, target: Callable[[], object]) -> None:
    def run() -> None:
        try:
            target()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def states(job: ReplayJob) -> dict[int, str]:
    return dict(Replay.objects.filter(job=job).values_list("letter__offset", "state"))


def check(job: ReplayJob) -> jobs.Progress:
    """Compare what the job says of itself with its rows."""
    found = jobs.progress(job)
    for state in ("succeeded", "failed", "skipped", "behind", "cancelled"):
        assert getattr(found, state) == Replay.objects.filter(job=job, state=state).count(), state
    assert found.left == Replay.objects.filter(job=job, state="requested").count()
    assert found.total == Replay.objects.filter(job=job).count()
    return found


# Making one


@pytest.mark.django_db
def test_a_selection_is_frozen_and_what_cannot_be_replayed_is_left_out() -> None:
    chosen = letters(5)
    DeadLetter.objects.filter(pk=chosen[0].pk).update(state="discarded")
    replaying.request([chosen[1].pk])

    job = made(name="test", reason="mended", description="all of them")
    letters(2, partition=7)

    assert (job.total, job.left_out, job.consumer, job.requested_by_name) == (3, 2, "ops", "test")
    assert states(job) == {2: "requested", 3: "requested", 4: "requested"}
    assert not Replay.objects.filter(job=job, lane="").exists()


@pytest.mark.django_db
def test_each_consumer_has_a_job_of_its_own() -> None:
    letters(2)
    letters(3, consumer="other")

    found = jobs.create(replaying.letters())

    assert [(job.consumer, job.total) for job in found] == [("ops", 2), ("other", 3)]


@pytest.mark.django_db
def test_letters_are_chosen_by_their_ids_too() -> None:
    chosen = letters(4)

    (job,) = jobs.create([chosen[1].pk, chosen[3].pk, 10**9])

    assert sorted(states(job)) == [1, 3]


@pytest.mark.django_db
def test_a_letter_is_in_one_job_at_a_time() -> None:
    letters(3)
    first = made()

    assert jobs.create(replaying.letters()) == []
    assert replaying.request(DeadLetter.objects.values_list("pk", flat=True)).count == 0
    assert replaying.cancel(DeadLetter.objects.values_list("pk", flat=True)) == 0
    assert ReplayJob.objects.get() == first


@pytest.mark.django_db
def test_what_cannot_be_replayed_to_a_target_is_left_out() -> None:
    letters(2)
    letters(1, partition=1, imported_as="spring")
    hold = Hold.objects.create(
        cluster="default", group_id="ops", topic="flights", partition=2, key_hash=key_hash(b"key 0"), consumer="ops",
        key=b"key 0", since=timezone.now(),
    )  # fmt: skip
    letters(1, partition=2, hold=hold)

    to_topic = made(target="topic")
    jobs.cancel(to_topic)
    to_handler = made()

    assert (to_topic.total, to_topic.left_out) == (3, 1)
    assert (to_handler.total, to_handler.left_out) == (3, 1)


@pytest.mark.django_db
def test_the_number_of_queries_does_not_depend_on_that_of_letters() -> None:
    def queries(count: int, partition: int) -> int:
        letters(count, partition=partition)
        with CaptureQueriesContext(connection) as captured:
            made(ramp=[1])
        return len(captured)

    assert queries(70, 1) == queries(2, 0) <= 12


@pytest.mark.django_db
def test_keys_stay_together_and_letters_are_in_the_order_of_their_partitions() -> None:
    for offset in (5, 3, 4):
        dead_letter({}, offset=offset, key=b"A")
    for offset in range(20):
        dead_letter({}, offset=offset, partition=1, key=None)

    job = made()

    found = list(Replay.objects.filter(job=job).order_by("pk").values_list("letter__offset", "lane"))
    assert [offset for offset, _lane in found] == [3, 4, 5, *range(20)]
    assert len({lane for _offset, lane in found[:3]}) == 1
    assert len({lane for _offset, lane in found[3:]}) == 16


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": "moon"}, "'moon' is not one of"),
        ({"target": "dry-run"}, "a dry run is of one"),
        ({"rate": 0}, "rate 0 is not between"),
        ({"rate": float("nan")}, "rate nan is not between"),
        ({"ramp": [1, 0]}, "ramp"),
        ({"ramp": [1] * 21}, "at most 20"),
        ({"failure_ratio": 1.5}, "not between 0 and 1"),
    ],
)
@pytest.mark.django_db
def test_values_that_cannot_be_meant_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        jobs.create(replaying.letters(), **options)


# To the handlers


def test_a_job_resolves_its_letters(executor: JobExecutor) -> None:
    letters(40)
    job = made()

    assert drain(executor) == 40
    found = check(job)
    assert (found.state, found.succeeded, found.left) == ("finished", 40, 0)
    assert DeadLetter.objects.filter(state="resolved", attempts=2, settled_at__isnull=False).count() == 40
    assert DeadLetterAttempt.objects.filter(succeeded=True, number=2, origin="replay").count() == 40
    assert effects() == list(range(40))
    assert not JobLane.objects.exists()


def test_failures_come_back_to_their_letters_and_leave_later_ones_of_their_keys_behind(executor: JobExecutor) -> None:
    letters(12, keys=lambda number: b"AB"[number % 2 :][:1])
    broken.update({4, 9})
    job = made()

    drain(executor)

    found = check(job)
    assert (found.succeeded, found.failed, found.behind) == (6, 2, 4)
    assert {offset for offset, state in states(job).items() if state == "behind"} == {6, 8, 10, 11}
    assert [offset for offset in ran if offset % 2 == 0] == [0, 2, 4]
    failed = DeadLetter.objects.get(offset=4)
    assert (failed.attempts, failed.state, failed.error_message) == (2, "open", "still broken")
    assert failed.failure_group is not None
    assert list(failed.attempt_set.values_list("number", "succeeded")) == [(1, False), (2, False)]
    assert DeadLetter.objects.filter(state="open").count() == 6
    assert "has the same key" in Replay.objects.get(letter__offset=6).result


def of_one_lane(count: int) -> list[DeadLetter]:
    """Store letters of keys of their own that share a lane."""
    names = (f"key {number}".encode() for number in range(10_000))
    found = [key for key in names if key_hash(key).startswith("0")][:count]
    return letters(count, keys=found.__getitem__)


def test_one_that_fails_among_others_of_its_lane_is_told_from_them(executor: JobExecutor) -> None:
    of_one_lane(5)
    broken.update({1, 3})
    job = made()

    drain(executor)

    assert states(job) == {0: "succeeded", 1: "failed", 2: "succeeded", 3: "failed", 4: "succeeded"}
    assert check(job).succeeded == 3
    assert sorted(DeadLetter.objects.filter(state="open", attempts=2).values_list("offset", flat=True)) == [1, 3]


def test_what_failed_before_a_kill_runs_again_and_what_succeeded_does_not(executor: JobExecutor) -> None:
    of_one_lane(4)
    job = made()
    pks = list(Replay.objects.order_by("pk").values_list("pk", flat=True))
    # As it is left by whoever is killed after the third, of which the second failed.
    JobLane.objects.filter(name="0").update(claim="killed", cursor=pks[2], unsettled=[pks[1]])
    expire()

    drain(executor)

    assert ran == [1, 3]
    assert check(job).succeeded == 4
    assert DeadLetter.objects.filter(state="resolved", attempts=2).count() == 4


def test_a_lane_that_is_claimed_is_left_to_whoever_has_it(executor: JobExecutor) -> None:
    of_one_lane(3)
    job = made()
    JobLane.objects.filter(name="0").update(claim="another", claimed_at=timezone.now() - timedelta(seconds=30))

    assert drain(executor) == 0
    assert check(job).left == 3


def test_a_lane_that_could_not_be_read_after_it_was_claimed_is_not_kept(executor: JobExecutor) -> None:
    of_one_lane(3)
    job = made()
    failing = [OperationalError("server closed the connection")]

    def drop(execute: Any, sql: str, *arguments: Any) -> Any:
        if failing and sql.startswith("SELECT") and '"lynx_kafka_joblane"' in sql and claimed:
            raise failing.pop()
        claimed.extend(["claimed"] if sql.startswith('UPDATE "lynx_kafka_joblane"') else [])
        return execute(sql, *arguments)

    claimed: list[str] = []
    with connection.execute_wrapper(drop), pytest.raises(OperationalError):
        executor.run_next()

    assert not failing
    assert not JobLane.objects.exclude(claim="").exists()
    assert executor._claims._held is None, "Nothing renews it, even if it could not be given back."
    drain(executor)
    assert check(job).succeeded == 3
    assert not Replay.objects.exclude(deaths=0).exists()


def test_letters_without_a_key_have_no_order(executor: JobExecutor) -> None:
    for offset in range(4):
        dead_letter({}, offset=offset, key=None)
    broken.add(0)
    job = made()

    drain(executor)

    assert (check(job).succeeded, check(job).failed, check(job).behind) == (3, 1, 0)


def test_a_letter_that_changed_meanwhile_is_skipped_with_the_reason(executor: JobExecutor) -> None:
    letters(3)
    job = made()
    DeadLetter.objects.filter(offset=1).update(state="discarded")

    drain(executor)

    assert (check(job).succeeded, check(job).skipped) == (2, 1)
    assert Replay.objects.get(letter__offset=1).result == "The letter is discarded."
    assert sorted(ran) == [0, 2]


def test_a_handler_that_skips_resolves_its_letter(executor: JobExecutor) -> None:
    letters(1)
    raised.append(Skip("not ours"))
    job = made()

    drain(executor)

    assert check(job).succeeded == 1
    assert Replay.objects.get().result == "Skipped: not ours"
    assert effects() == []


def test_a_reason_that_databases_do_not_take_ends_its_letter_like_any_other(executor: JobExecutor) -> None:
    """As of a handler that says what it found in a payload."""
    letters(2)
    do[0] = lambda: raised.append(Skip("no passenger \0\ud800"))
    job = made()

    assert drain(executor) == 2
    assert check(job).succeeded == 2
    assert Replay.objects.get(letter__offset=0).result == "Skipped: no passenger \\x00\\ud800"


def test_an_outage_is_waited_for_and_uses_nothing_up(executor: JobExecutor) -> None:
    letters(3, keys=lambda _number: b"A")
    job = made()
    do[1] = lambda: raised.append(BrokersUnreachable("no broker answers"))

    with pytest.raises(BrokersUnreachable):
        drain(executor)
    found = check(job)
    assert (found.succeeded, found.left, found.state) == (1, 2, "running")
    assert not JobLane.objects.exclude(claim="").exists()
    assert DeadLetter.objects.get(offset=1).attempts == 1

    do.clear()
    drain(executor)
    assert check(job).succeeded == 3
    assert ran == [0, 1, 1, 2]
    assert not Replay.objects.exclude(deaths=0).exists()


def locked() -> OperationalError:
    """Return a conflict in the database."""
    cause = sqlite3.OperationalError("database is locked")
    cause.sqlite_errorcode = sqlite3.SQLITE_BUSY
    conflict = OperationalError("database is locked")
    conflict.__cause__ = cause
    return conflict


def test_a_conflict_is_tried_again_at_once(executor: JobExecutor) -> None:
    letters(1)
    raised.append(locked())
    job = made()

    drain(executor)

    assert (check(job).succeeded, ran) == (1, [0, 0])


def test_what_follows_a_held_letter_is_released_in_order(executor: JobExecutor) -> None:
    hold = Hold.objects.create(
        cluster="default", group_id="ops", topic="flights", partition=0, key_hash=key_hash(b"A"), consumer="ops",
        key=b"A", since=timezone.now(),
    )  # fmt: skip
    for offset, state in ((0, "open"), (1, "parked"), (2, "parked")):
        dead_letter({}, offset=offset, key=b"A", hold=hold, state=state)
    job = made()

    assert sum(len(done.released) for done in iter(executor.run_next, None)) == 1

    assert check(job).succeeded == 1
    single = Executor()
    while single.run_next() is not None:
        pass
    single.close()
    assert ran == [0, 1, 2]
    assert not Hold.objects.exists()


def test_a_receiver_hears_of_every_letter(executor: JobExecutor) -> None:
    letters(3)
    broken.add(1)
    made()
    heard: list[tuple[int, str, str]] = []

    def hear(sender: str, letter: DeadLetter, replay: Replay, **_event: Any) -> None:
        heard.append((letter.offset, letter.state, replay.state))

    dead_letter_replayed.connect(hear)
    try:
        drain(executor)
    finally:
        dead_letter_replayed.disconnect(hear)
    assert sorted(heard) == [(0, "resolved", "succeeded"), (1, "open", "failed"), (2, "resolved", "succeeded")]


@contextmanager
def after_the_commit(do_it: Callable[[], object]) -> Iterator[None]:
    """Do something before letters are first read for receivers, which is when what became of them is committed."""
    waiting = ["count", "tell"]

    def look(execute: Any, sql: str, *arguments: Any) -> Any:
        if waiting == ["count", "tell"] and sql.startswith('UPDATE "lynx_kafka_replayjob"'):
            waiting.remove("count")
        if waiting == ["tell"] and sql.startswith("SELECT") and '"lynx_kafka_deadletter"' in sql:
            waiting.clear()
            do_it()
        return execute(sql, *arguments)

    with connection.execute_wrapper(look):
        yield
    assert not waiting


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The offsets of letters that a receiver hears of."""
    offsets: list[int] = []

    def hear(sender: str, letter: DeadLetter, **_event: Any) -> None:
        offsets.append(letter.offset)

    dead_letter_replayed.connect(hear)
    yield offsets
    dead_letter_replayed.disconnect(hear)


@pytest.mark.parametrize("target", ["handler", "topic"])
@pytest.mark.parametrize("what", ["conflict", "outage"])
def test_what_fails_after_the_commit_does_not_settle_a_piece_again(
    executor: JobExecutor, request: pytest.FixtureRequest, heard: list[int], target: str, what: str
) -> None:
    topic = request.getfixturevalue("flights") if target == "topic" else "flights"
    letters(4, topic=topic, keys=lambda _number: b"A")
    broken.add(3)
    job = made(target=target)
    before = tallies.of_consumer("ops").replays["succeeded"]

    def fail() -> None:
        raise locked() if what == "conflict" else OperationalError("server closed the connection")

    with after_the_commit(fail):
        executor.run_next()
    drain(executor)

    found = check(job)
    assert (found.state, found.done) == ("finished", 4)
    more = 0 if target == "topic" else 1
    assert set(DeadLetter.objects.values_list("attempts", flat=True)) == {1 + more}
    assert DeadLetterAttempt.objects.count() == 4 + 4 * more
    assert tallies.of_consumer("ops").replays["succeeded"] - before == found.succeeded


def test_a_letter_that_is_deleted_before_receivers_hear_of_it_keeps_nobody_else_from_it(
    executor: JobExecutor, heard: list[int]
) -> None:
    of_one_lane(3)
    made()

    with after_the_commit(DeadLetter.objects.filter(offset=1).delete):
        executor.run_next()

    assert heard == [0, 2]


def test_a_letter_that_fails_anew_is_found_by_its_new_error(executor: JobExecutor) -> None:
    letters(3)
    LetterWords.objects.filter(letter__offset=2).delete()
    broken.update({1, 2})
    made()

    drain(executor)
    assert LetterWords.objects.filter(words=None, rules=None).count() == 2
    searching.catch_up()

    def found(term: str) -> list[int]:
        return sorted(DeadLetter.objects.filter(searching.condition(term)).values_list("offset", flat=True))

    assert found("still broken") == [1, 2]
    assert found("bad value") == [0]


def test_a_piece_costs_the_same_number_of_queries_besides_those_of_its_handlers(executor: JobExecutor) -> None:
    def queries(count: int, partition: int) -> int:
        letters(count, partition=partition, keys=lambda _number: b"A")
        made()
        with CaptureQueriesContext(connection) as captured:
            drain(executor)
        return len(captured)

    # A handler's transaction has its INSERT, the cursor, and BEGIN or SAVEPOINT and their ends.
    few, many = queries(2, 0), queries(12, 1)
    each = (many - few) / 10
    assert each <= 4


# Interrupted anywhere


@pytest.fixture(params=["sqlite", "postgresql"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    """A project of its own, on each database."""
    made = (
        Desk.on_sqlite(tmp_path)
        if request.param == "sqlite"
        else Desk.on_postgresql(tmp_path, request.getfixturevalue("postgresql"))
    )
    yield made
    made.close()


MAKE = "from django_kafka.dead_letters import jobs, replaying as r; jobs.create(r.letters())"
EXPIRE = "UPDATE lynx_kafka_joblane SET claimed_at = '2026-01-01 00:00:00' WHERE claim <> ''"


def test_a_killed_executor_is_taken_over_and_what_was_committed_runs_once(desk: Desk) -> None:
    values = [{"n": number} for number in range(30)]
    values[11] = {"bad": True}
    values[20] = {"gate": "open"}
    desk.write(*values)  # of one key, so that they are in one lane, in this order
    desk.rows('UPDATE lynx_kafka_deadletter SET "offset" = id')
    desk.run("shell", "-v0", "-c", MAKE.replace("r.letters()", "r.letters().exclude(offset=12)"))
    # Keys of their own from the twelfth on, all in that lane: what fails leaves nobody behind.
    key = "CAST(offset AS blob)" if desk.database["ENGINE"].endswith("sqlite3") else "(id::text)::bytea"
    desk.rows(f"UPDATE lynx_kafka_deadletter SET key = {key}".replace("offset", '"offset"'))
    first = desk.start("kafka_replay", "--jobs")
    desk.wait_until(lambda: len(desk.runs()) == 20, first)
    first.end(signal.SIGKILL)
    (desk.home / "open").touch()
    effects = 'SELECT "offset" FROM tests_effect ORDER BY id'
    before = [row[0] for row in desk.rows(effects)]
    assert len(before) == 19

    early = desk.run("kafka_replay", "--jobs", "--timeout", "1s", code=1)
    assert "left:" in early
    assert len(desk.runs()) == 20
    desk.rows(EXPIRE)
    late = desk.run("kafka_replay", "--jobs", code=0)

    assert "is finished. Succeeded: 29" in late
    # The ledger that handlers keep outside of the database: only the one that was interrupted ran twice.
    runs = desk.runs()
    assert sorted({run for run in runs if runs.count(run) > 1}) == ["21"]
    assert [row[0] for row in desk.rows(effects)] == [number for number in range(1, 31) if number != 12]
    assert desk.rows("SELECT state, attempts, count(*) FROM lynx_kafka_deadletter GROUP BY 1, 2 ORDER BY 3") == [
        ("open", 1, 1), ("resolved", 2, 29),
    ]  # fmt: skip
    assert desk.rows("SELECT sum(deaths) FROM lynx_kafka_replay") == [(1,)]


def test_a_letter_that_kills_three_processes_fails_and_the_rest_goes_on(executor: JobExecutor) -> None:
    letters(3, keys=lambda _number: b"A")
    letters(1, partition=1, keys=lambda _number: b"A")
    job = made()
    Replay.objects.filter(letter__partition=0, letter__offset=1).update(deaths=3)

    drain(executor)

    assert (check(job).succeeded, check(job).failed, check(job).behind) == (2, 1, 1)
    assert "3 processes ended" in Replay.objects.get(letter__partition=0, letter__offset=1).result


def test_what_stops_a_process_gives_the_lane_back_and_is_counted(executor: JobExecutor) -> None:
    letters(2, keys=lambda _number: b"A")
    made()
    raised.append(SystemExit(3))

    with pytest.raises(SystemExit):
        executor.run_next()

    assert not JobLane.objects.exclude(claim="").exists()
    assert Replay.objects.get(letter__offset=0).deaths == 1
    assert drain(executor) == 2


@pytest.mark.django_db(transaction=True)
def test_an_executor_that_was_overtaken_rolls_back_what_its_handler_did() -> None:
    letters(2, keys=lambda _number: b"A")
    letters(1, partition=1)
    # The third letter is of the next step, so that the lanes are still there.
    job = made(ramp=[2])
    slow, other = JobExecutor(), JobExecutor()

    def overtake() -> None:
        do.clear()
        expire()
        while Replay.objects.filter(state="requested").count() > 1:
            other.run_next()

    if connection.vendor == "sqlite":
        # There a handler that has written keeps all others from writing: it is overtaken before that.
        lane = slow._next_lane()
        while lane is not None and lane.name != Replay.objects.order_by("pk")[0].lane:
            slow._pass(lane, 1)
            lane = slow._next_lane()
        assert lane is not None
        found = pieces.read(lane, 2)
        overtake()
        with pytest.raises(ClaimLost):
            slow._carry_out(lane, found, threading.Event())
    else:
        do[0] = lambda: in_threads(1, overtake)
        with pytest.raises(ClaimLost):
            drain(slow)
    assert effects() == [0, 1]
    slow.close()
    drain(other)
    other.close()
    assert check(job).succeeded == 3
    assert DeadLetterAttempt.objects.filter(succeeded=True).count() == 3


@pytest.mark.django_db(transaction=True)
def test_a_commit_that_was_not_answered_is_known_by_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    letters(2, keys=lambda _number: b"A")
    job = made()
    executor = JobExecutor()
    real = handling.Execution.run

    def unanswered(*arguments: Any) -> None:
        real(*arguments)
        monkeypatch.undo()
        raise UnknownCommit("server closed the connection")

    monkeypatch.setattr(handling.Execution, "run", unanswered)
    with pytest.raises(UnknownCommit):
        drain(executor)
    drain(executor)
    executor.close()

    assert check(job).succeeded == 2
    assert ran == [0, 1]


@pytest.mark.django_db(transaction=True)
def test_two_executors_never_work_on_one_letter() -> None:
    letters(120)
    job = made()
    barrier = threading.Barrier(2)

    def work() -> None:
        executor = Everything()
        barrier.wait(20)
        try:
            waiting = lambda error, pause: None  # noqa: E731
            for _ in carry_out(executor, stop=threading.Event(), waiting=waiting):
                pass
            while jobs.progress(job).left:
                for _ in carry_out(executor, stop=threading.Event(), waiting=waiting):
                    pass
        finally:
            executor.close()

    in_threads(2, work)

    assert effects() == list(range(120))
    assert check(job).succeeded == 120
    assert DeadLetterAttempt.objects.filter(succeeded=True).count() == 120


# Steered


def test_a_job_that_is_paused_while_it_runs_stops_soon_and_goes_on_later(executor: JobExecutor) -> None:
    of_one_lane(40)
    job = made()
    executor.run_next()

    assert jobs.pause(job)
    assert not jobs.pause(job)
    assert executor.run_next() is None
    assert not JobLane.objects.exclude(claim="").exists()
    before = check(job)
    assert (before.state, before.left > 0) == ("paused", True)

    assert jobs.resume(job)
    assert not jobs.resume(job)
    drain(executor)
    assert (check(job).state, check(job).succeeded) == ("finished", 40)


def test_a_cancelled_job_lets_its_letters_go(executor: JobExecutor) -> None:
    letters(40)
    job = made()
    done = executor.run_next()
    assert done is not None

    assert jobs.cancel(job)
    # The lane that the executor holds is left to it.
    assert check(job).state == "cancelling"
    assert executor.run_next() is None or drain(executor) >= 0
    found = check(job)
    assert (found.state, found.succeeded, found.cancelled, found.left) == ("cancelled", done.done, 40 - done.done, 0)
    assert not jobs.cancel(job)
    assert not jobs.resume(job)
    assert replaying.request(DeadLetter.objects.values_list("pk", flat=True)).count == found.cancelled


@pytest.mark.django_db
def test_a_large_job_is_cancelled_at_once_up_to_a_bound() -> None:
    letters(30)
    job = made()

    jobs.cancel(job, most=10)
    assert check(job).state == "cancelling"
    assert 10 <= check(job).cancelled < 30
    jobs.cancel(job)
    assert (check(job).state, check(job).cancelled) == ("cancelled", 30)


def test_a_job_whose_executor_was_killed_can_be_cancelled_and_what_succeeded_is_told(executor: JobExecutor) -> None:
    letters(3, keys=lambda _number: b"A")
    job = made()
    first = Replay.objects.order_by("pk")[0]
    JobLane.objects.filter(name=first.lane).update(claim="killed", cursor=first.pk)
    expire()

    jobs.cancel(job)

    found = check(job)
    assert (found.state, found.succeeded, found.cancelled) == ("cancelled", 1, 2)
    assert DeadLetter.objects.get(pk=first.letter_id).state == "resolved"


def test_a_ramp_goes_on_step_by_step(executor: JobExecutor) -> None:
    letters(30)
    job = made(ramp=[1, 5], failure_ratio=0.1)
    sizes: list[int] = []
    step = 1
    while (done := executor.run_next()) is not None:
        now = jobs.progress(job).step
        if now != step:
            step = now
        sizes.append(done.done)

    assert check(job).state == "finished"
    assert sizes[0] == 1
    assert jobs.progress(job).step == 3


@pytest.mark.parametrize(("offset", "handled"), [(0, 1), (3, 6), (15, 30)])
def test_a_step_with_too_many_failures_pauses_the_job(executor: JobExecutor, offset: int, handled: int) -> None:
    letters(30)
    broken.add(offset)
    job = made(ramp=[1, 5], failure_ratio=0.1)

    drain(executor)

    found = check(job)
    assert found.done == handled
    if handled == 30:  # one of 24 is within the bound
        assert found.state == "finished"
        return
    assert found.state == "paused"
    assert "1 of" in found.why
    assert executor.run_next() is None
    broken.clear()
    assert jobs.resume(job)
    drain(executor)
    assert (check(job).state, check(job).why) == ("finished", "")


@pytest.mark.parametrize("ramp_of", [[1], [1, 1], [2], [1, 5]])
def test_a_ramp_whose_last_step_failed_ends_and_tells_what_happened(executor: JobExecutor, ramp_of: list[int]) -> None:
    letters(sum(ramp_of) if len(ramp_of) == 1 else 2)
    broken.add(len(states(job := made(ramp=ramp_of, failure_ratio=0.1))) - 1)

    drain(executor)

    found = check(job)
    assert (found.state, found.left, found.failed) == ("finished", 0, 1)
    assert "more than the bound of 0.1" in found.why
    assert not JobLane.objects.exists()


def test_a_paused_job_whose_last_letters_come_to_their_end_is_finished(executor: JobExecutor) -> None:
    letters(1)
    do[0] = lambda: jobs.pause(job, why="Somebody paused it.")
    job = made()

    drain(executor)

    assert (check(job).state, check(job).succeeded, check(job).why) == ("finished", 1, "Somebody paused it.")


def test_a_long_step_is_judged_before_its_end(executor: JobExecutor) -> None:
    letters(300)
    broken.update(range(300))
    job = made(failure_ratio=0.5)

    drain(executor)

    assert jobs.progress(job).state == "paused"
    assert 100 <= check(job).failed < 300


def test_a_rate_is_kept_by_the_clock_of_the_database(executor: JobExecutor) -> None:
    letters(60)
    job = made(rate=20)
    begun = time.monotonic()
    while not jobs.progress(job).ended:
        if executor.run_next() is None:
            time.sleep(0.05)
    took = time.monotonic() - begun

    # A second's worth may go at once in the beginning.
    assert took > 1.5
    ends = Replay.objects.filter(job=job).order_by("finished_at").values_list("finished_at", flat=True)
    seconds = [int((end - ends[0]).total_seconds()) for end in ends]
    assert max(seconds.count(second) for second in set(seconds)) <= 60


@pytest.mark.django_db
def test_executors_share_one_rate() -> None:
    letters(5)
    job = made(rate=2)

    assert ramp.reserve(job, 5) == 2
    assert ramp.reserve(job, 5) == 0


def test_a_rate_can_be_changed_while_the_job_runs(executor: JobExecutor) -> None:
    letters(20)
    job = made(rate=0.01)
    assert drain(executor) == 1

    assert jobs.change_rate(job, None)
    assert drain(executor) == 19
    assert not jobs.change_rate(job, 5)
    with pytest.raises(ValueError, match="rate"):
        jobs.change_rate(job, -1)


def test_an_executor_takes_jobs_of_its_consumers_only(db: None) -> None:
    letters(1, consumer="other")
    job = made()
    mine, by_id = JobExecutor(["ops"]), JobExecutor(ids=[job.pk + 1])
    try:
        assert mine.run_next() is None
        assert by_id.run_next() is None
    finally:
        mine.close()
        by_id.close()
    assert check(job).left == 1


def test_a_job_of_a_consumer_that_settings_do_not_have_pauses_and_others_go_on(db: None) -> None:
    letters(3, consumer="gone")
    letters(3, partition=1)
    gone, other = jobs.create(replaying.letters())
    executor = Everything()
    try:
        found = list(carry_out(executor, stop=threading.Event(), waiting=lambda error, _pause: pytest.fail(str(error))))
    finally:
        executor.close()

    assert (gone.consumer, sum(done.done for done in found if isinstance(done, Settled))) == ("gone", 3)
    assert (check(other).state, check(other).succeeded) == ("finished", 3)
    assert (check(gone).state, check(gone).left) == ("paused", 3)
    assert "gone" in check(gone).why
    assert not JobLane.objects.exclude(claim="").exists()
    assert DeadLetter.objects.filter(consumer="gone", state="open", attempts=1).count() == 3
    # Its letters can be let go, or sent to their topic.
    assert jobs.cancel(gone)
    assert check(gone).state == "cancelled"


def test_a_job_of_such_a_consumer_can_still_be_cancelled_while_it_runs(executor: JobExecutor) -> None:
    letters(3, consumer="gone")
    job = made()

    jobs.cancel(job, most=1)
    drain(executor)

    assert (check(job).state, check(job).cancelled) == ("cancelled", 3)


def test_a_login_that_kafka_refuses_is_an_outage_of_a_job_and_no_wrong_setting(
    executor: JobExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters(1, topic="flights")
    job = made(target="topic")

    def refused(self: Sending, _piece: Any) -> None:
        self.outage = LoginRefused("Kafka refuses the login.")

    monkeypatch.setattr(Sending, "run", refused)
    with pytest.raises(LoginRefused):
        executor.run_next()

    assert check(job).state == "running"


def test_single_replays_come_before_pieces_of_jobs(db: None) -> None:
    letters(20)
    job = made()
    single = letters(1, partition=1)[0]
    replaying.request([single.pk])
    executor = Everything()
    try:
        first = executor.run_next()
    finally:
        executor.close()

    assert isinstance(first, Replay)
    assert check(job).left == 20


def claims_held() -> int:
    return JobLane.objects.exclude(claim="").count()


def test_a_lane_is_left_to_others_while_a_single_replay_runs(db: None) -> None:
    of_one_lane(40)
    job = made()
    executor, held = Everything(), []
    do[99] = lambda: held.append(claims_held())
    try:
        executor.run_next()
        assert claims_held() == 1
        replaying.request([dead_letter({}, offset=99, partition=1).pk])

        assert isinstance(executor.run_next(), Replay)
        assert held == [0]
        while executor.run_next() is not None:
            pass
    finally:
        executor.close()
    assert check(job).succeeded == 40


def test_a_lane_of_a_job_is_left_to_others_while_one_of_messages_runs_alone(db: None) -> None:
    of_one_lane(40)
    job = made()
    gate, lanes = Gate(), Lanes()
    gate.join(lanes)
    alone = lanes.open(("flights", 0))
    # It waits for what runs beside it, and nothing begins any more.
    do[3] = lambda: gate.close(alone)
    thread, executor = ReplayThread(["ops"], pytest.fail, gate), Everything(["ops"])
    try:
        thread._look(executor)
        assert 4 <= check(job).succeeded < 40
        assert claims_held() == 0
        thread._look(executor)
        assert claims_held() == 0

        gate.open(alone)
        thread._look(executor)
    finally:
        executor.close()
    assert check(job).succeeded == 40


def test_the_report_says_what_happened_to_each_letter(executor: JobExecutor) -> None:
    letters(9)
    broken.update({2, 5})
    job = made()
    drain(executor)

    assert {each.letter.offset for each in jobs.report(job, "failed")} == {2, 5}
    seen: list[int] = []
    after = None
    while page := list(jobs.report(job, after=after)[:4]):
        seen += [each.pk for each in page]
        after = (page[-1].state, page[-1].lane, page[-1].pk)
    assert len(seen) == len(set(seen)) == 9


@pytest.mark.postgresql
@pytest.mark.django_db
def test_what_is_asked_again_and_again_is_read_from_indexes() -> None:
    letters(200)
    job = made()
    lane = JobLane.objects.select_related("job").get(name=Replay.objects.all()[0].lane)
    with connection.cursor() as cursor:
        # What is known of the table may be of a time when it was empty: then all indexes are alike.
        cursor.execute("ANALYZE lynx_kafka_replay")
        # Of a few rows it would read them all.
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")

    reads = {
        "next letters": waiting_in(lane).filter(pk__lte=Replay.objects.latest("pk").pk)[:500],
        "report": jobs.report(job)[:51],
        "report of an outcome": jobs.report(job, "failed")[:51],
        "report from a place": jobs.report(job, after=("requested", "7", 1))[:51],
        "single replays": replaying.replays().filter(replaying.unclaimed(), job__isnull=True).order_by("id")[:1],
    }
    plans = {name: query.explain() for name, query in reads.items()}

    for name, plan in plans.items():
        index = "lynx_kafka_replay_waiting" if name == "single replays" else "lynx_kafka_replay_of_job"
        assert f"Scan using {index}" in plan, f"{name}:\n{plan}"
        assert "Sort" not in plan, f"{name}:\n{plan}"
    assert "Filter" not in plans["report from a place"]


# To the topics


@pytest.fixture
def flights(embedded: Cluster, topic: Callable[..., str], settings: Any) -> str:
    """A topic of its own."""
    name = topic("flights")
    embedded.create_topic(name, partitions=2)
    settings.KAFKA = {**settings.KAFKA, "brokers": [embedded.bootstrap_servers]}
    return name


def test_letters_are_sent_to_their_topic_in_the_order_of_their_keys(
    executor: JobExecutor, embedded: Cluster, flights: str
) -> None:
    letters(60, topic=flights, keys=lambda number: b"key %d" % (number % 7), headers=[("a", b"1")])
    job = made(target="topic")

    assert drain(executor) == 60

    assert (check(job).state, check(job).succeeded) == ("finished", 60)
    found = read(embedded, flights, 60)
    by_key: dict[bytes, list[int]] = {}
    for message in found:
        by_key.setdefault(message.key(), []).append(json.loads(message.value())["n"])
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    assert sorted(number for numbers in by_key.values() for number in numbers) == list(range(60))
    assert [name for name, _value in found[0].headers()] == ["a", LETTER_HEADER]
    replay = Replay.objects.filter(job=job).select_related("letter")[0]
    assert replay.result.startswith(f"{flights}[")
    assert DeadLetter.objects.filter(state="resolved", attempts=1).count() == 60


def test_a_record_that_kafka_refuses_fails_alone(executor: JobExecutor, flights: str, settings: Any) -> None:
    settings.KAFKA = {**settings.KAFKA, "producers": {"default": {"options": {"message.max.bytes": 20_000}}}}
    dead_letter(b"x" * 30_000, topic=flights, offset=0, key=b"A")
    dead_letter({}, topic=flights, offset=1, key=b"A")
    dead_letter({}, topic=flights, offset=2, key=b"B")
    job = made(target="topic")

    drain(executor)

    assert states(job) == {0: "failed", 1: "behind", 2: "succeeded"}
    assert DeadLetter.objects.get(offset=0).attempts == 2
    check(job)


def test_a_letter_that_failed_again_before_it_is_settled_stays_open(executor: JobExecutor, flights: str) -> None:
    (letter,) = letters(1, topic=flights)
    made(target="topic")
    original = Sending.run

    def run(self: Sending, piece: Any) -> None:
        original(self, piece)
        DeadLetter.objects.filter(pk=letter.pk).update(attempts=2)

    Sending.run = run  # type: ignore[method-assign]
    try:
        drain(executor)
    finally:
        Sending.run = original  # type: ignore[method-assign]

    letter.refresh_from_db()
    assert (letter.state, letter.attempts) == ("open", 2)
    assert Replay.objects.get().state == "succeeded"


def test_without_a_broker_the_letters_wait(executor: JobExecutor, settings: Any) -> None:
    settings.KAFKA = {
        **settings.KAFKA,
        "producers": {"default": {"delivery_timeout": "1s"}},
        "connection": {"timeout": "1s"},
    }
    letters(3)
    job = made(target="topic")

    with pytest.raises(KafkaError):
        drain(executor)
    assert check(job).left == 3
    assert not JobLane.objects.exclude(claim="").exists()
    assert DeadLetter.objects.filter(state="open", attempts=1).count() == 3


@pytest.mark.django_db(transaction=True)
def test_what_handlers_produce_is_acknowledged_before_their_letters_are_resolved(
    executor: JobExecutor, embedded: Cluster, flights: str
) -> None:
    letters(30)
    do.update({offset: lambda: services.produce(flights, "k", {"a": 1}) for offset in range(30)})
    job = made()

    drain(executor)

    assert check(job).succeeded == 30
    assert len(read(embedded, flights, 30)) == 30
    assert effects() == list(range(30))


def stop_while_records_are_waited_for() -> None:
    """Carry out a piece, and be told to stop meanwhile."""
    executor, stop = JobExecutor(), threading.Event()
    timer = threading.Timer(3, stop.set)
    timer.start()

    executor.run_next(stop)
    executor.close()

    assert stop.is_set()


@pytest.mark.django_db(transaction=True)
def test_a_letter_whose_handlers_records_are_not_acknowledged_is_not_resolved(settings: Any) -> None:
    settings.KAFKA = {**settings.KAFKA, "producers": {"default": {"delivery_timeout": "1s"}}}
    letters(1)
    do[0] = lambda: services.produce("flights", "k", {"a": 1})
    job = made()

    stop_while_records_are_waited_for()

    assert effects() == [0]
    assert (check(job).left, DeadLetter.objects.get().state) == (1, "open")
    assert not JobLane.objects.exclude(claim="").exists()


@pytest.mark.django_db(transaction=True)
def test_records_that_cannot_be_sent_fail_their_letter(executor: JobExecutor, flights: str, settings: Any) -> None:
    settings.KAFKA = {**settings.KAFKA, "producers": {"default": {"options": {"message.max.bytes": 20_000}}}}
    letters(3, keys=lambda _number: b"A")
    do[1] = lambda: services.produce(flights, "k", "x" * 30_000)
    job = made()

    drain(executor)

    assert states(job) == {0: "succeeded", 1: "failed", 2: "behind"}
    check(job)


@pytest.fixture
def refused(embedded: Cluster, flights: str, settings: Any) -> Callable[[int], Callable[[], object]]:
    """Return what produces a record to a partition, which Kafka refuses after the handler's COMMIT.

    The consumer has a function that decides.
    """
    consumers = settings.KAFKA["consumers"]
    ops = {**consumers["ops"], "retry": {"max_retries": 0, "decide": "tests.test_jobs.decide"}}
    settings.KAFKA = {**settings.KAFKA, "consumers": {**consumers, "ops": ops}}

    def produce(partition: int) -> Callable[[], object]:
        # Each partition has a request of its own.
        embedded.push_errors(Request.PRODUCE, "MSG_SIZE_TOO_LARGE")
        return lambda: services.produce(flights, "k", {"n": 1}, partition=partition)

    return produce


@pytest.mark.django_db(transaction=True)
def test_the_projects_function_decides_about_records_by_the_message_that_produced_them(
    executor: JobExecutor, refused: Callable[[int], Callable[[], object]]
) -> None:
    of_one_lane(4)
    do.update({0: refused(0), 2: refused(1)})
    verdicts[0] = Skip("nobody needs it")
    job = made()

    executor.run_next()

    assert decided == [0, 2]
    assert ran == [0, 1, 2, 3]
    assert states(job) == {0: "succeeded", 1: "succeeded", 2: "failed", 3: "succeeded"}
    assert Replay.objects.get(letter__offset=0).result == "Skipped: nobody needs it"
    drain(executor)
    assert (check(job).state, effects()) == ("finished", [0, 1, 2, 3])


@pytest.mark.parametrize("verdict", [retries.Wait("the printer is out of paper"), retries.Again()])
@pytest.mark.django_db(transaction=True)
def test_a_job_pauses_for_records_that_the_project_waits_for_and_does_not_repeat_what_is_committed(
    executor: JobExecutor, refused: Callable[[int], Callable[[], object]], verdict: object
) -> None:
    of_one_lane(3)
    job = made()
    do[1] = refused(0)
    verdicts[1] = verdict

    executor.run_next()

    found = check(job)
    assert (ran.count(1), decided) == (1, [1])
    assert (found.state, states(job)) == ("paused", {0: "succeeded", 1: "requested", 2: "succeeded"})
    assert "DeliveryFailed" in found.why
    assert str(DeadLetter.objects.get(offset=1)) in found.why
    assert executor.run_next() is None
    assert not JobLane.objects.exclude(claim="").exists()

    do.clear()
    assert jobs.resume(job)
    drain(executor)
    assert (check(job).state, check(job).left) == ("finished", 0)


@pytest.mark.django_db(transaction=True)
def test_why_a_job_pauses_tells_nothing_that_is_masked(
    executor: JobExecutor, refused: Callable[[int], Callable[[], object]], settings: Any
) -> None:
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"mask": ["passenger", {"regex": "large"}]}}
    dead_letter({"passenger": "too"}, offset=0)
    job = made()
    do[0] = refused(0)
    verdicts[0] = retries.Wait("the printer is out of paper")

    executor.run_next()

    why = check(job).why
    assert "DeliveryFailed" in why
    assert "size *** ***" in why


@pytest.mark.django_db(transaction=True)
def test_a_stop_leaves_later_letters_of_a_key_whose_records_are_not_acknowledged(settings: Any) -> None:
    settings.KAFKA = {**settings.KAFKA, "producers": {"default": {"delivery_timeout": "1s"}}}
    letters(2, keys=lambda _number: b"A")
    do[0] = lambda: services.produce("flights", "k", {"a": 1})
    job = made()

    stop_while_records_are_waited_for()

    assert ran == [0]
    assert states(job) == {0: "requested", 1: "requested"}


@pytest.mark.django_db(transaction=True)
def test_a_job_that_pauses_for_a_record_leaves_later_letters_of_its_key(
    executor: JobExecutor, refused: Callable[[int], Callable[[], object]]
) -> None:
    letters(3, keys=lambda _number: b"A")
    do[0] = refused(0)
    verdicts[0] = retries.Wait("the printer is out of paper")
    job = made()

    drain(executor)

    assert ran == [0]
    assert (check(job).state, set(states(job).values())) == ("paused", {"requested"})

    verdicts[0] = Skip("nobody needs it")
    do[0] = refused(1)
    jobs.resume(job)
    drain(executor)
    assert ran == [0, 0, 1, 2]
    assert (check(job).state, check(job).succeeded) == ("finished", 3)


@pytest.mark.django_db(transaction=True)
def test_what_is_left_behind_does_not_run_when_each_letter_is_written_by_itself(
    executor: JobExecutor, refused: Callable[[int], Callable[[], object]]
) -> None:
    letters(2, keys=lambda _number: b"A")
    do[0] = refused(0)
    job = made()
    # Whoever had it before was killed.
    JobLane.objects.filter(name=Replay.objects.all()[0].lane).update(claim="killed")
    expire()

    drain(executor)

    assert ran == [0]
    assert states(job) == {0: "failed", 1: "behind"}
