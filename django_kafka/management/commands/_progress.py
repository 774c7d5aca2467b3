"""How far a command is: a bar on a terminal where rich is installed, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...legible import printable
from ...models import Replay

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
except ImportError:
    Bar = None  # type: ignore[assignment,misc]

_LINE_EVERY = 2.0


class Progress:
    """Lines: each failure, each refusal, each wait, and now and then how many are done."""

    def __init__(self, out: Any, total: int) -> None:
        self._out = out
        self._total = total
        self._said = time.monotonic()
        self.done = 0

    def finished(self, replay: Replay) -> None:
        """Count a replay that came to its end here."""
        if replay.state in (Replay.State.FAILED, Replay.State.CANCELLED):
            self.say(f"{replay.letter} {replay.state}: {_line(replay.result)}")
        self.advance(1)

    def finished_elsewhere(self, count: int) -> None:
        """Count replays that a worker took."""
        self.say(f"Carried out or cancelled elsewhere: {count}.")
        self.advance(count)

    def wait(self, error: Exception, pause: float) -> None:
        """Say why nothing goes on."""
        self.say(f"Waiting {pause:.1f} s: {type(error).__name__}: {_line(str(error))}")

    def advance(self, count: int) -> None:
        """Move on."""
        self.done += count
        if time.monotonic() - self._said >= _LINE_EVERY:
            self._said = time.monotonic()
            self.say(f"{self.done} of {self._total}")

    def say(self, text: str) -> None:
        """Write a line."""
        self._out.write(text)


class _OnTerminal(Progress):
    def __init__(self, out: Any, total: int, bar: Any, doing: str) -> None:
        super().__init__(out, total)
        self._bar = bar
        self._task = bar.add_task(doing, total=total)

    def advance(self, count: int) -> None:
        self.done += count
        self._bar.advance(self._task, count)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)


@contextmanager
def progress(out: Any, total: int, doing: str = "Replaying") -> Iterator[Progress]:
    """Show how far `total` of what it does are on the command's `out`."""
    if Bar is None or not out.isatty():
        yield Progress(out, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(file=out._out)) as bar:
        yield _OnTerminal(out, total, bar, doing)


def _line(text: str) -> str:
    first = next((each for each in text.splitlines() if each.strip()), "")
    # A terminal obeys control characters, and an error may quote a stranger's message.
    return printable(first)[:300]
