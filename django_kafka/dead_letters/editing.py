"""Editing a message before it is replayed: what may be altered, by whom first, and what stays of the original.

The letter keeps its message as it came. What was edited is part of the replay, so that its history tells both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _

from .. import conf, handlers, serializers, signatures
from ..envelopes import encryption
from ..envelopes.opening import OpeningDecoder
from ..exceptions import ConfigurationError, KafkaError, NoHandler, ReplayRefused, shown
from ..messages import Message
from ..models import DeadLetter, Replay
from ..models.dead_letters import encode_headers
from . import holds, importing
from .replaying import aim, letters, name_of, replays
from .stored import StoredMessage

Pairs = Sequence[tuple[str, "bytes | None"]]

_OURS = "lynx-kafka-"
_OF_TRACES = frozenset(
    ("traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled")
)
_OF_SCHEMAS = frozenset(("__key_schema_id", "__value_schema_id"))
_LONGEST_NAME = 255
_MOST_HEADERS = 1000


class Overtaken(ReplayRefused):
    """Somebody else did something with the letter meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A message as somebody wants it."""

    key: bytes | None
    """Its key."""
    value: bytes | None
    """Its value; None is a tombstone."""
    headers: tuple[tuple[str, bytes | None], ...]
    """All of its headers, in their order."""

    @classmethod
    def of(cls, letter: DeadLetter) -> Edit:
        """Return the message of a letter as it came."""
        stored = StoredMessage(letter)
        return cls(key=stored.key(), value=stored.value(), headers=tuple(stored.headers()))

    @classmethod
    def made_for(cls, replay: Replay) -> Edit:
        """Return the message of a replay."""
        stored = StoredMessage.of(replay)
        return cls(key=stored.key(), value=stored.value(), headers=tuple(stored.headers()))


def is_protected(name: str) -> bool:
    """Tell whether a header may not be altered: ours, and those that tell of traces and schemas."""
    lowered = name.lower()
    return lowered.startswith(_OURS) or lowered in _OF_TRACES or lowered in _OF_SCHEMAS


def refusal(letter: DeadLetter) -> str:
    """Return why the message of a letter may not be edited now, as a translated sentence; "": it may.

    It needs a permission besides.
    """
    if not conf.kafka().dead_letters.edit:
        return _('Editing is switched off: KAFKA["dead_letters"]["edit"].')
    if letter.state != DeadLetter.State.OPEN:
        return _("The letter is not open.")
    return ""


def version_of(letter: DeadLetter) -> str:
    """Return what changes whenever something becomes of a letter: its state, its attempts, its replays.

    Dry runs do not count: they change nothing.
    """
    real = replays().filter(letter=letter.pk).exclude(target=Replay.Target.DRY_RUN)
    last = real.order_by("-id").values_list("id", "state").first()
    return f"{letter.state}-{letter.attempts}-{'-'.join(map(str, last or ()))}"


def problems(letter: DeadLetter, edit: Edit) -> list[str]:
    """Return what is wrong with an edited message, as translated sentences; none when it may be replayed."""
    found = [*_of_size(edit), *_of_headers(edit.headers, tuple(letter.headers))]
    if edit.key != _key_of(letter) and letter.hold_id is not None:
        found.append(_("The letter holds its key back: its key cannot be altered."))
    if edit == Edit.of(letter):
        found.append(_("Nothing was altered."))
    return found or _of_bytes(letter, edit)


def _key_of(letter: DeadLetter) -> bytes | None:
    return None if letter.key is None else bytes(letter.key)


def _of_size(edit: Edit) -> list[str]:
    most = conf.kafka().dead_letters.max_shown
    sizes = ((_("The key"), len(edit.key or b"")), (_("The value"), len(edit.value or b"")))
    sentence = _("%(part)s has %(size)d bytes; %(most)d at most can be edited.")
    return [sentence % {"part": part, "size": size, "most": most} for part, size in sizes if size > most]


def _of_headers(new: Pairs, old: Pairs) -> list[str]:
    found = []
    known = {name for name, _value in old}
    for name in dict.fromkeys(name for name, _value in new if name not in known):
        if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
            sentence = _("The name of a header is %(name)r; allowed: 1 to %(most)d characters that can be seen.")
            found.append(sentence % {"name": name, "most": _LONGEST_NAME})
    if [one for one in new if is_protected(one[0])] != [one for one in old if is_protected(one[0])]:
        sentence = _("Headers of traces, of schemas, and those that begin with %(ours)s cannot be altered.")
        found.append(sentence % {"ours": _OURS})
    if len(new) > max(_MOST_HEADERS, len(old)):
        found.append(_("There are too many headers."))
    return found


def _of_bytes(letter: DeadLetter, edit: Edit) -> list[str]:
    """Return what keeps the serializers of the handler from reading the message."""
    try:
        decoder = handlers.decoder_for(letter.consumer, letter.topic)
    except KafkaError as error:
        return [str(error)]
    if _is_bare(letter, edit, decoder):
        return [_("The value is not encrypted, as those of its topic are to be.")]
    stored = StoredMessage(letter, _replay_of(letter, edit))
    found = []
    for part, read in ((_("The key"), decoder.key), (_("The value"), decoder.value)):
        try:
            serializers.patiently(decoder, partial(read, Message(stored, decoder)))
        except Exception as error:  # noqa: BLE001  # a serializer of the project's own may raise anything
            found.append(_unreadable(part, error))
    return found or _of_event(letter, stored)


def _of_event(letter: DeadLetter, stored: StoredMessage) -> list[str]:
    """Return what keeps the message from being an event of the type that its handler wants."""

    def read() -> None:
        handler = found.match(message)
        if handler.event is not None:
            signatures.event_of(handler.event, message)

    try:
        found = handlers.for_topic(letter.consumer, letter.topic)
        message = Message(stored, found.decoder)
        serializers.patiently(found.decoder, read)
    except (ConfigurationError, NoHandler):
        # It may be edited for another topic.
        return []
    except Exception as error:  # noqa: BLE001  # a condition of the project's own may raise anything
        return [_unreadable(_("The value"), error)]
    return []


def _unreadable(part: str, error: Exception) -> str:
    sentence = _("%(part)s cannot be read as its handler would read it: %(error)s")
    return sentence % {"part": part, "error": shown(error)[:500]}


def _is_bare(letter: DeadLetter, edit: Edit, decoder: serializers.TopicDecoder) -> bool:
    """Tell whether a value that is new has nothing around it that settings want to be around values."""
    if not isinstance(decoder, OpeningDecoder) or not decoder.envelope.covers or edit.value is None:
        return False
    return edit.value != Edit.of(letter).value and not encryption.is_sealed(edit.value)


def request(
    letter_id: int,
    edit: Edit,
    *,
    version: str,
    target: str = Replay.Target.HANDLER,
    topic: str = "",
    user: Any = None,
    name: str = "",
) -> Replay:
    """Ask for a replay of a letter with another message, and return it; nothing runs here.

    `version` is that of the letter when somebody began to edit it: of several who do, the first one is taken, the
    others get `Overtaken`, which tells who was. `target`, `topic`, `user` and `name` are as in `replaying.request`.

    Raises `ReplayRefused` when editing is switched off, when the message may not be replayed so, or is wrong.
    """
    to_topic = aim(target, topic)
    using = conf.kafka().dead_letters.database
    with transaction.atomic(using=using):
        # Written first, so that whoever else edits it waits here, whatever the database.
        letters().filter(pk=letter_id).update(attempts=F("attempts"))
        letter = letters().filter(pk=letter_id).first()
        if letter is None:
            raise ReplayRefused(_("The letter is not there any more."))
        _refuse_late(letter, version)
        if wrong := refusal(letter) or " ".join(problems(letter, edit)):
            raise ReplayRefused(wrong)
        importing.refuse(letter, target, to_topic)
        holds.refuse(letter, target)
        replay = _replay_of(letter, edit)
        replay.target, replay.to_topic = target, to_topic
        replay.requested_by_id = None if user is None else user.pk
        replay.requested_by_name = name or name_of(user)
        replay.requested_at = timezone.now()
        try:
            with transaction.atomic(using=using):
                replay.save(using=using, force_insert=True)
        except IntegrityError:
            _refuse_late(letter, "")
            raise
    return replay


def _replay_of(letter: DeadLetter, edit: Edit) -> Replay:
    return Replay(
        letter=letter,
        edited=True,
        edited_key=edit.key,
        edited_value=edit.value,
        edited_headers=encode_headers(edit.headers),
    )


def _refuse_late(letter: DeadLetter, version: str) -> None:
    """Raise `Overtaken` when something became of a letter since it had this version."""
    if version_of(letter) == version:
        return
    last = replays().filter(letter=letter.pk).order_by("-id").first()
    if last is None:
        raise Overtaken(_("The letter has changed since you began to edit it. Nothing was sent."))
    sentence = _(
        "A replay of this letter was asked for by %(who)s at %(when)s; it is %(state)s. Nothing of yours was sent: "
        "look at that one first."
    )
    when = timezone.localtime(last.requested_at) if timezone.is_aware(last.requested_at) else last.requested_at
    facts = {"who": last.requested_by_name or "–", "when": f"{when:%Y-%m-%d %H:%M:%S}"}
    raise Overtaken(sentence % {**facts, "state": last.get_state_display()})
