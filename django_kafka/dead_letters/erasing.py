"""Erasing what dead letters say of a person: `dead_letters.forget(b"passenger-17")`.

What is left of a letter is a stub: its coordinates, states and times, and what kind of error it had. Its fingerprint is
one that nobody can find a message by: that of a small payload could be guessed.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from .. import conf
from ..envelopes import claim_check
from ..models import DeadLetter, DeadLetterAttempt, FailureGroup, LetterWords, Replay, ReplayJob
from ..models.dead_letters import encode_headers
from . import audit, decoding, holds, payloads
from .grouping import LONGEST_EXAMPLE, example, first_line
from .jobs.describing import SEARCHED
from .masking import MASK
from .replaying import cancel, letters, name_of, outstanding, replays, unclaimed, with_key

VERB = "erase"
"""The verb of its entries in the audit."""
ALL = Q()
"""Every letter, where `among` says which are meant."""
_PIECE = 200
"""Letters of one transaction: others wait for what it has locked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """A value somewhere in the payload: `At(path="passenger.email", value="jane@example.com")`."""

    path: str
    """Names of fields with dots in between; lists are gone through."""
    value: Any
    """What is found there; texts and numbers that read the same are the same."""


@dataclass(slots=True)
class Forgotten:
    """What was erased, or would be."""

    letters: int = 0
    """Letters that are stubs now."""
    attempts: int = 0
    """Attempts whose errors and tracebacks were erased."""
    replays: int = 0
    """Replays whose results, reports and edited messages were erased."""
    words: int = 0
    """Letters whose words were erased, by which they were found."""
    files: int = 0
    """Files in storages that letters, or messages that were edited, referred to."""
    groups: int = 0
    """Failure groups whose example was what one of the letters said."""
    released: int = 0
    """Letters that held their keys back, or were parked: what is behind them is released."""
    running: list[str] = field(default_factory=list)
    """Letters that are being replayed at this moment, by their coordinates: they were left alone. Ask again."""

    def counts(self) -> dict[str, int]:
        """Return the numbers by what was erased."""
        names = ("letters", "attempts", "replays", "words", "files", "groups", "released")
        return {name: getattr(self, name) for name in names} | {"running": len(self.running)}


def forget(
    whom: bytes | str | Q | At,
    *,
    user: Any = None,
    name: str = "",
    reason: str = "",
    dry_run: bool = False,
    among: QuerySet[DeadLetter] | None = None,
) -> Forgotten:
    """Erase what letters say of a person, and return what was done.

    `whom` is a whole key (text is its UTF-8), a condition for letters, or a value in the payload. `among` are the
    letters to look at; None: all. From the letters themselves go key, headers, value, errors and tracebacks; and so do
    the errors of their attempts, messages that were edited for replays of them, results and reports of these, the words
    they are found by, the files in storages that they refer to, and the examples of failure groups that quote them.
    Open and parked letters are discarded, and what is parked behind them is released, as `user` or `name`. One that is
    being replayed is left alone, and named.

    What Kafka has is not erased, nor what handlers stored, people wrote into notes and reasons, or was exported. A
    message that is read from Kafka again and fails again makes a letter anew. Each letter has an entry in the audit.

    Raises `RegistryUnavailable`, `KeyUnavailable` or `StorageUnavailable` when a value cannot be looked into now, or a
    file cannot be deleted: letters from there on are as they were.
    """
    if whom == ALL and among is None:
        raise ValueError("An empty condition means every letter; say which ones in `among`.")
    done = Forgotten()
    by = user if user is not None else name
    for ids in _chosen(whom, letters() if among is None else among):
        if dry_run:
            _count(ids, done)
            continue
        with transaction.atomic(using=conf.kafka().dead_letters.database):
            _erase(ids, done, by, reason)
    return done


def _chosen(whom: bytes | str | Q | At, rows: QuerySet[DeadLetter]) -> Iterator[list[int]]:
    """Walk through the ids of those that are meant and are no stubs yet."""
    match whom:
        case str():
            rows = rows.filter(with_key(whom.encode("utf-8", "surrogateescape")))
        case bytes():
            rows = rows.filter(with_key(whom))
        case Q():
            rows = rows.filter(whom)
        case At():
            pass
        case other:
            raise TypeError(f"forget() takes a key, a Q or an At, and not {type(other).__name__}.")
    rows = rows.filter(erased_at__isnull=True).order_by("-pk")
    # The last ones first: what is parked goes before the letter that it waits for, whose end would release it.
    ids = list(rows.values_list("pk", flat=True)[:_PIECE])
    while ids:
        yield _with_value(ids, whom) if isinstance(whom, At) else ids
        ids = list(rows.filter(pk__lt=ids[-1]).values_list("pk", flat=True)[:_PIECE])


