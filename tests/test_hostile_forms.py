"""Whatever somebody writes into a field of a form of the desk is answered: by the form, a refusal, or as it was meant.

Each field of each form is posted with texts that databases, terminals or spreadsheets trip over.
"""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from django_kafka.models import AuditEntry, Control, DeadLetter, FailureGroup, Hold, Replay, ReplayJob, Worker
from tests.letters import dead_letter

pytestmark = pytest.mark.django_db

HOSTILE = {
    "NUL": "flights\0",
    "half a surrogate": "\\ud800 \ufffd",
    "lines and colours": "a\r\n2026 INFO fine\x1b[2J\x9b31m",
    "bidi": "\u202egnp.exe\u2066",
    "long": "x" * 20_000,
    "large number": "9" * 400,
    "negative": "-1",
    "no number": "nan",
    "infinite": "1e999",
    "other digits": "\u0663\u00b2",
    "formula": "=cmd|' /C calc'!A0",
    "script": "<script>alert(1)</script>",
    "nothing": "",
}


@pytest.fixture(autouse=True)
def _desk(settings: Settings, client: Client) -> None:
    topics = {"flights": {"handler": "tests.app.handlers.record", "dry_run": True}}
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "consumers": {"ops": {"group_id": "ops", "topics": topics}},
        "producers": {"default": {}},
        "dead_letters": {"edit": True, "job_above": 1, "reason_above": 1},
    }
    client.force_login(User.objects.create_superuser("root"))


def url(name: str, *arguments: object) -> str:
    return reverse(f"admin:lynx_kafka_{name}", args=arguments)


def group() -> FailureGroup:
    now = timezone.now()
    made: FailureGroup = FailureGroup.objects.create(
        fingerprint="f", consumer="ops", error_type="KeyError", category="handler", first_seen_at=now, last_seen_at=now
    )
    return made


def worker() -> Worker:
    now = timezone.now()
    made: Worker = Worker.objects.create(
        id="w", consumer="ops", group_id="ops", host="h", pid=1, version="1", started_at=now, seen_at=now,
        circuit="open", circuit_episode=1, circuit_reason="all fail",
    )  # fmt: skip
    return made


def forms() -> list[tuple[str, dict[str, Any], list[str]]]:
    """Return where forms go, how they are filled in, and which fields somebody may write what they like into."""
    one, cause, key = dead_letter({"n": 1}, headers=[("h", b"x")]), group(), b"k"
    letters = [dead_letter({"n": 2}, failure_group=cause), dead_letter({"n": 3}, failure_group=cause)]
    hold = Hold.objects.create(
        consumer="ops", group_id="ops", topic="flights", partition=0, key=key, key_hash="k", since=timezone.now()
    )
    dead_letter({}, key=key, hold=hold)
    job = ReplayJob.objects.create(consumer="ops", requested_at=timezone.now(), total=1)
    process = worker()
    many: dict[str, Any] = {
        "confirmed": "yes", "until": "999999999", "as_job": "on", "rate": "5", "ramp": "1, 10", "failure_percent": "5",
        "reason": "mended", "to_topic": "others",
    }  # fmt: skip
    fields = ["until", "rate", "ramp", "failure_percent", "reason", "as_job", "to_topic", "confirmed"]
    selected = {
        **many,
        "index": "0",
        "select_across": "0",
        "_selected_action": [one.pk, *(each.pk for each in letters)],
    }
    chosen = [*fields, "_selected_action", "select_across", "index", "action"]
    typed = {
        "value": '{"n": 5}', "value_notation": "json", "key": "k", "key_notation": "text", "target": "other",
        "to_topic": "others", "version": "open-1-", "header-0-name": "h", "header-0-value": "y", "send": "yes",
        "header-0-notation": "text", "header-1-name": "new", "header-1-value": "z", "header-1-notation": "text",
    }  # fmt: skip
    found: list[tuple[str, dict[str, Any], list[str]]] = [
        (url("deadletter_edit", one.pk), typed, list(typed)),
        (url("failuregroup_say", cause.pk), {"state": "acknowledged"}, ["state"]),
        (url("failuregroup_note", cause.pk), {"owner": "ada", "note": "see there"}, ["owner", "note"]),
        (url("worker_close", process.pk), {"confirmed": "yes", "reason": "mended"}, ["confirmed", "reason"]),
    ]
    found += [(url("deadletter_changelist"), {**selected, "action": verb}, chosen) for verb in
              ("replay", "replay-to-topic", "replay-to-other-topic", "discard", "erase", "export-csv")]  # fmt: skip
    found += [(url("deadletter_group", cause.pk, verb), many, fields) for verb in ("replay-to-other-topic", "discard")]
    found += [(url("hold_changelist"), {**selected, "action": "replay", "_selected_action": [hold.pk]}, chosen)]
    found += [(url("failuregroup_changelist"),
               {"action": "say_resolved", "index": "0", "_selected_action": [cause.pk]}, chosen)]  # fmt: skip
    found += [(url("worker_changelist"),
               {"action": "close_circuits", "index": "0", "_selected_action": [process.pk], "confirmed": "yes"},
               chosen)]  # fmt: skip
    verbs = ("replay", "replay-to-other-topic", "dry-run", "discard", "reopen", "erase", "cancel-replay")
    found += [(url(f"deadletter_{verb}", one.pk), many, fields) for verb in verbs]
    found += [(url(f"replayjob_{verb}", job.pk), {"rate": "5"}, ["rate"]) for verb in
              ("pause", "resume", "rate", "cancel")]  # fmt: skip
    return found + controls()


