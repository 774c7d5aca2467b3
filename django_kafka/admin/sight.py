"""How much of a payload a person sees: all of it, what masking lets through, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import BooleanField, ExpressionWrapper, Q, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, Length
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext as _

from ..dead_letters import decoding, masking, permits, replaying
from ..dead_letters.masking import MASK, Masking
from ..models import DeadLetter
from . import showing

REVEAL = "unmasked"
"""The parameter of a letter's page that asks for what is masked otherwise."""
KEY_BYTES = 100
"""Of a key in a list."""
_LEARNT_FROM = 16_384
"""Bytes of key, value and headers that are decoded for a line of a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How much of one letter a person sees."""

    whole: bool
    """Whether payloads are shown as they are: noted in the audit."""
    refusal: str
    """Why the person may not see them so; "": they may."""
    masking: Masking
    """What is masked where they are not."""

    @property
    def shows(self) -> bool:
        """Whether anything of payloads is shown: without masking, and without the permission, nothing is."""
        return self.whole or self.masking.active

    def text(self, text: str) -> str:
        """Return an error or a traceback as the person sees it."""
        return text if self.whole else self.masking.text(text)

    def knowing(self, letter: Any, size: int) -> Sight:
        """Return the sight of a letter whose payload, of so many bytes, tells what errors may not."""
        if self.whole or not (self.masking.mask.fields or self.masking.mask.key):
            return self
        # Asked before the payload is read from the database.
        if size > decoding.MOST:
            return replace(self, masking=replace(self.masking, opaque=True))
        return replace(self, masking=decoding.knowing(self.masking, letter))


WHOLE = Sight(whole=True, refusal="", masking=Masking())
"""That of somebody who sees everything."""


def of(request: HttpRequest, letter: DeadLetter) -> Sight:
    """Return how much of a letter a person sees, who asks for its page."""
    refusal = permits.refusal(request.user, permits.Verb.VIEW_PAYLOAD, letter)
    found = masking.masking()
    asked = not found.active or REVEAL in request.GET
    return Sight(whole=asked and not refusal, refusal=refusal, masking=found)


def of_list(letters: Iterable[int]) -> dict[int, Sight]:
    """Return how much a list shows of the letters with these ids: nobody sees there what is masked."""
    found, ids = masking.masking(), list(letters)
    plain = Sight(whole=not found.active, refusal="", masking=found)
    if not ids or not (found.mask.fields or found.mask.key):
        return dict.fromkeys(ids, plain)
    size = Length("stored_headers") + _length("key") + _length("value")
    near = replaying.letters().filter(pk__in=ids).annotate(size=size).filter(size__lte=_LEARNT_FROM)
    known = {one.pk: one for one in near.defer("traceback", "error_message")}
    blind = replace(found, opaque=True)
    return {pk: replace(plain, masking=decoding.knowing(found, known[pk]) if pk in known else blind) for pk in ids}


def _length(field: str) -> Coalesce:
    return Coalesce(Length(field), Value(0))


def may_view_payload(user: Any) -> Combinable:
    """Return an expression: whether the person may see payloads of a row's consumer."""
    consumers = permits.consumers_of(user, permits.Verb.VIEW_PAYLOAD)
    if not consumers:
        return Value(consumers is None, output_field=BooleanField())
    return ExpressionWrapper(Q(consumer__in=sorted(consumers)), output_field=BooleanField())


def key_in_list(key: bytes | memoryview | None, permitted: bool) -> str | None:
    """Return the beginning of a key as HTML, of which lists read no more; `permitted`: to see payloads."""
    if key is None:
        return None
    start, found = bytes(key), masking.masking()
    if not (permitted or found.active):
        sentence = _("You are not permitted to view payloads.")
        return format_html('<span class="lynx-kafka-quiet" title="{0}">{1}</span>', sentence, _("hidden"))
    whole = len(start) <= KEY_BYTES
    if not found.active:
        shown = showing.brief(start[:KEY_BYTES], whole=whole)
    else:
        shown = showing.line(_masked_key(found, start), 40)
    return format_html('<span class="lynx-kafka-bytes">{}</span>', shown)


def _masked_key(found: Masking, start: bytes) -> str:
    text = start.decode("utf-8", "backslashreplace")
    if found.mask.key:
        return MASK
    if text.lstrip()[:1] not in ("{", "["):
        return found.text(text)
    shown = found.value(text)
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
