"""Spans of what is sent and handled, as OpenTelemetry's own SDK collects them, and the context in headers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from opentelemetry import propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pytest_django import Settings

from django_kafka import services, tracing
from django_kafka.clients.embedded import Cluster
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.executing import Executor
from django_kafka.exceptions import BatchFailed, DeliveryFailed, Skip
from django_kafka.messages import LETTER_HEADER, Message, Messages
from django_kafka.models import DeadLetter
from django_kafka.producers import producers
from django_kafka.services import Record
from tests.consuming import Workplace
from tests.sending import NOBODY, read, use
from tests.servers.processes import wait_until
from tests.test_lists import consume as consume_lists

pytestmark = pytest.mark.django_db(transaction=True)


class Spans:
    """What was traced."""

    def __init__(self, provider: TracerProvider) -> None:
        self.exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("tests")

    def named(self, begin: str) -> list[ReadableSpan]:
        return [one for one in self.exporter.get_finished_spans() if one.name.startswith(begin)]

    def one(self, begin: str) -> ReadableSpan:
        wait_until(lambda: self.named(begin), 10, f"no span {begin}")
        (span,) = self.named(begin)
        return span


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


def id_of(span: ReadableSpan) -> int:
    return span.context.span_id


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    provider = TracerProvider()
    # There is no other way to change it: whoever sets it first has it for the life of the process.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    tracing.forget()
    return Spans(provider)


def headers(message: Any) -> dict[str, bytes]:
    return dict(message.headers() or [])


def test_one_trace_leads_from_a_request_through_the_handler_to_what_that_one_sends(
    spans: Spans, workplace: Workplace
) -> None:
    def handle(message: Message) -> None:
        with spans.tracer.start_as_current_span("query"):
            services.produce(f"{workplace.topic}.out", "k", {"n": 2})
        assert not spans.named("send " + workplace.topic + ".out"), "it goes out on commit"

    workplace.consume(handle)
    workplace.cluster.create_topic(f"{workplace.topic}.out", 1)
    with spans.tracer.start_as_current_span("request"), transaction.atomic():
        services.produce(workplace.topic, "N14228", {"n": 1})
        with spans.tracer.start_as_current_span("later"):
            pass
    with workplace.worker():
        send, process = spans.one(f"send {workplace.topic}"), spans.one("process")
        out = spans.one(f"send {workplace.topic}.out")

    request, query = spans.one("request"), spans.one("query")
    assert parent_of(send) == id_of(request), "the context is that of the call, not of the COMMIT"
    assert parent_of(process) == id_of(send)
    assert parent_of(query) == id_of(process)
    assert parent_of(out) == id_of(query)
    assert len({one.context.trace_id for one in (request, send, process, query, out)}) == 1
    assert (send.kind, process.kind) == (trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER)
    assert send.attributes == {
        "messaging.system": "kafka", "messaging.operation.name": "send", "messaging.operation.type": "send",
        "messaging.destination.name": workplace.topic, "messaging.kafka.message.key": "N14228",
        "messaging.destination.partition.id": "0", "messaging.kafka.offset": 0, "lynx_kafka.producer": "default",
    }  # fmt: skip
    assert {**(process.attributes or {}), "code.function.name": ""} == {
        "messaging.system": "kafka", "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.destination.name": workplace.topic, "messaging.kafka.message.key": "N14228",
        "messaging.destination.partition.id": "0", "messaging.kafka.offset": 0, "lynx_kafka.attempt": 1,
        "lynx_kafka.consumer": "ops", "messaging.consumer.group.name": workplace.group, "code.function.name": "",
    }  # fmt: skip
    assert send.end_time is not None
    assert query.start_time is not None
    (record,) = read(workplace.cluster, f"{workplace.topic}.out", 1)
    assert headers(record)["traceparent"].decode().split("-")[2] == f"{id_of(out):016x}"


def test_each_attempt_has_a_span_that_says_what_it_failed_with(spans: Spans, workplace: Workplace) -> None:
    def handle(message: Message) -> None:
        if message.attempt < 3:
            raise ValueError("no departure time")

    workplace.consume(handle, retry={"max_retries": 3, "backoff": "10ms", "jitter": 0})
    workplace.send([{"n": 1}])
    with workplace.worker():
        wait_until(lambda: len(spans.named("process")) == 3)
    attempts = spans.named("process")
    assert [attribute(one, "lynx_kafka.attempt") for one in attempts] == [1, 2, 3]
    assert [attribute(one, "error.type") for one in attempts] == ["ValueError", "ValueError", None]
    assert [one.status.status_code.name for one in attempts] == ["ERROR", "ERROR", "UNSET"]
    assert [event.name for event in attempts[0].events] == ["exception"]


def test_what_is_skipped_is_no_error(spans: Spans, workplace: Workplace) -> None:
    def handle(message: Message) -> None:
        raise Skip("not ours")

    workplace.consume(handle)
    workplace.send([None])
    with workplace.worker():
        span = spans.one("process")
    assert attribute(span, "lynx_kafka.skipped") is True
    assert attribute(span, "messaging.kafka.message.tombstone") is True
    assert span.status.status_code.name == "UNSET"


@pytest.mark.parametrize("kind", ["transaction", "list"])
def test_what_runs_together_has_one_span_with_a_link_to_each_message(
    spans: Spans, workplace: Workplace, kind: str
) -> None:
    seen: list[int] = []

    def one_by_one(message: Message) -> None:
        seen.append(message.value["n"])

    def in_a_list(messages: Messages) -> None:
        seen.extend(message.value["n"] for message in messages)

    if kind == "transaction":
        workplace.consume(one_by_one, transaction="batch")
    else:
        consume_lists(workplace, in_a_list)
    created = []
    for n in range(3):
        with spans.tracer.start_as_current_span(f"request {n}"):
            created.append(services.produce(workplace.topic, None, {"n": n}))
    for one in created:
        one.result(10)
    sent = {id_of(one) for one in spans.named("send")}
    workplace.send([{"n": 3}])
    with workplace.worker():
        wait_until(lambda: len(seen) == 4)

    linked = [link.context.span_id for span in spans.named("process") for link in span.links]
    assert sorted(linked) == sorted(sent)
    assert sum(attribute(span, "messaging.batch.message_count") or 1 for span in spans.named("process")) == 4


@pytest.mark.parametrize("foreign", [False, True], ids=["w3c", "another propagator"])
def test_a_replay_is_a_trace_of_its_own_linked_to_the_record_and_the_attempt_that_failed(
    spans: Spans, workplace: Workplace, monkeypatch: pytest.MonkeyPatch, foreign: bool
) -> None:
    mended = threading.Event()

    def handle(message: Message) -> None:
        if not mended.is_set():
            raise ValueError("no departure time")

    workplace.consume(handle)
    with spans.tracer.start_as_current_span("request"):
        services.produce(workplace.topic, None, {"n": 1}).result(10)
    with workplace.worker():
        wait_until(lambda: DeadLetter.objects.exists())
    send, failed = spans.one("send"), spans.one("process")
    spans.exporter.clear()
    mended.set()
    if foreign:
        monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", CompositePropagator([]))
    replaying.request([DeadLetter.objects.get().pk])
    executor = Executor()
    try:
        (replay,) = carry_out(executor, stop=threading.Event(), waiting=lambda _error, _pause: None)
    finally:
        executor.close()

    assert replay.state == "succeeded"
    assert f"-{id_of(failed):016x}-" in DeadLetter.objects.get().traceback, "people can look it up"
    span = spans.one("process")
    assert [link.context.span_id for link in span.links] == [id_of(send), id_of(failed)][foreign:]
    assert span.context.trace_id != send.context.trace_id
    assert (parent_of(span), attribute(span, "lynx_kafka.replay")) == (None, True)


def test_coroutines_have_their_context_each(spans: Spans, workplace: Workplace) -> None:
    async def handle(message: Message) -> None:
        with spans.tracer.start_as_current_span(f"inner {message.value}"):
            await services.aproduce(f"{workplace.topic}.out", None, message.value)

    workplace.consume(handle, transaction="none", concurrency=8)
    workplace.cluster.create_topic(f"{workplace.topic}.out", 1)
    workplace.send(range(5))
    with workplace.worker():
        wait_until(lambda: len(spans.named(f"send {workplace.topic}.out")) == 5)
        wait_until(lambda: len(spans.named("process")) == 5)
    process = {id_of(one): attribute(one, "messaging.kafka.offset") for one in spans.named("process")}
    inner = {id_of(one): (int(one.name.split()[1]), parent_of(one)) for one in spans.named("inner")}
    assert {number: process[parent or 0] for number, parent in inner.values()} == {n: n for n in range(5)}
    assert {parent_of(one) for one in spans.named("send")} == set(inner)


def test_records_of_a_batch_have_their_context_each_and_keep_one_that_they_bring(
    spans: Spans, embedded: Cluster, settings: Settings, topic: Callable[..., str]
) -> None:
    use(settings, embedded.bootstrap_servers)
    name = topic()
    theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with spans.tracer.start_as_current_span("request"):
        deliveries = services.produce_batch(
            name,
            [
                Record(key="a", value=1),
                Record(key="b", value=2),
                Record(key="c", value=3, headers={"traceparent": theirs}),
            ],
        )
    for one in deliveries:
        one.result(10)
    wait_until(lambda: len(spans.named("send")) == 3)
    told = {message.value(): headers(message)["traceparent"].decode() for message in read(embedded, name, 3)}
    by_key = {attribute(one, "messaging.kafka.message.key"): one for one in spans.named("send")}
    assert told[b"1"].split("-")[2] == f"{id_of(by_key['a']):016x}"
    assert told[b"2"].split("-")[2] == f"{id_of(by_key['b']):016x}"
    assert told[b"3"] == theirs
    assert [f"{link.context.span_id:016x}" for link in by_key["c"].links] == ["b7ad6b7169203331"]


def test_a_record_that_is_not_delivered_is_an_error_in_its_span(spans: Spans, settings: Settings) -> None:
    use(settings, NOBODY, {"default": {"delivery_timeout": "300ms"}})
    with pytest.raises(DeliveryFailed):
        services.produce("flights", None, {}).result(20)
    span = spans.one("send")
    assert span.status.status_code.name == "ERROR"
    assert attribute(span, "error.type") == "_MSG_TIMED_OUT"


@pytest.mark.parametrize(
    "value",
    [b"", b"garbage", b"\xff\xfe\x00", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"x" * 100_000, None],
    ids=["empty", "garbage", "bytes", "zeros", "huge", "null"],
)
def test_contexts_of_strangers_break_nothing(spans: Spans, workplace: Workplace, value: bytes | None) -> None:
    seen: list[Any] = []
    workplace.consume(lambda message: seen.append(message.value))
    more = [("traceparent", value), ("tracestate", b"\x00=;,"), ("baggage", b"a=b,,;=" * 50)]
    workplace.send([1], headers=more)
    with workplace.worker():
        wait_until(lambda: seen == [1])
        span = spans.one("process")
    assert parent_of(span) is None
    assert not span.links


class BrokenPropagator(TextMapPropagator):
    def extract(self, *_arguments: Any, **_more: Any) -> Any:
        raise RuntimeError("a propagator of the project")

    inject = extract

    @property
    def fields(self) -> set[str]:
        raise RuntimeError("a propagator of the project")


def test_what_propagators_of_the_project_raise_fails_no_message(
    spans: Spans, monkeypatch: pytest.MonkeyPatch, workplace: Workplace
) -> None:
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", BrokenPropagator())
    seen: list[Any] = []
    workplace.consume(lambda message: seen.append(message.value))
    services.produce(workplace.topic, None, 1).result(10)
    with workplace.worker():
        wait_until(lambda: seen == [1])
        assert spans.one("process").status.status_code.name == "UNSET"


def test_a_provider_that_is_set_later_is_noticed(
    monkeypatch: pytest.MonkeyPatch, embedded: Cluster, settings: Settings, topic: Callable[..., str]
) -> None:
    use(settings, embedded.bootstrap_servers)
    name, provider = topic(), TracerProvider()
    tracing.forget()
    services.produce(name, None, 1).result(10)
    assert not producers["default"].traced
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    late = Spans(provider)
    wait_until(lambda: producers["default"].traced)
    services.produce(name, b"k", b"2").result(10)
    assert late.one("send")
    assert sorted("traceparent" in headers(message) for message in read(embedded, name, 2)) == [False, True]


class Broken(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("a processor of the project")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("a processor of the project")


def test_what_processors_of_the_project_raise_fails_no_message(
    monkeypatch: pytest.MonkeyPatch, workplace: Workplace
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(Broken())
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    tracing.forget()
    seen: list[Any] = []
    workplace.consume(lambda message: seen.append(message.value))
    services.produce(workplace.topic, None, 1).result(10)
    with workplace.worker() as worker:
        wait_until(lambda: seen == [1])
        wait_until(lambda: worker.tally.handled == 1)
    assert not DeadLetter.objects.exists()


def test_nothing_is_added_where_nothing_is_traced(
    spans: Spans, embedded: Cluster, settings: Settings, topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic()
    use(settings, embedded.bootstrap_servers, tracing={"enabled": False})
    services.produce(name, None, 1).result(10)
    use(settings, embedded.bootstrap_servers)
    monkeypatch.setattr(tracing, "_installed", False)
    services.produce(name, None, 2).result(10)
    assert not producers["default"].traced
    monkeypatch.undo()
    use(settings, embedded.bootstrap_servers)
    services.produce(name, None, 3).result(10)
    assert [message.headers() for message in read(embedded, name, 3)] == [None, None, None]
    assert not spans.exporter.get_finished_spans()


def test_classes_of_an_instrumentation_are_not_used_beside_ours() -> None:
    from django_kafka.clients import making

    class Bare:
        pass

    class Instrumented(Bare):
        pass

    Instrumented.__module__ = "opentelemetry.instrumentation.confluent_kafka"
    assert making._bare(Instrumented) is Bare  # type: ignore[type-var,comparison-overlap]
    assert making._bare(Bare) is Bare  # type: ignore[type-var,comparison-overlap]


def test_a_list_of_which_one_failed_is_an_error(spans: Spans, workplace: Workplace) -> None:
    def handle(messages: Messages) -> None:
        raise BatchFailed({messages[0]: ValueError("no departure time")})

    consume_lists(workplace, handle)
    workplace.send([1])
    workplace.send([2])
    with workplace.worker():
        wait_until(lambda: DeadLetter.objects.count() == 2)
    kinds = {attribute(one, "error.type") for one in spans.named("process")}
    # The first fetch may find one alone, which has the error that it is named with.
    assert kinds <= {"ValueError", "django_kafka.exceptions.BatchFailed"}
    assert None not in kinds


@pytest.mark.parametrize("retries", [0, 1])
def test_what_goes_on_as_it_was_gets_no_header_that_it_did_not_have(
    spans: Spans, workplace: Workplace, retries: int
) -> None:
    """A replay is recognised by its headers, and so is a message that comes back from a retry topic."""
    seen: list[Any] = []

    def handle(message: Message) -> None:
        seen.append(message.headers)
        raise ValueError("no departure time")

    retry = {"max_retries": retries, "mode": "topics", "backoff": "10ms", "jitter": 0}
    workplace.consume(handle, retry=retry)
    workplace.cluster.create_topic(f"{workplace.group}.{workplace.topic}.retry.1", 1)
    workplace.send([1], headers=[("kind", b"arrival")])
    with workplace.worker():
        wait_until(lambda: DeadLetter.objects.exists())
        replaying.request([DeadLetter.objects.get().pk], target="topic")
        executor = Executor()
        try:
            (replay,) = carry_out(executor, stop=threading.Event(), waiting=lambda _error, _pause: None)
        finally:
            executor.close()
        assert replay.state == "succeeded"
        wait_until(lambda: sum(letter.attempts for letter in DeadLetter.objects.all()) == 2 * (1 + retries))
    assert DeadLetter.objects.count() == 1
    first, again = set(seen[: 1 + retries]), set(seen[1 + retries :])
    assert first == {(("kind", b"arrival"),)}
    assert [[name for name, _value in one] for one in again] == [["kind", LETTER_HEADER]]
    assert len(spans.named("send ")) == 1 + 2 * retries, "they have spans nevertheless"


class Junk(TextMapPropagator):
    """What a propagator of the project may do at its worst."""

    def __init__(self, carrier: dict[Any, Any], *, broken: bool = False) -> None:
        self.carrier = carrier
        self.broken = broken

    @property
    def fields(self) -> set[str]:
        if self.broken:
            raise RuntimeError("a propagator of the project")
        return {"trace"}

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        raise RuntimeError("a propagator of the project")

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        carrier.update(self.carrier)


@pytest.mark.parametrize(
    "junk",
    [
        Junk({}, broken=True),
        Junk({"trace": 1, "other": None, 2: "x"}),
        Junk({"trace": "\ud800", "\ud800": "x", "a\0b": "x"}),
    ],
    ids=["raises", "other types", "no text"],
)
def test_what_propagators_of_the_project_do_fails_no_record(
    spans: Spans, embedded: Cluster, settings: Settings, topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch,
    junk: Junk,
) -> None:  # fmt: skip
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", junk)
    use(settings, embedded.bootstrap_servers)
    name = topic()
    services.produce(name, None, 1).result(10)
    (message,) = read(embedded, name, 1)
    assert message.headers() is None
    spans.one("send")


def test_a_provider_that_cannot_be_loaded_fails_no_record(
    embedded: Cluster, settings: Settings, topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "of_nobody")
    monkeypatch.setattr(tracing._Known, "broken", False)
    use(settings, embedded.bootstrap_servers)
    services.produce(topic(), None, 1).result(10)
    assert not tracing.on()


def test_an_environment_that_opentelemetry_refuses_keeps_nobody_from_importing_us() -> None:
    environment = {**os.environ, "OTEL_PROPAGATORS": "of_nobody"}
    subprocess.run([sys.executable, "-c", "import django_kafka.tracing"], env=environment, check=True, timeout=30)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_that_cannot_be_shown_is_an_error_nevertheless(spans: Spans, workplace: Workplace) -> None:
    def handle(message: Message) -> None:
        raise Unspeakable

    workplace.consume(handle)
    workplace.send([1])
    with workplace.worker():
        span = spans.one("process")
    assert span.status.status_code.name == "ERROR"
    assert str(attribute(span, "error.type")).endswith("Unspeakable")
