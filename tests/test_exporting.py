"""Letters leave as JSON lines, whole, and come back; and as CSV, which spreadsheets do not obey."""

from __future__ import annotations

import base64
import csv
import io
import json
import tracemalloc
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from django_kafka.dead_letters import audit, exporting, forget, restoring, searching
from django_kafka.exceptions import BadArchive
from django_kafka.models import AuditEntry, DeadLetter, DeadLetterAttempt, FailureGroup, LetterWords
from django_kafka.models.dead_letters import fingerprint
from tests.letters import dead_letter

pytestmark = pytest.mark.django_db

LIST = "admin:lynx_kafka_deadletter_changelist"
WHOLE = (*exporting.PLAIN, *exporting.MOMENTS, "key", "key_hash", "value", "stored_headers")


@pytest.fixture(autouse=True)
def _desk(settings: Settings) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops"}}}


def stored(value: Any = None, **fields: Any) -> DeadLetter:
    """A letter whose fingerprint is that of its content, as workers store it."""
    letter = dead_letter(value, **fields)
    letter.fingerprint = fingerprint(letter.timestamp_ms, letter.key, bytes(letter.stored_headers), letter.value)  # type: ignore[arg-type]
    letter.save(update_fields=["fingerprint"])
    return letter


def odd_letters() -> list[DeadLetter]:
    """Letters with all that may be in one."""
    now = timezone.now()
    group = FailureGroup.objects.create(
        fingerprint="x", consumer="ops", error_type="ValueError", category="handler", frame="flights.handle",
        first_seen_at=now, last_seen_at=now,
    )  # fmt: skip
    return [
        stored({"flight": "UA 1545"}, failure_group=group, handler="flights.handle"),
        stored(
            b"\x00\xff\xfe'\"\n\\", key=b"\x00\xff", headers=[("a", b"1"), ("a", b"2"), ("\x00", None), ("é", b"\xff")]
        ),
        stored(None, key=None, timestamp_ms=None, offset=1 << 62, partition=2_000_000_000),
        stored(b"", key=b"", state="resolved", settled_at=now, attempts=4, release="r1"),
        stored(b"x", imported_as="spring", origin_topic="o", origin_partition=1, origin_offset=2, unread="line\nline"),
        stored(b"y", error_message="=1+1\r\n\u202e\x07", traceback="Traceback\n" * 100),
    ]


def values(letter: DeadLetter) -> list[Any]:
    found = [getattr(letter, name) for name in WHOLE]
    return [bytes(each) if isinstance(each, memoryview) else each for each in found]


def lines() -> list[str]:
    return list(exporting.json_lines(DeadLetter.objects.all(), masked=False))


def test_letters_come_back_as_they_were() -> None:
    letters = odd_letters()
    before = [values(DeadLetter.objects.get(pk=one.pk)) for one in letters]
    attempts = list(DeadLetterAttempt.objects.order_by("pk").values_list("number", "at", "origin", "error_message"))
    words = list(LetterWords.objects.order_by("letter").values_list("words", flat=True))
    written = lines()
    assert all(line.isascii() and line.endswith("\n") and line.count("\n") == 1 for line in written)
    DeadLetter.objects.all().delete()
    FailureGroup.objects.all().delete()
    done = restoring.restore(written)
    assert (done.new, done.known) == (len(letters), 0)
    assert searching.catch_up() == len(letters)
    assert [values(one) for one in DeadLetter.objects.order_by("pk")] == before
    assert (
        list(DeadLetterAttempt.objects.order_by("pk").values_list("number", "at", "origin", "error_message"))
        == attempts
    )
    assert list(LetterWords.objects.order_by("letter").values_list("words", flat=True)) == words
    first = DeadLetter.objects.order_by("pk")[0]
    assert first.failure_group is not None
    assert first.failure_group.frame == "flights.handle"
    assert lines() == written


def test_what_is_there_is_left_alone() -> None:
    odd_letters()
    written = lines()
    DeadLetter.objects.update(state="discarded", error_message="newer")
    for _ in range(2):
        done = restoring.restore(written + written)
        assert (done.new, done.known) == (0, 12)
    assert set(DeadLetter.objects.values_list("state", "error_message")) == {("discarded", "newer")}
    assert DeadLetterAttempt.objects.count() == 6


def test_the_same_line_twice_is_one_letter() -> None:
    stored(b"x")
    written = lines()
    DeadLetter.objects.all().delete()
    done = restoring.restore(written * 3)
    assert (done.new, done.known) == (1, 2)
    assert DeadLetter.objects.count() == 1


