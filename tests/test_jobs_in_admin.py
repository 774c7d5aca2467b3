"""Replay jobs in the admin, used like a person would: over HTTP, on rows as workers leave them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pytest_django import Settings

from django_kafka.dead_letters import audit, jobs, replaying
from django_kafka.dead_letters.jobs.running import JobExecutor
from django_kafka.models import DeadLetter, FailureGroup, Replay, ReplayJob
from tests.letters import dead_letter

pytestmark = pytest.mark.django_db

ALERT = "<script>alert(1)</script>\u202e"
ALL = ("view_deadletter", "replay_deadletter", "view_replayjob", "manage_replayjob", "view_failuregroup")


@pytest.fixture(autouse=True)
def _consumer(settings: Settings) -> None:
    topics = {"flights": {"handler": "tests.app.handlers.fail_on_bad"}}
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "consumers": {"ops": {"group_id": "g", "topics": topics, "retry": {"max_retries": 0}}},
        "dead_letters": {"job_above": 8, "reason_above": 5},
    }


@pytest.fixture
def person(client: Client) -> Callable[..., User]:
    """Log somebody in who has these permissions."""

    def log_in(*permissions: str) -> User:
        user = User.objects.create_user(f"p{User.objects.count()}", is_staff=True)
        of_ours = Permission.objects.filter(content_type__app_label="lynx_kafka", codename__in=permissions)
        assert of_ours.count() == len(permissions)
        user.user_permissions.set(of_ours)
        client.force_login(user)
        return user

    return log_in


def url(name: str, *arguments: object) -> str:
    return reverse(f"admin:lynx_kafka_replayjob_{name}", args=arguments)


def letters(count: int, **fields: Any) -> None:
    for number in range(count):
        dead_letter({"n": number}, offset=number, key=f"k{number}".encode(), **fields)


def select(client: Client, count: int, verb: str = "replay", *, query: str = "", **answers: Any) -> Any:
    """Choose letters in the list, and answer what is asked then when there are answers."""
    chosen = {
        "action": verb,
        "select_across": "0",
        "_selected_action": list(DeadLetter.objects.order_by("pk").values_list("pk", flat=True)[:count]),
    }
    until = {"confirmed": "yes", "until": str(10**9), **answers} if answers else {}
    return client.post(reverse("admin:lynx_kafka_deadletter_changelist") + query, {**chosen, **until})


def made(**options: Any) -> ReplayJob:
    (job,) = jobs.create(replaying.letters(), **options)
    return job


def carry_out() -> None:
    executor = JobExecutor()
    while executor.run_next() is not None:
        pass
    executor.close()


def test_few_letters_are_replayed_without_a_job_unless_it_is_asked_for(client: Client, person: Any) -> None:
    person(*ALL)
    letters(4)

    asked = select(client, 2)
    assert "as_job" in asked.content.decode()
    select(client, 2, reason="")
    assert not ReplayJob.objects.exists()
    assert Replay.objects.filter(job=None).count() == 2

    answer = select(client, 4, as_job="on")
    job = ReplayJob.objects.get()
    assert answer.headers["Location"] == url("change", job.pk)
    assert (job.total, job.left_out) == (2, 2)


def test_many_letters_become_a_job_which_needs_a_reason(client: Client, person: Any) -> None:
    user = person(*ALL)
    letters(10)

    asked = select(client, 10).content.decode()
    assert "They are so many" in asked
    assert 'name="as_job"' not in asked
    without = select(client, 10, reason=" ")
    assert "needs a reason" in without.content.decode()
    assert not Replay.objects.exists()

    select(client, 10, reason="mended in 1.2", rate="50", ramp="1, 10", failure_percent="20")

    job = ReplayJob.objects.get()
    assert (job.total, job.reason, job.rate, job.ramp, job.failure_ratio) == (10, "mended in 1.2", 50, [1, 10], 0.2)
    assert (job.requested_by, job.requested_by_name, job.target) == (user, user.username, "handler")
    noted = audit.entries().get(verb="make job")
    assert (noted.reason, noted.row, noted.details["letters"]) == ("mended in 1.2", str(job.pk), 10)
    assert LogEntry.objects.get(object_id=str(job.pk)).change_message == "Made."


def test_what_was_typed_into_the_search_is_not_kept_in_the_audit(client: Client, person: Any) -> None:
    person(*ALL)
    letters(10)

    select(client, 10, query="?q=flights&state=open", reason="mended")

    assert ReplayJob.objects.get().description == "q=flights&state=open"
    assert audit.entries().get(verb="make job").details["selection"] == "q=…&state=open"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate", "0"),
        ("rate", "fast"),
        ("ramp", "1, 0"),
        ("ramp", "1 x"),
        ("ramp", "1 " * 21),
        ("failure_percent", "101"),
    ],
)
def test_what_cannot_be_meant_is_asked_again(client: Client, person: Any, field: str, value: str) -> None:
    person(*ALL)
    letters(3)

    answer = select(client, 3, **{"reason": "", field: value})

    assert answer.status_code == 200
    assert "errorlist" in answer.content.decode()
    assert not Replay.objects.exists()


def test_a_ramp_that_would_never_pause_is_asked_about(client: Client, person: Any) -> None:
    """Whoever begins with one letter wants to know whether it went well before all others follow."""
    person(*ALL)
    letters(3)

    asked = select(client, 3, ramp="1, 10").content.decode()
    assert "A ramp needs the percentage of failures above which it pauses" in asked
    assert not Replay.objects.exists()

    select(client, 3, ramp="1, 10", failure_percent="100")
    assert ReplayJob.objects.get().failure_ratio == 1


def test_a_whole_group_becomes_a_job(client: Client, person: Any) -> None:
    person(*ALL)
    group = FailureGroup.objects.create(
        fingerprint="f", consumer="ops", error_type="ValueError", example="no time", category="handler",
        first_seen_at="2026-01-01T00:00:00Z", last_seen_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    letters(10, failure_group=group)
    where = reverse("admin:lynx_kafka_deadletter_group", args=[group.pk, "replay"])
    (until,) = re.findall(r'name="until" value="(\d+)"', client.get(where).content.decode())
    letters(1, failure_group=group, partition=3)

    client.post(where, {"confirmed": "yes", "until": until, "reason": "mended"})

    job = ReplayJob.objects.get()
    assert (job.total, job.description) == (10, "ValueError")


def test_the_page_of_a_job_shows_how_far_it_is_and_what_became_of_each_letter(client: Client, person: Any) -> None:
    person(*ALL)
    letters(2)
    dead_letter({"bad": True}, offset=7, key=b"k0")
    job = made(name=ALERT, reason=ALERT, description=ALERT, ramp=[1, 10], failure_ratio=0.9, rate=1000)

    before = client.get(url("change", job.pk)).content.decode()
    assert '<progress class="lynx-kafka-progress" max="3" value="0"' in before
    assert 'data-refresh="2"' in before
    assert "kafka_replay --jobs" in before
    carry_out()
    page = client.get(url("change", job.pk)).content.decode()
    failed = client.get(url("change", job.pk), {"outcome": "failed"}).content.decode()

    assert 'max="3" value="3"' in page
    assert "data-refresh" not in page
    assert ALERT not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    assert page.count("flights[0]@") == 3
    assert failed.count("flights[0]@") == 1
    assert "bad value at offset 7" in failed
    assert "<script>" not in page.replace('<script src="', "")


def test_a_browser_without_javascript_can_be_told_to_look_again(client: Client, person: Any) -> None:
    person(*ALL)
    letters(1)
    job = made()

    assert "Refresh" not in client.get(url("change", job.pk)).headers
    assert client.get(url("change", job.pk), {"watch": ""}).headers["Refresh"] == "5"
    carry_out()
    assert "Refresh" not in client.get(url("change", job.pk), {"watch": ""}).headers


def test_a_job_is_paused_resumed_and_cancelled_and_each_is_noted(client: Client, person: Any) -> None:
    user = person(*ALL)
    letters(3)
    job = made()

    for verb, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        answer = client.post(url(verb, job.pk))
        assert answer.headers["Location"] == url("change", job.pk)
        job.refresh_from_db()
        assert job.state == state
    client.post(url("pause", job.pk))

    job.refresh_from_db()
    assert job.state == "cancelled"
    assert [one.verb for one in audit.entries().order_by("pk")] == ["pause job", "resume job", "cancel job"]
    assert audit.entries().first().user_name == user.username  # type: ignore[union-attr]
    assert LogEntry.objects.count() == 3


@pytest.mark.parametrize(("text", "rate"), [("0.5", 0.5), ("2,5", 2.5), ("", None)])
def test_the_rate_is_changed(client: Client, person: Any, text: str, rate: float | None) -> None:
    person(*ALL)
    letters(1)
    job = made(rate=9)

    client.post(url("rate", job.pk), {"rate": text})

    job.refresh_from_db()
    assert job.rate == rate


@pytest.mark.parametrize("text", ["fast", "-1", "inf", "1e99"])
def test_a_rate_that_cannot_be_meant_changes_nothing(client: Client, person: Any, text: str) -> None:
    person(*ALL)
    letters(1)
    job = made(rate=9)

    answer = client.post(url("rate", job.pk), {"rate": text}, follow=True)

    job.refresh_from_db()
    assert job.rate == 9
    assert "Write how many letters a second" in answer.content.decode()


def test_without_the_permission_nothing_can_be_done_and_the_page_says_why(client: Client, person: Any) -> None:
    person("view_deadletter", "view_replayjob")
    letters(3)
    job = made()

    page = client.get(url("change", job.pk)).content.decode()
    assert page.count("disabled title=") == 3
    assert "lynx_kafka.manage_replayjob" in page
    for verb in ("pause", "cancel", "rate"):
        assert client.post(url(verb, job.pk)).status_code == 403
    job.refresh_from_db()
    assert job.state == "running"
    assert not audit.entries().exists()


def test_verbs_are_posted_with_a_token_only(person: Any, client: Client) -> None:
    user = person(*ALL)
    letters(1)
    job = made()

    assert client.get(url("cancel", job.pk)).status_code == 405
    assert client.post(url("cancel", job.pk + 1)).status_code == 404
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(user)
    assert strict.post(url("cancel", job.pk)).status_code == 403
    job.refresh_from_db()
    assert job.state == "running"


def test_jobs_are_seen_with_their_permission_only(client: Client, person: Any) -> None:
    person("view_deadletter")
    letters(1)
    job = made()

    assert client.get(url("changelist")).status_code == 403
    assert client.get(url("change", job.pk)).status_code == 403


def test_list_and_page_take_the_same_number_of_queries_whatever_they_show(client: Client, person: Any) -> None:
    person(*ALL)

    def queries(address: str) -> int:
        client.get(address)
        with CaptureQueriesContext(connection) as captured:
            assert client.get(address).status_code == 200
        return len(captured)

    letters(2)
    first = made()
    few = queries(url("changelist")), queries(url("change", first.pk))
    letters(60, partition=1)
    second = made()
    many = queries(url("changelist")), queries(url("change", second.pk))

    assert many == few


def test_the_report_is_read_page_by_page(client: Client, person: Any) -> None:
    person(*ALL)
    letters(60)
    job = made()

    first = client.get(url("change", job.pk))
    seen = set(re.findall(r"flights\[0\]@(\d+)", first.content.decode()))
    following = client.get(url("change", job.pk) + first.context["next"])
    seen |= set(re.findall(r"flights\[0\]@(\d+)", following.content.decode()))

    assert len(seen) == 60
    assert following.context["next"] == ""
    for wrong in ("x", "failed.ab.1", "failed.a.x", "moon.a.1"):
        assert client.get(url("change", job.pk), {"after": wrong, "outcome": "moon"}).status_code == 200
