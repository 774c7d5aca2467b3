"""Dry runs: a handler runs on a stored message in a transaction that is always rolled back, and what it did is told.

What it produces is captured and not sent, its commit hooks do not run, and neither its letter nor the claims and holds
of its consumer change. What it does beside its transaction and its records is not noticed and takes place: so a handler
has to be declared fit for this, by `@kafka_handler(dry_run=True)` or `"dry_run": True` in settings.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

from django.utils.translation import gettext as _

from .. import conf, correlation, handlers, retries, serializers, subscriptions
from ..exceptions import KafkaError, ReplayRefused
from ..messages import Message
from ..models import DeadLetter, Replay
from . import importing
from .captured import Captured, capturing
from .failures import Failure, told
from .guarding import rolled_back
from .outcomes import Carried
from .stored import StoredMessage

MOST_RECORDS = 100
"""Records of a report; of the others it has the number."""
_MOST_BYTES = 1_048_576
"""Of the keys, values and headers in a report together."""
_LONGEST_TEXT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Would:
    """A record that would have been sent."""

    producer: str
    """The name of its producer."""
    topic: str
    """Its topic as Kafka knows it."""
    key: bytes | None
    """Its key."""
    value: bytes | None
    """Its value; None is a tombstone."""
    headers: tuple[tuple[str, bytes | None], ...]
    """Its headers."""
    partition: int | None
    """The partition that was asked for."""
    timestamp_ms: int | None
    """The timestamp that was asked for."""
    size: int
    """Bytes of key, value and headers."""
    left_out: bool = False
    """Whether these are not kept, because together they were too many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a dry run saw."""

    outcome: str
    """"succeeded", "skipped" or "failed"."""
    handler: str
    """The dotted path of what ran; "" when none was found."""
    seconds: float = 0.0
    """How long it took, without the rollback."""
    queries: int = 0
    """Statements that it had executed."""
    hooks: int = 0
    """Commit hooks that would have run, without those of records."""
    records: tuple[Would, ...] = ()
    """What would have been sent, in its order."""
    more_records: int = 0
    """How many more there were."""
    reason: str = ""
    """Why it asked for its message to be skipped."""
    error_type: str = ""
    """The type of its error."""
    error_message: str = ""
    """What that says."""
    traceback: str = ""
    """Where it arose."""
    category: str = ""
    """What it would be counted by."""

    def to_bytes(self) -> bytes:
        """Return it as it is stored: as bytes, because text columns of PostgreSQL take no NUL."""
        return json.dumps(asdict(self), default=_base64).encode()

    @classmethod
    def from_bytes(cls, stored: bytes | memoryview) -> Report:
        """Return a stored one, also of a version that tells more."""
        read = json.loads(bytes(stored))
        return cls(**{**_known(cls, read), "records": tuple(_would(one) for one in read["records"])})


def _base64(data: Any) -> str:
    return base64.b64encode(data).decode()


def _would(read: dict[str, Any]) -> Would:
    def data(text: str | None) -> bytes | None:
        return None if text is None else base64.b64decode(text)

    headers = tuple((name, data(text)) for name, text in read["headers"])
    return Would(**{**_known(Would, read), "key": data(read["key"]), "value": data(read["value"]), "headers": headers})


def _known(kind: type[Report | Would], read: dict[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in read.items() if name in names}


def topics(there: Callable[[], Iterable[str]] = tuple) -> list[tuple[str, str]]:
    """Return consumer and topic, as Kafka knows it, wherever a handler may be run dry.

    `there` tells the topics of letters, of which some may fit a pattern.
    """
    settings = conf.kafka()
    found = []
    for name, consumer in settings.consumers.items():
        if consumer.transaction != "none":
            fit = {one.topic for one in handlers.registrations(name) if one.dry_run}
            found += [(name, settings.prefixed(topic)) for topic in sorted(fit) if not conf.is_pattern(topic)]
            if any(map(conf.is_pattern, fit)):
                found += [(name, one) for one in there() if not fit.isdisjoint(subscriptions.ways(name, one))]
    return found


def refusal(letter: DeadLetter) -> str:
    """Return why the handler of a letter cannot be run dry, as a translated sentence; "": it can."""
    try:
        importing.refuse(letter, Replay.Target.DRY_RUN)
        consumer = conf.consumer(letter.consumer)
        found = handlers.for_topic(consumer.name, letter.topic)
        match = partial(found.match, Message(StoredMessage(letter), found.decoder))
        return _unfit(consumer, serializers.patiently(found.decoder, match))
    except KafkaError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # a condition of the project's own may raise anything
        return type(error).__name__


def _unfit(consumer: conf.Consumer, handler: handlers.Handler) -> str:
    if handler.coroutine is not None:
        return _("Its handler is asynchronous: it has no transaction that could be rolled back.")
    if consumer.transaction == "none":
        return _("Its consumer has transaction “none”: there is nothing that could be rolled back.")
    if not handler.dry_run:
        sentence = _(
            "Its handler %(handler)s is not declared fit for dry runs: add dry_run=True to its registration, or "
            "“dry_run” to its topic in the settings, if all that it does is in its transaction or is produced."
        )
        return sentence % {"handler": handler.path}
    return ""


def run(carried: Carried) -> Report:
    """Run the handler on the message of a replay, undo it, and return what was seen.

    Raises `ReplayRefused` when it cannot be run without effects, and what is not the message's fault.
    """
    letter = carried.replay.letter
    carried.path = ""
    try:
        consumer = conf.consumer(letter.consumer)
        found = handlers.for_topic(consumer.name, letter.topic)
        attempt = letter.attempts + 1
        message = carried.message = Message(StoredMessage.of(carried.replay), found.decoder, attempt)
        handler = found.match(message)
    except KafkaError as error:
        return _with_error(Report(outcome="failed", handler=carried.path), error, carried)
    carried.path = handler.path
    if reason := _unfit(consumer, handler):
        raise ReplayRefused(reason)
    return _run(carried, consumer, handler, message)


def _run(carried: Carried, consumer: conf.Consumer, handler: handlers.Handler, message: Message) -> Report:
    began = time.monotonic()
    guarded = None
    error: Exception | None = None
    with capturing() as capture:
        try:
            with correlation.about(message), rolled_back(consumer.database) as guarded:
                try:
                    handler.call(message)
                finally:
                    took = time.monotonic() - began
        except ReplayRefused:
            raise
        except Exception as raised:
            if retries.stops_worker(raised):
                raise
            error = raised
        records, hooks = capture.left(guarded.hooks if guarded else [])
    report = Report(
        outcome="succeeded",
        handler=handler.path,
        seconds=round(took, 6) if guarded else 0.0,
        queries=guarded.queries if guarded else 0,
        hooks=hooks,
        records=_kept(records),
        more_records=max(0, len(records) - MOST_RECORDS),
    )
    return report if error is None else _with_error(report, error, carried)


def _with_error(report: Report, error: Exception, carried: Carried) -> Report:
    """Return the report of a handler that raised; raise that when it is not the message's fault."""
    match carried.verdict(error):
        case retries.Skip(reason):
            return replace(report, outcome="skipped", reason=told(reason, carried.message)[:_LONGEST_TEXT])
        case retries.DeadLetter(category):
            blamed = retries.blamed(error)
            failure = Failure.of(blamed, category=category, handler=report.handler, message=carried.message)
            return replace(
                report,
                outcome="failed",
                error_type=failure.error_type,
                error_message=failure.error_message[:_LONGEST_TEXT],
                traceback=failure.traceback[-_LONGEST_TEXT:],
                category=category,
            )
    raise error


