"""Spans of OpenTelemetry for what is sent and handled, with the context in headers; nothing without OpenTelemetry.

Names and attributes are those of its semantic conventions for messaging, version 1.44. What exporters and samplers of
the project raise stays here: it must neither fail a message nor leave a callback of the client.
"""

from __future__ import annotations

import re
import time
import traceback as tracebacks
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, Protocol

from django.core.signals import setting_changed

from . import __version__, conf, logs
from .deliveries import Delivery
from .exceptions import DeliveryFailed, Skip, shown
from .messages import Message, RawMessage, header_pairs

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
except Exception:  # noqa: BLE001  # the extra "otel" is not installed, or it refuses what the environment says
    _installed = False
else:
    _installed = True

MOST_LINKS = 128
"""Links of one span: what OpenTelemetry keeps unless it is told otherwise."""

log = logs.of(__name__)

_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
_LONGEST_KEY, _LONGEST_HEADER = 256, 8192
_LOOK_AGAIN = 0.1
"""Seconds."""
_NOTE = "trace: "
_TOLD = re.compile(r"^trace: 00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$", re.MULTILINE)

Pairs = Sequence[tuple[str, "bytes | None"]]


class Hiding(Protocol):
    """Takes out of texts what of payloads nobody may see there."""

    def text(self, text: str) -> str: ...


class _Masks:
    of: Callable[[conf.Consumer, Sequence[RawMessage], BaseException], Hiding | None] | None = None


def mask_with(of: Callable[[conf.Consumer, Sequence[RawMessage], BaseException], Hiding | None]) -> None:
    """Have what failed say nothing that `of` hides of the messages of a consumer; it raises nothing."""
    _Masks.of = of


class _Known:
    """What was found when it was looked last: whether anything is traced, and by what."""

    on = False
    until = 0.0
    """When it is looked again, by the monotonic clock."""
    provider: Any = None
    tracer: Any = None
    broken = False
    """Whether there is none to be had in this process."""


def on() -> bool:
    """Tell whether anything is traced: OpenTelemetry is installed, set up, and not switched off.

    A provider that is set later is noticed a moment after that: to look each time, which takes some microseconds, would
    make a tenth of what a short coroutine costs.
    """
    if not _installed or _Known.broken:
        return False
    now = time.monotonic()
    if now >= _Known.until:
        _Known.on, _Known.until = _look(), now + _LOOK_AGAIN
    return _Known.on


def _look() -> bool:
    try:
        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
            return False
        if provider is not _Known.provider:
            _Known.tracer = provider.get_tracer("django_kafka", __version__, _SCHEMA)
            _Known.provider = provider
    except Exception as error:  # noqa: BLE001  # a provider of the project, or one that the environment names
        _Known.broken = True
        log.warning("nothing is traced, because OpenTelemetry has no tracer: error=%s", type(error).__name__)
        return False
    return not isinstance(_Known.tracer, trace.NoOpTracer) and conf.kafka().tracing.enabled


def forget() -> None:
    """Look anew when it is asked next, because a provider or a setting is another one."""
    _Known.until = 0.0


def _forget_setting(*, setting: str, **_event: Any) -> None:
    if setting == "KAFKA":
        forget()


setting_changed.connect(_forget_setting, dispatch_uid="django_kafka.tracing")


class Sending:
    """The span of one record, from when it is produced until its delivery is settled."""

    __slots__ = ("_span", "headers")

    def __init__(
        self, producer: conf.Producer, topic: str, value: bytes | None, key: bytes | None, given: Pairs
    ) -> None:
        """`given` are the headers of the record; a context that is in them stays, and is linked to."""
        around = contexts.get_current()
        theirs = bool(given) and _has_context(given)
        created = [_context_of(given, around)] if theirs else []
        parent = created[0] if created and not _span_context(around).is_valid else around
        attributes = {
            **_about("send", topic, producer.client_id),
            **_of_record(key, value),
            "lynx_kafka.producer": producer.name,
        }
        self._span = _start(f"send {topic}", trace.SpanKind.PRODUCER, parent, attributes, _links(created))
        self.headers: list[tuple[str, bytes | None]] = []
        """What the record is to have besides those that were given."""
        if not theirs:
            self.headers = _injected(trace.set_span_in_context(self._span, around), given)

    def follow(self, delivery: Delivery) -> None:
        """End the span when the delivery is acknowledged, or has failed."""
        if self._span.is_recording():
            delivery.reports.when_done(delivery.place, partial(self._end, delivery))

    def _end(self, delivery: Delivery) -> None:
        with suppress(Exception):  # runs inside the client's callback, which nothing may leave
            if delivery.error is not None:
                self.failed(delivery.error)
                return
            self._span.set_attribute("messaging.destination.partition.id", str(delivery.partition))
            if delivery.offset is not None:
                self._span.set_attribute("messaging.kafka.offset", delivery.offset)
            self._span.end()

    def failed(self, error: BaseException) -> None:
        """End the span of a record that was not sent, or not delivered."""
        with suppress(Exception):
            _fail(self._span, error)
            self._span.end()


