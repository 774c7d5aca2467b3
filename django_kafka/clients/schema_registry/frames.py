"""How the id of a schema stands before the bytes of a value: a magic byte, and then the id."""

from __future__ import annotations

BY_ID, BY_GUID = 0, 1
"""The magic bytes: 4 bytes of an id follow, or 16 of a globally unique one."""
LENGTHS = {BY_ID: 5, BY_GUID: 17}
"""Bytes of both together, by the magic byte."""


def id_in(start: bytes) -> str:
    """Return the id in the beginning of a frame, in words."""
    if start[0] == BY_ID:
        return f"schema id {int.from_bytes(start[1:], 'big')}"
    return f"schema guid {start[1:].hex()}"


def fault_of(frame: bytes) -> str:
    """Return why bytes are no frame."""
    if not frame:
        return "there is nothing; framing of a schema registry begins with the byte 0 or 1"
    if frame[0] not in LENGTHS:
        return f"its first byte is {frame[0]}; framing of a schema registry begins with 0 or 1"
    return f"its {len(frame)} bytes end within the id of the schema"
