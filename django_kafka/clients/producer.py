"""The client that sends."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import confluent_kafka

from .. import logs, tallies
from ..exceptions import ConfigurationError, DeliveryFailed, ProduceError
from . import errors, statistics
from .credentials import Properties, Rotation
from .logs import ClientLog
from .making import counting, make
from .refusals import Refusals
from .scrubbing import Scrubber

log = logs.of("django_kafka.client")

_GATHER = 0.05
_LOOK = 0.1
"""Seconds that the serving thread stays in the client; closing waits for it."""
_REPEAT_LOG = 30.0
"""Seconds between two lines about a login that is refused."""


class ProducerClient:
    """A librdkafka producer and the thread that serves its delivery reports."""

    def __init__(
        self,
        name: str,
        properties: Mapping[str, Any],
        on_unreachable: Callable[[str], None],
        look: Callable[[], None],
    ) -> None:
        self.name = name
        self.refused_login: str | None = None
        """What there is to say of a login or certificate that is refused, if that was the last trouble."""
        self._said_at = -_REPEAT_LOG
        self._properties = Properties.of(properties)
        self._on_unreachable = on_unreachable
        self._look = look
        self._scrub = Scrubber(self._properties)
        self.refusals = Refusals(self._properties, self._scrub)
        """Says what is refused to it."""
        self._rotation = Rotation(self._properties)
        # A client may call back while it is made.
        self._connections = statistics.Connections(tallies.of_producer(name))
        self._client, self._connections = self._make()
        self._retired: list[confluent_kafka.Producer] = []
        """Clients of earlier certificates, until what they were given is delivered."""
        self.produce: Callable[..., Any] = self._client.produce
        _made.add(self)
        self.serve = self._client.poll
        """Serve delivery reports in the calling thread: `serve(seconds)`."""
        self._waiting = 0
        self._counting = threading.Lock()
        self._hurry = threading.Event()
        self._refusing = self._stopping = self._closed = False
        self._kept_up = False
        """Whether a thread that sends has served reports since this client's own thread looked last."""
        self._thread = threading.Thread(target=self._serve, name=f"kafka-producer-{name}", daemon=True)
        self._thread.start()

    def _make(self) -> tuple[confluent_kafka.Producer, statistics.Connections]:
        connections = statistics.Connections(tallies.of_producer(self.name))
        own = {"error_cb": self._on_error, "stats_cb": connections.note}
        made = make(
            confluent_kafka.Producer, f"Producer {self.name!r}", counting(self._properties), self._scrub,
            ClientLog("producer", self.name, self._scrub), own,
        )  # fmt: skip
        return made, connections

    def _serve(self) -> None:
        while not self._stopping:
            self._look()
            self._look_at_credentials()
            # A thread that wakes for every report takes the interpreter away from the one that produces, which costs
            # a third of its speed. So reports gather for a moment, unless somebody waits for one, and those that the
            # one that produces has served meanwhile are left to it.
            if self._kept_up and not self._waiting:
                self._kept_up = False
            elif not self._serve_robustly() or self._waiting:
                continue
            self._hurry.wait(_GATHER)
            self._hurry.clear()

    def keep_up(self) -> None:
        """Serve the delivery reports that are there, in a thread that sends many records."""
        self._kept_up = True
        self.serve(0)

    def _serve_robustly(self) -> int:
        try:
            return self.serve(_LOOK)
        except BaseException:  # without this thread no delivery would ever settle again
            with suppress(Exception):
                log.exception("producer=%s a callback failed", self.name)
            return 1

    def _look_at_credentials(self) -> None:
        try:
            self._rotation.look(self._log_in, self._renew)
            for old in list(self._retired):
                old.poll(0)
                if not len(old):
                    self._retired.remove(old)
        except Exception:  # this thread must live on
            with suppress(Exception):
                log.exception("producer=%s new credentials cannot be used", self.name)

    def _log_in(self, username: str, password: str) -> None:
        self._scrub.learn(password)
        self._client.set_sasl_credentials(username, password)
        log.info("producer=%s logs in with new credentials from now on", self.name)

    def _renew(self) -> bool:
        """Go over to a new client; the old one still delivers what it was given."""
        try:
            client, connections = self._make()
        except ConfigurationError as error:
            log.error("producer=%s stays with what it has; what is new cannot be used: %s", self.name, error)
            return False
        with self._counting:
            if self._closed:
                return False
            self._retired.append(self._client)
            self._connections.closed()
            self._client, self._connections = client, connections
            self.serve = client.poll
            if not self._refusing:
                self.produce = client.produce
        log.info("producer=%s goes on with new certificates", self.name)
        return True

    def hurry(self, waiting: int) -> None:
        """Note that one more (1) or one less (-1) waits for a delivery report."""
        if threading.current_thread() is self._thread:
            raise ConfigurationError(
                "Receivers of record_delivered and delivery_failed cannot wait for a delivery: they run in the thread "
                "that would tell of it."
            )
        with self._counting:
            self._waiting += waiting
        self._hurry.set()

    def _on_error(self, error: confluent_kafka.KafkaError) -> None:
        # What the project's logging raises must not leave a callback of the client.
        with suppress(Exception):
            self._note(error)

    def _note(self, error: confluent_kafka.KafkaError) -> None:
        self._connections.failed(error.name())
        if error.name() == "_ALL_BROKERS_DOWN":
            sentence = self._scrub(error.str())
            self._on_unreachable(self.refused_login or sentence)
            if self.refused_login is None:
                log.warning("producer=%s no broker can be reached: %s", self.name, sentence)
            return
        self.refused_login = self.refusals.login(error)
        if self.refused_login is not None:
            # A token that is not to be had keeps brokers from being tried at all.
            self._on_unreachable(self.refused_login)
            self._say_refused(self.refused_login)
        elif error.fatal():
            log.error("producer=%s fatal error=%s: %s", self.name, error.name(), self._scrub(error.str()))
        else:
            log.info("producer=%s error=%s: %s", self.name, error.name(), self._scrub(error.str()))

    def _say_refused(self, sentence: str) -> None:
        # Every try ends in it.
        now = time.monotonic()
        if now - self._said_at >= _REPEAT_LOG:
            self._said_at = now
            log.error("producer=%s %s", self.name, sentence)

    def partitions(self, topic: str, timeout: float) -> int:
        """Ask the brokers, for up to `timeout` seconds, how many partitions a topic has.

        Raises `DeliveryFailed`: no record for this topic could be delivered now.
        """
        try:
            found = self._client.list_topics(topic, timeout).topics[topic]
        except confluent_kafka.KafkaException as error:
            raise (refusal(topic, error, self.refusals) or error) from error
        if found.error is not None:
            raise failure(topic, found.error, self.refusals)
        return len(found.partitions)

    def has_topic(self, topic: str, timeout: float) -> bool:
        """Tell whether a topic exists, without brokers making it because they were asked.

        Waits for up to `timeout` seconds. Raises `DeliveryFailed`: no record could be delivered now.
        """
        try:
            found = self._client.list_topics(timeout=timeout).topics
        except confluent_kafka.KafkaException as error:
            raise (refusal(topic, error, self.refusals) or error) from error
        return topic in found

    def answers(self, timeout: float) -> bool:
        """Tell whether a broker answers within `timeout` seconds."""
        try:
            self._client.list_topics(timeout=timeout)
        except confluent_kafka.KafkaException:
            return False
        return True

    def refuse(self, reason: Callable[[], Exception] | None) -> None:
        """Raise `reason` for each record from now on; None takes them again."""

        def refuse(*_record: Any, **_more: Any) -> Any:
            assert reason is not None
            raise reason()

        # In place of the client's own method, so that a look at every record is saved.
        with self._counting:
            if not self._closed:
                self._refusing = reason is not None
                self.produce = refuse if self._refusing else self._client.produce

    def flush(self, timeout: float) -> int:
        """Send all that waits, for up to `timeout` seconds, and return how many records are still undelivered."""
        deadline = time.monotonic() + timeout
        return sum(one.flush(max(0.0, deadline - time.monotonic())) for one in (*self._retired, self._client))

    def __len__(self) -> int:
        return sum(map(len, (*self._retired, self._client)))

    def close(self, timeout: float) -> int:
        """Flush, fail what is left, stop the thread and return how many records are undelivered for good."""
        with self._counting:
            self._closed = True
            self.produce = self._refuse_closed
        left = self.flush(timeout)
        if left:
            # Nobody sends them any more, and whoever waits for one would wait for ever.
            for one in (*self._retired, self._client):
                one.purge()
            self.flush(1)
        self._stopping = True
        self._connections.closed()
        self._hurry.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(1)
        return left

    def _refuse_closed(self, *_record: Any, **_more: Any) -> Any:
        raise ProduceError(f"Producer {self.name!r} was closed before a record could be handed to it; send it again.")

    def leak(self) -> None:
        """Keep the clients of another process from being destroyed in this one."""
        for one in (*self._retired, self._client):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


