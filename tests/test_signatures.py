"""What a handler takes by its annotations, and what becomes of messages that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from django.core import checks
from pytest_django import Settings

from django_kafka import handlers, registry, services
from django_kafka.dead_letters import dry_runs, editing, replaying
from django_kafka.dead_letters.editing import Edit
from django_kafka.dead_letters.executing import Executor
from django_kafka.exceptions import ConfigurationError, ReplayRefused, WrongEvent
from django_kafka.handlers import for_topic, kafka_handler
from django_kafka.messages import Message, Messages
from django_kafka.models import DeadLetter, Replay
from django_kafka.serializers import TopicDecoder
from django_kafka.testing import consume, produced, record
from tests.app.models import Effect
from tests.consuming import NAME, Workplace
from tests.letters import dead_letter
from tests.sending import NOBODY
from tests.test_events import SECRET, Landed
from tests.test_handling import effects, leave_effect
from tests.test_messages import Raw
from tests.test_together import handled

if TYPE_CHECKING:
    from tests.test_events import FlightLanded

HERE = "tests.test_signatures"
seen: list[Any] = []


@dataclass(frozen=True)
class Gate:
    """An event."""

    number: int
    gate: str = "?"


def of_both(event: Gate, message: Message) -> None:
    seen.append((event, message.value))


def of_event(event: Gate) -> None:
    seen.append(event)


def of_optional(event: Gate | None) -> None:
    seen.append(event)


def of_model(event: Landed) -> None:
    seen.append(event)


def of_dict(event: dict[str, Any]) -> None:
    seen.append(event)


def of_text(event: str, message: Any) -> None:
    seen.append(event)


def of_anything(event: Any) -> None:
    seen.append(event)


def of_message(message: Message) -> None:
    seen.append(message)


_SCOPE: dict[str, Any] = {"__name__": HERE}
# A module that imports it for the type checker only.
exec("from __future__ import annotations\ndef of_late_message(message: Message) -> None: ...", _SCOPE)
of_late_message = _SCOPE["of_late_message"]


def of_late_event(event: FlightLanded, message: Message) -> None: ...
def of_late_lists(events: list[FlightLanded]) -> None: ...
def of_untyped(event, message) -> None: ...  # type: ignore[no-untyped-def]
def of_no_type(event: "Gate | Landed | 3") -> None: ...  # type: ignore[valid-type]  # noqa: UP037


async def later(event: Gate, message: Message) -> None:
    seen.append(event)
    await Effect.objects.acreate(topic=message.topic, partition=0, offset=message.offset, payload=None)


class Project:
    def method(self, event: Gate) -> None:
        seen.append(event)

    def __call__(self, event: Gate) -> None:
        seen.append(event)


instance = Project()


def list_of_messages(messages: Messages) -> None:
    seen.append(list(messages))


def list_of_any_messages(messages: Sequence[Message]) -> None:
    seen.append(list(messages))


def list_of_events(events: list[Gate]) -> None:
    seen.append(events)


def list_of_both(events: Sequence[Gate], messages: Messages) -> None:
    seen.append((events, [one.value for one in messages]))


def list_of_values(events: Any, messages: Any) -> None:
    seen.append((events, len(messages)))


def list_of_one(event: Gate, messages: Messages) -> None: ...


def of_both_kinds(message: Message | list[Message] | None) -> None:
    seen.append(message)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = list(registry._registered)
    seen.clear()
    yield
    registry._registered[:] = before
    handlers._made.clear()


@pytest.fixture
def use(settings: Settings) -> Callable[..., None]:
    def use(handler: str, **consumer: Any) -> None:
        topics = {"flights": {"handler": f"{HERE}.{handler}", "dry_run": True}}
        settings.KAFKA = {
            "brokers": [NOBODY],
            "producers": {"default": {}},
            "consumers": {NAME: {"group_id": "g", "topics": topics, **consumer}},
            "dead_letters": {"edit": True},
        }

    return use


def call(value: Any = None, raw: bytes | None = None) -> Message:
    """Give the handler a message."""
    message = Message(Raw(value=json.dumps(value).encode() if raw is None else raw), TopicDecoder("text", "json"))
    for_topic(NAME, "flights").match(message).call(message)
    return message


GATE = {"number": 7, "gate": "B7"}


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("of_both", (Gate(7, "B7"), GATE)),
        ("of_event", Gate(7, "B7")),
        ("of_optional", Gate(7, "B7")),
        ("of_dict", GATE),
        ("instance", Gate(7, "B7")),
        ("instance.method", Gate(7, "B7")),
    ],
)
def test_a_handler_gets_what_its_annotation_says(use: Callable[..., None], handler: str, expected: Any) -> None:
    if handler == "instance.method":
        use("of_message")
        handlers.subscribe("gates", instance.method, consumer=NAME)
        message = Message(Raw(value=json.dumps(GATE).encode()), TopicDecoder("text", "json"))
        for_topic(NAME, "gates").match(message).call(message)
    else:
        use(handler)
        call(GATE)
    assert seen == [expected]


@pytest.mark.parametrize("handler", ["of_message", "of_anything", "of_both_kinds"])
def test_a_handler_without_a_type_gets_the_message_itself(use: Callable[..., None], handler: str) -> None:
    use(handler)
    assert [call(GATE)] == seen
    found = for_topic(NAME, "flights").default
    assert found is not None
    # Nothing stands between.
    assert found.call.__module__ == HERE


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"number": SECRET}, r"The value of flights\[3\]@1099511627776 is no Gate: `number`: expected int, got str\."),
        ({}, "is no Gate: `number`: missing"),
        ([1], "is no Gate: expected object, got array"),
    ],
)
def test_a_wrong_payload_is_an_error_that_names_the_field(use: Callable[..., None], value: Any, sentence: str) -> None:
    use("of_both")
    with pytest.raises(WrongEvent, match=sentence) as caught:
        call(value)
    assert SECRET not in str(caught.value)
    assert (caught.value.__context__, caught.value.place) == (None, ("flights", 3, 2**40))
    assert seen == []


def test_a_tombstone_goes_only_where_the_annotation_has_none(use: Callable[..., None]) -> None:
    use("of_optional")
    call(None)
    assert seen == [None]
    use("of_event")
    with pytest.raises(WrongEvent, match="is no Gate: it is a tombstone, or null"):
        call(None)
    use("of_model")
    with pytest.raises(WrongEvent, match="is no Landed: it is a tombstone, or null"):
        call(None)


def test_a_text_is_a_type_too(use: Callable[..., None]) -> None:
    use("of_text")
    call("B7")
    assert seen == ["B7"]
    with pytest.raises(WrongEvent, match="is no str: expected str, got int"):
        call(7)


def problems() -> list[str]:
    return [one.msg for one in checks.run_checks(tags=["kafka"]) if one.id == "django_kafka.E026"]


@pytest.mark.parametrize("handler", ["of_message", "of_late_message", "of_both", "of_untyped", "instance", "of_model"])
def test_what_can_be_given_is_no_problem(use: Callable[..., None], handler: str) -> None:
    use(handler)
    assert problems() == []


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        ("of_late_event", "its `event` is 'FlightLanded', which leads nowhere: NameError: name 'FlightLanded' is not"),
        ("of_no_type", "its `event` is \"'Gate | Landed | 3'\", which leads nowhere: TypeError"),
    ],
)
def test_an_annotation_that_leads_nowhere_is_found_by_check(
    use: Callable[..., None], handler: str, sentence: str
) -> None:
    use(handler)
    [found] = problems()
    assert found.startswith(f"The handler '{HERE}.{handler}' says that {sentence}")
    with pytest.raises(ConfigurationError, match=f"The handler '{HERE}.{handler}' says that"):
        handlers.resolve_all(NAME)


def test_a_handler_of_the_decorator_is_checked_too(use: Callable[..., None]) -> None:
    use("of_message")
    kafka_handler(topics="gates", consumer=NAME, batch=True)(of_late_lists)
    kafka_handler(topics="bags", consumer=NAME, batch=True)(list_of_one)
    lists, one = problems()
    assert "of_late_lists' says that its `events` is 'list[FlightLanded]', which leads nowhere" in lists
    assert "list_of_one' says that its `event` is 'Gate'. It takes lists (batch=True)" in one


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (list_of_events, [Gate(1), Gate(2)]),
        (list_of_both, ([Gate(1), Gate(2)], [{"number": 1}, {"number": 2}])),
        (list_of_values, ([{"number": 1}, {"number": 2}], 2)),
    ],
)
def test_a_handler_of_lists_gets_lists_of_events(
    use: Callable[..., None], handler: Callable[..., Any], expected: Any
) -> None:
    use("of_message")
    kafka_handler(topics="gates", consumer=NAME, batch=True)(handler)
    found = for_topic(NAME, "gates").default
    assert found is not None
    assert found.call_all is not None
    raws = [Raw(value=json.dumps({"number": number}).encode(), offset=number) for number in (1, 2)]
    found.call_all(Messages(raws, TopicDecoder("text", "json")))
    assert seen == [expected]
    raws.append(Raw(value=b'{"number": "hunter2"}', offset=3))
    if handler is not list_of_values:
        with pytest.raises(WrongEvent) as caught:
            found.call_all(Messages(raws, TopicDecoder("text", "json")))
        assert caught.value.place == ("flights", 3, 3)


@pytest.mark.parametrize("handler", [list_of_messages, list_of_any_messages])
def test_a_handler_of_lists_of_messages_gets_those(use: Callable[..., None], handler: Callable[..., Any]) -> None:
    use("of_message")
    kafka_handler(topics="gates", consumer=NAME, batch=True)(handler)
    found = for_topic(NAME, "gates").default
    assert found is not None
    assert found.call_all is handler


# Where messages come from Kafka, from letters, and in tests


def landed(event: Gate, message: Message) -> None:
    seen.append(event)
    leave_effect(message)


def all_landed(events: list[Gate], messages: Messages) -> None:
    for event, message in zip(events, messages, strict=True):
        landed(event, message)


async def landed_later(event: Gate, message: Message) -> None:
    seen.append(event)
    await Effect.objects.acreate(
        group="", topic=message.topic, partition=message.partition, offset=message.offset, payload=None
    )


MIXED = [{"number": 1}, {"number": SECRET}, {"gate": "B7"}, {"number": 4}, None]


@pytest.mark.parametrize("handler", [landed, all_landed, landed_later])
@pytest.mark.parametrize("kind", ["message", "batch"])
def test_wrong_payloads_are_letters_at_once_and_the_others_are_handled(
    workplace: Workplace, handler: Callable[..., Any], kind: str
) -> None:
    transaction = "none" if handler is landed_later else kind
    if handler is all_landed:
        kafka_handler(topics=workplace.topic, consumer=NAME, batch=True)(handler)
    workplace.consume(handler, transaction=transaction, retry={"max_retries": 5, "backoff": "1h", "max_backoff": "1h"})
    workplace.send(MIXED)
    with workplace.worker() as worker:
        handled(workplace, 5)
    letters = workplace.letters()
    assert [(one.offset, one.error_type, one.category, one.attempts) for one in letters] == [
        (offset, "django_kafka.exceptions.WrongEvent", "serialization", 1) for offset in (1, 2, 4)
    ]
    assert [one.error_message.rpartition("Gate: ")[2] for one in letters] == [
        "`number`: expected int, got str.",
        "`number`: missing.",
        "it is a tombstone, or null.",
    ]
    assert SECRET not in "".join(one.error_message + one.traceback for one in letters)
    assert bytes(letters[0].value or b"") == json.dumps(MIXED[1]).encode()
    assert (effects(), worker.tally.dead_lettered) == ([0, 3], 3)
    assert seen[-2:] == [Gate(1), Gate(4)] or set(seen) == {Gate(1), Gate(4)}


def sends_back(event: Gate) -> None:
    services.produce("answers", event.number, Gate(event.number + 1, event.gate))


@pytest.mark.django_db
def test_what_is_produced_as_an_object_is_consumed_as_one(use: Callable[..., None]) -> None:
    use("sends_back")
    with produced() as answers:
        outcome = consume([record("flights", 7, Gate(7, "B7")), record("flights", 8, {"gate": "C1"})])
    assert outcome.handled == 1
    assert outcome.dead_letters[0].error_message.endswith("is no Gate: `number`: missing.")
    assert [one.value for one in answers] == [{"number": 8, "gate": "B7"}]
    assert answers[0].raw_value == b'{"number":8,"gate":"B7"}'


@pytest.mark.django_db
def test_an_edited_payload_has_to_be_an_event_of_its_handler(use: Callable[..., None]) -> None:
    use("of_both")
    letter = dead_letter({"number": SECRET})
    edit = Edit.of(letter)
    wrong = Edit(key=edit.key, value=b'{"number": "8"}', headers=edit.headers)
    [sentence] = editing.problems(letter, wrong)
    assert sentence.startswith("The value cannot be read as its handler would read it: The value of flights[0]@")
    assert sentence.endswith("is no Gate: `number`: expected int, got str.")
    with pytest.raises(ReplayRefused, match="`number`: expected int, got str"):
        editing.request(letter.pk, wrong, version=editing.version_of(letter))
    right = Edit(key=edit.key, value=b'{"number": 8}', headers=edit.headers)
    replay = editing.request(letter.pk, right, version=editing.version_of(letter))
    executor = Executor()
    assert executor.run_next() == replay
    executor.close()
    assert seen == [(Gate(8), {"number": 8})]
    letter.refresh_from_db()
    assert letter.state == DeadLetter.State.RESOLVED


@pytest.mark.django_db(transaction=True)
def test_a_dry_run_of_a_wrong_payload_tells_the_field(use: Callable[..., None]) -> None:
    use("of_both")
    letter = dead_letter({"number": SECRET})
    replaying.request([letter.pk], target=Replay.Target.DRY_RUN)
    executor = Executor()
    replay = executor.run_next()
    executor.close()
    assert replay is not None
    replay.refresh_from_db()
    report = dry_runs.Report.from_bytes(replay.report or b"")
    assert (report.outcome, report.error_type) == ("failed", "django_kafka.exceptions.WrongEvent")
    assert report.error_message.endswith("is no Gate: `number`: expected int, got str.")
