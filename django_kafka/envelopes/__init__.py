"""Envelopes: what values are put into between their serializer and Kafka, and taken out of on the way back.

Sending, fields are encrypted, the value is serialized, it becomes a CloudEvent, is encrypted as a whole, and when it is
large, left in a storage. Keys of messages and headers stay as they are: partitions, compaction and dispatching go by
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import cloud_events, conf, serializers
from ..cloud_events import CloudEvent, NoCloudEvent
from ..exceptions import DecodeError, EncodeError
from ..serializers import Serializer
from . import claim_check, encryption, fields

__all__ = ["Envelope", "claim_check", "encryption", "of"]

VALUE = "value"
"""The part of messages that has an envelope."""
Headers = list[tuple[str, "bytes | None"]]
Pairs = Sequence[tuple[str, "bytes | None"]]


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
    events: conf.CloudEvents = field(default_factory=conf.CloudEvents)
    """How they are written as CloudEvents."""
    reads_events: bool = False
    """Whether a value that is a whole CloudEvent is read as its data."""
    claim_check: conf.ClaimCheck = field(default_factory=conf.ClaimCheck)
    """Where large ones are left."""
    most: int | None = None
    """Bytes of one that is fetched from there at most; None: any number."""

    @property
    def covers(self) -> bool:
        """Whether a value is encrypted as a whole."""
        return self.encryption.payload

    @property
    def kind(self) -> str:
        """The content type of what is serialized."""
        match self.serializer:
            case serializers.Json():
                found = "application/json"
            case serializers.Text():
                found = "text/plain"
            case _:
                # What a registry frames is neither Avro nor JSON nor Protobuf to those who do not know it.
                found = "application/octet-stream"
        return self.events.content_type or found

    # Sending

    def close(self, value: Any, headers: Headers | None = None) -> bytes | None:
        """Return what is sent for a value; what is written into headers is appended to `headers`.

        Raises `EncodeError`, and what `encryption.seal` raises.
        """
        if value is None:
            return None
        more: Headers = [] if headers is None else headers
        if not self.events:
            data = self._serialized(value, more)
        else:
            given = value if isinstance(value, CloudEvent) else CloudEvent(data=value)
            data = self._as_event(given, more)
        if data is None:
            return None
        return self._left(encryption.seal(data, self.topic, VALUE) if self.covers else data)

    def _left(self, data: bytes, *, again: bool = False) -> bytes:
        # What only looks like a reference is left there as well, so that it is not taken for one.
        check = self.claim_check
        if check and (again or len(data) > check.above or claim_check.is_reference(data)):
            return claim_check.Checked.of(data, self.topic, check.storage)
        return data

    def _serialized(self, value: Any, headers: Headers) -> bytes | None:
        if value is not None and self.encryption.fields:
            value = fields.sealed(value, self.encryption.fields, self.topic)
        if not self.encryption or isinstance(self.serializer, serializers.WITHOUT_QUOTES):
            return serializers.encode(self.serializer, value, self.topic, VALUE, headers)
        try:
            return serializers.encode(self.serializer, value, self.topic, VALUE, headers)
        except EncodeError as error:
            kind = type(error.__cause__ or error).__name__
        # Not where it was caught: one of the project's own may quote what is to be encrypted.
        raise EncodeError(f"The value for {self.topic!r} does not serialize: {kind}.")

    def _as_event(self, given: CloudEvent, headers: Headers) -> bytes | None:
        source, what = self.events.source or "", self.events.type or ""
        event = given.completed(source=source, type=what, datacontenttype=self.kind)
        data = self._serialized(given.data, headers)
        structured = self.events.mode == "structured"
        if not structured or not self.covers:
            headers += cloud_events.headers_of(event)
        if not structured:
            headers.append(cloud_events.content_type_of(event))
            return data
        headers.append((cloud_events.CONTENT_TYPE, cloud_events.STRUCTURED.encode()))
        return self._around_event(event, data, given=type(given.data) is bytes)

    def _around_event(self, event: CloudEvent, data: bytes | None, *, given: bool) -> bytes:
        """Return a whole event; `given`: its data are bytes that nobody of ours has made, and which may be anything."""
        is_json = cloud_events.is_json(event.datacontenttype or "")
        if data is not None and not given:
            if isinstance(self.serializer, serializers.Json) and is_json:
                return cloud_events.written(event, data, literal=True)
            if isinstance(self.serializer, serializers.Text) and not is_json:
                return cloud_events.written(event, serializers.Json().encode(data.decode(), ""), literal=True)
        return cloud_events.written(event, data, literal=False)

    def around(self, data: bytes) -> bytes:
        """Return what is sent for what `inside` returned; what is encrypted stays as it is."""
        if not self.covers or encryption.is_sealed(data):
            return data
        return encryption.seal(data, self.topic, VALUE)

    # Reading

    def inside(self, data: bytes) -> bytes:
        """Return a value as it was before it was encrypted as a whole, and left in a storage.

        Raises `Undecryptable`, `KeyUnavailable`, and what `fetched` raises.
        """
        data = self.fetched(data)
        if not self.covers or (self.accept_plain and not encryption.is_sealed(data)):
            return data
        return encryption.unseal(data, self.topics, VALUE)

    def fetched(self, data: bytes) -> bytes:
        """Return a value as it was before it was left in a storage; raise what `claim_check.fetch` raises."""
        if self.claim_check and claim_check.is_reference(data):
            return claim_check.fetch(data, self.claim_check.storage, self.most)
        return data

    def is_event(self, headers: Pairs) -> bool:
        """Tell whether what `inside` returns is read as a whole CloudEvent."""
        return self.reads_events and cloud_events.is_structured(headers)

    def event(self, inner: bytes, headers: Pairs) -> tuple[CloudEvent, bytes | None]:
        """Return a whole CloudEvent, and its data. Raises `DecodeError`."""
        try:
            return cloud_events.read(inner, headers)
        except NoCloudEvent as error:
            raise DecodeError(f"it is no CloudEvent: {error}") from None

    def revealed(self, value: Any) -> tuple[Any, list[Any]]:
        """Return a value as it was given to be sent, and what was encrypted of it; raise as `inside`."""
        if self.encryption.fields and value is not None:
            return fields.unsealed(value, self.encryption.fields, self.topics, accept_plain=self.accept_plain)
        return value, [value] if self.covers else []

    def open(self, data: bytes, headers: Pairs) -> Any:
        """Return the value that was sent as these bytes; raise what its serializer raises, and all of that."""
        return self._opened(self.inside(data), headers)[1]

    def _opened(self, inner: bytes, headers: Pairs) -> tuple[CloudEvent | None, Any]:
        event, data = self.event(inner, headers) if self.is_event(headers) else (None, inner)
        value = None if data is None else serializers.decode(self.serializer, data, self.topic, headers)
        return event, self.revealed(value)[0]

    def renewed(self, data: bytes) -> bytes:
        """Return what is sent again for a value: what refers to an older file is left in one of today.

        Old files are deleted when topics do not keep the messages of their time any more, and this one is new.
        """
        if not self.claim_check or (reference := claim_check.reference_in(data)) is None or reference.is_of_today:
            return data
        try:
            return claim_check.Checked.of(self.fetched(data), self.topic, self.claim_check.storage)
        except DecodeError:
            # It is gone, or too large: as it came.
            return data

    def moved(self, data: bytes, topic: str, headers: Pairs) -> bytes:
        """Return what a value of this topic is in another one: what is encrypted for a topic is read in that only."""
        other = replace(self, topic=topic)
        if topic == self.topic or not self.encryption:
            return other.renewed(data)
        was_left = bool(self.claim_check) and claim_check.is_reference(data)
        data = self.fetched(data)
        inner = self.inside(data)
        if self.encryption.fields:
            event, value = self._opened(inner, headers)
            again = other._serialized(value, [])
            whole = again or b"" if event is None else other._around_event(event, again, given=False)
        else:
            whole = other.around(inner) if encryption.is_sealed(data) else data
        # What was too large once is so again; from which size on, only its producer knows.
        return other._left(whole, again=was_left)


def of(
    client: conf.Producer | conf.Consumer, own: conf.ProducerTopic | conf.ConsumerTopic | None, topic: str
) -> Envelope | None:
    """Return the envelope of the values of a topic, named as Kafka knows it; None when they have none.

    `own` is what settings say of the topic. Raises `ConfigurationError`.
    """
    chosen = client.encryption if own is None or own.encryption is None else own.encryption
    if isinstance(client, conf.Producer):
        events = (
            own.cloud_events.over(client.cloud_events) if isinstance(own, conf.ProducerTopic) else client.cloud_events
        )
        check = own.claim_check if own is not None and own.claim_check is not None else client.claim_check
        if not (chosen or events or check):
            return None
        serializer = serializers.of_part(client, own, topic, VALUE)
        whole = events.mode == "structured"
        return Envelope(
            serializer=serializer, topic=topic, encryption=chosen, events=events, reads_events=whole, claim_check=check
        )
    mine = own if isinstance(own, conf.ConsumerTopic) else conf.ConsumerTopic(name=topic)
    reads_events = client.cloud_events if mine.cloud_events is None else mine.cloud_events
    check = client.claim_check if mine.claim_check is None else mine.claim_check
    if not (chosen or reads_events or check):
        return None
    return Envelope(
        serializer=serializers.of_part(client, own, topic, VALUE),
        topic=topic,
        encryption=chosen,
        accept_plain=client.accept_plain if mine.accept_plain is None else mine.accept_plain,
        # What is imported is shown, and sent home: that is where it is read again.
        topics=None if mine.imports else frozenset((topic, *mine.encrypted_for)),
        reads_events=reads_events,
        claim_check=check,
        most=client.max_payload,
    )
