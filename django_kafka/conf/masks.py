"""What of dead letters is masked: paths to fields, regular expressions, whole keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import costs
from .values import Wrong

ALLOWED = (
    'a list of paths such as "passenger.name", "*.email", "items[].card" or "**.iban", '
    'of {"regex": "…"}, and of {"key": True}'
)
_LONGEST = 1000
_SEPARATOR = re.compile(r"(?<!\\)\.")
ITEM = "[]"
"""The step to an item of a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """What people see only with the permission to view payloads."""

    fields: tuple[tuple[str, ...], ...] = ()
    """Paths: names of fields, "*" for any one step, "[]" for any item of a list, "**" for any number of steps."""
    patterns: tuple[re.Pattern[str], ...] = ()
    """What they match is masked in every text."""
    key: bool = False
    """Whether whole keys are."""

    def __bool__(self) -> bool:
        """Tell whether anything is masked."""
        return bool(self.fields or self.patterns or self.key)


def mask(value: object) -> Mask:
    """Read `KAFKA["dead_letters"]["mask"]`."""
    if value is None:
        return Mask()
    if not isinstance(value, list | tuple):
        raise Wrong(ALLOWED)
    fields, patterns, key = [], [], False
    for each in value:
        match each:
            case str():
                fields.append(path(each))
            case Mapping() if set(each) == {"regex"}:
                patterns.append(_pattern(each["regex"]))
            case Mapping() if set(each) == {"key"} and isinstance(each["key"], bool):
                key |= each["key"]
            case _:
                raise Wrong(ALLOWED)
    return Mask(fields=tuple(fields), patterns=tuple(patterns), key=key)


def path(text: str) -> tuple[str, ...]:
    """Read a path: steps with dots between, a backslash before a dot that is part of a name."""
    steps: list[str] = []
    for part in _SEPARATOR.split(text.strip()):
        name, items = part, 0
        while name.endswith(ITEM):
            name, items = name.removesuffix(ITEM), items + 1
        if name:
            steps.append(name.replace(r"\.", "."))
        elif not items:
            raise Wrong(ALLOWED, f"{text!r} has a step without a name.")
        steps += [ITEM] * items
    if steps[-1] == "**":
        raise Wrong(ALLOWED, f'{text!r} ends with "**": what is below that?')
    return tuple(steps)


def after(paths: Sequence[tuple[str, ...]], step: str) -> list[tuple[str, ...]]:
    """Return what is left of paths after one step: the name of a field, or "[]" for an item; () is at its end."""
    left: list[tuple[str, ...]] = []
    for each in paths:
        head, rest = each[0], each[1:]
        if head == "**":
            # Any number of steps: this one, and those to come; or none at all.
            left += [each, *after([rest], step)]
        elif head in (step, "*"):
            left.append(rest)
    return left


def _pattern(value: Any) -> re.Pattern[str]:
    if not isinstance(value, str) or not value or len(value) > _LONGEST:
        raise Wrong(ALLOWED, f"A regular expression is a text of 1 to {_LONGEST} characters.")
    try:
        pattern = re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise Wrong(ALLOWED, f"{value!r} is no regular expression: {error}.") from None
    if pattern.match("") is not None:
        raise Wrong(ALLOWED, f"{value!r} matches nothing at all, and so everywhere.")
    if why := costs.complaint(pattern):
        raise Wrong(ALLOWED, f"{value!r} may take for ever over a text that is made for that: {why}.")
    return pattern
