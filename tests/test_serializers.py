from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from django.db import models
from django.utils.functional import lazystr
from django.utils.translation import gettext_lazy
from pytest_django import Settings

from django_kafka import serializers
from django_kafka.clients.embedded import Cluster
from django_kafka.exceptions import ConfigurationError, DecodeError, EncodeError
from django_kafka.messages import Message
from django_kafka.producing import produce
from django_kafka.serializers import TopicDecoder, get
from tests.sending import read, use
from tests.test_messages import Raw

UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
KOLKATA = timezone(timedelta(hours=5, minutes=30))


class Hex:
    """A serializer of a project's own."""

    def encode(self, value: Any, topic: str) -> bytes:
        return f"{topic}:{value:x}".encode()

    def decode(self, data: bytes, topic: str) -> int:
        return int(data.decode().removeprefix(f"{topic}:"), 16)


class AsItIs:
    """A serializer of a project's own that leaves to others what it is given."""

    def encode(self, value: Any, topic: str) -> Any:
        return value

    def decode(self, data: bytes, topic: str) -> bytes:
        return data


class Status(models.TextChoices):
    LANDED = "landed"


class Seats(models.IntegerChoices):
    MANY = 180


def encode(value: Any, name: str = "json") -> bytes | None:
    return serializers.encode(get(name), value, "flights", "value")


def decode(data: bytes | None, name: str = "json") -> Any:
    return Message(Raw(value=data), TopicDecoder("text", name)).value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2013, 1, 1, 5, 17, 0, 123456, tzinfo=UTC), '"2013-01-01T05:17:00.123456+00:00"'),
        (datetime(2013, 1, 1, 5, 17, tzinfo=KOLKATA), '"2013-01-01T05:17:00+05:30"'),
        (datetime(2013, 1, 1, 5, 17), '"2013-01-01T05:17:00"'),  # noqa: DTZ001
        (date(2013, 1, 1), '"2013-01-01"'),
        (time(5, 17, 0, 1), '"05:17:00.000001"'),
        (time(5, 17, tzinfo=UTC), '"05:17:00+00:00"'),
        (Decimal("12.3400"), '"12.3400"'),
        (UUID, '"12345678-1234-5678-1234-567812345678"'),
        (timedelta(days=1, microseconds=5), '"P1DT00H00M00.000005S"'),
        (gettext_lazy("flight"), '"flight"'),
        (lazystr("lazy"), '"lazy"'),
        (Status.LANDED, '"landed"'),
        (Seats.MANY, "180"),
        ({"größe": ["ß", None, True, 1.5]}, '{"größe":["ß",null,true,1.5]}'),
        ("nul \0 and \u2028", '"nul \\u0000 and \u2028"'),
        (2**70, str(2**70)),
        ((), "[]"),
        ("", '""'),
        (0, "0"),
        (False, "false"),
    ],
)
def test_json_knows_what_models_hold(value: Any, text: str) -> None:
    assert (encode(value) or b"").decode() == text
    assert json.loads(text) == decode(text.encode())


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (float("nan"), "float"),
        ([float("inf")], "list"),
        ("\ud800", "str"),
        ({"a": "\udfff"}, "dict"),
        (deep(200_000), "list"),
        (circle(), "list"),
        ({1, 2}, "set"),
        ({UUID: 1}, "dict"),
        (bytearray(b"x"), "bytearray"),
        (Raw(), "tests.test_messages.Raw"),
    ],
    ids=["nan", "inf", "surrogate", "nested surrogate", "deep", "circle", "set", "key", "bytearray", "object"],
)
def test_json_refuses_what_it_cannot_say_and_names_topic_and_type(value: Any, kind: str) -> None:
    with pytest.raises(EncodeError, match=f"The value for 'flights', of type {kind}, does not serialize: "):
        encode(value)