_made: weakref.WeakSet[ProducerClient] = weakref.WeakSet()


class _Forks:
    """Forks that are under way in this process, by any of its threads, and whether it collected garbage before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = 0
        self.collected = True

    def begin(self) -> None:
        # From before the fork: whatever runs first in the child may have the garbage collector run.
        with self.lock:
            if not self.number:
                self.collected = gc.isenabled()
                gc.disable()
            self.number += 1

    def end(self) -> None:
        with self.lock:
            self.number -= 1
            if not self.number and self.collected:
                gc.enable()

    def end_in_child(self) -> None:
        # The lock may be held by a thread that does not exist here.
        self.lock, self.number = threading.Lock(), 0
        if self.collected:
            gc.enable()


_forks = _Forks()


def _leak_inherited() -> None:
    # librdkafka's threads do not survive `fork()`: destroying an inherited client waits a second for them, and one that
    # was closed, and only waits for the garbage collector, takes the process along.
    try:
        for client in list(_made):
            client.leak()
        _made.clear()
    finally:
        _forks.end_in_child()


os.register_at_fork(before=_forks.begin, after_in_parent=_forks.end, after_in_child=_leak_inherited)


def failure(topic: str, error: Any, refusals: Refusals) -> DeliveryFailed:
    """Return the typed error for what a delivery report says."""
    return errors.delivery_failed(topic, error, refusals.permission(error, topic=topic))


def refusal(topic: str, exception: BaseException, refusals: Refusals) -> DeliveryFailed | None:
    """Return the typed error for what `produce` raised, or None when it was not the library that refused."""
    cause = errors.of(exception)
    return None if cause is None else failure(topic, cause, refusals)
