"""The lists of replays and workers."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..dead_letters import replaying
from ..models import DeadLetter, Replay, Worker
from ..monitoring import heartbeats
from . import charts, claims, showing, sight
from .badges import badge
from .closing import Closing
from .controls import Controlling
from .dashboard import Dashboard
from .filters import ConsumerFilter
from .lists import Bounded, names_with
from .reading import ReadOnly


@admin.register(Replay)
class ReplayAdmin(Bounded, ReadOnly):
    """What was asked for, by whom, and how it went."""

    list_display = (
        "id",
        "letter_shown",
        "target",
        "state_shown",
        "requested",
        "carried_out",
        "result_shown",
    )
    consumer_field = "letter__consumer"
    list_filter = ("state", "target", ConsumerFilter, "requested_at")
    search_fields = ("letter__topic", "requested_by_name")  # see get_search_results
    search_help_text = _("Part of a topic’s name; where no topic has it, part of the name of who asked")
    fields = (
        "letter_shown",
        "target",
        "to_topic_shown",
        "edited",
        "state",
        "requested_by_shown",
        "requested_at",
        "executor_shown",
        "finished_at",
        "result_whole",
        "page_shown",
    )
    readonly_fields = fields

    def rows(self) -> QuerySet[Replay]:
        """Return replays with the coordinates of their letters, but not with their payloads."""
        whole = {
            "id",
            "letter",
            "target",
            "to_topic",
            "edited",
            "state",
            "requested_by_name",
            "requested_at",
            "executor",
            "finished_at",
            "result",
        }
        place = ("topic", "partition", "offset", "consumer")
        return replaying.replays().select_related("letter").only(*whole, *(f"letter__{each}" for each in place))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Replay], search_term: str
    ) -> tuple[QuerySet[Replay], bool]:
        """Find names of topics, else of people; no results, which may tell what is masked to who guesses it."""
        term = search_term.strip()
        if not term:
            return queryset, False
        # One after the other: to look for both at once reads the letter of each replay.
        if topics := names_with(term, DeadLetter, "topic", conf.kafka().dead_letters.database):
            return queryset.filter(letter__topic__in=topics), False
        return queryset.filter(requested_by_name__icontains=term), False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Return the list, and how much may be seen of the letters that are on its page."""
        found = super().get_changelist_instance(request)
        shown = list(found.result_list)
        sights = sight.of_list({one.letter_id for one in shown})
        for one in shown:
            one.sight = sights[one.letter_id]
        found.result_list = shown
        return found

    @admin.display(description=_("dead letter"))
    def letter_shown(self, replay: Replay) -> str:
        """Show the letter as a link."""
        url = reverse("admin:lynx_kafka_deadletter_change", args=[replay.letter_id], current_app=self.admin_site.name)
        return format_html('<a href="{}">{}</a>', url, showing.line(str(replay.letter), 300))

    @admin.display(description=_("state"), ordering="state")
    def state_shown(self, replay: Replay) -> str:
        """Show the state as a badge."""
        return badge(replay.state, replay.get_state_display())

    @admin.display(description=_("to topic"), empty_value="–")
    def to_topic_shown(self, replay: Replay) -> str | None:
        """Show the topic that somebody named."""
        return showing.topic(replay.to_topic) or None

    @admin.display(description=_("details"))
    def page_shown(self, replay: Replay) -> str:
        """Show the way to what was altered for it, and to what a dry run saw."""
        name, place = "admin:lynx_kafka_deadletter_replay_of", [replay.letter_id, replay.pk]
        url = reverse(name, args=place, current_app=self.admin_site.name)
        return format_html('<a href="{}">{}</a>', url, _("Replay"))

    @admin.display(description=_("requested by"), ordering="requested_by_name")
    def requested_by_shown(self, replay: Replay) -> str:
        """Show who asked."""
        return showing.line(replay.requested_by_name)

    @admin.display(description=_("requested"), ordering="requested_at")
    def requested(self, replay: Replay) -> str:
        """Show how long ago it was asked for, and by whom."""
        return showing.quietly(showing.ago(replay.requested_at), showing.line(replay.requested_by_name, 40))

    @admin.display(description=_("carried out"), ordering="finished_at", empty_value="–")
    def carried_out(self, replay: Replay) -> str | None:
        """Show how long ago it was at its end, and who carried it out."""
        at = "" if replay.finished_at is None else showing.ago(replay.finished_at)
        return showing.quietly(at, showing.line(replay.executor, 40)) if at or replay.executor else None

    @admin.display(description=_("carried out by"))
    def executor_shown(self, replay: Replay) -> str:
        """Show the process that carried it out."""
        return showing.line(replay.executor)

    @admin.display(description=_("result"))
    def result_shown(self, replay: Any) -> str:
        """Show the first line of the result."""
        return showing.first_line(replay.sight.text(replay.result))

    @admin.display(description=_("result"))
    def result_whole(self, replay: Replay) -> str:
        """Show the result."""
        return showing.lines(sight.of_list([replay.letter_id])[replay.letter_id].text(replay.result)[:10_000])


