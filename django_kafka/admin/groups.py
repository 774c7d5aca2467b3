"""Failure groups: the list to begin with, and a page for each with what can be done with all of its letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext, ngettext_lazy
from django.views.decorators.http import require_POST

from ..dead_letters import groups, masking, permits
from ..models import DeadLetter, FailureGroup
from . import asking, refusing, showing, sight
from .badges import badge
from .filters import GroupFilter, StandingFilter
from .lists import Bounded, ValuesFilter
from .reading import ReadOnly
from .sparklines import sparkline
from .verbs import VERBS

_LETTERS = 20
"""Letters on the page of a group, the latest."""

_SAYINGS = {
    FailureGroup.State.ACKNOWLEDGED: (
        _("Acknowledge"),
        "Acknowledged.",
        ngettext_lazy("%d failure group is acknowledged.", "%d failure groups are acknowledged."),
    ),
    FailureGroup.State.RESOLVED: (
        _("Resolve"),
        "Called resolved.",
        ngettext_lazy("%d failure group is resolved.", "%d failure groups are resolved."),
    ),
    FailureGroup.State.OPEN: (
        _("Open again"),
        "Opened again.",
        ngettext_lazy("%d failure group is open again.", "%d failure groups are open again."),
    ),
}
"""What people can say of a group: the button, what is entered into the history, and the message afterwards."""


class GroupStateFilter(StandingFilter):
    """Where groups stand; those that are not resolved unless asked otherwise."""

    usual = "unresolved"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return what needs attention, the states, and all of them."""
        return [(self.usual, _("not resolved")), *FailureGroup.State.choices, ("all", _("All"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[FailureGroup]) -> QuerySet[FailureGroup]:
        """Return the groups in that state."""
        if self.value() == self.usual:
            return queryset.exclude(state=FailureGroup.State.RESOLVED)
        return super().queryset(request, queryset)


def _action(state: str) -> Callable[..., None]:
    label, _logged, _done = _SAYINGS[state]  # type: ignore[index]

    @admin.action(description=label)
    def action(admin: FailureGroupAdmin, request: HttpRequest, chosen: QuerySet[FailureGroup]) -> None:
        admin.say(request, state, chosen)

    action.__name__ = f"say_{state}"
    action.permit = permits.Verb.ANNOTATE  # type: ignore[attr-defined]
    return action


@admin.register(FailureGroup)
class FailureGroupAdmin(Bounded, ReadOnly):
    """Causes of dead letters: how often, since when, and who looks after them."""

    list_display = ("cause", "state_shown", "letters_shown", "trend", "last_seen")
    list_filter = (
        GroupStateFilter,
        ("consumer", admin.AllValuesFieldListFilter),
        ("category", admin.AllValuesFieldListFilter),
        ("owner", ValuesFilter),
        ("last_seen_at", admin.DateFieldListFilter),
    )
    search_fields = ("error_type", "example", "handler", "frame", "consumer", "note", "owner")
    search_help_text = _("Error, handler, function, consumer, note, or owner")  # see get_search_fields
    actions = [_action(state) for state in _SAYINGS]

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Return what is searched: not what may tell something masked to who guesses it, and may not see it."""
        unseen = masking.masking().active and permits.consumers_of(request.user, permits.Verb.VIEW_PAYLOAD) is not None
        return tuple(each for each in self.search_fields if each != "example" or not unseen)

    def rows(self) -> QuerySet[FailureGroup]:
        """Return all groups with what is counted of them."""
        return groups.counted()

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Return the list, and remember the trends of what is on its page: they are read together."""
        found = super().get_changelist_instance(request)
        shown = list(found.result_list)
        for group, trend in zip(shown, groups.trends([one.pk for one in shown]).values(), strict=True):
            group.trend = trend
        found.result_list = shown
        return found

    @admin.display(description=_("cause"), ordering="error_type")
    def cause(self, group: FailureGroup) -> str:
        """Show the type of the error, what the first one said, and the function and consumer in which it arose."""
        kind, text = showing.line(group.error_type.rpartition(".")[2]), showing.line(_example(group), 120)
        place = showing.line(group.frame or group.handler or "–", 120)
        return format_html(
            '<strong>{}</strong> {}<br><span class="lynx-kafka-quiet">{} · {}</span>',
            kind, text, showing.line(group.consumer), place,
        )  # fmt: skip

    @admin.display(description=_("state"), ordering="state")
    def state_shown(self, group: FailureGroup) -> str:
        """Show the state as a badge, and who looks after it."""
        shown = badge(group.state, group.get_state_display())
        owner = showing.line(group.owner, 40)
        return format_html('{}<br><span class="lynx-kafka-quiet">{}</span>', shown, owner) if owner else shown

    @admin.display(description=_("open letters"), ordering="seen")
    def letters_shown(self, group: Any) -> str:
        """Show how many letters wait for somebody, lead there, and tell how many failures there were."""
        failures = ngettext("%d failure", "%d failures", group.seen_now) % group.seen_now
        return format_html(
            '<a href="{}">{}</a><br><span class="lynx-kafka-quiet">{}</span>',
            self.letters_url(group), counted(group.open_letters), failures,
        )  # fmt: skip

    @admin.display(description=_("last seen"), ordering="last_seen_at")
    def last_seen(self, group: FailureGroup) -> str:
        """Show how long ago the last failure was."""
        return showing.ago(group.last_seen_at)

    @admin.display(description=_("last 24 hours"))
    def trend(self, group: Any) -> str:
        """Draw when they happened."""
        return sparkline(group.trend.begins, group.trend.step, group.trend.counts)

    def letters_url(self, group: FailureGroup) -> str:
        """Return where the open letters of a group are listed."""
        url = reverse("admin:lynx_kafka_deadletter_changelist", current_app=self.admin_site.name)
        return f"{url}?{urlencode({str(GroupFilter.parameter_name): group.pk})}"

    def get_urls(self) -> list[Any]:
        """Return the admin's own URLs, and those of what can be said."""
        view, name = self.admin_site.admin_view, "lynx_kafka_failuregroup_{}".format
        return [
            path("<int:pk>/say/", view(self.say_view), name=name("say")),
            path("<int:pk>/note/", view(self.note_view), name=name("note")),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one group."""
        group = self.one_of(request, self.rows(), object_id)
        letters_refusal = permits.refusal(request.user, permits.Verb.VIEW, DeadLetter(consumer=group.consumer))
        context = {
            **self.admin_site.each_context(request),
            **asking.page_context(self, showing.line(str(group)), self._url("changelist")),
            "group": group,
            "badge": badge(group.state, group.get_state_display()),
            "facts": _facts(group),
            "last_seen_at": groups.last_seen(group),
            "example": showing.line(_example(group), 300),
            "error_type": showing.line(group.error_type, 300),
            "open_letters": counted(group.open_letters),
            "charts": _charts(group),
            "letters_url": self.letters_url(group),
            "letters": None if letters_refusal else self._letters(group),
            "letters_refusal": letters_refusal,
            "sayings": self._sayings(group),
            "say_refusal": permits.refusal(request.user, permits.Verb.ANNOTATE, group),
            "verbs": self._verbs(request, group),
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/lynx_kafka/group.html", context)

    def _url(self, name: str, *arguments: object) -> str:
        return reverse(f"admin:lynx_kafka_failuregroup_{name}", args=arguments, current_app=self.admin_site.name)

    def _sayings(self, group: FailureGroup) -> list[tuple[str, Any]]:
        now = FailureGroup.State.OPEN if group.state == FailureGroup.State.REGRESSED else group.state
        return [(state, label) for state, (label, _logged, _done) in _SAYINGS.items() if state != now]

    def _verbs(self, request: HttpRequest, group: Any) -> list[dict[str, Any]]:
        """Return what can be done with all open letters, and where it leads."""
        if not group.open_letters:
            return []
        name, site = "admin:lynx_kafka_deadletter_group", self.admin_site.name
        return [
            {
                "verb": verb,
                "url": reverse(name, args=[group.pk, verb.name], current_app=site),
                "refusal": permits.refusal(request.user, verb.permit, group),
            }
            for verb in VERBS
            if verb.of_groups
        ]

    def _letters(self, group: FailureGroup) -> list[dict[str, Any]]:
        """Return the latest open letters."""
        place = ("topic", "partition", "offset")
        found = group.letters.filter(state=DeadLetter.State.OPEN).order_by("-pk")
        latest = list(found.only(*place, "error_message", "attempts", "last_failed_at")[:_LETTERS])
        sights = sight.of_list([one.pk for one in latest])
        name = "admin:lynx_kafka_deadletter_change"
        return [
            {
                "url": reverse(name, args=[one.pk], current_app=self.admin_site.name),
                "place": showing.topic(str(one)),
                "error": showing.first_line(sights[one.pk].text(one.error_message)),
                "attempts": one.attempts,
                "last_failed_at": one.last_failed_at,
            }
            for one in latest
        ]

    def say(self, request: HttpRequest, state: str, chosen: QuerySet[FailureGroup]) -> None:
        """Say of groups that they are in a state, and enter it into the history of each."""
        refusing.demand_anywhere(request.user, permits.Verb.ANNOTATE, FailureGroup)
        _label, logged, done = _SAYINGS[state]  # type: ignore[index]
        forbidden = chosen.count()
        chosen = permits.allowed(request.user, permits.Verb.ANNOTATE, chosen)
        forbidden -= chosen.count()
        # Read first: the list may be of those in another state, and has none of them afterwards.
        every = list(groups.groups().filter(pk__in=chosen.values("pk")))
        others = [one for one in every if one.state != state]
        with transaction.atomic(using=chosen.db):
            count = groups.set_state([one.pk for one in others], state, by=request.user.get_username())
            asking.enter(others, FailureGroup, request.user, logged, verb=f"{state} group")
        messages.success(request, done % count)
        if left := len(every) - count:
            sentence = ngettext("%d was so before.", "%d were so before.", left)
            messages.info(request, sentence % left)
        if forbidden:
            sentence = ngettext(
                "%d failure group was left alone: you are not permitted to change it.",
                "%d failure groups were left alone: you are not permitted to change them.",
                forbidden,
            )
            messages.warning(request, sentence % forbidden)

    @method_decorator(require_POST)
    def say_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Say it of one group."""
        if request.POST.get("state") not in _SAYINGS:
            raise PermissionDenied
        self.say(request, str(request.POST["state"]), self._one(request, pk))
        return HttpResponseRedirect(self._url("change", pk))

    @method_decorator(require_POST)
    def note_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Write down owner and note of one group."""
        chosen = self._one(request, pk)
        with transaction.atomic(using=chosen.db):
            groups.annotate(pk, owner=request.POST.get("owner", ""), note=request.POST.get("note", "")[:10_000])
            asking.enter(chosen, FailureGroup, request.user, "Wrote owner and note.", verb="annotate group")
        messages.success(request, _("Owner and note were saved."))
        return HttpResponseRedirect(self._url("change", pk))

    def _one(self, request: HttpRequest, pk: int) -> QuerySet[FailureGroup]:
        refusing.demand_anywhere(request.user, permits.Verb.ANNOTATE, FailureGroup)
        chosen = groups.groups().filter(pk=pk)
        if (group := chosen.first()) is None:
            raise Http404
        refusing.demand(request.user, permits.Verb.ANNOTATE, group)
        return chosen


def _example(group: FailureGroup) -> str:
    return masking.masking().text(group.example)


def counted(number: int) -> str:
    """Return a number that is not counted to its end."""
    return str(number) if number <= groups.MOST_COUNTED else f"{groups.MOST_COUNTED}+"


def _facts(group: Any) -> list[tuple[Any, str]]:
    facts = [
        (_("Consumer"), group.consumer),
        (_("Cluster"), group.cluster),
        (_("Handler"), group.handler),
        (_("Function"), group.frame),
        (_("Category"), group.category),
        (_("Failures"), str(group.seen_now)),
        (_("First release"), group.first_release),
        (_("Last release"), group.last_release),
        (_("Said by"), group.state_by),
        (_("Resolved in release"), group.resolved_in),
        (_("Came back in release"), group.regressed_in),
    ]
    return [(name, showing.line(value, 500)) for name, value in facts if value]


def _charts(group: FailureGroup) -> list[tuple[Any, str]]:
    hours = groups.trends([group.pk], steps=7 * 24)[group.pk]
    week = tuple(sum(hours.counts[first : first + 6]) for first in range(0, 7 * 24, 6))
    return [
        (_("Last 24 hours"), sparkline(hours.begins + 6 * 24 * hours.step, hours.step, hours.counts[-24:], large=True)),
        (_("Last 7 days"), sparkline(hours.begins, 6 * hours.step, week, large=True)),
    ]
