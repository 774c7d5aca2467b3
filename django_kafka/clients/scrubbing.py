"""Secrets, and what would begin a line of its own, taken out of what the client library says."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..conf.secrets import MASK, Secret, is_secret, revealed, without_login
from ..exceptions import ConfigurationError
from ..legible import printable

_SHORTEST_PART = 4
_MOST = 200
"""Secrets that are learnt and remembered: tokens come anew all the time."""


class Scrubber:
    """Masks the secrets of one client's properties, and logins in addresses.

    librdkafka quotes what it cannot read, and sometimes only the end of it: each word of a secret counts as one.
    """

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._own: list[str] = []
        self._learnt: deque[str] = deque(maxlen=_MOST)
        self._secrets: list[str] = []
        for name, value in properties.items():
            if is_secret(name) and isinstance(value, str | Secret):
                # What cannot be read now is not told to the library either.
                with suppress(ConfigurationError):
                    self._own += _parts(revealed(value))
        self._sort()

    def learn(self, secret: str) -> None:
        """Mask one more secret from now on: a token, or a password that replaced another."""
        self._learnt.extend(_parts(secret))
        self._sort()

    def _sort(self) -> None:
        # The longest first, and a new list, because lines of other threads are looked at meanwhile.
        self._secrets = sorted({*self._own, *self._learnt}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return `text` without them, on one line: brokers choose the words of some errors, and names within others."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return printable(without_login(text))


def _parts(secret: str) -> list[str]:
    return [part for part in {secret, *(part for part in secret.split() if len(part) >= _SHORTEST_PART)} if part]
