from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from pytest_django import Settings

from django_kafka import conf
from django_kafka.clients import properties
from django_kafka.clients.embedded import Cluster
from django_kafka.clients.librdkafka import load
from django_kafka.producing import produce

LOUD = {
    "sasl": {"enabled": True, "mechanism": "SCRAM-SHA-512", "username": "u", "password": "secret"},
    "tls": {"enabled": True, "ca_file": "/ca", "cert_file": "/cert", "key_file": "/key", "insecure_skip_verify": True},
}


def of_producer(settings: Settings, producer: dict[str, Any], **more: Any) -> dict[str, object]:
    settings.KAFKA = {"brokers": ["a:1", "b:2"], "producers": {"default": producer}, **more}
    found = conf.producer()
    return properties.for_producer(found, conf.cluster(found.cluster))


def of_consumer(settings: Settings, consumer: dict[str, Any]) -> dict[str, object]:
    settings.KAFKA = {"brokers": ["a:1"], "client_id": "me", "consumers": {"ops": {"group_id": "g", **consumer}}}
    found = conf.consumer()
    return properties.for_consumer(found, conf.cluster(found.cluster), "prefix.g")


def test_a_producer_by_default(settings: Settings) -> None:
    found = of_producer(settings, {})
    assert found == {
        "bootstrap.servers": "a:1,b:2",
        "socket.connection.setup.timeout.ms": 30000,
        "socket.keepalive.enable": True,
        "acks": "all",
        "enable.idempotence": True,
        "retry.backoff.ms": 100,
        "delivery.timeout.ms": 120000,
        "batch.size": 1000000,
        "linger.ms": 5.0,
        "compression.type": "zstd",
        "partitioner": "murmur2_random",
    }
    Producer(found)


def test_every_key_of_a_producer_has_its_property(settings: Settings) -> None:
    own = {
        "acks": "1",
        "max_retries": 7,
        "retry_backoff": "200ms",
        "delivery_timeout": "1m",
        "batch_size": 16384,
        "batch_timeout": "10ms",
        "compression": "lz4",
        "options": {"socket.nagle.disable": True, "queue.buffering.max.messages": 9},
    }
    found = of_producer(settings, own, client_id="me", connection={"timeout": "10s", "keep_alive": 0})
    assert found == {
        "bootstrap.servers": "a:1,b:2",
        "socket.connection.setup.timeout.ms": 10000,
        "socket.keepalive.enable": False,
        "client.id": "me",
        "acks": "1",
        "enable.idempotence": False,
        "message.send.max.retries": 7,
        "retry.backoff.ms": 200,
        "delivery.timeout.ms": 60000,
        "batch.size": 16384,
        "linger.ms": 10.0,
        "compression.type": "lz4",
        "partitioner": "murmur2_random",
        "socket.nagle.disable": True,
        "queue.buffering.max.messages": 9,
    }
    Producer(found)


def test_a_long_backoff_is_waited_for(settings: Settings) -> None:
    found = of_producer(settings, {"retry_backoff": "5s"})
    assert (found["retry.backoff.ms"], found["retry.backoff.max.ms"]) == (5000, 5000)
    assert "retry.backoff.max.ms" not in of_producer(settings, {"retry_backoff": "1s"})
    own = of_producer(settings, {"retry_backoff": "5s", "options": {"retry.backoff.max.ms": 9000}})
    assert own["retry.backoff.max.ms"] == 9000


def test_security_becomes_protocol_login_and_files(settings: Settings) -> None:
    found = of_producer(settings, {}, security=LOUD)
    assert {name: value for name, value in found.items() if name.startswith(("s", "enable.ssl"))} == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanisms": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": conf.Secret("secret"),
        "ssl.ca.location": "/ca",
        "ssl.certificate.location": "/cert",
        "ssl.key.location": "/key",
        "enable.ssl.certificate.verification": False,
        "socket.connection.setup.timeout.ms": 30000,
        "socket.keepalive.enable": True,
    }
    assert found["reconnect.backoff.ms"] == 1000


@pytest.mark.parametrize(
    ("sasl", "tls", "protocol"),
    [(False, False, None), (True, False, "SASL_PLAINTEXT"), (False, True, "SSL"), (True, True, "SASL_SSL")],
)
def test_the_protocol_follows_what_is_enabled(settings: Settings, sasl: bool, tls: bool, protocol: str | None) -> None:
    security = {"sasl": {**LOUD["sasl"], "enabled": sasl}, "tls": {"enabled": tls}}
    assert of_producer(settings, {}, security=security).get("security.protocol") == protocol


