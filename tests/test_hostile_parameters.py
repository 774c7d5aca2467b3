"""What strangers write into addresses of the admin is no error of ours, whatever the database."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from django_kafka.models import ReplayJob

pytestmark = pytest.mark.django_db

HOSTILE = ["\0", "ops\0", "%00", "x" * 10_000, "99999999999999999999", "-1", "\ufffd", "requested.\0.5",
           "requested.a.99999999999999999999", "requested.\ufffd.1", "succeeded.a.\u0663"]  # fmt: skip


@pytest.fixture(autouse=True)
def _desk(settings: Settings, client: Client) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops"}}}
    client.force_login(User.objects.create_superuser("root"))


def job() -> Any:
    return ReplayJob.objects.create(consumer="ops", requested_at=timezone.now(), total=1)


@pytest.mark.parametrize("value", HOSTILE)
def test_parameters_of_our_own_views_break_nothing(client: Client, value: str) -> None:
    page = reverse("admin:lynx_kafka_replayjob_change", args=[job().pk])
    for url, name in [
        (page, "after"), (page, "outcome"),
        (reverse("admin:lynx_kafka_dashboard"), "consumer"), (reverse("admin:lynx_kafka_dashboard"), "page"),
    ]:  # fmt: skip
        assert client.get(url, {name: value}).status_code == 200, (url, name)
    for name in ("consumer", "topic", "partition", "worker"):
        for verb in ("pause", "seek", "stop"):
            url = reverse("admin:lynx_kafka_control", args=[verb])
            assert client.get(url, {"consumer": "ops", name: value}).status_code in (200, 404), (verb, name)
    # As half of a pair of UTF-16, which no client of ours writes.
    assert client.get(f"{page}?after=requested.%ed%a0%80.1").status_code == 200
    assert client.get(reverse("admin:lynx_kafka_dashboard") + "?consumer=%ed%a0%80").status_code == 200
