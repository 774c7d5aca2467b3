from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_django import Settings

from django_kafka import handlers, registry
from django_kafka.exceptions import ConfigurationError, NoHandler
from django_kafka.handlers import for_topic, kafka_handler, registrations, resolve_all, subscribe
from django_kafka.messages import Message
from django_kafka.serializers import TopicDecoder
from tests.sending import NOBODY
from tests.test_messages import Raw

seen: list[Any] = []


def of_message(message: Message) -> None:
    seen.append(message)


def of_event(event: Any, message: Message) -> None:
    seen.append((event, message))


def other(message: Message) -> None:
    seen.append("other")


async def later(message: Message) -> None:
    pass


not_callable = 7


class Later:
    async def __call__(self, message: Message) -> None:
        pass


instance = Later()


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = list(registry._registered)
    seen.clear()
    yield
    registry._registered[:] = before
    handlers._made.clear()


@pytest.fixture
def use(settings: Settings) -> Callable[..., None]:
    def use(consumer: dict[str, Any], **more: Any) -> None:
        consumers = {"ops": {"group_id": "g", **consumer}, "audit": {"group_id": "a"}}
        settings.KAFKA = {"brokers": [NOBODY], "consumers": consumers, **more}

    return use


def message(**parts: Any) -> Message:
    return Message(Raw(**parts), TopicDecoder("text", "json"))


def here(name: str) -> str:
    return f"tests.test_handlers.{name}"


def test_a_dotted_path_in_settings_is_resolved_once(use: Callable[..., None]) -> None:
    use({"topics": {"flights": {"handler": here("of_message")}}})
    found = for_topic("ops", "flights")
    assert found is for_topic("ops", "flights")
    handler = found.match(message())
    assert handler.path == here("of_message")
    one = message()
    handler.call(one)
    assert seen == [one]


def test_a_decorator_registers_and_returns_the_function(use: Callable[..., None]) -> None:
    use({})
    assert kafka_handler(topics=["flights", "gates"])(of_message) is of_message
    kafka_handler(topics="flights", consumer="audit")(other)
    assert [(one.consumer, one.topic, one.path) for one in registrations("ops")] == [
        ("", "flights", here("of_message")),
        ("", "gates", here("of_message")),
    ]
    assert for_topic("ops", "gates").match(message()).path == here("of_message")
    assert for_topic("audit", "flights").match(message()).path == here("other")
    assert handlers.topics("ops") == ["flights", "gates"]


def test_registering_the_same_function_again_changes_nothing(use: Callable[..., None]) -> None:
    use({})
    for _ in range(2):
        kafka_handler(topics="flights")(of_message)
        subscribe("flights", of_message)
    assert len(registrations("ops")) == 1
    assert handlers.problems() == []


def test_a_path_can_be_subscribed(use: Callable[..., None]) -> None:
    use({})
    subscribe(["flights"], here("of_event"), consumer="ops")
    one = message(value=b'{"n":2}')
    for_topic("ops", "flights").match(one).call(one)
    assert seen == [({"n": 2}, one)]


def test_a_handler_that_is_subscribed_later_is_found(use: Callable[..., None]) -> None:
    use({})
    with pytest.raises(NoHandler, match="No handler of this consumer takes this message of 'flights'"):
        for_topic("ops", "flights").match(message())
    subscribe("flights", of_message)
    assert for_topic("ops", "flights").match(message()).path == here("of_message")
    handlers.forget(of_message)
    assert registrations("ops") == []


def test_headers_choose_the_handler_and_the_rest_goes_to_the_default(use: Callable[..., None]) -> None:
    dispatch = [
        {"header": {"type": "cancelled", "source": "tower"}, "handler": here("of_event")},
        {"header": {"type": "cancelled"}, "handler": here("other")},
    ]
    use({"topics": {"flights": {"handler": here("of_message"), "dispatch": dispatch}}})

    def chosen(*headers: tuple[str, bytes | None]) -> str:
        return for_topic("ops", "flights").match(message(headers=list(headers))).path.rpartition(".")[2]

    assert chosen() == "of_message"
    assert chosen(("type", b"cancelled")) == "other"
    assert chosen(("type", b"cancelled"), ("source", b"tower")) == "of_event"
    assert chosen(("type", b"landed")) == "of_message"
    assert chosen(("type", None)) == "of_message"
    assert chosen(("type", b"cancelled"), ("type", b"landed")) == "of_message"
    assert chosen(("type", b"\xff")) == "of_message"


def test_a_decorated_handler_may_want_headers(use: Callable[..., None]) -> None:
    use({})
    kafka_handler(topics="flights", header={"type": "cancelled"})(other)
    assert for_topic("ops", "flights").match(message(headers=[("type", b"cancelled")])).path == here("other")
    with pytest.raises(NoHandler):
        for_topic("ops", "flights").match(message(headers=[("type", b"landed")]))


def test_a_second_handler_for_one_message_is_a_problem(use: Callable[..., None]) -> None:
    use({"topics": {"flights": {"handler": here("of_message")}}})
    kafka_handler(topics="flights", consumer="ops")(other)
    kafka_handler(topics="flights", consumer="ops", header={"type": "a"})(other)
    [(check, sentence, hint)] = handlers.problems()
    assert check == "E021"
    assert sentence == (f"Consumer 'ops' has two handlers for 'flights': '{here('of_message')}' and '{here('other')}'.")
    assert "second consumer with a group of its own" in hint


