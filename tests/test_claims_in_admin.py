"""Claims in the admin: for reading only, with a way to them from the workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from django_kafka.models import Claim, SettledMessage, Worker
from tests.test_admin import person

__all__ = ["person"]

pytestmark = pytest.mark.django_db
LIST = "admin:lynx_kafka_claim_changelist"


def make(**fields: Any) -> Claim:
    """A claim, of partition 0 unless told otherwise."""
    usual = {"cluster": "default", "group_id": "ops", "topic": "flights", "partition": 0, "offset": 40, "epoch": 3,
             "consumer": "ops", "worker": "host-1:77", "claimed_at": timezone.now()}  # fmt: skip
    return Claim.objects.create(**{**usual, **fields})


def worker(**fields: Any) -> Worker:
    """A worker of the group that has the claims, unless told otherwise."""
    now = timezone.now()
    usual = {"id": "w", "consumer": "ops", "group_id": "ops", "host": "h", "pid": 1, "version": "1", "started_at": now,
             "seen_at": now}  # fmt: skip
    return Worker.objects.create(**{**usual, **fields})


def test_claims_are_listed_with_how_far_they_are_and_whose(client: Client, person: Callable[..., User]) -> None:
    person("view_claim")
    claim = make(worker="host\u202e:77")
    SettledMessage.objects.bulk_create([SettledMessage(claim=claim, offset=offset) for offset in (42, 44, 47)])
    page = client.get(reverse(LIST)).content.decode()
    assert ">flights[0]<br>" in page
    assert '<td class="field-offset">40</td>' in page
    assert '<td class="field-beyond_shown">3</td>' in page
    assert '<td class="field-epoch">3</td>' in page
    assert "host\\u202e:77" in page


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({}, 3),
        ({"q": "light"}, 2),
        ({"q": "host-2"}, 1),
        ({"consumer": "crews"}, 1),
        ({"cluster": "eu"}, 1),
        ({"group_id": "ops", "topic": "flights"}, 1),
    ],
)
def test_claims_are_found_by_search_and_filters(
    client: Client, person: Callable[..., User], asked: dict[str, str], count: int
) -> None:
    person("view_claim")
    make()
    make(group_id="crews", consumer="crews", worker="host-2:5")
    make(cluster="eu", topic="gates", worker="host-1:9")
    assert client.get(reverse(LIST), asked).context["cl"].result_count == count


def test_a_claim_names_the_command_that_moves_it(client: Client, person: Callable[..., User]) -> None:
    person("view_claim")
    claim = make(partition=2)
    page = client.get(reverse("admin:lynx_kafka_claim_change", args=[claim.pk])).content.decode()
    assert "python manage.py kafka_offsets ops --topic flights --partition 2" in page


def test_nobody_alters_a_claim_in_the_admin(client: Client, admin_client: Client) -> None:
    claim = make()
    change = reverse("admin:lynx_kafka_claim_change", args=[claim.pk])
    for url in (
        change,
        reverse("admin:lynx_kafka_claim_add"),
        reverse("admin:lynx_kafka_claim_delete", args=[claim.pk]),
    ):
        assert admin_client.post(url, {"offset": "7", "post": "yes"}).status_code == 403
    claim.refresh_from_db()
    assert claim.offset == 40


def test_claims_are_for_those_who_may_look_at_them(client: Client, person: Callable[..., User]) -> None:
    person("view_worker")
    assert client.get(reverse(LIST)).status_code == 403


def test_the_page_of_a_worker_leads_to_the_claims_of_its_group(client: Client, person: Callable[..., User]) -> None:
    make()
    make(partition=1)
    make(group_id="others")
    url = reverse("admin:lynx_kafka_worker_change", args=[worker().pk])
    person("view_worker")
    assert "lynx_kafka_claim" not in client.get(url).content.decode()
    assert "of its group" not in client.get(url).content.decode()
    person("view_worker", "view_claim")
    link = f"{reverse(LIST)}?cluster=default&amp;group_id=ops"
    assert f'<a href="{link}">2 claims of its group</a>' in client.get(url).content.decode()
    assert client.get(link.replace("&amp;", "&")).context["cl"].result_count == 2
    alone = reverse("admin:lynx_kafka_worker_change", args=[worker(id="x", group_id="none").pk])
    assert "of its group" not in client.get(alone).content.decode()


def test_claims_speak_german(client: Client, person: Callable[..., User]) -> None:
    person("view_worker", "view_claim")
    make()
    client.cookies["django_language"] = "de"
    assert "beansprucht" in client.get(reverse(LIST)).content.decode().lower()
    page = client.get(reverse("admin:lynx_kafka_worker_change", args=[worker().pk])).content.decode()
    assert "1 Anspruch seiner Gruppe" in page
