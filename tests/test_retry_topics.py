"""Retry topics: what they are called, what stands in them, when a message is due, and what a worker makes of them."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import Producer
from django.core.checks import run_checks
from pytest_django import Settings

from django_kafka import conf, handlers, retries, retry_topics, services, tallies
from django_kafka.clients.embedded import Cluster, Request
from django_kafka.consuming import forwarding
from django_kafka.consuming.handling import until_due
from django_kafka.consuming.partition import Partition
from django_kafka.consuming.slices import Slice
from django_kafka.consuming.worker import Worker
from django_kafka.dead_letters.failures import Failure
from django_kafka.exceptions import ConfigurationError, Reject, Retry, Skip
from django_kafka.messages import LETTER_HEADER, Message
from django_kafka.retry_topics import RetryTopic, Returned
from django_kafka.serializers import TopicDecoder
from django_kafka.testing import consume, record
from tests.consuming import NAME, Seen, Workplace
from tests.sending import read
from tests.servers.processes import wait_until

HANDLER = "tests.app.handlers.record"
NOW = 1_700_000_000.0
OURS = "lynx-kafka-retry-"


class Raw:
    """A message as the client gives it: by default one that waits in the first retry topic."""

    def __init__(self, **parts: Any) -> None:
        self.parts = {"topic": "g.flights.retry.1", "partition": 2, "offset": 7, "timestamp": (1, int(NOW * 1000)),
                      "key": b"N14228", "value": b"\xff\0", "headers": [], **parts}  # fmt: skip

    def __getattr__(self, name: str) -> Callable[[], Any]:
        return lambda: self.parts[name]


def facts(**changed: bytes | None) -> list[tuple[str, bytes | None]]:
    """Our headers, some of them changed; None leaves one out."""
    usual = {"topic": b"flights", "partition": b"3", "offset": b"1099511627776", "timestamp": b"1357017420123",
             "attempts": b"1", "due": str(int(NOW * 1000) + 5000).encode(), **changed}  # fmt: skip
    return [(f"{OURS}{name}", value) for name, value in usual.items() if value is not None]


def retry_topic(number: int = 1, longest: float = 60.0) -> RetryTopic:
    family = frozenset({"flights", "g.flights.retry.1", "g.flights.retry.2"})
    name = f"g.flights.retry.{number}"
    return RetryTopic(name=name, origin="flights", number=number, longest=longest, family=family)


def returned(headers: Any, number: int = 1, longest: float = 60.0, **parts: Any) -> Returned:
    return retry_topic(number, longest).returned(Raw(headers=headers, **parts))


def use(settings: Settings, **consumer: Any) -> conf.Consumer:
    base = {"group_id": "g", "topics": {"flights": {"handler": HANDLER}}, "retry": {"mode": "topics", "max_retries": 2}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "producers": {"default": {}}, "consumers": {"ops": base | consumer}}
    return conf.consumer("ops")


# Names


def test_a_retry_topic_is_named_after_group_topic_and_attempt_with_the_prefix_once(settings: Settings) -> None:
    use(settings)
    settings.KAFKA = {**settings.KAFKA, "topic_prefix": "stage."}

    found = handlers.retry_topics("ops")

    assert list(found) == ["stage.g.flights.retry.1", "stage.g.flights.retry.2"]
    assert {one.origin for one in found.values()} == {"stage.flights"}
    assert [one.number for one in found.values()] == [1, 2]


def test_only_topics_whose_retries_use_them_have_retry_topics(settings: Settings) -> None:
    blocking = {"handler": HANDLER, "retry": {"mode": "blocking"}}
    use(settings, topics={"a": {"handler": HANDLER}, "b": blocking, "c.DLT": {"import": "auto"}})
    assert list(handlers.retry_topics("ops")) == ["g.a.retry.1", "g.a.retry.2"]

    own = {"handler": HANDLER, "retry": {"mode": "topics", "max_retries": 1}}
    use(settings, retry={}, topics={"a": {"handler": HANDLER}, "b": own})
    assert list(handlers.retry_topics("ops")) == ["g.b.retry.1"]


def test_a_retry_topic_has_the_handlers_serializers_and_settings_of_its_origin(settings: Settings) -> None:
    rule = {"header": {"type": "cancelled"}, "handler": "tests.app.handlers.ignore"}
    use(settings, topics={"flights": {"handler": HANDLER, "serializer": "text", "dispatch": [rule]}})

    found = handlers.for_topic("ops", "g.flights.retry.2")

    assert (found.topic, found.retry and found.retry.number) == ("flights", 2)
    assert found.decoder.value(Message(Raw(value=b"abc"), found.decoder)) == "abc"
    waiting = Raw(topic="g.flights.retry.2", headers=[("type", b"cancelled"), *facts(attempts=b"2")])
    assert found.match(Message(found.original(waiting), found.decoder)).path == "tests.app.handlers.ignore"
    assert handlers.decoder_for("ops", "g.flights.retry.2").value(Message(Raw(value=b"a"), found.decoder)) == "a"


# Headers


def test_a_message_comes_back_as_what_it_was() -> None:
    raw = Raw(
        topic="flights", partition=3, offset=2**40, timestamp=(1, 1357017420123), headers=[("a", b"1"), ("a", None)]
    )
    message = Message(raw, TopicDecoder("text", "bytes"))

    headers = retry_topics.headers_of(message, attempts=1, due_ms=int(NOW * 1000) + 5000, failures=[b"{}"])
    again = returned(headers)

    assert headers == [("a", b"1"), ("a", None), *facts(), (f"{OURS}failure", b"{}")]
    assert (again.topic(), again.partition(), again.offset()) == ("flights", 3, 2**40)
    assert again.timestamp() == (1, 1357017420123)
    assert (again.key(), again.value()) == (b"N14228", b"\xff\0")
    assert again.headers() == [("a", b"1"), ("a", None)]
    assert (again.attempts, again.failures) == (1, (b"{}",))


def test_a_message_without_a_timestamp_keeps_having_none() -> None:
    assert returned(facts(timestamp=None)).timestamp() == (0, -1)


def test_a_message_with_a_timestamp_before_1970_comes_back_as_what_it_was() -> None:
    message = Message(Raw(topic="flights", offset=5, timestamp=(1, -86_400_000)), TopicDecoder("text", "bytes"))
    again = returned(retry_topics.headers_of(message, attempts=1, due_ms=int(NOW * 1000)))
    assert (again.topic(), again.offset(), again.timestamp(), again.attempts) == ("flights", 5, (1, -86_400_000), 1)


def test_headers_like_ours_that_a_message_had_before_stay_its_own() -> None:
    its_own = facts(partition=b"99")
    again = returned([*its_own, *facts(), ("traceparent", b"00")])
    assert again.partition() == 3
    assert again.headers() == [*its_own, ("traceparent", b"00")]


FOREIGN: list[list[tuple[str, bytes | None]]] = [
    [],
    [("a", b"1")],
    *([*facts(**{name: None})] for name in ("topic", "partition", "offset", "attempts", "due")),
    [*facts(), (f"{OURS}due", b"5")],
    [*facts(), (f"{OURS}partition", b"3")],
    facts(topic=b"other"),
    facts(topic=b"\xff\xfe"),
    facts(topic="flüge".encode()),
    facts(partition=b"-1"),
    facts(partition=b"2147483648"),
    facts(offset=b"9223372036854775808"),
    facts(offset="٣".encode()),
    facts(offset=b"1" * 100_000),
    facts(timestamp=b"yesterday"),
    facts(timestamp=b"9" * 19),
    facts(attempts=b"0"),
    facts(attempts=b"2"),
    facts(due=b""),
    facts(due=b"nan"),
    facts(due=b"99999999999999999999"),
    [(f"{OURS}{name}", None) for name in ("topic", "partition", "offset", "attempts", "due")],
    [("\ufffd", b"x"), (f"{OURS}topic", b"flights")],
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_what_is_not_written_as_ours_is_a_message_of_its_own_that_does_not_wait(headers: Any) -> None:
    foreign = returned(headers)
    assert (foreign.topic(), foreign.partition(), foreign.offset()) == ("g.flights.retry.1", 2, 7)
    assert foreign.timestamp() == (1, int(NOW * 1000))
    assert foreign.headers() == headers
    assert (foreign.attempts, foreign.failures) == (0, ())
    assert foreign.seconds_left(NOW) == 0


# Due times


@pytest.mark.parametrize(
    ("due", "sent", "left"),
    [
        (NOW + 5, NOW, 5),
        (NOW - 5, NOW, 0),
        (0, NOW, 0),
        (NOW + 60, NOW, 60),
        (NOW + 1e9, NOW, 60),
        (NOW + 1e9, NOW + 1e9, 60),
        (NOW + 1e9, NOW - 50, 10),
        (NOW + 1e9, NOW - 100, 0),
        (2**63 / 1000 - 1000, NOW, 60),
        (NOW + 1e9, None, 60),
    ],
)
def test_nothing_waits_longer_than_the_longest_wait(due: float, sent: float | None, left: float) -> None:
    timestamp = (0, -1) if sent is None else (1, int(sent * 1000))
    waiting = returned(facts(due=str(int(due * 1000)).encode()), timestamp=timestamp)
    assert waiting.seconds_left(NOW) == pytest.approx(left)


def test_waits_in_a_retry_topic_are_of_one_length(settings: Settings) -> None:
    consumer = use(settings, retry={"mode": "topics", "jitter": 0.5, "backoff": "2s", "multiplier": 3})
    policy = retries.policy_for(consumer, "flights")
    assert {policy.delay(2) for _ in range(50)} == {6.0}
    assert policy.topics


def test_a_message_that_is_not_due_holds_its_lane_and_its_wait_begins_once() -> None:
    due = str(int(time.time() * 1000) + 30_000).encode()
    lane, piece = Partition(("g.flights.retry.1", 0)), Slice([Raw(headers=facts(due=due), timestamp=(0, -1))], 1)

    left = until_due(lane, piece, retry_topic())

    assert left is not None
    assert 29 < left <= 30
    assert lane.resting
    kept = piece.due
    until_due(lane, piece, retry_topic())
    assert piece.due == kept


# What is said of the attempts before


def failure(number: int, **fields: Any) -> Failure:
    made = Failure.of(ValueError(f"no {number}"), category="handler", handler=HANDLER, attempt=number)
    return Failure(**{**{name: getattr(made, name) for name in made.__slots__}, **fields})


def test_earlier_attempts_are_told_without_their_tracebacks() -> None:
    told = forwarding.read_failures([forwarding.written(failure(number)) for number in (1, 2)], 2)
    assert [(one.attempt, one.error_type, one.error_message, one.category) for one in told] == [
        (1, "ValueError", "no 1", "handler"),
        (2, "ValueError", "no 2", "handler"),
    ]
    assert {one.handler for one in told} == {HANDLER}
    assert abs(told[0].at - failure(1).at) < timedelta(seconds=5)


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff", b"[]", b"null", b"{}", b"[" * 100_000, b'{"at": NaN}', b'"error"',
     b'{"at": true, "category": "handler", "error": "E", "message": "m", "handler": "h"}',
     b'{"at": 99999999999999999999, "category": "handler", "error": "E", "message": "m", "handler": "h"}',
     b'{"at": 1, "category": "handler", "error": null, "message": "m", "handler": "h"}'],
)  # fmt: skip
def test_what_cannot_be_read_of_earlier_attempts_is_left_out(text: bytes) -> None:
    good = forwarding.written(failure(2))
    assert [one.attempt for one in forwarding.read_failures([text, good], 2)] == [2]


def test_what_is_read_of_earlier_attempts_can_be_stored() -> None:
    words = {"at": 1, "category": "x" * 99, "error": "E\0" * 999, "message": "\ud800", "handler": "h" * 9999}
    [one] = forwarding.read_failures([json.dumps(words).encode()], 1)
    assert one.category == "handler"
    assert "\0" not in one.error_type
    assert (len(one.error_type), len(one.handler)) == (300, 500)
    assert one.error_message == "\\ud800"


def test_more_failures_than_attempts_are_not_believed() -> None:
    headers = [*facts(), *[(f"{OURS}failure", b"{}")] * 2]
    assert returned(headers).failures == ()


# Settings


def errors() -> dict[str, str]:
    return {one.id.removeprefix("django_kafka."): one.msg for one in run_checks(tags=["kafka"]) if one.id}


def test_retry_topics_need_a_producer_on_their_cluster_that_confirms(settings: Settings) -> None:
    use(settings)
    assert not errors()
    settings.KAFKA = {**settings.KAFKA, "producers": {}}
    assert "No enabled producer" in errors()["E040"]
    with pytest.raises(ConfigurationError, match="have no producer"):
        Worker("ops")
    settings.KAFKA = {**settings.KAFKA, "producers": {"default": {"acks": "0"}}}
    assert 'with acks "0"' in errors()["E040"]


def test_a_retry_topic_needs_a_name_that_kafka_takes_and_nobody_else_uses(settings: Settings) -> None:
    use(settings, group_id="operations team")
    assert "illegal name" in errors()["E041"]
    use(settings, group_id="g" * 250)
    assert "illegal name" in errors()["E041"]
    use(settings, topics={"flights": {"handler": HANDLER}, "g.flights.retry.2": {"handler": HANDLER}})
    assert "named as a topic as well" in errors()["E042"]


def test_two_consumers_have_no_retry_topic_in_common(settings: Settings) -> None:
    use(settings, topics={"late.flights": {"handler": HANDLER}})
    mine = settings.KAFKA["consumers"]["ops"]
    other = {**mine, "group_id": "g.late", "topics": {"flights": {"handler": HANDLER}}}
    assert not errors()
    settings.KAFKA = {**settings.KAFKA, "consumers": {"ops": mine, "crews": other}}
    assert "retry topic of consumer 'crews' as well" in errors()["E042"] or "'ops' as well" in errors()["E042"]
    with pytest.raises(ConfigurationError, match="as well"):
        Worker("ops")


# Workers


def place(workplace: Workplace, handler: Callable[..., Any], *, partitions: int = 1, **more: Any) -> list[str]:
    """Declare the consumer with two short retries, make the retry topics, and return their names."""
    retry = {"mode": "topics", "max_retries": 2, "backoff": "200ms", "multiplier": 2, **more.pop("retry", {})}
    kafka = {"producers": {"default": {}}, **more.pop("kafka", {})}
    soon = {"auto_commit_interval": "200ms", **more}
    workplace.consume(handler, partitions=partitions, retry=retry, kafka=kafka, **soon)
    names = [f"{workplace.group}.{workplace.topic}.retry.{number}" for number in range(1, retry["max_retries"] + 1)]
    for name in names:
        workplace.cluster.create_topic(name, partitions)
    return names


class Attempts:
    """A handler that fails each message as often as its value says, and keeps what it saw of it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, int, str, int, int, float]] = []
        self.headers: list[Any] = []

    def __call__(self, message: Message) -> None:
        place = message.topic, message.partition, message.offset
        self.seen.append((message.value["n"], message.attempt, *place, time.monotonic()))
        self.headers.append((message.headers, message.timestamp_ms))
        if message.attempt <= message.value.get("fails", 0):
            raise ValueError(f"attempt {message.attempt}")

    def of(self, number: int) -> list[tuple[Any, ...]]:
        return [one[1:5] for one in self.seen if one[0] == number]


