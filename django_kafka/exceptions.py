"""Every error that this package raises, as one tree.

    KafkaError                          category
    ├── ConfigurationError              configuration   settings that cannot work; a sentence says which and why
    │   ├── UnknownName                 configuration   a producer, consumer or cluster that settings do not have
    │   ├── NotAvailable                configuration   a setting whose behaviour this version does not have yet
    │   ├── KeyUnavailable              configuration   an encryption key of settings that is not where it is kept: an
    │   │                                               outage, not the message's fault
    │   ├── AuthenticationFailed        authentication  brokers refuse the login, or one side the other's certificate
    │   └── AuthorizationFailed         authorization   brokers refuse a topic or a group to this login
    ├── RegistryUnavailable             outage          the schema registry cannot be reached, or does not answer now
    │   ├── RegistryLoginRefused        authentication  … because it refuses the login, or one side the other's
    │   │                                               certificate; an AuthenticationFailed, too
    │   └── RegistryForbidden           authorization   … because this login may not; an AuthorizationFailed, too
    ├── SerializationError              serialization
    │   ├── EncodeError                 serialization   a value that its serializer cannot turn into bytes
    │   │   └── SchemaRefused           serialization   … because the registry has not, or does not take, its schema
    │   └── DecodeError                 serialization   bytes that their serializer cannot read: poison
    │       ├── UnknownSchema           serialization   … because the registry has no schema of that id
    │       ├── Undecryptable           serialization   … because they are not encrypted, or not by who has the key, or
    │       │   │                                       for another place than this
    │       │   └── UnknownKey          serialization   … because settings have no key of that id
    │       ├── PayloadTooLarge         serialization   … because there are more of them than `max_payload` allows
    │       ├── UpcastFailed            serialization   … because an upcaster of their version failed
    │       └── WrongEvent              serialization   … as an event of the type that their handler wants
    ├── NoHandler                       serialization   a message that no handler of its consumer matches: poison
    ├── ProduceError                    network         a record that was not taken or not delivered
    │   ├── RecordTooLarge              serialization   larger than the producer may send
    │   ├── QueueFull                   network         the producer's queue stayed full for the whole wait
    │   ├── CircuitOpen                 network         refused at once: brokers have been out of reach for long
    │   ├── Unroutable                  configuration   a record that its routing finds no topic or partition for
    │   ├── DeliveryPending             configuration   asked for a result before the surrounding commit
    │   ├── DeliveryDiscarded           handler         the surrounding transaction was rolled back
    │   ├── DeliveryTimeout             timeout         no answer yet; the record is still on its way
    │   │   └── BrokersUnreachable      network         no answer yet because no broker can be reached
    │   │       └── LoginRefused        authentication  … because they refuse the login; an AuthenticationFailed, too
    │   └── DeliveryFailed              (from Kafka)    Kafka, or the client, gave the record up
    │       └── DeliveryForbidden       authorization   … because this login may not; an AuthorizationFailed, too
    ├── HandlerTimeout                  timeout         a handler whose time limit is over
    ├── HandlerCancelled                handler         an `async def` handler that was cancelled
    ├── WorkerKilled                    handler         a message in whose handler three worker processes ended
    ├── PartitionLost                   network         a partition went to another worker while its message ran
    ├── Unhealthy                       outage          something that settings declare does not work now
    ├── BadArchive                      configuration   a line of a file of letters that cannot be brought back
    ├── AuditIsAppendOnly               configuration   something that would alter or delete what the audit says
    └── ReplayRefused                   configuration   a dead letter whose state does not allow what was asked

`category` is what metrics and dead letters count by. Other libraries' errors get theirs in `categories`.

What a handler raises to say what is to become of its message stands apart, so that `except KafkaError` never takes it:

    Ruling
    ├── Retry                           try again, maybe after a while that the handler knows
    ├── Skip                            leave it: it is settled
    ├── Reject                          a dead letter at once
    └── BatchFailed                     of a list: which messages failed, and why
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar


class KafkaError(Exception):
    """The root: `except KafkaError` catches all that this package raises on purpose."""

    category: ClassVar[str] = "handler"


class Unhealthy(KafkaError):
    """Something that settings declare does not work now; a line for each says what."""

    category = "outage"


class ConfigurationError(KafkaError):
    """Settings that cannot work."""

    category = "configuration"


class UnknownName(ConfigurationError, LookupError):
    """A producer, consumer or cluster that settings do not have."""


class NotAvailable(ConfigurationError):
    """A setting that is understood, but whose behaviour this version does not have yet."""


class KeyUnavailable(ConfigurationError):
    """An encryption key of settings that is not where it is kept, or is none. Nothing is wrong with the message."""


class AuthenticationFailed(ConfigurationError):
    """Brokers refuse the login, or one side the other's certificate."""

    category = "authentication"


