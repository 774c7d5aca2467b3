"""The screen of kafka_status: what is drawn for terminals of several kinds, and how it lives in a real one."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.utils import timezone
from rich.console import Console

from django_kafka.clients.embedded import Cluster
from django_kafka.management.commands._screen import Picture, sparkline
from django_kafka.models import Worker, WorkerPartition
from django_kafka.monitoring.observer import Observer
from django_kafka.monitoring.overview import Overview
from tests.consuming import NAME, Seen, Workplace
from tests.desk import ROOT, Desk
from tests.letters import dead_letter
from tests.sending import NOBODY
from tests.servers import PostgreSQL
from tests.servers.processes import wait_until

PATIENCE = 60.0
"""Seconds for a program to begin, draw or end: the machine may be busy with other tests."""
HOSTILE = "e\x1b[2Jvil[red]\u202e\n"


def drawn(overview: Overview, width: int, *, most: int | None = 10, encoding: str = "utf-8", **options: Any) -> str:
    """Return what a terminal of this width would get."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=file, width=width, force_terminal=True, highlight=False, **options)
    console.print(Picture(overview, most=most))
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def worker(name: str, **fields: Any) -> Worker:
    now = timezone.now()
    stored: Worker = Worker.objects.create(**{
        "id": name, "consumer": NAME, "group_id": "g", "host": name, "pid": 4711, "version": "0.1.0",
        "started_at": now - timedelta(hours=2), "seen_at": now, "state": "running", **fields,
    })  # fmt: skip
    return stored


@pytest.fixture
def busy(workplace: Workplace) -> Overview:
    """A consumer with messages, letters and workers of all kinds, seen twice."""
    workplace.consume(Seen(), partitions=3)
    workplace.send(range(1500))
    workplace.send(range(20), partition=2)
    for number in range(12):
        dead_letter({"n": number})
    worker(
        "alpha", partitions=2, handled=1_234_567, circuit="open", circuit_reason="50 of the last 64 messages failed",
        circuit_opened_at=timezone.now(), last_error=HOSTILE,
    )  # fmt: skip
    worker("beta", partitions=1, waiting=1, state="waiting", waits_for=HOSTILE, supervisor=9, number=2)
    worker("gamma", host="gamma" + "-" * 60, seen_at=timezone.now() - timedelta(hours=1))
    WorkerPartition.objects.create(worker="alpha", topic=workplace.topic, partition=0, in_flight=17)
    WorkerPartition.objects.create(worker="beta", topic=workplace.topic, partition=2, waits_for=HOSTILE)
    observer = Observer()
    observer.look(wait=True)
    workplace.send(range(80))
    return observer.look(wait=True, max_age=0)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_everything_is_there_at_every_width_and_nothing_is_wider(busy: Overview, width: int) -> None:
    said = drawn(busy, width)
    lines = plain(said).splitlines()

    assert max(map(len, lines)) <= width
    assert lines[0].split()[0] == "Kafka"
    assert lines[0].endswith("default: 1 topic")
    (consumer,) = [line for line in lines if line.startswith(f"{NAME} ") and "circuit open" in line]
    assert re.search(r" 1,600 ", consumer), "Numbers are never cut."
    assert re.search(r" 12 ", consumer)
    heads = next(line for line in lines if line.startswith("consumer") and "trend" in line).split()
    assert heads[-1] == "workers"
    (heading,) = [line for line in lines if "last seen" in line]
    assert "partitions" in heading, "Names are cut where it is narrow, and nothing else."
    assert heading.split()[-2:] == (["letters", "circuit"] if width >= 120 else ["handled/s", "circuit"])
    assert "1 (1 waiting)" in plain(drawn(busy, 62))
    assert ("p95" in heads) == ("members" in heads) == (width >= 120)
    for name, state in (("alpha", "running"), ("beta", "waiting"), ("gamma", "gone")):
        assert any(name in line and state in line for line in lines)
    text = " ".join(line.strip() for line in lines)
    assert "its circuit opened" in text
    assert "50 of the last 64 messages failed" in text
    for evil in ("\x1b[2J", "\u202e"):
        assert evil not in said
    assert r"e\u001b[2Jvil[red]\u202e\u000a" in text


