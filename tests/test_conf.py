"""settings.KAFKA → values: what is read, what is refused, and with which words."""

from __future__ import annotations

import copy
import os
import pickle
import typing
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from django_kafka import conf
from django_kafka.conf import availability, consumers, parsing, producers, registries, typed, typed_clusters
from django_kafka.conf.schema import CATEGORIES
from django_kafka.exceptions import ConfigurationError, UnknownName

# What yaml.safe_load makes of the YAML blocks of the Lynx plugin's documentation.
LYNX: dict[str, dict[str, Any]] = {
    "basic": {
        "brokers": ["localhost:9092", "localhost:9093"],
        "client_id": "lynx-kafka-client",
        "group_id": "lynx-consumer-group",
        "producers": [
            {
                "name": "default-producer",
                "enabled": True,
                "topic": "default-topic",
                "max_retries": 3,
                "retry_backoff": "100ms",
                "batch_size": 16384,
                "batch_timeout": "10ms",
                "compression": "gzip",
            }
        ],
        "consumers": [
            {
                "name": "default-consumer",
                "enabled": True,
                "topics": ["default-topic"],
                "group_id": "lynx-consumer-group",
                "auto_offset_reset": "earliest",
                "enable_auto_commit": True,
                "max_poll_records": 500,
            }
        ],
    },
    "advanced": {
        "brokers": ["kafka1:9092", "kafka2:9092", "kafka3:9092"],
        "security": {
            "sasl": {"enabled": True, "mechanism": "PLAIN", "username": "kafka-user", "password": "kafka-password"},
            "tls": {
                "enabled": True,
                "ca_file": "/path/to/ca-cert.pem",
                "cert_file": "/path/to/client-cert.pem",
                "key_file": "/path/to/client-key.pem",
                "insecure_skip_verify": False,
            },
        },
        "connection": {"timeout": "30s", "keep_alive": "30s", "max_connections": 100},
        "producers": [
            {
                "name": "high-throughput-producer",
                "enabled": True,
                "topic": "high-throughput-topic",
                "options": {
                    "batch_size": 65536,
                    "batch_timeout": "5ms",
                    "compression": "lz4",
                    "max_retries": 5,
                    "retry_backoff": "200ms",
                    "acks": "all",
                    "idempotent": True,
                },
            }
        ],
        "consumers": [
            {
                "name": "batch-consumer",
                "enabled": True,
                "topics": ["batch-topic"],
                "group_id": "batch-consumer-group",
                "options": {
                    "auto_offset_reset": "earliest",
                    "enable_auto_commit": False,
                    "max_poll_records": 1000,
                    "session_timeout": "30s",
                    "heartbeat_interval": "3s",
                    "fetch_min_bytes": 1,
                    "fetch_max_wait": "500ms",
                },
            }
        ],
    },
    "producer tuning": {
        "producers": [
            {
                "name": "optimized-producer",
                "options": {
                    "batch_size": 65536,
                    "batch_timeout": "5ms",
                    "compression": "lz4",
                    "acks": "1",
                    "retries": 3,
                    "retry_backoff": "100ms",
                },
            }
        ]
    },
    "consumer tuning": {
        "consumers": [
            {
                "name": "optimized-consumer",
                "options": {
                    "max_poll_records": 1000,
                    "fetch_min_bytes": 1024,
                    "fetch_max_wait": "500ms",
                    "session_timeout": "30s",
                    "heartbeat_interval": "3s",
                },
            }
        ]
    },
    "debug": {"logging": {"level": "DEBUG", "enable_sarama_logger": True}},
}


def read(setting: object) -> conf.Kafka:
    """Read a setting that has nothing wrong in it."""
    reading = parsing.read(setting)
    assert [str(problem) for problem in reading.problems] == []
    return reading.kafka


def wrong(setting: object) -> list[conf.Problem]:
    return list(parsing.read(setting).problems)


def only(setting: object) -> conf.Problem:
    """Return the one thing that is wrong in a setting."""
    found = wrong(setting)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def producer(**values: Any) -> dict[str, Any]:
    return {"producers": {"bulk": values}}


def consumer(**values: Any) -> dict[str, Any]:
    return {"consumers": {"flights": {"group_id": "ops", "topics": ["flights"], **values}}}


# The plugin's YAML


@pytest.mark.parametrize("block", LYNX)
def test_every_block_of_the_plugins_yaml_pastes_as_it_is(block: str) -> None:
    read(LYNX[block])


def test_the_basic_yaml_means_what_it_says() -> None:
    kafka = read(LYNX["basic"])

    assert kafka.clusters["default"].brokers == ("localhost:9092", "localhost:9093")
    assert kafka.default_producer == "default-producer"
    assert kafka.default_consumer == "default-consumer"
    sends = kafka.producers["default-producer"]
    assert (sends.topic, sends.max_retries, sends.retry_backoff) == ("default-topic", 3, 0.1)
    assert (sends.batch_size, sends.batch_timeout, sends.compression) == (16384, 0.01, "gzip")
    assert sends.client_id == "lynx-kafka-client"
    reads = kafka.consumers["default-consumer"]
    assert list(reads.topics) == ["default-topic"]
    assert (reads.group_id, reads.auto_offset_reset) == ("lynx-consumer-group", "earliest")
    assert (reads.enable_auto_commit, reads.max_poll_records) == (True, 500)


def test_the_advanced_yaml_means_what_it_says() -> None:
    kafka = read(LYNX["advanced"])

    cluster = kafka.clusters["default"]
    assert (cluster.security.sasl.username, cluster.security.sasl.password.reveal()) == ("kafka-user", "kafka-password")
    assert cluster.security.tls.ca_file == "/path/to/ca-cert.pem"
    assert cluster.connection == conf.Connection(timeout=30.0, keep_alive=30.0, max_connections=100)
    sends = kafka.producers["high-throughput-producer"]
    assert (sends.batch_size, sends.batch_timeout, sends.compression) == (65536, 0.005, "lz4")
    assert (sends.max_retries, sends.retry_backoff, sends.acks, sends.idempotent) == (5, 0.2, "all", True)
    reads = kafka.consumers["batch-consumer"]
    assert (reads.enable_auto_commit, reads.max_poll_records) == (False, 1000)
    assert (reads.session_timeout, reads.heartbeat_interval) == (30.0, 3.0)
    assert (reads.fetch_min_bytes, reads.fetch_max_wait) == (1, 0.5)
    assert sends.options == reads.options == {}


