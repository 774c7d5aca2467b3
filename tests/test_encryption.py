"""Encrypted values and fields: there and back, what is refused, and what rests and is shown of dead letters."""

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.checks import run_checks
from django.test import Client
from django.urls import reverse
from pydantic import BaseModel, TypeAdapter
from pytest_django import Settings

from django_kafka import categories, conf, handlers, services, upcasters
from django_kafka.cloud_events import CloudEvent
from django_kafka.conf import Secret
from django_kafka.dead_letters import dry_runs, editing, erasing, exporting, jobs, replaying, searching
from django_kafka.dead_letters.decoding import decoded
from django_kafka.dead_letters.executing import Executor
from django_kafka.dead_letters.jobs.running import JobExecutor
from django_kafka.envelopes import encryption
from django_kafka.exceptions import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    KeyUnavailable,
    ReplayRefused,
    Skip,
    Undecryptable,
    UnknownKey,
)
from django_kafka.messages import Message, Messages
from django_kafka.models import AuditEntry, DeadLetter, LetterWords, Replay
from django_kafka.testing import consume, produced, record
from tests.app.models import Effect
from tests.consuming import Seen, Workplace
from tests.letters import dead_letter
from tests.sending import read
from tests.servers.processes import wait_until

OLD, NEW, STRANGER = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))
JANE = {"passenger": {"name": "Jane Doe-Miller", "email": "jane@example.com"}, "seat": "17C", "flight": "UA 1545"}
FIELDS = ["passenger.name", "**.email"]
HANDLER = "tests.test_encryption.handle"


def handle(message: Message) -> None:
    """Keep what came, and fail as handlers do: with the payload in the error."""
    value = message.value
    Effect.objects.create(
        topic=message.topic, partition=message.partition, offset=message.offset, key=message.key, payload=value
    )
    if value.get("seat") == "none":
        raise Skip(f"{value['passenger']['name']} has no seat")
    if value.get("seat") == "17C":
        raise ValueError(f"no seat {value['seat']} for {value['passenger']['name']}")


def kafka(chosen: Any = "payload", *, keys: Any = None, **consumer: Any) -> dict[str, Any]:
    topics = {"flights": {"handler": HANDLER, "dry_run": True}, "others": {"handler": HANDLER}}
    own = {"group_id": "ops", "topics": topics, "retry": {"max_retries": 0}, "encryption": chosen, **consumer}
    return {
        "brokers": ["127.0.0.1:1"],
        "producers": {"default": {"encryption": chosen}},
        "consumers": {"ops": own},
        "encryption": {"keys": {"old": OLD} if keys is None else keys},
        "dead_letters": {"edit": True},
    }


@pytest.fixture(autouse=True)
def _settings(settings: Settings) -> None:
    settings.KAFKA = kafka()


@pytest.fixture
def executor(db: None) -> Iterator[Executor]:
    mine = Executor()
    yield mine
    mine.close()


class Raw:
    """A message as the client gives it."""

    def __init__(self, value: bytes | None, topic: str = "flights") -> None:
        self.parts = {"topic": topic, "partition": 0, "offset": 7, "timestamp": (1, 1_700_000_000_000),
                      "key": b"k", "value": value, "headers": []}  # fmt: skip

    def __getattr__(self, name: str) -> Callable[[], Any]:
        return lambda: self.parts[name]


def message_of(value: bytes | None, topic: str = "flights") -> Message:
    return Message(Raw(value, topic), handlers.decoder_for("ops", topic))


def sealed(value: Any = None, topic: str = "flights") -> bytes:
    data = record(topic, "k", JANE if value is None else value).raw_value
    assert data is not None
    return data


def letter_of(value: Any = None, **fields: Any) -> DeadLetter:
    return dead_letter(sealed(value), **fields)


def assert_dark(data: bytes | str | None) -> None:
    """Nothing of Jane can be read in it."""
    text = data.decode("latin-1") if isinstance(data, bytes) else str(data)
    assert not [word for word in ("Jane", "Doe", "jane@", "example.com") if word in text]


# There and back


@pytest.mark.parametrize("chosen", ["payload", FIELDS])
def test_a_value_is_encrypted_in_kafka_and_comes_back(workplace: Workplace, chosen: Any) -> None:
    seen = Seen()
    keys = {"encryption": {"keys": {"old": OLD}}}
    workplace.consume(seen, kafka={"producers": {"default": {"encryption": chosen}}, **keys}, encryption=chosen)
    services.produce(workplace.topic, "k", JANE).result()
    services.produce(workplace.topic, "k", None).result()
    for record_of_it in services.produce_batch(workplace.topic, [{"key": "k", "value": JANE}] * 2):
        record_of_it.result()

    with workplace.worker():
        seen.wait(4)

    assert seen.values == [JANE, None, JANE, JANE]
    raws = [each.value() for each in read(workplace.cluster, workplace.topic, 4)]
    assert raws[1] is None
    assert len(set(raws)) == 4, "the same value is never encrypted to the same bytes"
    for raw in raws:
        assert_dark(raw)
    if chosen == FIELDS:
        assert json.loads(raws[0])["flight"] == "UA 1545"
    else:
        assert b"UA 1545" not in raws[0]


