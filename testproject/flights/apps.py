from __future__ import annotations

from django.apps import AppConfig


class FlightsConfig(AppConfig):
    name = "testproject.flights"
    label = "flights"
    default_auto_field = "django.db.models.BigAutoField"
