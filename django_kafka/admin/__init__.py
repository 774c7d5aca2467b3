"""The desk for dead letters: looked at, replayed, discarded; everything else is for reading only."""

from .letters import DeadLetterAdmin
from .others import ReplayAdmin, WorkerAdmin

__all__ = ["DeadLetterAdmin", "ReplayAdmin", "WorkerAdmin"]
