"""Letters are found by words of key, headers, error and value, and never by what is masked."""

from __future__ import annotations

import json
from io import StringIO
from threading import Event
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from django_kafka import conf
from django_kafka.dead_letters import holds, searching
from django_kafka.dead_letters.failures import Failure
from django_kafka.dead_letters.parking import Parking, park
from django_kafka.dead_letters.rows import add_attempt, insert, latest, new_letter
from django_kafka.dead_letters.tidying import Tidying
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, LetterWords
from tests.letters import dead_letter

pytestmark = pytest.mark.django_db

LIST = "admin:lynx_kafka_deadletter_changelist"
FLIGHT = {
    "flight": "UA 1545", "passenger": "jane.doe@example.com", "id": "c4ca4238-a0b9-2382-0dcc-509a6f75849b",
    "distance": 1400.5, "note": "Gate 17 closed, Überlingen", "day": "2026-11-23",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _desk(settings: Settings) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops"}}}


class Raw:
    """A message as the client gives it."""

    def __init__(self, offset: int, value: bytes) -> None:
        self._offset, self._value = offset, value

    def topic(self) -> str:
        return "flights"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000

    def key(self) -> bytes:
        return b"key"

    def value(self) -> bytes:
        return self._value

    def headers(self) -> None:
        return None


class Undecoded:
    """What decodes nothing."""

    def key(self, message: Message) -> Any:
        return message.raw_key

    def value(self, message: Message) -> Any:
        return message.raw_value


def message(offset: int, value: bytes) -> Message:
    return Message(Raw(offset, value), Undecoded())


def failure(text: str = "broken") -> Failure:
    return Failure.of(ValueError(text), category="handler", handler="flights.handle")


def found(term: str) -> set[int]:
    return set(DeadLetter.objects.filter(searching.condition(term)).values_list("pk", flat=True))


@pytest.mark.parametrize(
    "term",
    [
        "UA 1545",
        "jane.doe@example.com",
        "JANE.DOE@EXAMPLE.COM",
        "example.com",
        "jane doe",
        "jane.doe@exa",
        "c4ca4238-a0b9-2382-0dcc-509a6f75849b",
        "2382-0dcc",
        "1400.5",
        "closed gate",
        '"gate 17 closed"',
        "flight:UA",
        '"passenger": "jane',
        "überlingen",
        "ÜBERLING",
        "2026-11-23",
        "N14228",
        "NoStock",
        "stock",
        "shelf",
        "trace-77",
        "kind",
        "flights",
        "ops",
    ],
)
def test_a_letter_is_found_by(term: str) -> None:
    one = dead_letter(
        FLIGHT, key=b"N14228", error_type="shop.errors.NoStockError", error_message="nothing on shelf 9",
        headers=[("kind", b"departure"), ("trace", b"trace-77")],
    )  # fmt: skip
    dead_letter({"x": "y"}, key=b"K", topic="gates", consumer="other")
    assert found(term) == {one.pk}


@pytest.mark.parametrize(
    "term", ["ane", "UA 1546", "17 gate closed x", '"closed gate"', "doe.jane", "flight:1545", "exampl@com", "ga"]
)
def test_a_letter_is_not_found_by(term: str) -> None:
    dead_letter(FLIGHT)
    assert found(term) == set()


def test_words_of_different_parts_do_not_follow_each_other() -> None:
    dead_letter({"a": "one"}, key=b"two", error_message="three", topic="four")
    assert found('"two three"') == set()
    assert found('"four ops"') != set()


def test_what_json_escapes_is_found_as_people_type_it() -> None:
    one = dead_letter(b'{"city": "M\\u00fcnchen", "lines": "first\\nsecond"}')
    assert found("münchen") == found("second") == found("first") == {one.pk}


def test_text_in_a_binary_value_is_found() -> None:
    one = dead_letter(b"\x00\x00\x00\x00\x07\x1cpassenger-4711\x80\xff\x02\x08gate")
    assert found("passenger-4711") == found("gate") == {one.pk}


@pytest.mark.parametrize(
    "term",
    [
        "'", '"', "'''", "\\", "%", "_",
        "a:*", "a & | ! b", "<->", "':*'", "x\0y", "\0", "(" * 50, "a" * 10_000, "é" * 10_000,
        "' OR 1=1 --", "%s %(x)s", "flights[0]@99999999999999999999", "\ud800", "١٢٣", "a' b", "|", "''::tsquery", "🛫",
        " ".join(f"w{n}" for n in range(2000)),
    ],
)  # fmt: skip
def test_hostile_input_finds_nothing_and_breaks_nothing(client: Client, term: str) -> None:
    client.force_login(User.objects.create_superuser("root"))
    dead_letter(FLIGHT)
    try:
        answer = client.get(reverse(LIST), {"q": term})
    except UnicodeEncodeError:
        return  # no client can send it
    assert answer.status_code == 200
    assert len(answer.context["cl"].result_list) <= 1


@pytest.mark.parametrize(
    "value", [b"\0" * 100, b"a\0b", b"'\"\\:*&|<->", b"\xff\xfe", b"x" * 100_000,
     json.dumps([[]] * 500).encode(), b"[" * 50_000 + b"\\"]
)  # fmt: skip
def test_hostile_values_are_stored(value: bytes) -> None:
    letter = dead_letter(value, key=value[:200], headers=[("\0'", value)], error_message="'\\x00:")
    assert LetterWords.objects.filter(letter=letter).exists()


def test_words_are_bounded() -> None:
    letter = dead_letter((" ".join(f"word{n}" for n in range(100_000))).encode())
    assert len(searching.of(letter)) < 20_000
    assert found("word1") == found("word500") == {letter.pk}
    assert found('"word50000"') == set()


def test_every_way_of_storing_a_letter_stores_its_words(settings: Settings) -> None:
    settings.KAFKA["consumers"]["ops"]["on_dead_letter"] = "hold_key"
    settings.KAFKA = {**settings.KAFKA}
    consumer = conf.consumer("ops")
    fresh = [
        (new_letter(consumer, "ops", message(offset, b'{"n": "fresh"}'), **_failed()), failure()) for offset in range(3)
    ]
    insert("default", fresh, "worker")
    assert found("fresh") == set()
    assert searching.catch_up() == 3
    assert searching.catch_up() == 0
    assert len(found("fresh")) == 3

    first = message(10, b'{"n": "headed"}')
    identity = holds.identity(consumer, "ops", first)
    assert identity is not None
    holds.begin("default", identity, "ops", b"key")
    assert park(consumer, "ops", message(11, b'{"n": "parked"}'), count=True, still_ours=lambda: None) == Parking.PARKED
    searching.catch_up()
    assert len(found("parked")) == 1

    letter = DeadLetter.objects.get(pk=min(found("fresh")))
    add_attempt("default", letter, failure("otherwise broken"), "replay")
    searching.catch_up()
    assert found("otherwise") == {letter.pk}
    assert len(found("fresh")) == 3


def _failed() -> dict[str, Any]:
    one = failure()
    return {"first_failed_at": one.at, **latest(one)}


def test_what_is_masked_has_no_words(settings: Settings) -> None:
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"mask": ["passenger", {"regex": "[A-Z]{2}[0-9]{6}"}, "ssn"]}}
    one = dead_letter(
        {"passenger": "jane.doe@example.com", "doc": "AB123456", "gate": "17"},
        error_message="no seat for jane.doe@example.com with AB123456", headers=[("ssn", b"999-77"), ("kind", b"late")],
    )  # fmt: skip
    for term in ("jane", "example.com", "AB123456", "999-77", '"jane.doe@example.com"'):
        assert found(term) == set(), term
    assert found("gate:17") == found("seat") == found("late") == {one.pk}
    words = LetterWords.objects.get(letter=one).words
    assert "jane" not in words
    assert "123456" not in words