@dataclass(slots=True)
class _Room:
    """How many bytes a report may have still."""

    left: int = field(default=_MOST_BYTES)

    def take(self, size: int) -> bool:
        fits = size <= self.left
        self.left -= size if fits else 0
        return fits


def _kept(records: Sequence[Captured]) -> tuple[Would, ...]:
    room = _Room()
    return tuple(_one(record, room) for record in records[:MOST_RECORDS])


def _one(record: Captured, room: _Room) -> Would:
    size = len(record.key or b"") + len(record.value or b"") + _size_of(record.headers)
    fits = room.take(size)
    return Would(
        producer=record.producer,
        topic=record.topic,
        key=record.key if fits else None,
        value=record.value if fits else None,
        headers=record.headers if fits else (),
        partition=record.partition,
        timestamp_ms=record.timestamp_ms,
        size=size,
        left_out=not fits,
    )


def _size_of(headers: Iterable[tuple[str, bytes | None]]) -> int:
    return sum(len(name) + len(value or b"") for name, value in headers)


def finish(carried: Carried, report: Report) -> None:
    """Store a report and end its replay; the letter stays as it is."""
    failed = report.outcome == "failed"
    result = report.reason and f"Skipped: {report.reason}"
    if failed:
        result = f"{report.error_type}: {report.error_message}"
    state = Replay.State.FAILED if failed else Replay.State.SUCCEEDED
    carried.claims.finish(carried.replay, state, result, report=report.to_bytes())