def test_a_message_is_tried_again_from_its_retry_topics_and_its_lane_goes_on(workplace: Workplace) -> None:
    attempts = Attempts()
    seen = Seen(attempts)
    names = place(workplace, seen, partitions=2)
    workplace.send([{"n": 0, "fails": 2}], partition=1, key=b"k", headers=[("a", b"1"), ("a", None)], timestamp=12345)
    workplace.send([{"n": 1}, {"n": 2}], partition=1)

    with workplace.worker():
        seen.wait(3)
        wait_until(lambda: workplace.committed() == {0: 0, 1: 3}, message="it was not committed")
        wait_until(lambda: workplace.committed(names[1])[1] == 1, message="the retry was not committed")

    assert [value["n"] for value in seen.values] == [1, 2, 0], "those behind it do not wait for it"
    assert attempts.of(0) == [(number, workplace.topic, 1, 0) for number in (1, 2, 3)]
    assert {one for one in attempts.headers if one[1] == 12345} == {(((("a", b"1"), ("a", None))), 12345)}
    times = [one[-1] for one in attempts.seen if one[0] == 0]
    assert times[1] - times[0] >= 0.19
    assert times[2] - times[1] >= 0.39
    (waiting,) = read(workplace.cluster, names[0], 1)
    assert (waiting.partition(), waiting.key()) == (1, b"k")
    assert not workplace.letters()


