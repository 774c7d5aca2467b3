"""Rows: what could not be handled, what happened to it, how far consumers are, and who works."""

from .claims import Claim, SettledMessage
from .dead_letters import DeadLetter, DeadLetterAttempt
from .failures import FailureGroup, FailureHour, FailureTally
from .holds import Hold
from .replays import Replay
from .workers import Tenure, Worker, WorkerPartition

__all__ = [
    "Claim", "DeadLetter", "DeadLetterAttempt", "FailureGroup", "FailureHour", "FailureTally", "Hold", "Replay",
    "SettledMessage", "Tenure", "Worker", "WorkerPartition",
]  # fmt: skip
