"""Running a handler on a message inside its transaction."""

from __future__ import annotations

import inspect
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from django.db import InterfaceError, OperationalError, connections, transaction
from django.db.transaction import TransactionManagementError

from . import conf, logs, tracing
from .categories import UnknownCommit
from .exceptions import PartitionLost, Skip
from .gathering import Gathered
from .handlers import Handler, TopicHandlers
from .messages import Message
from .signals import handler_failed, message_handled, message_handling
from .tallies import ConsumerTally

log = logs.of(__name__)


class _Gathering(Protocol):
    """What a transaction produces, of one message or of many."""

    @property
    def promised(self) -> Sequence[weakref.ref[Any]]: ...
    def clear(self) -> None: ...
    def forget_promised(self) -> None: ...


class Ending(Protocol):
    """What ends each transaction, as part of it."""

    def send(self, gathered: Gathered) -> None:
        """Send at once what was to be sent on commit."""

    def confirm(self, gathered: Gathered) -> None:
        """Wait until all that was sent is acknowledged."""

    def settle(self, offsets: Sequence[int]) -> None:
        """Note that these messages are settled."""

    def finish(self, offsets: Sequence[int], gathered: Gathered) -> None:
        """Do all three, for messages that produced it together."""


class Execution:
    """How the messages of one consumer are executed; used by one thread at a time, with what that thread gathers."""

    after_unknown_commit = "it is handled again"
    """What becomes of a message whose COMMIT was not answered."""
    repeats = True
    """Whether what failed may run again where its effects may have stayed."""
    ending: Ending | None = None
    """What ends each transaction; None: nothing but its COMMIT."""
    replayed: str | None = None
    """The traceback of the dead letter that is replayed; None: messages come from their topic."""

    def __init__(self, consumer: conf.Consumer, tally: ConsumerTally, gathered: Gathered) -> None:
        self.consumer = consumer
        self.tally = tally
        self.gathered = gathered
        self.database = consumer.database
        self.in_transaction = consumer.transaction != "none"
        """Whether handlers run in a transaction."""
        self.traced = tracing.on()
        """Whether attempts have spans."""

    def callable_for(self, handlers: TopicHandlers) -> Callable[[Message], Any]:
        """Return what runs messages of one topic, as short as settings and listeners allow.

        It is asked once per slice, so that what nobody listens to costs nothing per message.
        """
        self.traced = tracing.on()
        observed = message_handling.receivers or message_handled.receivers or handler_failed.receivers
        if not (self.in_transaction or observed or self.traced or handlers.conditional or handlers.default is None):
            return handlers.default.call

        def run(message: Message) -> None:
            self.run(message, handlers)

        return run

    def run(self, message: Message, handlers: TopicHandlers, finish: Callable[[], None] | None = None) -> None:
        """Run the handler that matches `message`; raise what it raises, after its effects are rolled back.

        `finish` runs inside the same transaction, after the handler.
        """
        handler = handlers.match(message)
        if not self.traced:
            self._run(message, handler, finish)
            return
        with tracing.handling(self.consumer, message, handler.path, self.replayed):
            self._run(message, handler, finish)

    def _run(self, message: Message, handler: Handler, finish: Callable[[], None] | None) -> None:
        name = self.consumer.name
        if message_handling.receivers:
            message_handling.send_robust(name, message=message)
        try:
            if self.in_transaction:
                self.transact(lambda: refuse_coroutine(handler.call(message)), finish, message, self.gathered)
            else:
                refuse_coroutine(handler.call(message))
                if finish is not None:
                    finish()
        except Exception as error:
            if handler_failed.receivers and not isinstance(error, Skip | PartitionLost):
                handler_failed.send_robust(name, message=message, error=error)
            raise
        if message_handled.receivers:
            message_handled.send_robust(name, message=message)

    def transact(
        self, handle: Callable[[], Any], finish: Callable[[], None] | None, message: Message, gathered: _Gathering
    ) -> None:
        """Do `handle`, then `finish`, in one transaction; raise what they raise, or its COMMIT, after the rollback.

        `message` is named in logs; `gathered` is what they produce. An error after the COMMIT is counted, not raised.
        """
        stage = _Stage()
        connection = connections[self.database]
        # Django never forgets why an earlier transaction broke.
        connection.rollback_exc = None  # type: ignore[attr-defined]
        try:
            with transaction.atomic(using=self.database):
                # The first hook of all: once it ran, the COMMIT has happened, whatever the hooks after it do.
                transaction.on_commit(stage.commit, using=self.database)
                handle()
                if finish is not None:
                    # What it writes would be refused for what the handler did, and hide that.
                    refuse_broken(connection)
                    finish()
                refuse_broken(connection)
                stage.connection = connection.connection
                stage.returned = True
        except MemoryError:
            raise
        except Exception as error:
            if stage.committed:
                self._hook_failed(error, message, gathered)
                return
            if isinstance(error, Skip):
                gathered.forget_promised()
            else:
                gathered.clear()
            if stage.returned and self._connection_broke(error, stage):
                self.tally.unknown_commits += 1
                log.warning(
                    "consumer=%s topic=%s partition=%s offset=%s its COMMIT was not answered; %s",
                    self.consumer.name, message.topic, message.partition, message.offset, self.after_unknown_commit,
                )  # fmt: skip
                raise UnknownCommit(str(error)) from error
            raise

    def _hook_failed(self, error: Exception, message: Message, gathered: _Gathering) -> None:
        """Count an error that came after the COMMIT; send the records whose hooks it kept from running."""
        self.tally.hook_errors += 1
        log.error(
            "consumer=%s topic=%s partition=%s offset=%s an on_commit hook failed; the message itself is handled",
            self.consumer.name, message.topic, message.partition, message.offset, exc_info=error,
        )  # fmt: skip
        for reference in gathered.promised:
            if (promise := reference()) is not None:
                promise()

    def _connection_broke(self, error: Exception, stage: _Stage) -> bool:
        if not isinstance(error, OperationalError | InterfaceError):
            return False
        connection = connections[self.database]
        # When the rollback failed as well Django has closed it already, and maybe connected anew.
        return connection.connection is not stage.connection or not connection.is_usable()


