"""Payloads of stored letters as their serializers read them, and what of them errors may not tell."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

from .. import handlers, serializers
from ..envelopes.opening import OpeningDecoder
from ..exceptions import ConfigurationError, DecodeError, RegistryUnavailable
from ..messages import Message
from ..models import DeadLetter
from .masking import Masking
from .masking import hiding as _hiding
from .stored import StoredMessage

MOST = 8_388_608
"""Bytes of a payload that is decoded to learn what errors may not tell; those of larger ones are masked as a whole."""
_SLOW_FOR = 5.0
"""Seconds for which errors are masked as a whole after a registry did not answer in time."""


def decoded(letter: DeadLetter, part: str) -> tuple[Any, str]:
    """Return "key" or "value" of a letter as its serializer reads it; and why that fails, in the words of strangers."""
    try:
        return surely(letter, part)
    except RegistryUnavailable as error:
        return None, str(error)


def surely(letter: DeadLetter, part: str) -> tuple[Any, str]:
    """Return the same; but raise `RegistryUnavailable` where only the registry keeps it from being read."""
    try:
        return _read(letter, part), ""
    except RegistryUnavailable:
        raise
    except (ConfigurationError, DecodeError) as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001  # a serializer of the project's own may raise anything
        return None, f"{type(error).__name__}: {error}"


def outside(letter: DeadLetter, part: str) -> tuple[Any, str]:
    """Return the same as `decoded`, but nothing is decrypted."""
    try:
        return _read(letter, part, outside=True), ""
    except (ConfigurationError, DecodeError, RegistryUnavailable) as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001  # as above
        return None, f"{type(error).__name__}: {error}"


def hiding(message: Message) -> Masking | None:
    """Return what masks, in texts, all that was encrypted of a message; None when nothing was. Never raises."""
    decoder = message._decoder
    if not isinstance(decoder, OpeningDecoder) or not decoder.envelope.encryption:
        return None
    try:
        return _hiding(decoder.encrypted(message))
    except Exception:  # noqa: BLE001  # a registry, or a key, that is not there now
        return Masking(opaque=True)


def _read(letter: DeadLetter, part: str, *, outside: bool = False) -> Any:
    if getattr(letter, part) is None:
        return None
    decoder = handlers.decoder_for(letter.consumer, letter.topic)
    if outside:
        decoder = decoder.outside()
    read = partial(getattr, Message(StoredMessage(letter), decoder), part)
    return serializers.presentable(serializers.patiently(decoder, read))


def knowing(found: Masking, letter: DeadLetter) -> Masking:
    """Return a masking that also masks, in errors of a letter, what its masked fields hold. Never raises.

    Of a letter with more than `MOST` bytes nobody looks what they hold: errors of it are masked as a whole. So are they
    while the registry of its schemas does not tell.
    """
    if not (found.mask.fields or found.mask.key):
        return found
    if sum(len(each or b"") for each in (letter.key, letter.value, letter.stored_headers)) > MOST:
        return replace(found, opaque=True)
    try:
        value, key = (_known(letter, part) for part in ("value", "key"))
        return found.knowing(value, headers=letter.headers).knowing_key(key)
    except Exception:  # noqa: BLE001  # what a serializer made may raise when it is looked into
        return replace(found, opaque=True)


class _Slow:
    """A registry that let somebody wait a moment ago: hundreds of letters do not wait for it one after the other."""

    until = 0.0


def _known(letter: DeadLetter, part: str) -> Any:
    began = time.monotonic()
    try:
        if began < _Slow.until and handlers.decoder_for(letter.consumer, letter.topic).asks:
            raise RegistryUnavailable("The schema registry was slow a moment ago.")
        return _read(letter, part)
    except RegistryUnavailable:
        if time.monotonic() - began >= serializers.PATIENCE:
            _Slow.until = time.monotonic() + _SLOW_FOR
        raise
    except Exception:  # noqa: BLE001  # poison: there are no fields whose values an error could tell
        return None
