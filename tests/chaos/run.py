"""A run from its beginning to its verdict."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from . import books, sending, verdict
from .books import Books, End, Sample
from .faults import Faults
from .plan import BEGUN_FILE, LEFT_FILE, Plan
from .report import Report
from .verdict import Finding
from .watching import Watcher
from .workers import Sender, Workers
from .world import World

STUCK_AFTER = 60.0
"""Seconds without any commit after which the workers count as stuck, once all faults are over."""
SENT_WITHIN = 150.0
"""Seconds within which every record that was sent has to be acknowledged or failed: more than `delivery_timeout`."""


def run(plan: Plan, directory: Path, report: Report, *, rate: float) -> list[Finding]:
    """Carry a plan out and return the verdict. What is needed to look into it stays in `directory`."""
    world = World(directory=directory)
    try:
        report.say("three brokers and a database server are started")
        world.build(plan.scenario, rate)
        found = _play(plan, world, report)
    finally:
        world.close()
    report.books(found)
    findings = verdict.judge(found)
    _keep(plan, found, findings, directory)
    return findings


def _play(plan: Plan, world: World, report: Report) -> Books:
    workers = Workers(world, plan.scenario.workers)
    watcher = Watcher(world)
    faults = Faults(plan, world, workers, report.say)
    workers.start_all()
    sender = Sender(world)
    watcher.start()
    report.say(f"{len(workers)} workers and a sender are started; faults strike for {plan.seconds:.0f} s")
    faults.start()
    deadline = time.monotonic() + plan.seconds
    while time.monotonic() < deadline and sender.alive and not faults.broken:
        _revive(workers, report)
        time.sleep(0.2)
    sender.stop()
    faults.end()
    report.faults(plan, faults.done)
    report.say("all faults are over")
    ends = [sender.end(SENT_WITHIN)]
    log_ends = world.log_ends()
    report.say(f"{sum(log_ends.values()):,} records are there; the workers finish, as long as they come on")
    last = _drain(workers, watcher, log_ends, report)
    watcher.end()
    echoes, ends = world.echoes(), [*ends, *workers.ends]
    effects = books.effects(world.project.dsn)
    return Books(
        sent=tuple(sending.read(world.book)),
        effects=effects,
        letters=books.letters(world.project.dsn),
        samples=(*watcher.samples, last),
        log_ends=log_ends,
        echoes=echoes,
        deaths=books.deaths(world.control / BEGUN_FILE, ends, effects),
        leaves=books.leaves(world.control / LEFT_FILE),
        ends=tuple(ends),
    )


def _revive(workers: Workers, report: Report) -> None:
    for end in workers.revive():
        report.trouble(str(end))


def _drain(workers: Workers, watcher: Watcher, log_ends: dict[int, int], report: Report) -> Sample:
    """Let the workers finish, stop them, and return what is committed in the end."""
    workers.start_all()
    began = moved = time.monotonic()
    come_to = -1
    while time.monotonic() - moved < STUCK_AFTER:
        _revive(workers, report)
        sample = watcher.next(60)
        if all(sample.committed[partition] >= end for partition, end in log_ends.items()):
            break
        if (now_at := sum(sample.committed.values())) > come_to:
            come_to, moved = now_at, time.monotonic()
    report.say(f"finished after {time.monotonic() - began:.0f} s; the workers are stopped")
    workers.stop_all()
    return watcher.next(60)


def _keep(plan: Plan, found: Books, findings: list[Finding], directory: Path) -> None:
    """Write the plan, the books and the verdict beside the logs."""
    contents = {
        "plan": asdict(plan),
        "effects": [asdict(one) for one in found.effects],
        "letters": [asdict(one) for one in found.letters],
        "samples": [asdict(one) for one in found.samples],
        "leaves": [asdict(one) for one in found.leaves],
        "ends": [asdict(one) for one in found.ends],
        "verdict": [asdict(one) for one in findings],
    }
    for name, content in contents.items():
        (directory / f"{name}.json").write_text(json.dumps(content, indent=1, default=repr))


__all__ = ["End", "run"]
