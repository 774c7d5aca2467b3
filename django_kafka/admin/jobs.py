"""The list of replay jobs, and the page of each: how far it is, what may be done, what became of its letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST

from .. import carriers, conf
from ..dead_letters import audit, jobs, permits
from ..models import Replay, ReplayJob
from ..monitoring import heartbeats
from . import asking, many, refusing, showing, sight
from .badges import badge
from .open_jobs import bar
from .reading import ReadOnly

_ROWS = 50
"""Letters on a page of the report."""
_LOOK_EVERY = 5
"""Seconds between two looks of a browser without JavaScript, where somebody asks for that."""
_STATES = ReplayJob.State


def _pause(job: ReplayJob, request: HttpRequest) -> bool:
    return jobs.pause(job)


def _resume(job: ReplayJob, request: HttpRequest) -> bool:
    return jobs.resume(job)


def _cancel(job: ReplayJob, request: HttpRequest) -> bool:
    return jobs.cancel(job)


def _change_rate(job: ReplayJob, request: HttpRequest) -> bool:
    text = request.POST.get("rate", "").strip().replace(",", ".")
    return jobs.change_rate(job, float(text) if text else None)


_VERBS: dict[str, tuple[Any, Callable[[ReplayJob, HttpRequest], bool], tuple[str, ...], str]] = {
    "pause": (_("Pause"), _pause, (_STATES.RUNNING,), "Paused."),
    "resume": (_("Resume"), _resume, (_STATES.PAUSED,), "Resumed."),
    "cancel": (_("Cancel"), _cancel, (_STATES.RUNNING, _STATES.PAUSED, _STATES.CANCELLING), "Cancelled."),
    "rate": (_("Change the rate"), _change_rate, (_STATES.RUNNING, _STATES.PAUSED), "Changed the rate."),
}
"""What can be done with a job: its button, what does it, the states that it fits, and what the history says."""


@admin.register(ReplayJob)
class ReplayJobAdmin(ReadOnly):
    """Replays of many letters: looked at, paused, resumed, cancelled."""

    list_display = (
        "id", "consumer_shown", "state_shown", "progress_shown", "failed", "behind", "requested_shown",
    )  # fmt: skip
    list_filter = ("state", ("consumer", admin.AllValuesFieldListFilter), "target", "requested_at")
    search_fields = ("consumer", "requested_by_name", "reason", "description")
    show_full_result_count = False

    class Media:
        js = ["lynx_kafka/refresh.js"]

    def rows(self) -> QuerySet[ReplayJob]:
        """Return all jobs."""
        return jobs.all_jobs()

    @admin.display(description=_("consumer"), ordering="consumer")
    def consumer_shown(self, job: ReplayJob) -> str:
        """Show the consumer's name, and below it where the letters go."""
        return showing.quietly(showing.line(job.consumer), str(job.get_target_display()))

    @admin.display(description=_("state"), ordering="state")
    def state_shown(self, job: ReplayJob) -> str:
        """Show the state as a badge."""
        return badge(job.state, job.get_state_display())

    @admin.display(description=_("progress"))
    def progress_shown(self, job: ReplayJob) -> str:
        """Draw how far it is."""
        return bar(job)

    @admin.display(description=_("requested at"), ordering="requested_at")
    def requested_shown(self, job: ReplayJob) -> str:
        """Show when it was asked for, and below it by whom."""
        return showing.quietly(showing.moment(job.requested_at), showing.line(job.requested_by_name))

    def get_urls(self) -> list[Any]:
        """Return the admin's own URLs, and those of what can be done."""
        view, name = self.admin_site.admin_view, "lynx_kafka_replayjob_{}".format
        mine = [path(f"<int:pk>/{verb}/", view(self.verb_view), {"verb": verb}, name=name(verb)) for verb in _VERBS]
        return [*mine, *super().get_urls()]

    def url(self, name: str, *arguments: object) -> str:
        """Return where a page of jobs is."""
        return reverse(f"admin:lynx_kafka_replayjob_{name}", args=arguments, current_app=self.admin_site.name)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one job."""
        job = self.one_of(request, self.rows(), object_id)
        title = str(_("Replay job %(job)s") % {"job": job.pk})
        context = {
            **self.admin_site.each_context(request),
            **asking.page_context(self, title, self.url("changelist")),
            "job": job,
            "badge": badge(job.state, job.get_state_display()),
            "bar": bar(job),
            "why": showing.line(job.state_reason, 500),
            "facts": _facts(job),
            "reason": showing.lines(job.reason),
            "verbs": self._verbs(request, job),
            "refusal": permits.refusal(request.user, permits.Verb.MANAGE_JOBS, job),
            "watching": "watch" in request.GET,
            "unattended": self._unattended(job),
            **self._report(request, job),
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        answer = TemplateResponse(request, "admin/lynx_kafka/job.html", context)
        if "watch" in request.GET and not job.ended:
            answer["Refresh"] = str(_LOOK_EVERY)
        return answer

    def _unattended(self, job: ReplayJob) -> bool:
        going_on = job.state in (_STATES.RUNNING, _STATES.CANCELLING)
        return going_on and not heartbeats.alive(job.consumer)

    def _verbs(self, request: HttpRequest, job: ReplayJob) -> list[dict[str, Any]]:
        return [
            {"name": name, "label": label, "url": self.url(name, job.pk)}
            for name, (label, _do, states, _logged) in _VERBS.items()
            if job.state in states
        ]

    def _report(self, request: HttpRequest, job: ReplayJob) -> dict[str, Any]:
        """Return what became of the letters, from the place that the URL names, and the way to the next ones."""
        outcome = request.GET.get("outcome", "")
        outcome = outcome if outcome in jobs.OUTCOMES else ""
        found = jobs.report(job, outcome or None, after=_place(request.GET.get("after", "")))
        letter = ("topic", "partition", "offset", "consumer")
        columns = ("state", "lane", "result", "executor", "finished_at", *(f"letter__{name}" for name in letter))
        rows = list(found.select_related("letter").only(*columns)[: _ROWS + 1])
        shown, more = rows[:_ROWS], len(rows) > _ROWS
        sights = sight.of_list([each.letter_id for each in shown])
        last = shown[-1] if shown else None
        return {
            "outcome": outcome,
            "outcomes": [
                {"name": one, "label": label, "count": count, "url": f"?{urlencode({'outcome': one})}#report"}
                for one, label, count in _counts(job)
            ],
            "rows": [self._row(each, sights[each.letter_id]) for each in shown],
            "next": "" if last is None or not more else "?" + urlencode(
                {"outcome": outcome, "after": f"{last.state}.{last.lane}.{last.pk}"}
            ),
        }  # fmt: skip

    def _row(self, replay: Replay, seen: sight.Sight) -> dict[str, Any]:
        name = "admin:lynx_kafka_deadletter_change"
        return {
            "url": reverse(name, args=[replay.letter_id], current_app=self.admin_site.name),
            "place": showing.topic(str(replay.letter)),
            "badge": badge(replay.state, replay.get_state_display()),
            "result": showing.first_line(seen.text(replay.result), 300),
            "executor": showing.line(replay.executor),
            "finished_at": replay.finished_at,
        }

    @method_decorator(require_POST)
    def verb_view(self, request: HttpRequest, pk: int, verb: str) -> HttpResponse:
        """Do something with one job."""
        refusing.demand_anywhere(request.user, permits.Verb.MANAGE_JOBS)
        job = self.rows().filter(pk=pk).first()
        if job is None:
            raise Http404
        refusing.demand(request.user, permits.Verb.MANAGE_JOBS, job)
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        self._do(request, job, verb)
        return HttpResponseRedirect(self.url("change", pk))

    def _do(self, request: HttpRequest, job: ReplayJob, verb: str) -> None:
        _label, do, _states, logged = _VERBS[verb]
        with transaction.atomic(using=conf.kafka().dead_letters.database):
            try:
                done = do(job, request)
            except ValueError:
                messages.error(request, _("Write how many letters a second, such as 50 or 0.5; nothing: no limit."))
                return
            if not done:
                messages.warning(request, _("The job was at its end, or had changed: nothing was done."))
                return
            details = {"rate": request.POST.get("rate", "")[:50]} if verb == "rate" else None
            audit.note(request.user, f"{verb} job", [job], details=details)
            many.enter([job], request.user, logged, flag=CHANGE)
        messages.success(request, _("Done: %(verb)s.") % {"verb": _VERBS[verb][0]})
        if verb in ("resume", "cancel"):
            carriers.dispatch(job.consumer)


def _counts(job: ReplayJob) -> list[tuple[str, Any, int]]:
    labels = dict(Replay.State.choices)
    left = {Replay.State.REQUESTED: job.left}
    return [(one, labels[one], left[one] if one in left else getattr(job, one)) for one in jobs.OUTCOMES]


def _place(text: str) -> tuple[str, str, int] | None:
    parts = text.split(".")
    if (
        len(parts) != 3
        or parts[0] not in jobs.OUTCOMES
        or len(parts[1]) != 1
        or parts[1] == "\0"
        or not parts[2].isdecimal()
    ):
        return None
    return parts[0], parts[1], int(parts[2][:18])


def _facts(job: ReplayJob) -> list[tuple[Any, str]]:
    steps = ", ".join(map(str, job.ramp))
    facts = [
        (_("Consumer"), job.consumer),
        (_("Target"), str(job.get_target_display())),
        (_("Topic"), showing.topic(job.to_topic) if job.to_topic else ""),
        (_("Selection"), job.description),
        (_("Letters"), str(job.total)),
        (_("Left out"), str(job.left_out or "")),
        (_("Letters per second, at most"), f"{job.rate:g}" if job.rate else ""),
        (_("Ramp"), steps),
        (_("Step"), str(job.step + 1) if steps else ""),
        (_("Pauses above"), "" if job.failure_ratio is None else f"{100 * job.failure_ratio:g} %"),
        (_("Requested by"), job.requested_by_name),
    ]
    return [(name, showing.line(value, 600)) for name, value in facts if value]
