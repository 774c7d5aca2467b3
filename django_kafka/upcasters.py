"""Upcasters: what brings payloads of older versions to the one that handlers know, a version at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from . import conf
from .cloud_events import CloudEvent, attribute_of
from .exceptions import ConfigurationError, DecodeError, UpcastFailed
from .messages import Kind, Message, RawMessage
from .registry import Registration, changed, registrations
from .serializers import TopicDecoder

Upcast = Callable[[dict[str, Any]], dict[str, Any]]
F = TypeVar("F", bound=Upcast)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcaster:
    """One step: from a version of a type to the next one."""

    type: str
    """What the messages are."""
    from_version: int
    """The version that it takes."""
    path: str
    """The dotted path of its function."""
    function: Upcast
    """Takes the payload and returns that of the next version."""


_registered: list[Upcaster] = []


def upcaster(*, type: str, from_version: int) -> Callable[[F], F]:
    """Register the decorated function: it takes a payload of `from_version` and returns that of the next version.

    Both are dicts, as the serializer has them; it may change and return the one that it was given. Put upcasters into
    `<app>/kafka_handlers.py`, beside handlers.
    """
    if not isinstance(type, str) or not type:
        raise ConfigurationError(f"type is {type!r}; allowed: the name of a type.")
    if isinstance(from_version, bool) or not isinstance(from_version, int) or from_version < 1:
        raise ConfigurationError(f"from_version is {from_version!r}; allowed: a whole number from 1.")

    def register(function: F) -> F:
        path = f"{function.__module__}.{function.__qualname__}"
        made = Upcaster(type=type, from_version=from_version, path=path, function=function)
        # A module that is imported again registers its functions again.
        others = [one for one in _registered if (one.type, one.from_version, one.path) != (type, from_version, path)]
        _registered[:] = [*others, made]
        changed()
        return function

    return register


def forget(function: Upcast) -> None:
    """Take an upcaster out of the registry again, as tests do."""
    _registered[:] = [one for one in _registered if one.function is not function]
    changed()


def problems() -> Iterator[tuple[str, str, str]]:
    """Yield (check id, sentence, hint) for steps that are there twice, or lead nowhere."""
    for one, other in _twice():
        sentence = f"Two upcasters take {one.type!r} from version {one.from_version}: {one.path!r} and {other.path!r}."
        yield "E027", sentence, "Keep one of them."
    found = dict[str, None]()
    for consumer in conf.kafka().consumers.values():
        mine = registrations(consumer.name)
        for topic in dict.fromkeys(one.topic for one in mine):
            found |= dict.fromkeys(_gaps(consumer.name, [one for one in mine if one.topic == topic]))
    for sentence in found:
        yield "E028", sentence, "Add the step that is missing."


def _twice() -> Iterator[tuple[Upcaster, Upcaster]]:
    first: dict[tuple[str, int], Upcaster] = {}
    for one in _registered:
        if (before := first.setdefault((one.type, one.from_version), one)) is not one:
            yield before, one


def _gaps(consumer: str, mine: Iterable[Registration]) -> Iterator[str]:
    for kind, versions in known(mine).items():
        steps = {one.from_version: one for one in _registered if one.type == kind}
        for version, step in sorted(steps.items()):
            after = version + 1
            if after < max(versions) and after not in versions and after not in steps:
                yield (
                    f"The upcaster {step.path!r} makes version {after} of {kind!r}, and no upcaster takes that on to "
                    f"version {min(one for one in versions if one > after)}, which a handler of consumer {consumer!r} "
                    "knows."
                )


def known(mine: Iterable[Registration]) -> dict[str, tuple[int, ...]]:
    """Return the versions that the handlers of a topic know, by type, in their order."""
    found: dict[str, set[int]] = {}
    for one in mine:
        if one.wanted.version is not None:
            found.setdefault(one.wanted.type, set()).add(one.wanted.version)
    return {kind: tuple(sorted(versions)) for kind, versions in found.items()}


class Versions:
    """What the messages of one topic are, and how they get to the versions that its handlers know."""

    def __init__(self, type_in: conf.Place, version_in: conf.Place, known: Mapping[str, Sequence[int]]) -> None:
        self._type_in = type_in
        self._version_in = version_in
        self._known = known
        self._steps = {(one.type, one.from_version): one for one in _registered}
        self.in_value = bool(type_in.field or version_in.field)
        """Whether the value has to be read to know what a message is."""
        self._of_events = bool(type_in.cloud_event or version_in.cloud_event)

    def kind_of(self, message: Message, value: Any) -> Kind:
        """Return what a message with this decoded value is. Raises `DecodeError` for a version that is no number."""
        event = message.cloud_event if self._of_events else None
        name = _said(self._type_in, message, value, event)
        if not isinstance(name, str):
            return Kind(None, None)
        if name not in self._known:
            return Kind(name, None)
        said = _said(self._version_in, message, value, event)
        # Those that say none are older than versions.
        version = 1 if said is None else _number(said)
        if version is None:
            place = message.topic, message.partition, message.offset
            raise DecodeError(
                f"The version of {name!r} at {message.topic}[{message.partition}]@{message.offset} is no whole number.",
                place=place,
            )
        return Kind(name, version)

    def _missing(self, kind: str, version: int, wanted: int) -> int | None:
        return next((one for one in range(version, wanted) if (kind, one) not in self._steps), None)

    def target(self, kind: Kind) -> int | None:
        """Return the version that a message is to have: the nearest that a handler knows; None: there is no way."""
        if kind.type is None or kind.version is None:
            return None
        wanted = next((one for one in self._known[kind.type] if one >= kind.version), None)
        if wanted is None or self._missing(kind.type, kind.version, wanted) is not None:
            return None
        return wanted

    def refusal(self, kind: Kind) -> str:
        """Return why a message does not get to a version that a handler knows; "": it does, or is of another type."""
        if kind.type is None or kind.version is None:
            return ""
        wanted = next((one for one in self._known[kind.type] if one >= kind.version), None)
        what = f"it is version {kind.version} of {kind.type!r}"
        if wanted is None:
            return f"{what}, and {max(self._known[kind.type])} is the newest that a handler knows"
        missing = self._missing(kind.type, kind.version, wanted)
        return "" if missing is None else f"{what}, and no upcaster takes that from {missing} to {missing + 1}"

    def upcast(self, message: Message, kind: Kind, value: Any) -> Any:
        """Return the value in the version that it is to have. Raises `UpcastFailed`."""
        target = self.target(kind)
        if target is None or value is None:
            return value
        assert kind.type is not None
        assert kind.version is not None
        for version in range(kind.version, target):
            value = _stepped(self._steps[kind.type, version], message, value)
        return value


def _stepped(step: Upcaster, message: Message, value: Any) -> Any:
    place = message.topic, message.partition, message.offset
    what = f"The upcaster {step.path!r}, for version {step.from_version} of {step.type!r},"
    where = f"at {message.topic}[{message.partition}]@{message.offset}"
    if not isinstance(value, dict):
        raise UpcastFailed(f"{what} takes a dict, and the value {where} is {type(value).__name__}.", place=place)
    try:
        found = step.function(value)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise UpcastFailed(f"{what} failed with {type(error).__name__} {where}.", place=place) from error
    if not isinstance(found, dict):
        raise UpcastFailed(f"{what} returned {type(found).__name__} {where}; it must return a dict.", place=place)
    return found


def _said(place: conf.Place, message: Message, value: Any, event: CloudEvent | None) -> Any:
    if place.field:
        return field_of(value, place.field)
    if place.cloud_event:
        return attribute_of(event, place.cloud_event)
    said = message.header(place.header)
    return None if said is None else said.decode("utf-8", "replace")


def _number(said: Any) -> int | None:
    if isinstance(said, str) and said.isascii() and said.isdecimal() and len(said) < 10:
        said = int(said)
    return said if isinstance(said, int) and not isinstance(said, bool) and 0 < said < 10**9 else None


def field_of(value: Any, path: str) -> Any:
    """Return the field of a decoded value at a path with dots; None where there is none."""
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif hasattr(value, "DESCRIPTOR"):
            value = getattr(value, name, None)
        else:
            return None
    return value


class UpcastingDecoder(TopicDecoder):
    """Reads a topic with another decoder, and brings its values to the versions that its handlers know."""

    __slots__ = ("_decoder", "versions")

    def __init__(self, decoder: TopicDecoder, versions: Versions) -> None:
        super().__init__(decoder._key, decoder._value, decoder._most)
        self._decoder = decoder
        self.versions = versions

    @property
    def encrypts(self) -> bool:
        """Whether messages of this topic come encrypted, or some of their fields."""
        return self._decoder.encrypts

    def outside(self) -> TopicDecoder:
        """Return what reads as much as everybody may see who sees the bytes, in the version in which they came."""
        return self._decoder.outside()

    def encrypted(self, message: Message) -> list[Any]:
        """Return what was encrypted of a message; raise what `value` raises but `UpcastFailed`."""
        return self._decoder.encrypted(message)

    def event(self, message: Message) -> CloudEvent | None:
        """Return what a message says of itself as a CloudEvent; None when it is none."""
        return self._decoder.event(message)

    def encode(self, value: Any, topic: str, part: str) -> bytes | None:
        """Return bytes that read as `value`, which is the key or the value as `part` says; raise `EncodeError`."""
        return self._decoder.encode(value, topic, part)

    def value(self, message: Message) -> Any:
        """Return the value in the version that a handler knows. Raises `DecodeError`."""
        value = self._decoder.value(message)
        message.kind = self.versions.kind_of(message, value)
        return self.versions.upcast(message, message.kind, value)

    def values(self, raws: Sequence[RawMessage]) -> list[Any]:
        """Return those of many. Raises `DecodeError`."""
        return [self.value(Message(raw, self)) for raw in raws]

    def kind(self, message: Message) -> Kind:
        """Return what a message is, as it came. Raises `DecodeError` when that stands in a value that is wrong."""
        try:
            return message.kind
        except AttributeError:
            pass
        if not self.versions.in_value:
            message.kind = self.versions.kind_of(message, None)
            return message.kind
        try:
            _value = message.value  # which notes it
        except UpcastFailed:
            # Its handler meets that again.
            pass
        return message.kind

    def refusal(self, message: Message) -> str:
        """Return why a message does not get to a version that a handler knows; "": it does, or is of another type."""
        return self.versions.refusal(self.kind(message))
