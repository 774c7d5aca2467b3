"""The headers of a message in a form: those that may be altered, those that may not, and a few empty lines."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from django.http import HttpRequest
from django.utils.translation import gettext as _

from ..dead_letters.editing import is_protected
from . import showing
from .notations import Notation, Written, read_plainly, written_plainly

Pairs = Sequence[tuple[str, "bytes | None"]]

_EMPTY = 3
"""Lines for headers that are new."""
_MOST = 200
"""Headers that may be altered; those after them stay as they are."""
_LONGEST = 4096
"""Bytes of a value that may be altered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderField:
    """One header in the form."""

    number: int
    """Its place; new ones come after all others."""
    name: str
    """Its name, or what was typed."""
    written: Written
    """Its value, or what was typed."""
    fixed: bool = False
    """Whether it may not be altered."""
    removed: bool = False
    """Whether it is to be taken away."""
    error: str = ""
    """What is wrong with it."""


def fields_of(headers: Pairs) -> list[HeaderField]:
    """Return headers as they stand in a form, and empty lines after them."""
    found = [_field(number, name, value) for number, (name, value) in enumerate(headers)]
    return found + _empty(len(found))


def _empty(start: int) -> list[HeaderField]:
    nothing = Written(notation=Notation.TEXT, text="")
    return [HeaderField(number=start + each, name="", written=nothing) for each in range(_EMPTY)]


def _field(number: int, name: str, value: bytes | None) -> HeaderField:
    fixed = _is_fixed(number, name, value)
    shown = showing.line(name, 300) if fixed else name
    data = (value or b"")[:_LONGEST]
    plain = Written(notation=Notation.TEXT, text=showing.as_text(data)) if fixed else written_plainly(value)
    return HeaderField(number=number, name=shown, written=plain, fixed=fixed)


def _is_fixed(number: int, name: str, value: bytes | None) -> bool:
    seen = bool(name) and all(unicodedata.category(each) not in showing.HARMFUL for each in name)
    return not seen or is_protected(name) or number >= _MOST or len(value or b"") > _LONGEST


def headers_from(request: HttpRequest, original: Pairs) -> tuple[list[HeaderField], list[tuple[str, bytes | None]]]:
    """Return what came back from the form, as fields and as headers; a field says what is wrong with it."""
    fields: list[HeaderField] = []
    pairs: list[tuple[str, bytes | None]] = []
    for number, (name, value) in enumerate(original):
        if _is_fixed(number, name, value):
            fields.append(_field(number, name, value))
            pairs.append((name, value))
            continue
        field, data = _typed(request, number, name, value)
        fields.append(field)
        if not field.removed:
            pairs.append((field.name, data))
    for number in range(len(original), len(original) + _EMPTY):
        field, data = _typed(request, number, "", None)
        fields.append(field)
        if field.name:
            pairs.append((field.name, data))
    return fields, pairs


def _typed(request: HttpRequest, number: int, name: str, value: bytes | None) -> tuple[HeaderField, bytes | None]:
    """Return one that may be altered; one that did not come back stays as it was."""
    place = f"header-{number}"
    if f"{place}-name" not in request.POST:
        return HeaderField(number=number, name=name, written=written_plainly(value)), value
    typed = request.POST[f"{place}-name"].strip()
    written = Written(notation=request.POST.get(f"{place}-notation", ""), text=request.POST.get(f"{place}-value", ""))
    removed = f"{place}-remove" in request.POST
    field = HeaderField(number=number, name=typed, written=written, removed=removed)
    if removed:
        return field, None
    if not typed and (name or written.text):
        return HeaderField(number=number, name=typed, written=written, error=_("A header needs a name.")), None
    try:
        return field, _bytes(written, value, new=not name)
    except ValueError as error:
        return HeaderField(number=number, name=typed, written=written, error=str(error)), None


def _bytes(written: Written, original: bytes | None, *, new: bool) -> bytes | None:
    before = written_plainly(original)
    text = written.text.replace("\r\n", "\n")
    if not new and (written.notation, text) == (before.notation, before.text):
        return original
    return read_plainly(written)
