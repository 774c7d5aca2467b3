"""Replays: asked for, carried out, safe to interrupt, and always back at their own letter."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection, connections
from django.db.models import F
from django.test import override_settings
from django.utils import timezone

from django_kafka import retries, services
from django_kafka.clients.embedded import Cluster, Request
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.claiming import ClaimLost
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.failures import Failure
from django_kafka.dead_letters.replaying import LEASE
from django_kafka.dead_letters.rows import add_attempt
from django_kafka.exceptions import BrokersUnreachable, DeliveryFailed, Reject, Retry, Skip
from django_kafka.messages import LETTER_HEADER, Message
from django_kafka.models import DeadLetter, DeadLetterAttempt, Replay
from django_kafka.producing import send_now
from django_kafka.serializers import TopicDecoder
from django_kafka.signals import delivery_failed
from tests.app.models import Effect
from tests.desk import Desk
from tests.letters import dead_letter
from tests.sending import read, values
from tests.servers import PostgreSQL
from tests.servers.processes import wait_until

ASK = "from django_kafka.dead_letters import replaying as r; r.request(r.letters().values_list('pk', flat=True))"

broken = threading.Event()
unreachable: list[bool] = []
raised: list[BaseException] = []


def handle(message: Message) -> None:
    """Leave an effect, then fail while `broken` is set, or once for each `unreachable`."""
    Effect.objects.create(
        topic=message.topic, partition=message.partition, offset=message.offset,
        key=None if message.raw_key is None else message.raw_key.decode("utf-8", "backslashreplace"),
        payload=message.value if isinstance(message.value, dict) else None,
    )  # fmt: skip
    if unreachable:
        unreachable.pop()
        raise BrokersUnreachable("no broker answers")
    if raised:
        raise raised.pop()
    if broken.is_set():
        raise ValueError("still broken")


def kafka(topic: str, *brokers: str) -> dict[str, Any]:
    return {
        "brokers": list(brokers or ["127.0.0.1:1"]),
        "consumers": {
            "ops": {
                "group_id": "ops",
                "topics": {topic: {"handler": "tests.test_replaying.handle"}},
                "retry": {"max_retries": 0},
                "options": {"queued.min.messages": 1000},
            }
        },
    }


@pytest.fixture(autouse=True)
def mended(settings: Any) -> Iterator[None]:
    settings.KAFKA = kafka("flights")
    broken.clear()
    unreachable.clear()
    raised.clear()
    yield
    broken.clear()


@pytest.fixture
def executor(db: None) -> Iterator[Executor]:
    """One executor of this test."""
    mine = Executor()
    yield mine
    mine.close()


def ask(letter: DeadLetter, target: str = "handler") -> Replay:
    assert replaying.request([letter.pk], target=target).count == 1
    return Replay.objects.filter(letter=letter).latest("id")


# Asking


@pytest.mark.django_db
def test_a_letter_has_one_outstanding_replay_at_most() -> None:
    letter, settled = dead_letter({}), dead_letter({}, state="resolved")

    first = replaying.request([letter.pk, letter.pk, settled.pk, 10**9], name="test")
    second = replaying.request([letter.pk], target="topic")

    assert (first.count, first.refused, first.consumers) == (1, 2, {"ops"})
    assert (second.count, second.refused) == (0, 1)
    assert Replay.objects.get().requested_by_name == "test"


@pytest.mark.django_db
def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ValueError, match="'moon' is not one of: handler, topic"):
        replaying.request([1], target="moon")


@pytest.mark.django_db
def test_many_letters_are_asked_for_at_once() -> None:
    ids = [dead_letter({}).pk for _ in range(1100)]

    assert replaying.request(ids).count == 1100
    assert replaying.cancel(ids) == 1100
    assert replaying.discard(ids) == 1100
    assert replaying.reopen(ids) == 1100


# The handler again


def test_a_letter_is_resolved_when_its_handler_succeeds(executor: Executor) -> None:
    letter = dead_letter({"n": 1})
    replay = ask(letter)

    assert executor.run_next() == replay
    assert executor.run_next() is None

    letter.refresh_from_db()
    replay.refresh_from_db()
    assert (letter.state, letter.attempts, replay.state) == ("resolved", 2, "succeeded")
    assert letter.settled_at is not None
    assert list(DeadLetterAttempt.objects.values_list("number", "origin", "succeeded")) == [
        (1, "worker", False),
        (2, "replay", True),
    ]
    effect = Effect.objects.get()
    assert (effect.topic, effect.offset, effect.payload, effect.key) == ("flights", letter.offset, {"n": 1}, "UA 1545")


def test_a_replay_that_fails_adds_an_attempt_to_the_same_letter(executor: Executor) -> None:
    letter = dead_letter({"n": 1}, error_type="KeyError", error_message="the first error")
    broken.set()
    for attempts in (2, 3):
        replay = ask(letter)
        executor.run_next()
        letter.refresh_from_db()
        replay.refresh_from_db()
        assert (letter.state, letter.attempts, replay.state) == ("open", attempts, "failed")
        assert (letter.error_type, letter.error_message) == ("ValueError", "still broken")
        assert replay.result == "ValueError: still broken"

    assert DeadLetter.objects.count() == 1
    assert list(DeadLetterAttempt.objects.values_list("number", "error_message")) == [
        (1, "the first error"),
        (2, "still broken"),
        (3, "still broken"),
    ]
    assert not Effect.objects.exists()  # rolled back


@pytest.mark.parametrize("value", [b"\xff\xfe", b""])
def test_a_letter_that_cannot_be_decoded_fails_again(executor: Executor, value: bytes) -> None:
    letter = dead_letter(value)
    ask(letter)
    executor.run_next()

    letter.refresh_from_db()
    assert (letter.state, letter.error_type) == ("open", "django_kafka.exceptions.DecodeError")


def test_a_tombstone_reaches_its_handler_again(executor: Executor) -> None:
    letter = dead_letter(None)
    ask(letter)
    executor.run_next()

    letter.refresh_from_db()
    assert letter.state == "resolved"
    assert Effect.objects.get().payload is None


def test_a_letter_that_was_settled_meanwhile_is_not_run(executor: Executor) -> None:
    letter = dead_letter({})
    replay = ask(letter)
    DeadLetter.objects.update(state="discarded")

    executor.run_next()

    replay.refresh_from_db()
    assert (replay.state, Effect.objects.count()) == ("cancelled", 0)


def test_an_outage_leaves_the_replay_asked_for_and_uses_no_attempt(executor: Executor) -> None:
    letter = dead_letter({})
    replay = ask(letter)
    unreachable[:] = [True]

    with pytest.raises(BrokersUnreachable):
        executor.run_next()

    letter.refresh_from_db()
    replay.refresh_from_db()
    assert (replay.state, replay.claim, letter.attempts, letter.state) == ("requested", "", 1, "open")


@pytest.mark.parametrize(
    "error", [MemoryError(), ExceptionGroup("several", [ValueError(), MemoryError()]), SystemExit()]
)
def test_what_is_about_the_process_releases_the_replay_and_is_no_attempt(
    executor: Executor, error: BaseException
) -> None:
    letter = dead_letter({"n": 1})
    replay = ask(letter)
    raised.append(error)

    with pytest.raises(type(error)):
        executor.run_next()

    letter.refresh_from_db()
    replay.refresh_from_db()
    assert (replay.state, replay.claim, letter.attempts) == (Replay.State.REQUESTED, "", 1)


@pytest.mark.parametrize(
    ("error", "state", "attempts"),
    [
        (Skip("nobody needs it"), DeadLetter.State.RESOLVED, 2),
        (Reject("never"), DeadLetter.State.OPEN, 2),
        (Retry(after=3600), DeadLetter.State.OPEN, 2),
    ],
)
def test_what_a_handler_rules_holds_for_a_replay_too_which_is_one_attempt(
    executor: Executor, error: Exception, state: str, attempts: int
) -> None:
    letter = dead_letter({"n": 1})
    ask(letter)
    raised.append(error)

    replay = executor.run_next()

    letter.refresh_from_db()
    assert replay is not None
    assert (letter.state, letter.attempts) == (state, attempts)
    assert replay.state == ("succeeded" if state == DeadLetter.State.RESOLVED else "failed")
    assert not Effect.objects.exists(), "what it did before is rolled back"


def test_a_reason_that_databases_do_not_take_ends_the_replay_like_any_other(executor: Executor) -> None:
    """As of a handler that says what it found in a payload."""
    ask(dead_letter({"n": 1}))
    raised.append(Skip("no passenger \0\ud800"))

    replay = executor.run_next()

    assert replay is not None
    assert (replay.state, replay.result) == ("succeeded", "Skipped: no passenger \\x00\\ud800")


class BankDown(Exception):
    """What a project calls an outage of its own."""


def test_an_outage_of_the_projects_own_leaves_the_replay_asked_for(executor: Executor, settings: Any) -> None:
    settings.KAFKA = {**kafka("flights"), "error_categories": {"outage": ["tests.test_replaying.BankDown"]}}
    letter = dead_letter({"n": 1})
    ask(letter)
    raised.append(BankDown())
    waits: list[str] = []

    def note(error: Exception, _seconds: float) -> None:
        waits.append(type(error).__name__)

    done = [replay.state for replay in carry_out(executor, stop=threading.Event(), waiting=note)]

    letter.refresh_from_db()
    assert (waits, done, letter.state) == (["BankDown"], ["succeeded"], DeadLetter.State.RESOLVED)


verdicts: list[retries.Verdict] = []


def decide(_error: Exception, _attempt: int, _message: Message) -> retries.Verdict | None:
    """Decide what a test says."""
    return verdicts[0] if verdicts else None


@pytest.fixture
def deciding(settings: Any) -> Iterator[list[retries.Verdict]]:
    """What the consumer's own function decides; nothing: it leaves it to the project."""
    settings.KAFKA["consumers"]["ops"]["retry"] = {"max_retries": 0, "decide": "tests.test_replaying.decide"}
    settings.KAFKA = {**settings.KAFKA}
    yield verdicts
    verdicts.clear()


