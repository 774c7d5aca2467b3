"""Regular expressions over the names of topics."""

from __future__ import annotations

import random
import re

import pytest

from django_kafka.conf.pattern_syntax import ALPHABET, DIGITS, BadPattern
from django_kafka.conf.patterns import example, is_pattern, pattern, template


@pytest.mark.parametrize(
    ("text", "fits", "fails"),
    [
        (r"^flights\..*", ["flights.", "flights.eu", "flights.eu.v2"], ["flights", "flightsxeu", "a.flights.eu"]),
        (r"^flights\.(eu|us)$", ["flights.eu", "flights.us"], ["flights.eus", "flights.e", "flights."]),
        (r"^(?:a|b)+c$", ["ac", "abbac"], ["c", "ab", "acc"]),
        ("^x.y$", ["x.y", "x-y", "xxy"], ["xy", "x..y"]),
        ("^a?b*$", ["a", "b", "abb", "bbb"], ["ba", "aab"]),
        ("^a{2}$", ["aa"], ["a", "aaa"]),
        ("^a{2,}$", ["aa", "aaaaa"], ["a"]),
        ("^a{1,3}b$", ["ab", "aaab"], ["b", "aaaab"]),
        (r"^v\d+$", ["v1", "v42"], ["v", "vx"]),
        (r"^\w+\-\_\.$", ["a-_.", "Z9_-_."], ["-_.", "a-_"]),
        ("^[a-c0-9_-]+$", ["a", "b-9_"], ["d", "A", "a.b"]),
        ("^[^.]+$", ["flights", "a-b_c"], ["a.b", "."]),
        (r"^[^\d\.]x$", ["ax", "-x"], ["1x", ".x"]),
    ],
)
def test_a_pattern_takes_whole_names(text: str, fits: list[str], fails: list[str]) -> None:
    found = pattern(text)
    assert [name for name in fits if not found.fits(name)] == []
    assert [name for name in [*fails, ""] if found.fits(name)] == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("^flights", 'does not end with "$"'),
        (r"^flights\.*", 'does not end with "$"'),
        ("^", "does not end"),
        ("^$", "empty"),
        ("^a|b$", "outside of parentheses"),
        ("^(a|)$", "empty"),
        ("^()$", "empty"),
        ("^(a$", '")" is missing'),
        ("^a)$", "has no meaning"),
        ("^a$b$", "has no meaning"),
        ("^a^$", "has no meaning"),
        ("^flights/.*", "has no meaning"),
        ("^flights .*", "has no meaning"),
        ("^*$", "has no meaning"),
        ("^a**$", "one behind the other"),
        ("^a+?$", "one behind the other"),
        ("^a{2}{3}$", "one behind the other"),
        ("^a{x}$", "no number"),
        ("^a{,3}$", "no number"),
        ("^a{3,2}$", "the smaller first"),
        ("^a{0}$", "the smaller first"),
        ("^a{9999}$", "the smaller first"),
        ("^(a{100}){100}$", "repeats too much"),
        ("^" + "(" * 30 + "a" + ")" * 30 + "$", "too deep"),
        ("^(?=a)a$", 'after "(?"'),
        ("^(?i)a$", 'after "(?"'),
        ("^(?P<n>a)$", 'after "(?"'),
        (r"^(a)\1$", "behind a backslash"),
        (r"^a\s$", "behind a backslash"),
        (r"^a\b$", "behind a backslash"),
        (r"^\p{L}$", "behind a backslash"),
        ("^[[:alpha:]]$", "in brackets"),
        ("^[]a]$", "in brackets"),
        ("^[z-a]$", "no range"),
        ("^[a-Z]$", "no range"),
        (r"^[\d-z]$", "no range"),
        (r"^[a-\d]$", 'behind "-"'),
        ("^[a$", "in brackets"),
        ("^[ab.*", "in brackets"),
    ],
)
def test_what_is_broken_or_read_otherwise_by_somebody_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadPattern) as refused:
        pattern(text)
    assert why in str(refused.value)


def test_python_reads_every_pattern_alike() -> None:
    chance = random.Random(9)
    letters = "ab.-1"

    def part(depth: int) -> str:
        kind = chance.randrange(9 if depth else 6)
        one = {
            0: "a", 1: "b", 2: r"\.", 3: chance.choice([".", r"\d", r"\w", "1"]), 4: chance.choice(["[ab]", "[a-c.-]"]),
            5: chance.choice(["[^a]", r"[^\d]"]),
        }.get(kind)  # fmt: skip
        if one is None:
            inner = "|".join(sequence(depth - 1) for _turn in range(chance.randrange(1, 4)))
            one = f"({'?:' * chance.randrange(2)}{inner})"
        return one + chance.choice(["", "", "", "*", "+", "?", "{2}", "{1,}", "{0,2}"])

    def sequence(depth: int) -> str:
        return "".join(part(depth) for _turn in range(chance.randrange(1, 4)))

    taken = 0
    for _turn in range(400):
        text = f"^{sequence(2)}$"
        ours, theirs = pattern(text), re.compile(text)
        for _name in range(25):
            name = "".join(chance.choice(letters) for _letter in range(chance.randrange(1, 9)))
            assert ours.fits(name) == bool(theirs.fullmatch(name)), (text, name)
            taken += ours.fits(name)
        assert (such := example(ours)) is None or theirs.fullmatch(such), (text, such)
    assert taken > 500


def test_no_name_takes_long() -> None:
    # For Python's own this would take longer than anybody waits.
    evil = pattern("^(([a-z]+)+|([a-z]*[a-z]*)*)+(a*)*9$")
    assert not evil.fits("a" * 249)
    assert evil.fits("a" * 248 + "9")
    with pytest.raises(BadPattern):
        pattern("^" + "(a?){1000}" * 1000 + "$")


def test_the_prefix_is_a_text_before_the_pattern() -> None:
    found = pattern(r"^flights\..*", "stage.")
    assert found.fits("stage.flights.eu")
    assert not found.fits("flights.eu")
    assert not found.fits("stagexflights.eu")
    assert not found.fits("stage.stage.flights.eu")


def test_a_name_that_has_no_such_letters_is_none() -> None:
    assert not pattern("^.*").fits("flights\n")
    assert not pattern("^.*").fits("flüge")
    assert is_pattern("^.*")
    assert not is_pattern("flights")


def test_an_example_is_a_name_that_all_take_and_none_of_the_others() -> None:
    letters = template([ALPHABET, ".dlq"])
    assert example(pattern(r"^flights\..*"), by=(letters,)) == "flights.dlq"
    assert example(pattern(r"^flights\.[a-z]+$"), by=(template(["flights.", ALPHABET, ".dlq"]),)) is None
    assert example(pattern(r"^.*\.dlq$"), but=(letters,)) == ".dlq"
    assert example(pattern(r"^.+\.dlq$"), but=(letters,)) is None
    assert example(pattern("^.*", "stage."), by=(template([ALPHABET, ".dlq"], "stage."),)) == "stage.-.dlq"
    assert example(pattern("^a{300}$")) is None
    assert template(["ops.", ALPHABET, ".retry.", DIGITS]).fits("ops.flights.eu.retry.12")
    assert not template(["ops.", ALPHABET, ".retry.", DIGITS]).fits("ops.flights.eu.retry.x")
