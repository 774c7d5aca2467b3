"""What people see of payloads without the permission to view them: fields and texts that settings name are masked.

Whatever cannot be looked into, or would take too long to, is masked as a whole.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

from .. import conf
from ..conf.masks import ITEM, Mask, after

MASK = "***"
PATIENCE = 0.5
"""Seconds that the expressions may take over one value or text. What they did not come to is masked."""
_WINDOW = 512
_OVERLAP = 256
"""Characters that are looked at at once, and how far beyond that a match may reach: some expressions take the square or
the cube of the length of a text."""
_LONGEST_MATCH = 4096
"""Characters of a match that are looked at: all that comes after so many is masked with them."""
_SHORTEST = 2
"""Characters of a masked value that is looked for in errors: shorter ones are in every text."""
_LONGEST_VALUE = 10_000
"""Errors tell the beginning of a longer one, so that they are masked as a whole."""
_MOST_VALUES = 1000
"""Of one letter. Where there are more, its errors are masked as a whole."""
_WHOLE_WORD = 8
"""Values shorter than this are masked only where they are words of their own."""

_LEFT_OUT = re.compile(r"\.{3,}|…")
_SHORTEST_PART = 3
_LONGEST_PART = 200
"""Characters of a value that is told in part."""
_MOST_CUTS = 100
"""Places where something is left out. What comes after so many is masked."""
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?", re.ASCII)
_LONGEST_MOMENT = 40

_Path = tuple[str, ...]
_Pairs = list[tuple[str, "bytes | None"]]


@dataclass(frozen=True, slots=True)
class Masking:
    """What settings mask, and what was seen in the masked fields of one letter."""

    mask: Mask = field(default_factory=Mask)
    """As in settings."""
    values: tuple[str, ...] = ()
    """What is masked in texts besides, the longest first."""
    opaque: bool = False
    """Whether errors are masked as a whole, since nobody knows what of a payload they tell."""

    @property
    def active(self) -> bool:
        """Whether anything is masked."""
        return bool(self.mask)

    def text(self, text: str) -> str:
        """Return an error, a traceback or any other text without what is masked."""
        return MASK if self.opaque and text else self._text(text, _deadline())

    def value(self, decoded: Any) -> Any:
        """Return a decoded value, or a key that has fields, without what is masked: a copy, as JSON has it."""
        if not self.active:
            return decoded
        if self.mask.fields and isinstance(decoded, str | bytes):
            try:
                decoded = json.loads(decoded)
            except (ValueError, RecursionError):
                # It may have such fields, and nobody knows where.
                return MASK
        try:
            return self._value(decoded, self.mask.fields, _deadline())
        except RecursionError:
            return MASK

    def key(self, decoded: Any) -> Any:
        """Return a decoded key without what is masked."""
        if decoded is None or not self.active:
            return decoded
        if self.mask.key:
            return MASK
        # Most keys are a text and nothing more: they have no fields, unless that text is JSON.
        fields = _opened_text(decoded) if self.mask.fields else decoded
        try:
            return self.text(fields) if isinstance(fields, str) else self._value(fields, self.mask.fields, _deadline())
        except RecursionError:
            return MASK

    def headers(self, pairs: Iterable[tuple[str, bytes | None]]) -> _Pairs:
        """Return headers without what is masked. A path that is a name by itself is that of a header, too."""
        if not self.active:
            return list(pairs)
        deadline = _deadline()
        return [(self._text(name, deadline), self._header(name, value, deadline)) for name, value in pairs]

    def _header(self, name: str, value: bytes | None, deadline: float) -> bytes | None:
        if value is None:
            return None
        return MASK.encode() if self._hides_header(name) else self._bytes(value, deadline)

    def knowing(self, *decoded: Any, headers: Iterable[tuple[str, bytes | None]] = ()) -> Masking:
        """Return a masking that also masks, in texts, what masked fields of these values and headers hold."""
        if not self.active:
            return self
        found = {*self.values}
        for each in decoded:
            try:
                found.update(_texts(_seen(_opened_text(each), self.mask.fields)))
            except RecursionError:
                return replace(self, opaque=True)
        for name, value in headers:
            if value and self._hides_header(name):
                found.update(_texts([value.decode("utf-8", "backslashreplace")]))
        return self._with(found)

    def knowing_key(self, decoded: Any) -> Masking:
        """Return a masking that also masks a key, where whole keys are masked, or else what its masked fields hold."""
        return self.knowing(decoded) if not self.mask.key or decoded is None else self.hiding(decoded)

    def hiding(self, decoded: Any) -> Masking:
        """Return a masking that also masks, in texts, all that this value holds."""
        try:
            return self._with({*self.values, *_texts(leaves(decoded))})
        except RecursionError:
            return replace(self, opaque=True)

    def _with(self, found: set[str]) -> Masking:
        fit = {one for one in found if len(one) >= _SHORTEST and not one.isspace()}
        opaque = self.opaque or len(fit) > _MOST_VALUES or any(len(one) > _LONGEST_VALUE for one in fit)
        return Masking(self.mask, tuple(sorted(fit, key=lambda one: (-len(one), one))), opaque)

    def _text(self, text: str, deadline: float) -> str:
        if not (self.mask.patterns or self.values) or not text:
            return text
        return _covered(text, self._spans(text, deadline))

    def _bytes(self, data: bytes, deadline: float) -> bytes:
        text = data.decode("utf-8", "backslashreplace")
        masked = self._text(text, deadline)
        return data if masked == text else masked.encode()

    def _value(self, value: Any, paths: Sequence[_Path], deadline: float) -> Any:
        match value:
            case None | bool():
                return value
            case str():
                return self._text(value, deadline)
            case bytes() | bytearray() | memoryview():
                return self._bytes(bytes(value), deadline)
            case int() | float() | Decimal() | date() | time_of_day() | timedelta() | UUID():
                return value if (text := str(value)) == self._text(text, deadline) else MASK
            case Mapping():
                shown: dict[str, Any] = {}
                for name, inner in value.items():
                    masked = self._text(str(name), deadline)
                    # Names that are masked may be many.
                    free = masked if masked not in shown else f"{masked} {len(shown)}"
                    shown[free] = self._below(inner, paths, str(name), deadline)
                return shown
            case list() | tuple() | set() | frozenset():
                return [self._below(inner, paths, ITEM, deadline) for inner in value]
        opened = _opened(value)
        return MASK if opened is None else self._value(opened, paths, deadline)

    def _below(self, value: Any, paths: Sequence[_Path], step: str, deadline: float) -> Any:
        left = after(paths, step)
        return MASK if () in left else self._value(value, left, deadline)

    def _hides_header(self, name: str) -> bool:
        lowered = [tuple(step.lower() for step in path) for path in self.mask.fields]
        return () in after(lowered, name.lower())

    def _spans(self, text: str, deadline: float) -> Iterator[tuple[int, int]]:
        for value in self.values:
            yield from _places(text, value)
        if self.values:
            yield from _cut(text, self.values)
        for start in range(0, len(text), _WINDOW):
            end = min(len(text), start + _WINDOW + _OVERLAP)
            for pattern in self.mask.patterns:
                if time.monotonic() > deadline:
                    yield start, len(text)
                    return
                for found in pattern.finditer(text, start, end):
                    if found.end() > found.start():
                        yield found.start(), _end(pattern, text, found.start(), found.end(), end, deadline)


def _end(pattern: re.Pattern[str], text: str, start: int, end: int, looked: int, deadline: float) -> int:
    """Return where a match ends that may go on beyond what was looked at: after much more, it ends with the text."""
    while end == looked < len(text):
        if looked - start >= _LONGEST_MATCH or time.monotonic() > deadline:
            return len(text)
        looked = min(len(text), start + 2 * (looked - start) + _OVERLAP)
        found = pattern.match(text, start, looked)
        end = looked if found is None else found.end()
    return end


def masking() -> Masking:
    """Return the masking that `KAFKA["dead_letters"]["mask"]` asks for."""
    return _of(conf.kafka().dead_letters.mask)


def hiding(decoded: Any) -> Masking:
    """Return a masking of all that these values hold, wherever a text tells it."""
    return Masking().hiding(decoded)


@lru_cache(maxsize=4)
def _of(mask: Mask) -> Masking:
    return Masking(mask)


def _deadline() -> float:
    return time.monotonic() + PATIENCE


def _seen(value: Any, paths: Sequence[_Path]) -> Iterator[Any]:
    """Walk through what masked fields hold, down to its leaves."""
    match value:
        case Mapping():
            steps: Iterable[tuple[str, Any]] = ((str(name), inner) for name, inner in value.items())
        case list() | tuple() | set() | frozenset():
            steps = ((ITEM, inner) for inner in value)
        case None | bool() | str() | bytes() | bytearray() | memoryview() | int() | float():
            return
        case _:
            opened = _opened(value)
            if opened is not None:
                yield from _seen(opened, paths)
            return
    for step, inner in steps:
        left = after(paths, step)
        if () in left:
            yield from leaves(inner)
        elif left:
            yield from _seen(inner, left)


def leaves(value: Any) -> Iterator[Any]:
    """Walk through the texts and numbers that a value holds."""
    match value:
        case Mapping():
            for inner in value.values():
                yield from leaves(inner)
        case list() | tuple() | set() | frozenset():
            for inner in value:
                yield from leaves(inner)
        case None | bool():
            return
        case str() | bytes() | bytearray() | int() | float() | Decimal() | date() | time_of_day() | UUID():
            yield value
        case _:
            if (opened := _opened(value)) is not None:
                yield from leaves(opened)


def _opened_text(value: Any) -> Any:
    """Return what text or bytes hold that are JSON with fields, whatever serializer read them; else the value."""
    if isinstance(value, str | bytes):
        try:
            opened = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return opened if isinstance(opened, dict | list) else value
    return value


def _opened(value: Any) -> Any:
    """Return the fields of a record of a project's own class; None where it cannot be looked into."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if callable(list_fields := getattr(value, "ListFields", None)):  # what Protobuf makes
        return {each.name: inner for each, inner in list_fields()}
    return None