def controls() -> list[tuple[str, dict[str, Any], list[str]]]:
    """Return those of control; what asks brokers is left to places that are not there."""
    asked = {"confirmed": "yes", "reason": "because", "topic": "flights", "partitions": "0", "value": "5"}
    seek = {**asked, "target": "offset", "to": ["flights:0:5"]}
    found = [(f"{url('control', verb)}?consumer=ops", asked, list(asked)) for verb in ("pause", "resume")]
    found += [(f"{url('control', verb)}?worker=w", asked, list(asked)) for verb in ("close_breaker", "stop")]
    return [*found, (f"{url('control', 'seek')}?consumer=ops", seek, ["target", "to", "topic", "partitions", "reason"])]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_in_a_field_of_a_form_is_an_error_of_ours(
    client: Client, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Brokers that are not there are waited for.
    monkeypatch.setattr("django_kafka.admin.controls._ANSWERS_WITHIN", 0.05)
    monkeypatch.setattr("django_kafka.admin.topics._ASK_AT_MOST", 0.05)
    client.raise_request_exception = True
    seen = set()
    for address, filled, fields in forms():
        for name in fields:
            answer = client.post(address, {**filled, name: text})
            assert answer.status_code in (200, 302, 400, 403, 404), (address, name)
            seen.add(answer.status_code)
            DeadLetter.objects.filter(erased_at=None).update(state="open")
            Replay.objects.all().delete()
            ReplayJob.objects.update(state="running")
    assert {200, 302} <= seen
    for name in ("deadletter", "failuregroup", "replay", "replayjob", "hold", "worker", "auditentry", "control"):
        page = client.get(url(f"{name}_changelist"), {"state": "all"} if name in ("deadletter", "failuregroup") else {})
        assert page.status_code == 200
        body = page.content.decode()
        assert "<script>alert" not in body
        assert not {"\0", "\x1b", "\x9b", "\u202e", "\u2066"} & set(body), name
    assert AuditEntry.objects.exists()
    assert Control.objects.exists()


@pytest.mark.parametrize("pk", [10**30, 2**63, 2**63 - 1, 0])
def test_an_address_with_an_id_that_no_row_has_leads_nowhere(client: Client, pk: int) -> None:
    one = dead_letter({"n": 1})
    places = [
        *((f"deadletter_{verb}", (pk,)) for verb in ("edit", "waits", "replay", "discard", "erase", "dry-run")),
        ("deadletter_download", (pk, "value")), ("deadletter_group", (pk, "replay")), ("deadletter_change", (pk,)),
        ("deadletter_replay_of", (pk, 1)), ("deadletter_replay_of", (one.pk, pk)), ("failuregroup_say", (pk,)),
        ("failuregroup_note", (pk,)), ("replayjob_pause", (pk,)), ("replayjob_change", (pk,)),
        ("worker_close", ("\0",)), ("worker_close", ("w" * 5000,)), ("worker_change", ("\0",)),
        ("worker_history", ("\0",)), ("replay_change", (pk,)), ("replay_history", (pk,)),
    ]  # fmt: skip
    for name, arguments in places:
        for send in (client.get, client.post):
            assert send(url(name, *arguments)).status_code in (302, 403, 404, 405), (name, send)
    assert client.get(f"{url('deadletter_edit', one.pk)}?replay={pk}").status_code == 200
