"""What settings mean: values that never change. Every duration is in seconds, every topic is without the prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .claims import ClaimCheck
from .clusters import Cluster
from .encryption import Encryption, EncryptionKey
from .masks import Mask
from .producers import Producer
from .registries import Schema, SchemaOptions
from .secrets import Options


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


def _local() -> Mapping[str, Cluster]:
    return MappingProxyType({"default": Cluster(name="default")})


CATEGORIES = (
    "network", "configuration", "authentication", "authorization", "serialization", "handler", "outage", "timeout",
)  # fmt: skip
"""What errors are counted by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and when a failed message is handled again."""

    max_retries: int = 3
    """Beyond the first attempt."""
    backoff: float = 1.0
    """Before the first retry."""
    multiplier: float = 2.0
    """Each wait is this many times the one before."""
    max_backoff: float = 60.0
    """No wait is longer."""
    jitter: float = 0.1
    """The part of a wait that is left to chance, from 0 to 1."""
    mode: str = "blocking"
    """blocking (the lane waits) or topics (retry topics)."""
    retry_on: tuple[str, ...] = ()
    """Dotted paths of exceptions that are worth a retry; none: all of them."""
    give_up_on: tuple[str, ...] = ()
    """Dotted paths of exceptions that are not."""
    decide: str | None = None
    """Dotted path of a callable that decides instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where messages say something of themselves."""

    header: str = ""
    """The name of a header; "": elsewhere."""
    field: str = ""
    """The path of a field of the value, with dots; "": elsewhere."""
    cloud_event: str = ""
    """The name of an attribute of the CloudEvent that it is, wherever that stands; "": elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """A handler for certain messages: those for which all of this holds."""

    handler: str
    """Dotted path."""
    header: Mapping[str, str] = field(default_factory=_nothing)
    """Names and values of headers."""
    fields: Mapping[str, str | int | bool] = field(default_factory=_nothing)
    """Paths and values of fields of the value."""
    type: str = ""
    """What the message is, where the topic says that it stands; "": whatever."""
    version: int | None = None
    """The version of that which the handler knows."""
    when: str = ""
    """Dotted path of a function that takes a message and tells whether the handler wants it."""
    dry_run: bool = False
    """Whether it may run in a transaction that is rolled back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerTopic:
    """A topic of a consumer, or all that a pattern fits; None: as the consumer has it."""

    name: str
    """Without the prefix; a pattern begins with ^."""
    handler: str | None = None
    """Dotted path."""
    serializer: str | None = None
    """Of values."""
    key_serializer: str | None = None
    """Of keys."""
    schema: Schema | None = None
    """Of values, for avro, jsonschema and protobuf."""
    key_schema: Schema | None = None
    """Of keys."""
    schema_options: SchemaOptions = field(default_factory=SchemaOptions)
    """How the registry is used."""
    encryption: Encryption | None = None
    """What of values is encrypted."""
    accept_plain: bool | None = None
    """Whether values are read that are not encrypted."""
    encrypted_for: tuple[str, ...] = ()
    """Other topics, as Kafka knows them, for which its values may have been encrypted: they are copied from there."""
    cloud_events: bool | None = None
    """Whether values that are whole CloudEvents are read as their data."""
    claim_check: ClaimCheck | None = None
    """Where large values were left."""
    timeout: float | None = None
    """How long a handler may run."""
    retry: Retry | None = None
    """The consumer's own, with what is different here."""
    dry_run: bool = False
    """Whether its handler may run in a transaction that is rolled back."""
    dispatch: tuple[Dispatch, ...] = ()
    """Handlers for certain messages; the first that matches has the message."""
    type_in: Place | None = None
    """Where its messages say what they are."""
    version_in: Place | None = None
    """Where they say in which version."""
    imports: str | None = None
    """The format of the dead letters of another system, which are stored here and not handled; None: it has none."""
    original: str | None = None
    """The topic that imported letters came from, without the prefix, whatever their headers say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreaker:
    """When a consumer pauses because its handlers fail too often."""

    enabled: bool = True
    """False: it never does; failed messages become dead letters, however many there are."""
    failure_ratio: float = 0.5
    """It pauses when so much of the last `window` messages failed, from 0 to 1."""
    window: int = 100
    """How many messages it looks back on."""
    cooldown: float = 30.0
    """How long it pauses before it probes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A consumer."""

    name: str
    """What it is called in settings."""
    enabled: bool = True
    """False: it is left out when all are started."""
    cluster: str = "default"
    """The name of its cluster."""
    client_id: str = ""
    """What brokers see it as; "" for librdkafka's default."""
    database: str = "default"
    """The alias in DATABASES in which handlers' transactions run."""
    group_id: str = ""
    """Its own, else that of the top; without the prefix. "" can be read, but not started."""
    topics: Mapping[str, ConsumerTopic] = field(default_factory=_nothing)
    """What it reads."""
    handler: str | None = None
    """Dotted path, for the topics that have none of their own."""
    serializer: str = "json"
    """Of values."""
    key_serializer: str = "text"
    """Of keys."""
    schema: Schema | None = None
    """Of values, for avro, jsonschema and protobuf."""
    key_schema: Schema | None = None
    """Of keys."""
    schema_options: SchemaOptions = field(default_factory=SchemaOptions)
    """How the registry is used."""
    encryption: Encryption = field(default_factory=Encryption)
    """What of values is encrypted."""
    accept_plain: bool = False
    """Whether values are read that are not encrypted; else they are poison."""
    cloud_events: bool = False
    """Whether values that are whole CloudEvents are read as their data."""
    claim_check: ClaimCheck = field(default_factory=ClaimCheck)
    """Where large values were left."""
    auto_offset_reset: str = "earliest"
    """Where a group begins that has no offset: earliest, latest, or error."""
    enable_auto_commit: bool = True
    """True commits the watermark on an interval, False after each slice."""
    auto_commit_interval: float = 5.0
    """That interval."""
    find_topics_interval: float = 30.0
    """Between two looks at which topics there are that patterns fit, in seconds."""
    max_poll_records: int = 500
    """How many messages are taken at once."""
    ordering: str = "partition"
    """What is handled one after another: partition, key, or unordered."""
    concurrency: int = 1
    """How many handlers run at a time."""
    processes: int = 1
    """How many workers a `kafka_consume` runs."""
    max_in_flight: int = 10_000
    """Messages that are in memory at most."""
    max_in_flight_bytes: int = 67_108_864
    """Their size at most."""
    max_payload: int | None = 67_108_864
    """Bytes of a key or value that is decoded at most; what is larger is poison. None: without a bound."""
    transaction: str = "message"
    """What a transaction is opened for: message, batch, or none."""
    guarantee: str = "at_least_once"
    """at_most_once, at_least_once or effect_once."""
    timeout: float | None = None
    """How long a handler may run that has no limit of its own; None: for ever."""
    retry: Retry = field(default_factory=Retry)
    """How often and when a failed message is handled again."""
    outage_patience: float = 900.0
    """How long a failure that is not the message's fault is waited for."""
    circuit_breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    """When it pauses because its handlers fail too often."""
    on_dead_letter: str = "continue"
    """What becomes of later messages of the same key: continue or hold_key."""
    hold_key_limit: int = 10_000
    """Messages that are parked behind one dead letter at most; beyond that their partition waits."""
    type_in: Place = field(default_factory=lambda: Place(header="type"))
    """Where messages say what they are."""
    version_in: Place = field(default_factory=lambda: Place(header="version"))
    """Where they say in which version."""
    deduplicate: str | None = None
    """The header that tells messages apart, or the dotted path of a callable that does."""
    session_timeout: float | None = None
    """After this silence the group goes on without it; None: librdkafka's 45 s."""
    heartbeat_interval: float | None = None
    """How often it breaks the silence; None: librdkafka's 3 s."""
    fetch_min_bytes: int | None = None
    """Brokers wait until they have as much; None: librdkafka's 1."""
    fetch_max_wait: float | None = None
    """But no longer than this; None: librdkafka's 0.5 s."""
    options: Mapping[str, Any] = field(default_factory=Options)
    """librdkafka's own properties; they win over ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """How dead letters are kept."""

    database: str = "default"
    """The alias in DATABASES that has them."""
    retention: float | None = 2_592_000.0
    """How long those are kept that need nobody any more; None: for ever."""
    unresolved_max_age: float | None = None
    """How long after their last failure open ones are kept that hold no key; None: for ever."""
    topic: str | None = None
    """A topic that gets them too, without the prefix; {topic}, {group}, {consumer} in it are those of the message."""
    producer: str | None = None
    """The name of the producer that sends them there; None: the default one, or one of the same cluster."""
    max_shown: int = 524_288
    """Bytes of a payload that the admin shows."""
    job_above: int = 1000
    """More letters than this are replayed as a job only, when the admin is asked to."""
    reason_above: int | None = 100
    """A job of more letters than this needs a reason in the admin; None: none does."""
    edit: bool = False
    """Whether messages may be edited before they are replayed."""
    mask: Mask = field(default_factory=Mask)
    """What people see only with the permission to view payloads."""
    audit_retention: float | None = None
    """How long entries of the audit are kept that are written from now on; None: for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeats:
    """How workers tell that they live."""

    enabled: bool = True
    """Whether they do."""
    interval: float = 5.0
    """How often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What still counts as healthy; None: without a bound."""

    max_poll_age: float | None = None
    """How long a worker may go without polling; None: its max.poll.interval.ms."""
    max_lag: int | None = None
    """How many messages a consumer may be behind."""
    max_lag_age: float | None = None
    """How old the oldest of these may be."""
    max_dead_letters: int | None = None
    """How many open dead letters a consumer may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What is told to Prometheus."""

    groups: str = "workers"
    """Which processes ask brokers for groups when they are scraped: nowhere, workers or everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """What is logged."""

    level: str | None = None
    """Of the logger django_kafka, where LOGGING gives it none; None: as LOGGING has it."""
    enable_sarama_logger: bool = False
    """True turns on librdkafka's own debug log."""
    correlation_headers: tuple[str, ...] = (
        "correlation-id", "correlation_id", "x-correlation-id", "x-request-id", "request-id",
    )  # fmt: skip
    """The headers in which a message may have its correlation id; the first that it has counts."""
    propagate_correlation: bool = True
    """Whether records that a handler produces carry the correlation id of its message on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """What is traced."""

    enabled: bool = True
    """False: nothing is, also where OpenTelemetry is set up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """The whole of settings.KAFKA."""

    clusters: Mapping[str, Cluster] = field(default_factory=_local)
    """By name; the keys at the top are "default"."""
    client_id: str = ""
    """What brokers see our clients as."""
    group_id: str = ""
    """Of the consumers that have none of their own."""
    release: str = ""
    """What of the project runs, as its deploys call it; said of failures."""
    topic_prefix: str = ""
    """Put before topics, groups, retry and dead-letter topics."""
    tenant: str | None = None
    """Dotted path of what tells whose records are produced, for topics with `{tenant}` in their template."""
    encryption_keys: tuple[EncryptionKey, ...] = ()
    """The first one encrypts; all of them decrypt."""
    producers: Mapping[str, Producer] = field(default_factory=_nothing)
    """By name."""
    consumers: Mapping[str, Consumer] = field(default_factory=_nothing)
    """By name."""
    dead_letters: DeadLetters = field(default_factory=DeadLetters)
    """How dead letters are kept."""
    heartbeats: Heartbeats = field(default_factory=Heartbeats)
    """How workers tell that they live."""
    health: Health = field(default_factory=Health)
    """What still counts as healthy."""
    metrics: Metrics = field(default_factory=Metrics)
    """What is told to Prometheus."""
    bridges: tuple[Mapping[str, Any], ...] = ()
    """From which topic to which."""
    error_categories: Mapping[str, tuple[str, ...]] = field(default_factory=_nothing)
    """Dotted paths of exceptions of the project, by the category they belong to."""
    logging: Logging = field(default_factory=Logging)
    """What is logged."""
    tracing: Tracing = field(default_factory=Tracing)
    """What is traced."""
    default_producer: str | None = None
    """The one called "default", else the first enabled one; None without any."""
    default_consumer: str | None = None
    """The one called "default", else the first enabled one; None without any."""

    def prefixed(self, name: str) -> str:
        """Return the name of a topic or group as brokers know it."""
        return f"{self.topic_prefix}{name}"
