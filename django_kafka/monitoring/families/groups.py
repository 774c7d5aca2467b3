"""The groups of all consumers as brokers see them, whether anybody is in them or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..lag import GroupLag, PartitionLag
from .family import OF_CONSUMED, OF_CONSUMER, Family, Read, Sample, Scene


def _of_partition(value: Callable[[PartitionLag], float | None]) -> Read:
    def read(scene: Scene) -> Iterator[Sample]:
        for group in scene.groups:
            for one in group.partitions:
                if (number := value(one)) is not None:
                    yield (group.consumer, one.topic, str(one.partition)), number

    return read


def _of_group(value: Callable[[GroupLag], float | None]) -> Read:
    def read(scene: Scene) -> Iterator[Sample]:
        for group in scene.groups:
            if (number := value(group)) is not None:
                yield (group.consumer,), number

    return read


GROUPS = (
    Family(
        name="lynx_kafka_group_lag", kind="gauge", labels=(*OF_CONSUMED, "partition"),
        means="Messages of a partition that the group has not read: from what it has committed to the end of the log.",
        read=_of_partition(lambda one: one.lag), adds_up=False,
    ),
    Family(
        name="lynx_kafka_group_lag_seconds", kind="gauge", labels=(*OF_CONSUMED, "partition"),
        means="How old the message is that the group reads next, 0 when there is none; not there until it is known.",
        read=_of_partition(lambda one: one.seconds), adds_up=False,
    ),
    Family(
        name="lynx_kafka_group_members", kind="gauge", labels=OF_CONSUMER,
        means="How many are in the group; not there when brokers do not say.",
        read=_of_group(lambda one: one.members if one.described else None), adds_up=False,
    ),
    Family(
        name="lynx_kafka_group_known", kind="gauge", labels=OF_CONSUMER,
        means="1 when brokers said all of this, 0 when they did not; the log has the reason.",
        read=_of_group(lambda one: float(not one.reason)), adds_up=False,
    ),
)  # fmt: skip
