"""Processes: a handler that keeps a core busy for some 20 µs, in one process and in several.

The clock starts when each process has its partitions: how long that takes is start-up, which has a case of its own.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from django_kafka.exceptions import Retry

from .settings import DIRECTORY, KAFKA, MESSAGES

_AGAIN = 0.02
"""Seconds between two attempts at a first message, until all processes have one."""
_count: mmap.mmap | None = None
_done = 0


def work(message: object) -> None:
    """Hash for a while and count, where the parent sees it."""
    global _done
    count = _count or _begin()
    hashlib.pbkdf2_hmac("sha256", b"bench", b"salt", 50)
    _done += 1
    count[:] = _done.to_bytes(8, "little")


def _begin() -> mmap.mmap:
    """Tell that messages have come to this process, and put them off until they have come to all of them."""
    global _count
    Path(DIRECTORY, f"{os.getpid()}.here").touch()
    if not Path(DIRECTORY, "go").exists():
        raise Retry(after=_AGAIN)
    note = Path(DIRECTORY, f"{os.getpid()}.count")
    note.write_bytes(bytes(8))
    with note.open("r+b") as file:
        _count = mmap.mmap(file.fileno(), 8)
    return _count


def our_scaling_1() -> Iterator[None]:
    """One process."""
    yield from _processes()


def our_scaling_2() -> Iterator[None]:
    """Two."""
    yield from _processes()


def our_scaling_4() -> Iterator[None]:
    """Four."""
    yield from _processes()


def _processes() -> Iterator[None]:
    from django_kafka.consuming.worker import Worker

    processes = KAFKA["consumers"]["bench"]["processes"]
    Worker("bench")  # raises NotAvailable here, where it can be told apart
    with subprocess.Popen(
        [sys.executable, "-m", "django", "kafka_consume", "bench"], stdout=subprocess.DEVNULL
    ) as ours:
        _until(lambda: len(list(Path(DIRECTORY).glob("*.here"))) == processes, ours)
        Path(DIRECTORY, "go").touch()
        _until(lambda: sum(_counts()) > 0, ours)
        yield
        _until(lambda: sum(_counts()) >= MESSAGES, ours)
        yield
        ours.send_signal(signal.SIGTERM)
        ours.wait(60)
    assert len(_counts()) == processes, f"{len(_counts())} processes handled messages, not {processes}."


def _counts() -> list[int]:
    return [int.from_bytes(note.read_bytes(), "little") for note in Path(DIRECTORY).glob("*.count")]


def _until(condition: object, program: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 600
    while not condition():  # type: ignore[operator]
        if program.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"The worker ended with code {program.returncode}, or took too long.")
        time.sleep(0.01)
