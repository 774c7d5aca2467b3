"""With many letters, each page of the desk asks an index, counts nothing to its end, and asks as often as with a few.

The plans are those of PostgreSQL with 20,000 letters; `python -m benchmarks.desk` measures the pages with a million.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pytest_django import Settings

from benchmarks import desk
from django_kafka.admin import lists
from django_kafka.admin.lists import names_of
from django_kafka.models import DeadLetter, FailureGroup
from tests.letters import dead_letter

LIST = "admin:lynx_kafka_deadletter_changelist"
DESK = "lynx_kafka_letter_desk"


pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _root(client: Client, settings: Settings) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops"}}}
    client.force_login(User.objects.create_superuser("root"))


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


def plans(client: Client, path: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The nodes of the plans of all queries of a page that read letters, words or replays."""
    with CaptureQueriesContext(connection) as queries:
        assert client.get(path).status_code == 200, path
    for query in queries.captured_queries:
        sql = query["sql"]
        if re.search(r'FROM "lynx_kafka_(deadletter|letterwords|replay)"', sql) and sql.startswith(("SELECT", "WITH")):
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN (FORMAT JSON) {sql.replace('%', '%%')}", [])
                found = cursor.fetchone()[0]
            whole = found if isinstance(found, list) else json.loads(found)
            yield sql, list(nodes(whole[0]["Plan"]))


@pytest.mark.postgresql
def test_every_page_asks_an_index(client: Client, settings: Settings) -> None:
    desk.write(20_000)
    with connection.cursor() as cursor:
        # With as many as a million it would not be the cheapest way; with these it sometimes is.
        cursor.execute("SET enable_seqscan = off")
        cursor.execute("SET enable_bitmapscan = on")
    try:
        asked = set()
        for name, path in desk.pages():
            for sql, found in plans(client, path):
                for node in found:
                    if node["Node Type"] == "Seq Scan":
                        assert node["Relation Name"] not in _LARGE, f"{name}: {sql}"
                    asked.add(node.get("Index Name"))
        missing = _WANTED - asked
        assert not missing, missing
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET enable_seqscan")
    each_filter_asks_its_own_index(client)


_LARGE = {"lynx_kafka_deadletter", "lynx_kafka_letterwords", "lynx_kafka_replay", "lynx_kafka_deadletterattempt"}
_WANTED = {
    DESK, "lynx_kafka_letter_consumer", "lynx_kafka_letter_topic", "lynx_kafka_letter_error",
    "lynx_kafka_letter_release", "lynx_kafka_letter_place", "lynx_kafka_letter_failed", "lynx_kafka_letter_key",
    "lynx_kafka_letter_group", "lynx_kafka_letter_hold", "lynx_kafka_words", "lynx_kafka_one_replay",
}  # fmt: skip


def each_filter_asks_its_own_index(client: Client) -> None:
    some = DeadLetter.objects.order_by("-id")[100]
    group = FailureGroup.objects.order_by("id")[10]
    wanted: list[tuple[dict[str, Any], str]] = [
        ({"topic": "topic-7"}, "lynx_kafka_letter_topic"),
        ({"error_type": "flights.errors.Error7"}, "lynx_kafka_letter_error"),
        ({"consumer": "consumer-3"}, "lynx_kafka_letter_consumer"),
        ({"release": "r14"}, "lynx_kafka_letter_release"),
        ({"of_group": group.pk}, "lynx_kafka_letter_group"),
        ({"key_of": some.pk, "state": "all"}, "lynx_kafka_letter_key"),
        ({"q": f"{some.topic}[{some.partition}]@{some.offset}"}, "lynx_kafka_letter_place"),
        ({"q": f"{some.topic}[{some.partition}]@{some.offset - 9}-{some.offset}"}, "lynx_kafka_letter_place"),
        ({"q": "person-4711@example.com"}, "lynx_kafka_words"),
        ({"category": "data", "tried": "often", "state": "all"}, DESK),
        ({"o": "6", "state": "all"}, "lynx_kafka_letter_failed"),
    ]
    for query, index in wanted:
        path = f"{reverse(LIST)}?" + "&".join(f"{name}={value}" for name, value in query.items())
        found = next(each for sql, each in plans(client, path) if re.search(r"LIMIT (1|10)001\b", sql))
        used = {node.get("Index Name") for node in found} - {None}
        alternatives = {index, DESK} if query.keys() & {"consumer", "release", "topic"} else {index}
        assert used & alternatives, f"{query}: {used}"