def test_the_tuning_yaml_turns_idempotence_off_with_acks() -> None:
    sends = read(LYNX["producer tuning"]).producers["optimized-producer"]

    assert (sends.acks, sends.max_retries, sends.is_idempotent) == ("1", 3, False)


def test_yaml_that_was_pasted_with_its_head_says_what_to_cut() -> None:
    problem = only({"lynx": {"kafka": LYNX["basic"]}})

    assert problem.message == "KAFKA has no key 'lynx'."
    assert 'yaml.safe_load(…)["lynx"]["kafka"]' in problem.hint


def test_blocks_that_are_empty_in_yaml_are_none_and_read_as_empty() -> None:
    read(
        {
            "security": None,
            "connection": None,
            "producers": None,
            "consumers": {"flights": None},
            "clusters": None,
            "bridges": None,
            "logging": None,
        }
    )


# Defaults


def test_no_setting_at_all_is_a_local_broker_and_a_default_producer() -> None:
    kafka = read(None)

    assert kafka.clusters["default"] == conf.Cluster(name="default", brokers=("localhost:9092",))
    assert kafka.producers == {"default": conf.Producer(name="default")}
    assert kafka.consumers == {}
    assert (kafka.default_producer, kafka.default_consumer) == ("default", None)


def test_defaults_are_those_of_the_design() -> None:
    sends, reads, letters = conf.Producer(name="p"), conf.Consumer(name="c"), conf.DeadLetters()

    assert (sends.delivery_timeout, sends.batch_size, sends.batch_timeout) == (120.0, 1_000_000, 0.005)
    assert (sends.compression, sends.send, sends.routing, sends.is_idempotent) == ("zstd", "on_commit", "key", True)
    assert (reads.max_in_flight, reads.max_in_flight_bytes, reads.outage_patience) == (10_000, 64 * 1024**2, 900.0)
    assert reads.max_payload == 64 * 1024**2
    assert (reads.session_timeout, reads.fetch_max_wait, reads.auto_commit_interval) == (None, None, 5.0)
    assert (reads.retry.backoff, reads.retry.max_backoff, reads.circuit_breaker.cooldown) == (1.0, 60.0, 30.0)
    assert (letters.retention, letters.max_shown) == (30 * 86400.0, 512 * 1024)


def test_the_default_is_the_one_called_default_else_the_first_enabled_one() -> None:
    assert read({"producers": [{"name": "a"}, {"name": "default"}]}).default_producer == "default"
    assert read({"producers": [{"name": "a", "enabled": False}, {"name": "b"}]}).default_producer == "b"
    assert read({"producers": [{"name": "a", "enabled": False}]}).default_producer is None


def test_every_block_knows_the_keys_that_its_type_for_users_names() -> None:
    pairs: list[tuple[type, set[str]]] = [
        (
            typed.ProducerSettings,
            {"name", "topic", "topics", "options", "retries", "circuit_breaker", *producers.PRODUCER},
        ),
        (typed.ProducerCircuitSettings, set(producers.CIRCUIT_BREAKER)),
        (typed.ProducerTopicSettings, set(producers.PRODUCER_TOPIC)),
        (
            typed.ConsumerSettings,
            {"name", "topics", "options", "retry", "circuit_breaker", *consumers.CONSUMER},
        ),
        (typed.ConsumerTopicSettings, {"retry", "dispatch", "original", *consumers.CONSUMER_TOPIC}),
        (typed_clusters.SchemaRegistrySettings, {"tls", "oauth", *registries.SCHEMA_REGISTRY, *registries.WRITING}),
        (typed_clusters.SchemaOptionsSettings, set(registries.WRITING)),
        (typed_clusters.RegistryTlsSettings, set(registries.REGISTRY_TLS)),
        (typed_clusters.RegistryOAuthSettings, set(registries.REGISTRY_OAUTH)),
        (typed.RetrySettings, {"retries", *consumers.RETRY}),
        (typed.CircuitBreakerSettings, set(consumers.CIRCUIT_BREAKER)),
        (typed.DeadLettersSettings, {"topic", *parsing.DEAD_LETTERS}),
        (typed.HeartbeatsSettings, set(parsing.HEARTBEATS)),
        (typed.ErrorCategoriesSettings, set(CATEGORIES)),
        (typed.LoggingSettings, set(parsing.LOGGING)),
    ]

    for users, keys in pairs:
        assert set(typing.get_type_hints(users)) == keys, users


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        (
            conf.Producer,
            {"name", "client_id", "topic", "topics", "options", "circuit_breaker", *producers.PRODUCER},
        ),
        (conf.ProducerCircuit, set(producers.CIRCUIT_BREAKER)),
        (
            conf.Consumer,
            {"name", "client_id", "topics", "options", "retry", "circuit_breaker", *consumers.CONSUMER},
        ),
        (conf.Retry, set(consumers.RETRY)),
        (conf.DeadLetters, {"topic", *parsing.DEAD_LETTERS}),
    ],
)
def test_every_key_becomes_a_field_of_its_name(value: Any, keys: set[str]) -> None:
    assert {field.name for field in fields(value)} == keys


def test_every_key_is_in_the_docs() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "settings.md").read_text()
    users = [one for module in (typed, typed_clusters) for one in vars(module).values() if typing.is_typeddict(one)]

    assert len(users) > 10
    assert [key for each in users for key in typing.get_type_hints(each) if f"`{key}`" not in page] == []


