"""What handlers leave behind, so that a test can count it."""

from __future__ import annotations

from django.db import models


class Effect(models.Model):
    """One run of a handler that was committed."""

    group = models.CharField(max_length=255)
    topic = models.CharField(max_length=249)
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    key = models.TextField(null=True)
    payload = models.JSONField(null=True)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["group", "topic", "partition", "offset"], name="tests_effect_place")]

    def __str__(self) -> str:
        return f"{self.group} {self.topic}[{self.partition}]@{self.offset}"
