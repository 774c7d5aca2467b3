"""Settings of the processes that a journey starts. What differs from test to test comes in environment variables."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.settings import *  # noqa: F403

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["JOURNEY_DATABASE"],
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": os.environ["JOURNEY_DATABASE_PORT"],
        "CONN_MAX_AGE": 60,
        **json.loads(os.environ.get("JOURNEY_DATABASE_MORE", "{}")),
    }
}

KAFKA: dict[str, Any] = json.loads(os.environ["JOURNEY_KAFKA"])

ROOT_URLCONF = os.environ.get("JOURNEY_URLS", "tests.urls")

EFFECT_GROUP = os.environ["JOURNEY_GROUP"]

# A real project keeps its own words for celery; ours are read by `config_from_object("django.conf:settings")`.
CELERY_BROKER_URL = os.environ.get("JOURNEY_CELERY_BROKER", "")

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(process)d %(threadName)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stream": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"django_kafka": {"handlers": ["stream"], "level": os.environ.get("JOURNEY_LOG_LEVEL", "INFO")}},
}