def test_two_functions_of_one_name_are_a_problem_too(use: Callable[..., None]) -> None:
    use({})
    subscribe("flights", lambda message: None)
    subscribe("flights", lambda message: seen.append(message))
    [(check, sentence, _hint)] = handlers.problems()
    assert check == "E021"
    assert "<lambda>" in sentence


def test_a_handler_for_an_unknown_consumer_is_a_problem(use: Callable[..., None]) -> None:
    use({})
    kafka_handler(topics="flights", consumer="nobody")(other)
    [(check, sentence, hint)] = handlers.problems()
    assert check == "E020"
    assert "is registered for consumer 'nobody', which KAFKA does not have" in sentence
    assert hint == "It has: ops, audit."


@pytest.mark.parametrize(
    ("handler", "error", "sentence"),
    [
        (here("missing"), ConfigurationError, "The handler '.*missing' of consumer 'ops' cannot be imported: "),
        ("tests.nowhere.f", ConfigurationError, "cannot be imported: No module named 'tests.nowhere'"),
        (here("not_callable"), ConfigurationError, "is int; it must be callable"),
        (here("later"), ConfigurationError, "is `async def`, and KAFKA.*\"transaction\".* is 'message'. Django has no"),
        (here("instance"), ConfigurationError, 'is `async def`.* set "transaction": "none"'),
    ],
)
def test_a_handler_that_cannot_be_used_is_a_sentence_at_the_start(
    use: Callable[..., None], handler: str, error: type[Exception], sentence: str
) -> None:
    use({"topics": {"flights": {"handler": handler}}})
    with pytest.raises(error, match=sentence):
        resolve_all("ops")


def test_a_consumer_without_handlers_cannot_start(use: Callable[..., None]) -> None:
    use({"topics": ["flights"]})
    with pytest.raises(ConfigurationError, match="Consumer 'ops' has no handler: name one in KAFKA"):
        resolve_all("ops")


def takes_nothing() -> None: ...
def takes_three(a: Any, b: Any, c: Any) -> None: ...
def takes_keyword(message: Any, *, must: Any) -> None: ...
def takes_only_keywords(**options: Any) -> None: ...


@pytest.mark.parametrize("wrong", [takes_nothing, takes_three, takes_keyword, takes_only_keywords])
def test_a_signature_that_does_not_fit_is_a_sentence(use: Callable[..., None], wrong: Callable[..., Any]) -> None:
    use({})
    subscribe("flights", wrong)
    sentence = rf"'{here(wrong.__name__)}' must take \(message\), \(event\) or \(event, message\)"
    with pytest.raises(ConfigurationError, match=sentence):
        resolve_all("ops")


class Project:
    def method(self, event: Any, message: Message) -> None:
        seen.append((event, message))

    @staticmethod
    def static(message: Message) -> None:
        seen.append(message)


def with_options(message: Message, retries: int = 3, *, loud: bool = False) -> None:
    seen.append(message)


def with_anything(*arguments: Any, **options: Any) -> None:
    [one] = arguments
    seen.append(one)


@pytest.mark.parametrize(
    ("handler", "with_event"),
    [
        (of_message, False),
        (of_event, True),
        (Project().method, True),
        (Project.static, False),
        (with_options, False),
        (with_anything, False),
    ],
)
def test_a_handler_takes_the_message_or_the_event_and_the_message(
    use: Callable[..., None], handler: Callable[..., Any], with_event: bool
) -> None:
    use({})
    subscribe("flights", handler)
    one = message(value=b"[1]")
    for_topic("ops", "flights").match(one).call(one)
    assert seen == ([([1], one)] if with_event else [one])


def test_what_has_no_name_cannot_be_registered() -> None:
    with pytest.raises(ConfigurationError, match="has no name that a dead letter could be replayed by"):
        subscribe("flights", functools.partial(of_event, 1))
    with pytest.raises(ConfigurationError, match="has no name"):
        subscribe("flights", Later())


def test_topics_are_matched_with_their_prefix_and_read_with_their_serializer(use: Callable[..., None]) -> None:
    topics = {"flights": {"handler": here("of_message")}, "text": {"handler": here("other"), "serializer": "text"}}
    use({"topics": topics, "key_serializer": "bytes"}, topic_prefix="stage.")
    assert for_topic("ops", "stage.flights").match(message()).path == here("of_message")
    with pytest.raises(NoHandler):
        for_topic("ops", "flights").match(message())
    decoder = for_topic("ops", "stage.text").decoder
    one = Message(Raw(value=b"words", key=b"\xff"), decoder)
    assert (one.value, one.key) == ("words", b"\xff")


def test_a_change_of_settings_forgets_what_was_resolved(use: Callable[..., None]) -> None:
    use({"topics": {"flights": {"handler": here("of_message")}}})
    assert for_topic("ops", "flights").match(message()).path == here("of_message")
    use({"topics": {"flights": {"handler": here("other")}}})
    assert for_topic("ops", "flights").match(message()).path == here("other")
