"""The page of one replay of a letter: what was altered for it, and what a dry run saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import models
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from .. import conf, envelopes, serializers
from ..dead_letters import audit, dry_runs, editing, permits, replaying
from ..dead_letters.dry_runs import Report, Would
from ..models import DeadLetter, Replay
from . import refusing, showing, sight, tracebacks
from .badges import badge
from .editing import Editing, changes
from .sight import Sight

_LONGEST = 20_000
"""Characters of a key, value or header of a record."""


class Reports(Editing):
    """The page, beside that of the letter."""

    def report_urls(self) -> list[Any]:
        """Return where it is."""
        view, name = self.admin_site.admin_view, "lynx_kafka_deadletter_{}".format
        return [
            path("<int:letter_id>/replays/<int:replay_id>/", view(self.replay_view), name=name("replay_of")),
            path("<int:letter_id>/waits/", view(self.waits_view), name=name("waits")),
        ]

    def more_verbs(self, request: HttpRequest, letter: DeadLetter) -> list[dict[str, Any]]:
        """Return editing, and why there is no dry run of an open letter, as buttons have them."""
        found = self.edit_verb(request, letter)
        own = letter.state == DeadLetter.State.OPEN and not letter.imported_as
        if own and (reason := dry_runs.refusal(letter)):
            verb = {"label": _("Dry run"), "cautious": False}
            found.insert(0, {"verb": verb, "url": "", "refusal": showing.line(reason, 500)})
        return found

    @method_decorator(require_safe)
    def replay_view(self, request: HttpRequest, letter_id: int, replay_id: int) -> HttpResponse:
        """Show one replay."""
        letter = replaying.letters().filter(pk=letter_id).first()
        refusing.demand_anywhere(request.user, permits.Verb.VIEW)
        # By the letter that was found: an id that is too large for the column is an error where it is a foreign key.
        replay = None if letter is None else replaying.replays().filter(pk=replay_id, letter=letter).first()
        if letter is None or replay is None:
            raise Http404
        refusing.demand(request.user, permits.Verb.VIEW, letter)
        replay.letter = letter
        return self._replay_page(request, replay, sight.of(request, letter).knowing(letter, 0))

    def _replay_page(self, request: HttpRequest, replay: Replay, seen: Sight) -> HttpResponse:
        letter = replay.letter
        place = showing.topic(str(letter))
        title = _("Dry run of %(letter)s") if replay.target == Replay.Target.DRY_RUN else _("Replay of %(letter)s")
        has_payload = replay.edited or replay.report is not None
        if seen.whole and has_payload:
            audit.note(request.user, audit.LOOKED, [letter], details={"replay": replay.pk})
        context = {
            **self.admin_site.each_context(request),
            **self.page_context(title % {"letter": place}),
            "back": self.url("change", letter.pk),
            "here": request.path,
            "waits_url": self.url("waits", letter.pk),
            "badge": badge(replay.state, replay.get_state_display()),
            "waits": replay.state in Replay.OUTSTANDING,
            "facts": _facts(replay),
            "result": showing.lines(seen.text(replay.result[:_LONGEST])),
            "report": None if replay.report is None else _report(Report.from_bytes(replay.report), seen),
            "seen": seen,
            "hidden": has_payload and not seen.whole,
            "reveal": f"?{sight.REVEAL}=yes",
            "diffs": changes(letter, editing.Edit.made_for(replay)) if replay.edited and seen.whole else [],
            "edit_url": self._edit_url(request, replay),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/lynx_kafka/replay.html", context)

    @method_decorator(require_safe)
    def waits_view(self, request: HttpRequest, letter_id: int) -> HttpResponse:
        """Tell whether a replay of a letter is on its way, and nothing more, so that a page may ask often."""
        letter = replaying.letters().filter(pk=letter_id).only("consumer").first()
        refusing.demand_anywhere(request.user, permits.Verb.VIEW)
        if letter is None:
            raise Http404
        refusing.demand(request.user, permits.Verb.VIEW, letter)
        waits = replaying.replays().filter(letter=letter_id, state__in=Replay.OUTSTANDING).exists()
        return JsonResponse({"waits": waits})

    def _edit_url(self, request: HttpRequest, replay: Replay) -> str:
        letter = replay.letter
        idle = replay.edited and replay.state not in Replay.OUTSTANDING
        if not idle or editing.refusal(letter) or not permits.may(request.user, permits.Verb.EDIT, letter):
            return ""
        return f"{self.url('edit', letter.pk)}?replay={replay.pk}"


def without_bytes() -> models.QuerySet[Replay]:
    """Return replays without what may be large in them."""
    return replaying.replays().defer("edited_key", "edited_value", "edited_headers", "report")


def summary(report: Report) -> list[tuple[Any, str]]:
    """Return the figures of a dry run, by name."""
    outcomes = {"succeeded": _("it would succeed"), "skipped": _("it would be skipped"), "failed": _("it would fail")}
    return [
        (_("Outcome"), str(outcomes.get(report.outcome, report.outcome))),
        (_("Handler"), showing.line(report.handler or "–", 500)),
        (_("Seconds"), number_format(report.seconds, 3)),
        (_("Queries"), number_format(report.queries)),
        (_("Commit hooks that did not run"), number_format(report.hooks)),
        (_("Records that were not sent"), number_format(len(report.records) + report.more_records)),
    ]


def _facts(replay: Replay) -> list[tuple[Any, Any]]:
    shown = [
        (_("Target"), replay.get_target_display()),
        (_("Topic"), showing.topic(replay.to_topic)),
        (_("Asked for"), replay.requested_at),
        (_("By"), showing.line(replay.requested_by_name)),
        (_("Carried out by"), showing.line(replay.executor)),
        (_("Finished"), replay.finished_at),
    ]
    found = [(name, value) for name, value in shown if value not in ("", None)]
    return found if replay.report is None else found + summary(Report.from_bytes(replay.report))


def _report(report: Report, seen: Sight) -> dict[str, Any]:
    most = conf.kafka().dead_letters.max_shown
    traceback = seen.text(report.traceback[:most])
    return {
        "error_type": showing.line(report.error_type, 300),
        "error": showing.lines(seen.text(report.error_message[:most])),
        "traceback": showing.lines(traceback),
        "frames": tracebacks.of_project(traceback),
        "records": [_record(one, seen) for one in report.records],
        "count": len(report.records) + report.more_records,
        "more": report.more_records,
    }


def _record(record: Would, seen: Sight) -> dict[str, Any]:
    shown = {
        "topic": showing.topic(record.topic),
        "size": record.size,
        "left_out": record.left_out,
        "hidden": not seen.whole,
    }
    if record.left_out or not seen.whole:
        return shown
    serializer = _serializers(record)
    facts = [
        (_("Producer"), showing.line(record.producer)),
        (_("Partition"), "" if record.partition is None else str(record.partition)),
        (_("Key"), _decoded(record.key, record.topic, serializer("key"))),
        (_("Value"), _opened(record) or _decoded(record.value, record.topic, serializer("value"))),
        *((showing.line(name, 300), _text(value)) for name, value in record.headers),
    ]
    return {**shown, "facts": [(name, value[:_LONGEST]) for name, value in facts if value != ""]}


def _opened(record: Would) -> str:
    """Return the value of a record that has an envelope; "" when it has none, or is not to be read."""
    settings = conf.kafka()
    producer = settings.producers.get(record.producer)
    if producer is None or record.value is None:
        return ""
    own = producer.topics.get(record.topic.removeprefix(settings.topic_prefix))
    try:
        envelope = envelopes.of(producer, own, record.topic)
        return "" if envelope is None else showing.pretty(envelope.open(record.value, record.headers), _LONGEST)
    except Exception:  # noqa: BLE001  # as below
        return ""


def _serializers(record: Would) -> Callable[[str], serializers.Serializer | None]:
    """Return what finds the serializer of the record's producer; nobody connects for that."""

    def find(part: str) -> serializers.Serializer | None:
        settings = conf.kafka()
        producer = settings.producers.get(record.producer)
        if producer is None:
            return None
        own = producer.topics.get(record.topic.removeprefix(settings.topic_prefix))
        name = "key_serializer" if part == "key" else "serializer"
        try:
            return serializers.get((own and getattr(own, name)) or getattr(producer, name))
        except Exception:  # noqa: BLE001  # a serializer of the project's own may raise anything
            return None

    return find


def _decoded(data: bytes | None, topic: str, serializer: serializers.Serializer | None) -> str:
    if data is None or serializer is None:
        return _text(data)
    try:
        return showing.pretty(serializer.decode(data, topic), _LONGEST)
    except Exception:  # noqa: BLE001  # as above; then its bytes have to do
        return _text(data)


def _text(data: bytes | None) -> str:
    return "null" if data is None else showing.as_text(data[:_LONGEST])
