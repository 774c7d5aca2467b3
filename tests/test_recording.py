from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from pytest_django import Settings

from django_kafka import conf
from django_kafka.dead_letters import recording, rows
from django_kafka.dead_letters.failures import Failure
from django_kafka.exceptions import PartitionLost
from django_kafka.messages import LETTER_HEADER, Message
from django_kafka.models import DeadLetter, DeadLetterAttempt
from django_kafka.serializers import TopicDecoder
from django_kafka.signals import message_dead_lettered
from tests.refusing import refusing

pytestmark = pytest.mark.django_db(transaction=True)


class Raw:
    """A message as the client gives it."""

    def __init__(self, **parts: Any) -> None:
        self.parts = {"topic": "flights", "partition": 3, "offset": 2**40, "timestamp": (1, 1357017420123),
                      "key": b"N14228", "value": b'{"n":1}', "headers": None, **parts}  # fmt: skip

    def __getattr__(self, name: str) -> Callable[[], Any]:
        return lambda: self.parts[name]


@pytest.fixture(autouse=True)
def _consumer(settings: Settings) -> None:
    settings.KAFKA = {"consumers": {"ops": {"group_id": "g"}}}


def failure(error: BaseException | None = None) -> Failure:
    try:
        raise error or ValueError("no departure time")
    except BaseException as raised:  # noqa: BLE001
        return Failure.of(raised, category="handler", handler="flights.handlers.landed")


def record(
    error: BaseException | None = None, still_ours: Callable[[], None] = lambda: None, **parts: Any
) -> DeadLetter:
    message = Message(Raw(**parts), TopicDecoder("text", "json"))
    return recording.record(conf.consumer("ops"), "g", message, failure(error), still_ours=still_ours)


def test_a_letter_holds_the_whole_message_and_its_error() -> None:
    headers = [("type", b"cancelled"), ("type", None), ("other", b"\x00\xff")]
    letter = DeadLetter.objects.get(pk=record(headers=headers).pk)
    assert (letter.cluster, letter.consumer, letter.group_id) == ("default", "ops", "g")
    assert (letter.topic, letter.partition, letter.offset) == ("flights", 3, 2**40)
    assert (bytes(letter.key or b""), bytes(letter.value or b"")) == (b"N14228", b'{"n":1}')
    assert letter.headers == headers
    assert letter.timestamp_ms == 1357017420123
    assert (letter.error_type, letter.error_message) == ("ValueError", "no departure time")
    assert "raise error or ValueError" in letter.traceback
    assert (letter.category, letter.handler) == ("handler", "flights.handlers.landed")
    assert (letter.state, letter.attempts) == ("open", 1)
    (attempt,) = DeadLetterAttempt.objects.all()
    assert (attempt.letter_id, attempt.number, attempt.origin, attempt.succeeded) == (letter.pk, 1, "worker", False)
    assert attempt.worker == rows.me()


def test_a_tombstone_without_key_and_time_is_stored_as_such() -> None:
    letter = DeadLetter.objects.get(pk=record(key=None, value=None, timestamp=(0, -1)).pk)
    assert (letter.key, letter.value, letter.timestamp_ms) == (None, None, None)


def test_an_empty_value_is_no_tombstone() -> None:
    letter = DeadLetter.objects.get(pk=record(value=b"", key=b"").pk)
    assert (letter.key, letter.value) == (b"", b"")
    assert record(value=None, key=b"").pk != letter.pk


@pytest.mark.parametrize("state", ["resolved", "discarded", "open"])
def test_a_repeat_of_the_same_message_adds_an_attempt_and_opens_its_row(state: str) -> None:
    first = record()
    DeadLetter.objects.filter(pk=first.pk).update(state=state, settled_at=first.last_failed_at)
    second = record(KeyError("other"))
    assert second.pk == first.pk
    letter = DeadLetter.objects.get()
    assert (letter.state, letter.attempts, letter.settled_at) == ("open", 2, None)
    assert letter.error_type == "KeyError"
    assert letter.first_failed_at < letter.last_failed_at
    assert list(letter.attempt_set.values_list("number", "error_type")) == [(1, "ValueError"), (2, "KeyError")]


@pytest.mark.parametrize(
    "other",
    [{"value": b"{}"}, {"key": None}, {"headers": [("a", b"1")]}, {"timestamp": (1, 5)}, {"timestamp": (0, -1)}],
    ids=["value", "key", "headers", "time", "no time"],
)
def test_another_message_at_the_same_place_is_a_row_of_its_own(other: dict[str, Any]) -> None:
    record()
    record(**other)
    assert DeadLetter.objects.count() == 2


def test_parts_that_only_join_to_the_same_bytes_are_different_messages() -> None:
    assert record(key=b"ab", value=b"c").pk != record(key=b"a", value=b"bc").pk


