"""Addresses that are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .encryption import Encryption
from .findings import Finding
from .wire import Abilities

_PORT = 9092
"""Of an address that has none, as the client library has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An address, and how a way goes there."""

    host: str
    """Its name, or number."""
    port: int
    """Its port."""
    named_by: str
    """What names it: a setting, or the brokers."""
    mend: str
    """What to look at when it is wrong."""
    family: str = "any"
    """Which addresses are tried: any, v4 or v6."""
    encryption: Encryption | None = None
    """TLS, where it is on."""
    mechanism: str = ""
    """The login, where one is wanted."""
    path: str = "KAFKA"
    """Where settings stand."""
    lacks: Callable[[Abilities, str], Iterable[Finding]] = lambda _found, _of: ()
    """Says what is missed in what a broker knows."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address as settings write it."""
    bare = address.partition("://")[2] or address
    host, colon, port = bare.rpartition(":")
    if not colon or bare.endswith("]"):
        host, port = bare, str(_PORT)
    return host.strip("[]"), int(port)
