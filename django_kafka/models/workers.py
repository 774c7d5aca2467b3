"""Workers that say they are alive."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class Worker(models.Model):
    """One consumer in one worker process, and when it was last heard of."""

    id = models.CharField(primary_key=True, max_length=40)
    cluster = models.CharField(_("cluster"), max_length=100, default="default")
    consumer = models.CharField(_("consumer"), max_length=200)
    group_id = models.CharField(_("group"), max_length=255)
    host = models.CharField(_("host"), max_length=255)
    pid = models.IntegerField(_("process"))
    version = models.CharField(_("version"), max_length=30)
    started_at = models.DateTimeField(_("started"))
    seen_at = models.DateTimeField(_("last seen"), db_index=True)

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("worker")
        verbose_name_plural = _("workers")
        ordering = ("consumer", "host", "pid")

    def __str__(self) -> str:
        return f"{self.consumer} {self.host}:{self.pid}"
