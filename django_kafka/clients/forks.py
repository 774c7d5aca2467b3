"""What a fork leaves behind in the C library, and how the child gets over it.

librdkafka resolves names with `AI_ADDRCONFIG`, for which glibc asks the kernel for this machine's addresses, under a
lock that `fork()` does not free (its `check_pf.c`). A child forked at that moment would wait for it for ever, at its
first connection to a broker: nothing that it sends would arrive. So it is freed there; no other lock, nowhere else.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

_FUTEX = {"x86_64": 202, "aarch64": 98}
"""The number of the system call that waits for a lock."""
_WAIT, _WAKE = 128, 129
"""Its operations for locks of one process: FUTEX_WAIT and FUTEX_WAKE with FUTEX_PRIVATE_FLAG."""
_CONTENDED = 2
"""The value of glibc's own locks while somebody waits."""
_LOOKS = 500
_BETWEEN = 0.02
"""Seconds between two looks. What is not held answers within a fraction of one."""

_clients = False
"""Whether this process, or one that it was forked from, has made a client."""


def note_client() -> None:
    """Note that there is a client, whose threads resolve names."""
    global _clients
    _clients = True


def _free_what_is_held() -> None:
    """Free the lock in a child that has no other thread yet, which is why nobody can hold it rightly."""
    number = _FUTEX.get(platform.machine())
    if not _clients or number is None or not os.path.exists("/proc/self/task"):
        return
    probe = threading.Thread(target=_resolve, name="kafka-fork", daemon=True)
    probe.start()
    for _ in range(_LOOKS):
        probe.join(_BETWEEN)
        if not probe.is_alive():
            return
        if (place := _waits_at(probe.native_id or 0, number)) is not None:
            lock = ctypes.c_int.from_address(place)
            if lock.value == _CONTENDED:
                lock.value = 0
                ctypes.CDLL(None).syscall(number, ctypes.c_void_p(place), _WAKE, 1, None, None, 0)


def _resolve() -> None:
    # A host that has no IPv4 address refuses, after the lock.
    with suppress(OSError):
        socket.getaddrinfo("127.0.0.1", 9, flags=socket.AI_ADDRCONFIG)


def _waits_at(thread: int, number: int) -> int | None:
    """Return the address of the C library's lock that a thread of this process waits for; None: it waits for none."""
    try:
        call = Path(f"/proc/self/task/{thread}/syscall").read_text().split()
        if len(call) < 3 or int(call[0]) != number or int(call[2], 16) != _WAIT:
            return None
        place = int(call[1], 16)
        return place if any(first <= place < last for first, last in _data_of_the_c_library()) else None
    except (OSError, ValueError):
        return None


def _data_of_the_c_library() -> list[tuple[int, int]]:
    """Return where the C library has its variables: what of it can be written, and what follows without a name."""
    found, named = [], False
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_numbers, name = [*line.split(None, 5), ""][:6]
        named = re.search(r"/libc(-[\d.]+)?\.so", name) is not None or (named and not name)
        if named and rights.startswith("rw"):
            first, last = (int(one, 16) for one in place.split("-"))
            found.append((first, last))
    return found


os.register_at_fork(after_in_child=_free_what_is_held)
