"""The command kafka_replay: what it chooses, does, says, and how it ends."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from django_kafka.dead_letters import replaying
from django_kafka.exceptions import BrokersUnreachable
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, Replay
from tests.desk import Desk
from tests.letters import dead_letter
from tests.servers import PostgreSQL

pytestmark = [pytest.mark.django_db, pytest.mark.slow]


def handle(message: Message) -> None:
    """Fail as the value says."""
    match message.value:
        case {"bad": True}:
            raise ValueError("still\x1b[31m bad\nsecond line")
        case {"down": True}:
            raise BrokersUnreachable("no broker answers")


@pytest.fixture(autouse=True)
def consumers(settings: Any) -> None:
    consumer = {"group_id": "ops", "topics": ["flights", "trains"], "handler": "tests.test_kafka_replay.handle"}
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "consumers": {"ops": consumer, "other": {**consumer, "group_id": "o"}},
    }


def replay(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("kafka_replay", *arguments, stdout=out, stderr=out, **options)
    return out.getvalue()


def refused(*arguments: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        replay(*arguments)
    return caught.value


def resolved() -> set[int]:
    return set(DeadLetter.objects.filter(state="resolved").values_list("pk", flat=True))


def test_all_open_letters_are_replayed_and_summed_up() -> None:
    letters = [dead_letter({}) for _ in range(3)]
    dead_letter({}, state="discarded")

    said = replay("--all")

    assert "Succeeded: 3, failed: 0, cancelled: 0, left: 0." in said
    assert resolved() == {letter.pk for letter in letters}
    assert all(name.startswith("kafka_replay ") for name in Replay.objects.values_list("requested_by_name", flat=True))


def test_more_letters_than_one_piece_holds() -> None:
    for _ in range(510):
        dead_letter({})

    assert "Succeeded: 510" in replay("--all")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--consumer", "other"],
        ["--topic", "trains"],
        ["--partition", "7"],
        ["--error", "shop.errors.NoStock"],
        ["--error", "NoStock"],
        ["--category", "serialization"],
        ["--key", "schlüssel"],
        ["--until", "2026-01-02"],
        ["--until", "2026-01-02T15:00:00+00:00"],
        ["--consumer", "other", "--topic", "trains", "--since", "2026-01-01", "--until", "2026-01-03"],
    ],
)
def test_letters_are_chosen_by(arguments: list[str]) -> None:
    dead_letter({})
    wanted = dead_letter(
        {}, consumer="other", topic="trains", partition=7, error_type="shop.errors.NoStock", category="serialization",
        key="schlüssel".encode(), last_failed_at=datetime(2026, 1, 2, 14, tzinfo=UTC),
    )  # fmt: skip

    replay(*arguments)

    assert set(Replay.objects.values_list("letter_id", flat=True)) == {wanted.pk}


def test_letters_are_chosen_by_how_long_ago_they_failed() -> None:
    dead_letter({}, last_failed_at=timezone.now() - timedelta(hours=3))
    late = dead_letter({})

    replay("--since", "2h")

    assert resolved() == {late.pk}


def test_letters_are_chosen_by_id() -> None:
    first, _second, third = (dead_letter({}) for _ in range(3))

    replay("--id", str(first.pk), "--id", str(third.pk))

    assert resolved() == {first.pk, third.pk}


def test_nothing_to_replay_is_said() -> None:
    assert "There is nothing to replay." in replay("--all")
    assert "There is nothing to replay." in replay("--requested")


def test_a_dry_run_says_what_would_be_done_and_does_nothing() -> None:
    for _ in range(2):
        dead_letter({})
    dead_letter({}, topic="trains", error_type="KeyError")

    said = replay("--all", "--dry-run", "--target", "topic")

    assert "2  ops  flights  ValueError" in said
    assert "1  ops  trains  KeyError" in said
    assert "Would replay to the topic 3 dead letters. Nothing was done." in said
    assert not Replay.objects.exists()


def test_requested_carries_out_only_what_was_asked_for() -> None:
    asked, open_, other = dead_letter({}), dead_letter({}), dead_letter({}, consumer="other")
    replaying.request([asked.pk, other.pk], name="somebody")

    assert "Would carry out the replays that were asked for, of 2 dead letters." in replay("--requested", "--dry-run")
    assert "Succeeded: 1" in replay("--requested", "--consumer", "ops")
    assert resolved() == {asked.pk}
    assert "Succeeded: 1" in replay("--requested")
    assert resolved() == {asked.pk, other.pk}
    assert set(Replay.objects.values_list("requested_by_name", flat=True)) == {"somebody"}
    open_.refresh_from_db()
    assert open_.state == "open"


def test_a_letter_that_was_asked_for_already_is_left_alone() -> None:
    letter = dead_letter({})
    replaying.request([letter.pk])

    said = replay("--all")

    assert "Left alone: 1 dead letter, whose replay was asked for already (see --requested)." in said
    assert Replay.objects.get().state == "requested"


def test_what_fails_again_is_named_and_ends_in_code_1() -> None:
    letter = dead_letter({"bad": True})
    dead_letter({})
    out = io.StringIO()

    with pytest.raises(CommandError, match="1 dead letter failed again") as caught:
        call_command("kafka_replay", "--all", stdout=out)

    assert caught.value.returncode == 1
    assert f"{letter} failed: ValueError: still\\u001b[31m bad\n" in out.getvalue()
    assert "second line" not in out.getvalue()
    assert "Succeeded: 1, failed: 1, cancelled: 0, left: 0." in out.getvalue()


def test_an_outage_is_waited_for_and_said_and_the_rest_stays_asked_for_when_the_time_is_over() -> None:
    letter = dead_letter({"down": True})
    out = io.StringIO()

    with pytest.raises(CommandError) as caught:
        call_command("kafka_replay", "--all", "--timeout", "1s", stdout=out)

    assert "Waiting 0." in out.getvalue()
    assert "BrokersUnreachable: no broker answers" in out.getvalue()
    assert "The time is over; left, and still asked for: 1 dead letter." in str(caught.value)
    assert "python manage.py kafka_replay --requested" in str(caught.value)
    assert Replay.objects.get().state == "requested"
    letter.refresh_from_db()
    assert letter.attempts == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Choose letters (--consumer, --topic, --error, --id, …), or say --all."),
        (["--all", "--topic", "flights"], "--all means every open letter"),
        (["--consumer", "nobody"], "No dead letter has the consumer 'nobody'; there are: ops, other."),
        (["--topic", "planes"], "No dead letter has the topic 'planes'; there are: flights, trains."),
        (["--error", "Foo"], "No dead letter has the error type 'Foo'; there are: ValueError."),
        (["--category", "weather"], "No dead letter has the category 'weather'; there are: handler."),
        (["--since", "yesterday"], "--since 'yesterday' is no time; write 2026-11-23"),
        (["--until", "2026-13-45"], "--until '2026-13-45' is no time"),
        (["--since", "9999999999h"], "is no time"),
        (["--id", "987654"], "There is no dead letter 987654; their ids go from"),
        (["--id", "-1"], "There is no dead letter -1;"),
        (["--id", "99999999999999999999999"], "There is no dead letter 99999999999999999999999;"),
        (["--id", "x"], "invalid int value: 'x'"),
        (["--target", "moon", "--all"], "'moon'"),
        (["--requested", "--target", "topic"], "leave --target out"),
        (["--all", "--timeout", "soon"], "'soon' is no time; write 90s, 10m or 1h30m."),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    dead_letter({})

    assert sentence in str(refused(*arguments))
    assert not Replay.objects.exists()


def test_a_settled_letter_that_is_named_is_refused() -> None:
    letter = dead_letter({}, state="resolved")

    assert str(refused("--id", str(letter.pk))) == f"Only open dead letters are replayed; {letter.pk} is resolved."


def test_wrong_settings_are_a_sentence_too(settings: Any) -> None:
    settings.KAFKA = {"brokerz": []}

    assert "brokerz" in str(refused("--all"))


# As a process


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk.on_sqlite(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_one_that_runs_and_leaves_the_rest_asked_for(desk: Desk, number: signal.Signals) -> None:
    desk.write({"gate": "open"}, {}, {})
    program = desk.start("kafka_replay", "--all")
    desk.wait_until(desk.runs, program)
    program.send_signal(number)
    desk.wait_until(lambda: "Finishing the one that runs" in program.output(), program)
    (desk.home / "open").touch()

    assert program.finish() == 128 + number
    said = program.output()
    assert "Succeeded: 1, failed: 0, cancelled: 0, left: 2." in said
    assert "Stopped; left, and still asked for: 2 dead letters." in said
    assert "python manage.py kafka_replay --requested" in said
    assert "Traceback" not in said

    assert "Succeeded: 2" in desk.run("kafka_replay", "--requested")
    assert len(desk.runs()) == 3


def test_a_second_signal_ends_it_at_once(desk: Desk) -> None:
    desk.write({"gate": "never"})
    program = desk.start("kafka_replay", "--all")
    desk.wait_until(desk.runs, program)
    program.send_signal(signal.SIGTERM)
    desk.wait_until(lambda: "Finishing the one that runs" in program.output(), program)
    program.send_signal(signal.SIGTERM)

    assert program.finish() == 128 + signal.SIGTERM
    assert desk.rows("SELECT state FROM lynx_kafka_replay") == [("running",)]
    assert desk.rows("SELECT count(*) FROM tests_effect") == [(0,)]


def test_failures_are_the_exit_code_of_the_process(desk: Desk) -> None:
    desk.write({"bad": True}, {})

    assert "1 dead letter failed again" in desk.run("kafka_replay", "--all", code=1)


def test_a_database_that_goes_away_is_waited_for(tmp_path: Path, postgresql: PostgreSQL) -> None:
    desk = Desk.on_postgresql(tmp_path, postgresql)
    try:
        desk.write({"gate": "open"}, {}, {})
        program = desk.start("kafka_replay", "--all")
        desk.wait_until(desk.runs, program)
        postgresql.kill()
        (desk.home / "open").touch()
        desk.wait_until(lambda: "Waiting " in program.output(), program)
        postgresql.start()
        # The killed server may have kept the claim of the first, which then runs out after a minute.
        desk.rows("UPDATE lynx_kafka_replay SET claimed_at = '2026-01-01' WHERE state = 'running'")

        assert program.finish(90) == 0, program.output()
        assert desk.rows("SELECT count(*) FROM tests_effect") == [(3,)]
        assert desk.rows("SELECT DISTINCT state FROM lynx_kafka_deadletter") == [("resolved",)]
    finally:
        postgresql.start()
        desk.close()
