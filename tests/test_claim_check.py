"""Claim checks: large values left in a storage, what messages refer to, and what becomes of the files."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import html
import json
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, storages
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from django_kafka import categories, handlers, services
from django_kafka.admin import letters as admin_letters
from django_kafka.admin import reaching
from django_kafka.cloud_events import CloudEvent
from django_kafka.dead_letters import erasing, payloads, replaying, restoring
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.exporting import json_lines
from django_kafka.envelopes import claim_check, patience
from django_kafka.envelopes.claim_check import FOLDER, MARK, Checked, Reference, name_in
from django_kafka.exceptions import (
    BadArchive,
    ConfigurationError,
    DecodeError,
    PayloadMissing,
    PayloadTooLarge,
    RecordTooLarge,
    StorageUnavailable,
)
from django_kafka.messages import Message, Messages
from django_kafka.models import AuditEntry, DeadLetter, Replay
from django_kafka.testing import consume, produced, record
from tests.app.models import Effect
from tests.consuming import Seen, Workplace
from tests.letters import dead_letter
from tests.sending import read
from tests.servers.processes import wait_until
from tests.test_admin import person
from tests.test_encryption import JANE, OLD, Raw, assert_dark
from tests.test_registry_journeys import carried_out

__all__ = ["person"]

LARGE = {**JANE, "text": "x" * 2000}
CHECK = {"storage": "kafka", "above": 1000}
KEYS = {"keys": {"old": OLD}}


class Breaking(FileSystemStorage):
    """A storage that may be away."""

    away = False

    def _save(self, name: str, content: Any) -> str:
        if Breaking.away:
            raise ConnectionError("nobody is there: secret-of-the-storage")
        return super()._save(name, content)

    def _open(self, name: str, mode: str = "rb") -> Any:
        if Breaking.away:
            raise ConnectionError("nobody is there: secret-of-the-storage")
        return super()._open(name, mode)

    def delete(self, name: str) -> None:
        if Breaking.away:
            raise ConnectionError("nobody is there: secret-of-the-storage")
        super().delete(name)


def handle(message: Message) -> None:
    value = message.value
    Effect.objects.create(
        topic=message.topic, partition=message.partition, offset=message.offset, key=message.key, payload=value
    )
    if value.get("seat") == "17C":
        raise ValueError("no seat")


def kafka(*, producer: Any = None, **consumer: Any) -> dict[str, Any]:
    topics = {"flights": {"handler": "tests.test_claim_check.handle"}, "others": {}}
    own = {"group_id": "ops", "topics": topics, "retry": {"max_retries": 0}, "claim_check": "kafka", **consumer}
    return {
        "brokers": ["127.0.0.1:1"],
        "producers": {"default": {"claim_check": CHECK, **(producer or {})}},
        "consumers": {"ops": own},
        "encryption": KEYS,
        "dead_letters": {"edit": True},
    }


@pytest.fixture(autouse=True)
def place(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """Where the files are."""
    backend = {"BACKEND": "tests.test_claim_check.Breaking", "OPTIONS": {"location": str(tmp_path / "files")}}
    settings.STORAGES = {**settings.STORAGES, "kafka": backend}
    settings.KAFKA = kafka()
    (tmp_path / "files").mkdir()
    Breaking.away = False
    yield tmp_path / "files"
    Breaking.away = False


@pytest.fixture
def executor(db: None) -> Iterator[Executor]:
    mine = Executor()
    yield mine
    mine.close()


def files(place: Path) -> list[Path]:
    return sorted(each for each in place.rglob("*") if each.is_file())


def message_of(value: bytes | None, topic: str = "flights") -> Message:
    return Message(Raw(value, topic), handlers.decoder_for("ops", topic))


def left(value: Any = None, topic: str = "flights") -> bytes:
    data = record(topic, "k", LARGE if value is None else value).raw_value
    assert data is not None
    return bytes(data)


def letter_of(value: Any = None, **fields: Any) -> DeadLetter:
    return dead_letter(left(value), **fields)


# There and back


def test_a_large_value_goes_through_the_storage_and_a_small_one_does_not(workplace: Workplace, place: Path) -> None:
    seen = Seen()
    workplace.consume(seen, kafka={"producers": {"default": {"claim_check": CHECK}}}, claim_check="kafka")
    for value in (LARGE, JANE, None):
        services.produce(workplace.topic, "k", value).result()
    for delivery in services.produce_batch(workplace.topic, [{"key": "k", "value": LARGE}, {"key": "k", "value": 1}]):
        delivery.result()
    with workplace.worker():
        seen.wait(5)
    assert seen.values == [LARGE, JANE, None, LARGE, 1]
    raws = [each.value() for each in read(workplace.cluster, workplace.topic, 5)]
    assert [bool(raw and raw.startswith(MARK)) for raw in raws] == [True, False, False, True, False]
    names = [name_in(raws[0]), name_in(raws[3])]
    assert sorted(str(each.relative_to(place)) for each in files(place)) == sorted(names)
    assert all(name.startswith(f"{FOLDER}/{workplace.topic}/") for name in names)
    assert all(len(raw or b"") < 400 for raw in raws)


def test_what_kafka_would_not_take_goes_through_the_storage(workplace: Workplace) -> None:
    seen = Seen()
    topics = {"plain": {"claim_check": "none"}}
    producers = {"default": {"claim_check": CHECK, "topics": topics}}
    workplace.consume(seen, kafka={"producers": producers}, claim_check="kafka")
    huge = "x" * 3_000_000
    with pytest.raises(RecordTooLarge):
        services.produce("plain", "k", huge)
    services.produce(workplace.topic, "k", huge).result()
    with workplace.worker():
        seen.wait(1)
    assert seen.values == [huge]


def test_a_small_value_that_looks_like_a_reference_is_left_there_too(settings: Settings, place: Path) -> None:
    settings.KAFKA = kafka(producer={"serializer": "bytes"}, serializer="bytes")
    for value in (MARK, MARK + b"{}", b"LKC", b""):
        assert message_of(left(value)).value == value
    assert len(files(place)) == 2


def test_lists_are_read_and_what_was_captured_too(place: Path) -> None:
    decoder = handlers.decoder_for("ops", "flights")
    assert Messages([Raw(left()), Raw(left(1)), Raw(None)], decoder).values() == [LARGE, 1, None]
    with produced() as records:
        services.produce("flights", "k", LARGE)
    assert records[0].value == LARGE
    assert records[0].raw_value is not None
    assert len(records[0].raw_value) < 400


def test_nothing_is_left_for_a_transaction_that_is_rolled_back(workplace: Workplace, place: Path) -> None:
    workplace.consume(Seen(), kafka={"producers": {"default": {"claim_check": CHECK}}}, claim_check="kafka")
    with transaction.atomic():
        services.produce(workplace.topic, "k", LARGE)
        transaction.set_rollback(True)
    assert files(place) == []
    with transaction.atomic():
        delivery = services.produce(workplace.topic, "k", LARGE)
        assert files(place) == []
    delivery.result()
    assert len(files(place)) == 1


def test_a_coroutine_leaves_it_in_a_thread(workplace: Workplace, place: Path) -> None:
    workplace.consume(Seen(), kafka={"producers": {"default": {"claim_check": CHECK}}}, claim_check="kafka")

    async def send() -> None:
        await (await services.aproduce(workplace.topic, "k", LARGE))

    asyncio.run(send())
    assert len(files(place)) == 1


@pytest.mark.parametrize("mode", ["none", "binary", "structured"])
@pytest.mark.parametrize("chosen", ["none", "payload", ["passenger"]])
def test_all_envelopes_go_together(settings: Settings, executor: Executor, place: Path, mode: str, chosen: Any) -> None:
    events = {"mode": mode, "source": "/ops", "type": "landed"}
    producer = {"encryption": chosen, "cloud_events": events}
    settings.KAFKA = kafka(producer=producer, encryption=chosen, cloud_events=True)
    mine = {**LARGE, "seat": "1A"}
    made = record("flights", "k", mine if mode == "none" else CloudEvent(data=mine, subject="17"))
    (file,) = files(place)
    if chosen != "none":
        assert_dark(file.read_bytes())
    raw = Raw(made.raw_value)
    raw.parts["headers"] = list(made.headers)
    message = Message(raw, handlers.decoder_for("ops", "flights"))
    assert message.value == made.value == mine
    assert (message.cloud_event and message.cloud_event.subject) == (None if mode == "none" else "17")

    letter = dead_letter(bytes(made.raw_value or b""), headers=list(made.headers))
    with produced() as records:
        replaying.request([letter.pk], target="topic", topic="others")
        executor.run_next()
    raw = Raw(records[0].raw_value, "others")
    raw.parts["headers"] = list(records[0].headers)
    assert Message(raw, handlers.decoder_for("ops", "others")).value == mine
    DeadLetter.objects.update(state="open")
    replaying.request([letter.pk])
    executor.run_next()
    assert Effect.objects.get().payload == mine


# When something is not there


def test_a_storage_that_is_away_takes_nothing_and_nothing_is_sent(workplace: Workplace, place: Path) -> None:
    workplace.consume(Seen(), kafka={"producers": {"default": {"claim_check": CHECK}}}, claim_check="kafka")
    Breaking.away = True
    with pytest.raises(StorageUnavailable, match="The storage 'kafka' takes no payload: ConnectionError") as caught:
        services.produce(workplace.topic, "k", LARGE)
    assert categories.of(caught.value).kind is categories.Kind.OUTAGE
    with transaction.atomic():
        delivery = services.produce(workplace.topic, "k", LARGE)
    with pytest.raises(StorageUnavailable):
        delivery.result()
    assert services.produce(workplace.topic, "k", JANE).result().offset == 0
    with pytest.raises(StorageUnavailable):
        asyncio.run(services.aproduce(workplace.topic, "k", LARGE))


def test_a_lane_waits_for_a_storage_that_is_away(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, kafka={"producers": {"default": {"claim_check": CHECK}}}, claim_check="kafka")
    services.produce(workplace.topic, "k", LARGE).result()
    Breaking.away = True
    with workplace.worker() as worker:
        wait_until(lambda: worker.lanes.waiting())
        assert (seen.values, workplace.letters()) == ([], [])
        Breaking.away = False
        seen.wait(1)
    assert (seen.values, workplace.letters()) == ([LARGE], [])


def test_what_a_handler_sends_is_sent_again_when_the_storage_is_back(workplace: Workplace, place: Path) -> None:
    workplace.cluster.create_topic("next", 1)
    seen = Seen(lambda message: services.produce("next", "k", LARGE))
    workplace.consume(seen, kafka={"producers": {"default": {"claim_check": CHECK}}}, claim_check="kafka")
    Breaking.away = True
    workplace.send([1])
    with workplace.worker():
        wait_until(lambda: len(seen.values) == 1)
        assert workplace.committed()[0] == 0
        Breaking.away = False
        (there,) = read(workplace.cluster, "next", 1)
        wait_until(lambda: workplace.committed()[0] == 1)
    assert len(files(place)) == 1
    assert name_in(there.value())


class Full(Breaking):
    """A disk that is full in the middle of a file."""

    full = True

    def _save(self, name: str, content: Any) -> str:
        if Full.full:
            super()._save(name, ContentFile(b"the beginning"))
            raise OSError(errno.ENOSPC, "secret-of-the-storage")
        return super()._save(name, content)


def test_what_a_storage_took_in_part_does_not_keep_the_payload_from_it(settings: Settings, place: Path) -> None:
    backend = {"BACKEND": "tests.test_claim_check.Full", "OPTIONS": {"location": str(place)}}
    settings.STORAGES = {**settings.STORAGES, "kafka": backend}
    data = json.dumps(LARGE).encode()
    checked = Checked.of(data, "flights", "kafka")
    for _attempt in range(2):
        with pytest.raises(StorageUnavailable, match="takes no payload: OSError"):
            checked.deposit()
    Full.full = False
    try:
        checked.deposit()
    finally:
        Full.full = True
    assert [each.read_bytes() for each in files(place)] == [data]
    assert message_of(bytes(checked)).value == LARGE


class Renaming(FileSystemStorage):
    """A storage that knows better."""

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        return f"{name}.bin"


def test_a_storage_that_calls_files_otherwise_keeps_none_of_them(settings: Settings, place: Path) -> None:
    backend = {"BACKEND": "tests.test_claim_check.Renaming", "OPTIONS": {"location": str(place)}}
    settings.STORAGES = {**settings.STORAGES, "kafka": backend}
    with pytest.raises(ConfigurationError, match="calls files otherwise"):
        Checked.of(b"x", "flights", "kafka").deposit()
    assert files(place) == []


def test_what_a_storage_says_stays_out_of_errors_and_their_tracebacks(place: Path) -> None:
    data, checked = left(), Checked.of(b"x", "flights", "kafka")
    Breaking.away = True
    for ask in (lambda: message_of(data).value, checked.deposit, lambda: claim_check.delete(name_in(data), "kafka")):
        with pytest.raises(StorageUnavailable) as caught:
            ask()
        told = "".join(traceback.format_exception(caught.value))
        assert "secret" not in told
        assert "ConnectionError" in told


def test_memory_that_is_short_is_no_outage(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, checked = left(), Checked.of(b"x", "flights", "kafka")

    def short(*_arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Breaking, "_open", short)
    monkeypatch.setattr(Breaking, "_save", short)
    for ask in (lambda: message_of(data).value, checked.deposit):
        with pytest.raises(MemoryError):
            ask()


@pytest.mark.parametrize("size", [2**40, 2**62, 2**64, 10**900])
def test_a_size_that_nobody_has_is_poison_where_payloads_are_not_bounded(
    settings: Settings, place: Path, size: int
) -> None:
    reference = Reference.from_bytes(left())
    settings.KAFKA = kafka(max_payload=None)
    facts = {"name": reference.name, "size": size, "sha256": reference.sha256}
    with pytest.raises(DecodeError) as caught:
        _ = message_of(MARK + json.dumps(facts).encode()).value
    assert categories.of(caught.value).kind is categories.Kind.POISON


def broken(data: bytes, place: Path) -> Iterator[tuple[str, type[DecodeError], bytes]]:
    reference = Reference.from_bytes(data)

    def to(**changed: Any) -> bytes:
        facts = {"name": reference.name, "size": reference.size, "sha256": reference.sha256, **changed}
        return MARK + json.dumps(facts).encode()

    (place / "secret").write_text("secret")
    for name in (
        "../secret", "secret", "/etc/passwd", f"{FOLDER}/../secret", f"{FOLDER}/flights/2026-11-27/../../../secret",
        f"{FOLDER}/../2026-11-27/{'a' * 64}", f"{FOLDER}/./2026-11-27/{'a' * 64}", reference.name + "\n",
        reference.name.replace(FOLDER, "other"), reference.name.upper(), 5, None,
    ):  # fmt: skip
        yield "its reference leads to no payload of ours", DecodeError, to(name=name)
    for size in (-1, 1.5, "5", True, None):
        yield "its reference leads to no payload of ours", DecodeError, to(size=size)
    yield "its reference leads to no payload of ours", DecodeError, to(sha256=5)
    for rest in (b"", b"{", b"[]", b"5", b"{}", b"[" * 2000, b"\xff"):
        yield "its reference to a payload is none", DecodeError, MARK + rest
    yield (
        "is not in the storage 'kafka'",
        PayloadMissing,
        to(name=reference.name[:-1] + ("1" if reference.name[-1] == "0" else "0")),
    )
    yield "is another one than was left there", PayloadMissing, to(size=reference.size - 1)
    yield "is another one than was left there", PayloadMissing, to(size=reference.size + 1)
    yield "is another one than was left there", PayloadMissing, to(sha256="0" * 64)
    yield "`max_payload` of its consumer is", PayloadTooLarge, to(size=2**62)


def test_what_strangers_refer_to_is_poison_and_leads_nowhere(place: Path) -> None:
    data = left()
    for words, kind, reference in broken(data, place):
        with pytest.raises(kind, match=words) as caught:
            _ = message_of(reference).value
        assert categories.of(caught.value).kind is categories.Kind.POISON
        assert str(caught.value).startswith("The value of flights[0]@7 cannot be read:")


def test_a_file_that_is_gone_or_was_altered_is_poison(settings: Settings, place: Path) -> None:
    data = left()
    (file,) = files(place)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    with pytest.raises(PayloadMissing, match="another one"):
        _ = message_of(data).value
    file.write_bytes(whole + b"?")
    with pytest.raises(PayloadMissing, match="another one"):
        _ = message_of(data).value
    file.unlink()
    with pytest.raises(PayloadMissing, match="is not in the storage"):
        _ = message_of(data).value
    for each in sorted(place.rglob("*"), reverse=True):
        each.rmdir()
    place.rmdir()
    with pytest.raises(StorageUnavailable, match="The storage 'kafka' is not there"):
        _ = message_of(data).value


def test_a_payload_is_bounded_before_it_is_read(settings: Settings, place: Path) -> None:
    data = left()
    settings.KAFKA = kafka(max_payload=1000)
    files(place)[0].unlink()
    with pytest.raises(PayloadTooLarge, match="and `max_payload` of its consumer is 1000"):
        _ = message_of(data).value


def test_a_consumer_without_a_storage_reads_no_reference(settings: Settings) -> None:
    data = left()
    settings.KAFKA = kafka(claim_check="none")
    with pytest.raises(DecodeError):
        _ = message_of(data).value


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"storge": "kafka"}, 'Did you mean "storage"?'),
        ({"above": 5}, "an alias of STORAGES, or a dict with `storage`"),
        ({"storage": "kafka", "above": -1}, "`above` is a number of bytes"),
        (5, "an alias of STORAGES"),
        ("nowhere", "in the storage 'nowhere': STORAGES has no 'nowhere'; it has: "),
    ],
)
def test_what_is_wrong_in_settings_is_an_error_of_the_check(settings: Settings, chosen: Any, words: str) -> None:
    settings.KAFKA = {**kafka(), "producers": {"default": {"topics": {"a": {"claim_check": chosen}}}}}
    said = [f"{each.msg} {each.hint}" for each in run_checks(tags=["kafka"])]
    assert any(words in each for each in said), said


class Choosy(FileSystemStorage):
    def __init__(self, secret: str) -> None:
        raise ValueError(f"what is {secret}?")


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ({"BACKEND": "tests.nowhere.Storage"}, "has the BACKEND 'tests.nowhere.Storage', which cannot be imported."),
        ({"BACKEND": "tests.test_claim_check.Choosy"}, "cannot be made: TypeError."),
        ({"BACKEND": "tests.test_claim_check.Choosy", "OPTIONS": {"secret": "hunter2"}}, "cannot be made: ValueError."),
    ],
)
def test_a_storage_that_cannot_be_made_is_found_before_a_message_needs_it(
    settings: Settings, backend: Any, words: str
) -> None:
    settings.STORAGES = {**settings.STORAGES, "kafka": backend}
    (said,) = [each.msg for each in run_checks(tags=["kafka"]) if each.id == "django_kafka.E019"]
    with pytest.raises(ConfigurationError) as caught:
        handlers.resolve_all("ops")
    for told in (said, "".join(traceback.format_exception(caught.value))):
        assert f'STORAGES["kafka"] {words}' in told
        assert "hunter2" not in told


# Dead letters


def test_a_letter_keeps_the_reference_and_is_replayed_with_the_payload(executor: Executor, place: Path) -> None:
    (letter,) = consume([record("flights", "k", LARGE)]).dead_letters
    assert (letter.payload_name, len(letter.value or b"") < 400) == (name_in(letter.value), True)
    assert letter.error_message == "no seat"
    (line,) = json_lines(replaying.letters(), masked=False)
    DeadLetter.objects.all().delete()
    restoring.restore([line])
    assert DeadLetter.objects.get().payload_name == letter.payload_name

    again = letter_of({**LARGE, "seat": "1A"})
    with produced() as records:
        replaying.request([again.pk], target="topic")
        executor.run_next()
    assert records[0].raw_value == again.value
    DeadLetter.objects.update(state="open")
    replaying.request([again.pk])
    executor.run_next()
    again.refresh_from_db()
    assert again.state == "resolved"


def test_a_letter_whose_file_is_gone_says_so_and_is_replayed_when_it_is_back(executor: Executor, place: Path) -> None:
    sent = record("flights", "k", {**LARGE, "seat": "1A"})
    (file,) = files(place)
    whole = file.read_bytes()
    file.unlink()
    (letter,) = consume([sent]).dead_letters
    assert letter.error_type.endswith("PayloadMissing")
    assert letter.payload_name
    file.write_bytes(whole)
    replaying.request([letter.pk])
    executor.run_next()
    letter.refresh_from_db()
    assert letter.state == "resolved"


def test_a_large_payload_is_edited_and_the_edited_one_is_in_the_replay(
    client: Client, admin_user: User, executor: Executor, settings: Settings
) -> None:
    letter = letter_of()
    client.force_login(admin_user)
    address = reverse("admin:lynx_kafka_deadletter_edit", args=[letter.pk])
    draft = client.get(address).context["draft"]
    assert json.loads(draft.value.written.text) == LARGE
    typed = {
        "value_notation": "json", "value": draft.value.written.text.replace("17C", "1A"), "target": "handler",
        "key_notation": draft.key.written.notation, "key": draft.key.written.text, "version": draft.version,
    }  # fmt: skip
    unchanged = client.post(address, {**typed, "value": draft.value.written.text, "look": "1"})
    assert "Nothing was altered." in unchanged.content.decode()
    assert client.post(address, {**typed, "send": "1"}).status_code == 302
    executor.run_next()
    assert Effect.objects.get().payload == {**LARGE, "seat": "1A"}

    settings.KAFKA = {**kafka(), "dead_letters": {"edit": True, "max_shown": 1500}}
    other = letter_of()
    assert client.get(reverse("admin:lynx_kafka_deadletter_edit", args=[other.pk])).status_code == 302


@pytest.mark.parametrize("mask", [[], ["passenger"]])
def test_only_who_may_view_payloads_sees_and_downloads_it(
    settings: Settings, client: Client, person: Callable[..., User], place: Path, db: None, mask: Any
) -> None:
    settings.KAFKA = {**kafka(), "dead_letters": {"mask": mask}}
    letter = letter_of(error_message="no seat for Jane")
    page = reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])
    download = reverse("admin:lynx_kafka_deadletter_download", args=[letter.pk, "value"])
    person("view_deadletter")
    if mask:
        assert_dark(client.get(page).content)
        assert_dark(client.get(reverse("admin:lynx_kafka_deadletter_changelist")).content)
    else:
        assert b"Doe-Miller" not in client.get(page).content
    assert client.get(download).status_code == 403
    assert not AuditEntry.objects.exists()

    person("view_deadletter", "view_payload_deadletter")
    assert b"Doe-Miller" in client.get(f"{page}?unmasked=yes").content
    answer = client.get(download)
    assert json.loads(answer.content) == LARGE
    assert sorted(AuditEntry.objects.values_list("verb", flat=True)) == ["download payload", "look at payload"]
    settings.KAFKA = {**kafka(), "dead_letters": {"mask": mask, "max_shown": 1500}}
    assert b"Doe-Miller" not in client.get(f"{page}?unmasked=yes").content, "a page shows no more than settings say"
    settings.KAFKA = {**kafka(), "dead_letters": {"mask": mask}}
    Breaking.away = True
    assert "gives no payload: ConnectionError" in client.get(f"{page}?unmasked=yes").content.decode()
    assert client.get(download).status_code == 302
    assert "secret-of-the-storage" not in client.get(page).content.decode()


def test_an_export_has_the_payload_and_brings_it_to_another_storage(
    settings: Settings, db: None, place: Path, tmp_path: Path, capsys: Any
) -> None:
    letter, archive = letter_of(), tmp_path / "letters.jsonl"
    call_command("kafka_letters", "export", "--output", str(archive))
    DeadLetter.objects.all().delete()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    backend = {"BACKEND": "tests.test_claim_check.Breaking", "OPTIONS": {"location": str(elsewhere)}}
    settings.STORAGES = {**settings.STORAGES, "kafka": backend}
    with pytest.raises(PayloadMissing):
        _ = message_of(letter.value).value

    call_command("kafka_letters", "import", str(archive), "--dry-run")
    assert files(elsewhere) == []
    call_command("kafka_letters", "import", str(archive))
    assert "Payloads left in storages: 1." in capsys.readouterr().out
    back = DeadLetter.objects.get()
    assert (back.payload_name, message_of(back.value).value) == (letter.payload_name, LARGE)
    call_command("kafka_letters", "import", str(archive))
    assert "Payloads" not in capsys.readouterr().out
    DeadLetter.objects.all().delete()
    call_command("kafka_letters", "import", str(archive))
    assert "Payloads" not in capsys.readouterr().out, "it is there already"
    assert len(files(elsewhere)) == 1


def test_an_export_may_leave_payloads_out_and_says_which_are_not_there(
    settings: Settings, db: None, place: Path, tmp_path: Path, capsys: Any
) -> None:
    letter = letter_of()
    call_command("kafka_letters", "export", "--without-payloads")
    assert "payload" not in json.loads(capsys.readouterr().out)
    call_command("kafka_letters", "export", "--masked")
    assert "payload" not in json.loads(capsys.readouterr().out)
    Breaking.away = True
    with pytest.raises(CommandError, match="The storage 'kafka' gives no payload"):
        call_command("kafka_letters", "export")
    Breaking.away = False
    whole = settings.KAFKA
    settings.KAFKA = kafka(claim_check="none")
    call_command("kafka_letters", "export")
    told = capsys.readouterr()
    assert json.loads(told.out)["payload"] is None
    assert f"{letter}: without its payload: A letter of consumer 'ops' for 'flights'" in told.err
    settings.KAFKA = whole
    files(place)[0].unlink()
    (archive := tmp_path / "letters.jsonl").touch()
    call_command("kafka_letters", "export")
    told = capsys.readouterr()
    assert "is not in the storage 'kafka'" in told.err
    archive.write_text(told.out)
    DeadLetter.objects.all().delete()
    call_command("kafka_letters", "import", str(archive))
    assert DeadLetter.objects.get().payload_name == letter.payload_name


def test_an_archive_brings_no_other_payload_than_its_letter_refers_to(
    settings: Settings, db: None, place: Path
) -> None:
    letter = letter_of()
    (line,) = json_lines(replaying.letters(), masked=False)
    DeadLetter.objects.all().delete()
    (file,) = files(place)
    whole = json.loads(line)
    for payload, value in (("eHg=", whole["value"]), (whole["payload"], "eHg="), (whole["payload"], None), ("?", "")):
        with pytest.raises(BadArchive):
            restoring.restore([json.dumps({**whole, "payload": payload, "value": value})])
    file.write_bytes(b"of somebody else")
    with pytest.raises(PayloadMissing, match="another one"):
        restoring.restore([line])
    assert file.read_bytes() == b"of somebody else"
    assert not DeadLetter.objects.exists()
    file.unlink()
    settings.KAFKA = kafka(claim_check="none")
    with pytest.raises(ConfigurationError, match="settings do not say in which"):
        restoring.restore([line])
    assert restoring.restore([line], payloads=False).new == 1
    assert DeadLetter.objects.get().payload_name == letter.payload_name


class Hanging(Breaking):
    """A storage that does not answer until it is told to."""

    go_on = threading.Event()
    asked = 0

    @classmethod
    def hang(cls) -> None:
        cls.go_on.clear()
        cls.asked = 0

    def _open(self, name: str, mode: str = "rb") -> Any:
        Hanging.asked += 1
        Hanging.go_on.wait()
        return super()._open(name, mode)


@pytest.fixture
def hanging(settings: Settings, monkeypatch: pytest.MonkeyPatch, place: Path) -> Iterator[type[Hanging]]:
    """A storage that hangs once there are letters, for pages that have little time."""
    backend = {"BACKEND": "tests.test_claim_check.Hanging", "OPTIONS": {"location": str(place)}}
    settings.STORAGES = {**settings.STORAGES, "kafka": backend}
    monkeypatch.setattr(reaching, "PAGE", 0.2)
    monkeypatch.setattr(admin_letters, "DOWNLOAD", 0.3)
    Hanging.go_on.set()
    yield Hanging
    Hanging.go_on.set()


def test_a_page_waits_for_no_storage_that_hangs(
    client: Client, admin_user: User, hanging: type[Hanging], place: Path
) -> None:
    letter = letter_of()
    hanging.hang()
    page = reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])
    download = reverse("admin:lynx_kafka_deadletter_download", args=[letter.pk, "value"])
    edit = reverse("admin:lynx_kafka_deadletter_edit", args=[letter.pk])
    client.force_login(admin_user)
    shown = html.unescape(client.get(page).content.decode())
    assert "The storage 'kafka' gives no payload within 0.2 s." in shown
    assert download in shown, "there is more time for that"
    for address, seconds in ((edit, "0.2"), (download, "0.3")):
        answer = client.get(address, follow=True)
        assert answer.redirect_chain == [(page, 302)]
        assert f"gives no payload within {seconds} s." in html.unescape(answer.content.decode())
    hanging.go_on.set()
    assert "Doe-Miller" in client.get(page).content.decode()
    assert client.get(download).status_code == 200


def test_a_page_fetches_a_payload_once(client: Client, admin_user: User, hanging: type[Hanging], place: Path) -> None:
    letter = letter_of()
    hanging.asked = 0
    client.force_login(admin_user)
    for name, times in (("change", 1), ("edit", 2)):
        assert client.get(reverse(f"admin:lynx_kafka_deadletter_{name}", args=[letter.pk])).status_code == 200
        assert hanging.asked == times


def test_what_hangs_is_not_asked_by_ever_more_threads(
    client: Client, admin_user: User, hanging: type[Hanging], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_waiting", threading.BoundedSemaphore(2))
    letter = letter_of()
    hanging.hang()
    client.force_login(admin_user)
    page = reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])
    told = [html.unescape(client.get(page).content.decode()) for _number in range(4)]
    assert ["others wait for storages already" in each for each in told] == [False, False, True, True]
    assert hanging.asked == 2


# What becomes of the files


def test_what_is_forgotten_is_deleted_with_its_file(executor: Executor, place: Path) -> None:
    letter, other = letter_of(), letter_of({**LARGE, "passenger": {"name": "Bob"}})
    assert len(files(place)) == 2
    Breaking.away = True
    whom = erasing.At(path="passenger.email", value="jane@example.com")
    with pytest.raises(StorageUnavailable):
        erasing.forget(whom, name="me")
    Breaking.away = False
    assert erasing.forget(whom, name="me", dry_run=True).files == 1
    assert len(files(place)) == 2
    done = erasing.forget(whom, name="me")
    assert (done.letters, done.files) == (1, 1)
    letter.refresh_from_db()
    other.refresh_from_db()
    assert (letter.payload_name, letter.value) == ("", None)
    assert [str(each.relative_to(place)) for each in files(place)] == [other.payload_name]


def test_a_file_that_cannot_be_deleted_leaves_the_letter_as_it_is(place: Path, db: None) -> None:
    letter = letter_of(key=b"Jane")
    Breaking.away = True
    with pytest.raises(StorageUnavailable):
        erasing.forget(b"Jane", name="me")
    letter.refresh_from_db()
    assert letter.value
    assert letter.erased_at is None
    Breaking.away = False
    files(place)[0].unlink()
    assert erasing.forget(b"Jane", name="me").letters == 1, "that it is gone already is no error"


def test_a_key_that_is_missing_keeps_nobody_from_noticing(settings: Settings, db: None) -> None:
    settings.KAFKA = kafka(producer={"encryption": "payload"}, encryption="payload")
    letter_of()
    settings.KAFKA = {**settings.KAFKA, "encryption": {"keys": {"old": {"env": "NOT_THERE_AT_ALL"}}}}
    with pytest.raises(Exception, match="NOT_THERE_AT_ALL"):
        erasing.forget(erasing.At(path="passenger.email", value="jane@example.com"), name="me")


def old(place: Path, days: int, data: bytes = b"x") -> str:
    """Leave a file as if it had been left so many days ago."""
    day = (timezone.now() - timedelta(days=days)).date().isoformat()
    name = f"{FOLDER}/flights/{day}/{hashlib.sha256(data + day.encode()).hexdigest()}"
    storages["kafka"].save(name, ContentFile(data))
    return name


def test_old_files_are_deleted_but_those_that_letters_need(place: Path, db: None, capsys: Any) -> None:
    needed, gone, young = old(place, 40, b"needed"), [old(place, 40), old(place, 32)], old(place, 2)
    (place / FOLDER / "flights" / "notes").mkdir()
    stranger = place / "of-others.txt"
    stranger.write_text("x")
    odd = place / Path(gone[1]).parent / "odd"
    odd.write_text("x")
    (place / Path(gone[1]).parent / "folder").mkdir()
    reference = Reference(name=needed, size=6, sha256="0" * 64).to_bytes()
    letter = dead_letter(reference)
    assert letter.payload_name == needed

    call_command("kafka_payloads", "prune", "--older-than", "30d", "--dry-run")
    assert "kafka: 2 payloads would be deleted; 1 are kept for dead letters." in capsys.readouterr().out
    assert len(files(place)) == 6
    call_command("kafka_payloads", "prune", "--older-than", "30d")
    assert "kafka: 2 payloads deleted; 1 are kept for dead letters." in capsys.readouterr().out
    assert {str(each.relative_to(place)) for each in files(place)} == {
        needed, young, "of-others.txt", str(odd.relative_to(place)),
    }  # fmt: skip
    letter.delete()
    assert payloads.prune("kafka", timezone.now() - timedelta(days=30)).deleted == 1
    assert not (place / needed).parent.exists(), "no empty folder is left"


@pytest.mark.parametrize("chosen", ["none", "payload"])
@pytest.mark.parametrize("topic", ["", "others"])
def test_what_is_replayed_to_a_topic_outlives_its_letter(
    settings: Settings, executor: Executor, place: Path, monkeypatch: pytest.MonkeyPatch, chosen: Any, topic: str
) -> None:
    settings.KAFKA = kafka(producer={"encryption": chosen}, encryption=chosen)
    monkeypatch.setattr(claim_check, "_today", lambda: (timezone.now() - timedelta(days=40)).date().isoformat())
    letter = letter_of()
    monkeypatch.undo()
    with produced() as records:
        replaying.request([letter.pk], target="topic", topic=topic)
        executor.run_next()
    (sent,) = records
    DeadLetter.objects.all().delete()
    payloads.prune("kafka", timezone.now() - timedelta(days=30))
    assert message_of(sent.raw_value, topic or "flights").value == LARGE
    assert [str(each.relative_to(place)) for each in files(place)] == [name_in(sent.raw_value)]
    assert letter.payload_name != name_in(sent.raw_value)


def test_a_replay_that_fails_again_in_its_topic_comes_back_to_its_letter(
    workplace: Workplace, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(message: Message) -> None:
        raise ValueError("no seat")

    workplace.consume(fail, kafka={"producers": {"default": {"claim_check": CHECK}}}, claim_check="kafka")
    monkeypatch.setattr(claim_check, "_today", lambda: (timezone.now() - timedelta(days=40)).date().isoformat())
    services.produce(workplace.topic, "k", LARGE).result()
    monkeypatch.undo()
    with workplace.worker():
        wait_until(workplace.letters)
        (letter,) = workplace.letters()
        replaying.request([letter.pk], target="topic")
        assert carried_out() == ["succeeded"]
        wait_until(lambda: workplace.letters()[0].attempts == 2)
    assert len(workplace.letters()) == 1
    assert len(files(place)) == 2


@pytest.mark.parametrize("chosen", ["none", "payload", ["passenger"]])
def test_what_is_edited_is_in_no_storage(
    client: Client, admin_user: User, executor: Executor, settings: Settings, place: Path, chosen: Any
) -> None:
    settings.KAFKA = {
        **kafka(producer={"encryption": chosen}, encryption=chosen),
        "dead_letters": {"edit": True, "max_shown": "4MiB"},
    }  # fmt: skip
    letter = letter_of({**LARGE, "text": "x" * 600_000})
    client.force_login(admin_user)
    address = reverse("admin:lynx_kafka_deadletter_edit", args=[letter.pk])
    draft = client.get(address).context["draft"]
    typed = {
        "value_notation": "json", "value": draft.value.written.text.replace("17C", "1A"), "target": "handler",
        "key_notation": draft.key.written.notation, "key": draft.key.written.text, "version": draft.version,
    }  # fmt: skip
    assert client.post(address, {**typed, "send": "1"}).status_code == 302
    executor.run_next()
    assert Effect.objects.get().payload["seat"] == "1A"
    assert len(files(place)) == 1


def test_the_command_says_what_it_cannot_do(settings: Settings, db: None, capsys: Any) -> None:
    with pytest.raises(CommandError, match="No claim check of settings leaves payloads in 'default'"):
        call_command("kafka_payloads", "prune", "--older-than", "30d", "--storage", "default")
    settings.KAFKA = {}
    call_command("kafka_payloads", "prune", "--older-than", "30d")
    assert "Settings name no storage" in capsys.readouterr().out


def test_a_dry_run_leaves_no_file(settings: Settings, executor: Executor, place: Path) -> None:
    whole = kafka()
    whole["consumers"]["ops"]["topics"]["flights"] = {"handler": "tests.test_claim_check.send_on", "dry_run": True}
    settings.KAFKA = whole
    letter = letter_of()
    replaying.request([letter.pk], target="dry-run")
    executor.run_next()
    assert Replay.objects.get().state == "succeeded"
    assert len(files(place)) == 1


def send_on(message: Message) -> None:
    services.produce("others", "k", message.value)
