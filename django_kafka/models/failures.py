"""Failure groups: dead letters with the same cause, how many there were, and when."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


def fingerprint(cluster: str, consumer: str, handler: str, error_type: str, frame: str) -> str:
    """Return what tells failure groups apart: letters with the same are of one group."""
    parts = (cluster, consumer, handler, error_type, frame)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()


def hour_of(at: datetime) -> datetime:
    """Return the beginning of the hour of a time: in UTC, or as it is in projects whose times have no zone."""
    return (at.astimezone(UTC) if timezone.is_aware(at) else at).replace(minute=0, second=0, microsecond=0)


class FailureGroup(models.Model):
    """Dead letters with the same cause: consumer, handler, type of the error, and where in the project it arose."""

    class State(models.TextChoices):
        """Where a group stands. All but the first are what people say of it, or what followed from that."""

        OPEN = "open", _("open")
        ACKNOWLEDGED = "acknowledged", _("acknowledged")
        RESOLVED = "resolved", _("resolved")
        REGRESSED = "regressed", _("regressed")

    id = models.BigAutoField(primary_key=True)
    fingerprint = models.CharField(max_length=64, unique=True, editable=False)
    cluster = models.CharField(_("cluster"), max_length=100, default="default")
    consumer = models.CharField(_("consumer"), max_length=200)
    handler = models.CharField(_("handler"), max_length=500, blank=True)
    error_type = models.CharField(_("error type"), max_length=300)
    frame = models.CharField(_("where"), max_length=300, blank=True)
    """The innermost function of the project that the error passed, as module and name; "": it passed none."""
    category = models.CharField(_("category"), max_length=30)
    example = models.CharField(_("error"), max_length=300, blank=True)
    """What the first of its errors said, its first line."""
    seen = models.BigIntegerField(_("failures"), default=0)
    """How many failures were stored, each replay that failed again included; see `FailureTally` for the latest."""
    first_seen_at = models.DateTimeField(_("first seen"))
    last_seen_at = models.DateTimeField(_("last seen"))
    first_release = models.CharField(_("first release"), max_length=200, blank=True)
    last_release = models.CharField(_("last release"), max_length=200, blank=True)

    state = models.CharField(_("state"), max_length=15, choices=State.choices, default=State.OPEN)
    state_since = models.DateTimeField(_("since"), null=True)
    """When somebody said so, or it came back; None: nobody ever did."""
    state_by = models.CharField(_("by"), max_length=150, blank=True)
    """Who said so; "": nobody, it came back."""
    resolved_in = models.CharField(_("resolved in release"), max_length=200, blank=True)
    """The release that ran when it was last called resolved, as far as it was known."""
    regressed_in = models.CharField(_("came back in release"), max_length=200, blank=True)
    """The release in which it came back after that."""
    owner = models.CharField(_("owner"), max_length=150, blank=True)
    note = models.TextField(_("note"), blank=True)

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("failure group")
        verbose_name_plural = _("failure groups")
        ordering = ("-last_seen_at", "-id")
        indexes = (
            models.Index(fields=["-last_seen_at", "-id"], name="lynx_kafka_group_seen"),
            models.Index(fields=["consumer", "-last_seen_at"], name="lynx_kafka_group_consumer"),
        )

    def __str__(self) -> str:
        name = f"{self.error_type.rpartition('.')[2]} · {self.consumer}"
        # The admin writes it into pages and histories as it is, and strangers tell the errors of imported letters.
        return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)


class FailureTally(models.Model):
    """Failures of a group that are not added up in it yet.

    Whoever stores letters adds a row of these in the same transaction. To raise a number in the group's own row would
    have all workers wait for each other's COMMIT.
    """

    id = models.BigAutoField(primary_key=True)
    failure_group = models.ForeignKey(FailureGroup, models.CASCADE, related_name="tallies", verbose_name=_("group"))
    at = models.DateTimeField()
    """When the last of them happened."""
    count = models.PositiveIntegerField()
    release = models.CharField(max_length=200, blank=True)

    class Meta:
        app_label = "lynx_kafka"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.count}"


class FailureHour(models.Model):
    """How many failures of a group there were in one hour."""

    id = models.BigAutoField(primary_key=True)
    failure_group = models.ForeignKey(
        FailureGroup, models.CASCADE, related_name="hours", verbose_name=_("group"), db_index=False
    )
    hour = models.DateTimeField(db_index=True)
    """Its beginning, in UTC."""
    count = models.PositiveIntegerField(default=0)

    class Meta:
        app_label = "lynx_kafka"
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=["failure_group", "hour"], name="lynx_kafka_failure_hour"),)

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H}: {self.count}"
