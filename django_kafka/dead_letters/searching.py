"""The words that letters are found by: taken from key, headers, error and value, soon after a letter is stored.

With each are the rules of masking under which they were taken. When settings mask something else, they are taken anew,
and until then nobody finds a letter by them who may not see it unmasked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

from django.db import connections, transaction
from django.db.models import Q, QuerySet

from .. import conf
from ..conf.masks import Mask
from ..envelopes.encryption import PATTERN, is_sealed
from ..models import DeadLetter, LetterWords
from ..models.dead_letters import decode_headers
from ..models.words import PARTS, Chunk
from . import permits, readable
from .masking import masking
from .replaying import with_key

_KEY, _ERROR, _HEADERS, _VALUE = 512, 1024, 2048, 8192
"""Characters of each part that words are taken from, from its beginning."""
_DECODED = 65_536
"""Bytes of a value that is decoded for its words; of larger ones they are taken from the bytes, or from nothing when
something is masked."""
_LONGEST = 64
"""Characters of a word that count."""
_SHORTEST_BEGINNING = 3
"""Characters that stand for all words that begin with them; shorter ones stand for themselves."""
_MOST_CHUNKS = 10
TOGETHER = 200
"""Letters whose words are taken in one transaction."""
_EDITION = 1
"""Of the way in which words are taken and masked: a higher number has those of all letters taken anew."""

_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_ESCAPED = re.compile(r'\\(?:[bfnrt"\\/])')
_SEALED = re.compile(PATTERN)
_CHUNK = re.compile(r'"([^"]*)"|(\S+)')


def of(letter: DeadLetter) -> str:
    """Return the words of a letter, in the order of its parts, without what is masked."""
    if letter.erased_at is not None:
        return ""
    about = f"{letter.topic} {letter.consumer} {letter.handler}"
    if not masking().active:
        said = (_text(letter.key)[:_KEY], letter.error_message, _headers(letter), _value(letter))
    elif len(letter.value or b"") > _DECODED:
        said = ("", "", "", "")
    else:
        shown = readable.masked(letter)
        headers = " ".join(f"{name} {value or ''}" for name, value in shown.headers)
        read = "" if is_sealed(letter.value) else shown.value or ""
        said = (shown.key or "", shown.error_message, headers, _ESCAPED.sub(" ", read))
    key, error, headers, value = said
    # What is encrypted has no words.
    value = _SEALED.sub(" ", value)
    kind = letter.error_type.rpartition(".")[2]
    # NoStockError is found by "stock", too.
    why = f"{letter.error_type} {' '.join(_HUMP.findall(kind))}"
    parts = (about, key[:_KEY], why, error[:_ERROR], headers[:_HEADERS], value[:_VALUE])
    return f" {PARTS} ".join(" ".join(_words(part)) for part in parts if part)


def mark(using: str, letter_id: int) -> None:
    """Say that words are to be taken from a letter, because it is new or has failed with something else.

    Part of the transaction in which its row is locked.
    """
    mine = LetterWords.objects.using(using).filter(letter=letter_id)
    if not mine.update(words=None, rules=None):
        mine.create(letter_id=letter_id)


def mark_all(using: str, letter_ids: Collection[int]) -> None:
    """Do that with many letters, in the transaction in which their rows are locked."""
    stored = LetterWords.objects.using(using)
    if stored.filter(letter__in=letter_ids).update(words=None, rules=None) < len(letter_ids):
        known = set(stored.filter(letter__in=letter_ids).values_list("letter_id", flat=True))
        stored.bulk_create(LetterWords(letter_id=pk) for pk in letter_ids if pk not in known)


def rules() -> int:
    """Return a number that stands for what is masked now: another one when settings mask anything else."""
    return _rules(masking().mask)


@lru_cache(maxsize=4)
def _rules(mask: Mask) -> int:
    patterns = [one.pattern for one in mask.patterns]
    text = json.dumps([_EDITION, mask.fields, patterns, mask.key])
    # A signed number of 64 bits, as databases have them.
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:8], signed=True)


def catch_up(most: int = TOGETHER, *, anew: bool = True) -> int:
    """Take words from letters that wait for it, from so many at most; return from how many.

    `anew`: after these, from letters whose words were taken when something else was masked. It takes as long as to
    store them, which is why it is not done then. What another process has locked is left to it.
    """
    using = conf.kafka().dead_letters.database
    rows = LetterWords.objects.using(using)
    ids = list(rows.filter(words__isnull=True).order_by("pk").values_list("pk", flat=True)[:most])
    if anew:
        for others in _stale(rows):
            if len(ids) < most:
                ids += others.order_by("rules").values_list("pk", flat=True)[: most - len(ids)]
    if not ids:
        return 0
    with transaction.atomic(using=using):
        letters = _locked(using, ids, skip=connections[using].features.has_select_for_update_skip_locked)
        still = set(rows.filter(_due(), pk__in=letters).values_list("pk", flat=True))
        return _take(using, {pk: letter for pk, letter in letters.items() if pk in still})


def waiting(most: int, *, anew: bool) -> int:
    """Count the letters that words do not find yet, up to so many; `anew`: also those with words of another masking."""
    rows = LetterWords.objects.using(conf.kafka().dead_letters.database)
    count = rows.filter(words__isnull=True)[:most].count()
    for others in _stale(rows) if anew else ():
        if count < most:
            count += others[: most - count].count()
    return count


def _stale(rows: QuerySet[LetterWords]) -> tuple[QuerySet[LetterWords], QuerySet[LetterWords]]:
    """Return the words of another masking: each asks the index for what is on one side of a number."""
    taken = rows.filter(words__isnull=False)
    return taken.filter(rules__lt=rules()), taken.filter(rules__gt=rules())


def take_anew(after: int = 0, most: int = TOGETHER) -> tuple[int, int]:
    """Take the words of all letters with ids above `after` anew, of so many at most; return the last id, and how many.

    0 and 0: there are no more.
    """
    using = conf.kafka().dead_letters.database
    letters = DeadLetter.objects.using(using).filter(pk__gt=after)
    ids = list(letters.order_by("pk").values_list("pk", flat=True)[:most])
    if not ids:
        return 0, 0
    with transaction.atomic(using=using):
        return ids[-1], _take(using, _locked(using, ids, skip=False))


def count_due() -> int:
    """Count the letters whose words are still to be taken, or to be taken anew; it reads all there are."""
    return LetterWords.objects.using(conf.kafka().dead_letters.database).filter(_due()).count()


def _due() -> Q:
    return Q(words__isnull=True) | Q(rules__isnull=True) | ~Q(rules=rules())


def _locked(using: str, ids: Collection[int], *, skip: bool) -> dict[int, DeadLetter]:
    """Lock letters, so that nobody erases one while its words are on their way."""
    found = DeadLetter.objects.using(using).filter(pk__in=ids).order_by("pk").select_for_update(skip_locked=skip)
    return {letter.pk: letter for letter in found.defer("traceback")}


def _take(using: str, letters: dict[int, DeadLetter]) -> int:
    # To delete and insert takes a third of the time of updating them.
    rows, now = LetterWords.objects.using(using), rules()
    rows.filter(pk__in=letters).delete()
    rows.bulk_create(
        LetterWords(letter_id=pk, rules=now, words=of(letter))
        for pk, letter in letters.items()
        if letter.erased_at is None
    )
    return len(letters)


def condition(term: str, unmasked: frozenset[str] | None = None) -> Q:
    """Return a condition: the letter has what somebody typed; without any words in it, it is a whole key.

    `unmasked`: the consumers whose letters the person may see unmasked; None: all of them. Others are found only by
    words that were taken under the masking of now.
    """
    if not (wanted := searched(term)):
        return with_key(term.strip().encode("utf-8", "replace"))
    found: QuerySet[LetterWords] = LetterWords.objects.filter(words__has=wanted)
    if unmasked is not None:
        current = Q(rules=rules())
        found = found.filter(current | permits.within(unmasked, "letter__consumer") if unmasked else current)
    return Q(pk__in=found.values("letter"))


def searched(term: str) -> list[Chunk]:
    """Return what a text that somebody typed asks for; nothing when it has no words.

    Words with spaces between them may be anywhere; those with anything else between them, and those in quotes, follow
    each other. The last one of each may be the beginning of a longer word, unless it is short.
    """
    found: list[Chunk] = []
    for quoted, bare in _CHUNK.findall(term[:1000]):
        words = tuple(_words(quoted or bare))
        if words:
            found.append((words, not quoted and len(words[-1]) >= _SHORTEST_BEGINNING))
    return found[:_MOST_CHUNKS]


def _words(text: str) -> Iterator[str]:
    for word in _WORD.findall(text.casefold()):
        yield word[:_LONGEST]


def _headers(letter: DeadLetter) -> str:
    if bytes(letter.stored_headers) == b"[]":
        return ""
    text = ""
    for name, value in decode_headers(letter.stored_headers):
        text += f"{name} {_text(value)[:_HEADERS]} "
        if len(text) > _HEADERS:
            break
    return text[:_HEADERS]


def _value(letter: DeadLetter) -> str:
    if letter.value is None or is_sealed(letter.value):
        return ""
    data = bytes(letter.value)
    if b"\\" in data[:_VALUE] and len(data) <= _DECODED:
        # What is escaped is not what people type.
        try:
            return _flat(json.loads(data))
        except (ValueError, RecursionError):
            pass
    return _text(data[: 4 * _VALUE])


def _flat(decoded: Any) -> str:
    return _ESCAPED.sub(" ", json.dumps(decoded, ensure_ascii=False, default=str))


def _text(data: bytes | memoryview | None) -> str:
    """Return bytes as text; what is no UTF-8 stands between words, as do the lengths of a binary format."""
    return "" if data is None else bytes(data).decode("utf-8", "replace")
