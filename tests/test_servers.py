"""The servers' own small logic, as far as it can break: see tests/servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import running
from tests.servers import PostgreSQL, Redis, Unavailable, shared
from tests.servers import kafka as kafka_module
from tests.servers import postgresql as postgresql_module
from tests.servers.kafka import Kafka
from tests.servers.processes import PORTS, Broken, Program, found, free_port, run, wait_ready, wait_until

ROOT = Path(__file__).resolve().parents[1]


def test_ports_are_free_different_and_out_of_reach_of_outgoing_connections() -> None:
    ports = [free_port() for _ in range(20)]

    assert len(set(ports)) == 20
    assert all(port in PORTS for port in ports)
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(Unavailable, match=r"no-such-program is not installed \(Debian package: no-such-package\)"):
        found("no-such-program", "no-such-package")


class Missing(Redis):
    """A server whose program nobody installed."""

    def start(self) -> None:
        raise Unavailable("missing-server is not installed (Debian package: missing).")


def test_a_missing_server_skips_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match="Redis is not available: missing-server is not installed"):
        next(running(Missing()))


def test_a_missing_server_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match="Redis is needed here: missing-server is not installed"):
        next(running(Missing()))


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    program = Program.start(["sh", "-c", "echo no room left; exit 3"], log=tmp_path / "log")

    with pytest.raises(Broken, match=r"(?s)Thing ended with code 3 before it answered.*no room left"):
        wait_ready(program, lambda: False, name="Thing")


def test_a_preparing_command_that_fails_shows_its_output(tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"(?s)Preparing ended with code 4.*bad luck"):
        run(["sh", "-c", "echo bad luck; exit 4"], log=tmp_path / "log", name="Preparing")


def test_a_program_that_ignores_a_polite_signal_is_ended_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = Program.start(["sh", "-c", "trap '' TERM; sleep 100 & echo child $!; wait; sleep 100"], log=log)
    wait_until(lambda: "child" in program.output())
    child = int(program.output().split()[1])

    program.end(signal.SIGTERM, seconds=0.2)

    assert program.returncode == -signal.SIGKILL
    wait_until(lambda: not alive(child), message="The child of the program still runs")


COUNTING = """
import itertools, sys, threading
from pathlib import Path

def count(file):
    for number in itertools.count():
        file.write_text(str(number))

for name in sys.argv[1:]:
    threading.Thread(target=count, args=[Path(name)]).start()
"""


def test_no_thread_of_a_frozen_program_goes_on(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(8)]
    program = Program.start([sys.executable, "-c", COUNTING, *files], log=tmp_path / "log")
    try:
        wait_until(lambda: all(file.exists() for file in files))
        for _ in range(20):
            program.freeze()
            before = [file.stat().st_mtime_ns for file in files]
            # Whatever was still running would write now.
            subprocess.run([sys.executable, "-c", ""], check=True)
            assert [file.stat().st_mtime_ns for file in files] == before
            program.send_signal(signal.SIGCONT)
    finally:
        program.end()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_does_not_outlive_a_run_that_was_killed(tmp_path: Path, number: signal.Signals) -> None:
    # Started from a thread that ends at once: the leash must be held by the process.
    script = """
        import sys, threading, time
        from pathlib import Path
        from tests.servers.processes import Program
        def start():
            program = Program.start(["sleep", "100"], log=Path(sys.argv[1]) / "log")
            Path(sys.argv[1], "pid").write_text(f"{program.pid}\\n")
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        time.sleep(100)
    """
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], cwd=ROOT)
    pid_file = tmp_path / "pid"
    try:
        wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        pid = int(pid_file.read_text())
        assert alive(pid)
    finally:
        run.send_signal(number)
        run.wait(30)

    wait_until(lambda: not alive(pid), message="The program outlived the run that started it")


def test_the_newest_postgresql_is_chosen_by_number_not_by_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("9.6", "15", "17"):
        directory = tmp_path / version / "bin"
        directory.mkdir(parents=True)
        (directory / "initdb").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgresql_module, "KEPT", tmp_path)

    assert postgresql_module.binaries() == tmp_path / "17" / "bin"


def test_without_postgresql_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgresql_module, "KEPT", tmp_path)

    with pytest.raises(Unavailable, match="Debian package: postgresql"):
        PostgreSQL().start()


def test_the_jars_of_an_earlier_run_need_no_maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="mvn is not installed"):
        kafka_module.jars()

    ready = tmp_path / "django-lynx-kafka" / f"kafka-{kafka_module.VERSION}"
    ready.mkdir(parents=True)

    assert kafka_module.jars() == ready


def test_three_nodes_know_each_other_and_copy_what_one_node_cannot(tmp_path: Path) -> None:
    cluster, single = Kafka(nodes=3), Kafka()

    many, one = (each._properties(each.nodes[0], tmp_path) for each in (cluster, single))

    assert many["controller.quorum.voters"].count("@") == 3
    assert cluster.address.count(",") == 2
    assert (many["default.replication.factor"], many["min.insync.replicas"]) == ("3", "2")
    assert (one["default.replication.factor"], one["min.insync.replicas"]) == ("1", "1")


def test_postgresql_keeps_what_was_committed_through_a_crash(postgresql: PostgreSQL) -> None:
    with psycopg.connect(postgresql.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        connection.execute("INSERT INTO kept VALUES (7)")

    postgresql.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgresql.dsn, connect_timeout=2)
    postgresql.start()

    with psycopg.connect(postgresql.dsn, autocommit=True) as connection:
        assert connection.execute("SELECT id FROM kept").fetchall() == [(7,)]
        connection.execute("DROP TABLE kept")


def test_postgresql_does_not_run_as_root(postgresql: PostgreSQL) -> None:
    with psycopg.connect(postgresql.dsn) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        # Before the connection is closed, which ends the process.
        assert Path(f"/proc/{row[0]}").stat().st_uid != 0


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_port_that_was_given_away_is_not_given_away_by_another_process() -> None:
    port = free_port()
    code = f"from tests.servers.processes import reserve; print(reserve({port}), reserve({port + 20000}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "True"]


# --- one server for several test processes ----------------------------------------------------------------------------

SHARING = """
import sys, time
from pathlib import Path
from tests.servers import shared
from tests.servers.kafka import Kafka

