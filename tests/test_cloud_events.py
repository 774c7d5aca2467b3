"""CloudEvents: binary and structured, there and back, as others write them, and what of them is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from django_kafka import categories, handlers, services, upcasters
from django_kafka.cloud_events import CloudEvent, NoCloudEvent, of_headers
from django_kafka.cloud_events import read as read_event
from django_kafka.dead_letters import erasing, exporting, replaying
from django_kafka.dead_letters.executing import Executor
from django_kafka.exceptions import DecodeError, EncodeError, NoHandler, PayloadTooLarge
from django_kafka.messages import Message, Messages
from django_kafka.models import LetterWords, Replay
from django_kafka.testing import consume, produced, record
from tests.app.models import Effect
from tests.consuming import Seen, Workplace
from tests.letters import dead_letter
from tests.sending import read
from tests.test_admin import person
from tests.test_encryption import FIELDS, JANE, OLD, Raw, assert_dark

__all__ = ["person"]

SOURCE, TYPE = "/flights/ops", "com.example.flight.landed"
JSON = "application/cloudevents+json"
AT = datetime(2026, 11, 27, 9, 30, tzinfo=UTC)
EVENT = CloudEvent(
    id="1", source=SOURCE, type=TYPE, subject="UA 1545", time=AT, dataschema="https://example.com/flight",
    datacontenttype="application/json", extensions={"traceid": "ü", "n": 5, "late": True},
)  # fmt: skip


def handle(message: Message) -> None:
    event = message.cloud_event
    assert event is not None
    Effect.objects.create(
        topic=message.topic, partition=message.partition, offset=message.offset, key=event.id, payload=message.value
    )
    if message.value.get("seat") == "17C":
        raise ValueError("no seat")


def kafka(mode: str = "binary", *, producer: Any = None, **consumer: Any) -> dict[str, Any]:
    topics = {"flights": {"handler": "tests.test_cloud_events.handle"}, "others": {}}
    events = {"mode": mode, "source": SOURCE, "type": TYPE}
    return {
        "brokers": ["127.0.0.1:1"],
        "producers": {"default": {"cloud_events": events, **(producer or {})}},
        "consumers": {
            "ops": {"group_id": "ops", "topics": topics, "retry": {"max_retries": 0}, "cloud_events": True, **consumer}
        },
        "encryption": {"keys": {"old": OLD}},
        "dead_letters": {"edit": True},
    }


@pytest.fixture(autouse=True)
def _settings(settings: Settings) -> None:
    settings.KAFKA = kafka()


@pytest.fixture
def executor(db: None) -> Iterator[Executor]:
    mine = Executor()
    yield mine
    mine.close()


def message_of(value: bytes | None, headers: Any, topic: str = "flights") -> Message:
    raw = Raw(value, topic)
    raw.parts["headers"] = list(headers)
    return Message(raw, handlers.decoder_for("ops", topic))


def sent(value: Any, topic: str = "flights") -> tuple[bytes | None, dict[str, bytes | None]]:
    made = record(topic, "k", value, headers={"mine": "1"})
    return made.raw_value, dict(made.headers)


# There and back


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_events_are_sent_and_read(workplace: Workplace, mode: str) -> None:
    events: list[Any] = []
    seen = Seen(lambda message: events.append(message.cloud_event))
    producers = {"default": {"cloud_events": {"mode": mode, "source": SOURCE, "type": TYPE}}}
    workplace.consume(seen, kafka={"producers": producers}, cloud_events=True)
    services.produce(workplace.topic, "k", JANE).result()
    services.produce(workplace.topic, "k", CloudEvent(data=JANE, subject="17", extensions={"n": 5})).result()
    with workplace.worker():
        seen.wait(2)

    first, second = events
    assert seen.values == [JANE, JANE]
    assert (first.source, first.type, first.subject) == (SOURCE, TYPE, None)
    assert first.id != second.id
    assert (second.subject, str(second.extensions["n"])) == ("17", "5")
    raws = read(workplace.cluster, workplace.topic, 2)
    kind = dict(raws[0].headers())["content-type"]
    if mode == "binary":
        assert (json.loads(raws[0].value()), kind) == (JANE, b"application/json")
    else:
        assert (json.loads(raws[0].value())["data"], kind) == (JANE, JSON.encode())
        assert json.loads(raws[1].value())["n"] == 5


def test_a_binary_event_is_its_data_with_headers_beside_it() -> None:
    value, headers = sent(CloudEvent(data={"n": 1}, id="1", time=AT, subject="ü %", extensions={"late": True, "n": 5}))
    assert value == b'{"n":1}'
    assert headers == {
        "mine": b"1", "ce_specversion": b"1.0", "ce_id": b"1", "ce_source": SOURCE.encode(), "ce_type": TYPE.encode(),
        "ce_subject": "ü %".encode(), "ce_time": b"2026-11-27T09:30:00Z", "ce_late": b"true", "ce_n": b"5",
        "content-type": b"application/json",
    }  # fmt: skip


def test_a_structured_event_is_json_around_its_data(settings: Settings) -> None:
    settings.KAFKA = kafka("structured")
    value, headers = sent(CloudEvent(data={"n": 1.50, "t": "ü"}, id="1", time=AT, extensions={"late": True, "n": 5}))
    assert json.loads(value or b"") == {
        "specversion": "1.0", "id": "1", "source": SOURCE, "type": TYPE, "time": "2026-11-27T09:30:00Z", "late": True,
        "n": 5, "datacontenttype": "application/json", "data": {"n": 1.5, "t": "ü"},
    }  # fmt: skip
    assert headers["content-type"] == JSON.encode()
    assert headers["ce_type"] == TYPE.encode(), "so that handlers are found by headers"


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize(
    ("serializer", "data", "kind"),
    [
        ("json", JANE, "application/json"),
        ("json", "text", "application/json"),
        ("text", "ü<>\n", "text/plain"),
        ("bytes", b"\x00\xff", "application/octet-stream"),
        ("bytes", b"", "application/octet-stream"),
    ],
)
def test_data_of_any_serializer_come_back(settings: Settings, mode: str, serializer: str, data: Any, kind: str) -> None:
    settings.KAFKA = kafka(mode, producer={"serializer": serializer}, serializer=serializer)
    value, headers = sent(data)
    message = message_of(value, headers.items())
    assert (message.value, message.cloud_event and message.cloud_event.datacontenttype) == (data, kind)
    assert Messages([message._raw], handlers.decoder_for("ops", "flights")).values() == [data]
    with produced() as records:
        services.produce("flights", "k", data)
    assert records[0].value == data


def test_what_is_bytes_already_may_be_anything(settings: Settings) -> None:
    settings.KAFKA = kafka("structured")
    for data in (b'{"n":1}', b"}broken{"):
        value, headers = sent(data)
        assert json.loads(value or b"")["data_base64"]
        event, inner = read_event(value or b"", list(headers.items()))
        assert (event.type, inner) == (TYPE, data)


def test_a_tombstone_is_one_and_an_event_without_data_is_an_event(settings: Settings) -> None:
    assert sent(None) == (None, {"mine": b"1"})
    value, headers = sent(CloudEvent())
    assert (value, headers["ce_type"]) == (None, TYPE.encode())
    assert message_of(None, headers.items()).cloud_event is not None
    settings.KAFKA = kafka("structured")
    assert sent(None)[0] is None
    value, headers = sent(CloudEvent())
    message = message_of(value, headers.items())
    assert (message.value, message.cloud_event and message.cloud_event.type) == (None, TYPE)
    assert message_of(None, headers.items()).value is None


def test_a_topic_may_be_different_and_an_event_says_the_rest(settings: Settings) -> None:
    whole = kafka()
    own = {"plain": {"cloud_events": "none"}, "gates": {"cloud_events": {"type": "gate"}},
           "bags": {"cloud_events": {"mode": "structured", "content_type": "application/vnd.bag+json"}}}  # fmt: skip
    whole["producers"]["default"]["topics"] = own
    settings.KAFKA = whole
    assert sent(JANE, "plain")[1] == {"mine": b"1"}
    assert sent(JANE, "gates")[1]["ce_type"] == b"gate"
    assert sent(CloudEvent(data=JANE, type="mine", source="/me"), "gates")[1]["ce_type"] == b"mine"
    bag = json.loads(sent(JANE, "bags")[0] or b"")
    assert (bag["type"], bag["datacontenttype"], bag["data"]) == (TYPE, "application/vnd.bag+json", JANE)


@pytest.mark.parametrize("depth", [300, 900, 3000, 60_000])
def test_data_that_are_nested_very_deeply_are_poison(depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    event = f'{{"specversion":"1.0","id":"1","source":"s","type":"t","data":{deep}}}'.encode()
    message = message_of(event, [("content-type", JSON.encode())])
    for look in (lambda: message.value, lambda: message.cloud_event):
        with suppress(DecodeError):  # poison; how deep is too deep is another one in each Python
            look()


BY_TYPE = {"type_in": {"cloud_event": "type"}, "version_in": {"cloud_event": "dataversion"}}
of_versions: list[Any] = []


def landed_2(message: Message) -> None:
    of_versions.append((message.value, message.cloud_event and message.cloud_event.subject))


def to_version_2(payload: dict[str, Any]) -> dict[str, Any]:
    return {"seat": payload["place"]}


@pytest.fixture
def versions() -> Iterator[list[Any]]:
    of_versions.clear()
    handlers.kafka_handler(topics="landings", consumer="ops", type=TYPE, version=2)(landed_2)
    handlers.upcaster(type=TYPE, from_version=1)(to_version_2)
    yield of_versions
    handlers.forget(landed_2)
    upcasters.forget(to_version_2)


@pytest.mark.parametrize("chosen", ["none", "payload", ["seat", "place"]])
@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_handlers_are_found_by_attributes_wherever_these_stand(
    settings: Settings, db: None, versions: list[Any], mode: str, chosen: Any
) -> None:
    settings.KAFKA = kafka(mode, producer={"encryption": chosen}, encryption=chosen, **BY_TYPE)
    first = CloudEvent(data={"place": "1A"}, subject="1")
    other = CloudEvent(data={}, type="of.others")
    second = CloudEvent(data={"seat": "1B"}, subject="2", extensions={"dataversion": 2})
    done = consume([record("landings", "k", each) for each in (first, second, other)])
    assert versions == [({"seat": "1A"}, "1"), ({"seat": "1B"}, "2")]
    assert [letter.error_type.rpartition(".")[2] for letter in done.dead_letters] == ["NoHandler"]


def test_structured_events_of_others_have_no_headers_beside_them(
    settings: Settings, db: None, versions: list[Any]
) -> None:
    settings.KAFKA = kafka(**BY_TYPE)
    found = handlers.for_topic("ops", "landings")

    def given(**attributes: Any) -> Message:
        event = {"specversion": "1.0", "id": "1", "source": "/o", "type": TYPE, "data": {"seat": "1C"}, **attributes}
        raw = Raw(json.dumps(event).encode(), "landings")
        raw.parts["headers"] = [("content-type", JSON.encode())]
        return Message(raw, found.decoder)

    for version in (2, "2"):
        assert found.match(message := given(dataversion=version)).path == f"{__name__}.landed_2"
        assert message.kind == (TYPE, 2)
    for wrong in ("two", True, 0):
        with pytest.raises(DecodeError, match="is no whole number"):
            found.match(given(dataversion=wrong))
    with pytest.raises(NoHandler, match="it is version 3 of"):
        found.match(given(dataversion=3))
    for broken in ({"specversion": "2.0"}, {"type": 5}, {"type": None}):
        with pytest.raises(DecodeError, match="it is no CloudEvent"):
            found.match(given(**broken))
    for odd in ("__class__", "extensions", "data", "completed", "\u202e"):
        settings.KAFKA = kafka(type_in={"cloud_event": odd})
        with pytest.raises(NoHandler):
            handlers.for_topic("ops", "landings").match(given())


def test_a_handler_is_found_by_the_type(settings: Settings, db: None) -> None:
    for mode in ("binary", "structured"):
        settings.KAFKA = kafka(mode)
        rule = {"header": {"ce_type": "cancelled"}, "handler": "tests.app.handlers.record"}
        settings.KAFKA["consumers"]["ops"]["topics"]["flights"]["dispatch"] = [rule]
        settings.KAFKA = {**settings.KAFKA}
        done = consume([record("flights", "k", CloudEvent(data={"n": 1}, type="cancelled"))])
        assert (done.handled, Effect.objects.latest("pk").payload) == (1, {"n": 1})


def test_a_callers_own_headers_of_these_names_give_way() -> None:
    made = record("flights", "k", JANE, headers={"ce_type": "forged", "content-type": "x", "other": "1"})
    kinds = [value for name, value in made.headers if name in ("ce_type", "content-type")]
    assert kinds == [TYPE.encode(), b"application/json"]


# Of others


def structured(**changed: Any) -> bytes:
    whole = {"specversion": "1.0", "id": "1", "source": SOURCE, "type": TYPE, "data": {"n": 1}, **changed}
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("changed", "data"),
    [
        ({}, b'{"n":1}'),
        ({"data": "text"}, b'"text"'),
        ({"data": "<a/>", "datacontenttype": "application/xml"}, b"<a/>"),
        ({"data": [1], "datacontenttype": "application/x+json; charset=utf-8"}, b"[1]"),
        ({"data": ..., "data_base64": "AP8="}, b"\x00\xff"),
        ({"data": None}, None),
        ({"data": ...}, None),
    ],
)
@pytest.mark.parametrize("kind", [JSON, "Application/CloudEvents+JSON; charset=UTF-8"])
def test_what_others_write_is_read(changed: Any, data: bytes | None, kind: str) -> None:
    event, found = read_event(structured(**changed), [("content-type", b"old"), ("Content-Type", kind.encode())])
    assert (event.id, found) == ("1", data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[]", "it is no object"),
        (structured(specversion="0.3"), "its `specversion` is not 1.0"),
        (structured(id=...), "its `id` is missing"),
        (structured(source=""), "its `source` is no text"),
        (structured(type=5), "its `type` is no text"),
        (structured(subject=5), "its `subject` is no text"),
        (structured(time="yesterday"), "its `time` is none"),
        (structured(time="2026-13-01T00:00:00Z"), "its `time` is none"),
        (structured(time="2026-12-01T00:00:00"), "its `time` is none"),
        (structured(data_base64="?"), "its `data_base64` is no base64"),
        (structured(data_base64=5), "its `data_base64` is no base64"),
    ],
)
def test_what_is_no_event_is_poison(data: bytes, words: str) -> None:
    message = message_of(data, [("content-type", JSON.encode())])
    for ask in (lambda: message.value, lambda: message.cloud_event):
        with pytest.raises(
            DecodeError, match=rf"flights\[0\]@7 cannot be read: it is no CloudEvent: {words}"
        ) as caught:
            ask()
        assert categories.of(caught.value).kind is categories.Kind.POISON


def test_other_formats_and_what_is_large_are_not_read(settings: Settings) -> None:
    with pytest.raises(DecodeError, match="events are read as"):
        _ = message_of(structured(), [("content-type", b"application/cloudevents+avro")]).value
    with pytest.raises(NoCloudEvent):
        read_event(structured(), [])
    settings.KAFKA = kafka(max_payload=20)
    with pytest.raises(PayloadTooLarge):
        _ = message_of(structured(), [("content-type", JSON.encode())]).value
    with pytest.raises(PayloadTooLarge):
        _ = message_of(structured(), [("content-type", JSON.encode())]).cloud_event


BINARY: tuple[tuple[str, bytes | None], ...] = (
    ("ce_specversion", b"1.0"), ("CE_ID", b"1"), ("ce_source", SOURCE.encode()), ("ce_type", TYPE.encode()),
)  # fmt: skip


def test_a_binary_event_of_others_is_told_by_its_headers_whatever_settings_say(settings: Settings) -> None:
    settings.KAFKA = kafka(cloud_events=False)
    more = [("ce_time", b"2026-11-27T09:30:00.123456789+01:00"), ("ce_ext", "ü".encode()), ("ce_type", b"last")]
    event = message_of(b"{}", [*BINARY, *more, ("content-type", b"application/json")]).cloud_event
    assert event is not None
    assert (event.id, event.type, event.extensions["ext"]) == ("1", "last", "ü")
    assert (event.datacontenttype, event.time) == (
        "application/json", datetime.fromisoformat("2026-11-27T09:30:00.123456+01:00"),
    )  # fmt: skip
    assert message_of(structured(), [("content-type", JSON.encode())]).value["data"] == {"n": 1}


@pytest.mark.parametrize(
    "headers",
    [(), BINARY[1:], BINARY[:3], (*BINARY, ("ce_id", b"")), (*BINARY, ("ce_time", b"x")), (*BINARY, ("ce_x", b"\xff"))],
)
def test_a_message_that_is_no_event_has_none(headers: Any) -> None:
    assert of_headers(headers) is None
    assert message_of(b"{}", headers).cloud_event is None
    assert message_of(b"{}", headers).value == {}


# What is refused


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (CloudEvent(data=1, extensions={"Upper": "x"}), "'Upper'; a name is of a-z and 0-9"),
        (CloudEvent(data=1, extensions={"data": "x"}), "'data'; a name"),
        (CloudEvent(data=1, extensions={"x": 1.5}), "'x' of a CloudEvent is float"),
        (CloudEvent(data=1, subject="\ud800"), "'subject' of a CloudEvent has lone surrogates"),
        (CloudEvent(data=1, time=datetime(2026, 11, 27)), "time of a CloudEvent has no zone"),  # noqa: DTZ001
        (CloudEvent(data=object()), "does not serialize"),
    ],
)
def test_what_no_event_may_say_is_not_sent(event: CloudEvent, words: str) -> None:
    with pytest.raises(EncodeError, match=words):
        services.produce("flights", "k", event)


def test_an_event_without_a_type_or_for_a_producer_of_none_is_not_sent(settings: Settings) -> None:
    whole = kafka()
    del whole["producers"]["default"]["cloud_events"]["type"]
    settings.KAFKA = whole
    with pytest.raises(EncodeError, match="A CloudEvent has no type: give it one"):
        services.produce("flights", "k", JANE)
    settings.KAFKA = kafka("none")
    with pytest.raises(EncodeError, match=r"of type django_kafka\.cloud_events\.CloudEvent, does not serialize"):
        services.produce("flights", "k", CloudEvent(data=1))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("binari", 'Did you mean "binary"?'),
        ("binary", '["cloud_events"] has no `source`'),
        ({"mode": "binary", "sorce": "/x"}, 'Did you mean "source"?'),
        ({"mode": "both", "source": "/x"}, 'allowed: "none", "binary", "structured", or a dict'),
        ({"mode": "binary", "source": 5}, "One of these may be a name"),
    ],
)
def test_what_is_wrong_in_settings_is_an_error_of_the_check(settings: Settings, chosen: Any, words: str) -> None:
    settings.KAFKA = {**kafka(), "producers": {"default": {"topics": {"a": {"cloud_events": chosen}}}}}
    said = [f"{each.msg} {each.hint}" for each in run_checks(tags=["kafka"])]
    assert any(words in each and '["topics"]["a"]["cloud_events"]' in each for each in said), said


# Encrypted, and as dead letters


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize("chosen", ["payload", FIELDS])
def test_events_are_encrypted_as_values_are(settings: Settings, executor: Executor, mode: str, chosen: Any) -> None:
    settings.KAFKA = kafka(mode, producer={"encryption": chosen}, encryption=chosen)
    mine = {**JANE, "seat": "1A"}
    value, headers = sent(mine)
    assert_dark(value)
    assert_dark(str(headers))
    assert ("ce_type" in headers) == (mode == "binary" or chosen == FIELDS), "an encrypted event says nothing in clear"
    message = message_of(value, headers.items())
    assert (message.value, message.cloud_event and message.cloud_event.type) == (mine, TYPE)

    letter = dead_letter(value, headers=list(headers.items()))
    with produced() as records:
        for topic in ("", "others"):
            replaying.request([letter.pk], target="topic", topic=topic)
            executor.run_next()
            type(letter).objects.update(state="open")
    assert records[0].raw_value == value
    moved = message_of(records[1].raw_value, records[1].headers, "others")
    assert (moved.value, moved.cloud_event and moved.cloud_event.type) == (mine, TYPE)
    replaying.request([letter.pk])
    executor.run_next()
    assert Effect.objects.get().payload == mine
    assert erasing.forget(erasing.At(path="passenger.email", value="jane@example.com"), name="me").letters == 1


@pytest.mark.parametrize("chosen", ["none", "payload", FIELDS])
def test_a_structured_event_is_edited_as_a_whole(
    settings: Settings, client: Client, admin_user: User, executor: Executor, chosen: Any
) -> None:
    settings.KAFKA = kafka("structured", producer={"encryption": chosen}, encryption=chosen)
    value, headers = sent(JANE)
    letter = dead_letter(value, headers=list(headers.items()))
    client.force_login(admin_user)
    address = reverse("admin:lynx_kafka_deadletter_edit", args=[letter.pk])
    draft = client.get(address).context["draft"]
    whole = json.loads(draft.value.written.text)
    assert (draft.value.written.notation, whole["type"], whole["data"]["seat"]) == ("json", TYPE, "17C")
    typed = {
        "value_notation": "json", "value": draft.value.written.text.replace("17C", "1A"), "target": "handler",
        "key_notation": draft.key.written.notation, "key": draft.key.written.text, "version": draft.version,
    }  # fmt: skip
    shown = client.post(address, {**typed, "send": "1"})
    assert shown.status_code == 302, shown.content.decode()
    if chosen != "none":
        assert_dark(Replay.objects.get().edited_value)
    executor.run_next()
    letter.refresh_from_db()
    effect = Effect.objects.get()
    assert (letter.state, effect.payload, effect.key) == ("resolved", {**JANE, "seat": "1A"}, whole["id"])


def test_masks_begin_at_the_data_of_an_event_wherever_letters_are_read(
    settings: Settings, client: Client, person: Callable[..., User], db: None
) -> None:
    settings.KAFKA = {**kafka("structured"), "dead_letters": {"mask": ["passenger"]}}
    value, headers = sent(JANE)
    for data in (value, structured(id=..., data=JANE)):
        letter = dead_letter(data, headers=list(headers.items()), error_message="no seat")
        person("view_deadletter")
        shown = client.get(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])).content.decode()
        assert_dark(LetterWords.objects.get(letter=letter).words)
        for line in exporting.json_lines(replaying.letters().filter(pk=letter.pk), masked=True):
            assert_dark(json.loads(line)["value"])
        if data is value:
            assert_dark(shown)
            assert "17C" in shown
