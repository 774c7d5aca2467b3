"""JSON as text: read strictly, and laid out or made compact without altering a number or a character of it."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Never

from django.utils.translation import gettext as _

from .showing import HARMFUL

DEEPEST = 100
"""Levels of lists and objects in one another."""
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.S)
_OPENING, _CLOSING = ("{", "["), ("}", "]")


class _Escapes(dict[int, "int | str"]):
    """Maps what nobody sees, or what turns the writing direction, to the escape that JSON has for it."""

    def __missing__(self, point: int) -> int | str:
        harmful = unicodedata.category(chr(point)) in HARMFUL
        shown = json.dumps(chr(point))[1:-1] if harmful else point
        if len(self) < 10_000:
            self[point] = shown
        return shown


_ESCAPES = _Escapes()


def read(text: str) -> Any:
    """Return the value of JSON. Raises `ValueError` with a translated sentence."""
    depth = deepest = 0
    for token in _TOKEN.findall(text):
        depth += (token in _OPENING) - (token in _CLOSING)
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise ValueError(_("Lists and objects are in one another %(deep)d levels deep; %(most)d are allowed.") % {
            "deep": deepest, "most": DEEPEST,
        })  # fmt: skip
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        facts = {"line": error.lineno, "column": error.colno, "why": error.msg}
        raise ValueError(_("This is no JSON, at line %(line)d, column %(column)d: %(why)s.") % facts) from None
    except RecursionError:
        raise ValueError(_("This is no JSON that could be read.")) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for place, (name, _value) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(_("An object has the name %(name)r twice.") % {"name": twice[:100]})
    return made


def _refuse(constant: str) -> Never:
    raise ValueError(_("%(constant)s is no JSON.") % {"constant": constant})


def compact(text: str) -> str:
    """Return JSON without the whitespace between its parts."""
    return "".join(_TOKEN.findall(text))


def laid_out(text: str) -> str:
    """Return JSON with a line for each member, and with escapes for what nobody sees."""
    pieces: list[str] = []
    depth, tokens = 0, _TOKEN.findall(text)
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        if token in _OPENING:
            depth += 1
            pieces.append(token if following in _CLOSING else f"{token}\n{'  ' * depth}")
        elif token in _CLOSING:
            depth -= 1
            empty = bool(pieces) and pieces[-1] in _OPENING
            pieces.append(token if empty else f"\n{'  ' * depth}{token}")
        elif token == ",":
            pieces.append(f",\n{'  ' * depth}")
        elif token == ":":
            pieces.append(": ")
        else:
            pieces.append(token.translate(_ESCAPES))
    return "".join(pieces)