class AuthorizationFailed(ConfigurationError):
    """Brokers refuse a topic, a group or the cluster to this login."""

    category = "authorization"


class RegistryUnavailable(KafkaError):
    """The schema registry cannot be reached, or does not answer now. Nothing is wrong with what it was asked for."""

    category = "outage"


class RegistryLoginRefused(AuthenticationFailed, RegistryUnavailable):
    """The schema registry refuses the login, or one side the other's certificate."""


class RegistryForbidden(AuthorizationFailed, RegistryUnavailable):
    """The schema registry refuses a subject, or a schema, to this login."""


class SerializationError(KafkaError):
    """Bytes and values that do not turn into one another."""

    category = "serialization"


class EncodeError(SerializationError):
    """A value that its serializer cannot turn into bytes."""


class DecodeError(SerializationError):
    """Bytes that their serializer cannot read. `place` is the topic, partition and offset of their message."""

    def __init__(self, sentence: str, *, place: tuple[str, int, int] | None = None) -> None:
        super().__init__(sentence)
        self.place = place


class SchemaRefused(EncodeError):
    """The registry does not have the schema of a value, or does not take it: it is invalid, or incompatible."""


class UnknownSchema(DecodeError):
    """The registry has no schema of the id that a message names."""


class Undecryptable(DecodeError):
    """A value that is not encrypted, was altered, or was encrypted with another key or for another place than this."""


class UnknownKey(Undecryptable):
    """A value that is encrypted with a key that settings do not have."""


class PayloadTooLarge(DecodeError):
    """A key or value of more bytes than `max_payload` of its consumer lets a serializer read."""


class UpcastFailed(DecodeError):
    """A value of an older version that its upcaster could not bring to the next one."""


class WrongEvent(DecodeError):
    """A value that is no event of the type that its handler wants. It names the field, and not what that holds."""


class NoHandler(KafkaError):
    """A message that no handler of its consumer matches."""

    category = "serialization"


class ProduceError(KafkaError):
    """A record that was not taken or not delivered."""

    category = "network"


class RecordTooLarge(ProduceError):
    """A record larger than its producer may send."""

    category = "serialization"


class QueueFull(ProduceError):
    """The producer's queue stayed full for as long as a record may wait for room."""


class CircuitOpen(ProduceError):
    """Refused at once, because the producer's brokers have been out of reach for long. Nothing was queued."""


class Unroutable(ProduceError):
    """A record for which its producer's routing finds no topic or no partition. Nothing was queued."""

    category = "configuration"


class DeliveryPending(ProduceError):
    """The result was asked for before the surrounding transaction committed."""

    category = "configuration"


class DeliveryDiscarded(ProduceError):
    """The record was never sent, because the surrounding transaction did not commit."""

    category = "handler"


class DeliveryTimeout(ProduceError, TimeoutError):
    """No answer yet. Not a failure: the record is still on its way."""

    category = "timeout"


class BrokersUnreachable(DeliveryTimeout):
    """No answer yet, because no broker can be reached. Not a failure: the record is still on its way."""

    category = "network"


class LoginRefused(AuthenticationFailed, BrokersUnreachable):
    """No answer yet, because brokers refuse the login. Not a failure: the record is still on its way."""


