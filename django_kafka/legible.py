"""Text of strangers on one line of a log or terminal: it begins no line, moves no cursor, and turns no writing."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text without what a terminal obeys or a log reads as its next line: shown as `\\uXXXX`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(ord(each)) for each in text)


def _escaped(point: int) -> str:
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"