def _texts(leaves: Iterable[Any]) -> Iterator[str]:
    """Walk through the ways in which values are written in errors: as they are, as Python's or as JSON's literals."""
    for leaf in leaves:
        text = leaf.decode("utf-8", "backslashreplace") if isinstance(leaf, bytes | bytearray) else str(leaf)
        yield text
        yield from _moments(leaf)
        if isinstance(leaf, bytes):
            yield repr(leaf)[2:-1]
        if isinstance(leaf, str):
            yield repr(text)[1:-1]
            yield json.dumps(text)[1:-1]
            yield json.dumps(text, ensure_ascii=False)[1:-1]


def _moments(leaf: Any) -> Iterator[str]:
    """Walk through the ways in which a time is written, or a text that an event has as a time."""
    moment = leaf
    if isinstance(leaf, str):
        if len(leaf) > _LONGEST_MOMENT or not _MOMENT.fullmatch(leaf):
            return
        try:
            moment = (date if len(leaf) == len("2026-11-27") else datetime).fromisoformat(leaf)
        except ValueError:
            return
    if isinstance(moment, date | time_of_day):
        bare = moment.replace(tzinfo=None) if isinstance(moment, datetime | time_of_day) else moment
        yield from (str(moment), moment.isoformat(), str(bare), bare.isoformat())
        yield repr(bare).partition("(")[2].removesuffix(")")