# Values


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("100ms", 0.1),
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("1m 30s", 90.0),
        ("2h", 7200.0),
        ("30d", 2_592_000.0),
        ("1w", 604_800.0),
        ("1.5h", 5400.0),
        ("250us", 0.00025),
        (30, 30.0),
        (0.5, 0.5),
        (0, 0.0),
        (timedelta(minutes=2), 120.0),
    ],
)
def test_durations_are_read(given: object, seconds: float) -> None:
    assert conf.parse_duration(given, "timeout") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "soon",
        "-5s",
        "5",
        "5 minutes",
        "s",
        "1h-3m",
        -1,
        True,
        None,
        [],
        float("nan"),
        float("inf"),
        10**400,
        "99999w",
        timedelta(seconds=-1),
        b"5s",
    ],
)
def test_durations_that_mean_nothing_are_refused_with_path_and_what_is_allowed(given: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^timeout is .*; allowed: a duration from 0 to 3650d, such as"):
        conf.parse_duration(given, "timeout")


def test_a_duration_without_a_unit_is_asked_for_it() -> None:
    with pytest.raises(ConfigurationError, match='Say the unit: "30s" or "30ms"'):
        conf.parse_duration("30", "timeout")


@pytest.mark.parametrize(
    ("given", "count"),
    [(1, 1), ("16384", 16384), ("64KiB", 65536), ("64 KiB", 65536), ("1MB", 10**6), ("1.5k", 1500), ("1GiB", 1024**3)],
)
def test_sizes_are_read(given: object, count: int) -> None:
    assert read(producer(batch_size=given)).producers["bulk"].batch_size == count


@pytest.mark.parametrize(
    ("given", "acks"), [("all", "all"), (-1, "all"), ("-1", "all"), (1, "1"), ("1", "1"), (0, "0"), ("0", "0")]
)
def test_acks_are_read_as_yaml_gives_them(given: object, acks: str) -> None:
    assert read(producer(acks=given)).producers["bulk"].acks == acks


@pytest.mark.parametrize(
    ("given", "brokers"),
    [
        (["a:1", "b"], ("a:1", "b")),
        ("a:1, b:2", ("a:1", "b:2")),
        (["[::1]:9092"], ("[::1]:9092",)),
        (["SSL://a:9093"], ("SSL://a:9093",)),
    ],
)
def test_brokers_are_a_list_or_a_text_with_commas(given: object, brokers: tuple[str, ...]) -> None:
    cluster = read({"brokers": given}).clusters["default"]

    assert (cluster.brokers, cluster.embedded) == (brokers, False)


def test_embedded_stands_for_the_development_cluster() -> None:
    cluster = read({"brokers": "embedded"}).clusters["default"]

    assert (cluster.brokers, cluster.embedded) == ((), True)


def test_files_may_be_path_objects() -> None:
    tls = {"enabled": True, "ca_file": Path("/etc/ca.pem")}

    assert read({"security": {"tls": tls}}).clusters["default"].security.tls.ca_file == "/etc/ca.pem"


WRONG_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"brokers": []}, 'KAFKA["brokers"] is []; allowed: a list of addresses'),
    ({"brokers": ["a:99999"]}, "KAFKA[\"brokers\"] is ['a:99999']; allowed: a list of addresses"),
    ({"brokers": 9092}, 'KAFKA["brokers"] is 9092; allowed: a list of addresses'),
    ({"brokers": ["embedded", "a:1"]}, "KAFKA[\"brokers\"] is ['embedded', 'a:1']; allowed:"),
    ({"client_id": 5}, 'KAFKA["client_id"] is 5; allowed: a text on one line.'),
    ({"topic_prefix": "a b"}, "KAFKA[\"topic_prefix\"] is 'a b'; allowed: at most 200 of the characters"),
    ({"connection": {"timeout": "10ms"}}, 'KAFKA["connection"]["timeout"] is \'10ms\'; allowed: a duration from 1s'),
    ({"connection": {"max_connections": 0}}, 'KAFKA["connection"]["max_connections"] is 0; allowed: a whole number'),
    ({"connection": "30s"}, 'KAFKA["connection"] is of type str; allowed: a dict.'),
    ({"schema_registry": {"url": "registry:8081"}}, 'KAFKA["schema_registry"]["url"] is \'registry:8081\'; allowed:'),
    ({"schema_registry": {"url": "http://[x"}}, 'KAFKA["schema_registry"]["url"] is \'http://[x\'; allowed:'),
    ({"security": {"sasl": {"mechanism": "PLANE"}}}, 'is \'PLANE\'; allowed: "PLAIN", "SCRAM-SHA-256"'),
    ({"heartbeats": {"enabled": "yes"}}, 'KAFKA["heartbeats"]["enabled"] is \'yes\'; allowed: True or False.'),
    ({"heartbeats": {"interval": 0}}, 'KAFKA["heartbeats"]["interval"] is 0; allowed: a duration from 100ms to 1h'),
    ({"logging": {"level": "loud"}}, 'KAFKA["logging"]["level"] is'),
    ({"dead_letters": {"max_shown": -1}}, 'KAFKA["dead_letters"]["max_shown"] is -1; allowed: a number of bytes'),
    ({"dead_letters": {"mask": "card"}}, 'KAFKA["dead_letters"]["mask"] is \'card\'; allowed: a list of paths'),
    ({"dead_letters": {"mask": [{"regexp": "a"}]}}, "allowed: a list of paths such as"),
    ({"dead_letters": {"mask": [{"key": "a"}]}}, "allowed: a list of paths such as"),
    ({"dead_letters": {"mask": [5]}}, "allowed: a list of paths such as"),
    ({"dead_letters": {"audit_retention": 0}}, 'KAFKA["dead_letters"]["audit_retention"] is 0; allowed: a duration'),
    ({"dead_letters": {"database": None}}, 'KAFKA["dead_letters"]["database"] is None; allowed: a name.'),
    ({"bridges": {}}, 'KAFKA["bridges"] is of type dict; allowed: a list of dicts.'),
    ({"bridges": ["a"]}, 'KAFKA["bridges"][0] is of type str; allowed: a dict.'),
    ({"producers": "bulk"}, 'KAFKA["producers"] is of type str; allowed: a dict by name, or a list of producers.'),
    ({"producers": [5]}, 'KAFKA["producers"][0] is of type int; allowed: a producer\'s name, or a dict with `name`.'),
    ({"producers": {"a b": {}}}, "'a b' is no name for a producer; allowed: 1 to 100 of the characters"),
    ({"producers": [{"name": ["a"]}]}, "is no name for a producer"),
    (producer(enabled="yes"), 'KAFKA["producers"]["bulk"]["enabled"] is \'yes\'; allowed: True or False.'),
    (producer(enabled=1), 'KAFKA["producers"]["bulk"]["enabled"] is 1; allowed: True or False.'),
    (producer(acks="most"), 'KAFKA["producers"]["bulk"]["acks"] is \'most\'; allowed: "all", "1", "0".'),
    (producer(acks=True), 'KAFKA["producers"]["bulk"]["acks"] is True; allowed: "all", "1", "0".'),
    (producer(acks=10**5000), 'KAFKA["producers"]["bulk"]["acks"] is too long (int); allowed:'),
    (producer(max_retries="3"), 'KAFKA["producers"]["bulk"]["max_retries"] is \'3\'; allowed: a whole number from 0'),
    (producer(max_retries=True), 'KAFKA["producers"]["bulk"]["max_retries"] is True; allowed: a whole number'),
    (producer(batch_size="9" * 400), 'KAFKA["producers"]["bulk"]["batch_size"] is'),
    (producer(batch_size=0), 'KAFKA["producers"]["bulk"]["batch_size"] is 0; allowed: a number of bytes from 1'),
    (producer(retry_backoff="10m"), "is '10m'; allowed: a duration from 1ms to 5m, such as"),
    (producer(compression=None), 'KAFKA["producers"]["bulk"]["compression"] is None; allowed: "none", "gzip"'),
    (producer(send="later"), 'is \'later\'; allowed: "on_commit", "immediate", "outbox".'),
    (producer(serializer="yaml"), 'is \'yaml\'; allowed: "bytes", "text", "json"'),
    (
        producer(options={"linger.ms": [5]}),
        'KAFKA["producers"]["bulk"]["options"]["linger.ms"] is [5]; allowed: a text',
    ),
    (producer(options={"options": {}}), 'KAFKA["producers"]["bulk"]["options"] may not hold `options`.'),
    (consumer(topics="flights"), 'KAFKA["consumers"]["flights"]["topics"] is of type str; allowed: a dict by name'),
    (consumer(concurrency=0), 'KAFKA["consumers"]["flights"]["concurrency"] is 0; allowed: a whole number from 1'),
    (consumer(on_dead_letter="hold_key", hold_key_limit=0), '["hold_key_limit"] is 0; allowed: a whole number from 1'),
    (consumer(max_payload=0), '["max_payload"] is 0; allowed: a number of bytes from 1'),
    (consumer(on_dead_letter="hold"), '["on_dead_letter"] is \'hold\'; allowed: "continue", "hold_key".'),
    (consumer(handler="handle"), "is 'handle'; allowed: a dotted path such as \"flights.handlers.flight_landed\"."),
    (consumer(retry={"jitter": 2}), '["retry"]["jitter"] is 2; allowed: a number from 0, up to 1.'),
    (consumer(retry={"retry_on": "a.B"}), '["retry"]["retry_on"] is \'a.B\'; allowed: a list of dotted paths.'),
    (consumer(retry={"backoff": "-1s"}), '["retry"]["backoff"] is \'-1s\'; allowed: a duration from 0 to 7d'),
    (consumer(retry={"max_backoff": "8d"}), '["retry"]["max_backoff"] is \'8d\'; allowed: a duration from 0 to 7d'),
    (consumer(retry={"multiplier": 0.5}), '["retry"]["multiplier"] is 0.5; allowed: a number from 1, up to 1000.'),
    (consumer(retry={"max_retries": -1}), '["retry"]["max_retries"] is -1; allowed: a whole number from 0'),
    (consumer(retry={"decide": "judge"}), '["retry"]["decide"] is \'judge\'; allowed: a dotted path'),
    ({"error_categories": []}, 'KAFKA["error_categories"] is of type list; allowed: a dict.'),
    ({"error_categories": {"outage": "a.B"}}, '["error_categories"]["outage"] is \'a.B\'; allowed: a list of dotted'),
    (consumer(circuit_breaker={"failure_ratio": 0}), '["failure_ratio"] is 0; allowed: a number above 0, up to 1.'),
    (consumer(topics={"flights": {"dispatch": {}}}), '["dispatch"] is of type dict; allowed: a list of dicts.'),
    (consumer(options={"ordering": "none"}), '["flights"]["options"]["ordering"] is \'none\'; allowed: "partition"'),
]


