"""Rules for single values: each takes what settings hold and returns what it means, or says what is allowed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from string import Formatter
from typing import Any
from urllib.parse import urlsplit

from django_kafka.exceptions import ConfigurationError

from .pattern_syntax import BadPattern
from .patterns import is_pattern, pattern
from .secrets import Options, Secret, shown

Rule = Callable[[object], Any]

LONGEST = 10 * 365 * 86400.0
"""No duration is longer: ten years, in seconds."""
LARGEST = 2**31 - 1
"""No whole number that librdkafka takes is larger."""
NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
"""What producers, consumers and clusters may be called: names are labels of metrics and arguments of commands."""
LETTERS_PLACES = ("topic", "group", "consumer")
"""What the template of dead-letter topics may have in it."""
RECORD_PLACES = ("app", "model", "type", "tenant")
"""What the template of a producer's topics may have in it."""
"""What may stand between braces in the name of a dead-letter topic."""

_UNITS = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0,
}  # fmt: skip
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:ns|us|µs|ms|s|m|h|d|w)\s*)+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s|m|h|d|w)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMG]i?B|[kMG]|B?)")
_SIZES = {
    "": 1, "B": 1, "k": 1000, "kB": 1000, "KB": 1000, "M": 1000**2, "MB": 1000**2, "G": 1000**3, "GB": 1000**3,
    "kiB": 1024, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
}  # fmt: skip
PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_BROKER = re.compile(r"(?:[A-Za-z_]+://)?(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/,\[\]@]+)(?::(\d{1,5}))?")
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ACKS: dict[str | int, str] = {"all": "all", "-1": "all", -1: "all", "1": "1", 1: "1", "0": "0", 0: "0"}


class Wrong(ValueError):
    """A value that is not allowed: what is, and perhaps a way out."""

    def __init__(self, allowed: str, hint: str = "") -> None:
        super().__init__(allowed)
        self.allowed = allowed
        self.hint = hint


def parse_duration(value: object, path: str = "duration", *, least: float = 0.0, most: float = LONGEST) -> float:
    """Return the seconds that a duration means: "100ms", "1m30s", "30d", a number of seconds, or a timedelta."""
    try:
        return duration(least, most)(value)  # type: ignore[no-any-return]
    except Wrong as wrong:
        sentence = f"{path} is {shown(value, path)}; allowed: {wrong.allowed}."
        raise ConfigurationError(f"{sentence} {wrong.hint}".rstrip()) from None


def duration(least: float = 0.0, most: float = LONGEST) -> Rule:
    """Return the rule for a span of time, in seconds."""
    allowed = f'a duration from {_span(least)} to {_span(most)}, such as "100ms", "1m30s", 2.5 (seconds) or a timedelta'

    def rule(value: object) -> float:
        match value:
            case bool():
                raise Wrong(allowed)
            case timedelta():
                seconds = value.total_seconds()
            case int() | float():
                seconds = float(value) if abs(value) <= LONGEST else math.inf
            case str() if _DURATION.fullmatch(value.strip()):
                seconds = sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION_PART.findall(value))
            case str() if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
                raise Wrong(allowed, f'Say the unit: "{value.strip()}s" or "{value.strip()}ms".')
            case _:
                raise Wrong(allowed)
        # A written "5ms" must not miss a limit of 0.005 by the last bit of a float.
        if not least - 1e-12 <= seconds <= most + 1e-12:
            raise Wrong(allowed)
        return seconds

    return rule


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    if seconds >= 1:
        return f"{seconds:.10g}s"
    return f"{seconds * 1000:g}ms" if seconds else "0"


def size(least: int = 1, most: int = 2**62) -> Rule:
    """Return the rule for a number of bytes."""
    allowed = f'a number of bytes from {least} to {most}, such as 65536, "64KiB" or "1MB"'

    def rule(value: object) -> int:
        match value:
            case bool():
                raise Wrong(allowed)
            case int():
                count: float = value
            case str() if found := _SIZE.fullmatch(value.strip()):
                count = float(found[1]) * _SIZES[found[2]]
            case _:
                raise Wrong(allowed)
        if not least <= count <= most or count != int(count):
            raise Wrong(allowed)
        return int(count)

    return rule


