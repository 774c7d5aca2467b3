"""Editing a message before it is replayed."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import connections
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from django.utils.html import escape
from pytest_django import Settings

from django_kafka.admin import diffs, jsontext, notations
from django_kafka.admin.notations import Language, Notation, Written
from django_kafka.dead_letters import dry_runs, editing, replaying
from django_kafka.dead_letters.editing import Edit, Overtaken
from django_kafka.dead_letters.executing import Executor
from django_kafka.exceptions import ReplayRefused
from django_kafka.messages import Message
from django_kafka.models import AuditEntry, DeadLetter, DeadLetterAttempt, Hold, Replay
from django_kafka.testing import produced
from tests.app.handlers import record
from tests.app.models import Effect
from tests.letters import dead_letter
from tests.teams import BACKENDS as TEAM_BACKENDS

KAFKA: dict[str, Any] = {
    "brokers": ["127.0.0.1:1"],
    "producers": {"default": {}},
    "consumers": {
        "ops": {
            "group_id": "ops",
            "topics": {"flights": {"handler": "tests.test_editing.handle", "dry_run": True}, "raw": {}},
            "retry": {"max_retries": 0},
        }
    },
    "dead_letters": {"edit": True},
}
BIDI, ZERO_WIDTH = "\u202e", "\u200b"
EVIL = f"<script>alert(1)</script>{BIDI}{ZERO_WIDTH}\x1b[31m\"'&"


def handle(message: Message) -> None:
    record(message)
    if message.value["minutes"] == "NA":
        raise ValueError("no minutes")


@pytest.fixture(autouse=True)
def _desk(settings: Settings) -> None:
    settings.KAFKA = KAFKA


@pytest.fixture
def executor(db: None) -> Iterator[Executor]:
    mine = Executor()
    yield mine
    mine.close()


@pytest.fixture
def root(client: Client, db: None) -> User:
    user = User.objects.create_superuser("root")
    client.force_login(user)
    return user


def altered(letter: DeadLetter, **changes: Any) -> Edit:
    before = Edit.of(letter)
    return Edit(**{"key": before.key, "value": before.value, "headers": before.headers, **changes})


def ask(letter: DeadLetter, edit: Edit, **options: Any) -> Replay:
    return editing.request(letter.pk, edit, version=editing.version_of(letter), **options)


MENDED = b'{"minutes":5}'


# What is asked for


def test_the_handler_gets_the_edited_message_and_the_letter_keeps_its_own(executor: Executor) -> None:
    letter = dead_letter({"minutes": "NA"}, headers=[("type", b"late")])
    raw = bytes(letter.value)
    replay = ask(letter, altered(letter, value=MENDED, key=b"K2", headers=(("type", b"late"), ("by", b"me"))))
    assert executor.run_next() == replay

    letter.refresh_from_db()
    replay.refresh_from_db()
    assert (letter.state, bytes(letter.value), bytes(letter.key), letter.headers) == (
        "resolved", raw, b"UA 1545", [("type", b"late")],
    )  # fmt: skip
    effect = Effect.objects.get()
    assert (effect.payload, effect.key) == ({"minutes": 5}, "K2")
    assert Edit.made_for(replay) == Edit(key=b"K2", value=MENDED, headers=(("type", b"late"), ("by", b"me")))


def test_an_edited_message_that_fails_too_comes_back_to_its_letter(executor: Executor) -> None:
    letter = dead_letter({"minutes": "NA", "n": 1})
    ask(letter, altered(letter, value=b'{"minutes":"NA"}'))
    executor.run_next()
    letter.refresh_from_db()
    assert (letter.state, letter.attempts, letter.error_message) == ("open", 2, "no minutes")


def test_an_edited_record_has_an_id_of_its_own_and_names_its_letter(executor: Executor) -> None:
    letter = dead_letter({"minutes": "NA"}, headers=[("lynx-kafka-message-id", b"old"), ("a", b"1")])
    with produced() as records:
        ask(letter, altered(letter, value=MENDED), target="topic")
        executor.run_next()
        first = records[0]
        Replay.objects.update(state="requested", claim="")  # as if whoever sent it had been killed
        DeadLetter.objects.update(state="open")
        executor.run_next()
        again = records[1]
    assert (first.topic, first.raw_value) == ("flights", MENDED)
    names = [name for name, _value in first.headers]
    assert names == ["lynx-kafka-message-id", "a", "lynx-kafka-dead-letter", "lynx-kafka-message-id"]
    assert first.headers[2][1] == str(letter.pk).encode()
    assert first.headers[3][1] not in (b"old", b"", None)
    assert again.headers == first.headers
    letter.refresh_from_db()
    assert (letter.state, letter.attempts) == ("resolved", 1)


def test_an_edited_message_can_be_tried_first(executor: Executor) -> None:
    letter = dead_letter({"minutes": "NA"})
    version = editing.version_of(letter)
    replay = ask(letter, altered(letter, value=MENDED), target="dry-run")
    executor.run_next()
    replay.refresh_from_db()
    assert replay.report is not None
    assert dry_runs.Report.from_bytes(replay.report).outcome == "succeeded"
    assert not Effect.objects.exists()
    letter.refresh_from_db()
    assert (letter.state, editing.version_of(letter)) == ("open", version)


def test_it_is_off_unless_it_is_switched_on(settings: Settings, db: None) -> None:
    settings.KAFKA = {**KAFKA, "dead_letters": {}}
    letter = dead_letter({"minutes": "NA"})
    with pytest.raises(ReplayRefused, match="switched off"):
        ask(letter, altered(letter, value=MENDED))
    assert not Replay.objects.exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "Nothing was altered"),
        ({"value": b"{"}, "The value cannot be read as its handler would read it"),
        ({"value": b"\xff"}, "cannot be read"),
        ({"value": b"[" * 300_000}, "cannot be read"),
        ({"key": b"\xff"}, "The key cannot be read"),
        ({"value": b"1" * 600_000}, "The value has 600000 bytes; 524288 at most"),
        ({"headers": (("", b"x"),)}, "name of a header is ''"),
        ({"headers": (("a\0b", b"x"),)}, "name of a header"),
        ({"headers": ((f"a{BIDI}", b"x"),)}, "name of a header"),
        ({"headers": (("n" * 256, b"x"),)}, "name of a header"),
        ({"headers": (("traceparent", b"x"),)}, "cannot be altered"),
        ({"headers": (("Lynx-Kafka-dead-letter", b"1"),)}, "cannot be altered"),
        ({"headers": (("__value_schema_id", b"1"),)}, "cannot be altered"),
        ({"headers": tuple((f"h{number}", b"") for number in range(1001))}, "too many headers"),
    ],
)
def test_what_is_wrong_is_refused(db: None, changes: dict[str, Any], sentence: str) -> None:
    letter = dead_letter({"minutes": "NA"})
    with pytest.raises(ReplayRefused, match=re.escape(sentence)):
        ask(letter, altered(letter, **changes))
    assert not Replay.objects.exists()


@pytest.mark.parametrize("name", ["lynx-kafka-retry", "traceparent", "TraceState", "b3", "__key_schema_id"])
def test_protected_headers_can_be_neither_altered_nor_removed_nor_reordered(db: None, name: str) -> None:
    letter = dead_letter({"minutes": "NA"}, headers=[(name, b"1"), ("a", b"2"), (name, b"3")])
    for headers in (
        (("a", b"2"), (name, b"3")),
        ((name, b"2"), ("a", b"2"), (name, b"3")),
        ((name, b"3"), ("a", b"2"), (name, b"1")),
        ((name, b"1"), ("a", b"2"), (name, b"3"), (name, b"4")),
    ):
        with pytest.raises(ReplayRefused, match="cannot be altered"):
            ask(letter, altered(letter, headers=headers))
    ask(letter, altered(letter, headers=((name, b"1"), ("b", None), (name, b"3"))))


def test_a_name_that_came_so_may_stay(db: None) -> None:
    letter = dead_letter({"minutes": "NA"}, headers=[("a\0b", b"1")])
    ask(letter, altered(letter, value=MENDED))


def test_a_letter_that_holds_its_key_keeps_it(db: None) -> None:
    hold = Hold.objects.create(
        cluster="default", group_id="ops", topic="flights", partition=0, key=b"UA 1545", key_hash="x",
        consumer="ops", since="2026-01-01T00:00:00Z",
    )  # fmt: skip
    letter = dead_letter({"minutes": "NA"}, hold=hold)
    with pytest.raises(ReplayRefused, match="its key cannot be altered"):
        ask(letter, altered(letter, key=b"other"))
    with pytest.raises(ReplayRefused, match="holds its key back"):
        ask(letter, altered(letter, value=MENDED), target="topic")
    ask(letter, altered(letter, value=MENDED))


@pytest.mark.parametrize("state", ["resolved", "discarded", "parked"])
def test_a_letter_that_is_not_open_is_not_edited(db: None, state: str) -> None:
    letter = dead_letter({"minutes": "NA"}, state=state)
    with pytest.raises(ReplayRefused, match="not open"):
        ask(letter, altered(letter, value=MENDED))


def test_an_imported_letter_goes_to_its_original_topic_or_another_one(db: None, executor: Executor) -> None:
    letter = dead_letter({"minutes": "NA"}, imported_as="spring", headers=[("kafka_dlt-original-topic", b"x")])
    with pytest.raises(ReplayRefused, match="runs elsewhere"):
        ask(letter, altered(letter, value=MENDED))
    with pytest.raises(ReplayRefused, match="original topic"):
        ask(letter, altered(letter, value=MENDED), target="topic")
    with produced() as records:
        ask(letter, altered(letter, value=MENDED), target="topic", topic="gates")
        executor.run_next()
    assert (records[0].topic, records[0].raw_value) == ("gates", MENDED)
    assert "kafka_dlt-original-topic" not in dict(records[0].headers)


# Two editors


def test_the_second_editor_is_told_who_was_first(db: None, executor: Executor) -> None:
    ada, bob = User.objects.create_user("ada"), User.objects.create_user("bob")
    letter = dead_letter({"minutes": "NA"})
    version = editing.version_of(letter)
    edit = altered(letter, value=MENDED)
    editing.request(letter.pk, edit, version=version, user=ada)
    with pytest.raises(Overtaken, match=r"was asked for by ada at .* it is requested"):
        editing.request(letter.pk, edit, version=version, user=bob)
    executor.run_next()
    with pytest.raises(Overtaken, match=r"by ada .* it is succeeded"):
        editing.request(letter.pk, edit, version=version, user=bob)
    assert Replay.objects.count() == 1


def test_a_letter_that_failed_again_meanwhile_is_another_version(db: None) -> None:
    letter = dead_letter({"minutes": "NA"})
    version = editing.version_of(letter)
    DeadLetter.objects.update(attempts=2)
    with pytest.raises(Overtaken, match="has changed"):
        editing.request(letter.pk, altered(letter, value=MENDED), version=version)


def test_a_replay_that_is_on_its_way_is_told_of(db: None) -> None:
    letter = dead_letter({"minutes": "NA"})
    replaying.request([letter.pk], target="dry-run", name="somebody")
    with pytest.raises(Overtaken, match="by somebody at"):
        ask(letter, altered(letter, value=MENDED))


@pytest.mark.django_db(transaction=True)
def test_of_many_editors_at_once_one_sends() -> None:
    letters = [dead_letter({"minutes": "NA"}) for _ in range(8)]
    versions = {letter.pk: editing.version_of(letter) for letter in letters}
    told: list[str] = []
    start = threading.Barrier(4)

    def editor(name: str) -> None:
        start.wait(20)
        for letter in letters:
            try:
                editing.request(letter.pk, altered(letter, value=MENDED), version=versions[letter.pk], name=name)
            except Overtaken as overtaken:
                told.append(str(overtaken))
            except Exception as error:  # noqa: BLE001
                told.append(repr(error))
        connections.close_all()

    shared = connections["default"].vendor == "sqlite"
    threads = [threading.Thread(target=editor, args=(f"editor {number}",)) for number in range(4)]
    if shared:  # the database of these tests is in memory: one connection, one after another
        for each in threads:
            each.start = each.run  # type: ignore[method-assign]
        start = threading.Barrier(1)
    for each in threads:
        each.start()
    for each in threads:
        if not shared:
            each.join(60)
    assert Replay.objects.count() == 8
    assert len(told) == 24
    assert all("A replay of this letter was asked for by editor" in each for each in told), told


# In the admin


def url(letter: DeadLetter, name: str = "edit", *more: Any) -> str:
    return reverse(f"admin:lynx_kafka_deadletter_{name}", args=[letter.pk, *more])


def form_of(client: Client, letter: DeadLetter) -> dict[str, Any]:
    """Return what a browser would send if nobody altered anything."""
    answer = client.get(url(letter))
    assert answer.status_code == 200
    draft = answer.context["draft"]
    sent = {"version": draft.version, "target": draft.target, "to_topic": ""}
    for part in (draft.value, draft.key):
        sent |= {part.name: part.written.text.replace("\n", "\r\n"), f"{part.name}_notation": part.written.notation}
    for one in draft.headers:
        if not one.fixed:
            place = f"header-{one.number}"
            sent |= {f"{place}-name": one.name, f"{place}-notation": one.written.notation}
            sent |= {f"{place}-value": one.written.text.replace("\n", "\r\n")}
    return sent


def hidden_of(answer: HttpResponse) -> dict[str, str]:
    """Return what the page carries along."""
    return dict(answer.context["hidden"])  # type: ignore[attr-defined]


def test_a_person_edits_looks_and_sends(client: Client, root: User) -> None:
    letter = dead_letter({"minutes": "NA", "gate": "A1"}, headers=[("type", b"late"), ("traceparent", b"00-x")])
    form = form_of(client, letter)
    assert form["value"] == '{\r\n  "minutes": "NA",\r\n  "gate": "A1"\r\n}'
    assert form["header-0-name"] == "type"
    assert "header-1-name" not in form  # protected

    form |= {"value": form["value"].replace('"NA"', "5"), "header-2-name": "by", "header-2-value": "me"}
    looked = client.post(url(letter), {**form, "look": "1"})
    text = looked.content.decode()
    old, new = escape('  "minutes": "NA",'), escape('  "minutes": 5,')
    assert f"<del>{old}</del><ins>{new}</ins>" in text
    assert "<ins>by: me</ins>" in text
    assert not Replay.objects.exists()

    sent = client.post(url(letter), {**hidden_of(looked), "send": "1"}, follow=True)
    assert "A replay of the edited message was asked for." in sent.content.decode()
    replay = Replay.objects.get()
    assert (replay.target, replay.requested_by_name, replay.edited) == ("handler", "root", True)
    assert Edit.made_for(replay) == Edit(
        key=b"UA 1545", value=b'{"minutes":5,"gate":"A1"}',
        headers=(("type", b"late"), ("traceparent", b"00-x"), ("by", b"me")),
    )  # fmt: skip
    entry = AuditEntry.objects.get(verb="edit")
    assert (entry.user_name, entry.row) == ("root", str(letter.pk))

    page = client.get(url(letter, "replay_of", replay.pk)).content.decode()
    assert escape('  "minutes": 5,') in page
    again = client.post(url(letter), {**hidden_of(looked), "send": "1"}, follow=True)
    assert "was asked for by root at" in again.content.decode()
    assert Replay.objects.count() == 1


def test_nothing_is_sent_by_get_or_without_a_token(root: User) -> None:
    letter = dead_letter({"minutes": "NA"})
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(root)
    form = form_of(strict, letter) | {"value": '{"minutes": 5}', "send": "1"}
    assert strict.post(url(letter), form).status_code == 403
    assert strict.get(url(letter), form).status_code == 200
    assert (
        strict.post(url(letter, "replay-to-other-topic"), {"to_topic": "gates", "confirmed": "yes"}).status_code == 403
    )
    assert strict.post(url(letter, "dry-run"), {"confirmed": "yes"}).status_code == 403
    for name in ("replay-to-other-topic", "dry-run"):
        assert strict.get(url(letter, name), {"confirmed": "yes", "to_topic": "gates"}).status_code == 200
    assert not Replay.objects.exists()


NEEDED = ("view_deadletter", "view_payload_deadletter", "edit_deadletter")


@pytest.mark.parametrize("missing", NEEDED)
def test_without_one_of_the_permissions_nothing_is_shown_or_sent(client: Client, db: None, missing: str) -> None:
    letter = dead_letter({"minutes": "NA"})
    user = User.objects.create_user("ada", is_staff=True)
    client.force_login(user)
    codes = [each for each in NEEDED if each != missing] + ["replay_deadletter"]
    user.user_permissions.set(Permission.objects.filter(codename__in=codes))
    form = {"value": '{"minutes": 5}', "value_notation": "json", "key": "", "key_notation": "none", "target": "handler"}
    assert client.get(url(letter)).status_code == 403
    for button in ("look", "send", "again", "dry-run"):
        posted = {**form, "version": editing.version_of(letter), button: "1"}
        assert client.post(url(letter), posted).status_code == 403
    assert client.get(reverse("admin:lynx_kafka_deadletter_edit", args=[10**9])).status_code == 403
    assert not Replay.objects.exists()


def test_with_them_it_is_enough(client: Client, db: None) -> None:
    letter = dead_letter({"minutes": "NA"})
    user = User.objects.create_user("ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=NEEDED))
    client.force_login(user)
    form = form_of(client, letter) | {"value": '{"minutes": 5}', "send": "1"}
    assert client.post(url(letter), form).status_code == 302
    assert Replay.objects.get().requested_by_name == "ada"


def test_a_team_edits_the_letters_of_its_own_consumers_only(client: Client, db: None, settings: Settings) -> None:
    settings.AUTHENTICATION_BACKENDS = TEAM_BACKENDS
    permissions = [f"lynx_kafka.{each}" for each in NEEDED]
    settings.TEAMS = {"ground-crew": {"consumers": ["ops"], "may": permissions}}
    user = User.objects.create_user("ada", is_staff=True)
    user.groups.add(Group.objects.create(name="ground-crew"))
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    mine, theirs = dead_letter({"minutes": "NA"}), dead_letter({"minutes": "NA"}, consumer="theirs")
    replay = Replay.objects.create(letter=theirs, target="handler", requested_at=theirs.first_failed_at)
    assert client.get(url(mine)).status_code == 200
    for name, more in (("edit", ()), ("waits", ()), ("replay_of", (replay.pk,)), ("dry-run", ())):
        assert client.get(url(theirs, name, *more)).status_code == 403
    form = form_of(client, mine) | {"value": '{"minutes": 5}', "send": "1"}
    assert client.post(url(theirs), form).status_code == 403
    assert Replay.objects.count() == 1
    assert client.post(url(mine), form).status_code == 302
    assert Replay.objects.count() == 2


@pytest.mark.parametrize("target", ["dry-run", "replay-to-other-topic"])
def test_the_new_verbs_need_their_permission(client: Client, db: None, target: str) -> None:
    letter = dead_letter({"minutes": "NA"})
    user = User.objects.create_user("ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_deadletter"))
    client.force_login(user)
    assert client.get(url(letter, target)).status_code == 403
    assert client.post(url(letter, target), {"confirmed": "yes", "to_topic": "gates"}).status_code == 403
    assert not Replay.objects.exists()


def test_the_page_of_a_replay_is_for_those_who_may_view_the_letter(client: Client, db: None) -> None:
    letter, other = dead_letter({"minutes": "NA"}), dead_letter({})
    replay = ask(letter, altered(letter, value=MENDED))
    user = User.objects.create_user("ada", is_staff=True)
    client.force_login(user)
    assert client.get(url(letter, "replay_of", replay.pk)).status_code == 403
    user.user_permissions.set(Permission.objects.filter(codename="view_deadletter"))
    assert client.get(url(letter, "replay_of", replay.pk)).status_code == 200
    assert client.get(url(other, "replay_of", replay.pk)).status_code == 404
    assert client.post(url(letter, "replay_of", replay.pk)).status_code == 405


def test_it_is_off_in_the_admin_too(client: Client, root: User, settings: Settings) -> None:
    settings.KAFKA = {**KAFKA, "dead_letters": {}}
    letter = dead_letter({"minutes": "NA"})
    assert url(letter) not in client.get(url(letter, "change")).content.decode()
    answer = client.get(url(letter), follow=True)
    assert "Editing is switched off" in answer.content.decode()
    client.post(url(letter), {"send": "1", "value": "{}", "value_notation": "json"})
    assert not Replay.objects.exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"value": "{"}, "This is no JSON, at line 1"),
        ({"value": '{"a": 1, "a": 2}'}, "has the name 'a' twice"),
        ({"value": "NaN"}, "NaN is no JSON"),
        ({"value": "[" * 500_000}, "levels deep"),
        ({"value": "[" * 101 + "]" * 101}, "101 levels deep; 100 are allowed"),
        ({"value": "zz", "value_notation": "hex"}, "not hexadecimal"),
        ({"value_notation": "yaml"}, "Choose how it is written"),
        ({"value": '{"minutes": 5}', "target": "moon"}, "Choose where it goes"),
        ({"value": '{"minutes": 5}', "target": "other"}, "Name a topic"),
        ({"value": '{"minutes": 5}', "target": "other", "to_topic": "über"}, "is no name for a topic"),
        ({"header-0-name": ""}, "A header needs a name"),
        ({"header-1-name": "lynx-kafka-x", "header-1-value": "1"}, "cannot be altered"),
        ({}, "Nothing was altered"),
    ],
)
def test_what_is_wrong_comes_back_with_what_was_typed(
    client: Client, root: User, changes: dict[str, Any], sentence: str
) -> None:
    letter = dead_letter({"minutes": "NA"}, headers=[("type", b"late")])
    form = form_of(client, letter) | changes
    for button in ("look", "send"):
        answer = client.post(url(letter), {**form, button: "1"})
        assert answer.status_code == 200
        assert escape(sentence) in answer.content.decode()
        assert answer.context["draft"].value.written.text == form["value"]
    assert not Replay.objects.exists()


def test_hostile_payloads_are_harmless_in_form_diff_and_history(client: Client, root: User) -> None:
    letter = dead_letter(
        {"minutes": "NA", "evil": EVIL}, headers=[("evil", EVIL.encode()), (EVIL, b"1")], key=EVIL.encode()
    )
    form = form_of(client, letter)
    assert r"\u202e\u200b\u001b[31m" in form["value"]
    form["value"] = form["value"].replace('"NA"', '"</textarea><script>alert(2)</script>"')
    form["header-2-name"], form["header-2-value"] = "x", "<img src=x onerror=alert(3)>"
    looked = client.post(url(letter), {**form, "look": "1"})
    client.post(url(letter), {**hidden_of(looked), "send": "1"})
    replay = Replay.objects.get()
    pages = [client.get(url(letter)), looked, client.get(url(letter, "replay_of", replay.pk))]
    pages.append(client.get(url(letter, "change")))
    for answer in pages:
        text = answer.content.decode()
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        for each in (BIDI, ZERO_WIDTH, "\x1b"):
            assert each not in text
    # What nobody touched is as it was, to the byte.
    edit = Edit.made_for(replay)
    assert edit.headers[:2] == (("evil", EVIL.encode()), (EVIL, b"1"))
    assert edit.key == EVIL.encode()
    assert editing.Edit.of(letter).value != edit.value


def test_a_mebibyte_is_refused_and_half_of_one_can_be_edited(client: Client, root: User) -> None:
    large = dead_letter({"minutes": "x" * 1_048_576})
    assert "at most can be edited" in client.get(url(large), follow=True).content.decode()
    letter = dead_letter({"minutes": "x" * 500_000})
    form = form_of(client, letter) | {"look": "1"}
    assert client.post(url(letter), form | {"value": '{"minutes": "' + "y" * 1_048_576 + '"}'}).context["draft"].errors
    looked = client.post(url(letter), form | {"value": '{"minutes": "' + "y" * 500_000 + '"}'})
    assert looked.context["diffs"][0][1].more > 0
    assert "altered lines more are not shown" in looked.content.decode()
    assert len(looked.content) < 3_000_000


def test_many_lines_are_compared_in_bounded_time() -> None:
    old = "\n".join(str(number) for number in range(200_000))
    new = "\n".join(str(number + 1) for number in range(200_000))
    found = diffs.between(old, new)
    assert next(line.text for line in found.lines if line.sign in "+-") == "0"
    near = diffs.between(old, old.replace("\n5000\n", "\n5000x\n"))
    assert [(line.sign, line.text) for line in near.lines if line.sign in "+-"] == [("-", "5000"), ("+", "5000x")]


def test_lines_that_are_all_alike_are_not_compared_with_each_other() -> None:
    same = "a\n" * 10_000
    found = diffs.between(f"old\n{same}end", f"new\n{same}END")
    assert [line.sign for line in found.lines[:5]] == ["-"] * 5
    assert found.more > 0
    assert {line.sign for line in found.lines} == {"-"}  # what is shown; all new lines come after that


def test_a_diff_shows_what_nobody_sees() -> None:
    found = diffs.between(f"a{BIDI}", f"a{ZERO_WIDTH}\x1b")
    assert [(line.sign, line.text) for line in found.lines] == [("-", r"a\u202e"), ("+", r"a\u200b\u001b")]


# Notations


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1.10,"b":[],"c":{},"d":[1,{"e":null}],"f":12345678901234567890.10,"g":1e400}',
        '"text"', "1", "[]", '{"q":"a, b: {\\"x\\"} \\\\"}',
    ],
)  # fmt: skip
def test_json_is_laid_out_and_made_compact_without_altering_it(text: str) -> None:
    assert jsontext.compact(jsontext.laid_out(text)) == text


def test_what_nobody_sees_is_escaped_in_json() -> None:
    shown = jsontext.laid_out(f'{{"a{BIDI}": "\U000e0041x"}}')
    assert shown == '{\n  "a\\u202e": "\\udb40\\udc41x"\n}'
    assert jsontext.read(shown) == {f"a{BIDI}": "\U000e0041x"}


@pytest.mark.parametrize(
    ("topic", "data", "notation"),
    [
        ("flights", b'{"a": 1}', "json"),
        ("flights", b'"x"', "json"),
        ("flights", b"not json", "text"),
        ("flights", b"a\r\nb", "hex"),
        ("flights", "x\u202ey".encode(), "hex"),
        ("flights", b"\0", "hex"),
        ("flights", b"\xff\xfe" * 40, "hex"),
        ("flights", b"NaN", "text"),
        ("flights", b"[" * 500 + b"]" * 500, "text"),
        ("flights", b"", "text"),
        ("flights", None, "none"),
        ("texts", b'{"a": 1}', "text"),
        ("fields", b"a=1;b=2", "json"),
        ("fields", b"a=1;a=2", "json"),
    ],
)
def test_bytes_come_back_from_each_notation_as_they_were(
    settings: Settings, db: None, topic: str, data: bytes | None, notation: str
) -> None:
    topics = {"flights": {}, "texts": {"serializer": "text"}, "fields": {"serializer": "tests.test_editing.Fields"}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops", "topics": topics}}}
    language = Language(dead_letter(data, topic=topic), "value")
    written = notations.write(data, language)
    assert written.notation == notation
    sent = Written(notation=written.notation, text=written.text.replace("\n", "\r\n"))
    assert notations.read(sent, data, language) == data
    # And when it stands for itself, with the same meaning.
    if notation != Notation.JSON:
        assert notations.read(sent, b"something else", language) == data


def test_a_serializer_of_the_projects_own_writes_what_was_edited(settings: Settings, db: None) -> None:
    topics = {"fields": {"serializer": "tests.test_editing.Fields"}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops", "topics": topics}}}
    language = Language(dead_letter(b"a=1;b=2", topic="fields"), "value")
    assert notations.read(Written(notation="json", text='{"a": "5"}'), b"a=1;b=2", language) == b"a=5"
    with pytest.raises(ValueError, match="only text"):
        notations.read(Written(notation="json", text='{"a": 5}'), b"a=1;b=2", language)


class Fields:
    """a=1;b=2"""

    def encode(self, value: Any, topic: str) -> bytes:
        if not all(isinstance(each, str) for each in value.values()):
            raise ValueError("only text")
        return ";".join(f"{name}={each}" for name, each in value.items()).encode()

    def decode(self, data: bytes, topic: str) -> Any:
        return dict(each.split("=", 1) for each in data.decode().split(";"))


def test_the_attempts_tell_of_an_edited_replay_as_of_any_other(executor: Executor) -> None:
    letter = dead_letter({"minutes": "NA"})
    ask(letter, altered(letter, value=MENDED))
    executor.run_next()
    assert list(DeadLetterAttempt.objects.values_list("number", "succeeded")) == [(1, False), (2, True)]