def _with_value(ids: Sequence[int], at: At) -> list[int]:
    fields = ("consumer", "topic", "partition", "offset", "timestamp_ms", "key", "value", "stored_headers")
    path = at.path.split(".")
    found = letters().filter(pk__in=ids).only(*fields)
    return [one.pk for one in found if any(_same(each, at.value) for each in _at(_decoded(one), path))]


def _decoded(letter: DeadLetter) -> Any:
    """Return the value as its serializer reads it; else as JSON; None where neither can."""
    value, why = decoding.surely(letter, "value")
    if not why:
        return value
    try:
        return json.loads(bytes(letter.value or b""))
    except (ValueError, RecursionError):
        return None


def _at(value: Any, path: Sequence[str]) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _at(each, path)
    elif not path:
        yield value
    elif isinstance(value, dict):
        if path[0] in value:
            yield from _at(value[path[0]], path[1:])
    elif (inner := getattr(value, path[0], None)) is not None and not path[0].startswith("_"):
        yield from _at(inner, path[1:])


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) or (not isinstance(one, bool) and one is not None and str(one) == str(other))


def _count(ids: Sequence[int], done: Forgotten) -> None:
    running = _running(ids)
    done.running += [str(one) for one in running]
    left = {one.pk for one in running}
    rest = [pk for pk in ids if pk not in left]
    using = conf.kafka().dead_letters.database
    done.letters += len(rest)
    done.attempts += DeadLetterAttempt.objects.using(using).filter(letter__in=rest).count()
    done.replays += replays().filter(letter__in=rest).count()
    done.words += LetterWords.objects.using(using).filter(letter__in=rest).count()
    done.files += len(_files_of(rest))
    done.groups += _quoting(rest).count()
    done.released += letters().filter(pk__in=rest, hold__isnull=False).count()


def _running(ids: Sequence[int]) -> list[DeadLetter]:
    """Return those that somebody works on. Of the others nobody can, once their replays are cancelled."""
    found = letters().filter(pk__in=ids).filter(outstanding())
    # Those of a job wait as well, and are cancelled with that only.
    waits = replays().filter(letter=OuterRef("pk"), job__isnull=True).filter(unclaimed())
    return list(found.exclude(Exists(waits)).only("topic", "partition", "offset"))


def _erase(ids: Sequence[int], done: Forgotten, by: Any, reason: str) -> None:
    using = conf.kafka().dead_letters.database
    # Holds first, then letters: so does whoever parks, releases or records. Then nobody can ask for a replay.
    holds.lock_of(using, ids)
    rows = letters().filter(pk__in=ids, erased_at__isnull=True).order_by("pk").select_for_update()
    found = list(rows.only("pk", "topic", "partition", "offset", "consumer", "state", "hold", "settled_at"))
    cancel([one.pk for one in found])
    busy = set(letters().filter(pk__in=[one.pk for one in found]).filter(outstanding()).values_list("pk", flat=True))
    done.running += [str(one) for one in found if one.pk in busy]
    free = [one for one in found if one.pk not in busy]
    if not free:
        return
    mine = [one.pk for one in free]
    counted = Forgotten(letters=len(free))
    counted.groups = _quoting(mine).update(example="")
    files = _files_of(mine)
    _erase_letters(using, free)
    for store in _STORES:
        store(using, mine, counted)
    counted.released = _release(using, free, by)
    # Before the COMMIT: a letter may be left whose file is gone, but no file of one that says it was erased.
    for name, alias in files:
        claim_check.delete(name, alias)
    counted.files = len(files)
    audit.note(by, VERB, free, reason=reason, details=counted.counts())
    for each, count in counted.counts().items():
        if each != "running":
            setattr(done, each, getattr(done, each) + count)


def _erase_letters(using: str, free: Sequence[DeadLetter]) -> None:
    now = timezone.now()
    for one in free:
        if one.state in (DeadLetter.State.OPEN, DeadLetter.State.PARKED):
            one.state, one.settled_at = DeadLetter.State.DISCARDED, now
        one.key, one.key_hash, one.value, one.stored_headers = None, "", None, encode_headers(())
        one.error_message = one.traceback = one.unread = one.payload_name = ""
        one.fingerprint, one.erased_at = secrets.token_hex(32), now
    DeadLetter.objects.using(using).bulk_update(
        free,
        [
            "key", "key_hash", "value", "payload_name", "stored_headers", "error_message", "traceback", "unread",
            "fingerprint", "state", "settled_at", "erased_at",
        ],
    )  # fmt: skip


