"""Messages whose values come in envelopes, read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import conf
from ..cloud_events import CloudEvent
from ..exceptions import DecodeError
from ..messages import Message, RawMessage, header_pairs
from ..serializers import Serializer, TopicDecoder
from . import VALUE, Envelope, Pairs


class OpeningDecoder(TopicDecoder):
    """Reads keys and values of one topic of one consumer whose values come in envelopes."""

    __slots__ = ("envelope",)

    def __init__(self, key: Serializer, envelope: Envelope, most: int | None) -> None:
        super().__init__(key, envelope.serializer, most)
        self.envelope = envelope

    @property
    def encrypts(self) -> bool:
        """Whether messages of this topic come encrypted, or some of their fields."""
        return bool(self.envelope.encryption)

    def value(self, message: Message) -> Any:
        """Return the decoded value of `message`; raise `DecodeError` and `KeyUnavailable`."""
        return self._read(message)[0]

    def values(self, raws: Sequence[RawMessage]) -> list[Any]:
        """Return the decoded values of messages of one topic; raise the same."""
        return [self.value(Message(raw, self)) for raw in raws]

    def encrypted(self, message: Message) -> list[Any]:
        """Return what was encrypted of a message; raise what `value` raises."""
        return self._read(message)[1]

    def event(self, message: Message) -> CloudEvent | None:
        """Return what a message says of itself as a CloudEvent; None when it is none. Raises the same."""
        headers = header_pairs(message._raw)
        if message.raw_value is None or not self.envelope.is_event(headers):
            return super().event(message)
        try:
            return self.envelope.event(self._inside(message.raw_value, message), headers)[0]
        except DecodeError as error:
            found = _placed(error, message)
        raise found

    def encode(self, value: Any, topic: str, part: str) -> bytes | None:
        """Return bytes that read as `value`, which is the key or the value as `part` says; raise `EncodeError`."""
        if part != VALUE:
            return super().encode(value, topic, part)
        # Left in no storage: that is done for what is sent.
        return replace(self.envelope, claim_check=conf.ClaimCheck()).close(value)

    def inside(self, headers: Pairs) -> TopicDecoder:
        """Return what reads what `Envelope.inside` returns: a whole CloudEvent as the JSON that it is."""
        if self.envelope.is_event(headers):
            return TopicDecoder(self._key, "json", self._most)
        return TopicDecoder(self._key, self._value, self._most) if self.envelope.covers else self

    def outside(self) -> TopicDecoder:
        """Return what reads as much as everybody may see who sees the bytes: nothing is decrypted."""
        if self.envelope.covers:
            return TopicDecoder(self._key, "bytes", self._most)
        return OpeningDecoder(self._key, replace(self.envelope, encryption=conf.Encryption()), self._most)

    def _inside(self, data: bytes, message: Message) -> bytes:
        self._refuse_large(data, message)
        return self.envelope.inside(data)

    def _read(self, message: Message) -> tuple[Any, list[Any]]:
        """Return the value, and what was encrypted of it."""
        data, envelope = message.raw_value, self.envelope
        if data is None:
            return None, []
        try:
            inner: bytes | None = self._inside(data, message)
            if envelope.reads_events and inner is not None and envelope.is_event(headers := header_pairs(message._raw)):
                inner = envelope.event(inner, headers)[1]
            return envelope.revealed(self._decoded(inner, message))
        except DecodeError as error:
            found = _placed(error, message)
        raise found


def _placed(error: DecodeError, message: Message) -> DecodeError:
    """Return an error that says where its message is from."""
    if error.place is not None:
        return error
    place = message.topic, message.partition, message.offset
    sentence = f"The value of {message.topic}[{message.partition}]@{message.offset} cannot be read: {error}"
    return type(error)(sentence, place=place)
