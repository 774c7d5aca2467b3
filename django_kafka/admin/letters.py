"""The list of dead letters, the page of each, and the way to what may be done with them."""

from __future__ import annotations

import re
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import BinaryField, OuterRef, Q, QuerySet, Subquery, TextField
from django.db.models.functions import Substr
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET

from ..dead_letters import replaying
from ..models import DeadLetter, Replay
from ..monitoring import heartbeats
from . import showing
from .confirming import Confirming
from .filters import AttemptsFilter, GroupFilter, KeyFilter, ReplayFilter, StateFilter
from .page import letters_with_sizes, page_of
from .reading import ReadOnly
from .verbs import VERBS

_KEY_BYTES = 100
_ERROR_CHARACTERS = 400
_NEIGHBOURS = 5
_COORDINATES = re.compile(
    r"(?P<topic>[a-zA-Z0-9._-]{1,249})\[(?P<partition>\d{1,9})\]"
    r"(?:@(?P<offset>\d{1,18})(?:-(?P<until>\d{1,18}))?)?"
)


@admin.register(DeadLetter)
class DeadLetterAdmin(Confirming, ReadOnly):
    """Dead letters: to be read, replayed, discarded and opened again."""

    list_display = (
        "coordinates",
        "key_shown",
        "error_shown",
        "state_shown",
        "replay_shown",
        "attempts",
        "last_failed_at",
        "consumer_shown",
    )
    list_filter = (
        StateFilter,
        ReplayFilter,
        GroupFilter,
        KeyFilter,
        ("consumer", admin.AllValuesFieldListFilter),
        ("topic", admin.AllValuesFieldListFilter),
        ("error_type", admin.AllValuesFieldListFilter),
        ("category", admin.AllValuesFieldListFilter),
        ("release", admin.AllValuesFieldListFilter),
        AttemptsFilter,
        ("last_failed_at", admin.DateFieldListFilter),
    )
    search_fields = ("topic", "consumer", "error_type", "error_message")
    search_help_text = _("Topic, topic[partition]@offset, …@from-to, consumer, error, or the whole key")
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetter]:
        """Return letters without what makes them large, and with the state of their latest replay."""
        latest = replaying.replays().filter(letter=OuterRef("pk")).order_by("-id").values("state")[:1]
        return (
            replaying.letters()
            .defer("key", "value", "stored_headers", "traceback", "error_message")
            .annotate(
                key_start=Substr("key", 1, _KEY_BYTES + 1, output_field=BinaryField()),
                error_start=Substr("error_message", 1, _ERROR_CHARACTERS, output_field=TextField()),
                replay_state=Subquery(latest),
            )
        )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[DeadLetter], search_term: str
    ) -> tuple[QuerySet[DeadLetter], bool]:
        """Find each text anywhere in names and errors; coordinates; and keys by all of their bytes."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if place := _COORDINATES.fullmatch(term):
            given = {name: value for name, value in place.groupdict().items() if value is not None}
            if (until := given.pop("until", None)) is not None:
                given |= {"offset__gte": given.pop("offset"), "offset__lte": until}
            return queryset.filter(**given), False
        wanted = replaying.with_key(term.encode("utf-8", "replace"))
        for field in self.search_fields:
            wanted |= Q(**{f"{field}__icontains": term})
        return queryset.filter(wanted), False

    @admin.display(description=_("message"), ordering="topic")
    def coordinates(self, letter: DeadLetter) -> str:
        """Show topic[partition]@offset, and below it where an imported letter failed."""
        place = showing.topic(str(letter))
        if not letter.origin_topic:
            return place
        parts = f"[{letter.origin_partition}]" if letter.origin_partition is not None else ""
        parts += f"@{letter.origin_offset}" if letter.origin_offset is not None else ""
        origin = showing.topic(letter.origin_topic + parts)
        return format_html('{}<br><span class="lynx-kafka-quiet">{}</span>', place, origin)

    @admin.display(description=_("consumer"), ordering="consumer")
    def consumer_shown(self, letter: DeadLetter) -> str:
        """Show the consumer's name."""
        return showing.line(letter.consumer)

    @admin.display(description=_("key"))
    def key_shown(self, letter: Any) -> str | None:
        """Show the beginning of the key."""
        if letter.key_start is None:
            return None
        start = bytes(letter.key_start)
        shown = showing.brief(start[:_KEY_BYTES], whole=len(start) <= _KEY_BYTES)
        return format_html('<span class="lynx-kafka-bytes">{}</span>', shown)

    @admin.display(description=_("error"), ordering="error_type")
    def error_shown(self, letter: Any) -> str:
        """Show the type of the error and the first line of what it says."""
        kind = showing.line(letter.error_type.rpartition(".")[2])
        text = showing.first_line(letter.error_start or "", 120)
        return format_html('<strong>{}</strong><br><span class="lynx-kafka-quiet">{}</span>', kind, text)

    @admin.display(description=_("state"), ordering="state")
    def state_shown(self, letter: DeadLetter) -> str:
        """Show the state as a badge."""
        return badge(letter.state, letter.get_state_display())

    @admin.display(description=_("replay"))
    def replay_shown(self, letter: Any) -> str | None:
        """Show the state of the latest replay as a badge."""
        state = letter.replay_state
        return None if state is None else badge(state, dict(Replay.State.choices).get(state, state))

    def get_urls(self) -> list[Any]:
        """Return the admin's own URLs and those of verbs and downloads."""
        view, name = self.admin_site.admin_view, "lynx_kafka_deadletter_{}".format
        mine = [
            path(f"<int:letter_id>/{verb.name}/", view(self.verb_view), {"verb": verb}, name=name(verb.name))
            for verb in VERBS
        ]
        group = path("group/<int:group_id>/<slug:verb_name>/", view(self.group_view), name=name("group"))
        download = path("<int:letter_id>/<str:part>.bin", view(self.download_view), name=name("download"))
        return [*mine, group, download, *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one letter. There is no form, so that nothing of it can be altered."""
        letter = self.one_of(request, letters_with_sizes(), object_id)
        shown = page_of(letter)
        context = {
            **self.admin_site.each_context(request),
            **self.page_context(shown.title),
            "page": shown,
            "badges": {"state": badge(letter.state, letter.get_state_display())},
            "verbs": self.fitting(letter) if self.has_replay_permission(request) else [],
            "unattended": self._unattended(letter),
            "group_url": self._group_url(request, letter),
            "neighbours": self._neighbours(letter),
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/lynx_kafka/letter.html", context)

    def _group_url(self, request: HttpRequest, letter: DeadLetter) -> str:
        """Return the page of its failure group; "" where there is none, or the person may not look at it."""
        if letter.failure_group_id is None or not request.user.has_perm("lynx_kafka.view_failuregroup"):
            return ""
        name = "admin:lynx_kafka_failuregroup_change"
        return reverse(name, args=[letter.failure_group_id], current_app=self.admin_site.name)

    def _neighbours(self, letter: DeadLetter) -> dict[str, Any] | None:
        """Return other letters of the same key, a few before and after this one; None when there are none."""
        if letter.key_hash == "":
            return None
        others = (
            replaying.letters()
            .filter(key_hash=letter.key_hash, topic=letter.topic, consumer=letter.consumer)
            .only("topic", "partition", "offset", "state", "error_type", "last_failed_at")
        )
        before = list(others.filter(pk__lt=letter.pk).order_by("-pk")[:_NEIGHBOURS])
        after = list(others.filter(pk__gt=letter.pk).order_by("pk")[:_NEIGHBOURS])
        if not before and not after:
            return None
        shown = [
            {
                "url": self.url("change", one.pk),
                "place": showing.topic(str(one)),
                "state": badge(one.state, one.get_state_display()),
                "error_type": showing.line(one.error_type.rpartition(".")[2]),
                "last_failed_at": one.last_failed_at,
            }
            for one in (*reversed(before), *after)
        ]
        query = urlencode([(str(KeyFilter.parameter_name), str(letter.pk)), ("state", "all")])
        return {"shown": shown, "all": f"{self.url('changelist')}?{query}"}

    def _unattended(self, letter: DeadLetter) -> bool:
        waits = letter.replays.filter(state=Replay.State.REQUESTED).exists()
        return waits and not heartbeats.alive(letter.consumer)

    @method_decorator(require_GET)
    def download_view(self, request: HttpRequest, letter_id: int, part: str) -> HttpResponse:
        """Send key or value as a file, whatever its size; a browser neither shows nor runs it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        letter = replaying.letters().filter(pk=letter_id).only("topic", "partition", "offset").first()
        if letter is None or part not in ("key", "value") or getattr(letter, part) is None:
            raise Http404
        name = re.sub(r"[^a-zA-Z0-9._-]", "_", f"{letter.topic}-{letter.partition}-{letter.offset}.{part}.bin")
        answer = HttpResponse(bytes(getattr(letter, part)), content_type="application/octet-stream")
        answer["Content-Disposition"] = f'attachment; filename="{name}"'
        answer["X-Content-Type-Options"] = "nosniff"
        answer["Content-Security-Policy"] = "sandbox; default-src 'none'"
        return answer


def badge(state: str, label: Any) -> str:
    """Return a state as a small coloured label."""
    return format_html('<span class="lynx-kafka-badge lynx-kafka-{}">{}</span>', state, label)
