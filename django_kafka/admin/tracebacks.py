"""The frames of the project in a stored traceback, which is text that may come from anybody."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..dead_letters.frames import is_projects
from . import showing

_MOST = 20
_FRAME = re.compile(r'^  File "(?P<file>[^"\n]{1,500})", line (?P<line>\d{1,9}), in (?P<function>[^\n]{1,300})$', re.M)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A function that an error passed, harmless."""

    function: str
    """Its name."""
    place: str
    """File and line."""
    code: str
    """The line, as it stood where the error was stored; "" when that was not known there."""


def of_project(traceback: str) -> list[Frame]:
    """Return the innermost frames of the project, the innermost first."""
    found = [one for one in _FRAME.finditer(traceback) if is_projects(one["file"])]
    return [_shown(one, traceback) for one in reversed(found[-_MOST:])]


def _shown(found: re.Match[str], traceback: str) -> Frame:
    after = traceback[found.end() + 1 : found.end() + 1000].partition("\n")[0]
    return Frame(
        function=showing.line(found["function"]),
        place=showing.line(f"{found['file']}:{found['line']}", 600),
        code=showing.line(after.strip(), 300) if after.startswith("    ") else "",
    )
