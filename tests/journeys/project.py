"""A Django project that runs as real processes, and the books that a journey keeps beside it.

Nothing here goes through `django_kafka`: records are sent by a bare client and rows are read by a bare connection, so
that what the product says about itself is checked against what is there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import NewTopic
from psycopg.rows import RowFactory, class_row, dict_row, tuple_row

from tests.servers import Kafka, PostgreSQL
from tests.servers.processes import Program, tail

ROOT = Path(__file__).resolve().parents[2]
Row = TypeVar("Row")
_OF_TOPIC = "(%(topic)s::text IS NULL OR topic = %(topic)s)"
_EFFECTS = f'FROM tests_effect WHERE "group" = %(group)s AND {_OF_TOPIC}'
_LETTERS = f"FROM lynx_kafka_deadletter WHERE {_OF_TOPIC}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One line of the ledger: a record that the broker has acknowledged."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None

    @property
    def place(self) -> tuple[str, int, int]:
        return self.topic, self.partition, self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One committed run of a handler."""

    id: int
    group: str
    topic: str
    partition: int
    offset: int
    key: str | None
    payload: Any

    @property
    def place(self) -> tuple[str, int, int]:
        return self.topic, self.partition, self.offset


@dataclass(slots=True, kw_only=True)
class Project:
    """One database, one consumer group, and the processes that work on them.

    `kafka` is the setting KAFKA of every process started from then on; `consumer()` fills in the usual one.
    """

    cluster: Kafka
    """The real cluster."""
    server: PostgreSQL
    """The real database server; a journey may stop and start it."""
    database: str
    """The name of this journey's own database."""
    directory: Path
    """Where the processes' output goes."""
    group: str = field(default_factory=lambda: f"group-{uuid.uuid4().hex[:10]}")
    """The consumer group that `consumer()` uses."""
    kafka: dict[str, Any] = field(default_factory=dict)
    """The setting KAFKA."""
    extra_env: dict[str, str] = field(default_factory=dict)
    """More environment variables for every process."""
    ledger: list[Sent] = field(default_factory=list)
    """Every record that `produce` sent and the broker acknowledged."""
    programs: list[Program] = field(default_factory=list)
    """Every process that was started."""
    _reading: psycopg.Connection[Any] | None = None
    _asking: dict[str, Consumer] = field(default_factory=dict)
    _partitions: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # So that it does not take long to be known that a worker was killed: nobody goes on before that.
        self.kafka = {"brokers": self.cluster.address.split(","), "heartbeats": {"interval": "1s"}, **self.kafka}

    @property
    def dsn(self) -> str:
        return self.server.dsn_of(self.database)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process of this project."""
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.journeys.settings",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "JOURNEY_DATABASE": self.database,
            "JOURNEY_DATABASE_PORT": str(self.server.port),
            "JOURNEY_KAFKA": json.dumps(self.kafka),
            "JOURNEY_GROUP": self.group,
            **self.extra_env,
        }

    def consumer(
        self, name: str, topics: str | Iterable[str], handler: str = "tests.app.handlers.record", **settings: Any
    ) -> None:
        """Add a consumer to the settings: every topic to one handler, in this journey's group.

        It commits more often than by default, because journeys wait for what is committed, and makes one attempt.
        """
        names = [topics] if isinstance(topics, str) else list(topics)
        consumers = self.kafka.setdefault("consumers", {})
        consumers[name] = {
            "group_id": self.group,
            "topics": {each: {"handler": handler} for each in names},
            "auto_commit_interval": "200ms",
            "retry": {"max_retries": 0},
            **settings,
        }

    def manage(self, *arguments: str | int, env: Mapping[str, str] | None = None) -> Program:
        """Start a management command and return it running; `output()` is what it has said."""
        return self.start([sys.executable, "-m", "django", *map(str, arguments)], env=env)

    def start(self, command: list[str], env: Mapping[str, str] | None = None) -> Program:
        """Start any program with the environment of this project."""
        word = next((each for each in command[1:] if not each.startswith("-") and each != "django"), "program")
        log = self.directory / f"{len(self.programs) + 1}-{Path(word).name}.log"
        program = Program.start(command, log=log, env={**self.env, **(env or {})}, cwd=ROOT)
        self.programs.append(program)
        return program

    def run(self, *arguments: str | int, seconds: float = 60, env: Mapping[str, str] | None = None) -> str:
        """Run a management command to its end and return what it said; fail when it failed."""
        program = self.manage(*arguments, env=env)
        code = program.finish(seconds)
        assert code == 0, f"{' '.join(map(str, arguments))} ended with code {code}. {tail(program.log)}"
        return program.output()

    def close(self) -> None:
        """End whatever still runs, at once."""
        for program in self.programs:
            program.end()
        self._forget_connection()
        for one in self._asking.values():
            one.close()
        self._asking.clear()

    def create_topic(self, name: str, partitions: int = 1, **settings: str) -> str:
        """Make a topic on the cluster and return its name."""
        wanted = NewTopic(name, num_partitions=partitions, replication_factor=-1, config=settings)
        admin = self.cluster.admin()  # held until the answer is there
        admin.create_topics([wanted], operation_timeout=30)[name].result(30)
        return name

    def produce(self, records: Iterable[Mapping[str, Any]], topic: str | None = None) -> list[Sent]:
        """Send records with a bare client, wait for all acknowledgements and write them in the ledger.

        A record is a mapping with `value` and maybe `key`, `topic`, `partition`, `headers`, `timestamp`. Values and
        keys are bytes or None; a str is encoded, anything else becomes JSON.
        """
        sent: list[Sent] = []
        failures: list[str] = []

        def acknowledged(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failures.append(str(error))
                return
            sent.append(
                Sent(
                    topic=str(message.topic()),
                    partition=int(message.partition() or 0),
                    offset=int(message.offset() or 0),
                    key=_bytes(message.key()),
                    value=_bytes(message.value()),
                )
            )

        producer = Producer({"bootstrap.servers": self.cluster.address, "linger.ms": 5, "acks": "all"})
        for record in records:
            fields = {"topic": topic, **record}
            fields["key"], fields["value"] = _bytes(fields.get("key")), _bytes(fields.get("value"))
            while True:
                try:
                    producer.produce(on_delivery=acknowledged, **fields)
                    break
                except BufferError:
                    producer.poll(0.1)
        left = producer.flush(60)
        assert not left, f"{left} records were not acknowledged within 60 s."
        assert not failures, f"{len(failures)} records failed, the first with: {failures[0]}"
        sent.sort(key=lambda each: each.place)
        self.ledger += sent
        return sent

    def effects(self, topic: str | None = None, group: str | None = None) -> list[Effect]:
        """Every effect there is, in the order in which they were made."""
        query = f'SELECT id, "group", topic, partition, "offset", key, payload {_EFFECTS} ORDER BY id'
        return self.ask_database(query, {"group": group or self.group, "topic": topic}, class_row(Effect))

    def count_effects(self, topic: str) -> int:
        """How many effects there are of a topic in this journey's group."""
        [row] = self.ask_database(f"SELECT count(*) {_EFFECTS}", {"group": self.group, "topic": topic}, tuple_row)
        return int(row[0])

    def letters(self, topic: str | None = None) -> list[dict[str, Any]]:
        """Every dead letter there is, as rows with the names of their columns."""
        return self.ask_database(f"SELECT * {_LETTERS} ORDER BY id", {"topic": topic}, dict_row)

    def count_letters(self, topic: str) -> int:
        """How many dead letters there are of a topic."""
        [row] = self.ask_database(f"SELECT count(*) {_LETTERS}", {"topic": topic}, tuple_row)
        return int(row[0])

    def ask_database(self, query: str, parameters: dict[str, Any], factory: RowFactory[Row]) -> list[Row]:
        """Return the rows of a query, over one connection: waiting asks twenty times a second.

        It is made anew once when it is broken, because a journey may have stopped the server.
        """
        for again in (True, False):
            try:
                if self._reading is None or self._reading.closed:
                    self._reading = psycopg.connect(self.dsn, connect_timeout=10, autocommit=True)
                with self._reading.cursor(row_factory=factory) as cursor:
                    return cursor.execute(query.encode(), parameters).fetchall()
            except psycopg.OperationalError:
                self._forget_connection()
                if not again:
                    raise
        raise AssertionError("not reached")

    def _forget_connection(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def rows(self) -> str:
        """What the workers have written of themselves, or why that cannot be read; for whoever looks for a failure."""
        try:
            with (
                psycopg.connect(self.dsn, connect_timeout=10) as connection,
                connection.cursor(row_factory=dict_row) as cursor,
            ):
                tables = ("lynx_kafka_worker", "lynx_kafka_tenure")
                return "\n".join(str(row) for table in tables for row in cursor.execute(f"SELECT * FROM {table}"))
        except psycopg.Error as error:
            return repr(error)

    def abort(self) -> None:
        """End what runs, each process saying where its threads are."""
        for program in self.programs:
            if program.poll() is None:
                program.end(signal.SIGABRT, seconds=5)

    def committed(self, topic: str, group: str | None = None) -> dict[int, int]:
        """The committed offset of every partition of a topic; 0 where nothing was committed."""
        group = group or self.group
        # One for each group, because waiting asks five times a second.
        if group not in self._asking:
            self._asking[group] = Consumer({"bootstrap.servers": self.cluster.address, "group.id": group})
        consumer = self._asking[group]
        if topic not in self._partitions:
            self._partitions[topic] = list(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
        places = [TopicPartition(topic, number) for number in self._partitions[topic]]
        answers = self.ask(lambda: consumer.committed(places, timeout=10))
        for answer in answers:
            assert answer.error is None, f"The committed offset of {answer} cannot be read: {answer.error}"
        return {answer.partition: max(0, answer.offset) for answer in answers}

    @staticmethod
    def ask(question: Callable[[], list[TopicPartition]]) -> list[TopicPartition]:
        """Ask again while the group's coordinator is being found, which takes a moment after a broker's start."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return question()
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def all_committed(self, topic: str, group: str | None = None) -> bool:
        """Whether the group has committed everything that the ledger holds for a topic."""
        committed = self.committed(topic, group)
        return all(line.offset < committed[line.partition] for line in self.ledger if line.topic == topic)

    def assert_ledger(self, topic: str, group: str | None = None, *, settled: bool = False, once: bool = False) -> None:
        """Fail unless every record sent is handled, dead-lettered or still uncommitted.

        `settled`: nothing may be uncommitted. `once`: nothing may be handled twice, or handled and dead-lettered.
        """
        handled = Counter(effect.place for effect in self.effects(topic, group))
        lettered = Counter(
            (row["topic"], row["partition"], row["offset"])
            for row in self.letters(topic)
            if row["group_id"] == (group or self.group)
        )
        committed = self.committed(topic, group)
        ledger = [line for line in self.ledger if line.topic == topic]
        assert ledger, f"Nothing was sent to {topic}: this ledger proves nothing."
        places = {line.place for line in ledger}
        lost = [
            place
            for place in sorted(places)
            if not handled[place] and not lettered[place] and place[2] < committed[place[1]]
        ]
        open_ = [place for place in sorted(places) if place[2] >= committed[place[1]]]
        strange = sorted((set(handled) | set(lettered)) - places)
        repeated = [place for place in sorted(places) if handled[place] + lettered[place] > 1]
        books = (
            f"{len(ledger)} sent, {len(handled)} handled, {len(lettered)} dead-lettered, {len(open_)} uncommitted,"
            f" {len(repeated)} more than once"
        )
        assert not lost, f"{len(lost)} lost, the first {lost[:5]}: {books}."
        assert not strange, f"{len(strange)} that nobody sent, the first {strange[:5]}: {books}."
        assert not (settled and open_), f"Not settled, the first {open_[:5]}: {books}."
        assert not (once and repeated), f"More than once, the first {repeated[:5]}: {books}."


def _bytes(value: Any) -> bytes | None:
    match value:
        case None | bytes():
            return value
        case str():
            return value.encode()
        case _:
            return json.dumps(value).encode()
