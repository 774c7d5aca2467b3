"""The app: its label, and what happens when Django starts. Nothing here opens a socket or a thread."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class KafkaConfig(AppConfig):
    """`django_kafka` in INSTALLED_APPS."""

    name = "django_kafka"
    label = "lynx_kafka"
    verbose_name = _("Kafka")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks, signal receivers and metrics, and import every app's handlers."""
        from . import checks, producing  # noqa: F401, PLC0415
        from .monitoring import metrics  # noqa: PLC0415

        metrics.register()
        autodiscover_modules("kafka_handlers")
