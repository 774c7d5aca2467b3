"""Claim checks: a large value is left in a Django storage, and its message has a reference to it.

A reference is the value of its message: a mark, and after that JSON with the name of the file, the number of its bytes,
and their SHA-256. Whoever may write to a topic can write one: it leads nowhere but to files that are called as ours
are, in the one storage that settings name, and to none above the consumer's `max_payload`.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from django.core.files.base import ContentFile
from django.core.files.storage import InvalidStorageError, Storage, storages

from ..exceptions import ConfigurationError, DecodeError, PayloadMissing, PayloadTooLarge, StorageUnavailable
from . import patience

MARK: Final = b"LKC\x01"
"""What a reference begins with; the last byte is the version of its layout."""
FOLDER: Final = "kafka-payloads"
"""Of all files, in the storage. Below it is a folder for each topic, and in that one for each day."""
NAME = re.compile(rf"{FOLDER}/(?P<topic>[A-Za-z0-9._-]{{1,249}})/(?P<day>\d{{4}}-\d\d-\d\d)/[0-9a-f]{{64}}")
"""What files are called: nobody guesses the last part."""
_LONGEST = 1000
"""Bytes of a reference."""
_PIECE = 1 << 20
"""Bytes that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where a value is."""

    name: str
    """The name of the file."""
    size: int
    """How many bytes it has."""
    sha256: str
    """What their hash is, in hexadecimal."""

    def to_bytes(self) -> bytes:
        """Return it as the value of a message."""
        facts = {"name": self.name, "size": self.size, "sha256": self.sha256}
        return MARK + json.dumps(facts, separators=(",", ":")).encode()

    @property
    def is_of_today(self) -> bool:
        """Whether it was left there today, by UTC."""
        return self.name.split("/")[2] == _today()

    def fits(self, data: bytes) -> bool:
        """Tell whether this is the value that was left there."""
        return len(data) == self.size and hashlib.sha256(data).hexdigest() == self.sha256

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        """Read one. Raises `DecodeError` for what is none of ours."""
        try:
            found: Any = json.loads(data[len(MARK) : _LONGEST])
            name, size, sha256 = found["name"], found["size"], found["sha256"]
        except (ValueError, TypeError, LookupError, RecursionError):
            raise DecodeError("its reference to a payload is none") from None
        right = isinstance(name, str) and NAME.fullmatch(name) is not None and "/../" not in name and "/./" not in name
        if not (right and type(size) is int and size >= 0 and isinstance(sha256, str)):
            raise DecodeError("its reference leads to no payload of ours")
        return cls(name=name, size=size, sha256=sha256)


class Checked(bytes):
    """A reference to a value that is still to be left in its storage, which is done when its record is sent."""

    storage: str
    payload: bytes | None
    name: str
    tried = False

    @classmethod
    def of(cls, data: bytes, topic: str, storage: str) -> Checked:
        """Return the reference for a value for a topic."""
        name = f"{FOLDER}/{topic}/{_today()}/{secrets.token_hex(32)}"
        reference = Reference(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        made = cls(reference.to_bytes())
        made.storage, made.payload, made.name = storage, data, name
        return made

    @classmethod
    def again(cls, reference: bytes, data: bytes, storage: str) -> Checked:
        """Return a reference that was made before, for its value."""
        made = cls(reference)
        made.storage, made.payload, made.name = storage, data, name_in(reference)
        return made

    def deposit(self) -> None:
        """Leave it there, unless it is there. Raises `StorageUnavailable`, and `ConfigurationError`."""
        if self.payload is None:
            return
        storage, payload = storage_of(self.storage), self.payload
        if self.tried:
            # As much of it may be there as there was room for, and would keep its name from it.
            delete(self.name, self.storage)
        self.tried = True
        with asked(f"The storage {self.storage!r} takes no payload"):
            name = storage.save(self.name, ContentFile(payload))
        if name != self.name:
            delete(name, self.storage)
            raise ConfigurationError(f"The storage {self.storage!r} calls files otherwise than it is told.")
        self.payload = None


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def same(one: bytes | None, other: bytes | None) -> bool:
    """Tell whether two values are the same, or refer to the same, which may lie in two files."""
    if one == other:
        return True
    first, second = reference_in(one), reference_in(other)
    return first is not None and second is not None and (first.size, first.sha256) == (second.size, second.sha256)


def is_reference(data: bytes | memoryview | None) -> bool:
    """Tell whether bytes begin like a reference."""
    return data is not None and bytes(data[: len(MARK)]) == MARK


def name_in(data: bytes | memoryview | None) -> str:
    """Return the name of the file that a value refers to; "" when it is no reference, or none of ours."""
    reference = reference_in(data)
    return "" if reference is None else reference.name


def reference_in(data: bytes | memoryview | None) -> Reference | None:
    """Return the reference that a value is; None when it is none, or none of ours."""
    if data is None or not is_reference(data):
        return None
    try:
        return Reference.from_bytes(bytes(data))
    except DecodeError:
        return None


def storage_of(alias: str) -> Storage:
    """Return a storage of settings. Raises `ConfigurationError` where there is none, or it cannot be made."""
    if alias not in storages.backends:
        raise ConfigurationError(f"STORAGES has no {alias!r}; it has: {', '.join(storages.backends)}.")
    try:
        found: Storage = storages[alias]
    except InvalidStorageError:
        chosen: Any = storages.backends[alias]
        path = str(chosen.get("BACKEND", ""))
        raise ConfigurationError(f'STORAGES["{alias}"] has the BACKEND {path!r}, which cannot be imported.') from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever its class raises, which may quote secrets of its OPTIONS
        kind = type(error).__name__
        raise ConfigurationError(f'STORAGES["{alias}"] cannot be made: {kind}. Look at its OPTIONS.') from None
    return found


@contextmanager
def asked(trouble: str) -> Iterator[None]:
    """Raise `StorageUnavailable` for what a storage raises, but for `FileNotFoundError`.

    It tells of what kind that was, and no more: libraries quote addresses, which have signatures in them.
    """
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  # whatever its library raises
        raise StorageUnavailable(f"{trouble}: {type(error).__name__}.") from None


def fetch(data: bytes, alias: str, most: int | None) -> bytes:
    """Return the value that a reference leads to, of `most` bytes at most (None: of any number).

    Raises `DecodeError` when it is none of ours, `PayloadTooLarge`, `PayloadMissing` when the file is gone or another
    one, and `StorageUnavailable`.
    """
    reference = Reference.from_bytes(data)
    if most is not None and reference.size > most:
        sentence = f"its payload has {reference.size} bytes, and `max_payload` of its consumer is {most}"
        raise PayloadTooLarge(sentence)
    storage = storage_of(alias)
    found = patience.fetched(alias, data, lambda: _read(storage, reference, alias))
    if not reference.fits(found):
        raise PayloadMissing(f"its payload {reference.name} is another one than was left there")
    return found


def _read(storage: Storage, reference: Reference, alias: str) -> bytes:
    pieces, left = [], reference.size + 1
    try:
        with asked(f"The storage {alias!r} gives no payload"), storage.open(reference.name) as file:
            # Not all at once: whoever wrote the reference may have claimed any size.
            while left and (piece := file.read(min(left, _PIECE))):
                pieces.append(piece)
                left -= len(piece)
    except FileNotFoundError:
        if _is_away(storage):
            raise StorageUnavailable(f"The storage {alias!r} is not there.") from None
        raise PayloadMissing(f"its payload {reference.name} is not in the storage {alias!r}") from None
    return b"".join(pieces)


def is_there(name: str, alias: str) -> bool:
    """Tell whether a storage has a file of this name. Raises `StorageUnavailable`, and `ConfigurationError`."""
    storage = storage_of(alias)
    with asked(f"The storage {alias!r} cannot be asked"):
        return bool(storage.exists(name))


def _is_away(storage: Storage) -> bool:
    """Tell whether it is the whole storage that is missing, as a disk that is not mounted."""
    location = getattr(storage, "location", "")
    return (
        isinstance(location, str)
        and bool(location)
        and hasattr(storage, "base_location")
        and not Path(location).is_dir()
    )


def delete(name: str, alias: str) -> None:
    """Delete a file of ours; that it is gone is no error. Raises `StorageUnavailable`."""
    storage = storage_of(alias)
    with suppress(FileNotFoundError), asked(f"The storage {alias!r} deletes no payload"):
        storage.delete(name)