@admin.register(Worker)
class WorkerAdmin(Dashboard, Controlling, Closing):
    """Which workers were heard of, and how they are."""

    list_display = (
        "process_shown",
        "is_alive",
        "seen",
        "lag",
        "handled",
        "dead_lettered",
        "waiting_shown",
        "hangs_shown",
        "circuit_shown",
    )
    list_filter = (("consumer", admin.AllValuesFieldListFilter), "circuit")
    fields = (
        "consumer_shown",
        "cluster",
        "group_id",
        "host_shown",
        "pid",
        "below_shown",
        "version_shown",
        "started_at",
        "seen_at",
        "is_alive",
        "state",
        "not_live_shown",
        "not_ready_shown",
        "memory_shown",
        "in_flight",
        "lag",
        "last_error_shown",
        "handled",
        "dead_lettered",
        "waiting_shown",
        "waits_for_shown",
        "hangs_shown",
        "circuit_shown",
        "circuit_opened_at",
        "circuit_reason_shown",
        "circuit_verbs",
        "claims_shown",
    )
    readonly_fields = fields

    def rows(self) -> QuerySet[Worker]:
        """Return all workers, from the database that has the dead letters."""
        return heartbeats.with_clock(Worker.objects.using(conf.kafka().dead_letters.database))

    def get_fields(self, request: HttpRequest, obj: Worker | None = None) -> Any:
        """Return what the page shows: what says something, and claims for those who may look at them."""
        fields = super().get_fields(request, obj)
        if obj is None:
            return fields
        hidden = set() if claims.may_view(request.user, obj) else {"claims_shown"}
        return [one for one in fields if one not in hidden and self._says(str(one), obj) not in (None, "", "–")]

    def _says(self, field: str, worker: Worker) -> Any:
        show = getattr(self, field, None)
        return getattr(worker, field) if show is None else show(worker)

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Worker | None = None,
    ) -> HttpResponse:
        """Show the page, with what the worker did in its last minutes."""
        context["figures"] = None if obj is None else charts.of(obj)
        return super().render_change_form(request, context, add, change, form_url, obj)

    @admin.display(description=_("claims"))
    def claims_shown(self, worker: Worker) -> str:
        """Show the way to the claims of its group."""
        return claims.link_of(worker, self.admin_site.name)

    @admin.display(description=_("consumer"), ordering="consumer")
    def consumer_shown(self, worker: Worker) -> str:
        """Show the consumer's name."""
        return showing.line(worker.consumer)

    @admin.display(description=_("worker"), ordering="consumer")
    def process_shown(self, worker: Worker) -> str:
        """Show the consumer, the machine, the process, and which process of which supervisor it is."""
        return showing.quietly(showing.line(worker.consumer), showing.line(worker.address))

    @admin.display(description=_("last seen"), ordering="seen_at")
    def seen(self, worker: Worker) -> str:
        """Show how long ago it was heard of."""
        return showing.ago(worker.seen_at)

    @admin.display(description=_("host"))
    def host_shown(self, worker: Worker) -> str:
        """Show the machine."""
        return showing.line(worker.host)

    @admin.display(description=_("supervisor"), empty_value="–")
    def below_shown(self, worker: Worker) -> str | None:
        """Show the process that started it, and which of that one's processes it is."""
        return None if worker.supervisor is None else f"{worker.supervisor} / {worker.number}"

    @admin.display(description=_("version"))
    def version_shown(self, worker: Worker) -> str:
        """Show the version of this package that it runs."""
        return showing.line(worker.version)

    @admin.display(description=_("waiting partitions"))
    def waiting_shown(self, worker: Worker) -> str:
        """Show how many of its partitions wait for an outage to end, or for a place behind a held key."""
        return f"{worker.waiting}/{worker.partitions}"

    @admin.display(description=_("waits for"))
    def waits_for_shown(self, worker: Worker) -> str:
        """Show what the first of these waits for."""
        return showing.line(worker.waits_for, 300)

    @admin.display(description=_("not alive because"))
    def not_live_shown(self, worker: Worker) -> str:
        """Show why only a restart helps it."""
        return showing.line(worker.not_live, 500)

    @admin.display(description=_("not ready because"))
    def not_ready_shown(self, worker: Worker) -> str:
        """Show why it does not do its work now."""
        return showing.line(worker.not_ready, 500)

    @admin.display(description=_("memory"))
    def memory_shown(self, worker: Worker) -> str | None:
        """Show how much of its process is in memory."""
        return None if worker.memory is None else filesizeformat(worker.memory)

    @admin.display(description=_("last error"))
    def last_error_shown(self, worker: Worker) -> str:
        """Show the type of the error that a message met last, and which message."""
        return showing.line(worker.last_error, 500)

    @admin.display(description=_("past their time limit"))
    def hangs_shown(self, worker: Worker) -> str:
        """Show which handlers run although their time is over, and on what."""
        return showing.lines("\n".join(_hanging(one) for one in worker.hangs))

    @admin.display(description=_("alive"), boolean=True)
    def is_alive(self, worker: Any) -> bool:
        """Tell whether it was heard of lately."""
        return heartbeats.is_alive(worker)


def _hanging(one: dict[str, Any]) -> str:
    place = f"{one['topic']}[{one['partition']}]@{one['offset']}"
    sentence = _("%(place)s in %(handler)s for %(seconds)s s, limit %(limit)s s")
    return sentence % {"place": place, "handler": one["handler"], "seconds": one["seconds"], "limit": one["limit"]}
