"""Dead-letter topics of other systems, in the bytes that those write."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import IntegrityError, connection
from pytest_django import Settings

from django_kafka import conf, handlers, tallies
from django_kafka.clients.embedded import Cluster
from django_kafka.conf.consumers import IMPORTS
from django_kafka.dead_letters import foreign, importing, replaying
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.foreign import OURS, Origin
from django_kafka.exceptions import PartitionLost
from django_kafka.messages import LETTER_HEADER, Message
from django_kafka.models import DeadLetter, DeadLetterAttempt, Replay
from django_kafka.serializers import TopicDecoder
from django_kafka.signals import message_dead_lettered
from tests.consuming import NAME, Seen, Workplace
from tests.refusing import refusing
from tests.sending import read
from tests.servers.processes import wait_until

Pairs = list[tuple[str, bytes | None]]

TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in b\nshop.errors.NoStock: none left\n'

SPRING: Pairs = [
    ("trace", b"00-1"),
    ("kafka_dlt-original-topic", b"orders"),
    ("kafka_dlt-original-partition", struct.pack(">i", 2)),
    ("kafka_dlt-original-offset", struct.pack(">q", 2**40)),
    ("kafka_dlt-original-timestamp", struct.pack(">q", 1_700_000_000_123)),
    ("kafka_dlt-original-timestamp-type", b"CreateTime"),
    ("kafka_dlt-original-consumer-group", b"billing"),
    ("kafka_dlt-exception-fqcn", b"org.springframework.kafka.listener.ListenerExecutionFailedException"),
    ("kafka_dlt-exception-cause-fqcn", b"java.lang.IllegalStateException"),
    ("kafka_dlt-exception-message", "Listener failed; nested: no stock – später".encode()),
    ("kafka_dlt-exception-stacktrace", b"org.spring...: Listener failed\n\tat a.B.c(B.java:7)\n"),
]
CONNECT: Pairs = [
    ("trace", b"00-1"),
    ("__connect.errors.topic", b"orders"),
    ("__connect.errors.partition", b"2"),
    ("__connect.errors.offset", b"1099511627776"),
    ("__connect.errors.connector.name", b"warehouse"),
    ("__connect.errors.task.id", b"0"),
    ("__connect.errors.stage", b"VALUE_CONVERTER"),
    ("__connect.errors.class.name", b"org.apache.kafka.connect.json.JsonConverter"),
    ("__connect.errors.exception.class.name", b"org.apache.kafka.connect.errors.DataException"),
    ("__connect.errors.exception.message", b"Converting byte[] to Kafka Connect data failed"),
    ("__connect.errors.exception.stacktrace", b"org.apache...DataException: Converting\n\tat x.Y.z(Y.java:1)\n"),
]
REGIOHELDEN: Pairs = [
    ("DEAD_LETTER_MESSAGE_TOPIC", b"orders"),
    ("DEAD_LETTER_MESSAGE_PARTITION", b"2"),
    ("DEAD_LETTER_MESSAGE_OFFSET", b"1099511627776"),
    ("DEAD_LETTER_SUMMARY", b"none left"),
    ("DEAD_LETTER_DETAIL", TRACE.encode()),
]
EARLIER_REGIOHELDEN: Pairs = [("DEAD_LETTER_MESSAGE", b"none left"), ("DEAD_LETTER_DETAIL", TRACE.encode())]
KARAFKA: Pairs = [
    ("trace", b"00-1"),
    ("source_topic", b"orders"),
    ("source_partition", b"2"),
    ("source_offset", b"1099511627776"),
    ("source_consumer_group", b"billing"),
    ("source_attempts", b"4"),
]
EARLIER_KARAFKA: Pairs = [(name.replace("source_", "original_"), value) for name, value in KARAFKA]
LYNX: Pairs = [
    ("trace", b"00-1"),
    (f"{OURS}topic", b"orders"),
    (f"{OURS}partition", b"2"),
    (f"{OURS}offset", b"1099511627776"),
    (f"{OURS}timestamp", b"1700000000123"),
    (f"{OURS}group", b"billing"),
    (f"{OURS}consumer", b"main"),
    (f"{OURS}handler", b"billing.handlers.charge"),
    (f"{OURS}category", b"timeout"),
    (f"{OURS}error-type", b"shop.errors.NoStock"),
    (f"{OURS}error-message", b"none left"),
    (f"{OURS}attempts", b"4"),
]
FORMATS = {
    "spring": SPRING, "connect": CONNECT, "regiohelden": REGIOHELDEN, "karafka": KARAFKA, "lynx": LYNX, "plain": [],
}  # fmt: skip
PLACE = {"topic": "orders", "partition": 2, "offset": 2**40}


def swapped(pairs: Iterable[tuple[str, bytes | None]], **changes: bytes | None) -> Pairs:
    """Return headers with other values; names end in the given word, with "-" for "_"."""
    found: Pairs = []
    for name, value in pairs:
        ending = next((word for word in changes if name.lower().endswith(word.replace("_", "-"))), None)
        found.append((name, changes[ending] if ending else value))
    return found


# What the formats say


def test_a_record_of_spring_tells_where_and_why_it_failed() -> None:
    assert foreign.read(SPRING, "spring") == Origin(
        format="spring",
        **PLACE,
        timestamp_ms=1_700_000_000_123,
        group="billing",
        error_type="java.lang.IllegalStateException",
        error_message="Listener failed; nested: no stock – später",
        traceback="org.spring...: Listener failed\n\tat a.B.c(B.java:7)\n",
    )


def test_spring_repeats_headers_the_first_is_the_origin_and_the_last_the_failure() -> None:
    later: Pairs = [
        ("kafka_dlt-original-topic", b"orders.DLT"),
        ("kafka_dlt-original-partition", struct.pack(">i", 0)),
        ("kafka_dlt-original-offset", struct.pack(">q", 5)),
        ("kafka_dlt-exception-fqcn", b"java.io.IOException"),
        ("kafka_dlt-exception-message", b"mail is down"),
    ]
    origin = foreign.read([*SPRING, *later])
    assert (origin.topic, origin.partition, origin.offset) == ("orders", 2, 2**40)
    assert (origin.error_type, origin.error_message) == ("java.io.IOException", "mail is down")


def test_a_key_that_spring_cannot_read_is_about_serialization() -> None:
    pairs = [pair for pair in SPRING if "exception" not in pair[0]]
    pairs += [
        ("kafka_dlt-key-exception-fqcn", b"org.springframework.kafka.support.serializer.DeserializationException"),
        ("kafka_dlt-key-exception-message", b"failed to deserialize"),
    ]
    origin = foreign.read(pairs)
    assert origin.category == "serialization"
    assert origin.error_message == "failed to deserialize"
    assert origin.error_type.endswith("DeserializationException")


def test_the_attempts_of_springs_retry_topics_are_counted() -> None:
    assert foreign.read([*SPRING, ("retry_topic-attempts", struct.pack(">i", 4))]).attempts == 4


def test_a_record_of_kafka_connect_tells_where_and_why_it_failed() -> None:
    assert foreign.read(CONNECT, "connect") == Origin(
        format="connect",
        **PLACE,
        group="connect-warehouse",
        error_type="org.apache.kafka.connect.errors.DataException",
        error_message="Converting byte[] to Kafka Connect data failed",
        traceback="org.apache...DataException: Converting\n\tat x.Y.z(Y.java:1)\n",
        category="serialization",
        handler="warehouse, 0, VALUE_CONVERTER, org.apache.kafka.connect.json.JsonConverter",
    )


def test_what_a_sink_of_kafka_connect_could_not_put_is_about_its_handler() -> None:
    assert foreign.read(swapped(CONNECT, **{".stage": b"TASK_PUT"})).category == "handler"


def test_a_record_of_the_other_django_kafka_tells_where_and_why_it_failed() -> None:
    assert foreign.read(REGIOHELDEN, "regiohelden") == Origin(
        format="regiohelden", **PLACE, error_type="shop.errors.NoStock", error_message="none left", traceback=TRACE
    )


def test_its_earlier_versions_tell_only_why() -> None:
    assert foreign.read(EARLIER_REGIOHELDEN) == Origin(
        format="regiohelden", error_type="shop.errors.NoStock", error_message="none left", traceback=TRACE
    )


@pytest.mark.parametrize("pairs", [KARAFKA, EARLIER_KARAFKA], ids=["source", "original"])
def test_a_record_of_karafka_tells_where_it_failed(pairs: Pairs) -> None:
    assert foreign.read(pairs, "karafka") == Origin(format="karafka", **PLACE, group="billing", attempts=4)


def test_a_record_of_another_project_like_ours_tells_where_and_why_it_failed() -> None:
    assert foreign.read(LYNX, "lynx") == Origin(
        format="lynx",
        **PLACE,
        timestamp_ms=1_700_000_000_123,
        group="billing",
        error_type="shop.errors.NoStock",
        error_message="none left",
        category="timeout",
        handler="billing.handlers.charge",
        attempts=4,
    )


@pytest.mark.parametrize("name", list(FORMATS))
def test_auto_sees_whose_headers_they_are(name: str) -> None:
    assert foreign.read(FORMATS[name], "auto") == foreign.read(FORMATS[name], name)


@pytest.mark.parametrize("pairs", [EARLIER_KARAFKA, EARLIER_REGIOHELDEN])
def test_auto_knows_earlier_versions_too(pairs: Pairs) -> None:
    assert foreign.read(pairs).format != "plain"


def test_common_words_are_no_mark_of_a_format() -> None:
    pairs: Pairs = [
        ("source_topic", b"a"),
        ("original_key", b"b"),
        ("lynx-kafka-dead-letter", b"7"),
        ("RETRY_MESSAGE", b""),
    ]
    assert foreign.read(pairs).format == "plain"


def test_settings_and_readers_know_the_same_formats() -> None:
    assert set(IMPORTS) == {"auto", *foreign._READERS}


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_headers_of_the_record_itself_are_what_is_left(name: str) -> None:
    own: Pairs = [("type", b"landed"), ("type", None), ("source_key_2", b"x"), ("DEAD_LETTERS", b"y")]
    pairs = [own[0], *(pair for pair in FORMATS[name] if pair[0] != "trace"), *own[1:], (LETTER_HEADER, b"7")]
    assert foreign.without(pairs, name) == own


def test_a_record_that_goes_back_to_spring_begins_with_its_attempts_anew() -> None:
    pairs: Pairs = [("a", b"1"), ("retry_topic-attempts", b"\0\0\0\4"), ("kafka_deliveryAttempt", b"\0\0\0\1")]
    assert foreign.without(pairs, "spring") == [("a", b"1")]


# What cannot be read


@pytest.mark.parametrize(
    ("change", "part", "sentence"),
    [
        ({"original_partition": b""}, "partition", "kafka_dlt-original-partition has 0 bytes instead of 4."),
        ({"original_partition": b"\0" * 8}, "partition", "kafka_dlt-original-partition has 8 bytes instead of 4."),
        ({"original_partition": b"\xff" * 4}, "partition", "kafka_dlt-original-partition is no number from 0 to "),
        ({"original_partition": None}, "partition", "kafka_dlt-original-partition has no value."),
        ({"original_offset": b"12"}, "offset", "kafka_dlt-original-offset has 2 bytes instead of 8."),
        ({"original_offset": b"\x80" + b"\0" * 7}, "offset", "kafka_dlt-original-offset is no number from 0 to "),
        ({"original_timestamp": b"now"}, "timestamp_ms", "kafka_dlt-original-timestamp has 3 bytes instead of 8."),
        ({"original_topic": b"\xff\xfe"}, "topic", "kafka_dlt-original-topic is not UTF-8."),
        ({"original_topic": b"a b"}, "topic", "kafka_dlt-original-topic names no topic that records may be sent to."),
        ({"original_topic": b"x" * 300}, "topic", "kafka_dlt-original-topic names no topic that records may be "),
        ({"original_topic": b"__consumer_offsets"}, "topic", "kafka_dlt-original-topic names no topic that "),
        ({"original_topic": b".."}, "topic", "kafka_dlt-original-topic names no topic that records may be sent to."),
        ({"original_topic": None}, "topic", "kafka_dlt-original-topic has no value."),
    ],
)
def test_what_spring_wrote_wrongly_is_said_and_the_rest_is_read(
    change: dict[str, bytes | None], part: str, sentence: str
) -> None:
    whole, origin = foreign.read(SPRING), foreign.read(swapped(SPRING, **change), "spring")
    assert not getattr(origin, part)
    assert any(one.startswith(sentence) for one in origin.unread), origin.unread
    for other in Origin.__slots__:
        assert other in (part, "unread") or getattr(origin, other) == getattr(whole, other)


def test_a_record_of_spring_without_a_timestamp_is_all_right() -> None:
    origin = foreign.read(swapped(SPRING, original_timestamp=b"\xff" * 8))
    assert (origin.timestamp_ms, origin.unread) == (None, ())


@pytest.mark.parametrize("value", [b"-1", b"", b"1.5", b" 2", b"\xc2\xb2", b"0x2", b"9" * 5000, b"2147483648", b"\xff"])
def test_a_partition_that_is_no_number_is_said(value: bytes) -> None:
    origin = foreign.read(swapped(CONNECT, **{".partition": value}))
    assert (origin.topic, origin.partition, origin.offset) == ("orders", None, 2**40)
    assert origin.unread == ("__connect.errors.partition is no number from 0 to 2147483647.",)


@pytest.mark.parametrize("value", [b"0", b"-4", b"1000001", b"many"])
def test_absurd_attempts_count_as_one(value: bytes) -> None:
    origin = foreign.read(swapped(LYNX, attempts=value))
    assert origin.attempts == 1
    assert origin.unread == (f"{OURS}attempts is no number from 1 to 1000000.",)


@pytest.mark.parametrize("name", ["spring", "connect", "karafka", "lynx"])
def test_headers_that_are_missing_are_named(name: str) -> None:
    origin = foreign.read([], name)
    assert (origin.topic, origin.partition, origin.offset) == ("", None, None)
    assert len(origin.unread) == 3
    assert all(sentence.endswith(" is missing.") for sentence in origin.unread)


def test_bytes_that_are_no_text_are_shown_escaped() -> None:
    origin = foreign.read(swapped(CONNECT, **{".message": b"caf\xe9\0", "class.name": b"\xff"}))
    assert origin.error_message == "caf\\xe9\\x00"
    assert origin.error_type == "\\xff"
    assert "__connect.errors.exception.message is not UTF-8." in origin.unread


def test_long_texts_are_cut_to_what_is_kept() -> None:
    origin = foreign.read(swapped(LYNX, error_message=b"m" * 99_999, error_type=b"t" * 9999, category=b"c" * 99))
    assert (len(origin.error_message), len(origin.error_type), len(origin.category)) == (10_000, 300, 30)


def test_no_bytes_at_all_keep_a_record_from_being_read() -> None:
    chance = random.Random(20)
    names = [name for pairs in FORMATS.values() for name, _value in pairs]
    values = [value for pairs in FORMATS.values() for _name, value in pairs if value]

    def value() -> bytes | None:
        if chance.random() < 0.1:
            return None
        found = bytearray(chance.choice(values) if chance.random() < 0.5 else chance.randbytes(chance.randrange(20)))
        for _ in range(chance.randrange(3)):
            found[chance.randrange(len(found) or 1) : 0] = chance.randbytes(chance.randrange(3))
        return bytes(found)

    for _ in range(3000):
        pairs = [(chance.choice(names), value()) for _ in range(chance.randrange(15))]
        for format in IMPORTS:
            origin = foreign.read(pairs, format)
            assert origin.partition is None or 0 <= origin.partition < 2**31
            assert origin.offset is None or 0 <= origin.offset < 2**63
            assert origin.timestamp_ms is None or 0 <= origin.timestamp_ms < 2**63
            assert "\0" not in f"{origin}".replace("\\x00", "")
            foreign.without(pairs, origin.format)


# How they are stored


class Raw:
    """A message as the client gives it."""

    def __init__(self, **parts: Any) -> None:
        self.parts = {"topic": "orders.DLT", "partition": 0, "offset": 7, "timestamp": (1, 1_700_000_009_000),
                      "key": b"o-1", "value": b'{"n":1}', "headers": SPRING, **parts}  # fmt: skip

    def __getattr__(self, name: str) -> Callable[[], Any]:
        return lambda: self.parts[name]


@pytest.fixture
def _consumer(settings: Settings, transactional_db: None) -> None:
    settings.KAFKA = {"consumers": {"desk": {"group_id": "g", "topics": {"orders.DLT": {"import": "auto"}}}}}


def store(*messages: dict[str, Any], still_ours: Callable[[], None] = lambda: None) -> int:
    made = [Message(Raw(**parts), TopicDecoder("text", "json")) for parts in messages]
    return importing.store(conf.consumer("desk"), "g", made, "auto", still_ours=still_ours)


def letters() -> Sequence[DeadLetter]:
    return list(DeadLetter.objects.order_by("id"))


@pytest.mark.usefixtures("_consumer")
def test_an_imported_letter_is_an_open_letter_that_knows_where_it_failed() -> None:
    assert store({}) == 1
    (letter,) = letters()
    assert (letter.cluster, letter.consumer, letter.group_id) == ("default", "desk", "g")
    assert (letter.topic, letter.partition, letter.offset) == ("orders.DLT", 0, 7)
    assert (letter.origin_topic, letter.origin_partition, letter.origin_offset) == ("orders", 2, 2**40)
    assert (letter.origin_group, letter.origin_timestamp_ms) == ("billing", 1_700_000_000_123)
    assert (letter.imported_as, letter.unread, letter.state, letter.attempts) == ("spring", "", "open", 1)
    assert (bytes(letter.key or b""), bytes(letter.value or b"")) == (b"o-1", b'{"n":1}')
    assert letter.headers == SPRING
    assert letter.error_type == "java.lang.IllegalStateException"
    (attempt,) = DeadLetterAttempt.objects.all()
    assert (attempt.letter_id, attempt.number, attempt.origin, attempt.succeeded) == (letter.pk, 1, "import", False)


@pytest.mark.usefixtures("_consumer")
def test_what_could_not_be_read_stands_in_the_letter() -> None:
    store({"headers": [("kafka_dlt-original-topic", b"orders"), ("kafka_dlt-original-offset", b"12")]})
    (letter,) = letters()
    assert letter.unread.splitlines() == [
        "kafka_dlt-original-partition is missing.",
        "kafka_dlt-original-offset has 2 bytes instead of 8.",
    ]
    assert (letter.origin_topic, letter.error_type) == ("orders", importing.UNKNOWN_ERROR)
    assert letter.headers[1] == ("kafka_dlt-original-offset", b"12")


@pytest.mark.usefixtures("_consumer")
def test_messages_that_come_again_make_no_second_letter_and_open_none() -> None:
    store(*({"offset": offset} for offset in range(5)))
    DeadLetter.objects.filter(offset__in=(1, 2)).update(state="resolved")
    assert store(*({"offset": offset} for offset in range(3, 8))) == 3
    assert store(*({"offset": offset} for offset in range(8))) == 0
    assert [(letter.offset, letter.state, letter.attempts) for letter in letters()] == [
        (offset, "resolved" if offset in (1, 2) else "open", 1) for offset in range(8)
    ]
    assert DeadLetterAttempt.objects.count() == 8


@pytest.mark.usefixtures("_consumer")
def test_another_message_at_the_same_place_is_a_letter_of_its_own() -> None:
    store({})
    assert store({"value": b"{}"}) == 1
    assert store({}, {"value": b"{}"}, {"key": None}, {"headers": []}) == 2
    assert store({"partition": 1}) == 1


@pytest.mark.usefixtures("_consumer")
def test_either_all_are_stored_or_none() -> None:
    with refusing("lynx_kafka_deadletterattempt"), pytest.raises(IntegrityError, match="quota"):
        store({}, {"offset": 8})
    assert not letters()
    assert store({}, {"offset": 8}) == 2


@pytest.mark.usefixtures("_consumer")
def test_nothing_is_stored_for_a_partition_that_is_lost_meanwhile() -> None:
    asked: list[int] = []

    def lost_the_second_time() -> None:
        asked.append(DeadLetter.objects.count())
        if len(asked) == 2:
            raise PartitionLost("gone")

    with pytest.raises(PartitionLost):
        store({}, still_ours=lost_the_second_time)
    assert asked == [0, 1], "it is asked again when all is written"
    assert not letters()


@pytest.mark.usefixtures("_consumer")
def test_extreme_numbers_find_room() -> None:
    most = swapped(
        SPRING,
        original_partition=struct.pack(">i", 2**31 - 1),
        original_offset=struct.pack(">q", 2**63 - 1),
        original_timestamp=struct.pack(">q", 2**63 - 1),
    )
    store({"headers": [*most, ("retry_topic-attempts", struct.pack(">i", 1_000_000))]})
    (letter,) = letters()
    assert (letter.origin_partition, letter.origin_offset) == (2**31 - 1, 2**63 - 1)
    assert (letter.origin_timestamp_ms, letter.attempts) == (2**63 - 1, 1_000_000)


@pytest.mark.usefixtures("_consumer")
def test_an_import_is_told_once_after_it_is_stored() -> None:
    told: list[tuple[int, str]] = []

    def note(letter: DeadLetter, error: Any, **_event: Any) -> None:
        assert not connection.in_atomic_block
        told.append((letter.offset, error.error_type))

    message_dead_lettered.connect(note)
    try:
        store({}, {"offset": 8})
        store({}, {"offset": 8})
    finally:
        message_dead_lettered.disconnect(note)
    assert told == [(7, "java.lang.IllegalStateException"), (8, "java.lang.IllegalStateException")]


# A replay that failed again where it came from


@pytest.mark.usefixtures("_consumer")
def test_a_replayed_letter_that_fails_elsewhere_again_comes_back_to_its_row_once() -> None:
    store({})
    (letter,) = letters()
    DeadLetter.objects.update(state="resolved")
    again = {
        "offset": 30,
        "headers": [(LETTER_HEADER, str(letter.pk).encode()), *swapped(SPRING, cause_fqcn=b"java.io.IOException")],
    }
    assert store(again) == 0
    assert store(again) == 0, "the worker was killed before it committed the offset"
    (letter,) = letters()
    assert (letter.state, letter.attempts, letter.error_type) == ("open", 2, "java.io.IOException")
    assert list(letter.attempt_set.values_list("number", "origin", "error_type")) == [
        (1, "import", "java.lang.IllegalStateException"),
        (2, "import", "java.io.IOException"),
    ]
    assert store({**again, "offset": 31}) == 0
    assert letters()[0].attempts == 3


@pytest.mark.usefixtures("_consumer")
@pytest.mark.parametrize(
    "other", [{"value": b"{}"}, {"key": b"o-2"}, {"topic": "other.DLT"}], ids=["value", "key", "topic"]
)
def test_a_header_that_names_the_letter_of_another_message_makes_a_new_one(other: dict[str, Any]) -> None:
    store({})
    DeadLetter.objects.update(state="discarded")
    assert store({"offset": 9, "headers": [(LETTER_HEADER, str(letters()[0].pk).encode())], **other}) == 1
    assert [letter.state for letter in letters()] == ["discarded", "open"]


@pytest.mark.usefixtures("_consumer")
@pytest.mark.parametrize("header", [b"", b"x", b"-1", b"\xc2\xb2", b"9" * 30, b"9" * 19, None])
def test_a_header_that_names_no_letter_makes_a_new_one(header: bytes | None) -> None:
    store({})
    assert store({"offset": 9, "headers": [*SPRING, (LETTER_HEADER, header)]}) == 1


@pytest.mark.usefixtures("_consumer")
def test_a_letter_of_our_own_is_not_touched_by_an_import() -> None:
    store({})
    DeadLetter.objects.update(imported_as="")
    assert store({"offset": 9, "headers": [(LETTER_HEADER, str(letters()[0].pk).encode()), *SPRING]}) == 1


# Replays of imported letters


@pytest.fixture
def executor(transactional_db: None) -> Iterator[Executor]:
    mine = Executor()
    yield mine
    mine.close()


def desk(settings: Settings, cluster: Cluster, **topic: Any) -> None:
    settings.KAFKA = {
        "brokers": cluster.bootstrap_servers.split(","),
        "connection": {"timeout": "1s"},
        "consumers": {"desk": {"group_id": "g", "topics": {"orders.DLT": {"import": "auto", **topic}}}},
    }


def replay(executor: Executor, target: str = "topic") -> Replay:
    (letter,) = letters()
    assert replaying.request([letter.pk], target=target).count == 1
    done = executor.run_next()
    assert done is not None
    return done


@pytest.mark.parametrize("name", ["spring", "connect", "karafka", "lynx"])
def test_a_replay_goes_to_the_original_topic_without_what_the_dead_letter_topic_added(
    executor: Executor, embedded: Cluster, settings: Settings, name: str
) -> None:
    desk(settings, embedded)
    store({"headers": [("type", b"new"), *FORMATS[name], ("type", None)], "value": b"\xff\0"})

    done = replay(executor)

    (record,) = read(embedded, "orders", 1)
    (letter,) = letters()
    assert (record.key(), record.value()) == (b"o-1", b"\xff\0")
    assert record.headers() == [
        ("type", b"new"), ("trace", b"00-1"), ("type", None), (LETTER_HEADER, str(letter.pk).encode()),
    ]  # fmt: skip
    assert (done.state, letter.state) == ("succeeded", "resolved")
    assert done.result.startswith("orders[")


def test_settings_name_the_original_topic_where_headers_do_not_or_not_rightly(
    executor: Executor, embedded: Cluster, settings: Settings
) -> None:
    desk(settings, embedded, original="orders-v2")
    store({"headers": EARLIER_REGIOHELDEN})
    replay(executor)
    (record,) = read(embedded, "orders-v2", 1)
    assert [name for name, _value in record.headers() or []] == [LETTER_HEADER]
    DeadLetter.objects.update(state="open", origin_topic="payments")
    replay(executor)
    assert len(read(embedded, "orders-v2", 2)) == 2


@pytest.mark.usefixtures("_consumer")
@pytest.mark.parametrize("original", ["orders", None])
def test_a_prefix_stands_before_the_topic_that_settings_name_and_not_before_the_one_of_headers(
    settings: Settings, original: str | None
) -> None:
    settings.KAFKA = {
        "topic_prefix": "test.",
        "consumers": {"desk": {"group_id": "g", "topics": {"orders.DLT": {"import": "auto", "original": original}}}},
    }
    store({"topic": "test.orders.DLT"})
    assert importing.home(letters()[0]) == ("test.orders" if original else "orders")


@pytest.mark.parametrize("headers", [[], EARLIER_REGIOHELDEN], ids=["plain", "regiohelden"])
def test_a_replay_to_a_topic_that_nobody_knows_is_refused_with_the_way_out(
    executor: Executor, embedded: Cluster, settings: Settings, headers: Pairs
) -> None:
    desk(settings, embedded)
    store({"headers": headers})
    done = replay(executor)
    (letter,) = letters()
    assert (done.state, letter.state, letter.attempts) == ("cancelled", "open", 1)
    assert done.result == (
        'Its headers do not name its original topic. Name it in KAFKA["consumers"]["desk"]["topics"]["…"]["original"]'
        " for orders.DLT."
    )


def test_a_replay_to_its_handler_is_refused_because_that_runs_elsewhere(
    executor: Executor, embedded: Cluster, settings: Settings
) -> None:
    desk(settings, embedded)
    store({})
    done = replay(executor, "handler")
    (letter,) = letters()
    assert (done.state, letter.state, letter.attempts) == ("cancelled", "open", 1)
    assert done.result == ("It was imported from orders.DLT: what failed on it runs elsewhere. Replay it to its topic.")


def test_a_letter_of_our_own_that_came_from_a_dead_letter_topic_keeps_its_headers(
    executor: Executor, embedded: Cluster, settings: Settings
) -> None:
    desk(settings, embedded)
    store({})
    DeadLetter.objects.update(imported_as="")
    replay(executor)
    (record,) = read(embedded, "orders.DLT", 1)
    assert (record.headers() or [])[:-1] == SPRING


# Workers that import


def produce_to(workplace: Workplace, count: int, headers: Pairs = SPRING, start: int = 0) -> None:
    workplace.send(({"n": number} for number in range(start, start + count)), headers=headers)


def importing_worker(workplace: Workplace, **options: Any) -> None:
    workplace.consume(lambda message: None, **options)
    handlers.forget(workplace._subscribed.pop())
    workplace.settings.KAFKA["consumers"][NAME]["topics"] = {workplace.topic: {"import": "auto"}}
    workplace.settings.KAFKA = dict(workplace.settings.KAFKA)
    assert [one.id for one in run_checks(tags=["kafka"])] == []


def test_a_worker_stores_what_is_in_a_dead_letter_topic_and_commits_it(workplace: Workplace) -> None:
    importing_worker(workplace, partitions=2)
    produce_to(workplace, 300)
    tally = tallies.of_consumer(NAME)
    before = tally.imported, tally.dead_lettered, tally.handled
    with workplace.worker():
        wait_until(lambda: len(workplace.letters()) == 300)
        produce_to(workplace, 5, [], start=300)
        wait_until(lambda: len(workplace.letters()) == 305)
    after = tally.imported, tally.dead_lettered, tally.handled
    assert after == (before[0] + 305, *before[1:])
    assert workplace.committed() == {0: 305, 1: 0}
    assert [letter.offset for letter in workplace.letters()] == list(range(305))
    assert [letter.imported_as for letter in workplace.letters()] == ["spring"] * 300 + ["plain"] * 5


@pytest.mark.parametrize("table", ["lynx_kafka_deadletter", "lynx_kafka_deadletterattempt"])
def test_what_the_database_refuses_waits_and_is_no_letter_of_its_own(workplace: Workplace, table: str) -> None:
    importing_worker(workplace, enable_auto_commit=False)
    with workplace.worker() as worker:
        with refusing(table):
            produce_to(workplace, 5)
            wait_until(lambda: worker.tally.waits >= 3)
            assert not workplace.letters()
            assert workplace.committed() == {0: 0}
        wait_until(lambda: len(workplace.letters()) == 5)
        wait_until(lambda: workplace.committed() == {0: 5})
    assert {letter.imported_as for letter in workplace.letters()} == {"spring"}


def test_a_topic_that_is_read_again_from_its_beginning_makes_no_second_letters(workplace: Workplace) -> None:
    importing_worker(workplace)
    produce_to(workplace, 20)
    with workplace.worker():
        wait_until(lambda: len(workplace.letters()) == 20)
    DeadLetter.objects.filter(offset__lt=10).update(state="resolved")
    # As for a group whose offsets were reset, or whose worker was killed before it committed.
    group = workplace.group
    workplace.settings.KAFKA["consumers"][NAME]["group_id"] = f"{group}-again"
    workplace.settings.KAFKA = dict(workplace.settings.KAFKA)
    DeadLetter.objects.update(group_id=f"{group}-again")
    produce_to(workplace, 1, start=20)
    with workplace.worker():
        wait_until(lambda: DeadLetter.objects.count() == 21)
    assert DeadLetter.objects.filter(state="resolved").count() == 10


def test_a_consumer_may_import_one_topic_and_handle_another(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen)
    workplace.cluster.create_topic("other.DLT", 1)
    workplace.settings.KAFKA["consumers"][NAME]["topics"]["other.DLT"] = {"import": "spring"}
    workplace.settings.KAFKA = dict(workplace.settings.KAFKA)
    produce_to(workplace, 3)
    imported, workplace.topic = workplace.topic, "other.DLT"
    produce_to(workplace, 3)
    workplace.topic = imported
    with workplace.worker():
        seen.wait(3)
        wait_until(lambda: len(workplace.letters()) == 3)
    assert {letter.topic for letter in workplace.letters()} == {"other.DLT"}


# What is wrong in settings


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ({"import": "sprinng"}, '["import"] is \'sprinng\'; allowed: "auto", "lynx", "spring"'),
        ({"import": True}, '["import"] is True; allowed: '),
        ({"import": "spring", "handler": "a.b"}, '["handler"] stands beside `import`'),
        ({"import": "spring", "retry": {"max_retries": 1}}, '["retry"] stands beside `import`'),
        ({"import": "spring", "dispatch": []}, '["dispatch"] stands beside `import`'),
        ({"import": "spring", "original": "a b"}, "[\"original\"] is 'a b'; allowed: 1 to 249 of the characters"),
        ({"original": "orders"}, '["original"] stands there without `import`'),
    ],
)
def test_an_import_that_cannot_work_is_refused(settings: Settings, topic: dict[str, Any], says: str) -> None:
    settings.KAFKA = {"consumers": {"desk": {"group_id": "g", "topics": {"orders.DLT": topic}}}}
    (problem,) = conf.problems()
    assert says in problem.message


def test_a_handler_for_a_topic_that_is_imported_is_an_error(settings: Settings) -> None:
    settings.KAFKA = {"consumers": {"desk": {"group_id": "g", "topics": {"orders.DLT": {"import": "auto"}}}}}
    assert run_checks(tags=["kafka"]) == []
    seen = Seen()
    handlers.subscribe("orders.DLT", seen, consumer="desk")
    try:
        assert [one.id for one in run_checks(tags=["kafka"])] == ["django_kafka.E033"]
    finally:
        handlers.forget(seen)


def test_a_handler_of_the_whole_consumer_is_for_its_other_topics(settings: Settings) -> None:
    topics = {"orders.DLT": {"import": "auto"}, "orders": {}}
    handler = "tests.app.handlers.record"
    settings.KAFKA = {"consumers": {"desk": {"group_id": "g", "handler": handler, "topics": topics}}}
    assert run_checks(tags=["kafka"]) == []
    assert [one.topic for one in handlers.registrations("desk")] == ["orders"]
    assert handlers.for_topic("desk", "orders.DLT").imports == "auto"
