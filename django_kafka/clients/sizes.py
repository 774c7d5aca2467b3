"""How many bytes of memory messages take, told without looking at each of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, cast

import confluent_kafka

from ..messages import header_pairs

# Mapped over whole batches in C.
_key_of: Callable[[Any], bytes | None] = cast("Any", confluent_kafka.Message.key)
_headers_of: Callable[[Any], Any] = cast("Any", confluent_kafka.Message.headers)

_SAMPLE = 32
"""Messages of a fetch whose keys and headers are looked at, when those are small."""


def size_of(messages: Sequence[Any]) -> tuple[int, int]:
    """Return the bytes of values, and those of keys and headers.

    The latter are those of a sample where there are many messages and it has less of them than of values: to look at
    all of them takes a tenth of the time that the client needs to receive them.
    """
    values = sum(map(len, messages))
    if (step := len(messages) // _SAMPLE) <= 1:
        return values, _beside_values(messages)
    # Others than in the fetch before, so that what comes at regular distances is found.
    sample = messages[messages[0].offset() % step :: step]
    others = _beside_values(sample) * len(messages) // len(sample)
    return values, others if others < values else _beside_values(messages)


def _beside_values(messages: Sequence[Any]) -> int:
    """Return the bytes of keys and headers: len() of a message is that of its value alone."""
    size = sum(map(len, filter(None, map(_key_of, messages))))
    try:
        pairs = list(chain.from_iterable(filter(None, map(_headers_of, messages))))
    except SystemError:
        pairs = None
    # All are looked at in one call: a pair with a hole, see header_pairs, shows one object instead of two.
    if pairs is None or len(gc.get_referents(*pairs)) != 2 * len(pairs):
        pairs = list(chain.from_iterable(map(header_pairs, messages)))
    return size + sum(map(len, filter(None, chain.from_iterable(pairs))))
