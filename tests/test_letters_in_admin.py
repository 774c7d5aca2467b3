"""Finding letters in the admin, and what stands beside one: where its error arose, and letters of the same key."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pytest_django import Settings

from django_kafka.admin import tracebacks
from django_kafka.models import DeadLetter, FailureGroup
from tests.letters import dead_letter

pytestmark = pytest.mark.django_db

LIST = "admin:lynx_kafka_deadletter_changelist"
TRACEBACK = """Traceback (most recent call last):
  File "/app/django_kafka_of_others/site-packages/django_kafka/execution.py", line 80, in run
    call(message)
  File "/app/flights/kafka_handlers.py", line 12, in flight_departed
    at = clock(flight["dep_time"])
  File "/app/flights/kafka_handlers.py", line 5, in clock
    return int(text)
ValueError: invalid literal for int() with base 10: 'NA'
"""


@pytest.fixture(autouse=True)
def _desk(client: Client, settings: Settings) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops"}}}
    client.force_login(User.objects.create_superuser("root"))


def listed(client: Client, **query: Any) -> set[int]:
    answer = client.get(reverse(LIST), query)
    assert answer.status_code == 200, answer
    return {each.pk for each in answer.context["cl"].result_list}


def shown(client: Client, letter: DeadLetter) -> str:
    answer = client.get(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk]))
    assert answer.status_code == 200
    return answer.content.decode()


def test_letters_are_found_by_a_range_of_offsets(client: Client) -> None:
    letters = [dead_letter(offset=offset) for offset in range(10, 15)]
    dead_letter(offset=12, partition=1)
    assert listed(client, q="flights[0]@11-13") == {one.pk for one in letters[1:4]}
    assert listed(client, q="flights[0]@11") == {letters[1].pk}
    assert listed(client, q="flights[0]@13-11") == set()
    assert listed(client, q="flights[0]@13-") == set()


def test_letters_are_found_by_how_often_they_were_tried(client: Client) -> None:
    once, some, often = (dead_letter(attempts=count) for count in (1, 5, 6))
    assert listed(client, tried="once") == {once.pk}
    assert listed(client, tried="some") == {some.pk}
    assert listed(client, tried="often") == {often.pk}


def test_letters_are_found_by_their_key_whole_or_by_its_beginning(client: Client) -> None:
    one, other = dead_letter(key=b"N14228"), dead_letter(key=b"N142281")
    assert listed(client, q="N14228") == {one.pk, other.pk}
    assert listed(client, q='"N14228"') == {one.pk}


def test_a_key_without_a_word_is_found_with_an_index(client: Client) -> None:
    one = dead_letter(key=b"-/-")
    dead_letter(key=b"-/")
    with CaptureQueriesContext(connection) as queries:
        assert listed(client, q="-/-") == {one.pk}
    assert any("key_hash" in query["sql"] for query in queries)


def test_beside_a_letter_are_those_of_the_same_key_in_their_order(client: Client) -> None:
    same = [dead_letter(key=b"N1", offset=offset) for offset in range(100, 115)]
    DeadLetter.objects.filter(pk=same[8].pk).update(state="resolved")
    others = [dead_letter(key=b"N2"), dead_letter(key=b"N1", topic="gates"), dead_letter(key=None)]
    letter = same[7]

    page = shown(client, letter).partition('id="neighbours"')[2].partition("</table>")[0]
    places = re.findall(r"flights\[0\]@(\d+)<", page)
    assert [int(place) for place in places] == [102, 103, 104, 105, 106, 108, 109, 110, 111, 112]
    assert "lynx-kafka-resolved" in page

    link = re.search(r'<p><a href="([^"]+key_of[^"]+)">', shown(client, letter))
    assert link is not None
    answer = client.get(link[1].replace("&amp;", "&"))
    assert {each.pk for each in answer.context["cl"].result_list} == {one.pk for one in same}
    assert "that of flights[0]@107" in answer.content.decode()
    for other in others:
        assert 'id="neighbours"' not in shown(client, other)


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "9" * 30, "²", "1 OR 1"])
def test_a_link_that_was_tampered_with_breaks_nothing(client: Client, value: str) -> None:
    dead_letter()
    for name in ("key_of", "of_group"):
        assert len(listed(client, **{name: value})) <= 1


def test_the_filter_of_a_group_names_it(client: Client) -> None:
    letter = dead_letter()
    group = FailureGroup.objects.create(
        fingerprint="x", consumer="ops", error_type="builtins.ValueError", category="handler",
        first_seen_at=letter.first_failed_at, last_seen_at=letter.first_failed_at,
    )  # fmt: skip
    DeadLetter.objects.filter(pk=letter.pk).update(failure_group=group)
    dead_letter()
    answer = client.get(reverse(LIST), {"of_group": group.pk})
    assert {each.pk for each in answer.context["cl"].result_list} == {letter.pk}
    assert "ValueError · ops" in answer.content.decode()
    assert 'title="failure group"' not in client.get(reverse(LIST)).content.decode()


def test_the_frames_of_the_project_come_first_the_innermost_before_all(client: Client) -> None:
    frames = tracebacks.of_project(TRACEBACK)
    assert [(one.function, one.place, one.code) for one in frames] == [
        ("clock", "/app/flights/kafka_handlers.py:5", "return int(text)"),
        ("flight_departed", "/app/flights/kafka_handlers.py:12", 'at = clock(flight["dep_time"])'),
    ]
    page = shown(client, dead_letter(traceback=TRACEBACK))
    assert page.index("<code>clock</code>") < page.index("<code>flight_departed</code>") < page.index("execution.py")


def test_a_traceback_of_strangers_is_shown_whole_and_harmless(client: Client) -> None:
    java = "java.lang.IllegalStateException: no gate\n\tat com.planes.Gate.open(Gate.java:17)\n"
    assert tracebacks.of_project(java) == []
    assert "Gate.java:17" in shown(client, dead_letter(traceback=java))
    odd = '  File "/a<script>alert(1)</script>/x.py", line 1, in \u202ef<b>\n    x\x1b[31m\n' * 100
    page = shown(client, dead_letter(traceback=odd))
    assert "<script>alert(1)" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert page.count("<code>") == tracebacks._MOST
