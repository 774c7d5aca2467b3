"""Closing the circuits of workers in the admin: asked on a page of its own, done by the workers themselves."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import F, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .. import conf
from ..dead_letters import permits
from ..models import Worker
from ..monitoring import heartbeats
from . import asking, refusing, showing
from .badges import badge
from .reading import ReadOnly

_VERB = {
    "label": _("Close the circuit"),
    "hints": (
        _("Handling goes on at once, as if nothing had failed. What fails then becomes a dead letter again."),
        _("When failures surge once more, the circuit opens once more."),
        _("Each worker does so at its next heartbeat."),
    ),
}


class Closing(ReadOnly):
    """Shows the circuits of workers, and asks workers to close them."""

    actions = ["close_circuits"]

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the worker, and why the person may not close its circuit."""
        worker = super().get_object(request, object_id, from_field)
        if worker is not None:
            worker.refusal = permits.refusal(request.user, permits.Verb.CONTROL_WORKERS, worker)
        return worker

    def get_urls(self) -> list[Any]:
        """Return the admin's own URLs and that of closing one circuit."""
        view = self.admin_site.admin_view(self.close_view)
        return [path("<str:pk>/close-circuit/", view, name="lynx_kafka_worker_close"), *super().get_urls()]

    @admin.display(description=_("circuit"), ordering="circuit")
    def circuit_shown(self, worker: Worker) -> str:
        """Show where the circuit stands as a badge."""
        label = _("open, letters are written") if worker.circuit_writing else worker.get_circuit_display()
        return badge(f"circuit-{worker.circuit}", label)

    @admin.display(description=_("why it opened"))
    def circuit_reason_shown(self, worker: Worker) -> str:
        """Show why the circuit opened."""
        return showing.line(worker.circuit_reason, 500)

    @admin.display(description=_("what can be done"))
    def circuit_verbs(self, worker: Any) -> str:
        """Show the way to closing the circuit, or that it was asked for."""
        if not _closable(Worker.objects.using(_database()).filter(pk=worker.pk)).exists():
            asked = worker.circuit != Worker.Circuit.CLOSED and worker.circuit_close_asked == worker.circuit_episode
            return str(_("It was asked to close.")) if asked else "–"
        if worker.refusal:
            return format_html(
                '<span class="button lynx-kafka-refused" role="button" tabindex="0" aria-disabled="true">{}</span>'
                '<p class="lynx-kafka-refusal">{}</p>', _VERB["label"], worker.refusal,
            )  # fmt: skip
        url = reverse("admin:lynx_kafka_worker_close", args=[worker.pk], current_app=self.admin_site.name)
        return format_html('<a class="button" href="{}" role="button">{}</a>', url, _VERB["label"])

    @admin.action(description=_("Close the circuits"))
    def close_circuits(self, request: HttpRequest, chosen: QuerySet[Worker]) -> HttpResponse | None:
        """Ask about the workers that were selected in the list, or do it."""
        refusing.demand_anywhere(request.user, permits.Verb.CONTROL_WORKERS, Worker)
        chosen = permits.allowed(request.user, permits.Verb.CONTROL_WORKERS, chosen)
        if "confirmed" in request.POST:
            self._close(request, chosen)
            return None
        hidden = asking.selected(request, "close_circuits")
        return self._ask(request, chosen, back=request.get_full_path(), hidden=hidden)

    close_circuits.permit = permits.Verb.CONTROL_WORKERS  # type: ignore[attr-defined]

    def close_view(self, request: HttpRequest, pk: str) -> HttpResponse:
        """Ask about one worker, or do it."""
        refusing.demand_anywhere(request.user, permits.Verb.CONTROL_WORKERS, Worker)
        chosen = Worker.objects.using(_database()).filter(pk=pk)
        if not self.may_be_id(pk) or (worker := chosen.first()) is None:
            raise Http404
        refusing.demand(request.user, permits.Verb.CONTROL_WORKERS, worker)
        back = reverse("admin:lynx_kafka_worker_change", args=[pk], current_app=self.admin_site.name)
        if request.method == "POST":
            self._close(request, chosen)
            return HttpResponseRedirect(back)
        return self._ask(request, chosen, back=back, hidden=[])

    def _ask(
        self, request: HttpRequest, chosen: QuerySet[Worker], *, back: str, hidden: list[tuple[str, str]]
    ) -> HttpResponse:
        fitting = _closable(chosen)
        fits, count = fitting.count(), chosen.count()
        question = ngettext("Close the circuit of %d worker?", "Close the circuits of %d workers?", fits)
        list_url = reverse("admin:lynx_kafka_worker_changelist", current_app=self.admin_site.name)
        context = {
            **asking.page_context(self, str(_VERB["label"]), list_url),
            "verb": _VERB,
            "question": question % fits,
            "heading": self.opts.verbose_name_plural,
            "left_alone": _left_alone(count - fits),
            "back": back,
        }
        first = [showing.line(f"{each}: {each.circuit_reason}", 300) for each in fitting[: asking.SHOWN]]
        return asking.ask(self, request, context, fits=fits, first=first, hidden=hidden)

    def _close(self, request: HttpRequest, chosen: QuerySet[Worker]) -> None:
        fitting = list(_closable(chosen))
        with transaction.atomic(using=_database()):
            asked = heartbeats.ask_to_close(
                Worker.objects.using(_database()).filter(pk__in=[worker.pk for worker in fitting])
            )
            asking.enter(fitting, Worker, request.user, "Asked to close its circuit.", verb="close circuit")
        if asked:
            sentence = ngettext(
                "%d worker was asked to close its circuit; it does so at its next heartbeat.",
                "%d workers were asked to close their circuits; each does so at its next heartbeat.",
                asked,
            )
            messages.success(request, sentence % asked)
        if left := _left_alone(chosen.count() - asked):
            messages.warning(request, left)


def _database() -> str:
    return conf.kafka().dead_letters.database


def _closable(workers: QuerySet[Worker]) -> QuerySet[Worker]:
    """Return those that live, whose circuit is not closed, and that were not asked to close it."""
    waiting = workers.filter(circuit_close_asked=F("circuit_episode")).values("pk")
    return heartbeats.living(workers).exclude(circuit=Worker.Circuit.CLOSED).exclude(pk__in=waiting)


def _left_alone(count: int) -> str:
    sentence = ngettext(
        "%d worker was left alone: its circuit is closed or about to close, or it was not heard of lately.",
        "%d workers were left alone: their circuits are closed or about to close, or they were not heard of lately.",
        count,
    )
    return sentence % count if count else ""
