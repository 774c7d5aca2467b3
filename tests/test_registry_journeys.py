"""Messages with schemas on their way: handled, failed and replayed, while the registry is there and while it is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer
from django.test import Client
from django.urls import reverse

from django_kafka import handlers, serializers, services
from django_kafka.clients.schema_registry import Codec
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.executing import Executor
from django_kafka.messages import Message
from django_kafka.models import DeadLetter
from tests.consuming import Seen, Workplace
from tests.doctoring import Told
from tests.registries import Front
from tests.registries.schemas import AVRO, SCHEMAS
from tests.servers.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def consume(place: Workplace, front: Front, handler: Callable[..., Any], kind: str = "avro", **options: Any) -> None:
    """Have a producer and the consumer speak one kind of schema."""
    schema = {"schema": SCHEMAS[kind]} if kind == "protobuf" else {}
    kafka = {
        "schema_registry": {"auto_register": True, "timeout": "8s", **front.settings},
        "producers": {"default": {"serializer": kind, "schema": SCHEMAS[kind], "send": "immediate"}},
    }
    place.consume(handler, kafka=kafka, serializer=kind, **schema, **options)


def send(place: Workplace, *flights: str) -> None:
    """Send flights and wait until the cluster has them."""
    for delivery in [services.produce(place.topic, flight, {"flight": flight, "delay": 1}) for flight in flights]:
        delivery.result(20)


def flights(seen: Seen) -> list[str]:
    return [serializers.presentable(value)["flight"] for value in seen.values]


@pytest.mark.parametrize("kind", ["avro", "jsonschema", "protobuf"])
def test_a_message_that_fails_becomes_a_letter_that_is_shown_decoded_and_replayed(
    workplace: Workplace, front: Front, admin_client: Client, kind: str
) -> None:
    broken = [True]

    def handle(message: Message) -> None:
        if broken and serializers.presentable(message.value)["flight"] == "UA 2":
            raise ValueError("no gate")

    seen = Seen(handle)
    consume(workplace, front, seen, kind)
    with workplace.worker():
        send(workplace, "UA 1", "UA 2", "UA 3")
        seen.wait(2)
        wait_until(workplace.letters)
        [letter] = workplace.letters()
        page = admin_client.get(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])).content.decode()
        assert "&quot;flight&quot;: &quot;UA 2&quot;" in page
        broken.clear()
    replaying.request([letter.pk])
    assert carried_out() == ["succeeded"]
    assert workplace.letters()[0].state == DeadLetter.State.RESOLVED
    assert sorted(flights(seen)) == ["UA 1", "UA 2", "UA 3"]


@pytest.mark.parametrize("kind", ["avro", "jsonschema", "protobuf"])
def test_a_registry_that_goes_and_comes_back_costs_no_attempt_and_no_letter(
    workplace: Workplace, front: Front, kind: str
) -> None:
    attempts: list[int] = []
    seen = Seen(lambda message: attempts.append(message.attempt))
    consume(workplace, front, seen, kind)
    send(workplace, "UA 1", "UA 2")
    raw = framed(workplace, "UA 4", "UA 5")
    with workplace.worker():
        seen.wait(2)
        front.down()
        # What is known is read on.
        send(workplace, "UA 3")
        seen.wait(3)
        forget_what_is_known_by_readers(workplace)
        workplace.send(raw)
        time.sleep(1.0)
        assert len(seen.values) == 3
        assert workplace.letters() == []
        front.up()
        seen.wait(5)
    assert flights(seen) == [f"UA {number}" for number in range(1, 6)]
    assert set(attempts) == {1}
    assert workplace.letters() == []


def carried_out() -> list[str]:
    """Carry out the replays that were asked for, and return how they ended."""

    def waiting(error: Exception, _pause: float) -> None:
        raise AssertionError("the replays wait") from error

    executor = Executor()
    try:
        return [one.state for one in carry_out(executor, stop=threading.Event(), waiting=waiting)]
    finally:
        executor.close()


def framed(place: Workplace, *names: str) -> list[bytes]:
    """Return flights as the producer writes them, by what it knows."""
    route = services.get_producer("default").route(place.topic)
    found = [serializers.encode(route.value, {"flight": name, "delay": 1}, place.topic, "value") for name in names]
    return [one for one in found if one is not None]


def forget_what_is_known_by_readers(place: Workplace) -> None:
    """Have the reader of the topic ask again, as that of a new process does."""
    decoder = handlers.for_topic("ops", place.topic).decoder
    assert isinstance(decoder._value, Codec)
    decoder._value._read_with = -1
    decoder._value._registry.close()


def test_an_unknown_id_is_a_letter_at_once_with_its_bytes(
    workplace: Workplace, front: Front, admin_client: Client
) -> None:
    seen = Seen()
    consume(workplace, front, seen, retry={"max_retries": 5, "backoff": "10s"})
    poison = b"\0\x7f\xff\xff\xfe<b>UA 9"
    with workplace.worker():
        send(workplace, "UA 1")
        workplace.send([poison, b"{}", b"\0\0"])
        send(workplace, "UA 2")
        seen.wait(2)
        wait_until(lambda: len(workplace.letters()) == 3)
    letters = workplace.letters()
    assert [bytes(one.value or b"") for one in letters] == [poison, b"{}", b"\0\0"]
    assert {one.category for one in letters} == {"serialization"}
    assert [one.attempts for one in letters] == [1, 1, 1]
    assert "has no schema id 2147483646" in letters[0].error_message
    assert [one.error_type.rpartition(".")[2] for one in letters] == ["UnknownSchema", "DecodeError", "DecodeError"]
    page = admin_client.get(reverse("admin:lynx_kafka_deadletter_change", args=[letters[0].pk])).content.decode()
    assert "has no schema id 2147483646" in page
    assert "&lt;b&gt;UA 9" in page
    assert "<b>UA" not in page


def test_a_wrong_password_is_waited_for_like_an_outage(workplace: Workplace, front: Front) -> None:
    seen = Seen()
    consume(workplace, front, seen)
    send(workplace, "UA 1")
    front.login = ("alice", "hunter2")
    handlers.for_topic("ops", workplace.topic)
    forget_what_is_known_by_readers(workplace)
    with workplace.worker():
        time.sleep(1.5)
        assert (seen.values, workplace.letters()) == ([], [])
        front.login = None
        seen.wait(1)
    assert workplace.letters() == []


def test_the_page_of_a_letter_waits_for_no_registry(workplace: Workplace, front: Front, admin_client: Client) -> None:
    def fail(message: Message) -> None:
        raise ValueError(repr(message.value))

    consume(workplace, front, fail)
    with workplace.worker():
        send(workplace, "UA 1")
        wait_until(workplace.letters)
    [letter] = workplace.letters()
    url = reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])
    forget_what_is_known_by_readers(workplace)
    front.delay = 10.0
    began = time.monotonic()
    page = admin_client.get(url)
    assert time.monotonic() - began < 3
    assert page.status_code == 200
    said = page.content.decode()
    assert "UA 1" in said
    assert "schema registry" in said or "There is no answer within" in said
    front.delay = 0.0
    front.down()
    forget_what_is_known_by_readers(workplace)
    said = admin_client.get(url).content.decode()
    assert "The schema registry at" in said
    front.up()
    time.sleep(5.5)
    assert "&quot;flight&quot;: &quot;UA 1&quot;" in admin_client.get(url).content.decode()


def test_what_a_handler_of_lists_reads_is_decoded(workplace: Workplace, front: Front) -> None:
    got: list[Any] = []

    def handle(messages: Any) -> None:
        got.extend(value["flight"] for value in messages.values())

    handle.__qualname__ = "handle_lists"
    handler = handlers.kafka_handler(batch=True, topics=[workplace.topic], consumer="ops")(handle)
    try:
        consume(workplace, front, handler)
        send(workplace, "UA 1", "UA 2", "UA 3")
        with workplace.worker():
            wait_until(lambda: len(got) == 3)
    finally:
        handlers.forget(handler)
    assert got == ["UA 1", "UA 2", "UA 3"]


def test_what_has_its_id_in_headers_is_read_after_a_retry_topic(workplace: Workplace, front: Front) -> None:
    attempts: list[tuple[str, int]] = []

    def handle(message: Message) -> None:
        attempts.append((message.value["flight"], message.attempt))
        if message.attempt == 1:
            raise ValueError("once more")

    seen = Seen(handle)
    consume(workplace, front, seen, retry={"mode": "topics", "max_retries": 1, "backoff": "100ms"})
    kafka = workplace.settings.KAFKA
    producer = {**kafka["producers"]["default"], "schema_options": {"schema_id_in": "headers"}}
    workplace.settings.KAFKA = {**kafka, "producers": {"default": producer}}
    with workplace.worker():
        send(workplace, "UA 1")
        seen.wait(1)
    assert attempts == [("UA 1", 1), ("UA 1", 2)]
    [retry] = handlers.retry_topics("ops")
    reads = handlers.decoder_for("ops", retry)._value
    assert isinstance(reads, Codec)
    assert reads.use.topic == workplace.topic


# Health and doctor


def test_health_tells_how_the_registry_is(workplace: Workplace, front: Front) -> None:
    front.login = ("alice", "hunter2-of-alice")
    consume(workplace, front, Seen())
    found = {one.kind: one for one in services.get_health_status().components}
    assert found["registry"].healthy
    assert found["registry"].detail["types"] == ["AVRO", "JSON", "PROTOBUF"]
    front.login = ("alice", "hunter2-other")
    found = {one.kind: one for one in services.get_health_status().components}
    assert 'Look at KAFKA["schema_registry"]["username"]' in found["registry"].problems[0]
    assert "hunter2" not in str(found["registry"])
    front.login = None
    front.down()
    found = {one.kind: one for one in services.get_health_status().components}
    assert "cannot be reached" in found["registry"].problems[0]
    front.up()
    front.delay = 8.0
    began = time.monotonic()
    found = {one.kind: one for one in services.get_health_status().components}
    assert not found["registry"].healthy
    assert time.monotonic() - began < 7
    front.delay = 0.0


def test_the_check_of_django_health_check_tells_the_same(workplace: Workplace, front: Front) -> None:
    from health_check.exceptions import ServiceUnavailable

    from django_kafka.health import Registry

    consume(workplace, front, Seen())
    Registry().run()
    front.status = 503
    with pytest.raises(ServiceUnavailable, match="HTTP 503"):
        Registry().run()


def test_the_doctor_says_how_to_mend_a_registry(workplace: Workplace, front: Front) -> None:
    consume(workplace, front, Seen())
    told = Told("--timeout", "3s").one("registry")
    assert told["state"] == "ok"
    assert told["facts"] == {"types": ["AVRO", "JSON", "PROTOBUF"]}
    assert told["of"] == front.url
    front.login = ("alice", "hunter2")
    told = Told("--timeout", "3s").one("registry")
    assert (told["state"], "refuses the login" in told["saw"]) == ("error", True)
    assert told["mend"].startswith('Mend KAFKA["schema_registry"]')
    front.login, front.delay = None, 9.0
    told = Told("--timeout", "2s").one("registry")
    assert told["state"] == "error"
    front.delay = 0.0
    front.status, front.body = 200, b'["JSON"]'
    workplace.settings.KAFKA = dict(workplace.settings.KAFKA)
    [well, lacks] = Told("--timeout", "3s").of("registry")
    assert (well["state"], lacks["state"]) == ("ok", "error")
    assert "no schemas for avro" in lacks["saw"]


def test_a_bare_producer_of_the_library_is_understood(workplace: Workplace, front: Front) -> None:
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    seen = Seen()
    consume(workplace, front, seen)
    context = SerializationContext(workplace.topic, MessageField.VALUE)
    with SchemaRegistryClient({"url": front.url}) as client:
        import json

        theirs = AvroSerializer(client, json.dumps(AVRO))({"flight": "UA 1", "delay": 1, "at": 0}, context)
        [ours] = framed(workplace, "UA 1")
        assert ours == theirs
        assert AvroDeserializer(client)(ours, context)["flight"] == "UA 1"
    producer = Producer({"bootstrap.servers": workplace.cluster.bootstrap_servers, "log_level": 0})
    producer.produce(workplace.topic, theirs)
    assert producer.flush(20) == 0
    with workplace.worker():
        seen.wait(1)
    assert flights(seen) == ["UA 1"]