@pytest.mark.parametrize("verdict", [retries.Wait("the printer is out of paper"), retries.Again()])
def test_what_only_the_consumers_function_waits_for_is_waited_for(
    executor: Executor, deciding: list[retries.Verdict], verdict: retries.Verdict
) -> None:
    letter = dead_letter({"n": 1})
    ask(letter)
    raised.append(ValueError("no paper"))
    deciding.append(verdict)
    waits: list[str] = []

    def note(error: Exception, _seconds: float) -> None:
        waits.append(str(error))

    done = [replay.state for replay in carry_out(executor, stop=threading.Event(), waiting=note)]

    letter.refresh_from_db()
    assert (waits, done, letter.state, letter.attempts) == (["no paper"], ["succeeded"], "resolved", 2)


@pytest.mark.parametrize("verdict", [retries.Wait("the printer is out of paper"), retries.Again()])
@pytest.mark.django_db(transaction=True)
def test_a_handler_whose_record_is_refused_is_not_run_again_whatever_is_waited_for(
    executor: Executor, embedded: Cluster, settings: Any, verdict: retries.Verdict, deciding: list[retries.Verdict]
) -> None:
    settings.KAFKA = {**settings.KAFKA, "brokers": [embedded.bootstrap_servers]}
    settings.KAFKA["consumers"]["ops"]["topics"]["flights"]["handler"] = "tests.test_replaying.handle_and_produce"
    embedded.create_topic("landed", partitions=1)
    embedded.push_errors(Request.PRODUCE, "MSG_SIZE_TOO_LARGE")
    deciding.append(verdict)
    letter = dead_letter({"n": 1})
    replay = ask(letter)

    assert executor.run_next() == replay
    assert executor.run_next() is None

    letter.refresh_from_db()
    replay.refresh_from_db()
    assert (letter.state, letter.attempts, replay.state, Effect.objects.count()) == ("open", 2, "failed", 1)


