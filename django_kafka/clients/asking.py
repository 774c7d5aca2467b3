"""The client that asks brokers, made with the login that holds now, and typed errors when it is refused."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import confluent_kafka
from confluent_kafka.admin import AdminClient

from ..exceptions import AuthenticationFailed, AuthorizationFailed, ConfigurationError
from . import errors
from .credentials import Properties, Rotation
from .logs import ClientLog
from .making import make
from .refusals import Refusals
from .scrubbing import Scrubber

_LONGEST = 3600.0
"""Seconds for which the library can be told to wait for an answer, at most."""

_Key = TypeVar("_Key")


class Unreachable(ConfigurationError):
    """A cluster did not answer."""


class UnreachableLogin(AuthenticationFailed, Unreachable):
    """A cluster did not answer, because it refuses the login, or its certificate is not trusted."""


class Forbidden(AuthorizationFailed, Unreachable):
    """A cluster did not answer, because this login may not ask."""


class AskingClient:
    """Holds an `AdminClient` for one cluster, and another one when credentials or certificates have changed.

    For any number of threads, and for children that were forked: each process has its own.
    """

    def __init__(self, properties: Properties) -> None:
        self._properties = properties
        self._lock = threading.RLock()
        self.scrub = Scrubber(properties)
        self._refusals = Refusals(properties, self.scrub)
        self._rotation = Rotation(properties)
        self._log = ClientLog("admin", properties.cluster, self.scrub)
        self._login: str | None = None
        """What is refused about the login, if that was the last trouble."""
        self._client: AdminClient | None = self._make()
        _known.add(self)

    @property
    def now(self) -> Any:
        """The client to ask with; to be held until the answer is there. Raises `ConfigurationError` after a fork."""
        with self._lock:
            if self._client is None:
                self._client = self._make()
            self._rotation.look(self._log_in, self._renew)
            client = self._client
        # What it tells of itself waits for somebody to poll: it would pile up in a client that lives for long.
        client.poll(0)
        return client

    def ask_coordinators(
        self, ask: Callable[[Any, float], Mapping[_Key, Future[Any]]], seconds: float
    ) -> Mapping[_Key, Future[Any]]:
        """Return the answers of those who coordinate groups; what is not done by then was not answered in `seconds`.

        `ask` gets the client, and for how many seconds the library shall wait.
        """
        # When its own time is over before it has a connection to a coordinator, librdkafka (2.16; its issue 4605) frees
        # what waits, and uses that once the coordinator is there: the process is aborted. So we wait, and end what
        # waits together with its client.
        client = self.now
        answers = ask(client, _LONGEST)
        if wait(answers.values(), seconds).not_done:
            self._give_up(client)
        return answers

    def _give_up(self, client: Any) -> None:
        # It tells why it has no connection only to who polls.
        client.poll(0)
        with self._lock:
            if self._client is client:
                self._client = None

    def answered(self) -> None:
        """Note that brokers have answered: what they refused before is over."""
        self._login = None

    def failure(
        self, sentence: str, error: BaseException, *, topic: str | None = None, group: str | None = None
    ) -> Unreachable:
        """Return the typed error for what `error` left unanswered."""
        cause = errors.of(error)
        if cause is not None and (why := self._refusals.permission(cause, topic=topic, group=group)):
            return Forbidden(f"{sentence}: {why}")
        # The client tells why it has no connection only to who polls.
        if (client := self._client) is not None:
            client.poll(0)
        if self._login is not None:
            return UnreachableLogin(f"{sentence}: {self._login}")
        return Unreachable(f"{sentence}: {self.scrub(errors.sentence(error))}")

    def _make(self) -> AdminClient:
        what = f"A client for cluster {self._properties.cluster!r}"
        return make(AdminClient, what, self._properties, self.scrub, self._log, {"error_cb": self._note})

    def _note(self, error: confluent_kafka.KafkaError) -> None:
        if error.name() != "_ALL_BROKERS_DOWN":
            self._login = self._refusals.login(error)

    def _log_in(self, username: str, password: str) -> None:
        self.scrub.learn(password)
        assert self._client is not None
        self._client.set_sasl_credentials(username, password)

    def _renew(self) -> bool:
        try:
            self._client = self._make()
        except ConfigurationError:
            return False
        return True

    def leak(self) -> None:
        """Let the inherited client never be destroyed, and have another one made when it is asked for."""
        if self._client is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._client))
            self._client = None
        self._lock = threading.RLock()


_known: weakref.WeakSet[AskingClient] = weakref.WeakSet()


def _leak_inherited() -> None:
    # As in `producer`: librdkafka's threads do not survive `fork()`, and what is destroyed there waits for them.
    for client in list(_known):
        client.leak()


os.register_at_fork(after_in_child=_leak_inherited)
