"""The client library's errors as ours."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from ..exceptions import DeliveryFailed, DeliveryForbidden

_AUTHENTICATION = {"SASL_AUTHENTICATION_FAILED", "_AUTHENTICATION", "_SSL", "UNSUPPORTED_SASL_MECHANISM",
                   "ILLEGAL_SASL_STATE", "DELEGATION_TOKEN_EXPIRED", "UNACCEPTABLE_CREDENTIAL"}  # fmt: skip
_AUTHORIZATION = {"TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED",
                  "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "DELEGATION_TOKEN_AUTHORIZATION_FAILED",
                  "SECURITY_DISABLED"}  # fmt: skip
_SERIALIZATION = {"MSG_SIZE_TOO_LARGE", "INVALID_MSG", "INVALID_RECORD", "INVALID_MSG_SIZE", "RECORD_LIST_TOO_LARGE",
                  "INVALID_TIMESTAMP", "_BAD_MSG", "_KEY_SERIALIZATION", "_VALUE_SERIALIZATION",
                  "_KEY_DESERIALIZATION", "_VALUE_DESERIALIZATION"}  # fmt: skip
_CONFIGURATION = {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "TOPIC_EXCEPTION", "INVALID_CONFIG",
                  "_INVALID_ARG", "POLICY_VIOLATION", "INVALID_REQUIRED_ACKS", "UNSUPPORTED_VERSION",
                  "UNSUPPORTED_COMPRESSION_TYPE", "UNSUPPORTED_FOR_MESSAGE_FORMAT", "_UNSUPPORTED_FEATURE",
                  "_NOT_CONFIGURED", "_NOT_IMPLEMENTED"}  # fmt: skip
_TIMEOUT = {"_MSG_TIMED_OUT", "_TIMED_OUT", "REQUEST_TIMED_OUT", "_TIMED_OUT_QUEUE"}


def category(error: KafkaError) -> str:
    """Return what a Kafka error is counted by."""
    name = error.name()
    for names, answer in (
        (_AUTHENTICATION, "authentication"),
        (_AUTHORIZATION, "authorization"),
        (_SERIALIZATION, "serialization"),
        (_CONFIGURATION, "configuration"),
        (_TIMEOUT, "timeout"),
    ):
        if name in names:
            return answer
    return "network"


def delivery_failed(topic: str, error: KafkaError, forbidden: str | None = None) -> DeliveryFailed:
    """Return the typed error for a record that Kafka or the client gave up; `forbidden` says that it may not be sent.

    Retriable is what the record is not to blame for: the network, a broker, a time that ran out.
    """
    kind = category(error)
    made = DeliveryFailed if forbidden is None else DeliveryForbidden
    return made(
        f"The record for {topic!r} was not delivered: {forbidden or f'{error.str()} ({error.name()}).'}",
        code=error.name(),
        retriable=kind in ("network", "timeout"),
        category=kind,
    )


def of(exception: BaseException) -> KafkaError | None:
    """Return the Kafka error that the library's exception carries, if it is one."""
    if isinstance(exception, KafkaException) and exception.args and isinstance(exception.args[0], KafkaError):
        return exception.args[0]
    return None


def sentence(exception: BaseException) -> str:
    """Return what the library says, without its wrapping."""
    cause = of(exception)
    return cause.str() if cause else str(exception)
