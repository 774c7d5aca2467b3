"""Dead letters and the attempts that made them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable

from django.db import models
from django.utils.translation import gettext_lazy as _

from .failures import FailureGroup
from .holds import Hold

Pairs = Iterable[tuple[str, "bytes | None"]]


def encode_headers(headers: Pairs) -> bytes:
    """Return headers as they are stored: JSON pairs in order, values in base64.

    As bytes, because neither text nor JSON columns of PostgreSQL take NUL, which header names may hold.
    """
    pairs = [[name, None if value is None else base64.b64encode(value).decode()] for name, value in headers]
    return json.dumps(pairs).encode()


def decode_headers(stored: bytes | memoryview) -> list[tuple[str, bytes | None]]:
    """Return stored headers as pairs in their order."""
    pairs = json.loads(bytes(stored) or b"[]")
    return [(name, None if value is None else base64.b64decode(value)) for name, value in pairs]


def fingerprint(timestamp: int | None, key: bytes | None, headers: bytes, value: bytes | None) -> str:
    """Return what tells messages with the same coordinates apart, as after a topic was made anew.

    `headers` as stored.
    """
    digest = hashlib.sha256()
    for part in (str(timestamp).encode(), key, headers, value):
        digest.update(b"-" if part is None else b"%d:" % len(part) + part)
    return digest.hexdigest()


def key_hash(key: bytes | None) -> str:
    """Return what letters are found by that have this key; "" without one. Different keys may have the same."""
    return "" if key is None else hashlib.sha256(key).hexdigest()[:16]


_TRACE = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.S)


def trace_of(headers: Pairs) -> str:
    """Return the id of the trace that a message is of, as W3C's header tells it; "" when it tells none."""
    for name, value in headers:
        if name == "traceparent" and value is not None and (found := _TRACE.fullmatch(value)) is not None:
            trace = found[1].decode()
            return "" if trace == "0" * 32 else trace
    return ""


