"""Dry runs: what a handler would do is seen, and nothing of it takes place."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.utils import timezone
from pytest_django import Settings

from django_kafka import handlers, retries, services, tallies
from django_kafka.dead_letters import dry_runs, replaying
from django_kafka.dead_letters.claiming import ClaimLost
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.replaying import LEASE
from django_kafka.exceptions import DeliveryDiscarded, DeliveryPending, ReplayRefused, Skip
from django_kafka.messages import Message
from django_kafka.models import Claim, DeadLetter, DeadLetterAttempt, Hold, Replay
from django_kafka.signals import dead_letter_replayed, message_handled, record_delivered
from tests.app.handlers import record
from tests.app.models import Effect
from tests.databases import added, of_sqlite
from tests.desk import Desk
from tests.letters import dead_letter

KAFKA: dict[str, Any] = {
    "brokers": ["127.0.0.1:1"],
    "producers": {"default": {}, "now": {"send": "immediate"}},
    "consumers": {
        "ops": {
            "group_id": "ops",
            "topics": {"flights": {"handler": "tests.test_dry_runs.handle", "dry_run": True}},
        }
    },
}
DRY = {"topics": {"flights": {"handler": "desk_handlers.handle", "dry_run": True}}}
what: list[Callable[[Message], Any]] = []
"""What the handler does beside leaving an effect."""
never: list[str] = []
"""What must stay empty."""


def handle(message: Message) -> None:
    record(message)
    for each in what:
        each(message)


async def awaited(message: Message) -> None:
    never.append("ran")


def conditional(message: Message) -> None:
    record(message)


@pytest.fixture(autouse=True)
def _desk(settings: Settings) -> Iterator[None]:
    settings.KAFKA = KAFKA
    what.clear()
    never.clear()
    yield
    what.clear()
    assert never == []


@pytest.fixture
def executor(db: None) -> Iterator[Executor]:
    mine = Executor()
    yield mine
    mine.close()


def ask(letter: DeadLetter) -> Replay:
    assert replaying.request([letter.pk], target="dry-run").count == 1
    return Replay.objects.filter(letter=letter).latest("id")


def tried(executor: Executor, letter: DeadLetter | None = None) -> Replay:
    """Ask for a dry run and carry it out."""
    replay = ask(letter or dead_letter({"n": 1}))
    assert executor.run_next() == replay
    replay.refresh_from_db()
    return replay


def report_of(replay: Replay) -> dry_runs.Report:
    assert replay.report is not None
    return dry_runs.Report.from_bytes(replay.report)


def everything() -> list[list[dict[str, Any]]]:
    models = (DeadLetter, DeadLetterAttempt, Effect, Hold)
    return [list(model.objects.order_by("pk").values()) for model in models]


# What is seen


def test_a_dry_run_leaves_nothing_but_its_report(executor: Executor) -> None:
    letter = dead_letter({"n": 1})
    before = everything()
    told: list[object] = []

    def tell(sender: Any, **event: Any) -> None:
        told.append(event)

    for one in (dead_letter_replayed, message_handled, record_delivered):
        one.connect(tell, weak=False)
    counted = tallies.of_consumer("ops").replays.copy()
    try:
        what.append(lambda message: services.produce("gates", "K", {"gate": "A1"}))
        what.append(lambda message: transaction.on_commit(lambda: never.append("hook")))
        replay = tried(executor, letter)
    finally:
        for one in (dead_letter_replayed, message_handled, record_delivered):
            one.disconnect(tell)

    assert everything() == before
    assert told == []
    assert tallies.of_consumer("ops").replays == counted
    assert (replay.state, replay.result, replay.claim != "") == ("succeeded", "", True)
    report = report_of(replay)
    assert (report.outcome, report.handler, report.queries, report.hooks) == (
        "succeeded", "tests.test_dry_runs.handle", 1, 1,
    )  # fmt: skip
    assert 0 < report.seconds < 30
    (would,) = report.records
    assert (would.producer, would.topic, would.key, would.value) == ("default", "gates", b"K", b'{"gate":"A1"}')
    assert executor.run_next() is None


def test_it_commits_nothing_where_no_transaction_surrounds_it(
    transactional_db: None,
) -> None:
    what.append(lambda message: transaction.on_commit(lambda: never.append("hook")))
    mine = Executor()
    try:
        assert report_of(tried(mine)).hooks == 1
    finally:
        mine.close()
    assert not Effect.objects.exists()
    assert DeadLetter.objects.get().state == "open"


def test_what_would_leave_at_once_is_captured_and_never_sent(executor: Executor) -> None:
    states: list[Any] = []

    def produce(message: Message) -> None:
        at_once = services.produce("gates", "K", 1, producer="now", headers={"a": b"\xff"}, partition=2)
        later = services.produce("gates", "K", 2)
        states.append((at_once.result().state, at_once.partition, later.state))
        with pytest.raises(DeliveryPending):
            later.result()
        states.append(later)
        services.produce_batch("gates", [{"key": "K", "value": 3}, {"key": None, "value": None}])

    what.append(produce)
    report = report_of(tried(executor))
    assert [one.value for one in report.records] == [b"1", b"2", b"3", None]
    assert (report.records[0].partition, report.records[0].headers) == (2, (("a", b"\xff"),))
    assert states[0] == ("acknowledged", 2, "uncommitted")
    assert isinstance(states[1].error, DeliveryDiscarded)
    assert services.flush(0.1) == 0


def test_what_a_savepoint_took_back_would_not_have_been_sent(executor: Executor) -> None:
    def produce(message: Message) -> None:
        try:
            with transaction.atomic():
                services.produce("gates", "K", "lost")
                transaction.on_commit(lambda: never.append("hook"))
                raise LookupError
        except LookupError:
            services.produce("gates", "K", "kept")

    what.append(produce)
    report = report_of(tried(executor))
    assert [one.value for one in report.records] == [b'"kept"']
    assert report.hooks == 0


def test_other_threads_produce_as_ever_meanwhile(executor: Executor) -> None:
    sent: list[Any] = []

    def elsewhere() -> None:
        sent.append(services.produce("gates", "K", "real", producer="now"))

    def wait(message: Message) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    what.append(wait)
    assert report_of(tried(executor)).records == ()
    assert sent[0].state == "pending"


def test_an_error_is_told_with_its_place(executor: Executor) -> None:
    letter = dead_letter({"n": 1}, error_message="the first error")

    def fail(message: Message) -> None:
        services.produce("gates", "K", 1)
        services.produce("gates", "K", 2, producer="now")
        raise ValueError("still\0broken")

    what.append(fail)
    before = everything()
    replay = tried(executor, letter)
    assert everything() == before
    report = report_of(replay)
    assert (replay.state, replay.result) == ("failed", "ValueError: still\\x00broken")
    assert (report.outcome, report.error_type, report.category) == ("failed", "ValueError", "handler")
    assert "in fail" in report.traceback
    assert [one.value for one in report.records] == [b"2"]  # the other one would have been rolled back


def test_a_message_that_would_be_skipped(executor: Executor) -> None:
    def skip(message: Message) -> None:
        raise Skip("old")

    what.append(skip)
    replay = tried(executor)
    assert (replay.state, replay.result, report_of(replay).outcome) == ("succeeded", "Skipped: old", "skipped")


def test_a_reason_that_databases_do_not_take_ends_the_dry_run_like_any_other(executor: Executor) -> None:
    def skip(message: Message) -> None:
        raise Skip("no passenger \0\ud800")

    what.append(skip)
    replay = tried(executor)
    assert (replay.state, replay.result) == ("succeeded", "Skipped: no passenger \\x00\\ud800")


@pytest.mark.parametrize("value", [b"\xff\xfe", b"{" * 100_000])
def test_a_message_that_cannot_be_decoded(executor: Executor, value: bytes) -> None:
    report = report_of(tried(executor, dead_letter(value)))
    assert (report.outcome, report.category) == ("failed", "serialization")


def test_what_the_commit_would_have_refused_is_an_error(transactional_db: None) -> None:
    def refer(message: Message) -> None:
        DeadLetterAttempt.objects.create(letter_id=10**12, number=1, at=timezone.now(), origin="worker")

    what.append(refer)
    mine = Executor()
    try:
        report = report_of(tried(mine))
    finally:
        mine.close()
    assert report.error_type == "django.db.utils.IntegrityError"
    assert not Effect.objects.exists()


def test_a_handler_that_hides_a_broken_transaction_fails(executor: Executor) -> None:
    def hide(message: Message) -> None:
        try:
            Effect.objects.create(pk=Effect.objects.get().pk, topic="x", partition=0, offset=0)
        except IntegrityError:
            pass

    what.append(hide)
    report = report_of(tried(executor))
    assert "TransactionManagementError" in report.error_type
    assert "caught a database error" in report.error_message


def test_much_is_cut_and_counted(executor: Executor) -> None:
    def produce(message: Message) -> None:
        for number in range(130):
            services.produce("gates", "K", bytes(100_000) if number < 20 else b"small")

    what.append(produce)
    replay = tried(executor)
    report = report_of(replay)
    assert (len(report.records), report.more_records) == (100, 30)
    assert [one.left_out for one in report.records[:20]] == [False] * 10 + [True] * 10
    assert report.records[15].size == 100_001
    assert not report.records[50].left_out
    assert len(replay.report or b"") < 3_000_000


def test_records_of_coroutines_that_it_waits_for_are_captured(executor: Executor) -> None:
    async def produce() -> None:
        await services.aproduce("gates", "K", 1, producer="now")
        await asyncio.to_thread(services.produce, "gates", "K", 2, producer="now")

    what.append(lambda message: async_to_sync(produce)())
    assert [one.value for one in report_of(tried(executor)).records] == [b"1", b"2"]


@pytest.mark.parametrize(
    "options",
    [
        {"transaction": "batch"},
        {"timeout": "20s"},
        {"transaction": "batch", "timeout": "20s"},
        {"guarantee": "effect_once"},
        {"on_dead_letter": "hold_key"},
        {"enabled": False},
    ],
)
def test_whatever_its_consumer_is_like_it_leaves_nothing(
    executor: Executor, settings: Settings, options: dict[str, Any]
) -> None:
    settings.KAFKA = kafka(topic={"dry_run": True}, **options)
    claim = Claim.objects.create(
        cluster="default", group_id="ops", topic="flights", partition=0, offset=7, epoch=3, claimed_at=timezone.now()
    )
    stored = Claim.objects.values().get()
    what.append(lambda message: services.produce("gates", "K", 1))
    letter = dead_letter({"n": 1})
    before = everything()
    report = report_of(tried(executor, letter))
    assert (report.outcome, report.queries >= 1, len(report.records)) == ("succeeded", True, 1)
    assert everything() == before
    assert Claim.objects.values().get(pk=claim.pk) == stored


def test_a_handler_of_lists_gets_a_list_of_one(executor: Executor, settings: Settings) -> None:
    def take(messages: Any) -> None:
        for message in messages:
            record(message)

    settings.KAFKA = kafka(topic={"handler": None}, transaction="batch")
    handlers.kafka_handler(topics="flights", consumer="ops", batch=True, dry_run=True)(take)
    try:
        report = report_of(tried(executor))
    finally:
        handlers.forget(take)
    assert (report.outcome, report.queries) == ("succeeded", 1)
    assert not Effect.objects.exists()


def test_a_time_limit_holds(executor: Executor, settings: Settings) -> None:
    # Long enough for a transaction to begin on a busy machine, which is of the handler's time.
    settings.KAFKA = kafka(topic={"dry_run": True}, timeout="1s")

    def dawdle(message: Message) -> None:
        time.sleep(1.01)
        Effect.objects.count()

    what.append(dawdle)
    report = report_of(tried(executor))
    assert (report.outcome, report.error_type) == ("failed", "django_kafka.exceptions.HandlerTimeout")
    assert report.seconds >= 1


def test_a_report_of_a_later_version_can_be_read() -> None:
    would = dry_runs.Would(
        producer="default", topic="gates", key=b"\0", value=None, headers=(("a", b"\xff"), ("b", None)), partition=1,
        timestamp_ms=2, size=3,
    )  # fmt: skip
    report = dry_runs.Report(outcome="succeeded", handler="x", records=(would,))
    assert dry_runs.Report.from_bytes(report.to_bytes()) == report
    more = json.loads(report.to_bytes()) | {"energy": 1}
    more["records"][0]["colour"] = "blue"
    assert dry_runs.Report.from_bytes(memoryview(json.dumps(more).encode())) == report


# What is refused


@pytest.fixture
def other_database(tmp_path: Path, django_db_blocker: Any) -> Iterator[None]:
    with added("other", django_db_blocker, **of_sqlite(tmp_path / "other")):
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def on_each_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    if request.param == "sqlite":
        made = Desk.on_sqlite(tmp_path, options=DRY)
    else:
        made = Desk.on_postgresql(tmp_path, request.getfixturevalue("postgresql"), options=DRY)
    yield made
    made.close()


def refused(executor: Executor, letter: DeadLetter | None = None) -> str:
    before = everything()
    stored = letter or dead_letter({"n": 1})
    if letter is None:
        before = everything()
    replay = tried(executor, stored)
    assert everything() == before
    assert (replay.state, replay.report) == ("cancelled", None)
    return replay.result


def kafka(**options: Any) -> dict[str, Any]:
    topic = {"handler": "tests.test_dry_runs.handle", **options.pop("topic", {})}
    return {**KAFKA, "consumers": {"ops": {"group_id": "ops", "topics": {"flights": topic}, **options}}}


def test_a_handler_that_was_not_declared_fit_never_runs(executor: Executor, settings: Settings) -> None:
    settings.KAFKA = kafka()
    what.append(lambda message: never.append("ran"))
    letter = dead_letter({})
    assert "not declared fit for dry runs" in refused(executor, letter)
    assert "dry_run=True" in dry_runs.refusal(letter)
    assert dry_runs.topics() == []


def test_without_a_transaction_it_never_runs(executor: Executor, settings: Settings) -> None:
    settings.KAFKA = kafka(transaction="none", topic={"dry_run": True})
    what.append(lambda message: never.append("ran"))
    assert "“none”" in refused(executor)
    settings.KAFKA = kafka(transaction="none", topic={"dry_run": True, "handler": "tests.test_dry_runs.awaited"})
    assert "asynchronous" in refused(executor)


def test_an_imported_letter_has_no_handler_here(executor: Executor) -> None:
    assert "runs elsewhere" in refused(executor, dead_letter({}, imported_as="spring", origin_topic="orders"))


def test_a_letter_that_is_settled_is_not_tried(executor: Executor) -> None:
    assert replaying.request([dead_letter({}, state="resolved").pk], target="dry-run").count == 0
    letter = dead_letter({})
    replay = ask(letter)
    DeadLetter.objects.update(state="discarded")
    executor.run_next()
    replay.refresh_from_db()
    assert (replay.state, replay.report) == ("cancelled", None)


@pytest.mark.parametrize("sql", ["COMMIT", "/* x */ commit", "-- x\nEND", "SELECT 1; COMMIT", "ROLLBACK", "BEGIN"])
def test_a_handler_that_ends_its_transaction_is_stopped(executor: Executor, sql: str) -> None:
    def end(message: Message) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    what.append(end)
    assert "ends its transaction by itself" in refused(executor)


@pytest.mark.django_db(transaction=True)
def test_a_handler_that_commits_past_django_is_told_of() -> None:
    def end(message: Message) -> None:
        assert connection.connection is not None
        connection.connection.commit()

    what.append(end)
    mine = Executor()
    try:
        replay = tried(mine)
    finally:
        mine.close()
    assert "past Django" in replay.result


def test_a_savepoint_of_the_handlers_own_is_none_of_that(executor: Executor) -> None:
    def nest(message: Message) -> None:
        # Django 6.1 has another name for it.
        begin = getattr(transaction, "savepoint_create", None) or transaction.savepoint
        point = begin()
        Effect.objects.all().delete()
        transaction.savepoint_rollback(point)
        transaction.savepoint_commit(begin())

    what.append(nest)
    report = report_of(tried(executor))
    assert (report.outcome, report.queries) == ("succeeded", 2)


@pytest.mark.parametrize("caught", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        lambda: Effect.objects.using("other").count(),
        lambda: transaction.on_commit(lambda: never.append("hook"), using="other"),
        lambda: services.produce("gates", "K", 1),
    ],
)
def test_another_database_is_not_used(
    executor: Executor, other_database: None, use: Callable[[], Any], caught: bool
) -> None:
    def elsewhere(message: Message) -> None:
        try:
            with transaction.atomic(using="other"):
                use()
        except ReplayRefused:
            if not caught:
                raise

    what.append(elsewhere)
    replay = tried(executor)
    if replay.state == "cancelled":
        assert "uses database 'other' as well" in replay.result
    else:  # produced in the transaction of "default", which is the first one
        assert len(report_of(replay).records) == 1
    assert "on_commit" not in vars(connections["other"])


def test_a_commit_hook_of_another_database_does_not_run_at_once(executor: Executor, other_database: None) -> None:
    what.append(lambda message: transaction.on_commit(lambda: never.append("hook"), using="other"))
    replay = tried(executor)
    assert (replay.state, "uses database 'other' as well" in replay.result) == ("cancelled", True)


# How it is carried out


def test_an_outage_is_waited_for(executor: Executor) -> None:
    def down(message: Message) -> None:
        raise OperationalError("could not connect to server")

    what.append(down)
    replay = ask(dead_letter({}))
    with pytest.raises(OperationalError):
        executor.run_next()
    replay.refresh_from_db()
    assert (replay.state, replay.claim, replay.deaths, replay.report) == ("requested", "", 0, None)
    what.clear()
    assert executor.run_next() == replay
    assert report_of(Replay.objects.get()).outcome == "succeeded"


def fickle(error: BaseException, attempt: int, message: Message | None) -> Any:
    """Decide for an outage the first time, and for nothing at all after that."""
    asked.append(attempt)
    return retries.Wait("away") if len(asked) == 1 else None


asked: list[int] = []


def test_what_an_error_is_is_decided_once(executor: Executor, settings: Settings) -> None:
    settings.KAFKA = kafka(topic={"dry_run": True}, retry={"decide": "tests.test_dry_runs.fickle"})
    asked.clear()

    def fail(message: Message) -> None:
        raise LookupError

    what.append(fail)
    letter = dead_letter({})
    replay = ask(letter)
    before = everything()
    with pytest.raises(LookupError):
        executor.run_next()
    replay.refresh_from_db()
    assert (replay.state, asked) == ("requested", [2])
    assert everything() == before


@pytest.mark.parametrize(("error", "deaths"), [(SystemExit, 1), (MemoryError, 1), (KeyboardInterrupt, 0)])
def test_what_stops_a_process_is_no_result(executor: Executor, error: type[BaseException], deaths: int) -> None:
    def stop(message: Message) -> None:
        raise error

    what.append(stop)
    replay = ask(dead_letter({}))
    with pytest.raises(error):
        executor.run_next()
    replay.refresh_from_db()
    assert (replay.state, replay.deaths, replay.report) == ("requested", deaths, None)
    assert not Effect.objects.exists()


def test_one_that_was_taken_over_tells_nothing(executor: Executor) -> None:
    replay = ask(dead_letter({}))
    executor._claims._claim = "mine"

    # What the handler writes is rolled back, also a claim: so the executor is made to think of another one.
    def lose(message: Message) -> None:
        executor._claims._claim = "another"

    what.append(lose)
    with pytest.raises(ClaimLost):
        executor.run_next()
    replay.refresh_from_db()
    assert (replay.state, replay.report) == ("running", None)


def test_it_is_asked_for_and_taken_back_like_any_replay(executor: Executor) -> None:
    letter = dead_letter({})
    ask(letter)
    assert replaying.request([letter.pk]).refused == 1
    assert replaying.discard([letter.pk]) == 0
    assert replaying.cancel([letter.pk]) == 1
    assert executor.run_next() is None
    assert replaying.request([letter.pk]).count == 1


def test_a_letter_that_holds_its_key_can_be_tried_and_goes_on_holding_it(executor: Executor) -> None:
    hold = Hold.objects.create(
        cluster="default", group_id="ops", topic="flights", partition=0, key=b"UA 1545", key_hash="x",
        consumer="ops", since=timezone.now(),
    )  # fmt: skip
    letter, second = dead_letter({}, hold=hold), dead_letter({}, hold=hold)
    before = everything()
    assert tried(executor, second).state == "succeeded"
    assert tried(executor, letter).state == "succeeded"
    assert everything() == before


def test_the_decorator_and_a_dispatch_rule_declare_it_too(executor: Executor, settings: Settings) -> None:
    rule = {"header": {"type": "x"}, "handler": "tests.test_dry_runs.conditional", "dry_run": True}
    settings.KAFKA = kafka(topic={"dispatch": [rule]})
    fit, unfit = dead_letter({}, headers=[("type", b"x")]), dead_letter({})
    assert dry_runs.refusal(fit) == ""
    assert dry_runs.refusal(unfit) != ""
    assert dry_runs.topics() == [("ops", "flights")]

    settings.KAFKA = kafka(topic={"handler": None})
    handlers.kafka_handler(topics="flights", consumer="ops", dry_run=True)(conditional)
    try:
        assert dry_runs.refusal(unfit) == ""
        assert report_of(tried(executor, unfit)).outcome == "succeeded"
    finally:
        handlers.forget(conditional)


def test_a_consumer_that_is_gone_is_told_of(executor: Executor, settings: Settings) -> None:
    letter = dead_letter({}, consumer="gone")
    assert "gone" in dry_runs.refusal(letter)
    report = report_of(tried(executor, letter))
    assert (report.outcome, report.category) == ("failed", "configuration")


def test_a_killed_executor_leaves_nothing_and_another_one_does_it_again(on_each_database: Desk) -> None:
    desk = on_each_database
    (letter,) = desk.write({"gate": "open"})
    desk.rows(
        "INSERT INTO lynx_kafka_replay (letter_id, target, to_topic, edited, state, requested_by_name, requested_at, "
        f"claim, executor, deaths, result, lane) VALUES ({letter}, 'dry-run', '', false, 'requested', 'test', "
        "CURRENT_TIMESTAMP, '', '', 0, '', '')"
    )
    program = desk.start("kafka_replay", "--requested")
    desk.wait_until(lambda: desk.runs(), program)
    os.kill(program.pid, signal.SIGKILL)
    program.finish()
    assert desk.rows("SELECT count(*) FROM tests_effect") == [(0,)]
    assert desk.rows("SELECT state, deaths FROM lynx_kafka_replay") == [("running", 0)]

    (desk.home / "open").touch()
    past = timezone.now() - timedelta(seconds=LEASE + 10)
    desk.rows(f"UPDATE lynx_kafka_replay SET claimed_at = '{past:%Y-%m-%d %H:%M:%S}+00:00'")
    desk.run("kafka_replay", "--requested")
    assert desk.rows("SELECT state, deaths FROM lynx_kafka_replay") == [("succeeded", 1)]
    assert desk.rows("SELECT count(*) FROM tests_effect") == [(0,)]
    assert desk.rows("SELECT state, attempts FROM lynx_kafka_deadletter") == [("open", 1)]
    assert len(desk.runs()) == 2


def test_a_person_is_remembered(executor: Executor) -> None:
    user = User.objects.create_user("ada")
    letter = dead_letter({})
    replaying.request([letter.pk], target="dry-run", user=user)
    assert Replay.objects.get().requested_by_name == "ada"
