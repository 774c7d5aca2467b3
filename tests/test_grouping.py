"""Failure groups: which letters are of one, what is counted, and what becomes of their states."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from django_kafka import conf
from django_kafka.dead_letters import frames, grouping, groups, recording, rows
from django_kafka.dead_letters.failures import Failure
from django_kafka.exceptions import PartitionLost
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, FailureGroup, FailureHour, FailureTally
from django_kafka.serializers import TopicDecoder
from tests.letters import dead_letter
from tests.test_recording import Raw

pytestmark = pytest.mark.django_db(transaction=True)

HANDLER = "flights.handlers.landed"


@pytest.fixture(autouse=True)
def _consumer(settings: Settings) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "g"}, "crew": {"group_id": "c"}}, "release": "1.0"}


def depart(error: Exception) -> None:
    raise error


def arrive(error: Exception) -> None:
    raise error


def failure(
    error: Exception | None = None, where: Callable[[Exception], None] = depart, handler: str = HANDLER, **more: Any
) -> Failure:
    try:
        where(error or ValueError("no departure time"))
    except Exception as raised:  # noqa: BLE001
        return Failure.of(raised, category="handler", handler=handler, **more)
    raise AssertionError


def message(offset: int) -> Message:
    return Message(Raw(offset=offset), TopicDecoder("text", "json"))


def record(*failures: Failure, consumer: str = "ops", offset: int = 0, **more: Any) -> list[DeadLetter]:
    of = conf.consumer(consumer)
    failed = [(message(offset + number), one) for number, one in enumerate(failures)]
    return recording.record_all(of, of.group_id, failed, still_ours=more.pop("still_ours", lambda: None), **more)


def only() -> FailureGroup:
    return groups.counted().get()


def test_letters_of_one_cause_are_of_one_group_whichever_way_they_are_stored() -> None:
    record(failure(), failure(ValueError("another text")), failure())
    record(failure(), offset=10)
    recording.record(conf.consumer("ops"), "g", message(20), failure(), still_ours=lambda: None)

    group: Any = only()
    assert set(DeadLetter.objects.values_list("failure_group", flat=True)) == {group.pk}
    assert (group.consumer, group.handler, group.error_type) == ("ops", HANDLER, "ValueError")
    assert group.frame == "tests.test_grouping.depart"
    assert (group.example, group.category, group.state) == ("no departure time", "handler", "open")
    assert (group.seen, group.seen_now, group.open_letters) == (0, 5, 5)
    grouping.add_up()
    group = only()
    assert (group.seen, group.seen_now, group.open_letters) == (5, 5, 5)


@pytest.mark.parametrize(
    "other",
    [
        {"error": KeyError("no departure time")},
        {"where": arrive},
        {"handler": "flights.handlers.departed"},
    ],
    ids=["error", "function", "handler"],
)
def test_another_cause_is_another_group(other: dict[str, Any]) -> None:
    record(failure(), failure(**other))
    assert FailureGroup.objects.count() == 2
    assert DeadLetter.objects.values("failure_group").distinct().count() == 2


def test_another_consumer_is_another_group() -> None:
    record(failure())
    record(failure(), consumer="crew")
    assert sorted(FailureGroup.objects.values_list("consumer", flat=True)) == ["crew", "ops"]


def test_a_letter_that_fails_for_another_reason_goes_over_to_the_group_of_that_one() -> None:
    (letter,) = record(failure())
    record(failure(KeyError("gate")))

    letter.refresh_from_db()
    grouping.add_up()
    assert letter.failure_group is not None
    assert letter.failure_group.error_type == "KeyError"
    found: Any = groups.counted().order_by("pk")
    assert [(one.error_type, one.seen, one.open_letters) for one in found] == [("ValueError", 1, 0), ("KeyError", 1, 1)]


def test_what_is_rolled_back_is_not_counted() -> None:
    asked: list[int] = []

    def lost_the_second_time() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise PartitionLost("it has a new owner")

    with pytest.raises(PartitionLost):
        record(failure(), failure(), still_ours=lost_the_second_time)
    assert (FailureGroup.objects.count(), FailureTally.objects.count()) == (0, 0)


def test_failures_are_added_up_once_by_hours_and_by_any_number_of_processes() -> None:
    at = datetime(2013, 7, 1, 10, 59, tzinfo=UTC)
    (letter,) = record(failure())
    FailureTally.objects.all().delete()
    times = [at, at + timedelta(minutes=1), at + timedelta(minutes=2), at - timedelta(days=2)]
    FailureTally.objects.bulk_create(
        FailureTally(failure_group=letter.failure_group, at=one, count=number, release="")
        for number, one in enumerate(times * 100, 1)
    )
    ends: list[int] = []

    def add() -> None:
        try:
            while added := grouping.add_up():
                ends.append(added)
        finally:
            connections.close_all()

    if connection.vendor == "postgresql":
        threads = [threading.Thread(target=add) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    add()

    assert sum(ends) == 400
    assert only().seen == sum(range(1, 401))
    hours = dict(FailureHour.objects.values_list("hour", "count"))
    assert sum(hours.values()) == sum(range(1, 401))
    assert hours[datetime(2013, 7, 1, 10, tzinfo=UTC)] == sum(range(1, 401, 4))
    assert hours[datetime(2013, 7, 1, 11, tzinfo=UTC)] == sum(range(2, 401, 4)) + sum(range(3, 401, 4))
    assert hours[datetime(2013, 6, 29, 10, tzinfo=UTC)] == sum(range(4, 401, 4))


def test_a_group_that_was_resolved_comes_back_with_the_release_that_brought_it(settings: Settings) -> None:
    record(failure())
    grouping.add_up()
    before = failure()
    assert groups.set_state([only().pk], "resolved", by="ada") == 1
    group = only()
    assert (group.state, group.state_by, group.resolved_in) == ("resolved", "ada", "1.0")

    # It happened before, and was stored after.
    record(before, offset=10)
    grouping.add_up()
    assert only().state == "resolved"

    settings.KAFKA = {**settings.KAFKA, "release": "2.0"}
    later = failure()
    record(later, offset=20)
    grouping.add_up()
    group = only()
    assert (group.state, group.regressed_in, group.resolved_in) == ("regressed", "2.0", "1.0")
    assert (group.state_since, group.state_by) == (later.at, "")
    assert (group.first_release, group.last_release) == ("1.0", "2.0")
    assert (group.last_seen_at, group.seen) == (later.at, 3)
    assert DeadLetter.objects.get(offset=20).release == "2.0"


@pytest.mark.parametrize("state", ["open", "acknowledged"])
def test_a_group_that_was_not_resolved_stays_what_it_was_called(state: str) -> None:
    record(failure())
    FailureGroup.objects.update(state=state, state_since=timezone.now() - timedelta(days=1))
    record(failure(), offset=10)
    grouping.add_up()
    assert only().state == state


def test_nobody_calls_a_group_regressed() -> None:
    record(failure())
    with pytest.raises(ValueError, match="'regressed' is not one of: open, acknowledged, resolved"):
        groups.set_state([only().pk], "regressed", by="ada")
    assert groups.set_state([only().pk], "open", by="ada") == 0


def test_owner_and_note_are_kept_whole_and_cut_where_they_must() -> None:
    record(failure())
    assert groups.annotate(only().pk, owner=" ada " + "x" * 200, note=" see the runbook ")
    group = only()
    assert (group.owner[:4], len(group.owner), group.note) == ("ada ", 150, "see the runbook")
    assert not groups.annotate(group.pk + 1, owner="", note="")


def test_strangers_cannot_make_groups_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "MOST", 3)
    for number in range(6):
        record(failure(handler=f"handler.{number}"), failure(handler=f"again.{number}"), offset=10 * number)
    record(failure(handler="handler.0"), offset=100)

    assert FailureGroup.objects.count() == 4
    assert FailureGroup.objects.get(error_type=grouping.OTHER).letters.count() == 9
    assert FailureGroup.objects.get(handler="handler.0").letters.count() == 2
    assert not DeadLetter.objects.filter(failure_group=None).exists()


def test_causes_beyond_the_bound_are_of_their_own_consumers_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an archive with the letters of several: who may look at one consumer's groups sees no letters of others."""
    monkeypatch.setattr(grouping, "MOST", 2)
    record(failure(handler="old"))
    found = [
        (dead_letter(consumer=consumer, cluster=cluster), failure(handler=f"handler.{number}"))
        for cluster, consumer in (("default", "ops"), ("default", "crew"), ("eu", "crew"))
        for number in range(4)
    ]
    grouping.place("default", found)

    of_group = FailureGroup.objects.in_bulk()
    for letter, _failure in found:
        group = of_group[letter.failure_group_id]
        assert (group.cluster, group.consumer) == (letter.cluster, letter.consumer)
    others = FailureGroup.objects.filter(error_type=grouping.OTHER).order_by("cluster", "-consumer")
    assert [(one.cluster, one.consumer) for one in others] == [("default", "ops"), ("default", "crew"), ("eu", "crew")]
    kept = [one.consumer for one in of_group.values() if one.error_type != grouping.OTHER]
    assert sorted(kept) == ["crew"] * 4 + ["ops"] * 2, "each has its own bound"


