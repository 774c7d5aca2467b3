"""What spans tell of a failure: nothing of what was encrypted, or is masked."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from pytest_django import Settings

from django_kafka import services
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.executing import Executor
from django_kafka.messages import Message, Messages
from tests.consuming import Workplace
from tests.servers.processes import wait_until
from tests.test_encryption import FIELDS, JANE, OLD
from tests.test_lists import consume as consume_lists
from tests.test_tracing import Spans, attribute, spans

__all__ = ["spans"]

pytestmark = pytest.mark.django_db(transaction=True)

MASKED = {"dead_letters": {"mask": ["passenger.name", "**.email"]}}


def settings_of(way: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings of all, and of the consumer, by which nobody may see Jane."""
    if way == "masked":
        return MASKED, {}
    chosen = {"payload": "payload", "fields": FIELDS}[way]
    encrypted = {"producers": {"default": {"encryption": chosen}}, "encryption": {"keys": {"old": OLD}}}
    return encrypted, {"encryption": chosen}


def fail(message: Message) -> None:
    try:
        raise KeyError(message.value["passenger"]["email"])
    except KeyError as error:
        raise ValueError(f"no seat for {message.value['passenger']['name']}") from error


async def fail_later(message: Message) -> None:
    fail(message)


def said(span: ReadableSpan) -> str:
    return str([span.status.description, span.attributes, [dict(each.attributes or {}) for each in span.events]])


def assert_masked(span: ReadableSpan) -> None:
    told = said(span)
    assert "Jane" not in told
    assert "jane@" not in told
    assert "no seat for ***" in told
    (event,) = span.events
    assert event.name == "exception"
    assert (event.attributes or {})["exception.type"] == "ValueError"
    assert "no seat for ***" in str((event.attributes or {})["exception.stacktrace"])
    assert span.status.description == "ValueError: no seat for ***"


@pytest.mark.parametrize("way", ["masked", "payload", "fields"])
@pytest.mark.parametrize(
    "options",
    [{}, {"transaction": "batch"}, {"transaction": "none"}, {"guarantee": "effect_once"}],
    ids=["message", "batch", "none", "once"],
)
def test_spans_tell_nothing_that_errors_may_not(
    spans: Spans, workplace: Workplace, way: str, options: dict[str, Any]
) -> None:
    whole, own = settings_of(way)
    workplace.consume(fail, kafka=whole, **own, **options)
    services.produce(workplace.topic, "k", JANE).result()
    with workplace.worker():
        wait_until(workplace.letters)
        assert_masked(spans.one("process"))


@pytest.mark.parametrize("way", ["masked", "payload", "fields"])
def test_spans_of_coroutines_tell_nothing_either(spans: Spans, workplace: Workplace, way: str) -> None:
    whole, own = settings_of(way)
    workplace.consume(fail_later, kafka=whole, transaction="none", **own)
    services.produce(workplace.topic, "k", JANE).result()
    with workplace.worker():
        wait_until(workplace.letters)
        assert_masked(spans.one("process"))


def all_fail(messages: Messages) -> None:
    for message in messages:
        fail(message)


@pytest.mark.parametrize("way", ["masked", "payload", "fields"])
def test_spans_of_lists_tell_nothing_either(spans: Spans, workplace: Workplace, way: str) -> None:
    whole, own = settings_of(way)
    consume_lists(workplace, all_fail, kafka=whole, **own)
    for _number in range(3):
        services.produce(workplace.topic, "k", JANE)
    services.produce(workplace.topic, "k", JANE).result()
    with workplace.worker():
        wait_until(lambda: len(workplace.letters()) == 4)
    failures = spans.named("process")
    assert failures
    for span in failures:
        assert_masked(span)


@pytest.mark.parametrize("way", ["masked", "payload", "fields"])
def test_spans_of_replays_tell_nothing_either(spans: Spans, workplace: Workplace, way: str) -> None:
    whole, own = settings_of(way)
    workplace.consume(fail, kafka=whole, **own)
    services.produce(workplace.topic, "k", JANE).result()
    with workplace.worker():
        wait_until(workplace.letters)
    spans.exporter.clear()
    (letter,) = workplace.letters()
    replaying.request([letter.pk])
    executor = Executor()
    try:
        list(carry_out(executor, stop=threading.Event(), waiting=lambda _error, _pause: None))
    finally:
        executor.close()
    assert_masked(spans.one("process"))


def test_what_is_in_a_storage_is_not_fetched_for_a_span(
    spans: Spans, workplace: Workplace, settings: Settings, tmp_path: Path
) -> None:
    backend = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(tmp_path)}}
    settings.STORAGES = {**settings.STORAGES, "kafka": backend}
    check = {"claim_check": {"storage": "kafka", "above": 10}}
    workplace.consume(fail, kafka={"producers": {"default": check}, **MASKED}, claim_check="kafka")
    services.produce(workplace.topic, "k", JANE).result()
    with workplace.worker():
        wait_until(workplace.letters)
        span = spans.one("process")
    assert span.status.description == "ValueError: ***"
    assert "Jane" not in said(span)


def test_where_nothing_is_masked_errors_are_told_as_they_are(spans: Spans, workplace: Workplace) -> None:
    workplace.consume(fail)
    services.produce(workplace.topic, "k", JANE).result()
    with workplace.worker():
        wait_until(workplace.letters)
        span = spans.one("process")
    assert span.status.description == "ValueError: no seat for Jane Doe-Miller"
    assert "jane@example.com" in said(span)


@pytest.mark.parametrize(
    ("mask", "key", "told"),
    [
        ([{"key": True}], "jane@example.com", None),
        ([{"regex": r"\S+@\S+"}], "for jane@example.com", None),
        (["email"], '{"email": "jane@example.com"}', None),
        (["email"], "N14228", "N14228"),
        ([{"regex": r"\S+@\S+"}], "N14228", "N14228"),
    ],
)
def test_keys_that_are_masked_are_no_attributes(
    spans: Spans, workplace: Workplace, mask: Any, key: str, told: str | None
) -> None:
    workplace.consume(fail, kafka={"dead_letters": {"mask": mask}})
    services.produce(workplace.topic, key, JANE).result()
    with workplace.worker():
        wait_until(workplace.letters)
        made = [spans.one("process"), spans.one("send")]
    assert [attribute(one, "messaging.kafka.message.key") for one in made] == [told, told]
