"""Handlers that are `async def`: where they are refused, and where they run outside of a worker."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core import checks
from pytest_django import Settings

from django_kafka import conf, coroutines, handlers, services, testing
from django_kafka.consuming.crew import database_connections
from django_kafka.consuming.worker import Worker
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.executing import Executor
from django_kafka.exceptions import ConfigurationError
from django_kafka.messages import Message
from tests.app.models import Effect
from tests.consuming import Awaited, Workplace
from tests.servers.processes import wait_until

HERE = "tests.test_coroutines"
calls: list[Any] = []


async def awaited(message: Message) -> None:
    calls.append(message.value)
    if message.value == "fail":
        raise ValueError("asked to")
    if message.value == "cancelled":
        raise asyncio.CancelledError
    await Effect.objects.acreate(topic=message.topic, partition=0, offset=message.offset, payload=None)


async def with_event(event: Any, message: Message) -> None:
    calls.append((event, message.offset))


async def sends(message: Message) -> None:
    await services.aproduce("landed", None, message.value)


def plain(message: Message) -> None:
    calls.append(message.value)


class Callable_:
    async def __call__(self, message: Message) -> None:
        calls.append(message.value)


instance = Callable_()


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def use(settings: Settings, handler: str = "awaited", **consumer: Any) -> None:
    base = {"group_id": "g", "topics": {"flights": {"handler": f"{HERE}.{handler}"}}, "transaction": "none"}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "producers": {"default": {}}, "consumers": {"ops": base | consumer}}


def found_by_check(check: str) -> list[checks.CheckMessage]:
    return [one for one in checks.run_checks(tags=["kafka"]) if one.id == f"django_kafka.{check}"]


@pytest.mark.parametrize("handler", ["awaited", "with_event", "instance"])
def test_a_coroutine_is_known_whatever_it_looks_like(settings: Settings, handler: str) -> None:
    use(settings, handler)
    handlers.resolve_all("ops")
    assert handlers.on_an_event_loop("ops")
    found = handlers.for_topic("ops", "flights").default
    assert found is not None
    assert found.coroutine is not None


def test_a_transaction_is_refused_with_the_way_out(settings: Settings) -> None:
    use(settings, transaction="message")
    sentence = (
        f'The handler \'{HERE}.awaited\' is `async def`, and KAFKA["consumers"]["ops"]["transaction"] is \'message\'.'
    )
    (found,) = found_by_check("E024")
    assert (found.msg, found.hint) == (sentence, 'Django has no transactions in coroutines: set "transaction": "none".')
    with pytest.raises(ConfigurationError) as refused:
        Worker("ops")
    assert str(refused.value) == f"{sentence} {found.hint}"


def test_effect_once_is_refused(settings: Settings) -> None:
    use(settings, transaction="message", guarantee="effect_once")
    (found,) = found_by_check("E024")
    assert '["guarantee"] is "effect_once"' in found.msg
    assert found.hint == 'That commits offsets in the transaction of a handler: make it a plain "def".'


def test_a_mixture_is_refused(settings: Settings) -> None:
    topics = {"flights": {"handler": f"{HERE}.awaited"}, "planes": {"handler": f"{HERE}.plain"}}
    use(settings, topics=topics)
    (found,) = found_by_check("E025")
    assert found.msg == (
        f"Of the handlers of consumer 'ops' '{HERE}.awaited' is `async def`, and '{HERE}.plain' is not."
    )
    with pytest.raises(ConfigurationError, match="give them a consumer each"):
        Worker("ops")


def test_what_is_in_order_is_not_reported(settings: Settings) -> None:
    use(settings)
    assert not found_by_check("E024")
    assert not found_by_check("E025")


@pytest.mark.parametrize("concurrency", [2, 500])
def test_the_connections_of_an_event_loop_are_few(settings: Settings, concurrency: int) -> None:
    use(settings, concurrency=concurrency)
    most = database_connections([conf.consumer("ops")])["default"]
    assert most == 3 + min(concurrency, 4) + min(concurrency, 8)


def test_one_that_leads_nowhere_is_counted_as_a_thread_each(settings: Settings) -> None:
    use(settings, "missing", concurrency=7)
    assert database_connections([conf.consumer("ops")])["default"] == 3 + 7


def test_handlers_run_inline_in_tests_with_the_connection_of_the_test(settings: Settings, db: None) -> None:
    use(settings, retry={"max_retries": 2})
    outcome = testing.consume([testing.record("flights", None, "one"), testing.record("flights", None, "fail")])
    assert outcome.handled == 1
    assert calls == ["one", "fail", "fail", "fail"]
    assert Effect.objects.count() == 1
    (letter,) = outcome.dead_letters
    assert (letter.error_message, letter.attempts, letter.handler) == ("asked to", 3, f"{HERE}.awaited")


def test_a_cancelled_one_is_a_letter_in_tests_too(settings: Settings, db: None) -> None:
    use(settings, retry={"max_retries": 0})
    outcome = testing.consume([testing.record("flights", None, "cancelled")])
    (letter,) = outcome.dead_letters
    assert letter.error_type == "django_kafka.exceptions.HandlerCancelled"


def test_a_handler_that_takes_the_event_gets_it(settings: Settings, db: None) -> None:
    use(settings, "with_event")
    testing.consume([testing.record("flights", None, {"n": 1})])
    assert calls[0][0] == {"n": 1}


def test_a_time_limit_holds_inline_too(settings: Settings, db: None) -> None:
    async def hang(_message: Message) -> None:
        await asyncio.sleep(30)

    use(settings, timeout="50ms", topics=["flights"], retry={"max_retries": 0})
    handlers.subscribe("flights", hang, consumer="ops")
    try:
        outcome = testing.consume([testing.record("flights", None, 1)])
    finally:
        handlers.forget(hang)
    (letter,) = outcome.dead_letters
    assert letter.category == "timeout"


def test_a_coroutine_of_a_test_consumes_in_a_thread(settings: Settings, db: None) -> None:
    use(settings)

    async def consume() -> int:
        outcome = await sync_to_async(testing.consume)([testing.record("flights", None, "one")])
        return outcome.handled

    assert async_to_sync(consume)() == 1


def test_a_letter_is_replayed_to_its_coroutine_and_its_records_are_awaited(workplace: Workplace) -> None:
    broken = threading.Event()
    broken.set()

    async def fail_or_send(message: Message) -> None:
        if broken.is_set():
            raise ValueError("broken")
        await services.aproduce("landed", None, message.value)
        await Effect.objects.acreate(topic=message.topic, partition=0, offset=message.offset, payload=None)

    workplace.cluster.create_topic("landed", 1)
    seen = Awaited(fail_or_send)
    workplace.consume(seen, transaction="none", kafka={"producers": {"default": {}}})
    workplace.send([7])
    with workplace.worker():
        (letter,) = wait_until(workplace.letters)
    broken.clear()
    replaying.request([letter.pk])
    executor = Executor()
    try:
        replays = list(carry_out(executor, stop=threading.Event(), waiting=lambda error, pause: None))
    finally:
        executor.close()
    assert [replay.state for replay in replays] == ["succeeded"]
    (letter,) = workplace.letters()
    assert letter.state == "resolved"
    assert seen.values == [7]
    assert Effect.objects.count() == 1


def test_records_of_coroutines_are_gathered_once(settings: Settings, db: None) -> None:
    from django_kafka.gathering import here

    use(settings, "sends")
    gathered = here.begin()
    try:
        with testing.produced() as records:
            found = handlers.for_topic("ops", "flights").default
            assert found is not None
            found.call(Message(_Raw(), handlers.for_topic("ops", "flights").decoder))
    finally:
        here.end()
    assert len(records) == 1
    assert gathered.sent == [], "what is captured is not waited for"


class _Raw:
    def topic(self) -> str:
        return "flights"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0

    def timestamp(self) -> tuple[int, int]:
        return 0, 0

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return b"1"

    def headers(self) -> None:
        return None


def test_attempt_returns_whatever_is_raised() -> None:
    async def stop(_message: Message) -> None:
        raise SystemExit(3)

    error = asyncio.run(coroutines.attempt(stop, Message(_Raw(), None)))  # type: ignore[arg-type]
    assert isinstance(error, SystemExit)
    with pytest.raises(SystemExit):
        coroutines.in_a_thread(stop)(Message(_Raw(), None))  # type: ignore[arg-type]
