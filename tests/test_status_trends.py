"""How lag and throughput move, told from looks at a group whose commits come in lumps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from django_kafka.clients.groups import Ends
from django_kafka.monitoring.lag import PartitionLag
from django_kafka.monitoring.trends import Pace, Track

COMMITS = 5.0
"""Seconds from one commit to the next."""


def partition(committed: int | None, end: int, *, number: int = 0, low: int = 0) -> PartitionLag:
    return PartitionLag(
        topic="flights", partition=number, committed=committed, log=Ends(low=low, high=end), reset="earliest"
    )


def looks(produced: float, consumed: float, seconds: float = 60, backlog: int = 0) -> Iterator[tuple[float, int, int]]:
    """Return when somebody looks, every two seconds or so, what is committed then, and the end."""
    for number in range(1, int(seconds / 2.1)):
        at = number * 2.1
        end = backlog + round(produced * at)
        committed_at = at // COMMITS * COMMITS
        yield at, min(round(consumed * committed_at), backlog + round(produced * committed_at)), end


@pytest.mark.parametrize(
    ("produced", "consumed", "backlog", "direction"),
    [
        (300, 300, 0, "steady"),
        (300, 1000, 0, "steady"),
        (300, 0, 0, "growing"),
        (300, 200, 0, "growing"),
        (0, 100, 20_000, "shrinking"),
        (300, 500, 50_000, "shrinking"),
        (0, 0, 700, "steady"),
        (0, 0, 0, "steady"),
    ],
)
def test_its_direction_is_not_that_of_the_waves_between_commits(
    produced: int, consumed: int, backlog: int, direction: str
) -> None:
    track = Track()
    found = []
    for at, committed, end in looks(produced, consumed, backlog=backlog):
        track.take(at, [partition(committed, end)])
        if (trend := track.trend(COMMITS)) is not None and at > 30:
            found.append(trend.direction)
    assert found
    assert set(found) == {direction}


def test_rates_are_those_of_messages_and_not_of_commits() -> None:
    track = Track()
    found = []
    for at, committed, end in looks(300, 500, backlog=50_000):
        track.take(at, [partition(committed, end)])
        if at > 30:
            found.append(track.trend(COMMITS))
    assert len(found) > 10
    for trend in found:
        assert trend is not None
        assert trend.produced == pytest.approx(300, rel=0.02)
        assert trend.consumed == pytest.approx(500, rel=0.25)
        assert trend.change == pytest.approx(-200, rel=0.4)
    # 50,000 and 60 s of 300, without 60 s of 500, at 200 a second.
    assert found[-1] is not None
    assert found[-1].until_empty == pytest.approx(38_000 / 200, rel=0.4)


def test_what_was_not_looked_at_for_long_enough_is_not_known() -> None:
    track = Track()
    assert track.trend(COMMITS) is None
    track.take(0, [partition(10, 100)])
    assert track.trend(COMMITS) is None
    track.take(2, [partition(10, 300)])
    trend = track.trend(COMMITS)
    assert trend is not None
    assert (trend.produced, trend.consumed, trend.direction, trend.change) == (100, None, None, None)
    track.take(6, [partition(10, 700)])
    trend = track.trend(COMMITS)
    assert trend is not None
    assert (trend.consumed, trend.direction, trend.until_empty) == (0, "growing", None)
    assert trend.change == pytest.approx(100, rel=0.3)


def test_the_same_look_and_one_that_saw_nothing_change_nothing() -> None:
    track = Track()
    track.take(1, [partition(0, 10)])
    track.take(1, [partition(0, 10)])
    track.take(2, [])
    assert track.history() == ((1, 10),)
    track.take(3, [partition(0, 20), partition(0, 5, number=1)])
    assert track.history() == ((1, 10), (3, 25))
    trend = track.trend(0.1)
    assert trend is not None
    assert trend.produced == 5, "What was in a partition before it was seen did not come in now."


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (partition(900, 1000), partition(0, 10)),  # the topic was made anew
        (partition(900, 1000), partition(100, 1000)),  # the group was moved back
        (partition(None, 1000, low=0), partition(None, 1000, low=400)),  # nobody read what is gone
    ],
)
def test_what_goes_backwards_or_expires_is_no_throughput(before: PartitionLag, now: PartitionLag) -> None:
    track = Track()
    track.take(0, [before])
    track.take(10, [now])
    trend = track.trend(COMMITS)
    assert trend is not None
    assert (trend.produced, trend.consumed) == (0, 0)


def test_a_group_that_begins_has_passed_what_it_read_first() -> None:
    track = Track()
    track.take(0, [partition(None, 1000)])
    track.take(10, [partition(500, 1000)])
    trend = track.trend(COMMITS)
    assert trend is not None
    assert trend.consumed == 50


def test_a_clock_that_is_set_back_begins_anew() -> None:
    track, pace = Track(), Pace()
    for at in (1000.0, 1002.0, 10.0):
        track.take(at, [partition(0, int(at))])
        pace.take(at, 5)
    assert track.history() == ((10.0, 10),)
    assert track.trend(COMMITS) is None
    assert pace.per_second is None


def test_it_remembers_some_minutes() -> None:
    track = Track()
    for at in range(0, 3600, 2):
        track.take(at, [partition(0, at)])
    first, _lag = track.history()[0]
    assert 3600 - first == pytest.approx(600, abs=5)


def test_the_pace_of_a_counter_that_begins_anew_is_not_known_at_first() -> None:
    pace = Pace()
    for at, count in ((0, 100), (5, 200), (10, 400), (10, 400), (15, 800)):
        pace.take(at, count)
    assert pace.per_second == pytest.approx(60)
    pace.take(20, 7)
    assert pace.per_second is None
    pace.take(25, 17)
    assert pace.per_second == 2
