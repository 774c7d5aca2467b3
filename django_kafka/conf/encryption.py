"""Encryption: with which keys, what of the values of a topic, and how to read that from settings."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from django_kafka.exceptions import ConfigurationError

from .blocks import CONTRADICTION, WRONG_VALUE, Block, Problem, subpath
from .masks import path
from .secrets import Secret
from .values import NAME, Rule, Wrong, did_you_mean, flag, label, listed, optional, secret

KEY_BYTES: Final = 32
"""In each key."""
_ALLOWED = '"none", "payload", or a list of paths such as "passenger.name", "*.email", "items[].card" or "**.iban"'
_FLAT = ("bytes", "text", "protobuf")
"""The serializers whose values have no fields that could be replaced by texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """What of the values of a topic is encrypted."""

    payload: bool = False
    """All of each value."""
    fields: tuple[tuple[str, ...], ...] = ()
    """What is at these paths, which are written as those of `dead_letters["mask"]`."""

    def __bool__(self) -> bool:
        """Tell whether anything is."""
        return self.payload or bool(self.fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionKey:
    """A key, and what it is called in what is encrypted with it."""

    id: str
    """Its name."""
    secret: Secret
    """32 bytes in base64."""

    def reveal(self) -> bytes:
        """Return its bytes. Raises `ConfigurationError`."""
        text = self.secret.reveal().strip()
        try:
            found = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
        except (binascii.Error, ValueError):
            found = b""
        if len(found) != KEY_BYTES:
            # Not chained, and without the text: it may be a key with a mistake in it.
            raise ConfigurationError(f"{place_of(self.id)} is no key: it has to be {KEY_BYTES} bytes in base64.")
        return found


def place_of(key_id: str) -> str:
    """Return where settings have a key."""
    return f'KAFKA["encryption"]["keys"]["{key_id}"]'


def encryption(value: object) -> Encryption:
    """Read what of values is encrypted."""
    match value:
        case "none":
            return Encryption()
        case "payload":
            return Encryption(payload=True)
        case list() | tuple() if value and all(isinstance(each, str) for each in value):
            try:
                return Encryption(fields=tuple(path(each) for each in value))
            except Wrong as wrong:
                raise Wrong(_ALLOWED, wrong.hint) from None
    raise Wrong(_ALLOWED, did_you_mean(value, ("none", "payload")))


WRITING: Mapping[str, Rule] = {"encryption": encryption}
WRITING_TOPIC: Mapping[str, Rule] = {"encryption": optional(encryption)}
READING: Mapping[str, Rule] = {**WRITING, "accept_plain": flag}
READING_TOPIC: Mapping[str, Rule] = {
    **WRITING_TOPIC,
    "accept_plain": optional(flag),
    "encrypted_for": listed(label, "names of topics"),
}


def read_keys(block: Block) -> tuple[EncryptionKey, ...]:
    """Return the keys of the block `encryption`, that which encrypts first. No problem tells what stands there."""
    where, given = block.path_to("keys"), block.take("keys")
    block.close()
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        block.problem(WRONG_VALUE, f"{where} is of type {kind}; allowed: a dict of keys by their ids.", path=where)
        return ()
    found = []
    for name, value in given.items():
        key = _read_key(name, value, where, block)
        if key is not None:
            found.append(key)
    return tuple(found)


def _read_key(name: object, value: object, where: str, block: Block) -> EncryptionKey | None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        sentence = f"{where} has an id that is none; allowed: 1 to 100 of the characters a-z A-Z 0-9 . _ -."
        block.problem(WRONG_VALUE, sentence, "In YAML, put it in quotes.", path=where)
        return None
    place = subpath(where, name)
    try:
        key = EncryptionKey(id=name, secret=secret(value))
    except Wrong as wrong:
        block.problem(WRONG_VALUE, f"{place} is no key; allowed: {wrong.allowed}.", path=place)
        return None
    if not key.secret:
        block.problem(WRONG_VALUE, f"{place} is empty; it has to be {KEY_BYTES} bytes in base64.", path=place)
        return None
    return key


def find_what_encryption_lacks(keys: Iterable[Any], kind: str, clients: Iterable[Any], problems: list[Problem]) -> None:
    """Report clients that encrypt without a key, and fields of what has none."""
    has_keys = any(True for _ in keys)
    for client in clients:
        where = f'KAFKA["{kind}"]["{client.name}"]'
        places = {where: client, **{f'{where}["topics"]["{name}"]': topic for name, topic in client.topics.items()}}
        for place, one in places.items():
            chosen = client.encryption if one.encryption is None else one.encryption
            if one.encryption and not has_keys:
                sentence = f'{place}["encryption"] is given, and KAFKA has no key.'
                hint = 'Give one in KAFKA["encryption"]["keys"].'
                problems.append(Problem(id=CONTRADICTION, path=place, message=sentence, hint=hint))
            serializer = one.serializer or client.serializer
            if chosen.fields and serializer in _FLAT:
                sentence = f'{place} encrypts fields, and its serializer is "{serializer}".'
                hint = 'Its values have no fields that can be replaced by texts: encrypt the "payload".'
                problems.append(Problem(id=CONTRADICTION, path=place, message=sentence, hint=hint))
