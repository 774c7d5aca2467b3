"""What is compared with what, and what the project promises: the one table of the suite."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a case works on, when it is not the usual: 200 bytes, 4 partitions, 10,000 keys, nobody's database."""

    messages: int = 0
    """How many messages it takes whatever the usual number is; 0: what `of` says."""
    of: float = 1
    """It takes one of so many of the usual number of messages."""
    partitions: int = 4
    """Partitions of its topic."""
    keys: int = 10_000
    """Distinct keys; 0: as many as there are messages."""
    size: int = 200
    """Bytes of a value."""
    filled: bool = True
    """Whether the topic is filled before; else it is new and empty."""
    handler: str = "benchmarks.consuming.ignore"
    """Dotted path of the handler; empty: the case registers it."""
    database: bool = False
    """Whether it needs PostgreSQL."""
    secured: bool = False
    """Whether it is on the broker that demands TLS and a SCRAM login."""
    registry: bool = False
    """Whether it needs a schema registry."""
    consumer: Mapping[str, Any] = field(default_factory=dict)
    """What the consumer's settings say beyond the usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A figure of one of our cases, what it is held against, and what is promised."""

    name: str
    """What is compared, for people; words of it choose what is run."""
    ours: str
    """Our case."""
    against: str = ""
    """The case that it is held against; empty: the figure stands by itself."""
    figure: str = "per_second"
    """Which figure is compared."""
    unit: str = "/s"
    """What the figure is counted in."""
    kind: Literal["ratio", "at least", "at most", "at most above"] = "ratio"
    """How: ours divided by the other at least; ours at least, at most; ours at most so much above the other."""
    promised: float | None = None
    """The bound; None: shown, nothing is promised."""


_DATABASE: dict[str, Any] = {"of": 25, "database": True}
_WAITING: dict[str, Any] = {"of": 20, "partitions": 1, "keys": 1000}
_PROCESSES = [number for number in (1, 2, 4) if number <= (os.cpu_count() or 1)]
EMPTY = Load(filled=False)