def whole(least: int = 0, most: int = LARGEST) -> Rule:
    """Return the rule for a whole number."""

    def rule(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Wrong(f"a whole number from {least} to {most}")
        return value

    return rule


def number(least: float, most: float, *, above: bool = False) -> Rule:
    """Return the rule for a number; `above`: the least itself is not allowed."""

    def rule(value: object) -> float:
        good = not isinstance(value, bool) and isinstance(value, int | float) and least <= value <= most
        if not good or (above and value == least):
            raise Wrong(f"a number {'above' if above else 'from'} {least:g}, up to {most:g}")
        return float(value)  # type: ignore[arg-type]

    return rule


def flag(value: object) -> bool:
    """Read True or False, and nothing that only looks like it."""
    if not isinstance(value, bool):
        raise Wrong("True or False")
    return value


def text(value: object) -> str:
    """Read a text on one line; None is the empty one."""
    if value is None:
        return ""
    if not isinstance(value, str) or not value.isprintable():
        raise Wrong("a text on one line")
    return value


def short_text(value: object) -> str:
    """Read a text on one line of at most 200 characters; None is the empty one."""
    if len(found := text(value)) > 200:
        raise Wrong("a text on one line of at most 200 characters")
    return found


def label(value: object) -> str:
    """Read a text that may not be empty."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise Wrong("a name")
    return value


def secret(value: object) -> Secret:
    """Read a password, or where it is kept: {"env": "NAME"} or {"file": "path"}."""
    match value:
        case Secret():
            return value
        case None:
            return Secret()
        case str() if "\0" not in value:
            return Secret(value)
        case {"env": str(name), **more} if not more and _VARIABLE.fullmatch(name):
            return Secret(name, kept="env")
        case {"file": str() | os.PathLike() as path, **more} if not more and file_path(path):
            return Secret(file_path(path), kept="file")
        case _:
            raise Wrong('a text, {"env": "NAME"} or {"file": "path"}', "In YAML, put a text in quotes.")


def text_or_kept(value: object) -> str | Secret:
    """Read a text on one line, or where it is kept, as secrets are."""
    return secret(value) if isinstance(value, Mapping | Secret) else text(value)


def texts_by_name(value: object) -> Options:
    """Read a dict of texts."""
    if value is None:
        return Options()
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise Wrong("a dict of texts by name")
    return Options(value)


def file_path(value: object) -> str:
    """Read the path of a file."""
    return text(os.fspath(value) if isinstance(value, os.PathLike) else value)


def url(value: object) -> str:
    """Read an http address, or nothing."""
    address = text(value)
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = urlsplit("")
    if address and (parts.scheme not in ("http", "https") or not parts.netloc):
        raise Wrong('an address such as "https://registry:8081"')
    return address


def choice(*allowed: str, upper: bool = False) -> Rule:
    """Return the rule for one of some words; `upper`: however they are written."""

    def rule(value: object) -> str:
        word = value.upper() if upper and isinstance(value, str) else value
        if not isinstance(word, str) or word not in allowed:
            raise Wrong(one_of(allowed), did_you_mean(word, allowed))
        return word

    return rule


def choice_or_path(*allowed: str) -> Rule:
    """Return the rule for one of some words, or a dotted path."""

    def rule(value: object) -> str:
        if isinstance(value, str) and (value in allowed or PATH.fullmatch(value)):
            return value
        raise Wrong(f"{one_of(allowed)}, or a dotted path", did_you_mean(value, allowed))

    return rule


def dotted_path(value: object) -> str:
    """Read where something is imported from."""
    if not isinstance(value, str) or not PATH.fullmatch(value):
        raise Wrong('a dotted path such as "flights.handlers.flight_landed"')
    return value


def acks(value: object) -> str:
    """Read how many replicas acknowledge a record, written as a number or as a text."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value not in _ACKS:
        raise Wrong('"all", "1", "0"', did_you_mean(value, ("all",)))
    return _ACKS[value]


def optional(rule: Rule) -> Rule:
    """Return the rule that lets None be, and asks `rule` about the rest."""
    return lambda value: None if value is None else rule(value)


def listed(rule: Rule, what: str) -> Rule:
    """Return the rule for a list, each item of which `rule` reads."""

    def listing(value: object) -> tuple[Any, ...]:
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise Wrong(f"a list of {what}")
        return tuple(rule(item) for item in value)

    return listing


def brokers(value: object) -> tuple[str, ...]:
    """Read the addresses of brokers, as a list or with commas between; "embedded" stands alone."""
    allowed = 'a list of addresses such as ["kafka1:9092", "kafka2:9092"], or "embedded"'
    addresses = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(addresses, list | tuple) or not addresses:
        raise Wrong(allowed)
    for address in addresses:
        found = _BROKER.fullmatch(address) if isinstance(address, str) else None
        if found is None or (found[1] and not 0 < int(found[1]) < 65536):
            raise Wrong(allowed)
    if "embedded" in addresses and len(addresses) > 1:
        raise Wrong(allowed, 'The embedded cluster has one address: write only "embedded".')
    return tuple(addresses)


def topic(prefix: str) -> Rule:
    """Return the rule for the name of a topic, to which the prefix will be added."""

    def rule(value: object) -> str:
        name = f"{prefix}{value}"
        if isinstance(value, str) and value and _TOPIC.fullmatch(name) and name not in (".", "..") and len(name) < 250:
            return value
        length = f"1 to {249 - len(prefix)}" if prefix else "1 to 249"
        hint = "Only consumers take patterns: name the topic." if is_pattern(str(value)) else ""
        raise Wrong(f'{length} of the characters a-z A-Z 0-9 . _ -, but not "." or ".."', hint)

    return rule


def subscription(prefix: str) -> Rule:
    """Return the rule for what a consumer reads: the name of a topic, or a regular expression over names."""
    name = topic(prefix)

    def rule(value: object) -> str:
        if not isinstance(value, str) or not is_pattern(value):
            return name(value)  # type: ignore[no-any-return]
        try:
            pattern(value, prefix)
        except BadPattern as bad:
            allowed = 'a regular expression that everybody reads alike, such as "^flights\\.[a-z]+$"'
            raise Wrong(allowed, f"This is none: {bad}.") from None
        return value

    return rule


def topic_template(prefix: str, places: tuple[str, ...]) -> Rule:
    """Return the rule for the name of a topic in which other names have their places."""
    *some, last = (f"{{{place}}}" for place in places)
    allowed = f"the name of a topic, which may have {', '.join(some)} and {last} in it"

    def rule(value: object) -> str:
        if not isinstance(value, str):
            raise Wrong(allowed)
        try:
            parts = list(Formatter().parse(value))
        except ValueError:
            raise Wrong(allowed, "Each place is a word between { and }.") from None
        for _text, place, kind, conversion in parts:
            if place is not None and (place not in places or kind or conversion):
                raise Wrong(allowed, did_you_mean(place, places))
        topic(prefix)(value.format(**dict.fromkeys(places, "x")))
        return value

    return rule


def topic_prefix(value: object) -> str:
    """Read what is put before the names of topics."""
    prefix = text(value)
    if prefix and (not _TOPIC.fullmatch(prefix) or len(prefix) > 200):
        raise Wrong("at most 200 of the characters a-z A-Z 0-9 . _ -")
    return prefix


def one_of(words: tuple[str, ...]) -> str:
    """Return the words as a list to read."""
    return ", ".join(f'"{word}"' for word in words)


def did_you_mean(word: object, known: tuple[str, ...]) -> str:
    """Return the question that names the nearest known word, or nothing when none is near."""
    if not isinstance(word, str):
        return ""
    near = get_close_matches(word.lower(), [other.lower() for other in known], n=1, cutoff=0.5)
    return f'Did you mean "{next(other for other in known if other.lower() == near[0])}"?' if near else ""