def test_colours_say_nothing_that_is_not_in_words_and_can_be_switched_off(
    busy: Overview, monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured = drawn(busy, 120, color_system="truecolor")
    monkeypatch.setenv("NO_COLOR", "1")
    without = drawn(busy, 120, color_system="truecolor")

    assert plain(coloured) == plain(without)
    assert "\x1b[1;31m" in coloured
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", without)


def test_a_terminal_without_unicode_gets_ascii(busy: Overview) -> None:
    said = drawn(busy, 120, encoding="latin-1")

    assert plain(said).isascii()
    assert "circuit open" in said
    assert "|" not in said
    assert max(map(len, plain(said).splitlines())) <= 120


def test_what_a_terminal_cannot_show_is_escaped(workplace: Workplace) -> None:
    workplace.consume(Seen())
    worker("東京")

    assert r"\u6771\u4eac:4711" in drawn(Observer().look(wait=True), 120, encoding="ascii")


def test_the_worst_of_many_partitions_are_shown_and_all_on_request(workplace: Workplace) -> None:
    workplace.consume(Seen(), partitions=200)
    for number in range(15):
        workplace.send(range(20 - number), partition=100 + number)
    worker("alpha")
    WorkerPartition.objects.create(worker="alpha", topic=workplace.topic, partition=7, waits_for="the database")
    found = Observer().look(wait=True)

    folded, whole = (plain(drawn(found, 120, most=most)) for most in (10, None))

    shown = re.findall(rf"{workplace.topic}\[(\d+)\]", folded)
    assert shown == ["7", *map(str, range(100, 109))], "First what waits, then what is furthest behind."
    assert "and 190 more partitions" in folded
    assert re.findall(rf"{workplace.topic}\[(\d+)\]", whole) == list(map(str, range(200)))
    assert "more partitions" not in whole
    out = io.StringIO()
    call_command("kafka_status", stdout=out)
    assert "and 190 more partitions: --all" in out.getvalue()
    assert re.findall(rf"{workplace.topic}\[(\d+)\]", out.getvalue()) == shown


def test_the_worst_of_many_workers_are_shown_and_what_is_wrong_with_them(workplace: Workplace) -> None:
    workplace.consume(Seen())
    for number in range(20):
        worker(f"w{number:02}", lag=number, last_error="ValueError")
    worker("x", not_ready="It waits.", state="waiting")
    worker("y", seen_at=timezone.now() - timedelta(hours=1))
    found = Observer().look(wait=True)

    folded, whole = (plain(drawn(found, 120, most=most)) for most in (4, None))

    shown = re.findall(r"^ops +g +(\w+):4711", folded, re.MULTILINE)
    assert shown == ["x", "y", "w19", "w18"]
    assert "and 18 more workers" in folded
    assert folded.count("! ops") == 4
    assert "and 17 more lines" in folded
    assert len(re.findall(r"^ops +g +(\w+):4711", whole, re.MULTILINE)) == 22
    assert "more" not in whole


def test_a_sparkline_is_as_long_as_there_is_room_and_begins_with_what_was_not_known() -> None:
    history = [(10.0, 0), (12.0, 50), (14.0, 100), (20.0, 100)]

    assert sparkline(history, 0, 20, 10, "_.-=+*#@") == "    _=@@@@"
    assert sparkline([(0.0, 0), (5.0, 0)], 0, 5, 3, "_.-=+*#@") == "___"
    assert sparkline([], 0, 5, 3, "_.-=+*#@") == "   "
    assert sparkline(history, 0, 20, 4, "▁▂▃▄▅▆▇█") == " ▁██"


SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
with open(sys.argv[1], "w") as file:
    file.write(str(child))
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        os._exit(os.waitstatus_to_exitcode(status) % 256)
"""
"""What a shell does for a program in the foreground; without one nothing can be stopped with Ctrl-Z."""


class Terminal:
    """A real terminal with kafka_status of a desk in it."""

    def __init__(self, desk: Desk, *arguments: str, rows: int = 30, columns: int = 100, **env: str) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.received = b""
        pid = desk.home / "status.pid"
        pid.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHELL, str(pid), "-m", "django", "kafka_status", *arguments],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True, cwd=desk.home,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={
                **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")},
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(desk.home)]), "DJANGO_SETTINGS_MODULE": "desk_settings",
                "TERM": "xterm", "PYTHONUTF8": "1", **env,
            },
        )  # fmt: skip
        self.pid = int(wait_until(lambda: pid.exists() and pid.read_text(), PATIENCE))

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def frame(self) -> list[str]:
        """Return the lines of the last whole picture; the program draws each from the upper left corner."""
        while select.select([self.master], [], [], 0)[0]:
            self.received += os.read(self.master, 65536)
        pictures = self.received.split(b"\x1b[H")
        whole = [one for one in pictures if b"q: quit" in one]
        return [line.rstrip() for line in plain(whole[-1].decode()).splitlines()] if whole else []

    def wait(self, condition: Callable[[list[str]], object], seconds: float = PATIENCE) -> list[str]:
        """Return the first picture of which something is true."""
        deadline = time.monotonic() + seconds
        while not condition(frame := self.frame()):
            assert time.monotonic() < deadline, "\n".join(frame) or self.received
            assert self.process.poll() is None, self.received
            time.sleep(0.05)
        return frame

    def ended(self) -> int:
        """Wait for the end, and see that the terminal is as it was."""
        code = wait_until(lambda: None if (code := self.process.poll()) is None else [code], PATIENCE)[0]
        self.frame()
        assert termios.tcgetattr(self.slave) == self.before
        assert self.received.count(b"\x1b[?1049h") == self.received.count(b"\x1b[?1049l") > 0
        assert self.received.rindex(b"\x1b[?25h") > self.received.rindex(b"\x1b[?25l")
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait(10)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for one in opened:
        one.close()


def row(frame: list[str], heading: str, name: str) -> dict[str, str]:
    """Return the row of a table, by its headings, as far as nothing in it has blanks."""
    first = next((number for number, line in enumerate(frame) if heading in line), None)
    if first is None:
        return {}
    line = next((one for one in frame[first:] if one.startswith(f"{name} ")), "")
    return dict(zip(frame[first].split(), line.split(), strict=False))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
def test_it_lives_in_a_terminal_and_leaves_it_as_it_was(
    workplace: Workplace, tmp_path: Path, terminals: list[Terminal]
) -> None:
    workplace.consume(Seen(), partitions=40)
    workplace.send(range(5))
    desk = Desk.on_sqlite(
        tmp_path, topic=workplace.topic, brokers=workplace.cluster.bootstrap_servers,
        options={"auto_commit_interval": "500ms"},
    )  # fmt: skip
    terminal = Terminal(desk, "--interval", "200ms")
    terminals.append(terminal)

    first = terminal.wait(lambda frame: frame)
    assert first[0].endswith("default: asking…")
    assert row(first, "trend", "ops")["state"] == "asking"
    terminal.wait(lambda frame: row(frame, "trend", "ops").get("lag") == "5")
    workplace.send(range(300), partition=1)
    terminal.wait(lambda frame: row(frame, "trend", "ops").get("lag") == "305")
    growing = terminal.wait(lambda frame: "↑" in "".join(frame))
    assert "and 30 more partitions" in "\n".join(growing)

    terminal.resize(12, 80)
    small = terminal.wait(lambda frame: len(frame) == 12)
    assert "lines 1 to 11 of" in small[-1]
    terminal.press(b"j")
    assert terminal.wait(lambda frame: "lines 2 to 12 of" in frame[-1])[0] == ""
    terminal.resize(80, 100)
    terminal.press(b"a")
    terminal.wait(lambda frame: len(re.findall(r"\[\d+\]", "\n".join(frame))) == 40)

    drawn_before = len(terminal.received)
    terminal.press(b"\x1a")
    wait_until(lambda: state_of(terminal.pid) == "T", message="Ctrl-Z did not stop it")
    terminal.frame()
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert terminal.received[drawn_before:].rstrip().endswith(b"\x1b[?1049l")
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.wait(lambda _frame: terminal.received.count(b"\x1b[?1049h") == 2)

    terminal.press(b"q")
    assert terminal.ended() == 0


@pytest.mark.slow
def test_it_goes_on_while_brokers_and_database_are_away(tmp_path: Path, terminals: list[Terminal]) -> None:
    desk = Desk.on_sqlite(tmp_path, brokers=NOBODY, kafka={"connection": {"timeout": "1s"}})
    (tmp_path / "db").rename(tmp_path / "away")
    (tmp_path / "db").mkdir()
    terminal = Terminal(desk, "--interval", "200ms")
    terminals.append(terminal)

    terminal.wait(lambda frame: "Database 'default' cannot be read (OperationalError)." in "\n".join(frame))
    assert row(terminal.frame(), "trend", "ops")["letters"] == "-"
    (tmp_path / "db").rmdir()
    (tmp_path / "away").rename(tmp_path / "db")
    terminal.wait(lambda frame: row(frame, "trend", "ops").get("letters") == "0")
    assert "No worker was heard of" in "\n".join(terminal.frame())
    terminal.wait(lambda frame: "default: no answer" in frame[0])
    assert "! cluster default: Cluster 'default' does not say which topics it has" in "\n".join(terminal.frame())
    terminal.press(b"\x03")
    assert terminal.ended() == 0


@pytest.mark.slow
def test_a_terminal_of_another_size_is_drawn_anew_before_the_next_look_and_sigterm_ends_it(
    tmp_path: Path, terminals: list[Terminal]
) -> None:
    desk = Desk.on_sqlite(tmp_path, brokers=NOBODY, kafka={"connection": {"timeout": "1s"}})
    terminal = Terminal(desk, "--interval", "1h")
    terminals.append(terminal)

    terminal.wait(lambda frame: frame and "default: no answer" in frame[0])
    assert len(terminal.frame()) == 30
    terminal.resize(50, 120)
    assert "members" in " ".join(terminal.wait(lambda frame: len(frame) == 50))
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.ended() == 0


@pytest.mark.slow
def test_a_database_that_hangs_or_breaks_does_not_freeze_it(
    postgresql: PostgreSQL, tmp_path: Path, terminals: list[Terminal]
) -> None:
    desk = Desk.on_postgresql(tmp_path, postgresql)
    terminal = Terminal(desk, "--interval", "200ms")
    terminals.append(terminal)

    def hangs() -> psycopg.Connection[Any]:
        blocking = psycopg.connect(postgresql.dsn_of(desk.database["NAME"]))
        blocking.execute("LOCK TABLE lynx_kafka_worker IN ACCESS EXCLUSIVE MODE")
        return blocking

    def works(frame: list[str]) -> bool:
        return row(frame, "trend", "ops").get("letters") == "0" and "database" not in "".join(frame)

    terminal.wait(works)
    with hangs():
        terminal.wait(lambda frame: "! The database has not answered for" in "\n".join(frame))
        terminal.press(b"a")
        terminal.wait(lambda frame: "a: the worst only" in frame[-1])
    terminal.wait(works)
    postgresql.kill()
    terminal.wait(lambda frame: "Database 'default' cannot be read" in "\n".join(frame))
    postgresql.start()
    terminal.wait(works)
    with hangs():
        terminal.press(b"q")
        assert terminal.ended() == 0


@pytest.mark.slow
@pytest.mark.parametrize("rich", [True, False])
def test_once_and_without_rich_it_is_one_picture_in_a_terminal_too(
    embedded: Cluster, tmp_path: Path, terminals: list[Terminal], rich: bool
) -> None:
    embedded.create_topic("flights", 2)
    desk = Desk.on_sqlite(tmp_path, brokers=embedded.bootstrap_servers)
    if not rich:
        (tmp_path / "rich.py").write_text("raise ImportError")
    terminal = Terminal(desk, *(["--once"] if rich else []))
    terminals.append(terminal)

    assert wait_until(lambda: [code] if (code := terminal.process.poll()) is not None else None, PATIENCE) == [0]
    terminal.frame()
    said = terminal.received.decode()
    assert "\x1b[?1049h" not in said
    assert ("─" in said) == rich
    assert "flights[1]" in said
    assert said.endswith("A screen that is drawn anew: pip install 'django-lynx-kafka[rich]'\r\n") != rich


@pytest.mark.slow
def test_a_check_that_fails_is_no_reason_to_show_nothing(embedded: Cluster, tmp_path: Path) -> None:
    embedded.create_topic("flights", 2)
    desk = Desk.on_sqlite(tmp_path, brokers=embedded.bootstrap_servers)
    settings = tmp_path / "desk_settings.py"
    settings.write_text(settings.read_text().replace("desk_handlers.handle", "desk_handlers.nowhere"))

    assert "desk_handlers.nowhere" in desk.run("check", code=1)
    said = desk.run("kafka_status")
    assert "No worker was heard of" in said
    assert "\nops " in f"\n{said}"