@pytest.mark.parametrize(("setting", "words"), WRONG_VALUES)
def test_a_wrong_value_is_named_with_path_value_and_what_is_allowed(setting: object, words: str) -> None:
    problem = only(setting)

    assert problem.id == "django_kafka.E002"
    assert words in problem.message
    assert not problem.warning


@pytest.mark.parametrize("setting", ["brokers", 5, [], ["a"], object()])
def test_a_setting_that_is_no_dict_is_one_problem(setting: object) -> None:
    assert only(setting).message == f"KAFKA is of type {type(setting).__name__}; allowed: a dict."


def test_a_wrong_value_leaves_the_default_in_its_place() -> None:
    reading = parsing.read(producer(compression="best", batch_timeout="1s"))

    assert reading.kafka.producers["bulk"].compression == "zstd"
    assert reading.kafka.producers["bulk"].batch_timeout == 1.0


def test_a_value_that_contains_itself_is_shown_all_the_same() -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert "..." in only({"brokers": endless}).message


# Unknown keys


@pytest.mark.parametrize(
    ("setting", "block", "key", "near"),
    [
        ({"broker": []}, "KAFKA", "broker", "brokers"),
        ({"security": {"ssl": {}}}, 'KAFKA["security"]', "ssl", "sasl"),
        ({"security": {"sasl": {"user_name": "x"}}}, 'KAFKA["security"]["sasl"]', "user_name", "username"),
        ({"security": {"tls": {"cafile": "x"}}}, 'KAFKA["security"]["tls"]', "cafile", "ca_file"),
        ({"connection": {"time_out": 1}}, 'KAFKA["connection"]', "time_out", "timeout"),
        ({"logging": {"levels": 1}}, 'KAFKA["logging"]', "levels", "level"),
        ({"heartbeats": {"enable": 1}}, 'KAFKA["heartbeats"]', "enable", "enabled"),
        ({"dead_letters": {"retain": 1}}, 'KAFKA["dead_letters"]', "retain", "retention"),
        ({"clusters": {"eu": {"brokers": "a", "secure": 1}}}, 'KAFKA["clusters"]["eu"]', "secure", "security"),
        (producer(compresion="lz4"), 'KAFKA["producers"]["bulk"]', "compresion", "compression"),
        (
            producer(topics={"a": {"serialiser": "x"}}),
            'KAFKA["producers"]["bulk"]["topics"]["a"]',
            "serialiser",
            "serializer",
        ),
        (producer(options={"batchsize": 5}), 'KAFKA["producers"]["bulk"]["options"]', "batchsize", "batch_size"),
        (consumer(topic=["a"]), 'KAFKA["consumers"]["flights"]', "topic", "topics"),
        (consumer(retry={"max_retry": 1}), 'KAFKA["consumers"]["flights"]["retry"]', "max_retry", "max_retries"),
        (
            consumer(circuit_breaker={"windows": 1}),
            'KAFKA["consumers"]["flights"]["circuit_breaker"]',
            "windows",
            "window",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(setting: object, block: str, key: str, near: str) -> None:
    problem = only(setting)

    assert problem.id == "django_kafka.E001"
    assert problem.path == f'{block}["{key}"]'
    assert problem.message == f"{block} has no key '{key}'."
    assert problem.hint == f'Did you mean "{near}"?'


def test_an_unknown_key_that_is_near_to_none_lists_them_all() -> None:
    assert only({"heartbeats": {"xyz": 1}}).hint == "It knows: enabled, interval."


def test_a_key_that_is_no_text_is_unknown_too() -> None:
    assert only({"heartbeats": {True: 1}}).message == 'KAFKA["heartbeats"] has no key True.'


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        (producer(linger_ms=5), 'That is "batch_timeout" here.'),
        (producer(**{"linger.ms": 5}), 'That is "batch_timeout" here.'),
        (producer(**{"message.max.bytes": 5}), "librdkafka's own properties go into `options`."),
        ({"debug": "all"}, 'Use KAFKA["logging"]["enable_sarama_logger"].'),
        ({"bootstrap.servers": "a"}, 'Use KAFKA["brokers"], or the brokers of an entry in KAFKA["clusters"].'),
    ],
)
def test_a_key_of_librdkafka_in_the_wrong_place_is_told_its_own(setting: object, hint: str) -> None:
    assert only(setting).hint == hint


# Names and lists


def test_a_list_of_entries_and_a_dict_say_the_same() -> None:
    listed = read({"producers": [{"name": "a", "acks": 1}, "b"]})

    assert listed == read({"producers": {"a": {"acks": 1}, "b": {}}})


def test_an_entry_of_a_list_needs_a_name() -> None:
    problem = only({"producers": [{"acks": 1}]})

    assert (problem.id, problem.path) == ("django_kafka.E003", 'KAFKA["producers"][0]')


@pytest.mark.parametrize("kind", ["producers", "consumers"])
def test_one_name_twice_is_an_error(kind: str) -> None:
    problem = only({kind: [{"name": "a"}, {"name": "a"}]})

    assert (problem.id, problem.path) == ("django_kafka.E004", f'KAFKA["{kind}"][1]')
    assert problem.message == f"KAFKA[\"{kind}\"] has the name 'a' twice."


def test_one_topic_twice_is_an_error() -> None:
    assert only(consumer(topics=["a", "a"])).id == "django_kafka.E004"


def test_a_dict_may_repeat_its_name_but_not_give_another() -> None:
    read({"producers": {"a": {"name": "a"}}})

    assert "it is declared as 'a'" in only({"producers": {"a": {"name": "b"}}}).message


# Options


def test_an_options_block_is_merged_over_its_siblings() -> None:
    bulk = read(producer(compression="gzip", batch_size=1, options={"compression": "lz4", "message.max.bytes": 5}))

    assert bulk.producers["bulk"].compression == "lz4"
    assert bulk.producers["bulk"].batch_size == 1
    assert bulk.producers["bulk"].options == {"message.max.bytes": 5}


def test_a_wrong_value_in_an_options_block_is_found_where_it_stands() -> None:
    assert only(producer(options={"acks": 5})).path == 'KAFKA["producers"]["bulk"]["options"]["acks"]'


@pytest.mark.parametrize(
    "setting",
    [
        producer(max_retries=3, retries=3),
        producer(max_retries=3, options={"retries": 3}),
        producer(batch_timeout="5ms", options={"linger.ms": 5}),
        producer(options={"batch_timeout": "5ms", "linger.ms": 5}),
        producer(options={"queue.buffering.max.ms": 5, "linger.ms": 5}),
        producer(acks="all", options={"request.required.acks": -1}),
        producer(idempotent=True, options={"enable.idempotence": True}),
        producer(max_retries=5, options={"message.send.max.retries": 5}),
        producer(retry_backoff="1s", options={"retry.backoff.ms": 1000}),
        producer(delivery_timeout="1m", options={"message.timeout.ms": 60000}),
        producer(delivery_timeout="1m", options={"delivery.timeout.ms": 60000}),
        producer(batch_size=5, options={"batch.size": 5}),
        producer(compression="lz4", options={"compression.type": "lz4"}),
        producer(compression="lz4", options={"compression.codec": "lz4"}),
        consumer(auto_offset_reset="latest", options={"auto.offset.reset": "latest"}),
        consumer(auto_commit_interval="1s", options={"auto.commit.interval.ms": 1000}),
        consumer(session_timeout="30s", options={"session.timeout.ms": 30000}),
        consumer(heartbeat_interval="1s", options={"heartbeat.interval.ms": 1000}),
        consumer(fetch_min_bytes=5, options={"fetch.min.bytes": 5}),
        consumer(fetch_max_wait="1s", options={"fetch.wait.max.ms": 1000}),
        consumer(retry={"retries": 3, "max_retries": 3}),
        {**producer(options={"security.protocol": "ssl"}), "security": {"tls": {"enabled": True}}},
        {**consumer(options={"sasl.username": "u"}), "security": {"sasl": {"username": "v"}}},
        {**producer(options={"socket.keepalive.enable": True}), "connection": {"keep_alive": "30s"}},
    ],
)
def test_one_property_given_twice_is_an_error(setting: object) -> None:
    problem = only(setting)

    assert problem.id == "django_kafka.E005"
    assert problem.message.endswith("say the same.")


def test_one_property_of_another_cluster_is_not_given_twice() -> None:
    eu = {"brokers": ["a"], "security": {"tls": {"enabled": True}}}

    read({**producer(options={"security.protocol": "ssl"}), "clusters": {"eu": eu}})


def test_librdkafkas_own_property_alone_is_passed_on() -> None:
    options = {"linger.ms": 5, "socket.keepalive.enable": False, "client.id": "me"}

    assert read(producer(options=options)).producers["bulk"].options == options


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("enable.auto.offset.store", "only when their message is settled"),
        ("enable.auto.commit", "enable_auto_commit"),
        ("group.id", "group_id"),
        ("bootstrap.servers", 'KAFKA["brokers"]'),
        ("metadata.broker.list", 'KAFKA["brokers"]'),
        ("transactional.id", "Kafka transactions are not used"),
        ("enable.partition.eof", "partitions"),
        ("delivery.report.only.error", "delivery report"),
        ("on_delivery", "delivery report"),
        ("partitioner", "routing"),
        ("stats_cb", "Callbacks are ours"),
        ("error_cb", "Callbacks are ours"),
        ("rebalance_cb", "Callbacks are ours"),
        ("oauth_cb", '["oauth"]: its `function` names'),
        ("test.mock.num.brokers", "embedded"),
        ("max.poll.records", "max_poll_records"),
    ],
)
@pytest.mark.parametrize("client", [producer, consumer])
def test_a_reserved_property_is_refused_with_its_reason(client: Any, name: str, reason: str) -> None:
    problem = only(client(options={name: "x"}))

    assert problem.id == "django_kafka.E006"
    assert problem.path.endswith(f'["options"]["{name}"]')
    assert reason in problem.hint


