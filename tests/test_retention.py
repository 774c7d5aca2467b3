"""What is deleted of dead letters, when, and what never is."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from django_kafka.dead_letters import grouping, holds, replaying, retention, tidying
from django_kafka.dead_letters.executing import Executor
from django_kafka.models import DeadLetter, DeadLetterAttempt, FailureGroup, FailureHour, FailureTally, Hold, Replay
from tests.letters import dead_letter

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)


def keep(settings: Settings, **dead_letters: Any) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "ops"}}, "dead_letters": dead_letters}


@pytest.fixture(autouse=True)
def _consumer(settings: Settings) -> None:
    keep(settings)


def letter(state: str = "resolved", days: float = 31, **fields: Any) -> DeadLetter:
    at = timezone.now() - days * DAY
    settled = at if state in ("resolved", "discarded") else None
    return dead_letter(state=state, settled_at=settled, last_failed_at=at, **fields)


def left() -> set[int]:
    return set(DeadLetter.objects.values_list("pk", flat=True))


def test_what_is_settled_goes_when_its_time_is_over_with_all_that_belongs_to_it() -> None:
    gone = [letter(), letter("discarded")]
    Replay.objects.create(letter=gone[0], target="handler", state="succeeded", requested_at=timezone.now())
    kept = [letter(days=29), letter("discarded", days=29), letter("open", days=400), letter("parked", days=400)]

    assert retention.prune() == 2

    assert left() == {one.pk for one in kept}
    assert set(DeadLetterAttempt.objects.values_list("letter", flat=True)) == left()
    assert not Replay.objects.exists()
    assert retention.prune() == 0


def test_what_is_being_replayed_or_was_opened_again_stays() -> None:
    replayed, opened = letter("open", days=400), letter()
    replaying.request([replayed.pk])
    DeadLetter.objects.filter(pk=opened.pk).update(state="open", settled_at=None)
    assert retention.prune() == 0
    assert left() == {replayed.pk, opened.pk}


def test_open_ones_go_only_when_that_is_set_and_never_those_that_hold_a_key(settings: Settings) -> None:
    keep(settings, unresolved_max_age="90d")
    hold = Hold.objects.create(
        group_id="ops", topic="flights", partition=0, key=b"k", key_hash="x", consumer="ops", since=timezone.now()
    )
    old, young, holding = letter("open", 91), letter("open", 89), letter("open", 91, hold=hold)
    parked, asked_for = letter("parked", 91, hold=hold), letter("open", 91)
    replaying.request([asked_for.pk])

    assert retention.prune() == 1

    assert left() == {young.pk, holding.pk, parked.pk, asked_for.pk}
    assert old.pk not in left()
    assert holds.parked("default", hold.pk) == 1


def test_what_was_asked_for_or_failed_again_before_it_was_locked_stays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(settings, unresolved_max_age="90d")
    asked_for, at = letter("open", 91), timezone.now() - 31 * DAY
    group = FailureGroup.objects.create(
        fingerprint="f", consumer="ops", error_type="E", category="handler", first_seen_at=at, last_seen_at=at
    )

    def late(found: QuerySet[Any], using: str) -> QuerySet[Any]:
        ids = list(found.values_list("pk", flat=True))
        if asked_for.pk in ids and found.model is DeadLetter:
            replaying.request([asked_for.pk])
        elif ids:
            FailureTally.objects.create(failure_group=group, at=timezone.now(), count=1)
        return found.model._default_manager.using(using).filter(pk__in=ids)

    monkeypatch.setattr(retention, "_locked", late)
    assert retention.prune() == 0
    assert left() == {asked_for.pk}
    assert Replay.objects.filter(letter=asked_for, state="requested").exists()
    assert FailureTally.objects.filter(failure_group=group).exists()


def test_payloads_are_not_read_to_be_deleted() -> None:
    letter(value=b"x" * 1000)
    with CaptureQueriesContext(connection) as queries:
        assert retention.prune() == 1
    assert not [each["sql"] for each in queries if '."value"' in each["sql"]]


def test_without_retention_everything_stays(settings: Settings) -> None:
    keep(settings, retention=None)
    letter(days=4000)
    assert retention.prune() == 0


def test_many_go_piece_by_piece_until_it_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_PIECE", 3)
    for _ in range(10):
        letter()
    turns = iter([True, True, False])
    assert retention.prune(go_on=lambda: next(turns, False)) == 6
    assert retention.prune(most=1) == 3
    assert retention.prune() == 1


def test_what_somebody_else_has_locked_is_left_for_the_next_time() -> None:
    locked, free = letter(), letter()
    if connection.vendor != "postgresql":
        # SQLite locks whole files, and has nothing to skip.
        DeadLetter.objects.filter(pk=locked.pk).update(settled_at=timezone.now())
        assert retention.prune() == 1
        return
    counts: list[int] = []

    def prune() -> None:
        try:
            counts.append(retention.prune())
        finally:
            connections.close_all()

    with transaction.atomic():
        DeadLetter.objects.select_for_update().get(pk=locked.pk)
        thread = threading.Thread(target=prune)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        # It failed again meanwhile.
        DeadLetter.objects.filter(pk=locked.pk).update(state="open", settled_at=None)
    assert counts == [1]
    assert left() == {locked.pk}
    assert free.pk not in left()
    assert retention.prune() == 0


def test_groups_go_that_nobody_needs(settings: Settings) -> None:
    at = timezone.now() - 31 * DAY

    def group(name: str, **fields: Any) -> FailureGroup:
        times = {"first_seen_at": at, "last_seen_at": at}
        return FailureGroup.objects.create(
            fingerprint=name, consumer="ops", error_type=name, category="handler", **{**times, **fields}
        )

    names = ["gone", "recent", "noted", "owned", "used", "counted"]
    more: dict[str, dict[str, Any]] = {
        "recent": {"last_seen_at": timezone.now()}, "noted": {"note": "see the runbook"}, "owned": {"owner": "ada"},
    }  # fmt: skip
    made = {name: group(name, **more.get(name, {})) for name in names}
    letter("open", failure_group=made["used"])
    FailureTally.objects.create(failure_group=made["counted"], at=at, count=1)
    FailureHour.objects.create(failure_group=made["recent"], hour=at - DAY, count=1)
    young = FailureHour.objects.create(failure_group=made["recent"], hour=at + 2 * DAY, count=1)

    retention.prune()

    assert set(FailureGroup.objects.values_list("fingerprint", flat=True)) == set(names) - {"gone"}
    assert list(FailureHour.objects.values_list("pk", flat=True)) == [young.pk]
    grouping.add_up()


def test_whoever_carries_out_replays_adds_up_all_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "TOGETHER", 2)
    at = timezone.now()
    group = FailureGroup.objects.create(
        fingerprint="f", consumer="ops", error_type="E", category="handler", first_seen_at=at, last_seen_at=at
    )
    for _ in range(3):
        FailureTally.objects.create(failure_group=group, at=at, count=1)
    executor = Executor()
    try:
        # More than go at a time do not wait for the next turn, which would never catch up.
        for _ in range(2):
            executor.tidy_up()
    finally:
        executor.close()
    assert not FailureTally.objects.exists()


def test_whoever_carries_out_replays_prunes_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidying, "_PRUNED_AT_ONCE", 2)
    monkeypatch.setattr(retention, "_PIECE", 2)
    for _ in range(5):
        letter()
    executor = Executor()
    try:
        executor.tidy_up()
        assert len(left()) == 5
        executor._tidying._prune_at = 0.0
        # There was more to do than it does at once.
        for count in (3, 1, 0, 0):
            executor.tidy_up()
            assert len(left()) == count
        letter()
        executor.tidy_up()
        assert len(left()) == 1
    finally:
        executor.close()