class DeadLetter(models.Model):
    """A message whose handling was given up, whole, with its latest error; or one that is parked behind such a one."""

    class State(models.TextChoices):
        """Where a letter stands."""

        OPEN = "open", _("open")
        PARKED = "parked", _("parked")
        RESOLVED = "resolved", _("resolved")
        DISCARDED = "discarded", _("discarded")

    id = models.BigAutoField(primary_key=True)
    cluster = models.CharField(_("cluster"), max_length=100, default="default")
    consumer = models.CharField(_("consumer"), max_length=200)
    group_id = models.CharField(_("group"), max_length=255)
    topic = models.CharField(_("topic"), max_length=249)
    partition = models.IntegerField(_("partition"))
    offset = models.BigIntegerField(_("offset"))
    fingerprint = models.CharField(_("fingerprint"), max_length=64, editable=False)
    timestamp_ms = models.BigIntegerField(_("timestamp"), null=True)
    key = models.BinaryField(_("key"), null=True)
    key_hash = models.CharField(max_length=16, blank=True, editable=False)
    value = models.BinaryField(_("value"), null=True)
    payload_name = models.CharField(max_length=350, blank=True, editable=False)
    """The file that its value refers to, in a storage: as long as there is a letter with it, it is needed."""
    stored_headers = models.BinaryField(_("headers"), default=b"[]")
    trace_id = models.CharField(max_length=32, blank=True, editable=False)
    """What letters of the same trace are found by; "" when its headers tell of none."""

    imported_as = models.CharField(_("imported as"), max_length=20, blank=True)
    """The format that another system wrote it in; "" for a letter of our own."""
    origin_topic = models.CharField(_("original topic"), max_length=249, blank=True)
    """Where an imported letter failed, as far as its headers tell; `topic` is the dead-letter topic it came from."""
    origin_partition = models.IntegerField(_("original partition"), null=True)
    origin_offset = models.BigIntegerField(_("original offset"), null=True)
    origin_timestamp_ms = models.BigIntegerField(_("original timestamp"), null=True)
    origin_group = models.CharField(_("original group"), max_length=255, blank=True)
    unread = models.TextField(_("not read"), blank=True)
    """What its headers should have told and did not: a sentence a line."""

    handler = models.CharField(_("handler"), max_length=500, blank=True)
    category = models.CharField(_("category"), max_length=30)
    error_type = models.CharField(_("error type"), max_length=300)
    error_message = models.TextField(_("error"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)
    failure_group = models.ForeignKey(
        FailureGroup, models.SET_NULL, null=True, related_name="letters", verbose_name=_("failure group"),
        db_index=False, db_constraint=False,
    )  # fmt: skip
    """Letters with the same cause; None for one that is parked, and has not failed.

    The database does not check it, which takes a lock in the group's row for each letter.
    """
    release = models.CharField(_("release"), max_length=200, blank=True)
    """What `KAFKA["release"]` was where it failed last."""
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    state = models.CharField(_("state"), max_length=10, choices=State.choices, default=State.OPEN)
    first_failed_at = models.DateTimeField(_("first failed"))
    last_failed_at = models.DateTimeField(_("last failed"))
    settled_at = models.DateTimeField(_("settled"), null=True, editable=False)
    erased_at = models.DateTimeField(_("erased"), null=True, editable=False)
    """When what it said of a person was erased: payload, key, headers and errors. None: it is whole."""
    hold = models.ForeignKey(
        Hold, models.SET_NULL, null=True, editable=False, related_name="letters", verbose_name=_("held key"),
        db_index=False,
    )  # fmt: skip
    """What holds its key back, until it is resolved or discarded. Those of one hold are in the order of their ids."""

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=["cluster", "group_id", "topic", "partition", "offset", "fingerprint"],
                name="lynx_kafka_letter_identity",
            ),
        )
        indexes = (
            models.Index(fields=["consumer", "state", "-id"], name="lynx_kafka_letter_consumer"),
            models.Index(fields=["topic", "state", "-id"], name="lynx_kafka_letter_topic"),
            models.Index(fields=["error_type", "state", "-id"], name="lynx_kafka_letter_error"),
            models.Index(fields=["release", "state", "-id"], name="lynx_kafka_letter_release"),
            models.Index(fields=["topic", "partition", "offset"], name="lynx_kafka_letter_place"),
            models.Index(fields=["last_failed_at", "id", "state"], name="lynx_kafka_letter_failed"),
            models.Index(fields=["key_hash", "-id"], name="lynx_kafka_letter_key"),
            models.Index(fields=["trace_id", "-id"], condition=~models.Q(trace_id=""), name="lynx_kafka_letter_trace"),
            models.Index(
                fields=["settled_at"], condition=models.Q(settled_at__isnull=False), name="lynx_kafka_letter_settled"
            ),
            models.Index(fields=["failure_group", "state", "-id"], name="lynx_kafka_letter_group"),
            # Whatever people filter by together, however few letters have it: they are looked through in this index, in
            # the order of the list, and not in the table, which takes ten times as long.
            models.Index(
                fields=[
                    "-id",
                    "state",
                    "consumer",
                    "topic",
                    "category",
                    "attempts",
                    "last_failed_at",
                    "release",
                ],
                name="lynx_kafka_letter_desk",
            ),
            models.Index(
                fields=["payload_name"], condition=~models.Q(payload_name=""), name="lynx_kafka_letter_payload"
            ),
            models.Index(fields=["hold", "id"], condition=models.Q(hold__isnull=False), name="lynx_kafka_letter_hold"),
        )
        permissions = (
            ("view_payload_deadletter", _("Can view unmasked payloads of dead letters")),
            ("replay_deadletter", _("Can replay dead letters")),
            ("edit_deadletter", _("Can edit and replay dead letters")),
            ("discard_deadletter", _("Can discard dead letters and open them again")),
            ("export_deadletter", _("Can export and import dead letters")),
            ("erase_deadletter", _("Can erase a person’s data from dead letters")),
        )

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"

    def same(self) -> models.QuerySet[DeadLetter]:
        """Return the row of the same message, if it is stored."""
        fields = ("cluster", "group_id", "topic", "partition", "offset", "fingerprint")
        return DeadLetter.objects.filter(**{name: getattr(self, name) for name in fields})

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """Headers as pairs, in their order and with duplicates."""
        return decode_headers(self.stored_headers)

    @headers.setter
    def headers(self, pairs: Pairs) -> None:
        self.stored_headers = encode_headers(pairs)


class DeadLetterAttempt(models.Model):
    """One run of a handler that failed, here or elsewhere, or the replay that ended it."""

    class Origin(models.TextChoices):
        """Who ran the handler."""

        WORKER = "worker", _("worker")
        REPLAY = "replay", _("replay")
        IMPORT = "import", _("import")

    id = models.BigAutoField(primary_key=True)
    letter = models.ForeignKey(DeadLetter, models.CASCADE, related_name="attempt_set", verbose_name=_("dead letter"))
    number = models.PositiveIntegerField(_("number"))
    at = models.DateTimeField(_("at"))
    origin = models.CharField(_("origin"), max_length=10, choices=Origin.choices)
    worker = models.CharField(_("worker"), max_length=200, blank=True)
    succeeded = models.BooleanField(_("succeeded"), default=False)
    error_type = models.CharField(_("error type"), max_length=300, blank=True)
    error_message = models.TextField(_("error"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)
    reported_by = models.CharField(max_length=300, blank=True, editable=False)
    """The message of a dead-letter topic that told of it, when a letter that was imported before came back."""

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        ordering = ("letter_id", "id")

    def __str__(self) -> str:
        return f"{self.number}"