def test_what_fails_for_ever_is_a_letter_with_its_coordinates_and_every_attempt(workplace: Workplace) -> None:
    seen = Seen(Attempts())
    place(workplace, seen, kafka={"dead_letters": {"topic": "{topic}.dlt"}})
    workplace.cluster.create_topic(f"{workplace.topic}.dlt", 1)
    workplace.send([{"n": 0, "fails": 9}], key=b"k", headers=[("a", b"1")], timestamp=12345)

    with workplace.worker():
        wait_until(lambda: workplace.letters(), message="there is no letter")
        (published,) = read(workplace.cluster, f"{workplace.topic}.dlt", 1)

    (letter,) = workplace.letters()
    assert (letter.topic, letter.partition, letter.offset) == (workplace.topic, 0, 0)
    assert (letter.timestamp_ms, bytes(letter.key or b""), letter.headers) == (12345, b"k", [("a", b"1")])
    assert letter.attempts == 3
    tried = list(letter.attempt_set.order_by("number"))
    assert [(one.number, one.error_message, bool(one.traceback)) for one in tried] == [
        (1, "attempt 1", False),
        (2, "attempt 2", False),
        (3, "attempt 3", True),
    ]
    assert letter.first_failed_at < letter.last_failed_at
    told = dict(published.headers() or [])
    assert told["lynx-kafka-dead-letter-topic"] == workplace.topic.encode()
    assert told["lynx-kafka-dead-letter-attempts"] == b"3"
    assert not [name for name in told if name.startswith(OURS)]


