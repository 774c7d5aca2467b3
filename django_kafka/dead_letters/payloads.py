"""Files in storages that messages refer to: those of letters, and deleting those that are old and no letter needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from .. import conf, handlers, logs
from ..envelopes import claim_check
from ..envelopes.opening import OpeningDecoder
from ..exceptions import ConfigurationError, PayloadMissing
from ..models import DeadLetter
from .replaying import letters

log = logs.of(__name__)

_PIECE = 500
"""Files that are looked up among letters at once."""


@dataclass(slots=True)
class Pruned:
    """What was deleted, or would be."""

    deleted: int = 0
    """Files."""
    needed: int = 0
    """Files that are as old, and kept because a letter refers to them."""


def storages() -> list[str]:
    """Return the aliases of the storages that producers and consumers of settings leave payloads in."""
    whole = conf.kafka()
    clients: list[conf.Producer | conf.Consumer] = [*whole.producers.values(), *whole.consumers.values()]
    found = [client.claim_check for client in clients]
    found += [topic.claim_check for client in clients for topic in client.topics.values() if topic.claim_check]
    return list(dict.fromkeys(one.storage for one in found if one))


def storage_for(consumer: str, topic: str) -> str:
    """Return the alias of the storage with the payloads of a topic. Raises `ConfigurationError` where there is none."""
    decoder = handlers.decoder_for(consumer, topic)
    alias = decoder.envelope.claim_check.storage if isinstance(decoder, OpeningDecoder) else ""
    if not alias:
        raise ConfigurationError(
            f"A letter of consumer {consumer!r} for {topic!r} has its payload in a storage, and settings do not say in "
            'which: give the consumer its "claim_check".'
        )
    return alias


def of(letter: DeadLetter) -> bytes:
    """Return what a letter with a reference refers to.

    Raises `ConfigurationError`, `DecodeError` when there is nothing to be had, and `StorageUnavailable`.
    """
    most = conf.consumer(letter.consumer).max_payload
    return claim_check.fetch(bytes(letter.value or b""), storage_for(letter.consumer, letter.topic), most)


def put_back(letter: DeadLetter, payload: bytes) -> bool:
    """Have a payload where a letter that is brought back refers to; tell whether it was not there.

    Raises `ConfigurationError`, `StorageUnavailable`, and `PayloadMissing` when another file has its name.
    """
    alias, reference = storage_for(letter.consumer, letter.topic), bytes(letter.value or b"")
    try:
        claim_check.fetch(reference, alias, None)
        return False
    except PayloadMissing:
        if claim_check.is_there(letter.payload_name, alias):
            raise
    claim_check.Checked.again(reference, payload, alias).deposit()
    return True


def prune(alias: str, before: datetime, *, dry_run: bool = False) -> Pruned:
    """Delete the payloads in a storage that were left there on days before that of `before`, by UTC.

    Those that a dead letter refers to are kept. Messages that are still in Kafka, and refer to one that is deleted,
    cannot be read any more. Raises `StorageUnavailable` and `ConfigurationError`.
    """
    done = Pruned()
    for folder in _days(alias, before.date()):
        _prune_day(alias, folder, done, dry_run=dry_run)
    if done.deleted and not dry_run:
        log.info("storage=%s payloads deleted: %s", alias, done.deleted)
    return done


def _days(alias: str, before: date) -> Iterator[str]:
    """Walk through the folders of days that are over."""
    for topic in sorted(_listed(alias, claim_check.FOLDER)[0]):
        for day in sorted(_listed(alias, f"{claim_check.FOLDER}/{topic}")[0]):
            try:
                over = date.fromisoformat(day) < before
            except ValueError:
                continue
            if over:
                yield f"{claim_check.FOLDER}/{topic}/{day}"


def _listed(alias: str, place: str) -> tuple[list[str], list[str]]:
    """Return the names of folders and files."""
    storage = claim_check.storage_of(alias)
    try:
        with claim_check.asked(f"The storage {alias!r} cannot be looked through"):
            return storage.listdir(place)
    except FileNotFoundError:
        return [], []


def _prune_day(alias: str, folder: str, done: Pruned, *, dry_run: bool) -> None:
    folders, files = _listed(alias, folder)
    names = [f"{folder}/{name}" for name in files]
    ours = [name for name in names if claim_check.NAME.fullmatch(name)]
    kept = len(folders) + len(names) - len(ours)
    for start in range(0, len(ours), _PIECE):
        kept += _prune_some(alias, ours[start : start + _PIECE], done, dry_run=dry_run)
    if not kept and not dry_run:
        claim_check.delete(folder, alias)


def _prune_some(alias: str, names: Sequence[str], done: Pruned, *, dry_run: bool) -> int:
    """Delete those of these that no letter refers to; return how many are left."""
    needed = set(letters().filter(payload_name__in=names).values_list("payload_name", flat=True))
    for name in names:
        if name not in needed and not dry_run:
            claim_check.delete(name, alias)
    done.needed += len(needed)
    done.deleted += len(names) - len(needed)
    return len(needed)