def test_a_dry_run_looks_at_every_line_and_stores_nothing() -> None:
    odd_letters()
    written = lines()
    DeadLetter.objects.all().delete()
    assert restoring.restore(written, dry_run=True).new == 6
    assert not DeadLetter.objects.exists()
    with pytest.raises(BadArchive, match=r"^Line 7: it is not JSON"):
        restoring.restore([*written, "{"], dry_run=True)


def test_fingerprints_are_made_anew() -> None:
    stored(b"x")
    line = json.loads(lines()[0])
    right = line["fingerprint"]
    DeadLetter.objects.all().delete()
    restoring.restore([json.dumps({**line, "fingerprint": "0" * 64})])
    assert DeadLetter.objects.get().fingerprint == right
    changed = {**line, "value": base64.b64encode(b"other").decode()}
    assert restoring.restore([json.dumps(changed)]).new == 1


def test_a_parked_letter_comes_back_as_an_open_one() -> None:
    # As `parking` stores it: it has not failed.
    stored(b"x", state="parked", category="parked", error_type="", error_message="", attempts=0)
    written = lines()
    DeadLetter.objects.all().delete()
    restoring.restore(written)
    back = DeadLetter.objects.get()
    assert (back.state, back.category, back.error_type, back.failure_group) == ("open", "parked", "", None)
    assert not FailureGroup.objects.exists()


def test_a_letter_that_came_back_is_found_by_its_trace() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    stored(b"x", headers=[("traceparent", f"00-{trace}-b7ad6b7169203331-01".encode())], trace_id=trace)
    written = lines()
    DeadLetter.objects.all().delete()
    restoring.restore(written)
    assert DeadLetter.objects.get(trace_id=trace)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "x"}, "it is no letter"),
        ({"masked": True}, "it is masked"),
        ({"value": "%%"}, "value is not base64"),
        ({"value": 7}, "value is not base64"),
        ({"key": "é"}, "key is not base64"),
        ({"headers": {}}, "headers are no list"),
        ({"headers": [["a"]]}, "a header is no pair"),
        ({"headers": [["a", 1]]}, "a header is not base64"),
        ({"offset": "1"}, "offset is not a whole number"),
        ({"offset": 1 << 70}, "offset"),
        ({"offset": True}, "offset is not a whole number"),
        ({"partition": 1 << 40}, "partition"),
        ({"attempts": -1}, "attempts"),
        ({"topic": "t" * 300}, "topic"),
        ({"topic": None}, "topic is not text"),
        ({"topic": ""}, "topic"),
        ({"state": "eaten"}, "state"),
        ({"first_failed_at": None}, "it does not say when it failed"),
        ({"last_failed_at": "yesterday"}, "last_failed_at is no time"),
        ({"last_failed_at": "2026-99-99T00:00:00"}, "last_failed_at is no time"),
        ({"last_failed_at": "9999-12-31T23:59:59-12:00"}, "last_failed_at is no time"),
        ({"first_failed_at": "0001-01-01T00:00:00+14:00"}, "first_failed_at is no time"),
        ({"error_type": ""}, "error_type"),
        ({"attempt_list": {}}, "attempt_list"),
        ({"attempt_list": [3]}, "an attempt is no object"),
        ({"attempt_list": [{}]}, "number is missing"),
        ({"frame": "f" * 301}, "frame"),
        ({"erased_at": "2026-11-23T15:00:00+00:00"}, "it was erased, and has a payload"),
    ],
)
def test_a_line_that_is_no_letter_is_named_by_its_number(change: dict[str, Any], reason: str) -> None:
    stored(b"x")
    good = lines()[0]
    bad = json.dumps({**json.loads(good), **change})
    DeadLetter.objects.all().delete()
    with pytest.raises(BadArchive, match=r"^Line 3: ") as raised:
        restoring.restore([good, "\n", bad, good])
    assert reason in str(raised.value)
    assert raised.value.number == 3
    assert DeadLetter.objects.count() == 1  # the one before it


@pytest.mark.parametrize("line", ["[]", "1", "null", '"x"', "[" * 100_000, "\0", '{"format": null}'])
def test_other_json_is_no_letter(line: str) -> None:
    with pytest.raises(BadArchive, match=r"^Line 1: "):
        restoring.restore([line])


@pytest.mark.parametrize("name", ["topic", "offset", "value", "headers", "last_failed_at", "attempt_list", "category"])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    stored(b"x")
    line = json.loads(lines()[0])
    del line[name]
    DeadLetter.objects.all().delete()
    if name == "attempt_list":
        assert restoring.restore([json.dumps(line)]).new == 1
    else:
        with pytest.raises(BadArchive, match=rf"^Line 1: {name} is missing"):
            restoring.restore([json.dumps(line)])


