"""OAUTHBEARER tokens of a function of the project."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.utils.module_loading import import_string

from .. import logs
from ..exceptions import AuthenticationFailed, ConfigurationError

log = logs.of("django_kafka.client")

_REFUSED = ("", 1.0)
"""What the client takes for no token. It must not see an exception, which would discard messages it has fetched."""
Token = tuple[Any, ...]


class TokenFunction:
    """Asks the function at a dotted path for a token, whenever the client wants one.

    The function takes nothing and returns `(token, expires)` or `(token, expires, principal, extensions)`: `expires` in
    seconds since 1970, or a `datetime` with a time zone.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._first: Token | None = None
        self.learn: Callable[[str], None] = lambda _token: None
        """Is told each token, which must not be shown."""

    def __repr__(self) -> str:
        return f"<TokenFunction {self.path}>"

    def prepare(self) -> None:
        """Fetch the first token. Raises `AuthenticationFailed`: the client would wait ten seconds for it."""
        try:
            self._first = self._ask()
        except Exception as error:  # noqa: BLE001  # it is not ours
            # Not chained: its locals may hold the token, or what it was fetched with.
            raise AuthenticationFailed(self._sentence(error)) from None

    def __call__(self, _configuration: object) -> Token:
        """Return a token, or what the client takes for none."""
        first, self._first = self._first, None
        if first is not None:
            return first
        try:
            return self._ask()
        except Exception as error:  # noqa: BLE001  # nothing may leave a callback of the client
            with suppress(Exception):
                log.error("%s The client asks again.", self._sentence(error))
            return _REFUSED

    def _ask(self) -> Token:
        try:
            function = import_string(self.path)
        except ImportError as error:
            raise ConfigurationError(f"it cannot be imported ({error})") from None
        answer = function()
        if not isinstance(answer, tuple | list) or len(answer) not in (2, 3, 4):
            raise ConfigurationError("it did not return (token, expires) or (token, expires, principal, extensions)")
        parts: list[Any] = [*answer, *("", {})[len(answer) - 2 :]]
        token, expires, principal, extensions = parts
        if not isinstance(token, str) or not token:
            raise ConfigurationError(f"its token is of type {type(token).__name__}, or empty; allowed: a text")
        self.learn(token)
        if not isinstance(principal, str) or not isinstance(extensions, Mapping):
            raise ConfigurationError("its principal has to be a text, and its extensions a dict of texts")
        return token, _seconds(expires), principal, {str(name): str(value) for name, value in extensions.items()}

    def _sentence(self, error: Exception) -> str:
        # What other errors say may hold anything, the token too.
        said = f": {error}" if isinstance(error, ConfigurationError) else ""
        return f"The token function {self.path!r} gave no token ({type(error).__name__}{said})."


def _seconds(expires: object) -> float:
    if isinstance(expires, datetime) and expires.tzinfo is not None:
        expires = expires.timestamp()
    if isinstance(expires, bool) or not isinstance(expires, int | float) or not math.isfinite(expires):
        raise ConfigurationError(
            f"its time of expiry is of type {type(expires).__name__}; allowed: seconds since 1970, or a datetime with "
            "a time zone"
        )
    if expires <= time.time():
        raise ConfigurationError("its token has expired already; the second value is a moment, not a span of time")
    return float(expires)
