"""Messages that run together, when a database, a worker or most of them fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.db import connections, transaction

from django_kafka.consuming.breaker import State
from django_kafka.consuming.crew import Crew
from django_kafka.exceptions import BatchFailed
from django_kafka.handlers import kafka_handler
from django_kafka.messages import Message
from tests.consuming import NAME, Workplace
from tests.databases import added, of_postgresql
from tests.servers import PostgreSQL
from tests.servers.processes import wait_until
from tests.test_circuits import QUICK
from tests.test_deaths import FAST, history, known
from tests.test_handling import effects, leave_effect
from tests.test_lists import Lists
from tests.test_together import handled

BOTH = pytest.mark.parametrize("kind", ["one by one", "lists"])
"""Messages that share a transaction, and those that share a call as well."""


class Shared:
    """Handles messages in shared transactions, or lists of them; keeps which ones were together."""

    __module__ = "tests.test_together_in_trouble"

    def __init__(self, kind: str, then: Callable[[Message], Any]) -> None:
        self.__qualname__ = f"Shared-{id(self)}"
        self.kind = kind
        self.then = then
        self.together: list[list[int]] = []
        self._ours: object = None

    def __call__(self, given: Any) -> None:
        messages = given if self.kind == "lists" else [given]
        # Django makes a list of hooks for each transaction; the first of them says where that began.
        hooks = transaction.get_connection().run_on_commit
        begun = hooks[0][1] if hooks else None
        if self.kind == "lists" or begun is None or begun is not self._ours:
            self.together.append([])
        self._ours = begun
        for message in messages:
            self.together[-1].append(message.offset)
            leave_effect(message)
            self.then(message)

    def consume(self, workplace: Workplace, **options: Any) -> None:
        if self.kind == "lists":
            kafka_handler(topics=workplace.topic, consumer=NAME, batch=True)(self)
        workplace.consume(self, **{"transaction": "batch", "enable_auto_commit": False, **options})


@pytest.fixture
def ledger(workplace: Workplace, postgresql: PostgreSQL, django_db_blocker: Any) -> Iterator[Ledger]:
    # After the workplace, whose tests may use only the databases that were there before.
    made = Ledger(postgresql, workplace.group)
    settings = of_postgresql(postgresql)
    try:
        with added("ledger", django_db_blocker, **{**settings, "USER": made.role}) as database:
            made.database = database
            yield made
    finally:
        made.close()


class Ledger:
    """Tables of PostgreSQL, a role of handlers that may use them, and a connection of somebody else."""

    def __init__(self, server: PostgreSQL, name: str) -> None:
        self.role = name.replace("-", "_")
        self.database: Any = None
        self._address = {"host": "127.0.0.1", "port": server.port, "user": server.user, "dbname": "postgres"}
        self.other = psycopg.connect(**self._address)
        with self.direct() as direct:
            direct.execute("DROP TABLE IF EXISTS places, runs")
            direct.execute("CREATE TABLE runs (number int)")
            direct.execute("CREATE TABLE places (id int PRIMARY KEY, n int DEFAULT 0)")
            direct.execute("INSERT INTO places VALUES (1), (2)")
            direct.execute(f"CREATE ROLE {self.role} LOGIN")
            direct.execute(f"GRANT ALL ON places, runs TO {self.role}")

    @contextmanager
    def direct(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(**self._address, autocommit=True) as found:
            yield found

    def execute(self, sql: str, *parameters: Any) -> Any:
        """Run a statement as a handler does."""
        with connections["ledger"].cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone() if cursor.description else None

    def runs(self) -> list[int]:
        with self.direct() as direct:
            return [number for (number,) in direct.execute("SELECT number FROM runs ORDER BY number").fetchall()]

    def go_down(self) -> None:
        """End the connections of the role, and take no more."""
        with self.direct() as direct:
            direct.execute(f"ALTER ROLE {self.role} CONNECTION LIMIT 0")
        self.end_connections()

    def end_connections(self) -> None:
        with self.direct() as direct:
            direct.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [self.role]
            )

    def come_back(self) -> None:
        with self.direct() as direct:
            direct.execute(f"ALTER ROLE {self.role} CONNECTION LIMIT -1")

    def close(self) -> None:
        self.other.close()
        self.end_connections()
        with self.direct() as direct:
            direct.execute("DROP TABLE places, runs")
            direct.execute(f"DROP ROLE {self.role}")

    def conflict(self, kind: str) -> None:
        """Meet a conflict with somebody else, in the transaction of the calling handler; it is gone afterwards."""
        other = self.other
        if kind == "serialization failure":
            # The transaction has read already.
            other.execute("UPDATE places SET n = n + 1 WHERE id = 1")
            other.commit()
            self.execute("UPDATE places SET n = n + 1 WHERE id = 1")
            return
        other.execute("UPDATE places SET n = n + 1 WHERE id = 2")
        try:
            if kind == "lock timeout":
                self.execute("SET LOCAL lock_timeout = '20ms'")
                self.execute("UPDATE places SET n = n + 1 WHERE id = 2")
                return
            # Who waits for less before it looks is the one that gives way.
            self.execute("UPDATE places SET n = n + 1 WHERE id = 1")
            (mine,) = self.execute("SELECT pg_backend_pid()")
            thread = threading.Thread(target=other.execute, args=["UPDATE places SET n = n + 1 WHERE id = 1"])
            thread.start()
            with self.direct() as direct:
                wait_until(
                    lambda: direct.execute(
                        "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))", [mine]
                    ).fetchone()
                )
            try:
                self.execute("UPDATE places SET n = n + 1 WHERE id = 2")
            finally:
                # Ours gives way: their statement goes on when it is rolled back, maybe to a savepoint only.
                threading.Thread(target=lambda: (thread.join(), other.rollback())).start()
        finally:
            if kind == "lock timeout":
                other.rollback()


class TestOnPostgreSQL:
    @pytest.mark.parametrize("kind", ["lock timeout", "serialization failure", "deadlock"])
    @pytest.mark.parametrize("failing", [0, 5])
    def test_a_conflict_is_met_again_at_once_and_is_nobodys_failure(
        self, workplace: Workplace, ledger: Ledger, kind: str, failing: int
    ) -> None:
        met: list[int] = []
        attempts: set[int] = set()
        with ledger.direct() as direct:
            direct.execute(f"ALTER ROLE {ledger.role} SET default_transaction_isolation = 'repeatable read'")
            direct.execute(f"ALTER ROLE {ledger.role} SET deadlock_timeout = '20ms'")

        def handle(message: Message) -> None:
            attempts.add(message.attempt)
            ledger.execute("INSERT INTO runs VALUES (%s)", message.value)
            if failing and message.value < 20 and message.value % failing == 0:
                raise ValueError
            if message.value == 23 and not met:
                met.append(1)
                ledger.execute("SELECT n FROM places")
                ledger.conflict(kind)

        workplace.consume(named(handle), database="ledger", transaction="batch", enable_auto_commit=False)
        workplace.send(range(30))
        with workplace.worker() as worker:
            handled(workplace, 30)
        assert worker.tally.contentions == 1
        bad = list(range(0, 20, failing)) if failing else []
        assert [letter.offset for letter in workplace.letters()] == bad
        assert ledger.runs() == [number for number in range(30) if number not in bad]
        assert attempts == {1}
        assert met

    def test_a_database_that_goes_down_in_the_middle_is_waited_for(self, workplace: Workplace, ledger: Ledger) -> None:
        gone: list[int] = []

        def handle(message: Message) -> None:
            ledger.execute("INSERT INTO runs VALUES (%s)", message.value)
            if message.value == 5 and not gone:
                gone.append(1)
                ledger.go_down()
                ledger.execute("SELECT 1")

        workplace.consume(named(handle), database="ledger", transaction="batch", enable_auto_commit=False)
        workplace.send(range(9))
        with workplace.worker() as worker:
            before = worker.tally.waits
            wait_until(lambda: worker.tally.waits >= before + 2, 20, "it does not wait")
            assert len(ledger.runs()) < 5
            ledger.come_back()
            handled(workplace, 9)
        assert ledger.runs() == list(range(9))
        assert not workplace.letters()

    def test_a_connection_that_ends_when_a_savepoint_was_rolled_back_is_no_reason_to_go_round_in_circles(
        self, workplace: Workplace, ledger: Ledger
    ) -> None:
        armed: list[bool] = []
        ended: list[bool] = []

        def end_it(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
            result = execute(sql, *rest)
            if armed and sql.startswith("RELEASE SAVEPOINT"):
                armed.clear()
                ended.append(True)
                ledger.end_connections()
            return result

        def handle(message: Message) -> None:
            ledger.execute("INSERT INTO runs VALUES (%s)", message.value)
            if message.value < 20 and message.value % 5 == 0:
                raise ValueError
            if message.value == 23:
                if not ended:
                    connections["ledger"].execute_wrappers.append(end_it)
                    armed.append(True)
                raise ValueError

        workplace.consume(named(handle), database="ledger", transaction="batch", enable_auto_commit=False)
        workplace.send(range(30))
        with workplace.worker():
            handled(workplace, 30)
        bad = [0, 5, 10, 15, 23]
        assert ended
        assert [letter.offset for letter in workplace.letters()] == bad
        assert ledger.runs() == [number for number in range(30) if number not in bad]

    def test_a_worker_can_be_stopped_while_the_database_is_down(self, workplace: Workplace, ledger: Ledger) -> None:
        down = threading.Event()

        def handle(message: Message) -> None:
            ledger.execute("INSERT INTO runs VALUES (%s)", message.value)
            if message.value == 5 and not down.is_set():
                ledger.go_down()
                down.set()
                ledger.execute("SELECT 1")

        workplace.consume(named(handle), database="ledger", transaction="batch", enable_auto_commit=False)
        workplace.send(range(9))
        worker = workplace.start()
        assert down.wait(20)
        workplace.stop(worker)
        assert workplace.committed() == {0: len(ledger.runs())}
        assert not workplace.letters()


def named(handle: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a handler of a test under a path of its own."""
    handle.__module__, handle.__qualname__ = __name__, f"handle-{id(handle)}"
    return handle