def test_a_repeat_of_the_message_comes_to_the_same_letter(workplace: Workplace) -> None:
    seen = Seen(Attempts())
    names = place(workplace, seen, retry={"max_retries": 1})
    workplace.send([{"n": 0, "fails": 9}])
    with workplace.worker():
        wait_until(lambda: workplace.letters(), message="there is no letter")
        # As after a worker that was killed before it committed that it had sent it on.
        (waiting,) = read(workplace.cluster, names[0], 1)
        send(workplace, names[0], waiting.value(), waiting.headers() or [])
        wait_until(lambda: workplace.letters()[0].attempts == 4, message="the repeat is not there")
    assert len(workplace.letters()) == 1


def send(workplace: Workplace, topic: str, value: bytes | None, headers: Any) -> None:
    producer = Producer({"bootstrap.servers": workplace.cluster.bootstrap_servers, "log_level": 0})
    producer.produce(topic, value, partition=0, headers=headers)
    assert producer.flush(20) == 0


@pytest.mark.parametrize("ruling", [Skip("enough"), Reject("never")])
def test_skip_and_reject_hold_in_a_retry_topic(workplace: Workplace, ruling: Exception) -> None:
    def handle(message: Message) -> None:
        if message.attempt == 2:
            raise ruling
        raise ValueError("first")

    seen = Seen(handle)
    names = place(workplace, seen)
    workplace.send([{"n": 0}])
    with workplace.worker():
        wait_until(lambda: workplace.committed(names[0]) == {0: 1}, message="it was not settled")
    assert not seen.values
    assert [letter.attempts for letter in workplace.letters()] == ([2] if isinstance(ruling, Reject) else [])


