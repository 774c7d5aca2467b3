"""Django settings of the tests. SQLite, or PostgreSQL when DJANGO_KAFKA_TEST_DATABASE says so (tests/conftest.py)."""

from __future__ import annotations

import os
import sys
from typing import Any

SECRET_KEY = "tests"
DEBUG = False
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.urls"
STATIC_URL = "/static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_kafka",
    "tests.app",
    # Its tables, for the browser tests; programs that tests start have handlers of their own.
    *(["testproject.flights"] if "pytest" in sys.modules else []),
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES: dict[str, dict[str, Any]]
match os.environ.get("DJANGO_KAFKA_TEST_DATABASE", "sqlite"):
    case "sqlite":
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    case "postgresql":
        # conftest fills in the port when it has started the server.
        DATABASES = {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "postgres",
                "USER": "postgres",
                "HOST": "127.0.0.1",
                "PORT": "",
            }
        }
    case other:
        raise ValueError(f"DJANGO_KAFKA_TEST_DATABASE={other!r}; it may be: sqlite, postgresql.")

# Nothing listens there: a test that needs a cluster says so by asking for one.
KAFKA: dict[str, Any] = {"brokers": ["127.0.0.1:1"]}
