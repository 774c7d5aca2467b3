"""The peers' virtual environments, made on first use: one of them owns our import name, so none shares ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent / ".environments"
PEERS = {
    "aiokafka": "aiokafka==0.14.*",
    "regiohelden": "django-kafka==5.1.*",
    "faststream": "faststream[confluent]==0.7.*",
}
"""Peer → what pip is told."""


class Missing(Exception):
    """A peer's environment cannot be made; says why."""


def peer_of(case: str) -> str | None:
    """Return the peer that a case belongs to; None: ours or the raw client's."""
    peer = case.partition("_")[0]
    return peer if peer in PEERS else None


def interpreter(peer: str, root: Path = ROOT) -> Path:
    """Return the Python of a peer's environment, made now if need be. Raises `Missing`."""
    home = root / peer
    python, ready = home / "bin" / "python", home / "ready"
    wanted = f"{PEERS[peer]} {sys.version_info[0]}.{sys.version_info[1]}"
    if python.exists() and ready.exists() and ready.read_text("utf-8") == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(home)], f"The environment of {PEERS[peer]}")
    quiet = ["-q", "--disable-pip-version-check", "--retries", "1"]
    _run([str(python), "-m", "pip", "install", *quiet, PEERS[peer]], f"{PEERS[peer]}")
    ready.write_text(wanted, "utf-8")
    return python


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        # Not pip's own words, which name addresses; they went to the terminal.
        print(done.stdout, file=sys.stderr)
        raise Missing(f"{name} cannot be installed here (pip ended with code {done.returncode}).")
