"""What the headers of dead-letter topics say, in the formats of several systems; nothing fails, whatever they hold.

Where a header is repeated, the first one tells where the record came from, because each further failure adds a later
stop of its way; and the last one tells what went wrong, because that is the failure that brought it here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ..messages import LETTER_HEADER

Pairs = Iterable[tuple[str, "bytes | None"]]

OURS: Final = f"{LETTER_HEADER}-"
"""What the names of the headers begin with that our own dead-letter topics have."""

_FIRST, _LAST = 0, -1
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_DIGITS = re.compile(r"-?[0-9]{1,20}")
_RAISED = re.compile(r"([A-Za-z_][\w.]{0,298})(?::|$)")
_ERROR_CHARACTERS, _TRACEBACK_CHARACTERS = 10_000, 100_000
_LARGEST_INT, _LARGEST_LONG = 2**31 - 1, 2**63 - 1
_MOST_ATTEMPTS = 1_000_000
"""More is taken for nonsense: ours are counted on top of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What is known of a record in a dead-letter topic; what is not, is empty or None."""

    format: str
    """Whose headers they are; "plain" when nobody's."""
    topic: str = ""
    """The topic that it failed in, as Kafka knows it."""
    partition: int | None = None
    """Its partition there."""
    offset: int | None = None
    """Its offset there."""
    timestamp_ms: int | None = None
    """Its timestamp there."""
    group: str = ""
    """The consumer group that gave it up."""
    error_type: str = ""
    """The name of the exception's type."""
    error_message: str = ""
    """What it says."""
    traceback: str = ""
    """Where it came from."""
    category: str = "handler"
    """What it is counted by."""
    handler: str = ""
    """What failed on it."""
    attempts: int = 1
    """How many times."""
    unread: tuple[str, ...] = ()
    """A sentence for each header that should be there and is not, or cannot be read."""


class _Headers:
    """The headers of one record by name, and what could not be read of them."""

    def __init__(self, pairs: Pairs) -> None:
        self._values: dict[str, list[bytes | None]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)
        self.unread: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def _one(self, name: str, which: int, *, needed: bool) -> bytes | None:
        found = self._values.get(name)
        if found is None:
            if needed:
                self.unread.append(f"{name} is missing.")
            return None
        if (value := found[which]) is None and needed:
            self.unread.append(f"{name} has no value.")
        return value

    def text(self, name: str, which: int = _LAST, *, longest: int = 300, needed: bool = False) -> str:
        """Return a header as text that any database takes."""
        value = self._one(name, which, needed=needed)
        if value is None:
            return ""
        try:
            text = value.decode()
        except UnicodeDecodeError:
            self.unread.append(f"{name} is not UTF-8.")
            text = value.decode(errors="backslashreplace")
        return text.replace("\0", "\\x00")[:longest]

    def topic(self, name: str) -> str:
        """Return the name of a topic that a record may be sent to."""
        topic = self.text(name, _FIRST, needed=True, longest=400)
        if not topic or (_TOPIC.fullmatch(topic) and topic not in (".", "..") and not topic.startswith("__")):
            return topic
        self.unread.append(f"{name} names no topic that records may be sent to.")
        return ""

    def digits(self, name: str, which: int, most: int, *, least: int = 0, needed: bool = False) -> int | None:
        """Return a number that is written in digits."""
        value = self._one(name, which, needed=needed)
        if value is None:
            return None
        text = value.decode("latin-1")
        return self._bounded(name, int(text) if _DIGITS.fullmatch(text) else None, least, most)

    def binary(
        self, name: str, which: int, size: int, most: int = _LARGEST_LONG, *, least: int = 0, needed: bool = False
    ) -> int | None:
        """Return a number in so many bytes, the highest first, as Java writes them."""
        value = self._one(name, which, needed=needed)
        if value is None:
            return None
        if len(value) != size:
            self.unread.append(f"{name} has {len(value)} bytes instead of {size}.")
            return None
        return self._bounded(name, int.from_bytes(value, "big", signed=True), least, most)

    def _bounded(self, name: str, number: int | None, least: int, most: int) -> int | None:
        if number is not None and least <= number <= most:
            return number
        self.unread.append(f"{name} is no number from {least} to {most}.")
        return None


