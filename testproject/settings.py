"""Airline operations: the flights that leave New York City arrive through Kafka and become rows.

Without further ado it runs on SQLite and the embedded cluster. The environment names real ones:

    KAFKA_BROKERS=host:9092,host:9092
    DATABASE_URL=postgres://user:password@host:5432/name

With SCHEMA_REGISTRY_URL, the address of a schema registry, airports report flights on three more topics, as Avro, JSON
Schema and Protobuf.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BASE_DIR = Path(__file__).resolve().parent.parent


def database(url: str) -> dict[str, Any]:
    """Turn postgres://user:password@host:port/name or sqlite:///path into what Django wants."""
    parts = urlsplit(url)
    if parts.scheme in ("postgres", "postgresql"):
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(parts.path.lstrip("/")),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": unquote(parts.hostname or ""),
            "PORT": str(parts.port or ""),
        }
    if parts.scheme != "sqlite":
        raise ValueError(f"DATABASE_URL starts with {parts.scheme!r}; it may be postgres:// or sqlite:///.")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": unquote(parts.path.removeprefix("/")),
        "OPTIONS": {
            # Worker and admin write at the same time: readers do not wait for writers, writers wait for each other.
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }


SECRET_KEY = os.environ.get("SECRET_KEY", "for development on this machine only")
DEBUG = os.environ.get("DEBUG", "1") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", "testserver"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_prometheus",
    "health_check",
    "django_kafka",
    "testproject.flights",
]

MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]

ROOT_URLCONF = "testproject.urls"
WSGI_APPLICATION = "testproject.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {
    "default": database(os.environ.get("DATABASE_URL") or f"sqlite:///{BASE_DIR / 'testproject' / 'flights.sqlite3'}")
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "America/New_York"
USE_TZ = True
STATIC_URL = "static/"

KAFKA = {
    "brokers": [broker.strip() for broker in os.environ.get("KAFKA_BROKERS", "").split(",") if broker.strip()]
    or "embedded",
    "client_id": "testproject",
    "consumers": {
        "operations": {
            "group_id": "operations",
            "topics": ["flights"],
            "enable_auto_commit": False,
            # A line that cannot be read stays so: another attempt would only keep the others waiting.
            "retry": {"max_retries": 0},
            # Cancelled flights come by the hundred when it snows: a surge that no waiting ends.
            "circuit_breaker": {"enabled": False},
        },
    },
    "dead_letters": {"edit": True},
}


def with_schemas(kafka: dict[str, Any], url: str) -> dict[str, Any]:
    """Return KAFKA with the topics that have schemas in the registry at `url`."""
    schemas, leg = Path(__file__).parent / "flights" / "schemas", "testproject.flights.schemas.leg_pb2.Leg"
    handlers = "testproject.flights.reports"
    reports = {
        "group_id": "reports",
        "topics": {
            "departures": {"handler": f"{handlers}.departed", "dry_run": True, "serializer": "avro"},
            "arrivals": {"handler": f"{handlers}.arrived", "dry_run": True, "serializer": "jsonschema"},
            "legs": {"handler": f"{handlers}.flown", "dry_run": True, "serializer": "protobuf", "schema": leg},
        },
        "enable_auto_commit": False,
        "retry": {"max_retries": 0},
        "circuit_breaker": {"enabled": False},
    }
    topics = {
        "departures": {"serializer": "avro", "schema": schemas / "departure.avsc"},
        "arrivals": {"serializer": "jsonschema", "schema": schemas / "arrival.json"},
        "legs": {"serializer": "protobuf", "schema": leg},
    }
    return {
        **kafka,
        # Schemas are registered by `kafka_schemas register`, as a deploy does it.
        "schema_registry": {"url": url, "auto_register": False},
        "producers": {"default": {"topics": topics}},
        "consumers": {**kafka["consumers"], "reports": reports},
    }


if registry := os.environ.get("SCHEMA_REGISTRY_URL"):
    KAFKA = with_schemas(KAFKA, registry)
