"""Secrets: where they are kept, that nothing shows them, and what they become."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import pprint
import re
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError
from django.core import checks
from django.views.debug import ExceptionReporter
from pytest_django import Settings

from django_kafka import conf
from django_kafka.clients import properties
from django_kafka.clients.consumer import ConsumerClient
from django_kafka.clients.credentials import Properties, Rotation
from django_kafka.clients.events import Events
from django_kafka.clients.producer import ProducerClient
from django_kafka.clients.refusals import Refused
from django_kafka.clients.scrubbing import Scrubber
from django_kafka.clients.statistics import Connections
from django_kafka.clients.tokens import TokenFunction
from django_kafka.conf.blocks import Block
from django_kafka.conf.secrets import Secret
from django_kafka.exceptions import AuthenticationFailed, AuthorizationFailed, ConfigurationError
from django_kafka.tallies import ConsumerTally
from tests.sending import NOBODY

HIDDEN = "hunter2-the-secret"
LOGIN = {"enabled": True, "mechanism": "SCRAM-SHA-512", "username": "u"}


def sasl(**login: Any) -> dict[str, Any]:
    return {"security": {"sasl": {**LOGIN, **login}}}


def problems(settings: Settings, kafka: dict[str, Any]) -> list[str]:
    settings.KAFKA = kafka
    return [str(problem) for problem in conf.problems()]


def chosen(settings: Settings, security: dict[str, Any]) -> Properties:
    settings.KAFKA = {"brokers": [NOBODY], "security": security}
    assert conf.problems() == []
    return properties.for_cluster(conf.cluster())


# Where they are kept


def test_a_secret_comes_from_the_environment_or_a_file_when_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{HIDDEN}\r\n")
    monkeypatch.setenv("KAFKA_PASSWORD", "from outside")
    kept, outside = Secret(str(file), kept="file"), Secret("KAFKA_PASSWORD", kept="env")

    assert (kept.reveal(), outside.reveal()) == (HIDDEN, "from outside")
    file.write_text("another")
    assert kept.reveal() == "another"
    assert (kept.changes, outside.changes, Secret("x").changes) == (True, False, False)
    assert "another" not in f"{kept} {kept!r}"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(kept)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (Secret("NO_SUCH", kept="env"), "The environment variable NO_SUCH is empty or not there; a secret is kept in"),
        (Secret("/no/such", kept="file"), "The file /no/such is empty or not there; a secret is kept in it."),
        (Secret("/", kept="file"), "The file / cannot be read: Is a directory."),
    ],
)
def test_a_secret_that_is_not_there_names_its_place(secret: Secret, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        secret.reveal()
    assert said in (secret.missing() or "")


def test_bytes_that_are_no_text_are_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"hunter2\xff")
    with pytest.raises(ConfigurationError, match="it is not UTF-8") as raised:
        Secret(str(file), kept="file").reveal()
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("wrong", [{"env": "A B"}, {"env": ""}, {"env": "A", "file": "b"}, {"path": "a"}, {"file": ""}])
def test_another_way_of_keeping_is_refused(settings: Settings, wrong: Any) -> None:
    (said,) = problems(settings, sasl(password=wrong))
    assert 'KAFKA["security"]["sasl"]["password"] is *** (dict); allowed: a text, {"env": "NAME"} or' in said


def test_a_username_may_be_kept_elsewhere_too(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "user"
    file.write_text("alice\n")
    found = chosen(settings, sasl(username={"file": file}, password="x")["security"])
    assert found.revealed()["sasl.username"] == "alice"


# What they become


def test_kerberos_becomes_its_properties(settings: Settings) -> None:
    kerberos = {"principal": "airline@REALM", "keytab": "/etc/airline.keytab"}
    found = chosen(settings, {"sasl": {"enabled": True, "mechanism": "gssapi", "kerberos": kerberos}})
    assert {name: value for name, value in found.items() if name.startswith("sasl")} == {
        "sasl.mechanisms": "GSSAPI",
        "sasl.kerberos.service.name": "kafka",
        "sasl.kerberos.principal": "airline@REALM",
        "sasl.kerberos.keytab": "/etc/airline.keytab",
    }
    found = chosen(settings, {"sasl": {"enabled": True, "mechanism": "GSSAPI", "kerberos": {"service_name": "broker"}}})
    assert found["sasl.kerberos.service.name"] == "broker"
    assert found["sasl.kerberos.min.time.before.relogin"] == 0


def test_openid_connect_becomes_its_properties(settings: Settings) -> None:
    oauth = {
        "token_url": "https://provider/token", "client_id": "id", "client_secret": HIDDEN, "scope": "kafka",
        "extensions": {"logicalCluster": "lkc-1", "identityPoolId": "pool"}, "ca_file": "/ca",
    }  # fmt: skip
    found = chosen(settings, {"sasl": {"enabled": True, "mechanism": "OAUTHBEARER", "oauth": oauth}})
    assert HIDDEN not in repr(found)
    assert {name: value for name, value in found.revealed().items() if name.startswith(("sasl", "https"))} == {
        "sasl.mechanisms": "OAUTHBEARER",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": "https://provider/token",
        "sasl.oauthbearer.client.id": "id",
        "sasl.oauthbearer.client.secret": HIDDEN,
        "sasl.oauthbearer.scope": "kafka",
        "sasl.oauthbearer.extensions": "logicalCluster=lkc-1,identityPoolId=pool",
        "https.ca.location": "/ca",
    }


def test_each_cluster_has_its_own(settings: Settings) -> None:
    eu = {"brokers": ["eu:1"], "security": sasl(password=HIDDEN)["security"]}
    settings.KAFKA = {"brokers": ["a:1"], "clusters": {"eu": eu}}
    assert "sasl.password" not in properties.for_cluster(conf.cluster())
    assert properties.for_cluster(conf.cluster("eu")).revealed()["sasl.password"] == HIDDEN


@pytest.mark.parametrize(
    ("security", "said"),
    [
        ({"sasl": {"enabled": True, "mechanism": "OAUTHBEARER"}}, '["oauth"]["token_url"] is empty, but OAUTHBEARER'),
        (
            {
                "sasl": {
                    "enabled": True,
                    "mechanism": "OAUTHBEARER",
                    "oauth": {"function": "a.b", "token_url": "http://c"},
                }
            },
            "has both `function` and `token_url`",
        ),
        (
            {"sasl": {"enabled": True, "mechanism": "GSSAPI", "kerberos": {"keytab": "/k"}}},
            '["kerberos"]["principal"] is empty, but a keytab needs it',
        ),
        ({"tls": {"enabled": True, "key_password": "x"}}, "has `key_password` but no `key_file`"),
        ({"sasl": {"oauth": {"extensions": {"a": 1}}}}, "allowed: a dict of texts by name"),
        ({"sasl": {"oauth": {"function": "fetch"}}}, "is 'fetch'; allowed: a dotted path"),
        ({"sasl": {"kerberos": {"keytap": "x"}}}, 'Did you mean "keytab"?'),
    ],
)
def test_a_login_that_cannot_work_says_what_it_lacks(settings: Settings, security: dict[str, Any], said: str) -> None:
    found = problems(settings, {"security": security})
    assert any(said in one for one in found), found


def test_checks_look_at_mechanism_function_and_what_is_kept(settings: Settings) -> None:
    lost = sasl(password={"env": "NO_SUCH"})["security"]
    tokens = sasl(mechanism="OAUTHBEARER", oauth={"function": "no.such"})["security"]
    settings.KAFKA = {
        "security": {"sasl": {"enabled": True, "mechanism": "GSSAPI", "kerberos": {"keytab": "/no", "principal": "a"}}},
        "clusters": {
            "eu": {"brokers": ["a"], "security": tokens},
            "us": {"brokers": ["b"], "security": lost},
        },
    }  # fmt: skip
    found = {one.id: str(one.msg) for one in checks.run_checks(tags=["kafka"], include_deployment_checks=True)}
    assert "is 'GSSAPI'; the librdkafka of this environment is built without it" in found["django_kafka.E060"]
    assert (
        'KAFKA["clusters"]["eu"]["security"]["sasl"]["oauth"]["function"] is \'no.such\'' in found["django_kafka.E011"]
    )
    assert '["clusters"]["us"]["security"]["sasl"]["password"] cannot be read here.' in found["django_kafka.W060"]
    assert "keytab" in found["django_kafka.W007"]


# That nothing shows them


def pages(settings: Settings, error: BaseException) -> str:
    """Return all that Python and Django may print of an error, with the locals of every frame, and the settings.

    But for the frames of this file, whose locals hold what the test has written.
    """
    settings.DEBUG = True
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    assert trace is not None
    told = traceback.TracebackException(type(error), error, trace, capture_locals=True)
    page = ExceptionReporter(None, type(error), error.with_traceback(trace), trace)
    return "".join(told.format()) + page.get_traceback_html() + page.get_traceback_text()


@pytest.mark.parametrize("kind", ["producer", "consumer"])
@pytest.mark.parametrize(
    "what", ["a key that it does not open", "a key that is not there", "no authority", "no secret"]
)
def test_no_page_about_an_error_shows_a_secret(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, what: str
) -> None:
    caplog.set_level("DEBUG")
    key = tmp_path / "key.pem"
    key.write_text(f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{HIDDEN}\n-----END ENCRYPTED PRIVATE KEY-----\n")
    tls: dict[str, Any] = {"enabled": True, "key_password": HIDDEN, "cert_file": str(key), "key_file": str(key)}
    if what == "a key that is not there":
        tls["key_file"] = tls["cert_file"] = "/no/such"
    if what == "no authority":
        tls = {"enabled": True, "ca_file": "/no/such"}
    security = {"tls": tls, "sasl": {**LOGIN, "password": HIDDEN}}
    if what == "no secret":
        security = {"sasl": {**LOGIN, "username": {"env": "NO_SUCH"}, "password": HIDDEN}}
    settings.KAFKA = {
        "brokers": [NOBODY], "security": security, "logging": {"enable_sarama_logger": True},
        "consumers": {"ops": {"group_id": "g", "topics": ["flights"]}},
        "producers": {"default": {"options": {"ssl.keystore.password": HIDDEN}}},
    }  # fmt: skip
    producer, consumer, cluster = conf.producer(), conf.consumer(), conf.cluster()
    make: dict[str, Callable[[], object]] = {
        "producer": lambda: ProducerClient("p", properties.for_producer(producer, cluster), print, lambda: None),
        "consumer": lambda: ConsumerClient("c", properties.for_consumer(consumer, cluster, "g"), Events()),
    }
    with pytest.raises(ConfigurationError) as raised:
        make[kind]()

    assert HIDDEN not in pages(settings, raised.value) + caplog.text + repr(conf.kafka()) + repr(conf.reading())


def test_a_block_that_is_read_does_not_show_what_is_in_it() -> None:
    assert repr(Block.of({"password": HIDDEN}, 'KAFKA["security"]', [])) == '<Block KAFKA["security"]>'


def test_a_login_in_the_address_of_a_registry_is_kept_apart_and_no_page_shows_what_was_read(settings: Settings) -> None:
    settings.KAFKA = {"schema_registry": {"url": f"https://al%40ice:{HIDDEN}%21@registry:8081/path"}}
    registry = conf.cluster().schema_registry

    assert registry.url == "https://registry:8081/path"
    assert (registry.username, registry.password.reveal()) == ("al@ice", f"{HIDDEN}!")
    (said,) = [
        one for one in checks.run_checks(tags=["kafka"], include_deployment_checks=True) if "W061" in str(one.id)
    ]
    assert said.msg.startswith('KAFKA["schema_registry"]["url"] has a login in it')
    assert HIDDEN not in f"{said} {registry!r} {registry.url} {conf.kafka()!r}"


def test_a_login_of_a_registry_is_written_apart(settings: Settings) -> None:
    settings.KAFKA = {"schema_registry": {"url": "https://registry", "username": "a", "password": {"env": "HERE"}}}
    registry = conf.cluster().schema_registry
    assert (registry.username, registry.password) == ("a", Secret("HERE", kept="env"))
    assert [
        one for one in checks.run_checks(tags=["kafka"], include_deployment_checks=True) if "W061" in str(one.id)
    ] == []
    said = problems(settings, {"schema_registry": {"url": f"https://b:{HIDDEN}@registry", "password": "x"}})
    assert said == [
        'KAFKA["schema_registry"] has a login in `url`, and one beside it. Write it beside the address only.'
    ]


def test_no_page_about_wrong_settings_shows_a_secret(settings: Settings) -> None:
    settings.KAFKA = {**sasl(password=HIDDEN), "brokers": [{"password": HIDDEN}], "nonsense": 1}
    with pytest.raises(ConfigurationError) as raised:
        conf.kafka()
    assert HIDDEN not in pages(settings, raised.value)


WAYS_TO_SHOW: dict[str, Callable[[Any], object]] = {
    "repr": repr, "str": str, "format": "{}".format, "pprint": pprint.pformat, "copy": copy.copy,
    "deepcopy": copy.deepcopy, "asdict": dataclasses.asdict, "astuple": dataclasses.astuple, "vars": vars, "dict": dict,
    "fields": lambda one: [getattr(one, name) for name in type(one).__slots__],
    "values": lambda one: [*one.values()], "pickle": pickle.dumps, "json": lambda one: json.dumps(one, default=str),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS_TO_SHOW)
def test_what_was_read_of_settings_shows_no_secret_by(settings: Settings, way: str) -> None:
    more = {"options": {"ssl.keystore.password": HIDDEN, "ssl.key.pem": HIDDEN}}
    settings.KAFKA = {
        **sasl(password=HIDDEN, oauth={"client_secret": HIDDEN}), "connection": more,
        "schema_registry": {"url": f"https://u:{HIDDEN}@registry"},
        "producers": {"default": more}, "consumers": {"ops": {"group_id": "g", **more}},
    }  # fmt: skip
    whole = conf.kafka()
    cluster, producer, consumer = conf.cluster(), conf.producer(), conf.consumer()
    shown = 0
    for one in (
        whole, cluster, cluster.security, cluster.security.sasl, cluster.security.sasl.oauth, cluster.connection,
        cluster.connection.options, cluster.schema_registry, producer, producer.options, consumer, consumer.options,
        properties.for_consumer(consumer, cluster, "g"), properties.for_producer(producer, cluster), conf.reading(),
    ):  # fmt: skip
        try:
            found = WAYS_TO_SHOW[way](one)
        except (TypeError, AttributeError) as refused:
            found = str(refused)
        shown += HIDDEN in (found.decode("latin-1") if isinstance(found, bytes) else f"{found!s} {found!r}")
    assert shown == 0
    # Who asks gets it.
    assert (producer.options["ssl.key.pem"].reveal(), cluster.security.sasl.password.reveal()) == (HIDDEN, HIDDEN)


def test_properties_show_no_secret_whatever_shows_them() -> None:
    found = Properties({"sasl.password": HIDDEN, "ssl.key.password": Secret(HIDDEN), "linger.ms": 5})
    assert HIDDEN not in f"{found} {found!r} {found.with_({'acks': 1})} {dict(found)}"
    assert "'linger.ms': 5" in repr(found)
    assert found.revealed() == {"sasl.password": HIDDEN, "ssl.key.password": HIDDEN, "linger.ms": 5}
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(found)


def test_a_secret_that_was_learnt_is_masked_and_own_ones_are_never_forgotten() -> None:
    scrub = Scrubber(Properties({"sasl.password": HIDDEN, "sasl.username": "alice"}))
    for number in range(300):
        scrub.learn(f"token-{number}")
    assert scrub(f"alice {HIDDEN} token-299") == "alice *** ***"


# Tokens of a function

answers: list[Any] = []


def give() -> Any:
    answer = answers.pop(0)
    if isinstance(answer, Exception):
        raise answer
    return answer


GIVE = "tests.test_security.give"


def test_a_token_function_is_asked_before_the_client_and_then_by_it() -> None:
    later = datetime.now(UTC) + timedelta(minutes=5)
    answers[:] = [("one", later), ["two", later.timestamp(), "alice", {"a": 1}]]
    learnt: list[str] = []
    function = TokenFunction(GIVE)
    function.learn = learnt.append
    function.prepare()
    assert function(None) == ("one", later.timestamp(), "", {})
    assert function(None) == ("two", later.timestamp(), "alice", {"a": "1"})
    assert learnt == ["one", "two"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RuntimeError(HIDDEN), "gave no token (RuntimeError)."),
        ("token", "it did not return (token, expires)"),
        ((b"token", 1), "its token is of type bytes"),
        (("token", 300), "its token has expired already"),
        (("token", datetime(2030, 1, 1)), "a datetime with a time zone"),  # noqa: DTZ001
        (("token", time.time() + 99, None), "its principal has to be a text"),
    ],
)
def test_a_function_that_gives_no_token_is_an_error_without_its_words(answer: Any, said: str) -> None:
    answers[:] = [answer]
    with pytest.raises(AuthenticationFailed, match=re.escape(said)) as raised:
        TokenFunction(GIVE).prepare()
    assert HIDDEN not in "".join(traceback.format_exception(raised.value))


def test_nothing_that_the_function_raises_leaves_the_callback(caplog: pytest.LogCaptureFixture) -> None:
    answers[:] = [RuntimeError(HIDDEN)]
    assert TokenFunction(GIVE)(None) == ("", 1.0)
    assert "gave no token (RuntimeError)" in caplog.text
    assert HIDDEN not in caplog.text


def test_a_function_that_is_not_there_is_said(settings: Settings) -> None:
    with pytest.raises(AuthenticationFailed, match=r"no\.such\.function.*cannot be imported"):
        TokenFunction("no.such.function").prepare()


# What changes


class Looks:
    """A rotation whose looks are not held back, and what came of them."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.rotation = Rotation(Properties(found))
        self.logins: list[tuple[str, str]] = []
        self.renewed = 0
        self.works = True

    def look(self) -> None:
        self.rotation._next = 0.0
        self.rotation.look(lambda user, word: self.logins.append((user, word)), self._renew)

    def _renew(self) -> bool:
        self.renewed += 1
        return self.works