def _places(text: str, value: str) -> Iterator[tuple[int, int]]:
    start = text.find(value)
    while start >= 0:
        end = start + len(value)
        if len(value) >= _WHOLE_WORD or not (_touches(text, start - 1, start) or _touches(text, end - 1, end)):
            yield start, end
        start = text.find(value, start + 1)


def _cut(text: str, values: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Walk through the places of values that are told in part: libraries put dots where they leave something out."""
    for number, found in enumerate(_LEFT_OUT.finditer(text)):
        if number == _MOST_CUTS:
            yield found.start(), len(text)
            return
        before, after = text[max(0, found.start() - _LONGEST_PART) : found.start()], text[found.end() :][:_LONGEST_PART]
        if kept := max(_overlap(before, value) for value in values):
            yield found.start() - kept, found.start()
        # The same from behind: the end of a value at the beginning of what comes.
        if kept := max(_overlap(after[::-1], value[: -_LONGEST_PART - 1 : -1]) for value in values):
            yield found.end(), found.end() + kept


def _overlap(text: str, value: str) -> int:
    """Return how many characters the end of a text and the beginning of a value have in common, of so many at least."""
    start = text.find(value[:_SHORTEST_PART]) if len(value) > _SHORTEST_PART else -1
    while start >= 0:
        if value.startswith(text[start:]):
            return len(text) - start
        start = text.find(value[:_SHORTEST_PART], start + 1)
    return 0


def _touches(text: str, left: int, right: int) -> bool:
    """Tell whether two neighbouring characters are of one word."""
    return left >= 0 and right < len(text) and _word(text[left]) and _word(text[right])


def _word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _covered(text: str, spans: Iterable[tuple[int, int]]) -> str:
    pieces, done = [], 0
    covered = 0
    for start, end in sorted(spans):
        if end <= covered:
            continue
        if start >= covered:
            pieces += [text[done:start], MASK]
        covered = done = max(covered, end)
    return "".join([*pieces, text[done:]]) if covered else text