def _attempts(using: str, ids: Sequence[int], done: Forgotten) -> None:
    mine = DeadLetterAttempt.objects.using(using).filter(letter__in=ids)
    done.attempts = mine.update(error_message="", traceback="")


def _replays(using: str, ids: Sequence[int], done: Forgotten) -> None:
    nothing = {"edited_key": None, "edited_value": None, "edited_headers": None, "report": None}
    mine = Replay.objects.using(using).filter(letter__in=ids)
    done.replays = mine.update(result="", **nothing)


def _words(using: str, ids: Sequence[int], done: Forgotten) -> None:
    done.words = LetterWords.objects.using(using).filter(letter__in=ids).delete()[0]


def _selections(using: str, ids: Sequence[int], _done: Forgotten) -> None:
    """Erase what somebody searched for who had these letters replayed as a job, often the person, and why it paused."""
    theirs = replays().filter(letter__in=ids, job__isnull=False).values("job")
    jobs = ReplayJob.objects.using(using).filter(pk__in=theirs)
    jobs.filter(SEARCHED).update(description="")
    paused = list(jobs.exclude(state_reason="").only("state_reason"))
    places = [str(one) for one in letters().filter(pk__in=ids).only("topic", "partition", "offset")] if paused else []
    # What a record of one of their handlers met may tell of it.
    telling = [job.pk for job in paused if any(f"{place} " in job.state_reason for place in places)]
    jobs.filter(pk__in=telling).update(state_reason="")


_STORES = (_attempts, _replays, _words, _selections)
"""What else keeps something of letters: called with the database, the ids of letters whose rows are locked, and where
to count. Whatever is to keep something of a payload beside them has its place here."""


def _files_of(ids: Sequence[int]) -> list[tuple[str, str]]:
    """Return the files of these letters and of messages that were edited for them, each with the alias of its storage.

    Raises `ConfigurationError` when settings do not say any more which storage that is.
    """
    named = letters().filter(pk__in=ids).exclude(payload_name="").values_list("payload_name", "consumer", "topic")
    found = dict.fromkeys(named)
    edited = (
        replays().filter(letter__in=ids, edited=True).values_list("edited_value", "letter__consumer", "letter__topic")
    )
    found.update(dict.fromkeys((claim_check.name_in(value), *rest) for value, *rest in edited))  # type: ignore[misc]
    return [(name, payloads.storage_for(consumer, topic)) for name, consumer, topic in found if name]


def _quoting(ids: Sequence[int]) -> QuerySet[FailureGroup]:
    """Return the groups whose example is of an error of these letters, now or at an earlier attempt."""
    using = conf.kafka().dead_letters.database
    attempts = DeadLetterAttempt.objects.using(using).filter(letter__in=ids)
    said = list(attempts.values_list("letter", "error_type", "error_message"))
    lines, texts, consumers = set(), set(), set()
    for letter in letters().filter(pk__in=ids).defer("traceback"):
        consumers.add(letter.consumer)
        earlier = {(kind, text) for pk, kind, text in said if pk == letter.pk}
        for kind, text in earlier | {(letter.error_type, letter.error_message)}:
            texts.add((kind, text))
            # Masked as settings say, or not at all.
            lines |= {first_line(text), example(letter, text)}
    groups = FailureGroup.objects.using(using)
    # Or as they said when the group began.
    masked = groups.filter(consumer__in=consumers, error_type__in={kind for kind, _text in texts})
    found = masked.filter(example__contains=MASK).values_list("pk", "error_type", "example")
    quoting = [pk for pk, kind, one in found if any(kind == each and _quotes(one, text) for each, text in texts)]
    return groups.filter(Q(example__in=lines - {""}) | Q(pk__in=quoting))


def _quotes(masked: str, text: str) -> bool:
    """Tell whether an example is the beginning of a text of which something is masked."""
    first, *others = (masked.rstrip("*") if len(masked) == LONGEST_EXAMPLE else masked).split(MASK)
    text = text.strip()
    at = len(first) if text.startswith(first) else -1
    for piece in others:
        if at >= 0 and (found := text.find(piece, at)) >= 0:
            at = found + len(piece)
        else:
            return False
    return at >= 0


def _release(using: str, free: Iterable[DeadLetter], by: Any) -> int:
    asks = Replay(
        requested_by_id=None if isinstance(by, str) else by.pk,
        requested_by_name=by[:200] if isinstance(by, str) else name_of(by),
    )
    count = 0
    for letter in free:
        if letter.hold_id is not None:
            holds.let_go(using, letter.pk, letter.hold_id, asks)
            count += 1
    return count
