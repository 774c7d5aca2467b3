"""What a failed attempt means: the pure decision.

match decide(error):
    case Again(): …         a database conflict: at once, and no attempt is used up
    case Wait(reason): …    an outage: the lane waits and tries again, and no attempt is used up
    case DeadLetter(): …    the message's own fault, or its handler's
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass

from django.db import InterfaceError, OperationalError
from django.db.transaction import TransactionManagementError
from django.db.utils import DatabaseError

from .exceptions import DecodeError, DeliveryFailed, DeliveryTimeout, KafkaError, NoHandler, QueueFull

Verdict = "Again | Wait | DeadLetter"


@dataclass(frozen=True, slots=True)
class Again:
    """Contention: a database conflict that goes away when tried again."""


@dataclass(frozen=True, slots=True)
class Wait:
    """An outage: something the message needs is down."""

    reason: str
    """What is down, for people."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Given up: stored with its error."""

    category: str
    """What it is counted by."""


class UnknownCommit(Exception):
    """A COMMIT was sent and the connection broke before its answer: it may or may not have happened."""


# SQLSTATE: serialization_failure, deadlock_detected, lock_not_available.
_CONTENTION = ("40001", "40P01", "55P03")
# SQLSTATE classes: connection exception, insufficient resources (connections, disk, memory), operator intervention
# (shutdown, crash, cannot connect now), system error; and read_only_sql_transaction, which a failover leaves behind.
_OUTAGE = ("08", "53", "57P", "58", "25006")
# MySQL: lock wait timeout, deadlock; and: cannot connect, too many connections, server gone or lost, shutdown.
_MYSQL_CONTENTION, _MYSQL_OUTAGE = (1205, 1213), (1040, 1053, 2002, 2003, 2006, 2013, 4031)
_SQLITE_CONTENTION = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_SQLITE_OUTAGE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
_PRIMARY_SQLITE_CODE = 0xFF


def stops_worker(error: BaseException) -> bool:
    """Tell whether an error is about the process and not about a message, alone or in a group with others."""
    if isinstance(error, BaseExceptionGroup):
        return any(stops_worker(one) for one in error.exceptions)
    return isinstance(error, MemoryError) or not isinstance(error, Exception)


def decide(error: BaseException) -> Again | Wait | DeadLetter:
    """Return what to do about a failed attempt."""
    if isinstance(error, DecodeError | NoHandler):
        return DeadLetter("serialization")
    if isinstance(error, UnknownCommit):
        return Wait("the database did not answer a COMMIT")
    if isinstance(error, DatabaseError):
        return _of_database(error)
    if isinstance(error, InterfaceError):
        return Wait("the database connection is closed") if "connection" in str(error) else DeadLetter("handler")
    if isinstance(error, DeliveryFailed):
        return Wait("a record could not be delivered") if error.retriable else DeadLetter(error.category)
    if isinstance(error, QueueFull | DeliveryTimeout):
        return Wait("Kafka does not take the handler's records")
    return DeadLetter(error.category if isinstance(error, KafkaError) else "handler")


def _of_database(error: DatabaseError) -> Again | Wait | DeadLetter:
    cause = error.__cause__
    if isinstance(error, TransactionManagementError) and isinstance(cause, DatabaseError):
        # The handler caught the error that broke its transaction and went on: that error is the reason.
        return _of_database(cause)
    if isinstance(cause, sqlite3.Error):
        # Missing when the module raises by itself, which is about its use and not about the file.
        code = getattr(cause, "sqlite_errorcode", 0) & _PRIMARY_SQLITE_CODE
        return _chosen(code in _SQLITE_CONTENTION, code in _SQLITE_OUTAGE, error)
    if isinstance(cause, Exception) and hasattr(cause, "sqlstate"):
        state = cause.sqlstate
        if state is None:
            # No state means no answer: the connection could not be made, broke, or the pool had none left.
            return _chosen(False, isinstance(error, OperationalError), error)
        return _chosen(state in _CONTENTION, state.startswith(_OUTAGE), error)
    number = error.args[0] if error.args and isinstance(error.args[0], int) else None
    if number is not None:
        return _chosen(number in _MYSQL_CONTENTION, number in _MYSQL_OUTAGE, error)
    return _chosen(False, isinstance(error, OperationalError) and "connect" in str(error).lower(), error)


def _chosen(contention: bool, outage: bool, error: BaseException) -> Again | Wait | DeadLetter:
    if contention:
        return Again()
    return Wait(f"the database is unavailable ({type(error).__name__})") if outage else DeadLetter("handler")


def pause(waits: int, *, first: float = 0.2, longest: float = 15.0) -> float:
    """Return how many seconds to wait the `waits`-th time in a row (from 1): doubling, with jitter."""
    return min(longest, first * 2.0 ** min(waits - 1, 20)) * random.uniform(0.8, 1.2)
