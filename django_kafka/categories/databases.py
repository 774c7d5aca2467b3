"""Errors of databases, by their SQLSTATE or the number that the database gives them."""

from __future__ import annotations

import sqlite3

from django.db import DatabaseError, InterfaceError, OperationalError
from django.db.transaction import TransactionManagementError

from .natures import Kind, Nature

_HANDLER = Nature("handler")
_CONTENTION = Nature("handler", Kind.CONTENTION)
_AUTHORIZATION = Nature("authorization")
_TIMEOUT = Nature("timeout")

# SQLSTATE: serialization_failure, deadlock_detected, lock_not_available.
_CONTENTION_STATES = ("40001", "40P01", "55P03")
# SQLSTATE classes: connection exception, insufficient resources (connections, disk, memory), operator intervention
# (shutdown, crash, cannot connect now), system error; and read_only_sql_transaction, which a failover leaves behind.
_OUTAGE_STATES = ("08", "53", "57P", "58", "25006")
# query_canceled by statement_timeout; a transaction that was idle, or took, too long.
_TIMEOUT_STATES = ("57014", "25P03", "25P04")
# invalid_authorization_specification: nobody is let in, whatever the message. insufficient_privilege: of one table.
_LOGIN_STATES, _PRIVILEGE_STATES = ("28",), ("42501",)
# MySQL: lock wait timeout, deadlock; cannot connect, too many connections, server gone or lost, shutdown; and so on.
_MYSQL_CONTENTION, _MYSQL_OUTAGE = (1205, 1213), (1040, 1053, 2002, 2003, 2006, 2013, 4031)
_MYSQL_LOGIN, _MYSQL_PRIVILEGE, _MYSQL_TIMEOUT = (1045, 1698), (1044, 1142, 1143, 1227), (3024,)
_SQLITE_CONTENTION = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_SQLITE_OUTAGE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
_SQLITE_PRIVILEGE = (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PERM)
_PRIMARY_SQLITE_CODE = 0xFF
_OPERATIONAL = "OperationalError"


def of(error: BaseException) -> Nature | None:
    """Return the nature of an error that a database raised, through Django or its own driver; None of any other."""
    if isinstance(error, DatabaseError):
        return _of_django(error)
    if isinstance(error, InterfaceError):
        return Nature("outage", Kind.OUTAGE, "the database connection is closed") if _connects(error) else _HANDLER
    if isinstance(error, sqlite3.Error):
        return _of_sqlite(error, error)
    if _is_of_psycopg(error):
        return _of_sqlstate(_sqlstate(error), any(one.__name__ == _OPERATIONAL for one in type(error).__mro__), error)
    return None


def _is_of_psycopg(error: BaseException) -> bool:
    of_its_own = type(error).__module__.partition(".")[0] in ("psycopg", "psycopg2", "psycopg_pool")
    return of_its_own and (hasattr(error, "sqlstate") or hasattr(error, "pgcode"))


def _sqlstate(error: BaseException) -> str | None:
    # psycopg2 has another name for it.
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def _of_django(error: DatabaseError) -> Nature:
    cause = error.__cause__
    if isinstance(error, TransactionManagementError) and isinstance(cause, DatabaseError):
        # The handler caught the error that broke its transaction and went on: that error is the reason.
        return _of_django(cause)
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause, error)
    if isinstance(cause, Exception) and _is_of_psycopg(cause):
        return _of_sqlstate(_sqlstate(cause), isinstance(error, OperationalError), error)
    number = error.args[0] if error.args and isinstance(error.args[0], int) else None
    if number is not None:
        return _of_mysql(number, error)
    return _outage(error) if isinstance(error, OperationalError) and _connects(error) else _HANDLER


def _of_sqlite(cause: sqlite3.Error, error: BaseException) -> Nature:
    # Missing when the module raises by itself, which is about its use and not about the file.
    code = getattr(cause, "sqlite_errorcode", 0) & _PRIMARY_SQLITE_CODE
    if code in _SQLITE_CONTENTION:
        return _CONTENTION
    if code in _SQLITE_OUTAGE:
        return _outage(error)
    return _AUTHORIZATION if code in _SQLITE_PRIVILEGE else _HANDLER


def _of_sqlstate(state: str | None, operational: bool, error: BaseException) -> Nature:
    if state is None:
        # No state means no answer: the connection could not be made, broke, or the pool had none left.
        return _outage(error) if operational else _HANDLER
    if state in _CONTENTION_STATES:
        return _CONTENTION
    if state.startswith(_OUTAGE_STATES):
        return _outage(error)
    if state.startswith(_LOGIN_STATES):
        return _login_refused(error)
    if state in _PRIVILEGE_STATES:
        return _AUTHORIZATION
    return _TIMEOUT if state in _TIMEOUT_STATES else _HANDLER


def _of_mysql(number: int, error: BaseException) -> Nature:
    if number in _MYSQL_CONTENTION:
        return _CONTENTION
    if number in _MYSQL_OUTAGE:
        return _outage(error)
    if number in _MYSQL_LOGIN:
        return _login_refused(error)
    if number in _MYSQL_PRIVILEGE:
        return _AUTHORIZATION
    return _TIMEOUT if number in _MYSQL_TIMEOUT else _HANDLER


def _outage(error: BaseException) -> Nature:
    return Nature("outage", Kind.OUTAGE, f"the database is unavailable ({type(error).__name__})")


def _login_refused(error: BaseException) -> Nature:
    return Nature("authentication", Kind.OUTAGE, f"the database refuses the login ({type(error).__name__})")


def _connects(error: BaseException) -> bool:
    return "connect" in str(error).lower()
