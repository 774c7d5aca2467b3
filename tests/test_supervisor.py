"""The supervisor, with small programs in the place of workers, each of which is a real process."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from django_kafka import conf
from django_kafka.consuming import leash, supervisor
from django_kafka.consuming.supervisor import Supervisor, layout
from django_kafka.exceptions import ConfigurationError
from tests.consuming import Seen, Workplace
from tests.servers.processes import wait_until
from tests.test_servers import alive

ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import os, pathlib, signal, sys, time
sys.path.insert(0, {root!r})
from django_kafka.consuming import leash
number = leash.take_number()
here = pathlib.Path({here!r})
with (here / f"{{number}}.pids").open("a") as file:
    file.write(f"{{os.getpid()}}\\n")
before = len((here / f"{{number}}.pids").read_text().splitlines()) - 1
"""
WAITS = """
said = os.read(0, 1)
(here / f"{number}.end").write_bytes(said or b"gone")
"""


class Wish:
    """A wish that a test makes."""

    def __init__(self) -> None:
        self.at_once = False
        self._event = threading.Event()
        self.set, self.is_set, self.wait = self._event.set, self._event.is_set, self._event.wait


class Scene:
    """A supervisor that runs in a thread, and what its processes leave in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.wish = Wish()
        self.thread: threading.Thread | None = None

    def command(self, code: str) -> list[str]:
        start = CHILD.format(root=str(ROOT), here=str(self.directory))
        return [sys.executable, "-c", start + textwrap.dedent(code)]

    def run(self, code: str, count: int = 2, **options: Any) -> Supervisor:
        made = Supervisor(self.command(code), count, **options)
        self.thread = threading.Thread(target=made.run, args=[self.wish])
        self.thread.start()
        return made

    def pids(self, number: int) -> list[int]:
        file = self.directory / f"{number}.pids"
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def end(self, number: int) -> bytes:
        file = self.directory / f"{number}.end"
        return file.read_bytes() if file.exists() else b""

    def ended(self, seconds: float = 30) -> None:
        assert self.thread is not None
        self.thread.join(seconds)
        assert not self.thread.is_alive()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.wish.at_once = True
    scene.wish.set()
    if scene.thread is not None:
        scene.thread.join(30)


def test_each_process_has_its_number_and_all_finish_when_told(scene: Scene) -> None:
    chief = scene.run(WAITS, count=3)
    wait_until(lambda: all(scene.pids(number) for number in (1, 2, 3)))
    scene.wish.set()
    scene.ended()
    assert [scene.end(number) for number in (1, 2, 3)] == [leash.FINISH] * 3
    assert chief.reason is None


def test_one_that_dies_is_started_again_and_the_others_go_on(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    chief = scene.run(WAITS)
    wait_until(lambda: scene.pids(1) and scene.pids(2))
    os.kill(scene.pids(2)[0], signal.SIGKILL)
    wait_until(lambda: len(scene.pids(2)) == 2)
    scene.wish.set()
    scene.ended()
    assert len(scene.pids(1)) == 1
    assert chief.reason is None, "What was made good is no failure."
    (line,) = [record.getMessage() for record in caplog.records if "is started again" in record.getMessage()]
    assert line.startswith("process=2 was killed by SIGKILL after ")
    assert line.endswith("it is started again in 1 s")


def test_pauses_grow_up_to_a_bound_and_begin_anew_after_a_long_life(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    child = supervisor._Child(1)
    pauses = []
    for _ in range(8):
        child.began = now
        now += 5
        pauses.append(child.next_pause())
        assert child.start_at == now + pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    child.began = now
    now += supervisor.LIVED
    assert child.next_pause() == 1


def test_one_that_dies_at_once_again_and_again_is_not_started_in_a_tight_loop(scene: Scene) -> None:
    began = time.monotonic()
    scene.run("sys.exit(3)", count=1)
    wait_until(lambda: len(scene.pids(1)) == 3)
    assert time.monotonic() - began >= 3, "after 1 s, and after 2 s more"
    scene.wish.set()
    scene.ended(3.5)  # its next pause is one of 4 s
    assert len(scene.pids(1)) == 3, "One that waits to be started is not started any more."


def test_one_that_cannot_work_as_configured_ends_the_whole(scene: Scene) -> None:
    chief = scene.run(
        f"""
        if number == 2:
            sys.exit({supervisor.EXIT_CONFIGURATION})
        {textwrap.indent(WAITS, " " * 8).strip()}
        """
    )
    scene.ended()
    assert chief.reason == "Process 2 cannot work as it is configured; its reason is above."
    assert scene.end(1) == leash.FINISH
    assert len(scene.pids(2)) == 1


def test_one_that_fails_while_it_finishes_is_named(scene: Scene) -> None:
    chief = scene.run("os.read(0, 1); sys.exit(1 if number == 2 else 0)")
    wait_until(lambda: scene.pids(1) and scene.pids(2))
    scene.wish.set()
    scene.ended()
    assert chief.reason == "Process 2 ended with code 1 while it was to finish."


def test_those_that_do_not_finish_are_killed_when_it_is_to_end_at_once(scene: Scene) -> None:
    scene.run("time.sleep(60)")
    wait_until(lambda: scene.pids(1) and scene.pids(2))
    scene.wish.set()
    time.sleep(0.3)
    assert alive(scene.pids(1)[0])
    scene.wish.at_once = True
    scene.ended()
    assert not alive(scene.pids(1)[0])
    assert not alive(scene.pids(2)[0])


def test_until_empty_waits_for_all_and_starts_only_those_again_that_failed(scene: Scene) -> None:
    chief = scene.run("sys.exit(1 if number == 2 and not before else 0)", until_empty=True)
    scene.ended()
    assert (len(scene.pids(1)), len(scene.pids(2))) == (1, 2)
    assert chief.reason is None


def test_when_all_are_done_the_first_looks_once_more_at_what_the_others_left(scene: Scene) -> None:
    scene.run("pass", count=3, until_empty=True, again=True)
    scene.ended()
    assert [len(scene.pids(number)) for number in (1, 2, 3)] == [2, 1, 1]


def test_without_until_empty_one_that_ends_by_itself_is_started_again(scene: Scene) -> None:
    scene.run("pass" + "\nif before: os.read(0, 1)", count=1)
    wait_until(lambda: len(scene.pids(1)) == 2)
    scene.wish.set()
    scene.ended()


def test_a_command_that_cannot_be_started_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    wish = Wish()
    chief = Supervisor(["/nowhere/python"], 1)
    thread = threading.Thread(target=chief.run, args=[wish])
    thread.start()
    try:
        wait_until(lambda: caplog.text.count("cannot be started") == 2)
    finally:
        wish.set()
        thread.join(30)
    assert "tried again in 1 s" in caplog.text
    assert "tried again in 2 s" in caplog.text


def test_processes_that_start_hear_signals_when_they_can_answer(scene: Scene) -> None:
    """A Ctrl-C while Django still starts there must be no KeyboardInterrupt."""
    scene.run(
        """
        heard = []
        while not (here / "signalled").exists():
            time.sleep(0.01)
        signal.signal(signal.SIGTERM, lambda *a: heard.append(1))
        from django_kafka.consuming.supervisor import let_signals_through
        let_signals_through()
        (here / "heard").write_text(str(len(heard)))
        """,
        count=1,
        until_empty=True,
    )
    wait_until(lambda: scene.pids(1))
    os.kill(scene.pids(1)[0], signal.SIGTERM)
    (scene.directory / "signalled").touch()
    scene.ended()
    assert (scene.directory / "heard").read_text() == "1"


LEASHED = """
import os, sys, threading
sys.path.insert(0, {root!r})
from django_kafka.consuming.leash import Leash
told = threading.Event()
Leash(told.set).start()
assert os.read(0, 1) == b"", "standard input has nothing"
print("ready", flush=True)
assert told.wait(30)
"""


@pytest.mark.parametrize("said", [leash.FINISH, b""])
def test_a_leash_tells_of_a_wish_and_of_a_supervisor_that_is_gone(said: bytes) -> None:
    command = [sys.executable, "-c", LEASHED.format(root=str(ROOT))]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        process.stdin.write(said)
        process.stdin.close()
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert (b"the supervisor is gone" in process.stderr.read()) == (not said)


@contextmanager
def in_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> Iterator[None]:
    monkeypatch.setenv(leash.NUMBER, text)
    yield
    assert leash.NUMBER not in os.environ, "What a worker starts is no worker of the same supervisor."


def test_a_number_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert leash.take_number() is None
    with in_environment(monkeypatch, "3"):
        assert leash.take_number() == 3
    for wrong in ("0", "two", ""):
        with in_environment(monkeypatch, wrong), pytest.raises(ConfigurationError, match="only kafka_consume sets it"):
            leash.take_number()


def test_lines_tell_which_process_they_are_from() -> None:
    code = """
