"""Django settings of the benchmarks: defaults wherever a figure is to mean something for users."""

from __future__ import annotations

import os
from typing import Any

SECRET_KEY = "benchmarks"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_kafka"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
KAFKA: dict[str, Any] = {
    "brokers": [os.environ.get("BENCH_BROKERS", "127.0.0.1:9092")],
    "producers": {"default": {"compression": "none"}},
    "consumers": {
        "bench": {
            "group_id": os.environ.get("BENCH_GROUP", "bench"),
            "topics": {os.environ.get("BENCH_TOPIC", "bench"): {"handler": "benchmarks.cases.ignore"}},
            "transaction": "none",
        }
    },
    "heartbeats": {"enabled": False},
}
