"""The dashboard: everything at one look, as `kafka_status` has it, with what can be done about it.

Brokers are asked behind the page, which shows what they said last and never waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import PermissionDenied
from django.core.signals import setting_changed
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..controls import requests
from ..dead_letters import permits
from ..dead_letters.failures import storable
from ..models import DeadLetter, Worker
from ..monitoring import heartbeats
from ..monitoring.observer import Observer
from ..monitoring.overview import COUNTED_TO, Consumer, Overview, Partition
from . import asking, charts, refusing, showing
from .badges import badge, request_badge
from .open_jobs import open_jobs
from .reading import ReadOnly
from .sparklines import trendline

EVERY = 5
"""Seconds from one refresh to the next."""
WORST, PAGE = 20, 200
"""Partitions of all consumers, the worst first; those of one consumer on one page."""
_WORKERS = 100
_REQUESTS = 10

_STATES = {
    "not declared": gettext_lazy("not declared"),
    "off": gettext_lazy("off"),
    "paused": gettext_lazy("paused"),
    "waiting": gettext_lazy("waiting"),
    "asking": gettext_lazy("asking"),
    "circuit open": gettext_lazy("circuit open"),
    "circuit probing": gettext_lazy("circuit probing"),
    "stable": gettext_lazy("stable"),
    "empty": gettext_lazy("empty"),
    "running": gettext_lazy("running"),
    "joining": gettext_lazy("joining"),
    "stopping": gettext_lazy("stopping"),
    "stuck": gettext_lazy("stuck"),
    "gone": gettext_lazy("gone"),
}


class _Watch:
    """What this process has seen, so that it knows how lag moves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._observer: Observer | None = None

    def look(self) -> Overview:
        """Look once more."""
        with self._lock:
            if self._observer is None:
                self._observer = Observer()
            return self._observer.look()

    def forget(self, *, setting: str = "KAFKA", **_event: object) -> None:
        """Begin anew."""
        if setting == "KAFKA":
            self._lock, self._observer = threading.Lock(), None


_watch = _Watch()
setting_changed.connect(_watch.forget, dispatch_uid="django_kafka.admin.dashboard")