def test_nul_and_lone_surrogates_in_an_error_are_stored_escaped() -> None:
    letter = record(ValueError("a\0b \ud800 ü"))
    stored = DeadLetter.objects.get(pk=letter.pk)
    assert stored.error_message == "a\\x00b \\ud800 ü"
    assert "\0" not in stored.traceback


def test_a_type_with_an_odd_name_is_stored() -> None:
    odd = type("Odd", (Exception,), {})
    odd.__qualname__ = "Odd\0\ud800" + "x" * 400
    assert record(odd()).error_type.startswith("tests.test_recording.Odd\\x00\\ud800x")


def test_an_error_that_cannot_be_shown_is_stored_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    letter = record(Broken())
    assert letter.error_message == "<Broken that cannot be shown: RuntimeError>"
    assert "Broken" in letter.traceback


def test_a_huge_payload_is_stored_whole() -> None:
    value = bytes(range(256)) * 40_000
    assert bytes(DeadLetter.objects.get(pk=record(value=value).pk).value or b"") == value


def test_a_partition_that_is_lost_meanwhile_gets_no_letter() -> None:
    asked: list[int] = []

    def lost_the_second_time() -> None:
        asked.append(DeadLetter.objects.count())
        if len(asked) == 2:
            raise PartitionLost("gone")

    with pytest.raises(PartitionLost):
        record(still_ours=lost_the_second_time)
    assert asked == [0, 1], "it is asked again when all is written"
    assert not DeadLetter.objects.exists()
    assert not DeadLetterAttempt.objects.exists()


def test_what_the_database_refuses_is_raised_as_what_it_is() -> None:
    with refusing("lynx_kafka_deadletter"), pytest.raises(IntegrityError, match="quota"):
        record()


def test_a_letter_is_committed_although_a_handler_left_a_transaction_of_its_own_open() -> None:
    transaction.set_autocommit(False)
    try:
        record()
    finally:
        connection.close()
    assert DeadLetter.objects.count() == 1


def test_a_letter_without_its_attempt_is_not_stored_at_all() -> None:
    with refusing("lynx_kafka_deadletterattempt"), pytest.raises(IntegrityError, match="quota"):
        record()
    assert not DeadLetter.objects.exists()


def test_a_replay_to_the_topic_that_fails_comes_back_to_its_letter() -> None:
    first = record()
    replayed = record(offset=2**40 + 7, headers=[(LETTER_HEADER, str(first.pk).encode())])
    assert replayed.pk == first.pk
    assert DeadLetter.objects.get().attempts == 2


def test_a_replay_to_the_topic_is_known_by_all_headers_but_the_one_that_names_the_letter() -> None:
    others = [("type", b"cancelled"), ("type", None)]
    first = record(headers=[(LETTER_HEADER, b"77"), *others])
    assert record(offset=1, headers=[*others, (LETTER_HEADER, str(first.pk).encode())]).pk == first.pk


@pytest.mark.parametrize("headers", [[("tenant", b"B")], [], [("tenant", b"A"), ("tenant", b"A")]])
def test_another_message_that_carries_a_copied_header_makes_a_new_letter(headers: list[tuple[str, bytes]]) -> None:
    first = record(headers=[("tenant", b"A")])
    DeadLetter.objects.filter(pk=first.pk).update(state="discarded")
    copied = (LETTER_HEADER, str(first.pk).encode())
    assert record(offset=1, headers=[*headers, copied]).pk != first.pk
    first.refresh_from_db()
    assert (first.state, first.attempts) == ("discarded", 1)


@pytest.mark.parametrize("header", [b"", b"x", b"-1", b"\xc2\xb2", b"9" * 30, b"9" * 19, None])
def test_a_header_that_names_no_letter_makes_a_new_one(header: bytes | None) -> None:
    first = record()
    assert record(offset=1, headers=[(LETTER_HEADER, header)]).pk != first.pk


def test_a_header_that_names_the_letter_of_another_message_makes_a_new_one() -> None:
    first = record()
    other = record(offset=1, value=b'{"n":2}', headers=[(LETTER_HEADER, str(first.pk).encode())])
    assert other.pk != first.pk


def test_receivers_get_the_stored_letter_and_their_failures_do_no_harm() -> None:
    told: list[tuple[Any, ...]] = []

    def note(sender: str, message: Message, letter: DeadLetter, error: Failure, **_event: Any) -> None:
        assert not connection.in_atomic_block, "it is stored before it is told"
        told.append((sender, message.offset, letter.error_message, letter.handler, error.error_type))

    def fail(**_event: Any) -> None:
        raise RuntimeError

    message_dead_lettered.connect(fail)
    message_dead_lettered.connect(note)
    try:
        record()
    finally:
        message_dead_lettered.disconnect(fail)
        message_dead_lettered.disconnect(note)
    assert told == [("ops", 2**40, "no departure time", "flights.handlers.landed", "ValueError")]


# Many at once