def test_two_who_meet_a_cause_at_the_same_time_make_one_group() -> None:
    of = conf.consumer("ops")
    came: list[str] = []

    def other() -> None:
        try:
            record(failure(KeyError("b")), failure(), offset=100)
            came.append("stored")
        finally:
            connections.close_all()

    thread = threading.Thread(target=other)
    if connection.vendor == "postgresql":
        with transaction.atomic():
            letter = rows.new_letter(of, "g", message(1), first_failed_at=timezone.now(), **rows.latest(failure()))
            rows.insert("default", [(letter, failure())], "worker")
            thread.start()
            _until_somebody_waits()
    else:
        # Only one writes to SQLite at a time.
        record(failure())
        thread.start()
    thread.join()

    assert came == ["stored"]
    assert sorted(FailureGroup.objects.values_list("error_type", flat=True)) == ["KeyError", "ValueError"]
    assert FailureGroup.objects.get(error_type="ValueError").letters.count() == 2


def _until_somebody_waits() -> None:
    deadline = timezone.now() + timedelta(seconds=20)
    while timezone.now() < deadline:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
    raise AssertionError("nobody waits for the group")


def test_trends_count_what_is_added_up_and_what_is_not() -> None:
    (letter,) = record(failure())
    now = timezone.now()
    for hours_ago, count in ((0, 2), (5, 3), (23, 5), (24, 100)):
        FailureTally.objects.create(
            failure_group=letter.failure_group, at=now - timedelta(hours=hours_ago), count=count, release=""
        )
    expected = [5, *[0] * 17, 3, *[0] * 4, 3]
    assert list(groups.trends([only().pk])[only().pk].counts) == expected
    grouping.add_up()
    assert list(groups.trends([only().pk])[only().pk].counts) == expected
    week = groups.trends([only().pk], steps=7, hours=24)[only().pk]
    assert sum(week.counts) == 111
    assert len(week.counts) == 7


