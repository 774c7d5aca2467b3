"""Keys whose later messages wait behind a dead letter."""

from __future__ import annotations

import hashlib

from django.db import models
from django.utils.translation import gettext_lazy as _


def key_hash(key: bytes) -> str:
    """Return what stands for a key in an index, which takes no long ones."""
    return hashlib.sha256(key).hexdigest()


class Hold(models.Model):
    """A key of one partition that has a dead letter, and later messages parked behind it, until it is released."""

    id = models.BigAutoField(primary_key=True)
    cluster = models.CharField(_("cluster"), max_length=100, default="default")
    group_id = models.CharField(_("group"), max_length=255)
    topic = models.CharField(_("topic"), max_length=249)
    partition = models.IntegerField(_("partition"))
    key = models.BinaryField(_("key"))
    key_hash = models.CharField(max_length=64, editable=False)
    consumer = models.CharField(_("consumer"), max_length=200)
    since = models.DateTimeField(_("held since"))
    changes = models.BigIntegerField(default=0, editable=False)
    """Written by whoever parks behind it or releases: each waits for the other, under any isolation."""

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("held key")
        verbose_name_plural = _("held keys")
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=["cluster", "group_id", "topic", "partition", "key_hash"], name="lynx_kafka_hold_identity"
            ),
        )

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] #{self.pk}"
