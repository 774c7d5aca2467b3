"""How long a regular expression may take over a text that somebody chose to make it take long."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from re import _constants as codes  # type: ignore[attr-defined]  # nothing public tells how an expression is built
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MOST = 2
"""Repetitions without a bound that may share a text: with them an expression takes the cube of its length."""
_FEW = 4
"""A repetition that is longer by at most so much than it must be counts as none."""
_COMMON = frozenset(map(chr, range(256))) | frozenset("ßΩж漢١\u2003")
"""Characters that stand for all, beside those that an expression names."""
_CATEGORIES = {
    codes.CATEGORY_DIGIT: re.compile(r"\d"),
    codes.CATEGORY_NOT_DIGIT: re.compile(r"\D"),
    codes.CATEGORY_SPACE: re.compile(r"\s"),
    codes.CATEGORY_NOT_SPACE: re.compile(r"\S"),
    codes.CATEGORY_WORD: re.compile(r"\w"),
    codes.CATEGORY_NOT_WORD: re.compile(r"\W"),
}

_Nodes = Sequence[tuple[Any, Any]]
_Chars = frozenset[str]
_NONE: _Chars = frozenset()


class TooCostly(Exception):
    """An expression that may take for ever; its text says why."""


def complaint(pattern: re.Pattern[str]) -> str:
    """Return why an expression may take too long over some text; "" when it may not."""
    anatomy = _Anatomy(pattern)
    try:
        shared = anatomy.shared(anatomy.nodes, _NONE)
    except TooCostly as costly:
        return str(costly)
    if shared > MOST:
        return f"{shared} repetitions without a bound can match the same text, one after the other; at most {MOST} may"
    return ""


class _Anatomy:
    """An expression as Python's own parser sees it, and which characters its parts can match."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.nodes: _Nodes = list(parser.parse(pattern.pattern, pattern.flags))
        self.any_case = bool(pattern.flags & re.IGNORECASE) or "(?i" in pattern.pattern
        self.all = _COMMON | frozenset(pattern.pattern) | frozenset(pattern.pattern.swapcase())

    def shared(self, nodes: _Nodes, after: _Chars, *, strict: bool = False) -> int:
        """Return how many repetitions can give text to what comes after them, which is tried in every way.

        `after` has the characters that what follows can begin with. `strict`: short ones count as well. Raises
        `TooCostly` when such a one is repeated itself, so that the ways double with each character.
        """
        count = 0
        for place, (code, what) in enumerate(nodes):
            rest = nodes[place + 1 :]
            follows = self.first(rest) | (after if self.may_be_empty(rest) else _NONE)
            if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
                count += self._of_repetition(what, follows, strict)
            elif code is codes.POSSESSIVE_REPEAT:
                self._of_repetition(what, _NONE, strict)
            elif code is codes.BRANCH:
                count += max(self.shared(one, follows, strict=strict) for one in what[1])
            else:
                behind = follows if code in (codes.SUBPATTERN, codes.GROUPREF_EXISTS) else _NONE
                count += max((self.shared(one, behind, strict=strict) for one in _within(code, what)), default=0)
        return count

    def _of_repetition(self, what: tuple[int, int, _Nodes], follows: _Chars, strict: bool) -> int:
        least, most, body = what
        if most > _FEW:
            if self.may_be_empty(body):
                raise TooCostly("it repeats what may be empty")
            if self._overlapping(body):
                raise TooCostly("it repeats alternatives that begin alike")
            if self.shared(body, self.first(body) | follows, strict=True):
                raise TooCostly("it repeats a repetition, and both can match the same text")
            inner = 0
        else:
            inner = self.shared(body, self.first(body) | follows, strict=strict) * most
        long = most - least > (0 if strict else _FEW)
        return inner + bool(long and self.chars(body) & follows)

    def _overlapping(self, nodes: _Nodes) -> bool:
        for code, what in nodes:
            if code is codes.BRANCH:
                seen: _Chars = _NONE
                for one in what[1]:
                    first = self.first(one)
                    if first & seen or self.may_be_empty(one):
                        return True
                    seen |= first
            if any(self._overlapping(one) for one in _within(code, what)):
                return True
        return False

    def may_be_empty(self, nodes: _Nodes) -> bool:
        """Tell whether these can match nothing."""
        return all(self._may_be_empty(code, what) for code, what in nodes)

    def _may_be_empty(self, code: Any, what: Any) -> bool:
        if code in _ZERO_WIDTH or code is codes.GROUPREF:
            return True
        if code in _REPETITIONS:
            return what[0] == 0 or self.may_be_empty(what[2])
        inner = list(_within(code, what))
        return bool(inner) and any(self.may_be_empty(one) for one in inner)

    def first(self, nodes: _Nodes) -> _Chars:
        """Return what these can begin with."""
        found = _NONE
        for code, what in nodes:
            if code not in _ZERO_WIDTH:
                inner = list(_within(code, what))
                found |= _union(self.first(one) for one in inner) if inner else self._of_one(code, what)
            if not self._may_be_empty(code, what):
                break
        return found

    def chars(self, nodes: _Nodes) -> _Chars:
        """Return all that these can match."""
        found = _NONE
        for code, what in nodes:
            if code not in _ZERO_WIDTH:
                inner = list(_within(code, what))
                found |= _union(self.chars(one) for one in inner) if inner else self._of_one(code, what)
        return found

    def _of_one(self, code: Any, what: Any) -> _Chars:
        match code:
            case codes.LITERAL:
                found = frozenset({chr(what)})
            case codes.NOT_LITERAL:
                return self.all - {chr(what)}
            case codes.RANGE:
                found = frozenset(one for one in self.all if what[0] <= ord(one) <= what[1])
            case codes.CATEGORY if what in _CATEGORIES:
                return frozenset(one for one in self.all if _CATEGORIES[what].match(one))
            case codes.IN:
                negated = any(each is codes.NEGATE for each, _what in what)
                found = _union(self._of_one(each, inner) for each, inner in what if each is not codes.NEGATE)
                return self.all - found if negated else found
            case _:
                return self.all
        return found | frozenset("".join(found).swapcase()) if self.any_case else found


_REPETITIONS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)
_ZERO_WIDTH = (codes.AT, codes.ASSERT, codes.ASSERT_NOT, codes.FAILURE)


def _within(code: Any, what: Any) -> Iterator[_Nodes]:
    """Walk through the parts of a part, each of which it may be."""
    if code in _REPETITIONS:
        yield list(what[2])
    elif code is codes.BRANCH:
        yield from (list(one) for one in what[1])
    elif code is codes.SUBPATTERN:
        yield list(what[3])
    elif code in (codes.ASSERT, codes.ASSERT_NOT):
        yield list(what[1])
    elif code is codes.ATOMIC_GROUP:
        yield list(what)
    elif code is codes.GROUPREF_EXISTS:
        yield from (list(one) for one in what[1:] if one is not None)


def _union(sets: Iterator[_Chars]) -> _Chars:
    return frozenset().union(*sets)