directory, name = Path(sys.argv[1]), sys.argv[2]

class Pretended(Kafka):
    def close(self):
        (directory / "stopped").write_text(name)

def start():
    made = Pretended()
    with (directory / "started").open("a") as file:
        file.write(f"{name}\\n")
    return made

with shared.lent(directory, start, shared.Lent) as found:
    print(found.port, flush=True)
    (directory / f"{name} uses it").touch()
    while not (directory / f"{name} may go").exists():
        time.sleep(0.01)
"""


class Sharing:
    """Processes that use one server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.programs: dict[str, Program] = {}

    def begin(self, name: str) -> None:
        command = [sys.executable, "-c", SHARING, self.directory, name]
        self.programs[name] = Program.start(command, log=self.directory / f"{name}.log", cwd=ROOT)
        wait_until(lambda: (self.directory / f"{name} uses it").exists(), message=self.programs[name].output())

    def end(self, name: str) -> None:
        (self.directory / f"{name} may go").touch()

    def text(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Sharing]:
    made = Sharing(tmp_path)
    yield made
    for program in made.programs.values():
        program.end()


def test_test_processes_of_one_run_share_a_server_that_outlives_whoever_still_uses_it(sharing: Sharing) -> None:
    for name in ("first", "second", "third"):
        sharing.begin(name)
    assert sharing.text("started") == "first\n"
    assert len({sharing.programs[name].output() for name in sharing.programs}) == 1
    sharing.end("first")
    sharing.end("second")
    assert sharing.programs["second"].wait(20) == 0
    assert (sharing.programs["first"].poll(), sharing.text("stopped")) == (None, "")
    sharing.end("third")
    assert [sharing.programs[name].wait(20) for name in ("third", "first")] == [0, 0]
    assert sharing.text("stopped") == "first"
    sharing.begin("late")
    assert sharing.text("started") == "first\nlate\n"


def test_who_was_killed_is_waited_for_by_nobody_and_its_server_is_started_again(sharing: Sharing) -> None:
    for name in ("first", "second"):
        sharing.begin(name)
    sharing.programs["second"].kill()
    sharing.end("first")
    assert sharing.programs["first"].wait(20) == 0
    assert sharing.text("stopped") == "first"
    sharing.begin("third")
    sharing.programs["third"].kill()
    sharing.programs["third"].wait(20)
    sharing.begin("fourth")
    assert sharing.text("started") == "first\nthird\nfourth\n"


@pytest.mark.parametrize(
    ("kind", "advice"), [(shared.Lent, "own_brokers"), (shared.LentRegistry, "what stands before yours")]
)
def test_a_server_that_others_use_is_not_stopped(tmp_path: Path, kind: Any, advice: str) -> None:
    lent = kind(1, tmp_path)
    lent.start()
    for stop in (lent.stop, lent.kill, lent.restart):
        with pytest.raises(AssertionError, match=advice):
            stop()
    lent.close()
    assert tmp_path.exists()
