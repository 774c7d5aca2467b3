"""Reading a block of settings: every key is asked for by its rule, and every problem found is kept, none raised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .secrets import shown
from .values import NAME, Rule, Wrong, did_you_mean

UNKNOWN_KEY = "django_kafka.E001"
WRONG_VALUE = "django_kafka.E002"
MISSING = "django_kafka.E003"
DUPLICATE_NAME = "django_kafka.E004"
GIVEN_TWICE = "django_kafka.E005"
RESERVED_PROPERTY = "django_kafka.E006"
CONTRADICTION = "django_kafka.E007"
ILLEGAL_TOPIC = "django_kafka.E008"
UNKNOWN_CLUSTER = "django_kafka.E009"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong in settings.KAFKA."""

    id: str
    """Of the system check, such as "django_kafka.E001"."""
    path: str
    """Where it is, such as `KAFKA["producers"]["default"]["acks"]`."""
    message: str
    """What is wrong: a sentence with path and value in it."""
    hint: str = ""
    """The way out, when the message does not say it."""
    warning: bool = False
    """True when one can work with it all the same."""

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


@dataclass(slots=True, kw_only=True, repr=False)
class Block:
    """One block of settings while it is read. Its repr is only where it is: a page about an error shows locals."""

    path: str
    """Of the block itself."""
    values: dict[Any, object]
    """What is left of it to be read."""
    problems: list[Problem]
    """Shared by all blocks of one reading."""
    moved: dict[Any, str] = field(default_factory=dict)
    """Paths of the keys that came from elsewhere, such as an `options` block."""
    given: dict[str, str] = field(default_factory=dict)
    """The keys that were there and are read, and their paths."""
    known: list[str] = field(default_factory=list)
    """The keys that were asked for."""

    @classmethod
    def of(cls, value: object, path: str, problems: list[Problem]) -> Block:
        """Return the block at this path; what is no block is a problem, and reads as an empty one."""
        block = cls(path=path, values={}, problems=problems)
        if isinstance(value, Mapping):
            block.values = dict(value)
        elif value is not None:
            # The value stays unsaid: a block written as a text may hold a password anywhere.
            block.problem(WRONG_VALUE, f"{path} is of type {type(value).__name__}; allowed: a dict.")
        return block

    def __repr__(self) -> str:
        return f"<Block {self.path}>"

    def problem(
        self, check: str, message: str, hint: str = "", *, path: str | None = None, warning: bool = False
    ) -> None:
        """Keep a problem."""
        self.problems.append(Problem(id=check, path=path or self.path, message=message, hint=hint, warning=warning))

    def path_to(self, key: object) -> str:
        """Return where the key was given."""
        return self.moved.get(key) or subpath(self.path, key)

    def take(self, key: str) -> object:
        """Take a key as it is, None when it is not there."""
        self.known.append(key)
        if key in self.values:
            self.given[key] = self.path_to(key)
        return self.values.pop(key, None)

    def read(self, rules: Mapping[str, Rule]) -> dict[str, Any]:
        """Return the keys that are there and right; the others are left to their defaults."""
        found: dict[str, Any] = {}
        for key, rule in rules.items():
            there = key in self.values
            value = self.take(key)
            if there:
                self._read_into(found, key, value, rule)
        return found

    def _read_into(self, found: dict[str, Any], key: str, value: object, rule: Rule) -> None:
        try:
            found[key] = rule(value)
        except Wrong as wrong:
            path = self.path_to(key)
            check = ILLEGAL_TOPIC if key == "topic" and isinstance(value, str) else WRONG_VALUE
            self.problem(check, f"{path} is {shown(value, key)}; allowed: {wrong.allowed}.", wrong.hint, path=path)

    def block(self, key: str) -> Block:
        """Return the block under a key, empty when it is not there."""
        path = self.path_to(key)
        return Block.of(self.take(key), path, self.problems)

    def entries(self, key: str, what: str, rule: Rule | None = None) -> Iterator[tuple[str, Block]]:
        """Yield names and blocks of what is given as a dict by name, or as a list of names or of blocks with `name`."""
        path = self.path_to(key)
        seen: set[str] = set()
        for name, place, value in self._named(self.take(key), path, what):
            if not self._name_is_good(name, place, what, rule):
                continue
            if name in seen:
                self.problem(DUPLICATE_NAME, f"{path} has the name {name!r} twice.", "Rename one of them.", path=place)
                continue
            seen.add(name)
            yield name, Block.of(value, subpath(path, name), self.problems)

    def _named(self, value: object, path: str, what: str) -> Iterator[tuple[Any, str, object]]:
        match value:
            case None:
                return
            case Mapping():
                for name, inner in value.items():
                    yield name, subpath(path, name), self._without_own_name(name, inner, path)
            case list() | tuple():
                yield from self._named_in_list(value, path, what)
            case _:
                allowed = f"a dict by name, or a list of {what}s"
                self.problem(WRONG_VALUE, f"{path} is of type {type(value).__name__}; allowed: {allowed}.", path=path)

    def _without_own_name(self, name: object, inner: object, path: str) -> object:
        if not isinstance(inner, Mapping) or "name" not in inner:
            return inner
        if inner["name"] != name:
            place = subpath(path, name)
            sentence = f'{place}["name"] is {shown(inner["name"])}, but it is declared as {name!r}.'
            self.problem(CONTRADICTION, sentence, "Leave `name` out in a dict.", path=place)
        return {key: value for key, value in inner.items() if key != "name"}

    def _named_in_list(self, entries: Iterable[object], path: str, what: str) -> Iterator[tuple[Any, str, object]]:
        for index, entry in enumerate(entries):
            place = f"{path}[{index}]"
            match entry:
                case str():
                    yield entry, place, None
                case Mapping() if "name" in entry:
                    yield entry["name"], place, {key: value for key, value in entry.items() if key != "name"}
                case Mapping():
                    self.problem(MISSING, f"{place} has no `name`; each {what} in a list needs one.", path=place)
                case _:
                    sentence = (
                        f"{place} is of type {type(entry).__name__}; allowed: a {what}'s name, or a dict with `name`."
                    )
                    self.problem(WRONG_VALUE, sentence, path=place)

    def _name_is_good(self, name: object, place: str, what: str, rule: Rule | None) -> bool:
        try:
            if rule is not None:
                rule(name)
            elif not isinstance(name, str) or not NAME.fullmatch(name):
                raise Wrong("1 to 100 of the characters a-z A-Z 0-9 . _ -")
        except Wrong as wrong:
            check = WRONG_VALUE if rule is None else ILLEGAL_TOPIC
            sentence = f"{place}: {_quoted_name(name)} is no name for a {what}; allowed: {wrong.allowed}."
            self.problem(check, sentence, wrong.hint, path=place)
            return False
        return True

    def close(self, elsewhere: Mapping[str, str] | None = None) -> None:
        """Report every key that nobody asked for; `elsewhere` has better advice for some than the nearest name."""
        for key in self.values:
            advice = (elsewhere or {}).get(key) if isinstance(key, str) else None
            advice = advice or did_you_mean(key, tuple(self.known)) or f"It knows: {', '.join(self.known)}."
            path = self.path_to(key)
            self.problem(
                UNKNOWN_KEY,
                f"{path.removesuffix(f'[{_quoted(key)}]')} has no key {_quoted_name(key)}.",
                advice,
                path=path,
            )


def subpath(path: str, key: object) -> str:
    """Return the path to a key below a path."""
    return f"{path}[{_quoted(key)}]"


def _quoted(key: object) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)


def _quoted_name(name: object) -> str:
    # A name is shown even when a word in it sounds like a secret; what is no name may hold one.
    return repr(name if len(name) <= 100 else f"{name[:97]}...") if isinstance(name, str) else shown(name)
