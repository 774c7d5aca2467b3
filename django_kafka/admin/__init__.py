"""The desk for dead letters: looked at, replayed, discarded; everything else is for reading only."""

from .audits import AuditEntryAdmin
from .claims import ClaimAdmin
from .controls import ControlAdmin
from .groups import FailureGroupAdmin
from .held import HoldAdmin
from .jobs import ReplayJobAdmin
from .letters import DeadLetterAdmin
from .others import ReplayAdmin, WorkerAdmin

__all__ = [
    "AuditEntryAdmin",
    "ClaimAdmin",
    "ControlAdmin",
    "DeadLetterAdmin",
    "FailureGroupAdmin",
    "HoldAdmin",
    "ReplayAdmin",
    "ReplayJobAdmin",
    "WorkerAdmin",
]