def test_what_is_bytes_already_is_encrypted_too(workplace: Workplace) -> None:
    seen = Seen()
    same = {"encryption": "payload", "serializer": "bytes"}
    keys = {"encryption": {"keys": {"old": OLD}}}
    workplace.consume(seen, kafka={"producers": {"default": same}, **keys}, **same)
    for value in (b"Jane", b""):
        services.produce(workplace.topic, b"k", value).result()
    services.produce_batch(workplace.topic, [{"key": b"k", "value": b"Jane"}])[0].result()

    with workplace.worker():
        seen.wait(3)

    assert seen.values == [b"Jane", b"", b"Jane"]
    for each in read(workplace.cluster, workplace.topic, 3):
        assert encryption.is_sealed(each.value())
        assert_dark(each.value())


def test_handlers_of_lists_and_coroutines_get_it_as_well() -> None:
    raws = [Raw(sealed({"n": number})) for number in range(3)] + [Raw(None)]
    decoder = handlers.decoder_for("ops", "flights")
    assert Messages(raws, decoder).values() == [{"n": 0}, {"n": 1}, {"n": 2}, None]
    assert [each.value for each in Messages(raws, decoder)] == [{"n": 0}, {"n": 1}, {"n": 2}, None]


def test_fields_of_any_kind_come_back_and_what_the_caller_has_stays_as_it_is(settings: Settings) -> None:
    settings.KAFKA = kafka(["a", "list[].b", "deep.**.c", "**.d"])
    value = {
        "a": {"x": [1, 2.5, True, "text"]}, "list": [{"b": 1}, {"b": None}, {"o": 2}], "deep": {"e": {"c": "C"}},
        "d": [], "plain": "lke",
    }  # fmt: skip
    before = json.dumps(value)

    data = sealed(value)

    assert json.dumps(value) == before
    rests = json.loads(data)
    assert [rests["list"][1], rests["list"][2], rests["plain"]] == [{"b": None}, {"o": 2}, "lke"]
    assert all(each.startswith(encryption.TOKEN) for each in (rests["a"], rests["list"][0]["b"], rests["d"]))
    assert message_of(data).value == value


def test_fields_that_json_has_no_types_for_come_as_their_text(settings: Settings) -> None:
    settings.KAFKA = kafka(["at", "total"])
    value = {"at": datetime(2026, 11, 27, 9, 0, 0, 123456, tzinfo=UTC), "total": Decimal("1.50")}
    assert message_of(sealed(value)).value == {"at": "2026-11-27T09:00:00.123456+00:00", "total": "1.50"}


def test_a_topic_may_be_different(settings: Settings) -> None:
    whole = kafka("none")
    whole["producers"]["default"]["topics"] = {"flights": {"encryption": "payload"}}
    whole["consumers"]["ops"]["topics"]["flights"]["encryption"] = "payload"
    settings.KAFKA = whole
    assert encryption.is_sealed(sealed())
    assert json.loads(sealed(topic="others")) == JANE
    assert message_of(sealed()).value == message_of(sealed(topic="others"), "others").value == JANE


def test_what_was_captured_in_a_test_is_read_as_a_consumer_reads_it() -> None:
    with produced() as records:
        services.produce("flights", "k", JANE)
    assert records[0].value == JANE
    assert_dark(records[0].raw_value)


def test_records_that_have_no_envelope_do_not_meet_it(workplace: Workplace) -> None:
    topics = {"topics": {"secret": {"encryption": "payload"}}}
    workplace.consume(Seen(), kafka={"producers": {"default": topics}, "encryption": {"keys": {"old": OLD}}})
    workplace.cluster.create_topic("secret", 1)
    for topic in (workplace.topic, "secret", "secret"):
        services.produce(topic, b"k", b"v").result()
    producer = services.get_producer()
    assert set(producer.routes) == {workplace.topic}, "only those of these are looked at first"
    assert producer.route("secret") is producer.route("secret")
    assert [encryption.is_sealed(one.value()) for one in read(workplace.cluster, "secret", 2)] == [True, True]


# Keys


def test_the_first_key_encrypts_and_all_decrypt(settings: Settings) -> None:
    first = sealed()
    settings.KAFKA = kafka(keys={"new": NEW, "old": OLD})
    second = sealed()
    assert (b"\x03old" in first, b"\x03new" in second) == (True, True)
    assert message_of(first).value == message_of(second).value == JANE
    settings.KAFKA = kafka(keys={"new": NEW})
    assert message_of(second).value == JANE
    with pytest.raises(UnknownKey, match=r"flights\[0\]@7 cannot be read: it is encrypted with the key 'old', which"):
        _ = message_of(first).value