class DeliveryFailed(ProduceError):
    """Kafka, or the client on its behalf, gave the record up.

    `code` is the name of the Kafka or librdkafka error ("MSG_SIZE_TOO_LARGE", "_MSG_TIMED_OUT"), and
    `retriable` tells whether the same record may succeed later.
    """

    def __init__(self, sentence: str, *, code: str, retriable: bool, category: str = "network") -> None:
        super().__init__(sentence)
        self.code = code
        self.retriable = retriable
        self.category = category  # type: ignore[misc]  # the answer of the broker decides, so it differs by instance


class DeliveryForbidden(AuthorizationFailed, DeliveryFailed):
    """Kafka gave the record up, because this login may not send it there."""


class HandlerTimeout(KafkaError, TimeoutError):
    """A handler went on after its time limit."""

    category = "timeout"


class HandlerCancelled(KafkaError):
    """An `async def` handler was cancelled, by itself or by what it awaited."""


class WorkerKilled(KafkaError):
    """A message in whose handler worker processes ended, one after the other."""

    category = "handler"


class PartitionLost(KafkaError):
    """A partition went to another worker while its message ran; nothing may be stored for it here any more."""

    category = "network"


class ReplayRefused(KafkaError):
    """A dead letter whose state does not allow what was asked."""

    category = "configuration"


class BadArchive(KafkaError):
    """A line of a file of letters that cannot be brought back."""

    category = "configuration"

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"Line {number}: {reason}.")
        self.number = number
        """Which line it is, from 1."""


class AuditIsAppendOnly(KafkaError):
    """Entries of the audit are added, and never altered or deleted."""

    category = "configuration"

    def __init__(self) -> None:
        super().__init__("Entries of the audit are added, and never altered or deleted before their time is over.")


class Ruling(Exception):
    """What a handler raises to say what is to become of its message. Its effects are rolled back, as for any error."""


class Retry(Ruling):
    """Handle the message again, after so many seconds; None: as its `retry` settings say.

    It uses up an attempt: after `max_retries` of them the message becomes a dead letter, which is about the error that
    the handler met, as in `raise Retry() from error`.
    """

    LONGEST: ClassVar[float] = 366 * 86400.0
    """Seconds; to wait any longer is a mistake."""

    def __init__(self, after: float | timedelta | None = None) -> None:
        self.after = None if after is None else _seconds(after)
        super().__init__("try again" if self.after is None else f"try again after {self.after:g} s")


class Skip(Ruling):
    """Leave the message: it is settled and counted, and there is no dead letter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reject(Ruling):
    """Store the message as a dead letter at once, with this reason, and with the error that it was raised from."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        cause = self.__cause__
        return self.reason if cause is None else f"{self.reason} ({type(cause).__name__}: {cause})"


class BatchFailed(Ruling):
    """Name the messages of a list that failed, and the error of each; raised by handlers with `batch=True`.

    What is decided about such an error is decided about that message alone. The others of the list did not fail.
    """

    def __init__(self, failures: Mapping[Any, Exception]) -> None:
        if not isinstance(failures, Mapping) or not failures:
            raise TypeError(
                f"BatchFailed takes a mapping of messages to their errors, with one at least; this is {failures!r}."
            )
        for message, error in failures.items():
            if not isinstance(error, Exception):
                raise TypeError(f"BatchFailed: the error of {message!r} is {error!r}; it must be an exception.")
        super().__init__(f"{len(failures)} messages of the list failed")
        self.failures = dict(failures)


def _seconds(after: object) -> float:
    value = after.total_seconds() if isinstance(after, timedelta) else after
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"after is {after!r}; allowed: a number of seconds, a timedelta, or None.")
    if not 0 <= value <= Retry.LONGEST or math.isnan(value):
        raise ValueError(f"after is {after!r}; allowed: from 0 to {Retry.LONGEST:.0f} seconds.")
    return float(value)


def shown(error: BaseException) -> str:
    """Return what an error says; a class of the project's own may fail to describe itself."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001
        return f"<{type(error).__name__} that cannot be shown: {type(broken).__name__}>"
