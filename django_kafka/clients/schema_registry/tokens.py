"""Bearer tokens for a registry: as settings have them, from a function of the project, or from a provider."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from ... import conf
from ...conf.secrets import revealed
from ...exceptions import RegistryLoginRefused, RegistryUnavailable
from ..tokens import TokenFunction

_EARLY = 0.8
"""Which part of its life a token is used for."""
_LARGEST = 1_000_000
"""Bytes of a provider's answer that are read."""


class Tokens:
    """Has a token whenever a request is made; asked by the library in any thread."""

    def __init__(self, settings: conf.SchemaRegistry, timeout: float, path: str) -> None:
        self._settings = settings
        self._timeout = timeout
        self._path = f'{path}["oauth"]'
        self._function = TokenFunction(settings.oauth.function) if settings.oauth.function else None
        self._lock = threading.Lock()
        self._token = ""
        self._until = 0.0
        self.learn: Callable[[str], None] = lambda _token: None
        """Is told each token, which must not be shown."""

    def __call__(self, _configuration: object) -> dict[str, str]:
        """Return what the library puts into the headers of a request."""
        cluster, pool = self._settings.logical_cluster, self._settings.identity_pool
        fields = {"bearer.auth.token": self._now(), "bearer.auth.logical.cluster": cluster}
        return {**fields, "bearer.auth.identity.pool.id": pool} if pool else fields

    def forget(self) -> None:
        """Fetch another one the next time."""
        self._until = 0.0

    def _now(self) -> str:
        if self._settings.token:
            token = self._settings.token.reveal()
            self.learn(token)
            return token
        with self._lock:
            if time.time() >= self._until:
                self._token, expires = self._from_function() if self._function else self._from_provider()
                self.learn(self._token)
                self._until = time.time() + (expires - time.time()) * _EARLY
            return self._token

    def _from_function(self) -> tuple[str, float]:
        assert self._function is not None
        self._function.learn = self.learn
        self._function.prepare()
        token, expires, _principal, _extensions = self._function(None)
        return token, expires

    def _from_provider(self) -> tuple[str, float]:
        """Return a token and when it expires; what is raised has nothing of a request beside it."""
        token, expires, refused, broken = self._fetch()
        if refused:
            raise RegistryLoginRefused(
                f"The provider of tokens at {self._settings.oauth.token_url} refuses the client of the schema "
                f"registry: {refused}. Look at `client_id` and `client_secret` in {self._path}."
            )
        if broken:
            raise RegistryUnavailable(
                f"The provider of tokens for the schema registry at {self._settings.oauth.token_url} gives none: "
                f"{broken}. Look at {self._path}."
            )
        return token, expires

    def _fetch(self) -> tuple[str, float, str, str]:
        """Return a token, when it expires, and why there is none: because of the login, or of something else."""
        oauth = self._settings.oauth
        form = {"grant_type": "client_credentials", **({"scope": oauth.scope} if oauth.scope else {})}
        headers = {"Authorization": _basic(oauth), "Accept": "application/json"}
        request = urllib.request.Request(oauth.token_url, urllib.parse.urlencode(form).encode(), headers)
        try:
            context = ssl.create_default_context(cafile=oauth.ca_file or None)
            with urllib.request.urlopen(request, timeout=self._timeout, context=context) as answer:
                told = json.loads(answer.read(_LARGEST))
            return str(told["access_token"]), time.time() + float(told.get("expires_in", 300)), "", ""
        except urllib.error.HTTPError as error:
            said = f"HTTP {error.code}"
            return ("", 0.0, said, "") if error.code in (400, 401, 403) else ("", 0.0, "", said)
        except OSError as error:
            return "", 0.0, "", str(getattr(error, "reason", error))
        except (ValueError, KeyError, TypeError, AttributeError):
            return "", 0.0, "", "what it says is no token"


def _basic(oauth: conf.OAuth) -> str:
    # As RFC 6749 has it: both are quoted before they are put together.
    who, proof = (urllib.parse.quote(str(revealed(one)), safe="") for one in (oauth.client_id, oauth.client_secret))
    return "Basic " + base64.b64encode(f"{who}:{proof}".encode()).decode()


def wanted(settings: conf.SchemaRegistry) -> bool:
    """Tell whether a registry is logged in to with a token."""
    return bool(settings.token or settings.oauth.function or settings.oauth.token_url)