def test_a_consumer_stores_no_offsets_by_itself(settings: Settings) -> None:
    found = of_consumer(settings, {})
    assert found["enable.auto.offset.store"] is False
    assert found["group.id"] == "prefix.g"
    assert found["client.id"] == "me"
    assert found["partition.assignment.strategy"] == "cooperative-sticky"
    assert found["fetch.queue.backoff.ms"] == 5
    assert "session.timeout.ms" not in found
    Consumer(found).close()


def test_what_a_consumer_asks_for_goes_before_what_was_measured(settings: Settings) -> None:
    own = {
        "session_timeout": "30s",
        "heartbeat_interval": "3s",
        "fetch_min_bytes": 1024,
        "fetch_max_wait": "200ms",
        "enable_auto_commit": False,
        "auto_offset_reset": "latest",
        "options": {"fetch.queue.backoff.ms": 50},
    }
    found = of_consumer(settings, own)
    expected = {
        "session.timeout.ms": 30000,
        "heartbeat.interval.ms": 3000,
        "fetch.min.bytes": 1024,
        "fetch.wait.max.ms": 200,
        "enable.auto.commit": False,
        "auto.offset.reset": "latest",
        "fetch.queue.backoff.ms": 50,
    }
    assert expected.items() <= found.items()
    Consumer(found).close()


def test_the_new_group_protocol_gets_no_classic_defaults(settings: Settings) -> None:
    found = of_consumer(settings, {"options": {"group.protocol": "consumer"}})
    assert "partition.assignment.strategy" not in found
    Consumer(found).close()


def test_librdkafkas_own_debug_log_can_be_turned_on(
    embedded: Cluster, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.KAFKA = {"brokers": [embedded.bootstrap_servers], "logging": {"enable_sarama_logger": True}}
    caplog.set_level("DEBUG", "django_kafka.client")
    produce("flights", None, 1).result(20)
    assert any(record.levelname == "DEBUG" and "producer=default " in record.getMessage() for record in caplog.records)
    assert "debug" not in of_producer(settings, {})
    assert "debug" in of_producer(settings, {}, logging={"enable_sarama_logger": True})


def test_the_library_itself_is_asked_about_options() -> None:
    options = {"linger.ms": 5, "lingr.ms": 5, "acks": "some", "zzz.zzz.zzz": 1, "socket.nagle.disable": True}
    found = dict(properties.problems("producer", options))
    assert found.keys() == {"lingr.ms", "acks", "zzz.zzz.zzz"}
    assert found["lingr.ms"] == "librdkafka has no 'lingr.ms'; did you mean 'linger.ms'?"
    assert found["acks"].startswith("librdkafka refuses it: ")
    assert found["zzz.zzz.zzz"].endswith("its CONFIGURATION.md lists what it has.")
    assert "socket.nagle.disable" in properties.known()
    assert load() is load()


def test_the_nearest_name_is_sought_among_all_that_the_library_has() -> None:
    # These have no value until they are given one, and so are not in what the library says of a new configuration.
    found = dict(properties.problems("client", {"ssl.crl.loction": "/crl", "ssl.keystore.loction": "/store"}))
    assert found["ssl.crl.loction"].endswith("did you mean 'ssl.crl.location'?")
    assert found["ssl.keystore.loction"].endswith("did you mean 'ssl.keystore.location'?")


def test_options_of_the_connection_come_before_those_of_a_client(settings: Settings) -> None:
    own = {"reconnect.backoff.max.ms": 200, "socket.nagle.disable": True}
    found = of_producer(settings, {"options": {"socket.nagle.disable": False}}, connection={"options": own})
    assert (found["reconnect.backoff.max.ms"], found["socket.nagle.disable"]) == (200, False)


def test_the_first_pause_of_a_login_is_no_longer_than_the_longest(settings: Settings) -> None:
    found = of_producer(settings, {"options": {"reconnect.backoff.max.ms": 200}}, security=LOUD)
    assert found["reconnect.backoff.ms"] == 200
    found = of_producer(settings, {}, security=LOUD, connection={"options": {"reconnect.backoff.max.ms": 300}})
    assert found["reconnect.backoff.ms"] == 300
    own = {"reconnect.backoff.max.ms": 200, "reconnect.backoff.ms": 50}
    assert of_producer(settings, {"options": own}, security=LOUD)["reconnect.backoff.ms"] == 50