def _after_1970(timestamp: int | None) -> int | None:
    # -1 is how Kafka itself says that there is none.
    return None if timestamp is None or timestamp < 0 else timestamp


def _spring(headers: _Headers) -> Origin:
    original, failure = "kafka_dlt-original-", "kafka_dlt-exception-"
    if f"{failure}fqcn" not in headers and "kafka_dlt-key-exception-fqcn" in headers:
        failure = "kafka_dlt-key-exception-"
    kind, cause = headers.text(f"{failure}fqcn"), headers.text(f"{failure}cause-fqcn")
    # What a listener raised comes in an exception of the framework's, the same for all.
    wrapped = kind.rpartition(".")[2] in ("ListenerExecutionFailedException", "TimestampedException")
    unreadable = "DeserializationException" in kind or failure.startswith("kafka_dlt-key")
    attempts = headers.binary("retry_topic-attempts", _LAST, 4, _MOST_ATTEMPTS, least=1)
    return Origin(
        format="spring",
        topic=headers.topic(f"{original}topic"),
        partition=headers.binary(f"{original}partition", _FIRST, 4, needed=True),
        offset=headers.binary(f"{original}offset", _FIRST, 8, needed=True),
        timestamp_ms=_after_1970(headers.binary(f"{original}timestamp", _FIRST, 8, least=-1)),
        group=headers.text(f"{original}consumer-group", _FIRST, longest=255),
        error_type=cause if wrapped and cause else kind,
        error_message=headers.text(f"{failure}message", longest=_ERROR_CHARACTERS),
        traceback=headers.text(f"{failure}stacktrace", longest=_TRACEBACK_CHARACTERS),
        category="serialization" if unreadable else "handler",
        attempts=attempts or 1,
        unread=tuple(headers.unread),
    )


def _connect(headers: _Headers) -> Origin:
    error = "__connect.errors."
    stage, acted = headers.text(f"{error}stage"), headers.text(f"{error}class.name")
    who = headers.text(f"{error}connector.name"), headers.text(f"{error}task.id")
    return Origin(
        format="connect",
        topic=headers.topic(f"{error}topic"),
        partition=headers.digits(f"{error}partition", _FIRST, _LARGEST_INT, needed=True),
        offset=headers.digits(f"{error}offset", _FIRST, _LARGEST_LONG, needed=True),
        # A sink has a group by its name, unless its settings say otherwise.
        group=f"connect-{who[0]}"[:255] if who[0] else "",
        error_type=headers.text(f"{error}exception.class.name"),
        error_message=headers.text(f"{error}exception.message", longest=_ERROR_CHARACTERS),
        traceback=headers.text(f"{error}exception.stacktrace", longest=_TRACEBACK_CHARACTERS),
        category="serialization" if stage.endswith("_CONVERTER") else "handler",
        handler=", ".join(part for part in (*who, stage, acted) if part)[:500],
        unread=tuple(headers.unread),
    )


def _regiohelden(headers: _Headers) -> Origin:
    error, place = "DEAD_LETTER_", "DEAD_LETTER_MESSAGE_"
    placed = f"{place}TOPIC" in headers  # earlier versions do not tell
    traceback = headers.text(f"{error}DETAIL", longest=_TRACEBACK_CHARACTERS)
    raised = _RAISED.match(traceback.rstrip().rpartition("\n")[2])
    summary = f"{error}SUMMARY" if f"{error}SUMMARY" in headers else f"{error}MESSAGE"
    return Origin(
        format="regiohelden",
        topic=headers.topic(f"{place}TOPIC") if placed else "",
        partition=headers.digits(f"{place}PARTITION", _FIRST, _LARGEST_INT, needed=placed),
        offset=headers.digits(f"{place}OFFSET", _FIRST, _LARGEST_LONG, needed=placed),
        error_type=raised[1] if raised else "",
        error_message=headers.text(summary, longest=_ERROR_CHARACTERS),
        traceback=traceback,
        unread=tuple(headers.unread),
    )


