"""What each error is: in which category it is counted, and whether it is the message's fault at all.

docs/retries.md has the same as tables.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.utils.module_loading import import_string

from .. import conf, logs
from ..exceptions import (
    ConfigurationError,
    DecodeError,
    DeliveryFailed,
    EncodeError,
    KafkaError,
    KeyUnavailable,
    LoginRefused,
    NoHandler,
    ProduceError,
    RecordTooLarge,
    RegistryUnavailable,
    StorageUnavailable,
    UpcastFailed,
)
from . import databases, libraries
from .natures import Kind, Nature, UnknownCommit

__all__ = ["Kind", "Nature", "Own", "UnknownCommit", "exception_at", "of", "own"]

log = logs.of(__name__)

Own = Mapping[type[BaseException], str]
"""Exceptions of the project, and the category that settings put them in."""

_DEEPEST = 10
"""How many causes are looked at below an error that says nothing itself."""


def own() -> Own:
    """Return `KAFKA["error_categories"]` with its paths resolved. Raises `ConfigurationError`."""
    found: dict[type[BaseException], str] = {}
    for category, paths in conf.kafka().error_categories.items():
        for path in paths:
            found[exception_at(path, f'KAFKA["error_categories"]["{category}"]')] = category
    return found


def exception_at(path: str, place: str) -> type[BaseException]:
    """Return the exception's class at a dotted path that stands at `place` in settings."""
    try:
        found = import_string(path)
    except ImportError as error:
        raise ConfigurationError(f"{place} is {path!r}, which cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise ConfigurationError(f"{place} is {path!r}, which is of type {type(found).__name__}, not an exception.")
    return found


def of(error: BaseException, mine: Own | None = None) -> Nature:
    """Return what an error is: by `mine`, by what is known of it, else by the error that it was raised from."""
    try:
        return _of(error, mine or {}, _DEEPEST) or Nature("handler")
    except MemoryError:
        raise
    except Exception as broken:  # noqa: BLE001  # errors are foreign objects: looking at one may fail in any way
        log.warning("%s cannot be looked at: %s", type(error).__name__, type(broken).__name__)
        return Nature("handler")


def _of(error: BaseException, mine: Own, depth: int) -> Nature | None:
    for one in type(error).__mro__:
        if (category := mine.get(one)) is not None:
            return _put_in(category, error)
    if isinstance(error, UpcastFailed) and error.__cause__ is not None and depth:
        # It may need something that is down: then nothing is wrong with the message.
        below = _of(error.__cause__, mine, depth - 1)
        if below is not None and below.kind in (Kind.OUTAGE, Kind.CONTENTION):
            return below
    if isinstance(error, UnknownCommit):
        return Nature("outage", Kind.OUTAGE, "the database did not answer a COMMIT")
    found = _ours(error) if isinstance(error, KafkaError) else databases.of(error) or libraries.of(error)
    if found is not None or error.__cause__ is None or not depth:
        return found
    # Libraries and projects wrap what they met: `raise BookingFailed(…) from error`.
    return _of(error.__cause__, mine, depth - 1)


def _put_in(category: str, error: BaseException) -> Nature:
    if category == "outage":
        return Nature(category, Kind.OUTAGE, f"{type(error).__name__} stands for an outage")
    return Nature(category, Kind.POISON if category == "serialization" else Kind.FAULT)


def _ours(error: KafkaError) -> Nature | None:
    if isinstance(error, RegistryUnavailable):
        # A refused login, too: of this process, not of the message.
        return Nature(error.category, Kind.OUTAGE, "the schema registry cannot be asked now")
    if isinstance(error, StorageUnavailable):
        return Nature(error.category, Kind.OUTAGE, "the storage of payloads cannot be reached")
    if isinstance(error, KeyUnavailable):
        # Of this process, not of the message: others may have the key.
        return Nature(error.category, Kind.OUTAGE, "an encryption key is not where settings say")
    if isinstance(error, DecodeError | NoHandler):
        return Nature(error.category, Kind.POISON)
    if isinstance(error, EncodeError | RecordTooLarge):
        return Nature(error.category, Kind.PERMANENT)
    if isinstance(error, DeliveryFailed):
        if error.retriable:
            return Nature(error.category, Kind.OUTAGE, "a record could not be delivered")
        return Nature(error.category, Kind.PERMANENT if error.category == "serialization" else Kind.FAULT)
    if isinstance(error, LoginRefused):
        # Of this process, not of the message; a credential that is being replaced is back in a moment.
        return Nature(error.category, Kind.OUTAGE, "Kafka refuses the login of a producer")
    if isinstance(error, ProduceError) and error.category in ("network", "timeout"):
        return Nature(error.category, Kind.OUTAGE, "Kafka does not take the handler's records")
    return None if error.category == "handler" and error.__cause__ else Nature(error.category)
