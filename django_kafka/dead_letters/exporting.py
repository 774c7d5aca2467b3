"""Letters and the audit as files: JSON lines, which are whole and can be brought back, and CSV for spreadsheets.

Both are written as they are read, piece by piece: a million letters take no more memory than a few hundred.
"""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db.models import QuerySet

from .. import conf
from ..envelopes.patience import patient
from ..exceptions import ConfigurationError, DecodeError
from ..legible import printable
from ..models import AuditEntry, DeadLetter, DeadLetterAttempt, FailureGroup
from . import payloads as payload_store
from . import readable
from .audit import entries
from .replaying import letters

FORMAT = "django-lynx-kafka/letter/1"
"""What each line says that it is."""
VERB = "export"
"""The verb of an export in the audit."""
_PIECE = 200
Noting = Callable[[list[DeadLetter]], None] | None
Lacking = Callable[[DeadLetter, str], None] | None
_LONGEST_CELL = 32_767
"""Characters that a cell of a spreadsheet takes."""
_OBEYED = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What begins a formula; the last four are wide, and some programs take them for the same."""
_INNER = re.compile(r"""(;[\s"']*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])""")
"""Where a cell begins within ours, for programs of countries that part cells by semicolons, as in Germany."""

PLAIN = (
    "cluster", "consumer", "group_id", "topic", "partition", "offset", "fingerprint", "timestamp_ms", "imported_as",
    "origin_topic", "origin_partition", "origin_offset", "origin_timestamp_ms", "origin_group", "unread", "handler",
    "category", "error_type", "error_message", "traceback", "release", "attempts", "state",
)  # fmt: skip
"""Fields of a letter that are written as they are."""
MOMENTS = ("first_failed_at", "last_failed_at", "settled_at", "erased_at")
OF_ATTEMPT = (
    "number", "origin", "worker", "succeeded", "error_type", "error_message", "traceback", "reported_by"
)  # fmt: skip

_CELLS = (
    "id", "state", "cluster", "consumer", "group_id", "topic", "partition", "offset", "timestamp_ms", "key", "headers",
    "value", "handler", "category", "error_type", "error_message", "release", "attempts", "first_failed_at",
    "last_failed_at", "settled_at", "erased_at", "failure_group_id",
)  # fmt: skip
_AUDIT_CELLS = (
    "id", "at", "user_id", "user_name", "address", "verb", "consumer", "topic", "model", "row", "title", "reason",
    "details",
)  # fmt: skip


def json_lines(
    rows: QuerySet[DeadLetter],
    *,
    masked: bool,
    noting: Noting = None,
    payloads: bool = True,
    lacking: Lacking = None,
    within: float = float("inf"),
) -> Iterator[str]:
    """Return a line for each letter, with its attempts, in the order of their ids.

    Bytes are in base64 and headers are pairs in their order. `masked` lines have text instead, without what settings
    mask, and are not to be brought back. `noting` is called with some letters before they are
    given away, to write them down. What a letter refers to in a storage comes along with `payloads`; `lacking` is
    called with a letter where it is not to be had, and the reason. Raises `StorageUnavailable`, also when one takes
    longer than `within` seconds, and what comes of it then is not whole.
    """
    for piece in _noted(rows, noting):
        attempts = _attempts([letter.pk for letter in piece])
        groups = _groups({letter.failure_group_id for letter in piece} - {None})
        for letter in piece:
            line = _line(letter, attempts.get(letter.pk, []), groups.get(letter.failure_group_id or 0), masked=masked)
            if letter.payload_name and payloads and not masked:
                line["payload"] = _payload(letter, lacking, within)
            yield json.dumps(line, ensure_ascii=True) + "\n"


def csv_lines(rows: QuerySet[DeadLetter], *, masked: bool, noting: Noting = None) -> Iterator[str]:
    """Return a head and a line for each letter, for spreadsheets: no cell is taken for a formula.

    Payloads are text, cut where a cell ends; what is invisible, and ends of lines, are `\\uXXXX`. The first line begins
    with the mark by which spreadsheets see that it is UTF-8.
    """
    yield "\ufeff" + _row(_CELLS)
    for piece in _noted(rows, noting):
        for letter in piece:
            shown = readable.masked(letter) if masked else readable.whole(letter)
            texts = {
                "key": shown.key, "value": shown.value, "error_message": shown.error_message,
                "headers": json.dumps(shown.headers, ensure_ascii=False),
            }  # fmt: skip
            yield _row([texts[name] if name in texts else getattr(letter, name) for name in _CELLS])


def audit_json_lines(rows: QuerySet[AuditEntry] | None = None) -> Iterator[str]:
    """Return a line for each entry of the audit, in the order of their ids."""
    for entry in _entries(rows):
        line = {name: _plain(getattr(entry, name)) for name in _AUDIT_CELLS}
        yield json.dumps(line, ensure_ascii=True) + "\n"


def audit_csv_lines(rows: QuerySet[AuditEntry] | None = None) -> Iterator[str]:
    """Return the same for spreadsheets."""
    yield "\ufeff" + _row(_AUDIT_CELLS)
    for entry in _entries(rows):
        values = {name: getattr(entry, name) for name in _AUDIT_CELLS}
        yield _row([*({**values, "details": json.dumps(entry.details, ensure_ascii=False)}).values()])


def _noted(rows: QuerySet[DeadLetter], noting: Noting) -> Iterator[list[DeadLetter]]:
    """Walk through letters, each of which is written down before it is given away."""
    for piece in _pieces(rows):
        if noting is not None:
            noting(piece)
        yield piece


def _pieces(rows: QuerySet[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """Walk through letters. Their ids are read by a cursor of the server, and they themselves piece by piece.

    A cursor over whole letters would have the server keep a copy of them all.
    """
    chosen = rows.order_by("pk").values_list("pk", flat=True).iterator(chunk_size=10_000)
    for ids in _batches(chosen):
        yield list(letters().filter(pk__in=ids).order_by("pk"))


def _batches(ids: Iterable[int]) -> Iterator[list[int]]:
    some: list[int] = []
    for pk in ids:
        some.append(pk)
        if len(some) == _PIECE:
            yield some
            some = []
    if some:
        yield some


def _entries(rows: QuerySet[AuditEntry] | None) -> Iterator[AuditEntry]:
    return (entries() if rows is None else rows).order_by("pk").iterator(chunk_size=_PIECE)


def _attempts(ids: Sequence[int]) -> dict[int, list[DeadLetterAttempt]]:
    found: dict[int, list[DeadLetterAttempt]] = {}
    using = conf.kafka().dead_letters.database
    for attempt in DeadLetterAttempt.objects.using(using).filter(letter__in=ids).order_by("pk"):
        found.setdefault(attempt.letter_id, []).append(attempt)
    return found


def _groups(ids: Iterable[int | None]) -> dict[int, FailureGroup]:
    return FailureGroup.objects.using(conf.kafka().dead_letters.database).in_bulk(list(ids))


def _line(
    letter: DeadLetter, attempts: Sequence[DeadLetterAttempt], group: FailureGroup | None, *, masked: bool
) -> dict[str, Any]:
    line: dict[str, Any] = {"format": FORMAT, "masked": masked}
    line |= {name: getattr(letter, name) for name in PLAIN}
    line |= {name: _plain(getattr(letter, name)) for name in MOMENTS}
    line["frame"] = "" if group is None else group.frame
    line["attempt_list"] = [
        {"at": _plain(one.at), **{name: getattr(one, name) for name in OF_ATTEMPT}} for one in attempts
    ]
    if not masked:
        line |= {"key": _base64(letter.key), "value": _base64(letter.value)}
        line["headers"] = [[name, _base64(value)] for name, value in letter.headers]
        return line
    shown = readable.masked(letter)
    line |= {"key": shown.key, "value": shown.value, "headers": shown.headers}
    rule = readable.masking_of(letter)
    for one in (line, *line["attempt_list"]):
        one["error_message"], one["traceback"] = rule.text(one["error_message"]), rule.text(one["traceback"])
    line["unread"] = rule.text(line["unread"])
    # Whoever may not see a payload could try small ones until this fits.
    line["fingerprint"] = ""
    return line


def _payload(letter: DeadLetter, lacking: Lacking, within: float) -> str | None:
    try:
        with patient(within):
            return _base64(payload_store.of(letter))
    except (ConfigurationError, DecodeError) as error:
        if lacking is not None:
            lacking(letter, str(error))
        return None


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _base64(data: bytes | memoryview | None) -> str | None:
    return None if data is None else base64.b64encode(bytes(data)).decode()


class _Pipe:
    """Gives back what is written into it."""

    def write(self, text: str) -> str:
        return text


_writer = csv.writer(_Pipe())


def _row(cells: Iterable[Any]) -> str:
    line: Any = _writer.writerow([_cell(each) for each in cells])
    return str(line)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int):
        return value
    text = _INNER.sub("\\1'", printable(str(_plain(value))))
    if text.lstrip().startswith(_OBEYED):
        text = f"'{text}"
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
