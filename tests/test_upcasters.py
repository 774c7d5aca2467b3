"""Handlers by type, version, field and predicate, and upcasters from older versions."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.core import checks
from django.db import OperationalError
from pytest_django import Settings

from django_kafka import categories, conf, handlers, registry, upcasters
from django_kafka.dead_letters import decoding, dry_runs, editing
from django_kafka.dead_letters.editing import Edit
from django_kafka.exceptions import ConfigurationError, DecodeError, NoHandler, UpcastFailed
from django_kafka.handlers import for_topic, kafka_handler, upcaster
from django_kafka.messages import Message, Messages
from django_kafka.testing import consume, record
from tests.consuming import NAME, Workplace
from tests.letters import dead_letter
from tests.sending import NOBODY
from tests.test_events import SECRET
from tests.test_handling import effects, leave_effect
from tests.test_messages import Raw
from tests.test_together import handled

HERE = "tests.test_upcasters"
seen: list[Any] = []


@dataclass(frozen=True)
class Landed:
    """Version 3."""

    number: str
    gate: str
    minutes: int


def landed(event: Landed) -> None:
    seen.append(event)


def landed_2(event: dict[str, Any]) -> None:
    seen.append(event)


def any_landed(message: Message) -> None:
    seen.append(("any", message.value))


def cancelled(message: Message) -> None:
    seen.append("cancelled")


def everything(message: Message) -> None:
    seen.append("everything")


def ask_somebody(payload: dict[str, Any]) -> dict[str, Any]:
    raise OperationalError("the connection was lost")


def test_an_upcaster_that_meets_an_outage_makes_no_poison(settings: Settings) -> None:
    settings.KAFKA = {"brokers": [NOBODY], "consumers": {NAME: {"group_id": "ops", "topics": {"flights": {}}}}}
    kafka_handler(topics="flights", consumer=NAME, type="Asked", version=2)(cancelled)
    upcaster(type="Asked", from_version=1)(ask_somebody)
    try:
        raw = Raw(headers=[("type", b"Asked")], value=b"{}")
        with pytest.raises(UpcastFailed) as caught:
            _ = Message(raw, for_topic(NAME, "flights").decoder).value
    finally:
        handlers.forget(cancelled)
        upcasters.forget(ask_somebody)
    assert categories.of(caught.value).kind is categories.Kind.OUTAGE
    caught.value.__cause__ = KeyError("number")
    assert categories.of(caught.value).kind is categories.Kind.POISON


def many(events: list[Landed], messages: Messages) -> None:
    seen.extend(events)
    for message in messages:
        leave_effect(message)


def number_is_text(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "number": str(payload["number"])}


def has_gate(payload: dict[str, Any]) -> dict[str, Any]:
    payload["gate"] = payload.pop("at", "?")
    payload["minutes"] = int(payload["minutes"])
    return payload


def gives_nothing(payload: dict[str, Any]) -> Any:
    return None


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before, steps = list(registry._registered), list(upcasters._registered)
    seen.clear()
    yield
    registry._registered[:], upcasters._registered[:] = before, steps
    handlers._made.clear()


@pytest.fixture
def use(settings: Settings) -> Callable[..., None]:
    def use(topic: dict[str, Any] | None = None, **consumer: Any) -> None:
        topics = {"flights": topic or {}}
        settings.KAFKA = {
            "brokers": [NOBODY],
            "producers": {"default": {}},
            "consumers": {NAME: {"group_id": "g", "topics": topics, "retry": {"max_retries": 0}, **consumer}},
            "dead_letters": {"edit": True},
        }

    return use


def steps() -> None:
    upcaster(type="FlightLanded", from_version=1)(number_is_text)
    upcaster(type="FlightLanded", from_version=2)(has_gate)


def give(value: Any, *, kind: str | None = "FlightLanded", version: Any = None) -> Message:
    headers = [("type", kind.encode())] if kind else []
    if version is not None:
        headers.append(("version", str(version).encode()))
    found = for_topic(NAME, "flights")
    message = Message(Raw(value=json.dumps(value).encode(), headers=headers), found.decoder)
    found.match(message).call(message)
    return message


V1 = {"number": 1545, "at": "B7", "minutes": "12"}
V2 = {"number": "1545", "at": "B7", "minutes": "12"}
V3 = {"number": "1545", "gate": "B7", "minutes": 12}
LANDED = Landed("1545", "B7", 12)


def problems(*ids: str) -> list[str]:
    return [one.msg for one in checks.run_checks(tags=["kafka"]) if one.id in [f"django_kafka.{each}" for each in ids]]


@pytest.mark.parametrize(("value", "version"), [(V1, 1), (V1, None), (V2, 2), (V3, 3)])
def test_a_handler_gets_the_version_that_it_knows(use: Callable[..., None], value: Any, version: Any) -> None:
    use()
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    steps()
    message = give(value, version=version)
    assert seen == [LANDED]
    # Once, however often it is asked.
    assert message.value == V3
    assert problems("E027", "E028") == []


def test_handlers_of_two_versions_each_get_the_nearest(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    kafka_handler(topics="flights", type="FlightLanded", version=2)(landed_2)
    steps()
    give(V1, version=1)
    give(V2, version=2)
    give(V3, version=3)
    assert seen == [V2, V2, LANDED]


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (4, "of 'flights': it is version 4 of 'FlightLanded', and 3 is the newest that a handler knows."),
        (1, "it is version 1 of 'FlightLanded', and no upcaster takes that from 1 to 2."),
    ],
)
def test_a_version_without_a_way_is_poison_with_its_reason(
    use: Callable[..., None], version: int, sentence: str
) -> None:
    use({"handler": f"{HERE}.everything"})
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    upcaster(type="FlightLanded", from_version=2)(has_gate)
    with pytest.raises(NoHandler, match=sentence.replace(".", r"\.")):
        give(V3, version=version)
    assert seen == []
    # What is of another type goes where everything goes.
    give({}, kind="Other", version=9)
    give({}, kind=None)
    assert seen == ["everything", "everything"]


def test_what_no_version_takes_may_have_a_handler_of_its_own(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights", type="FlightLanded")(any_landed)
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    steps()
    give(V1, version=1)
    give({"new": 1}, version=4)
    assert seen == [LANDED, ("any", {"new": 1})]


@pytest.mark.parametrize("version", ["x", "", "0", "-1", "1.0", "9999999999999", "٣"])
def test_a_version_that_is_no_number_is_poison(use: Callable[..., None], version: str) -> None:
    use()
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    with pytest.raises(DecodeError, match=r"The version of 'FlightLanded' at flights.* is no whole number"):
        give(V3, version=version)


def test_type_and_version_stand_where_settings_say(use: Callable[..., None]) -> None:
    use({"type_in": {"field": "meta.event"}, "version_in": {"field": "meta.v"}})
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    steps()
    give({**V1, "meta": {"event": "FlightLanded", "v": 1}}, kind="Other")
    give({**V2, "meta": {"event": "FlightLanded", "v": "2"}}, kind=None)
    give({**V3, "meta": {"event": "FlightLanded", "v": 3}}, kind=None)
    assert seen == [LANDED] * 3
    for value in ({"meta": 1}, [], None, {"meta": {"event": ["FlightLanded"]}}):
        with pytest.raises(NoHandler, match="none of their conditions holds"):
            give(value, kind=None)


def test_type_and_version_stand_where_the_consumer_says(use: Callable[..., None]) -> None:
    use(type_in={"header": "ce_type"}, version_in={"field": "v"})
    assert conf.consumer(NAME).type_in == conf.Place(header="ce_type")
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    steps()
    found = for_topic(NAME, "flights")
    raw = Raw(value=json.dumps({**V2, "v": 2}).encode(), headers=[("ce_type", b"FlightLanded")])
    message = Message(raw, found.decoder)
    found.match(message).call(message)
    assert seen == [LANDED]


@pytest.mark.parametrize("where", [{}, {"type_in": {"field": "type"}}])
@pytest.mark.parametrize(
    ("function", "value", "sentence"),
    [
        (
            has_gate,
            {"minutes": SECRET},
            f"'{HERE}.has_gate', for version 2 of 'FlightLanded', failed with ",
        ),
        (gives_nothing, {}, "gives_nothing', for version 2 of 'FlightLanded', returned NoneType at flights"),
    ],
)
def test_an_upcaster_that_fails_is_poison_that_names_it(
    use: Callable[..., None], function: Any, value: Any, sentence: str, where: Any
) -> None:
    use(**where)
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    upcaster(type="FlightLanded", from_version=2)(function)
    with pytest.raises(UpcastFailed, match=sentence) as caught:
        give({**value, "type": "FlightLanded"}, version=2)
    assert SECRET not in str(caught.value)


def test_a_value_that_is_no_dict_cannot_be_brought_up(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    steps()
    with pytest.raises(UpcastFailed, match=r"takes a dict, and the value at flights.* is list"):
        give([1], version=1)


def test_a_missing_step_is_found_by_check(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    upcaster(type="FlightLanded", from_version=1)(number_is_text)
    [sentence] = problems("E028")
    assert sentence == (
        f"The upcaster '{HERE}.number_is_text' makes version 2 of 'FlightLanded', and no upcaster takes that on to "
        "version 3, which a handler of consumer 'ops' knows."
    )


def test_a_step_that_is_there_twice_is_found_by_check(use: Callable[..., None]) -> None:
    use()
    for _again in range(2):
        upcaster(type="FlightLanded", from_version=1)(number_is_text)
    assert problems("E027") == []
    upcaster(type="FlightLanded", from_version=1)(gives_nothing)
    [sentence] = problems("E027")
    assert sentence.startswith("Two upcasters take 'FlightLanded' from version 1: ")
    upcasters.forget(gives_nothing)
    assert problems("E027") == []


def test_two_handlers_of_one_version_are_a_problem(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    kafka_handler(topics="flights", type="FlightLanded", version=2)(landed_2)
    assert handlers.problems() == []
    kafka_handler(topics="flights", type="FlightLanded", version=2)(any_landed)
    [(check, sentence, _hint)] = handlers.problems()
    assert check == "E021"
    assert "two handlers for 'flights' with type FlightLanded, version 2: " in sentence


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: kafka_handler(topics="a", version=1), "version is 1, but there is no type"),
        (lambda: kafka_handler(topics="a", type="A", version=0), "version is 0; allowed: None, or a whole number"),
        (lambda: upcaster(type="", from_version=1), "type is ''; allowed: the name of a type"),
        (lambda: upcaster(type="A", from_version=0), "from_version is 0; allowed: a whole number from 1"),
    ],
)
def test_what_makes_no_sense_is_an_error_at_once(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        make()


# Fields and predicates


def is_long(message: Message) -> bool:
    return message.value["minutes"] > 60


async def is_late(message: Message) -> bool:
    return True


def test_fields_and_predicates_choose_too_and_the_first_that_holds_wins(use: Callable[..., None]) -> None:
    use(
        {
            "handler": f"{HERE}.everything",
            "dispatch": [
                {"field": {"status": "cancelled"}, "when": f"{HERE}.is_long", "handler": f"{HERE}.any_landed"},
                {"field": {"status": "cancelled"}, "handler": f"{HERE}.cancelled"},
                {"field": {"leg.first": True}, "handler": f"{HERE}.landed_2"},
                {"type": "FlightLanded", "version": 3, "handler": f"{HERE}.landed"},
            ],
        }
    )
    assert problems("E021") == []
    give({"status": "cancelled", "minutes": 61})
    give({"status": "cancelled", "minutes": 60})
    give({"status": "x", "leg": {"first": 1}}, kind=None)
    give({"status": "x", "leg": {"first": True}})
    give(V3, version=3)
    assert seen == [
        ("any", {"status": "cancelled", "minutes": 61}),
        "cancelled",
        "everything",
        {"status": "x", "leg": {"first": True}},
        LANDED,
    ]


def test_a_predicate_may_be_a_function(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights", when=is_long)(any_landed)
    give({"minutes": 61})
    assert seen == [("any", {"minutes": 61})]
    with pytest.raises(NoHandler, match="of 'flights': none of their conditions holds"):
        give({"minutes": 1})
    # What it raises is the message's failure.
    with pytest.raises(KeyError):
        give({})


async def is_slow(message: Message) -> bool:
    return True


@pytest.mark.parametrize("when", [is_slow, f"{HERE}.is_slow", f"{HERE}.nowhere", f"{HERE}.HERE", "tests.nowhere.f"])
@pytest.mark.parametrize("where", ["decorator", "settings"])
def test_the_check_finds_predicates_that_cannot_be_used(settings: Settings, when: Any, where: str) -> None:
    topic: dict[str, Any] = {}
    if where == "decorator":
        kafka_handler(topics="flights", consumer=NAME, when=when)(any_landed)
    else:
        path = when if isinstance(when, str) else f"{HERE}.is_slow"
        topic = {"dispatch": [{"when": path, "handler": f"{HERE}.landed_2"}]}
    settings.KAFKA = {"brokers": [NOBODY], "consumers": {NAME: {"group_id": "ops", "topics": {"flights": topic}}}}
    try:
        (found,) = [one for one in checks.run_checks(tags=["kafka"]) if one.level >= checks.ERROR]
        with pytest.raises(ConfigurationError):
            handlers.resolve_all(NAME)
    finally:
        handlers.forget(any_landed)
    is_path = where == "settings" and isinstance(when, str) and not when.endswith("is_slow")
    assert found.id == f"django_kafka.{'E011' if is_path else 'E029'}"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"header": {"a": 5}}, "header has 'a' with something of type int; allowed: names of headers and their texts"),
        ({"header": {"a": b"x"}}, "header has 'a' with something of type bytes"),
        ({"header": {5: "a"}}, "header has 5 with something of type int"),
        ({"header": ["a"]}, "header is of type list; allowed: a dict of names of headers and their texts"),
        ({"field": "a"}, "field is of type str"),
        ({"field": {5: 1}}, "field has 5 with something of type int"),
        ({"field": {"a": [1]}}, "field has 'a' with something of type list"),
        ({"field": {"a": None}}, "field has 'a' with something of type NoneType"),
        ({"type": 5}, "type is of type int; allowed: the name of a type"),
    ],
)
def test_conditions_of_a_decorator_that_nothing_could_meet_are_errors(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        kafka_handler(topics="flights", consumer=NAME, **given)(any_landed)


@pytest.mark.parametrize("when", [is_late, f"{HERE}.nowhere", f"{HERE}.HERE"])
def test_a_predicate_that_cannot_be_used_is_an_error(use: Callable[..., None], when: Any) -> None:
    use()
    kafka_handler(topics="flights", when=when)(any_landed)
    with pytest.raises(ConfigurationError, match=r"The condition .* of the handler .*any_landed"):
        for_topic(NAME, "flights")


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"handler": f"{HERE}.landed"}, "has no condition; it needs a handler, and one of `header`"),
        ({"type": "A"}, "has no `handler`"),
        ({"version": 1, "header": {"a": "b"}, "handler": "a.b"}, "has a `version`, but no `type`"),
        ({"field": {"a": 1.5}, "handler": "a.b"}, "allowed: a text, a whole number, True, False"),
        ({"type": "A", "version": 0, "handler": "a.b"}, "version"),
        ({"when": "here", "handler": "a.b"}, "dotted path"),
    ],
)
def test_a_rule_that_is_wrong_is_said(use: Callable[..., None], rule: Any, sentence: str) -> None:
    use({"dispatch": [rule]})
    assert sentence in " ".join(f"{one.message} {one.hint}" for one in conf.problems())


@pytest.mark.parametrize("place", ["type", {}, {"header": "a", "field": "b"}, {"headers": "a"}, {"field": 1}])
def test_a_place_is_a_header_or_a_field(use: Callable[..., None], place: Any) -> None:
    use({"type_in": place}, version_in=place)
    found = [one.message for one in conf.problems()]
    assert len(found) == 2
    assert all('allowed: {"header": "…"}, {"field": "…"}' in one for one in found)


# Where messages come from Kafka, from letters, and in tests


@pytest.mark.parametrize("where", ["header", "field"])
@pytest.mark.parametrize("handler", [landed, many])
def test_old_versions_are_handled_and_new_ones_are_letters(
    workplace: Workplace, handler: Callable[..., Any], where: str
) -> None:
    steps()
    conditions: dict[str, Any] = {"type": "FlightLanded", "version": 3}
    kafka_handler(topics=workplace.topic, consumer=NAME, batch=handler is many, **conditions)(handler)
    workplace.consume(cancelled, type_in={where: "type"}, version_in={where: "version"}, retry={"max_retries": 3})
    values = [V1, V2, V3, {**V1, "minutes": SECRET}, V3, {"number": 1}]
    versions = [1, 2, 3, 1, 4, 3]
    for value, version in zip(values, versions, strict=True):
        if where == "header":
            workplace.send([value], headers=[("type", b"FlightLanded"), ("version", str(version).encode())])
        else:
            workplace.send([{**value, "type": "FlightLanded", "version": version}])
    with workplace.worker() as worker:
        handled(workplace, 6)
    assert seen == [LANDED] * 3
    letters = workplace.letters()
    assert [(one.offset, one.error_type.rpartition(".")[2], one.category, one.attempts) for one in letters] == [
        (3, "UpcastFailed", "serialization", 1),
        (4, "NoHandler", "serialization", 1),
        (5, "WrongEvent", "serialization", 1),
    ]
    assert f"The upcaster '{HERE}.has_gate'" in letters[0].error_message
    assert "and 3 is the newest" in letters[1].error_message
    assert letters[0].handler == letters[2].handler == f"{HERE}.{handler.__name__}"
    assert worker.tally.dead_lettered == 3
    if handler is many:
        assert effects() == [0, 1, 2]
    registry._registered[:] = [one for one in registry._registered if one.topic != workplace.topic]


def nobody_landed(event: Landed) -> None:
    raise ValueError(f"nobody landed at {event.gate}")


def test_old_versions_that_come_encrypted_are_read_and_stay_dark(settings: Settings, db: None) -> None:
    encrypted = {"encryption": "payload"}
    consumer = {"group_id": "g", "topics": {"flights": {}}, "retry": {"max_retries": 0}, **encrypted}
    settings.KAFKA = {
        "brokers": [NOBODY], "producers": {"default": encrypted}, "consumers": {NAME: consumer},
        "encryption": {"keys": {"mine": base64.b64encode(bytes(32)).decode()}},
    }  # fmt: skip
    steps()
    kafka_handler(topics="flights", type="FlightLanded", version=3)(nobody_landed)
    outcome = consume([record("flights", "k", V1, headers={"type": "FlightLanded", "version": "1"})])
    (letter,) = outcome.dead_letters
    assert letter.error_message == "nobody landed at ***"
    assert decoding.decoded(letter, "value") == (V1, "")
    for dark in (letter.value, letter.traceback):
        assert "B7" not in str(dark)


@pytest.mark.django_db
def test_inline_records_are_brought_up_too(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights", type="FlightLanded", version=3)(landed)
    steps()
    headers = {"type": "FlightLanded", "version": "1"}
    outcome = consume([record("flights", None, V1, headers=headers)])
    assert (outcome.handled, seen) == (1, [LANDED])


@pytest.mark.django_db
def test_an_edited_payload_is_looked_at_in_the_version_of_its_handler(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights", type="FlightLanded", version=3, dry_run=True)(landed)
    steps()
    letter = dead_letter(V1, headers=[("type", b"FlightLanded"), ("version", b"1")])
    edit = Edit.of(letter)
    assert dry_runs.refusal(letter) == ""

    def wrong(value: Any) -> list[str]:
        return editing.problems(letter, Edit(key=edit.key, value=json.dumps(value).encode(), headers=edit.headers))

    assert wrong({**V1, "at": "C1"}) == []
    [sentence] = wrong({**V1, "at": 1})
    assert sentence.endswith("is no Landed: `gate`: expected str, got int.")
    [sentence] = wrong({})
    assert "The upcaster 'tests.test_upcasters.number_is_text', for version 1 of 'FlightLanded', failed" in sentence


@pytest.mark.django_db
def test_a_predicate_that_fails_is_no_error_of_a_page(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights", when=is_long, dry_run=True)(any_landed)
    letter = dead_letter({"a": 1})
    assert dry_runs.refusal(letter) == "KeyError"
    edit = Edit.of(letter)
    [sentence] = editing.problems(letter, Edit(key=edit.key, value=b"{}", headers=edit.headers))
    assert sentence.startswith("The value cannot be read as its handler would read it: ")
