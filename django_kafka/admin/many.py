"""Many letters at once: the part of the page in between that makes a replay job of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from .. import conf
from ..dead_letters import audit, jobs
from ..dead_letters.jobs.describing import without_search
from ..dead_letters.jobs.planning import MOST_STEPS
from ..models import DeadLetter, Replay, ReplayJob
from . import showing

TARGETS = {
    "replay": Replay.Target.HANDLER,
    "replay-to-topic": Replay.Target.TOPIC,
    "replay-to-other-topic": Replay.Target.TOPIC,
}
"""The verbs that can be done by a job, and what its target is."""


class JobForm(forms.Form):
    """How a job is to go, and why."""

    as_job = forms.BooleanField(
        label=gettext_lazy("As a replay job, which shows how far it is and can be paused and cancelled"), required=False
    )
    rate = forms.FloatField(
        label=gettext_lazy("Letters per second, at most"), required=False, min_value=0.001, max_value=1_000_000
    )
    ramp = forms.CharField(
        label=gettext_lazy("Ramp: letters of the first steps, such as 1, 10, 100"), required=False, max_length=300
    )
    failure_percent = forms.FloatField(
        label=gettext_lazy("Pause when more than so many percent of a step fail"),
        required=False, min_value=0, max_value=100,
    )  # fmt: skip
    reason = forms.CharField(
        label=gettext_lazy("Reason"), required=False, max_length=2000, widget=forms.Textarea(attrs={"rows": 2})
    )

    def __init__(self, count: int, *arguments: Any, **named: Any) -> None:
        """Ask about so many letters; a number above both bounds of the settings is exact enough."""
        super().__init__(*arguments, **named)
        settings = conf.kafka().dead_letters
        self.count = count
        self.only_as_job = count > settings.job_above
        """Whether they are too many for anything else."""
        self.needs_reason = settings.reason_above is not None and count > settings.reason_above
        """Whether a job of so many letters needs one."""
        if self.only_as_job:
            del self.fields["as_job"]

    @property
    def wanted(self) -> bool:
        """Whether the answer asks for a job, as far as it can be read."""
        given = (self.data.get(name, "") for name in ("as_job", "rate", "ramp", "failure_percent"))
        return self.only_as_job or any(given)

    def clean_ramp(self) -> list[int]:
        """Return the sizes of the steps."""
        words = str(self.cleaned_data["ramp"]).replace(",", " ").split()
        if len(words) > MOST_STEPS or not all(word.isdecimal() and 0 < len(word) < 12 and int(word) for word in words):
            sentence = _("Write at most %(most)d whole numbers, such as 1, 10, 100.")
            raise forms.ValidationError(sentence % {"most": MOST_STEPS})
        return [int(word) for word in words]

    def clean(self) -> dict[str, Any]:
        """Ask for a reason where one is needed, and when a ramp is to pause: without that it is none."""
        found = super().clean() or {}
        if found.get("ramp") and "failure_percent" in found and found["failure_percent"] is None:
            sentence = _(
                "A ramp needs the percentage of failures above which it pauses, such as 10; at 100 it never does."
            )
            self.add_error("failure_percent", sentence)
        if self.needs_reason and "reason" in found and not found["reason"].strip():
            sentence = _("A job of more than %(count)d letters needs a reason.")
            self.add_error("reason", sentence % {"count": conf.kafka().dead_letters.reason_above or 0})
        return found


def enough(letters: QuerySet[DeadLetter]) -> int:
    """Return how many letters there are, not counted beyond what makes a difference here."""
    settings = conf.kafka().dead_letters
    most = max(settings.job_above, settings.reason_above or 0) + 1
    return letters.order_by()[:most].count()


def make(
    request: HttpRequest, form: JobForm, letters: QuerySet[DeadLetter], target: str, description: str, topic: str = ""
) -> Sequence[ReplayJob]:
    """Make jobs as a valid form says, and note it."""
    given, user = form.cleaned_data, request.user
    percent = given["failure_percent"]
    using = conf.kafka().dead_letters.database
    with transaction.atomic(using=using):
        made = jobs.create(
            letters,
            target=target,
            topic=topic,
            user=user,
            reason=given["reason"].strip(),
            description=description,
            rate=given["rate"],
            ramp=given["ramp"],
            failure_ratio=None if percent is None else percent / 100,
        )
        for job in made:
            details = {
                "letters": job.total,
                "target": target,
                "topic": topic,
                # The audit stays.
                "selection": without_search(description),
                "ramp": given["ramp"],
            }
            audit.note(user, "make job", [job], reason=job.reason, details={**details, "rate": given["rate"]})
        enter(made, user, "Made.", flag=ADDITION)
    for job in made:
        sentence = ngettext(
            "Replay job %(job)d has %(count)d dead letter of consumer %(consumer)s.",
            "Replay job %(job)d has %(count)d dead letters of consumer %(consumer)s.",
            job.total,
        )
        names = {"job": job.pk, "count": job.total, "consumer": showing.line(job.consumer)}
        messages.success(request, sentence % names)
    if not made:
        messages.warning(request, _("None of them can be replayed any more."))
    return made


def enter(rows: Sequence[ReplayJob], user: Any, sentence: str, *, flag: int) -> None:
    """Enter into the history of jobs what a person did."""
    content_type = ContentType.objects.get_for_model(ReplayJob)
    LogEntry.objects.bulk_create(
        LogEntry(
            user_id=user.pk, content_type_id=content_type.pk, object_id=str(row.pk), object_repr=str(row)[:200],
            action_flag=flag, change_message=sentence,
        )
        for row in rows
    )  # fmt: skip
