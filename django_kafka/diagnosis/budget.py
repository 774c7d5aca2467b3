"""Time that is shared by checks, and things done side by side in it: nothing is waited for any longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_Answer = TypeVar("_Answer")

LEAST = 0.05
"""Seconds that are given even when all are used up: what is at hand answers in them."""


class Budget:
    """So many seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """How many are left; never quite none."""
        return max(LEAST, self._ends - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether none is left."""
        return time.monotonic() >= self._ends

    def part(self, share: float) -> Budget:
        """Return a budget of a part of what is left."""
        return Budget(self.left * share)


class Late(Exception):
    """Something did not end in its time."""


def within(budget: Budget, job: Callable[[], _Answer]) -> _Answer:
    """Return what a job returns. Raises what it raises, and `Late` when it is still at it."""
    (answer,) = side_by_side(budget, [job])
    if isinstance(answer, Late):
        raise answer
    return answer


def side_by_side(budget: Budget, jobs: Sequence[Callable[[], _Answer]]) -> list[_Answer | Late]:
    """Do jobs in threads of their own and return their answers in order, a `Late` for each that is still at it.

    Raises what the first of them raised. What is late goes on unheard; it does not keep the process from ending.
    """
    tasks = [_Task(job) for job in jobs]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(budget.left)
    return [task.answer() for task in tasks]


class _Task(threading.Thread, Generic[_Answer]):
    def __init__(self, job: Callable[[], _Answer]) -> None:
        # Looking up a name cannot be interrupted: an ordinary thread would be waited for at exit.
        super().__init__(name="kafka-doctor", daemon=True)
        self._job = job
        self._answers: list[_Answer] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._answers.append(self._job())
        except Exception as error:  # noqa: BLE001  # it is raised where the answer is asked for
            self._error = error

    def answer(self) -> _Answer | Late:
        if self._error is not None:
            raise self._error
        return self._answers[0] if self._answers else Late()
