"""The audit: who looked at what, and who did what, to be read and found."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from ..dead_letters import audit
from ..models import AuditEntry
from . import showing
from .filters import ConsumerFilter
from .reading import ReadOnly


class VerbFilter(admin.SimpleListFilter):
    """What was done: the verbs of the latest entries."""

    title = _("verb")
    parameter_name = "verb"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return the verbs that were met lately."""
        return [(verb, showing.line(verb)) for verb in audit.recent_verbs()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Return the entries with that verb."""
        return queryset if (verb := self.value()) is None else queryset.filter(verb=verb)


class PersonFilter(admin.SimpleListFilter):
    """Entries of one person, whom a link leads to."""

    title = _("person")
    parameter_name = "by"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return the person that was chosen."""
        name = self.used_parameters.get(str(self.parameter_name))
        return [] if name is None else [(name, showing.line(name))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Return the entries of that person."""
        return queryset if (name := self.value()) is None else queryset.filter(user_name=name)


class RowFilter(admin.SimpleListFilter):
    """Entries about one row, which a link leads to as model:id."""

    title = _("what")
    parameter_name = "about"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Return the row that was chosen."""
        about = self.used_parameters.get(str(self.parameter_name))
        return [] if about is None else [(about, showing.line(about))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Return the entries about that row."""
        if (about := self.value()) is None:
            return queryset
        model, _colon, row = about.partition(":")
        return queryset.filter(model=model, row=row)


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly):
    """Every look at an unmasked payload, and every action."""

    list_display = (
        "at",
        "person_shown",
        "verb_shown",
        "title_shown",
        "consumer_shown",
        "reason_shown",
        "address_shown",
    )
    list_display_links = ("at",)
    list_filter = (
        VerbFilter,
        PersonFilter,
        RowFilter,
        ConsumerFilter,
        ("at", admin.DateFieldListFilter),
    )
    search_fields = ("user_name", "title", "reason")
    search_help_text = _("Person, what it was done to, or reason: parts of them")
    fields = (
        "at",
        "person_shown",
        "address_shown",
        "verb_shown",
        "title_shown",
        "model_shown",
        "consumer_shown",
        "topic_shown",
        "reason_whole",
        "details_shown",
    )
    readonly_fields = fields
    show_full_result_count = False

    def rows(self) -> QuerySet[AuditEntry]:
        """Return all entries."""
        return audit.entries()

    @admin.display(description=_("person"), ordering="user_name")
    def person_shown(self, entry: AuditEntry) -> str:
        """Show who it was, as a link to all that they did."""
        name = showing.line(entry.user_name) or "–"
        return format_html('<a href="{}">{}</a>', self._url({PersonFilter.parameter_name: entry.user_name}), name)

    @admin.display(description=_("address"))
    def address_shown(self, entry: AuditEntry) -> str:
        """Show where the request came from."""
        return showing.line(entry.address) or "–"

    @admin.display(description=_("verb"), ordering="verb")
    def verb_shown(self, entry: AuditEntry) -> str:
        """Show what was done."""
        return showing.line(entry.verb)

    @admin.display(description=_("what"))
    def title_shown(self, entry: AuditEntry) -> str:
        """Show what it was done to: a link to it, and one to all that was done to it."""
        title = showing.line(entry.title, 300) or "–"
        about = self._url({RowFilter.parameter_name: f"{entry.model}:{entry.row}"})
        return format_html('{} (<a href="{}">{}</a>)', self._linked(entry, title), about, _("all of it"))

    def _linked(self, entry: AuditEntry, title: str) -> str:
        try:
            name = f"admin:lynx_kafka_{entry.model}_change"
            url = reverse(name, args=[entry.row], current_app=self.admin_site.name)
        except NoReverseMatch:
            return title
        return format_html('<a href="{}">{}</a>', url, title)

    @admin.display(description=_("kind"))
    def model_shown(self, entry: AuditEntry) -> str:
        """Show what kind of row it is, and its id."""
        return showing.line(f"{entry.model} {entry.row}")

    @admin.display(description=_("consumer"), ordering="consumer")
    def consumer_shown(self, entry: AuditEntry) -> str:
        """Show the consumer's name."""
        return showing.line(entry.consumer) or "–"

    @admin.display(description=_("topic"))
    def topic_shown(self, entry: AuditEntry) -> str:
        """Show the topic."""
        return showing.topic(entry.topic) or "–"

    @admin.display(description=_("reason"))
    def reason_shown(self, entry: AuditEntry) -> str:
        """Show the first line of the reason."""
        return showing.first_line(entry.reason) or "–"

    @admin.display(description=_("reason"))
    def reason_whole(self, entry: AuditEntry) -> str:
        """Show the reason."""
        return showing.lines(entry.reason[:10_000]) or "–"

    @admin.display(description=_("details"))
    def details_shown(self, entry: AuditEntry) -> str:
        """Show what else is known."""
        return showing.pretty(entry.details, 10_000) if entry.details else "–"

    def _url(self, query: dict[Any, str]) -> str:
        url = reverse("admin:lynx_kafka_auditentry_changelist", current_app=self.admin_site.name)
        return f"{url}?{urlencode(query)}"