def test_a_line_beyond_all_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "LONGEST", 1000)
    with pytest.raises(BadArchive, match="more than 1000 characters"):
        restoring.restore(["x" * 1001])


def test_what_was_erased_does_not_come_back() -> None:
    stored(b"x", key=b"jane")
    written = lines()
    forget("jane")
    done = restoring.restore(written)
    assert (done.new, done.erased) == (0, 1)
    stub = lines()
    assert "amFuZQ" not in stub[0]
    assert restoring.restore(stub).known == 1
    DeadLetter.objects.all().delete()
    assert restoring.restore(stub).new == 1
    assert restoring.restore(stub).known == 1
    again = DeadLetter.objects.get()
    assert again.erased_at is not None
    assert searching.of(again) == ""


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_an_archive_from_before_and_after_an_erasure_brings_nobody_back(order: slice) -> None:
    """As when two are put together: whichever comes first."""
    stored(b"x", key=b"jane", offset=5)
    before = lines()
    forget("jane")
    both = (before + lines())[order]
    DeadLetter.objects.all().delete()
    done = restoring.restore(both)
    assert (done.new, done.erased) == (1, 1)
    assert DeadLetter.objects.get().erased_at is not None


def test_a_stub_that_says_something_is_refused() -> None:
    stored(b"x", key=b"jane", traceback="Traceback", unread="header jane")
    forget("jane")
    stub = json.loads(lines()[0])
    DeadLetter.objects.all().delete()
    attempt = {**stub["attempt_list"][0], "error_message": "no seat for jane"}
    for said in ({"error_message": "jane"}, {"traceback": "jane"}, {"unread": "jane"}, {"attempt_list": [attempt]}):
        with pytest.raises(BadArchive, match="it was erased, and has"):
            restoring.restore([json.dumps({**stub, **said})])
    assert restoring.restore([json.dumps(stub)]).new == 1


def test_a_time_of_any_zone_is_a_time() -> None:
    """PostgreSQL takes no zone as far away as Python does."""
    stored(b"x")
    line = json.loads(lines()[0])
    DeadLetter.objects.all().delete()
    line["last_failed_at"] = line["attempt_list"][0]["at"] = "2026-01-02T12:00:00+23:59"
    assert restoring.restore([json.dumps(line)]).new == 1
    assert DeadLetter.objects.get().last_failed_at.isoformat() == "2026-01-01T12:01:00+00:00"


def cells(text: str) -> list[dict[str, str]]:
    assert text.startswith("\ufeff")
    return list(csv.DictReader(io.StringIO(text[1:])))


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\uff1d1", "=cmd|' /C calc'!A0", '"=1', "\n=1"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_of_a_spreadsheet_is_a_formula(formula: str) -> None:
    stored(
        formula.encode(), key=formula.encode(), error_message=formula, topic=formula, consumer=formula,
        error_type=formula, handler=formula, release=formula, headers=[(formula, formula.encode())],
    )  # fmt: skip
    rows = cells("".join(exporting.csv_lines(DeadLetter.objects.all(), masked=False)))
    assert len(rows) == 1
    for name, cell in rows[0].items():
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d")), name
        assert "\n" not in cell
        assert "\r" not in cell


@pytest.mark.parametrize("inner", ["=1+1", "@SUM(A1)", ' "=1', "\uff1d1"])
def test_no_cell_is_a_formula_where_semicolons_part_cells(inner: str) -> None:
    stored(f"x;{inner}".encode(), error_message=f"y;{inner}")
    text = "".join(exporting.csv_lines(DeadLetter.objects.all(), masked=False))
    for line in text.splitlines():
        for cell in line.split(";")[1:]:
            assert not cell.lstrip(' "').startswith(("=", "@", "\uff1d")), cell


def test_a_letter_is_a_line_of_a_spreadsheet_whatever_it_says() -> None:
    stored(b'a,b;"c"\r\nd\x00\xff', error_message='one\ntwo, "three"', key="é\u202e".encode())
    stored(b"v" * 100_000, offset=5)
    text = "".join(exporting.csv_lines(DeadLetter.objects.all(), masked=False))
    assert len(text.splitlines()) == 3
    first, second = cells(text)
    assert first["value"] == 'a,b;"c"\\u000d\\u000ad\\u0000\\xff'
    assert first["key"] == "é\\u202e"
    assert second["offset"] == "5"
    assert len(second["value"]) == 32_767


