"""Properties that hold secrets without showing them, and what is done when secrets or certificates change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..conf.secrets import Secret, hidden, masked, revealed
from ..exceptions import ConfigurationError
from .scrubbing import Scrubber
from .tokens import TokenFunction

_LOOK_EVERY = 1.0
"""Seconds between two looks at files that may have changed."""
_LOGIN = ("sasl.username", "sasl.password")


class Properties(dict[str, Any]):
    """librdkafka's properties for one client. A page that shows the locals of an error shows no secret in them."""

    __slots__ = ("cluster",)

    def __init__(self, values: Mapping[str, Any], cluster: str = "default") -> None:
        """`cluster` is the name of the one that they lead to."""
        super().__init__({name: hidden(name, value) for name, value in values.items()})
        self.cluster = cluster

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Properties:
        """Return what these are, hidden where they have to be."""
        return values if isinstance(values, Properties) else cls(values)

    def __repr__(self) -> str:
        return repr(masked(dict(self)))

    def with_(self, more: Mapping[str, Any]) -> Properties:
        """Return a copy with more, which wins."""
        return Properties({**self, **more}, self.cluster)

    def revealed(self) -> dict[str, Any]:
        """Return them as the library takes them; keep the result in no variable. Raises `ConfigurationError`."""
        return {name: revealed(value) for name, value in self.items()}

    def prepare(self, scrub: Scrubber) -> None:
        """Fetch what has to be there before a client is made. Raises `AuthenticationFailed`."""
        function = self.get("oauth_cb")
        if isinstance(function, TokenFunction):
            function.learn = scrub.learn
            function.prepare()


class Rotation:
    """Notices that credentials or certificates are others than those that a client was made with."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._properties = properties
        kept = [value for value in properties.values() if isinstance(value, Secret) and value.changes]
        login = [properties[name] for name in _LOGIN if name in properties]
        self._login = login if any(one in kept for one in login) else []
        self._others = [one for one in kept if one not in login]
        self._files = [
            value
            for name, value in properties.items()
            if name.startswith(("ssl.", "https.")) and name.endswith(".location") and isinstance(value, str)
        ]
        self._next = time.monotonic() + _LOOK_EVERY
        self._login_now = self._read(self._login)
        self._rest_now = self._rest_before = self._rest()

    def __bool__(self) -> bool:
        return bool(self._login or self._others or self._files)

    def look(self, log_in: Callable[[str, str], None], renew: Callable[[], bool]) -> None:
        """Look, at most once a second: hand a new name and password to `log_in`, and have all else renewed.

        `renew` makes a new client of the same properties, which are read anew, and tells whether it could.
        """
        if not self or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_EVERY
        login = self._read(self._login)
        if login is not None and login != self._login_now:
            self._login_now = login
            log_in(*(one.reveal() if isinstance(one, Secret) else one for one in self._both()))
        rest = self._rest()
        # A certificate and its key are replaced one after the other: both have to rest for a moment.
        if rest is not None and rest == self._rest_before and rest != self._rest_now:
            self._rest_now = rest
            if renew():
                self._login_now = self._read(self._login)
        self._rest_before = rest

    def _both(self) -> list[Any]:
        return [self._properties[name] for name in _LOGIN]

    @staticmethod
    def _read(secrets: list[Any]) -> tuple[int, ...] | None:
        """Return something that is another one when the secrets are; None when they cannot be read now."""
        try:
            return tuple(hash(revealed(one)) for one in secrets)
        except ConfigurationError:
            return None

    def _rest(self) -> tuple[Any, ...] | None:
        try:
            looks = [os.stat(path) for path in self._files]
        except OSError:
            return None
        secrets = self._read(self._others)
        return None if secrets is None else (*((one.st_ino, one.st_mtime_ns, one.st_size) for one in looks), *secrets)
