"""Avro, JSON Schema and Protobuf: both ways, subjects, evolution, references, and how settings name schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pydantic
import pytest
from django.core.management import call_command
from pytest_django import Settings

from django_kafka import conf, handlers, serializers
from django_kafka.clients.schema_registry import Codec
from django_kafka.exceptions import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    SchemaRefused,
)
from django_kafka.messages import Message
from django_kafka.producers import producers
from django_kafka.records import prepare
from django_kafka.testing import produced
from tests.registries import Front
from tests.registries.schemas import AVRO, INCOMPATIBLE, NEWER, PROTOBUF, SCHEMAS, FlightLanded
from tests.sending import NOBODY

FLIGHT = {"flight": "UA 1545", "delay": 2}
TEXT_SCHEMA = json.dumps(AVRO)
PATH_SCHEMA = Path(__file__).parent / "registries" / "landed.avsc"


def use(
    settings: Settings, url: str, producer: dict[str, Any], consumer: dict[str, Any] | None = None, **registry: Any
) -> None:
    """Have a producer, and a consumer of topic "flights"."""
    settings.KAFKA = {
        "brokers": [NOBODY],
        "connection": {"timeout": "20s"},
        "schema_registry": {"url": url, "auto_register": True, **registry},
        "producers": {"default": producer},
        "consumers": {"ops": {"group_id": "g", "topics": {"flights": {}}, **(consumer or {})}},
    }


def written(name: str, value: Any, key: Any = None) -> tuple[bytes, bytes | None, list[tuple[str, bytes | None]]]:
    """Return the value, key and headers of a record as they go over the wire."""
    data, key, _partition, headers, _timestamp = prepare(producers["default"].route(name), key, value)
    assert data is not None
    return data, key, headers or []


class Raw:
    """A message as the client has it."""

    def __init__(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: list[Any] | None = None
    ) -> None:
        self._parts = topic, value, key, headers

    def topic(self) -> str:
        return self._parts[0]

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7

    def timestamp(self) -> tuple[int, int]:
        return 0, 0

    def value(self) -> bytes | None:
        return self._parts[1]

    def key(self) -> bytes | None:
        return self._parts[2]

    def headers(self) -> Any:
        return self._parts[3]


def read(name: str, *raw: Any) -> Message:
    """Return a message as a handler of "ops" gets it."""
    return Message(Raw(name, *raw), handlers.decoder_for("ops", name))


# Both ways


@pytest.mark.parametrize("where", ["payload", "headers"])
@pytest.mark.parametrize("kind", ["avro", "jsonschema", "protobuf"])
def test_keys_and_values_arrive_as_they_were_sent(
    front: Front, settings: Settings, topic: Any, kind: str, where: str
) -> None:
    name, schema = topic(), SCHEMAS[kind]
    both = {"serializer": kind, "key_serializer": kind, "schema": schema, "key_schema": schema}
    use(settings, front.url, {**both, "schema_options": {"schema_id_in": where}}, {**both, "topics": {name: {}}})
    value, key, headers = written(name, FLIGHT, {"flight": "key"})
    assert [header for header, _id in headers] == (
        ["__key_schema_id", "__value_schema_id"] if where == "headers" else []
    )
    assert (value[:1] == b"\0") == (where == "payload")
    message = read(name, value, key, headers)
    got = serializers.presentable(message.value)
    assert (got["flight"], got["delay"]) == ("UA 1545", 2)
    assert serializers.presentable(message.key)["flight"] == "key"
    decoder = handlers.decoder_for("ops", name)
    raws = [Raw(name, value, key, headers), Raw(name, None, None)]
    assert decoder.values(raws) == [message.value, None]
    assert decoder.keys(raws) == [message.key, None]
    # Nobody is asked again, and both forms are read whatever the writer's settings are.
    asked = len(front.asked)
    written(name, FLIGHT, {"flight": "key"})
    assert read(name, value, key, headers).value == message.value
    assert len(front.asked) == asked
    assert isinstance(message.value, FlightLanded if kind == "protobuf" else dict)


def test_what_django_has_is_written(front: Front, settings: Settings, topic: Any) -> None:
    name, at = topic(), datetime(2013, 1, 1, 5, 17, tzinfo=UTC)
    use(settings, front.url, {"serializer": "avro", "schema": AVRO}, {"serializer": "avro", "topics": {name: {}}})
    assert read(name, written(name, {"flight": "UA", "at": at})[0]).value == {"flight": "UA", "delay": None, "at": at}
    schema = {"type": "object", "properties": {"at": {"type": "string"}, "price": {"type": "string"}}}
    one = {"serializer": "jsonschema", "schema": schema}
    use(settings, front.url, one, {"serializer": "jsonschema", "topics": {"other": {}}})
    value = written("other", {"at": at, "price": Decimal("9.50"), "legs": ({"at": at},)})[0]
    assert read("other", value).value == {
        "at": at.isoformat(), "price": "9.50", "legs": [{"at": at.isoformat()}],
    }  # fmt: skip
    use(settings, front.url, {"serializer": "protobuf", "schema": PROTOBUF})
    assert (
        written(topic("p"), FlightLanded(flight="UA", delay=3))[0][6:]
        == FlightLanded(flight="UA", delay=3).SerializeToString()
    )


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("avro", {"delay": 1}), ("avro", {"flight": 7}), ("avro", [1]), ("jsonschema", {"delay": 1}),
        ("jsonschema", {"flight": float("nan")}), ("jsonschema", {"flight": "UA", "x": object()}),
        ("protobuf", {"gate": "C"}), ("protobuf", {"flight": 7}), ("protobuf", "text"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_its_schema_is_refused_before_anything_is_sent(
    front: Front, settings: Settings, topic: Any, kind: str, bad: Any
) -> None:
    name = topic()
    use(settings, front.url, {"serializer": kind, "schema": SCHEMAS[kind]})
    for _first_and_later in range(2):
        with pytest.raises(EncodeError, match=r"The value for .* does not serialize"):
            written(name, bad)


def test_a_record_of_a_test_is_seen_decoded(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    for where in ("payload", "headers"):
        options = {"schema_id_in": where}
        use(settings, front.url, {"serializer": "avro", "schema": AVRO, "schema_options": options})
        with produced() as records:
            producers["default"]
            from django_kafka.services import produce

            produce(name, "k", FLIGHT)
        assert records[0].value["flight"] == "UA 1545"


def test_headers_of_the_caller_stay(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    options = {"schema_id_in": "headers"}
    use(settings, front.url, {"serializer": "avro", "schema": AVRO, "schema_options": options})
    given = [("a", b"1"), ("a", b"2"), ("__value_schema_id", b"of another")]
    route = producers["default"].route(name)
    headers = prepare(route, None, FLIGHT, headers=given)[3]
    assert headers is not None
    assert headers[:2] == [("a", b"1"), ("a", b"2")]
    assert [header for header, _value in headers] == ["a", "a", "__value_schema_id"]
    assert headers[2][1] != b"of another"


# What cannot be read


@pytest.mark.parametrize("kind", ["avro", "jsonschema", "protobuf"])
def test_bytes_that_are_no_frame_are_poison_with_a_reason(
    front: Front, settings: Settings, topic: Any, kind: str
) -> None:
    name, schema = topic(), SCHEMAS[kind]
    reader = {"serializer": kind, "topics": {name: {"schema": PROTOBUF if kind == "protobuf" else None}}}
    use(settings, front.url, {"serializer": kind, "schema": schema}, reader)
    good = written(name, FLIGHT)[0]
    for bad, words in (
        (b"", "there is nothing"),
        (b'{"a":1}', "its first byte is 123"),
        (b"\0\0\0", "its 3 bytes end within the id"),
        (b"\1\0\0", "its 3 bytes end within the id"),
        (good[:7] if kind != "protobuf" else good[:5], "schema id"),
        (good[:5] + b"\xff" * 30, "schema id"),
    ):
        with pytest.raises(DecodeError) as poison:
            assert read(name, bad).value is None
        said = str(poison.value)
        assert said.startswith(f"The value of {name}[0]@7 cannot be read as {kind}: "), said
        assert words in said
        assert poison.value.place == (name, 0, 7)


def test_nothing_of_the_payload_is_in_the_error(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    schema = {"type": "object", "properties": {"card": {"type": "integer"}}}
    use(
        settings,
        front.url,
        {"serializer": "jsonschema", "schema": schema},
        {"serializer": "jsonschema", "topics": {name: {}}},
    )
    good = written(name, {"card": 1})[0]
    for bad in (b'{"card":"4111-1111"}', b'{"card":4111-1111'):
        with pytest.raises(DecodeError) as poison:
            assert read(name, good[:5] + bad).value is None
        assert "4111" not in str(poison.value)
        assert poison.value.__cause__ is None
        assert poison.value.__context__ is None


# Subjects


def test_subjects_are_named_by_strategy(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    for subject, wanted in (
        ("topic", f"{name}-value"),
        ("record", "flights.FlightLanded"),
        ("topic_record", f"{name}-flights.FlightLanded"),
        (f"{__name__}.subject_of_our_own", f"ours.{name}.value.flights.FlightLanded"),
    ):
        front.asked.clear()
        use(settings, front.url, {"serializer": "avro", "schema": AVRO, "schema_options": {"subject": subject}},
            {"serializer": "avro", "topics": {name: {}}, "schema_options": {"subject": subject}})  # fmt: skip
        value = written(name, FLIGHT)[0]
        assert [one.partition("?")[0] for one in front.asked] == [f"POST /subjects/{wanted}/versions"]
        assert read(name, value).value["flight"] == "UA 1545"


def subject_of_our_own(topic: str, part: str, record: str | None) -> str | None:
    return None if record is None else f"ours.{topic}.{part}.{record}"


def test_the_prefix_of_topics_is_in_their_subjects(front: Front, settings: Settings, topic: Any) -> None:
    use(settings, front.url, {"serializer": "avro", "schema": AVRO})
    settings.KAFKA = {**settings.KAFKA, "topic_prefix": "eu."}
    name = topic()
    written(name, FLIGHT)
    assert front.asked[0].startswith(f"POST /subjects/eu.{name}-value/")


def test_topics_have_schemas_and_options_of_their_own(front: Front, settings: Settings, topic: Any) -> None:
    one, two = topic("one"), topic("two")
    use(
        settings, front.url,
        {"serializer": "json", "topics": {
            one: {"serializer": "avro", "schema": AVRO, "schema_options": {"subject": "record"}},
            two: {"serializer": "protobuf", "schema": PROTOBUF},
        }},
    )  # fmt: skip
    assert written(one, FLIGHT)[0][:1] == b"\0"
    assert written(two, FLIGHT)[0][:1] == b"\0"
    assert written(topic("three"), FLIGHT)[0] == b'{"flight":"UA 1545","delay":2}'
    subjects = [each.split("/")[2] for each in front.asked if "/subjects/" in each]
    assert subjects == ["flights.FlightLanded", f"{two}-value"]


# Evolution


def test_an_old_writer_and_a_new_reader_get_on_and_the_other_way_round(
    front: Front, settings: Settings, topic: Any
) -> None:
    name = topic()
    reads: dict[str, Any] = {"serializer": "avro", "topics": {name: {}}}
    use(settings, front.url, {"serializer": "avro", "schema": AVRO}, {**reads, "schema": NEWER})
    old = written(name, FLIGHT)[0]
    assert read(name, old).value["gate"] == "?"
    use(settings, front.url, {"serializer": "avro", "schema": NEWER}, {**reads, "schema": AVRO})
    new = written(name, {**FLIGHT, "gate": "C 70"})[0]
    assert "gate" not in read(name, new).value
    # A reader without a schema of its own gets what was written.
    use(settings, front.url, {"serializer": "avro", "schema": NEWER}, reads)
    assert read(name, new).value["gate"] == "C 70"
    # With the newest of the subject, old ones have what is new in it.
    use(settings, front.url, {"serializer": "avro", "schema": NEWER}, {**reads, "schema_options": {"use_latest": True}})
    assert read(name, old).value["gate"] == "?"


def test_a_schema_that_is_incompatible_is_refused_by_the_registry(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    compatibility(front, name, "BACKWARD")
    use(settings, front.url, {"serializer": "avro", "schema": AVRO})
    written(name, FLIGHT)
    use(settings, front.url, {"serializer": "avro", "schema": INCOMPATIBLE})
    words = rf"does not take the schema for subject '{name}-value': it is incompatible with what is there"
    with pytest.raises(SchemaRefused, match=words) as refused:
        written(name, {**FLIGHT, "gate": "C"})
    assert "HTTP 409" in str(refused.value)
    use(settings, front.url, {"serializer": "avro", "schema": NEWER})
    written(name, {**FLIGHT, "gate": "C"})


def compatibility(front: Front, name: str, level: str) -> None:
    """Have the registry keep the versions of a topic compatible, once there is one."""
    import urllib.request

    schema = json.dumps({"schema": json.dumps(AVRO)}).encode()
    kind = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    for method, path, body in (
        ("POST", f"/subjects/{name}-value/versions", schema),
        ("PUT", f"/config/{name}-value", json.dumps({"compatibility": level}).encode()),
    ):
        with urllib.request.urlopen(urllib.request.Request(front.url + path, body, kind, method=method)) as answer:
            assert answer.status == 200


def test_a_schema_may_refer_to_another(front: Front, settings: Settings, topic: Any) -> None:
    airport, name = topic("airport"), topic("leg")
    place = {
        "type": "record",
        "name": "Airport",
        "namespace": "flights",
        "fields": [{"name": "code", "type": "string"}],
    }
    leg = {"type": "record", "name": "Leg", "namespace": "flights",
           "fields": [{"name": "origin", "type": "flights.Airport"}]}  # fmt: skip
    source = {"text": json.dumps(leg),
              "references": [{"name": "flights.Airport", "subject": f"{airport}-value", "version": 1}]}  # fmt: skip
    use(settings, front.url, {"serializer": "avro", "topics": {airport: {"schema": place}, name: {"schema": source}}},
        {"serializer": "avro", "topics": {name: {}}})  # fmt: skip
    written(airport, {"code": "EWR"})
    value = written(name, {"origin": {"code": "EWR"}})[0]
    assert read(name, value).value == {"origin": {"code": "EWR"}}


# How settings name schemas


@pytest.mark.parametrize(
    "schema",
    [
        AVRO, TEXT_SCHEMA, PATH_SCHEMA, str(PATH_SCHEMA), "tests/registries/landed.avsc", {"file": PATH_SCHEMA},
        {"text": TEXT_SCHEMA}, f"{__name__}.TEXT_SCHEMA", f"{__name__}.PATH_SCHEMA", "tests.registries.schemas.AVRO",
    ],
)  # fmt: skip
def test_a_schema_is_a_dict_a_text_a_file_or_a_dotted_path(
    front: Front, settings: Settings, topic: Any, schema: Any
) -> None:
    settings.BASE_DIR = Path(__file__).parent.parent
    name = topic()
    use(settings, front.url, {"serializer": "avro", "schema": schema})
    assert written(name, FLIGHT)[0][5:] == b"\x0eUA 1545\x02\x04\0"


@pytest.mark.parametrize(
    ("kind", "schema", "words"),
    [
        ("avro", "schemas/not-there.avsc", r'\["schema"\] is .*cannot be read: No such file'),
        ("avro", "tests.registries.schemas.NOTHING", "cannot be imported"),
        ("avro", "tests.registries.schemas.FlightLanded", "is the type FlightLanded, of which there is no schema"),
        ("avro", "{nonsense", "it is not JSON"),
        ("protobuf", "tests.registries.schemas.AVRO", "no class of Protobuf messages"),
        ("protobuf", {"file": "flights.proto"}, "no dotted path"),
    ],
)
def test_a_schema_that_is_not_there_is_an_error_of_settings_that_check_tells(
    settings: Settings, capsys: pytest.CaptureFixture[str], kind: str, schema: Any, words: str
) -> None:
    use(settings, "http://127.0.0.1:1", {"serializer": kind, "schema": schema})
    with pytest.raises(ConfigurationError, match=words):
        written("flights", FLIGHT)
    from django_kafka.checks import check_schemas

    [told] = check_schemas()
    assert told.id == "django_kafka.E017"
    import re

    assert re.search(words, told.msg)


def test_avro_without_a_schema_says_what_to_do(front: Front, settings: Settings, topic: Any) -> None:
    use(settings, front.url, {"serializer": "avro"})
    with pytest.raises(ConfigurationError, match=r'has no schema: name one in KAFKA.*\["schema"\].*use_latest'):
        written(topic(), FLIGHT)


def wrong(settings: Settings, kafka: dict[str, Any]) -> list[str]:
    settings.KAFKA = kafka
    return [str(one) for one in conf.problems()]


def test_contradictions_are_found(settings: Settings) -> None:
    registry = {"url": "https://registry"}
    avro = {"default": {"serializer": "avro", "schema": AVRO}}
    [said] = wrong(settings, {"producers": avro})
    assert said == (
        'KAFKA["producers"]["default"]["serializer"] is "avro", but cluster \'default\' has no schema registry. '
        "Give the address as `url` in `schema_registry`."
    )
    consumers = {"ops": {"topics": {"flights": {"key_serializer": "protobuf"}}}}
    [said] = wrong(settings, {"schema_registry": registry, "consumers": consumers})
    assert said.startswith(
        'KAFKA["consumers"]["ops"]["topics"]["flights"]["key_serializer"] is "protobuf", and there is no'
    )
    both = {"default": {"schema_options": {"use_latest": True, "auto_register": True}}}
    [said] = wrong(settings, {"schema_registry": registry, "producers": both})
    assert '"schema_options"] has both `use_latest` and `auto_register`' in said
    [said] = wrong(settings, {"schema_registry": {**registry, "use_latest": True, "auto_register": True}})
    assert "has both `use_latest` and `auto_register`" in said
    for login, words in (
        ({"token": "t", "username": "u"}, "`username` and `token`"),
        ({"oauth": {"function": "a.b", "token_url": "https://x"}}, "both `function` and `token_url`"),
        ({"oauth": {"token_url": "https://x"}}, "not both `client_id` and `client_secret`"),
        ({"tls": {"cert_file": "a"}}, "needs both"),
        ({"url": "https://a:b@registry", "token": "t"}, "and one beside it"),
    ):
        found = wrong(settings, {"schema_registry": {**registry, **login}})
        assert any(words in one for one in found), found


@pytest.mark.parametrize(
    ("producer", "words"),
    [
        ({"schema": 7}, "the path of a file, a dotted path"),
        ({"schema": {"file": "a", "references": [{"name": "a"}]}}, 'a list of {"name"'),
        ({"schema": {"a": object()}}, "of what JSON has"),
        ({"schema_options": {"subjekt": "topic"}}, 'Did you mean "subject"'),
        ({"schema_options": {"schema_id_in": "body"}}, '"payload", "headers"'),
    ],
)
def test_wrong_schemas_are_told(settings: Settings, producer: dict[str, Any], words: str) -> None:
    [said] = wrong(settings, {"producers": {"default": producer}})
    assert words in said


def test_check_is_content_with_what_is_right(settings: Settings, front: Front) -> None:
    both = {"avro": {"serializer": "avro", "schema": AVRO}, "proto": {"serializer": "protobuf", "schema": PROTOBUF}}
    use(settings, front.url, {"topics": both}, {"topics": both})
    call_command("check", "--tag", "kafka")
    assert front.asked == []


def test_logins_in_clear_are_told_before_a_deployment(settings: Settings) -> None:
    from django_kafka.checks import check_deployment

    settings.KAFKA = {
        "schema_registry": {"url": "http://registry", "token": "t", "tls": {"insecure_skip_verify": True}}
    }
    assert {one.id for one in check_deployment()} == {"django_kafka.W062", "django_kafka.W005"}


def test_one_codec_serves_all_who_ask(front: Front, settings: Settings) -> None:
    use(settings, front.url, {"serializer": "avro", "schema": AVRO})
    made = [serializers.of_part(conf.producer(), None, "flights", "value") for _ in range(2)]
    assert made[0] is made[1]
    assert isinstance(made[0], Codec)


# Types of Python


@dataclass(frozen=True)
class Landed:
    flight: str
    delay: int | None = None
    at: datetime | None = None


class LandedModel(pydantic.BaseModel):
    flight: str
    delay: int | None = None
    fuel: Decimal = Decimal("0.5")


AT = datetime(2013, 1, 1, 5, 15, tzinfo=UTC)


@pytest.mark.parametrize("schema", [SCHEMAS["jsonschema"], f"{__name__}.Landed"])
def test_an_object_is_sent_as_json_schema(front: Front, settings: Settings, topic: Any, schema: Any) -> None:
    name = topic()
    use(settings, front.url, {"serializer": "jsonschema", "schema": schema}, {"serializer": "jsonschema"})
    value, _key, _headers = written(name, Landed("UA 1545", 2, AT))
    assert read(name, value).value == {"flight": "UA 1545", "delay": 2, "at": "2013-01-01T05:15:00+00:00"}


def test_a_model_of_pydantic_is_its_own_json_schema(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    schema = f"{__name__}.LandedModel"
    use(settings, front.url, {"serializer": "jsonschema", "schema": schema}, {"serializer": "jsonschema"})
    value, _key, _headers = written(name, LandedModel(flight="UA 1545"))
    assert read(name, value).value == {"flight": "UA 1545", "delay": None, "fuel": "0.5"}
    with pytest.raises(EncodeError):
        written(name, {"flight": 7, "delay": None, "fuel": "1"})


def test_an_object_is_sent_as_avro_and_protobuf(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, front.url, {"serializer": "avro", "schema": AVRO}, {"serializer": "avro"})
    assert read(name, written(name, Landed("UA 1545", 2, AT))[0]).value == {"flight": "UA 1545", "delay": 2, "at": AT}
    name = topic()
    schema = {"serializer": "protobuf", "schema": SCHEMAS["protobuf"]}
    use(settings, front.url, schema, schema)
    assert read(name, written(name, LandedShort("UA 1545", 2))[0]).value == FlightLanded(flight="UA 1545", delay=2)


@dataclass(frozen=True)
class LandedShort:
    flight: str
    delay: int


@dataclass(frozen=True)
class Unknown:
    of: Callable[[], None]


def test_a_type_without_a_schema_is_a_sentence(settings: Settings) -> None:
    use(
        settings,
        "http://nowhere",
        {"topics": {"flights": {"serializer": "jsonschema", "schema": f"{__name__}.Unknown"}}},
    )
    [sentence] = serializers.unusable()
    assert 'topics"]["flights"]["schema"] is the type Unknown, which has no schema: ' in sentence