# Contradictions


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (producer(acks="1", idempotent=True), "has acks '1' and is idempotent"),
        (producer(acks=0, idempotent=True), "has acks '0' and is idempotent"),
        (producer(acks="1", options={"enable.idempotence": "true"}), "has acks '1' and is idempotent"),
        (producer(idempotent=True, options={"request.required.acks": 1}), "has acks '1' and is idempotent"),
        (producer(idempotent=True, max_retries=0), "has max_retries 0 and is idempotent"),
        (producer(options={"max.in.flight": 6}), "is 6; a producer that is idempotent may have 5"),
        (producer(batch_timeout="2s", delivery_timeout="1s"), "until they are given up (delivery_timeout, 1 s)"),
        (consumer(heartbeat_interval="1m"), "heartbeat_interval (60 s) is not below session_timeout (45 s)"),
        (consumer(session_timeout="2s"), "heartbeat_interval (3 s) is not below session_timeout (2 s)"),
        (consumer(session_timeout="10m"), "session_timeout (600 s) is above max.poll.interval.ms (300000)"),
        ({"error_categories": {"outage": ["a.B"], "timeout": ["a.B"]}}, "has 'a.B' in 'outage' and in 'timeout'"),
        (consumer(retry={"backoff": "2m"}), "backoff (120 s) is longer than max_backoff (60 s)"),
        (consumer(guarantee="effect_once", transaction="none"), 'guarantee "effect_once" and transaction "none"'),
        (consumer(guarantee="effect_once", retry={"mode": "topics"}), 'retry mode "topics"'),
        (consumer(guarantee="at_most_once", retry={"mode": "topics"}), '"at_most_once" and retry mode "topics"'),
        (consumer(guarantee="at_most_once", on_dead_letter="hold_key"), '"at_most_once" and on_dead_letter "hold_key"'),
        (consumer(on_dead_letter="hold_key", retry={"mode": "topics"}), '"hold_key" and retry mode "topics"'),
        (
            consumer(on_dead_letter="hold_key", topics={"flights": {"retry": {"mode": "topics"}}}),
            '"hold_key" and retry mode "topics"',
        ),
        (consumer(on_dead_letter="hold_key", ordering="unordered"), '"hold_key" and ordering "unordered"'),
        (
            consumer(processes=2, options={"group.instance.id": "one"}),
            '["group.instance.id"] stands beside processes 2: each would throw the others out of the group',
        ),
        (consumer(hold_key_limit=5), '["hold_key_limit"] stands there without on_dead_letter "hold_key"'),
        (consumer(retry={"mode": "topics", "max_retries": 51}), "each retry has a topic of its own"),
        ({"security": {"sasl": {"enabled": True, "password": "x"}}}, '["username"] is empty, but PLAIN needs it'),
        ({"security": {"tls": {"enabled": True, "cert_file": "x"}}}, "has `cert_file` but no `key_file`"),
    ],
)
def test_settings_that_cannot_hold_together_are_an_error(setting: object, words: str) -> None:
    problem = only(setting)

    assert problem.id == "django_kafka.E007"
    assert words in problem.message


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"session_timeout": "30s"}, "session_timeout"),
        ({"heartbeat_interval": "3s"}, "heartbeat_interval"),
        ({"session.timeout.ms": 30000}, "session.timeout.ms"),
        ({"heartbeat.interval.ms": 3000}, "heartbeat.interval.ms"),
        ({"partition.assignment.strategy": "range"}, "partition.assignment.strategy"),
    ],
)
@pytest.mark.parametrize("protocol", ["consumer", "CONSUMER"])
def test_under_the_new_group_protocol_what_the_broker_decides_is_refused(
    options: dict[str, Any], path: str, protocol: str
) -> None:
    problem = only(consumer(options={"group.protocol": protocol, **options}))

    assert problem.path == f'KAFKA["consumers"]["flights"]["options"]["{path}"]'
    assert "group.protocol=consumer" in problem.hint