def test_the_loop_waits_for_an_outage_to_end_and_goes_on(executor: Executor) -> None:
    letters = [dead_letter({}) for _ in range(3)]
    for letter in letters:
        ask(letter)
    unreachable[:] = [True, True]
    waits: list[float] = []

    done = list(carry_out(executor, stop=threading.Event(), waiting=lambda error, pause: waits.append(pause)))

    assert [replay.state for replay in done] == ["succeeded"] * 3
    assert len(waits) == 2


@pytest.fixture
def producing(embedded: Cluster, settings: Any) -> Iterator[list[Any]]:
    """A handler that also produces, to a cluster that is away until the first delivery failed; who listens to that."""
    settings.KAFKA = {
        **kafka("flights", embedded.bootstrap_servers),
        "connection": {"timeout": "1s"},
        "producers": {"default": {"delivery_timeout": "300ms"}},
    }
    settings.KAFKA["consumers"]["ops"]["topics"]["flights"]["handler"] = "tests.test_replaying.handle_and_produce"
    embedded.create_topic("landed", partitions=1)
    embedded.broker_down(1)
    listening: list[Any] = [lambda: embedded.broker_up(1)]

    def tell(**_event: Any) -> None:
        while listening:
            listening.pop()()

    delivery_failed.connect(tell)
    yield listening
    delivery_failed.disconnect(tell)


