"""Regular expressions over the names of topics, read here and nowhere else.

They are the part of regular expressions that Python, librdkafka and brokers read alike. A name is compared in steps as
many as it is long, whatever the pattern: no topic that somebody makes can hold up a worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from .pattern_syntax import ALPHABET, MOST, BadPattern, Choice, Many, Node, Parser, Sequence, Set

_PAIRS = 2000
"""Steps that a comparison of two patterns may take: it only finds mistakes."""


def is_pattern(name: str) -> bool:
    """Tell whether what names topics is a pattern: those begin with ^, which no name has in it."""
    return name.startswith("^")


@lru_cache(maxsize=1024)
def pattern(text: str, prefix: str = "") -> Pattern:
    """Return the pattern for names that begin with `prefix`, which `text` leaves out. Raises `BadPattern`."""
    return _made(Parser(text).whole(), text, prefix)


def template(pieces: Iterable[str | frozenset[str]], prefix: str = "") -> Pattern:
    """Return the pattern of names that consist of texts and, where a set of letters stands, one or more of these."""
    parts: list[Node] = []
    for piece in pieces:
        if isinstance(piece, str):
            parts += [Set(frozenset(letter)) for letter in piece]
        else:
            parts.append(Many(Set(piece), 1, None))
    return _made(Sequence(tuple(parts)), "", prefix)


class Pattern:
    """A pattern, ready to be compared with names."""

    __slots__ = ("_first", "_follow", "_last", "_where", "prefix", "text")

    def __init__(self, text: str, prefix: str, maker: _Maker, ends: _Ends) -> None:
        self.text = text
        """As it is written."""
        self.prefix = prefix
        """What names begin with besides."""
        _empty, self._first, self._last = ends
        self._follow = maker.follow
        self._where = {letter: maker.where(letter) for letter in sorted(ALPHABET)}

    def fits(self, name: str) -> bool:
        """Tell whether it takes a name, which is a whole one, prefix included."""
        if not name.startswith(self.prefix):
            return False
        state = -1
        for letter in name[len(self.prefix) :]:
            if not (state := self._next(state, letter)):
                return False
        return self._accepts(state)

    def _next(self, state: int, letter: str) -> int:
        """Return the places that were reached, as bits; -1 is the beginning."""
        if state < 0:
            return self._first & self._where.get(letter, 0)
        found = 0
        while state:
            low = state & -state
            found |= self._follow[low.bit_length() - 1]
            state ^= low
        return found & self._where.get(letter, 0)

    def _accepts(self, state: int) -> bool:
        # What is nothing but the prefix is no name.
        return state >= 0 and bool(state & self._last)


def example(taken: Pattern, by: tuple[Pattern, ...] = (), but: tuple[Pattern, ...] = ()) -> str | None:
    """Return a short name that `taken` takes, and all of `by`, and none of `but`.

    None: there is none. When it would take long to find one, "" is returned, which is no name.
    """
    every, wanted = (taken, *by, *but), 1 + len(by)
    kinds = {tuple(_within(one, letter) for one in every): letter for letter in sorted(ALPHABET, reverse=True)}
    prefix = max((one.prefix for one in every), key=len)
    start = tuple(_after(one, prefix) for one in every)
    seen, row = {start}, [(start, prefix)]
    for states, name in row:
        ends = [_accepts(one, state) for one, state in zip(every, states, strict=True)]
        if name and all(ends[:wanted]) and not any(ends[wanted:]) and len(name) < 250:
            return name
        if len(seen) > _PAIRS:
            return ""
        for letter in kinds.values():
            ahead = tuple(_step(one, state, letter) for one, state in zip(every, states, strict=True))
            if all(state is not None for state in ahead[:wanted]) and ahead not in seen:
                seen.add(ahead)
                row.append((ahead, name + letter))
    return None


def _within(one: Pattern, letter: str) -> int:
    return one._where[letter]


def _after(one: Pattern, prefix: str) -> int | None:
    state: int | None = -1 if prefix.startswith(one.prefix) else None
    for letter in prefix[len(one.prefix) :]:
        state = _step(one, state, letter)
    return state


def _step(one: Pattern, state: int | None, letter: str) -> int | None:
    return None if state is None else one._next(state, letter) or None


def _accepts(one: Pattern, state: int | None) -> bool:
    return state is not None and one._accepts(state)


_Ends = tuple[bool, int, int]
"""Whether it may be empty, and the places where it may begin and end, as bits."""


def _made(node: Node, text: str, prefix: str) -> Pattern:
    maker = _Maker()
    return Pattern(text, prefix, maker, maker.make(node))


class _Maker:
    """Lays out the places of a pattern, and which may follow on which."""

    def __init__(self) -> None:
        self.follow: list[int] = []
        self._letters: list[frozenset[str]] = []

    def where(self, letter: str) -> int:
        """Return the places that a letter may stand in, as bits."""
        return sum(1 << place for place, letters in enumerate(self._letters) if letter in letters)

    def make(self, node: Node) -> _Ends:
        """Lay out a part."""
        match node:
            case Set(letters):
                if len(self.follow) >= MOST:
                    raise BadPattern("it repeats too much")
                self._letters.append(letters)
                self.follow.append(0)
                here = 1 << (len(self.follow) - 1)
                return False, here, here
            case Sequence(parts):
                ends: _Ends = True, 0, 0
                for part in parts:
                    ends = self._behind(ends, self.make(part))
                return ends
            case Choice(parts):
                found = [self.make(part) for part in parts]
                return any(one[0] for one in found), _bits(one[1] for one in found), _bits(one[2] for one in found)
            case Many():
                return self._many(node)

    def _many(self, node: Many) -> _Ends:
        ends: _Ends = True, 0, 0
        for _turn in range(node.least - (node.most is None)):
            ends = self._behind(ends, self.make(node.part))
        if node.most is None:
            loop = self.make(node.part)
            self._link(loop[2], loop[1])
            return self._behind(ends, (loop[0] or not node.least, *loop[1:]))
        for _turn in range(node.most - node.least):
            ends = self._behind(ends, (True, *self.make(node.part)[1:]))
        return ends

    def _behind(self, before: _Ends, after: _Ends) -> _Ends:
        self._link(before[2], after[1])
        return (
            before[0] and after[0],
            before[1] | (after[1] if before[0] else 0),
            after[2] | (before[2] if after[0] else 0),
        )

    def _link(self, places: int, followers: int) -> None:
        while places:
            low = places & -places
            self.follow[low.bit_length() - 1] |= followers
            places ^= low


def _bits(parts: Iterator[int]) -> int:
    found = 0
    for part in parts:
        found |= part
    return found