def test_under_the_new_group_protocol_defaults_stay_out_of_the_way() -> None:
    flights = read(consumer(options={"group.protocol": "consumer"})).consumers["flights"]

    assert (flights.session_timeout, flights.heartbeat_interval) == (None, None)


@pytest.mark.parametrize(
    ("values", "idempotent"),
    [
        ({}, True),
        ({"acks": 1}, False),
        ({"acks": "all", "idempotent": False}, False),
        ({"max_retries": 0}, False),
        ({"options": {"enable.idempotence": False}}, False),
        ({"options": {"request.required.acks": "1"}}, False),
        ({"options": {"message.send.max.retries": 0}}, False),
    ],
)
def test_idempotence_follows_acks_unless_it_is_given(values: dict[str, Any], idempotent: bool) -> None:
    assert read(producer(**values)).producers["bulk"].is_idempotent is idempotent


# Topics, prefixes and clusters


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "ä", "a/b", "^flights", "x" * 250])
@pytest.mark.parametrize("where", ["consumer", "producer", "override", "dead letters"])
def test_names_that_kafka_refuses_are_refused_before_it_does(name: str, where: str) -> None:
    settings = {
        "consumer": consumer(topics=[name]),
        "producer": producer(topic=name),
        "override": producer(topics={name: {}}),
        "dead letters": {"dead_letters": {"topic": name}},
    }

    assert only(settings[where]).id == "django_kafka.E008"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{modell}", 'Did you mean "model"?'),
        ("{app!r}", "which may have {app}, {model}, {type} and {tenant} in it"),
        ("{type:>9}", "which may have"),
        ("{}", "which may have"),
        ("{app", "Each place is a word between { and }."),
        ("{app} {model}", "1 to 249 of the characters"),
    ],
)
def test_a_template_for_topics_of_records_has_places_that_are_known(template: str, said: str) -> None:
    problem = only(producer(topic=template))
    assert problem.id == "django_kafka.E008"
    assert said in f"{problem.message} {problem.hint}"


