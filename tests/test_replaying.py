"""Replays: asked for, carried out, safe to interrupt, and always back at their own letter."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.utils import timezone

from django_kafka import services
from django_kafka.clients.embedded import Cluster
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.executing import LEASE, ClaimLost, Executor
from django_kafka.exceptions import BrokersUnreachable
from django_kafka.messages import LETTER_HEADER, Message
from django_kafka.models import DeadLetter, DeadLetterAttempt, Replay
from tests.app.models import Effect
from tests.desk import Desk
from tests.letters import dead_letter
from tests.servers import PostgreSQL

broken = threading.Event()
unreachable: list[bool] = []


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
    if broken.is_set():
        raise ValueError("still broken")


def kafka(topic: str, *brokers: str) -> dict[str, Any]:
    return {
        "brokers": list(brokers or ["127.0.0.1:1"]),
        "consumers": {
            "ops": {
                "group_id": "ops",
                "topics": {topic: {"handler": "tests.test_replaying.handle"}},
                "options": {"queued.min.messages": 1000},
            }
        },
    }


@pytest.fixture(autouse=True)
def mended(settings: Any) -> Iterator[None]:
    settings.KAFKA = kafka("flights")
    broken.clear()
    unreachable.clear()
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


def test_the_loop_waits_for_an_outage_to_end_and_goes_on(executor: Executor) -> None:
    letters = [dead_letter({}) for _ in range(3)]
    for letter in letters:
        ask(letter)
    unreachable[:] = [True, True]
    waits: list[float] = []

    done = list(carry_out(executor, stop=threading.Event(), waiting=lambda error, pause: waits.append(pause)))

    assert [replay.state for replay in done] == ["succeeded"] * 3
    assert len(waits) == 2


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


def test_whoever_lost_the_claim_rolls_back_and_changes_nothing(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    letter = dead_letter({})
    replay = ask(letter)

    def taken_over(message: Message) -> None:
        handle(message)
        Replay.objects.update(claim="somebody else", executor="other:1")

    monkeypatch.setattr("tests.test_replaying.handle_as_told", taken_over, raising=False)
    kept = kafka("flights")
    kept["consumers"]["ops"]["topics"]["flights"]["handler"] = "tests.test_replaying.handle_as_told"
    from django.test import override_settings

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
    asked = "from django_kafka.dead_letters import replaying as r; r.request(r.letters().values_list('pk', flat=True))"
    desk.run("shell", "-v0", "-c", asked)

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
def flights(embedded: Cluster, topic: Callable[..., str], settings: Any) -> str:
    """A topic on a cluster of its own."""
    name = topic("flights")
    embedded.create_topic(name, partitions=2)
    settings.KAFKA = kafka(name, embedded.bootstrap_servers)
    return name


def replay_to_topic(letter: DeadLetter) -> Replay:
    replay = ask(letter, "topic")
    mine = Executor()
    try:
        mine.run_next()
    finally:
        mine.close()
        connections.close_all()
    replay.refresh_from_db()
    return replay


@pytest.mark.django_db(transaction=True)
def test_a_replay_to_the_topic_keeps_key_value_and_headers_and_carries_the_letters_id(flights: str) -> None:
    headers = [("b", b"\x00"), ("a", None), ("b", b"2")]
    letter = dead_letter(b"\xff\x00raw", topic=flights, key=b"\x00k", headers=headers)
    received: list[tuple[Any, ...]] = []

    replay = replay_to_topic(letter)

    assert replay.state == "succeeded", replay.result
    letter.refresh_from_db()
    assert letter.state == "resolved"
    assert replay.result.startswith(f"{flights}[")
    broken.set()  # as poison it comes back, which shows what was sent
    call_command("kafka_consume", "--until-empty")
    letter.refresh_from_db()
    assert DeadLetter.objects.count() == 1
    assert (letter.state, bytes(letter.key), bytes(letter.value)) == ("open", b"\x00k", b"\xff\x00raw")
    assert letter.headers == headers
    assert not received


@pytest.mark.django_db(transaction=True)
def test_a_new_failure_of_a_replayed_record_comes_back_to_the_same_letter(flights: str) -> None:
    broken.set()
    services.produce(flights, "k", {"n": 1}, headers={"type": "x"}).result()
    call_command("kafka_consume", "--until-empty")
    letter = DeadLetter.objects.get()
    assert (letter.state, letter.attempts) == ("open", 1)

    assert replay_to_topic(letter).state == "succeeded"
    call_command("kafka_consume", "--until-empty")

    letter = DeadLetter.objects.get()
    assert letter.state == "open"
    assert letter.attempt_set.filter(origin="worker").count() == 2

    broken.clear()
    assert replay_to_topic(letter).state == "succeeded"
    call_command("kafka_consume", "--until-empty")

    letter = DeadLetter.objects.get()
    assert letter.state == "resolved"
    assert Effect.objects.get().payload == {"n": 1}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("header", ["{id}", "0{id}", "-1", "9" * 30, "x", "", "١"])
def test_a_forged_header_does_not_touch_somebody_elses_letter(flights: str, header: str) -> None:
    theirs = dead_letter({"n": 1}, topic=flights, state="discarded")
    broken.set()

    services.produce(flights, "k", {"n": 2}, headers={LETTER_HEADER: header.format(id=theirs.pk)}).result()
    call_command("kafka_consume", "--until-empty")

    theirs.refresh_from_db()
    assert (theirs.state, theirs.attempts) == ("discarded", 1)
    assert DeadLetter.objects.exclude(pk=theirs.pk).get().attempts == 1


@pytest.mark.django_db(transaction=True)
def test_a_running_worker_carries_out_what_was_asked_for(flights: str) -> None:
    letter = dead_letter({"n": 1}, topic=flights)
    ask(letter)
    services.produce(flights, "k", {"n": 2}).result()

    call_command("kafka_consume", "--until-empty")

    letter.refresh_from_db()
    assert letter.state in ("resolved", "open")  # the worker may have ended before it looked
    assert Effect.objects.filter(payload__n=2).count() == 1
