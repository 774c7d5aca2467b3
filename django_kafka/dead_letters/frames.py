"""Where in the project an error arose: the innermost of its functions that the error passed."""

from __future__ import annotations

import re
import sysconfig
import traceback as tracebacks
from functools import lru_cache
from pathlib import Path
from types import FrameType

_OURS = str(Path(__file__).resolve().parents[1])
_LIBRARY = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
_INNER = re.compile(r"\.<locals>\.<(?:listcomp|setcomp|dictcomp|genexpr|lambda)>")


def innermost(error: BaseException, handler: str) -> str:
    """Return module and name of the innermost function of the project in the traceback of an error; "": there is none.

    The project's code is what was not installed, and the package of the handler wherever that is. Without line numbers
    and comprehensions, which change while the cause stays the same.
    """
    package = handler.partition(".")[0]
    for frame, _line in reversed(list(tracebacks.walk_tb(error.__traceback__))):
        if is_projects(frame.f_code.co_filename) or (package and _package_of(frame) == package):
            return f"{_module_of(frame)}.{_INNER.sub('', frame.f_code.co_qualname)}"[:300]
    return ""


@lru_cache(1000)
def is_projects(path: str) -> bool:
    """Tell whether code in a file is the project's own: not Python's, not installed, not this package."""
    if path.startswith("<") or _INSTALLED.search(path):
        return False
    return not path.startswith((_OURS, *_LIBRARY))


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?"))


def _package_of(frame: FrameType) -> str:
    return _module_of(frame).partition(".")[0]
