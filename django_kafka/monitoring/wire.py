"""What a supervisor asks its processes: a pair of sockets for each, over which they answer as over HTTP.

So that one port answers for all of them, and none of them needs one.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection

from django.db import connections

from .. import logs
from .server import Answer, Routes, answer_of

log = logs.of(__name__)

WIRE = "DJANGO_KAFKA_WIRE"
"""The environment variable in which a process is told the number of its end."""
POSSIBLE = os.name == "posix"
"""Whether a process can be given an end: elsewhere no more than standard input and output can be handed over."""


class Asking:
    """The supervisor's end of the wire to one process. Asked and closed with `lock` held."""

    def __init__(self) -> None:
        mine, self._theirs = socket.socketpair()
        self._connection = Connection(mine.detach())
        self._awaited = False
        """Whether the last question has no answer yet."""
        self.lock = threading.Lock()
        """Held by whoever uses it: what was closed may be another's in the next moment."""

    @property
    def handed(self) -> int:
        """The descriptor that the process is to inherit."""
        return self._theirs.fileno()

    def started(self) -> None:
        """Note that it has it: when that process ends, so does the wire."""
        self._theirs.close()

    def close(self) -> None:
        """Ask no more."""
        self._theirs.close()
        self._connection.close()

    def ask(self, path: str) -> bool:
        """Ask for a path; tell whether there may be an answer. It never waits."""
        try:
            # One that is stuck is asked once, and not until its end of the wire is full.
            if self._awaited and self.answer(0.0) is None:
                return False
            self._connection.send_bytes(path.encode())
        except (OSError, EOFError, ValueError):
            return False
        self._awaited = True
        return True

    def answer(self, seconds: float) -> Answer | None:
        """Return what is answered; None when that takes longer, or the process has ended."""
        try:
            if not self._connection.poll(seconds):
                return None
            head, _newline, body = self._connection.recv_bytes().partition(b"\n")
        except (OSError, EOFError, ValueError):
            return None
        self._awaited = False
        status, content_type = json.loads(head)
        return Answer(status, content_type, body)


def ask_all(wires: Mapping[int, Asking | None], path: str, timeout: float) -> dict[int, Answer | None]:
    """Ask processes, by their numbers, for a path; None for one that does not answer within `timeout` seconds."""
    with ExitStack() as held:
        for wire in filter(None, wires.values()):
            held.enter_context(wire.lock)
        deadline = time.monotonic() + timeout
        asked = {number: wire for number, wire in wires.items() if wire is not None and wire.ask(path)}
        return {
            number: asked[number].answer(max(0.0, deadline - time.monotonic())) if number in asked else None
            for number in wires
        }


def take() -> Connection | None:
    """Return this process's end of the wire, None when it has none, and take it out of the environment."""
    text = os.environ.pop(WIRE, None)
    if text is None:
        return None
    try:
        # What this process starts in its turn is not to keep it open.
        os.set_inheritable(int(text), False)
        return Connection(int(text))
    except (OSError, ValueError):
        log.warning("%s is %r in the environment, and no wire: the supervisor cannot ask this process", WIRE, text)
        return None


@contextmanager
def answering(connection: Connection | None, routes: Routes) -> Iterator[None]:
    """Answer the supervisor meanwhile; without a connection do nothing."""
    if connection is None:
        yield
        return
    threading.Thread(target=_answer, args=[connection, routes], name="kafka-wire", daemon=True).start()
    try:
        yield
    finally:
        with suppress(OSError):
            connection.close()


def _answer(connection: Connection, routes: Routes) -> None:
    try:
        while True:
            answer = answer_of(routes, connection.recv_bytes().decode())
            head = json.dumps([answer.status, answer.content_type]).encode()
            connection.send_bytes(head + b"\n" + answer.body)
            with suppress(Exception):  # a server that is gone
                connections.close_all()  # what the answer opened in this thread
    except (OSError, EOFError, ValueError, TypeError):
        return  # the supervisor is gone, or this process ends
