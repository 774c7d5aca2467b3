from __future__ import annotations

from typing import ClassVar

from django.contrib import admin
from django.db import models


class Flight(models.Model):
    """One flight that was to leave New York City, as far as operations have heard of it."""

    carrier = models.CharField(max_length=8, help_text="The airline's code, as in UA.")
    number = models.PositiveIntegerField()
    origin = models.CharField(max_length=8, help_text="The airport's code, as in JFK.")
    destination = models.CharField(max_length=8)
    scheduled = models.DateTimeField(help_text="When it was to leave.")
    departed = models.TimeField(null=True, blank=True, help_text="By the clock at the gate; empty when cancelled.")
    delay = models.IntegerField(null=True, blank=True, help_text="In minutes; negative when it left early.")
    tail_number = models.CharField(max_length=16, blank=True)
    punctual = models.BooleanField(null=True, blank=True, help_text="Whether it arrived less than 15 minutes late.")
    speed = models.PositiveIntegerField(null=True, blank=True, help_text="In knots, between the airports.")

    class Meta:
        ordering: ClassVar[list[str]] = ["scheduled", "carrier", "number"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            # What makes a flight that flight: a message that comes again finds its own row.
            models.UniqueConstraint(fields=["scheduled", "carrier", "number", "origin"], name="one_row_per_flight")
        ]

    def __str__(self) -> str:
        return f"{self.carrier}{self.number} {self.origin}–{self.destination} {self.scheduled:%Y-%m-%d}"

    @property
    @admin.display(boolean=True)
    def cancelled(self) -> bool:
        """Tell whether it never left."""
        return self.departed is None
