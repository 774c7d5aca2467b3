"""The audit: added to in the transaction of what it tells of, and never altered."""

from __future__ import annotations

import io
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from django_kafka.dead_letters import audit, retention
from django_kafka.exceptions import AuditIsAppendOnly
from django_kafka.models import AuditEntry, DeadLetter, Replay, Worker
from tests.letters import dead_letter

pytestmark = pytest.mark.django_db


@pytest.fixture
def ann() -> User:
    return User.objects.create_user("ann")


def entry() -> AuditEntry:
    audit.note("kafka_replay", "replay", [dead_letter()])
    return audit.entries().latest("pk")


def test_it_says_who_did_what_to_which_row_and_why(ann: User) -> None:
    letter = dead_letter(topic="flights", partition=3, offset=42)
    with audit.coming_from("192.0.2.7"):
        audit.note(ann, "replay", [letter], reason=" mended in 1.4 ", details={"target": "handler"})

    found = audit.entries().get()
    assert timezone.now() - found.at < timedelta(minutes=1)
    assert (found.user, found.user_name, found.address) == (ann, "ann", "192.0.2.7")
    assert (found.verb, found.reason, found.details) == ("replay", "mended in 1.4", {"target": "handler"})
    assert (found.model, found.row, found.title) == ("deadletter", str(letter.pk), "flights[3]@42")
    assert (found.consumer, found.topic, found.keep_until) == ("ops", "flights", None)


def test_rows_of_any_model_are_named_and_each_has_an_entry(ann: User) -> None:
    letter = dead_letter()
    replay = Replay.objects.create(letter=letter, target="handler", requested_at=timezone.now())
    worker = Worker(id="w1", consumer="billing", host="h", pid=1)
    audit.note(ann, "look", iter([letter, replay, worker]))

    found = audit.entries().order_by("pk").values_list("model", "row", "consumer")
    assert list(found) == [
        ("deadletter", str(letter.pk), "ops"), ("replay", str(replay.pk), "ops"), ("worker", "w1", "billing"),
    ]  # fmt: skip


def test_many_rows_are_written_in_few_statements(ann: User, django_assert_max_num_queries: Any) -> None:
    letters = [DeadLetter(pk=pk, consumer="ops", topic="t", partition=0, offset=pk) for pk in range(1, 1201)]
    with django_assert_max_num_queries(20):
        audit.note(ann, "discard", letters)
    assert audit.entries().count() == 1200


def test_who_is_no_person_is_named_and_a_person_outlives_the_account(ann: User) -> None:
    letter = dead_letter()
    audit.note("kafka_replay", "replay", [letter])
    audit.note(None, "replay", [letter])
    audit.note(AnonymousUser(), "replay", [letter])
    audit.note(ann, "replay", [letter])
    ann.delete()

    names = audit.entries().order_by("pk").values_list("user_name", flat=True)
    assert list(names) == ["kafka_replay", "", "", "ann"]


def test_what_no_database_takes_is_written_down_all_the_same() -> None:
    letter = dead_letter(topic="t", consumer="ops")
    letter.topic = "a\0b\ud800" + "x" * 500
    audit.note("\0" + "n" * 500, "v\0" + "v" * 100, [letter], reason="\ud800", details={"\0": ["\ud800", 1, None]})

    found = audit.entries().get()
    assert found.topic.startswith("a\\x00b\\ud800xxx")
    assert found.user_name.startswith("\\x00nnn")
    assert found.reason == "\\ud800"
    assert found.details == {"\\x00": ["\\ud800", 1, None]}


def test_an_entry_is_rolled_back_with_what_it_tells_of(ann: User) -> None:
    with transaction.atomic():
        audit.note(ann, "discard", [dead_letter()])
        transaction.set_rollback(True)
    assert not audit.entries().exists()


