"""What is masked in payloads, keys, headers, errors and tracebacks."""

from __future__ import annotations

import dataclasses
import datetime
import json
import socket
import time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from django_kafka import conf
from django_kafka.conf.masks import path
from django_kafka.dead_letters import decoding
from django_kafka.dead_letters import masking as module
from django_kafka.dead_letters.masking import MASK, Masking, hiding, masking
from django_kafka.models import DeadLetter

ALICE = {
    "id": 7,
    "passenger": {"name": "Alice Ames", "email": "alice@example.org", "seat": "12A"},
    "items": [{"card": "4111 1111 1111 1111", "price": 12.5}, {"card": "5500", "price": 3}],
    "paid": True,
    "note": None,
}


@pytest.fixture
def masks(settings: Any) -> Any:
    """Set `KAFKA["dead_letters"]["mask"]` and return the masking."""

    def make(*rules: Any) -> Masking:
        settings.KAFKA = {"brokers": ["127.0.0.1:1"], "dead_letters": {"mask": list(rules)}}
        return masking()

    return make


# Settings


def test_nothing_is_masked_unless_settings_say_so(masks: Any) -> None:
    nothing = masks()
    assert not nothing.active
    assert nothing.value(ALICE) is ALICE
    assert nothing.text("Alice") == "Alice"
    assert nothing.headers([("a", b"b")]) == [("a", b"b")]
    assert nothing.key("Alice") == "Alice"
    assert nothing.knowing(ALICE) is nothing


def test_it_follows_settings_and_is_made_once_for_each(masks: Any) -> None:
    one = masks("passenger.name")
    assert one.active
    assert masking() is one
    assert masks({"regex": "Alice"}).mask.fields == ()
    assert masks({"key": True}).active
    assert not masks({"key": False}).active


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("name", ("name",)),
        ("passenger.name", ("passenger", "name")),
        ("*.email", ("*", "email")),
        ("items[].card", ("items", "[]", "card")),
        ("[].card", ("[]", "card")),
        ("rows[][]", ("rows", "[]", "[]")),
        ("**.iban", ("**", "iban")),
        (r"a\.b.c", ("a.b", "c")),
        (" name ", ("name",)),
    ],
)
def test_a_path_is_read_as_steps(text: str, steps: tuple[str, ...]) -> None:
    assert path(text) == steps


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("card", "allowed: a list of paths"),
        ([5], "allowed: a list of paths"),
        ([{"regexp": "a"}], "allowed: a list of paths"),
        ([{"regex": "a", "key": True}], "allowed: a list of paths"),
        ([{"key": "yes"}], "allowed: a list of paths"),
        ([""], "has a step without a name"),
        (["a..b"], "'a..b' has a step without a name"),
        (["a.**"], "'a.**' ends with \"**\": what is below that?"),
        ([{"regex": "("}], "'(' is no regular expression: missing )"),
        ([{"regex": "a*"}], "'a*' matches nothing at all, and so everywhere"),
        ([{"regex": ""}], "a text of 1 to 1000 characters"),
        ([{"regex": "a" * 1001}], "a text of 1 to 1000 characters"),
        ([{"regex": 5}], "a text of 1 to 1000 characters"),
    ],
)
def test_what_is_no_mask_is_an_error_of_the_check(settings: Any, rules: Any, words: str) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "dead_letters": {"mask": rules}}
    [problem] = conf.problems()

    assert problem.id == "django_kafka.E002"
    assert problem.path == 'KAFKA["dead_letters"]["mask"]'
    assert words in str(problem)


# Values


def test_fields_are_masked_by_path_and_the_others_stay(masks: Any) -> None:
    shown = masks("passenger.name", "*.email", "items[].card").value(ALICE)

    assert shown == {
        "id": 7,
        "passenger": {"name": MASK, "email": MASK, "seat": "12A"},
        "items": [{"card": MASK, "price": 12.5}, {"card": MASK, "price": 3}],
        "paid": True,
        "note": None,
    }
    assert ALICE["passenger"]["name"] == "Alice Ames", "the value itself is left alone"  # type: ignore[index]