def test_a_value_that_cannot_be_looked_into_has_no_words_where_something_is_masked(settings: Settings) -> None:
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"mask": ["passenger"]}}
    dead_letter(b"\x00\x01jane doe not json")
    dead_letter(json.dumps({"passenger": "jane", "x": "y" * 100_000}).encode())
    assert found("jane") == set()


def test_those_who_may_not_view_payloads_find_none_by_them(client: Client) -> None:
    user = User.objects.create_user("ann", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_deadletter"))
    client.force_login(user)
    one = dead_letter(FLIGHT)

    def listed(term: str) -> set[int]:
        return {each.pk for each in client.get(reverse(LIST), {"q": term}).context["cl"].result_list}

    assert listed("jane") == set()
    assert listed("flights") == listed("ops") == listed("ValueError") == {one.pk}
    user.user_permissions.add(Permission.objects.get(codename="view_payload_deadletter"))
    assert listed("jane") == {one.pk}


def test_words_go_with_their_letter() -> None:
    letter = dead_letter(FLIGHT)
    DeadLetter.objects.filter(pk=letter.pk).delete()
    assert not LetterWords.objects.exists()


def test_typed_text_is_taken_apart() -> None:
    assert searching.searched('Gate "17 Closed" a@b.com x') == [
        (("gate",), True), (("17", "closed"), False), (("a", "b", "com"), True), (("x",), False),
    ]  # fmt: skip
    assert searching.searched('"') == searching.searched(" - ") == searching.searched("") == []


def waiting() -> list[DeadLetter]:
    letters = [dead_letter({"n": "late"}) for _ in range(5)]
    LetterWords.objects.update(words=None)
    return letters


def test_words_are_taken_some_at_a_time_the_first_letters_first() -> None:
    letters = waiting()
    assert searching.catch_up(2) == 2
    assert found("late") == {one.pk for one in letters[:2]}
    assert searching.catch_up() == 3
    assert len(found("late")) == 5


def test_a_search_takes_the_words_that_are_missing(client: Client) -> None:
    client.force_login(User.objects.create_superuser("root"))
    waiting()
    assert len(client.get(reverse(LIST), {"q": "late"}).context["cl"].result_list) == 5


def test_a_search_says_how_many_letters_it_does_not_find_yet(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.force_login(User.objects.create_superuser("root"))
    monkeypatch.setattr("django_kafka.admin.letters._TAKEN", 2)
    monkeypatch.setattr("django_kafka.admin.letters._COUNTED_TO", 2)

    def said() -> list[str]:
        return [str(one) for one in client.get(reverse(LIST), {"q": "late"}).context["messages"]]

    waiting()
    assert said() == ["More than 2 dead letters are not found by their words yet: these are taken in the background."]
    assert said() == ["1 dead letter is not found by its words yet: they are taken in the background."]
    assert said() == []


def test_executors_take_words_while_nothing_else_waits() -> None:
    waiting()
    Tidying().do_what_is_due(Event())
    assert len(found("late")) == 5


def test_what_is_gone_or_erased_has_no_words() -> None:
    gone, erased, *_others = waiting()
    DeadLetter.objects.filter(pk=erased.pk).update(erased_at=timezone.now())
    DeadLetter.objects.filter(pk=gone.pk).delete()
    searching.catch_up()
    assert len(found("late")) == 3
    assert not LetterWords.objects.filter(letter__in=[gone.pk, erased.pk]).exists()


def masked(settings: Settings, *rules: Any) -> None:
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"mask": list(rules)}}


