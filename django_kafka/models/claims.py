"""How far the effects in a database have come: the offsets that are committed with them."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class Claim(models.Model):
    """A partition of a consumer whose effects take place once: how far it is, and whose it is."""

    id = models.BigAutoField(primary_key=True)
    cluster = models.CharField(_("cluster"), max_length=100)
    group_id = models.CharField(_("group"), max_length=255)
    topic = models.CharField(_("topic"), max_length=249)
    topic_id = models.CharField(_("topic id"), max_length=40, blank=True)
    """What brokers tell topics of one name apart by; "": they did not say, or it is taken over at the next claim."""
    partition = models.IntegerField(_("partition"))
    offset = models.BigIntegerField(_("offset"))
    """The first one that is not settled. Beyond it those are settled that have a `SettledMessage`."""
    epoch = models.BigIntegerField(_("epoch"), default=0)
    """How many times it was claimed or reset: who knows an older number may write nothing."""
    consumer = models.CharField(_("consumer"), max_length=200)
    worker = models.CharField(_("worker"), max_length=200, blank=True)
    """Host and process that claimed it last, for people."""
    claimed_at = models.DateTimeField(_("claimed at"))

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("claim")
        verbose_name_plural = _("claims")
        constraints = (
            models.UniqueConstraint(
                fields=["cluster", "group_id", "topic", "partition"], name="lynx_kafka_claim_identity"
            ),
        )

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class SettledMessage(models.Model):
    """A message beyond the offset of its claim that is settled already, where messages overtake one another."""

    id = models.BigAutoField(primary_key=True)
    claim = models.ForeignKey(Claim, models.CASCADE, related_name="settled", db_index=False, verbose_name=_("claim"))
    offset = models.BigIntegerField(_("offset"))

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("settled message")
        verbose_name_plural = _("settled messages")
        constraints = (models.UniqueConstraint(fields=["claim", "offset"], name="lynx_kafka_settled_once"),)

    def __str__(self) -> str:
        return f"{self.offset}"