def test_a_password_that_changes_in_its_file_is_handed_over_once(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one")
    looks = Looks({"sasl.username": "alice", "sasl.password": Secret(str(file), kept="file")})
    looks.look()
    file.write_text("two")
    looks.look()
    looks.look()
    file.unlink()
    looks.look()
    assert (looks.logins, looks.renewed) == ([("alice", "two")], 0)


def test_certificates_that_change_rest_before_a_new_client_is_made(tmp_path: Path) -> None:
    certificate, key = tmp_path / "crt", tmp_path / "key"
    for file in (certificate, key):
        file.write_text("one")
    looks = Looks({"ssl.certificate.location": str(certificate), "ssl.key.location": str(key)})
    looks.look()
    certificate.write_text("number two")
    looks.look()
    key.write_text("number two")
    looks.look()
    assert looks.renewed == 0
    looks.look()
    looks.look()
    assert looks.renewed == 1
    certificate.unlink()
    looks.look()
    looks.look()
    assert looks.renewed == 1


def test_without_files_nothing_is_looked_at() -> None:
    assert not Rotation(Properties({"sasl.username": "alice", "sasl.password": HIDDEN}))


# What is refused to a consumer


def refused(*topics: str) -> Refused:
    """Return what ends a consumer at once when it is refused."""
    found = Refused(Properties({"group.id": "ops", "socket.connection.setup.timeout.ms": 0}), str)
    found.topics = frozenset(topics)
    return found


def test_one_topic_of_several_that_is_forbidden_ends_nobody() -> None:
    found = refused("a", "b")
    forbidden = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    assert "refuses topic 'a' to a client without login" in found.note(forbidden, "a")
    found.raise_when_long()
    found.note(forbidden, "b")
    with pytest.raises(AuthorizationFailed, match="topic 'b'"):
        found.raise_when_long()
    found.raise_when_long()


def test_a_broker_that_goes_takes_a_refused_login_along_but_no_permission() -> None:
    found = refused("a")
    found.note(KafkaError(KafkaError._AUTHENTICATION), None)
    found.note(KafkaError(KafkaError._TRANSPORT), None)
    found.raise_when_long()
    found.note(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED), None)
    found.note(KafkaError(KafkaError._TRANSPORT), None)
    with pytest.raises(AuthorizationFailed, match=r"refuses group 'ops' to .* Needed is READ"):
        found.raise_when_long()


