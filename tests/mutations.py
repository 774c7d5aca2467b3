"""Messages as nobody should send them, the same ones for a seed, of every kind in runs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

RUN = 200
"""Messages of one kind that follow one another."""
Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutated:
    """One of them."""

    kind: str
    """What is wrong with it."""
    key: bytes | None
    """As it is sent."""
    value: bytes | None
    """As it is sent."""
    headers: Headers
    """As they are sent."""


GOOD = json.dumps({"flight": "UA 1545", "from": "EWR", "to": "IAH", "delays": [2, 11, None], "open": True}).encode()


def _damaged(chance: random.Random) -> bytes:
    at = chance.randrange(len(GOOD))
    return GOOD[:at] + chance.randbytes(chance.randrange(1, 4)) + GOOD[at + 1 :]


VALUES: dict[str, Callable[[random.Random], bytes | None]] = {
    "good": lambda _: GOOD,
    "random bytes": lambda chance: chance.randbytes(chance.randrange(60)),
    "truncated": lambda chance: GOOD[: chance.randrange(len(GOOD))],
    "damaged": _damaged,
    "oversize": lambda chance: b'"' + b"x" * chance.randrange(5_000, 20_000) + b'"',
    "deep lists": lambda chance: b"[" * (depth := chance.randrange(900, 5000)) + b"]" * depth,
    "deep objects": lambda chance: b'{"a":' * (depth := chance.randrange(300, 3000)) + b"1" + b"}" * depth,
    "deep and open": lambda chance: b"[" * chance.randrange(500, 9000),
    "many digits": lambda chance: b"9" * chance.randrange(4000, 5000),
    "strange numbers": lambda chance: chance.choice([b"NaN", b"-Infinity", b"1e999", b"-0", b"1E-999", b"[1e400]"]),
    "NULs": lambda chance: chance.choice([b"\0", b'"\\u0000"', b"\0" * 9, b'{"\\u0000":"\\u0000"}', b'{"a\0":1}']),
    "no UTF-8": lambda chance: b'{"a":"' + chance.choice([b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5"]) + b'"}',
    "half characters": lambda chance: chance.choice([b'"\\ud800"', b'{"\\udfff":1}', b'["\\udc00\\ud800"]']),
    "turned": lambda chance: chance.choice(["\u202e", "\u2066", "\u200b", "\u2028"]).join(["evil", "txt.exe"]).encode(),
    "markup": lambda _: b'{"a":"<script>alert(1)</script>","b":"{{ 7|add:7 }} {% url %}"}',
    "escapes": lambda _: b'"\\u001b[2J\\r\\nERROR forged \\u009b31m"',
    "magic bytes": lambda chance: (
        chance.choice([b"\0", b"\x80\x04", b"PK\x03\x04", b"\x1f\x8b\x08", b"Obj\x01", b"(\xb5/\xfd"])
        + chance.randbytes(chance.randrange(2, 20))
    ),
    "other encodings": lambda chance: GOOD.decode().encode(
        chance.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"])
    ),
    "a pickle": lambda _: b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "one name twice": lambda _: b'{"a":1,"a":{"a":[]}}',
    "empty": lambda _: b"",
    "null": lambda _: None,
}
"""Kind → what makes a value of it."""


def _frames(good: bytes) -> dict[str, Callable[[random.Random], bytes | None]]:
    """Return kinds of values that begin as those of a schema registry do, by one that is good."""
    start, body = good[:5], good[5:]
    return {
        "good frames": lambda _: good,
        "a wrong magic byte": lambda chance: bytes([chance.randrange(2, 256)]) + good[1:],
        "a wrong schema id": lambda chance: b"\0" + chance.randrange(2**31, 2**32).to_bytes(4, "big") + body,
        "few wrong schema ids": lambda chance: b"\0\xff\xff\xff" + chance.choice([b"\xf0", b"\xf1"]) + body,
        "a wrong schema guid": lambda chance: b"\1" + chance.randbytes(16) + body,
        "half a frame": lambda chance: good[: chance.randrange(1, 5)],
        "a frame alone": lambda _: start,
        "truncated in a frame": lambda chance: start + body[: chance.randrange(len(body))],
        "random in a frame": lambda chance: start + chance.randbytes(chance.randrange(1, 60)),
        "damaged in a frame": lambda chance: start + _spoilt(chance, body),
        "great lengths": lambda chance: start + chance.choice([b"\xfe\xff\xff\xff\x0f", b"\xff" * 9 + b"\1"]) + body,
        "much more": lambda chance: good + b"x" * chance.randrange(1, 5_000),
        "JSON in a frame": lambda _: start + GOOD,
        "deep JSON in a frame": lambda chance: start + b"[" * (depth := chance.randrange(900, 5000)) + b"]" * depth,
        "NULs in a frame": lambda chance: start + b"\0" * chance.randrange(1, 40),
        "no frame": lambda chance: chance.randbytes(chance.randrange(60)),
        "no bytes": lambda _: b"",
        "no value": lambda _: None,
    }


def _spoilt(chance: random.Random, body: bytes) -> bytes:
    at = chance.randrange(len(body))
    return body[:at] + chance.randbytes(chance.randrange(1, 4)) + body[at + 1 :]


def _keys(chance: random.Random) -> bytes | None:
    return chance.choice([b"UA", b"", None, b"\0", b"\xff\xfe", "\u202eUA".encode(), b"k" * 500, b"\x1b[31m", b"<b>"])


def _headers(chance: random.Random) -> Headers:
    return chance.choice([
        [], [], [("a", b"1"), ("a", b"2"), ("a", None)], [("h" * 300, b"x" * 3000)], [("", b"")],
        [(f"n{number}", b"v") for number in range(100)], [("\u202e\x1b[2J\n", b"\xff\0")], [("<i>", b"<i>")],
        [("lynx-kafka-letter", b"1"), ("lynx-kafka-letter", b"\xff")], [("traceparent", b"\0garbage")],
    ])  # fmt: skip


def mutated(seed: int, count: int, good: bytes | None = None) -> Iterator[Mutated]:
    """Yield so many of them; with `good`, a value of a schema registry, such as begin as that does."""
    chance = random.Random(seed)
    values = VALUES if good is None else _frames(good)
    for number in range(count):
        # In runs: letters that follow one another are stored together, and what is in between by itself.
        kind = list(values)[number // RUN % len(values)]
        yield Mutated(kind=kind, key=_keys(chance), value=values[kind](chance), headers=_headers(chance))
