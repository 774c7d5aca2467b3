"""Replays that were asked for, and how they went."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from .dead_letters import DeadLetter


class Replay(models.Model):
    """One request to give a dead letter another chance; at most one per letter is outstanding."""

    class Target(models.TextChoices):
        """Where the letter goes."""

        HANDLER = "handler", _("handler, again")
        TOPIC = "topic", _("its topic, again")
        DRY_RUN = "dry-run", _("handler, as a dry run")

    class State(models.TextChoices):
        """How far it came."""

        REQUESTED = "requested", _("requested")
        RUNNING = "running", _("running")
        SUCCEEDED = "succeeded", _("succeeded")
        FAILED = "failed", _("failed")
        CANCELLED = "cancelled", _("cancelled")
        SKIPPED = "skipped", _("skipped")
        BEHIND = "behind", _("left behind an earlier failure")

    OUTSTANDING = (State.REQUESTED, State.RUNNING)

    id = models.BigAutoField(primary_key=True)
    letter = models.ForeignKey(DeadLetter, models.CASCADE, related_name="replays", verbose_name=_("dead letter"))
    target = models.CharField(_("target"), max_length=10, choices=Target.choices)
    to_topic = models.CharField(_("to topic"), max_length=249, blank=True)
    """The topic that a replay to a topic goes to, as Kafka knows it; "": the letter's own."""
    edited = models.BooleanField(_("edited"), default=False)
    """Whether key, value and headers are these, and not those of the letter, which stays as it came."""
    edited_key = models.BinaryField(null=True)
    edited_value = models.BinaryField(null=True)
    edited_headers = models.BinaryField(null=True)
    """As they are stored with a letter."""
    state = models.CharField(_("state"), max_length=10, choices=State.choices, default=State.REQUESTED)
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, null=True, blank=True, db_constraint=False, db_index=False,
        related_name="+", verbose_name=_("requested by"),
    )  # fmt: skip
    requested_by_name = models.CharField(_("requested by"), max_length=200, blank=True)
    requested_at = models.DateTimeField(_("requested at"))
    claim = models.CharField(_("claim"), max_length=40, blank=True, editable=False)
    executor = models.CharField(_("executor"), max_length=200, blank=True)
    claimed_at = models.DateTimeField(_("claimed at"), null=True, editable=False)
    deaths = models.PositiveIntegerField(default=0, editable=False)
    """How many processes ended while they carried it out."""
    finished_at = models.DateTimeField(_("finished at"), null=True)
    result = models.TextField(_("result"), blank=True)
    report = models.BinaryField(null=True)
    """What a dry run saw, as `dead_letters.dry_runs` writes it."""
    job = models.ForeignKey(
        "lynx_kafka.ReplayJob", models.CASCADE, null=True, editable=False, related_name="replays",
        verbose_name=_("replay job"), db_index=False, db_constraint=False,
    )  # fmt: skip
    """What it is part of; None: it was asked for by itself.

    The database does not check it, which takes a look for each of a million rows.
    """
    lane = models.CharField(max_length=1, blank=True, editable=False)
    """The lane of the job that it is in."""

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("replay")
        verbose_name_plural = _("replays")
        ordering = ("-id",)
        permissions = (("manage_replayjob", _("Can pause, resume and cancel replay jobs")),)
        constraints = (
            models.UniqueConstraint(
                fields=["letter"],
                condition=models.Q(state__in=("requested", "running")),
                name="lynx_kafka_one_replay",
            ),
        )
        indexes = (
            models.Index(
                fields=["id"],
                condition=models.Q(state__in=("requested", "running"), job__isnull=True),
                name="lynx_kafka_replay_waiting",
            ),
            models.Index(
                fields=["job", "state", "lane", "id"],
                condition=models.Q(job__isnull=False),
                name="lynx_kafka_replay_of_job",
            ),
        )

    def __str__(self) -> str:
        return f"{self.letter} → {self.target}"

    @property
    def consumer(self) -> str:
        """The consumer of its letter: permissions are asked for it."""
        return self.letter.consumer