import logging, sys
sys.path.insert(0, {root!r})
from django_kafka.consuming.leash import name_process
name_process(2)
logging.basicConfig(format="%(processName)s %(message)s")
logging.getLogger("django_kafka.consuming.worker").warning("consumer=%s 100%% stopped", "ops")
logging.getLogger("planes").warning("landed")
"""
    command = [sys.executable, "-c", code.format(root=str(ROOT))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "kafka-2 process=2 consumer=ops 100% stopped\nkafka-2 landed\n"


def consumers(**processes: int) -> dict[str, Any]:
    return {"consumers": {name: {"group_id": name, "processes": count} for name, count in processes.items()}}


def names(settings: Settings, kafka: dict[str, Any], processes: int | None = None) -> list[str]:
    settings.KAFKA = kafka
    made = layout(list(conf.kafka().consumers.values()), processes)
    return [" ".join(consumer.name for consumer in one) for one in made]


def test_each_process_runs_the_consumers_that_want_as_many(settings: Settings) -> None:
    assert names(settings, consumers(a=1, b=3, c=2)) == ["a b c", "b c", "b"]
    assert names(settings, consumers(a=1)) == ["a"]
    assert names(settings, consumers(a=1, b=3), 2) == ["a b", "a b"]
    assert names(settings, consumers(a=1, b=3), 1) == ["a b"]


def test_one_identity_in_several_processes_is_refused(settings: Settings) -> None:
    kafka = consumers(a=1)
    kafka["consumers"]["a"]["options"] = {"group.instance.id": "one"}
    assert names(settings, kafka) == ["a"]
    with pytest.raises(ConfigurationError, match="'a' is to run in 2 processes with one"):
        names(settings, kafka, 2)


def quiet(*arguments: Any, **options: Any) -> str:
    """Run `kafka_consume` in this process and return what it wrote."""
    out = io.StringIO()
    call_command("kafka_consume", *arguments, stdout=out, **options)
    return out.getvalue()


CALLED = "One process, not 2: kafka_consume was called by a program, and others know nothing of what that has changed."
COUNTS = "One process, not 2: --max-messages counts in one."


@pytest.mark.parametrize(
    ("options", "sentence"), [({"until_empty": True}, CALLED), ({"max_messages": 2}, COUNTS)], ids=["called", "counts"]
)
def test_where_it_runs_one_process_it_says_why(workplace: Workplace, options: dict[str, Any], sentence: str) -> None:
    seen = Seen()
    workplace.consume(seen, processes=2)
    workplace.send([1, 2])
    assert quiet("ops", **options) == f"{sentence}\nConsuming with ops. Stop with Ctrl-C.\n"
    assert seen.values == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--processes", "2", "--max-messages", "9"], "--processes 2 cannot be: --max-messages counts in one."),
        (["--processes", "2", "--reload"], "--processes 2 cannot be: --reload starts it again when code changes."),
        (["--processes", "0"], "'0' is not a whole number from 1 to 1000"),
        (["--processes", "1001"], "'1001' is not a whole number from 1 to 1000"),
    ],
)
def test_processes_that_make_no_sense_get_a_sentence(workplace: Workplace, arguments: list[str], sentence: str) -> None:
    workplace.consume(Seen())
    with pytest.raises(CommandError, match=sentence):
        quiet("ops", *arguments)
