"""Bringing letters back from JSON lines that `exporting` wrote, here or elsewhere.

Nothing of a line is trusted: it is looked at before anything of it is stored, and fingerprints are made anew.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from .. import conf
from ..envelopes import claim_check
from ..exceptions import BadArchive
from ..models import DeadLetter, DeadLetterAttempt
from ..models.dead_letters import encode_headers, fingerprint, key_hash, trace_of
from . import grouping, searching
from .exporting import FORMAT, MOMENTS, OF_ATTEMPT, PLAIN
from .failures import Failure, storable
from .parking import CATEGORY as PARKED
from .payloads import put_back
from .replaying import letters

LONGEST = 256 * 1024 * 1024
"""Characters of a line: Kafka takes no larger messages without being told to."""
_PIECE = 200
_MOST_ATTEMPTS = 10_000


@dataclass(slots=True)
class Restored:
    """What became of the lines."""

    new: int = 0
    """Letters that were stored, or would be."""
    known: int = 0
    """Letters that are there, and were left as they are."""
    erased: int = 0
    """Letters of messages that were erased here: what an archive has of them does not come back."""
    payloads: int = 0
    """Payloads that were left in the storages of new letters, which refer to them."""


_Read = tuple[DeadLetter, list[DeadLetterAttempt], str, "bytes | None"]
"""A letter, its attempts, the frame of its failure group, and the payload that it refers to, where that came along."""


def restore(lines: Iterable[str], *, dry_run: bool = False, payloads: bool = True) -> Restored:
    """Store letters that are not there yet, with their attempts; return what became of the lines.

    A letter is the same when cluster, group, topic, partition, offset and fingerprint are. One that was parked comes
    back as an open one: what it was parked behind is over. They are stored some hundred at a time, and may be given
    again. Raises `BadArchive` with the number of a line that is no letter; what came before it is stored.

    Payloads that came along are left in the storage that the consumer of their letter has here, unless `payloads` is
    False. Raises `StorageUnavailable`, `ConfigurationError` where settings name no storage for one, and
    `PayloadMissing` when another file has the name of one.
    """
    done = Restored()
    for piece in _pieces(lines):
        with transaction.atomic(using=conf.kafka().dead_letters.database):
            _restore(piece, done, dry_run=dry_run, payloads=payloads)
    return done


def _pieces(lines: Iterable[str]) -> Iterator[list[_Read]]:
    piece = []
    size = 0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        if len(text) > LONGEST:
            raise BadArchive(number, f"it has more than {LONGEST} characters")
        try:
            piece.append(_read(text))
        except _Wrong as wrong:
            if piece:
                yield piece
            raise BadArchive(number, str(wrong)) from None
        size += len(text)
        if len(piece) == _PIECE or size > LONGEST // 16:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _restore(piece: Sequence[_Read], done: Restored, *, dry_run: bool, payloads: bool) -> None:
    using = conf.kafka().dead_letters.database
    known, erased = _stored([letter for letter, *_rest in piece])
    # Two archives may have been put together, one from before it was erased.
    erased |= {_identity(letter)[:-1] for letter, *_rest in piece if letter.erased_at is not None}
    fresh = []
    for letter, attempts, frame, payload in piece:
        if _identity(letter) in known:
            done.known += 1
        elif _identity(letter)[:-1] in erased and letter.erased_at is None:
            done.erased += 1
        else:
            done.new += 1
            known.add(_identity(letter))
            fresh.append((letter, attempts, frame))
            if payload is not None and payloads and not dry_run:
                # A letter that is not stored after all leaves a file that nobody needs.
                done.payloads += put_back(letter, payload)
    if dry_run or not fresh:
        return
    # What was parked has not failed: it has no cause.
    grouping.place(
        using, [(letter, _failure(letter, frame)) for letter, _attempts, frame in fresh if letter.error_type]
    )
    for letter, attempts, _frame in fresh:
        letter.save(using=using, force_insert=True)
        searching.mark(using, letter.pk)
        for attempt in attempts:
            attempt.letter = letter
    every = [attempt for _letter, attempts, _frame in fresh for attempt in attempts]
    DeadLetterAttempt.objects.using(using).bulk_create(every, batch_size=500)


def _stored(found: Sequence[DeadLetter]) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """Return the identities of letters that are there, and the places of those that were erased."""
    there = Q()
    for letter in found:
        there |= Q(topic=letter.topic, partition=letter.partition, offset=letter.offset)
    rows = list(letters().filter(there).values_list(*_IDENTITY, "erased_at")) if found else []
    return {tuple(row[:-1]) for row in rows}, {tuple(row[:-2]) for row in rows if row[-1] is not None}


_IDENTITY = ("cluster", "group_id", "topic", "partition", "offset", "fingerprint")


def _identity(letter: DeadLetter) -> tuple[Any, ...]:
    return tuple(getattr(letter, name) for name in _IDENTITY)


def _failure(letter: DeadLetter, frame: str) -> Failure:
    return Failure(
        error_type=letter.error_type,
        error_message=letter.error_message,
        traceback=letter.traceback,
        category=letter.category,
        handler=letter.handler,
        at=letter.last_failed_at,
        frame=frame,
    )


class _Wrong(Exception):
    """What is wrong with a line."""


def _read(text: str) -> _Read:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        raise _Wrong("it is not JSON") from None
    if not isinstance(line, dict) or line.get("format") != FORMAT:
        raise _Wrong(f'it is no letter: it does not say {{"format": "{FORMAT}"}}')
    if line.get("masked") is not False:
        raise _Wrong("it is masked: such a file is for reading only")
    never_failed = line.get("category") == PARKED and line.get("error_type") == ""
    others = {"fingerprint", "error_type"} if never_failed else {"fingerprint"}
    fields = {name: _checked(DeadLetter, name, _of(line, name)) for name in PLAIN if name not in others}
    fields |= {name: _moment(line, name) for name in MOMENTS}
    key, value, headers = _bytes(line, "key"), _bytes(line, "value"), encode_headers(_headers(line))
    named = claim_check.name_in(value)
    letter = DeadLetter(
        **fields, key=key, key_hash=key_hash(key), value=value, payload_name=named, stored_headers=headers
    )
    letter.trace_id = trace_of(letter.headers)
    letter.fingerprint = fingerprint(letter.timestamp_ms, key, headers, value)
    attempts = _read_attempts(line)
    if letter.first_failed_at is None or letter.last_failed_at is None:
        raise _Wrong("it does not say when it failed")
    if letter.state == DeadLetter.State.PARKED:
        letter.state = DeadLetter.State.OPEN
    if letter.state != DeadLetter.State.OPEN and letter.settled_at is None:
        letter.settled_at = letter.last_failed_at
    if letter.erased_at is not None:
        if (key, value, letter.headers) != (None, None, []):
            raise _Wrong("it was erased, and has a payload")
        said = letter.error_message, letter.traceback, letter.unread
        if any(said) or any(one.error_message or one.traceback for one in attempts):
            # Nobody would ever erase that: it is a stub already.
            raise _Wrong("it was erased, and has what an error said")
        # There is nothing left that it could be made from.
        letter.fingerprint = _stub(line)
    frame = _of(line, "frame", "")
    if not isinstance(frame, str) or len(frame) > 300:
        raise _Wrong("frame is no short text")
    return letter, attempts, storable(frame), _payload(line, value)


def _payload(line: dict[str, Any], value: bytes | None) -> bytes | None:
    """Return what a value refers to, where it came along."""
    payload = _decoded("payload", line.get("payload"))
    if payload is None:
        return None
    reference = claim_check.reference_in(value)
    if reference is None or not reference.fits(payload):
        raise _Wrong("its payload is not what its value refers to")
    return payload


def _stub(line: dict[str, Any]) -> str:
    given = line.get("fingerprint")
    if isinstance(given, str) and len(given) == 64 and all(each in "0123456789abcdef" for each in given):
        return given
    raise _Wrong("it was erased, and its fingerprint is no 64 hexadecimal digits")


def _read_attempts(line: dict[str, Any]) -> list[DeadLetterAttempt]:
    given = _of(line, "attempt_list", [])
    if not isinstance(given, list) or len(given) > _MOST_ATTEMPTS:
        raise _Wrong(f"attempt_list is no list of at most {_MOST_ATTEMPTS}")
    found = []
    for one in given:
        if not isinstance(one, dict):
            raise _Wrong("an attempt is no object")
        fields = {name: _checked(DeadLetterAttempt, name, _of(one, name)) for name in OF_ATTEMPT}
        if (at := _moment(one, "at")) is None:
            raise _Wrong("an attempt does not say when it was")
        found.append(DeadLetterAttempt(**fields, at=at))
    return found


def _of(line: dict[str, Any], name: str, *otherwise: Any) -> Any:
    if name not in line and not otherwise:
        raise _Wrong(f"{name} is missing")
    return line.get(name, *otherwise)


_BOUNDS = {"IntegerField": 1 << 31, "PositiveIntegerField": 1 << 31, "BigIntegerField": 1 << 63}
_KINDS: dict[str, tuple[type, str]] = {
    "IntegerField": (int, "a whole number"),
    "BigIntegerField": (int, "a whole number"),
    "PositiveIntegerField": (int, "a whole number"),
    "BooleanField": (bool, "true or false"),
    "CharField": (str, "text"),
    "TextField": (str, "text"),
}


def _checked(model: type[DeadLetter] | type[DeadLetterAttempt], name: str, value: Any) -> Any:
    field: Any = model._meta.get_field(name)
    kind, called = _KINDS[field.get_internal_type()]
    if value is None and field.null:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _Wrong(f"{name} is not {called}")
    if isinstance(value, str):
        value = storable(value)
    elif isinstance(value, int) and kind is int and not -(bound := _BOUNDS[field.get_internal_type()]) <= value < bound:
        # SQLite takes more than others do.
        raise _Wrong(f"{name} is beyond what there can be")
    try:
        return field.clean(value, None) if value != "" or not field.blank else value
    except ValidationError as error:
        raise _Wrong(f"{name}: {' '.join(error.messages)}") from None


def _moment(line: dict[str, Any], name: str) -> datetime | None:
    text = _of(line, name)
    if text is None:
        return None
    try:
        at = parse_datetime(text) if isinstance(text, str) else None
        # In the first and the last year there are times that other zones have no name for.
        if at is not None and MINYEAR + 1 < at.year < MAXYEAR - 1:
            return _as_stored(at)
    except (ValueError, OverflowError):
        pass
    raise _Wrong(f"{name} is no time, such as 2026-11-23T15:00:00+00:00")


def _as_stored(at: datetime) -> datetime:
    zones = settings.USE_TZ
    if timezone.is_aware(at) == zones:
        # PostgreSQL takes no zone as far away as Python does.
        return at.astimezone(UTC) if zones else at
    return timezone.make_aware(at) if zones else timezone.make_naive(at)


def _bytes(line: dict[str, Any], name: str) -> bytes | None:
    return _decoded(name, _of(line, name))


def _decoded(name: str, text: Any) -> bytes | None:
    if text is None:
        return None
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise _Wrong(f"{name} is not base64")


def _headers(line: dict[str, Any]) -> list[tuple[str, bytes | None]]:
    given = _of(line, "headers")
    if not isinstance(given, list):
        raise _Wrong("headers are no list")
    found = []
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise _Wrong("a header is no pair of name and value")
        found.append((pair[0], _decoded("a header", pair[1])))
    return found
