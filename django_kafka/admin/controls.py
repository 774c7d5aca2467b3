"""Control in the admin: each verb has a page in between, which asks for a reason; a seek is shown dry before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from .. import conf, controls, handlers, subscriptions
from ..controls import Plan
from ..dead_letters import permits
from ..exceptions import ConfigurationError, UnknownName
from ..membership import topics_and_group
from ..models import Control, Worker
from ..monitoring import heartbeats, lag
from ..offsets import resetting
from . import asking, refusing, showing
from .badges import request_badge
from .reading import ReadOnly

_ANSWERS_WITHIN = 4.0
"""Seconds for which a page waits for each answer of brokers."""
_SHOWN = 50
_MOST_TO = 2000
"""Partitions of one seek."""

_TARGETS: Sequence[tuple[str, Promise]] = (
    ("offset", gettext_lazy("an offset")),
    ("time", gettext_lazy("what was sent since a time")),
    ("shift", gettext_lazy("so many messages on, or back when negative")),
    ("earliest", gettext_lazy("the first message that is there")),
    ("latest", gettext_lazy("past the last message that is there")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verb:
    label: Promise
    question: Promise
    hints: Sequence[Promise]
    of_workers: bool = False


_VERBS: Mapping[str, _Verb] = {
    "pause": _Verb(
        label=gettext_lazy("Pause"),
        question=gettext_lazy("Pause %s?"),
        hints=(
            gettext_lazy("What runs is finished, and nothing more is begun until somebody resumes it."),
            gettext_lazy("The pause holds through rebalances and restarts of workers."),
        ),
    ),
    "resume": _Verb(
        label=gettext_lazy("Resume"),
        question=gettext_lazy("Resume %s?"),
        hints=(gettext_lazy("It goes on where it was. A whole consumer goes on with all of its partitions."),),
    ),
    "seek": _Verb(
        label=gettext_lazy("Seek"),
        question=gettext_lazy("Where is %s to go on?"),
        hints=(
            gettext_lazy("First it is shown what would be read again and what skipped."),
            gettext_lazy("The worker that has a partition finishes what runs in it before it moves."),
        ),
    ),
    "stop": _Verb(
        label=gettext_lazy("Drain and stop"),
        question=gettext_lazy("Drain and stop %s?"),
        hints=(
            gettext_lazy("It finishes what runs, commits and leaves its group; others take its partitions over."),
            gettext_lazy(
                "Its process ends when no other consumer works in it. A supervisor, or what else keeps processes "
                "running, starts it again."
            ),
        ),
        of_workers=True,
    ),
    "close_breaker": _Verb(
        label=gettext_lazy("Close the circuit"),
        question=gettext_lazy("Close the circuit of %s?"),
        hints=(
            gettext_lazy(
                "Handling goes on at once, as if nothing had failed. What fails then becomes a dead letter again."
            ),
            gettext_lazy("When failures surge once more, the circuit opens once more."),
        ),
        of_workers=True,
    ),
}


class Controlling(ReadOnly):
    """Adds the pages in between to the admin of workers."""

    def get_urls(self) -> list[Any]:
        """Return the admin's own URLs and that of control."""
        view = self.admin_site.admin_view(self.control_view)
        return [path("control/<str:verb>/", view, name="lynx_kafka_control"), *super().get_urls()]

    def control_view(self, request: HttpRequest, verb: str) -> HttpResponse:
        """Ask what is to be done, or have it done."""
        if verb not in _VERBS:
            raise Http404
        refusing.demand_anywhere(request.user, permits.Verb.CONTROL_WORKERS, Worker)
        about = _About.of(request, verb)
        refusing.demand(request.user, permits.Verb.CONTROL_WORKERS, about.row)
        back = reverse("admin:lynx_kafka_dashboard", current_app=self.admin_site.name)
        asked = _Asked(request)
        plan, error = None, ""
        if request.method == "POST":
            try:
                if "confirmed" in request.POST:
                    about.carry_out(request.user, asked)
                    messages.success(request, _("It was asked for; the dashboard shows how far it is."))
                    return HttpResponseRedirect(back)
                if verb == "seek":
                    plan = about.planned(asked)
            except ConfigurationError as problem:
                error = showing.line(str(problem), 1000)
        return self._page(request, about, asked, back=back, plan=plan, error=error)

    def _page(
        self, request: HttpRequest, about: _About, asked: _Asked, *, back: str, plan: Plan | None, error: str
    ) -> HttpResponse:
        verb = _VERBS[about.verb]
        list_url = reverse("admin:lynx_kafka_worker_changelist", current_app=self.admin_site.name)
        context = {
            **self.admin_site.each_context(request),
            **asking.page_context(self, str(verb.label), list_url),
            "label": verb.label,
            "question": str(verb.question) % about.title,
            "hints": verb.hints,
            "error": error,
            "back": back,
            "reason": showing.line(asked.reason, 500),
            "plan": None if plan is None else _shown(plan),
            "impossible": plan is not None and not plan.changes,
            "targets": _TARGETS if about.verb == "seek" else (),
            "target": asked.target,
            "value": showing.line(asked.value),
            "partitions": showing.line(asked.partitions),
            "topics": about.topics(asked.topic) if about.verb == "seek" and about.partition is None else (),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/lynx_kafka/control.html", context)


class _Asked:
    """What a form said."""

    def __init__(self, request: HttpRequest) -> None:
        posted = request.POST
        self.reason = posted.get("reason", "")[:500]
        self.topic = posted.get("topic", "")
        self.partitions = posted.get("partitions", "").strip()
        self.target = posted.get("target", "offset")
        self.value = posted.get("value", "").strip()
        self.to = posted.getlist("to")[: _MOST_TO + 1]

    def numbers(self) -> list[int]:
        """Return the partitions that it is about; none: all. Raises `ConfigurationError`."""
        return [_whole(one.strip(), 1 << 31) for one in self.partitions.split(",") if one.strip()]

    def where(self) -> resetting.Target:
        """Return where to go. Raises `ConfigurationError`."""
        match self.target:
            case "earliest":
                return resetting.Earliest()
            case "latest":
                return resetting.Latest()
            case "offset":
                return resetting.Offset(_whole(self.value))
            case "shift":
                sign = -1 if self.value.startswith("-") else 1
                return resetting.Shift(sign * _whole(self.value.lstrip("+-")))
            case "time":
                return resetting.Since(_moment(self.value))
        raise ConfigurationError(_("Say where to go."))

    def places(self) -> dict[tuple[str, int], int]:
        """Return the offset that was shown for each partition. Raises `ConfigurationError`."""
        if not 0 < len(self.to) <= _MOST_TO:
            raise ConfigurationError(_("Say where to go."))
        found = {}
        for one in self.to:
            topic, _colon, rest = one.partition(":")
            number, _colon, offset = rest.partition(":")
            found[topic, _whole(number, 1 << 31)] = _whole(offset)
        return found


class _About:
    """What a request is about: a consumer, one of its partitions, or a worker."""

    def __init__(self, verb: str, row: Worker, topic: str = "", partition: int | None = None) -> None:
        self.verb = verb
        self.row = row
        """The worker; for others one that is not stored, of the consumer."""
        self.topic = topic
        self.partition = partition

    @classmethod
    def of(cls, request: HttpRequest, verb: str) -> _About:
        """Return what an address names. Raises `Http404`."""
        if _VERBS[verb].of_workers:
            pk = request.GET.get("worker", "")
            workers = Worker.objects.using(conf.kafka().dead_letters.database)
            row = heartbeats.living(workers).filter(pk=pk).first() if "\0" not in pk else None
            if row is None:
                raise Http404
            return cls(verb, row)
        try:
            consumer = conf.consumer(request.GET.get("consumer", ""))
            topic = request.GET.get("topic", "")
            partition = _whole(request.GET.get("partition", ""), 1 << 31) if topic else None
        except (UnknownName, ConfigurationError):
            raise Http404 from None
        about = cls(verb, Worker(consumer=consumer.name), topic, partition)
        if topic and not handlers.reads(consumer.name, topic):
            raise Http404
        return about

    @property
    def title(self) -> str:
        """What people call it."""
        if _VERBS[self.verb].of_workers:
            return showing.line(str(self.row), 300)
        place = f" {self.topic}[{self.partition}]" if self.topic else ""
        return showing.line(f"{self.row.consumer}{place}", 600)

    def every_topic(self) -> list[str]:
        """Return the topics that the consumer reads, as Kafka knows them; of those of patterns, what was heard."""
        name = self.row.consumer
        topics, _group = topics_and_group(conf.consumer(name), handlers.topics(name))
        heard = dict.fromkeys(place.topic for one in lag.heard() if one.consumer == name for place in one.partitions)
        return [*topics, *subscriptions.of_patterns(name, heard), *handlers.retry_topics(name)]

    def topics(self, chosen: str) -> list[dict[str, Any]]:
        """Return these for a form."""
        return [{"name": one, "label": showing.topic(one), "chosen": one == chosen} for one in self.every_topic()]

    def planned(self, asked: _Asked) -> Plan:
        """Return what a seek would do. Raises `ConfigurationError`."""
        topic, numbers = (
            (self.topic, [self.partition]) if self.partition is not None else (asked.topic, asked.numbers())
        )
        plan = controls.plan(self.row.consumer, asked.where(), topic=topic, partitions=numbers, timeout=_ANSWERS_WITHIN)
        if len(plan.changes) > _MOST_TO:
            raise ConfigurationError(_("These are more partitions than one request may have; name some of them."))
        return plan

    def carry_out(self, user: Any, asked: _Asked) -> None:
        """Have it done. Raises `ConfigurationError`."""
        who: dict[str, Any] = {"user": user, "reason": asked.reason}
        name = self.row.consumer
        match self.verb:
            case "pause":
                controls.pause(name, topic=self.topic, partition=self.partition, **who)
            case "resume":
                controls.resume(name, topic=self.topic, partition=self.partition, **who)
            case "stop":
                controls.stop_worker(self.row, **who)
            case "close_breaker":
                controls.close_breaker(self.row, **who)
            case "seek":
                places = asked.places()
                if self.partition is not None and set(places) != {(self.topic, self.partition)}:
                    raise ConfigurationError(_("Say where to go."))
                controls.seek(name, resetting.Offsets(places), timeout=_ANSWERS_WITHIN, **who)


def _shown(plan: Plan) -> dict[str, Any]:
    """Return what a page shows of a dry run."""
    changes = plan.changes
    sentence = ngettext(
        "%(count)s partition moves: %(again)s messages are read again, %(skipped)s are skipped.",
        "%(count)s partitions move: %(again)s messages are read again, %(skipped)s are skipped.",
        len(changes),
    )
    says = sentence % {"count": len(changes), "again": plan.again, "skipped": plan.skipped}
    return {
        "says": says if changes else _("It is there already."),
        "rows": [
            {
                "place": showing.topic(f"{move.standing.topic}[{move.standing.partition}]"),
                "start": "–" if move.standing.position is None else str(move.standing.position),
                "to": f"{move.to} ({showing.moment(move.at)})"
                if move.at and timezone.is_aware(move.at)
                else str(move.to),
                "again": str(move.again),
                "skipped": str(move.skipped),
            }
            for move in changes[:_SHOWN]
        ],
        "more": max(0, len(changes) - _SHOWN),
        "notes": [showing.line(move.note, 500) for move in changes[:_SHOWN] if move.note],
        "hidden": [f"{move.standing.topic}:{move.standing.partition}:{move.to}" for move in changes],
    }


def _whole(text: str, below: int = 1 << 63) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20 or int(text) >= below:
        raise ConfigurationError(_("%s is not a whole number from 0.") % repr(text[:40]))
    return int(text)


def _moment(text: str) -> datetime:
    zone = timezone.get_current_timezone()
    try:
        if (day := parse_date(text)) is not None:
            found = datetime(day.year, day.month, day.day, tzinfo=zone)
        elif (at := parse_datetime(text)) is not None:
            found = at if timezone.is_aware(at) else timezone.make_aware(at, zone)
        else:
            raise ValueError
        if found > datetime.now(UTC):
            raise ConfigurationError(_("That is in the future; to skip what is there, go past the last message."))
    except (ValueError, OverflowError):
        raise ConfigurationError(_("%s is no time.") % repr(text[:40])) from None
    return found


@admin.register(Control)
class ControlAdmin(ReadOnly):
    """What was asked of workers, by whom, and how it went."""

    list_display = ("requested_at", "what_shown", "by_shown", "reason_shown", "state_shown", "taken_by_shown",
                    "finished_at", "result_shown")  # fmt: skip
    list_filter = ("verb", "state", ("consumer", admin.AllValuesFieldListFilter), "requested_at")
    fields = ("what_shown", "number", "by_shown", "requested_at", "reason_shown", "state", "expires_at",
              "taken_by_shown", "accepted_at", "finished_at", "result_shown")  # fmt: skip
    readonly_fields = fields
    ordering = ("-id",)
    show_full_result_count = False

    def rows(self) -> QuerySet[Control]:
        """Return all requests."""
        return controls.requests()

    @admin.display(description=gettext_lazy("what"))
    def what_shown(self, control: Control) -> str:
        """Show what is wanted, and of what."""
        return showing.line(str(control), 500)

    @admin.display(description=gettext_lazy("requested by"), ordering="requested_by")
    def by_shown(self, control: Control) -> str:
        """Show who asked."""
        return showing.line(control.requested_by)

    @admin.display(description=gettext_lazy("reason"))
    def reason_shown(self, control: Control) -> str:
        """Show why."""
        return showing.line(control.reason, 500)

    @admin.display(description=gettext_lazy("state"), ordering="state")
    def state_shown(self, control: Control) -> str:
        """Show the state as a badge."""
        return request_badge(control)

    @admin.display(description=gettext_lazy("accepted by"))
    def taken_by_shown(self, control: Control) -> str:
        """Show the worker that took it."""
        return showing.line(control.taken_by_name, 300) or "–"

    @admin.display(description=gettext_lazy("result"))
    def result_shown(self, control: Control) -> str:
        """Show what became of it."""
        return showing.line(control.result, 1000) or "–"
