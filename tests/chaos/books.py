"""The books of a run: what was sent, what came of it and when, read from outside of the product."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.rows import class_row

from .records import POISON
from .sending import Sent

EFFECTS = """
    CREATE TABLE chaos_effect (
        id bigserial PRIMARY KEY, topic text, partition int, "offset" bigint, key text, sequence bigint, worker text,
        pid int, tenure int, whole boolean DEFAULT false, ran float DEFAULT 0, at timestamptz DEFAULT clock_timestamp(),
        transaction bigint DEFAULT txid_current()
    );
    CREATE TABLE chaos_mended (partition int, "offset" bigint, PRIMARY KEY (partition, "offset"));
    CREATE TABLE chaos_letter (
        id bigserial PRIMARY KEY, letter bigint, state text, transaction bigint DEFAULT txid_current()
    );
    CREATE TABLE chaos_move (
        group_id text, topic text, partition int, low bigint, high bigint, worker text,
        transaction bigint DEFAULT txid_current()
    )
"""
DIARY = """
    CREATE FUNCTION note_letter() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO chaos_letter (letter, state) VALUES (NEW.id, NEW.state); RETURN NULL;
    END $$;
    CREATE TRIGGER note_letter AFTER INSERT OR UPDATE OF state ON lynx_kafka_deadletter
    FOR EACH ROW EXECUTE FUNCTION note_letter();

    CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO chaos_move (group_id, topic, partition, low, high, worker)
        VALUES (NEW.group_id, NEW.topic, NEW.partition, OLD."offset", NEW."offset", NEW.worker); RETURN NULL;
    END $$;
    CREATE TRIGGER note_move AFTER UPDATE OF "offset" ON lynx_kafka_claim
    FOR EACH ROW WHEN (NEW."offset" > OLD."offset") EXECUTE FUNCTION note_move();

    CREATE FUNCTION note_settled() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO chaos_move (group_id, topic, partition, low, high, worker)
        SELECT group_id, topic, partition, NEW."offset", NEW."offset" + 1, worker FROM lynx_kafka_claim
        WHERE id = NEW.claim_id; RETURN NULL;
    END $$;
    CREATE TRIGGER note_settled AFTER INSERT ON lynx_kafka_settledmessage
    FOR EACH ROW EXECUTE FUNCTION note_settled()
