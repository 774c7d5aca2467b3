"""One client of a schema registry for each cluster in a process, however many threads, topics and handlers ask.

It is made when somebody first asks, again when a secret or a certificate that it was made with has changed, after a
fork, and when it has seen very many schemas, of which the library would forget none. Requests go one after the other:
what one brings, the others need not ask for. While the registry does not answer, it is asked after growing pauses, and
who asks in between is told at once why.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from django.core.signals import setting_changed

from ... import conf
from ...conf.secrets import Secret
from ...exceptions import ConfigurationError, KafkaError, RegistryLoginRefused, RegistryUnavailable
from ..credentials import Properties
from ..scrubbing import Scrubber
from . import library, tokens
from .asked import Asked
from .refusals import Question, Refusals

T = TypeVar("T")

TYPES = Question(what="its types of schemas")
MOST = 1000
"""Schemas that are remembered."""
_MOST_UNKNOWN = 1000
_UNKNOWN_FOR = 5.0
"""Seconds for which an id that the registry does not know counts as unknown."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
"""Seconds in which a registry that did not answer is not asked again."""


class Registry:
    """The schema registry of one cluster, as this process sees it."""

    def __init__(self, cluster: conf.Cluster) -> None:
        self.settings = cluster.schema_registry
        self.timeout = self.settings.timeout or cluster.connection.timeout
        """Seconds that an answer may take, from whichever of its addresses."""
        self._properties = _properties(self.settings, cluster.name)
        self.scrub = Scrubber(self._properties)
        self.refusals = Refusals(cluster, self.scrub)
        self.generation = 0
        """Grows with each new client: what was made with an older one is made anew."""
        self._tokens: tokens.Tokens | None = None
        self._start()
        _known.add(self)

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._client: Any = None
        self._made_of: tuple[Any, ...] | None = None
        self._schemas: set[object] = set()
        self._unknown: OrderedDict[object, tuple[float, KafkaError]] = OrderedDict()
        self._pause = self._again_at = 0.0
        self._last: RegistryUnavailable | None = None
        self.generation += 1

    def __repr__(self) -> str:
        return f"<Registry {self.settings.url}>"

    def leave_behind(self) -> None:
        """Give up what a fork brought along: connections of the parent, and locks that its threads may have held."""
        # Not closed, and kept: the parent talks on over the same connections.
        _left_behind.append(self._client)
        self._start()

    def ask(self, question: Question, do: Callable[[Any], T], *, at_once: bool = False) -> T:
        """Return what `do` returns for the client, while nobody else asks.

        Raises `RegistryUnavailable`, or what else the registry's answer means; errors that are not about the registry
        are raised as they are. `at_once`: it is asked even if it did not answer a moment ago.
        """
        if not self._lock.acquire(timeout=self.timeout):
            raise RegistryUnavailable(f"{self.refusals.whole} has not answered others for {self.timeout:g} s.")
        try:
            changed = self._renew_what_changed()
            if self._last is not None and time.monotonic() < self._again_at and not (at_once or changed):
                raise self._told_again()
            answer = self._asked(question, do)
            self._pause, self._last = 0.0, None
            return answer
        finally:
            self._lock.release()

    def _asked(self, question: Question, do: Callable[[Any], T]) -> T:
        try:
            return do(self._client)
        except Exception as error:  # looked at, and raised again
            found = self.refused(error, question)
            if found is None:
                raise
        # Outside, and so without the library's frames: a page about an error shows the headers of requests in them.
        raise found

    def refused(self, error: Exception, question: Question) -> KafkaError | None:
        """Return what an error means that came of a request, and remember it; None when it came of none."""
        found = self.refusals.of(error, question)
        if isinstance(found, RegistryUnavailable):
            self._pause = min(max(self._pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
            self._again_at = time.monotonic() + self._pause
            self._last = found
            if isinstance(found, RegistryLoginRefused) and self._tokens is not None:
                self._tokens.forget()
        elif found is not None:
            self._pause, self._last = 0.0, None
        return found

    def types(self) -> list[str]:
        """Return the types of schemas that the registry has, asked now. Raises `RegistryUnavailable`, and others."""
        found: list[str] = self.ask(TYPES, lambda client: client.get_schema_types(), at_once=True)
        return found

    def _told_again(self) -> RegistryUnavailable:
        assert self._last is not None
        return type(self._last)(str(self._last))

    # What is remembered of schemas

    def note(self, schema: object) -> None:
        """Note that a schema was read; after very many of them everything is forgotten."""
        with self._lock:
            self._schemas.add(schema)
            if len(self._schemas) > MOST:
                self._close()

    def note_unknown(self, schema: object, error: KafkaError) -> None:
        """Note that the registry does not know an id."""
        with self._lock:
            self._unknown[schema] = (time.monotonic() + _UNKNOWN_FOR, error)
            while len(self._unknown) > _MOST_UNKNOWN:
                self._unknown.popitem(last=False)

    def unknown(self, schema: object) -> KafkaError | None:
        """Return what was said when the registry did not know an id a moment ago."""
        until, error = self._unknown.get(schema, (0.0, None))
        return error if error is not None and time.monotonic() < until else None

    # The client

    def _renew_what_changed(self) -> bool:
        """Make the client when there is none, or when it was made of other secrets or files; tell whether it did."""
        now = self._looks()
        if self._client is not None and now == self._made_of:
            return False
        again = self._client is not None
        try:
            made = self._make()
        except ConfigurationError:
            if not again:
                raise
            # A certificate and its key are replaced one after the other; until both are there the old ones do.
            return False
        self._close()
        self._client, self._made_of = made, now
        return again

    def _looks(self) -> tuple[Any, ...]:
        """Return something that is another one when a secret or a file is."""
        found: list[Any] = []
        for name, value in self._properties.items():
            if isinstance(value, Secret) and value.changes:
                with suppress(ConfigurationError):
                    found.append(hash(value.reveal()))
            elif name.startswith("ssl.") and name.endswith(".location") and isinstance(value, str):
                with suppress(OSError):
                    look = os.stat(value)
                    found.append((look.st_ino, look.st_mtime_ns, look.st_size))
        return tuple(found)

    def _make(self) -> Any:
        made, reason = self._try()
        if made is not None:
            return made
        raise ConfigurationError(
            f"A client for the schema registry of {self.refusals.path} cannot be made: {reason}. Look at "
            f'{self.refusals.path}["tls"].'
        )

    def _try(self) -> tuple[Any, str]:
        """Return a new client, or why there is none: what is raised here would show the secrets beside it."""
        package, chosen = library.load(), self._properties.revealed()
        self._learn(chosen)
        username, password = chosen.pop("username", ""), chosen.pop("password", "")
        if username:
            chosen["basic.auth.user.info"] = f"{username}:{password}"
        if tokens.wanted(self.settings):
            self._tokens = tokens.Tokens(self.settings, self.timeout / 2, self.refusals.path)
            self._tokens.learn = self.scrub.learn
            chosen |= {"bearer.auth.credentials.source": "CUSTOM", "bearer.auth.custom.provider.function": self._tokens,
                       "bearer.auth.custom.provider.config": {}}  # fmt: skip
        each = self.timeout / max(1, len(self.settings.urls))
        # For connecting, twice: TCP and TLS; for reading, writing, and waiting for a connection.
        chosen |= {"timeout": (each / 4, each / 2, each / 4, each / 4), "max.retries": 0,
                   "cache.latest.ttl.sec": self.settings.latest_for}  # fmt: skip
        try:
            return Asked(package.SchemaRegistryClient(chosen)), ""
        except Exception as error:  # noqa: BLE001  # files, certificates and addresses: it raises whatever it meets
            return None, self.scrub(f"{error} ({type(error).__name__})")

    def _learn(self, chosen: dict[str, Any]) -> None:
        for name, value in chosen.items():
            if isinstance(self._properties[name], Secret) and isinstance(value, str) and value:
                self.scrub.learn(value)

    def close(self) -> None:
        """Give the connections back; who asks again has others made."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        client, self._client, self._made_of = self._client, None, None
        if client is not None:
            # Not close(): only newer clients have it besides.
            client.__exit__(None, None, None)
        self._schemas = set()
        self.generation += 1


def _properties(settings: conf.SchemaRegistry, cluster: str) -> Properties:
    tls = settings.tls
    chosen: dict[str, Any] = {"url": settings.url}
    if settings.username:
        chosen |= {"username": settings.username, "password": settings.password}
    if tls.insecure_skip_verify:
        chosen["ssl.ca.location"] = False
    elif tls.ca_file:
        chosen["ssl.ca.location"] = tls.ca_file
    if tls.cert_file:
        # An empty password, too: without one the system would ask for it at the terminal.
        chosen |= {"ssl.certificate.location": tls.cert_file, "ssl.key.location": tls.key_file,
                   "ssl.key.password": tls.key_password}  # fmt: skip
    return Properties(chosen, cluster)


class _Registries:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.made: dict[str, tuple[conf.Cluster, Registry]] = {}


_registries = _Registries()
_left_behind: list[Any] = []
_known: weakref.WeakSet[Registry] = weakref.WeakSet()


def of(cluster: str = "default") -> Registry:
    """Return the registry of a cluster. Asks nothing. Raises `ConfigurationError` when settings name none."""
    settings = conf.cluster(cluster)
    if not settings.schema_registry.url:
        raise ConfigurationError(f"Cluster {cluster!r} has no schema registry: its `schema_registry` has no `url`.")
    with _registries.lock:
        found = _registries.made.get(cluster)
        if found is not None and found[0] == settings:
            return found[1]
        made = Registry(settings)
        _registries.made[cluster] = (settings, made)
        return made


def _leave_behind() -> None:
    _registries.lock = threading.Lock()
    for each in list(_known):
        each.leave_behind()


def _forget_settings(*, setting: str, **_event: Any) -> None:
    if setting == "KAFKA":
        before, _registries.made = _registries.made, {}
        for _cluster, registry in before.values():
            registry.close()


os.register_at_fork(after_in_child=_leave_behind)
setting_changed.connect(_forget_settings, dispatch_uid="django_kafka.clients.schema_registry")