def test_the_address_is_that_of_its_own_request() -> None:
    letter = dead_letter()
    seen: list[str] = []

    def elsewhere() -> None:
        seen.append(audit._address.get())

    with audit.coming_from("192.0.2.7"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    audit.note(None, "look", [letter])
    assert seen == [""]
    assert audit.entries().get().address == ""


def test_python_refuses_to_alter_an_entry_in_every_way() -> None:
    one = entry()
    one.verb = "nothing"
    found = audit.entries().filter(pk=one.pk)
    ways = [
        one.save,
        lambda: one.save(update_fields=["verb"]),
        one.delete,
        lambda: found.update(verb="nothing"),
        found.delete,
        lambda: found.bulk_update([one], ["verb"]),
        lambda: found.update_or_create(pk=one.pk, defaults={"verb": "nothing"}),
        lambda: AuditEntry.objects.all().delete(),
        lambda: AuditEntry._base_manager.filter(pk=one.pk).update(verb="nothing"),
        lambda: AuditEntry.objects.bulk_create(
            [one], update_conflicts=True, update_fields=["verb"], unique_fields=["id"]
        ),
    ]
    for way in ways:
        with pytest.raises(AuditIsAppendOnly), transaction.atomic():
            way()
    assert audit.entries().get().verb == "replay"


def test_an_entry_with_the_id_of_another_does_not_replace_it() -> None:
    one = entry()
    other = AuditEntry(pk=one.pk, at=timezone.now(), verb="nothing", model="deadletter", row="1")
    with pytest.raises(DatabaseError), transaction.atomic():
        other.save()
    assert audit.entries().get().verb == "replay"


def test_the_database_itself_refuses_to_alter_an_entry() -> None:
    one = entry()
    around = QuerySet(AuditEntry)
    with pytest.raises(DatabaseError, match="added, and never altered"), transaction.atomic():
        around.filter(pk=one.pk).update(verb="nothing")
    with pytest.raises(DatabaseError, match="added, and never altered"), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("UPDATE lynx_kafka_auditentry SET verb = 'nothing'")
    assert audit.entries().get().verb == "replay"


@pytest.mark.postgresql
def test_postgresql_refuses_to_delete_an_entry_before_its_time(settings: Any) -> None:
    for keep in (None, "1h"):
        settings.KAFKA = {"brokers": ["127.0.0.1:1"], "dead_letters": {"audit_retention": keep}}
        one = entry()
        with pytest.raises(DatabaseError, match="added, and never altered"), transaction.atomic():
            QuerySet(AuditEntry).filter(pk=one.pk).delete()
    assert audit.entries().count() == 2


def test_an_entry_is_kept_as_long_as_settings_said_when_it_was_written(settings: Any) -> None:
    kept_for_ever = entry()
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "dead_letters": {"audit_retention": "30d"}}
    young = entry()
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "dead_letters": {"audit_retention": "1m"}}
    over = [aged(days=2).pk for _each in range(3)]
    settings.KAFKA = {"brokers": ["127.0.0.1:1"]}

    assert young.keep_until is not None
    assert timedelta(days=29) < young.keep_until - timezone.now() < timedelta(days=31)
    assert audit.prune() == len(over)
    assert set(audit.entries().values_list("pk", flat=True)) == {kept_for_ever.pk, young.pk}
    assert audit.prune() == 0


def test_what_the_command_asks_for_is_noted_as_what_the_command_did(settings: Any) -> None:
    consumer = {"group_id": "ops", "topics": {"flights": {"handler": "tests.app.handlers.record"}}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": consumer}}
    letters = [dead_letter({"n": n}) for n in range(2)]
    call_command("kafka_replay", consumer="ops", stdout=io.StringIO())

    found = audit.entries().order_by("pk").values_list("user_name", "verb", "row")
    assert [(verb, row) for _name, verb, row in found] == [("replay", str(one.pk)) for one in letters]
    assert all(name.startswith("kafka_replay ") for name, _verb, _row in found)


def test_retention_deletes_what_is_over() -> None:
    aged(days=2)
    retention.prune()
    assert not audit.entries().exists()


def aged(**ago: float) -> AuditEntry:
    """Write an entry whose time was over so long ago."""
    then = timezone.now() - timedelta(**ago)
    one = AuditEntry(at=then, verb="replay", model="deadletter", row="1", keep_until=then)
    one.save()
    return one
