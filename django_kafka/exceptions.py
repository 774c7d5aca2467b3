"""Every error that this package raises, as one tree.

    KafkaError                          category
    ├── ConfigurationError              configuration   settings that cannot work; a sentence says which and why
    │   ├── UnknownName                 configuration   a producer, consumer or cluster that settings do not have
    │   └── NotAvailable                configuration   a setting whose behaviour this version does not have yet
    ├── SerializationError              serialization
    │   ├── EncodeError                 serialization   a value that its serializer cannot turn into bytes
    │   └── DecodeError                 serialization   bytes that their serializer cannot read: poison
    ├── NoHandler                       serialization   a message that no handler of its consumer matches: poison
    ├── ProduceError                    network         a record that was not taken or not delivered
    │   ├── RecordTooLarge              serialization   larger than the producer may send
    │   ├── QueueFull                   network         the producer's queue stayed full for the whole wait
    │   ├── DeliveryPending             configuration   asked for a result before the surrounding commit
    │   ├── DeliveryDiscarded           handler         the surrounding transaction was rolled back
    │   ├── DeliveryTimeout             timeout         no answer yet; the record is still on its way
    │   │   └── BrokersUnreachable      network         no answer yet because no broker can be reached
    │   └── DeliveryFailed              (from Kafka)    Kafka, or the client, gave the record up
    ├── PartitionLost                   network         a partition went to another worker while its message ran
    └── ReplayRefused                   configuration   a dead letter whose state does not allow what was asked

`category` is what metrics and dead letters count by. Other libraries' errors get theirs in `retries`.
"""

from __future__ import annotations

from typing import ClassVar


class KafkaError(Exception):
    """The root: `except KafkaError` catches all that this package raises on purpose."""

    category: ClassVar[str] = "handler"


class ConfigurationError(KafkaError):
    """Settings that cannot work."""

    category = "configuration"


class UnknownName(ConfigurationError, LookupError):
    """A producer, consumer or cluster that settings do not have."""


class NotAvailable(ConfigurationError):
    """A setting that is understood, but whose behaviour this version does not have yet."""


class SerializationError(KafkaError):
    """Bytes and values that do not turn into one another."""

    category = "serialization"


class EncodeError(SerializationError):
    """A value that its serializer cannot turn into bytes."""


class DecodeError(SerializationError):
    """Bytes that their serializer cannot read."""


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


class PartitionLost(KafkaError):
    """A partition went to another worker while its message ran; nothing may be stored for it here any more."""

    category = "network"


class ReplayRefused(KafkaError):
    """A dead letter whose state does not allow what was asked."""

    category = "configuration"