def test_bytes_and_none_pass_through_every_serializer() -> None:
    for name in ("json", "text", "bytes"):
        assert encode(b"\x00\xff", name) == b"\x00\xff"
        assert encode(None, name) is None
        assert decode(None, name) is None


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("größe", "größe".encode()),
        ("", b""),
        (7, b"7"),
        (Seats.MANY, b"180"),
        (Status.LANDED, b"landed"),
        (Decimal("1.50"), b"1.50"),
        (UUID, str(UUID).encode()),
        (date(2013, 1, 1), b"2013-01-01"),
        (datetime(2013, 1, 1, tzinfo=UTC), b"2013-01-01T00:00:00+00:00"),
        (gettext_lazy("flight"), b"flight"),
    ],
)
def test_text_takes_what_keys_are(value: Any, data: bytes) -> None:
    assert encode(value, "text") == data


@pytest.mark.parametrize("value", [True, 1.5, {}, [], object(), "\ud800"])
def test_text_refuses_what_has_no_one_text(value: Any) -> None:
    with pytest.raises(EncodeError):
        encode(value, "text")


def test_bytes_takes_bytes_only() -> None:
    assert encode(bytearray(b"a"), "bytes") == b"a"
    assert encode(memoryview(b"a"), "bytes") == b"a"
    with pytest.raises(EncodeError, match="of type str, does not serialize: the serializer 'bytes' takes bytes"):
        encode("a", "bytes")
    assert decode(b"\xff", "bytes") == b"\xff"


@pytest.mark.parametrize(
    ("data", "serializer", "reason"),
    [
        (b"{", "json", "as json: Expecting property name .* at 1"),
        (b"", "json", "as json: Expecting value at 0"),
        (b"\xff\xfe\x00", "json", "as json: UnicodeDecodeError"),
        (b"[" * 200_000, "json", "as json: RecursionError"),
        (b"1" * 5000, "json", "as json: ValueError"),
        (b"\xff", "text", "as text: UnicodeDecodeError"),
    ],
    ids=["half", "empty", "not UTF-8", "deep", "long number", "text"],
)
def test_what_cannot_be_read_is_a_sentence_without_the_payload(data: bytes, serializer: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as raised:
        decode(data, serializer)
    assert len(str(raised.value)) < 200
    assert raised.value.__cause__ is None


def test_settings_may_name_a_serializer_of_the_project(
    embedded: Cluster, settings: Settings, topic: Callable[..., str]
) -> None:
    path = "tests.test_serializers.Hex"
    name, raw = topic("hex"), topic("raw")
    own = {"serializer": path, "key_serializer": "json", "topics": {raw: {"serializer": "bytes"}}}
    use(settings, embedded.bootstrap_servers, {"default": own})
    produce(name, {"a": 1}, 255).result()
    [message] = read(embedded, name, 1)
    assert (message.key(), message.value()) == (b'{"a":1}', f"{name}:ff".encode())
    assert decode(b"flights:ff", path) == 255
    with pytest.raises(EncodeError, match="the serializer 'bytes' takes bytes"):
        produce(raw, None, 255)


def test_a_serializer_that_does_not_exist_is_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"No serializer 'tests\.nowhere\.Hex'; there are bytes, text, json"):
        get("tests.nowhere.Hex")


@pytest.mark.parametrize("given", ["text", bytearray(b"text"), memoryview(b"text"), type("Own", (bytes,), {})(b"text")])
def test_what_a_serializer_of_a_project_returns_is_sent_as_bytes(
    embedded: Cluster, settings: Settings, topic: Callable[..., str], given: Any
) -> None:
    own = f"{__name__}.AsItIs"
    use(settings, embedded.bootstrap_servers, {"default": {"serializer": own, "key_serializer": own}})
    name = topic()
    embedded.create_topic(name)
    assert produce(name, given, given).result(10).state == "acknowledged"
    assert [(one.key(), one.value()) for one in read(embedded, name, 1)] == [(b"text", b"text")]


def test_a_serializer_that_returns_no_bytes_is_named() -> None:
    with pytest.raises(EncodeError, match="its serializer returned int; it must return bytes"):
        serializers.encode(get(f"{__name__}.AsItIs"), 7, "flights", "value")