"""
"""Has the database note when a letter came into which state, and which transaction moved a claim past what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One committed run of the handler."""

    id: int
    """The order in which they were begun."""
    partition: int
    """Where its message was."""
    offset: int
    """The same."""
    key: str
    """The message's key."""
    sequence: int
    """Its number among those of its key."""
    worker: str
    """Which process ran it."""
    tenure: int
    """How many times its partition had come to that process."""
    whole: bool
    """Whether the handler's second statement is there as well."""
    ran: float
    """Seconds from the beginning of the handler to its second statement."""
    committed_at: float
    """When the database committed it, in seconds since the epoch."""
    pid: int = 0
    """The process."""
    transaction: int = 0
    """The transaction."""

    @property
    def place(self) -> tuple[int, int]:
        return self.partition, self.offset

    def __str__(self) -> str:
        return (
            f"partition {self.partition} offset {self.offset} ({self.key} {self.sequence}) by worker {self.worker}, "
            f"committed at {self.committed_at:.6f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter."""

    id: int
    """Its row."""
    partition: int
    """Where its message was."""
    offset: int
    """The same."""
    key: bytes | None
    """What it kept of the message."""
    value: bytes | None
    """The same."""
    category: str
    """What it is counted by."""
    error_type: str
    """Why it was given up."""
    error_message: str
    """The same, in words."""
    stored_at: float
    """When the database committed it, in seconds since the epoch."""
    topic: str = ""
    """The topic that it names."""
    state: str = "open"
    """Where it stands in the end."""
    parked: bool = False
    """Whether it was ever parked."""
    discarded_at: float | None = None
    """When it was first discarded, if it was."""
    transaction: int = 0
    """The transaction that stored it."""

    @property
    def place(self) -> tuple[int, int]:
        return self.partition, self.offset

    @property
    def name(self) -> tuple[str, int] | None:
        """Key and sequence, as far as its value tells."""
        key, value = (self.key or b"").decode("utf-8", "replace"), bytes(self.value or b"")
        try:
            return key, int(value.split()[-1] if value.startswith(POISON) else json.loads(value)["sequence"])
        except (ValueError, KeyError, TypeError, IndexError):
            return None

    def __str__(self) -> str:
        return (
            f"letter {self.id}, partition {self.partition} offset {self.offset}, {self.category} {self.error_type}: "
            f"{self.error_message[:200]}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One step of a claim."""

    partition: int
    """Of which partition."""
    low: int
    """The first offset that it covers."""
    high: int
    """One past the last."""
    pid: int
    """The process that had the claim."""
    transaction: int
    """The transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the group had committed at a moment."""

    at: float
    """When the answer was there, in seconds since the epoch: what it says was so no later."""
    committed: Mapping[int, int]
    """The committed offset of each partition; 0 where nothing was committed."""
    asked: float = 0.0
    """When it was asked for: what it says was so no earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A partition that left a worker."""

    worker: str
    """Which worker."""
    partition: int
    """Which partition."""
    tenure: int
    """How many times it had come to that worker."""
    at: float
    """When the worker had let go of it, in seconds since the epoch."""
    lost: bool
    """Whether it was taken without notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a process ended."""

    name: str
    """Which process."""
    asked: str = ""
    """What the run did to end it: "", "SIGKILL", "SIGTERM", or "two SIGTERM"."""
    code: int | None = None
    """Its exit code; negative for a signal; None when it had to be killed because it did not stop."""
    working: bool = True
    """Whether it had begun to consume, or to send."""
    unpolled: bool = False
    """Whether its client said that it was not polled within `max.poll.interval.ms`, though nobody froze it."""
    log: str = ""
    """Where what it said is kept."""

    def __str__(self) -> str:
        how = f"after {self.asked}" if self.asked else "by itself"
        what = "did not end" if self.code is None else f"ended with code {self.code}"
        return f"{self.name} {what} {how} ({self.log})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """One run of a handler that was begun."""

    place: tuple[int, int]
    """Where its message was first."""
    attempt: int
    """Which attempt it is."""
    at: float
    """When it began, in seconds since the epoch."""
    worker: str = ""
    """Which process ran it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What is in a retry topic."""

    records: Mapping[tuple[int, int], tuple[tuple[int, int], float]]
    """By where a record is: where its message was first, and when the broker had it, in seconds since the epoch."""
    samples: tuple[Sample, ...]
    """What was committed of it, over time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Everything that the verdict goes by."""

    sent: tuple[Sent, ...]
    """Every record that was handed to the producer, in order."""
    effects: tuple[Effect, ...]
    """Every effect, in the order of their commits."""
    letters: tuple[Letter, ...]
    """Every dead letter."""
    samples: tuple[Sample, ...]
    """What was committed, over time; the last one from after the end."""
    log_ends: Mapping[int, int]
    """One past the last offset of each partition."""
    echoes: Mapping[tuple[str, int], float]
    """Key and sequence of what handlers produced, and when it was first there, in seconds since the epoch."""
    deaths: Mapping[tuple[int, int], int]
    """How many workers were killed while they handled a message, by its place; only those that met one at all."""
    leaves: tuple[Leave, ...]
    """Every partition that left a worker which still ran."""
    ends: tuple[End, ...]
    """How every process ended."""
    retried: Mapping[str, Queue] = field(default_factory=dict)
    """The retry topics, by name."""
    begun: tuple[Begun, ...] = ()
    """Every run of a handler."""
    steps: tuple[tuple[float, float], ...] = ()
    """When the clock was stepped, in seconds since the epoch, and how far it was off from then on."""
    moves: tuple[Move, ...] = ()
    """Every step of a claim."""
    by_partition: bool = True
    """Whether the consumer promises the order of partitions, and not only that of keys."""

    @property
    def acknowledged(self) -> list[Sent]:
        """What the broker acknowledged."""
        return [one for one in self.sent if one.place is not None]

    @property
    def named(self) -> dict[tuple[str, int], Sent]:
        """What was sent, by key and sequence."""
        return {(one.key, one.sequence): one for one in self.sent}

    @property
    def stored_twice(self) -> int:
        """How many effects are of a record at another place than the acknowledged one.

        When a leader dies an idempotent client may store a record that it has no answer for once more.
        """
        named = self.named
        wanted = [(named.get((effect.key, effect.sequence)), effect.place) for effect in self.effects]
        return len({place for one, place in wanted if one is not None and one.place not in (None, place)})

    @property
    def lettered(self) -> list[tuple[Letter, Sent]]:
        """Letters and what was sent, as far as that is known."""
        places, named = {one.place: one for one in self.acknowledged}, self.named
        pairs = [(letter, places.get(letter.place) or named.get(letter.name or ("", -1))) for letter in self.letters]
        return [(letter, one) for letter, one in pairs if one is not None]


def effects(dsn: str, topic: str) -> tuple[Effect, ...]:
    """Read all effects."""
    query = """
        SELECT id, partition, "offset", key, sequence, worker, tenure, whole, ran, pid, transaction,
               extract(epoch FROM pg_xact_commit_timestamp(xmin))::float AS committed_at
        FROM chaos_effect WHERE topic = %s ORDER BY committed_at, id
    """
    with psycopg.connect(dsn) as connection, connection.cursor(row_factory=class_row(Effect)) as cursor:
        return tuple(cursor.execute(query, [topic]).fetchall())


def letters(dsn: str, group: str) -> tuple[Letter, ...]:
    """Read all dead letters of a group."""
    query = """
        SELECT letter.id, letter.partition, letter."offset", letter.key, letter.value, letter.category,
               letter.error_type, letter.error_message, letter.topic, letter.state,
               bool_or(said.state = 'parked') AS parked, min(said.transaction) AS transaction,
               extract(epoch FROM min(pg_xact_commit_timestamp(said.xmin)))::float AS stored_at,
               extract(epoch FROM min(pg_xact_commit_timestamp(said.xmin))
                       FILTER (WHERE said.state = 'discarded'))::float AS discarded_at
        FROM lynx_kafka_deadletter AS letter JOIN chaos_letter AS said ON said.letter = letter.id
        WHERE letter.group_id = %s GROUP BY letter.id ORDER BY letter.partition, letter."offset", letter.id
    """
    with psycopg.connect(dsn) as connection, connection.cursor(row_factory=class_row(Letter)) as cursor:
        return tuple(cursor.execute(query, [group]).fetchall())


def moves(dsn: str, group: str, topic: str) -> tuple[Move, ...]:
    """Read every step of the claims of a group in a topic."""
    query = """
        SELECT partition, low, high, split_part(worker, ':', 2)::int AS pid, transaction
        FROM chaos_move WHERE group_id = %s AND topic = %s
    """
    with psycopg.connect(dsn) as connection, connection.cursor(row_factory=class_row(Move)) as cursor:
        return tuple(cursor.execute(query, [group, topic]).fetchall())


def standing(dsn: str, group: str) -> tuple[int, int]:
    """Return how many letters of a group are open or parked, and how many times one was settled."""
    query = """
        SELECT count(DISTINCT letter.id) FILTER (WHERE letter.state IN ('open', 'parked')),
               count(*) FILTER (WHERE said.state IN ('resolved', 'discarded'))
        FROM lynx_kafka_deadletter AS letter JOIN chaos_letter AS said ON said.letter = letter.id
        WHERE letter.group_id = %s
    """
    with psycopg.connect(dsn) as connection:
        live, settled = connection.execute(query, [group]).fetchone() or (0, 0)
        return int(live), int(settled)


def leaves(file: Path, topic: str) -> tuple[Leave, ...]:
    """Read which partitions left, as the workers wrote it down."""
    said = [json.loads(line) for line in file.read_text().splitlines()]
    return tuple(Leave(**line) for line in said if line.pop("topic") == topic)


def begun(file: Path, topic: str) -> tuple[Begun, ...]:
    """Read which runs of handlers began."""
    said = [json.loads(line) for line in file.read_text().splitlines()]
    return tuple(
        Begun(place=(line["partition"], line["offset"]), attempt=line["attempt"], at=line["at"], worker=line["worker"])
        for line in said
        if line["topic"] == topic
    )


def deaths(file: Path, topic: str, ends: Iterable[End], effects: Iterable[Effect]) -> Counter[tuple[int, int]]:
    """Count for each message the workers that were killed while they handled it.

    What a thread of a killed worker began last and has no effect of was in its hands when the worker died.
    """
    killed = {end.name for end in ends if end.code not in (0, 1)}
    latest: dict[tuple[str, int], tuple[int, int]] = {}  # a thread is of one consumer; that of replays is of all
    for line in file.read_text().splitlines():
        said = json.loads(line)
        if said["worker"] in killed and said["topic"] == topic:
            latest[said["worker"], said["thread"]] = said["partition"], said["offset"]
    done = {(effect.worker, effect.place) for effect in effects}
    return Counter(place for (worker, _thread), place in latest.items() if (worker, place) not in done)