def masked_settings(settings: Settings) -> None:
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"mask": ["passenger"]}}


def test_masked_files_have_nothing_of_what_is_masked(settings: Settings) -> None:
    masked_settings(settings)
    letter = stored({"passenger": "jane doe", "gate": 17}, error_message="no seat for jane doe", traceback="x jane doe")
    DeadLetterAttempt.objects.filter(letter=letter).update(error_message="jane doe", traceback="jane doe")
    for write in (exporting.json_lines, exporting.csv_lines):
        text = "".join(write(DeadLetter.objects.all(), masked=True))
        assert "jane" not in text
        assert base64.b64encode(b'{"passenger"').decode()[:12] not in text
        assert letter.fingerprint not in text or write is exporting.csv_lines
        assert "gate" in text
        assert "jane doe" in "".join(write(DeadLetter.objects.all(), masked=False)) or write is exporting.json_lines
    with pytest.raises(BadArchive, match="it is masked"):
        restoring.restore(exporting.json_lines(DeadLetter.objects.all(), masked=True))


class Wrapped:
    """A serializer of the project's own, whose bytes are no JSON."""

    def encode(self, value: Any, topic: str) -> bytes:
        return base64.b64encode(json.dumps(value).encode())

    def decode(self, data: bytes, topic: str) -> Any:
        return json.loads(base64.b64decode(data))


def test_masked_files_know_what_the_serializers_of_letters_read(settings: Settings) -> None:
    topics = {"flights": {"handler": "tests.app.handlers.record", "serializer": f"{__name__}.Wrapped"}}
    settings.KAFKA = {**settings.KAFKA, "consumers": {"ops": {"group_id": "ops", "topics": topics}}}
    masked_settings(settings)
    value = Wrapped().encode({"passenger": "jane doe"}, "flights")
    letter = stored(value, error_message="no seat for jane doe", traceback="x jane doe")
    DeadLetterAttempt.objects.filter(letter=letter).update(error_message="jane doe", traceback="jane doe")
    for write in (exporting.json_lines, exporting.csv_lines):
        text = "".join(write(DeadLetter.objects.all(), masked=True))
        assert "no seat for ***" in text
        assert "jane" not in text
    assert "jane" not in searching.of(letter)


def test_where_settings_mask_nothing_a_masked_file_has_no_payload() -> None:
    stored({"passenger": "jane"}, key=b"jane", headers=[("who", b"jane")])
    for write in (exporting.json_lines, exporting.csv_lines):
        assert "jane" not in "".join(write(DeadLetter.objects.all(), masked=True))


def test_the_audit_is_exported() -> None:
    letter = stored(b"x")
    audit.note("=cmd()", "look at payload", [letter], details={"a": [1]})
    (line,) = exporting.audit_json_lines()
    assert json.loads(line)["details"] == {"a": [1]}
    (row,) = cells("".join(exporting.audit_csv_lines()))
    assert (row["user_name"], row["verb"], row["details"]) == ("'=cmd()", "look at payload", '{"a": [1]}')


def test_an_export_takes_no_more_memory_for_more_letters() -> None:
    """A letter has 20 kB here, so that all of them at once would be seen."""
    for start in range(0, 1200, 300):
        DeadLetter.objects.bulk_create(_large(start + number) for number in range(300))
    tracemalloc.start()
    try:
        assert sum(1 for _line in exporting.json_lines(DeadLetter.objects.all(), masked=False)) == 1200
        _now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16_000_000


def _large(number: int) -> DeadLetter:
    now = timezone.now()
    return DeadLetter(
        consumer="ops", group_id="ops", topic="flights", partition=0, offset=number, fingerprint=f"{number:064}",
        value=b"v" * 20_000, category="handler", error_type="ValueError", first_failed_at=now, last_failed_at=now,
    )  # fmt: skip


def chosen(client: Client, action: str, *letters: DeadLetter) -> Any:
    return client.post(reverse(LIST), {"action": action, "_selected_action": [one.pk for one in letters]})


@pytest.mark.parametrize(("action", "ending"), [("export-jsonl", "jsonl"), ("export-csv", "csv")])
def test_the_admin_exports_what_is_selected(client: Client, action: str, ending: str) -> None:
    client.force_login(User.objects.create_superuser("root"))
    one, _other = stored({"n": "first"}, offset=17), stored({"n": "second"}, offset=18)
    answer = chosen(client, action, one)
    text = b"".join(answer.streaming_content).decode()
    assert f".{ending}" in answer["Content-Disposition"]
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert len(text.splitlines()) == (1 if ending == "jsonl" else 2)
    assert "18" not in text.replace(one.fingerprint, "") or "second" not in text
    entry = AuditEntry.objects.get(verb="export")
    assert (entry.row, entry.user_name, entry.details) == (str(one.pk), "root", {"format": ending, "masked": False})
    assert entry.address