def handle_and_produce(message: Message) -> None:
    """Leave an effect and one record."""
    handle(message)
    services.produce("landed", None, message.value)


@pytest.mark.django_db(transaction=True)
def test_a_record_that_an_outage_kept_back_is_sent_again_and_its_handler_does_not_run_again(
    executor: Executor, producing: list[Any], embedded: Cluster
) -> None:
    letter = dead_letter({"n": 1})
    replay = ask(letter)

    assert executor.run_next() == replay

    letter.refresh_from_db()
    replay.refresh_from_db()
    assert (letter.state, replay.state, Effect.objects.count()) == ("resolved", "succeeded", 1)
    assert values(read(embedded, "landed", 1)) == [{"n": 1}]


@pytest.mark.django_db(transaction=True)
def test_records_that_found_no_room_are_sent_again_and_their_handler_does_not_run_again(
    executor: Executor, producing: list[Any], settings: Any, embedded: Cluster
) -> None:
    tiny = {"delivery_timeout": "3s", "options": {"queue.buffering.max.messages": 1}}
    settings.KAFKA = {**settings.KAFKA, "producers": {"default": tiny}}
    settings.KAFKA["consumers"]["ops"]["topics"]["flights"]["handler"] = "tests.test_replaying.handle_and_produce_two"
    replay = ask(dead_letter({"n": 1}))

    assert executor.run_next() == replay

    replay.refresh_from_db()
    assert (replay.state, Effect.objects.count()) == ("succeeded", 1)
    assert [value["n"] for value in values(read(embedded, "landed", 2))] == [1, 1]


def handle_and_produce_two(message: Message) -> None:
    """Leave an effect and two records, one more than a tiny queue holds."""
    handle_and_produce(message)
    services.produce("landed", None, message.value)


@pytest.mark.django_db(transaction=True)
def test_an_executor_that_stops_waits_no_longer_for_records(executor: Executor, producing: list[Any]) -> None:
    stop = threading.Event()
    producing[:] = [stop.set]
    letter = dead_letter({"n": 1})
    replay = ask(letter)

    with pytest.raises(DeliveryFailed):
        executor.run_next(stop)

    letter.refresh_from_db()
    replay.refresh_from_db()
    assert (letter.state, letter.attempts, replay.state, replay.claim) == ("open", 1, "requested", "")


def test_only_replays_of_the_named_consumers_are_taken(db: None) -> None:
    ask(dead_letter({}, consumer="other"))
    mine = Executor(["ops"])
    try:
        assert mine.run_next() is None
    finally:
        mine.close()


# Several executors, and executors that die


def test_a_live_claim_is_left_alone_and_an_expired_one_is_taken_over(executor: Executor) -> None:
    letter = dead_letter({})
    replay = ask(letter)
    now = timezone.now()
    Replay.objects.update(state="running", claim="somebody", executor="dead:1", claimed_at=now)

    assert executor.run_next() is None

    Replay.objects.update(claimed_at=now - timedelta(seconds=LEASE + 1))
    assert executor.run_next() == replay
    replay.refresh_from_db()
    assert replay.state == "succeeded"
    assert replay.executor != "dead:1"


