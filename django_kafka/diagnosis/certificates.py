"""What a certificate says: whose it is, who signed it, and until when it is good. Read as DER, as RFC 5280 has it.

Python's `ssl` tells this only of certificates that it trusts, and of those that are not one wants to know it most.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_COMMON_NAME, _ORGANIZATION, _OTHER_NAMES = b"\x55\x04\x03", b"\x55\x04\x0a", b"\x55\x1d\x11"
_VERSION, _EXTENSIONS, _UTC_TIME, _OCTETS, _DNS, _ADDRESS = 0xA0, 0xA3, 0x17, 0x04, 0x82, 0x87
_SOON = 14 * 86400.0
"""Seconds before its end in which a certificate has to be replaced, or the last third of a shorter life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate, read."""

    subject: str
    """Whose it is."""
    issuer: str
    """Who signed it."""
    begins: datetime
    """Since when it is good."""
    ends: datetime
    """Until when it is good."""
    names: tuple[str, ...]
    """The hosts that it is for."""

    def days(self, now: datetime) -> float:
        """Return for how many more days it is good; below 0 it has expired."""
        return (self.ends - now).total_seconds() / 86400

    def ends_soon(self, now: datetime) -> bool:
        """Tell whether it is time to replace it."""
        life = (self.ends - self.begins).total_seconds()
        return (self.ends - now).total_seconds() < min(_SOON, life / 3)

    def good_until(self, now: datetime) -> str:
        """Return when it ends, as words that follow its name."""
        days = self.days(now)
        day = f"{self.ends:%Y-%m-%d}"
        if days < 0:
            return f"expired on {day}, {_span(-days)} ago"
        return f"is good until {day}, for {_span(days)}"


def _span(days: float) -> str:
    if days >= 2:
        return f"{int(days)} days"
    hours = int(days * 24)
    return f"{hours} hours" if hours != 1 else "1 hour"


def of_file(path: str) -> Certificate:
    """Return the first certificate of a file. Raises `OSError`, and `ValueError` when there is none."""
    text = Path(path).read_text("ascii", "replace")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start, stop = text.find(begin), text.find(end)
    if start < 0 or stop < start:
        raise ValueError("it has no certificate in it")
    return read(ssl.PEM_cert_to_DER_cert(text[start : stop + len(end)]))


def read(der: bytes) -> Certificate:
    """Return what a certificate says. Raises `ValueError` when it is none."""
    try:
        return _read(der)
    except (IndexError, KeyError, UnicodeError) as error:
        raise ValueError("it cannot be read as a certificate") from error


def _read(der: bytes) -> Certificate:
    (_tag, whole), *_rest = _parts(der)
    signed = list(_parts(next(_parts(whole))[1]))
    if signed[0][0] == _VERSION:
        signed = signed[1:]
    _serial, _algorithm, issuer, validity, subject = (value for _tag, value in signed[:5])
    begins, ends = (_time(*part) for part in list(_parts(validity))[:2])
    extensions = next((value for tag, value in signed[5:] if tag == _EXTENSIONS), b"")
    return Certificate(
        subject=_name(subject), issuer=_name(issuer), begins=begins, ends=ends, names=tuple(_hosts(extensions))
    )


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and value of what stands one after the other."""
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            width = size & 0x7F
            size = int.from_bytes(data[at : at + width])
            at += width
        if at + size > len(data):
            raise IndexError
        yield tag, data[at : at + size]
        at += size


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii").removesuffix("Z")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)


def _name(value: bytes) -> str:
    found: dict[bytes, str] = {}
    for _tag, group in _parts(value):
        for _tag_of_pair, pair in _parts(group):
            (_kind, key), (_form, text) = list(_parts(pair))[:2]
            found[key] = text.decode("utf-8", "replace")
    return found.get(_COMMON_NAME) or found.get(_ORGANIZATION) or next(iter(found.values()), "nobody")


def _hosts(extensions: bytes) -> Iterator[str]:
    for _tag, listed in _parts(extensions):
        for _tag_of_one, one in _parts(listed):
            (_kind, key), *values = _parts(one)
            if key != _OTHER_NAMES:
                continue
            (names,) = (value for tag, value in values if tag == _OCTETS)
            for tag, name in _parts(next(_parts(names))[1]):
                if tag == _DNS:
                    yield name.decode("ascii", "replace")
                elif tag == _ADDRESS:
                    yield str(ipaddress.ip_address(name))
