from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import conf, handlers
from ...clients import embedded
from ...exceptions import ConfigurationError
from ._signals import StopSignals

BANNER = """\
Embedded Kafka cluster at {address}
Settings with "brokers": "embedded" find it through {state_file}
For development only: it lives in memory, keeps 5 MiB of each partition and forgets the rest, and all of it at the end.
Topics: {topics}; one that is used first has {default} partitions.
Quit with CONTROL-C."""


class Command(BaseCommand):
    help = 'Run an embedded Kafka cluster, in memory, for "brokers": "embedded". Development only.'
    requires_system_checks = []  # a broken view is no reason to be without a broker

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--partitions",
            type=int,
            default=embedded.DEFAULT_PARTITIONS,
            help="Partitions of the topics that it creates at the start (default: %(default)s).",
        )
        parser.add_argument(
            "--topic",
            action="append",
            default=[],
            metavar="NAME[:PARTITIONS]",
            help="Create this topic as well as those that consumers read; may be given again.",
        )

    def handle(self, *, partitions: int, topic: list[str], **options: Any) -> None:
        try:
            topics = dict.fromkeys(declared_topics(), partitions) | dict(_parse(text, partitions) for text in topic)
            self.serve(partitions, topics)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error

    def serve(self, partitions: int, topics: dict[str, int]) -> None:
        with StopSignals() as asked, embedded.Cluster(partitions=partitions) as cluster:
            for name, count in topics.items():
                cluster.create_topic(name, count)
            with embedded.announced(cluster) as state_file:
                banner = BANNER.format(
                    address=cluster.bootstrap_servers,
                    state_file=state_file,
                    topics=", ".join(f"{name} ({count})" for name, count in topics.items()) or "none yet",
                    default=embedded.DEFAULT_PARTITIONS,
                )
                self.stdout.write(banner)
                self.stdout.flush()
                asked.wait()
        self.stdout.write("The embedded cluster is gone, and what it held with it.")


def declared_topics() -> list[str]:
    """Return the topics that consumers of embedded clusters read, prefixed."""
    kafka = conf.kafka()
    return [
        kafka.prefixed(topic)
        for consumer in kafka.consumers.values()
        if kafka.clusters[consumer.cluster].embedded
        for topic in handlers.topics(consumer.name)
    ]


def _parse(text: str, partitions: int) -> tuple[str, int]:
    name, colon, count = text.partition(":")
    count = count if colon else str(partitions)
    if not name or not count.isdecimal() or int(count) < 1:
        raise CommandError(f"--topic {text!r} is not NAME or NAME:PARTITIONS, as in flights:8.")
    return name, int(count)
