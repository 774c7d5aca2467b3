"""Payloads of stored letters as their serializers read them, and what of them errors may not tell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from .. import conf, handlers, serializers, tracing
from ..envelopes import claim_check
from ..envelopes.opening import OpeningDecoder
from ..envelopes.patience import at_hand
from ..exceptions import (
    ConfigurationError,
    DecodeError,
    KafkaError,
    KeyUnavailable,
    RegistryUnavailable,
    StorageUnavailable,
)
from ..messages import Message, RawMessage
from ..models import DeadLetter
from .masking import Masking, masking
from .masking import hiding as _hiding
from .stored import StoredMessage

MOST = 8_388_608
"""Bytes of a payload that is decoded to learn what errors may not tell; those of larger ones are masked as a whole."""
UNAVAILABLE = (RegistryUnavailable, KeyUnavailable, StorageUnavailable)
"""What keeps a payload from being read now, though nothing is wrong with it."""
_SLOW_FOR = 5.0
"""Seconds for which errors are masked as a whole after a registry did not answer in time."""


def decoded(letter: DeadLetter, part: str) -> tuple[Any, str]:
    """Return "key" or "value" of a letter as its serializer reads it; and why that fails, in the words of strangers."""
    try:
        return surely(letter, part)
    except UNAVAILABLE as error:
        return None, str(error)


def size_of(letter: DeadLetter, part: str, stored: int | None) -> int | None:
    """Return how many bytes "key" or "value" of a letter has, of which so many are stored with it."""
    if part != "value" or not letter.payload_name:
        return stored
    reference = claim_check.reference_in(letter.value)
    return stored if reference is None else reference.size


def fetched(letter: DeadLetter, part: str) -> bytes | None:
    """Return "key" or "value" of a letter as it came, from its storage when it was left there.

    Raises `DecodeError`, `StorageUnavailable` and `ConfigurationError`.
    """
    stored = getattr(letter, part)
    data = None if stored is None else bytes(stored)
    if data is None or part != "value" or not letter.payload_name:
        return data
    decoder = handlers.decoder_for(letter.consumer, letter.topic)
    return decoder.envelope.fetched(data) if isinstance(decoder, OpeningDecoder) else data


def surely(letter: DeadLetter, part: str) -> tuple[Any, str]:
    """Return the same; but raise one of `UNAVAILABLE` where only that keeps it from being read."""
    try:
        return _read(letter, part), ""
    except UNAVAILABLE:
        raise
    except (ConfigurationError, DecodeError) as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001  # a serializer of the project's own may raise anything
        return None, f"{type(error).__name__}: {error}"


def outside(letter: DeadLetter, part: str) -> tuple[Any, str]:
    """Return the same as `decoded`, but nothing is decrypted."""
    try:
        return _read(letter, part, outside=True), ""
    except (ConfigurationError, DecodeError, *UNAVAILABLE) as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001  # as above
        return None, f"{type(error).__name__}: {error}"


def hiding(message: Message, error: BaseException | None = None) -> Masking | None:
    """Return what masks, in texts about a message, all that was encrypted of it; None: nothing. Never raises.

    `error`: what they tell of, when they tell of one.

    What cannot be read any more may have been read before, and told: such texts are masked as a whole.
    """
    decoder = message._decoder
    if not decoder.encrypts:
        return None
    try:
        return _hiding(decoder.encrypted(message))
    except Exception:  # noqa: BLE001  # poison, or a registry, key or storage that is not there now
        return None if error is not None and _is_our_own(error) else Masking(opaque=True)


def _is_our_own(error: BaseException) -> bool:
    """Tell whether an error is a sentence of ours and nothing else, and so quotes nothing."""
    alone = error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
    ours = isinstance(error, KafkaError) and type(error).__module__ == KafkaError.__module__
    return ours and alone and all(tracing.is_note(note) for note in getattr(error, "__notes__", ()))


def outward(consumer: conf.Consumer, raws: Sequence[RawMessage], error: BaseException) -> Masking | None:
    """Return what masks, in texts that leave the project, what of messages was encrypted or is masked by settings.

    None when that is nothing. Never raises.
    """
    found = masking()
    try:
        decoder = handlers.decoder_for(consumer.name, raws[0].topic() or "")
        knows = bool(found.mask.fields or found.mask.key)
        if not (found.active or decoder.encrypts) or (isinstance(error, UNAVAILABLE) and _is_our_own(error)):
            return None
        for raw in raws:
            if claim_check.is_reference(raw.value()) and (knows or decoder.encrypts):
                # Nothing is fetched for a trace.
                return replace(found, opaque=True)
            message = Message(raw, decoder)
            if decoder.encrypts:
                found = found.hiding(decoder.encrypted(message))
            if knows:
                found = _knowing_message(found, message)
            if found.opaque:
                break
    except Exception:  # noqa: BLE001  # as in `hiding`
        return found if _is_our_own(error) else replace(found, opaque=True)
    return found


def _knowing_message(found: Masking, message: Message) -> Masking:
    if sum(len(each or b"") for each in (message.raw_key, message.raw_value)) > MOST:
        return replace(found, opaque=True)
    read = []
    for part in ("value", "key"):
        try:
            read.append(getattr(message, part))
        except serializers.UNREADABLE:
            read.append(None)
    return found.knowing(read[0], headers=message.headers).knowing_key(read[1])


tracing.mask_with(outward)


def _read(letter: DeadLetter, part: str, *, outside: bool = False) -> Any:
    if getattr(letter, part) is None:
        return None
    decoder = handlers.decoder_for(letter.consumer, letter.topic)
    if outside:
        decoder = decoder.outside()
    read = partial(getattr, Message(StoredMessage(letter), decoder), part)
    with at_hand():
        if decoder.asks and part == "value" and letter.payload_name and isinstance(decoder, OpeningDecoder):
            # Before the time that a registry has: it is not to blame for a storage.
            with suppress(DecodeError):
                decoder.envelope.fetched(bytes(letter.value or b""))
        return serializers.presentable(serializers.patiently(decoder, read))


def knowing(found: Masking, letter: DeadLetter) -> Masking:
    """Return a masking that also masks, in errors of a letter, what its masked fields hold. Never raises.

    Of a letter with more than `MOST` bytes, or whose payload is in a storage, nobody looks what they hold: errors of it
    are masked as a whole. So are they while the registry of its schemas does not tell, or a key is not there.
    """
    if not (found.mask.fields or found.mask.key):
        return found
    # What is in a storage is not fetched for each line of a list.
    if (
        letter.payload_name
        or sum(len(each or b"") for each in (letter.key, letter.value, letter.stored_headers)) > MOST
    ):
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
    except KeyUnavailable:
        raise
    except RegistryUnavailable:
        if time.monotonic() - began >= serializers.PATIENCE:
            _Slow.until = time.monotonic() + _SLOW_FOR
        raise
    except Exception:  # noqa: BLE001  # poison: there are no fields whose values an error could tell
        return None
