"""Circuits in the admin, as people meet them: shown to readers, closed by those who may, after a question."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from django_kafka.models import Worker

pytestmark = pytest.mark.django_db

LIST = "admin:lynx_kafka_worker_changelist"
REASON = "50 of the last 64 messages failed, 48 of them with ValueError"


@pytest.fixture(autouse=True)
def consumers(settings: Any) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops"}}}


@pytest.fixture
def person(client: Client) -> Callable[..., User]:
    """Log somebody in who may do these things."""

    def log_in(*codenames: str) -> User:
        user = User.objects.create_user("op", password="x", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(user)
        return user

    return log_in


def worker(name: str, *, seen: float = 0.0, **fields: Any) -> Worker:
    now = timezone.now()
    stored: Worker = Worker.objects.create(
        **{
            "id": name,
            "consumer": "ops",
            "group_id": "ops",
            "host": f"host-{name}",
            "pid": 1,
            "version": "1",
            "started_at": now,
            "seen_at": now - timedelta(seconds=seen),
            "circuit": "open",
            "circuit_episode": 3,
            "circuit_reason": REASON,
            "circuit_opened_at": now,
            **fields,
        }
    )
    return stored


def asked() -> dict[str, int | None]:
    return dict(Worker.objects.values_list("id", "circuit_close_asked"))


def page(worker: Worker) -> str:
    return reverse("admin:lynx_kafka_worker_change", args=[worker.pk])


def closing(worker: Worker) -> str:
    return reverse("admin:lynx_kafka_worker_close", args=[worker.pk])


def said(answer: Any) -> list[str]:
    return [str(message) for message in get_messages(answer.wsgi_request)]


def test_readers_see_the_circuit_and_its_reason_but_no_button(client: Client, person: Any) -> None:
    person("view_worker")
    opened = worker("one")
    worker("two", circuit="closed", circuit_reason="")
    worker("three", circuit_writing=True)

    listed = client.get(reverse(LIST)).content.decode()
    shown = client.get(page(opened)).content.decode()

    assert listed.count("lynx-kafka-circuit-open") == 2
    assert "open, letters are written" in listed
    refusal = "You are not permitted to control workers. It needs the permission lynx_kafka.control_worker."
    assert f'<option value="close_circuits" disabled>Close the circuits – {refusal}</option>' in listed
    assert refusal in shown
    assert REASON in shown
    assert "close-circuit" not in shown


def test_closing_asks_first_and_then_asks_the_worker(client: Client, person: Any) -> None:
    user = person("view_worker", "control_worker")
    opened = worker("one")

    assert closing(opened) in client.get(page(opened)).content.decode()
    question = client.get(closing(opened)).content.decode()
    assert "Close the circuit of 1 worker?" in question
    assert f"ops host-one:1: {REASON}" in question
    assert asked() == {"one": None}

    answer = client.post(closing(opened), follow=True)

    assert asked() == {"one": 3}
    assert said(answer) == ["1 worker was asked to close its circuit; it does so at its next heartbeat."]
    assert "It was asked to close." in answer.content.decode()
    (entry,) = LogEntry.objects.all()
    assert (entry.user, entry.object_id, entry.change_message) == (user, "one", "Asked to close its circuit.")


@pytest.mark.parametrize(
    "fields", [{"circuit": "closed"}, {"seen": 3600.0}, {"circuit_close_asked": 3}], ids=["closed", "dead", "asked"]
)
def test_what_cannot_be_closed_is_left_alone_and_said_so(client: Client, person: Any, fields: dict[str, Any]) -> None:
    person("view_worker", "control_worker")
    left = worker("one", **fields)

    assert "There is nothing to do." in client.get(closing(left)).content.decode()
    answer = client.post(closing(left), follow=True)

    assert asked() == {"one": fields.get("circuit_close_asked")}
    assert len(said(answer)) == 1
    assert "1 worker was left alone" in said(answer)[0]
    assert not LogEntry.objects.exists()


def test_a_wish_for_an_earlier_opening_does_not_hinder_a_new_one(client: Client, person: Any) -> None:
    person("view_worker", "control_worker")
    opened = worker("one", circuit_close_asked=2)

    client.post(closing(opened))

    assert asked() == {"one": 3}


def test_several_are_closed_from_the_list_after_a_question(client: Client, person: Any) -> None:
    person("view_worker", "control_worker")
    rows = [worker(name) for name in ("one", "two")] + [worker("three", circuit="closed")]
    data = {"action": "close_circuits", "_selected_action": [row.pk for row in rows]}

    question = client.post(reverse(LIST), data)

    assert "Close the circuits of 2 workers?" in question.content.decode()
    assert set(asked().values()) == {None}
    answer = client.post(reverse(LIST), {**data, "confirmed": "yes"}, follow=True)
    assert asked() == {"one": 3, "two": 3, "three": None}
    assert len(said(answer)) == 2


@pytest.mark.parametrize("permissions", [("view_worker", "change_worker"), ("control_worker",)])
def test_without_the_permission_nothing_is_closed(client: Client, person: Any, permissions: tuple[str, ...]) -> None:
    person(*permissions)
    opened = worker("one")

    for answer in (client.get(closing(opened)), client.post(closing(opened))):
        assert answer.status_code == 403
    client.post(reverse(LIST), {"action": "close_circuits", "_selected_action": ["one"], "confirmed": "yes"})

    assert asked() == {"one": None}


def test_a_worker_that_is_gone_is_not_found(client: Client, person: Any) -> None:
    person("view_worker", "control_worker")

    assert client.post(reverse("admin:lynx_kafka_worker_close", args=["gone"])).status_code == 404


def test_a_reason_is_shown_as_text(client: Client, person: Any) -> None:
    person("view_worker", "control_worker")
    opened = worker("one", circuit_reason="<script>alert(1)</script>", waits_for="<b>x</b>", waiting=1)

    for url in (page(opened), closing(opened), reverse(LIST)):
        shown = client.get(url).content.decode()
        assert "<script>alert" not in shown
        assert "<b>x</b>" not in shown
