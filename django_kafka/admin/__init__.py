"""The desk for dead letters: looked at, replayed, discarded; everything else is for reading only."""

from .claims import ClaimAdmin
from .groups import FailureGroupAdmin
from .held import HoldAdmin
from .letters import DeadLetterAdmin
from .others import ReplayAdmin, WorkerAdmin

__all__ = ["ClaimAdmin", "DeadLetterAdmin", "FailureGroupAdmin", "HoldAdmin", "ReplayAdmin", "WorkerAdmin"]