@BOTH
def test_probes_of_a_circuit_are_no_more_than_it_allows(workplace: Workplace, kind: str) -> None:
    broken = threading.Event()
    broken.set()

    def fail(_message: Message) -> None:
        if broken.is_set():
            raise ValueError("broken for everybody")

    seen = Shared(kind, fail)
    # A cooldown that no busy machine takes for a probe that hangs.
    seen.consume(workplace, circuit_breaker={"window": 10, "cooldown": "700ms"})
    workplace.send(range(60))
    with workplace.worker() as worker:
        wait_until(lambda: worker.circuit.standing().state is State.OPEN)
        stale = len(seen.together)
        wait_until(lambda: len(seen.together) > stale)
        broken.clear()
        handled(workplace, 60)
        wait_until(lambda: worker.circuit.standing().state is State.CLOSED)
    assert [letter.offset for letter in workplace.letters()] == [0, 1, 2, 3]
    assert effects() == list(range(4, 60))
    good = [len(some) for some in seen.together if some[0] > 4]
    assert {len(some) for some in seen.together[stale:] if some[0] == 4} == {1}
    assert good[:3] == [2, 4, 8]
    assert max(good) > 8, "Then it is closed."


def test_what_a_list_named_before_its_circuit_opened_is_tried_anew(workplace: Workplace) -> None:
    broken = threading.Event()
    broken.set()

    def name_all(messages: list[Message]) -> None:
        if broken.is_set():
            raise BatchFailed({message: ValueError("broken for everybody") for message in messages})

    seen = Lists(name_all)
    kafka_handler(topics=workplace.topic, consumer=NAME, batch=True)(seen)
    workplace.consume(seen, circuit_breaker=QUICK, enable_auto_commit=False)
    workplace.send(range(60))
    with workplace.worker() as worker:
        wait_until(lambda: worker.circuit.standing().state is not State.CLOSED)
        broken.clear()
        failures = worker.tally.failures.total()
        handled(workplace, 60)
        assert worker.tally.failures.total() - failures <= 1, "One may have run just then."
    assert [letter.offset for letter in workplace.letters()] == [0, 1, 2, 3]
    assert effects() == list(range(4, 60))


