"""What was measured is kept after every case: a run that was interrupted is gone on with, `--resume`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .outcomes import Results

HOME = Path(__file__).resolve().parent.parent


class CannotResume(Exception):
    """What is kept is no beginning of what is asked for; says why."""


def sources(home: Path = HOME) -> str:
    """Return what tells whether two runs measured the same code."""
    digest = hashlib.sha256()
    for directory in ("django_kafka", "benchmarks"):
        for file in sorted(home.glob(f"{directory}/**/*.py")):
            # What is below a name with a dot are the peers' environments.
            if not any(part.startswith(".") for part in file.relative_to(home).parts):
                digest.update(file.relative_to(home).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def resumed(file: Path, run: Mapping[str, Any], machine: Mapping[str, Any]) -> tuple[Results, dict[str, str]]:
    """Return the rows and the versions of a run that was interrupted. Raises `CannotResume`."""
    kept = _read(file)
    if kept is None:
        raise CannotResume(f"There is nothing to resume: {file.name} is not there.")
    if kept.get("complete", True):
        raise CannotResume(f"There is nothing to resume: {file.name} is of a run that came to its end.")
    asked = {**run, **{f"machine: {name}": value for name, value in machine.items()}}
    had = {**kept["run"], **{f"machine: {name}": value for name, value in kept["machine"].items()}}
    for name, value in asked.items():
        if had.get(name) != value:
            raise CannotResume(
                f"{file.name} is of another run ({name}: {had.get(name)!r}, now {value!r}): "
                "begin anew, without --resume."
            )
    # What was missing may be there now.
    rows = {case: [row for row in found if "missing" not in row] for case, found in kept["rows"].items()}
    return rows, kept["versions"]


def usual_seconds(file: Path) -> dict[str, float]:
    """Return how long each case took in the run that is kept, as a first guess; empty when there is none."""
    rows: Mapping[str, Sequence[Mapping[str, float]]] = (_read(file) or {}).get("rows", {})
    return {case: found[-1]["took_seconds"] for case, found in rows.items() if found and "took_seconds" in found[-1]}


def keep(file: Path, text: str) -> None:
    """Replace what is kept, whole or not at all."""
    file.parent.mkdir(exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(file)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return kept
