"""Editing a message before it is replayed: a form, a look at what was altered, and then the replay.

What was typed goes along from page to page; nothing is stored before it is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.translation import gettext as _

from .. import conf
from ..dead_letters import audit, decoding, dry_runs, editing, permits, replaying
from ..dead_letters.editing import Edit
from ..exceptions import KafkaError, StorageUnavailable
from ..models import DeadLetter, Replay
from . import diffs, notations, refusing, showing, topics
from .asking import enter
from .confirming import Confirming, say_who_carries_out
from .headers import HeaderField, fields_of, headers_from
from .notations import Language, Notation, Written
from .verbs import Outcome

_LOGGED = "Edited it and asked for a replay."


@dataclass(frozen=True, slots=True, kw_only=True)
class PartField:
    """The key or the value in the form."""

    name: str
    """"key" or "value"."""
    title: Any
    """Its label."""
    written: Written
    """What stands there."""
    error: str = ""
    """What is wrong with it."""


@dataclass(slots=True, kw_only=True)
class Draft:
    """What a person typed."""

    letter: DeadLetter
    """The letter, whole."""
    value: PartField
    """Its value."""
    key: PartField
    """Its key."""
    headers: list[HeaderField]
    """Its headers, and empty ones."""
    target: str
    """Where it is to go: "handler", "topic" or "other"."""
    to_topic: str
    """The topic, where that is another one."""
    version: str
    """The version of the letter when it was begun."""
    edit: Edit | None = None
    """The message; None: it cannot be read."""
    errors: list[str]
    """What is wrong with it as a whole."""

    @property
    def ready(self) -> bool:
        """Whether it may be sent."""
        return self.edit is not None and not self.errors


class Editing(Confirming):
    """The pages of it."""

    def editing_urls(self) -> list[Any]:
        """Return where they are."""
        view = self.admin_site.admin_view
        return [path("<int:letter_id>/edit/", view(self.edit_view), name="lynx_kafka_deadletter_edit")]

    def edit_verb(self, request: HttpRequest, letter: DeadLetter) -> list[dict[str, Any]]:
        """Return where the form is, or why it is not to be had, as buttons have it; nothing where it is off."""
        if not conf.kafka().dead_letters.edit or letter.state != DeadLetter.State.OPEN:
            return []
        busy = replaying.replays().filter(letter=letter.pk, state__in=Replay.OUTSTANDING).exists()
        reason = permits.refusal(request.user, permits.Verb.EDIT, letter)
        reason = reason or (_("A replay of it is on its way.") if busy else "")
        verb = {"label": _("Edit and replay"), "cautious": True}
        return [{"verb": verb, "url": self.url("edit", letter.pk), "refusal": reason}]

    def edit_view(self, request: HttpRequest, letter_id: int) -> HttpResponse:
        """Show the form, show what was altered, or ask for the replay."""
        letter = replaying.letters().filter(pk=letter_id).first()
        refusing.demand_anywhere(request.user, permits.Verb.EDIT)
        if letter is None:
            raise Http404
        refusing.demand(request.user, permits.Verb.EDIT, letter)
        if reason := editing.refusal(letter) or _too_large(letter) or _out_of_reach(letter):
            messages.error(request, reason)
            return HttpResponseRedirect(self.url("change", letter_id))
        if request.method != "POST":
            _note_look(request, letter)
            return self._form(request, _begun(letter, _source(request, letter)))
        draft = _typed(request, letter)
        if "again" in request.POST or not draft.ready:
            return self._form(request, draft)
        if "send" in request.POST or "dry-run" in request.POST:
            return self._send(request, draft)
        return self._diff(request, draft)

    def _form(self, request: HttpRequest, draft: Draft) -> HttpResponse:
        title = _("Edit and replay %(letter)s") % {"letter": showing.topic(str(draft.letter))}
        context = {
            "draft": draft,
            "parts": [draft.value, draft.key],
            "notations": Notation.choices,
            "header_notations": [each for each in Notation.choices if each[0] != Notation.JSON],
            "known": topics.known(),
            "other_targets": _targets(draft.letter),
        }
        return self._page(request, "edit.html", title, draft.letter, context)

    def _diff(self, request: HttpRequest, draft: Draft) -> HttpResponse:
        assert draft.edit is not None
        title = _("Send what was edited of %(letter)s?") % {"letter": showing.topic(str(draft.letter))}
        context = {
            "draft": draft,
            "diffs": changes(draft.letter, draft.edit),
            "hidden": [pair for pair in _pairs(request) if pair[0] not in ("csrfmiddlewaretoken", "look")],
            "to": _goal(draft),
            "dry_run_refused": dry_runs.refusal(draft.letter),
        }
        return self._page(request, "edited.html", title, draft.letter, context)

    def _page(
        self, request: HttpRequest, name: str, title: str, letter: DeadLetter, context: dict[str, Any]
    ) -> HttpResponse:
        whole = {
            **self.admin_site.each_context(request),
            **self.page_context(title),
            **context,
            "back": self.url("change", letter.pk),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, f"admin/lynx_kafka/{name}", whole)

    def _send(self, request: HttpRequest, draft: Draft) -> HttpResponse:
        letter, edit = draft.letter, draft.edit
        assert edit is not None
        target = Replay.Target.DRY_RUN if "dry-run" in request.POST else _target(draft.target)
        topic = draft.to_topic if target == Replay.Target.TOPIC and draft.target == "other" else ""
        try:
            with transaction.atomic(using=conf.kafka().dead_letters.database):
                editing.request(letter.pk, edit, version=draft.version, target=target, topic=topic, user=request.user)
                enter([letter], DeadLetter, request.user, _LOGGED, verb=permits.Verb.EDIT)
        except editing.Overtaken as overtaken:
            messages.error(request, showing.line(str(overtaken), 500))
            return HttpResponseRedirect(self.url("change", letter.pk))
        except KafkaError as refusal:
            draft.errors.append(showing.line(str(refusal), 500))
            return self._form(request, draft)
        messages.success(request, _("A replay of the edited message was asked for."))
        say_who_carries_out(request, Outcome(done=1, consumers={letter.consumer}))
        return HttpResponseRedirect(self.url("change", letter.pk))


def changes(letter: DeadLetter, edit: Edit) -> list[tuple[str, diffs.Diff]]:
    """Return what is different in a message from that of its letter, under a title each."""
    before = Edit.of(letter)
    found = []
    for title, part, old, new in (
        (_("Value"), "value", before.value, edit.value),
        (_("Key"), "key", before.key, edit.key),
    ):
        if old != new:
            found.append((title, diffs.between(*_comparable(letter, part, old, new))))
    if before.headers != edit.headers:
        found.append((_("Headers"), diffs.between(_listed(before), _listed(edit))))
    return found


def _comparable(letter: DeadLetter, part: str, old: bytes | None, new: bytes | None) -> tuple[str, str]:
    """Return both as texts of one kind."""
    language = Language(letter, part)
    first, second = notations.write(old, language), notations.write(new, language)
    if first.notation == second.notation or Notation.NONE in (first.notation, second.notation):
        return _or_nothing(first), _or_nothing(second)
    return showing.as_text(language.inside(old) or b""), showing.as_text(language.inside(new) or b"")


def _or_nothing(written: Written) -> str:
    return "null" if written.notation == Notation.NONE else written.text


def _listed(edit: Edit) -> str:
    return "\n".join(
        f"{showing.line(name, 1000)}: {'null' if value is None else showing.as_text(value)}"
        for name, value in edit.headers
    )


def _note_look(request: HttpRequest, letter: DeadLetter) -> None:
    audit.note(request.user, audit.LOOKED, [letter], details={"page": "edit"})


def _too_large(letter: DeadLetter) -> str:
    most = conf.kafka().dead_letters.max_shown
    value = decoding.size_of(letter, "value", len(letter.value or b"")) or 0
    largest = max(len(letter.key or b""), value)
    if largest <= most:
        return ""
    return _("It has %(size)d bytes; %(most)d at most can be edited.") % {"size": largest, "most": most}


def _out_of_reach(letter: DeadLetter) -> str:
    """Return why nobody can see now what would be edited; "": one can."""
    try:
        decoding.fetched(letter, "value")
    except StorageUnavailable as error:
        return showing.line(str(error), 500)
    except KafkaError:
        pass
    return ""


def _source(request: HttpRequest, letter: DeadLetter) -> Edit:
    """Return what the form begins with: the letter's own message, or that of an earlier replay of it."""
    chosen = request.GET.get("replay", "")
    if chosen.isascii() and chosen.isdigit() and len(chosen) < 19:
        replay = replaying.replays().filter(pk=int(chosen), letter=letter, edited=True).first()
        if replay is not None:
            replay.letter = letter
            return Edit.made_for(replay)
    return Edit.of(letter)


