"""Fields of values, encrypted one by one: each is replaced by a text, before serializing, and comes back after it.

Fields are found by paths, which are written as those of masks. What is no dict and no list has no fields; None stays
None, so that a schema may tell that there is nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..conf.masks import ITEM, after
from ..events import plain
from ..exceptions import EncodeError, Undecryptable
from ..legible import printable
from ..serializers import Json
from .encryption import TOKEN, seal_text, unseal_text

Paths = Sequence[tuple[str, ...]]
_Change = Callable[[Any, str], Any]
_JSON = Json()
_LONGEST = 200
"""Characters of a path that sentences have."""


def sealed(value: Any, paths: Paths, topic: str) -> Any:
    """Return a value with its fields encrypted for a topic: a copy, as far as it is another one.

    Raises `EncodeError` for what cannot be looked into.
    """
    if not isinstance(value, Mapping | list | tuple) and plain(value, text=False) is None:
        kind = type(value).__name__
        raise EncodeError(f"The value for {topic!r} is {kind}; fields are encrypted of dicts and lists only.")

    def encrypted(field: Any, path: str) -> Any:
        if field is None:
            return None
        try:
            data = _JSON.encode(field, topic)
        except (TypeError, ValueError, RecursionError) as error:
            sentence = f"The field {_shown(path)} for {topic!r} has no counterpart in JSON: {type(error).__name__}."
            raise EncodeError(sentence) from None
        return seal_text(data, topic, path)

    try:
        return _changed(value, paths, "", encrypted)
    except RecursionError:
        raise EncodeError(f"The value for {topic!r} is nested too deeply.") from None


def unsealed(value: Any, paths: Paths, topics: frozenset[str] | None, *, accept_plain: bool) -> tuple[Any, list[Any]]:
    """Return a value with its fields decrypted, and what these hold.

    Raises `Undecryptable`, also for a field that is not encrypted, unless these are accepted.
    """
    found: list[Any] = []

    def decrypted(field: Any, path: str) -> Any:
        if field is None:
            return None
        if not isinstance(field, str) or not field.startswith(TOKEN):
            if accept_plain:
                return field
            raise Undecryptable(f"its field {_shown(path)} is not encrypted")
        try:
            opened = json.loads(unseal_text(field, topics, path))
        except Undecryptable as error:
            raise type(error)(f"its field {_shown(path)} is not to be read: {error}") from None
        except (ValueError, RecursionError):
            raise Undecryptable(f"its field {_shown(path)} holds no JSON") from None
        found.append(opened)
        return opened

    if not isinstance(value, Mapping | list | tuple) and value is not None and not accept_plain:
        raise Undecryptable("it has no fields")
    try:
        return _changed(value, paths, "", decrypted), found
    except RecursionError:
        raise Undecryptable("it is nested too deeply") from None


def _shown(path: str) -> str:
    """Return a path for sentences: names in it may be a stranger's."""
    return printable(path if len(path) <= _LONGEST else f"{path[:_LONGEST]}…")


def _changed(value: Any, paths: Paths, path: str, change: _Change) -> Any:
    match value:
        case Mapping():
            steps = {name: (str(name), f"{path}.{name}".lstrip(".")) for name in value}
            return {name: _step(inner, paths, *steps[name], change) for name, inner in value.items()}
        case list() | tuple():
            return [_step(inner, paths, ITEM, f"{path}{ITEM}", change) for inner in value]
    # An event has fields, too, wherever it lies: serializers would write them as they are.
    whole = plain(value, text=False)
    return value if whole is None else _changed(whole, paths, path, change)


def _step(value: Any, paths: Paths, step: str, path: str, change: _Change) -> Any:
    left = after(paths, step)
    if () in left:
        return change(value, path)
    return _changed(value, left, path, change) if left else value