def test_those_who_may_not_view_payloads_get_them_masked(client: Client, settings: Settings) -> None:
    masked_settings(settings)
    user = User.objects.create_user("ann", is_staff=True)
    client.force_login(user)
    user.user_permissions.add(Permission.objects.get(codename="view_deadletter"))
    letter = stored({"passenger": "jane doe", "gate": 17})
    assert chosen(client, "export-jsonl", letter).status_code != 200 or not AuditEntry.objects.filter(verb="export")
    user.user_permissions.add(Permission.objects.get(codename="export_deadletter"))
    line = json.loads(b"".join(chosen(client, "export-jsonl", letter).streaming_content))
    assert line["masked"] is True
    assert "jane" not in json.dumps(line)
    user.user_permissions.add(Permission.objects.get(codename="view_payload_deadletter"))
    line = json.loads(b"".join(chosen(client, "export-jsonl", letter).streaming_content))
    assert b"jane doe" in base64.b64decode(line["value"])


def command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("kafka_letters", *arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue()


@pytest.fixture
def file(tmp_path: Any) -> str:
    return str(tmp_path / "letters.jsonl")


def test_the_command_takes_letters_out_and_brings_them_back(file: str) -> None:
    odd_letters()
    before = lines()
    assert command("export", "--output", file) == ""
    assert Path(file).read_text("utf-8").splitlines(keepends=True) == before
    DeadLetter.objects.all().delete()
    assert "New: 6, known: 0, erased before: 0. Nothing was stored." in command("import", file, "--dry-run")
    assert "New: 6, known: 0" in command("import", file)
    assert "New: 0, known: 6" in command("import", file)
    assert lines() == before
    with pytest.raises(CommandError, match="cannot be written"):
        command("export", "--output", file)
    with pytest.raises(CommandError, match="cannot be read"):
        command("import", file + ".no")


def test_the_command_archives_what_is_old() -> None:
    old = stored(b"x", offset=1)
    stored(b"y", offset=2)
    DeadLetter.objects.filter(pk=old.pk).update(last_failed_at=timezone.now() - timedelta(days=31))
    assert json.loads(command("export", "--older-than", "30d"))["offset"] == 1
    assert len(command("export").splitlines()) == 2
    assert len(command("export", "--state", "resolved").splitlines()) == 0
    assert len(command("export", "--format", "csv", "--id", str(old.pk)).splitlines()) == 2
    assert AuditEntry.objects.filter(verb="export").count() == 4


def test_the_command_exports_the_audit() -> None:
    audit.note("somebody", "look at payload", [stored(b"x")])
    assert json.loads(command("export", "--audit"))["user_name"] == "somebody"
    with pytest.raises(CommandError, match="leave the other options out"):
        command("export", "--audit", "--topic", "flights")


def test_the_command_names_the_line_that_is_wrong(file: str) -> None:
    with open(file, "w", encoding="utf-8") as written:
        written.write("\n{}\n")
    with pytest.raises(CommandError, match=r"^Line 2: it is no letter"):
        command("import", file)


def test_the_command_forgets_after_it_was_told_to() -> None:
    stored({"passenger": {"email": "jane@example.com"}}, key=b"jane")
    stored({"passenger": {"email": "john@example.com"}}, key=b"john")
    with pytest.raises(CommandError, match="Say whom"):
        command("forget")
    with pytest.raises(CommandError, match="go together"):
        command("forget", "--path", "x")
    with pytest.raises(CommandError, match="Nobody can be asked"):
        command("forget", "--key", "jane")
    assert "letters: 1, " in command("forget", "--key", "jane", "--dry-run")
    assert not DeadLetter.objects.filter(erased_at__isnull=False).exists()
    said = command("forget", "--key", "jane", "--yes", "--reason", "ticket 7")
    assert "letters: 1, attempts: 1" in said
    assert "were erased" in said
    assert AuditEntry.objects.get(verb="erase").reason == "ticket 7"
    command("forget", "--path", "passenger.email", "--value", "john@example.com", "--yes")
    assert DeadLetter.objects.filter(erased_at__isnull=True).count() == 0
    assert "Nothing was done" in command("forget", "--key", "jane", "--yes")
