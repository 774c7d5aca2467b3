"""`guarantee: "effect_once"` in workers on the embedded cluster: effects and offsets are committed together."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from confluent_kafka import Consumer, TopicPartition
from django.db import OperationalError, connection, transaction

from django_kafka import claims, conf, handlers, services
from django_kafka.consuming import claimed_polling, claiming
from django_kafka.consuming.worker import Worker
from django_kafka.deliveries import Delivery
from django_kafka.exceptions import Skip
from django_kafka.messages import Message
from django_kafka.models import Claim, SettledMessage
from tests.app.models import Effect
from tests.consuming import NAME, Seen, Workplace, keys_apart
from tests.refusing import refusing
from tests.servers.processes import wait_until

ORDERINGS = pytest.mark.parametrize("ordering", ["partition", "key", "unordered"])


def leave_effect(message: Message) -> None:
    Effect.objects.create(
        topic=message.topic, partition=message.partition, offset=message.offset, payload=message.value
    )


def effects() -> list[int]:
    return sorted(Effect.objects.values_list("offset", flat=True))


def claim(partition: int = 0) -> Claim:
    return Claim.objects.get(partition=partition)


def settled() -> set[int]:
    """Every offset that the claim of partition 0 knows of."""
    # In this order: what is forgotten in between is below the claim by then.
    noted = set(SettledMessage.objects.filter(claim__partition=0).values_list("offset", flat=True))
    mine = Claim.objects.filter(partition=0).first()
    return noted if mine is None else noted | set(range(mine.offset))


def reset(workplace: Workplace, offset: int) -> None:
    claims.reset(conf.consumer(NAME), workplace.group, (workplace.topic, 0), offset)


def has_begun(worker: Worker, partitions: int = 1) -> bool:
    return sum(one.claim is not None for one in worker.lanes) >= partitions


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims that were refused, or taken away, are asked for again soon."""
    monkeypatch.setattr(claiming, "_REFUSED", 0.3)
    monkeypatch.setattr(claimed_polling, "_SOON", 0.3)


@ORDERINGS
def test_offsets_are_where_the_effects_are(workplace: Workplace, ordering: str) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once", ordering=ordering, concurrency=3, partitions=2)
    for partition in (0, 1):
        workplace.send(range(partition, 60, 2), partition, lambda number: b"%d" % (number % 7))
    with workplace.worker():
        seen.wait(60)
        wait_until(lambda: workplace.committed() == {0: 30, 1: 30})
    assert Counter(effects()) == Counter([*range(30), *range(30)])
    assert [(claim(number).offset, claim(number).epoch) for number in (0, 1)] == [(30, 1), (30, 1)]
    assert not SettledMessage.objects.exists(), "below the claim nothing has to be noted"


def test_each_worker_gets_an_epoch_of_its_own_and_begins_at_the_claim(workplace: Workplace) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once")
    workplace.send(range(5))
    with workplace.worker():
        seen.wait(5)
    assert workplace.committed() == {0: 5}
    reset(workplace, 3)
    with workplace.worker():
        seen.wait(7)
    workplace.send(range(5))
    reset(workplace, 8)
    with workplace.worker():
        seen.wait(9)
        wait_until(lambda: workplace.committed() == {0: 10}, message="what others see goes on")
    assert seen.of(0) == [0, 1, 2, 3, 4, 3, 4, 8, 9], "what the brokers have as committed is only for others to see"
    assert (claim().epoch, claim().offset) == (5, 10)


@pytest.mark.parametrize("automatic", [False, True])
def test_what_was_settled_and_not_committed_is_committed_by_the_next_worker(
    workplace: Workplace, automatic: bool
) -> None:
    workplace.consume(
        Seen(leave_effect), guarantee="effect_once", enable_auto_commit=automatic, auto_commit_interval="100ms"
    )
    workplace.send(range(6))
    reset(workplace, 6)
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 6}, message="the group looks as if it were behind")
    assert effects() == []


def commit(workplace: Workplace, offset: int) -> None:
    """Set what the group has committed, from outside."""
    client = Consumer({"bootstrap.servers": workplace.cluster.bootstrap_servers, "group.id": workplace.group})
    client.commit(offsets=[TopicPartition(workplace.topic, 0, offset)], asynchronous=False)
    client.close()


def test_a_first_claim_begins_where_the_group_is(workplace: Workplace) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once")
    workplace.send(range(6))
    commit(workplace, 3)
    with workplace.worker():
        seen.wait(3)
    assert seen.of(0) == [3, 4, 5]


