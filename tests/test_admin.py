"""The desk for dead letters, used like a person would: over HTTP, on rows as workers leave them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from django_kafka.admin import showing
from django_kafka.admin.verbs import VERBS
from django_kafka.dead_letters import replaying, searching
from django_kafka.models import DeadLetter, DeadLetterAttempt, Hold, Replay, Worker
from django_kafka.models.dead_letters import encode_headers, key_hash

pytestmark = pytest.mark.django_db

LIST = "admin:lynx_kafka_deadletter_changelist"
ALERT = "<script>alert(1)</script>"
VERB_NAMES = [verb.name for verb in VERBS]
ACTION_NAMES = [verb.name for verb in VERBS if verb.of_lists]


@pytest.fixture(autouse=True)
def consumers(settings: Any) -> None:
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "consumers": {
            "ops": {"group_id": "ops", "topics": {"flights": {"handler": "tests.app.handlers.fail_on_bad"}}},
            "raw": {
                "group_id": "raw",
                "topics": {"blobs": {"handler": "tests.app.handlers.ignore", "serializer": "bytes"}},
            },
        },
        "dead_letters": {"max_shown": 2000},
    }


@pytest.fixture
def letter() -> Callable[..., DeadLetter]:
    """Make a letter as a worker would."""
    made = 0

    def make(**fields: Any) -> DeadLetter:
        nonlocal made
        made += 1
        now = timezone.now()
        headers = encode_headers(fields.pop("headers", ()))
        defaults: dict[str, Any] = {
            "consumer": "ops",
            "group_id": "ops",
            "topic": "flights",
            "partition": 0,
            "offset": made,
            "fingerprint": f"{made:064x}",
            "timestamp_ms": 1_700_000_000_000,
            "key": b"UA 1545",
            "value": b'{"n": 1}',
            "stored_headers": headers,
            "handler": "tests.app.handlers.fail_on_bad",
            "category": "handler",
            "error_type": "ValueError",
            "error_message": "bad value",
            "traceback": "Traceback (most recent call last):\nValueError: bad value\n",
            "attempts": 1,
            "first_failed_at": now,
            "last_failed_at": now,
        }
        merged = {**defaults, **fields}
        stored = DeadLetter.objects.create(**{"key_hash": key_hash(merged["key"]), **merged})
        DeadLetterAttempt.objects.create(
            letter=stored, number=1, at=now, origin="worker", worker="host:1", error_type="ValueError",
            error_message=stored.error_message, traceback=stored.traceback,
        )  # fmt: skip
        searching.mark("default", stored.pk)
        return stored

    return make


@pytest.fixture
def person(client: Client) -> Callable[..., User]:
    """Log somebody in who has these permissions."""

    def log_in(*permissions: str, superuser: bool = False) -> User:
        user = User.objects.create_user(f"p{User.objects.count()}", is_staff=True, is_superuser=superuser)
        user.user_permissions.set(
            Permission.objects.filter(content_type__app_label="lynx_kafka", codename__in=permissions)
        )
        client.force_login(user)
        return user

    return log_in


@pytest.fixture
def operator(person: Callable[..., User]) -> User:
    verbs = ("replay_deadletter", "discard_deadletter", "erase_deadletter")
    return person("view_deadletter", "view_payload_deadletter", *verbs)


def page_of(client: Client, letter: DeadLetter) -> str:
    answer = client.get(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk]))
    assert answer.status_code == 200
    return answer.content.decode()


def verb_url(verb: str, letter: DeadLetter) -> str:
    return reverse(f"admin:lynx_kafka_deadletter_{verb}", args=[letter.pk])


def listed(client: Client, **query: Any) -> set[int]:
    answer = client.get(reverse(LIST), query)
    assert answer.status_code == 200, answer
    return {each.pk for each in answer.context["cl"].result_list}


def act(client: Client, verb: str, letters: Iterable[DeadLetter], query: str = "", **fields: Any) -> Any:
    """Choose an action in the list and press the button of the page in between."""
    data: dict[str, Any] = {
        "action": verb,
        "index": "0",
        "_selected_action": [str(each.pk) for each in letters],
        **fields,
    }
    asked = client.post(reverse(LIST) + query, data)
    if asked.status_code != 200 or "hidden" not in (asked.context or {}):
        return asked
    data = {}
    for name, value in asked.context["hidden"]:
        data.setdefault(name, []).append(value)
    return client.post(reverse(LIST) + query, data, follow=True)


def states(*letters: DeadLetter) -> list[str]:
    found = dict(DeadLetter.objects.values_list("pk", "state"))
    return [found[each.pk] for each in letters]


def said(answer: Any) -> list[str]:
    return [str(message) for message in answer.context["messages"]]


# The list


def test_the_list_shows_where_a_letter_comes_from_and_why_it_failed(
    client: Client, operator: User, letter: Any
) -> None:
    letter(error_type="shop.errors.NoStock", error_message="\nfirst line\nsecond line")

    shown = client.get(reverse(LIST)).content.decode()

    assert "flights[0]@1" in shown
    assert "UA 1545" in shown
    assert "NoStock" in shown
    assert "first line" in shown
    assert "second line" not in shown


def imported(letter: Any, **fields: Any) -> DeadLetter:
    """Make a letter as an import leaves it."""
    defaults = {
        "topic": "orders.DLT", "imported_as": "spring", "origin_topic": "orders", "origin_partition": 2,
        "origin_offset": 1099, "origin_timestamp_ms": 1_700_000_000_123, "origin_group": "billing",
        "unread": f"kafka_dlt-original-topic is not UTF-8.\n{ALERT}",
    }  # fmt: skip
    made: DeadLetter = letter(**{**defaults, **fields})
    return made


def test_an_imported_letter_shows_where_it_failed_and_what_could_not_be_read(
    client: Client, operator: User, letter: Any
) -> None:
    one = imported(letter)

    assert "orders[2]@1099" in client.get(reverse(LIST)).content.decode()
    shown = page_of(client, one)
    for told in ("spring", "billing", "1099", "2023-11-14 22:13:20.123", "kafka_dlt-original-topic is not UTF-8."):
        assert told in shown
    assert ALERT not in shown
    assert "Replayed to" not in shown


def test_what_an_import_does_not_know_is_left_out(client: Client, operator: User, letter: Any) -> None:
    nothing = {"origin_topic": "", "origin_partition": None, "origin_offset": None, "origin_group": "", "unread": ""}
    one = imported(letter, imported_as="plain", origin_timestamp_ms=2**62, **nothing)
    shown = page_of(client, one)
    assert "Original timestamp" in shown
    assert "Original topic" not in shown
    assert "Original offset" not in shown
    assert "Not read" not in shown


def test_the_page_says_where_settings_send_an_imported_letter(
    client: Client, operator: User, letter: Any, settings: Any
) -> None:
    topics = {"orders.DLT": {"import": "auto", "original": "orders-v2"}}
    settings.KAFKA = {"consumers": {"ops": {"group_id": "ops", "topics": topics}}}
    assert "orders-v2" in page_of(client, imported(letter))


def test_an_imported_letter_has_no_handler_to_be_replayed_to(client: Client, operator: User, letter: Any) -> None:
    one = imported(letter)
    shown = page_of(client, one)
    assert verb_url("replay-to-topic", one) in shown
    assert verb_url("replay", one) not in shown
    act(client, "replay", [one])
    assert not Replay.objects.exists()


def test_the_list_shows_open_letters_unless_asked_otherwise(client: Client, operator: User, letter: Any) -> None:
    waits, done, dropped = letter(), letter(state="resolved"), letter(state="discarded")

    assert listed(client) == {waits.pk}
    assert listed(client, state="resolved") == {done.pk}
    assert listed(client, state="all") == {waits.pk, done.pk, dropped.pk}


@pytest.mark.parametrize(
    "query",
    [
        {"consumer": "raw"},
        {"topic": "blobs"},
        {"error_type": "KeyError"},
        {"category": "serialization"},
        {"replay": "outstanding"},
        {"q": "blobs"},
        {"q": "blobs[7]"},
        {"q": "blobs[7]@9000000000"},
        {"q": "KeyErr"},
        {"q": "Ärger"},
        {"q": "schlüssel"},
    ],
)
def test_a_letter_is_found_by(client: Client, operator: User, letter: Any, query: dict[str, str]) -> None:
    letter()
    wanted = letter(
        consumer="raw", topic="blobs", partition=7, offset=9_000_000_000, key="schlüssel".encode(),
        error_type="KeyError", error_message="großer Ärger", category="serialization",
    )  # fmt: skip
    replaying.request([wanted.pk])

    assert listed(client, **query) == {wanted.pk}


@pytest.mark.parametrize(
    "query", ["\x00", "flights[0]@99999999999999999999", "%", "'; drop table", "\ud83d", "a" * 5000]
)
def test_a_strange_search_finds_nothing_and_breaks_nothing(
    client: Client, operator: User, letter: Any, query: str
) -> None:
    letter()

    answer = client.get(reverse(LIST), {"q": query.encode("utf-8", "replace")})

    assert answer.status_code in (200, 302)


def test_the_list_takes_as_many_queries_for_many_letters_as_for_few(
    client: Client, operator: User, letter: Any
) -> None:
    replaying.request([letter().pk, letter().pk])
    with CaptureQueriesContext(
        connection,
    ) as few:
        client.get(reverse(LIST))

    replaying.request([letter().pk for _ in range(40)])
    with CaptureQueriesContext(connection) as many:
        client.get(reverse(LIST))

    assert len(many) == len(few) <= 15


def test_the_list_reads_no_payload(client: Client, operator: User, letter: Any) -> None:
    letter(value=b"x" * 1000, error_message="y" * 100_000)

    with CaptureQueriesContext(connection) as queries:
        client.get(reverse(LIST))

    columns = [query["sql"] for query in queries if "lynx_kafka_deadletter" in query["sql"]]
    assert not [sql for sql in columns if '"value"' in sql or '"traceback"' in sql]


def test_the_lists_of_replays_and_workers_take_a_constant_number_of_queries(
    client: Client, person: Any, letter: Any
) -> None:
    person("view_replay", "view_worker")
    counts: dict[str, list[int]] = {"replay": [], "worker": []}
    for many in (1, 20):
        replaying.request([letter().pk for _ in range(many)])
        now = timezone.now()
        for _ in range(many):
            number = Worker.objects.count()
            Worker.objects.create(
                id=f"{number}",
                consumer="ops",
                group_id="ops",
                host="h",
                pid=number,
                version="1",
                started_at=now,
                seen_at=now,
            )
        for model, found in counts.items():
            with CaptureQueriesContext(connection) as queries:
                assert client.get(reverse(f"admin:lynx_kafka_{model}_changelist")).status_code == 200
            found.append(len(queries))

    assert counts["replay"][0] == counts["replay"][1]
    assert counts["worker"][0] == counts["worker"][1]


# The page of a letter


def test_the_page_shows_the_value_decoded_beside_what_was_sent(client: Client, operator: User, letter: Any) -> None:
    shown = page_of(client, letter(value=b'{"flight":{"number":1545}}'))

    assert "{\n  &quot;flight&quot;: {\n    &quot;number&quot;: 1545\n  }\n}" in shown
    assert "{&quot;flight&quot;:{&quot;number&quot;:1545}}" in shown
    assert "7b 22 66 6c 69 67 68 74" in shown


def test_the_page_reads_the_value_as_the_topic_of_that_consumer_says(
    client: Client, operator: User, letter: Any
) -> None:
    shown = page_of(client, letter(consumer="raw", topic="blobs", value=b'{"a":1}'))

    assert "cannot be decoded" not in shown
    assert "{\n" not in shown.split('id="value"')[1].split("<details")[0]


@pytest.mark.parametrize("value", [b"\xff\xfe\x00\x01", b"{", b"NaN-", b"[" * 1500])
def test_a_value_that_cannot_be_decoded_says_why(client: Client, operator: User, letter: Any, value: bytes) -> None:
    shown = page_of(client, letter(value=value))

    assert "It cannot be decoded:" in shown
    assert "cannot be read as json" in shown
    assert f"{value[:1].hex()}" in shown


def test_a_letter_of_a_consumer_that_is_gone_is_still_shown(client: Client, operator: User, letter: Any) -> None:
    shown = page_of(client, letter(consumer="gone", topic="old"))

    assert "It cannot be decoded:" in shown
    assert "UA 1545" in shown


def test_a_handler_that_cannot_be_imported_does_not_keep_the_value_from_being_read(
    client: Client, operator: User, letter: Any, settings: Any
) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "ops", "topics": {"flights": {"handler": "no.such.thing"}}}}}

    assert "It cannot be decoded:" not in page_of(client, letter())


def test_a_tombstone_says_so(client: Client, operator: User, letter: Any) -> None:
    tombstone = letter(value=None, key=None)

    assert "None: a tombstone." in page_of(client, tombstone)
    assert client.get(reverse("admin:lynx_kafka_deadletter_download", args=[tombstone.pk, "value"])).status_code == 404


def test_an_empty_value_is_no_tombstone(client: Client, operator: User, letter: Any) -> None:
    shown = page_of(client, letter(value=b""))

    assert "a tombstone" not in shown
    assert "0\xa0bytes" in shown


def test_headers_keep_their_order_their_duplicates_and_their_bytes(client: Client, operator: User, letter: Any) -> None:
    pairs = [("b", b"2"), ("a", b"1"), ("b", b"3"), ("n\x00l", b"x\x00y\xff"), ("none", None), ("empty", b"")]

    shown = page_of(client, letter(headers=pairs)).split("Headers</h2>")[1].split("</table>")[0]

    names = re.findall(r'scope="row" class="lynx-kafka-bytes">(.*?)</th>', shown)
    assert names == ["b", "a", "b", r"n\u0000l", "none", "empty"]
    assert r"x\u0000y\xff" in shown
    assert "<em>null</em>" in shown


def test_what_strangers_wrote_is_never_html(client: Client, operator: User, letter: Any) -> None:
    evil = letter(
        topic=ALERT, consumer=ALERT, group_id=ALERT, handler=ALERT, error_type=ALERT, error_message=ALERT,
        traceback=f"Traceback {ALERT}", key=ALERT.encode(), value=json.dumps({ALERT: ALERT}).encode(),
        headers=[(ALERT, ALERT.encode())], category="<b>x",
    )  # fmt: skip
    replay = Replay.objects.create(
        letter=evil,
        target="handler",
        requested_by_name=ALERT,
        requested_at=timezone.now(),
        executor=ALERT,
        result=ALERT,
    )
    operator.is_superuser = True
    operator.save()
    pages = [
        client.get(reverse(LIST)),
        client.get(reverse("admin:lynx_kafka_deadletter_change", args=[evil.pk])),
        client.get(verb_url("cancel-replay", evil)),
        client.get(reverse("admin:lynx_kafka_replay_changelist")),
        client.get(reverse("admin:lynx_kafka_replay_change", args=[replay.pk])),
        client.get(reverse("admin:lynx_kafka_deadletter_history", args=[evil.pk])),
    ]

    for page in pages:
        assert page.status_code == 200
        assert b"<script>alert" not in page.content
        assert b"<b>x" not in page.content
        assert b"alert(1)" in page.content


def test_characters_that_deceive_the_eye_are_shown_as_code_points(client: Client, operator: User, letter: Any) -> None:
    trick = "a\u202eb\u200bc\x1b[31m\x7f\u2028\ufeff\U000e0041"
    shown = page_of(client, letter(value=trick.encode(), key=trick.encode(), error_message=trick))

    assert not set(trick) - set("abc[31m") & set(shown)
    assert r"a\u202eb\u200bc\u001b[31m\u007f\u2028\ufeff\U000e0041" in shown


def test_pages_need_neither_scripts_nor_styles_of_their_own(client: Client, operator: User, letter: Any) -> None:
    made = letter()
    for page in (page_of(client, made), client.get(verb_url("replay", made)).content.decode()):
        mine = page.split('id="content-main"')[1]
        assert "<script" not in mine
        assert "style=" not in page
        assert not re.search(r"\son\w+=", mine)
        assert "lynx_kafka/admin.css" in page


def test_a_large_value_is_offered_for_download_and_not_shown(client: Client, operator: User, letter: Any) -> None:
    large = letter(value=b"<html>" + b"x" * 2000)

    shown = page_of(client, large)
    with CaptureQueriesContext(connection) as queries:
        page_of(client, large)

    assert "Too large to be shown here." in shown
    assert "xxxx" not in shown
    assert not [
        query
        for query in queries
        if 'SELECT "lynx_kafka_deadletter"."id", "lynx_kafka_deadletter"."value"' in query["sql"]
    ]
    answer = client.get(reverse("admin:lynx_kafka_deadletter_download", args=[large.pk, "value"]))
    assert answer.content == b"<html>" + b"x" * 2000
    assert answer["Content-Type"] == "application/octet-stream"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Disposition"] == 'attachment; filename="flights-0-1.value.bin"'


def test_a_deep_value_does_not_grow_without_bounds() -> None:
    deep: Any = ["leaf"] * 2000
    for _ in range(500):
        deep = [deep]

    assert len(showing.pretty(deep, longest=50_000)) < 50_000


@pytest.mark.parametrize("value", [float("nan"), {1: 2}, {("a",): 1}, object(), 10**30, "text", b"\xff", None, [[]]])
def test_any_decoded_value_can_be_shown(value: Any) -> None:
    assert isinstance(showing.pretty(value, longest=1000), str)


def test_attempts_and_replays_are_listed(client: Client, operator: User, letter: Any) -> None:
    made = letter()
    replaying.request([made.pk], user=operator)
    Replay.objects.update(state="failed", result="ValueError: again", finished_at=timezone.now(), executor="host:7")

    shown = page_of(client, made)

    assert operator.get_username() in shown
    assert "ValueError: again" in shown
    assert "host:7" in shown
    assert "host:1" in shown


def test_somebody_who_asked_for_a_replay_can_be_deleted_and_the_name_stays(
    client: Client, person: Any, letter: Any
) -> None:
    made, leaver = letter(), User.objects.create_user("leaver")
    replaying.request([made.pk], user=leaver)
    person(superuser=True)

    answer = client.post(reverse("admin:auth_user_delete", args=[leaver.pk]), {"post": "yes"})

    assert answer.status_code == 302
    assert not User.objects.filter(username="leaver").exists()
    assert "leaver" in page_of(client, made)
    replay = Replay.objects.get()
    for name, arguments in (("change", [replay.pk]), ("changelist", [])):
        page = client.get(reverse(f"admin:lynx_kafka_replay_{name}", args=arguments))
        assert "leaver" in page.content.decode()


def test_an_unknown_letter_is_a_404(client: Client, operator: User) -> None:
    for address in ("9999", "x", "99999999999999999999999999", "-1"):
        assert client.get(reverse("admin:lynx_kafka_deadletter_change", args=[address])).status_code == 404
    assert client.get("/admin/lynx_kafka/deadletter/9999/replay/").status_code == 404


# Permissions


def everything(client: Client, letter: DeadLetter) -> dict[str, int]:
    """Try every door; return what each answered."""
    answers = {
        "list": client.get(reverse(LIST)),
        "page": client.get(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])),
        "download": client.get(reverse("admin:lynx_kafka_deadletter_download", args=[letter.pk, "value"])),
    }
    for verb in VERB_NAMES:
        answers[f"GET {verb}"] = client.get(verb_url(verb, letter))
        answers[f"POST {verb}"] = client.post(verb_url(verb, letter), {"confirmed": "yes"})
        if verb not in ACTION_NAMES:
            continue
        crafted = {"action": verb, "_selected_action": [letter.pk], "confirmed": "yes", "until": "99999", "index": "0"}
        answers[f"action {verb}"] = client.post(reverse(LIST), crafted)
        answers[f"action across {verb}"] = client.post(reverse(LIST), {**crafted, "select_across": "1"})
    return {name: answer.status_code for name, answer in answers.items()}


@pytest.mark.parametrize("permissions", [(), ("replay_deadletter",)], ids=["nothing", "replaying only"])
def test_whoever_may_not_view_letters_sees_and_does_nothing(
    client: Client, person: Any, letter: Any, permissions: tuple[str, ...]
) -> None:
    person(*permissions)
    made = letter()

    assert set(everything(client, made).values()) == {403}
    assert states(made) == ["open"]
    assert not Replay.objects.exists()


def test_whoever_is_no_staff_is_sent_to_the_login(client: Client, letter: Any) -> None:
    made = letter()

    assert set(everything(client, made).values()) == {302}
    assert not Replay.objects.exists()


@pytest.mark.parametrize(
    "permissions",
    [
        ("view_deadletter",),
        ("view_deadletter", "change_deadletter", "add_deadletter", "delete_deadletter"),
        ("view_deadletter", "view_replay", "change_replay", "add_replay", "delete_replay"),
    ],
    ids=["view", "all of Django's", "those of replays"],
)
def test_the_permission_to_replay_is_closed_unless_it_was_given(
    client: Client, person: Any, letter: Any, permissions: tuple[str, ...]
) -> None:
    person(*permissions)
    waits, dropped, asked = letter(), letter(state="discarded"), letter()
    replaying.request([asked.pk])

    for made in (waits, dropped, asked):
        answers = everything(client, made)
        assert {name for name, code in answers.items() if code == 200} == {"list", "page"}
        assert {code for name, code in answers.items() if name not in ("list", "page")} == {403}
        assert not re.search(r'class="button[^"]*" href="[^"]*replay', page_of(client, made))
    assert states(waits, dropped, asked) == ["open", "discarded", "open"]
    assert list(Replay.objects.values_list("state", flat=True)) == ["requested"]
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("superuser", [False, True])
def test_no_form_alters_adds_or_deletes_a_letter(client: Client, person: Any, letter: Any, superuser: bool) -> None:
    person("view_deadletter", "change_deadletter", "add_deadletter", "delete_deadletter", superuser=superuser)
    made = letter()

    for name, arguments in (("change", [made.pk]), ("delete", [made.pk]), ("add", [])):
        url = reverse(f"admin:lynx_kafka_deadletter_{name}", args=arguments)
        assert client.post(url, {"topic": "other", "state": "resolved", "post": "yes"}).status_code == 403
    client.post(reverse(LIST), {"action": "delete_selected", "_selected_action": [made.pk], "post": "yes"})
    client.post(
        reverse(LIST), {"form-TOTAL_FORMS": "1", "form-0-id": made.pk, "form-0-state": "resolved", "_save": "1"}
    )

    made.refresh_from_db()
    assert (made.topic, made.state) == ("flights", "open")


@pytest.mark.parametrize("model", ["replay", "worker"])
def test_replays_and_workers_are_for_reading(client: Client, person: Any, letter: Any, model: str) -> None:
    person(superuser=True)
    now = timezone.now()
    replay = replaying.request([letter().pk]) and Replay.objects.get()
    worker = Worker.objects.create(
        id="w1", consumer="ops", group_id="ops", host="h", pid=1, version="1", started_at=now, seen_at=now
    )
    pk = replay.pk if model == "replay" else worker.pk
    for name, arguments in (("change", [pk]), ("delete", [pk]), ("add", [])):
        url = reverse(f"admin:lynx_kafka_{model}_{name}", args=arguments)
        assert client.post(url, {"state": "succeeded", "post": "yes"}).status_code == 403
    assert client.get(reverse(f"admin:lynx_kafka_{model}_change", args=[pk])).status_code == 200


def test_the_list_of_workers_tells_the_living_from_the_dead(client: Client, person: Any) -> None:
    person("view_worker")
    now = timezone.now()
    for number, seen in enumerate((now, now - timedelta(minutes=5))):
        Worker.objects.create(
            id=f"{number}",
            consumer="ops",
            group_id="ops",
            host=f"h{number}",
            pid=1,
            version="1",
            started_at=now,
            seen_at=seen,
        )

    shown = client.get(reverse("admin:lynx_kafka_worker_changelist")).content.decode()

    assert shown.count("icon-yes") == 1
    assert shown.count("icon-no") == 1


def test_the_page_of_a_worker_tells_how_it_is(client: Client, person: Any) -> None:
    person("view_worker")
    now = timezone.now()
    Worker.objects.create(
        id="w1", consumer="ops", group_id="ops", host="h", pid=1, version="1", started_at=now, seen_at=now,
        state="waiting", not_ready="<b>its brokers are away", memory=5 * 2**20, lag=4711,
        last_error="OSError",
    )  # fmt: skip

    page = client.get(reverse("admin:lynx_kafka_worker_change", args=["w1"])).content.decode()

    for shown in ("waiting", "&lt;b&gt;its brokers are away", "5.0\xa0MB", "4711", "OSError"):
        assert shown in page
    assert "4711" in client.get(reverse("admin:lynx_kafka_worker_changelist")).content.decode()


# Verbs


def test_a_verb_asks_before_it_does_anything(client: Client, operator: User, letter: Any) -> None:
    chosen = [letter() for _ in range(7)]
    data = {"action": "replay-to-topic", "index": "0", "_selected_action": [str(each.pk) for each in chosen]}

    asked = client.post(reverse(LIST), data)

    shown = asked.content.decode()
    assert "Send 7 dead letters to their topics again?" in shown
    assert "the order within its key is not kept" in shown
    assert "Every consumer group of the topic reads it again" in shown
    assert "flights[0]@1" in shown
    assert "flights[0]@7" not in shown
    assert "and 2 more" in shown
    assert not Replay.objects.exists()
    for verb in VERB_NAMES:
        assert client.get(verb_url(verb, chosen[0])).status_code == 200
    assert not Replay.objects.exists()


@pytest.mark.parametrize(
    ("verb", "target", "why"),
    [
        ("replay", "handler", "resolved, discarded, being replayed already, or was imported"),
        ("replay-to-topic", "topic", "resolved, discarded, being replayed already, or holds its key back"),
    ],
)
def test_a_confirmed_replay_is_asked_for_and_entered_into_the_history(
    client: Client, operator: User, letter: Any, verb: str, target: str, why: str
) -> None:
    chosen = [letter(), letter()]
    settled = letter(state="resolved")

    answer = act(client, verb, [*chosen, settled], "?state=all")

    replays = Replay.objects.order_by("letter_id")
    assert [(each.letter_id, each.target, each.requested_by, each.requested_by_name) for each in replays] == [
        (each.pk, target, operator, operator.get_username()) for each in chosen
    ]
    assert said(answer)[:2] == [
        "Replays of 2 dead letters were asked for.",
        f"1 dead letter was left alone: it is {why}.",
    ]
    entries = LogEntry.objects.filter(content_type=ContentType.objects.get_for_model(DeadLetter))
    assert {(each.user, each.object_id, each.object_repr) for each in entries} == {
        (operator, str(each.pk), str(each)) for each in chosen
    }
    history = client.get(reverse("admin:lynx_kafka_deadletter_history", args=[chosen[0].pk])).content.decode()
    assert f"Asked for a replay to the {target}." in history


def test_a_web_request_never_runs_a_handler(client: Client, operator: User, letter: Any) -> None:
    from tests.app.models import Effect

    act(client, "replay", [letter()])

    assert not Effect.objects.exists()
    assert Replay.objects.get().state == "requested"


def test_discarding_and_opening_again(client: Client, operator: User, letter: Any) -> None:
    first, second = letter(), letter()

    answer = act(client, "discard", [first, second])
    assert states(first, second) == ["discarded", "discarded"]
    assert said(answer) == ["2 dead letters were discarded."]

    answer = client.post(verb_url("reopen", first), follow=True)
    assert states(first, second) == ["open", "discarded"]
    assert said(answer) == ["1 dead letter was opened again."]
    assert LogEntry.objects.filter(object_id=str(first.pk)).count() == 2


def test_a_replay_that_nobody_has_begun_is_cancelled(client: Client, operator: User, letter: Any) -> None:
    waits, runs = letter(), letter()
    replaying.request([waits.pk, runs.pk])
    Replay.objects.filter(letter=runs).update(state="running", claimed_at=timezone.now())

    answer = act(client, "cancel-replay", [waits, runs])

    assert dict(Replay.objects.values_list("letter_id", "state")) == {waits.pk: "cancelled", runs.pk: "running"}
    assert said(answer) == [
        "The replay of 1 dead letter was cancelled.",
        "1 dead letter was left alone: no replay of it waits.",
    ]


def test_a_letter_that_is_being_replayed_is_neither_replayed_twice_nor_discarded(
    client: Client, operator: User, letter: Any
) -> None:
    made = letter()
    act(client, "replay", [made])

    act(client, "replay-to-topic", [made])
    act(client, "discard", [made])

    assert Replay.objects.count() == 1
    assert states(made) == ["open"]
    assert LogEntry.objects.count() == 1


@pytest.mark.parametrize(
    ("fields", "asked", "verbs"),
    [
        ({}, False, {"replay", "replay-to-topic", "replay-to-other-topic", "discard", "erase"}),
        ({}, True, {"cancel-replay", "erase"}),
        ({"state": "discarded"}, False, {"reopen", "erase"}),
        ({"state": "resolved"}, False, {"erase"}),
    ],
)
def test_the_page_offers_what_fits(
    client: Client, operator: User, letter: Any, fields: dict[str, Any], asked: bool, verbs: set[str]
) -> None:
    made = letter(**fields)
    if asked:
        replaying.request([made.pk])

    shown = page_of(client, made)

    assert {verb for verb in VERB_NAMES if f'href="{verb_url(verb, made)}"' in shown} == verbs


def test_everything_that_a_filter_finds_can_be_chosen_across_pages(client: Client, operator: User, letter: Any) -> None:
    for number in range(1200):
        DeadLetter.objects.create(
            consumer="ops", group_id="ops", topic="flights", partition=1, offset=number, fingerprint="f",
            category="handler", error_type="KeyError", first_failed_at=timezone.now(), last_failed_at=timezone.now(),
        )  # fmt: skip
    other = letter()
    first = DeadLetter.objects.filter(error_type="KeyError").last()
    query = "?error_type=KeyError"

    with CaptureQueriesContext(connection) as queries:
        answer = act(client, "discard", [first], query, select_across="1")

    assert said(answer) == ["1200 dead letters were discarded."]
    assert DeadLetter.objects.filter(state="discarded").count() == LogEntry.objects.count() == 1200
    assert states(other) == ["open"]
    # How many rows a statement inserts is Django's own choice: of some releases 999 values.
    assert len([one for one in queries if not one["sql"].startswith("INSERT")]) < 100


def test_what_fails_after_the_question_is_not_part_of_the_answer(client: Client, operator: User, letter: Any) -> None:
    early = letter()
    data = {"action": "discard", "index": "0", "_selected_action": [str(early.pk)], "select_across": "1"}
    asked = client.post(reverse(LIST), data)
    late = letter()

    client.post(reverse(LIST), dict(asked.context["hidden"]))

    assert states(early, late) == ["discarded", "open"]


# Who carries it out


def test_a_running_worker_is_said_to_carry_replays_out(client: Client, operator: User, letter: Any) -> None:
    now = timezone.now()
    Worker.objects.create(
        id="w", consumer="ops", group_id="ops", host="h", pid=1, version="1", started_at=now, seen_at=now
    )
    made = letter()

    answer = act(client, "replay", [made])

    assert said(answer)[1:] == ["A running worker of consumer ops carries it out."]
    assert "kafka_replay --requested" not in page_of(client, made)


def test_without_a_worker_the_command_is_shown(client: Client, operator: User, letter: Any) -> None:
    made = letter()

    answer = act(client, "replay", [made])

    assert said(answer)[1:] == [
        "No worker of consumer ops runs. Start one, or run: python manage.py kafka_replay --requested"
    ]
    assert "<code>python manage.py kafka_replay --requested</code>" in page_of(client, made)


def test_the_desk_speaks_german(client: Client, operator: User, letter: Any) -> None:
    made = letter()
    client.cookies["django_language"] = "de"

    assert "Handler erneut ausführen" in page_of(client, made)
    assert "zuletzt gescheitert" in client.get(reverse(LIST)).content.decode().lower()


# Held keys


HELD = "admin:lynx_kafka_hold_changelist"


@pytest.fixture
def held(letter: Callable[..., DeadLetter]) -> list[DeadLetter]:
    """A letter that holds its key, and two messages behind it."""
    hold = Hold.objects.create(
        group_id="ops", consumer="ops", topic="flights", partition=0, key=b"UA \x1b[1m", key_hash="0" * 64,
        since=timezone.now(),
    )  # fmt: skip
    parked = {"state": "parked", "attempts": 0, "error_type": "", "error_message": "", "category": "parked"}
    return [letter(hold=hold), letter(hold=hold, **parked), letter(hold=hold, **parked)]


def held_act(client: Client, verb: str, hold: Hold) -> Any:
    data: dict[str, Any] = {"action": verb, "index": "0", "_selected_action": [str(hold.pk)]}
    asked = client.post(reverse(HELD), data)
    if asked.status_code != 200 or "hidden" not in (asked.context or {}):
        return asked
    again: dict[str, list[Any]] = {}
    for name, value in asked.context["hidden"]:
        again.setdefault(name, []).append(value)
    return client.post(reverse(HELD), again, follow=True)


@pytest.fixture
def holder(person: Callable[..., User]) -> User:
    return person("view_hold", "view_deadletter", "view_payload_deadletter", "replay_deadletter", "discard_deadletter")


def test_held_keys_are_listed_with_what_waits_and_for_what(
    client: Client, holder: User, held: list[DeadLetter]
) -> None:
    page = client.get(reverse(HELD)).content.decode()
    assert f'<a href="{reverse("admin:lynx_kafka_deadletter_change", args=[held[0].pk])}">flights[0]@1</a>' in page
    assert '<td class="field-parked_shown">2</td>' in page
    assert "UA \\u001b[1m" in page
    assert "\x1b" not in page
    for term, count in (("UA \x1b[1m", 1), ("ops", 1), ("UA", 0)):
        assert client.get(reverse(HELD), {"q": term}).context["cl"].result_count == count
    detail = client.get(reverse("admin:lynx_kafka_hold_change", args=[Hold.objects.get().pk]))
    assert detail.status_code == 200


def test_a_held_key_is_released_by_the_replay_of_its_letter(
    client: Client, holder: User, held: list[DeadLetter]
) -> None:
    answer = held_act(client, "replay", Hold.objects.get())
    assert said(answer)[0] == "A replay of 1 dead letter was asked for."
    assert list(Replay.objects.values_list("letter", "target", "requested_by")) == [(held[0].pk, "handler", holder.pk)]
    assert states(*held) == ["open", "parked", "parked"]


def test_a_letter_that_is_discarded_releases_what_is_parked(
    client: Client, holder: User, held: list[DeadLetter]
) -> None:
    answer = held_act(client, "discard", Hold.objects.get())
    assert said(answer)[:2] == ["1 dead letter was discarded.", "What is parked behind them is released."]
    assert "python manage.py kafka_replay --requested" in said(answer)[2]
    assert states(*held) == ["discarded", "open", "parked"]
    assert list(Replay.objects.values_list("letter", "requested_by")) == [(held[1].pk, holder.pk)]


@pytest.mark.parametrize("verb", ["replay", "discard"])
def test_held_keys_are_released_only_by_those_who_may_replay(
    client: Client, person: Callable[..., User], held: list[DeadLetter], verb: str
) -> None:
    person("view_hold", "view_deadletter")
    held_act(client, verb, Hold.objects.get())
    assert states(*held) == ["open", "parked", "parked"]
    assert not Replay.objects.exists()
    person("view_deadletter", "replay_deadletter")
    assert client.get(reverse(HELD)).status_code == 403


def test_the_page_of_a_letter_says_how_many_wait_behind_it(
    client: Client, operator: User, held: list[DeadLetter]
) -> None:
    assert "It holds its key back: 2 later messages are parked behind it." in page_of(client, held[0])
    page = page_of(client, held[1])
    assert "it is parked behind a dead letter of its key" in page
    assert f'<a href="{reverse("admin:lynx_kafka_deadletter_change", args=[held[0].pk])}">flights[0]@1</a>' in page
    for verb in set(VERB_NAMES) - {"erase"}:
        assert verb_url(verb, held[1]) not in page, "What is parked comes after its letter."


def test_a_letter_that_holds_its_key_is_not_sent_to_its_topic(
    client: Client, operator: User, held: list[DeadLetter]
) -> None:
    assert verb_url("replay", held[0]) in page_of(client, held[0])
    assert verb_url("replay-to-topic", held[0]) not in page_of(client, held[0])
    answer = client.post(verb_url("replay-to-topic", held[0]), follow=True)
    assert said(answer) == [
        "1 dead letter was left alone: it is resolved, discarded, being replayed already, or holds its key back."
    ]
    assert not Replay.objects.exists()


def test_held_keys_speak_german(client: Client, holder: User, held: list[DeadLetter]) -> None:
    client.cookies["django_language"] = "de"
    assert "2 spätere Nachrichten sind dahinter geparkt" in page_of(client, held[0])
    assert "zurückgehaltene schlüssel" in client.get(reverse(HELD)).content.decode().lower()