def test_keys_are_kept_where_secrets_are(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(f"{OLD}\n")
    monkeypatch.setenv("FLIGHTS_KEY", base64.urlsafe_b64encode(b"\xff" * 32).decode())
    settings.KAFKA = kafka(keys={"file": {"file": tmp_path / "key"}, "env": {"env": "FLIGHTS_KEY"}})
    assert message_of(sealed()).value == JANE
    assert len(conf.kafka().encryption_keys[1].reveal()) == 32
    assert run_checks(tags=["kafka"]) == []


def test_a_key_that_is_not_there_is_an_outage_and_no_poison(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLIGHTS_KEY", OLD)
    settings.KAFKA = kafka(keys={"env": {"env": "FLIGHTS_KEY"}})
    data = sealed()
    settings.KAFKA = kafka(keys={"env": {"env": "FLIGHTS_KEY"}})
    monkeypatch.delenv("FLIGHTS_KEY")

    with pytest.raises(KeyUnavailable, match="FLIGHTS_KEY is empty or not there") as caught:
        _ = message_of(data).value
    assert categories.of(caught.value).kind is categories.Kind.OUTAGE
    with pytest.raises(KeyUnavailable):
        services.produce("flights", "k", JANE)
    with pytest.raises(KeyUnavailable):
        handlers.resolve_all("ops")
    found = run_checks(tags=["kafka"], include_deployment_checks=True)
    assert [each.id for each in found if "encryption" in each.msg] == ["django_kafka.W060"]
    monkeypatch.setenv("FLIGHTS_KEY", OLD)
    assert message_of(data).value == JANE
    handlers.resolve_all("ops")


# What is refused


def tampered(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "it is not encrypted", json.dumps(JANE).encode()
    yield "it is not encrypted", b""
    yield "it is cut off", data[:4]
    yield "it is cut off", data[:20]
    yield "it is cut off", data[:40]
    yield "it was altered", data[:-1]
    yield "it was altered", data[:-1] + bytes([data[-1] ^ 1])
    yield "it was altered", data[:30] + bytes([data[30] ^ 1]) + data[31:]
    yield "it is encrypted for the topic 'flightz'", data.replace(b"flights", b"flightz", 1)
    yield "it is encrypted with the key 'odd'", data.replace(b"\x03old", b"\x03odd", 1)
    yield "it is encrypted for the topic 'others'", sealed(topic="others")


def test_what_was_altered_moved_or_never_encrypted_is_poison() -> None:
    for words, data in tampered(sealed()):
        with pytest.raises(Undecryptable, match=words) as caught:
            _ = message_of(data).value
        assert categories.of(caught.value).kind is categories.Kind.POISON
        assert_dark(str(caught.value))


def test_a_field_cannot_be_moved_to_another_place(settings: Settings) -> None:
    settings.KAFKA = kafka(FIELDS)
    rests = json.loads(sealed())
    rests["passenger"] = {"name": rests["passenger"]["email"], "email": rests["passenger"]["name"]}
    with pytest.raises(Undecryptable, match=r"its field passenger.name is not to be read: it was altered"):
        _ = message_of(json.dumps(rests).encode()).value
    with pytest.raises(Undecryptable, match=r"its field passenger.name is not encrypted"):
        _ = message_of(json.dumps(JANE).encode()).value
    with pytest.raises(Undecryptable, match="it has no fields"):
        _ = message_of(b'"text"').value
    rests["passenger"] = {"name": f"{encryption.TOKEN}?"}
    with pytest.raises(Undecryptable, match="it is no base64"):
        _ = message_of(json.dumps(rests).encode()).value


def test_a_key_that_only_has_the_name_of_ours_reads_nothing(settings: Settings) -> None:
    settings.KAFKA = kafka(keys={"old": STRANGER})
    data = sealed()
    settings.KAFKA = kafka()
    with pytest.raises(Undecryptable, match="it was altered, or another key is called 'old'"):
        _ = message_of(data).value


def test_plain_values_are_read_while_settings_accept_them(settings: Settings) -> None:
    for chosen in ("payload", FIELDS):
        settings.KAFKA = kafka(chosen, accept_plain=True)
        assert message_of(json.dumps(JANE).encode()).value == JANE
        assert message_of(sealed()).value == JANE
        with pytest.raises(Undecryptable):
            _ = message_of(sealed().replace(b"lke1:T", b"lke1:U").replace(b"old", b"odd")).value
    whole = kafka()
    whole["consumers"]["ops"]["topics"]["flights"]["accept_plain"] = True
    settings.KAFKA = whole
    assert message_of(json.dumps(JANE).encode()).value == JANE
    with pytest.raises(Undecryptable):
        _ = message_of(json.dumps(JANE).encode(), "others").value


def test_a_copy_of_a_topic_is_read_where_settings_say_whose_copy_it_is(settings: Settings) -> None:
    data = sealed()
    with pytest.raises(Undecryptable):
        _ = message_of(data, "others").value
    whole = kafka()
    whole["consumers"]["ops"]["topics"]["others"]["encrypted_for"] = ["flights"]
    settings.KAFKA = whole
    assert message_of(data, "others").value == JANE
    assert message_of(sealed(topic="others"), "others").value == JANE


def test_fields_of_what_has_none_are_not_sent_in_clear(settings: Settings) -> None:
    settings.KAFKA = kafka(FIELDS)
    for value in (b'{"passenger":{"name":"Jane"}}', "Jane", 5):
        with pytest.raises(EncodeError, match="of dicts and lists only") as caught:
            services.produce("flights", "k", value)
        assert_dark(str(caught.value))
    with pytest.raises(EncodeError, match=r"The field passenger\.name for 'flights' has no counterpart in JSON"):
        services.produce("flights", "k", {"passenger": {"name": object()}})


class Quoting:
    """A serializer that quotes."""

    def encode(self, value: Any, topic: str) -> bytes:
        raise ValueError(f"what is {value}?")


@pytest.mark.parametrize("depth", [300, 600, 900, 3000])
def test_what_is_nested_very_deeply_is_poison(settings: Settings, depth: int) -> None:
    settings.KAFKA = kafka(FIELDS, accept_plain=True)
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    with suppress(DecodeError):  # poison; how deep is too deep is another one in each Python
        assert "a" in message_of(deep).value
    nested: Any = 1
    for _level in range(depth):
        nested = {"a": nested}
    with suppress(EncodeError):
        sealed(nested)


@pytest.mark.parametrize("chosen", ["payload", FIELDS])
def test_what_does_not_serialize_is_not_quoted(settings: Settings, chosen: Any) -> None:
    whole = kafka(chosen)
    whole["producers"]["default"]["serializer"] = f"{__name__}.Quoting"
    settings.KAFKA = whole
    with pytest.raises(EncodeError, match="The value for 'flights' does not serialize: ValueError") as caught:
        services.produce("flights", "k", JANE)
    assert_dark("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encryption": {"kyes": {}}}, 'KAFKA["encryption"] has no key \'kyes\'. Did you mean "keys"?'),
        ({"encryption": {"keys": [OLD]}}, 'KAFKA["encryption"]["keys"] is of type list; allowed: a dict of keys'),
        ({"encryption": {"keys": {5: OLD}}}, 'KAFKA["encryption"]["keys"] has an id that is none'),
        ({"encryption": {"keys": {"a": {"emv": OLD}}}}, 'KAFKA["encryption"]["keys"]["a"] is no key; allowed'),
        ({"encryption": {"keys": {"a": ""}}}, 'KAFKA["encryption"]["keys"]["a"] is empty'),
        (
            {"encryption": {"keys": {"a": OLD[:-8]}}},
            'KAFKA["encryption"]["keys"]["a"] is no key: it has to be 32 bytes',
        ),
        ({"encryption": {}}, 'KAFKA["producers"]["default"]["encryption"] is given, and KAFKA has no key.'),
        ({"producers": {"default": {"encryption": "paylod"}}}, 'Did you mean "payload"?'),
        ({"producers": {"default": {"encryption": ["a..b"]}}}, "has a step without a name"),
        ({"producers": {"default": {"encryption": []}}}, 'allowed: "none", "payload", or a list of paths'),
        (
            {"producers": {"default": {"topics": {"a": {"encryption": ["x"], "serializer": "text"}}}}},
            '["topics"]["a"] encrypts fields, and its serializer is "text".',
        ),
        ({"producers": {"default": {"encrypton": "payload"}}}, 'Did you mean "encryption"?'),
    ],
)
def test_what_is_wrong_in_settings_is_an_error_of_the_check(settings: Settings, change: Any, words: str) -> None:
    settings.KAFKA = {**kafka(), **change}
    found = run_checks(tags=["kafka"])
    said = [f"{each.msg} {each.hint}" for each in found]
    assert any(words in each for each in said), said
    assert not any(OLD[:-8] in each for each in said)