@pytest.mark.parametrize(("begins", "handled"), [("earliest", [0, 1, 2, 3]), ("latest", [3])])
def test_a_first_claim_of_a_new_group_begins_as_it_is_told_to(
    workplace: Workplace, begins: str, handled: list[int]
) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once", auto_offset_reset=begins)
    workplace.send(range(3))
    with workplace.worker() as worker:
        wait_until(lambda: has_begun(worker))
        workplace.send([3])
        seen.wait(len(handled))
    assert seen.of(0) == handled
    assert claim().offset == 4


def test_a_group_that_is_told_nothing_stops_and_names_the_way_out(workplace: Workplace, impatient: None) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once", auto_offset_reset="error")
    workplace.send(range(3))
    with workplace.worker() as worker:
        # Before that the cluster may have been slow to answer, which is said as well.
        wait_until(lambda: "auto_offset_reset is 'error'" in worker.report()["waits_for"])
        assert "kafka_offsets" in worker.report()["waits_for"]
        reset(workplace, 1)
        seen.wait(2)
    assert seen.of(0) == [1, 2]


@pytest.mark.parametrize("ordering", ["partition", "key"])
def test_whoever_takes_over_meanwhile_finds_each_effect_once(workplace: Workplace, ordering: str) -> None:
    """The claim is taken away again and again, in the midst of everything."""
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once", ordering=ordering, concurrency=2, heartbeat_interval="100ms")
    with workplace.worker() as worker:
        for turn in range(4):
            workplace.send(range(50), key=b"a")
            workplace.send(range(50), key=b"b")
            wait_until(lambda turn=turn: len(effects()) > 100 * turn + 20)
            Claim.objects.update(epoch=claim().epoch + 1)
        wait_until(lambda: settled() == set(range(400)), 60)
        assert worker.error is None
    assert effects() == list(range(400))
    assert claim().epoch >= 5


def test_messages_that_overtook_others_are_not_handled_again(workplace: Workplace) -> None:
    stuck, keys = threading.Event(), keys_apart(3, 2)
    stuck.set()

    def handle(message: Message) -> None:
        if message.raw_key == keys[0] and stuck.is_set():
            raise OperationalError("connection to server was lost")
        leave_effect(message)

    seen = Seen(handle)
    workplace.consume(seen, guarantee="effect_once", ordering="key", concurrency=2)
    workplace.send([99], key=b"first")
    for number in range(30):
        workplace.send([number], key=keys[number % 3])
    with workplace.worker():
        seen.wait(21)
    assert (claim().offset, SettledMessage.objects.count()) == (1, 20)
    stuck.clear()
    with workplace.worker() as worker:
        seen.wait(31)
        wait_until(lambda: workplace.committed() == {0: 31})
        wait_until(lambda: claim().offset == 31)
        assert not any(one.done_before for one in worker.lanes)
    assert sorted(seen.of(0)) == effects() == list(range(31))
    assert not SettledMessage.objects.exists()


def test_an_order_by_key_may_become_one_by_partition(workplace: Workplace) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once")
    workplace.send(range(10))
    reset(workplace, 0)  # makes the claim
    SettledMessage.objects.bulk_create([SettledMessage(claim=claim(), offset=one) for one in (0, 1, 3, 7, 9)])
    with workplace.worker():
        wait_until(lambda: claim().offset >= 9)
    assert seen.of(0) == [2, 4, 5, 6, 8]
    assert settled() == set(range(10))


@ORDERINGS
def test_a_dead_letter_is_stored_with_its_offset(workplace: Workplace, ordering: str) -> None:
    def handle(message: Message) -> None:
        leave_effect(message)
        if message.value % 3 == 0:
            raise ValueError("bad")

    seen = Seen(handle)
    workplace.consume(
        seen, guarantee="effect_once", ordering=ordering, circuit_breaker={"enabled": False}, concurrency=2
    )
    for number in range(12):
        workplace.send([number], key=b"%d" % (number % 5))
    with refusing("lynx_kafka_deadletter"), workplace.worker() as worker:
        wait_until(lambda: worker.tally.waits > 0 and worker.lanes.in_flight > 0)
    assert 0 not in settled(), "without its letter a message is not settled"
    with workplace.worker():
        wait_until(lambda: settled() == set(range(12)))
        wait_until(lambda: workplace.committed() == {0: 12})
    assert [letter.offset for letter in workplace.letters()] == [0, 3, 6, 9]
    assert [letter.attempts for letter in workplace.letters()] == [1, 1, 1, 1]
    assert effects() == [1, 2, 4, 5, 7, 8, 10, 11]


