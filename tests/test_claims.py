"""Claims in the database, without a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from pytest_django import Settings

from django_kafka import claims, conf
from django_kafka.claims import Claimed, ClaimRefused
from django_kafka.clients.admin import Unreachable
from django_kafka.clients.groups import Log
from django_kafka.exceptions import PartitionLost
from django_kafka.models import Claim, SettledMessage
from tests.app.models import Effect

PLACE = ("flights", 3)
LOG = Log(topic_id="a", low=0, high=100)
APART = pytest.mark.parametrize("apart", [False, True])


@pytest.fixture
def ops(settings: Settings, transactional_db: None) -> conf.Consumer:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "g", "guarantee": "effect_once"}}}
    return conf.consumer("ops")


def take(ops: conf.Consumer, log: Log = LOG, begins: int | None = 0, *, apart: bool = False) -> Claimed:
    claimed = claims.take(ops, "g", PLACE, log, apart=apart, begins=begins, worker="host:1")
    assert claimed is not None
    return claimed


def settle(claimed: Claimed, *offsets: int) -> None:
    """Settle messages with an effect each, in one transaction."""
    with transaction.atomic():
        for offset in offsets:
            Effect.objects.create(topic="flights", partition=3, offset=offset)
        claimed.settle(offsets)


def effects() -> list[int]:
    return sorted(Effect.objects.values_list("offset", flat=True))


def test_without_a_claim_and_a_beginning_there_is_none(ops: conf.Consumer) -> None:
    assert claims.take(ops, "g", PLACE, LOG, apart=False, begins=None, worker="") is None
    assert not Claim.objects.exists()


@APART
def test_effects_and_offset_come_together(ops: conf.Consumer, apart: bool) -> None:
    claimed = take(ops, apart=apart)
    settle(claimed, 0)
    settle(claimed, 1, 2, 3)
    again = take(ops, apart=apart)
    assert (again.offset, again.epoch, again.settled) == (4, 2, set())
    assert effects() == [0, 1, 2, 3]
    assert not SettledMessage.objects.exists()


@APART
def test_an_older_epoch_writes_nothing(ops: conf.Consumer, apart: bool) -> None:
    zombie = take(ops, apart=apart)
    settle(zombie, 0)
    heir = take(ops, apart=apart)
    with pytest.raises(PartitionLost, match=r"flights\[3\] was claimed by another worker"):
        settle(zombie, 1)
    assert zombie.fenced
    settle(heir, 1)
    with pytest.raises(PartitionLost):
        settle(zombie, 2)
    assert effects() == [0, 1]


@APART
def test_what_is_settled_is_not_settled_again(ops: conf.Consumer, apart: bool) -> None:
    claimed = take(ops, apart=apart)
    settle(claimed, 0, 1)
    for offsets in ((1,), (1, 2), (0, 1, 2, 3)):
        with pytest.raises(PartitionLost):
            settle(claimed, *offsets)
    assert effects() == [0, 1]
    assert claimed.settled_of([0, 1, 2]) == {0, 1}


def test_messages_that_overtake_are_noted_until_the_claim_has_passed_them(ops: conf.Consumer) -> None:
    claimed = take(ops, apart=True)
    for offset in (5, 1, 0, 7):
        settle(claimed, offset)
    claimed.advance(2)
    assert Claim.objects.get().offset == 2
    assert sorted(SettledMessage.objects.values_list("offset", flat=True)) == [5, 7]
    assert claimed.settled_of(range(9)) == {0, 1, 5, 7}
    with pytest.raises(PartitionLost):
        settle(claimed, 1)
    settle(claimed, 2)
    again = take(ops, apart=True)
    assert (again.offset, again.settled) == (3, {5, 7})
    claimed.advance(8)
    assert Claim.objects.get().offset == 3, "an older epoch moves nothing"
    assert SettledMessage.objects.count() == 2


@APART
def test_an_older_epoch_is_told_so_when_it_asks(ops: conf.Consumer, apart: bool) -> None:
    zombie = take(ops, apart=apart)
    take(ops, apart=apart)
    with pytest.raises(PartitionLost):
        zombie.settled_of([0])
    assert zombie.fenced


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (5, 100, r"its claim is at offset 4, but messages before 5 are deleted, and those from 4 on were not handled"),
        (0, 3, r"its claim is at offset 4, but its log ends at 3"),
    ],
)
def test_an_offset_outside_the_log_is_refused(ops: conf.Consumer, low: int, high: int, sentence: str) -> None:
    settle(take(ops), 3)
    with pytest.raises(ClaimRefused, match=sentence) as refused:
        take(ops, Log(topic_id="a", low=low, high=high))
    assert "kafka_offsets" in str(refused.value)
    for log in (Log(topic_id="a", low=4, high=100), Log(topic_id="a", low=0, high=4)):
        assert take(ops, log).offset == 4


def test_a_group_outside_the_log_is_refused_as_well(ops: conf.Consumer) -> None:
    with pytest.raises(ClaimRefused, match="its group has committed offset 101, but its log ends at 100"):
        take(ops, begins=101)
    assert not Claim.objects.exists()


def test_a_topic_made_anew_is_refused_and_one_without_id_is_taken(ops: conf.Consumer) -> None:
    take(ops, Log(topic_id=None, low=0, high=1))
    take(ops)
    with pytest.raises(ClaimRefused, match=r"made anew.*kafka_offsets"):
        take(ops, Log(topic_id="b", low=0, high=100))
    claims.reset(ops, "g", PLACE, 0)
    assert take(ops, Log(topic_id="b", low=0, high=100)).offset == 0
    assert Claim.objects.get().topic_id == "b"


def test_a_topic_that_nobody_vouches_for_any_more_is_waited_for(ops: conf.Consumer) -> None:
    """Brokers that say no id for once may have another topic by now, of which messages would be skipped."""
    claimed = take(ops)
    with pytest.raises(Unreachable, match="do not say whether 'flights' is still the topic that was claimed"):
        take(ops, Log(topic_id=None, low=0, high=100))
    assert take(ops).epoch == claimed.epoch + 1


def test_a_reset_says_where_to_go_on_and_fences_who_has_it(ops: conf.Consumer) -> None:
    claimed = take(ops, apart=True)
    settle(claimed, 3)
    claims.reset(ops, "g", PLACE, 2)
    with pytest.raises(PartitionLost):
        settle(claimed, 0)
    again = take(ops, apart=True)
    assert (again.offset, again.settled) == (2, set())
    claims.reset(ops, "g", ("flights", 1), 7)
    assert [(one.partition, one.offset) for one in claims.of_group("default", "default", "g")] == [(1, 7), (3, 2)]
    assert claims.of_group("default", "default", "other") == []


def in_thread(do: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(do())
        except Exception as error:  # noqa: BLE001  # told to the test
            answers.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, answers


@pytest.mark.postgresql
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@APART
def test_a_claim_and_a_commit_that_meet_agree_on_what_is_settled(
    ops: conf.Consumer, apart: bool, isolation: str
) -> None:
    old = take(ops, apart=apart)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        Effect.objects.create(topic="flights", partition=3, offset=0)
        old.settle([0])
        thread, answers = in_thread(lambda: take(ops, apart=apart))
        thread.join(0.5)
        assert thread.is_alive(), "the claim waits for the COMMIT"
    thread.join(10)
    (new,) = answers
    assert (new.offset, new.epoch) == (1, 2)
    with pytest.raises(PartitionLost):
        settle(old, 1)


@pytest.mark.postgresql
def test_lanes_of_one_partition_do_not_wait_for_each_other(ops: conf.Consumer) -> None:
    claimed = take(ops, apart=True)
    with transaction.atomic():
        claimed.settle([0])
        thread, answers = in_thread(lambda: settle(claimed, 1))
        thread.join(10)
        assert answers == [None]
    assert claimed.settled_of([0, 1]) == {0, 1}


@pytest.mark.postgresql
def test_a_claim_waits_only_for_a_while(ops: conf.Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_PATIENCE", 200)
    claimed = take(ops)
    with transaction.atomic():
        claimed.settle([0])
        thread, answers = in_thread(lambda: take(ops))
        thread.join(10)
        assert isinstance(answers[0], OperationalError)
