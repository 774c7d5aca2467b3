"""Values of one topic to framed bytes and back, by the library's own serializers.

A codec has one of them for writing and one for reading, each made with the registry's client of the moment. Once a
schema is known, nothing is asked any more: what stands here is all that is added to the library's work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from confluent_kafka.serialization import MessageField, SerializationContext
from django.conf import settings
from django.core.signals import setting_changed
from django.utils.functional import cached_property
from django.utils.module_loading import import_string

from ... import conf
from ...exceptions import ConfigurationError, DecodeError, KafkaError, RegistryUnavailable, UnknownSchema
from . import avro, frames, library, registry, sources
from .frames import LENGTHS
from .misfits import misfit
from .refusals import NotARegistry, Question

Pairs = Sequence[tuple[str, "bytes | None"]]
_HEADERS = {"key": "__key_schema_id", "value": "__value_schema_id"}
"""The headers in which the library writes the id of a schema."""
_DEFAULTS = conf.SchemaOptions(
    subject="topic", auto_register=None, use_latest=False, normalize=False, schema_id_in="payload"
)
_STRATEGIES = {"topic": "topic_subject_name_strategy", "record": "record_subject_name_strategy",
               "topic_record": "topic_record_subject_name_strategy"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a codec is for."""

    kind: str
    """avro, jsonschema or protobuf."""
    cluster: str
    """Whose registry it asks."""
    topic: str
    """As Kafka knows it, prefix included; of a retry topic the one that it is for."""
    part: str
    """key or value."""
    schema: conf.Schema | None = None
    """What is written, or what readers want to have."""
    options: conf.SchemaOptions = field(default_factory=conf.SchemaOptions)
    """How the registry is used."""
    place: str = "`schema`"
    """Where settings have the schema, for sentences."""