def test_a_prefix_counts_towards_the_length_of_a_topics_name() -> None:
    kafka = read({"topic_prefix": "test.", **consumer(topics=["x" * 244])})

    assert kafka.prefixed("flights") == "test.flights"
    assert list(kafka.consumers["flights"].topics) == ["x" * 244]
    assert "1 to 244 of the characters" in only({"topic_prefix": "test.", **consumer(topics=["x" * 245])}).message


def test_a_prefix_counts_towards_the_length_of_a_groups_name() -> None:
    kafka = read({"topic_prefix": "test.", **consumer(group_id="g" * 250)})
    assert len(kafka.prefixed(kafka.consumers["flights"].group_id)) == 255

    problem = only({"topic_prefix": "test.", **consumer(group_id="g" * 251)})
    assert "has a group_id of 251 characters, besides topic_prefix. Both together may have 255." in str(problem)
    assert problem.path == 'KAFKA["consumers"]["flights"]'


def test_the_group_of_the_top_is_not_too_long_for_a_consumer_either() -> None:
    problem = only({"topic_prefix": "p" * 200, "group_id": "g" * 56, "consumers": {"flights": {}}})
    assert "Both together may have 255" in str(problem)


def test_a_dot_is_a_name_when_a_prefix_stands_before_it() -> None:
    read({"topic_prefix": "test", **consumer(topics=["."])})


def test_topic_name_refuses_what_kafka_refuses(settings: Settings) -> None:
    settings.KAFKA = {"topic_prefix": "test."}

    assert conf.topic_name("flights") == "flights"
    for name in ("", "a b", "x" * 245, None, 5):
        with pytest.raises(ConfigurationError, match="is no name for a topic; allowed:"):
            conf.topic_name(name)


def test_a_cluster_of_its_own_has_its_own_keys() -> None:
    sasl = {"enabled": True, "mechanism": "scram-sha-512", "username": "u", "password": "p"}
    eu = {"brokers": ["eu:9092"], "security": {"sasl": sasl}, "connection": {"timeout": "5s"}}
    kafka = read({"brokers": ["us:9092"], "clusters": {"eu": eu}, **producer(cluster="eu")})

    assert kafka.clusters["default"].brokers == ("us:9092",)
    assert kafka.clusters["eu"].brokers == ("eu:9092",)
    assert kafka.clusters["eu"].security.sasl.mechanism == "SCRAM-SHA-512"
    assert kafka.clusters["eu"].connection.timeout == 5.0
    assert kafka.producers["bulk"].cluster == "eu"


def test_a_cluster_of_its_own_needs_brokers_and_another_name_than_default() -> None:
    assert only({"clusters": {"eu": {}}}).id == "django_kafka.E003"
    assert only({"clusters": {"default": {"brokers": "a"}}}).id == "django_kafka.E004"


@pytest.mark.parametrize(
    ("kind", "setting"), [("producers", producer(cluster="eu")), ("consumers", consumer(cluster="eu"))]
)
def test_an_unknown_cluster_names_those_there_are(kind: str, setting: object) -> None:
    problem = only(setting)

    assert problem.id == "django_kafka.E009"
    assert problem.path.startswith(f'KAFKA["{kind}"]')
    assert problem.message.endswith("is 'eu'; KAFKA has the clusters: default.")


def test_a_consumer_without_a_group_has_that_of_the_top() -> None:
    kafka = read({"group_id": "ops", "consumers": {"a": {}, "b": {"group_id": "own"}, "c": {"group_id": ""}}})

    assert [each.group_id for each in kafka.consumers.values()] == ["ops", "own", "ops"]


def test_a_topic_of_a_consumer_has_handlers_serializers_and_retries_of_its_own() -> None:
    flights = {
        "handler": "flights.handlers.landed",
        "serializer": "text",
        "retry": {"retries": 7},
        "dispatch": [{"header": {"type": "cancelled"}, "handler": "flights.handlers.cancelled"}],
    }
    read_ = read(consumer(topics={"flights": flights, "gates": {"retry": {}}}, retry={"backoff": "3s"}))
    topics = read_.consumers["flights"].topics

    assert topics["flights"].retry == conf.Retry(max_retries=7, backoff=3.0)
    assert topics["flights"].dispatch[0].header == {"type": "cancelled"}
    assert topics["flights"].dispatch[0].handler == "flights.handlers.cancelled"
    assert topics["gates"] == conf.ConsumerTopic(name="gates")


def test_topics_in_a_list_may_be_names_or_blocks_with_a_name() -> None:
    topics = read(consumer(topics=["a", {"name": "b", "handler": "x.y"}])).consumers["flights"].topics

    assert {name: topic.handler for name, topic in topics.items()} == {"a": None, "b": "x.y"}


@pytest.mark.parametrize(
    ("rule", "lacks"),
    [
        ({"handler": "a.b"}, "condition"),
        ({"header": {}, "handler": "a.b"}, "condition"),
        ({"header": {"a": "b"}}, "`handler`"),
    ],
)
def test_a_dispatch_rule_needs_a_condition_and_a_handler(rule: dict[str, Any], lacks: str) -> None:
    problem = only(consumer(topics={"flights": {"dispatch": [rule]}}))

    assert problem.id == "django_kafka.E003"
    assert f"has no {lacks};" in problem.message


# Secrets

SECRET = "hunter2"

LEAKS: list[dict[str, Any]] = [
    {"security": {"sasl": {"password": [SECRET]}}},
    {"security": {"sasl": {"pasword": SECRET}}},
    {"security": f"password={SECRET}"},
    {"security": {"sasl": [("password", SECRET)]}},
    {"brokers": {"password": SECRET}},
    {"brokers": [{"a": {"password": SECRET}}]},
    {"brokers": [f"user:{SECRET}@kafka:9092"]},
    {"brokers": [f"SASL://user:{SECRET}@kafka:9092"]},
    {"brokers": SECRET.encode()},
    {"brokers": [{SECRET}]},
    {"schema_registry": {"url": f"ftp://user:{SECRET}@registry"}},
    {"client_id": {"sasl": {"password": SECRET}}},
    {"producers": [{"name": {"secret": SECRET}}]},
    producer(options={"sasl.password": [SECRET]}),
    producer(options={"ssl.key.password": {"x": SECRET}}),
    producer(options={"sasl.oauthbearer.client.secret": [SECRET]}),
    producer(acks={"token": SECRET}),
    {**producer(options={"sasl.password": SECRET}), "security": {"sasl": {"password": SECRET}}},
]


