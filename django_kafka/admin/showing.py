"""Text of strangers, made harmless for people's eyes. Escaping HTML is left to templates and `format_html`."""

from __future__ import annotations

import codecs
import json
import unicodedata
from datetime import datetime
from typing import Any

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext as _

HARMFUL = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
"""Categories of Unicode that are shown as code points: control, format (bidirectional ones too), unknown, line ends."""


class _Table(dict[int, "int | str"]):
    """Maps a code point to what is shown for it; filled as characters are met."""

    def __init__(self, kept: str) -> None:
        super().__init__((ord(each), ord(each)) for each in kept)

    def __missing__(self, point: int) -> int | str:
        harmless = unicodedata.category(chr(point)) not in HARMFUL
        shown = point if harmless else _escaped(point)
        if len(self) < 10_000:
            self[point] = shown
        return shown


def _escaped(point: int) -> str:
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"


_LINE = _Table("")
_LINES = _Table("\n\t")


def line(text: str, longest: int = 200) -> str:
    """Return text as one line; what is invisible or turns the writing direction is shown as `\\uXXXX`."""
    cut = text[: longest + 1].translate(_LINE)
    return cut if len(text) <= longest else f"{cut[:longest]}…"


def lines(text: str) -> str:
    """Return text of many lines, made harmless likewise."""
    return text.replace("\r\n", "\n").translate(_LINES)


def topic(name: str, longest: int = 300) -> str:
    """Return the name of a topic, of which Kafka allows ASCII only; a letter that only looks like one is `\\uXXXX`."""
    shown = line(name, longest)
    end = "…" if len(name) > longest else ""
    return "".join(each if each.isascii() else _escaped(ord(each)) for each in shown.removesuffix(end)) + end


def first_line(text: str, longest: int = 160) -> str:
    """Return the first line of an error that says anything."""
    return line(next((each for each in text.splitlines() if each.strip()), ""), longest)


def moment(at: datetime) -> str:
    """Return a time as people here read it; in some projects times have no zone."""
    return date_format(timezone.localtime(at) if timezone.is_aware(at) else at, "SHORT_DATETIME_FORMAT")


def ago(at: datetime) -> SafeString:
    """Return how long ago a time is, in its largest unit, with the time itself where a pointer rests on it."""
    seconds = (timezone.now() - at).total_seconds() if timezone.is_aware(at) else 60
    said = _("just now") if 0 <= seconds < 60 else _("%s ago") % timesince(at, depth=1)
    return format_html('<span title="{}">{}</span>', moment(at), said)


def quietly(first: str, *more: str) -> SafeString:
    """Return what a cell of a list is about, and below it what belongs to it, without what says nothing."""
    below = " · ".join(one for one in more if one)
    return (
        format_html('{}<br><span class="lynx-kafka-quiet">{}</span>', first, below)
        if below
        else format_html("{}", first)
    )


def as_text(data: bytes) -> str:
    """Return bytes as text, with `\\xNN` for what is no UTF-8."""
    return lines(data.decode("utf-8", "backslashreplace"))


def brief(data: bytes, *, whole: bool = True, longest: int = 40) -> str:
    """Return bytes in one line: their text, or in hexadecimal when they are none.

    `whole` is False when `data` is only the beginning.
    """
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=whole)
    except UnicodeDecodeError:
        text = f"0x{data.hex()}"
    shown = line(text, longest)
    return shown if whole or shown.endswith("…") else f"{shown}…"


def hex_dump(data: bytes) -> str:
    """Return offset, sixteen bytes and their ASCII, line by line."""
    rows = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        ascii_ = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        rows.append(f"{start:08x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  {ascii_}")
    return "\n".join(rows)


def pretty(value: Any, longest: int) -> str:
    """Return a decoded value for reading: JSON with indents where it can be, else what Python calls it.

    Indents may make much out of little; beyond `longest` characters there are none.
    """
    if isinstance(value, bytes):
        return as_text(value)
    if isinstance(value, str):
        return lines(value)
    for indent in (2, None):
        try:
            pieces, length = [], 0
            for piece in json.JSONEncoder(indent=indent, ensure_ascii=False, default=repr).iterencode(value):
                pieces.append(piece)
                length += len(piece)
                if length > longest:
                    break
            else:
                return lines("".join(pieces))
        except (TypeError, ValueError, RecursionError):
            break
    return lines(repr(value)[:longest])
