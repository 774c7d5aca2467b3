"""Loggers whose lines are data too: what a line says as `name=value` is also an attribute of its LogRecord."""

from __future__ import annotations

import logging
import re
from collections.abc import MutableMapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    # Generic for the type checker only, on Python 3.11.
    _Adapter = logging.LoggerAdapter

_PLACE = re.compile(r"(?:(?<![%\w])([a-z_]+)=)?%(?:%|[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])")
_TAKEN = {*vars(logging.makeLogRecord({})), "message", "asctime"}
"""What every LogRecord has by itself; logging refuses to have it overwritten."""


class Lines(_Adapter):
    """A logger of ours. Formatters that write JSON find the values of its lines by name, and need not read the text."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log a line, with what it says as `name=value` in `extra`."""
        if self.isEnabledFor(level):
            extra = {name: args[place] for place, name in _named(str(msg)) if place < len(args)}
            extra |= kwargs.pop("extra", None) or {}
            # The line is logged where it stands, not here.
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            try:
                self.logger.log(level, msg, *args, extra=extra, **kwargs)
                return
            except KeyError:
                # A factory of the project gives its LogRecords one of these names: no line may fail for that.
                pass
            # Not there: this exception would be the one that the line tells of.
            self.logger.log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Leave a line as it is."""
        return msg, kwargs


def of(name: str) -> Lines:
    """Return the logger of this name."""
    return Lines(logging.getLogger(name))


class _Given:
    """The level that was given to our logger here, and not by LOGGING."""

    level = logging.NOTSET


def obey(level: str | None) -> None:
    """Give the logger of this package a level, unless LOGGING gives it one; None: leave it as LOGGING has it."""
    logger, given = logging.getLogger(__package__), logging.NOTSET if level is None else getattr(logging, level)
    if logger.level in (logging.NOTSET, _Given.level):
        logger.setLevel(given)
        _Given.level = given


@cache
def _named(line: str) -> tuple[tuple[int, str], ...]:
    """Return the number and name of each argument of a line that has a name in it."""
    places = [found[1] for found in _PLACE.finditer(line) if not found[0].endswith("%%")]
    return tuple((number, name) for number, name in enumerate(places) if name and name not in _TAKEN)
