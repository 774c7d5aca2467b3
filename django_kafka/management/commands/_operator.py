"""Who runs a command, and whether they agree."""

from __future__ import annotations

import getpass
import os
import sys
from typing import Any


def user() -> str:
    """Return the name of the user that the process belongs to."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return str(os.getuid()) if hasattr(os, "getuid") else "?"


def somebody_is_there() -> bool:
    """Tell whether a question can be answered."""
    return sys.stdin is not None and sys.stdin.isatty()


def agrees(err: Any, question: str) -> bool:
    """Ask on standard error, so that what is written for programs stays whole, and tell whether the answer is yes."""
    err.write(f"{question} Type 'yes' to go on: ", ending="")
    err.flush()
    return sys.stdin.readline().strip().lower() == "yes"
