"""What is done once with every login."""

from __future__ import annotations

import threading
from typing import Any

from django_kafka import services
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.executing import Executor
from django_kafka.messages import Message
from django_kafka.models import Replay
from django_kafka.monitoring import lag
from tests.consuming import Seen, Workplace
from tests.servers.processes import wait_until


def travel(place: Workplace, kafka: dict[str, Any]) -> None:
    """Send two records, handle one, dead-letter the other, be healthy, replay it through its topic, and handle it."""
    mended = threading.Event()

    def handle(message: Message) -> None:
        if message.value == "bad" and not mended.is_set():
            raise ValueError("still bad")

    seen = Seen(handle)
    place.consume(seen, kafka={"heartbeats": {"enabled": False}, **kafka})
    for value in ("good", "bad"):
        assert services.produce(place.topic, "k", value).result(10).offset is not None
    with place.worker():
        seen.wait(1)
        wait_until(place.letters)
        wait_until(lambda: place.committed() == {0: 2})
        # A login that takes longer than `connection.timeout`, on a busy machine, leaves the lag unknown, which is well.
        details = wait_until(lambda: healthy("lag"))
        assert (details["producer"]["used"], details["consumer"]["lag"]) == (True, 0)
    mended.set()
    (letter,) = place.letters()
    assert (seen.values, letter.offset) == (["good"], 1)

    replaying.request([letter.pk], target="topic")
    assert [one.state for one in carried_out()] == ["succeeded"]
    with place.worker():
        seen.wait(2)
    assert seen.values == ["good", "bad"]


def healthy(known: str) -> dict[str, Any] | None:
    """Return the details of all parts, each of which is healthy; None while that of the consumer is not known."""
    lag.forget()
    found = services.get_health_status()
    assert found.healthy, found.last_error
    details = {one.kind: one.detail for one in found.components}
    return None if details["consumer"][known] is None else details


def carried_out() -> list[Replay]:
    """Carry out the replays that were asked for."""

    def fail(error: Exception, _pause: float) -> None:
        raise AssertionError("the replay waits") from error

    executor = Executor()
    try:
        return list(carry_out(executor, stop=threading.Event(), waiting=fail))
    finally:
        executor.close()