@pytest.mark.parametrize(
    ("rule", "value", "shown"),
    [
        ("name", {"name": "A", "x": {"name": "B"}}, {"name": MASK, "x": {"name": "B"}}),
        ("**.name", {"name": "A", "x": [{"name": "B"}]}, {"name": MASK, "x": [{"name": MASK}]}),
        ("a.**.z", {"a": {"z": 1, "b": {"c": {"z": 2}}}, "z": 3}, {"a": {"z": MASK, "b": {"c": {"z": MASK}}}, "z": 3}),
        ("**.a.**.z", {"q": {"a": {"b": {"z": 1}}, "z": 2}}, {"q": {"a": {"b": {"z": MASK}}, "z": 2}}),
        ("*", {"a": 1, "b": [2]}, {"a": MASK, "b": MASK}),
        ("a.*.z", {"a": [{"z": 1}, {"y": 2}]}, {"a": [{"z": MASK}, {"y": 2}]}),
        ("[]", [1, {"a": 2}], [MASK, MASK]),
        ("[].a", [{"a": 1}, 2], [{"a": MASK}, 2]),
        ("rows[][]", {"rows": [[1, 2], [3]]}, {"rows": [[MASK, MASK], [MASK]]}),
        ("a", {"a": None}, {"a": MASK}),
        ("a", {"a": {"deep": [1]}}, {"a": MASK}),
        ("a.b", {"a": "text"}, {"a": "text"}),
        ("a", {"A": 1}, {"A": 1}),
        ("1", {1: "x"}, {"1": MASK}),
        (r"a\.b", {"a.b": 1, "a": {"b": 2}}, {"a.b": MASK, "a": {"b": 2}}),
        ("a", [{"a": 1}], [{"a": 1}]),
    ],
)
def test_a_path_finds_its_fields_and_no_others(masks: Any, rule: str, value: Any, shown: Any) -> None:
    assert masks(rule).value(value) == shown


def test_a_regular_expression_masks_texts_numbers_and_names_wherever_they_are(masks: Any) -> None:
    found = masks({"regex": r"\b\d{16}\b"}, {"regex": r"[\w.]+@[\w.]+"})

    assert found.value(
        {"a": "card 4111111111111111.", "b": 4111111111111111, "c": [12], "x@y.z": "p@q.r and t@u.v"}
    ) == {
        "a": "card ***.",
        "b": MASK,
        "c": [12],
        MASK: "*** and ***",
    }
    assert found.value({"a@b.c": 1, "d@e.f": 2}) == {MASK: 1, f"{MASK} 1": 2}, "no field is lost"
    assert found.value("to a@b.c") == "to ***"
    assert found.value(b"to a@b.c \xff") == b"to *** \\xff"
    assert found.value(b"\xff") == b"\xff"


@dataclasses.dataclass
class Passenger:
    name: str
    seat: str


class Sealed:
    def __repr__(self) -> str:
        return "Alice Ames"


def test_values_of_any_type_are_looked_into_or_masked_as_a_whole(masks: Any) -> None:
    found = masks("passenger.name", "name")

    assert found.value({"passenger": Passenger("Alice", "12A")}) == {"passenger": {"name": MASK, "seat": "12A"}}
    assert found.value({"who": Sealed()}) == {"who": MASK}
    plain = {
        "a": Decimal("1.5"), "b": datetime.date(2026, 1, 2), "c": UUID(int=1), "d": datetime.timedelta(1),
        "e": datetime.time(1, 2), "f": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    }  # fmt: skip
    assert found.value(plain) == plain
    assert masks({"regex": "2026"}).value(plain)["b"] == MASK


def test_a_text_that_is_json_is_looked_into_and_any_other_is_masked_as_a_whole_where_fields_are(masks: Any) -> None:
    found = masks("name")
    assert found.value('{"name": "Alice", "n": 1}') == {"name": MASK, "n": 1}
    assert found.value(b'{"name": "Alice"}') == {"name": MASK}
    assert found.value("name=Alice") == MASK
    assert found.value(b"\x00\xffAlice") == MASK
    assert masks({"regex": "Alice"}).value("name=Alice") == "name=***"


def test_what_is_nested_too_deep_to_be_looked_into_is_masked(masks: Any) -> None:
    deep: Any = "Alice"
    for _each in range(100_000):
        deep = [deep]
    found = masks("name")
    assert found.value(deep) == MASK
    assert found.knowing(deep).values == ()
    found.value("[" * 200_000)


# Keys and headers


def test_keys_are_masked_whole_or_by_their_fields_or_texts(masks: Any) -> None:
    assert masks({"key": True}).key("UA 1545") == MASK
    assert masks({"key": True}).key(None) is None
    assert masks("name").key("UA 1545") == "UA 1545"
    assert masks("name").key(b"UA 1545") == b"UA 1545"
    assert masks("name").key({"name": "Alice", "n": 1}) == {"name": MASK, "n": 1}
    assert masks({"regex": r"UA \d+"}).key("UA 1545") == MASK


def test_headers_are_masked_by_name_in_any_case_and_by_text(masks: Any) -> None:
    pairs = [("Authorization", b"Bearer x"), ("trace", b"t"), ("authorization", None), ("mail", b"a@b.c")]
    shown = masks("authorization", {"regex": r"\S+@\S+"}).headers(pairs)

    assert shown == [("Authorization", b"***"), ("trace", b"t"), ("authorization", None), ("mail", b"***")]
    assert masks("a.authorization").headers(pairs) == pairs, "that is a field below another"
    assert masks("**.authorization").headers(pairs)[0] == ("Authorization", b"***")
    assert masks({"regex": "Bearer"}).headers([("Bearer", b"\xff")]) == [("***", b"\xff")]