def test_a_claim_that_is_renewed_at_the_last_moment_is_not_taken_over(executor: Executor) -> None:
    ask(dead_letter({}))
    now = timezone.now()
    Replay.objects.update(state="running", claim="somebody", claimed_at=now - timedelta(seconds=LEASE + 1))
    renewals = [lambda: Replay.objects.update(claimed_at=now)]

    def renew_first(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if sql.startswith("UPDATE") and renewals:
            renewals.pop()()
        return execute(sql, *arguments)

    with connection.execute_wrapper(renew_first):
        assert executor.run_next() is None
    assert not renewals
    assert Replay.objects.get().claim == "somebody"


@pytest.fixture
def repeatable_reads(transactional_db: None) -> Iterator[None]:
    """What transactions read stays as it was when they began, where the database knows levels of that."""
    options = connection.settings_dict["OPTIONS"]
    if connection.vendor == "postgresql":
        connection.close()
        options["isolation_level"] = psycopg.IsolationLevel.REPEATABLE_READ
    yield
    connection.close()
    options.pop("isolation_level", None)


def handle_while_the_claim_is_renewed(message: Message) -> None:
    """Be slow, as the executor's other thread sees it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")

    def renew() -> None:
        assert Replay.objects.update(claimed_at=timezone.now()) == 1
        connections.close_all()

    renewing = threading.Thread(target=renew)
    renewing.start()
    renewing.join()
    handle(message)


def test_a_claim_that_is_renewed_meanwhile_is_no_conflict(
    repeatable_reads: None, executor: Executor, settings: Any
) -> None:
    mine = kafka("flights")
    mine["consumers"]["ops"]["topics"]["flights"]["handler"] = "tests.test_replaying.handle_while_the_claim_is_renewed"
    settings.KAFKA = mine
    replay = ask(dead_letter({"n": 1}))

    assert executor.run_next() == replay

    replay.refresh_from_db()
    assert (replay.state, Effect.objects.count()) == ("succeeded", 1)


CLOCKS = [timedelta(days=365), timedelta(days=-365), timedelta(0)]
"""How far the clock of a machine is off: a year ahead, a year behind, and right again."""
handled_by: list[str] = []
begun, go_on = threading.Event(), threading.Event()


def handle_when_told(message: Message) -> None:
    """Take as long as the test wants the first time, and leave an effect."""
    handled_by.append(threading.current_thread().name)
    if len(handled_by) == 1:
        begun.set()
        assert go_on.wait(30)
    handle(message)


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Put the clock of this process off; that of the database stays as it is."""
    true_now = timezone.now

    def step(by: timedelta) -> None:
        monkeypatch.setattr(timezone, "now", lambda: true_now() + by)

    return step


@pytest.mark.parametrize("claimed", CLOCKS, ids=["ahead", "behind", "right"])
def test_no_clock_that_is_stepped_strands_a_replay_or_has_it_carried_out_twice(
    claimed: timedelta,
    transactional_db: None,
    executor: Executor,
    settings: Any,
    step: Callable[[timedelta], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_kafka.dead_letters.claiming.LEASE", 0.4)  # renewed ten times a second
    handled_by.clear()
    begun.clear()
    go_on.clear()
    mine = kafka("flights")
    mine["consumers"]["ops"]["topics"]["flights"]["handler"] = "tests.test_replaying.handle_when_told"
    settings.KAFKA = mine
    letter = dead_letter({})
    replay = ask(letter)
    frozen = Executor()
    lost: list[BaseException] = []

    def carry_it_out() -> None:
        try:
            frozen.run_next()
        except ClaimLost as error:
            lost.append(error)
        finally:
            connections.close_all()

    step(claimed)
    first = threading.Thread(target=carry_it_out, name="first")
    first.start()
    try:
        assert begun.wait(30)
        for off in CLOCKS:
            step(off)
            assert executor.run_next() is None
            assert replaying.cancel([letter.pk]) == 0
        for off in CLOCKS:
            step(off)
            renewed = Replay.objects.get().claimed_at
            wait_until(lambda renewed=renewed: Replay.objects.get().claimed_at > renewed)
            assert executor.run_next() is None

        # Nobody renews it any more, and its time passes.
        step(claimed)
        frozen.close()
        Replay.objects.update(claimed_at=F("claimed_at") - timedelta(seconds=LEASE + 1))
        for off in CLOCKS:
            step(off)
            assert executor.run_next() == (replay if off == CLOCKS[0] else None)
    finally:
        go_on.set()
        first.join(30)
        frozen.close()

    letter.refresh_from_db()
    assert (letter.state, len(handled_by), len(lost), Effect.objects.count()) == ("resolved", 2, 1, 1)


def test_a_replay_whose_executor_was_killed_can_be_taken_back(executor: Executor) -> None:
    letter = dead_letter({})
    ask(letter)
    now = timezone.now()
    Replay.objects.update(state="running", claim="somebody", executor="dead:1", claimed_at=now)
    assert replaying.cancel([letter.pk]) == 0

    Replay.objects.update(claimed_at=now - timedelta(seconds=LEASE + 1))
    assert replaying.cancel([letter.pk]) == 1
    assert executor.run_next() is None
    assert Replay.objects.get().state == "cancelled"


def test_whoever_lost_the_claim_rolls_back_and_changes_nothing(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = dead_letter({})
    replay = ask(letter)

    def taken_over(message: Message) -> None:
        handle(message)
        Replay.objects.update(claim="somebody else", executor="other:1")

    monkeypatch.setattr("tests.test_replaying.handle_as_told", taken_over, raising=False)
    kept = kafka("flights")
    kept["consumers"]["ops"]["topics"]["flights"]["handler"] = "tests.test_replaying.handle_as_told"
    with override_settings(KAFKA=kept), pytest.raises(ClaimLost):
        executor.run_next()

    letter.refresh_from_db()
    assert (letter.state, letter.attempts) == ("open", 1)
    assert not Effect.objects.exists()
    assert Replay.objects.get(pk=replay.pk).state == "running"


def drain_together(desk: Desk) -> None:
    """Two processes carry out the same replays; each handler runs once."""
    ids = desk.write(*({"n": n, "seconds": 0.005} for n in range(60)))
    desk.run("kafka_replay", "--all", "--dry-run")
    assert not desk.runs()
    desk.run("shell", "-v0", "-c", ASK)

    both = [desk.start("kafka_replay", "--requested") for _ in range(2)]
    for program in both:
        assert program.finish(90) == 0, program.output()

    runs = desk.runs()
    assert len(runs) == len(set(runs)) == len(ids)
    assert desk.rows("SELECT count(*) FROM tests_effect") == [(len(ids),)]
    assert desk.rows("SELECT state, count(*) FROM lynx_kafka_replay GROUP BY state") == [("succeeded", len(ids))]


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk.on_sqlite(tmp_path)
    yield desk
    desk.close()


@pytest.fixture
def on_postgresql(tmp_path: Path, postgresql: PostgreSQL) -> Iterator[Desk]:
    desk = Desk.on_postgresql(tmp_path, postgresql)
    yield desk
    desk.close()


def test_two_processes_never_both_run_one_letter_on_sqlite(on_sqlite: Desk) -> None:
    drain_together(on_sqlite)


def test_two_processes_never_both_run_one_letter_on_postgresql(on_postgresql: Desk) -> None:
    drain_together(on_postgresql)


def test_two_threads_never_both_run_one_letter_on_postgresql(on_postgresql: Desk) -> None:
    ids = on_postgresql.write(*({"n": n} for n in range(40)))
    code = """
import threading
from django.db import connections
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.executing import Executor
replaying.request(replaying.letters().values_list("pk", flat=True))
def work():
    executor = Executor()
    while executor.run_next():
        pass
    executor.close()
    connections.close_all()
threads = [threading.Thread(target=work) for _ in range(4)]
[one.start() for one in threads]
[one.join() for one in threads]
"""
    on_postgresql.run("shell", "-v0", "-c", code)

    assert sorted(on_postgresql.runs()) == sorted(set(on_postgresql.runs()))
    assert on_postgresql.rows("SELECT count(*) FROM tests_effect") == [(len(ids),)]


@pytest.mark.parametrize("where", ["on_sqlite", pytest.param("on_postgresql", marks=pytest.mark.real)])
def test_a_killed_executor_is_taken_over_when_its_claim_runs_out(request: pytest.FixtureRequest, where: str) -> None:
    desk: Desk = request.getfixturevalue(where)
    desk.write({"gate": "open"})
    first = desk.start("kafka_replay", "--all")
    desk.wait_until(desk.runs, first)
    first.end(signal.SIGKILL)
    assert desk.rows("SELECT state FROM lynx_kafka_replay") == [("running",)]
    (desk.home / "open").touch()

    early = desk.run("kafka_replay", "--requested", "--timeout", "1s", code=1)
    assert "left: 1" in early
    assert len(desk.runs()) == 1
    desk.rows("UPDATE lynx_kafka_replay SET claimed_at = '2026-01-01 00:00:00'")
    late = desk.run("kafka_replay", "--requested")

    assert "Succeeded: 1, failed: 0, cancelled: 0, left: 0." in late
    assert len(desk.runs()) == 2
    assert desk.rows("SELECT count(*) FROM tests_effect") == [(1,)]  # the killed one's was rolled back
    assert desk.rows("SELECT state, attempts FROM lynx_kafka_deadletter") == [("resolved", 2)]


# The topic again


@pytest.fixture
def flights(embedded: Cluster, topic: Callable[..., str], settings: Any, tmp_path: Path) -> Iterator[Desk]:
    """A project with a topic of its own on a cluster of its own."""
    name = topic("flights")
    embedded.create_topic(name, partitions=2)
    settings.KAFKA = {"brokers": [embedded.bootstrap_servers]}
    # One after another: each waits until the session of the one before is over.
    short = {"session_timeout": "3s", "heartbeat_interval": "500ms"}
    desk = Desk.on_sqlite(tmp_path, brokers=embedded.bootstrap_servers, topic=name, options=short)
    yield desk
    desk.close()


def letters_of(desk: Desk, columns: str) -> list[tuple[Any, ...]]:
    return desk.rows(f"SELECT {columns} FROM lynx_kafka_deadletter ORDER BY id")


def test_a_replay_to_the_topic_keeps_key_value_and_headers_and_carries_the_letters_id(flights: Desk) -> None:
    headers = [("b", b"\x00"), ("a", None), ("b", b"2"), (LETTER_HEADER, b"77")]
    services.produce(flights.topic, b"\x00k", b"\xff\x00raw", headers=headers).result()
    flights.run("kafka_consume", "--until-empty")
    (before,) = letters_of(flights, "id, key, value, stored_headers, state")

    assert "Succeeded: 1" in flights.run("kafka_replay", "--all", "--target", "topic")
    ((result,),) = flights.rows("SELECT result FROM lynx_kafka_replay")
    assert result.startswith(f"{flights.topic}[")
    assert letters_of(flights, "state") == [("resolved",)]

    sent = last_record(flights, result)
    assert (sent.raw_key, sent.raw_value) == (b"\x00k", b"\xff\x00raw")
    assert sent.headers == (("b", b"\x00"), ("a", None), ("b", b"2"), (LETTER_HEADER, str(before[0]).encode()))
    flights.run("kafka_consume", "--until-empty")
    assert letters_of(flights, "id, key, value, stored_headers, state") == [before]


def last_record(desk: Desk, place: str) -> Message:
    """Read one record again by a bare client."""
    from confluent_kafka import Consumer, TopicPartition

    found = re.fullmatch(r"(.+)\[(\d+)\]@(\d+)", place)
    assert found, place
    consumer = Consumer({"bootstrap.servers": desk.brokers, "group.id": "reader"})
    try:
        consumer.assign([TopicPartition(found[1], int(found[2]), int(found[3]))])
        raw = wait_until(lambda: consumer.poll(0.2), message="the record was not read")
    finally:
        consumer.close()
    return Message(raw, TopicDecoder("bytes", "bytes"))


def test_a_new_failure_of_a_replayed_record_comes_back_to_the_same_letter(flights: Desk) -> None:
    services.produce(flights.topic, "k", {"n": 1, "bad": True}, headers={"type": "x"}).result()
    flights.run("kafka_consume", "--until-empty")
    assert letters_of(flights, "state, attempts") == [("open", 1)]

    flights.run("kafka_replay", "--all", "--target", "topic")
    assert letters_of(flights, "state, attempts") == [("resolved", 1)]
    flights.run("kafka_consume", "--until-empty")
    assert letters_of(flights, "state, attempts") == [("open", 2)]

    (flights.home / "mended").touch()
    flights.run("kafka_replay", "--all", "--target", "topic")
    flights.run("kafka_consume", "--until-empty")
    assert letters_of(flights, "state, attempts") == [("resolved", 2)]
    assert flights.rows("SELECT count(*) FROM tests_effect") == [(1,)]


def test_a_failure_that_overtakes_the_end_of_its_replay_stands(
    embedded: Cluster, settings: Any, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.KAFKA = kafka("flights", embedded.bootstrap_servers)
    letter = dead_letter({"n": 1})
    replay = ask(letter, "topic")

    def send_and_fail_at_once(*arguments: Any) -> Any:
        delivery = send_now(*arguments).result()
        failure = Failure.of(ValueError("failed again"), category="handler", handler="x")
        add_attempt("default", DeadLetter.objects.get(), failure, "worker")
        return delivery

    monkeypatch.setattr("django_kafka.dead_letters.targets.send_now", send_and_fail_at_once)
    executor.run_next()

    letter.refresh_from_db()
    replay.refresh_from_db()
    assert (letter.state, letter.attempts, replay.state) == ("open", 2, "succeeded")
    assert list(DeadLetterAttempt.objects.values_list("number", flat=True)) == [1, 2]


def test_a_forged_header_does_not_touch_somebody_elses_letter(flights: Desk) -> None:
    services.produce(flights.topic, "k", {"n": 1, "bad": True}).result()
    flights.run("kafka_consume", "--until-empty")
    ((theirs,),) = letters_of(flights, "id")

    forged = [str(theirs), f"0{theirs}", "-1", "9" * 30, "x", "", "١"]
    for number, header in enumerate(forged):
        services.produce(flights.topic, "k", {"n": number + 2, "bad": True}, headers={LETTER_HEADER: header}).result()
    services.produce(flights.topic, "other", {"n": 1, "bad": True}, headers={LETTER_HEADER: str(theirs)}).result()
    flights.run("kafka_consume", "--until-empty")

    assert letters_of(flights, "attempts") == [(1,)] * (len(forged) + 2)


def test_a_running_worker_carries_out_what_was_asked_for(flights: Desk) -> None:
    flights.write({"n": 1}, {"n": 2})
    worker = flights.start("kafka_consume")
    flights.run("shell", "-v0", "-c", ASK)

    flights.wait_until(lambda: letters_of(flights, "state") == [("resolved",)] * 2, worker)

    worker.send_signal(signal.SIGTERM)
    assert worker.finish() == 0, worker.output()
    assert len(flights.runs()) == 2


# Letters that end whoever replays them


def test_a_replay_that_ends_three_processes_is_not_carried_out_again(executor: Executor) -> None:
    letter = dead_letter({})
    ask(letter)
    for _ in range(3):
        raised.append(SystemExit())
        with pytest.raises(SystemExit):
            executor.run_next()

    replay = executor.run_next()

    assert replay is not None
    assert (replay.state, replay.deaths) == ("failed", 3)
    assert replay.result == "3 processes ended while they carried it out; it was not tried again."
    assert not Effect.objects.exists()
    letter.refresh_from_db()
    assert (letter.state, letter.attempts) == ("open", 1)
    ask(letter)
    second = executor.run_next()
    assert second is not None
    assert second.state == "succeeded", "Who asks again gets another chance."


def test_claims_that_were_not_given_back_count_as_deaths_and_a_ctrl_c_does_not(executor: Executor) -> None:
    replay = ask(dead_letter({}))
    for deaths in (1, 2):
        raised.append(KeyboardInterrupt())
        Replay.objects.update(state="running", claim="killed", claimed_at=timezone.now() - timedelta(seconds=LEASE + 1))
        with pytest.raises(KeyboardInterrupt):
            executor.run_next()
        replay.refresh_from_db()
        assert (replay.state, replay.deaths) == ("requested", deaths)
    Replay.objects.update(state="running", claim="killed", claimed_at=timezone.now() - timedelta(seconds=LEASE + 1))
    done = executor.run_next()
    assert done is not None
    assert (done.state, done.deaths) == ("failed", 3)
