"""What of payloads people see in the admin, and what is noted of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from django_kafka.dead_letters import audit
from django_kafka.models import AuditEntry, DeadLetter, DeadLetterAttempt, FailureGroup, Replay
from tests.letters import dead_letter
from tests.test_admin import person

__all__ = ["person"]

pytestmark = pytest.mark.django_db

LIST = "admin:lynx_kafka_deadletter_changelist"
VIEWS = ("view_deadletter", "view_failuregroup", "view_replay", "view_hold")
PASSENGER = {"passenger": {"name": "Alice Ames"}, "flight": "UA 1545", "card": "4111111111111111"}
RULES = ("passenger.name", "authorization", {"regex": r"\b\d{16}\b"})
SECRETS = ("Alice Ames", "4111111111111111", "s3cr3t-token")


@pytest.fixture
def masked(settings: Any) -> Callable[..., None]:
    """Set what is masked."""

    def make(*rules: Any) -> None:
        consumer = {"group_id": "ops", "topics": {"flights": {"handler": "tests.app.handlers.record"}}}
        letters = {"mask": list(rules), "max_shown": 100_000}
        settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": consumer}, "dead_letters": letters}

    make()
    return make


def letter(value: Any = PASSENGER, **fields: Any) -> DeadLetter:
    """A letter whose error, traceback and attempts tell of its passenger."""
    trace = 'Traceback (most recent call last):\n  File "/srv/app.py", line 3, in seat\nKeyError: "Alice Ames"'
    usual = {
        "key": b"key of 4111111111111111",
        "headers": [("Authorization", b"s3cr3t-token"), ("trace", b"abc")],
        "error_message": "no seat for Alice Ames paying with 4111111111111111 and s3cr3t-token",
        "traceback": trace,
    }
    made = dead_letter(value, **{**usual, **fields})
    DeadLetterAttempt.objects.filter(letter=made).update(traceback=trace)
    Replay.objects.create(
        letter=made, target="handler", state="failed", requested_at=timezone.now(), result="no seat for Alice Ames"
    )
    return made


def page(client: Client, one: DeadLetter, query: str = "") -> str:
    answer = client.get(reverse("admin:lynx_kafka_deadletter_change", args=[one.pk]) + query)
    assert answer.status_code == 200
    return answer.content.decode()


def looks() -> list[tuple[str, str, str]]:
    return list(audit.entries().order_by("pk").values_list("user_name", "verb", "row"))


def test_without_the_permission_and_without_masking_no_payload_is_shown(
    client: Client, person: Callable[..., User], masked: Any
) -> None:
    person(*VIEWS)
    one = letter()
    for query in ("", "?unmasked=yes"):
        shown = page(client, one, query)
        assert "Key, value and headers are not shown." in shown
        assert "You are not permitted to view payloads." in shown
        assert "lynx_kafka.view_payload_deadletter" in shown
        for word in ("flight", "UA 1545", "key of", "abc", "41 6c 69 63 65", "value.bin"):
            assert word not in shown.split('id="sight"')[1].split("Traceback</h2>")[0], word
    assert "no seat for Alice Ames" in page(client, one), "errors are shown as far as they are not masked"
    assert looks() == []


def test_with_the_permission_and_without_masking_all_is_shown_and_each_look_is_noted(
    client: Client, person: Callable[..., User], masked: Any
) -> None:
    ann = person(*VIEWS, "view_payload_deadletter")
    one = letter()
    shown = page(client, one)
    assert "Alice Ames" in shown
    assert "s3cr3t-token" in shown
    assert 'id="sight"' not in shown
    page(client, one)
    client.get(reverse(LIST))

    assert looks() == [(ann.username, "look at payload", str(one.pk))] * 2
    assert audit.entries()[0].address == "127.0.0.1"


def test_what_is_masked_is_seen_in_no_page(client: Client, person: Callable[..., User], masked: Any) -> None:
    masked(*RULES)
    person(*VIEWS)
    now = timezone.now()
    group = FailureGroup.objects.create(
        consumer="ops", fingerprint="f", error_type="E", category="handler", first_seen_at=now, last_seen_at=now,
        example="card 4111111111111111",
    )  # fmt: skip
    one = letter(failure_group=group)
    replay = one.replays.get()
    pages = {
        "letter": page(client, one),
        "asked for it": page(client, one, "?unmasked=yes"),
        "list": client.get(reverse(LIST)).content.decode(),
        "group": client.get(reverse("admin:lynx_kafka_failuregroup_change", args=[group.pk])).content.decode(),
        "groups": client.get(reverse("admin:lynx_kafka_failuregroup_changelist")).content.decode(),
        "replays": client.get(reverse("admin:lynx_kafka_replay_changelist")).content.decode(),
        "replay": client.get(reverse("admin:lynx_kafka_replay_change", args=[replay.pk])).content.decode(),
    }
    for name, shown in pages.items():
        for secret in SECRETS:
            assert secret not in shown, (name, secret)
        assert "***" in shown, name
    assert "UA 1545" in pages["letter"], "what is not masked is shown"
    assert "no seat for *** paying with *** and ***" in pages["letter"]
    assert "no seat for ***" in pages["group"]
    assert "value.bin" not in pages["letter"]
    assert client.get(reverse("admin:lynx_kafka_deadletter_download", args=[one.pk, "value"])).status_code == 403
    assert looks() == []


def test_who_may_sees_masked_pages_until_they_ask_which_is_noted(
    client: Client, person: Callable[..., User], masked: Any
) -> None:
    masked(*RULES)
    ann = person(*VIEWS, "view_payload_deadletter")
    one = letter()
    shown = page(client, one)
    assert "Alice Ames" not in shown
    assert '<a href="?unmasked=yes">Show them unmasked</a>' in shown
    assert looks() == []

    whole = page(client, one, "?unmasked=yes")
    assert all(secret in whole for secret in SECRETS)
    answer = client.get(reverse("admin:lynx_kafka_deadletter_download", args=[one.pk, "value"]))
    assert b"Alice Ames" in answer.content
    assert looks() == [
        (ann.username, "look at payload", str(one.pk)), (ann.username, "download payload", str(one.pk)),
    ]  # fmt: skip
    assert audit.entries().first().details == {"part": "value"}  # type: ignore[union-attr]


def test_lists_mask_for_everybody_and_note_nothing(client: Client, person: Callable[..., User], masked: Any) -> None:
    masked(*RULES)
    person(*VIEWS, "view_payload_deadletter")
    letter()
    shown = client.get(reverse(LIST)).content.decode()
    assert not any(secret in shown for secret in SECRETS)
    assert "key of ***" in shown
    assert looks() == []


def test_keys_are_hidden_from_lists_without_the_permission_and_not_found_by_guessing(
    client: Client, person: Callable[..., User], masked: Any
) -> None:
    person(*VIEWS)
    letter(key=b"UA 1545")
    answer = client.get(reverse(LIST))
    assert "UA 1545" not in answer.content.decode()
    assert ">hidden</span>" in answer.content.decode()
    assert client.get(reverse(LIST), {"q": "UA 1545"}).context["cl"].result_count == 0
    assert client.get(reverse(LIST), {"q": "Alice Ames"}).context["cl"].result_count == 0
    assert client.get(reverse(LIST), {"q": "ValueError"}).context["cl"].result_count == 1
    masked("passenger.name")
    assert client.get(reverse(LIST), {"q": "Alice Ames"}).context["cl"].result_count == 0
    assert client.get(reverse(LIST), {"q": "seat"}).context["cl"].result_count == 1, "what all may read is found by all"


def test_a_key_is_masked_whole_where_settings_say_so(client: Client, person: Callable[..., User], masked: Any) -> None:
    masked({"key": True})
    person(*VIEWS)
    one = letter(key=b"UA 1545", error_message="on UA 1545", value=b"{}")
    for shown in (page(client, one), client.get(reverse(LIST)).content.decode()):
        assert "UA 1545" not in shown
        assert "***" in shown


def test_a_payload_that_cannot_be_decoded_is_not_shown_masked(
    client: Client, person: Callable[..., User], masked: Any
) -> None:
    masked("passenger.name")
    person(*VIEWS)
    shown = page(client, letter(value=b'{"passenger": "Bob Bower"'))
    assert "It cannot be decoded:" in shown
    assert "Bob Bower" not in shown


def test_an_error_is_masked_as_a_whole_where_the_payload_is_too_large_to_know(
    client: Client, person: Callable[..., User], masked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked("passenger.name")
    person(*VIEWS)
    one = letter(value={**PASSENGER, "filler": "x" * 20_000})
    listed = client.get(reverse(LIST)).content.decode()
    assert "no seat for" not in listed
    assert "no seat for ***" in page(client, one), "one page decodes more than a line of a list"
    monkeypatch.setattr("django_kafka.dead_letters.decoding.MOST", 1000)
    assert "no seat" not in page(client, one)


def test_masking_takes_as_many_queries_for_many_letters_as_for_few(
    client: Client, person: Callable[..., User], masked: Any
) -> None:
    masked(*RULES)
    person(*VIEWS)
    counts = []
    for _each in range(2):
        for _letter in range(10):
            letter()
        with CaptureQueriesContext(connection) as queries:
            client.get(reverse(LIST))
        counts.append(len(queries))
    assert counts[0] == counts[1]


# The audit in the admin


AUDIT = "admin:lynx_kafka_auditentry_changelist"


def test_every_action_is_noted_with_who_did_it(client: Client, person: Callable[..., User], masked: Any) -> None:
    ann = person(superuser=True)
    one = dead_letter({})
    url = reverse("admin:lynx_kafka_deadletter_discard", args=[one.pk])
    client.get(url)
    assert looks() == [], "to be asked is nothing yet"
    client.post(url)
    client.post(reverse("admin:lynx_kafka_deadletter_reopen", args=[one.pk]))
    client.post(reverse("admin:lynx_kafka_deadletter_replay", args=[one.pk]))
    client.post(reverse("admin:lynx_kafka_deadletter_cancel-replay", args=[one.pk]))
    client.post(reverse("admin:lynx_kafka_deadletter_cancel-replay", args=[one.pk]))

    verbs = ["discard", "reopen", "replay", "cancel-replay"]
    assert looks() == [(ann.username, verb, str(one.pk)) for verb in verbs]


def test_the_audit_is_listed_found_and_harmless(client: Client, person: Callable[..., User], masked: Any) -> None:
    person(superuser=True)
    one, other = dead_letter({}), dead_letter({}, topic="crews")
    audit.note("eve\u202e<script>alert(1)</script>", "discard", [one], reason="because\n<b>x</b>")
    audit.note("bob", "replay", [other], details={"target": "<i>"})

    shown = client.get(reverse(AUDIT)).content.decode()
    assert "<script>alert(1)" not in shown
    assert "<b>x</b>" not in shown
    assert "\u202e" not in shown
    assert reverse("admin:lynx_kafka_deadletter_change", args=[one.pk]) in shown
    for query, count in (
        ({"verb": "replay"}, 1), ({"by": "bob"}, 1), ({"about": f"deadletter:{one.pk}"}, 1), ({"q": "because"}, 1),
        ({"q": "crews"}, 1), ({"consumer": "ops"}, 2), ({"consumer": "none"}, 0), ({"verb": "nothing"}, 0),
    ):  # fmt: skip
        assert client.get(reverse(AUDIT), query).context["cl"].result_count == count, query
    entry = AuditEntry.objects.get(user_name="bob")
    detail = client.get(reverse("admin:lynx_kafka_auditentry_change", args=[entry.pk])).content.decode()
    assert "&lt;i&gt;" in detail
    assert "deletelink" not in detail


def test_an_entry_outlives_its_row(client: Client, person: Callable[..., User], masked: Any) -> None:
    person(superuser=True)
    one = dead_letter({})
    audit.note("bob", "discard", [one])
    title = str(one)
    one.delete()
    assert title in client.get(reverse(AUDIT)).content.decode()


def found(client: Client, model: str, term: str) -> int:
    every = {} if model == "replay" else {"state": "all"}
    answer = client.get(reverse(f"admin:lynx_kafka_{model}_changelist"), {"q": term, **every})
    assert answer.status_code == 200
    return int(answer.context["cl"].result_count)


@pytest.mark.parametrize("model", ["deadletter", "failuregroup", "replay"])
def test_no_list_tells_by_a_search_what_is_masked(
    client: Client, person: Callable[..., User], masked: Any, model: str
) -> None:
    masked(*RULES)
    letter()
    now = timezone.now()
    FailureGroup.objects.create(
        fingerprint="f", consumer="ops", error_type="KeyError", category="handler", first_seen_at=now, last_seen_at=now,
        example="no seat for Alice Ames",
    )  # fmt: skip
    person(*VIEWS)
    assert found(client, model, "Alice Ames") == 0
    assert found(client, model, "4111111111111111") == 0


@pytest.mark.parametrize(
    ("model", "guess"),
    [
        ("deadletter", {"error_message__contains": "Alice"}),
        ("deadletter", {"error_start__contains": "Alice"}),
        ("deadletter", {"traceback__regex": "A.ice"}),
        ("deadletter", {"attempt_set__error_message__contains": "Alice"}),
        ("deadletter", {"key_hash__startswith": ""}),
        ("deadletter", {"pk__in": "1"}),
        ("failuregroup", {"example__startswith": "no seat for A"}),
        ("failuregroup", {"error_type__regex": "(.*)*x"}),
        ("replay", {"result__contains": "Alice"}),
        ("replay", {"letter__error_message__contains": "Alice"}),
        ("hold", {"key_hash__startswith": ""}),
    ],
)
def test_no_list_is_filtered_by_what_it_has_no_filter_of(
    client: Client, person: Callable[..., User], masked: Any, model: str, guess: dict[str, str]
) -> None:
    masked(*RULES)
    letter()
    person(*VIEWS)
    assert client.get(reverse(f"admin:lynx_kafka_{model}_changelist"), guess).status_code == 400


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("deadletter", {"last_failed_at__gte": "2020-01-01 00:00:00+00:00", "state": "all", "release__isnull": "0"}),
        ("deadletter", {"consumer": "ops", "category": "handler", "of_group": "1", "q": "Alice", "o": "-6"}),
        ("failuregroup", {"consumer__isnull": "False", "owner": "", "last_seen_at__lt": "2020-01-01 00:00:00+00:00"}),
        ("replay", {"state__exact": "failed", "target__exact": "handler", "consumer": "ops"}),
        ("hold", {"topic": "flights"}),
    ],
)
def test_lists_are_filtered_as_their_links_say(
    client: Client, person: Callable[..., User], masked: Any, model: str, wanted: dict[str, str]
) -> None:
    letter()
    person(*VIEWS)
    assert client.get(reverse(f"admin:lynx_kafka_{model}_changelist"), wanted).status_code == 200


def test_groups_are_found_by_what_is_masked_by_who_may_see_it(
    client: Client, person: Callable[..., User], masked: Any
) -> None:
    masked(*RULES)
    letter()
    now = timezone.now()
    FailureGroup.objects.create(
        fingerprint="f", consumer="ops", error_type="KeyError", category="handler", first_seen_at=now, last_seen_at=now,
        example="no seat for Alice Ames",
    )  # fmt: skip
    person(*VIEWS, "view_payload_deadletter")
    assert found(client, "failuregroup", "Alice Ames") == 1


def test_replays_are_found_by_a_part_of_their_topic_and_by_who_asked(
    client: Client, person: Callable[..., User], masked: Any
) -> None:
    letter(topic="Flights-eu")
    letter(topic="hotels")
    Replay.objects.filter(letter__topic="hotels").update(requested_by_name="Flora")
    person(*VIEWS)
    for term, number in (("flights", 1), ("EU", 1), ("flor", 1), ("FL", 1), ("s", 2), ("boats", 0), (" ", 2)):
        assert found(client, "replay", term) == number, term
