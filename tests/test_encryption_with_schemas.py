"""Encrypted values with schemas of a real registry: there and back, as letters, in the admin, and what cannot be."""

from __future__ import annotations

import html
import json
import threading
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.core.files.storage import FileSystemStorage
from django.test import Client
from django.urls import reverse

from django_kafka import handlers, serializers, services
from django_kafka.cloud_events import CloudEvent
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.decoding import surely
from django_kafka.dead_letters.exporting import csv_lines, json_lines
from django_kafka.exceptions import EncodeError
from django_kafka.messages import Message
from django_kafka.models import DeadLetter
from tests.consuming import Seen, Workplace
from tests.registries import Front
from tests.registries.schemas import AVRO, SCHEMAS
from tests.sending import read
from tests.servers.processes import wait_until
from tests.test_encryption import OLD, assert_dark
from tests.test_registry_journeys import carried_out, forget_what_is_known_by_readers

pytestmark = pytest.mark.django_db(transaction=True)

PLAIN_AVRO = {**AVRO, "fields": AVRO["fields"][:2]}
"""Without a time, which has no counterpart in JSON."""
JANE = {"flight": "Jane Doe 1", "delay": 17}
KINDS = ["avro", "jsonschema", "protobuf"]
WAYS = [*((kind, "payload") for kind in KINDS), ("avro", ["flight"]), ("jsonschema", ["flight"])]
EVENTS = {"source": "/ops", "type": "landed"}


def consume(
    place: Workplace, front: Front, handler: Any, kind: str, chosen: Any, *, options: Any = None, mode: str = "none",
    schema: Any = None, producer: Any = None, **more: Any,
) -> None:  # fmt: skip
    own = {"schema": schema or SCHEMAS[kind]}
    producer = {
        **(producer or {}), "serializer": kind, "schema": schema or SCHEMAS[kind], "send": "immediate",
        "encryption": chosen, "schema_options": options or {}, "cloud_events": {"mode": mode, **EVENTS},
    }  # fmt: skip
    kafka = {
        "schema_registry": {"auto_register": True, "timeout": "8s", **front.settings},
        "producers": {"default": producer},
        "encryption": {"keys": {"old": OLD}},
        "dead_letters": {"edit": True},
    }
    place.consume(handler, kafka=kafka, serializer=kind, encryption=chosen, cloud_events=True, **own, **more)


def shown(value: Any) -> Any:
    found = serializers.presentable(value)
    return {name: found[name] for name in JANE}


@pytest.mark.parametrize("ids", ["payload", "headers"])
@pytest.mark.parametrize("mode", ["none", "binary", "structured"])
@pytest.mark.parametrize(("kind", "chosen"), WAYS)
def test_a_value_is_dark_on_its_way_and_comes_back(
    workplace: Workplace, front: Front, kind: str, chosen: Any, mode: str, ids: str
) -> None:
    seen = Seen()
    consume(workplace, front, seen, kind, chosen, mode=mode, options={"schema_id_in": ids})
    given = JANE if mode == "none" else CloudEvent(data=JANE, subject="17")
    services.produce(workplace.topic, "k", given).result(20)
    for delivery in services.produce_batch(workplace.topic, [{"key": "k", "value": given}] * 2):
        delivery.result(20)
    with workplace.worker():
        wait_until(lambda: len(seen.values) == 3 or workplace.letters())
    assert [letter.error_message for letter in workplace.letters()] == []
    assert [shown(value) for value in seen.values] == [JANE] * 3
    for each in read(workplace.cluster, workplace.topic, 3):
        assert_dark(each.value())
        assert_dark(str(each.headers()))


@pytest.mark.parametrize(("kind", "chosen"), WAYS)
def test_a_letter_rests_dark_is_shown_edited_and_replayed(
    workplace: Workplace, front: Front, admin_client: Client, kind: str, chosen: Any
) -> None:
    def handle(message: Message) -> None:
        found = shown(message.value)
        if found["delay"] == 17:
            raise ValueError(f"no gate for {found['flight']}: {message.value!r}")

    seen = Seen(handle)
    consume(workplace, front, seen, kind, chosen, schema=PLAIN_AVRO if kind == "avro" else None)
    with workplace.worker():
        services.produce(workplace.topic, "k", JANE).result(20)
        wait_until(workplace.letters)
    (letter,) = workplace.letters()
    rests = [letter.value, letter.error_message, letter.traceback]
    rests += [*json_lines(replaying.letters(), masked=False), *csv_lines(replaying.letters(), masked=False)]
    for each in rests:
        assert_dark(each)
    assert "no gate for ***" in letter.error_message
    page = admin_client.get(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])).content.decode()
    assert '"flight": "Jane Doe 1"' in html.unescape(page)

    if kind == "protobuf":
        return  # its messages are edited in hexadecimal
    address = reverse("admin:lynx_kafka_deadletter_edit", args=[letter.pk])
    draft = admin_client.get(address).context["draft"]
    assert (draft.value.written.notation, json.loads(draft.value.written.text)["flight"]) == ("json", "Jane Doe 1")
    typed = {
        "value_notation": "json", "value": draft.value.written.text.replace("17", "5"), "target": "handler",
        "key_notation": draft.key.written.notation, "key": draft.key.written.text, "version": draft.version,
    }  # fmt: skip
    assert admin_client.post(address, {**typed, "send": "1"}).status_code == 302
    assert_dark(DeadLetter.objects.get().replays.get().edited_value)
    assert carried_out() == ["succeeded"]
    assert shown(seen.values[-1]) == {**JANE, "delay": 5}