def person(client: Client, *names: str) -> User:
    user = User.objects.create_user("ann", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_deadletter", *names]))
    client.force_login(user)
    return user


def test_words_of_other_rules_find_nothing_for_those_who_may_not_view_payloads(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = person(client)
    one = dead_letter(FLIGHT)
    # As with many letters, of which a search takes some only.
    monkeypatch.setattr("django_kafka.admin.letters._TAKEN", 0)

    def listed(term: str) -> set[int]:
        return {each.pk for each in client.get(reverse(LIST), {"q": term}).context["cl"].result_list}

    for rules in (["passenger"], ["distance"], [{"regex": "jane.*"}], ["passenger", {"key": True}]):
        masked(settings, *rules)
        assert listed("jane") == listed("gate") == set(), rules
    user.user_permissions.add(Permission.objects.get(codename="view_payload_deadletter"))
    assert listed("jane") == listed("gate") == {one.pk}


def test_words_of_other_rules_find_letters_of_consumers_whose_payloads_a_person_may_view(settings: Settings) -> None:
    mine, other = dead_letter(FLIGHT), dead_letter(FLIGHT, consumer="other")
    masked(settings, "passenger")

    def listed(term: str, *consumers: str) -> set[int]:
        wanted = searching.condition(term, frozenset(consumers))
        return set(DeadLetter.objects.filter(wanted).values_list("pk", flat=True))

    assert listed("jane", "ops") == listed("gate", "ops") == {mine.pk}
    assert listed("jane") == listed("gate") == set()
    searching.catch_up()
    assert listed("jane", "ops", "other") == set()
    assert listed("gate", "ops") == listed("gate") == {mine.pk, other.pk}


def test_words_are_taken_anew_when_something_else_is_masked(settings: Settings) -> None:
    old = [dead_letter(FLIGHT) for _ in range(3)]
    masked(settings, "passenger")
    new = dead_letter(FLIGHT)
    LetterWords.objects.filter(letter=new).update(words=None, rules=None)
    assert searching.catch_up(1, anew=True) == 1
    assert found("gate") & {new.pk}, "those that wait are first"
    assert searching.catch_up(anew=False) == 0
    assert len(found("jane")) == 3
    assert searching.catch_up(2) == 2
    assert searching.catch_up(2) == 1
    assert searching.catch_up() == 0
    assert found("jane") == set()
    assert found("gate") == {new.pk, *(one.pk for one in old)}

    masked(settings)
    assert searching.catch_up() == 4
    assert len(found("jane")) == 4
    assert searching.catch_up() == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([], ["a"]), (["a"], ["b"]), (["a.b"], [r"a\.b"]), (["a"], [{"regex": "a"}]), ([], [{"key": True}]),
        ([{"regex": "a"}], [{"regex": "(?i)a"}]), (["a", "b"], ["a"]), (["é"], ["è"]), (["\udcff"], ["\udcfe"]),
    ],
)  # fmt: skip
def test_rules_that_differ_have_different_numbers(settings: Settings, one: list[Any], other: list[Any]) -> None:
    masked(settings, *one)
    first = searching.rules()
    masked(settings, *other)
    assert searching.rules() != first
    masked(settings, *one)
    assert searching.rules() == first
    assert -(1 << 63) <= first < 1 << 63


