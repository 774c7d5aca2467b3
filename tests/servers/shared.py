"""One server for all test processes of a run: who needs it first starts it, and stops it when nobody does any more.

It ends with the process that started it, as all servers do: a run that is killed leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .kafka import Kafka
from .processes import Server
from .registry import Registry

hurry = threading.Event()
"""Set when the run is ended: whoever started a server waits for nobody then."""

_LOOK_EVERY = 0.1


class Shareable(Protocol):
    """A server that others can be told of."""

    port: int

    def home(self) -> Path:
        """Where its files are."""

    def close(self) -> None:
        """Stop it."""


Borrowed = TypeVar("Borrowed", bound=Server)


class _OfAnother:
    """What a server does not do that others use as well."""

    advice: str
    """What somebody is told who would stop it."""

    def start(self, node: int | None = None) -> None:
        """Do nothing: it runs."""

    def stop(self, node: int | None = None) -> None:
        """Refuse."""
        raise AssertionError(self.advice)

    kill = stop

    def close(self) -> None:
        """Do nothing: who started it stops it."""


class Lent(_OfAnother, Kafka):
    """A cluster that others use as well: whoever stops brokers needs one of their own."""

    advice = "Other tests use these brokers: mark yours with `own_brokers`, so that it has its own."

    def __init__(self, port: int, directory: Path) -> None:
        super().__init__()
        self.nodes[0].port = port
        self.directory = directory


class LentRegistry(_OfAnother, Registry):
    """A registry that others use as well."""

    advice = "Other tests use this registry: stop what stands before yours instead."

    def __init__(self, port: int, directory: Path) -> None:
        super().__init__()
        self.port = port
        self.directory = directory


@contextmanager
def lent(directory: Path, start: Callable[[], Shareable], kind: Callable[[int, Path], Borrowed]) -> Iterator[Borrowed]:
    """Use the server of this run, whose test processes share the directory; `start` makes the first one.

    `kind` makes what stands for it, of its port and its files.
    """
    mine, book = str(os.getpid()), directory / f"{getattr(kind, '__name__', 'server').lower()}.json"
    made: Shareable | None = None
    with _state(book) as state:
        if not _alive(state.get("owner")):
            made = start()
            state.clear()
            state.update(owner=mine, port=made.port, home=str(made.home()), users=[])
        state["users"].append(mine)
        found = kind(state["port"], Path(state["home"]))
    try:
        yield found
    finally:
        # Nobody waits for one that waits for them: what it still uses was there before what it started itself.
        with _state(book) as state:
            state["users"].remove(mine)
        if made is not None:
            _wait_for_others(book)
            made.close()


def _wait_for_others(book: Path) -> None:
    while not hurry.is_set():
        with _state(book) as state:
            if not any(map(_alive, state["users"])):
                # Whoever comes now starts another one.
                state["owner"] = None
                return
        time.sleep(_LOOK_EVERY)


@contextmanager
def _state(book: Path) -> Iterator[dict[str, Any]]:
    """Read and write what is known of the server, one process at a time."""
    book.parent.mkdir(parents=True, exist_ok=True)
    with book.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        state: dict[str, Any] = json.loads(file.read() or "{}")
        yield state
        file.seek(0)
        file.truncate()
        file.write(json.dumps(state))


def _alive(pid: str | None) -> bool:
    if pid is None:
        return False
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # One that nobody has waited for yet is dead all the same.
    return status.rpartition(")")[2].split()[0] != "Z"
