"""Workers that say they are alive, and the partitions that each has."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class Worker(models.Model):
    """One consumer in one worker process, and when it was last heard of."""

    class Circuit(models.TextChoices):
        """Where its breaker stands."""

        CLOSED = "closed", _("closed")
        OPEN = "open", _("open")
        PROBING = "probing", _("probing")

    id = models.CharField(primary_key=True, max_length=40)
    cluster = models.CharField(_("cluster"), max_length=100, default="default")
    consumer = models.CharField(_("consumer"), max_length=200)
    group_id = models.CharField(_("group"), max_length=255)
    host = models.CharField(_("host"), max_length=255)
    pid = models.IntegerField(_("process"))
    supervisor = models.IntegerField(_("supervisor"), null=True)
    """The process that started it, on the same host; None when it is alone."""
    number = models.PositiveIntegerField(_("number"), null=True)
    """Which of the supervisor's processes it is, from 1."""
    version = models.CharField(_("version"), max_length=30)
    started_at = models.DateTimeField(_("started"))
    seen_at = models.DateTimeField(_("last seen"), db_index=True)
    hangs = models.JSONField(_("past their time limit"), default=list)
    """What runs although its time is over: a dict for each with topic, partition, offset, handler, seconds, limit."""

    state = models.CharField(_("state"), max_length=20, default="starting")
    """starting, joining, unsettled, running, waiting, paused, stopping or stuck."""
    not_live = models.CharField(_("not alive because"), max_length=500, blank=True)
    """Why only a restart helps it; "" when that is not so."""
    not_ready = models.CharField(_("not ready because"), max_length=500, blank=True)
    """Why it does not do its work now; "" when it does."""
    memory = models.BigIntegerField(_("memory"), null=True)
    """Bytes of its process that are in memory; None: the system does not tell."""
    in_flight = models.PositiveIntegerField(_("in flight"), default=0)
    """Messages that it has and that are not settled."""
    lag = models.BigIntegerField(_("lag"), null=True)
    """Messages of its partitions that are not settled, as far as it knows their ends; None: it knows none."""
    last_error = models.CharField(_("last error"), max_length=500, blank=True)
    """The type of the error that a message met last, and which message."""
    rebalance_age = models.FloatField(_("seconds since the last rebalance"), null=True)

    handled = models.BigIntegerField(_("handled"), default=0)
    dead_lettered = models.BigIntegerField(_("dead letters"), default=0)
    partitions = models.PositiveIntegerField(_("partitions"), default=0)
    waiting = models.PositiveIntegerField(_("waiting partitions"), default=0)
    """How many of its partitions wait for an outage to end, or for a place behind a held key."""
    waits_for = models.CharField(_("waits for"), max_length=300, blank=True)

    figures = models.JSONField(_("figures"), default=dict, editable=False)
    """What it did in each of the last fifteen minutes, and its connections; `analytics.of_worker` reads it."""

    circuit = models.CharField(_("circuit"), max_length=10, choices=Circuit.choices, default=Circuit.CLOSED)
    circuit_writing = models.BooleanField(_("letters are written"), default=False)
    """Whether it is open but handling goes on, because `outage_patience` is over."""
    circuit_reason = models.CharField(_("reason"), max_length=500, blank=True)
    circuit_opened_at = models.DateTimeField(_("opened"), null=True)
    circuit_episode = models.PositiveIntegerField(editable=False, default=0)
    """How many times it has opened."""
    circuit_close_asked = models.PositiveIntegerField(editable=False, null=True)
    """The episode that somebody wants closed; the worker sees it at its next heartbeat."""

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("worker")
        verbose_name_plural = _("workers")
        ordering = ("consumer", "host", "supervisor", "number", "pid")
        permissions = (("control_worker", _("Can control workers: close circuits, pause, seek, stop")),)

    def __str__(self) -> str:
        return f"{self.consumer} {self.address}"

    @property
    def address(self) -> str:
        """Its host and process, and those it belongs to."""
        below = f" ({self.number} below {self.supervisor})" if self.supervisor is not None else ""
        return f"{self.host}:{self.pid}{below}"


class WorkerPartition(models.Model):
    """A partition that a worker has, as it says with its heartbeats; written only when something of it is new."""

    id = models.BigAutoField(primary_key=True)
    worker = models.CharField(_("worker"), max_length=40)
    """The id of the `Worker`, whose row tells host, process, version, memory, and whether it lives."""
    topic = models.CharField(_("topic"), max_length=249)
    partition = models.IntegerField(_("partition"))
    in_flight = models.PositiveIntegerField(_("in flight"), default=0)
    lag = models.BigIntegerField(_("lag"), null=True)
    """Messages that are not settled; None: it does not know the end."""
    waits_for = models.CharField(_("waits for"), max_length=300, blank=True)
    paused = models.BooleanField(_("paused"), default=False)
    """Whether somebody has paused it, and nothing of it runs any more."""

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("partition of a worker")
        verbose_name_plural = _("partitions of workers")
        constraints = (
            models.UniqueConstraint(fields=["worker", "topic", "partition"], name="lynx_kafka_partition_identity"),
        )

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


class Tenure(models.Model):
    """A partition in the hands of a worker, from which the next one learns whether that worker died with it.

    Written when a partition comes and goes, and around messages only while a death has yet to be explained.
    """

    id = models.BigAutoField(primary_key=True)
    cluster = models.CharField(_("cluster"), max_length=100)
    group_id = models.CharField(_("group"), max_length=255)
    topic = models.CharField(_("topic"), max_length=249)
    partition = models.IntegerField(_("partition"))
    worker = models.CharField(_("worker"), max_length=40, blank=True)
    """The id of the `Worker` that has it; "" when it was given back, "killed" when a message of it stopped that one."""
    term = models.BigIntegerField(_("term"), default=0)
    """How many workers have had it: with `worker` it tells whose the row is."""
    deaths = models.PositiveIntegerField(_("deaths"), default=0)
    """How many workers died with it, one after the other, and are not explained."""
    first = models.BigIntegerField(_("first suspect"), null=True)
    """The offset of the first message that may have been running at the last death, or runs now."""
    last = models.BigIntegerField(_("last suspect"), null=True)
    """The offset of the last of these."""
    alone = models.BigIntegerField(_("runs alone"), null=True)
    """The offset of the message that runs with nothing else beside it, while it does."""
    guilty = models.BigIntegerField(_("guilty"), null=True)
    """The offset of the message that killed its workers, until its dead letter is stored."""
    timestamp_ms = models.BigIntegerField(_("timestamp"), null=True)
    """Of the message that runs alone, or is guilty: another one at that offset is not it."""

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("tenure")
        verbose_name_plural = _("tenures")
        constraints = (
            models.UniqueConstraint(
                fields=["cluster", "group_id", "topic", "partition"], name="lynx_kafka_tenure_identity"
            ),
        )
        indexes = (models.Index(fields=["worker"], name="lynx_kafka_tenure_worker"),)

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"
