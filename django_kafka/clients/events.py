"""What the client that receives tells while it polls."""

from __future__ import annotations

from collections.abc import Mapping

Place = tuple[str, int]
"""Topic and partition."""


class Events:
    """What the client tells while it polls. None of these may raise: that would discard fetched messages."""

    def assigned(self, places: list[Place]) -> None:
        """Partitions came."""

    def revoked(self, places: list[Place], lost: bool) -> None:
        """Partitions leave (`lost`: have left without notice)."""

    def at_end(self, place: Place) -> None:
        """A partition has nothing more for now."""

    def out_of_log(self, place: Place, sentence: str) -> None:
        """The next message of a partition is not there, and nothing says where to go on."""

    def committed(self, offsets: Mapping[Place, int], refused: str | None, sentence: str) -> None:
        """The group has these offsets; or it has refused a commit, with this code and for this reason."""

    def trouble(self, code: str, sentence: str, topic: str | None) -> None:
        """Something went wrong that the client itself goes on from."""