@pytest.mark.django_db(transaction=True)
class TestAfterDeaths:
    @BOTH
    def test_what_runs_together_is_marked_together(self, workplace: Workplace, kind: str) -> None:
        marks: list[tuple[int, int, int]] = []

        def note(message: Message) -> None:
            now = known()
            marks.append((message.offset, now["first"], now["last"]))

        seen = Shared(kind, note)
        seen.consume(workplace, kafka=FAST)
        workplace.send(range(40))
        history(workplace)
        Crew([NAME], until_empty=True).run()
        assert effects() == list(range(40))
        assert all(first <= offset <= last for offset, first, last in marks)
        assert seen.together[0] == [0]
        assert max(map(len, seen.together)) > 1

    @BOTH
    def test_suspects_run_in_transactions_of_their_own(self, workplace: Workplace, kind: str) -> None:
        marks: dict[int, Any] = {}
        seen = Shared(kind, lambda message: marks.update({message.offset: known()["alone"]}))
        seen.consume(workplace, kafka=FAST)
        workplace.send(range(40))
        history(workplace, deaths=1, first=10, last=14)
        Crew([NAME], until_empty=True).run()
        assert effects() == list(range(40))
        assert {offset: mark for offset, mark in marks.items() if mark is not None} == {n: n for n in range(10, 15)}
        assert [some for some in seen.together if set(some) & set(range(10, 15))] == [[n] for n in range(10, 15)]
        assert max(map(len, seen.together)) > 10, "The others run together."

    @BOTH
    def test_the_guilty_one_is_not_run_and_the_others_are(self, workplace: Workplace, kind: str) -> None:
        seen = Shared(kind, lambda _message: None)
        seen.consume(workplace, kafka=FAST)
        workplace.send(range(40), timestamp=1_700_000_000_000)
        history(workplace, deaths=2, first=10, last=14, alone=12, timestamp_ms=1_700_000_000_000)
        Crew([NAME], until_empty=True).run()
        (letter,) = workplace.letters()
        assert (letter.offset, letter.error_type) == (12, "django_kafka.exceptions.WorkerKilled")
        assert effects() == [number for number in range(40) if number != 12]
        assert not any(12 in some for some in seen.together)
