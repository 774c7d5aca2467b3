"""Django settings of the benchmarks: defaults wherever a figure is to mean something for users."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

BROKERS = os.environ.get("BENCH_BROKERS", "127.0.0.1:9092")
TOPIC = os.environ.get("BENCH_TOPIC", "bench")
MESSAGES = int(os.environ.get("BENCH_MESSAGES", "0"))
PARTITIONS = int(os.environ.get("BENCH_PARTITIONS", "4"))
KEYS = int(os.environ.get("BENCH_KEYS", "10000"))
"""Distinct keys."""
SIZE = int(os.environ.get("BENCH_SIZE", "200"))
"""Bytes of a value."""
HANDLER = os.environ.get("BENCH_HANDLER", "")
"""Dotted path of the handler; empty: the case registers one."""
DIRECTORY = os.environ.get("BENCH_DIRECTORY", "")
"""Where processes of a case leave notes for each other."""
SERVER = os.environ.get("BENCH_DATABASE", "")
"""Where PostgreSQL is, for the cases that need it."""
SECURITY = os.environ.get("BENCH_SECURITY", "")
"""What is under `security` in KAFKA, as JSON; empty: nobody logs in."""

REGISTRY = os.environ.get("BENCH_REGISTRY", "")
"""The address of a schema registry, for the cases that need it."""

SECRET_KEY = "benchmarks"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_kafka"]
DATABASES: dict[str, dict[str, Any]] = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
if SERVER:
    server = urlsplit(SERVER)
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": server.hostname,
        "PORT": server.port,
        "USER": server.username,
        "NAME": "bench",
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# As in production: what is logged is formatted and written.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"file": {"class": "logging.FileHandler", "filename": os.devnull, "formatter": "line"}},
    "root": {"handlers": ["file"], "level": "INFO"},
}
KAFKA: dict[str, Any] = {
    "brokers": [BROKERS],
    "security": json.loads(SECURITY or "{}"),
    "producers": {"default": {"compression": "none"}},
    "consumers": {
        "bench": {
            "group_id": os.environ.get("BENCH_GROUP", "bench"),
            "topics": {TOPIC: {"handler": HANDLER}} if HANDLER else {},
            "transaction": "none",
            "retry": {"max_retries": 0},
            **json.loads(os.environ.get("BENCH_CONSUMER", "{}")),
        }
    },
    "heartbeats": {"enabled": False},
}