def test_an_outage_is_waited_for_in_the_lane_of_the_retry_topic(workplace: Workplace) -> None:
    met: list[int] = []

    def handle(message: Message) -> None:
        met.append(message.attempt)
        if message.attempt == 1:
            raise ValueError("first")
        if len(met) < 4:
            raise ConnectionRefusedError("down")

    seen = Seen(handle)
    place(workplace, seen)
    workplace.send([{"n": 0}])
    with workplace.worker():
        seen.wait(1)
    assert met == [1, 2, 2, 2]


def test_a_handler_cannot_ask_for_more_than_the_longest_wait(workplace: Workplace) -> None:
    def handle(message: Message) -> None:
        if message.attempt == 1:
            raise Retry(after=3600)

    seen = Seen(handle)
    names = place(workplace, seen, retry={"max_backoff": "500ms"})
    workplace.send([{"n": 0}])
    with workplace.worker():
        seen.wait(1)
    (waiting,) = read(workplace.cluster, names[0], 1)
    assert int(dict(waiting.headers() or [])[f"{OURS}due"] or 0) <= waiting.timestamp()[1] + 500


FORGED: list[list[tuple[str, bytes | None]]] = [
    [],
    [("lynx-kafka-retry-topic", b"\xff")],
    facts(due=b"9" * 19),
    [*facts(), *facts()[1:]],
    [(LETTER_HEADER, b"1"), *facts(topic=b"another")],
]


