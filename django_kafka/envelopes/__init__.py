"""Envelopes: what values are put into between their serializer and Kafka, and taken out of on the way back.

Sending, fields are encrypted, the value is serialized, and then encrypted as a whole. Keys of messages and headers stay
as they are: partitions, compaction and dispatching go by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import conf, serializers
from ..exceptions import Undecryptable
from ..messages import Message, RawMessage
from ..serializers import Serializer
from . import encryption, fields

__all__ = ["Envelope", "OpeningDecoder", "encryption", "of"]

_VALUE = "value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What the values of one topic are put into."""

    serializer: Serializer
    """Turns them into bytes."""
    topic: str
    """As Kafka knows it; of a retry topic the one that it is for."""
    encryption: conf.Encryption
    """What of them is encrypted."""
    accept_plain: bool = False
    """Whether what is not encrypted is read."""
    topics: frozenset[str] | None = None
    """The topics for which it may be encrypted; None: any."""

    def close(self, value: Any, headers: list[tuple[str, bytes | None]] | None = None) -> bytes | None:
        """Return what is sent for a value; a serializer that writes headers appends them to `headers`.

        Raises `EncodeError`, and what `encryption.seal` raises.
        """
        if value is None:
            return None
        if self.encryption.fields:
            value = fields.sealed(value, self.encryption.fields, self.topic)
        data = serializers.encode(self.serializer, value, self.topic, _VALUE, headers)
        return encryption.seal(data, self.topic, _VALUE) if data is not None and self.covers else data

    def around(self, data: bytes) -> bytes:
        """Return what is sent for a value that is serialized already; what is encrypted stays as it is."""
        if not self.covers or encryption.is_sealed(data):
            return data
        return encryption.seal(data, self.topic, _VALUE)

    @property
    def covers(self) -> bool:
        """Whether a value is encrypted as a whole."""
        return self.encryption.payload

    def inside(self, data: bytes) -> bytes:
        """Return what its serializer made of a value. Raises `Undecryptable` and `KeyUnavailable`."""
        if not self.covers or (self.accept_plain and not encryption.is_sealed(data)):
            return data
        return encryption.unseal(data, self.topics, _VALUE)

    def revealed(self, value: Any) -> tuple[Any, list[Any]]:
        """Return a value as it was given to be sent, and what was encrypted of it; raise the same."""
        if self.encryption.fields:
            return fields.unsealed(value, self.encryption.fields, self.topics, accept_plain=self.accept_plain)
        return value, [value] if self.covers else []

    def open(self, data: bytes, headers: Sequence[tuple[str, bytes | None]]) -> Any:
        """Return the value that was sent as these bytes; raise what its serializer raises, and the same."""
        inner = self.inside(data)
        return self.revealed(serializers.decode(self.serializer, inner, self.topic, headers))[0]

    def moved(self, data: bytes, topic: str, headers: Sequence[tuple[str, bytes | None]]) -> bytes:
        """Return what a value of this topic is in another one: what is encrypted for a topic is read in that only."""
        if topic == self.topic or not data:
            return data
        other = Envelope(serializer=self.serializer, topic=topic, encryption=self.encryption)
        if self.encryption.fields:
            more: list[tuple[str, bytes | None]] = []
            moved = other.close(self.open(data, headers), more)
            assert moved is not None
            return moved
        return other.around(self.inside(data)) if encryption.is_sealed(data) else data


class OpeningDecoder(serializers.TopicDecoder):
    """Reads keys and values of one topic of one consumer whose values come in envelopes."""

    __slots__ = ("envelope",)

    def __init__(self, key: Serializer, envelope: Envelope, most: int | None) -> None:
        super().__init__(key, envelope.serializer, most)
        self.envelope = envelope

    def value(self, message: Message) -> Any:
        """Return the decoded value of `message`; raise `DecodeError` and `KeyUnavailable`."""
        return self._read(message)[0]

    def values(self, raws: Sequence[RawMessage]) -> list[Any]:
        """Return the decoded values of messages of one topic; raise the same."""
        return [self.value(Message(raw, self)) for raw in raws]

    def encrypted(self, message: Message) -> list[Any]:
        """Return what was encrypted of a message; nothing when it cannot be read. Raises `KeyUnavailable`."""
        try:
            return self._read(message)[1]
        except serializers.UNREADABLE:
            return []

    def encode(self, value: Any, topic: str, part: str) -> bytes | None:
        """Return bytes that read as `value`, which is the key or the value as `part` says; raise `EncodeError`."""
        return self.envelope.close(value) if part == _VALUE else super().encode(value, topic, part)

    def inside(self) -> serializers.TopicDecoder:
        """Return what reads what is inside of an envelope that covers a value, and else itself."""
        return serializers.TopicDecoder(self._key, self._value, self._most) if self.envelope.covers else self

    def outside(self) -> serializers.TopicDecoder:
        """Return what reads as much as everybody may see who sees the bytes: nothing is decrypted."""
        plain: Serializer = serializers.get("bytes") if self.envelope.covers else self.envelope.serializer
        return serializers.TopicDecoder(self._key, plain, self._most)

    def _read(self, message: Message) -> tuple[Any, list[Any]]:
        data = message.raw_value
        if data is None:
            return None, []
        try:
            inner = self.envelope.inside(data)
            return self.envelope.revealed(self._decoded(inner, message))
        except Undecryptable as error:
            place = message.topic, message.partition, message.offset
            sentence = f"The value of {message.topic}[{message.partition}]@{message.offset} cannot be read: {error}"
            made = type(error)
        raise made(sentence, place=place)


def of(
    client: conf.Producer | conf.Consumer, own: conf.ProducerTopic | conf.ConsumerTopic | None, topic: str
) -> Envelope | None:
    """Return the envelope of the values of a topic, named as Kafka knows it; None when they have none.

    `own` is what settings say of the topic. Raises `ConfigurationError`.
    """
    chosen = client.encryption if own is None or own.encryption is None else own.encryption
    if not chosen:
        return None
    serializer = serializers.of_part(client, own, topic, _VALUE)
    if isinstance(client, conf.Producer):
        return Envelope(serializer=serializer, topic=topic, encryption=chosen)
    mine = own if isinstance(own, conf.ConsumerTopic) else conf.ConsumerTopic(name=topic)
    return Envelope(
        serializer=serializer,
        topic=topic,
        encryption=chosen,
        accept_plain=client.accept_plain if mine.accept_plain is None else mine.accept_plain,
        # What is imported is shown, and sent home: that is where it is read again.
        topics=None if mine.imports else frozenset((topic, *mine.encrypted_for)),
    )
