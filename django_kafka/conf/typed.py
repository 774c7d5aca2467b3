"""The types of settings.KAFKA for those who write it: `KAFKA: KafkaSettings = {…}` lets a type checker read along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from .typed_clusters import ClusterSettings, Duration, Kept, SchemaOptionsSettings, SchemaSource, Size


class CloudEventsSettings(TypedDict, total=False):
    """KAFKA["producers"]["…"]["cloud_events"]"""

    mode: Literal["none", "binary", "structured"]
    source: str | None
    type: str | None
    content_type: str | None


class ClaimCheckSettings(TypedDict, total=False):
    """KAFKA["producers"]["…"]["claim_check"]; that of a consumer has no `above`"""

    storage: str
    above: Size


class ProducerTopicSettings(TypedDict, total=False):
    """KAFKA["producers"]["…"]["topics"]["…"]"""

    serializer: str | None
    key_serializer: str | None
    schema: SchemaSource
    key_schema: SchemaSource
    schema_options: SchemaOptionsSettings
    encryption: Literal["none", "payload"] | Sequence[str] | None
    cloud_events: Literal["none", "binary", "structured"] | CloudEventsSettings | None
    claim_check: str | ClaimCheckSettings | None
    routing: str | None


class ProducerCircuitSettings(TypedDict, total=False):
    """KAFKA["producers"]["…"]["circuit_breaker"]"""

    enabled: bool
    threshold: Duration
    cooldown: Duration


class ProducerSettings(TypedDict, total=False):
    """KAFKA["producers"]["…"]"""

    name: str
    enabled: bool
    cluster: str
    topic: str | None
    topics: Mapping[str, ProducerTopicSettings] | Sequence[str | Mapping[str, Any]]
    send: Literal["on_commit", "immediate", "outbox"]
    serializer: str
    key_serializer: str
    schema: SchemaSource
    key_schema: SchemaSource
    schema_options: SchemaOptionsSettings
    encryption: Literal["none", "payload"] | Sequence[str]
    cloud_events: Literal["none", "binary", "structured"] | CloudEventsSettings | None
    claim_check: str | ClaimCheckSettings
    acks: Literal["all", "1", "0", -1, 0, 1]
    idempotent: bool | None
    max_retries: int | None
    retries: int | None
    retry_backoff: Duration
    delivery_timeout: Duration
    batch_size: Size
    batch_timeout: Duration
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"]
    compression_level: int | None
    circuit_breaker: ProducerCircuitSettings
    routing: str
    options: Mapping[str, Any]


class RetrySettings(TypedDict, total=False):
    """KAFKA["consumers"]["…"]["retry"]"""

    max_retries: int
    retries: int
    backoff: Duration
    multiplier: float
    max_backoff: Duration
    jitter: float
    mode: Literal["blocking", "topics"]
    retry_on: Sequence[str]
    give_up_on: Sequence[str]
    decide: str | None


class PlaceSettings(TypedDict, total=False):
    """KAFKA["consumers"]["…"]["type_in"], and "version_in": one of them"""

    header: str
    field: str
    cloud_event: str


class DispatchSettings(TypedDict):
    """An item of KAFKA["consumers"]["…"]["topics"]["…"]["dispatch"]"""

    header: NotRequired[Mapping[str, str]]
    field: NotRequired[Mapping[str, str | int | bool]]
    type: NotRequired[str]
    version: NotRequired[int]
    when: NotRequired[str]
    handler: str
    dry_run: NotRequired[bool]


_ImportSettings = TypedDict(
    "_ImportSettings",
    {"import": Literal["auto", "lynx", "spring", "connect", "regiohelden", "karafka", "plain"] | None},
    total=False,
)


class ConsumerTopicSettings(_ImportSettings, total=False):
    """KAFKA["consumers"]["…"]["topics"]["…"]"""

    handler: str | None
    serializer: str | None
    key_serializer: str | None
    schema: SchemaSource
    key_schema: SchemaSource
    schema_options: SchemaOptionsSettings
    encryption: Literal["none", "payload"] | Sequence[str] | None
    accept_plain: bool | None
    encrypted_for: Sequence[str]
    cloud_events: bool | None
    claim_check: str | ClaimCheckSettings | None
    timeout: Duration | None
    dry_run: bool
    retry: RetrySettings
    dispatch: Sequence[DispatchSettings]
    type_in: PlaceSettings
    version_in: PlaceSettings
    original: str | None


class CircuitBreakerSettings(TypedDict, total=False):
    """KAFKA["consumers"]["…"]["circuit_breaker"]"""

    enabled: bool
    failure_ratio: float
    window: int
    cooldown: Duration


class ConsumerSettings(TypedDict, total=False):
    """KAFKA["consumers"]["…"]"""

    name: str
    enabled: bool
    cluster: str
    database: str
    group_id: str
    topics: Mapping[str, ConsumerTopicSettings] | Sequence[str | Mapping[str, Any]]
    handler: str | None
    serializer: str
    key_serializer: str
    schema: SchemaSource
    key_schema: SchemaSource
    schema_options: SchemaOptionsSettings
    encryption: Literal["none", "payload"] | Sequence[str]
    accept_plain: bool
    cloud_events: bool
    claim_check: str | ClaimCheckSettings
    auto_offset_reset: Literal["earliest", "latest", "error"]
    enable_auto_commit: bool
    auto_commit_interval: Duration
    find_topics_interval: Duration
    max_poll_records: int
    ordering: Literal["partition", "key", "unordered"]
    concurrency: int
    processes: int
    max_in_flight: int
    max_in_flight_bytes: Size
    max_payload: Size | None
    transaction: Literal["message", "batch", "none"]
    guarantee: Literal["at_most_once", "at_least_once", "effect_once"]
    timeout: Duration | None
    retry: RetrySettings
    outage_patience: Duration
    circuit_breaker: CircuitBreakerSettings
    on_dead_letter: Literal["continue", "hold_key"]
    hold_key_limit: int
    type_in: PlaceSettings
    version_in: PlaceSettings
    deduplicate: str | None
    session_timeout: Duration | None
    heartbeat_interval: Duration | None
    fetch_min_bytes: Size | None
    fetch_max_wait: Duration | None
    options: Mapping[str, Any]


class MaskedTexts(TypedDict):
    """Masks what a regular expression matches"""

    regex: str


class MaskedKeys(TypedDict):
    """Masks whole keys"""

    key: bool


class DeadLettersSettings(TypedDict, total=False):
    """KAFKA["dead_letters"]"""

    database: str
    retention: Duration | None
    unresolved_max_age: Duration | None
    topic: str | None
    producer: str | None
    max_shown: Size
    job_above: int
    reason_above: int | None
    edit: bool
    mask: Sequence[str | MaskedTexts | MaskedKeys]
    audit_retention: Duration | None


class EncryptionSettings(TypedDict, total=False):
    """KAFKA["encryption"]"""

    keys: Mapping[str, Kept]


class HeartbeatsSettings(TypedDict, total=False):
    """KAFKA["heartbeats"]"""

    enabled: bool
    interval: Duration


class HealthSettings(TypedDict, total=False):
    """KAFKA["health"]"""

    max_poll_age: Duration | None
    max_lag: int | None
    max_lag_age: Duration | None
    max_dead_letters: int | None


class MetricsSettings(TypedDict, total=False):
    """KAFKA["metrics"]"""

    groups: Literal["nowhere", "workers", "everywhere"]


class ErrorCategoriesSettings(TypedDict, total=False):
    """KAFKA["error_categories"]"""

    network: Sequence[str]
    configuration: Sequence[str]
    authentication: Sequence[str]
    authorization: Sequence[str]
    serialization: Sequence[str]
    handler: Sequence[str]
    outage: Sequence[str]
    timeout: Sequence[str]


class LoggingSettings(TypedDict, total=False):
    """KAFKA["logging"]"""

    level: str | None
    enable_sarama_logger: bool
    correlation_headers: Sequence[str]
    propagate_correlation: bool


class TracingSettings(TypedDict, total=False):
    """KAFKA["tracing"]"""

    enabled: bool


class KafkaSettings(ClusterSettings, total=False):
    """settings.KAFKA"""

    client_id: str
    group_id: str
    topic_prefix: str
    release: str
    tenant: str | None
    clusters: Mapping[str, ClusterSettings]
    producers: Mapping[str, ProducerSettings] | Sequence[ProducerSettings]
    consumers: Mapping[str, ConsumerSettings] | Sequence[ConsumerSettings]
    dead_letters: DeadLettersSettings
    encryption: EncryptionSettings
    heartbeats: HeartbeatsSettings
    health: HealthSettings
    metrics: MetricsSettings
    bridges: Sequence[Mapping[str, Any]]
    error_categories: ErrorCategoriesSettings
    logging: LoggingSettings
    tracing: TracingSettings
