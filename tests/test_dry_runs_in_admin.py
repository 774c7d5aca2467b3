"""Dry runs in the admin: asked for, waited for, and read, whatever strangers wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation
from pytest_django import Settings

from django_kafka import conf, services
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.rows import new_letter
from django_kafka.messages import Message
from django_kafka.models import AuditEntry, DeadLetter, Replay
from django_kafka.models.dead_letters import trace_of
from tests.app.handlers import record
from tests.app.models import Effect
from tests.letters import dead_letter

KAFKA: dict[str, Any] = {
    "brokers": ["127.0.0.1:1"],
    "producers": {"default": {}},
    "consumers": {
        "ops": {
            "group_id": "ops",
            "topics": {"flights": {"handler": "tests.test_dry_runs_in_admin.handle", "dry_run": True}, "raw": {}},
        }
    },
}
EVIL = "<script>alert(1)</script>\u202e\u200b\x1b[31m\0"
what: list[Callable[[Message], Any]] = []


def handle(message: Message) -> None:
    record(message)
    for each in what:
        each(message)


@pytest.fixture(autouse=True)
def _desk(settings: Settings, client: Client, db: None) -> Iterator[None]:
    settings.KAFKA = KAFKA
    client.force_login(User.objects.create_superuser("root"))
    yield
    what.clear()


def url(letter: DeadLetter, name: str = "change", *more: Any) -> str:
    return reverse(f"admin:lynx_kafka_deadletter_{name}", args=[letter.pk, *more])


def page(client: Client, letter: DeadLetter, name: str = "change", *more: Any) -> str:
    answer = client.get(url(letter, name, *more))
    assert answer.status_code == 200
    return answer.content.decode()


def carry_out() -> Replay:
    executor = Executor()
    try:
        replay = executor.run_next()
    finally:
        executor.close()
    assert replay is not None
    return replay


def test_a_person_asks_waits_and_reads(client: Client) -> None:
    what.append(lambda message: services.produce("gates", "K", {"gate": "A1"}, headers={"a": "b"}))
    letter = dead_letter({"n": 1})
    assert f'href="{url(letter, "dry-run")}"' in page(client, letter)
    assert "Run the handler of 1 dead letter dry?" in page(client, letter, "dry-run")
    answer = client.post(url(letter, "dry-run"), {"confirmed": "yes"}, follow=True)
    text = answer.content.decode()
    assert "A dry run of 1 dead letter was asked for." in text
    assert "data-lynx-kafka-waits" in text
    assert '<noscript><meta http-equiv="refresh"' in text
    assert not Effect.objects.exists()  # nothing runs in a request

    replay = carry_out()
    text = page(client, letter)
    assert "data-lynx-kafka-waits" not in text
    assert "waiting.js" not in text
    part = text.partition('id="dry-run"')[2].partition("</dl>")[0]
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", part))
    assert facts["Outcome"] == "it would succeed"
    assert (facts["Queries"], facts["Records that were not sent"]) == ("1", "1")
    report = page(client, letter, "replay_of", replay.pk)
    assert "<code>gates</code>" in report
    assert "&quot;gate&quot;: &quot;A1&quot;" in report
    assert f'href="{url(letter, "replay_of", replay.pk)}"' in text

    listing = client.get(reverse("admin:lynx_kafka_deadletter_changelist"))
    assert listing.context["cl"].result_list[0].replay_state is None  # it was none


def test_a_page_that_waits_asks_for_nothing_but_that(client: Client) -> None:
    letter = dead_letter({"n": 1})
    replay = Replay.objects.create(letter=letter, target="dry-run", requested_at=timezone.now())
    for name, more in (("change", ()), ("replay_of", (replay.pk,))):
        assert f'data-lynx-kafka-waits="{url(letter, "waits")}"' in page(client, letter, name, *more)
    looks = AuditEntry.objects.count()
    assert client.get(url(letter, "waits")).json() == {"waits": True}
    carry_out()
    assert client.get(url(letter, "waits")).json() == {"waits": False}
    assert client.post(url(letter, "waits")).status_code == 405
    assert AuditEntry.objects.count() == looks
    client.force_login(User.objects.create_user("ada", is_staff=True))
    assert client.get(url(letter, "waits")).status_code == 403


def test_an_error_is_shown_with_the_project_first(client: Client) -> None:
    def fail(message: Message) -> None:
        raise LookupError(EVIL)

    what.append(fail)
    letter = dead_letter({"n": 1})
    replaying.request([letter.pk], target="dry-run")
    replay = carry_out()
    text = page(client, letter, "replay_of", replay.pk)
    assert text.index("<code>fail</code>") < text.index("<code>handle</code>") < text.index("The whole traceback")
    assert "it would fail" in page(client, letter)


def test_what_strangers_wrote_is_harmless(client: Client) -> None:
    def produce(message: Message) -> None:
        services.produce("gates", EVIL, {"evil": EVIL}, headers={EVIL.replace("\0", ""): EVIL})
        services.produce("gates", EVIL.encode() + b"\xff", None)
        raise LookupError(EVIL)

    what.append(produce)
    letter = dead_letter({"evil": EVIL})
    replaying.request([letter.pk], target="dry-run")
    failed = carry_out()
    what.append(lambda message: None)
    what[0] = lambda message: services.produce("gates", EVIL.encode() + b"\xff", {"x": EVIL}, headers={"h": EVIL})
    replaying.request([letter.pk], target="dry-run")
    replay = carry_out()
    texts = [
        page(client, letter),
        page(client, letter, "replay_of", failed.pk),
        page(client, letter, "replay_of", replay.pk),
    ]
    assert r"\u202e" in texts[2]
    for text in texts:
        assert "<script>alert" not in text
        for each in ("\u202e", "\u200b", "\x1b", "\0"):
            assert each not in text


def test_the_reason_why_there_is_none_stands_there(client: Client, settings: Settings) -> None:
    letter = dead_letter({"n": 1}, topic="raw")
    text = page(client, letter)
    assert f'href="{url(letter, "dry-run")}"' not in text
    assert "lynx-kafka-refused" in text
    settings.KAFKA = {**KAFKA, "consumers": {"ops": {"topics": {"flights": {"handler": "tests.app.handlers.record"}}}}}
    letter = dead_letter({"n": 1})
    assert "is not declared fit for dry runs" in page(client, letter)
    client.post(url(letter, "dry-run"), {"confirmed": "yes"})
    assert not Replay.objects.exists()
    assert "lynx-kafka-refused" not in page(client, dead_letter({}, state="resolved"))


def test_masked_payloads_stay_masked_and_a_look_at_unmasked_ones_is_written_down(
    client: Client, settings: Settings
) -> None:
    settings.KAFKA = {**KAFKA, "dead_letters": {"mask": ["name", {"regex": r"\bsecret\w*"}]}}
    what.append(lambda message: services.produce("gates", "secret1", {"name": "Ada"}))
    letter = dead_letter({"name": "Ada"})
    replaying.request([letter.pk], target="dry-run")
    replay = carry_out()

    def fail(message: Message) -> None:
        raise LookupError("secret2")

    what[0] = fail
    replaying.request([letter.pk], target="dry-run")
    failed = carry_out()
    assert "secret1" not in page(client, letter, "replay_of", replay.pk)
    assert not AuditEntry.objects.exists()
    assert "secret1" in client.get(url(letter, "replay_of", replay.pk), {"unmasked": "yes"}).content.decode()
    assert AuditEntry.objects.filter(verb="look at payload", row=str(letter.pk)).count() == 1

    user = User.objects.create_user("ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_deadletter"))
    client.force_login(user)
    for each in (replay, failed):
        text = client.get(url(letter, "replay_of", each.pk), {"unmasked": "yes"}).content.decode()
        assert "Ada" not in text
        assert "secret" not in text
        assert "You are not permitted to view payloads" in text
    assert AuditEntry.objects.count() == 1


def test_it_is_german_too(client: Client) -> None:
    letter = dead_letter({"n": 1})
    replaying.request([letter.pk], target="dry-run")
    replay = carry_out()
    with translation.override("de"):
        client.cookies["django_language"] = "de"
        text = client.get(url(letter), headers={"accept-language": "de"}).content.decode()
        report = client.get(url(letter, "replay_of", replay.pk), headers={"accept-language": "de"}).content.decode()
    assert "Letzter Probelauf" in text
    assert "Was er gesendet hätte" in report


# Traces


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        (b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", "4bf92f3577b34da6a3ce929d0e0e4736"),
        (b"00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""),
        (b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", ""),
        (b"\xff" * 100_000, ""),
        (b"", ""),
        (None, ""),
    ],
)
def test_the_trace_of_a_message_is_kept_with_its_letter(header: bytes | None, trace: str) -> None:
    assert trace_of([("a", b"x"), ("traceparent", header)]) == trace

    class Raw:
        def headers(self) -> list[tuple[str, bytes | None]]:
            return [("traceparent", header)]

        def __getattr__(self, name: str) -> Callable[[], Any]:
            return lambda: {"timestamp": (0, 0), "topic": "flights", "partition": 0, "offset": 1}.get(name)

    letter = new_letter(conf.consumer("ops"), "ops", Message(Raw(), None), category="handler")  # type: ignore[arg-type]
    assert letter.trace_id == trace