def test_letters_one_after_another_are_each_stored_before_the_next_message_begins(workplace: Workplace) -> None:
    known: list[tuple[int, int]] = []

    def handle(message: Message) -> None:
        known.append((message.offset, len(workplace.letters())))
        raise ValueError("bad")

    workplace.consume(Seen(handle), guarantee="effect_once", circuit_breaker={"enabled": False})
    workplace.send(range(8))
    with workplace.worker():
        wait_until(lambda: settled() == set(range(8)))
    assert known == [(number, number) for number in range(8)]


@pytest.mark.parametrize("error", [Skip("not for us"), ValueError("bad")])
@ORDERINGS
def test_what_is_skipped_or_given_up_is_settled(workplace: Workplace, ordering: str, error: Exception) -> None:
    """Also when nothing after it is settled that would move the claim past it."""

    def handle(message: Message) -> None:
        leave_effect(message)
        if message.value == "waits" and ordering != "partition":
            raise OperationalError("connection to server was lost")
        if message.value == "fails":
            raise error

    seen = Seen(handle)
    workplace.consume(seen, guarantee="effect_once", ordering=ordering, concurrency=2)
    for value, key in zip(["first", "waits", "fails"], keys_apart(3, 2), strict=True):
        workplace.send([value], key=key)
    with workplace.worker() as worker:
        wait_until(lambda: worker.tally.skipped + worker.tally.dead_lettered == 1)
        wait_until(lambda: 2 in settled())
    assert effects() == ([0, 1] if ordering == "partition" else [0])
    assert len(workplace.letters()) == isinstance(error, ValueError)


@pytest.mark.parametrize("ordering", ["partition", "key"])
def test_what_is_parked_is_settled(workplace: Workplace, ordering: str) -> None:
    def handle(message: Message) -> None:
        if message.value == 1:
            raise ValueError("bad")
        leave_effect(message)

    workplace.consume(Seen(handle), guarantee="effect_once", on_dead_letter="hold_key", ordering=ordering)
    for number in range(8):
        workplace.send([number], key=b"a" if number % 2 else b"b")
    with workplace.worker():
        wait_until(lambda: settled() == set(range(8)))
    assert effects() == [0, 2, 4, 6]
    assert [letter.state for letter in workplace.letters()] == ["open", "parked", "parked", "parked"]


def test_what_is_imported_is_settled(workplace: Workplace) -> None:
    workplace.consume(Seen(), guarantee="effect_once", topics={workplace.topic: {"import": "auto"}})
    handlers.forget(workplace._subscribed[-1])
    workplace.send(range(5))
    with workplace.worker():
        wait_until(lambda: Claim.objects.filter(offset=5).exists())
    assert len(workplace.letters()) == 5


