"""What tests of `kafka_doctor` share: running it, and asking what it said of one thing."""

from __future__ import annotations

import io
import json
from typing import Any

from django.core.management import call_command

HANDLER = "tests.app.handlers.record"


def doctor(*arguments: str) -> tuple[int, str]:
    """Return the exit code of the command, and what it wrote."""
    out = io.StringIO()
    try:
        call_command("kafka_doctor", *arguments, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


class Told:
    """What it told a program."""

    def __init__(self, *arguments: str) -> None:
        self.code, self.text = doctor("--json", *arguments)
        self.whole = json.loads(self.text)
        self.checks: list[dict[str, Any]] = self.whole["checks"]

    def of(self, check: str, part: str = "cluster", state: str = "") -> list[dict[str, Any]]:
        """Return what was found by one check in parts whose names begin so."""
        found = [one for one in self.checks if one["check"] == check and one["part"].startswith(part)]
        return [one for one in found if not state or one["state"] == state]

    def one(self, check: str, part: str = "cluster", state: str = "") -> dict[str, Any]:
        """Return it, when it is one thing."""
        found = self.of(check, part, state)
        assert len(found) == 1, self.text
        return found[0]

    def states(self, part: str = "cluster") -> dict[str, str]:
        """Return the state of each check."""
        return {one["check"]: one["state"] for one in self.checks if one["part"].startswith(part)}

    def wrong(self) -> list[tuple[str, str]]:
        """Return checks and states of what is not well, that nobody consumes left out."""
        return [
            (one["check"], one["state"])
            for one in self.checks
            if one["state"] in ("warning", "error") and one["check"] != "workers"
        ]


def consumers(topic: str, **more: Any) -> dict[str, Any]:
    """Return settings of one consumer, "ops"."""
    return {"ops": {"group_id": f"group-{topic}", "topics": {topic: {"handler": HANDLER}}, **more}}