def test_forged_messages_in_a_retry_topic_are_handled_as_first_attempts(workplace: Workplace) -> None:
    attempts = Attempts()
    seen = Seen(attempts)
    names = place(workplace, seen, kafka={"dead_letters": {"topic": "{topic}.dlt"}})
    for number, headers in enumerate(FORGED):
        send(workplace, names[1], b'{"n": %d, "fails": 1}' % number, headers)
    send(workplace, names[1], b"not JSON", [])
    with workplace.worker():
        seen.wait(len(FORGED))
        wait_until(lambda: workplace.letters(), message="poison has no letter")

    for number in range(len(FORGED)):
        assert attempts.of(number) == [(1, names[1], 0, number), (2, names[1], 0, number)]
        (published,) = read(workplace.cluster, f"{workplace.topic}.dlt", 1)
    (letter,) = workplace.letters()
    assert (letter.topic, letter.offset, letter.attempts) == (names[1], len(FORGED), 1)
    assert published.value() == b"not JSON", "it is in the dead-letter topic of the original one"


def test_an_absurd_due_time_holds_its_lane_no_longer_than_the_longest_wait(workplace: Workplace) -> None:
    seen = Seen(Attempts())
    names = place(workplace, seen, retry={"max_backoff": "1s"})
    far = facts(topic=workplace.topic.encode(), due=b"9" * 18)
    send(workplace, names[0], b'{"n": 0}', far)
    send(workplace, names[0], b'{"n": 1}', far)
    with workplace.worker():
        seen.wait(2)


