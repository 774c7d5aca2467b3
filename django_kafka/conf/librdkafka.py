"""What we know about librdkafka's own properties: which are ours to set, and which say the same as a key of ours."""

from __future__ import annotations

from collections.abc import Mapping

PRODUCER_SAME: Mapping[str, tuple[str, ...]] = {
    "acks": ("request.required.acks",),
    "idempotent": ("enable.idempotence",),
    "max_retries": ("message.send.max.retries",),
    "retry_backoff": ("retry.backoff.ms",),
    "delivery_timeout": ("delivery.timeout.ms", "message.timeout.ms"),
    "batch_size": ("batch.size",),
    "batch_timeout": ("linger.ms", "queue.buffering.max.ms"),
    "compression": ("compression.type", "compression.codec"),
    "compression_level": ("compression.level",),
}
"""Our key of a producer → the properties that say the same."""

CONSUMER_SAME: Mapping[str, tuple[str, ...]] = {
    "auto_offset_reset": ("auto.offset.reset",),
    "auto_commit_interval": ("auto.commit.interval.ms",),
    "session_timeout": ("session.timeout.ms",),
    "heartbeat_interval": ("heartbeat.interval.ms",),
    "fetch_min_bytes": ("fetch.min.bytes",),
    "fetch_max_wait": ("fetch.wait.max.ms",),
}
"""Our key of a consumer → the properties that say the same."""

CLUSTER_SAME: Mapping[str, tuple[str, ...]] = {
    "sasl.enabled": ("security.protocol",),
    "sasl.mechanism": ("sasl.mechanisms", "sasl.mechanism"),
    "sasl.username": ("sasl.username",),
    "sasl.password": ("sasl.password",),
    "kerberos.service_name": ("sasl.kerberos.service.name",),
    "kerberos.principal": ("sasl.kerberos.principal",),
    "kerberos.keytab": ("sasl.kerberos.keytab",),
    "oauth.function": ("sasl.oauthbearer.method",),
    "oauth.token_url": ("sasl.oauthbearer.method", "sasl.oauthbearer.token.endpoint.url"),
    "oauth.client_id": ("sasl.oauthbearer.client.id", "sasl.oauthbearer.client.credentials.client.id"),
    "oauth.client_secret": ("sasl.oauthbearer.client.secret", "sasl.oauthbearer.client.credentials.client.secret"),
    "oauth.scope": ("sasl.oauthbearer.scope",),
    "oauth.extensions": ("sasl.oauthbearer.extensions",),
    "oauth.ca_file": ("https.ca.location",),
    "tls.enabled": ("security.protocol",),
    "tls.ca_file": ("ssl.ca.location",),
    "tls.cert_file": ("ssl.certificate.location",),
    "tls.key_file": ("ssl.key.location",),
    "tls.key_password": ("ssl.key.password",),
    "tls.insecure_skip_verify": ("enable.ssl.certificate.verification",),
    "connection.timeout": ("socket.connection.setup.timeout.ms",),
    "connection.keep_alive": ("socket.keepalive.enable",),
}
"""Our key of a cluster's `security` and `connection` → the properties that say the same."""

CLASSIC_ONLY = ("session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy", "group.protocol.type")
"""Properties that librdkafka refuses under group.protocol=consumer: the broker decides them there."""

_CALLBACK = "Callbacks are ours: what they tell arrives as signals, metrics and log lines."
_OFFSETS = "Offsets are stored only when their message is settled, so that a crash repeats a message and loses none."
_REPORTS = "Each record's delivery report must arrive: its result(), its signals and its counts are made of it."
_TRANSACTIONS = "Kafka transactions are not used: records go out with the database's commit (the key `send`)."
_SERIALIZERS = "Use our key `serializer` or `key_serializer`."

RESERVED: Mapping[str, str] = {
    "bootstrap.servers": 'Use KAFKA["brokers"], or the brokers of an entry in KAFKA["clusters"].',
    "metadata.broker.list": 'Use KAFKA["brokers"], or the brokers of an entry in KAFKA["clusters"].',
    "group.id": "Use our key `group_id`.",
    "enable.auto.offset.store": _OFFSETS,
    "enable.auto.commit": f"{_OFFSETS} Our key `enable_auto_commit` says when they are committed.",
    "auto.commit.enable": f"{_OFFSETS} Our key `enable_auto_commit` says when they are committed.",
    "offset.store.method": _OFFSETS,
    "offset.store.path": _OFFSETS,
    "offset.store.sync.interval.ms": _OFFSETS,
    "enable.partition.eof": "Ends of partitions would arrive among the messages; the worker knows them by offset.",
    "delivery.report.only.error": _REPORTS,
    "on_delivery": _REPORTS,
    "on_commit": _CALLBACK,
    "transactional.id": _TRANSACTIONS,
    "transaction.timeout.ms": _TRANSACTIONS,
    "partitioner": "Use our key `routing`.",
    "opaque": _CALLBACK,
    "log.queue": 'Log lines go where KAFKA["logging"] says.',
    "logger": 'Log lines go where KAFKA["logging"] says.',
    "log_level": 'Use KAFKA["logging"]["level"].',
    "debug": 'Use KAFKA["logging"]["enable_sarama_logger"].',
    "enabled_events": _CALLBACK,
    "default.topic.config": "Write the topic's properties directly into `options`.",
    "test.mock.num.brokers": 'Use "brokers": "embedded", and start it with `kafka_broker`.',
    "max.poll.records": "librdkafka has no such property. Use our key `max_poll_records`.",
    "key.serializer": _SERIALIZERS,
    "value.serializer": _SERIALIZERS,
    "key.deserializer": _SERIALIZERS,
    "value.deserializer": _SERIALIZERS,
}
"""Property → why it may not be given, and what to use instead."""


def reason_against(name: str) -> str | None:
    """Return why this property is not the user's to set, or None when it is."""
    if name == "oauth_cb":
        return 'Use KAFKA["security"]["sasl"]["oauth"]: its `function` names yours.'
    if name.endswith(("_cb", ".cb")):
        return _CALLBACK
    return RESERVED.get(name)


def our_key(name: str, same: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return our key that says the same as this property, whether written with dots or with underscores."""
    dotted = name.replace("_", ".")
    return next((key for key, properties in same.items() if dotted in properties), None)
