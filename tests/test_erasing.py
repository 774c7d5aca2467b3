"""What letters say of a person is erased everywhere; a stub is left, and what was done is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import models
from django.db.models import Q
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from django_kafka.dead_letters import At, forget, jobs, replaying, searching
from django_kafka.dead_letters.recording import has_content_of
from django_kafka.exceptions import RegistryUnavailable
from django_kafka.models import AuditEntry, DeadLetter, DeadLetterAttempt, FailureGroup, Hold, Replay
from django_kafka.models.holds import key_hash
from tests.letters import dead_letter
from tests.test_searching import message

pytestmark = pytest.mark.django_db

SECRET = "jane.doe"


@pytest.fixture(autouse=True)
def _desk(settings: Settings) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops"}}}


def of_jane(**fields: Any) -> DeadLetter:
    """A letter that says her name wherever a letter can."""
    group = FailureGroup.objects.get_or_create(
        fingerprint="hers",
        defaults={
            "consumer": "ops", "error_type": "ValueError", "category": "handler", "example": f"no seat for {SECRET}",
            "first_seen_at": timezone.now(), "last_seen_at": timezone.now(),
        },
    )[0]  # fmt: skip
    letter = dead_letter(
        **{
            "value": {"passenger": {"email": SECRET}, "legs": [{"pax": [SECRET, 17]}]},
            "key": SECRET.encode(),
            "headers": [("who", SECRET.encode()), (SECRET, b"x")],
            "error_message": f"no seat for {SECRET}\nat all",
            "traceback": f'Traceback\n  File "x.py", line 1, in seat\nValueError: {SECRET}',
            "unread": f"odd header {SECRET}",
            "failure_group": group,
            **fields,
        }
    )
    DeadLetterAttempt.objects.filter(letter=letter).update(error_message=SECRET, traceback=SECRET)
    Replay.objects.create(
        letter=letter, target="handler", state="failed", requested_at=timezone.now(), result=f"ValueError: {SECRET}",
        edited=True, edited_key=SECRET.encode(), edited_value=SECRET.encode(), edited_headers=SECRET.encode(),
        report=SECRET.encode(),
    )  # fmt: skip
    return letter


def everything() -> str:
    """All that our tables hold, as one text."""
    texts = []
    for model in apps.get_app_config("lynx_kafka").get_models():
        for row in model._default_manager.values_list():
            texts += [
                bytes(each).decode("latin-1") if isinstance(each, bytes | memoryview) else str(each) for each in row
            ]
    return "\n".join(texts)


def test_nothing_of_a_person_is_left_in_any_table() -> None:
    one = of_jane()
    other = dead_letter({"passenger": "john"}, key=b"john")
    assert SECRET in everything()
    done = forget(SECRET, name="tests", reason="she asked")
    assert SECRET not in everything()
    assert "jane" not in everything()
    assert done.counts() == {
        "letters": 1, "attempts": 1, "replays": 1, "words": 1, "files": 0, "groups": 1, "released": 0, "running": 0
    }  # fmt: skip
    other.refresh_from_db()
    assert bytes(other.key or b"") == b"john"
    entry = AuditEntry.objects.get()
    assert (entry.verb, entry.row, entry.user_name, entry.reason) == ("erase", str(one.pk), "tests", "she asked")
    assert entry.details["attempts"] == 1


def test_a_stub_is_left() -> None:
    before = of_jane(attempts=3, origin_topic="origin", origin_offset=7)
    forget(SECRET)
    stub = DeadLetter.objects.get()
    same = (
        "pk", "cluster", "group_id", "topic", "partition", "offset", "timestamp_ms", "consumer", "attempts",
        "error_type", "category", "failure_group_id", "first_failed_at", "last_failed_at", "origin_offset",
    )  # fmt: skip
    for name in same:
        assert getattr(stub, name) == getattr(before, name), name
    assert (stub.key, stub.key_hash, stub.value, stub.headers) == (None, "", None, [])
    assert stub.state == DeadLetter.State.DISCARDED
    assert stub.erased_at is not None
    assert stub.settled_at is not None
    assert len(stub.fingerprint) == 64
    assert stub.fingerprint != before.fingerprint


def test_stubs_of_the_same_payload_do_not_tell_that_they_are_the_same() -> None:
    of_jane()
    of_jane()
    forget(SECRET)
    assert len(set(DeadLetter.objects.values_list("fingerprint", flat=True))) == 2


@pytest.mark.parametrize("state", ["resolved", "discarded"])
def test_a_settled_letter_stays_so(state: str) -> None:
    at = timezone.now() - timedelta(days=3)
    of_jane(state=state, settled_at=at)
    forget(SECRET)
    stub = DeadLetter.objects.get()
    assert (stub.state, stub.settled_at) == (state, at)


@pytest.mark.parametrize(
    "whom",
    [
        SECRET,
        SECRET.encode(),
        Q(topic="flights", offset=99),
        At(path="passenger.email", value=SECRET),
        At(path="legs.pax", value=SECRET),
        At(path="legs.pax", value="17"),
        At(path="legs.pax", value=17),
    ],
)
def test_whom_can_be_said_by(whom: Any) -> None:
    wanted = of_jane(offset=99)
    dead_letter({"passenger": {"email": "john"}, "legs": [], "email": SECRET}, key=b"john", offset=98)
    dead_letter(b"not json jane.doe", key=b"jane.doe2", offset=97)
    assert forget(whom).letters == 1
    assert DeadLetter.objects.get(erased_at__isnull=False).pk == wanted.pk


def test_a_value_is_found_although_it_is_masked(settings: Settings) -> None:
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"mask": ["passenger"]}}
    of_jane()
    assert forget(At(path="passenger.email", value=SECRET)).letters == 1


@pytest.mark.parametrize("whom", [17, None, ["x"]])
def test_what_says_nobody_is_refused(whom: Any) -> None:
    with pytest.raises(TypeError, match="takes a key, a Q or an At"):
        forget(whom)


def test_an_empty_condition_is_refused() -> None:
    of_jane()
    with pytest.raises(ValueError, match="every letter"):
        forget(Q())
    assert SECRET in everything()


def test_a_dry_run_tells_and_erases_nothing() -> None:
    of_jane()
    before = everything()
    done = forget(SECRET, dry_run=True)
    assert everything() == before
    assert (done.letters, done.attempts, done.replays, done.words, done.groups) == (1, 1, 1, 1, 1)


def test_it_may_be_asked_again() -> None:
    of_jane()
    forget(SECRET)
    assert forget(SECRET).letters == 0
    assert forget(Q(topic="flights")).letters == 0


def test_a_letter_that_is_being_replayed_is_left_alone_and_named() -> None:
    one, waits, dead = of_jane(offset=1), of_jane(offset=2), of_jane(offset=3)
    now = timezone.now()
    Replay.objects.create(letter=one, target="handler", state="running", requested_at=now, claimed_at=now)
    asked = Replay.objects.create(letter=waits, target="handler", state="requested", requested_at=now)
    lost = Replay.objects.create(
        letter=dead, target="handler", state="running", requested_at=now, claimed_at=now - timedelta(hours=1)
    )
    assert forget(SECRET, dry_run=True).running == ["flights[0]@1"]
    done = forget(SECRET)
    assert done.running == ["flights[0]@1"]
    assert done.letters == 2
    one.refresh_from_db()
    assert one.erased_at is None
    for replay in (asked, lost):
        replay.refresh_from_db()
        assert replay.state == "cancelled"
    Replay.objects.filter(letter=one, state="running").update(state="failed", result=SECRET)
    assert forget(SECRET).letters == 1
    assert SECRET not in everything()


def held(*letters: DeadLetter) -> Hold:
    hold = Hold.objects.create(
        group_id="ops", topic="flights", partition=0, key=SECRET.encode(), key_hash=key_hash(SECRET.encode()),
        consumer="ops", since=timezone.now(),
    )  # fmt: skip
    DeadLetter.objects.filter(pk__in=[one.pk for one in letters]).update(hold=hold)
    return hold


def test_a_held_key_goes_with_its_letters() -> None:
    held(of_jane(), of_jane(state="parked"), of_jane(state="parked"))
    done = forget(SECRET)
    assert (done.letters, done.released) == (3, 3)
    assert not Hold.objects.exists()
    assert not Replay.objects.exclude(state="failed").exists()
    assert SECRET not in everything()


def test_what_is_parked_behind_an_erased_letter_is_released() -> None:
    first, second = of_jane(), of_jane(state="parked")
    held(first, second)
    forget(Q(pk=first.pk), name="tests")
    second.refresh_from_db()
    assert second.state == "open"
    replay = Replay.objects.get(letter=second, state="requested")
    assert replay.requested_by_name == "tests"
    assert Hold.objects.exists()


def test_the_key_of_hundreds_goes_without_a_release_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    from django_kafka.dead_letters import erasing

    monkeypatch.setattr(erasing, "_PIECE", 2)
    held(of_jane(), *(of_jane(state="parked") for _ in range(5)))
    assert forget(SECRET).letters == 6
    assert not Replay.objects.exclude(state="failed").exists()


def test_a_stub_is_never_opened_again() -> None:
    letter = of_jane()
    forget(SECRET)
    assert replaying.reopen([letter.pk]) == 0
    assert replaying.request([letter.pk]).count == 0
    letter.refresh_from_db()
    empty = message(1, b"")
    empty._raw.key = empty._raw.value = lambda: None  # type: ignore[attr-defined]
    assert not has_content_of(letter, empty)


def test_a_stub_is_not_found_by_words() -> None:
    letter = of_jane()
    forget(SECRET)
    letter.refresh_from_db()
    assert searching.of(letter) == ""
    assert not DeadLetter.objects.filter(searching.condition("flights")).exists()


def test_an_example_that_tells_of_nobody_stays() -> None:
    of_jane()
    FailureGroup.objects.update(example="invalid literal for int()")
    assert forget(SECRET).groups == 0
    assert FailureGroup.objects.get().example == "invalid literal for int()"


def test_the_first_error_of_an_earlier_attempt_is_an_example_too() -> None:
    of_jane(error_message="something else")
    FailureGroup.objects.update(example=SECRET)
    forget(SECRET)
    assert FailureGroup.objects.get().example == ""


@pytest.mark.parametrize(
    ("example", "text", "left"),
    [
        (f"no *** of {SECRET}", f"no ticket of {SECRET}\nat all", ""),
        (f"*** of {SECRET}", f"no ticket of {SECRET}", ""),
        (f"no ticket of {SECRET} in ***", f"no ticket of {SECRET} in Z\u00fcrich\n", ""),
        ((f"no {SECRET} in *** " + "x" * 300)[:299] + "*", f"no {SECRET} in Rome " + "x" * 400, ""),
        ("no seat for ***", f"no ticket of {SECRET}", "no seat for ***"),
        ("no ticket of john and ***", f"no ticket of {SECRET}", "no ticket of john and ***"),
    ],
)
def test_an_example_that_was_masked_under_older_settings_is_one_all_the_same(
    example: str, text: str, left: str
) -> None:
    """What settings mask now is not what they did when the group began."""
    of_jane(error_message=text)
    FailureGroup.objects.update(example=example)
    would = forget(SECRET, dry_run=True).groups
    assert would == forget(SECRET).groups == (not left)
    assert FailureGroup.objects.get().example == left


def test_nothing_is_half_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    from django_kafka.dead_letters import erasing

    def fail(*_arguments: Any) -> None:
        raise RuntimeError("the database went away")

    of_jane()
    before = everything()
    monkeypatch.setattr(erasing, "_STORES", (*erasing._STORES, fail))
    with pytest.raises(RuntimeError):
        forget(SECRET)
    assert everything() == before


HARMLESS = {
    "AuditEntry": "never anything of a payload",
    "Claim": "offsets",
    "Control": "what people asked for, and why",
    "FailureHour": "numbers",
    "FailureTally": "numbers and a release",
    "JobLane": "how far a job is",
    "Pause": "what people asked for, and why",
    "ReplayJob": "what people asked for, and why",
    "SettledMessage": "offsets",
    "Tenure": "offsets",
    "Worker": "what processes say of themselves: types of errors, coordinates",
    "WorkerPartition": "offsets",
}
"""Models that have nothing of a payload, and why."""
ERASED = {
    "DeadLetter": {
        "key", "key_hash", "value", "stored_headers", "error_message", "traceback", "unread", "fingerprint",
        "payload_name",
    },
    "DeadLetterAttempt": {"error_message", "traceback"},
    "FailureGroup": {"example"},
    "Hold": {"key", "key_hash"},
    "LetterWords": {"words"},
    "Replay": {"edited_key", "edited_value", "edited_headers", "result", "report"},
}  # fmt: skip
KEPT = {
    "DeadLetter": {
        "cluster", "consumer", "group_id", "topic", "imported_as", "origin_topic", "origin_group", "handler",
        "category", "error_type", "release", "state", "trace_id",
    },
    "DeadLetterAttempt": {"origin", "worker", "error_type", "reported_by"},
    "FailureGroup": {
        "fingerprint", "cluster", "consumer", "handler", "error_type", "frame", "category", "first_release",
        "last_release", "state", "state_by", "resolved_in", "regressed_in", "owner", "note",
    },
    "Hold": {"cluster", "group_id", "topic", "consumer"},
    "Replay": {"target", "to_topic", "state", "requested_by_name", "claim", "executor", "lane"},
}  # fmt: skip
"""What is kept of rows that are erased: coordinates, names of code, and what people wrote."""


def test_every_column_that_may_tell_of_a_person_is_known() -> None:
    """A new column is erased, or it is said here why not: see `erasing._STORES`."""
    kinds = (models.CharField, models.TextField, models.BinaryField, models.JSONField)
    for model in apps.get_app_config("lynx_kafka").get_models():
        if model.__name__ in HARMLESS:
            continue
        told = {
            field.name for field in model._meta.concrete_fields if isinstance(field, kinds) or field.name == "words"
        }
        known = ERASED.get(model.__name__, set()) | KEPT.get(model.__name__, set())
        assert told == known, f"{model.__name__}: {sorted(told ^ known)}"


def test_the_admin_erases_after_a_question(client: Client) -> None:
    client.force_login(User.objects.create_superuser("root"))
    letter = of_jane()
    url = reverse("admin:lynx_kafka_deadletter_erase", args=[letter.pk])
    assert "Erase what 1 dead letter says of a person?" in client.get(url).content.decode()
    assert SECRET in everything()
    answer = client.post(url, follow=True)
    assert "1 dead letter was erased." in answer.content.decode()
    assert SECRET not in everything()
    assert SECRET not in answer.content.decode()
    assert [entry.user_name for entry in AuditEntry.objects.filter(verb="erase")] == ["root"]
    assert "Open again" not in answer.content.decode()


def test_nobody_erases_without_the_permission(client: Client) -> None:
    user = User.objects.create_user("ann", is_staff=True)
    names = ("view_deadletter", "replay_deadletter", "discard_deadletter", "view_payload_deadletter")
    user.user_permissions.add(*Permission.objects.filter(codename__in=names))
    client.force_login(user)
    letter = of_jane()
    url = reverse("admin:lynx_kafka_deadletter_erase", args=[letter.pk])
    assert client.get(url).status_code == client.post(url).status_code == 403
    chosen = {"action": "erase", "_selected_action": [letter.pk], "confirmed": "yes", "until": letter.pk}
    assert client.post(reverse("admin:lynx_kafka_deadletter_changelist"), chosen).status_code in (200, 302, 403)
    assert SECRET in everything()


def test_a_job_does_not_tell_whom_its_letters_were_found_by() -> None:
    one, other = of_jane(), dead_letter({"passenger": "john"}, key=b"john")
    searched = jobs.create([one.pk], name="tests", description=f"state=open&q={SECRET}")[0]
    chosen = jobs.create([other.pk], name="tests", description="q=john")[0]
    Replay.objects.update(state="succeeded")
    forget(SECRET)
    assert SECRET not in everything()
    chosen.refresh_from_db()
    searched.refresh_from_db()
    assert (searched.description, chosen.description) == ("", "q=john")


def test_a_job_that_paused_does_not_tell_what_its_letter_met() -> None:
    one, other = of_jane(), dead_letter({"passenger": "john"}, key=b"john")
    hers, his = (jobs.create([each.pk], name="tests")[0] for each in (one, other))
    for job, letter in ((hers, one), (his, other)):
        jobs.pause(job, why=f"What the handler of {letter} produced was not delivered: no ticket of {SECRET}.")
    Replay.objects.update(state="succeeded")
    forget(SECRET)
    hers.refresh_from_db()
    his.refresh_from_db()
    assert (hers.state, hers.state_reason) == ("paused", "")
    assert str(other) in his.state_reason


def test_letters_that_wait_in_a_job_are_left_alone_and_a_dry_run_says_so() -> None:
    letter = of_jane()
    jobs.create([letter.pk], name="tests")
    would, done = forget(SECRET, dry_run=True), forget(SECRET)
    assert (would.letters, would.running) == (done.letters, done.running) == (0, [str(letter)])


def test_a_value_that_needs_a_registry_which_is_down_is_not_passed_over(settings: Settings) -> None:
    topics = {"flights": {"handler": "tests.app.handlers.record", "serializer": "avro"}}
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "schema_registry": {"url": "http://127.0.0.1:9"},
        "consumers": {"ops": {"group_id": "ops", "topics": topics}},
    }
    letter = dead_letter(b"\0\0\0\0\7" + SECRET.encode())
    for dry_run in (True, False):
        with pytest.raises(RegistryUnavailable, match="schema registry"):
            forget(At(path="passenger", value=SECRET), dry_run=dry_run)
    with pytest.raises(CommandError, match="schema registry"):
        call_command("kafka_letters", "forget", "--path", "passenger", "--value", SECRET, "--yes")
    letter.refresh_from_db()
    assert letter.erased_at is None
