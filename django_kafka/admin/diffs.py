"""What was altered, line by line, harmless and bounded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import takewhile

from . import showing

_CONTEXT = 3
_MOST_LINES = 2000
_LONGEST = 200
"""Characters of a line; what is longer is continued on the next one."""
_MOST_COMPARED = 1_000_000
"""Pairs of lines that are compared; beyond that all old lines are shown before all new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line."""

    sign: str
    """"-" of the original, "+" of the edited one, " " of both, "@" where some are left out."""
    text: str
    """What stands there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What was altered."""

    lines: tuple[Line, ...]
    """Those that were altered, and some around them."""
    more: int
    """How many altered lines are not shown."""


def between(old: str, new: str) -> Diff:
    """Return what is different in two texts."""
    before, after = _lines(old), _lines(new)
    head = _common(before, after)
    tail = _common(before[head:][::-1], after[head:][::-1])
    changed, anew = before[head : len(before) - tail], after[head : len(after) - tail]
    lead = before[max(0, head - _CONTEXT) : head]
    rest = before[len(before) - tail :][:_CONTEXT]
    found = [Line(sign=" ", text=each) for each in lead]
    found += _middle(changed, anew)
    found += [Line(sign=" ", text=each) for each in rest]
    if head > _CONTEXT:
        found.insert(0, Line(sign="@", text="…"))
    if tail > _CONTEXT:
        found.append(Line(sign="@", text="…"))
    left = sum(each.sign in "+-" for each in found[_MOST_LINES:])
    return Diff(lines=tuple(found[:_MOST_LINES]), more=left)


def _lines(text: str) -> list[str]:
    found = []
    for line in showing.lines(text).split("\n"):
        found += [line[start : start + _LONGEST] for start in range(0, max(1, len(line)), _LONGEST)]
    return found


def _common(one: list[str], other: list[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _middle(old: list[str], new: list[str]) -> list[Line]:
    if len(old) * len(new) > _MOST_COMPARED:
        return [Line(sign="-", text=each) for each in old] + [Line(sign="+", text=each) for each in new]
    found: list[Line] = []
    opcodes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(_CONTEXT)
    for number, group in enumerate(opcodes):
        if number:
            found.append(Line(sign="@", text="…"))
        for tag, start, end, start_new, end_new in group:
            if tag == "equal":
                found += [Line(sign=" ", text=each) for each in old[start:end]]
                continue
            found += [Line(sign="-", text=each) for each in old[start:end]]
            found += [Line(sign="+", text=each) for each in new[start_new:end_new]]
    return found
