"""Dead-letter topics of our own: what goes there, where exactly, and what waits until it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.checks import run_checks
from pytest_django import Settings

from django_kafka import conf, tallies
from django_kafka.clients.embedded import Cluster
from django_kafka.consuming.slices import Slice
from django_kafka.consuming.worker import Worker
from django_kafka.dead_letters import foreign, publishing
from django_kafka.dead_letters.publishing import Published, Publisher, is_hopeless
from django_kafka.exceptions import ConfigurationError, DeliveryFailed, RecordTooLarge, Reject
from django_kafka.messages import LETTER_HEADER, Message
from django_kafka.models import DeadLetter
from django_kafka.serializers import TopicDecoder
from django_kafka.testing import consume, produced, record
from tests.consuming import Seen, Workplace
from tests.sending import read
from tests.servers.processes import wait_until

HANDLER = "tests.app.handlers.record"


class Raw:
    """A message as the client gives it."""

    def __init__(self, **parts: Any) -> None:
        self.parts = {"topic": "flights", "partition": 3, "offset": 2**40, "timestamp": (1, 1357017420123),
                      "key": b"N14228", "value": b"\xff\0", "headers": [("a", b"1"), ("a", None)], **parts}  # fmt: skip

    def __getattr__(self, name: str) -> Callable[[], Any]:
        return lambda: self.parts[name]


def message(**parts: Any) -> Message:
    return Message(Raw(**parts), TopicDecoder("text", "json"))


def letter_of(one: Message, **fields: Any) -> DeadLetter:
    """A letter as it is stored, without storing it."""
    return DeadLetter(
        topic=one.topic, partition=one.partition, offset=one.offset, category="handler", error_type="shop.NoStock",
        error_message="none left – später", handler="shop.handlers.buy", attempts=2, **fields,
    )  # fmt: skip


def use(settings: Settings, cluster: Cluster | None = None, topic: str | None = "{topic}.dlt", **more: Any) -> None:
    brokers = cluster.bootstrap_servers.split(",") if cluster else ["127.0.0.1:1"]
    settings.KAFKA = {
        "brokers": brokers,
        "connection": {"timeout": "1s"},
        "consumers": {"ops": {"group_id": "g", "topics": {"flights": {"handler": HANDLER}}}},
        "dead_letters": {"topic": topic},
        **more,
    }


def publish(one: Message, **fields: Any) -> Published | None:
    return Publisher(conf.consumer("ops"), "g").publish(letter_of(one, **fields), one)


def published(one: Message) -> Published:
    found = publish(one)
    assert found is not None
    found.delivery.result(20)
    return found


# What goes there


def test_the_record_is_what_the_message_was_with_headers_that_say_why(embedded: Cluster, settings: Settings) -> None:
    use(settings, embedded)
    published(message())
    (record,) = read(embedded, "flights.dlt", 1)
    assert (record.key(), record.value()) == (b"N14228", b"\xff\0")
    assert (record.partition(), record.timestamp()[1]) == (3, 1357017420123)
    assert record.headers() == [
        ("a", b"1"),
        ("a", None),
        ("lynx-kafka-dead-letter-topic", b"flights"),
        ("lynx-kafka-dead-letter-partition", b"3"),
        ("lynx-kafka-dead-letter-offset", b"1099511627776"),
        ("lynx-kafka-dead-letter-timestamp", b"1357017420123"),
        ("lynx-kafka-dead-letter-group", b"g"),
        ("lynx-kafka-dead-letter-consumer", b"ops"),
        ("lynx-kafka-dead-letter-handler", b"shop.handlers.buy"),
        ("lynx-kafka-dead-letter-category", b"handler"),
        ("lynx-kafka-dead-letter-error-type", b"shop.NoStock"),
        ("lynx-kafka-dead-letter-error-message", "none left – später".encode()),
        ("lynx-kafka-dead-letter-attempts", b"2"),
    ]


def test_another_project_like_ours_reads_all_of_it(embedded: Cluster, settings: Settings) -> None:
    use(settings, embedded)
    published(message())
    (record,) = read(embedded, "flights.dlt", 1)
    headers = record.headers() or []
    origin = foreign.read(headers)
    assert (origin.format, origin.topic, origin.partition, origin.offset) == ("lynx", "flights", 3, 2**40)
    assert (origin.group, origin.error_type, origin.attempts, origin.unread) == ("g", "shop.NoStock", 2, ())
    assert foreign.without(headers, "lynx") == [("a", b"1"), ("a", None)]


def test_a_tombstone_without_key_time_and_handler_is_published_as_such(embedded: Cluster, settings: Settings) -> None:
    use(settings, embedded)
    one = message(key=None, value=None, timestamp=(0, -1), headers=None)
    published = Publisher(conf.consumer("ops"), "g").publish(letter_of(one), one)
    assert published is not None
    published.delivery.result(20)
    (record,) = read(embedded, "flights.dlt", 1)
    assert (record.key(), record.value(), record.partition()) == (None, None, 3)
    assert abs(record.timestamp()[1] / 1000 - time.time()) < 60
    names = [name for name, _value in record.headers() or []]
    assert "lynx-kafka-dead-letter-timestamp" not in names


def test_a_long_error_message_is_cut(settings: Settings) -> None:
    use(settings)
    one = message()
    letter = letter_of(one)
    letter.error_message = "ü" * 5000
    with produced() as records:
        assert Publisher(conf.consumer("ops"), "g").publish(letter, one) is not None
    headers = dict(records[0].headers or [])
    assert headers["lynx-kafka-dead-letter-error-message"] == ("ü" * 1000).encode()


def test_it_leaves_at_once_and_waits_for_no_transaction(settings: Settings, db: None) -> None:
    use(settings)
    with produced() as records:
        one = publish(message())
        assert one is not None
        assert one.delivery.state == "acknowledged"
        assert records[0].value == b"\xff\0"


def test_nothing_is_published_without_a_topic(settings: Settings) -> None:
    use(settings, topic=None)
    assert publish(message()) is None


def test_a_replay_that_came_back_to_its_letter_is_not_published_again(settings: Settings) -> None:
    use(settings)
    one = message(offset=8, headers=[(LETTER_HEADER, b"17")])
    letter = letter_of(one)
    letter.offset = 7
    assert Publisher(conf.consumer("ops"), "g").publish(letter, one) is None


# Where


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("dead", "dead"),
        ("{topic}.dlt", "flights.dlt"),
        ("{group}.{topic}.dlt", "g.flights.dlt"),
        ("{consumer}-{topic}", "ops-flights"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "test."])
def test_a_template_names_the_topic_of_each_and_the_prefix_stands_before_it_once(
    settings: Settings, template: str, name: str, prefix: str
) -> None:
    use(settings, topic=template, topic_prefix=prefix)
    assert publishing.topic_for(conf.consumer("ops"), f"{prefix}flights") == f"{prefix}{name}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{topik}.dlt", 'Did you mean "topic"?'),
        ("{topic!r}", "which may have {topic}, {group} and {consumer} in it"),
        ("{topic:>9}", "which may have {topic}, {group} and {consumer} in it"),
        ("{topic.upper}", "which may have {topic}, {group} and {consumer} in it"),
        ("{}", "which may have {topic}, {group} and {consumer} in it"),
        ("{topic", "Each place is a word between { and }."),
        ("topic}", "Each place is a word between { and }."),
        ("{topic} dlt", "of the characters a-z"),
        (7, "which may have {topic}, {group} and {consumer} in it"),
    ],
)
def test_a_template_that_cannot_work_is_refused(settings: Settings, template: Any, says: str) -> None:
    use(settings, topic=template)
    (problem,) = conf.problems()
    assert problem.path == 'KAFKA["dead_letters"]["topic"]'
    assert says in str(problem)


def test_it_keeps_its_partition_where_there_is_one_and_goes_by_key_where_there_is_none(
    embedded: Cluster, settings: Settings
) -> None:
    embedded.create_topic("flights.dlt", 2)
    use(settings, embedded)
    for partition in range(8):
        published(message(partition=partition))
        published(message(partition=partition, key=None))
    origins: dict[bytes | None, list[tuple[int, int]]] = {b"N14228": [], None: []}
    for one in read(embedded, "flights.dlt", 16):
        origin = int(dict(one.headers() or [])["lynx-kafka-dead-letter-partition"] or b"")
        origins[one.key()].append((origin, one.partition() or 0))
    assert {(0, 0), (1, 1)} <= set(origins[b"N14228"])
    assert len({landed for origin, landed in origins[b"N14228"] if origin > 1}) == 1, "one key, one partition"
    assert all(landed == origin % 2 for origin, landed in origins[None]), "without a key each partition stays together"


def test_the_named_producer_sends_it(embedded: Cluster, settings: Settings) -> None:
    producers = {"default": {}, "bulk": {}}
    use(settings, embedded, producers=producers)
    settings.KAFKA["dead_letters"]["producer"] = "bulk"
    settings.KAFKA = dict(settings.KAFKA)
    before = tallies.of_producer("bulk").acknowledged
    published(message())
    assert tallies.of_producer("bulk").acknowledged == before + 1


def test_without_a_name_a_producer_of_the_same_cluster_sends_it(embedded: Cluster, settings: Settings) -> None:
    use(
        settings,
        producers={"default": {}, "other": {"cluster": "eu"}},
        clusters={"eu": {"brokers": embedded.bootstrap_servers.split(",")}},
        consumers={"ops": {"cluster": "eu", "group_id": "g", "topics": {"flights": {"handler": HANDLER}}}},
    )
    published(message())
    assert len(read(embedded, "flights.dlt", 1)) == 1


# What cannot be sent


def test_what_cannot_be_sent_yet_is_sent_again(embedded: Cluster, settings: Settings) -> None:
    use(settings, embedded, producers={"default": {"delivery_timeout": "300ms"}})
    embedded.create_topic("flights.dlt", 4)
    embedded.broker_down(1)
    one = publish(message())
    assert one is not None
    with pytest.raises(DeliveryFailed) as failed:
        one.delivery.result(20)
    assert not is_hopeless(failed.value)
    embedded.broker_up(1)

    def sent() -> bool:
        one.again()
        try:
            return bool(one.delivery.result(20))
        except DeliveryFailed:
            return False

    wait_until(sent)
    assert len(read(embedded, "flights.dlt", 1)) == 1


def test_a_record_that_is_too_large_for_its_topic_is_hopeless(embedded: Cluster, settings: Settings) -> None:
    use(settings, embedded, producers={"default": {"options": {"message.max.bytes": 1000}}})
    one = publish(message(value=b"x" * 2000))
    assert one is not None
    with pytest.raises(DeliveryFailed) as failed:
        one.delivery.result(20)
    assert is_hopeless(failed.value)
    assert is_hopeless(RecordTooLarge("too large"))


# What is wrong in settings


def found(settings: Settings, **kafka: Any) -> list[str]:
    use(settings, **kafka)
    return [str(one.id).removeprefix("django_kafka.") for one in run_checks(tags=["kafka"])]


def consumers(**topics: Any) -> dict[str, Any]:
    """Consumers by name, each with what it reads: {name: topics}."""
    return {
        name: {"group_id": name, "topics": {topic: {"handler": HANDLER} for topic in read}}
        for name, read in topics.items()
    }


@pytest.mark.parametrize(
    ("topic", "read", "circles"),
    [
        ("{topic}", {"a": ["orders"]}, 1),
        ("dead", {"a": ["orders", "dead"]}, 1),
        ("dead", {"a": ["orders"], "b": ["dead"]}, 1),
        ("{group}.dlt", {"a": ["b.dlt"], "b": ["a.dlt"]}, 2),
        ("{topic}.dlt", {"a": ["orders"], "b": ["orders.dlt"]}, 0),
        ("{topic}.dlt", {"a": ["orders", "orders.dlt"]}, 0),
        ("dead", {"a": ["orders"], "b": ["flights"]}, 0),
    ],
)
def test_dead_letters_that_go_round_are_an_error(
    settings: Settings, topic: str, read: dict[str, list[str]], circles: int
) -> None:
    assert found(settings, topic=topic, consumers=consumers(**read)) == ["E032"] * circles


def test_a_topic_of_the_same_name_on_another_cluster_is_no_circle(settings: Settings) -> None:
    read = consumers(a=["orders"], b=["dead"])
    read["b"]["cluster"] = "eu"
    more = {"clusters": {"eu": {"brokers": ["a:1"]}}, "producers": {"default": {}, "eu": {"cluster": "eu"}}}
    assert found(settings, topic="dead", consumers={"a": read["a"]}, **more) == []
    assert found(settings, topic="dead", consumers=read, **more) == ["E032"], "b's own go to dead on its cluster"


def test_a_name_that_is_too_long_is_an_error(settings: Settings) -> None:
    assert found(settings, consumers=consumers(a=["x" * 245])) == []
    assert found(settings, consumers=consumers(a=["x" * 246])) == ["E031"]


@pytest.mark.parametrize(
    ("name", "producers"),
    [
        ("bulk", {"default": {}}),
        ("default", {"default": {"enabled": False}}),
        ("default", {"default": {"acks": "0"}}),
        (None, {"default": {"acks": "0"}}),
        (None, {"default": {"cluster": "eu"}}),
        (None, {}),
    ],
)
def test_without_a_producer_that_confirms_it_is_an_error_and_its_worker_does_not_start(
    settings: Settings, name: str | None, producers: dict[str, Any]
) -> None:
    use(settings, producers=producers, clusters={"eu": {"brokers": ["a:1"]}})
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"topic": "dead", "producer": name}}
    assert [one.id for one in run_checks(tags=["kafka"])] == ["django_kafka.E030"]
    with pytest.raises(ConfigurationError, match=r"producer"):
        Worker("ops")


def test_a_consumer_without_dead_letters_to_publish_asks_for_no_producer(settings: Settings) -> None:
    assert found(settings, topic=None, producers={}) == []


def test_importing_our_own_dead_letters_is_a_warning(settings: Settings) -> None:
    read = consumers(a=["orders"])
    read["b"] = {"group_id": "b", "topics": {"orders.dlt": {"import": "auto"}}}
    assert found(settings, consumers=read) == ["W030"]
    read["b"]["topics"] = {"billing.dlt": {"import": "auto"}}
    assert found(settings, consumers=read) == []


# Workers that publish


ELSEWHERE = "elsewhere"


def fail(message: Message) -> None:
    if message.value["n"] % 2:
        raise Reject(f"odd {message.value['n']}")


def odd(start: int, end: int) -> list[dict[str, int]]:
    return [{"n": number} for number in range(start, end)]


@pytest.fixture
def elsewhere() -> Iterator[Cluster]:
    """A second cluster, for dead letters alone, so that it can be away by itself."""
    with Cluster(partitions=4) as cluster:
        yield cluster


def to_elsewhere(cluster: Cluster, **producer: Any) -> dict[str, Any]:
    """Settings that send dead letters to another cluster."""
    return {
        "clusters": {ELSEWHERE: {"brokers": cluster.bootstrap_servers.split(","), "connection": {"timeout": "1s"}}},
        "producers": {"default": {}, ELSEWHERE: {"cluster": ELSEWHERE, "delivery_timeout": "500ms", **producer}},
        "dead_letters": {"topic": "{topic}.dlt", "producer": ELSEWHERE},
    }


def test_a_worker_publishes_each_dead_letter_once_and_in_order(workplace: Workplace) -> None:
    seen = Seen(fail)
    workplace.consume(seen, partitions=2, kafka={"dead_letters": {"topic": "{topic}.dlt"}}, retry={"max_retries": 0})
    workplace.send(odd(0, 20), partition=0)
    workplace.send([{"n": 1} for _ in range(50)], partition=1)
    with workplace.worker():
        seen.wait(10)
        records = read(workplace.cluster, f"{workplace.topic}.dlt", 60)
    letters = workplace.letters()
    assert [(letter.partition, letter.offset) for letter in letters] == [
        (record.partition(), int(dict(record.headers() or [])["lynx-kafka-dead-letter-offset"] or b""))
        for record in records
    ]
    assert len(letters) == 60
    assert workplace.committed() == {0: 20, 1: 50}


def test_an_outage_of_the_topic_holds_the_offset_and_stores_no_letter_twice(
    workplace: Workplace, elsewhere: Cluster
) -> None:
    seen = Seen(fail)
    workplace.consume(
        seen, kafka=to_elsewhere(elsewhere), partitions=2, retry={"max_retries": 0}, enable_auto_commit=False
    )
    elsewhere.create_topic(f"{workplace.topic}.dlt", 2)
    elsewhere.broker_down(1)
    workplace.send(odd(0, 4), partition=0)
    with workplace.worker() as worker:
        before = worker.tally.waits
        wait_until(lambda: len(workplace.letters()) == 2)
        wait_until(lambda: worker.tally.waits >= before + 3)
        workplace.send(odd(0, 1), partition=1)
        wait_until(lambda: seen.of(1) == [0], message="the other partition did not go on")
        wait_until(lambda: workplace.committed() == {0: 1, 1: 1})
        assert [letter.attempts for letter in workplace.letters()] == [1, 1]
        elsewhere.broker_up(1)
        wait_until(lambda: workplace.committed() == {0: 4, 1: 1})
    assert seen.of(0) == [0, 2], "nothing was handled again"
    assert [(letter.offset, letter.attempts) for letter in workplace.letters()] == [(1, 1), (3, 1)]
    assert len(read(elsewhere, f"{workplace.topic}.dlt", 2)) == 2


def test_a_letter_too_large_for_its_topic_holds_nobody(
    workplace: Workplace, elsewhere: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(fail)
    small = to_elsewhere(elsewhere, options={"message.max.bytes": 2000})
    workplace.consume(seen, kafka=small, retry={"max_retries": 0})
    workplace.send([{"n": 1, "text": "x" * 3000}, {"n": 2}, {"n": 3}])
    with workplace.worker() as worker:
        seen.wait(1)
        (record,) = read(elsewhere, f"{workplace.topic}.dlt", 1)
        wait_until(lambda: worker.tally.unpublished == 1)
    assert workplace.committed() == {0: 3}
    assert dict(record.headers() or [])["lynx-kafka-dead-letter-offset"] == b"2"
    assert len(workplace.letters()[0].value or b"") > 3000
    assert f"a dead letter is too large for {workplace.topic}.dlt; it is in the database only" in caplog.text


def test_a_replay_to_the_topic_that_fails_again_is_published_once_altogether(workplace: Workplace) -> None:
    seen = Seen(fail)
    workplace.consume(seen, kafka={"dead_letters": {"topic": "{topic}.dlt"}}, retry={"max_retries": 0})
    workplace.send(odd(0, 2))
    with workplace.worker():
        wait_until(lambda: len(workplace.letters()) == 1)
        (letter,) = workplace.letters()
        workplace.send([{"n": 1}], key=None, headers=[(LETTER_HEADER, str(letter.pk).encode())])
        wait_until(lambda: workplace.letters()[0].attempts == 2)
        workplace.send(odd(2, 4))
        records = read(workplace.cluster, f"{workplace.topic}.dlt", 2)
    offsets = [dict(record.headers() or [])["lynx-kafka-dead-letter-offset"] for record in records]
    assert offsets == [b"1", b"4"]


def test_records_of_handlers_and_of_dead_letters_are_awaited_in_the_order_of_their_messages() -> None:
    first, second, letter = (object() for _ in range(3))
    piece = Slice(messages=[], size=0, done=3, sent=[(0, first), (2, second)])  # type: ignore[list-item]
    piece.await_record(1, letter)  # type: ignore[arg-type]
    assert [index for index, _sent in piece.sent] == [0, 1, 2]
    for settled in (0, 1, 2):
        piece._look_for_unsettled()
        assert piece.settled == settled
        piece.acknowledge()
    assert piece.settled == 3


def test_what_a_test_captures_shows_dead_letters_too(settings: Settings, transactional_db: None) -> None:
    use(settings)
    settings.KAFKA["consumers"]["ops"]["retry"] = {"max_retries": 0}
    settings.KAFKA = dict(settings.KAFKA)
    with produced() as records:
        outcome = consume([record("flights", "N1", b"no json")], consumer="ops")
    assert len(outcome.dead_letters) == 1
    (published,) = records.to("flights.dlt")
    assert (published.raw_key, published.raw_value) == (b"N1", b"no json")
