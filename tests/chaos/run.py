"""A run from its beginning to its verdict."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from . import books, forwarded, guarded, held, sending, verdict
from .books import Books, End, Queue
from .faults import Faults
from .plan import BEGUN_FILE, LEFT_FILE, Plan
from .records import FORWARDED, HELD, MOST, ONCE, Course
from .report import Report
from .verdict import Finding, Promise
from .watching import Watcher
from .workers import Helper, Workers
from .world import World

STUCK_AFTER = 120.0
"""Seconds without any commit after which the workers count as stuck, once all faults are over: more than the lease of a
replay whose worker was killed."""
SENT_WITHIN = 150.0
"""Seconds within which every record that was sent has to be acknowledged or failed: more than `delivery_timeout`."""


_PROMISES: dict[Course, tuple[tuple[Promise, ...], str]] = {
    FORWARDED: (forwarded.PROMISES, "retry topics: "),
    HELD: (held.PROMISES, "held keys: "),
    ONCE: (guarded.ONCE_PROMISES, "effects once: "),
    MOST: (guarded.MOST_PROMISES, "at most once: "),
}
"""What is promised of a consumer, and the words before it; of the plain one, what is promised of all."""


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
    findings = [
        finding
        for course, each in found.items()
        for finding in verdict.judge(each, *_PROMISES.get(course, (verdict.PROMISES,)))
    ]
    _keep(plan, found, findings, directory)
    return findings


def _play(plan: Plan, world: World, report: Report) -> dict[Course, Books]:
    workers = Workers(world, plan.scenario.workers)
    courses = plan.scenario.courses
    watchers = [Watcher(world, course) for course in courses]
    faults = Faults(plan, world, workers, report.say)
    workers.start_all()
    senders = [Helper.sending(world, course) for course in courses]
    mender, asker = Helper.mending(world), Helper.asking(world)
    for watcher in watchers:
        watcher.start()
    report.say(f"{len(workers)} workers and a sender for each are started; faults strike for {plan.seconds:.0f} s")
    faults.start()
    deadline = time.monotonic() + plan.seconds
    helpers = (*senders, mender, asker)
    while time.monotonic() < deadline and all(one.alive for one in helpers) and not faults.broken:
        _revive(workers, report)
        time.sleep(0.2)
    for sender in senders:
        sender.stop()
    faults.end()
    report.faults(plan, faults.done)
    report.say("all faults are over")
    ends = [sender.end(SENT_WITHIN) for sender in senders]
    report.say("all is sent; the workers finish, as long as they come on")
    _drain(world, workers, watchers, report)
    for helper in (mender, asker):
        helper.stop()
        ends.append(helper.end(60))
    ends += workers.ends
    for watcher in watchers:
        watcher.next(60)
        watcher.end()
    return {watcher.course: _books(plan, world, watcher, ends, faults) for watcher in watchers}


def _books(plan: Plan, world: World, watcher: Watcher, ends: list[End], faults: Faults) -> Books:
    course, dsn = watcher.course, world.project.dsn
    effects = books.effects(dsn, course.topic)
    return Books(
        sent=tuple(sending.read(world.book(course))),
        effects=effects,
        letters=books.letters(dsn, course.name),
        samples=tuple(watcher.samples[course.topic]),
        log_ends=world.log_ends(course.topic),
        echoes=world.echoes(course),
        deaths=books.deaths(world.control / BEGUN_FILE, course.topic, ends, effects),
        leaves=books.leaves(world.control / LEFT_FILE, course.topic),
        ends=tuple(ends),
        retried={
            topic: Queue(records=world.retried(topic), samples=tuple(watcher.samples[topic]))
            for topic in course.retry_topics
        },
        begun=books.begun(world.control / BEGUN_FILE, course.topic),
        steps=tuple(faults.steps),
        moves=books.moves(dsn, course.name, course.topic),
        by_partition=course not in (ONCE, MOST) or plan.scenario.ordering == "partition",
    )


def _revive(workers: Workers, report: Report) -> None:
    for end in workers.revive():
        report.trouble(str(end))


def _drain(world: World, workers: Workers, watchers: list[Watcher], report: Report) -> None:
    """Let the workers finish what is in the topics and behind held keys, and stop them."""
    workers.start_all()
    began = moved = time.monotonic()
    come_to: tuple[int, int] = (-1, -1)
    while time.monotonic() - moved < STUCK_AFTER:
        _revive(workers, report)
        committed = {topic: one.committed for watcher in watchers for topic, one in watcher.next(60).items()}
        ends = {topic: world.log_ends(topic) for topic in committed}
        live, settled = books.standing(world.project.dsn, HELD.name)
        if not live and all(committed[topic][n] >= end for topic in ends for n, end in ends[topic].items()):
            break
        if (now_at := (sum(sum(one.values()) for one in committed.values()), settled)) != come_to:
            come_to, moved = now_at, time.monotonic()
    report.say(f"finished after {time.monotonic() - began:.0f} s; the workers are stopped")
    workers.stop_all()


def _keep(plan: Plan, found: dict[Course, Books], findings: list[Finding], directory: Path) -> None:
    """Write the plan, the books and the verdict beside the logs."""
    contents: dict[str, object] = {"plan": asdict(plan), "verdict": [asdict(one) for one in findings]}
    for course, each in found.items():
        for name in ("effects", "letters", "samples", "leaves", "ends"):
            contents[f"{name}-{course.name}"] = [asdict(one) for one in getattr(each, name)]
    for name, content in contents.items():
        (directory / f"{name}.json").write_text(json.dumps(content, indent=1, default=repr))


__all__ = ["End", "run"]
