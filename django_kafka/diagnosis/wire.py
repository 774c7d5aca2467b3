"""As much of Kafka's protocol as can be spoken before a login: which requests a broker knows, and which logins.

It is spoken here, and not by the client library, because that tells neither; the format is Kafka's own, described in
its protocol guide (ApiVersions 3 and 0, SaslHandshake 1).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .. import __version__

_API_VERSIONS, SASL_HANDSHAKE = 18, 17
"""The keys of our two requests."""
_NUMBER = 1
"""What our only request on a connection is called."""
_LONGEST = 1 << 20
"""Bytes of an answer; a longer one is none of a broker."""
_UNSUPPORTED_VERSION, _ILLEGAL_SASL_STATE = 35, 34
_NAME = b"django-kafka-doctor"


class Connection(Protocol):
    """A socket, encrypted or not."""

    def sendall(self, data: bytes, /) -> None:
        """Send all."""

    def recv(self, size: int, /) -> bytes:
        """Return what came, b"" when the other side has ended."""


class NotKafka(Exception):
    """What answers does not speak Kafka's protocol; `head` is how its answer begins."""

    def __init__(self, head: bytes) -> None:
        super().__init__("It does not answer as a broker does.")
        self.head = head


class Ended(NotKafka):
    """The other side ended the connection instead of answering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a broker knows."""

    requests: Mapping[int, tuple[int, int]]
    """The key of each kind of request, and the lowest and highest version of it."""
    features: Mapping[str, int] = field(default_factory=dict)
    """Features that the cluster has agreed on, and their levels; empty before Kafka 2.7."""


def abilities(connection: Connection) -> Abilities:
    """Ask a broker what it knows. Raises `NotKafka`, `Ended`, and what the connection raises."""
    software = _compact(_NAME) + _compact(__version__.encode()) + b"\0"
    answer = _ask(connection, _API_VERSIONS, 3, software, flexible=True)
    error = answer.short()
    if error == _UNSUPPORTED_VERSION:
        # It is older, or the embedded cluster; then there are no features.
        answer = _ask(connection, _API_VERSIONS, 0, b"", flexible=False)
        error = answer.short()
        if not error:
            return Abilities(requests=dict(_request(answer) for _ in range(answer.integer())))
    if error:
        raise NotKafka(answer.data[:8])
    requests = {}
    for _ in range(answer.variable() - 1):
        key, versions = _request(answer)
        requests[key] = versions
        answer.skip_tags()
    answer.integer()  # for how long the broker wants to be left alone
    return Abilities(requests=requests, features=_features(answer))


def mechanisms(connection: Connection, mine: str) -> tuple[str, ...]:
    """Ask a broker which logins it takes here, `mine` being ours if any; none: it takes no login here at all.

    To be asked after `abilities`, on the same connection. Raises `NotKafka`, `Ended`, and what the connection raises.
    """
    # Brokers count logins that fail, and a mechanism that they do not have is one: ours is asked for, and it is only
    # without one that this cannot be helped.
    answer = _ask(connection, SASL_HANDSHAKE, 1, _text(mine.encode() or b"NONE"), flexible=False)
    if answer.short() == _ILLEGAL_SASL_STATE:
        return ()
    return tuple(answer.text() for _ in range(answer.integer()))


def _ask(connection: Connection, key: int, version: int, body: bytes, *, flexible: bool) -> _Answer:
    head = struct.pack(">hhi", key, version, _NUMBER) + _text(_NAME) + (b"\0" if flexible else b"")
    request = head + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    begin = _read(connection, 8, b"")
    size, number = struct.unpack(">ii", begin)
    if number != _NUMBER or not 4 <= size <= _LONGEST:
        raise NotKafka(begin)
    return _Answer(_read(connection, size - 4, begin))


def _read(connection: Connection, size: int, begin: bytes) -> bytes:
    found = b""
    while len(found) < size:
        if not (piece := connection.recv(size - len(found))):
            raise Ended(begin or found)
        found += piece
    return found


def _text(value: bytes) -> bytes:
    return struct.pack(">h", len(value)) + value


def _compact(value: bytes) -> bytes:
    # Of ours none is so long that its length takes more than a byte.
    return bytes([len(value) + 1]) + value


def _request(answer: _Answer) -> tuple[int, tuple[int, int]]:
    return answer.short(), (answer.short(), answer.short())


def _features(answer: _Answer) -> dict[str, int]:
    found = {}
    for _ in range(answer.variable()):
        tag, size = answer.variable(), answer.variable()
        part = _Answer(answer.take(size))
        if tag == 2:
            for _ in range(part.variable() - 1):
                name = part.take(part.variable() - 1).decode()
                found[name] = part.short()
                part.short()
                part.skip_tags()
    return found


class _Answer:
    """Bytes that are read from their beginning. What is cut short raises `NotKafka`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        if size < 0 or self._at + size > len(self.data):
            raise NotKafka(self.data[:8])
        self._at += size
        return self.data[self._at - size : self._at]

    def short(self) -> int:
        return int.from_bytes(self.take(2), signed=True)

    def integer(self) -> int:
        return int.from_bytes(self.take(4), signed=True)

    def variable(self) -> int:
        found = shift = 0
        while True:
            byte = self.take(1)[0]
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
            shift += 7

    def text(self) -> str:
        return self.take(self.short()).decode("utf-8", "replace")

    def skip_tags(self) -> None:
        for _ in range(self.variable()):
            self.variable()
            self.take(self.variable())
