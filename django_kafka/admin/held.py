"""The list of held keys, and the ways to their end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.db.models import Count, F, OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..dead_letters import holds, replaying
from ..models import DeadLetter, Hold
from . import showing, sight
from .confirming import Confirming
from .lists import Bounded, NamesFilter
from .verbs import VERBS, Verb

_LABELS = {
    "replay": _("Release: replay the letters that hold these keys"),
    "discard": _("Discard the letters that hold these keys, and release what is parked"),
}


def _action(verb: Verb) -> Callable[..., HttpResponse | None]:
    @admin.action(description=_LABELS[verb.name])
    def action(admin: HoldAdmin, request: HttpRequest, chosen: QuerySet[Hold]) -> HttpResponse | None:
        return admin.action_view(request, verb, holds.heads(chosen))

    action.__name__ = verb.name
    action.permit = verb.permit  # type: ignore[attr-defined]
    return action


@admin.register(Hold)
class HoldAdmin(Bounded, Confirming):
    """Keys whose later messages wait behind a dead letter: to be released or given up by that letter."""

    actions = [_action(verb) for verb in VERBS if verb.name in _LABELS]
    list_display = ("whose_shown", "key_shown", "parked_shown", "held_since", "head_shown")
    list_display_links = None
    list_filter = (("consumer", NamesFilter), ("topic", NamesFilter))
    search_fields = ("topic", "consumer")
    fields = ("place_shown", "key_shown", "parked_shown", "since", "head_shown", "consumer_shown", "group_shown")
    readonly_fields = fields

    def page_context(self, title: str) -> dict[str, Any]:
        """Return what pages in between need, with the way back to this list."""
        back = reverse("admin:lynx_kafka_hold_changelist", current_app=self.admin_site.name)
        return {**super().page_context(title), "list_url": back}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Hold]:
        """Return the held keys that the person may look at, and whether they may see payloads of each."""
        found: QuerySet[Hold] = super().get_queryset(request)
        return found.annotate(payload=sight.may_view_payload(request.user))

    def rows(self) -> QuerySet[Hold]:
        """Return held keys with the number of messages that wait, and the letter they wait for."""
        first = replaying.letters().filter(hold=OuterRef("pk"), state=DeadLetter.State.OPEN).order_by("id")
        return Hold.objects.using(conf.kafka().dead_letters.database).annotate(
            parked=Count("letters", filter=Q(letters__state=DeadLetter.State.PARKED)),
            head=Subquery(first.values("pk")[:1]),
            head_offset=Subquery(first.values("offset")[:1]),
        )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Hold], search_term: str
    ) -> tuple[QuerySet[Hold], bool]:
        """Find parts of names, and keys by all of their bytes."""
        term = search_term.strip()
        if not term:
            return queryset, False
        names = Q(topic__icontains=term) | Q(consumer__icontains=term)
        return queryset.filter(names | Q(key=term.encode("utf-8", "replace"), payload=True)), False

    @admin.display(description=_("partition"), ordering="topic")
    def place_shown(self, hold: Hold) -> str:
        """Show topic[partition]."""
        return showing.topic(f"{hold.topic}[{hold.partition}]")

    @admin.display(description=_("partition"), ordering="topic")
    def whose_shown(self, hold: Hold) -> str:
        """Show topic[partition], and below it the consumer."""
        return showing.quietly(self.place_shown(hold), showing.line(hold.consumer))

    @admin.display(description=_("held since"), ordering="since")
    def held_since(self, hold: Hold) -> str:
        """Show for how long."""
        return showing.ago(hold.since)

    @admin.display(description=_("key"))
    def key_shown(self, hold: Any) -> str | None:
        """Show the beginning of the key."""
        return sight.key_in_list(bytes(hold.key)[: sight.KEY_BYTES + 1], hold.payload)

    @admin.display(description=_("parked messages"), ordering=F("parked"))
    def parked_shown(self, hold: Any) -> int:
        """Show how many messages wait."""
        return int(hold.parked)

    @admin.display(description=_("waits for"))
    def head_shown(self, hold: Any) -> str:
        """Show the letter that holds the key, as a link."""
        if hold.head is None:
            return "–"
        place = showing.topic(f"{hold.topic}[{hold.partition}]@{hold.head_offset}")
        return format_html('<a href="{}">{}</a>', self.url("change", hold.head), place)

    @admin.display(description=_("consumer"), ordering="consumer")
    def consumer_shown(self, hold: Hold) -> str:
        """Show the consumer's name."""
        return showing.line(hold.consumer)

    @admin.display(description=_("group"))
    def group_shown(self, hold: Hold) -> str:
        """Show the consumer group."""
        return showing.line(hold.group_id)
