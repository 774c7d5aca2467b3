"""What operators want of workers: pauses, which stay, and requests, which are carried out once."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

EVERY = -1
"""Stands for all partitions."""


class Pause(models.Model):
    """Something that is not to be consumed until somebody resumes it: a consumer, or one partition of it."""

    id = models.BigAutoField(primary_key=True)
    cluster = models.CharField(_("cluster"), max_length=100)
    consumer = models.CharField(_("consumer"), max_length=200)
    group_id = models.CharField(_("group"), max_length=255)
    topic = models.CharField(_("topic"), max_length=249, blank=True)
    """As Kafka knows it; "": all of the consumer."""
    partition = models.IntegerField(_("partition"), default=EVERY)
    """Its number; -1: all of the consumer."""
    paused_by = models.CharField(_("paused by"), max_length=200, blank=True)
    paused_at = models.DateTimeField(_("paused at"))
    reason = models.CharField(_("reason"), max_length=500, blank=True)

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("pause")
        verbose_name_plural = _("pauses")
        default_permissions = ()
        constraints = (
            models.UniqueConstraint(
                fields=["cluster", "group_id", "consumer", "topic", "partition"], name="lynx_kafka_pause_identity"
            ),
        )

    def __str__(self) -> str:
        return f"{self.consumer} {self.topic}[{self.partition}]" if self.topic else self.consumer

    @property
    def sentence(self) -> str:
        """Who paused it, since when and why, for rows and logs."""
        who = f" by {self.paused_by}" if self.paused_by else ""
        why = f": {self.reason}" if self.reason else ""
        return f"Paused{who} since {self.paused_at:%Y-%m-%d %H:%M}{why}"


class Control(models.Model):
    """One request to workers: who wants what, who took it, and how it went."""

    class Verb(models.TextChoices):
        """What is wanted."""

        PAUSE = "pause", _("pause")
        RESUME = "resume", _("resume")
        CLOSE_BREAKER = "close_breaker", _("close the circuit")
        SEEK = "seek", _("seek")
        STOP = "stop", _("drain and stop")

    class State(models.TextChoices):
        """How far it came."""

        REQUESTED = "requested", _("requested")
        ACCEPTED = "accepted", _("accepted")
        DONE = "done", _("done")
        FAILED = "failed", _("failed")
        EXPIRED = "expired", _("expired")

    OUTSTANDING = (State.REQUESTED, State.ACCEPTED)

    id = models.BigAutoField(primary_key=True)
    cluster = models.CharField(_("cluster"), max_length=100)
    consumer = models.CharField(_("consumer"), max_length=200)
    group_id = models.CharField(_("group"), max_length=255)
    topic = models.CharField(_("topic"), max_length=249, blank=True)
    """As Kafka knows it; "": it is about all of the consumer."""
    partition = models.IntegerField(_("partition"), default=EVERY)
    worker = models.CharField(_("worker"), max_length=40, blank=True)
    """The id of the `Worker` that it is for; "": whoever has the partition."""
    worker_name = models.CharField(_("worker"), max_length=300, blank=True)
    """What people call that one."""
    verb = models.CharField(_("verb"), max_length=20, choices=Verb.choices)
    number = models.BigIntegerField(_("offset"), null=True)
    """The offset that a seek goes to; of a circuit the episode that is to be closed."""
    reason = models.CharField(_("reason"), max_length=500, blank=True)
    requested_by = models.CharField(_("requested by"), max_length=200, blank=True)
    requested_at = models.DateTimeField(_("requested at"))
    expires_at = models.DateTimeField(_("expires at"))
    """When it is given up unless somebody has taken it."""
    state = models.CharField(_("state"), max_length=10, choices=State.choices, default=State.REQUESTED)
    taken_by = models.CharField(max_length=40, blank=True, editable=False)
    """The id of the `Worker` that took it."""
    taken_by_name = models.CharField(_("accepted by"), max_length=300, blank=True)
    accepted_at = models.DateTimeField(_("accepted at"), null=True)
    finished_at = models.DateTimeField(_("finished at"), null=True)
    result = models.TextField(_("result"), blank=True)

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("control request")
        verbose_name_plural = _("control requests")
        ordering = ("-id",)
        default_permissions = ("view",)
        constraints = (
            models.UniqueConstraint(
                fields=["cluster", "group_id", "consumer", "topic", "partition", "worker", "verb"],
                condition=models.Q(state__in=("requested", "accepted")),
                name="lynx_kafka_control_once",
            ),
        )
        indexes = (
            models.Index(
                fields=["id"],
                condition=models.Q(state__in=("requested", "accepted")),
                name="lynx_kafka_control_waiting",
            ),
            models.Index(fields=["consumer", "-id"], name="lynx_kafka_control_consumer"),
        )

    def __str__(self) -> str:
        return f"{self.get_verb_display()}: {self.what}"

    @property
    def what(self) -> str:
        """What it is about."""
        if self.topic:
            return f"{self.consumer} {self.topic}[{self.partition}]"
        return self.worker_name or self.consumer