def test_an_offset_outside_the_log_stops_its_partition_and_nothing_else(
    workplace: Workplace, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once", partitions=2)
    workplace.send(range(4), partition=0)
    reset(workplace, 100)
    with workplace.worker() as worker:
        workplace.send(range(4), partition=1)
        seen.wait(4)
        wait_until(lambda: worker.report()["waits_for"])
        sentence = worker.report()["waits_for"]
        assert "its claim is at offset 100, but its log ends at 4" in sentence
        assert "Nothing is skipped" in sentence
        assert "kafka_offsets" in sentence
        assert seen.of(0) == []
        reset(workplace, 2)
        wait_until(lambda: seen.of(0) == [2, 3], message="it did not go on after its offset was set")
        assert worker.report()["waits_for"] == ""
    assert [record.levelname for record in caplog.records if "stopped:" in record.message] == ["ERROR"]


def test_messages_that_are_deleted_before_they_were_handled_stop_their_partition(
    workplace: Workplace, impatient: None
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handle(message: Message) -> None:
        begun.set()
        assert go_on.wait(60)

    seen = Seen(handle)
    # So little is fetched ahead that the cluster, which keeps 5 MiB, deletes what comes next.
    small = {"queued.max.messages.kbytes": 1, "fetch.message.max.bytes": 1000, "queued.min.messages": 1}
    workplace.consume(seen, guarantee="effect_once", serializer="bytes", max_in_flight=1, options=small)
    workplace.send([b"x"])
    with workplace.worker() as worker:
        assert begun.wait(20)
        workplace.send([b"y" * 100_000 for _ in range(120)])
        go_on.set()
        wait_until(lambda: "are deleted, and those from" in worker.report()["waits_for"])
        handled = seen.of(0)
        assert handled == list(range(len(handled)))
        assert claim().offset == len(handled)
        reset(workplace, 115)
        wait_until(lambda: seen.of(0)[len(handled) :] == list(range(115, 121)))


def test_a_partition_waits_while_the_database_takes_no_claims(workplace: Workplace) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once")
    workplace.send(range(3))
    with refusing("lynx_kafka_claim"), workplace.worker() as worker:
        wait_until(lambda: "cannot be claimed in database 'default'" in worker.report()["waits_for"])
        assert seen.values == []
        assert worker.report()["waiting"] == 1
    with workplace.worker() as worker:
        seen.wait(3)
        assert worker.report()["waits_for"] == ""
    assert effects() == [0, 1, 2]


def test_records_are_acknowledged_before_the_effects_are_committed(workplace: Workplace) -> None:
    states: list[str] = []
    sent: list[Delivery] = []

    def handle(message: Message) -> None:
        leave_effect(message)
        transaction.on_commit(lambda: states.append(sent[-1].state))
        sent.append(services.produce(f"{workplace.topic}.out", "k", message.value))

    seen = Seen(handle)
    workplace.consume(seen, guarantee="effect_once", kafka={"producers": {"default": {}}})
    workplace.send(range(3))
    with workplace.worker():
        seen.wait(3)
        wait_until(lambda: workplace.committed() == {0: 3})
    assert states == ["acknowledged"] * 3
    assert [delivery.offset for delivery in sent] == [0, 1, 2], "each was sent once"


def test_a_record_that_is_refused_takes_the_effects_back(workplace: Workplace) -> None:
    def handle(message: Message) -> None:
        leave_effect(message)
        if message.value == 1:
            services.produce("nobody/may", "k", message.value)

    seen = Seen(handle)
    workplace.consume(seen, guarantee="effect_once", kafka={"producers": {"default": {}}})
    workplace.send(range(3))
    with workplace.worker():
        wait_until(lambda: settled() == {0, 1, 2})
    assert effects() == [0, 2]
    assert [letter.offset for letter in workplace.letters()] == [1]


def test_a_handler_that_broke_its_transaction_is_told_so(workplace: Workplace) -> None:
    def handle(_message: Message) -> None:
        transaction.set_rollback(True)

    workplace.consume(Seen(handle), guarantee="effect_once")
    workplace.send([0])
    with workplace.worker():
        wait_until(lambda: workplace.letters())
    assert workplace.letters()[0].error_type.endswith("TransactionManagementError")
    assert "caught a database error" in workplace.letters()[0].error_message


def test_eager_assignments_begin_at_their_claims_too(workplace: Workplace, impatient: None) -> None:
    seen = Seen(leave_effect)
    eager = {"partition.assignment.strategy": "range"}
    workplace.consume(seen, guarantee="effect_once", partitions=4, options=eager)
    for number in range(4):
        workplace.send(range(5), partition=number)
    reset(workplace, 100)
    with workplace.worker() as worker:
        wait_until(lambda: has_begun(worker, 3) and worker.report()["waits_for"] != "")
        seen.wait(15)
        reset(workplace, 3)
        seen.wait(17)
        workplace.send([5], partition=1)
        seen.wait(18)
    assert (seen.of(0), seen.of(1)) == ([3, 4], [0, 1, 2, 3, 4, 5])


def test_until_empty_ends_at_the_end(workplace: Workplace) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen, guarantee="effect_once", ordering="key")
    workplace.send(range(40), key=b"k")
    worker = workplace.start(until_empty=True)
    workplace.ended(worker)
    assert effects() == list(range(40))
    assert settled() == set(range(40))
    connection.close()


def test_partitions_that_came_together_wait_once_for_a_cluster_without_a_controller(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "django_kafka.consuming.claimed_polling")
    workplace.consume(Seen(), guarantee="effect_once", partitions=4)
    with workplace.worker() as worker:
        wait_until(lambda: any("which topic it is" in one.blocked for one in worker.lanes), every=0.001)
        wait_until(lambda: has_begun(worker, 4))
        assert not any(one.blocked for one in worker.lanes)
    claimed = [record.created for record in caplog.records if " claimed offset=" in record.getMessage()]
    assert len(claimed) == 4
    assert max(claimed) - min(claimed) < 0.9, "None waited for another second, the connection's timeout."
