"""Events as Python types: how payloads are read as objects, and what is sent for an object."""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from django.db import models
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy

from django_kafka import serializers
from django_kafka.events import Unfit, event_of, plain, typed
from django_kafka.exceptions import ConfigurationError, EncodeError
from testproject.flights.models import Flight
from tests.app.models import Effect

ID = UUID("12345678-1234-5678-1234-567812345678")
SECRET = "hunter2"


class Kind(enum.Enum):
    SCHEDULED = "scheduled"
    CHARTER = "charter"


@dataclass(frozen=True)
class Leg:
    departed: dt.datetime
    gate: str | None = None


class Crew(pydantic.BaseModel):
    captain: str = pydantic.Field(alias="Captain")


@dataclass(slots=True, kw_only=True)
class FlightLanded:
    """What most of these tests read and write."""

    number: int
    at: dt.datetime
    day: dt.date
    price: Decimal
    id: UUID
    kind: Kind
    legs: list[Leg] = field(default_factory=list)
    took: dt.timedelta | None = None
    crew: Crew | None = None
    seats: dict[str, int] = field(default_factory=dict)
    alliance: Literal["star", "sky"] = "star"
    raw: bytes = b""

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"{SECRET}: negative")


class Leg2(pydantic.BaseModel):
    departed: dt.datetime
    gate: str | None = None


class Landed(pydantic.BaseModel):
    """The same as a model of pydantic."""

    number: int
    at: dt.datetime
    day: dt.date
    price: Decimal
    id: UUID
    kind: Kind
    legs: list[Leg2] = []
    took: dt.timedelta | None = None
    seats: dict[str, int] = {}
    alliance: Literal["star", "sky"] = "star"
    when: dt.time = pydantic.Field(default=dt.time(1, 2), alias="When")

    @pydantic.field_validator("number")
    @classmethod
    def _positive(cls, number: int) -> int:
        if number < 0:
            raise ValueError(f"{SECRET}: negative")
        return number


PAYLOAD = {
    "number": 1545,
    "at": "2013-01-01T05:15:00+00:00",
    "day": "2013-01-01",
    "price": "12.50",
    "id": str(ID),
    "kind": "charter",
    "legs": [{"departed": "2013-01-01T05:15:00.000001+00:00"}, {"departed": "2013-01-01T07:15:00Z", "gate": "B7"}],
    "took": "P0DT02H00M00S",
    "a field of a later version": 1,
}
NATIVE = {
    **PAYLOAD,
    "at": dt.datetime(2013, 1, 1, 5, 15, tzinfo=dt.UTC),
    "day": dt.date(2013, 1, 1),
    "price": Decimal("12.50"),
    "id": ID,
    "took": dt.timedelta(hours=2),
}
"""As Avro has it."""


def read(kind: Any, value: Any) -> Any:
    converter = typed(kind)
    assert converter is not None
    return converter.load(value)


def fault(kind: Any, value: Any) -> str:
    with pytest.raises(Unfit) as caught:
        read(kind, value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", [FlightLanded, Landed])
@pytest.mark.parametrize("payload", [PAYLOAD, NATIVE])
def test_a_payload_is_read_as_an_object(kind: Any, payload: dict[str, Any]) -> None:
    event = read(kind, payload)
    assert type(event) is kind
    assert (event.number, event.price, event.id, event.kind) == (1545, Decimal("12.50"), ID, Kind.CHARTER)
    assert event.at == dt.datetime(2013, 1, 1, 5, 15, tzinfo=dt.UTC)
    assert (event.day, event.took) == (dt.date(2013, 1, 1), dt.timedelta(hours=2))
    assert [leg.gate for leg in event.legs] == [None, "B7"]
    assert event.legs[0].departed.microsecond == 1


@pytest.mark.parametrize("kind", [FlightLanded, Landed])
def test_what_is_sent_is_what_is_read(kind: Any) -> None:
    event = read(kind, PAYLOAD)
    sent = serializers.get("json").encode(event, "flights")
    assert read(kind, json.loads(sent)) == event
    # Of Avro, whose logical types know these.
    whole = plain(event, text=False)
    assert (whole["at"], whole["price"], whole["id"], whole["kind"]) == (event.at, event.price, ID, "charter")
    assert read(kind, whole) == event


def test_names_on_the_wire_are_those_of_aliases() -> None:
    event = read(Landed, {**PAYLOAD, "When": "23:59:00"})
    assert json.loads(serializers.get("json").encode(event, "flights"))["When"] == "23:59:00"
    with_crew = read(FlightLanded, {**PAYLOAD, "crew": {"Captain": "Ada"}, "raw": "AAE="})
    assert (with_crew.crew, with_crew.raw) == (Crew(Captain="Ada"), b"\0\1")
    sent = json.loads(serializers.get("json").encode(with_crew, "flights"))
    assert (sent["crew"], sent["raw"]) == ({"Captain": "Ada"}, "AAE=")


def test_objects_inside_of_a_dict_are_sent_too() -> None:
    sent = serializers.get("json").encode({"leg": Leg(dt.datetime(2013, 1, 1, tzinfo=dt.UTC))}, "flights")
    assert json.loads(sent) == {"leg": {"departed": "2013-01-01T00:00:00+00:00", "gate": None}}


def test_texts_of_a_class_of_their_own_are_texts() -> None:
    @dataclass
    class Words:
        safe: str
        lazy: Any
        other: Any = None

    words = Words(mark_safe("<b>"), gettext_lazy("Yes"))
    assert json.loads(serializers.get("json").encode(words, "words")) == {"safe": "<b>", "lazy": "Yes", "other": None}
    with pytest.raises(EncodeError, match=r"of type .*Words, does not serialize: object in it is nothing that can be"):
        serializers.encode(serializers.get("json"), Words("", "", object()), "words", "value")


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in PAYLOAD.items() if key != name}