def test_who_has_had_partitions_waits() -> None:
    found = refused("a")
    found.never_again()
    found.note(KafkaError(KafkaError._AUTHENTICATION), None)
    found.raise_when_long()


# Connections


def test_a_broker_that_gets_its_number_is_counted_once() -> None:
    tally = ConsumerTally()
    connections = Connections(tally)

    def tell(**brokers: str) -> None:
        told = {
            name: {"state": "UP", "connects": 1, "source": source, "nodename": "127.0.0.1:9092"}
            for name, source in brokers.items()
        }
        connections.note(json.dumps({"name": "c", "brokers": told}))

    # The library renames the one that it began with as soon as it knows which it is.
    tell(**{"127.0.0.1:9092/bootstrap": "configured"})
    tell(**{"127.0.0.1:9092/1": "learned"})
    assert (tally.connections_active, tally.connections_total) == (1, 1)
    # A coordinator has a connection of its own to the same broker.
    tell(**{"127.0.0.1:9092/1": "learned", "GroupCoordinator": "logical"})
    assert (tally.connections_active, tally.connections_total) == (2, 2)


def test_connections_are_counted_over_brokers_that_are_forgotten_and_clients_that_follow() -> None:
    tally = ConsumerTally()
    connections = Connections(tally)

    def note(**brokers: tuple[str, int]) -> tuple[int, int]:
        told = {name: {"state": state, "connects": made} for name, (state, made) in brokers.items()}
        connections.note(json.dumps({"name": "x", "brokers": told, "topics": {}}))
        return tally.connections_active, tally.connections_total

    assert note(a=("UP", 1), b=("DOWN", 2)) == (1, 3)
    assert note(a=("UP", 1), b=("UP", 3)) == (2, 4)
    assert note(b=("UP", 1)) == (1, 5)
    connections.closed()
    assert note(a=("UP", 9)) == (0, 5)
    connections = Connections(tally)
    assert note(a=("UP", 1)) == (1, 6)
    connections.note("no statistics at all")
    for code in ("_TRANSPORT", "_AUTHENTICATION", "UNKNOWN_TOPIC_OR_PART", "_ALL_BROKERS_DOWN"):
        connections.failed(code)
    assert (tally.connections_active, tally.connection_errors) == (1, 2)