LOADS: dict[str, Load] = {
    **dict.fromkeys(("raw_produce", "our_produce", "raw_produce_batch", "our_produce_batch"), EMPTY),
    **dict.fromkeys(("aiokafka_produce", "regiohelden_produce"), EMPTY),
    # As many as it takes some ten seconds for: minutes of the same tell nothing more.
    "faststream_produce": Load(of=4, filled=False),
    "faststream_consume": Load(of=20),
    "our_consume_batch": Load(handler=""),
    "raw_consume_many_keys": Load(keys=0),
    "our_consume_many_keys": Load(keys=0, consumer={"ordering": "key"}),
    "raw_insert": Load(**_DATABASE),
    "our_insert": Load(**_DATABASE, handler="benchmarks.databases.insert", consumer={"transaction": "message"}),
    "our_insert_in_batches": Load(
        **_DATABASE, handler="benchmarks.databases.insert", consumer={"transaction": "batch"}
    ),
    "raw_insert_bulk": Load(of=4, database=True),
    "our_insert_bulk": Load(of=4, database=True, handler="", consumer={"transaction": "batch"}),
    "our_waiting_threads": Load(
        **_WAITING, handler="benchmarks.waiting.wait", consumer={"ordering": "key", "concurrency": 64}
    ),
    "our_waiting_async": Load(
        # Four times as many at a time: as long as the threads.
        **{**_WAITING, "of": 5},
        handler="benchmarks.waiting.await_it",
        consumer={"ordering": "key", "concurrency": 256},
    ),
    "raw_latency": Load(messages=10_000, filled=False),
    "our_latency": Load(messages=10_000, filled=False, handler="benchmarks.latency.take"),
    "our_memory": Load(of=0.2, size=20, keys=0, handler="benchmarks.memory.take"),
    "raw_start": Load(of=100),
    "our_start": Load(of=100, handler="benchmarks.latency.tell_and_end"),
    "our_replay": Load(of=400, filled=False, database=True, consumer={"transaction": "message"}),
    **dict.fromkeys(("our_job_to_topic", "our_job_to_topic_shared"), Load(of=10, filled=False, database=True)),
    **dict.fromkeys(
        ("raw_handler", "our_job_to_handler"),
        Load(
            of=50,
            filled=False,
            database=True,
            handler="benchmarks.databases.insert",
            consumer={"transaction": "message"},
        ),
    ),
    **{
        f"our_scaling_{number}": Load(
            of=4,
            handler="benchmarks.scaling.work",
            consumer={
                "processes": number,
                "retry": {"max_retries": 10_000},
                "circuit_breaker": {"enabled": False},
            },
        )
        for number in _PROCESSES
    },
    **dict.fromkeys(("raw_produce_secured", "our_produce_secured"), Load(filled=False, secured=True)),
    "raw_consume_secured": Load(secured=True),
    "our_consume_secured": Load(handler="", secured=True),
    "our_insert_failing": Load(
        **_DATABASE, handler="benchmarks.failing.insert_or_fail", consumer={"transaction": "message"}
    ),
    "our_insert_in_batches_failing": Load(
        **_DATABASE, handler="benchmarks.failing.insert_or_fail", consumer={"transaction": "batch"}
    ),
    "our_letters": Load(
        of=10,
        filled=False,
        database=True,
        handler="benchmarks.failing.fail",
        consumer={"transaction": "message", "circuit_breaker": {"enabled": False}},
    ),
    **dict.fromkeys(
        ("raw_write_avro", "our_write_avro", "raw_read_avro", "our_read_avro"), Load(of=4, filled=False, registry=True)
    ),
    **dict.fromkeys(("our_produce_watched", "our_produce_uncounted"), EMPTY),
    "our_consume_traced": Load(of=4),
    "our_produce_traced": Load(of=4, filled=False),
    "our_scrape": Load(of=10, partitions=200),
    "our_paused_lanes": Load(
        messages=1000,
        partitions=1000,
        database=True,
        handler="benchmarks.failing.put_off",
        consumer={"transaction": "message", "retry": {"max_retries": 1}},
    ),
}