def test_while_a_retry_topic_takes_nothing_the_message_stays_unsettled_and_the_others_go_on(
    workplace: Workplace,
) -> None:
    seen = Seen(Attempts())
    place(workplace, seen, partitions=2)
    workplace.send([{"n": 0, "fails": 1}], partition=0)
    workplace.send([{"n": 1}], partition=1)
    refused = Counter(tallies.of_consumer(NAME).outages)
    workplace.cluster.push_errors(Request.PRODUCE, *["TOPIC_AUTHORIZATION_FAILED"] * 3)
    with workplace.worker() as worker:
        wait_until(lambda: any("does not take its message" in one.reason for one in worker.lanes), message="none waits")
        wait_until(lambda: workplace.committed() == {0: 0, 1: 1}, message="the other one did not go on")
        seen.wait(2, 40)
        wait_until(lambda: workplace.committed() == {0: 1, 1: 1}, message="it was not committed")
    assert (tallies.of_consumer(NAME).outages - refused)["authorization"] >= 1
    assert [value["n"] for value in seen.values] == [1, 0]


def test_a_record_that_kafka_refuses_sends_no_message_to_a_retry_topic(workplace: Workplace) -> None:
    seen = Seen(lambda message: services.produce("gates", None, message.value))
    names = place(workplace, seen, retry={"max_retries": 20, "multiplier": 1})
    workplace.cluster.create_topic("gates", 1)
    workplace.send([{"n": 0}])
    workplace.cluster.push_errors(Request.PRODUCE, "TOPIC_AUTHORIZATION_FAILED")
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 1}, message="it was not committed")
        assert len(read(workplace.cluster, "gates", 1)) == 1
    assert len(seen.values) == 1, "what the handler did is committed"
    assert workplace.committed(names[0]) == {0: 0}


def test_what_is_in_its_retry_topic_is_settled_before_the_slice_ends(workplace: Workplace) -> None:
    go_on = threading.Event()

    def handle(message: Message) -> None:
        if message.value["n"] == 9:
            assert go_on.wait(60)
        elif message.attempt == 1:
            time.sleep(0.2)
            raise ValueError("first")

    seen = Seen(handle)
    place(workplace, seen, retry={"backoff": "30s"})
    workplace.send([{"n": number} for number in range(10)])
    with workplace.worker():
        try:
            wait_until(lambda: workplace.committed()[0] >= 5, message="nothing was committed in the midst of a slice")
        finally:
            go_on.set()


def test_a_worker_that_runs_until_all_is_empty_waits_for_what_it_sent_on(workplace: Workplace) -> None:
    seen = Seen(Attempts())
    place(workplace, seen)
    workplace.send([{"n": 0, "fails": 2}])
    worker = workplace.start(until_empty=True)
    workplace.ended(worker, 40)
    assert len(seen.values) == 1


def test_going_on_is_no_failure_for_the_circuit(workplace: Workplace) -> None:
    seen = Seen(Attempts())
    breaker = {"failure_ratio": 0.1, "window": 10, "cooldown": "60s"}
    place(workplace, seen, circuit_breaker=breaker)
    workplace.send([{"n": number, "fails": 1} for number in range(30)])
    with workplace.worker() as worker:
        seen.wait(30)
        assert worker.circuit.standing().state.value == "closed"
    assert not workplace.letters()


def test_a_message_too_large_for_its_retry_topic_is_a_letter(workplace: Workplace) -> None:
    seen = Seen(Attempts())
    small = {"default": {"options": {"message.max.bytes": 2000}}}
    place(workplace, seen, kafka={"producers": small})
    workplace.send([{"n": 0, "fails": 9, "filling": "x" * 3000}, {"n": 1}])
    with workplace.worker():
        wait_until(lambda: workplace.letters(), message="there is no letter")
        seen.wait(1)
    (letter,) = workplace.letters()
    assert letter.attempts == 1
    assert "too large for" in letter.traceback


def test_handlers_that_run_inline_are_tried_again_at_once(embedded: Cluster, settings: Settings, db: None) -> None:
    attempts = Attempts()

    def handle(message: Message) -> None:
        attempts(message)

    use(settings, topics={"flights": {}})
    handlers.subscribe("flights", handle, consumer="ops")
    try:
        outcome = consume([record("flights", None, {"n": 0, "fails": 2})])
    finally:
        handlers.forget(handle)
    assert outcome.handled == 1
    assert [one[1] for one in attempts.seen] == [1, 2, 3]
