"""The client that sends."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import confluent_kafka

from ..exceptions import ConfigurationError, DeliveryFailed, ProduceError
from . import errors
from .logs import ClientLog
from .scrubbing import Scrubber

log = logging.getLogger("django_kafka.client")

_GATHER = 0.05
_LOOK = 0.1
"""Seconds that the serving thread stays in the client; closing waits for it."""


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
        self._on_unreachable = on_unreachable
        self._look = look
        self._scrub = Scrubber(properties)
        try:
            self._client = confluent_kafka.Producer(
                {**properties, "error_cb": self._on_error}, logger=ClientLog("producer", name, self._scrub)
            )
        except confluent_kafka.KafkaException as error:
            # Not chained: the library's own exception quotes the value that it refuses.
            reason = self._scrub(errors.sentence(error))
            raise ConfigurationError(f"Producer {name!r} cannot be made: {reason}") from None
        self.produce: Callable[..., Any] = self._client.produce
        _made.add(self)
        self.serve = self._client.poll
        """Serve delivery reports in the calling thread: `serve(seconds)`."""
        self._waiting = 0
        self._counting = threading.Lock()
        self._hurry = threading.Event()
        self._stopping = self._closed = False
        self._kept_up = False
        """Whether a thread that sends has served reports since this client's own thread looked last."""
        self._thread = threading.Thread(target=self._serve, name=f"kafka-producer-{name}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopping:
            self._look()
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
        sentence = self._scrub(error.str())
        if error.name() == "_ALL_BROKERS_DOWN":
            self._on_unreachable(sentence)
            log.warning("producer=%s no broker can be reached: %s", self.name, sentence)
        elif error.fatal():
            log.error("producer=%s fatal error=%s: %s", self.name, error.name(), sentence)
        else:
            log.info("producer=%s error=%s: %s", self.name, error.name(), sentence)

    def partitions(self, topic: str, timeout: float) -> int:
        """Ask the brokers, for up to `timeout` seconds, how many partitions a topic has.

        Raises `DeliveryFailed`: no record for this topic could be delivered now.
        """
        try:
            found = self._client.list_topics(topic, timeout).topics[topic]
        except confluent_kafka.KafkaException as error:
            raise (refusal(topic, error) or error) from error
        if found.error is not None:
            raise failure(topic, found.error)
        return len(found.partitions)

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
        if not self._closed:
            self.produce = self._client.produce if reason is None else refuse

    def flush(self, timeout: float) -> int:
        """Send all that waits, for up to `timeout` seconds, and return how many records are still undelivered."""
        return self._client.flush(timeout)

    def __len__(self) -> int:
        return len(self._client)

    def close(self, timeout: float) -> int:
        """Flush, fail what is left, stop the thread and return how many records are undelivered for good."""
        self._closed = True
        self.produce = self._refuse_closed
        left = self.flush(timeout)
        if left:
            # Nobody sends them any more, and whoever waits for one would wait for ever.
            self._client.purge()
            self.flush(1)
        self._stopping = True
        self._hurry.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(1)
        return left

    def _refuse_closed(self, *_record: Any, **_more: Any) -> Any:
        raise ProduceError(f"Producer {self.name!r} was closed before a record could be handed to it; send it again.")

    def leak(self) -> None:
        """Keep the client of another process from being destroyed in this one."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._client))


_made: weakref.WeakSet[ProducerClient] = weakref.WeakSet()


def _leak_inherited() -> None:
    # librdkafka's threads do not survive `fork()`: destroying an inherited client waits a second for them, and one that
    # was closed, and only waits for the garbage collector, takes the process along.
    for client in list(_made):
        client.leak()
    _made.clear()


os.register_at_fork(after_in_child=_leak_inherited)


def failure(topic: str, error: Any) -> DeliveryFailed:
    """Return the typed error for what a delivery report says."""
    return errors.delivery_failed(topic, error)


def refusal(topic: str, exception: BaseException) -> DeliveryFailed | None:
    """Return the typed error for what `produce` raised, or None when it was not the library that refused."""
    cause = errors.of(exception)
    return None if cause is None else errors.delivery_failed(topic, cause)
