"""What airports report with schemas, when there is a registry: sent, handled and counted."""

from __future__ import annotations

import time
from collections.abc import Sequence

from django_kafka import services
from django_kafka.models import DeadLetter
from django_kafka.records import Record
from testproject.flights.reports import NONE, REPORTS

from .backlog import Backlog
from .processes import Child, DemoError

UNKNOWN = {"departures": "dep_time", "arrivals": "arr_delay", "legs": "air_time"}
"""What the handler of each topic takes for granted, by its column in the file."""


class Reporting:
    """The reports on their way, and the count of what should become of them."""

    def __init__(self, worker: Child, patience: float) -> None:
        """`patience` is for how many seconds nothing may be settled."""
        self._worker = worker
        self._patience = patience
        self._backlogs = {topic: Backlog(topic, "reports") for topic in REPORTS}
        self._sent = dict.fromkeys(REPORTS, 0)
        self._unknown = dict.fromkeys(REPORTS, 0)

    def run(self, flights: Sequence[dict[str, str]]) -> None:
        """Report all of them, and wait until all reports are settled."""
        for topic, make in REPORTS.items():
            reported = [(flight, report) for flight in flights if (report := make(flight)) is not None]
            records = [Record(key=f"{one['carrier']}{one['number']}", value=one) for _flight, one in reported]
            deliveries = [delivery.result() for delivery in services.produce_batch(topic, records)]
            self._backlogs[topic].add((delivery, 0) for delivery in deliveries)
            self._sent[topic] = len(records)
            self._unknown[topic] = sum(flight[UNKNOWN[topic]] == NONE for flight, _report in reported)
        self._settle()

    def _settle(self) -> None:
        before, since = -1, time.monotonic()
        while any(one.waiting for one in self._backlogs.values()):
            self._worker.check()
            for one in self._backlogs.values():
                one.look()
            settled = sum(one.settled for one in self._backlogs.values())
            if settled > before:
                before, since = settled, time.monotonic()
            elif time.monotonic() - since > self._patience:
                raise DemoError(f"The worker has settled nothing for {self._patience:.0f} s; see {self._worker.log}.")
            time.sleep(0.1)

    def sums(self) -> dict[str, str]:
        """Return what became of the reports of each topic, in words."""
        return {
            topic: f"{self._sent[topic]:,} sent, {dead:,} of them dead-lettered: the file has no {UNKNOWN[topic]} there"
            for topic, dead in self._letters().items()
        }

    def disagreements(self) -> list[str]:
        """Compare file, Kafka and database, and return a sentence for each difference."""
        letters = self._letters()
        sums = [(f"{topic} without {UNKNOWN[topic]}, and dead letters", self._unknown[topic], letters[topic])
                for topic in REPORTS]  # fmt: skip
        sums += [(f"{topic} sent, and committed by the worker", self._sent[topic], self._backlogs[topic].settled)
                 for topic in REPORTS]  # fmt: skip
        return [f"{what}: {left:,} and {right:,}" for what, left, right in sums if left != right]

    def _letters(self) -> dict[str, int]:
        return {topic: DeadLetter.objects.filter(topic=topic).count() for topic in REPORTS}

    def close(self) -> None:
        """Close the connections."""
        for one in self._backlogs.values():
            one.close()
