"""Finding the topics that the patterns of a consumer fit, also those that come while it runs.

They are subscribed to by their names. So every worker of a group reads a pattern alike, whatever its client library and
its brokers take for a regular expression, and what a pattern may not take is never assigned to it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection

from .. import conf, logs, subscriptions
from ..clients.admin import TopicAdmin
from ..clients.groups import login_of
from ..exceptions import ConfigurationError

log = logs.of(__name__)

_TIMEOUT = 15.0
"""Seconds, at most, that brokers may take to say which topics there are."""


class Finder:
    """Asks in a thread of its own which topics there are, again and again, and says which ones to subscribe to."""

    def __init__(self, consumer: conf.Consumer, topics: Collection[str]) -> None:
        """`topics`: those that are read in any case, as Kafka knows them."""
        self.consumer = consumer
        self._answered = self._failed = False
        self._topics = list(topics)
        self._found: list[str] = []
        self._missed: set[str] = set()
        """Topics that were found before, and were not there the last time."""
        # One at a time, put and taken whole: the poller takes it at any time.
        self._news: deque[list[str]] = deque(maxlen=1)
        self._said = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"kafka-{consumer.name}-finder", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> None:
        """Look no more. What is being asked is not waited for."""
        self._ended.set()

    @property
    def done(self) -> bool:
        """Whether it was told which topics there are, and all of that was taken from it as news."""
        return self._answered and not self._news

    def news(self) -> list[str] | None:
        """Return all topics to subscribe to, once after each change; None: what there was still holds."""
        try:
            return self._news.pop()
        except IndexError:
            return None

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.look()
            except Exception:  # nobody is there to hear of it
                log.exception("consumer=%s its topics could not be looked for", self.consumer.name)
            self._ended.wait(self.consumer.find_topics_interval)

    def look(self) -> None:
        """Ask once which topics there are."""
        cluster = conf.cluster(self.consumer.cluster)
        try:
            timeout = min(_TIMEOUT, max(1.0, cluster.connection.timeout))
            there = TopicAdmin(cluster, timeout, login_of(self.consumer)).layouts()
        except ConfigurationError as error:
            if str(error) != self._said:
                log.warning("consumer=%s which topics its patterns fit is not known: %s", self.consumer.name, error)
                self._said = str(error)
            if not (self._answered or self._failed):
                self._tell([])
            self._failed = True
            return
        self._said = ""
        self._take_in(subscriptions.of_patterns(self.consumer.name, there))

    def _take_in(self, fit: list[str]) -> None:
        # A broker that has just started may not know all topics yet: one that is missing is missed twice.
        missed = set(self._found) - set(fit)
        stay, self._missed = missed - self._missed, missed - self._missed
        found = sorted({*fit, *stay})
        if found != self._found or not self._answered:
            self._say(found)
            self._tell(found)
        self._answered = True

    def _tell(self, found: list[str]) -> None:
        self._found = found
        self._news.append([*self._topics, *found])

    def _say(self, found: list[str]) -> None:
        new, gone = sorted({*found} - {*self._found}), sorted({*self._found} - {*found})
        if new or not (gone or self._answered):
            log.info("consumer=%s found topics=%s", self.consumer.name, ",".join(new) or "none yet")
        if gone:
            log.info("consumer=%s topics=%s are gone", self.consumer.name, ",".join(gone))
