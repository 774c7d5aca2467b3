"""The list of claims: how far the offsets are that are committed with effects."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import Count, F, Q, QuerySet
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .. import conf
from ..dead_letters import permits
from ..models import Claim, Worker
from . import showing
from .reading import ReadOnly


@admin.register(Claim)
class ClaimAdmin(ReadOnly):
    """Up to where the effects of each partition are there, and which worker claimed it last."""

    list_display = ("whose_shown", "offset", "beyond_shown", "epoch", "claimed_shown")
    list_filter = tuple((name, admin.AllValuesFieldListFilter) for name in ("consumer", "group_id", "cluster", "topic"))
    search_fields = ("topic", "consumer", "group_id", "worker")
    ordering = ("cluster", "group_id", "topic", "partition")
    fields = ("place_shown", "offset", "beyond_shown", "consumer_shown", "group_shown", "cluster_shown",
              "topic_id_shown", "epoch", "worker_shown", "claimed_at", "moved_by")  # fmt: skip
    readonly_fields = fields
    show_full_result_count = False

    def rows(self) -> QuerySet[Claim]:
        """Return claims with the number of messages beyond their offset that are settled."""
        return claims().annotate(beyond=Count("settled", filter=Q(settled__offset__gte=F("offset"))))

    @admin.display(description=_("partition"), ordering="topic")
    def place_shown(self, claim: Claim) -> str:
        """Show topic[partition]."""
        return showing.topic(f"{claim.topic}[{claim.partition}]")

    @admin.display(description=_("partition"), ordering="topic")
    def whose_shown(self, claim: Claim) -> str:
        """Show topic[partition], and below it consumer, group and cluster."""
        names = (claim.consumer, claim.group_id, claim.cluster)
        return showing.quietly(self.place_shown(claim), *map(showing.line, dict.fromkeys(names)))

    @admin.display(description=_("claimed"), ordering="claimed_at")
    def claimed_shown(self, claim: Claim) -> str:
        """Show how long ago it was claimed the last time, and by which process."""
        return showing.quietly(showing.ago(claim.claimed_at), showing.line(claim.worker))

    @admin.display(description=_("settled beyond"), ordering=F("beyond"))
    def beyond_shown(self, claim: Any) -> int:
        """Show how many messages overtook others and are settled."""
        return int(claim.beyond)

    @admin.display(description=_("consumer"), ordering="consumer")
    def consumer_shown(self, claim: Claim) -> str:
        """Show the consumer's name."""
        return showing.line(claim.consumer)

    @admin.display(description=_("group"), ordering="group_id")
    def group_shown(self, claim: Claim) -> str:
        """Show the consumer group."""
        return showing.line(claim.group_id)

    @admin.display(description=_("cluster"), ordering="cluster")
    def cluster_shown(self, claim: Claim) -> str:
        """Show the cluster."""
        return showing.line(claim.cluster)

    @admin.display(description=_("topic id"))
    def topic_id_shown(self, claim: Claim) -> str:
        """Show what brokers tell topics of one name apart by."""
        return showing.line(claim.topic_id) or "–"

    @admin.display(description=_("claimed by"), ordering="worker")
    def worker_shown(self, claim: Claim) -> str:
        """Show the process that claimed it last."""
        return showing.line(claim.worker) or "–"

    @admin.display(description=_("moved by"))
    def moved_by(self, claim: Claim) -> str:
        """Show the command that sets where a partition goes on."""
        what = f"{claim.consumer} --topic {claim.topic} --partition {claim.partition}"
        return format_html("<code>python manage.py kafka_offsets {}</code>", showing.line(what, 600))


def claims() -> QuerySet[Claim]:
    """Return all claims: they are where the dead letters are, with which they are committed."""
    return Claim.objects.using(conf.kafka().dead_letters.database)


def may_view(user: Any, worker: Worker) -> bool:
    """Tell whether a person may look at the claims of a worker's consumer."""
    return permits.may(user, permits.Verb.VIEW, Claim(consumer=worker.consumer))


def link_of(worker: Worker, site: str) -> str:
    """Return a link to the claims of a worker's group, as HTML; "" when it has none."""
    mine = {"cluster": worker.cluster, "group_id": worker.group_id}
    if not (count := claims().filter(**mine).count()):
        return ""
    url = reverse("admin:lynx_kafka_claim_changelist", current_app=site)
    words = ngettext("%(count)s claim of its group", "%(count)s claims of its group", count) % {"count": count}
    return format_html('<a href="{}?{}">{}</a>', url, urlencode(mine), words)
