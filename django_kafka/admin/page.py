"""What the page of one dead letter shows, read in bounded pieces and made harmless."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Length
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..cloud_events import CloudEvent
from ..dead_letters import holds, importing, replaying
from ..dead_letters.decoding import decoded, outside
from ..dead_letters.dry_runs import Report
from ..dead_letters.stored import StoredMessage
from ..messages import Message
from ..models import DeadLetter, Replay
from . import reports, showing, tracebacks
from .sight import Sight
from .tracebacks import Frame

_DUMPED = 4096
"""Bytes in a hex dump."""
_HEADERS = 200
_HEADER_BYTES = 2000
_ATTEMPT_TRACEBACK = 20_000
_ROWS = 50
"""Attempts and replays on the page, the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The key or the value."""

    name: str
    """As in the download's URL: "key" or "value"."""
    title: Any
    """Its heading."""
    size: int | None
    """In bytes; None when there is none."""
    too_large: bool = False
    """Whether it is only offered for download."""
    decoded: str = ""
    """As its serializer reads it."""
    undecodable: str = ""
    """Why that failed."""
    masked: bool = False
    """Whether only what is decoded is shown, without what is masked."""
    text: str = ""
    """The bytes as text."""
    dump: str = ""
    """The bytes in hexadecimal, from their beginning."""
    dumped: int = 0
    """How many of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One header."""

    name: str
    """Its name, harmless."""
    value: str | None
    """Its value as text, harmless; None as sent."""
    size: int
    """In bytes."""
    cut: bool
    """Whether it is longer than what is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that the template needs of one letter."""

    letter: DeadLetter
    """The row, without its payload."""
    sight: Sight
    """How much of its payload the person sees."""
    title: str
    """Its coordinates."""
    facts: list[tuple[Any, str]]
    """Names and values of the head."""
    error_type: str
    """What kind of error it was the last time, harmless."""
    error: str
    """What went wrong then."""
    traceback: str
    """Where."""
    frames: list[Frame]
    """Where in the project, the innermost function first."""
    parts: list[Part]
    """Value and key."""
    headers: list[Header]
    """In their order."""
    more_headers: int
    """How many are not shown."""
    headers_too_large: bool
    """Whether none is shown."""
    attempts: list[dict[str, Any]]
    """The latest ones."""
    replays: list[dict[str, Any]]
    """The latest ones."""
    waits: bool
    """Whether one of them is on its way."""
    dry_run: dict[str, Any] | None
    """The latest dry run that came to its end; None without one."""
    behind: int | None
    """How many messages of its key are parked; None when it holds none back."""
    head: DeadLetter | None
    """The letter that it is parked behind."""
    head_title: str
    """The coordinates of that."""


def letters_with_sizes() -> QuerySet[DeadLetter]:
    """Return letters without their bytes, but with the number of them."""
    sizes = {"key_size": Length("key"), "value_size": Length("value"), "headers_size": Length("stored_headers")}
    return replaying.letters().defer("key", "value", "stored_headers").annotate(**sizes)


def page_of(letter: Any, sight: Sight) -> Page:
    """Return the page of a letter from `letters_with_sizes`, for somebody who sees so much of it."""
    limit = conf.kafka().dead_letters.max_shown
    sight = sight.knowing(letter, sum(size or 0 for size in (letter.key_size, letter.value_size, letter.headers_size)))
    headers_too_large = letter.headers_size > limit * 2
    headers = [] if headers_too_large or not sight.shows else letter.headers
    if not sight.whole:
        headers = sight.masking.headers(headers)
    traceback = sight.text(letter.traceback)[:limit]
    held, is_parked = letter.hold_id is not None, letter.state == DeadLetter.State.PARKED
    using = conf.kafka().dead_letters.database
    head = holds.head(using, letter.hold_id) if held and is_parked else None
    latest = list(reports.without_bytes().filter(letter=letter.pk).order_by("-id")[:_ROWS])
    return Page(
        letter=letter,
        title=showing.topic(str(letter)),
        facts=_facts(letter),
        sight=sight,
        error_type=showing.line(letter.error_type, 300),
        error=showing.lines(sight.text(letter.error_message)[:limit]),
        traceback=showing.lines(traceback),
        frames=tracebacks.of_project(traceback),
        parts=[
            _part("value", _("Value"), letter, letter.value_size, limit, sight),
            _part("key", _("Key"), letter, letter.key_size, limit, sight),
        ],
        headers=[_header(name, value) for name, value in headers[:_HEADERS]],
        more_headers=max(0, len(headers) - _HEADERS),
        headers_too_large=headers_too_large,
        attempts=[_attempt(each, sight) for each in letter.attempt_set.order_by("-id")[:_ROWS]],
        replays=[_replay(each, sight) for each in latest],
        waits=any(each.state in Replay.OUTSTANDING for each in latest),
        dry_run=_dry_run(letter),
        behind=holds.parked(using, letter.hold_id) if held and not is_parked else None,
        head=head,
        head_title=showing.topic(str(head)),
    )


