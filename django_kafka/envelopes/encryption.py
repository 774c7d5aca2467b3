"""Encryption with keys from settings: AES-256-GCM-SIV of the package `cryptography`, which is an extra.

What is encrypted names its key and the topic that it is for, and both are authenticated with it, so that it can be
moved nowhere unnoticed. In bytes:

    "LKE" 0x01 · length of id (1) · id of the key · length of topic (1) · topic · nonce (12) · ciphertext · tag (16)

Authenticated is all that stands before the nonce, and after that which part it is: "value", or the path of a field.
Nonces are random: with this cipher even two that are the same would tell no more than that two values are the same.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any, Final

from django.core.signals import setting_changed

from .. import conf
from ..exceptions import ConfigurationError, KeyUnavailable, Undecryptable, UnknownKey

MARK: Final = b"LKE\x01"
"""What is encrypted begins with it; the last byte is the version of its layout."""
TOKEN: Final = "lke1:"
"""What the text begins with that stands in place of a field."""
PATTERN: Final = rf"{TOKEN}[A-Za-z0-9_=-]+"
"""Such a text, as a regular expression."""
_NONCE, _TAG = 12, 16


def library() -> Any:
    """Return the cipher. Raises `ConfigurationError` where the extra is not installed, or has no such cipher."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            "Encryption needs the package cryptography: pip install django-lynx-kafka[encryption]."
        ) from None
    return AESGCMSIV


def unusable() -> list[str]:
    """Return a sentence for each key of settings that is there and is none, and one when the extra is missing."""
    keys = conf.kafka().encryption_keys
    if not keys:
        return []
    found = []
    try:
        library()(bytes(32))
    except ConfigurationError as error:
        found.append(str(error))
    except Exception as error:  # noqa: BLE001  # the library's own, of one that is built without it
        found.append(f"The package cryptography has no AES-GCM-SIV here: {type(error).__name__}.")
    for key in keys:
        try:
            if key.secret.missing() is None:
                key.reveal()
        except ConfigurationError as error:
            found.append(str(error))
    return found


class Ciphers:
    """The ciphers of this process by the ids of their keys, each made when it is first needed."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def first(self) -> tuple[str, Any]:
        """Return that which encrypts, and its id."""
        keys = conf.kafka().encryption_keys
        if not keys:
            raise ConfigurationError('There is no key in KAFKA["encryption"]["keys"].')
        return keys[0].id, self.of(keys[0].id)

    def of(self, key_id: str) -> Any:
        """Return the cipher of a key. Raises `UnknownKey`, and `KeyUnavailable`."""
        cipher = self.made.get(key_id)
        if cipher is None:
            key = next((one for one in conf.kafka().encryption_keys if one.id == key_id), None)
            if key is None:
                raise UnknownKey(f'it is encrypted with the key {key_id!r}, which KAFKA["encryption"]["keys"] has not')
            try:
                cipher = self.made[key_id] = library()(key.reveal())
            except ConfigurationError as error:
                raise KeyUnavailable(str(error)) from None
        return cipher


class _Memory:
    ciphers = Ciphers()


def _forget(*, setting: str, **_event: Any) -> None:
    if setting == "KAFKA":
        _Memory.ciphers = Ciphers()


setting_changed.connect(_forget, dispatch_uid="django_kafka.envelopes.encryption")


def check_keys() -> None:
    """Raise `KeyUnavailable` for a key that cannot be had here."""
    for key in conf.kafka().encryption_keys:
        _Memory.ciphers.of(key.id)


def is_sealed(data: bytes | memoryview | None) -> bool:
    """Tell whether bytes begin like what is encrypted."""
    return data is not None and bytes(data[: len(MARK)]) == MARK


def seal(data: bytes, topic: str, part: str) -> bytes:
    """Encrypt data for a topic, named as Kafka knows it, and one part of its messages, with the first key.

    Raises `KeyUnavailable` and `ConfigurationError`.
    """
    key_id, cipher = _Memory.ciphers.first()
    name, place = key_id.encode(), topic.encode()
    head = b"".join((MARK, bytes((len(name),)), name, bytes((len(place),)), place))
    nonce = os.urandom(_NONCE)
    sealed: bytes = cipher.encrypt(nonce, data, head + part.encode())
    return head + nonce + sealed


def unseal(data: bytes, topics: frozenset[str] | None, part: str) -> bytes:
    """Decrypt what was encrypted for one of these topics (None: for any) and this part.

    Raises `Undecryptable`, with the end of a sentence that has nothing of the data in it but names, `UnknownKey` and
    `KeyUnavailable`.
    """
    if not is_sealed(data):
        raise Undecryptable("it is not encrypted")
    key_id, begin = _name(data, len(MARK))
    topic, end = _name(data, begin)
    if len(data) < end + _NONCE + _TAG:
        raise Undecryptable("it is cut off")
    if topics is not None and topic not in topics:
        raise Undecryptable(f"it is encrypted for the topic {topic!r}")
    cipher = _Memory.ciphers.of(key_id)
    nonce, sealed = data[end : end + _NONCE], data[end + _NONCE :]
    try:
        opened: bytes = cipher.decrypt(nonce, sealed, data[:end] + part.encode())
    except Exception:  # noqa: BLE001  # the library's InvalidTag, which says nothing
        raise Undecryptable(f"it was altered, or another key is called {key_id!r}") from None
    return opened


def _name(data: bytes, begin: int) -> tuple[str, int]:
    """Return a name whose length stands before it, and where it ends."""
    if begin >= len(data):
        raise Undecryptable("it is cut off")
    end = begin + 1 + data[begin]
    return data[begin + 1 : end].decode("ascii", "backslashreplace"), end


def seal_text(data: bytes, topic: str, part: str) -> str:
    """Encrypt data, and return a text."""
    return TOKEN + base64.urlsafe_b64encode(seal(data, topic, part)).decode()


def unseal_text(text: str, topics: frozenset[str] | None, part: str) -> bytes:
    """Decrypt such a text; raise what `unseal` raises."""
    try:
        data = base64.b64decode(text.removeprefix(TOKEN), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Undecryptable("it is no base64") from None
    return unseal(data, topics, part)
