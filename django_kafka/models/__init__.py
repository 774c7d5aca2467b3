"""Rows: what could not be handled, what happened to it, and who works."""

from .dead_letters import DeadLetter, DeadLetterAttempt
from .holds import Hold
from .replays import Replay
from .workers import Tenure, Worker

__all__ = ["DeadLetter", "DeadLetterAttempt", "Hold", "Replay", "Tenure", "Worker"]