WRONG: list[tuple[Any, str, str]] = [
    ({**PAYLOAD, "number": SECRET}, "`number`: expected int, got str", "`number`: input should be a valid integer"),
    (without("day"), "`day`: missing", "`day`: missing"),
    ({**PAYLOAD, "at": SECRET}, "`at`: invalid RFC3339 encoded datetime", "`at`: input should be a valid datetime"),
    ({**PAYLOAD, "id": SECRET}, "`id`: invalid UUID", "`id`: input should be a valid UUID"),
    ({**PAYLOAD, "price": SECRET}, "`price`: invalid decimal string", "`price`: input should be a valid decimal"),
    ({**PAYLOAD, "took": SECRET}, "`took`: invalid ISO8601 duration", "`took`: input should be a valid timedelta"),
    ({**PAYLOAD, "kind": SECRET}, "`kind`: none of the values that are allowed", "`kind`: input should be 'scheduled'"),
    ({**PAYLOAD, "alliance": SECRET}, "`alliance`: none of the values", "`alliance`: input should be 'star' or 'sky'"),
    ({**PAYLOAD, "legs": [PAYLOAD["legs"][0], {}]}, "`legs[1].departed`: missing", "`legs[1].departed`: missing"),  # type: ignore[index]
    ({**PAYLOAD, "legs": [{"departed": SECRET}]}, "`legs[0].departed`: invalid RFC3339", "`legs[0].departed`: input"),
    ({**PAYLOAD, "number": None}, "`number`: expected int, got null", "`number`: input should be a valid integer"),
    ({**PAYLOAD, "number": -1}, "refused (ValueError)", "`number`: refused (value_error)"),
    ({**PAYLOAD, "seats": {"A": SECRET}}, "`seats[...]`: expected int, got str", "`seats.A`: input should be a valid"),
    ([], "expected object, got array", "input should be"),
    (SECRET, "expected object, got str", "input should be"),
]


@pytest.mark.parametrize(("payload", "of_dataclass", "of_model"), WRONG)
def test_a_wrong_payload_names_the_field_and_quotes_nothing(payload: Any, of_dataclass: str, of_model: str) -> None:
    assert of_dataclass in fault(FlightLanded, payload)
    assert of_model in fault(Landed, payload)


def test_pydantic_names_all_that_is_wrong_up_to_three() -> None:
    assert fault(Landed, without("day") | {"number": SECRET}) == (
        "`number`: input should be a valid integer, unable to parse string as an integer; `day`: missing"
    )
    assert fault(Landed, {}).endswith("`day`: missing, and 3 more")


def test_a_model_inside_of_a_dataclass_names_its_field() -> None:
    assert fault(FlightLanded, {**PAYLOAD, "crew": {}}) == "`crew.Captain`: missing"
    assert "`[1].legs[0].departed`: missing" in fault(list[FlightLanded], [PAYLOAD, {**PAYLOAD, "legs": [{}]}])


def test_a_key_that_is_wrong_is_not_quoted() -> None:
    assert fault(dict[int, int], {SECRET: 1}) == "of a key, expected int, got str"


def test_a_payload_that_is_nested_too_deeply_is_wrong() -> None:
    @dataclass
    class Endless:
        inner: Any = None

    Endless.__annotations__["inner"] = Endless | None
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"inner": value}
    assert fault(Endless, value) == "nested too deeply"


class Tagged(msgspec.Struct, tag="landed"):
    number: int


class Tower(msgspec.Struct, tag="cancelled", rename="camel", forbid_unknown_fields=True):
    why_so: str


class Row(TypedDict):
    number: int


def test_other_kinds_of_types_are_read_too() -> None:
    assert read(Tagged | Tower, {"type": "cancelled", "whySo": "fog"}) == Tower(why_so="fog")
    assert fault(Tagged | Tower, {"type": SECRET}) == "`type`: none of the values that are allowed"
    assert fault(Tower, {"type": "cancelled", "whySo": "", SECRET: 1}) == "object contains unknown"
    assert read(Row, {"number": 1}) == {"number": 1}
    assert read(FlightLanded | None, None) is None
    assert read(list[Landed], [PAYLOAD])[0].number == 1545
    assert json.loads(serializers.get("json").encode(Tower(why_so="fog"), "t")) == {"type": "cancelled", "whySo": "fog"}