@contextmanager
def handling(consumer: conf.Consumer, message: Message, handler: str, replayed: str | None = None) -> Iterator[None]:
    """Have one attempt of a handler at a message in a span of its own, which is current meanwhile.

    It is a child of what surrounds it, else of the message's own context. `replayed` is the traceback of the dead
    letter that is replayed: that begins a trace of its own, linked to the message's context and to the failed attempt.
    """
    around = contexts.get_current()
    created = _context_of(message.headers, around)
    apart = replayed is not None or _span_context(around).is_valid
    links = _links([created])
    if replayed is not None:
        links += _links(_told_by(replayed))
    attributes = {
        **_about("process", message.topic, consumer.client_id),
        **_of_record(message.raw_key, message.raw_value),
        **_of_consumer(consumer, handler),
        "messaging.destination.partition.id": str(message.partition),
        "messaging.kafka.offset": message.offset,
        "lynx_kafka.attempt": message.attempt,
    }
    if replayed is not None:
        attributes["lynx_kafka.replay"] = True
    parent = trace.set_span_in_context(trace.get_current_span(around), created) if apart else created
    span = _start(f"process {message.topic}", trace.SpanKind.CONSUMER, parent, attributes, links)
    with _current(span, parent, partial(_hiding, consumer, [message._raw])):
        yield


@contextmanager
def handling_together(consumer: conf.Consumer, raws: Sequence[RawMessage], handler: str = "") -> Iterator[None]:
    """Have an attempt at several messages of one partition in one span, with a link to the context of each.

    Of many only the first `MOST_LINKS` that have a context are linked to.
    """
    around, topic = contexts.get_current(), raws[0].topic() or ""
    attributes = {
        **_about("process", topic, consumer.client_id),
        **_of_consumer(consumer, handler),
        "messaging.destination.partition.id": str(raws[0].partition()),
        "messaging.batch.message_count": len(raws),
        "lynx_kafka.first_offset": raws[0].offset() or 0,
        "lynx_kafka.last_offset": raws[-1].offset() or 0,
    }
    links = _links(_context_of(header_pairs(raw)) for raw in raws)
    span = _start(f"process {topic}", trace.SpanKind.CONSUMER, around, attributes, links)
    with _current(span, around, partial(_hiding, consumer, raws)):
        yield


def failed(error: BaseException | None, consumer: conf.Consumer, raws: Sequence[RawMessage]) -> None:
    """Note in the current span what it failed with, at one of these messages, which nobody raises; None: nothing."""
    if error is not None:
        with suppress(Exception):
            _fail(trace.get_current_span(), error, partial(_hiding, consumer, raws))


def _hiding(consumer: conf.Consumer, raws: Sequence[RawMessage], error: BaseException) -> Hiding | None:
    return None if _Masks.of is None else _Masks.of(consumer, raws, error)


@contextmanager
def _current(span: Any, context: Any, hiding: Callable[[BaseException], Hiding | None]) -> Iterator[None]:
    token = contexts.attach(trace.set_span_in_context(span, context))
    try:
        yield
    except BaseException as error:
        with suppress(Exception):
            _fail(span, error, hiding)
        raise
    finally:
        contexts.detach(token)
        with suppress(Exception):
            span.end()


def _start(name: str, kind: Any, context: Any, attributes: dict[str, Any], links: list[Any]) -> Any:
    try:
        return _Known.tracer.start_span(name, context, kind, attributes, links)
    except Exception:  # noqa: BLE001  # a sampler or processor of the project
        return trace.INVALID_SPAN


