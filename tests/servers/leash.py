"""Become another program that ends when its parent does: `python leash.py PARENT_PID USER SIGNAL PROGRAM [ARGUMENT …]`.

The kernel sends the signal when the thread that started us is gone, whatever ended it; nothing has to be cleaned up by
a process that was killed. USER is "-" for no change. Standard library only, because it runs before everything else.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

PR_SET_PDEATHSIG = 1


def hold(signal_number: int) -> None:
    """Ask the kernel for a signal at the parent's death, where the kernel has that."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal_number)


def leashed(signal_number: int, user: str = "-") -> list[str]:
    """Return what begins the command of a program that this process starts, for it to get the signal at our death."""
    return [sys.executable, "-S", "-E", __file__, str(os.getpid()), user, str(int(signal_number))]


def become(user: str) -> None:
    """Give up root for an ordinary user."""
    account = pwd.getpwnam(user)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)


def main() -> None:
    parent, user, signal_number, *command = sys.argv[1:]
    if user != "-":
        become(user)
    hold(int(signal_number))  # after the change of user, which would undo it
    if os.getppid() != int(parent):
        sys.exit("The process that asked for this one is gone.")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