# Errors and tracebacks


def test_what_masked_fields_hold_is_masked_in_errors_in_every_way_it_is_written(masks: Any) -> None:
    value = {"passenger": {"name": 'Zoë "Zed" O\'Hara', "seat": 1234567}, "other": "kept"}
    found = masks("passenger").knowing(value)
    error = "\n".join(
        (
            f"KeyError: {value['passenger']!r} kept",
            'Zoë "Zed" O\'Hara',
            json.dumps('Zoë "Zed" O\'Hara'),
            json.dumps('Zoë "Zed" O\'Hara', ensure_ascii=False),
            "seat=1234567",
        )
    )

    shown = found.text(error)
    assert "Zed" not in shown
    assert "1234567" not in shown
    assert "Hara" not in shown
    assert "kept" in shown
    assert shown.splitlines()[-1] == "seat=***"


def test_a_short_value_is_masked_only_as_a_word_and_a_single_character_not_at_all(masks: Any) -> None:
    found = masks("a", "b", "c").knowing({"a": "Al", "b": "x", "c": True})
    assert found.text("Al said: Also, x is True, Al") == "*** said: Also, x is True, ***"
    assert masks("a").knowing({"a": "Alice Ames"}).text("xAlice Amesx") == "x***x"


def test_the_longest_value_is_masked_first_and_overlaps_leave_nothing(masks: Any) -> None:
    found = masks("a", "b", {"regex": "Ames and"}).knowing({"a": "Alice", "b": "Alice Ames"})
    assert found.text("Alice Ames and Alice") == "*** ***"


def test_what_headers_and_keys_hold_is_masked_in_errors(masks: Any) -> None:
    found = masks("token", {"key": True}).knowing(headers=[("Token", b"s3cr3t-thing"), ("x", b"plain")])
    assert found.text("refused s3cr3t-thing for plain") == "refused *** for plain"
    assert found.knowing_key("UA 1545").text("no seat on UA 1545") == "no seat on ***"
    assert masks("name").knowing_key({"name": "Alice Ames"}).text("for Alice Ames") == "for ***"
    assert masks("name").knowing_key("UA 1545").text("on UA 1545") == "on UA 1545"


def test_knowing_one_letter_says_nothing_of_the_next(masks: Any) -> None:
    found = masks("name")
    found.knowing({"name": "Alice Ames"})
    assert masking().text("Alice Ames") == "Alice Ames"


# Time


def test_a_match_across_two_windows_is_found(masks: Any) -> None:
    found = masks({"regex": r"\b\d{16}\b"})
    for place in range(module._WINDOW - 20, module._WINDOW + 5):
        text = "x" * (place - 1) + " 4111111111111111 " + "y" * 5000
        assert found.text(text) == "x" * (place - 1) + " *** " + "y" * 5000


def test_an_expression_that_takes_a_power_of_the_length_is_given_up_and_the_rest_masked(masks: Any) -> None:
    found = masks({"regex": r".*a.*b"})
    begun = time.monotonic()
    shown = found.text("a" * 100_000)

    assert time.monotonic() - begun < 5
    assert shown.endswith(MASK)
    assert len(shown) < 100_000


def test_patience_is_for_a_whole_value_and_not_for_each_of_its_texts(masks: Any) -> None:
    found = masks({"regex": r".*a.*b"})
    begun = time.monotonic()
    shown = found.value(["a" * 700] * 300)

    assert time.monotonic() - begun < 5
    assert shown[-1] == MASK


CHEAP = [
    r"\b\d{13,19}\b",
    r"\b(?:\d[ -]*?){13,16}\b",
    r"(?:\d[ -]?){13,16}",
    r"[\w.+-]+@[\w-]+\.[\w.]+",
    r"\S+@\S+\.\S+",
    r"(?:[\w-]+\.)+example",
    r"eyJ[\w-]+\.[\w-]+\.[\w-]+",
    r"(?i)bearer\s+\S+",
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}\b",
    r"\+?\d[\d ()/-]{6,}\d",
    r"(?:Mr|Ms|Dr)\.? [A-Z]\w+",
    r"(?:foo|bar)+baz",
    r"password=[^&\s]*",
    r"(?<=token=)\w+",
    r"(?P<q>['\"])secret.*?(?P=q)",
    r"(?>a+)b",
    r"x*+y",
    r"\d+(?:\.\d+)?(?:e[+-]?\d+)?€",
    r"([A-Z][a-z]+ )+GmbH",
]
COSTLY = [
    r"(a+)+$",
    r"(?:a|a)*b",
    r"(?:a|ab)*c",
    r"(?:a?){30}a{30}",
    r"(?:\w+\s?)*!",
    r"(?:.*a){10}",
    r"(?:\d{1,4}){1,8}x",
    r"([a-z]+)*@",
    r"(?i)([A-Z][a-z]*)+1",
    r"(x+x+)+y",
    r".*.*.*x",
    r"\w*\d*\w*\d*!",
    r"(?:(?:a+b?)+c?)+d",
    r"(a*)*b",
    r"(?=(a+)+$)b",
    r"(?:(?:a{1,6}){1,6}){1,6}b",
]


