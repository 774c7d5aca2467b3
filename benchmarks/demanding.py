"""A broker that demands TLS and a SCRAM login."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.secured import PASSWORDS, Certificates, Provider, SecuredKafka


class Demanding(SecuredKafka):
    """The secured cluster of the tests, with the one login that is measured."""

    def login(self) -> dict[str, Any]:
        """Return what is under `security` in KAFKA."""
        sasl = {"mechanism": "SCRAM-SHA-512", "username": "alice", "password": PASSWORDS["alice"]}
        found: dict[str, Any] = self.settings("SAFE", sasl)["security"]
        return found


@contextmanager
def demanding(home: Path) -> Iterator[Demanding]:
    """Start one, and end it."""
    with Provider(home) as provider, Demanding(Certificates(home), provider) as broker:
        yield broker