class Dashboard(ReadOnly):
    """Adds the dashboard to the admin of workers."""

    def get_urls(self) -> list[Any]:
        """Return the admin's own URLs and that of the dashboard."""
        view = self.admin_site.admin_view(self.dashboard_view)
        return [path("dashboard/", view, name="lynx_kafka_dashboard"), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list, with the way to the dashboard."""
        url = reverse("admin:lynx_kafka_dashboard", current_app=self.admin_site.name)
        return super().changelist_view(request, {"dashboard_url": url, **(extra_context or {})})

    def dashboard_view(self, request: HttpRequest) -> HttpResponse:
        """Show everything, or with `fragment` only what is drawn anew."""
        if request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        refusing.demand_anywhere(request.user, permits.Verb.VIEW, Worker)
        request.current_app = self.admin_site.name
        context = _Page(request, self.admin_site.name).context()
        if "fragment" in request.GET:
            return TemplateResponse(request, "admin/lynx_kafka/live.html", context)
        list_url = reverse("admin:lynx_kafka_worker_changelist", current_app=self.admin_site.name)
        whole = {
            **self.admin_site.each_context(request),
            **asking.page_context(self, _("Dashboard"), list_url),
            **context,
        }
        return TemplateResponse(request, "admin/lynx_kafka/dashboard.html", whole)


class _Page:
    """What one person sees of everything."""

    def __init__(self, request: HttpRequest, site: str) -> None:
        self.site = site
        self.user = request.user
        self.only = storable(request.GET.get("consumer", ""))
        self.page = _number(request.GET.get("page", ""))
        self.seen = permits.consumers_of(self.user, permits.Verb.VIEW, Worker)
        self._refusals: dict[str, str] = {}

    def context(self) -> dict[str, Any]:
        """Return what the templates need."""
        overview = self._permitted(_watch.look())
        partitions = [one for consumer in overview.consumers for one in consumer.partitions]
        shown, pages = self._some(partitions)
        workers = sorted(overview.workers or (), key=_trouble, reverse=True)
        return {
            "every": EVERY,
            "at": timezone.now(),
            "only": showing.line(self.only) if self.only else "",
            "url": self._url("dashboard"),
            "overview": overview,
            "problems": [showing.line(one, 500) for one in _problems(overview)],
            "consumers": [self._consumer(one) for one in overview.consumers],
            "charts": [one for one in map(self._charts, overview.consumers) if one is not None],
            "partitions": [self._partition(one) for one in shown],
            "more_partitions": len(partitions) - len(shown),
            "pages": pages,
            "workers": [self._worker(one, overview) for one in workers[:_WORKERS]],
            "more_workers": max(0, len(workers) - _WORKERS),
            **open_jobs(self.user, self.only, self.site),
            "requests": self._requests(),
            "requests_url": self._url("control_changelist"),
        }

    def _permitted(self, overview: Overview) -> Overview:
        def may(name: str) -> bool:
            return (self.seen is None or name in self.seen) and (not self.only or name == self.only)

        consumers = tuple(one for one in overview.consumers if may(one.name))
        clusters = {one.cluster for one in consumers}
        return replace(
            overview,
            consumers=consumers,
            clusters=tuple(one for one in overview.clusters if one.name in clusters),
            workers=None if overview.workers is None else tuple(one for one in overview.workers if may(one.consumer)),
        )

    def _some(self, partitions: Sequence[Partition]) -> tuple[Sequence[Partition], list[dict[str, Any]]]:
        """Return those to show: of one consumer a page, else the worst; and the way to other pages."""
        if not self.only:
            return sorted(partitions, key=_badness, reverse=True)[:WORST], []
        count = -(-len(partitions) // PAGE)
        page = min(self.page, max(0, count - 1))
        pages = [
            {
                "number": number + 1,
                "url": f"{self._url('dashboard')}?{urlencode({'consumer': self.only, 'page': number})}",
                "current": number == page,
            }
            for number in range(count if count > 1 else 0)
        ]
        return partitions[page * PAGE : (page + 1) * PAGE], pages

    def _url(self, name: str, *arguments: object, **asked: object) -> str:
        url = reverse(f"admin:lynx_kafka_{name}", args=arguments, current_app=self.site)
        return f"{url}?{urlencode(asked)}" if asked else url

    def _refusal(self, consumer: str) -> str:
        """Return why the person may not control a consumer."""
        if consumer not in self._refusals:
            row = Worker(consumer=consumer)
            self._refusals[consumer] = permits.refusal(self.user, permits.Verb.CONTROL_WORKERS, row)
        return self._refusals[consumer]

    def _verbs(self, consumer: str, *verbs: tuple[str, Any, dict[str, object]]) -> dict[str, Any]:
        refusal = self._refusal(consumer)
        return {
            "refusal": refusal,
            "verbs": [
                {"label": label, "url": "" if refusal else self._url("control", verb, consumer=consumer, **asked)}
                for verb, label, asked in verbs
            ],
        }

    def _consumer(self, one: Consumer) -> dict[str, Any]:
        window = one.figures.windows["1m"] if one.figures is not None else None
        state = one.state or "–"
        pause: tuple[str, Any, dict[str, object]] = ("pause", _("Pause"), {})
        if one.paused:
            pause = ("resume", _("Resume"), {})
        letters = None if one.dead_letters is None else one.dead_letters[DeadLetter.State.OPEN]
        verbs: tuple[tuple[str, Any, dict[str, object]], ...] = ()
        if one.enabled:
            verbs = (pause, ("seek", _("Seek"), {}))
        return {
            "name": showing.line(one.name),
            "url": self._url("dashboard", consumer=one.name),
            "group": showing.line(one.group_id),
            "state": badge(f"state-{state.replace(' ', '-')}", _STATES.get(state, state)),
            "paused": showing.line(one.paused, 600),
            "lag": _count(one.group.messages if one.group else None),
            "trend": _trend(one),
            "growing": one.trend is not None and one.trend.direction == "growing",
            "oldest": _seconds(one.group.seconds if one.group else None),
            "produced": _rate(one.trend.produced if one.trend else None),
            "handled": _rate(window.handled_per_second if window else None),
            "errors": _count(sum(window.errors.values()) if window else None),
            "failing": bool(window and window.errors),
            "age": _seconds(window.age.p95 if window else None),
            "letters": "–" if letters is None else f"{_count(letters)}{'+' if letters >= COUNTED_TO else ''}",
            "letters_url": self._letters_url(one.name),
            "workers": _count(one.workers),
            "deserted": one.enabled and one.workers == 0,
            "line": trendline(one.history),
            **self._verbs(one.name, *verbs),
        }

    def _letters_url(self, consumer: str) -> str:
        if not permits.may(self.user, permits.Verb.VIEW, DeadLetter(consumer=consumer)):
            return ""
        return self._url("deadletter_changelist", consumer=consumer, state=DeadLetter.State.OPEN.value)

    def _charts(self, one: Consumer) -> dict[str, Any] | None:
        if one.figures is None:
            return None
        return {"name": showing.line(one.name), "figures": charts.of_metrics(one.figures)}

    def _partition(self, one: Partition) -> dict[str, Any]:
        known = one.known
        place: dict[str, object] = {"topic": known.topic, "partition": known.partition}
        pause = ("resume", _("Resume"), place) if one.paused else ("pause", _("Pause"), place)
        return {
            "name": showing.topic(f"{known.topic}[{known.partition}]"),
            "consumer": showing.line(one.consumer),
            "position": "–" if known.position is None else str(known.position),
            "end": str(known.log.high),
            "lag": _count(known.lag),
            "oldest": _seconds(known.seconds),
            "in_flight": _count(one.in_flight),
            "worker": showing.line(one.worker or "–"),
            "waits_for": showing.line(one.waits_for, 300),
            **self._verbs(one.consumer, pause, ("seek", _("Seek"), place)),
        }

    def _worker(self, one: Any, overview: Overview) -> dict[str, Any]:
        alive = heartbeats.is_alive(one)
        state = one.state if alive else "gone"
        verbs: list[tuple[str, Any, dict[str, object]]] = []
        if alive:
            verbs.append(("stop", _("Stop"), {"worker": one.pk}))
        if alive and one.circuit != Worker.Circuit.CLOSED:
            verbs.append(("close_breaker", _("Close the circuit"), {"worker": one.pk}))
        return {
            "name": showing.line(one.address),
            "url": self._url("worker_change", one.pk),
            "consumer": showing.line(one.consumer),
            "state": badge(f"state-{state}", _STATES.get(state, showing.line(state))),
            "seen_at": showing.moment(one.seen_at),
            "partitions": f"{one.partitions} ({_('%d waiting') % one.waiting})" if one.waiting else str(one.partitions),
            "in_flight": _count(one.in_flight),
            "handled": _rate(overview.paces.get(one.pk)),
            "circuit": badge(
                f"circuit-{one.circuit}",
                _("open, letters are written") if one.circuit_writing else one.get_circuit_display(),
            ),
            "says": showing.line(next(filter(None, (one.not_live, one.not_ready, one.circuit_reason)), ""), 300),
            **self._verbs(one.consumer, *verbs),
        }

    def _requests(self) -> list[dict[str, Any]]:
        rows = permits.allowed(self.user, permits.Verb.VIEW, requests(), model=Worker)
        return [request_shown(one) for one in (rows.filter(consumer=self.only) if self.only else rows)[:_REQUESTS]]


def request_shown(one: Any) -> dict[str, Any]:
    """Return what a page shows of one of `controls.requests()`."""
    return {
        "at": showing.moment(one.requested_at),
        "what": showing.line(str(one), 400),
        "by": showing.line(one.requested_by),
        "reason": showing.line(one.reason, 500),
        "state": request_badge(one),
        "taken_by": showing.line(one.taken_by_name, 300),
        "result": showing.line(one.result, 500),
    }


def _problems(overview: Overview) -> Iterator[str]:
    if overview.problem:
        yield overview.problem
    if not overview.heartbeats:
        yield _('Workers are not known: KAFKA["heartbeats"] is switched off.')
    for cluster in overview.clusters:
        if cluster.reason:
            yield _("cluster %(name)s: %(reason)s") % {"name": cluster.name, "reason": cluster.reason}
        elif cluster.asked_at is None:
            yield _("cluster %s is being asked; the next refresh shows its answer.") % cluster.name
    for one in overview.consumers:
        if one.group is not None and one.group.missing:
            missing = ", ".join(one.group.missing)
            yield _("%(name)s: topics that are not there: %(topics)s") % {"name": one.name, "topics": missing}
        if one.group is not None and one.group.reason:
            yield f"{one.name}: {one.group.reason}"


def _trend(one: Consumer) -> str:
    trend = one.trend
    if trend is None or trend.direction is None:
        return "–"
    match trend.direction:
        case "growing":
            return _("↑ grows by %s/s") % _rate(trend.change)
        case "shrinking" if trend.until_empty is not None:
            return _("↓ empty in %s") % charts.duration(trend.until_empty)
        case _:
            return _("→ steady")


def _badness(one: Partition) -> tuple[bool, bool, int, float]:
    return bool(one.waits_for), one.known.lag is None, one.known.lag or 0, one.known.seconds or 0.0


def _trouble(worker: Any) -> tuple[bool, bool, int]:
    alive = heartbeats.is_alive(worker)
    return alive and bool(worker.not_live or worker.not_ready), not alive, worker.lag or 0


def _count(number: int | None) -> str:
    return "–" if number is None else charts.rounded(number)


def _rate(per_second: float | None) -> str:
    return "–" if per_second is None else charts.rounded(per_second)


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else charts.duration(seconds)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