@pytest.mark.parametrize("setting", LEAKS)
def test_no_secret_reaches_an_error_text(setting: object, settings: Settings) -> None:
    settings.KAFKA = setting

    assert conf.problems()
    with pytest.raises(ConfigurationError) as caught:
        conf.kafka()
    assert SECRET not in str(caught.value) + repr(conf.problems())


def test_no_secret_reaches_a_repr() -> None:
    options = {"ssl.key.password": SECRET, "linger.ms": 5}
    security = {"sasl": {"enabled": True, "username": "u", "password": SECRET}}
    registry = {"url": f"https://user:{SECRET}@registry"}
    bridge = {"from": "a", "secret": SECRET}
    kafka = read({"security": security, "schema_registry": registry, "bridges": [bridge], **producer(options=options)})

    assert SECRET not in repr(kafka) + str(kafka)
    assert "'linger.ms': 5" in repr(kafka)
    assert kafka.producers["bulk"].options["ssl.key.password"] == conf.Secret(SECRET)
    assert kafka.clusters["default"].schema_registry.url == "https://registry"
    assert kafka.clusters["default"].schema_registry.password.reveal() == SECRET


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = conf.Secret(SECRET)

    assert secret.reveal() == SECRET
    assert SECRET not in f"{secret} {secret!r} {secret!s} {secret:>20} %s" % secret
    assert secret == conf.Secret(SECRET)
    assert secret != SECRET
    assert hash(secret) == hash(conf.Secret(SECRET))
    assert bool(secret)
    assert not conf.Secret()
    assert copy.deepcopy(secret) is secret
    assert copy.copy(secret) is secret


def test_a_secret_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="A secret is not pickled"):
        pickle.dumps(read({"security": {"sasl": {"password": SECRET}}}).clusters["default"])


def test_a_secret_may_be_given_as_one() -> None:
    sasl = {"password": conf.Secret(SECRET)}

    assert read({"security": {"sasl": sasl}}).clusters["default"].security.sasl.password.reveal() == SECRET


# Access


def test_kafka_is_remembered_until_the_setting_changes(settings: Settings) -> None:
    settings.KAFKA = {"client_id": "a"}
    first = conf.kafka()
    assert conf.kafka() is first

    settings.KAFKA = {"client_id": "b"}
    assert conf.kafka().client_id == "b"

    settings.DEBUG = True
    second = conf.kafka()
    assert conf.kafka() is second


def test_each_problem_is_a_line_of_one_error(settings: Settings) -> None:
    settings.KAFKA = {"client_id": 5, "brokerz": [], **producer(acks=7)}

    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            conf.kafka()
        assert str(caught.value).splitlines() == [str(problem) for problem in conf.problems()]
    assert len(conf.problems()) == 3


def test_a_client_is_found_by_name_or_as_the_default(settings: Settings) -> None:
    settings.KAFKA = {"producers": ["default", "bulk"], "consumers": ["flights"]}

    assert conf.producer().name == "default"
    assert conf.producer("bulk").name == "bulk"
    assert conf.consumer().name == "flights"
    assert conf.cluster().name == "default"


def test_an_unknown_name_names_those_there_are(settings: Settings) -> None:
    settings.KAFKA = {"producers": ["default", "bulk"], "consumers": [{"name": "a", "enabled": False}]}

    for ask, words in (
        (lambda: conf.producer("audit"), "KAFKA[\"producers\"] has no 'audit'; it has: default, bulk."),
        (lambda: conf.cluster("eu"), "KAFKA[\"clusters\"] has no 'eu'; it has: default."),
        (lambda: conf.consumer(), 'KAFKA["consumers"] has none that is enabled; it has: a.'),
    ):
        with pytest.raises(UnknownName) as caught:
            ask()
        assert str(caught.value) == words

    settings.KAFKA = {}
    with pytest.raises(UnknownName, match=r'KAFKA\["consumers"\] is empty; declare one\.'):
        conf.consumer()
    with pytest.raises(UnknownName, match=r'KAFKA\["consumers"\] has no \'a\'; it is empty\.'):
        conf.consumer("a")


def test_settings_are_values_that_do_not_change() -> None:
    kafka = read(LYNX["basic"])

    with pytest.raises(FrozenInstanceError):
        kafka.client_id = "other"  # type: ignore[misc]
    for mapping in (kafka.producers, kafka.consumers["default-consumer"].topics, kafka.clusters):
        with pytest.raises(TypeError):
            mapping["x"] = None  # type: ignore[index]


def test_a_setting_is_not_changed_by_reading_it() -> None:
    setting = copy.deepcopy(LYNX["advanced"])
    read(setting)

    assert setting == LYNX["advanced"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_reads_settings(settings: Settings) -> None:
    settings.KAFKA = {"client_id": "before"}
    conf.kafka()
    child = os.fork()
    if not child:
        settings.KAFKA = {"client_id": "after"}
        os._exit(0 if conf.kafka().client_id == "after" else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert conf.kafka().client_id == "before"


# What this version lacks


def test_the_defaults_and_the_plugins_yaml_need_nothing_that_is_lacking() -> None:
    for setting in ({}, *LYNX.values()):
        kafka = read(setting)
        for client in (*kafka.producers.values(), *kafka.consumers.values()):
            assert availability.lacking(client, kafka) == []


LACKING: list[Mapping[str, Any]] = [
    producer(send="outbox"),
    consumer(deduplicate="id"),
    {**consumer(), "bridges": [{"from": "a"}]},
]


@pytest.mark.parametrize("setting", LACKING)
def test_a_setting_whose_behaviour_is_lacking_says_so_when_its_client_starts(
    setting: Mapping[str, Any], settings: Settings
) -> None:
    settings.KAFKA = setting
    client = conf.producer("bulk") if "producers" in setting else conf.consumer("flights")

    [sentence] = conf.unavailable(client)

    assert sentence.startswith("KAFKA[")
    assert "; this version has " in sentence


def test_what_is_switched_off_is_not_lacking() -> None:
    kafka = read(
        consumer(
            retry={"max_retries": 5, "decide": "a.b", "mode": "topics"},
            serializer="a.b",
            concurrency=4,
            transaction="none",
        )
    )

    assert availability.lacking(kafka.consumers["flights"], kafka) == []