COMPARISONS = (
    Comparison(name="produce one by one", ours="our_produce", against="raw_produce", promised=0.8),
    Comparison(name="produce batch", ours="our_produce_batch", against="raw_produce_batch", promised=1.0),
    Comparison(name="produce, peer aiokafka", ours="our_produce", against="aiokafka_produce", promised=1.0),
    Comparison(name="produce, peer django-kafka", ours="our_produce", against="regiohelden_produce", promised=1.0),
    Comparison(name="produce, peer FastStream", ours="our_produce", against="faststream_produce", promised=1.0),
    Comparison(name="consume no-op, client's best", ours="our_consume", against="raw_consume", promised=0.5),
    Comparison(name="consume no-op, client's defaults", ours="our_consume", against="raw_consume_plain", promised=2.0),
    Comparison(name="consume batch", ours="our_consume_batch", against="raw_consume_lists", promised=0.9),
    Comparison(
        name="consume by key, a key each", ours="our_consume_many_keys", against="raw_consume_many_keys", promised=0.25
    ),
    Comparison(name="consume no-op, peer aiokafka", ours="our_consume", against="aiokafka_consume", promised=1.0),
    Comparison(
        name="consume no-op, peer django-kafka", ours="our_consume", against="regiohelden_consume", promised=1.0
    ),
    Comparison(name="consume no-op, peer FastStream", ours="our_consume", against="faststream_consume", promised=1.0),
    Comparison(name="insert, transaction a message", ours="our_insert", against="raw_insert"),
    Comparison(name="insert, transaction a batch", ours="our_insert_in_batches", against="raw_insert", promised=2.5),
    Comparison(name="insert, bulk handler", ours="our_insert_bulk", against="raw_insert_bulk", promised=0.9),
    Comparison(
        name="waiting 5 ms, 64 threads, of the ideal",
        ours="our_waiting_threads", figure="of_ideal", unit="", kind="at least", promised=0.9,
    ),
    Comparison(
        name="waiting 5 ms, 256 async, of the ideal",
        ours="our_waiting_async", figure="of_ideal", unit="", kind="at least", promised=0.7,
    ),
    Comparison(name="replay", ours="our_replay"),
    Comparison(name="replay job to a topic", ours="our_job_to_topic"),
    Comparison(name="replay job to a topic, shared", ours="our_job_to_topic_shared", kind="at least", promised=5000),
    Comparison(name="replay job to a handler", ours="our_job_to_handler", against="raw_handler", promised=0.5),
    Comparison(
        name="latency p50, 1,000 a second", ours="our_latency", against="raw_latency",
        figure="p50_ms", unit=" ms", kind="at most above",
    ),
    Comparison(
        name="latency p99, 1,000 a second", ours="our_latency", against="raw_latency",
        figure="p99_ms", unit=" ms", kind="at most above", promised=2.0,
    ),
    Comparison(
        name="memory of the worker, all waiting",
        ours="our_memory", figure="peak_mib", unit=" MiB", kind="at most", promised=150,
    ),
    Comparison(
        name="start-up to the first message", ours="our_start", against="raw_start",
        figure="seconds", unit=" s", kind="at most above",
    ),
    *(
        Comparison(name=f"scaling, {number} against 1 process", ours=f"our_scaling_{number}", against="our_scaling_1")
        for number in _PROCESSES
        if number > 1
    ),
    Comparison(
        name="TLS and SCRAM, produce batch", ours="our_produce_secured", against="raw_produce_secured", promised=0.95
    ),
    Comparison(
        name="TLS and SCRAM, consume batch", ours="our_consume_secured", against="raw_consume_secured", promised=0.95
    ),
    Comparison(name="Avro, a flight to bytes", ours="our_write_avro", against="raw_write_avro", promised=0.9),
    Comparison(name="Avro, bytes to a flight", ours="our_read_avro", against="raw_read_avro", promised=0.9),
    Comparison(name="failing, 1 % against none", ours="our_insert_failing", against="our_insert", promised=0.8),
    Comparison(
        name="failing, 1 % in batches against none",
        ours="our_insert_in_batches_failing", against="our_insert_in_batches", promised=0.7,
    ),
    Comparison(name="failing, all of them, letters", ours="our_letters", kind="at least", promised=5000),
    Comparison(
        name="failing, 1,000 lanes that wait, cores",
        ours="our_paused_lanes", figure="cores", unit="", kind="at most", promised=0.01,
    ),
    Comparison(
        name="watched, consume no-op against uncounted",
        ours="our_consume_watched", against="our_consume_uncounted", promised=0.95,
    ),
    Comparison(
        name="watched, produce against uncounted",
        ours="our_produce_watched", against="our_produce_uncounted", promised=0.97,
    ),
    Comparison(name="traced, consume no-op against untraced", ours="our_consume_traced", against="our_consume"),
    Comparison(name="traced, produce against untraced", ours="our_produce_traced", against="our_produce"),
    Comparison(
        name="watched, a scrape of 200 partitions, p95",
        ours="our_scrape", figure="p95_ms", unit=" ms", kind="at most", promised=20,
    ),
)  # fmt: skip


class UnknownWord(Exception):
    """A word that is in no comparison's name."""


def chosen(words: list[str]) -> list[Comparison]:
    """Return the comparisons that have one of the words in their names; all when there is none.

    Raises `UnknownWord`, which names what there is.
    """
    for word in words:
        if not any(word in one.name for one in COMPARISONS):
            names = "; ".join(one.name for one in COMPARISONS)
            raise UnknownWord(f"No comparison has {word!r} in its name. There are: {names}.")
    return [one for one in COMPARISONS if not words or any(word in one.name for word in words)]


def cases_of(comparisons: list[Comparison]) -> list[str]:
    """Return their cases, each once, what ours is held against before ours."""
    return list(dict.fromkeys(case for one in comparisons for case in (one.against, one.ours) if case))