def _karafka(headers: _Headers) -> Origin:
    # The name before version 2.5.
    at = "source_" if "source_topic" in headers else "original_"
    return Origin(
        format="karafka",
        topic=headers.topic(f"{at}topic"),
        partition=headers.digits(f"{at}partition", _FIRST, _LARGEST_INT, needed=True),
        offset=headers.digits(f"{at}offset", _FIRST, _LARGEST_LONG, needed=True),
        group=headers.text(f"{at}consumer_group", _FIRST, longest=255),
        attempts=headers.digits(f"{at}attempts", _LAST, _MOST_ATTEMPTS, least=1) or 1,
        unread=tuple(headers.unread),
    )


def _ours(headers: _Headers) -> Origin:
    return Origin(
        format="lynx",
        topic=headers.topic(f"{OURS}topic"),
        partition=headers.digits(f"{OURS}partition", _FIRST, _LARGEST_INT, needed=True),
        offset=headers.digits(f"{OURS}offset", _FIRST, _LARGEST_LONG, needed=True),
        timestamp_ms=headers.digits(f"{OURS}timestamp", _FIRST, _LARGEST_LONG),
        group=headers.text(f"{OURS}group", _FIRST, longest=255),
        error_type=headers.text(f"{OURS}error-type"),
        error_message=headers.text(f"{OURS}error-message", longest=_ERROR_CHARACTERS),
        category=headers.text(f"{OURS}category", longest=30) or "handler",
        handler=headers.text(f"{OURS}handler", longest=500),
        attempts=headers.digits(f"{OURS}attempts", _LAST, _MOST_ATTEMPTS, least=1) or 1,
        unread=tuple(headers.unread),
    )


def _plain(headers: _Headers) -> Origin:
    return Origin(format="plain")


_READERS: Mapping[str, Callable[[_Headers], Origin]] = {
    "lynx": _ours,
    "spring": _spring,
    "connect": _connect,
    "regiohelden": _regiohelden,
    "karafka": _karafka,
    "plain": _plain,
}
_ADDED: Mapping[str, re.Pattern[str]] = {
    "lynx": re.compile(rf"{re.escape(OURS)}.*", re.DOTALL),
    # A record that comes back must begin with its attempts anew.
    "spring": re.compile(r"(kafka_dlt-|retry_topic-|springDeserializerException).*|kafka_deliveryAttempt", re.DOTALL),
    "connect": re.compile(r"__connect\.errors\..*", re.DOTALL),
    "regiohelden": re.compile(
        r"DEAD_LETTER_(SUMMARY|DETAIL|MESSAGE(_TOPIC|_PARTITION|_OFFSET)?)|RETRY_(MESSAGE|TIMESTAMP)"
    ),
    "karafka": re.compile(r"(source|original)_(topic|partition|offset|consumer_group|attempts|key)"),
}
"""The names of the headers that a format adds to those of the record."""
_MARKS: Mapping[str, re.Pattern[str]] = {
    "lynx": _ADDED["lynx"],
    "spring": re.compile(r"kafka_dlt-.*", re.DOTALL),
    "connect": _ADDED["connect"],
    "regiohelden": re.compile(r"DEAD_LETTER_(SUMMARY|DETAIL|MESSAGE)"),
    # The others of its names are words that anybody may use.
    "karafka": re.compile(r"(source|original)_consumer_group"),
}
"""The headers that show a format; the first that fits."""


def read(pairs: Pairs, format: str = "auto") -> Origin:
    """Return what the headers of a record say in a format; "auto" looks whose they are."""
    known = list(pairs)
    return _READERS[_found(known) if format == "auto" else format](_Headers(known))


def _found(pairs: list[tuple[str, bytes | None]]) -> str:
    for format, mark in _MARKS.items():
        if any(mark.fullmatch(name) for name, _value in pairs):
            return format
    return "plain"


def without(pairs: Pairs, format: str) -> list[tuple[str, bytes | None]]:
    """Return the headers that the record had before a format added its own."""
    added = _ADDED.get(format)
    return [pair for pair in pairs if pair[0] != LETTER_HEADER and not (added is not None and added.fullmatch(pair[0]))]
