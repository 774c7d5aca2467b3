"""What airports report of a flight with a schema, and what operations do with it.

`departures` are Avro, `arrivals` JSON Schema, `legs` Protobuf: see `schemas/`. They are there when SCHEMA_REGISTRY_URL
names a registry.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from django_kafka.messages import Message

from .kafka_handlers import clock
from .models import Flight

NONE = "NA"
"""How the file says that it has no value here."""
ON_TIME = 15
"""Minutes of delay from which on a flight is late, as airlines count."""
KNOTS = 60 / 1.15078
"""In miles a minute."""


# What is sent, made of a line of the airports' file


def departure(line: dict[str, str]) -> dict[str, Any]:
    """Return the report of a flight that left, or was cancelled."""
    return {**_flight(line), "left": _number(line["dep_time"]), "delay": _number(line["dep_delay"])}


def arrival(line: dict[str, str]) -> dict[str, Any] | None:
    """Return the report of a flight that arrived, or was diverted; None of one that never left."""
    if line["dep_time"] == NONE:
        return None
    return {**_flight(line), "delay": _number(line["arr_delay"])}


def leg(line: dict[str, str]) -> dict[str, Any] | None:
    """Return the report of a flight in the air; None of one that never left."""
    if line["dep_time"] == NONE:
        return None
    flight = _flight(line)
    flight["scheduled"] = flight["scheduled"].isoformat()
    return {**flight, "miles": int(line["distance"]), "minutes": _number(line["air_time"]) or 0}


REPORTS: dict[str, Callable[[dict[str, str]], dict[str, Any] | None]] = {
    "departures": departure,
    "arrivals": arrival,
    "legs": leg,
}
"""By topic."""


def _flight(line: dict[str, str]) -> dict[str, Any]:
    return {
        "carrier": line["carrier"],
        "number": int(line["flight"]),
        "origin": line["origin"],
        "destination": line["dest"],
        "scheduled": datetime.fromisoformat(line["time_hour"]) + timedelta(minutes=int(line["minute"])),
    }


def _number(text: str) -> int | None:
    return None if text == NONE else int(text)


# What is done with it


def departed(message: Message) -> None:
    """Write down when a flight left. Nobody has thought of those that did not."""
    report = message.value
    hour, minute = divmod(report["left"], 100)
    _note(report, report["scheduled"], departed=clock(f"{hour:02}{minute:02}"), delay=report["delay"])


def arrived(message: Message) -> None:
    """Write down whether a flight was on time. Nobody has thought of those that arrived elsewhere."""
    report = message.value
    _note(report, datetime.fromisoformat(report["scheduled"]), punctual=report["delay"] < ON_TIME)


def flown(message: Message) -> None:
    """Write down how fast a flight was. Nobody has thought of those whose time in the air is not known."""
    leg = message.value
    report = {name: getattr(leg, name) for name in ("carrier", "number", "origin", "destination")}
    _note(report, leg.scheduled.ToDatetime(UTC), speed=round(leg.miles / leg.minutes * KNOTS))


def _note(report: dict[str, Any], scheduled: datetime, **found: Any) -> None:
    flight = Flight(
        carrier=report["carrier"],
        number=report["number"],
        origin=report["origin"],
        destination=report["destination"],
        scheduled=scheduled,
        **found,
    )
    Flight.objects.bulk_create(
        [flight],
        update_conflicts=True,
        unique_fields=["scheduled", "carrier", "number", "origin"],
        update_fields=list(found),
    )