class Codec:
    """Writes and reads the keys, or the values, of one topic. Safe in threads and over `fork()`."""

    def __init__(self, use: Use, plain: Callable[[Any], Any]) -> None:
        """`plain` makes what JSON has of any value, or raises `TypeError`."""
        self.use = use
        self._plain = plain
        self._registry = registry.of(use.cluster)
        base = self._registry.settings.options.over(_DEFAULTS)
        self.options = use.options.over(base)
        self._context = SerializationContext(use.topic, MessageField.KEY if use.part == "key" else MessageField.VALUE)
        self._header = _HEADERS[use.part]
        self.in_headers = self.options.schema_id_in == "headers"
        """Whether what it writes names its schema in a header."""
        # Made with a client of the registry; another generation of that, as after a fork, has others made.
        self._writer: Any = None
        self._reader: Any = None
        self._written_with = self._read_with = -1
        self._readers: dict[bytes, Callable[[bytes], Any]] = {}
        """What reads frames, by how they begin; of schemas that are known."""

    def __repr__(self) -> str:
        return f"<Codec {self.use.kind} of {self.use.topic} {self.use.part}>"

    def check(self) -> None:
        """Raise `ConfigurationError` when its schema cannot be read, or the extra is missing. Asks nothing."""
        library.load(self.use.kind)
        self._strategy(library.load())
        if self.use.kind == "protobuf":
            assert self._message_class is not None
        elif self.use.schema is not None:
            sources.written(self.use.kind, self.use.schema, self.use.place)

    # Writing

    def encode(self, value: Any, topic: str) -> bytes:
        """Return the framed bytes for a value; see `encode_with`."""
        return self.encode_with(value, topic, None)

    def encode_with(self, value: Any, _topic: str, headers: list[tuple[str, bytes | None]] | None) -> bytes:
        """Return the bytes for a value, framed, or with the id of the schema appended to `headers`.

        Raises `SchemaRefused`, `RegistryUnavailable`, and `ValueError` or `TypeError` for what does not fit the schema.
        """
        context = self._context
        if self.in_headers:
            if headers is None:
                raise ValueError("the id of its schema stands in a header, and there is no place for one here")
            context = SerializationContext(self.use.topic, self._context.field, cast("Any", headers))
        if self.use.kind == "protobuf":
            value = self._as_message(value)
        if self._written_with != self._registry.generation or self._writer is None:
            return self._registry.ask(self._question, lambda client: self._first_encode(client, value, context))
        try:
            return self._writer(value, context)  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001  # looked at, and raised again
            found = self._refused(error)
            if found is None:
                raise self._unfit(error) from None
        raise found

    def _first_encode(self, client: Any, value: Any, context: Any) -> bytes:
        writer, generation = self._make_writer(client), self._registry.generation
        try:
            framed: bytes = writer(value, context)
        except Exception as error:  # looked at, and raised again
            if self._registry.refusals.of(error, self._question) is not None:
                raise
            self._writer, self._written_with = writer, generation
            raise self._unfit(error) from None
        self._writer, self._written_with = writer, generation
        return framed

    def _refused(self, error: Exception) -> KafkaError | None:
        found = self._registry.refused(error, self._question)
        if isinstance(found, RegistryUnavailable):
            # So that the next one asks in its turn, with the secrets of then.
            self._writer = None
        return found

    @cached_property
    def _question(self) -> Question:
        subject = (
            f"{self.use.topic}-{self.use.part}" if self.options.subject == "topic" else f"that of {self.use.topic}"
        )
        return Question(what=f"subject {subject!r}", subject=subject, registers=self.registers)

    @property
    def registers(self) -> bool:
        """Tell whether it registers its schema when it first writes."""
        asked = self.options.auto_register
        return not self.options.use_latest and (settings.DEBUG if asked is None else asked)

    def subject_of(self, record: str | None) -> str | None:
        """Return the subject of a schema whose record is called so; None where it cannot be known without one.

        Raises `ConfigurationError`, and what a function of the project raises that names subjects.
        """
        found: str | None = self._strategy(library.load())(self._context, record)
        return found

    def message_class(self) -> Any:
        """Return the class of its messages. Raises `ConfigurationError`; only for Protobuf."""
        return self._message_class

    def _make_writer(self, client: Any) -> Any:
        package, use = library.load(), self.use
        module = library.load(use.kind)
        chosen = {
            "auto.register.schemas": self.registers,
            "use.latest.version": self.options.use_latest,
            "normalize.schemas": self.options.normalize,
            "subject.name.strategy": self._strategy(package),
            "schema.id.serializer": (
                package.header_schema_id_serializer if self.in_headers else package.prefix_schema_id_serializer
            ),
        }
        if use.kind == "protobuf":
            return module.ProtobufSerializer(self._message_class, client, {**chosen, "use.deprecated.format": False})
        if use.schema is None and not self.options.use_latest:
            raise ConfigurationError(
                f"{use.topic!r} is sent as {use.kind} and has no schema: name one in {use.place}, or have the newest "
                'of the registry with "schema_options": {"use_latest": True}.'
            )
        schema = None if use.schema is None else sources.written(use.kind, use.schema, use.place)
        try:
            if use.kind == "avro":
                return module.AvroSerializer(client, schema, conf=chosen)
            return module.JSONSerializer(schema, client, self._to_plain, chosen, json_encode=_compact)
        except Exception as error:  # looked at, and raised again
            if self._registry.refusals.of(error, self._question) is not None:
                raise
            raise ConfigurationError(
                f"{use.place} is no schema for {use.kind}: {type(error).__name__}: {error}"
            ) from None

    def _to_plain(self, value: Any, _context: Any) -> Any:
        return library.plain(value, self._plain)

    def _as_message(self, value: Any) -> Any:
        kind = self._message_class
        if isinstance(value, kind):
            return value
        if isinstance(value, dict):
            try:
                return library.as_message(value, kind)
            except Exception as error:  # noqa: BLE001  # the library's own error is no ValueError
                raise misfit(error) from None
        raise TypeError(f"it has to be a {kind.__name__}, or a dict with its fields")

    @cached_property
    def _message_class(self) -> Any:
        if self.use.schema is None:
            raise ConfigurationError(
                f"{self.use.topic!r} is Protobuf: name the class of its messages in {self.use.place}."
            )
        return sources.message_class(self.use.schema, self.use.place)

    def _strategy(self, package: Any) -> Any:
        chosen = self.options.subject or "topic"
        if chosen in _STRATEGIES:
            return getattr(package, _STRATEGIES[chosen])
        try:
            own = import_string(chosen)
        except ImportError as error:
            raise ConfigurationError(f"`subject` is {chosen!r}, which cannot be imported: {error}") from None
        topic, part = self.use.topic, self.use.part

        def name(_context: Any, record: str | None) -> Any:
            try:
                return own(topic, part, record)
            except KafkaError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise ConfigurationError(
                    f"The function {chosen!r} names no subject for {part}s of {topic!r}: {reason}"
                ) from error

        return name

    @staticmethod
    def _unfit(error: Exception) -> Exception:
        if isinstance(error, MemoryError | KafkaError | RecursionError):
            return error
        if "GUID is not set" in str(error):
            return ValueError('the registry gives schemas no globally unique id, which "schema_id_in": "headers" needs')
        return misfit(error)

    # Reading

    def decode(self, data: bytes, topic: str) -> Any:
        """Return the value of framed bytes; see `decode_with`."""
        return self.decode_with(data, topic, ())

    def decode_with(self, data: bytes, _topic: str, headers: Pairs) -> Any:
        """Return the value of bytes whose schema is named in their frame, or in one of `headers`.

        Raises `DecodeError`, whose sentence has nothing of the bytes in it, and `RegistryUnavailable`.
        """
        frame = data
        if headers:
            wanted = self._header
            for name, value in headers:
                if name == wanted and value is not None:
                    frame = value + data
                    break
        start = frame[: LENGTHS.get(frame[0], 0)] if frame else b""
        read = self._readers.get(start)
        if read is None or self._read_with != self._registry.generation:
            return self._first_decode(start, frame)
        try:
            return read(frame)
        except Exception as error:  # noqa: BLE001  # looked at, and raised again
            raise self._undecodable(start, error) from None

    def _first_decode(self, start: bytes, frame: bytes) -> Any:
        if not start or len(start) != LENGTHS[start[0]]:
            raise DecodeError(frames.fault_of(frame))
        question = Question(what=frames.id_in(start))
        if (known := self._registry.unknown(start)) is not None:
            raise known
        return self._registry.ask(question, lambda client: self._decode_anew(client, start, frame))

    def _decode_anew(self, client: Any, start: bytes, frame: bytes) -> Any:
        if self._read_with != self._registry.generation or self._reader is None:
            # In this order: other threads read meanwhile.
            self._readers = {}
            self._reader = self._make_reader(client)
            self._read_with = self._registry.generation
        try:
            value = self._reader(frame, self._context)
        except Exception as error:  # noqa: BLE001  # looked at, and raised again
            found = self._undecodable(start, error)
            if isinstance(found, NotARegistry):
                # Many registries have no globally unique ids, and some take no number above 2**31. When this one
                # answers otherwise, it is the message that is wrong.
                self._registry.types()
                found = UnknownSchema(
                    f"the schema registry at {self._registry.settings.url} has no {frames.id_in(start)}"
                )
                self._registry.note_unknown(start, found)
            if not isinstance(found, RegistryUnavailable | UnknownSchema):
                self._note(client, start)
            raise found from None
        self._note(client, start)
        return value

    def _note(self, client: Any, start: bytes) -> None:
        self._readers[start] = self._direct(client, start) or self._by_library
        self._registry.note((self.use.topic, self.use.part, start))

    def _direct(self, client: Any, start: bytes) -> Callable[[bytes], Any] | None:
        """Return what reads frames that begin so without the library; None where it has to."""
        use = self.use
        if use.kind != "avro" or self.options.use_latest:
            return None
        try:
            wanted = None if use.schema is None else sources.written(use.kind, use.schema, use.place)
            return avro.reader(client, start, self.subject_of(None), wanted)
        except Exception:  # noqa: BLE001  # the library has its own way, and its own words for what is wrong
            return None

    def _by_library(self, frame: bytes) -> Any:
        return self._reader(frame, self._context)

    def _undecodable(self, start: bytes, error: Exception) -> Exception:
        if isinstance(error, MemoryError | ConfigurationError):
            return error
        found = self._registry.refused(error, Question(what=frames.id_in(start)))
        if isinstance(found, UnknownSchema):
            self._registry.note_unknown(start, found)
        if found is not None:
            return found
        # What it says may quote the bytes.
        return DecodeError(f"{type(error).__name__}, with {frames.id_in(start)}")

    def _make_reader(self, client: Any) -> Any:
        package, use = library.load(), self.use
        module = library.load(use.kind)
        chosen = {
            "use.latest.version": self.options.use_latest,
            "subject.name.strategy": self._strategy(package),
            "schema.id.deserializer": package.prefix_schema_id_deserializer,
        }
        if use.kind == "protobuf":
            return module.ProtobufDeserializer(self._message_class, {**chosen, "use.deprecated.format": False}, client)
        schema = None if use.schema is None else sources.written(use.kind, use.schema, use.place)
        if use.kind == "avro":
            return module.AvroDeserializer(client, schema, conf=chosen)
        return module.JSONDeserializer(schema, schema_registry_client=client, conf=chosen)


_compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


_made: dict[Use, Codec] = {}


def codec(use: Use, plain: Callable[[Any], Any]) -> Codec:
    """Return the codec for a use, made once. Raises `ConfigurationError`."""
    found = _made.get(use)
    if found is None:
        found = _made.setdefault(use, Codec(use, plain))
    return found


def _forget_settings(*, setting: str, **_event: Any) -> None:
    if setting in ("KAFKA", "DEBUG"):
        _made.clear()


setting_changed.connect(_forget_settings, dispatch_uid="django_kafka.clients.schema_registry.codecs")