def many(*offsets: int, still_ours: Callable[[], None] = lambda: None, **parts: Any) -> list[DeadLetter]:
    """Store as a worker does: what is left of it again and again."""
    left = [(Message(Raw(**{**parts, "offset": one}), TopicDecoder("text", "json")), failure()) for one in offsets]
    stored: list[DeadLetter] = []
    while left:
        some = recording.record_all(conf.consumer("ops"), "g", left, still_ours=still_ours)
        assert some
        stored += some
        del left[: len(some)]
    return stored


@pytest.mark.parametrize("parts", [{"key": None, "timestamp": (0, -1)}, {"value": None}, {"headers": [("a", b"\x00")]}])
def test_many_letters_are_the_same_as_one_by_one(parts: dict[str, Any]) -> None:
    stored = many(*range(50), **parts)
    single = record(offset=99, **parts)
    kept = [field.name for field in DeadLetter._meta.fields if field.name not in ("id", "offset", "fingerprint")]
    times = {"first_failed_at", "last_failed_at"}
    assert [letter.pk for letter in stored] == list(DeadLetter.objects.order_by("offset").values_list("pk", flat=True))[
        :-1
    ]
    single.refresh_from_db()
    for letter in stored:
        letter.refresh_from_db()
        assert all(getattr(letter, name) == getattr(single, name) for name in kept if name not in times)
        (attempt,) = letter.attempt_set.all()
        assert (attempt.number, attempt.origin, attempt.succeeded) == (1, "worker", False)
        assert attempt.traceback == letter.traceback


def test_many_with_earlier_attempts_keep_each() -> None:
    first = failure(KeyError("first"))
    last = Failure.of(ValueError("last"), category="handler", handler="a.b", attempt=2, earlier=[first])
    pairs = [(Message(Raw(offset=one), TopicDecoder("text", "json")), last) for one in range(3)]
    for letter in recording.record_all(conf.consumer("ops"), "g", pairs, still_ours=lambda: None):
        assert letter.attempts == 2
        assert list(letter.attempt_set.values_list("number", "error_type")) == [(1, "KeyError"), (2, "ValueError")]


def test_a_repeat_among_many_reopens_its_row() -> None:
    first = record(offset=3)
    DeadLetter.objects.update(state="resolved")
    stored = many(*range(6))
    first.refresh_from_db()
    assert stored[3].pk == first.pk
    assert (first.state, first.attempts) == ("open", 2)
    assert DeadLetter.objects.count() == 6


def test_another_message_at_a_known_place_is_a_letter_of_its_own_among_many_too() -> None:
    first = record(offset=3)
    stored = many(*range(6), value=b'{"n":2}')
    assert stored[3].pk != first.pk
    assert DeadLetter.objects.count() == 7


def test_a_replay_among_many_comes_back_to_its_letter() -> None:
    first = record()
    stored = many(5, 6, headers=[(LETTER_HEADER, str(first.pk).encode())])
    assert {letter.pk for letter in stored} == {first.pk}
    assert DeadLetter.objects.get().attempts == 3


def test_many_are_stored_all_or_none_and_not_for_a_new_owner() -> None:
    asked: list[int] = []

    def lost_at_the_end() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise PartitionLost("gone")

    with pytest.raises(PartitionLost):
        many(*range(6), still_ours=lost_at_the_end)
    assert not DeadLetter.objects.exists()


def test_many_that_the_database_refuses_are_raised_as_what_they_are() -> None:
    with refusing("lynx_kafka_deadletter"), pytest.raises(IntegrityError, match="quota"):
        many(*range(6))
    with refusing("lynx_kafka_deadletterattempt"), pytest.raises(IntegrityError, match="quota"):
        many(*range(6))
    assert not DeadLetter.objects.exists()


def test_many_large_ones_do_not_go_into_one_statement() -> None:
    pairs = [(Message(Raw(offset=one, value=b"x" * 3_000_000), TopicDecoder("text", "json")), failure())
             for one in range(3)]  # fmt: skip
    assert len(recording.record_all(conf.consumer("ops"), "g", pairs, still_ours=lambda: None)) == 1


def test_each_of_many_is_told() -> None:
    told: list[int] = []

    def note(**event: Any) -> None:
        told.append(event["letter"].offset)

    message_dead_lettered.connect(note)
    try:
        many(*range(6))
    finally:
        message_dead_lettered.disconnect(note)
    assert told == list(range(6))


def test_each_of_many_knows_where_it_is_stored() -> None:
    for letter in many(*range(6)):
        assert (letter._state.adding, letter._state.db) == (False, "default")


def test_a_traceback_that_was_seen_before_tells_its_own_error() -> None:
    first, second = failure(ValueError("one")), failure(ValueError("two"))
    assert first.traceback.endswith("ValueError: one\n")
    assert second.traceback.endswith("ValueError: two\n")
    assert second.traceback.startswith("Traceback (most recent call last):\n  File ")
    noted = ValueError("three")
    noted.add_note("and more")
    assert failure(noted).traceback.endswith("ValueError: three\nand more\n")