def test_open_letters_are_counted_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MOST_COUNTED", 3)
    record(*[failure() for _ in range(10)])
    group: Any = only()
    assert group.open_letters == 4


def test_a_letter_that_costs_a_transaction_needs_few_queries_more() -> None:
    record(failure())
    with CaptureQueriesContext(
        connection,
    ) as queries:
        record(*[failure() for _ in range(50)], offset=10)
    of_groups = [one["sql"] for one in queries if "failure" in one["sql"].split("(")[0].lower()]
    assert len([sql for sql in of_groups if "failuregroup" in sql or "failuretally" in sql]) <= 2, of_groups


@pytest.fixture
def installed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    package = tmp_path / "site-packages"
    package.mkdir()
    (package / "planes_of_others.py").write_text("def fly(call):\n    return [call() for _ in range(1)]\n")
    monkeypatch.syspath_prepend(str(package))
    import planes_of_others  # type: ignore[import-not-found]

    return planes_of_others


def test_the_innermost_function_of_the_project_is_found_below_and_above_libraries(installed: Any) -> None:
    def project() -> None:
        installed.fly(lambda: depart(ValueError()))

    def library() -> None:
        installed.fly(lambda: int("x"))

    def odd() -> None:
        installed.fly(None)

    def found(call: Callable[[], None], handler: str = HANDLER) -> str:
        try:
            call()
        except Exception as error:  # noqa: BLE001
            return frames.innermost(error, handler)
        raise AssertionError

    here = "tests.test_grouping.test_the_innermost_function_of_the_project_is_found_below_and_above_libraries.<locals>"
    assert found(project) == "tests.test_grouping.depart"
    assert found(library) == f"{here}.library"
    assert found(odd) == f"{here}.odd"
    # The project itself may be installed.
    assert found(odd, "planes_of_others.fly") == "planes_of_others.fly"
    assert frames.innermost(ValueError("never raised"), HANDLER) == ""


def test_errors_of_this_package_and_of_python_are_nobodys_function() -> None:
    assert not frames.is_projects(conf.__file__)
    assert not frames.is_projects(threading.__file__)
    assert not frames.is_projects("<frozen importlib._bootstrap>")
    assert frames.is_projects(__file__)


def test_the_example_of_a_group_is_masked_once_and_for_all(settings: Settings) -> None:
    rules = ["n", {"regex": r"\d{16}"}, {"key": True}]
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"mask": rules}}
    one = Message(Raw(offset=1, value=b'{"n": "Alice Ames"}', key=b"N14228"), TopicDecoder("text", "json"))
    text = "no seat for Alice Ames on N14228 with 4111111111111111"
    recording.record(conf.consumer("ops"), "g", one, failure(ValueError(text)), still_ours=lambda: None)

    assert only().example == "no seat for *** on *** with ***"
    assert DeadLetter.objects.get().error_message == text, "the letter itself keeps what it said"


def test_an_example_that_cannot_be_masked_in_part_is_masked_as_a_whole(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"mask": ["n"]}}
    monkeypatch.setattr("django_kafka.dead_letters.decoding.MOST", 3)
    record(failure())
    assert only().example == "***"