def _fail(
    span: Any, error: BaseException, hiding: Callable[[BaseException], Hiding | None] = lambda _error: None
) -> None:
    if isinstance(error, Skip):
        span.set_attribute("lynx_kafka.skipped", True)
        return
    kind = type(error)
    name = error.code if isinstance(error, DeliveryFailed) else f"{kind.__module__}.{kind.__qualname__}"
    hides = hiding(error) if span.is_recording() else None
    said = shown(error) if hides is None else hides.text(shown(error))
    span.set_attribute("error.type", name.removeprefix("builtins."))
    span.set_status(trace.Status(trace.StatusCode.ERROR, f"{kind.__name__}: {said}"))
    _tell(span, error)
    # Last: it fails with an error that cannot be shown.
    if hides is None:
        span.record_exception(error)
    else:
        span.add_event("exception", {
            "exception.type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
            "exception.message": said,
            "exception.stacktrace": hides.text("".join(tracebacks.format_exception(error))),
        })  # fmt: skip


def _tell(span: Any, error: BaseException) -> None:
    """Have the traceback of a failed attempt, which dead letters keep, say in which span it failed."""
    here = span.get_span_context()
    if here.is_valid and not isinstance(error, DeliveryFailed):
        told = f"{_NOTE}00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}"
        # An error that is raised again and again tells of the last time.
        error.__notes__ = [*(note for note in getattr(error, "__notes__", ()) if not is_note(note)), told]


def is_note(text: str) -> bool:
    """Tell whether a note of an error is such a line."""
    return text.startswith(_NOTE)


def _told_by(traceback: str) -> list[Any]:
    """Return a context with the span that a traceback says it failed in."""
    # Not by the propagator of the project, which may know other headers only.
    found = [[int(part, 16) for part in told] for told in _TOLD.findall(traceback)[-1:]]
    spans = [trace.SpanContext(one, span, True, trace.TraceFlags(flags)) for one, span, flags in found]
    return [trace.set_span_in_context(trace.NonRecordingSpan(span), contexts.Context()) for span in spans]


def _about(operation: str, topic: str, client_id: str) -> dict[str, Any]:
    found = {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }
    return {**found, "messaging.client.id": client_id} if client_id else found


def _of_record(key: bytes | None, value: bytes | None) -> dict[str, Any]:
    found: dict[str, Any] = {} if value is not None else {"messaging.kafka.message.tombstone": True}
    if key is not None and len(key) <= _LONGEST_KEY:
        with suppress(UnicodeDecodeError):
            text = key.decode()
            if text.isprintable() and not _is_masked(text):
                found["messaging.kafka.message.key"] = text
    return found


def _is_masked(key: str) -> bool:
    """Tell whether people may not see a key as it is."""
    mask = conf.kafka().dead_letters.mask
    has_fields = bool(mask.fields) and key.lstrip()[:1] in ("{", "[")
    return mask.key or has_fields or any(pattern.search(key) for pattern in mask.patterns)


def _of_consumer(consumer: conf.Consumer, handler: str) -> dict[str, Any]:
    found = {
        "messaging.consumer.group.name": conf.kafka().prefixed(consumer.group_id),
        "lynx_kafka.consumer": consumer.name,
    }
    return {**found, "code.function.name": handler} if handler else found


def _context_of(pairs: Pairs, around: Any = None) -> Any:
    """Return a context with the span and the baggage that headers tell of, and all else of what is `around` it."""
    base = trace.set_span_in_context(trace.INVALID_SPAN, around)
    found = {}
    for name, value in pairs:
        # The last one of a name, as for all headers of Kafka.
        if value is not None and len(value) <= _LONGEST_HEADER:
            with suppress(UnicodeDecodeError):
                found[name] = value.decode()
    try:
        return propagate.extract(found, base)
    except Exception:  # noqa: BLE001  # a propagator of the project, given what strangers write
        return base


def _span_context(context: Any) -> Any:
    return trace.get_current_span(context).get_span_context()


def _links(created: Iterable[Any]) -> list[Any]:
    found = (_span_context(one) for one in created)
    return [trace.Link(one) for one in islice((one for one in found if one.is_valid), MOST_LINKS)]


def _has_context(given: Pairs) -> bool:
    """Tell whether headers have a context of whoever made them. Baggage alone is none."""
    with suppress(Exception):  # a propagator of the project
        fields = {name.lower() for name in propagate.get_global_textmap().fields} - {"baggage"}
        return any(name.lower() in fields for name, _value in given)
    return False


def _injected(context: Any, given: Pairs) -> list[tuple[str, bytes | None]]:
    carrier: dict[str, str] = {}
    there = {name.lower() for name, _value in given} if given else ()
    more: list[tuple[str, bytes | None]] = []
    with suppress(Exception):  # a propagator of the project
        propagate.inject(carrier, context)
    for name, value in carrier.items():
        with suppress(Exception):  # what is no text; the client would crash the process on such a name
            if name.encode() and "\0" not in name and name.lower() not in there:
                more.append((name, value.encode()))
    return more
