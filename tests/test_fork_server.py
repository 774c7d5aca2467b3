"""Programs that the fork server starts are what `python -m` would have started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import fork_server, processes
from tests.servers.forking import ForkServer
from tests.servers.processes import Program, wait_until

pytestmark = pytest.mark.skipif(fork_server.CLONE is None, reason="nothing is forked on this machine")

SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["said"]
"""
SAYS = """
import json, os, signal, sys, threading
from django.core.management.base import BaseCommand

class Command(BaseCommand):
    def add_arguments(self, parser):
        parser.add_argument("how", nargs="?")

    def handle(self, how=None, **options):
        print(json.dumps({
            "arguments": sys.argv[1:], "original": sys.orig_argv[1:], "cwd": os.getcwd(),
            "word": os.environ.get("WORD"),
            "all": sorted(one for one in os.environ if one.startswith(("WORD", "DJANGO_SETTINGS"))),
            "first": sys.path[0], "second": sys.path[1], "doubles": len(sys.path) - len(set(sys.path)),
            "parent": os.getppid(), "session": os.getsid(0) == os.getpid(), "input": sys.stdin.read(),
            "open": sorted(os.listdir("/proc/self/fd")), "threads": threading.active_count(),
            "main": sys.modules["__main__"].__spec__.name, "modules": len(sys.modules),
            "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        }), flush=True)
        if how == "fails":
            raise SystemExit(7)
        if how == "breaks":
            raise ZeroDivisionError("by what?")
        if how == "waits":
            threading.Thread(target=lambda: None).start()
            signal.pause()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    package = tmp_path / "said" / "management" / "commands"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "say.py").write_text(SAYS)
    (tmp_path / "settings_of_it.py").write_text(SETTINGS)
    return tmp_path


@pytest.fixture
def server() -> ForkServer:
    """The fork server of this run, whatever is known of it."""
    assert processes.fork_server is not None
    return processes.fork_server


def environment(home: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(home / "elsewhere"), str(fork_server.ROOT)])
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "settings_of_it", "PYTHONPATH": path, "WORD": "héllo", **more}


def start(home: Path, *arguments: str, **more: str) -> Program:
    command = [sys.executable, "-m", "django", "say", *arguments]
    return Program.start(command, log=home / f"log{len(list(home.iterdir()))}", env=environment(home, **more), cwd=home)


def told(program: Program) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(program.output().splitlines()[0])
    return found


def is_forked(program: Program) -> bool:
    return "fork_server.py" in Path(f"/proc/{program.pid}/cmdline").read_text()


def test_a_forked_program_is_what_python_would_have_started(home: Path) -> None:
    forked = start(home)
    # What begins with this is read as an interpreter starts.
    started = start(home, PYTHONHASHSEED="7")
    assert (forked.finish(), started.finish()) == (0, 0), forked.output() + started.output()
    mine, usual = told(forked), told(started)
    assert mine.pop("modules") > usual.pop("modules") + 100, "Nothing was read ahead."
    assert mine == usual
    assert mine["parent"] == os.getpid()
    assert mine["session"]
    assert (mine["arguments"], mine["cwd"], mine["word"]) == (["say"], str(home), "héllo")
    assert (mine["first"], mine["second"], mine["input"]) == (str(home), str(home / "elsewhere"), "")


def test_its_end_is_told_as_that_of_any_child(home: Path) -> None:
    fails, breaks, waits = (start(home, how) for how in ("fails", "breaks", "waits"))
    assert fails.finish() == 7
    assert breaks.finish() == 1
    assert "ZeroDivisionError: by what?" in breaks.output()
    wait_until(lambda: "arguments" in waits.output())
    assert is_forked(waits)
    waits.send_signal(signal.SIGTERM)
    assert waits.finish() == -signal.SIGTERM
    again = start(home, "waits")
    wait_until(lambda: "arguments" in again.output())
    again.send_signal(signal.SIGINT)
    assert again.finish() == -signal.SIGINT, again.output()
    assert "KeyboardInterrupt" in again.output()


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "PYTHONWARNINGS", "LD_BIND_NOW", "LC_ALL"])
def test_what_an_interpreter_reads_as_it_starts_is_never_left_out(home: Path, name: str) -> None:
    program = start(home, "waits", **{name: "C"})
    wait_until(lambda: "arguments" in program.output() or program.poll() is not None)
    assert program.poll() is None, program.output()
    assert not is_forked(program)
    program.end(signal.SIGTERM)


def test_other_programs_are_started_as_ever(server: ForkServer) -> None:
    for command in (["true"], [sys.executable, "manage.py"], [sys.executable, "-m", "http.server", "--help"]):
        assert server.start(command, (1, 2)) is None


@pytest.mark.parametrize("seed", ["", "7"], ids=["forked", "started"])
def test_code_runs_as_if_python_had_been_given_it(home: Path, seed: str) -> None:
    code = """
import sys, threading
sys.stderr.write("wrong")
print([sys.path[0], sys.argv, hasattr(sys.modules["__main__"], "__file__"), __name__, "code" in globals()])
threading.Thread(target=lambda: print("later")).start()
raise SystemExit(3)
"""
    env = environment(home, **({"PYTHONHASHSEED": seed} if seed else {}))
    program = Program.start([sys.executable, "-c", code, "a"], log=home / "out", errors=home / "err", env=env, cwd=home)
    assert program.finish() == 3
    assert (home / "out").read_text().splitlines() == ["['', ['-c', 'a'], False, '__main__', False]", "later"]
    assert (home / "err").read_text() == "wrong"


def test_a_folder_that_is_not_there_ends_the_program_and_not_the_server(home: Path) -> None:
    command = [sys.executable, "-m", "django", "say"]
    lost = Program.start(command, log=home / "lost", env=environment(home), cwd=home / "nowhere")
    assert lost.finish() == 1
    assert "nowhere" in lost.output()
    assert start(home).finish() == 0


def test_it_ends_with_whoever_asked(home: Path) -> None:
    code = f"""
import signal, sys
from pathlib import Path
sys.path.insert(0, {str(fork_server.ROOT)!r})
from tests.servers import fork_server, processes
from tests.servers.forking import ForkServer
processes.fork_server = ForkServer()
command = [sys.executable, "-m", "django", "say", "waits"]
program = processes.Program.start(command, log=Path("log of it"), cwd=Path.cwd())
processes.wait_until(lambda: "arguments" in program.output())
print(program.pid, flush=True)
signal.pause()  # until it is killed
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=home, env=environment(home), stdout=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        pid = int(asking.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        asking.kill()
    wait_until(lambda: not _runs(pid), message="It outlived whoever asked for it")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
