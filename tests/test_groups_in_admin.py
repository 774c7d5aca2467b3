"""The desk's failure groups, used like a person would: over HTTP, on rows as workers leave them."""

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

from django_kafka import conf
from django_kafka.dead_letters import grouping, recording
from django_kafka.dead_letters.failures import Failure
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, FailureGroup, Replay
from django_kafka.serializers import TopicDecoder
from tests.test_recording import Raw

pytestmark = pytest.mark.django_db(transaction=True)

ALERT = "<script>alert(1)</script>"
ALL = ("view_failuregroup", "change_failuregroup", "view_deadletter", "replay_deadletter")


@pytest.fixture(autouse=True)
def _consumer(settings: Settings) -> None:
    topics = {"flights": {"handler": "tests.app.handlers.fail_on_bad"}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "g", "topics": topics}}}


@pytest.fixture
def group() -> Callable[..., FailureGroup]:
    """Make a group as a worker would, with so many open letters."""
    offset = 0

    def make(letters: int = 1, error: str = "ValueError", text: str = "no departure time") -> FailureGroup:
        nonlocal offset
        failed = []
        for _ in range(letters):
            offset += 1
            one = Failure.of(ValueError(text), category="handler", handler="flights.handlers.landed")
            object.__setattr__(one, "error_type", error)
            failed.append((Message(Raw(offset=offset), TopicDecoder("text", "json")), one))
        recording.record_all(conf.consumer("ops"), "g", failed, still_ours=lambda: None)
        grouping.add_up()
        return FailureGroup.objects.get(error_type=error)

    return make


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
    return reverse(f"admin:lynx_kafka_failuregroup_{name}", args=arguments)


def listed(client: Client, **query: Any) -> set[str]:
    answer = client.get(url("changelist"), query)
    assert answer.status_code == 200
    return {each.error_type for each in answer.context["cl"].result_list}


