"""Topics and partitions that settings, templates and functions choose; and what has none is refused."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka.admin import NewTopic
from django.contrib.auth.models import Group
from django.db import transaction
from pytest_django import Settings

from django_kafka import partitioning, services, tallies
from django_kafka.batches import produce_batch
from django_kafka.clients.embedded import Cluster
from django_kafka.exceptions import DeliveryDiscarded, DeliveryFailed, EncodeError, UnknownName, Unroutable
from django_kafka.partitioning import Partitions, RoundRobin, Sticky, Target
from django_kafka.producers import producers
from django_kafka.producing import aproduce, produce
from django_kafka.records import Record
from django_kafka.testing import produced, record
from tests.sending import NOBODY, read, use
from tests.servers import Kafka
from tests.servers.kafka import jars
from tests.servers.processes import found, wait_until


class Landed:
    """A value with a class of its own."""


class OwnValues:
    """A serializer that takes anything."""

    def encode(self, value: Any, topic: str) -> bytes:
        return repr(type(value).__name__).encode()

    def decode(self, data: bytes, topic: str) -> Any:
        return data


def heavy_ones_apart(record: Record, target: Target) -> int | None:
    """By content: heavy aircraft have the last partition to themselves."""
    assert target.name
    return target.partitions - 1 if record.value["heavy"] else None


def by_country(record: Record, target: Target) -> str:
    return f"{target.name}.{record.value['country']}"


def wrong(record: Record, _target: Target) -> Any:
    return record.value["answer"]


def tenant() -> str:
    return tenants[-1]


tenants = ["acme"]


@pytest.fixture
def name(embedded: Cluster, topic: Callable[..., str]) -> str:
    """A topic of four partitions."""
    made = topic()
    embedded.create_topic(made, 4)
    return made


def partitions(cluster: Cluster, topic: str, count: int) -> list[int]:
    """Return the partitions of messages in the order of the numbers that are their values."""
    return [one.partition() or 0 for one in sorted(read(cluster, topic, count), key=lambda one: int(one.value() or 0))]


# --- partitions -------------------------------------------------------------------------------------------------------


def test_round_robin_gives_each_partition_its_turn_whatever_the_keys(
    embedded: Cluster, settings: Settings, name: str
) -> None:
    use(settings, embedded.bootstrap_servers, {"default": {"routing": "round_robin"}})
    for number in range(8):
        produce(name, "always the same", number)
    produce_batch(name, [{"key": "always the same", "value": number} for number in range(8, 16)])
    assert services.flush(30) == 0
    placed = partitions(embedded, name, 16)
    assert [(one - placed[0]) % 4 for one in placed] == [0, 1, 2, 3] * 4


def test_turns_are_taken_once_by_any_number_of_threads() -> None:
    turns, placed = RoundRobin(), Counter[int]()
    lock = threading.Lock()

    def take() -> None:
        mine = Counter(turns(4, 1) for _number in range(1000))
        with lock:
            placed.update(mine)

    threads = [threading.Thread(target=take) for _number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert placed == {0: 2000, 1: 2000, 2: 2000, 3: 2000}


def test_sticky_fills_a_batch_before_it_goes_on_to_another_partition(
    embedded: Cluster, settings: Settings, name: str
) -> None:
    sticky = {"routing": "sticky", "batch_size": 1000, "batch_timeout": "60s"}
    use(settings, embedded.bootstrap_servers, {"default": sticky})
    for number in range(12):
        # Of 300 bytes three find room.
        produce(name, f"{number:0298}", number)
    assert services.flush(30) == 0
    placed = partitions(embedded, name, 12)
    batches = [placed[start : start + 3] for start in range(0, 12, 3)]
    assert all(len(set(batch)) == 1 for batch in batches), placed
    assert all(one[0] != other[0] for one, other in pairwise(batches)), placed


def test_sticky_goes_on_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(partitioning.time, "monotonic", lambda: now[0])
    turns = Sticky(1000, 5.0)
    first = turns(4, 1)
    now[0] += 4.9
    assert turns(4, 1) == first
    now[0] += 0.2
    assert turns(4, 1) != first
    assert Sticky(1000, 5.0)(1, 1) == 0


def test_a_topic_has_its_own_routing_and_the_others_that_of_the_producer(
    embedded: Cluster, settings: Settings, topic: Callable[..., str]
) -> None:
    turning, keyed = topic("turning"), topic("keyed")
    for one in (turning, keyed):
        embedded.create_topic(one, 4)
    use(settings, embedded.bootstrap_servers, {"default": {"topics": {turning: {"routing": "round_robin"}}}})
    for number in range(4):
        produce(turning, "21", number)
        produce(keyed, "21", number)
    assert services.flush(30) == 0
    assert sorted(partitions(embedded, turning, 4)) == [0, 1, 2, 3]
    # murmur2("21") = -973932308, by Kafka's own test of its hash.
    assert set(partitions(embedded, keyed, 4)) == {(-973932308 & 0x7FFFFFFF) % 4}


def test_a_call_has_its_own_routing_and_a_partition_that_is_given_wins(
    embedded: Cluster, settings: Settings, name: str
) -> None:
    use(settings, embedded.bootstrap_servers)
    for number in range(4):
        produce(name, "21", number, routing="round_robin")
    services.produce_with("default", name, "21", 4, routing=lambda _record, target: target.partitions - 2)
    produce(name, "21", 5, routing="sticky", partition=3)
    produce_batch(name, [Record(key="21", value=6), Record(key="21", value=7, partition=1)], routing=lambda *_: 0)
    assert services.flush(30) == 0
    placed = partitions(embedded, name, 8)
    assert sorted(placed[:4]) == [0, 1, 2, 3]
    assert placed[4:] == [2, 3, 0, 1]
    with pytest.raises(
        UnknownName, match=r"No routing 'tests\.test_routing\.wrong'; there are key, round_robin, sticky"
    ):
        produce(name, None, 1, routing="tests.test_routing.wrong")


def test_a_function_of_settings_chooses_by_content(embedded: Cluster, settings: Settings, name: str) -> None:
    use(settings, embedded.bootstrap_servers, {"default": {"routing": "tests.test_routing.heavy_ones_apart"}})
    deliveries = [produce(name, "21", {"heavy": heavy}) for heavy in (True, False, True)]
    assert [one.result(30).partition for one in deliveries] == [3, (-973932308 & 0x7FFFFFFF) % 4, 3]


async def _send(name: str, count: int) -> list[int | None]:
    deliveries = [await aproduce(name, "21", number, routing="round_robin") for number in range(count)]
    return [(await one).partition for one in deliveries]


def test_coroutines_do_not_wait_for_brokers_to_tell_how_many_partitions_there_are(
    embedded: Cluster, settings: Settings, name: str
) -> None:
    use(settings, embedded.bootstrap_servers)
    asked: list[str] = []
    router = producers["default"].router
    ask = router.partitions._ask

    def ask_here(topic: str, timeout: float) -> int:
        asked.append(threading.current_thread().name)
        return ask(topic, timeout)

    router.partitions._ask = ask_here
    assert sorted(asyncio.run(_send(name, 4)), key=str) == [0, 1, 2, 3]
    assert len(asked) == 1
    assert asked[0] != threading.main_thread().name


def test_how_many_partitions_there_are_is_asked_once_a_minute_and_kept_while_nobody_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked, answers = (
        [100.0],
        list[float](),
        list[Any]([4, 6, DeliveryFailed("down", code="_TRANSPORT", retriable=True), 8]),
    )
    monkeypatch.setattr(partitioning.time, "monotonic", lambda: now[0])

    def ask(_topic: str, timeout: float) -> int:
        asked.append(timeout)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    known = Partitions(ask, 30.0)
    with pytest.raises(partitioning.Unknown):
        known.of("t", wait=False)
    assert (known.of("t"), known.of("t"), known.of("t", wait=False)) == (4, 4, 4)
    now[0] += 61
    assert known.of("t") == 6
    now[0] += 61
    assert (known.of("t"), known.of("t")) == (6, 6)
    now[0] += 11
    assert known.of("t") == 8
    assert asked == [30.0, 2.0, 2.0, 2.0]


def test_while_one_thread_asks_again_the_others_go_on_with_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asking, go_on = [100.0], threading.Event(), threading.Event()
    monkeypatch.setattr(partitioning.time, "monotonic", lambda: now[0])
    answers = iter([4, 8])

    def ask(_topic: str, _timeout: float) -> int:
        answer = next(answers)
        if answer == 8:
            asking.set()
            assert go_on.wait(30)
        return answer

    known = Partitions(ask, 30.0)
    assert known.of("t") == 4
    now[0] += 61
    other = threading.Thread(target=known.of, args=("t",))
    other.start()
    assert asking.wait(30)
    assert known.of("t") == 4
    go_on.set()
    other.join()
    assert known.of("t") == 8


def test_brokers_that_are_out_of_reach_are_an_error_before_anything_is_queued(settings: Settings) -> None:
    use(settings, NOBODY, {"default": {"routing": "round_robin"}})
    with pytest.raises(DeliveryFailed):
        produce("flights", None, 1)
    assert services.flush(2) == 0
    assert tallies.of_producer("default").of_topic("flights").errors == {"network": 1}


# --- topics -----------------------------------------------------------------------------------------------------------


def test_a_template_makes_topics_of_models_types_and_tenants(
    embedded: Cluster, settings: Settings, topic: Callable[..., str]
) -> None:
    own, stage = {"serializer": "tests.test_routing.OwnValues"}, topic("stage")
    use(
        settings,
        embedded.bootstrap_servers,
        {
            "default": {"topic": "{app}.{model}", **own},
            "events": {"topic": "events.{type}", **own},
            "tenants": {"topic": "{tenant}.orders", **own},
        },
        topic_prefix=f"{stage}.",
        tenant="tests.test_routing.tenant",
    )
    sent = [
        produce(None, "1", Group(name="crew")),
        produce(None, "1", Landed(), producer="events"),
        produce(None, "1", Landed(), producer="events", headers={"type": b"flight-landed"}),
        produce(None, "1", {"type": "flight.cancelled"}, producer="events"),
        produce(None, "1", {}, producer="tenants"),
        produce("named", "1", {}, producer="tenants"),
    ]
    tenants.append("umbrella")
    try:
        sent += produce_batch(None, [{"key": "1", "value": {}}, {"key": "2", "value": {}}], producer="tenants")
    finally:
        tenants.pop()
    expected = [
        "auth.group",
        "events.Landed",
        "events.flight-landed",
        "events.flight.cancelled",
        "acme.orders",
        "named",
    ]
    expected += ["umbrella.orders"] * 2
    assert [one.result(30).topic for one in sent] == [f"{stage}.{name}" for name in expected]


def test_a_function_names_another_topic_whose_serializer_counts(
    embedded: Cluster, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic()
    use(
        settings,
        embedded.bootstrap_servers,
        {
            "default": {
                "topics": {name: {"routing": "tests.test_routing.by_country"}, f"{name}.us": {"serializer": "text"}}
            }
        },
    )
    assert produce(name, None, {"country": "de"}).result(30).topic == f"{name}.de"
    with pytest.raises(EncodeError, match="the serializer 'text' takes text"):
        produce(name, None, {"country": "us"})


@pytest.mark.parametrize(
    ("template", "value", "headers", "said"),
    [
        ("{app}.x", {"a": 1}, None, "whose value is dict, has no app: its value is no Django model. Name its topic."),
        ("{model}", b"raw", None, "has no model"),
        ("{type}", {"a": 1}, None, 'has no type: it has no header "type"'),
        ("{type}", "text", [("type", None)], "has no type"),
        ("{type}", {"type": 7}, None, "has no type"),
        ("{type}", {"type": "../../etc"}, None, "which makes '../../etc'"),
        ("{type}", {"type": "a b"}, None, "is no name for a topic"),
        ("{type}", {}, iter([("type", b"\xff")]), "which makes '\ufffd'"),
        ("{tenant}", {}, None, 'has no tenant: KAFKA["tenant"] is not set, or told of none.'),
    ],
)
def test_what_has_no_topic_is_refused_before_anything_is_queued(
    settings: Settings, template: str, value: Any, headers: Any, said: str
) -> None:
    use(settings, NOBODY, {"default": {"topic": template, "serializer": "tests.test_routing.OwnValues"}})
    with pytest.raises(Unroutable) as refused:
        produce(None, None, value, headers=headers)
    assert said in str(refused.value)
    assert services.flush(2) == 0
    assert tallies.of_producer("default").of_topic(template).errors == {"configuration": 1}


def test_headers_that_can_be_looked_at_once_arrive(embedded: Cluster, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, embedded.bootstrap_servers, {"default": {"topic": f"{name}.{{type}}"}})
    delivery = produce(None, None, 1, headers=iter([("type", b"x"), ("other", b"y")])).result(30)
    [message] = read(embedded, delivery.topic, 1)
    assert message.headers() == [("type", b"x"), ("other", b"y")]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (4, "returned partition 4; "),
        (-1, "returned partition -1; "),
        (True, "returned bool; allowed: a partition, a topic, None."),
        (1.0, "returned float"),
        ("a b", "returned the topic 'a b': "),
        ("", "returned the topic ''"),
    ],
)
def test_what_a_function_returns_is_looked_at(
    embedded: Cluster, settings: Settings, name: str, answer: Any, said: str
) -> None:
    use(settings, embedded.bootstrap_servers, {"default": {"routing": "tests.test_routing.wrong"}})
    with pytest.raises(Unroutable, match=r"The routing tests\.test_routing\.wrong returned") as refused:
        produce(name, None, {"answer": answer})
    assert said in str(refused.value)
    with pytest.raises(Unroutable, match=r"tests\.test_routing\.wrong failed with KeyError: 'answer'"):
        produce_batch(name, [{"key": None, "value": {"answer": 0}}, {"key": None, "value": {}}])
    assert services.flush(10) == 0
    assert tallies.of_producer("default").acknowledged == 0, "The first of them was not queued either."


@pytest.mark.django_db(transaction=True)
def test_what_is_routed_leaves_on_commit_as_all_does(embedded: Cluster, settings: Settings, name: str) -> None:
    use(settings, embedded.bootstrap_servers, {"default": {"routing": "round_robin"}})
    with transaction.atomic():
        delivery = produce(name, None, 1)
        assert not delivery.done()
    assert delivery.result(30).partition is not None
    with transaction.atomic():
        lost = produce(name, None, 2)
        transaction.set_rollback(True)
    wait_until(lost.done)
    assert isinstance(lost.error, DeliveryDiscarded)


def test_captured_records_ask_no_brokers(settings: Settings) -> None:
    use(
        settings,
        NOBODY,
        {"default": {"routing": "round_robin"}, "own": {"topic": "{type}", "routing": "tests.test_routing.wrong"}},
    )
    with produced() as records:
        produce("flights", "1", 1)
        produce(None, "1", {"type": "landed", "answer": 0}, producer="own")
        with pytest.raises(Unroutable, match="has 1, numbered from 0"):
            produce(None, "1", {"type": "landed", "answer": 1}, producer="own")
    assert [(one.topic, one.partition) for one in records] == [("flights", None), ("landed", 0)]
    assert record(None, "1", {"type": "landed", "answer": None}, producer="own").topic == "landed"


# --- as Java does it --------------------------------------------------------------------------------------------------


def test_a_key_goes_where_the_java_client_sends_it(kafka: Kafka, settings: Settings, topic: Callable[..., str]) -> None:
    ours, java, admin = topic("ours"), topic("java"), kafka.admin()
    for name in (ours, java):
        admin.create_topics([NewTopic(name, 7, 1)], operation_timeout=30)[name].result(30)
    keys = ["", "21", "N14228", "größe", "日本", "a" * 500, *(f"key-{number}" for number in range(300))]
    use(settings, kafka.address)
    for key in keys:
        produce(ours, key, key)
    assert services.flush(30) == 0
    console = [found("java", "default-jre-headless"), "-cp", f"{jars()}/*", "org.apache.kafka.tools.ConsoleProducer"]
    options = ["--bootstrap-server", kafka.address, "--topic", java, "--property", "parse.key=true"]
    subprocess.run(
        [*console, *options, "--property", "key.separator=\t"],
        input="".join(f"{key}\t{key}\n" for key in keys), text=True, check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    places = [{one.key(): one.partition() for one in read(kafka.address, name, len(keys))} for name in (ours, java)]
    assert places[0] == places[1]
    assert set(places[0].values()) == set(range(7))
