"""Django settings of the processes of a chaos run: those of the journeys, with a clock that can be stepped."""

from __future__ import annotations

import os
from pathlib import Path

from tests.chaos.clock import SteppedClock
from tests.chaos.plan import CLOCK_FILE
from tests.journeys.settings import *  # noqa: F403

LOGGING["formatters"]["line"]["()"] = "tests.chaos.clock.TrueTime"  # type: ignore[index]  # noqa: F405

SteppedClock(Path(os.environ["CHAOS_CONTROL"]) / CLOCK_FILE).install()
