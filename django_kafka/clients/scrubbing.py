"""Secrets taken out of what the client library says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..conf.secrets import MASK, is_secret, without_login

_SHORTEST_PART = 4


class Scrubber:
    """Masks the secrets of one client's properties, and logins in addresses.

    librdkafka quotes what it cannot read, and sometimes only the end of it: each word of a secret counts as one.
    """

    def __init__(self, properties: Mapping[str, Any]) -> None:
        whole = {value for name, value in properties.items() if isinstance(value, str) and value and is_secret(name)}
        parts = {part for value in whole for part in value.split() if len(part) >= _SHORTEST_PART}
        self._secrets = sorted(whole | parts, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return `text` without them."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return without_login(text)