def _begun(letter: DeadLetter, edit: Edit) -> Draft:
    return Draft(
        letter=letter,
        value=PartField(name="value", title=_("Value"), written=notations.write(edit.value, Language(letter, "value"))),
        key=PartField(name="key", title=_("Key"), written=notations.write(edit.key, Language(letter, "key"))),
        headers=fields_of(edit.headers),
        target=_targets(letter)[0][0],
        to_topic="",
        version=editing.version_of(letter),
        errors=[],
    )


def _typed(request: HttpRequest, letter: DeadLetter) -> Draft:
    """Return what came back from the form, and what is wrong with it."""
    before = Edit.of(letter)
    value, value_data = _part(request, letter, "value", _("Value"), before.value)
    key, key_data = _part(request, letter, "key", _("Key"), before.key)
    fields, pairs = headers_from(request, before.headers)
    wrong = value.error or key.error or any(each.error for each in fields)
    draft = Draft(
        letter=letter,
        value=value,
        key=key,
        headers=fields,
        target=request.POST.get("target", ""),
        to_topic=request.POST.get("to_topic", "").strip()[:300],
        version=request.POST.get("version", "")[:200],
        edit=None if wrong else Edit(key=key_data, value=value_data, headers=tuple(pairs)),
        errors=[],
    )
    draft.errors += _wrong_target(draft)
    if draft.edit is not None:
        draft.errors += [showing.line(each, 1000) for each in editing.problems(letter, draft.edit)]
    return draft


