"""Where and with what a run was made. No host name, no path."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from confluent_kafka import libversion

from tests.servers.kafka import VERSION as KAFKA

OURS = ("django-lynx-kafka", "Django", "confluent-kafka", "psycopg")


def machine() -> dict[str, str]:
    """Describe the machine: processor, cores, memory, system, Python."""
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(os.cpu_count() or 1),
        "memory": _memory(),
        "system": f"{_system()} ({platform.machine()})",
        "Python": platform.python_version(),
    }


def versions(packages: Iterable[str] = OURS) -> dict[str, str]:
    """Name the versions of what took part, of this environment."""
    found = {"Apache Kafka": KAFKA, "librdkafka": libversion()[0]}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _memory() -> str:
    words = _line("/proc/meminfo", "MemTotal").split()
    return f"{int(words[0]) / 1024**2:.0f} GiB" if words else "unknown"


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _line(file: str, name: str) -> str:
    try:
        lines = Path(file).read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
