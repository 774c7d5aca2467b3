"""Rows: what could not be handled, what happened to it, how far consumers are, and who works."""

from .audit import AuditEntry
from .claims import Claim, SettledMessage
from .controls import Control, Pause
from .dead_letters import DeadLetter, DeadLetterAttempt
from .failures import FailureGroup, FailureHour, FailureTally
from .holds import Hold
from .jobs import JobLane, ReplayJob
from .replays import Replay
from .words import LetterWords
from .workers import Tenure, Worker, WorkerPartition

__all__ = [
    "AuditEntry", "Claim", "Control", "DeadLetter", "DeadLetterAttempt", "FailureGroup", "FailureHour",
    "FailureTally", "Hold", "JobLane", "LetterWords", "Pause", "Replay", "ReplayJob", "SettledMessage", "Tenure",
    "Worker", "WorkerPartition",
]  # fmt: skip