def test_a_letter_that_fails_with_something_else_waits_again(settings: Settings) -> None:
    one = dead_letter(FLIGHT)
    searching.mark("default", one.pk)
    row = LetterWords.objects.get(letter=one)
    assert (row.words, row.rules) == (None, None)
    assert searching.count_due() == 1


def test_executors_take_words_anew_and_then_leave_those_of_other_processes_alone_for_a_while(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead_letter(FLIGHT)
    masked(settings, "passenger")
    monkeypatch.setattr("django_kafka.dead_letters.tidying._WORDS_EVERY", 0.0)
    monkeypatch.setattr("django_kafka.dead_letters.tidying._WORDS_SHARE", float("inf"))
    tidying = Tidying()
    tidying.do_what_is_due(Event())
    assert found("jane") == set()
    tidying.do_what_is_due(Event())  # finds that there are no more

    masked(settings, "gate")  # what an older process with its settings does
    assert searching.catch_up() == 1
    masked(settings, "passenger")
    tidying.do_what_is_due(Event())
    assert len(found("jane")) == 1
    waiting_letter = dead_letter(FLIGHT)
    searching.mark("default", waiting_letter.pk)
    tidying.do_what_is_due(Event())
    assert found("gate") & {waiting_letter.pk}


def indexed(*options: str) -> str:
    out = StringIO()
    call_command("kafka_letters", "index", *options, stdout=out)
    return out.getvalue()


def test_the_command_takes_words_where_masking_has_changed(settings: Settings) -> None:
    letters = [dead_letter(FLIGHT) for _ in range(3)]
    assert "from 0 letters" in indexed()
    masked(settings, "passenger")
    searching.mark("default", letters[0].pk)
    assert "from 3 letters" in indexed()
    assert found("jane") == set()
    assert len(found("gate")) == 3
    assert "from 0 letters" in indexed()


def test_the_command_takes_the_words_of_all_letters(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_kafka.dead_letters.searching.take_anew.__defaults__", (0, 2))
    letters = [dead_letter(FLIGHT) for _ in range(5)]
    LetterWords.objects.filter(letter=letters[0]).delete()
    LetterWords.objects.filter(letter__in=[letters[1].pk, letters[2].pk]).update(words="nothing")
    DeadLetter.objects.filter(pk=letters[4].pk).update(erased_at=timezone.now())
    assert "from 5 letters" in indexed("--all")
    assert found("jane") == {one.pk for one in letters[:4]}
    assert not LetterWords.objects.filter(letter=letters[4]).exists()


def test_words_of_other_rules_are_found_by_an_index(settings: Settings) -> None:
    """They are looked for in every process, with a million letters that have none of them."""
    dead_letter(FLIGHT)
    with CaptureQueriesContext(connection) as queries:
        searching.catch_up()
    others = [one["sql"] for one in queries if '"rules" <' in one["sql"] or '"rules" >' in one["sql"]]
    assert len(others) == 2
    plan = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_bitmapscan = off")
        for sql in others:
            cursor.execute(f"{plan} {sql}")
            assert "lynx_kafka_words_rules" in str(cursor.fetchall())


def test_words_that_another_process_has_taken_meanwhile_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = waiting()
    lock = searching._locked

    def slowly(using: str, ids: Any, *, skip: bool) -> dict[int, DeadLetter]:
        LetterWords.objects.filter(letter=letters[0]).update(words="other", rules=searching.rules())
        return lock(using, ids, skip=skip)

    monkeypatch.setattr(searching, "_locked", slowly)
    assert searching.catch_up() == 4
    assert found("other") == {letters[0].pk}


@pytest.mark.parametrize("mask", ["**.name", {"key": True}, {"regex": "Alice"}])
def test_a_key_that_is_nested_too_deeply_keeps_no_other_letter_from_being_found(settings: Settings, mask: Any) -> None:
    settings.KAFKA = {**settings.KAFKA, "dead_letters": {"mask": [mask]}}
    dead_letter({"a": "first"})
    deep = dead_letter({"a": "deep"}, key=b"k")
    DeadLetter.objects.filter(pk=deep.pk).update(key=b"[" * 900 + b"1" + b"]" * 900)
    dead_letter({"a": "last"})
    LetterWords.objects.update(words=None)
    assert searching.catch_up() == 3
    assert searching.catch_up() == 0
    assert found("first last") == set()
    assert len(found("last")) == 1
