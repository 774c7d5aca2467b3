"""The way to one address: its name, a connection, its certificate, and whether a broker answers there."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

from . import hello
from .budget import Budget, Late, side_by_side, within
from .findings import Finding, State, error, note, unseen, warning, well
from .targets import Target

CHECKS = ("dns", "tcp", "tls", "version", "mechanism")
"""In the order in which they are looked at."""
_MOST = 8
"""Addresses of one name that are tried."""
_FAMILIES = {"v4": socket.AF_INET, "v6": socket.AF_INET6}


def look(target: Target, budget: Budget) -> list[Finding]:
    """Return what is found on the way to one address. What fails keeps the rest from being looked at."""
    found: list[Finding] = []
    try:
        places = _resolve(target, budget, found)
        place = places and _connect(target, places, budget.part(0.5), found)
        if place:
            found += hello.look(target, place, budget)
    except Late:
        done = {one.check for one in found}
        check = next(name for name in CHECKS if name not in done)
        found.append(error(check, f"There is no answer within {budget.seconds:.1f} s.", target.mend, of=str(target)))
    seen = {one.check for one in found}
    failed = next((one.check for one in found if one.state is State.ERROR), "")
    if failed:
        found += [unseen(check, f"because {failed} failed", of=str(target)) for check in CHECKS if check not in seen]
    return found


def _resolve(target: Target, budget: Budget, found: list[Finding]) -> list[str]:
    family = _FAMILIES.get(target.family, socket.AF_UNSPEC)
    ask = partial(socket.getaddrinfo, target.host, target.port, family, socket.SOCK_STREAM)
    try:
        answers = within(budget, ask)
    except (OSError, UnicodeError) as trouble:
        why = getattr(trouble, "strerror", None) or type(trouble).__name__
        kind = {"v4": " with IPv4", "v6": " with IPv6"}.get(target.family, "")
        saw = f"The name {target.host!r}, which {target.named_by}, is not known here{kind} ({why})."
        found.append(error("dns", saw, f"{target.mend} Or mend the DNS of this machine.", of=str(target)))
        return []
    places = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    if places == [target.host]:
        saw = f"{target.host} is a number, no name."
    else:
        v4, v6 = [one for one in places if ":" not in one], [one for one in places if ":" in one]
        kinds = [f"{', '.join(each)} ({kind})" for kind, each in (("IPv4", v4), ("IPv6", v6)) if each]
        saw = f"{target.host} is {' and '.join(kinds)}."
    found.append(well("dns", saw, of=str(target), addresses=places))
    return places


def _connect(target: Target, places: list[str], budget: Budget, found: list[Finding]) -> str | None:
    """Return a number at which somebody takes connections."""
    tried = places[:_MOST]
    seconds = budget.left
    answers = side_by_side(budget, [partial(_try, place, target.port, seconds) for place in tried])
    good, refused, silent = [], [], []
    for place, answer in zip(tried, answers, strict=True):
        match answer:
            case float():
                good.append((answer, place))
            case Late() | TimeoutError():
                silent.append(place)
            case _:
                refused.append(f"{place} ({_why(answer)})")
    made: Callable[..., Finding] = well
    if not good:
        saw = f"No connection to {target}: {'; '.join([*refused, *(f'{one} (no answer)' for one in silent)])}."
        hint = "Nothing listens there: is the broker running, and is this its port?"
        if silent:
            hint = "A firewall or a wrong address swallows what is sent."
        found.append(error("tcp", saw, f"{hint} {target.mend}", of=str(target)))
        return None
    quickest, chosen = min(good)
    saw = f"Connected in {quickest * 1000:.0f} ms."
    mend = f'Mend its DNS, or set {target.path}["connection"]["options"]["broker.address.family"] to v4 or v6.'
    if silent:
        made = partial(warning, mend=mend)
        saw += f" But {', '.join(silent)} of the same name does not answer: clients that try it first wait."
    elif refused:
        made = partial(note, mend=mend)
        saw += f" But {'; '.join(refused)} of the same name is refused: clients try it in vain now and then."
    found.append(made("tcp", saw, of=str(target), milliseconds=round(quickest * 1000, 1)))
    return chosen


def _try(place: str, port: int, seconds: float) -> float | OSError:
    began = time.monotonic()
    try:
        with closing(socket.create_connection((place, port), timeout=seconds)):
            return time.monotonic() - began
    except OSError as trouble:
        return trouble


def _why(trouble: object) -> str:
    if isinstance(trouble, ConnectionRefusedError):
        return "refused"
    return (getattr(trouble, "strerror", None) or type(trouble).__name__).lower()
