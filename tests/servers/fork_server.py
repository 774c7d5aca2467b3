"""Starts programs of Django as forks of a process that has read its modules, which is most of what a start takes.

    python fork_server.py SOCKET

What runs afterwards is what `python -m MODULE …`, or `python -c CODE …`, runs: settings are read, applications set up
and threads started in the new process alone. It is no child of this one but of the process that asked, which waits for
it as for any other. `forking` asks. Standard library only, besides what is read ahead.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import platform
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

CLONE_PARENT = 0x8000
CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine()) if sys.platform == "linux" else None
"""The number of the system call; None: nothing is forked here."""
ROOT = Path(__file__).resolve().parents[2]
_AHEAD = (
    "confluent_kafka.admin", "confluent_kafka.schema_registry", "django.contrib.admin", "django.contrib.auth.hashers",
    "django.core.cache", "django.core.mail", "django.core.management", "django.db.backends.postgresql.base",
    "django.db.backends.sqlite3.base", "django.db.migrations.executor", "django.forms", "django.template.loader",
    "django.views.generic", "django_prometheus", "opentelemetry.trace", "prometheus_client", "psycopg",
)  # fmt: skip
"""Modules that are read ahead, besides our own, where they are there and need no settings."""


class Request(NamedTuple):
    """What is to be run."""

    parent: int
    """Who asks."""
    how: str
    """-m or -c."""
    what: str
    """A module, or code."""
    arguments: list[str]
    env: dict[str, str]
    cwd: str


def read_ahead() -> None:
    """Read the modules that need no settings; the others are left for whoever has some."""
    for name in in_a_child(readable):
        importlib.import_module(name)
    # What is garbage by now is not looked for in every fork.
    gc.collect()
    gc.freeze()


def readable() -> list[str]:
    """Find out by reading them which modules those are. A package that cannot be read leaves half of itself behind."""
    import django_kafka

    ours = pkgutil.walk_packages(django_kafka.__path__, "django_kafka.", onerror=lambda _name: None)
    return [name for name in (*_AHEAD, *(one.name for one in ours)) if _is_readable(name)]


def _is_readable(name: str) -> bool:
    from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured

    try:
        importlib.import_module(name)
    # What has models, what asks for settings, and an extra that is not there.
    except (AppRegistryNotReady, ImproperlyConfigured, ImportError):
        return False
    return True


def in_a_child(find: Callable[[], list[str]]) -> list[str]:
    """Return what `find` returns in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(find()).encode())
        except Exception:  # noqa: BLE001  # said here: nothing else of this process is to run
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        found: list[str] = json.load(pipe)
    os.waitpid(child, 0)
    return found


def clone() -> int:
    """Fork a process whose parent is ours; return its pid, and 0 there. Raises `OSError`."""
    python = ctypes.PyDLL(None, use_errno=True)
    python.PyOS_BeforeFork()
    pid, number = int(python.syscall(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)), ctypes.get_errno()
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return pid
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, os.strerror(number))
    return pid


def serve(channel: socket.socket) -> Request:
    """Fork for each request; return it in the process that is to carry it out."""
    while True:
        data, outputs, _flags, _address = socket.recv_fds(channel, 1 << 20, 2)
        if not data:
            raise SystemExit  # whoever asked is gone
        request = Request(*json.loads(data))
        pid = clone()
        if pid == 0:
            channel.close()
            _settle(request, *outputs)
            return request
        for output in outputs:
            os.close(output)
        channel.send(str(pid).encode())


def _settle(request: Request, output: int, errors: int) -> None:
    """Make this process what `Popen` would have made."""
    from leash import hold  # beside this script, which is in no package when it runs

    os.setsid()
    hold(signal.SIGKILL)
    if os.getppid() != request.parent:
        raise SystemExit("The process that asked for this one is gone.")
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, there in enumerate((nothing, output, errors)):
        os.dup2(there, number)
        os.close(there)
    os.chdir(request.cwd)
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request.env)
    time.tzset()
    wanted = [one for one in request.env.get("PYTHONPATH", "").split(os.pathsep) if one]
    # The folder of this script, then what PYTHONPATH named here, then what every interpreter has.
    kept = [one for one in sys.path[1:] if one not in own]
    sys.path[:] = [request.cwd if request.how == "-m" else "", *wanted, *kept]
    importlib.invalidate_caches()
    sys.argv = [request.what if request.how == "-m" else "-c", *request.arguments]
    sys.orig_argv = [sys.executable, request.how, request.what, *request.arguments]


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    sys.path.append(str(ROOT))
    read_ahead()
    sys.path.remove(str(ROOT))
    request = serve(channel)
    if request.how == "-m":
        runpy.run_module(request.what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = module = ModuleType("__main__")
        exec(compile(request.what, "<string>", "exec"), vars(module))  # as `python -c` does


if __name__ == "__main__":
    main()
