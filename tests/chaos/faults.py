"""Carries the faults of a plan out: a thread for each subject, so that one strikes while another has not passed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import psycopg

from tests.servers.processes import Broken, wait_until

from .plan import CLOCK_FILE, SLOW_FILE, Fault, Kind, Plan, Subject
from .workers import Workers
from .world import NODES, World

REFUSE = """
    CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
    END $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON lynx_kafka_deadletter FOR EACH ROW EXECUTE FUNCTION refuse()
"""
ACCEPT = "DROP TRIGGER IF EXISTS full_disk ON lynx_kafka_deadletter"
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'chaos' AND pid <> pg_backend_pid()"
TAKE = "UPDATE lynx_kafka_claim SET epoch = epoch + 1, worker = 'stranger:0' WHERE partition %% 2 = %s"
"""As another worker does that believes to own partitions: from then on those who had them can write nothing."""

Say = Callable[[str], None]


class Faults:
    """Everything that is done to a world."""

    def __init__(self, plan: Plan, world: World, workers: Workers, say: Say) -> None:
        self.plan = plan
        self.world = world
        self.workers = workers
        self.done: list[Fault] = []
        self.errors: list[BaseException] = []
        self.steps: list[tuple[float, float]] = []
        self._say = say
        self._over = threading.Event()
        self._began = 0.0
        self._threads = [
            threading.Thread(target=self._strike, args=(subject,), name=str(subject), daemon=True)
            for subject in Subject
        ]
        self._ways: dict[Kind, Callable[[Fault], None]] = {
            Kind.KILL: self._kill_worker,
            Kind.STOP: self._stop_worker,
            Kind.STOP_TWICE: self._stop_worker_twice,
            Kind.FREEZE: self._freeze_worker,
            Kind.STORM: self._storm,
            Kind.KILL_BROKER: lambda fault: self._kill_broker(1 + fault.number % NODES, fault.seconds),
            Kind.RESTART_BROKER: self._restart_broker,
            Kind.KILL_CONTROLLER: self._kill_controller,
            Kind.RESTART_DATABASE: self._restart_database,
            Kind.CRASH_DATABASE: self._crash_database,
            Kind.CUT_CONNECTIONS: lambda fault: world.execute(CUT),
            Kind.LOCK_TABLE: self._lock_table,
            Kind.FULL_DISK: self._fill_disk,
            Kind.SLOW_HANDLER: self._be_slow,
            Kind.STEP_CLOCK: self._step_clock,
            Kind.TAKE_CLAIMS: lambda fault: world.execute(TAKE % (fault.number % 2)),
        }

    def start(self) -> None:
        """Begin; the times of the plan count from now."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def end(self, seconds: float = 300) -> None:
        """Wait until the faults that have begun are over. No new one begins."""
        self._over.set()
        for thread in self._threads:
            thread.join(seconds)
            if thread.is_alive():
                raise AssertionError(f"The fault of {thread.name} was not over after {seconds} s.")
        if self.errors:
            raise self.errors[0]

    @property
    def broken(self) -> bool:
        """Whether a fault could not be carried out."""
        return bool(self.errors)

    def _strike(self, subject: Subject) -> None:
        try:
            for fault in self.plan.of(subject):
                if self._over.wait(max(0.0, self._began + fault.at - time.monotonic())):
                    return
                self._say(str(fault))
                self._ways[fault.kind](fault)
                self.done.append(fault)
        except BaseException as error:  # noqa: BLE001  # raised by `end`, in the main thread
            self.errors.append(error)

    # --- workers ------------------------------------------------------------------------------------------------------

    def _worker(self, fault: Fault) -> int:
        """Return which worker is struck, when it is at work; some are struck while they start."""
        number = 1 + fault.number % len(self.workers)
        if fault.number % 4:
            self.workers.await_start(number)
        return number

    def _kill_worker(self, fault: Fault) -> None:
        number = self._worker(fault)
        self.workers.kill(number)
        time.sleep(fault.seconds)
        self.workers.start(number)

    def _stop_worker(self, fault: Fault) -> None:
        number = self._worker(fault)
        self.workers.stop(number)
        time.sleep(fault.seconds)
        self.workers.start(number)

    def _stop_worker_twice(self, fault: Fault) -> None:
        number = self._worker(fault)
        self.workers.stop(number, twice=fault.seconds)
        self.workers.start(number)

    def _freeze_worker(self, fault: Fault) -> None:
        self.workers.freeze(self._worker(fault), fault.seconds)

    def _storm(self, fault: Fault) -> None:
        chance = random.Random(f"{self.plan.seed} {fault.at}")
        count = 1 + fault.number // 2
        self.workers.visit([fault.seconds / count * chance.uniform(0.5, 1.0) for _ in range(count)])

    # --- brokers ------------------------------------------------------------------------------------------------------

    def _kill_broker(self, node: int, seconds: float) -> None:
        try:
            self.world.cluster.kill(node)
            time.sleep(seconds)
        finally:
            self._bring_back(node)
        self._say(f"broker {node} is back")

    def _restart_broker(self, fault: Fault) -> None:
        node = 1 + fault.number % NODES
        try:
            self.world.cluster.stop(node)
            time.sleep(fault.seconds)
        finally:
            self._bring_back(node)
        self._say(f"broker {node} is back")

    def _bring_back(self, node: int) -> None:
        """Start a broker, and be patient: the machine is busy with all this."""
        try:
            self.world.cluster.start(node)
        except Broken:
            if not self.world.cluster.nodes[node - 1].running:
                raise
            wait_until(lambda: self.world.knows(node), 240, f"broker {node} did not come back", every=0.5)

    def _kill_controller(self, fault: Fault) -> None:
        node = self.world.controller() or 1
        self._kill_broker(node, fault.seconds)
        self._say(f"the controller was {node} and is {self.world.controller()}")

    # --- database -----------------------------------------------------------------------------------------------------

    def _restart_database(self, fault: Fault) -> None:
        try:
            self.world.server.stop()
            time.sleep(fault.seconds)
        finally:
            self.world.server.start()

    def _crash_database(self, fault: Fault) -> None:
        try:
            self.world.server.kill()
            time.sleep(fault.seconds)
        finally:
            self.world.server.start()

    def _lock_table(self, fault: Fault) -> None:
        with psycopg.connect(self.world.project.dsn, connect_timeout=5) as connection:
            connection.execute("LOCK TABLE chaos_effect IN EXCLUSIVE MODE")
            time.sleep(fault.seconds)

    def _fill_disk(self, fault: Fault) -> None:
        try:
            self.world.execute(REFUSE)
            time.sleep(fault.seconds)
        finally:
            self.world.execute(ACCEPT)

    # --- handlers and clocks ------------------------------------------------------------------------------------------

    def _be_slow(self, fault: Fault) -> None:
        asked = self.world.control / SLOW_FILE
        written = asked.with_suffix(".new")
        written.write_text(str(fault.seconds))
        written.rename(asked)
        self._over.wait(fault.seconds)
        asked.unlink(missing_ok=True)

    def _step_clock(self, fault: Fault) -> None:
        clock = self.world.control / CLOCK_FILE
        written = clock.with_suffix(".new")
        written.write_text(str(fault.seconds))
        self.steps.append((time.time(), fault.seconds))
        written.rename(clock)
