"""The list of dead letters, the page of each, and the way to what may be done with them."""

from __future__ import annotations

import re
from typing import Any

from django.contrib import admin, messages
from django.db.models import BinaryField, OuterRef, Q, QuerySet, Subquery, TextField
from django.db.models.functions import Substr
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET

from ..dead_letters import audit, decoding, masking, permits, replaying, searching
from ..envelopes.patience import DOWNLOAD, patient
from ..exceptions import KafkaError
from ..models import DeadLetter, FailureGroup, Replay
from ..monitoring import heartbeats
from . import refusing, showing, sight, taking_out
from .badges import badge
from .filters import AttemptsFilter, CategoryFilter, GroupFilter, KeyFilter, ReplayFilter, StateFilter, TraceFilter
from .lists import Bounded, NamesFilter
from .neighbours import neighbours_of
from .page import letters_with_sizes, page_of
from .reports import Reports
from .verbs import VERBS

_ERROR_CHARACTERS = 400
_TAKEN = 50
"""Letters whose words are taken before a search, where they still wait for that."""
_COUNTED_TO = 1000
"""Letters that are counted of those that still wait."""
_COORDINATES = re.compile(
    r"(?P<topic>[a-zA-Z0-9._-]{1,249})\[(?P<partition>\d{1,9})\]"
    r"(?:@(?P<offset>\d{1,18})(?:-(?P<until>\d{1,18}))?)?"
)