def _part(
    request: HttpRequest, letter: DeadLetter, name: str, title: str, original: bytes | None
) -> tuple[PartField, bytes | None]:
    written = Written(notation=request.POST.get(f"{name}_notation", ""), text=request.POST.get(name, ""))
    try:
        data = notations.read(written, original, Language(letter, name))
    except ValueError as error:
        return PartField(name=name, title=title, written=written, error=showing.line(str(error), 1000)), None
    return PartField(name=name, title=title, written=written), data


def _targets(letter: DeadLetter) -> list[tuple[str, Any]]:
    """Return where a message may go."""
    handler = [] if letter.imported_as else [("handler", _("to the handler"))]
    return [*handler, ("topic", _("to its topic")), ("other", _("to another topic"))]


def _target(chosen: str) -> str:
    return Replay.Target.HANDLER if chosen == "handler" else Replay.Target.TOPIC


def _wrong_target(draft: Draft) -> list[str]:
    if draft.target not in dict(_targets(draft.letter)):
        return [_("Choose where it goes.")]
    error = topics.wrong(draft.to_topic, (draft.letter.cluster,)) if draft.target == "other" else ""
    return [error] if error else []


def _goal(draft: Draft) -> str:
    if draft.target == "other":
        return showing.topic(conf.kafka().prefixed(draft.to_topic))
    return str(dict(_targets(draft.letter))[draft.target])


def _pairs(request: HttpRequest) -> list[tuple[str, str]]:
    return [(name, text) for name, texts in request.POST.lists() for text in texts]
