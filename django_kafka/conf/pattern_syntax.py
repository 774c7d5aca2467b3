"""The part of regular expressions that Python, librdkafka and brokers read alike, as it is written."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Final

ALPHABET: Final = frozenset(string.ascii_letters + string.digits + "._-")
"""What names of topics are made of."""
DIGITS: Final = frozenset(string.digits)
MOST: Final = 1000
"""Places that a pattern may have when what is repeated is written out."""
_SHORT = {"d": DIGITS, "w": frozenset(string.ascii_letters + string.digits + "_")}
_COUNT = re.compile(r"\{([0-9]{1,4})(?:(,)([0-9]{1,4})?)?\}")
_DEEPEST = 20
"""Parentheses in parentheses."""


class BadPattern(ValueError):
    """A pattern that is none, or that not everybody would read alike; its text says why."""


@dataclass(frozen=True, slots=True)
class Set:
    """One letter of these."""

    letters: frozenset[str]


@dataclass(frozen=True, slots=True)
class Sequence:
    """Parts one behind the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """A part as often as that; `most` None: without an end."""

    part: Node
    least: int
    most: int | None


Node = Set | Sequence | Choice | Many


class Parser:
    """Reads a pattern from its first letter to its last."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        """Return the pattern without what it begins and ends with."""
        text = self._text
        if not text.startswith("^"):
            raise BadPattern('it does not begin with "^"')
        if not text.endswith(("$", ".*")) or text.endswith(("\\$", "\\.*")):
            raise BadPattern('it does not end with "$", or with ".*" for every end: not all readers would stop there')
        self._at = 1
        node = self._choice()
        if self._here == "|":
            raise BadPattern('"|" stands outside of parentheses, where "^" and "$" are of one side only')
        if self._here == "$" and self._at == len(text) - 1:
            self._at += 1
        if self._at < len(text):
            raise BadPattern(f"{self._here!r} stands at place {self._at + 1}, where it has no meaning")
        return node

    @property
    def _here(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        letter = self._here
        if not letter:
            raise BadPattern("its end is missing")
        self._at += 1
        return letter

    def _choice(self) -> Node:
        parts = [self._sequence()]
        while self._depth and self._here == "|":
            self._at += 1
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._here not in ("", "|", ")", "$"):
            parts.append(self._counted(self._one()))
        if not parts:
            raise BadPattern("a part of it is empty")
        return Sequence(tuple(parts))

    def _one(self) -> Node:
        match letter := self._take():
            case ".":
                return Set(ALPHABET)
            case "\\":
                return Set(self._escaped())
            case "[":
                return Set(self._class())
            case "(":
                return self._group()
            case _ if letter in ALPHABET:
                return Set(frozenset(letter))
        raise BadPattern(f"{letter!r} stands at place {self._at}, where it has no meaning")

    def _group(self) -> Node:
        if self._here == "?":
            if self._text[self._at : self._at + 2] != "?:":
                raise BadPattern('after "(?" only ":" is allowed')
            self._at += 2
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BadPattern("its parentheses are too deep")
        node = self._choice()
        if self._take() != ")":
            raise BadPattern('a ")" is missing')
        self._depth -= 1
        return node

    def _escaped(self) -> frozenset[str]:
        letter = self._take()
        if letter in _SHORT:
            return _SHORT[letter]
        if letter in ".-_":
            return frozenset(letter)
        raise BadPattern(f"{letter!r} stands behind a backslash; allowed there: . - _ d w")

    def _class(self) -> frozenset[str]:
        other = self._here == "^"
        self._at += other
        found: set[str] = set()
        while (letter := self._take()) != "]" or not found:
            low = self._escaped() if letter == "\\" else frozenset(letter)
            if self._here == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                last = self._take()
                if last == "\\":
                    raise BadPattern(r'a backslash stands behind "-" in brackets')
                found |= _range(low, last)
            elif low <= ALPHABET:
                found |= low
            else:
                raise BadPattern(f"{letter!r} stands in brackets, and names of topics have no such letter")
        return frozenset(ALPHABET - found if other else found)

    def _counted(self, node: Node) -> Node:
        match self._here:
            case "*" | "+" | "?" as sign:
                self._at += 1
                node = Many(node, int(sign == "+"), 1 if sign == "?" else None)
            case "{":
                count = _COUNT.match(self._text, self._at)
                if count is None:
                    raise BadPattern('what stands in "{" and "}" is no number, and no two')
                self._at = count.end()
                least = int(count[1])
                most = least if not count[2] else int(count[3]) if count[3] else None
                if least > MOST or (most is not None and not least <= most <= MOST) or most == 0:
                    raise BadPattern(f"{count[0]} is no count of 1 to {MOST}, the smaller first")
                node = Many(node, least, most)
        if self._here and self._here in "*+?{":
            raise BadPattern("two counts stand one behind the other")
        return node


def _range(low: frozenset[str], last: str) -> frozenset[str]:
    for letters in (string.ascii_lowercase, string.ascii_uppercase, string.digits):
        (first,) = low if len(low) == 1 else ("",)
        if first and first in letters and last in letters and first <= last:
            return frozenset(letters[letters.index(first) : letters.index(last) + 1])
    raise BadPattern('what stands around "-" in brackets is no range of letters of one case, or of digits')
