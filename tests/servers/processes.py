"""Programs started by the tests: each in a group of its own, none outliving the run."""

from __future__ import annotations

import abc
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from .forking import ForkServer
from .leash import leashed

# Below the range from which the kernel takes ports for outgoing connections: while a server is down, a client that
# tries to reach it must not be given its port.
PORTS = range(20000, 32000)
PATIENCE = 60.0
"""Seconds that tests wait for what must happen. It bounds a hang, not the product: a machine may be very busy."""

T = TypeVar("T")

# A leash is held by a thread, not by a process, so all are held by one thread that lives as long as the process.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")
fork_server: ForkServer | None = None
"""What starts programs of Django quickly, where tests have set it."""
_given_ports: set[int] = set()
# A server takes seconds to listen on its port, and several test processes look for free ones: each keeps those that it
# has given away locked, a byte for a port, until it ends.
_reserved = os.open(Path(tempfile.gettempdir()) / f"lynx-kafka-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)


class Unavailable(Exception):
    """A server that this machine cannot run; the sentence names what is missing."""


class Broken(Exception):
    """A server that did not come up, or went away; the sentence carries the end of its log."""


class Program(subprocess.Popen[bytes]):
    """A running program, its output in a file, that ends with the process that started it."""

    log: Path

    @classmethod
    def start(
        cls,
        command: Sequence[str | Path],
        *,
        log: Path,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        errors: Path | None = None,
        anew: bool = False,
    ) -> Self:
        """Start a program in a group of its own and append what it says to `log`, or errors to a file of their own.

        `anew`: in an interpreter that has read no module before; otherwise it may be forked.
        """
        words = list(map(str, command))

        def begin() -> Self:
            with log.open("ab") as output, (errors or log).open("ab") as wrong:
                if user is None and not anew and fork_server is not None:
                    pid = fork_server.start(words, (output.fileno(), wrong.fileno()), env, cwd)
                    if pid is not None:
                        return cls._of(pid, words)
                return cls(
                    [*leashed(signal.SIGKILL, user or "-"), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=wrong,
                    env=None if env is None else dict(env),
                    cwd=cwd,
                    start_new_session=True,
                )

        program = _starter.submit(begin).result()
        program.log = log
        return program

    @classmethod
    def _of(cls, pid: int, command: Sequence[str]) -> Self:
        """Return the program that a child is which another process has forked for us."""
        program = cls.__new__(cls)
        vars(program).update(
            args=command, pid=pid, returncode=None, stdin=None, stdout=None, stderr=None,
            _child_created=True, _waitpid_lock=threading.Lock(), _sigint_wait_secs=0.25,
        )  # fmt: skip
        return program

    def output(self) -> str:
        """All that it has said so far."""
        return self.log.read_text(errors="replace")

    def finish(self, seconds: float = PATIENCE) -> int:
        """Wait for its end and return its exit code; fail with its output when it goes on for longer."""
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"It still ran after {seconds} s. {tail(self.log)}") from None

    def freeze(self) -> None:
        """Stop all its threads; back when they stand still: SIGSTOP alone lets those on another core go on a while."""
        self.send_signal(signal.SIGSTOP)
        wait_until(self._stands_still, message="it did not stand still", every=0.01)

    def _stands_still(self) -> bool:
        try:
            found = [one.read_text() for one in Path(f"/proc/{self.pid}/task").glob("*/stat")]
        except (FileNotFoundError, ProcessLookupError):  # one of its threads has just ended
            return False
        return all(one.rpartition(")")[2].split()[0] in "TZ" for one in found)

    def end(self, *signals: signal.Signals, seconds: float = 15) -> None:
        """Send signals one after another, `seconds` apart, until it is gone; then make sure that its whole group is."""
        for number in signals:
            if self.poll() is None:
                self.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self.wait(seconds)
        self.kill()
        # Nothing survives that; a busy machine only takes its time.
        self.wait()
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


class Server(abc.ABC):
    """A server with a directory of its own, which is removed by `close`."""

    name: str
    """What people call it."""

    def __init__(self) -> None:
        self.directory: Path | None = None

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """Host and port, as its clients write them."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start it and come back when it answers. Data of an earlier start is kept. Started already: do nothing."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop it in an orderly way. Its data stays."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End it at once, as a crash would. Its data stays."""

    def restart(self) -> None:
        """Stop it and start it again on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove its data."""
        self.stop()
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None

    def home(self) -> Path:
        """Its directory, made when first asked for."""
        if self.directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix=f"lynx-kafka-{self.name.lower()}-"))
            # A run that ends in disorder leaves no data behind either.
            weakref.finalize(self, _remove, self.directory, os.getpid())
        return self.directory

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _remove(directory: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a forked child, for whose parent the server still runs
        shutil.rmtree(directory, ignore_errors=True)


def free_port() -> int:
    """Return a port on loopback that nobody listens on and that no process of tests has given away before."""
    for port in random.sample(PORTS, 200):
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if not reserve(port):
            continue
        _given_ports.add(port)
        return port
    raise Broken(f"No free port on 127.0.0.1 among 200 tried from {PORTS.start} to {PORTS.stop}.")


def reserve(port: int) -> bool:
    """Keep a port for this process; tell whether no other one has it."""
    try:
        fcntl.lockf(_reserved, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    """Tell whether something takes connections on that port of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], T], seconds: float = PATIENCE, message: str = "", *, every: float = 0.05) -> T:
    """Return the first true answer of `condition`; raise AssertionError when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{message or 'It did not happen'} (waited {seconds} s, last answer {answer!r}).")
        time.sleep(every)
    return answer


def wait_ready(program: Program, ready: Callable[[], bool], *, name: str, seconds: float = 60) -> None:
    """Wait until a server that was just started answers; raise Broken with its log when it ends or stays silent."""
    deadline = time.monotonic() + seconds
    while program.poll() is None:
        if ready():
            return
        if time.monotonic() > deadline:
            raise Broken(f"{name} did not answer within {seconds} s. {tail(program.log)}")
        time.sleep(0.1)
    raise Broken(f"{name} ended with code {program.returncode} before it answered. {tail(program.log)}")


def run(command: Sequence[str | Path], *, log: Path, name: str, user: str | None = None, seconds: float = 120) -> None:
    """Run a preparing command to its end; raise Broken with its output when it fails."""
    program = Program.start(command, log=log, user=user)
    try:
        code = program.wait(seconds)
    except subprocess.TimeoutExpired:
        raise Broken(f"{name} still ran after {seconds} s. {tail(log)}") from None
    finally:
        program.end()
    if code:
        raise Broken(f"{name} ended with code {code}. {tail(log)}")


def tail(log: Path, lines: int = 60) -> str:
    """The end of a log, as a sentence for an error."""
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        return f"Its log cannot be read: {error}"
    end = "\n".join(text.splitlines()[-lines:])
    return f"The end of {log}:\n{end}" if end else f"Its log {log} is empty."


def found(program: str, package: str) -> str:
    """The path of a program; Unavailable names it and the Debian package that carries it."""
    path = shutil.which(program)
    if path is None:
        raise Unavailable(f"{program} is not installed (Debian package: {package}).")
    return path