def refuse_coroutine(returned: object) -> None:
    """Raise when a plain handler returned a coroutine: nobody awaits it, so nothing has been done."""
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError(
            "The handler returned a coroutine, which nobody awaits: one that calls an `async def` function has to be "
            "`async def` itself."
        )


_IN_ERROR = 3
"""libpq's name for a transaction in which a statement failed: its COMMIT is answered by ROLLBACK, without an error."""


def refuse_broken(connection: Any) -> None:
    """Raise when the transaction can only be rolled back, although the handler came back: it caught the reason.

    Leaving `atomic()` would roll everything back and say nothing, and the message would count as handled.
    """
    if connection.closed_in_transaction or not connection.commit_on_exit:
        raise TransactionManagementError(
            "The handler closed the connection of its transaction, or switched autocommit off: nothing is committed."
        )
    failed = connection.vendor == "postgresql" and connection.connection.info.transaction_status == _IN_ERROR
    if connection.needs_rollback or failed:
        raise TransactionManagementError(
            "The handler caught a database error that broke its transaction; put what may fail into its own atomic()."
        ) from connection.rollback_exc


class _Stage:
    """How far a transaction came."""

    __slots__ = ("committed", "connection", "returned")

    def __init__(self) -> None:
        self.returned = False
        self.committed = False
        self.connection: Any = None

    def commit(self) -> None:
        self.committed = True


def leave_foreign_transaction(using: str) -> None:
    """Close the connection of this thread when a handler left a transaction of its own open on it.

    In that one atomic() would commit nothing.
    """
    connection = connections[using]
    if not (connection.in_atomic_block or connection.get_autocommit()):
        connection.close()


_IDLE = 60.0
"""Seconds without messages after which a thread gives connections back that settings do not want kept."""


class Connections:
    """The database connections of one handler thread."""

    def __init__(self) -> None:
        self._used = time.monotonic()

    def tend(self) -> None:
        """Before a slice: close what is unusable or over its age. Closing after each message costs a factor of six."""
        now = self._used = time.monotonic()
        connection: Any  # what Django keeps about its age and health is not in its types
        for connection in connections.all(initialized_only=True):
            if connection.connection is None or connection.in_atomic_block:
                continue
            if connection.autocommit != connection.settings_dict["AUTOCOMMIT"]:
                connection.close()  # a handler left a transaction of its own open
                continue
            aged = connection.close_at is not None and now >= connection.close_at and _keeps(connection)
            if connection.errors_occurred or aged:
                connection.close_if_unusable_or_obsolete()
            else:
                # Django asks the server once after this, where CONN_HEALTH_CHECKS wants it.
                connection.health_check_done = False

    def rest(self) -> None:
        """Without messages: give back connections with CONN_MAX_AGE = 0, those of a pool now, others after a while."""
        idle = time.monotonic() - self._used >= _IDLE
        for connection in connections.all(initialized_only=True):
            if connection.connection is None or connection.in_atomic_block or _keeps(connection):
                continue
            # Others may wait for it, and to take one out of a pool again costs next to nothing.
            if idle or connection.settings_dict["OPTIONS"].get("pool"):
                connection.close()

    def close(self) -> None:
        """Close all of them, because the thread ends."""
        for connection in connections.all(initialized_only=True):
            if not connection.in_atomic_block:
                connection.close()


def _keeps(connection: Any) -> bool:
    return bool(connection.settings_dict["CONN_MAX_AGE"] != 0)