@pytest.mark.parametrize("expression", CHEAP)
def test_an_expression_whose_time_is_bounded_is_taken(masks: Any, expression: str) -> None:
    found = masks({"regex": expression})
    for text in (
        "a",
        "1",
        " ",
        "@",
        "ab",
        "1 ",
        "a.",
        "A a",
        "-",
        "1-",
        "eyJ.",
        "x",
        "MrM",
        "foobar",
        "Aa ",
        "'secret",
    ):
        begun = time.monotonic()
        found.text(text * (20_000 // len(text)) + "!")
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("expression", COSTLY)
def test_an_expression_that_may_take_for_ever_is_an_error_of_the_check(settings: Any, expression: str) -> None:
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "dead_letters": {"mask": [{"regex": expression}]}}
    [problem] = conf.problems()
    assert "may take for ever over a text that is made for that: " in str(problem)


# What is hostile, or read by another serializer


@pytest.mark.parametrize("kind", [str, str.encode])
def test_keys_and_values_that_are_json_in_text_have_fields(masks: Any, kind: Any) -> None:
    found = masks("passenger")
    assert found.key(kind('{"passenger": "Alice Ames", "n": 1}')) == {"passenger": MASK, "n": 1}
    assert found.key(kind("1545")) == kind("1545")
    assert found.knowing(kind('{"passenger": "Alice Ames"}')).text("no seat for Alice Ames") == "no seat for ***"
    assert found.knowing_key(kind('{"passenger": "Alice Ames"}')).text("no seat for Alice Ames") == "no seat for ***"


@pytest.mark.parametrize("rule", ["**.name", {"key": True}, {"regex": "x"}])
def test_a_key_or_value_that_is_nested_too_deeply_is_masked_and_so_are_errors(masks: Any, rule: Any) -> None:
    deep: Any = "Alice"
    for _level in range(3000):
        deep = [deep]
    found = masks(rule)
    assert found.key(deep) == MASK
    assert found.value(deep) == MASK
    if rule != {"regex": "x"}:
        assert found.knowing_key(deep).text("no seat for Alice") == MASK


def test_a_match_is_masked_to_its_end_however_long_it_is(masks: Any) -> None:
    found = masks({"regex": r"Bearer \S+"})
    for size in (700, 1500, 4000, 40_000):
        for before in (0, 100, 500, 600, 1000):
            text = f"{'-' * before} Bearer {'abcdefgh' * (size // 8)}.signature"
            assert found.text(text) == f"{'-' * before} ***"
    shown = found.text(f"Bearer {'a' * 2000} rest Bearer {'b' * 900} end")
    assert shown == "*** rest *** end"


def test_many_letters_do_not_wait_for_a_slow_registry_one_after_the_other(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding._Slow, "until", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.KAFKA = {
            "brokers": ["127.0.0.1:1"],
            "schema_registry": {"url": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            "consumers": {"ops": {"group_id": "ops", "topics": {"flights": {"handler": "x.y", "serializer": "avro"}}}},
            "dead_letters": {"mask": ["passenger"]},
        }
        letter = DeadLetter(consumer="ops", topic="flights", partition=0, offset=1, value=b"\0\0\0\0\7x")
        begun = time.monotonic()
        for _each in range(20):
            assert decoding.knowing(masking(), letter).text("no seat for Alice") == MASK
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no 'Jane Doe-M...' here", "no '***...' here"),
        ("no '...e-Miller' here", "no '...***' here"),
        ("no Jane D…", "no ***…"),
        ("well... nobody is meant", "well... nobody is meant"),
        ("Ja... is too short", "Ja... is too short"),
        ("...", "..."),
    ],
)
def test_what_is_told_in_part_is_masked_where_something_is_left_out(text: str, shown: str) -> None:
    assert hiding(["Jane Doe-Miller"]).text(text) == shown


def test_dots_without_end_take_no_time() -> None:
    rule = hiding([f"{number:05}" + "x" * 300 for number in range(1000)])
    text = ("x" * 300 + "...") * 3000
    assert rule.text(text).endswith("***")
