"""Replay jobs: many letters that are replayed together, and their lanes, which executors claim."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from .replays import Replay

LANES = "0123456789abcdef"
"""The lanes of each job. Letters of one key are in one lane, so that they are replayed in their order."""


class ReplayJob(models.Model):
    """A frozen selection of letters of one consumer that are replayed together."""

    class State(models.TextChoices):
        """How far it came."""

        RUNNING = "running", _("running")
        PAUSED = "paused", _("paused")
        FINISHED = "finished", _("finished")
        CANCELLING = "cancelling", _("being cancelled")
        CANCELLED = "cancelled", _("cancelled")

    ENDED = (State.FINISHED, State.CANCELLED)

    id = models.BigAutoField(primary_key=True)
    consumer = models.CharField(_("consumer"), max_length=200)
    target = models.CharField(_("target"), max_length=10, choices=Replay.Target.choices)
    to_topic = models.CharField(_("to topic"), max_length=249, blank=True)
    """The topic that its letters go to, as Kafka knows it; "": each to its own."""
    state = models.CharField(_("state"), max_length=10, choices=State.choices, default=State.RUNNING)
    state_reason = models.TextField(_("because"), blank=True)
    """Why it is paused, when nobody paused it; why it would have been, when it was at its end."""
    description = models.CharField(_("selection"), max_length=500, blank=True)
    """What was chosen, for people."""
    reason = models.TextField(_("reason"), blank=True)
    """Why it was asked for."""
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, null=True, blank=True, db_constraint=False, db_index=False,
        related_name="+", verbose_name=_("requested by"),
    )  # fmt: skip
    requested_by_name = models.CharField(_("requested by"), max_length=200, blank=True)
    requested_at = models.DateTimeField(_("requested at"))
    begun_at = models.DateTimeField(_("begun at"), null=True)
    finished_at = models.DateTimeField(_("finished at"), null=True)

    total = models.BigIntegerField(_("letters"), default=0)
    left_out = models.BigIntegerField(_("left out"), default=0)
    """Letters of the selection that could not be replayed when it was made."""
    succeeded = models.BigIntegerField(_("succeeded"), default=0)
    failed = models.BigIntegerField(_("failed"), default=0)
    skipped = models.BigIntegerField(_("skipped"), default=0)
    behind = models.BigIntegerField(_("left behind"), default=0)
    cancelled = models.BigIntegerField(_("cancelled"), default=0)

    rate = models.FloatField(_("letters per second"), null=True, blank=True)
    """At most so many; None: as many as there can be."""
    paced_at = models.DateTimeField(null=True, editable=False)
    """When the next letters may be taken, by the clock of the database."""
    ramp = models.JSONField(_("ramp"), default=list, blank=True)
    """How many letters each step has; after the last one come all others."""
    failure_ratio = models.FloatField(_("stops at a failure ratio above"), null=True, blank=True)
    """Of one step; None: it never stops by itself."""
    step = models.PositiveIntegerField(_("step"), default=0)
    after = models.BigIntegerField(default=0, editable=False)
    """All of its replays have greater ids."""
    allowed = models.BigIntegerField(null=True, editable=False)
    """The last replay of this step; None: all of them."""
    step_done = models.BigIntegerField(default=0, editable=False)
    step_failed = models.BigIntegerField(default=0, editable=False)

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("replay job")
        verbose_name_plural = _("replay jobs")
        ordering = ("-id",)
        indexes = (
            models.Index(
                fields=["state", "consumer"], condition=models.Q(state__in=("running", "paused", "cancelling")),
                name="lynx_kafka_job_unended",
            ),
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.pk}"

    @property
    def done(self) -> int:
        """How many letters came to their end."""
        return self.succeeded + self.failed + self.skipped + self.behind + self.cancelled

    @property
    def left(self) -> int:
        """How many letters still wait."""
        return max(0, self.total - self.done)

    @property
    def ended(self) -> bool:
        """Whether nothing of it is replayed any more."""
        return self.state in self.ENDED


class JobLane(models.Model):
    """The letters of a job whose keys have hashes that begin alike: one executor at a time replays them, in order."""

    id = models.BigAutoField(primary_key=True)
    job = models.ForeignKey(ReplayJob, models.CASCADE, related_name="lanes", verbose_name=_("replay job"))
    name = models.CharField(max_length=1)
    claim = models.CharField(max_length=40, blank=True)
    executor = models.CharField(_("executor"), max_length=200, blank=True)
    claimed_at = models.DateTimeField(null=True)
    worked_at = models.DateTimeField(null=True)
    """When somebody had it last: the one that waited longest is next."""
    passed = models.PositiveIntegerField(default=0)
    """How many steps have nothing left in it."""
    cursor = models.BigIntegerField(default=0)
    """The last replay whose handler succeeded, moved in the transaction of its effects: what is up to there, and still
    requested, has succeeded and is to be settled."""
    unsettled = models.JSONField(default=list)
    """Except for these, by their ids: they failed, or what their handlers produced is not acknowledged yet."""

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("lane of a replay job")
        verbose_name_plural = _("lanes of replay jobs")
        constraints = (models.UniqueConstraint(fields=["job", "name"], name="lynx_kafka_job_lane"),)

    def __str__(self) -> str:
        return f"{self.job_id}/{self.name}"