def _facts(letter: DeadLetter) -> list[tuple[Any, str]]:
    shown = [
        (_("Topic"), showing.topic(letter.topic)),
        (_("Partition"), str(letter.partition)),
        (_("Offset"), str(letter.offset)),
        (_("Timestamp"), _timestamp(letter)),
        (_("Cluster"), letter.cluster),
        (_("Consumer"), letter.consumer),
        (_("Group"), letter.group_id),
        (_("Handler"), letter.handler or gettext("none was found")),
        (_("Error type"), letter.error_type),
        (_("Category"), letter.category),
        *([(_("Release"), letter.release)] if letter.release else ()),
        *([(_("Erased"), showing.moment(letter.erased_at))] if letter.erased_at else ()),
        (_("Attempts"), str(letter.attempts)),
        *(_origin(letter) if letter.imported_as else ()),
    ]
    return [(name, showing.line(value, 600)) for name, value in shown]


def _origin(letter: DeadLetter) -> list[tuple[Any, str]]:
    """Return what an imported letter tells of where it failed, and of what it does not tell."""
    at = letter.origin_timestamp_ms
    home = importing.home(letter)
    told = [
        (_("Imported as"), letter.imported_as),
        (_("Original topic"), showing.topic(letter.origin_topic)),
        (_("Original partition"), letter.origin_partition),
        (_("Original offset"), letter.origin_offset),
        (_("Original timestamp"), None if at is None else _timestamp(DeadLetter(timestamp_ms=at))),
        (_("Original group"), letter.origin_group),
        (_("Replayed to"), showing.topic(home) if home and home != letter.origin_topic else None),
        (_("Not read"), letter.unread.replace("\n", " ")),
    ]
    return [(name, str(value)) for name, value in told if value not in (None, "")]


def _timestamp(letter: DeadLetter) -> str:
    at: datetime | None = Message(StoredMessage(letter), _Undecoded()).timestamp
    return gettext("none") if at is None else at.isoformat(sep=" ", timespec="milliseconds")


class _Undecoded:
    def key(self, message: Message) -> Any:
        return message.raw_key

    def value(self, message: Message) -> Any:
        return message.raw_value

    def event(self, message: Message) -> CloudEvent | None:
        return None


def _part(name: str, title: Any, letter: DeadLetter, size: int | None, limit: int, sight: Sight) -> Part:
    if size is None or not sight.shows:
        return Part(name=name, title=title, size=size)
    if size > limit:
        return Part(name=name, title=title, size=size, too_large=True)
    value, why = decoded(letter, name) if sight.whole else outside(letter, name)
    undecodable = showing.line(sight.text(why), 500)
    if not sight.whole:
        shown = sight.masking.key(value) if name == "key" else sight.masking.value(value)
        text = "" if why else showing.pretty(shown, longest=4 * limit)
        return Part(name=name, title=title, size=size, decoded=text, undecodable=undecodable, masked=True)
    data = bytes(getattr(letter, name))
    return Part(
        name=name,
        title=title,
        size=size,
        decoded="" if why else showing.pretty(value, longest=4 * limit),
        undecodable=undecodable,
        text=showing.as_text(data),
        dump=showing.hex_dump(data[:_DUMPED]),
        dumped=min(size, _DUMPED),
    )


def _header(name: str, value: bytes | None) -> Header:
    data = value or b""
    return Header(
        name=showing.line(name, 300),
        value=None if value is None else showing.as_text(data[:_HEADER_BYTES]),
        size=len(data),
        cut=len(data) > _HEADER_BYTES,
    )


def _attempt(attempt: Any, sight: Sight) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "at": attempt.at,
        "origin": attempt.get_origin_display(),
        "worker": showing.line(attempt.worker),
        "succeeded": attempt.succeeded,
        "error_type": showing.line(attempt.error_type, 300),
        "error": showing.first_line(sight.text(attempt.error_message)),
        "traceback": showing.lines(sight.text(attempt.traceback)[:_ATTEMPT_TRACEBACK]),
    }


def _dry_run(letter: DeadLetter) -> dict[str, Any] | None:
    dry = replaying.replays().filter(letter=letter.pk, target=Replay.Target.DRY_RUN)
    last = dry.filter(report__isnull=False).order_by("-id").first()
    if last is None or last.report is None:
        return None
    report = Report.from_bytes(last.report)
    return {"id": last.pk, "at": last.finished_at, "edited": last.edited, "facts": reports.summary(report)}


def _replay(replay: Any, sight: Sight) -> dict[str, Any]:
    return {
        "id": replay.pk,
        "topic": showing.topic(replay.to_topic),
        "edited": replay.edited,
        "requested_at": replay.requested_at,
        "requested_by": showing.line(replay.requested_by_name),
        "target": replay.get_target_display(),
        "state": replay.state,
        "state_label": replay.get_state_display(),
        "executor": showing.line(replay.executor),
        "finished_at": replay.finished_at,
        "result": showing.first_line(sight.text(replay.result), 300),
    }
