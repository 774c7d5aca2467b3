"""`python -m tests.chaos`: break things on purpose for some minutes and judge what came of it."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from tests.servers import Unavailable

from .plan import Plan
from .records import GUARDED
from .report import Report
from .run import run

MINUTES = 3.0
RATE = 100.0


def main() -> int:
    """Run; return 1 when a promise was broken, 2 when the run itself failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="what all faults follow from (default: drawn, and printed)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long faults strike (default: %(default)g)")
    parser.add_argument("--rate", type=float, default=RATE, help="records a second (default: %(default)g)")
    guarantees = ("at_least_once", *GUARDED)
    what = "of one more consumer beside those of at_least_once (default: drawn; at_least_once: no more)"
    parser.add_argument("--guarantee", choices=guarantees, help=what)
    parser.add_argument("--keep", action="store_true", help="keep the run's directory even when all is well")
    lenient = "exit with 0 where a server is not installed, unless CI=true"
    parser.add_argument("--optional", action="store_true", help=lenient)
    options = parser.parse_args()
    if options.minutes <= 0 or options.rate <= 0:
        parser.error("--minutes and --rate must be above 0.")
    signal.signal(signal.SIGTERM, _leave)
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    plan = Plan.draw(seed, options.minutes * 60, options.guarantee)
    report = Report(Console(width=None if sys.stdout.isatty() else 140))
    report.seed(plan)
    directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    code, keep = 2, options.keep
    try:
        findings = run(plan, directory, report, rate=options.rate)
        code = 0 if all(finding.kept for finding in findings) else 1
        keep = keep or code != 0
        report.verdict(plan, findings, str(directory) if keep else "")
    except Unavailable as error:
        report.trouble(str(error))
        if options.optional and os.environ.get("CI", "").lower() not in {"1", "true", "yes"}:
            code = 0
    except Exception:  # noqa: BLE001  # said with where everything is kept
        keep = True
        traceback.print_exc()
        report.trouble(f"The run of seed {seed} could not be finished; what there is of it is in {directory}.")
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    return code


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