def shown(client: Client, group: FailureGroup) -> str:
    answer = client.get(url("change", group.pk))
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_list_counts_and_draws_with_as_many_queries_for_fifty_groups_as_for_one(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    person(*ALL)
    group(3)
    with CaptureQueriesContext(connection) as few:
        page = client.get(url("changelist")).content.decode()
    assert ">3</a>" in page
    assert 'aria-label="3 failures in 24 hours, at most 3 in one step"' in page
    for number in range(49):
        group(error=f"Error{number}")
    with CaptureQueriesContext(connection) as many:
        answer = client.get(url("changelist"))
    assert len(answer.context["cl"].result_list) == 50
    assert len(many) == len(few)


def test_the_list_shows_what_is_not_resolved_unless_asked_otherwise(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    person(*ALL)
    for state in FailureGroup.State.values:
        FailureGroup.objects.filter(pk=group(error=state).pk).update(state=state)
    assert listed(client) == {"open", "acknowledged", "regressed"}
    assert listed(client, state="all") == set(FailureGroup.State.values)
    assert listed(client, state="regressed") == {"regressed"}
    # PostgreSQL refuses NUL.
    assert listed(client, state="a\0") == {"open", "acknowledged", "regressed"}
    assert client.get(reverse("admin:lynx_kafka_deadletter_changelist"), {"state": "a\0"}).status_code == 200
    assert listed(client, state="all", q="departure") == set(FailureGroup.State.values)
    assert listed(client, q="acknow") == {"acknowledged"}


def test_what_people_say_of_a_group_is_shown_and_entered_into_its_history(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    user, one = person(*ALL), group()
    for state, label in (("acknowledged", "Acknowledge"), ("resolved", "Resolve"), ("open", "Open again")):
        before = shown(client, one)
        assert f'name="state" value="{state}">{label}<' in before
        answer = client.post(url("say", one.pk), {"state": state}, follow=True)
        assert answer.redirect_chain == [(url("change", one.pk), 302)]
        one.refresh_from_db()
        assert (one.state, one.state_by) == (state, user.get_username())
        assert f'value="{state}"' not in answer.content.decode()
    said = LogEntry.objects.order_by("pk").values_list("change_message", flat=True)
    assert list(said) == ["Acknowledged.", "Called resolved.", "Opened again."]


def test_many_groups_are_resolved_at_once(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    person(*ALL)
    chosen = [group(error="A"), group(error="B")]
    data = {"action": "say_resolved", "_selected_action": [one.pk for one in chosen]}
    answer = client.post(url("changelist"), data, follow=True)
    said = [str(one) for one in answer.context["messages"]]
    # Those that are left alone are counted before anything is done: the list is of what is not resolved.
    assert said == ["2 failure groups are resolved."]
    assert listed(client) == set()
    assert listed(client, state="resolved") == {"A", "B"}


def test_a_project_whose_times_have_no_zone_has_groups_too(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup], settings: Settings
) -> None:
    settings.USE_TZ = False
    person(*ALL)
    one = group(2)
    group()  # counted now, and in the same hour
    assert listed(client) == {"ValueError"}
    assert 'aria-label="3 failures in 24 hours' in shown(client, one)


def test_owner_and_note_are_saved(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    person(*ALL)
    one = group()
    answer = client.post(url("note", one.pk), {"owner": "ada", "note": f"see {ALERT}"}, follow=True)
    page = answer.content.decode()
    assert 'value="ada"' in page
    assert "see &lt;script&gt;" in page
    assert ALERT not in page
    assert listed(client, owner="ada") == {"ValueError"}
    assert client.post(url("note", one.pk), {"owner": "a\0", "note": "b\0"}).status_code == 302


def test_all_open_letters_of_a_group_are_replayed_and_no_others(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    person(*ALL)
    one, other = group(3), group(2, error="KeyError")
    settled = one.letters.order_by("pk").first()
    assert settled is not None
    DeadLetter.objects.filter(pk=settled.pk).update(state="resolved")
    replay = re.search(r'href="([^"]+/replay/)"', shown(client, one))
    assert replay is not None
    asked = client.get(replay[1])
    assert "Replay 2 dead letters to their handlers?" in asked.content.decode()
    until = dict(asked.context["hidden"])["until"]
    group()  # fails while the person thinks

    answer = client.post(replay[1], {"until": until})

    assert (answer.status_code, answer["Location"]) == (302, url("change", one.pk))
    replayed = set(Replay.objects.values_list("letter", flat=True))
    assert replayed == set(one.letters.filter(state="open", pk__lte=until).values_list("pk", flat=True))
    assert len(replayed) == 2
    assert not Replay.objects.filter(letter__failure_group=other).exists()


def test_a_letter_leads_to_its_group_and_the_group_to_its_letters(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    person(*ALL)
    one, other = group(2), group(error="KeyError")
    letter = one.letters.latest("pk")
    page = client.get(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])).content.decode()
    assert f'href="{url("change", one.pk)}"' in page
    link = re.search(r'<p><a href="([^"]+)">All of them', shown(client, one))
    assert link is not None
    answer = client.get(link[1])
    assert {each.failure_group_id for each in answer.context["cl"].result_list} == {one.pk}
    assert len(answer.context["cl"].result_list) == 2
    assert other.pk != one.pk


@pytest.mark.parametrize(
    ("name", "data", "needs"),
    [
        ("changelist", None, "view_failuregroup"),
        ("change", None, "view_failuregroup"),
        ("say", {"state": "resolved"}, "change_failuregroup"),
        ("note", {"owner": "eve"}, "change_failuregroup"),
    ],
)
def test_nothing_is_shown_or_done_without_its_permission(
    client: Client,
    person: Callable[..., User],
    group: Callable[..., FailureGroup],
    name: str,
    data: dict[str, str] | None,
    needs: str,
) -> None:
    one = group()
    where = url(name, *([] if name == "changelist" else [one.pk]))
    every = set(ALL) - ({needs} if data else {needs, "change_failuregroup"})
    person(*every)
    for answer in (client.get(where), client.post(where, data or {})):
        assert answer.status_code in (403, 405)
    one.refresh_from_db()
    assert (one.state, one.owner) == ("open", "")


def test_letters_are_not_shown_or_touched_by_those_who_may_only_look_at_groups(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    person("view_failuregroup")
    one = group(text="secret of a message")
    page = shown(client, one)
    assert "flights[3]@" not in page
    assert "You are not permitted to view this. It needs the permission lynx_kafka.view_deadletter." in page
    assert '<a class="button' not in page
    assert set(re.findall(r"<button([^>]*)>", page.partition('id="content-main"')[2])) <= {
        f' type="submit" class="button" name="state" value="{state}" disabled aria-describedby="refused-say"'
        for state in ("acknowledged", "resolved", "open")
    }
    for verb in ("replay", "discard", "replay-to-topic", "cancel-replay"):
        where = reverse("admin:lynx_kafka_deadletter_group", args=[one.pk, verb])
        assert client.get(where).status_code == 403
        assert client.post(where, {"until": "9"}).status_code == 403
    assert not Replay.objects.exists()


def test_what_is_not_there_is_not_found(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    person(*ALL)
    one = group()
    assert client.get(url("change", one.pk + 1)).status_code == 404
    assert client.post(url("say", one.pk + 1), {"state": "open"}).status_code == 404
    assert client.post(url("say", one.pk), {"state": "regressed"}).status_code == 403
    for verb in ("reopen", "delete", "replay"):
        group_id = one.pk + (verb == "replay")
        assert client.get(reverse("admin:lynx_kafka_deadletter_group", args=[group_id, verb])).status_code == 404


def test_what_strangers_wrote_is_harmless(
    client: Client, person: Callable[..., User], group: Callable[..., FailureGroup]
) -> None:
    person(*ALL)
    one = group(error=f"{ALERT}\u202e\n.x\u202e", text=f"{ALERT}\x1b[31m\u202e")
    client.post(url("say", one.pk), {"state": "acknowledged"})
    pages = [client.get(where).content.decode() for where in (url("changelist"), url("history", one.pk))]
    for page in (*pages, shown(client, one)):
        assert ALERT not in page
        assert "\u202e" not in page
        assert "\x1b" not in page