@pytest.mark.parametrize(("kind", "chosen"), WAYS)
def test_what_does_not_fit_its_schema_is_not_quoted(workplace: Workplace, front: Front, kind: str, chosen: Any) -> None:
    consume(workplace, front, Seen(), kind, chosen)
    services.produce(workplace.topic, "k", JANE).result(20)
    for wrong in (
        {"flight": "UA 1", "delay": "Jane Doe"},
        {"delay": "Jane"},
        {"flight": {"of": "Jane"}, "delay": "Doe"},
    ):
        with pytest.raises(EncodeError) as caught:
            services.produce(workplace.topic, "k", wrong)
        assert "flight" in str(caught.value) or "delay" in str(caught.value)
        error: BaseException | None = caught.value
        while error is not None:
            assert_dark(str(error))
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


class Noting(FileSystemStorage):
    """A storage that notes in which threads it is read."""

    threads: ClassVar[list[str]] = []

    def _open(self, name: str, mode: str = "rb") -> Any:
        Noting.threads.append(threading.current_thread().name)
        return super()._open(name, mode)


@pytest.mark.parametrize("kind", KINDS)
def test_a_storage_is_not_read_in_the_time_that_a_registry_has(
    workplace: Workplace, front: Front, admin_client: Client, kind: str, tmp_path: Path
) -> None:
    backend = {"BACKEND": f"{__name__}.Noting", "OPTIONS": {"location": str(tmp_path)}}
    workplace.settings.STORAGES = {**workplace.settings.STORAGES, "kafka": backend}

    def fail(message: Message) -> None:
        raise ValueError(f"no gate for {shown(message.value)}")

    check = {"claim_check": {"storage": "kafka", "above": 1}}
    consume(workplace, front, fail, kind, "payload", producer=check, claim_check="kafka")
    with workplace.worker():
        services.produce(workplace.topic, "k", JANE).result(20)
        wait_until(workplace.letters)
    (letter,) = workplace.letters()
    assert letter.payload_name
    Noting.threads.clear()
    page = admin_client.get(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])).content.decode()
    assert '"flight": "Jane Doe 1"' in html.unescape(page)
    assert Noting.threads == ["kafka-storage"]
    Noting.threads.clear()
    assert surely(letter, "value")[0]["flight"] == "Jane Doe 1"
    assert Noting.threads == [threading.current_thread().name]


@dataclass(frozen=True)
class Landed:
    flight: str
    born: date
    delay: int | None = None


landed: list[Any] = []


def land(event: Landed) -> None:
    landed.append(event)


@pytest.mark.parametrize(("kind", "chosen"), [("jsonschema", "payload"), ("jsonschema", ["flight", "born"])])
def test_events_as_python_types_come_back(workplace: Workplace, front: Front, kind: str, chosen: Any) -> None:
    landed.clear()
    consume(workplace, front, land, kind, chosen, schema=f"{__name__}.Landed")
    event = Landed("Jane Doe 1", date(1990, 1, 2), 5)
    with workplace.worker():
        services.produce(workplace.topic, "k", event).result(20)
        wait_until(lambda: landed or workplace.letters())
    assert [letter.error_message for letter in workplace.letters()] == []
    assert landed == [event]
    (there,) = read(workplace.cluster, workplace.topic, 1)
    assert_dark(there.value())
    assert b"1990" not in there.value()


@pytest.mark.parametrize("kind", ["avro", "jsonschema"])
def test_a_field_that_its_schema_wants_as_a_number_cannot_be_encrypted_and_that_is_said(
    workplace: Workplace, front: Front, kind: str
) -> None:
    consume(workplace, front, Seen(), kind, ["delay"])
    with pytest.raises(EncodeError) as caught:
        services.produce(workplace.topic, "k", JANE)
    assert "delay" in str(caught.value)
    assert_dark(str(caught.value))


def test_a_registry_that_is_away_is_waited_for_and_no_letter(workplace: Workplace, front: Front) -> None:
    seen = Seen()
    consume(workplace, front, seen, "avro", "payload")
    services.produce(workplace.topic, "k", JANE).result(20)
    decoder = handlers.for_topic("ops", workplace.topic).decoder
    forget_what_is_known_by_readers(workplace)
    front.down()
    with workplace.worker() as worker:
        wait_until(lambda: worker.lanes.waiting())
        assert (seen.values, workplace.letters()) == ([], [])
        front.up()
        seen.wait(1)
    assert workplace.letters() == []
    assert decoder.encrypts
