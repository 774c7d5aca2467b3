"""What operations do with the flights that arrive on the topic `flights`.

A message holds one line of the airports' file: {"carrier": "UA", "flight": "1545", "dep_time": "517", …}, all of it
text, as it was sent.
"""

from __future__ import annotations

from datetime import datetime, time, timedelta

from django_kafka.handlers import kafka_handler
from django_kafka.messages import Message

from .models import Flight

# How the file says that it has no value here. Cancelled flights have no departure time.
MISSING = {""}


@kafka_handler(topics="flights", consumer="operations", dry_run=True)
def flight_departed(message: Message) -> None:
    """Write down when a flight left. The same message again changes nothing."""
    line: dict[str, str] = message.value
    flight = Flight(
        carrier=line["carrier"],
        number=int(line["flight"]),
        origin=line["origin"],
        destination=line["dest"],
        scheduled=datetime.fromisoformat(line["time_hour"]) + timedelta(minutes=int(line["minute"])),
        departed=clock(line["dep_time"]),
        delay=minutes(line["dep_delay"]),
        tail_number="" if line["tailnum"] in MISSING else line["tailnum"],
    )
    Flight.objects.bulk_create(
        [flight],
        update_conflicts=True,
        unique_fields=["scheduled", "carrier", "number", "origin"],
        update_fields=["departed", "delay", "tail_number"],
    )


def clock(text: str) -> time | None:
    """Read "517" as 05:17 and "2400" as midnight."""
    if text in MISSING:
        return None
    hour, minute = divmod(int(text), 100)
    return time(hour % 24, minute)


def minutes(text: str) -> int | None:
    """Read a number of minutes."""
    return None if text in MISSING else int(text)
