"""Asks the fork server for programs, where one that is forked is the same as one that is started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import fork_server
from .leash import leashed

_FORKED = {"django", "tests"}
"""Packages whose modules are run in forks; code always is."""
_READ_AT_START = (
    "GLIBC_", "LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "OTEL_", "PROMETHEUS_", "PSYCOPG_", "PYTHON", "SSL_",
    "prometheus_",
)  # fmt: skip
"""What begins like this in the environment is read by an interpreter or a module as it starts."""


class ForkServer:
    """The process that forks. Started when first needed; to be used by one thread, at whose end it ends too."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._read: dict[str, str] = {}
        """What it has read of its environment as it started."""

    def start(
        self,
        command: Sequence[str],
        outputs: tuple[int, int],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> int | None:
        """Start a program; return its pid, or None for what is not forked.

        `outputs` are for what it says, and for its errors.
        """
        if not _is_forked(*command):
            return None
        if self._socket is None:
            self._socket, self._read = self._run(), _read_at_start(os.environ)
        mine = dict(os.environ if env is None else env)
        if _read_at_start(mine) != self._read:
            return None
        _python, how, what, *arguments = command
        request = fork_server.Request(os.getpid(), how, what, arguments, mine, str(cwd or Path.cwd()))
        socket.send_fds(self._socket, [json.dumps(request).encode()], outputs)
        if not (answer := self._socket.recv(1000)):
            raise RuntimeError("The fork server has ended; it has said why.")
        return int(answer)

    def close(self) -> None:
        """Have it end; what it has started goes on."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()
            self._socket = None

    def _run(self) -> socket.socket:
        ours, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # What can be read without settings is to be read, and nothing with those of this process.
        env = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        with others:
            self._process = subprocess.Popen(
                [*leashed(signal.SIGKILL), sys.executable, fork_server.__file__, str(others.fileno())],
                stdin=subprocess.DEVNULL,
                env=env,
                cwd=fork_server.ROOT,
                pass_fds=[others.fileno()],
                start_new_session=True,
            )
        return ours


def _is_forked(python: str, how: str = "", what: str = "", *_arguments: str) -> bool:
    if fork_server.CLONE is None or python != sys.executable:
        return False
    return how == "-c" or (how == "-m" and what.split(".")[0] in _FORKED)


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_AT_START) and name != "PYTHONPATH"}
