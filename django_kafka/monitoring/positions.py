"""Where a group is in one partition, and how far it is behind the end."""

from __future__ import annotations

from dataclasses import dataclass

from ..clients.groups import Ends

Place = tuple[str, int]
"""A topic as Kafka knows it, and a partition."""
_LOW, _HIGH = ("earliest", "smallest", "beginning"), ("latest", "largest", "end")
"""What librdkafka calls them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What a group has committed in one partition, against the log."""

    topic: str
    """As Kafka knows it."""
    partition: int
    """Its number."""
    committed: int | None
    """The offset that the group reads next; None: it has committed nothing."""
    log: Ends
    """Where the partition begins and ends."""
    claimed: int | None = None
    """The offset of its claim, which goes before what is committed; None: it has none."""
    reset: str
    """Where the consumer begins without an offset that is there, as librdkafka calls it."""

    @property
    def place(self) -> Place:
        """The topic and the partition."""
        return self.topic, self.partition

    @property
    def position(self) -> int | None:
        """The offset that the group reads next, if it is there; None: it has none."""
        return self.committed if self.claimed is None else self.claimed

    @property
    def gone(self) -> bool:
        """Whether its position is outside of the log: deleted since, or of an earlier topic of this name."""
        return self.position is not None and not self.log.low <= self.position <= self.log.high

    @property
    def reads_from(self) -> int | None:
        """The offset at which a worker that starts now begins; None: it refuses."""
        if self.position is not None and not self.gone:
            return self.position
        if self.claimed is not None:
            return None
        if self.reset in _LOW:
            return self.log.low
        return self.log.high if self.reset in _HIGH else None

    @property
    def lag(self) -> int | None:
        """How many messages it has still to read; None when it cannot begin."""
        return None if self.reads_from is None else self.log.high - self.reads_from
