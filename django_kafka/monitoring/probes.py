"""What an orchestrator is answered that asks whether workers live and are ready: `/live` and `/ready`.

Live is 200 unless only a restart helps, and so for as long as an outage takes: who restarts workers for an outage makes
it worse. Ready is 200 while all of them do their work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .server import PLAIN, Answer

LIVE, READY = "/live", "/ready"


def answer(reasons: Iterable[str]) -> Answer:
    """Return the answer to a probe, of what speaks against it."""
    found = [one for one in reasons if one]
    return Answer(503 if found else 200, PLAIN, ("\n".join(found or ["ok"]) + "\n").encode())


def together(path: str, answers: Mapping[int, Answer | None]) -> Answer:
    """Return the answer of a supervisor, of what its processes answer; None of one that does not run, or not answer.

    That one is started again by the supervisor: to restart all of them would not help.
    """
    reasons = []
    for number, one in sorted(answers.items()):
        if one is None:
            reasons += [f"process {number} does not answer"] * (path == READY)
        elif one.status != 200:
            reasons += [f"process {number}: {line}" for line in one.body.decode(errors="replace").splitlines()]
    return answer(reasons)