def counted(client: Client, path: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert client.get(path).status_code == 200
    return len(queries)


def test_a_page_asks_as_often_with_many_letters_as_with_a_few(client: Client) -> None:
    path = reverse(LIST)
    dead_letter()
    client.get(path)
    few = counted(client, path)
    for number in range(120):
        dead_letter(topic=f"topic-{number}", consumer=f"c{number % 7}", release=f"r{number}", error_type=f"E{number}")
    assert counted(client, path) == few
    assert few <= 12


def test_a_list_counts_up_to_a_bound_and_says_so(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MOST_COUNTED", 60)
    letters = [dead_letter() for _ in range(65)]
    answer = client.get(reverse(LIST))
    page = answer.content.decode()
    assert "60+" in page
    assert len(answer.context["cl"].result_list) == 50
    latest = sorted((one.pk for one in letters), reverse=True)[:50]
    assert [one.pk for one in answer.context["cl"].result_list] == latest
    answer = client.get(reverse(LIST), {"p": 2})
    assert len(answer.context["cl"].result_list) == 10
    DeadLetter.objects.filter(pk__in=[one.pk for one in letters[:5]]).delete()
    page = client.get(reverse(LIST)).content.decode()
    assert "60+" not in page
    assert re.search(r"\b60\b", page)


def test_a_search_counts_up_to_a_lower_bound(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MOST_FOUND", 3)
    for _ in range(5):
        dead_letter({"gate": "C12"})
    assert "3+" in client.get(reverse(LIST), {"q": "gate"}).content.decode()
    for blank in ({}, {"q": " "}):
        assert "3+" not in client.get(reverse(LIST), blank).content.decode()


@pytest.mark.parametrize("page", ["3", "0", "-1", "x", "99999999999"])
def test_a_page_that_there_is_not_leads_to_the_first(client: Client, page: str) -> None:
    for _ in range(60):
        dead_letter()
    assert client.get(reverse(LIST), {"p": page}).status_code in (200, 302)


def test_an_empty_list_is_a_page(client: Client) -> None:
    answer = client.get(reverse(LIST))
    assert answer.status_code == 200
    assert list(answer.context["cl"].result_list) == []


def test_no_query_of_the_list_counts_to_the_end(client: Client) -> None:
    for _ in range(3):
        dead_letter()
    for model in ("deadletter", "replay", "hold", "failuregroup"):
        with CaptureQueriesContext(connection) as queries:
            assert client.get(reverse(f"admin:lynx_kafka_{model}_changelist")).status_code == 200
        for query in queries.captured_queries:
            assert not re.match(r'SELECT COUNT\(\*\) AS "__count" FROM "lynx_kafka_deadletter"', query["sql"])
            assert "SELECT DISTINCT" not in query["sql"] or "failuregroup" in query["sql"]


def test_names_are_read_from_one_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    for topic in ("b", "a", "a", "ü", "Z", "b", "a'; --", "%s"):
        dead_letter(topic=topic)
    dead_letter(topic="b", release="")
    assert sorted(names_of(DeadLetter, "topic", "default")) == sorted({"b", "a", "ü", "Z", "a'; --", "%s"})
    assert names_of(DeadLetter, "release", "default") == []
    monkeypatch.setattr(lists, "MOST_NAMES", 2)
    assert len(names_of(DeadLetter, "topic", "default")) == 2


def test_the_filters_offer_the_names_that_there_are(client: Client) -> None:
    dead_letter(topic="blobs", error_type="shop.Broken", release="r7")
    page = client.get(reverse(LIST)).content.decode()
    for query in ("?topic=blobs", "?error_type=shop.Broken", "?release=r7", "?consumer=ops"):
        assert query in page
    assert "Show counts" not in page