class Own:
    """What a serializer of the project's own makes, or a class of Protobuf messages."""


def test_an_object_of_a_class_that_nobody_knows_has_to_be_one() -> None:
    mine = Own()
    assert read(Own, mine) is mine
    assert fault(Own, {"a": SECRET}) == "expected Own, got dict"


@pytest.mark.parametrize("kind", [Any, object])
def test_what_takes_anything_costs_nothing(kind: Any) -> None:
    assert typed(kind) is None


@dataclass
class Dangling:
    where: Nowhere  # type: ignore[name-defined]  # noqa: F821


class DanglingModel(pydantic.BaseModel):
    where: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("kind", [Dangling, DanglingModel, list[Dangling], FlightLanded | Leg, "FlightLanded"])
def test_a_type_that_cannot_be_read_is_an_error_at_once(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no type that can be read: "):
        typed(kind)


def test_nothing_else_is_an_event() -> None:
    for value in (1, "a", None, [1], {"a": 1}, FlightLanded, Own(), Effect()):
        assert plain(value, text=True) is None


# Of a Django model


FlightScheduled = event_of(Flight, fields=["carrier", "number", "scheduled", "departed"], name="FlightScheduled")


class Everything(models.Model):
    """Fields of all kinds."""

    flight = models.ForeignKey(Flight, models.CASCADE, null=True)
    flag = models.BooleanField()
    part = models.FloatField()
    price = models.DecimalField(max_digits=6, decimal_places=2)
    day = models.DateField()
    took = models.DurationField()
    unique = models.UUIDField()
    data = models.BinaryField()
    more = models.JSONField(null=True)
    words = models.TextField()
    file = models.FileField()
    address = models.GenericIPAddressField()
    link = models.URLField()
    groups = models.ManyToManyField("auth.Group")

    class Meta:
        app_label = "tests_events"
        managed = False

    def __str__(self) -> str:
        return str(self.id)


def test_a_model_declares_an_event() -> None:
    flight = Flight(carrier="UA", number="1545", scheduled="2013-01-01T05:15:00Z", departed=None)
    event = FlightScheduled.from_instance(flight)
    assert type(event).__name__ == "FlightScheduled"
    assert event == FlightScheduled(  # type: ignore[call-arg]
        carrier="UA", number=1545, scheduled=dt.datetime(2013, 1, 1, 5, 15, tzinfo=dt.UTC), departed=None
    )
    sent = json.loads(serializers.get("json").encode(event, "flights"))
    assert sent == {"carrier": "UA", "number": 1545, "scheduled": "2013-01-01T05:15:00+00:00", "departed": None}
    assert read(FlightScheduled, sent) == event
    assert read(FlightScheduled, {**sent, "departed": "05:17:00"}).departed == dt.time(5, 17)
    assert fault(FlightScheduled, {**sent, "number": SECRET}) == "`number`: expected int, got str"
    assert fault(FlightScheduled, {"carrier": "UA"}) == "`number`: missing"


def test_an_event_of_a_model_may_have_a_class_of_its_own() -> None:
    class Seen(event_of(Flight, fields=["number"])):  # type: ignore[misc]
        @property
        def even(self) -> bool:
            return bool(self.number % 2 == 0)

    assert Seen.from_instance(Flight(number=2)).even
    assert type(read(Seen, {"number": 3})) is Seen
    assert json.loads(serializers.get("json").encode(Seen(number=3), "t")) == {"number": 3}


def test_every_kind_of_field_has_its_type() -> None:
    names = [one.name for one in Everything._meta.fields]
    kind = event_of(Everything, fields=names)
    hints = {name: one.type for name, one in kind.__dataclass_fields__.items()}  # type: ignore[attr-defined]
    assert hints == {
        "id": int, "flight_id": int | None, "flag": bool, "part": float, "price": Decimal, "day": dt.date,
        "took": dt.timedelta, "unique": UUID, "data": bytes, "more": Any, "words": str, "file": str, "address": str,
        "link": str,
    }  # fmt: skip
    row = Everything(
        id=1, flight_id="7", flag=True, part=0.5, price="1.50", day="2013-01-01", took=dt.timedelta(1), unique=str(ID),
        data=memoryview(b"\0"), more={"a": [1]}, words="w", file="a/b.pdf", address="::1", link="https://x",
    )  # fmt: skip
    event = kind.from_instance(row)
    assert event.flight_id == 7  # type: ignore[attr-defined]
    assert read(kind, json.loads(serializers.get("json").encode(event, "t"))) == event


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: event_of(Flight, fields=["nowhere"]), "An event of Flight: Flight has no field named 'nowhere'"),
        (lambda: event_of(Flight, fields=[]), "An event of Flight names no fields"),
        (lambda: event_of(Everything, fields=["groups"]), "'groups' is no column of its table"),
    ],
)
def test_a_field_that_makes_no_event_is_an_error(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        make()