def test_keys_are_never_printed(settings: Settings, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings.KAFKA = kafka(keys={"old": OLD, "bad": "of-nobody"})
    sealed()
    printed = [repr(conf.kafka()), str(asdict(conf.kafka().encryption_keys[0])), repr(conf.reading()), caplog.text]
    for tried in (lambda: conf.kafka().encryption_keys[1].reveal(), lambda: handlers.resolve_all("ops")):
        with pytest.raises(ConfigurationError) as caught:
            tried()
        printed.append(str(caught.value))
    printed += [str(each) for each in run_checks(tags=["kafka"], include_deployment_checks=True)]
    assert isinstance(conf.kafka().encryption_keys[0].secret, Secret)
    assert not [each for each in printed if OLD in each or "of-nobody" in each]


# Dead letters


@pytest.mark.parametrize("chosen", ["payload", FIELDS])
@pytest.mark.django_db(transaction=True)
def test_dead_letters_rest_encrypted_with_their_errors_and_words(settings: Settings, chosen: Any) -> None:
    settings.KAFKA = kafka(chosen)
    (letter,) = consume([record("flights", "k", JANE)]).dead_letters
    searching.catch_up()

    assert "no seat" in letter.error_message
    attempt = letter.attempt_set.get()
    words = LetterWords.objects.get(letter=letter).words
    rests = [letter.value, letter.error_message, letter.traceback, attempt.error_message, attempt.traceback, words]
    rests += [
        *exporting.json_lines(replaying.letters(), masked=False),
        *exporting.csv_lines(replaying.letters(), masked=False),
    ]
    rests.append(letter.failure_group.example)
    for each in rests:
        assert_dark(each)
    assert decoded(letter, "value") == (JANE, "")
    assert "lke1" not in str(words)
    assert "flights" in str(words)


def test_a_handler_that_fails_in_a_worker_leaves_nothing_in_clear(workplace: Workplace) -> None:
    def fail(message: Message) -> None:
        raise ValueError(f"what shall I do with {message.value['passenger']['name']}?")

    both = {"encryption": "payload"}
    workplace.consume(
        fail, kafka={"producers": {"default": both}, "encryption": {"keys": {"old": OLD}},
                     "dead_letters": {"topic": "dead"}}, **both,
    )  # fmt: skip
    workplace.cluster.create_topic("dead", 1)
    services.produce(workplace.topic, "k", JANE).result()
    with workplace.worker():
        wait_until(lambda: len(workplace.letters()) == 1)
        (letter,) = workplace.letters()
        (sent,) = read(workplace.cluster, "dead", 1)
    assert letter.error_message == "what shall I do with ***?"
    assert sent.value() == bytes(letter.value or b"")
    for each in (letter.value, letter.traceback, sent.value(), *(value for _name, value in sent.headers())):
        assert_dark(each)


def test_messages_of_retry_topics_are_read_and_their_headers_are_dark(workplace: Workplace) -> None:
    def fail_once(message: Message) -> None:
        if message.attempt == 1:
            raise ValueError(f"no {message.value['passenger']['name']}")

    seen, both = Seen(fail_once), {"encryption": "payload"}
    retry = {"mode": "topics", "max_retries": 2, "backoff": "10ms"}
    keys = {"encryption": {"keys": {"old": OLD}}}
    workplace.consume(seen, kafka={"producers": {"default": both}, **keys}, retry=retry, **both)
    waiting = f"{workplace.group}.{workplace.topic}.retry.1"
    for number in (1, 2):
        workplace.cluster.create_topic(f"{waiting[:-1]}{number}", 1)
    services.produce(workplace.topic, "k", JANE).result()
    with workplace.worker():
        seen.wait(1)
    assert seen.values == [JANE]
    (there,) = read(workplace.cluster, waiting, 1)
    assert "no ***" in str(there.headers())
    for each in (there.value(), *(value for _name, value in there.headers())):
        assert_dark(each)


@pytest.mark.parametrize("how", ["replay", "job", "dry run"])
def test_why_a_replay_was_skipped_rests_dark(executor: Executor, how: str) -> None:
    letter = letter_of({**JANE, "seat": "none"})
    if how == "job":
        jobs.create([letter.pk], name="tests")
        assert JobExecutor().run_next() is not None
    else:
        replaying.request([letter.pk], target="dry-run" if how == "dry run" else "handler")
        executor.run_next()
    replay = letter.replays.get()
    assert (replay.state, replay.result) == ("succeeded", "Skipped: *** has no seat")
    assert_dark(bytes(replay.report or b""))


def test_a_replay_runs_the_handler_on_what_was_sent(executor: Executor) -> None:
    letter = letter_of({**JANE, "seat": "1A"})
    replaying.request([letter.pk])
    executor.run_next()
    letter.refresh_from_db()
    assert (letter.state, Effect.objects.get().payload) == ("resolved", {**JANE, "seat": "1A"})


def test_a_replay_that_fails_again_says_nothing_of_it(executor: Executor) -> None:
    letter = letter_of()
    for target in ("handler", "dry-run"):
        replaying.request([letter.pk], target=target)
        executor.run_next()
    letter.refresh_from_db()
    done = list(Replay.objects.order_by("pk"))
    assert "no seat" in letter.error_message
    report = dry_runs.Report.from_bytes(done[1].report or b"")
    assert report.outcome == "failed"
    for each in (letter.error_message, letter.traceback, done[0].result, done[1].result, str(report)):
        assert_dark(each)


def test_a_letter_whose_key_was_missing_is_replayed_once_it_is_there(settings: Settings, executor: Executor) -> None:
    settings.KAFKA = kafka(keys={"lost": NEW})
    sent = record("flights", "k", {**JANE, "seat": "1A"})
    settings.KAFKA = kafka()
    (letter,) = consume([sent]).dead_letters
    assert (letter.error_type.rpartition(".")[2], letter.category) == ("UnknownKey", "serialization")
    assert "the key 'lost'" in letter.error_message
    replaying.request([letter.pk])
    executor.run_next()
    letter.refresh_from_db()
    assert (letter.state, letter.attempts) == ("open", 2)

    settings.KAFKA = kafka(keys={"old": OLD, "lost": NEW})
    replaying.request([letter.pk])
    executor.run_next()
    letter.refresh_from_db()
    assert letter.state == "resolved"


@pytest.mark.parametrize("chosen", ["payload", FIELDS])
def test_a_replay_to_its_topic_is_as_it_came_and_to_another_one_it_is_encrypted_for_that(
    settings: Settings, executor: Executor, chosen: Any
) -> None:
    settings.KAFKA = kafka(chosen)
    mine = {**JANE, "seat": "1A"}
    letter = letter_of(mine)
    with produced() as records:
        replaying.request([letter.pk], target="topic")
        executor.run_next()
        DeadLetter.objects.update(state="open")
        replaying.request([letter.pk], target="topic", topic="others")
        executor.run_next()
    assert [one.topic for one in records] == ["flights", "others"]
    assert records[0].raw_value == bytes(letter.value or b"")
    assert message_of(records[0].raw_value).value == mine
    assert_dark(records[1].raw_value)
    assert message_of(records[1].raw_value, "others").value == mine


def test_a_value_is_found_that_is_to_be_forgotten(settings: Settings, db: None) -> None:
    for chosen in ("payload", FIELDS):
        settings.KAFKA = kafka(chosen)
        letter, other = letter_of(), letter_of({"passenger": {"name": "Bob"}})
        done = erasing.forget(erasing.At(path="passenger.email", value="jane@example.com"), name="me")
        assert done.letters == 1
        letter.refresh_from_db()
        other.refresh_from_db()
        assert (letter.value, other.erased_at) == (None, None)


# The admin


@pytest.fixture
def person(client: Client, db: None) -> Callable[..., User]:
    def log_in(*names: str) -> User:
        user, _made = User.objects.get_or_create(username="-".join(names), defaults={"is_staff": True})
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        client.force_login(user)
        return user

    return log_in


def page(client: Client, one: DeadLetter, query: str = "") -> str:
    answer = client.get(reverse("admin:lynx_kafka_deadletter_change", args=[one.pk]) + query)
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.parametrize("chosen", ["payload", FIELDS])
@pytest.mark.parametrize("mask", [[], ["flight"]])
def test_only_who_may_view_payloads_sees_it_decrypted_and_that_is_noted(
    settings: Settings, client: Client, person: Callable[..., User], chosen: Any, mask: Any
) -> None:
    settings.KAFKA = {**kafka(chosen), "dead_letters": {"edit": True, "mask": mask}}
    letter = letter_of()
    download = reverse("admin:lynx_kafka_deadletter_download", args=[letter.pk, "value"])

    person("view_deadletter")
    for query in ("", "?unmasked=yes"):
        assert_dark(page(client, letter, query))
    assert client.get(download).status_code == 403
    assert client.get(reverse("admin:lynx_kafka_deadletter_edit", args=[letter.pk])).status_code == 403
    assert not AuditEntry.objects.exists()

    person("view_deadletter", "view_payload_deadletter")
    if mask:
        assert_dark(page(client, letter))
        assert not AuditEntry.objects.exists()
    assert "jane@example.com" in page(client, letter, "?unmasked=yes" if mask else "")
    assert AuditEntry.objects.get().verb == "look at payload"
    answer = client.get(download)
    assert answer.content == bytes(letter.value or b""), "a download is what rests"


def test_a_page_without_the_key_says_so(settings: Settings, client: Client, person: Callable[..., User]) -> None:
    settings.KAFKA = kafka(keys={"lost": NEW})
    letter = letter_of()
    settings.KAFKA = kafka(keys={"old": OLD})
    person("view_deadletter", "view_payload_deadletter")
    assert "it is encrypted with the key" in page(client, letter)
    settings.KAFKA = kafka(keys={"lost": {"env": "NOT_THERE_AT_ALL"}})
    assert "NOT_THERE_AT_ALL is empty or not there" in page(client, letter)


def test_a_list_and_a_search_show_nothing_of_it(client: Client, person: Callable[..., User]) -> None:
    letter_of()
    person("view_deadletter", "view_payload_deadletter")
    address = reverse("admin:lynx_kafka_deadletter_changelist")
    assert_dark(client.get(address).content)
    assert client.get(address, {"q": "Jane"}).context["cl"].result_count == 0
    assert client.get(address, {"q": "flights"}).context["cl"].result_count == 1


EDITOR = ("view_deadletter", "view_payload_deadletter", "edit_deadletter")


@pytest.mark.parametrize("chosen", ["payload", FIELDS])
@pytest.mark.parametrize("accept_plain", [False, True])
def test_an_edited_value_is_shown_in_clear_and_sent_and_kept_encrypted(
    settings: Settings,
    client: Client,
    person: Callable[..., User],
    executor: Executor,
    chosen: Any,
    accept_plain: bool,
) -> None:
    settings.KAFKA = kafka(chosen, accept_plain=accept_plain)
    letter = letter_of()
    person(*EDITOR)
    address = reverse("admin:lynx_kafka_deadletter_edit", args=[letter.pk])
    form = client.get(address)
    draft = form.context["draft"]
    assert (draft.value.written.notation, json.loads(draft.value.written.text)) == ("json", JANE)

    typed = {
        "value_notation": "json", "value": draft.value.written.text.replace("17C", "1A"), "target": "handler",
        "key_notation": draft.key.written.notation, "key": draft.key.written.text, "version": draft.version,
    }  # fmt: skip
    shown = client.post(address, {**typed, "look": "1"}).content.decode()
    assert "1A" in shown
    assert "Jane" in shown
    unchanged = client.post(address, {**typed, "value": draft.value.written.text, "look": "1"}).content.decode()
    assert "Nothing was altered." in unchanged
    client.post(address, {**typed, "send": "1"})
    replay = Replay.objects.get()
    assert_dark(replay.edited_value)
    executor.run_next()
    letter.refresh_from_db()
    assert (letter.state, Effect.objects.get().payload) == ("resolved", {**JANE, "seat": "1A"})


def test_texts_that_are_encrypted_are_edited_as_text(
    settings: Settings, client: Client, person: Callable[..., User], executor: Executor
) -> None:
    settings.KAFKA = kafka(serializer="text")
    settings.KAFKA["producers"]["default"]["serializer"] = "text"
    letter = letter_of("Jane flies")
    person(*EDITOR)
    address = reverse("admin:lynx_kafka_deadletter_edit", args=[letter.pk])
    draft = client.get(address).context["draft"]
    assert (draft.value.written.notation, draft.value.written.text) == ("text", "Jane flies")
    typed = {
        "value_notation": "text", "value": "Jane stays", "target": "topic", "version": draft.version,
        "key_notation": draft.key.written.notation, "key": draft.key.written.text,
    }  # fmt: skip
    client.post(address, {**typed, "send": "1"})
    with produced() as records:
        executor.run_next()
    assert_dark(records[0].raw_value)
    assert message_of(records[0].raw_value).value == "Jane stays"


@pytest.mark.parametrize("accept_plain", [False, True])
def test_an_edit_in_clear_is_refused(settings: Settings, db: None, accept_plain: bool) -> None:
    settings.KAFKA = kafka(accept_plain=accept_plain)
    letter = letter_of()
    edit = editing.Edit(key=b"UA 1545", value=b'{"a":1}', headers=())
    with pytest.raises(ReplayRefused, match="not encrypted"):
        editing.request(letter.pk, edit, version=editing.version_of(letter))


@dataclass(frozen=True)
class Paid:
    name: str
    born: date
    at: datetime
    local: datetime
    amount: Decimal


def pay(event: Paid) -> None:
    raise ValueError(f"what of {event}, {event.born}, {event.at}, {event.at.isoformat()}?")


@pytest.mark.parametrize("chosen", ["payload", ["name", "born", "at", "local", "amount"]])
def test_times_are_masked_however_an_error_writes_them(settings: Settings, db: None, chosen: Any) -> None:
    whole = kafka(chosen)
    whole["consumers"]["ops"]["topics"]["flights"] = {"handler": f"{__name__}.pay"}
    settings.KAFKA = whole
    at = datetime(2026, 11, 27, 9, 30, 15, tzinfo=UTC)
    event = Paid("Jane", date(1990, 1, 2), at, at.replace(tzinfo=None), Decimal("1250.50"))
    (letter,) = consume([record("flights", "k", event)]).dead_letters
    for written in ("Jane", "1990", "2026", "1250"):
        assert written not in letter.error_message
    assert "what of Paid(name='***', born=datetime.date(***)" in letter.error_message


class Guest(BaseModel):
    name: int
    email: int


def invite(message: Message) -> None:
    Guest(**message.value["passenger"])


def invite_all(message: Message) -> None:
    TypeAdapter(list[Guest]).validate_python(message.value)


@pytest.mark.parametrize("handler", ["invite", "invite_all"])
@pytest.mark.parametrize("chosen", ["payload", FIELDS])
def test_values_that_a_library_tells_in_part_are_masked(
    settings: Settings, db: None, chosen: Any, handler: str
) -> None:
    whole = kafka(chosen)
    whole["consumers"]["ops"]["topics"]["flights"] = {"handler": f"{__name__}.{handler}"}
    settings.KAFKA = whole
    name = "Jane Doe-Miller of the very long street in a town"
    for value in (JANE, {"passenger": {"name": name, "email": "jane@example.com, and others of Jane Doe"}}):
        (letter,) = consume([record("flights", "k", value)]).dead_letters[-1:]
        assert "validation error" in letter.error_message
        for word in ("Jane", "Doe", "jane", "example", "street", "town", "others"):
            assert word not in letter.error_message, letter.error_message


def test_names_of_fields_that_strangers_write_are_cut_and_made_harmless(settings: Settings) -> None:
    settings.KAFKA = kafka(["*.x"])
    strange = "a\u202e\x00\n" + "y" * 100_000
    with pytest.raises(Undecryptable, match="its field a") as caught:
        _ = message_of(json.dumps({strange: {"x": "plain"}}).encode()).value
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 400


def read_and_lose(message: Message) -> None:
    name = message.value["passenger"]["name"]
    # As if its key were another one now.
    encryption._Memory.ciphers.made["old"] = encryption.library()(bytes(32))
    raise ValueError(f"no seat for {name}")


def test_what_cannot_be_read_a_second_time_is_told_by_nobody(settings: Settings, db: None) -> None:
    whole = kafka()
    whole["consumers"]["ops"]["topics"]["flights"] = {"handler": f"{__name__}.read_and_lose"}
    settings.KAFKA = whole
    (letter,) = consume([record("flights", "k", JANE)]).dead_letters
    assert (letter.error_message, letter.traceback) == ("***", "***")


# Events as Python types


@dataclass(frozen=True)
class Passenger:
    name: str
    email: str
    born: date | None = None


@dataclass(frozen=True)
class Boarded:
    passenger: Passenger
    seat: str
    flight: str


BOARDED = Boarded(Passenger("Jane Doe-Miller", "jane@example.com", date(1990, 1, 2)), "17D", "UA 1545")
boarded: list[Any] = []


def board(event: Boarded) -> None:
    boarded.append(event)


def of_version_1(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "seat": payload.pop("place")}


@pytest.mark.parametrize("value", [BOARDED, {"passenger": BOARDED.passenger, "seat": "17D", "flight": "UA 1545"}])
@pytest.mark.parametrize("chosen", ["payload", FIELDS])
def test_fields_of_an_object_are_encrypted_wherever_it_lies(settings: Settings, chosen: Any, value: Any) -> None:
    settings.KAFKA = kafka(chosen)
    data = sealed(value)
    assert_dark(data)
    boarded.clear()
    handlers.subscribe("boardings", board, consumer="ops")
    try:
        handler = handlers.for_topic("ops", "boardings")
        data = sealed(value, "boardings")
        handler.match(message := Message(Raw(data, "boardings"), handler.decoder)).call(message)
    finally:
        handlers.forget(board)
    assert boarded == [BOARDED]


@pytest.mark.parametrize("chosen", ["payload", FIELDS])
def test_upcasters_get_what_was_encrypted(settings: Settings, chosen: Any) -> None:
    settings.KAFKA = kafka(chosen, version_in={"field": "v"}, type_in={"field": "type"})
    boarded.clear()
    handlers.kafka_handler(topics="boardings", consumer="ops", type="Boarded", version=2)(board)
    handlers.upcaster(type="Boarded", from_version=1)(of_version_1)
    try:
        found = handlers.for_topic("ops", "boardings")
        old = {"type": "Boarded", "v": 1, "passenger": BOARDED.passenger, "place": "17D", "flight": "UA 1545"}
        data = sealed(old, "boardings")
        assert_dark(data)
        found.match(message := Message(Raw(data, "boardings"), found.decoder)).call(message)
        assert found.decoder.encrypted(message)
        outside = found.decoder.outside().value(message)
        assert_dark(outside if isinstance(outside, bytes) else json.dumps(outside))
    finally:
        handlers.forget(board)
        upcasters.forget(of_version_1)
    assert boarded == [BOARDED]


def test_a_cloud_event_is_no_object_to_be_sent_as_it_is(settings: Settings) -> None:
    settings.KAFKA = {**kafka(""), "producers": {"default": {}}, "consumers": {}}
    event = CloudEvent(data=JANE, extensions={"a": "b"})
    with pytest.raises(EncodeError, match=r"of type .*CloudEvent, does not serialize"):
        sealed(event)