@admin.register(DeadLetter)
class DeadLetterAdmin(Bounded, Reports):
    """Dead letters: to be read, replayed, discarded and opened again."""

    list_display = (
        "coordinates",
        "key_shown",
        "error_shown",
        "state_shown",
        "attempts",
        "last_failed",
    )
    list_filter = (
        StateFilter,
        ReplayFilter,
        GroupFilter,
        KeyFilter,
        TraceFilter,
        ("consumer", NamesFilter),
        ("topic", NamesFilter),
        ("error_type", NamesFilter),
        ("category", CategoryFilter),
        ("release", NamesFilter),
        AttemptsFilter,
        ("last_failed_at", admin.DateFieldListFilter),
    )
    actions = [*Reports.actions, *taking_out.ACTIONS]
    sortable_by = ("last_failed_at",)
    search_fields = ("words",)  # see get_search_results
    search_help_text = _(
        "Words of key, headers, error and value, or their beginnings. Words in quotes follow each other, as do those "
        "of an address, or of field:value. Also: topic[partition]@offset, and …@from-to."
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetter]:
        """Return the letters that the person may look at, and whether they may see their payloads."""
        found: QuerySet[DeadLetter] = super().get_queryset(request)
        return found.annotate(payload=sight.may_view_payload(request.user))

    def rows(self) -> QuerySet[DeadLetter]:
        """Return letters without what makes them large, and with the state of their latest replay."""
        real = replaying.replays().filter(letter=OuterRef("pk")).exclude(target=Replay.Target.DRY_RUN)
        latest = real.order_by("-id").values("state")[:1]
        return (
            replaying.letters()
            .defer("key", "value", "stored_headers", "traceback", "error_message")
            .annotate(
                key_start=Substr("key", 1, sight.KEY_BYTES + 1, output_field=BinaryField()),
                error_start=Substr("error_message", 1, _ERROR_CHARACTERS, output_field=TextField()),
                replay_state=Subquery(latest),
            )
        )

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Return the list, and how much may be seen of what is on its page."""
        found = super().get_changelist_instance(request)
        shown = list(found.result_list)
        sights = sight.of_list([one.pk for one in shown])
        for one in shown:
            one.sight = sights[one.pk]
        found.result_list = shown
        return found

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[DeadLetter], search_term: str
    ) -> tuple[QuerySet[DeadLetter], bool]:
        """Find coordinates, and words; who may see no payload finds by words only what masking leaves to everybody."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if place := _COORDINATES.fullmatch(term):
            given = {name: value for name, value in place.groupdict().items() if value is not None}
            if (until := given.pop("until", None)) is not None:
                given |= {"offset__gte": given.pop("offset"), "offset__lte": until}
            return queryset.filter(**given), False
        # Where no worker does it, as in a project that is being written, the latest are found all the same.
        if searching.catch_up(_TAKEN) == _TAKEN:
            _say_what_waits(request)
        seen = permits.consumers_of(request.user, permits.Verb.VIEW_PAYLOAD)
        if seen is None:
            return queryset.filter(searching.condition(term)), False
        # What is not shown is not found either: a search that guesses would tell it.
        if masking.masking().active and searching.searched(term):
            return queryset.filter(searching.condition(term, seen)), False
        names = Q(topic=term) | Q(consumer=term) | Q(error_type=term)
        return queryset.filter(searching.condition(term) & permits.within(seen) | names), False

    @admin.display(description=_("message"), ordering="topic")
    def coordinates(self, letter: DeadLetter) -> str:
        """Show topic[partition]@offset, and below it where an imported letter failed, and whose it is."""
        place, consumer = showing.topic(str(letter)), showing.line(letter.consumer)
        if not letter.origin_topic:
            return showing.quietly(place, consumer)
        parts = f"[{letter.origin_partition}]" if letter.origin_partition is not None else ""
        parts += f"@{letter.origin_offset}" if letter.origin_offset is not None else ""
        origin = showing.topic(letter.origin_topic + parts)
        return showing.quietly(place, origin, consumer)

    @admin.display(description=_("key"))
    def key_shown(self, letter: Any) -> str | None:
        """Show the beginning of the key."""
        return sight.key_in_list(letter.key_start, letter.payload)

    @admin.display(description=_("error"), ordering="error_type")
    def error_shown(self, letter: Any) -> str:
        """Show the type of the error and the first line of what it says."""
        kind = showing.line(letter.error_type.rpartition(".")[2])
        text = showing.first_line(letter.sight.text(letter.error_start or ""), 120)
        return format_html('<strong>{}</strong><br><span class="lynx-kafka-quiet">{}</span>', kind, text)

    @admin.display(description=_("state"), ordering="state")
    def state_shown(self, letter: Any) -> str:
        """Show the state as a badge, and below it that of the latest replay."""
        shown, replay = badge(letter.state, letter.get_state_display()), letter.replay_state
        return showing.quietly(shown, "" if replay is None else _replay_label(replay))

    @admin.display(description=_("last failed"), ordering="last_failed_at")
    def last_failed(self, letter: DeadLetter) -> str:
        """Show how long ago it failed the last time."""
        return showing.ago(letter.last_failed_at)

    def get_urls(self) -> list[Any]:
        """Return the admin's own URLs and those of verbs and downloads."""
        view, name = self.admin_site.admin_view, "lynx_kafka_deadletter_{}".format
        mine = [
            path(f"<int:letter_id>/{verb.name}/", view(self.verb_view), {"verb": verb}, name=name(verb.name))
            for verb in VERBS
        ]
        group = path("group/<int:group_id>/<slug:verb_name>/", view(self.group_view), name=name("group"))
        download = path("<int:letter_id>/<str:part>.bin", view(self.download_view), name=name("download"))
        return [*mine, group, download, *self.editing_urls(), *self.report_urls(), *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one letter. There is no form, so that nothing of it can be altered."""
        letter = self.one_of(request, letters_with_sizes(), object_id)
        seen = sight.of(request, letter)
        if seen.whole:
            audit.note(request.user, audit.LOOKED, [letter])
        shown = page_of(letter, seen)
        context = {
            **self.admin_site.each_context(request),
            **self.page_context(shown.title),
            "page": shown,
            "badges": {"state": badge(letter.state, letter.get_state_display())},
            "verbs": [*self.fitting(request, letter), *self.more_verbs(request, letter)],
            "reveal": f"?{sight.REVEAL}=yes",
            "unattended": self._unattended(letter),
            "group_url": self._group_url(request, letter),
            "neighbours": neighbours_of(letter, request.user, self.url),
            "here": request.path,
            "waits_url": self.url("waits", letter.pk),
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/lynx_kafka/letter.html", context)

    def _group_url(self, request: HttpRequest, letter: DeadLetter) -> str:
        """Return the page of its failure group; "" where there is none, or the person may not look at it."""
        of_consumer = FailureGroup(consumer=letter.consumer)
        if letter.failure_group_id is None or not permits.may(request.user, permits.Verb.VIEW, of_consumer):
            return ""
        name = "admin:lynx_kafka_failuregroup_change"
        return reverse(name, args=[letter.failure_group_id], current_app=self.admin_site.name)

    def _unattended(self, letter: DeadLetter) -> bool:
        waits = letter.replays.filter(state=Replay.State.REQUESTED).exists()
        return waits and not heartbeats.alive(letter.consumer)

    @method_decorator(require_GET)
    def download_view(self, request: HttpRequest, letter_id: int, part: str) -> HttpResponse:
        """Send key or value as a file, whatever its size; a browser neither shows nor runs it."""
        refusing.demand_anywhere(request.user, permits.Verb.VIEW_PAYLOAD)
        letter = (
            replaying.letters()
            .filter(pk=letter_id)
            .only("topic", "partition", "offset", "consumer", "payload_name")
            .first()
        )
        if letter is None:
            raise Http404
        refusing.demand(request.user, permits.Verb.VIEW_PAYLOAD, letter)
        if part not in ("key", "value") or getattr(letter, part) is None:
            raise Http404
        try:
            with patient(DOWNLOAD):
                data = decoding.fetched(letter, part)
        except KafkaError as error:
            messages.error(request, showing.line(str(error), 500))
            return HttpResponseRedirect(self.url("change", letter_id))
        audit.note(request.user, audit.DOWNLOADED, [letter], details={"part": part})
        name = re.sub(r"[^a-zA-Z0-9._-]", "_", f"{letter.topic}-{letter.partition}-{letter.offset}.{part}.bin")
        answer = HttpResponse(data, content_type="application/octet-stream")
        answer["Content-Disposition"] = f'attachment; filename="{name}"'
        answer["X-Content-Type-Options"] = "nosniff"
        answer["Content-Security-Policy"] = "sandbox; default-src 'none'"
        return answer


def _replay_label(state: str) -> str:
    return gettext("replay: %s") % dict(Replay.State.choices).get(state, state)


def _say_what_waits(request: HttpRequest) -> None:
    """Say how many letters the search does not find yet."""
    count = searching.waiting(_COUNTED_TO + 1, anew=masking.masking().active)
    if not count or request.method != "GET":
        return
    several = ngettext(
        "%d dead letter is not found by its words yet: they are taken in the background.",
        "%d dead letters are not found by their words yet: these are taken in the background.",
        count,
    )
    many = gettext("More than %d dead letters are not found by their words yet: these are taken in the background.")
    messages.info(request, many % _COUNTED_TO if count > _COUNTED_TO else several % count)
