"""Replay jobs that are not at their end, as the dashboard shows them, and how far any of them is."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _

from ..dead_letters import jobs, permits
from ..models import ReplayJob
from . import showing
from .badges import badge

_SHOWN = 20


def open_jobs(user: Any, only: str, site: str) -> dict[str, Any]:
    """Return what the dashboard shows of jobs: nothing when the person may look at none.

    `only`: the name of a consumer, or "" for all; `site`: of the admin.
    """
    if not permits.anywhere(user, permits.Verb.VIEW, ReplayJob):
        return {"jobs": None}
    rows = permits.allowed(user, permits.Verb.VIEW, jobs.all_jobs(), model=ReplayJob)
    rows = rows.exclude(state__in=ReplayJob.ENDED).order_by("-id")
    found = list((rows.filter(consumer=only) if only else rows)[: _SHOWN + 1])
    return {
        "jobs": [_shown(one, site) for one in found[:_SHOWN]],
        "more_jobs": len(found) > _SHOWN,
        "jobs_url": reverse("admin:lynx_kafka_replayjob_changelist", current_app=site),
    }


def bar(job: ReplayJob) -> str:
    """Draw how far a job is."""
    words = _("%(done)d of %(total)d") % {"done": job.done, "total": job.total}
    return format_html(
        '<progress class="lynx-kafka-progress" max="{}" value="{}" aria-label="{}">{}</progress> '
        '<span class="lynx-kafka-quiet">{}</span>',
        max(job.total, 1), job.done, _("progress"), words, words,
    )  # fmt: skip


def _shown(job: ReplayJob, site: str) -> dict[str, Any]:
    return {
        "url": reverse("admin:lynx_kafka_replayjob_change", args=[job.pk], current_app=site),
        "name": str(job.pk),
        "consumer": showing.line(job.consumer),
        "state": badge(job.state, job.get_state_display()),
        "progress": bar(job),
        "failed": job.failed,
        "by": showing.line(job.requested_by_name),
        "because": showing.line(job.state_reason, 300),
    }
