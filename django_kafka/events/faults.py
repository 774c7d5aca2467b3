"""What is wrong with a payload: where, and what was expected; never what it says.

Payloads are masked, and what quotes one would tell it.
"""

from __future__ import annotations

_LONGEST = 200
"""Characters of a path: the names in it may be a stranger's."""


class Unfit(ValueError):
    """A value that is not of the type that it should have: `legs[2].departed`: expected datetime, got str."""

    def __init__(self, what: str, path: str = "") -> None:
        self.what = what
        self.path = path
        super().__init__(f"`{path[:_LONGEST]}`: {what}" if path else what)

    def below(self, path: str) -> Unfit:
        """Return the same, for a value that is at `path` of another one."""
        return Unfit(self.what, path + (f".{self.path}" if self.path[:1] not in ("", "[") else self.path))
