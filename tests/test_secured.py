"""Every login, certificate and permission on a broker that demands them, and what is said when it refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import ResourceType
from pytest_django import Settings

from django_kafka import conf, services
from django_kafka.clients.groups import GroupAdmin
from django_kafka.clients.positions import Positions
from django_kafka.dead_letters import replaying
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.executing import Executor
from django_kafka.exceptions import (
    AuthenticationFailed,
    AuthorizationFailed,
    BrokersUnreachable,
    DeliveryFailed,
    DeliveryForbidden,
    LoginRefused,
)
from django_kafka.messages import Message
from django_kafka.producers import producers
from tests.consuming import NAME, Seen, Workplace
from tests.secured import PASSWORDS, Provider, SecuredKafka
from tests.secured.certificates import KEY_PASSWORD, Pair
from tests.secured.counting import counted
from tests.secured.provider import CLIENTS
from tests.sending import took_less_than
from tests.servers.processes import wait_until

given: list[Provider] = []


def fetch() -> tuple[str, float]:
    """Return a token, as a function of a project does."""
    return given[0].token("alice"), time.time() + 200


def fail_to_fetch() -> tuple[str, float]:
    raise RuntimeError("the-token-server-said-a-secret")


@pytest.fixture(autouse=True)
def _tokens(provider: Provider) -> Iterator[None]:
    given[:] = [provider]
    yield
    given.clear()


def password(mechanism: str, user: str = "alice", word: Any = None) -> dict[str, Any]:
    return {"mechanism": mechanism, "username": user, "password": PASSWORDS[user] if word is None else word}


def oidc(provider: Provider, secret: str = CLIENTS["alice"]) -> dict[str, Any]:
    oauth = {"token_url": provider.url, "client_id": "alice", "client_secret": secret, "scope": "kafka"}
    return {"mechanism": "OAUTHBEARER", "oauth": oauth}


def function(name: str) -> dict[str, Any]:
    return {"mechanism": "OAUTHBEARER", "oauth": {"function": f"tests.test_secured.{name}"}}


WAYS: dict[str, Callable[[SecuredKafka, Provider], dict[str, Any]]] = {
    "PLAIN over TLS": lambda kafka, _: kafka.settings("SAFE", password("PLAIN")),
    "SCRAM-SHA-256": lambda kafka, _: kafka.settings("LOGIN", password("SCRAM-SHA-256")),
    "SCRAM-SHA-512 over TLS": lambda kafka, _: kafka.settings("SAFE", password("SCRAM-SHA-512")),
    "OpenID Connect over TLS": lambda kafka, provider: kafka.settings("SAFE", oidc(provider)),
    "tokens of a function": lambda kafka, _: kafka.settings("LOGIN", function("fetch")),
    "a certificate": lambda kafka, _: kafka.settings("MUTUAL", **kafka.certificates.client.tls),
    "a certificate with a locked key": lambda kafka, _: kafka.settings(
        "MUTUAL", **kafka.certificates.locked_client.tls, key_password=KEY_PASSWORD
    ),
    "a certificate and a password": lambda kafka, _: kafka.settings(
        "BOTH", password("SCRAM-SHA-256"), **kafka.certificates.client.tls
    ),
    "whoever answers": lambda kafka, _: kafka.settings(
        "ELSEWHERE", password("PLAIN"), ca_file="", insecure_skip_verify=True
    ),
}


@pytest.fixture
def place(secured: SecuredKafka, settings: Settings, transactional_db: None) -> Iterator[Workplace]:
    """A topic, a consumer, and workers in this process, on the secured cluster."""
    made = Workplace(secured, settings)  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_record_is_sent_handled_dead_lettered_and_replayed_with(
    place: Workplace, secured: SecuredKafka, provider: Provider, way: str
) -> None:
    mended = threading.Event()

    def handle(message: Message) -> None:
        if message.value == "bad" and not mended.is_set():
            raise ValueError("still bad")

    seen = Seen(handle)
    place.consume(seen, kafka=WAYS[way](secured, provider))
    for value in ("good", "bad"):
        assert services.produce(place.topic, "k", value).result(10).offset is not None
    with place.worker():
        seen.wait(1)
        wait_until(place.letters)
    mended.set()
    (letter,) = place.letters()

    assert (seen.values, letter.offset) == (["good"], 1)
    replaying.request([letter.pk], target="topic")
    assert [one.state for one in carried_out()] == ["succeeded"]
    with place.worker():
        seen.wait(2)
    assert seen.values == ["good", "bad"]


def carried_out() -> list[Any]:
    executor = Executor()
    try:
        return list(carry_out(executor, stop=threading.Event(), waiting=lambda error, _pause: pytest.fail(str(error))))
    finally:
        executor.close()


REFUSED: dict[str, tuple[Callable[[SecuredKafka, Provider], dict[str, Any]], str, str]] = {
    "a wrong PLAIN password": (
        lambda kafka, _: kafka.settings("SAFE", password("PLAIN", word="hunter2")),
        "refuse the login of 'alice' (PLAIN)",
        'KAFKA["security"]["sasl"]',
    ),
    "a wrong SCRAM password": (
        lambda kafka, _: kafka.settings("LOGIN", password("SCRAM-SHA-512", word="hunter2")),
        "refuse the login of 'alice' (SCRAM-SHA-512)",
        'KAFKA["security"]["sasl"]',
    ),
    "a wrong client secret": (
        lambda kafka, provider: kafka.settings("SAFE", oidc(provider, "hunter2")),
        "refuse the login of 'alice' (OAUTHBEARER)",
        'KAFKA["security"]["sasl"]["oauth"]',
    ),
    "an expired certificate of the broker": (
        lambda kafka, _: kafka.settings("EXPIRED", password("PLAIN")),
        "is not trusted",
        'KAFKA["security"]["tls"]["ca_file"]',
    ),
    "a broker of another name": (
        lambda kafka, _: kafka.settings("ELSEWHERE", password("PLAIN")),
        "is not trusted",
        "for another host than `brokers` names",
    ),
    "a broker of another authority": (
        lambda kafka, _: kafka.settings(
            "SAFE", password("PLAIN"), ca_file=str(kafka.certificates.other_ca.certificate)
        ),
        "is not trusted",
        'KAFKA["security"]["tls"]["ca_file"]',
    ),
    "an expired certificate of the client": (
        lambda kafka, _: kafka.settings("MUTUAL", **kafka.certificates.expired_client.tls),
        "expired-client.crt'",
        'KAFKA["security"]["tls"]["cert_file"]',
    ),
    "a certificate of another authority": (
        lambda kafka, _: kafka.settings("MUTUAL", **kafka.certificates.foreign_client.tls),
        "foreign-client.crt'",
        'KAFKA["security"]["tls"]["cert_file"]',
    ),
    "no certificate": (
        lambda kafka, _: kafka.settings("MUTUAL"),
        "a client without login and certificate",
        'KAFKA["security"]["tls"]["cert_file"]',
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_producer_says_soon_what_is_refused_and_does_not_storm_with(
    secured: SecuredKafka, provider: Provider, settings: Settings, what: str
) -> None:
    make, who, setting = REFUSED[what]
    kafka = make(secured, provider)
    with counted(kafka["brokers"][0]) as (address, came):
        settings.KAFKA = {**kafka, "brokers": [address]}
        delivery = services.produce("flights", "k", 1)
        with took_less_than(2), pytest.raises(LoginRefused) as raised:
            delivery.result()
        time.sleep(1)
        producers.close_all(0)

    said = str(raised.value)
    assert raised.value.category == "authentication"
    assert isinstance(raised.value, AuthenticationFailed)
    assert isinstance(raised.value, BrokersUnreachable)
    assert "'flights'" in said
    assert who in said
    assert setting in said
    assert "cluster 'default'" in said
    assert "hunter2" not in said
    # Two clients' worth of tries: the address to begin with, and what is known of the broker.
    assert len(came) <= 8


@pytest.mark.parametrize(
    "what", ["a wrong SCRAM password", "a broker of another name", "a certificate of another authority"]
)
def test_a_worker_that_is_refused_before_it_got_anything_ends_with(
    place: Workplace, secured: SecuredKafka, provider: Provider, what: str
) -> None:
    make, who, setting = REFUSED[what]
    place.consume(Seen(), kafka=make(secured, provider))
    worker = place.start()
    wait_until(lambda: worker.error is not None, 2)
    place.ended(worker)

    assert isinstance(worker.error, AuthenticationFailed)
    assert who in str(worker.error)
    assert setting in str(worker.error)


def test_a_token_function_that_fails_is_said_at_once_without_what_it_raised(
    secured: SecuredKafka, settings: Settings
) -> None:
    settings.KAFKA = secured.settings("LOGIN", function("fail_to_fetch"))
    with took_less_than(1), pytest.raises(AuthenticationFailed, match="fail_to_fetch' gave no token") as raised:
        services.produce("flights", "k", 1)
    assert "a-secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_sending_to_a_topic_without_permission_names_topic_user_and_setting(
    secured: SecuredKafka, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic()
    secured.create_topic(name)
    settings.KAFKA = secured.settings("SAFE", password("PLAIN", "bob"))
    with took_less_than(2), pytest.raises(DeliveryForbidden) as raised:
        services.produce(name, "k", 1).result()

    assert isinstance(raised.value, AuthorizationFailed)
    assert isinstance(raised.value, DeliveryFailed)
    assert (raised.value.category, raised.value.retriable) == ("authorization", False)
    for word in (repr(name), "'bob' (PLAIN)", "WRITE", 'KAFKA["security"]["sasl"]'):
        assert word in str(raised.value)


@pytest.mark.parametrize("lacking", ["group", "topic"])
def test_a_worker_without_permission_ends_with_what_it_lacks(
    place: Workplace, secured: SecuredKafka, lacking: str
) -> None:
    place.consume(Seen(), kafka=secured.settings("LOGIN", password("SCRAM-SHA-512", "bob")))
    if lacking == "topic":
        secured.allow("bob", ResourceType.GROUP, place.group)
    worker = place.start()
    # Of a topic it hears when it has joined the group.
    wait_until(lambda: worker.error is not None, 4)
    place.ended(worker)

    assert isinstance(worker.error, AuthorizationFailed)
    words = [repr(place.group), "READ"] if lacking == "group" else [repr(place.topic), "READ"]
    for word in (*words, "'bob' (SCRAM-SHA-512)", 'KAFKA["security"]["sasl"]'):
        assert word in str(worker.error)


def test_a_worker_that_has_worked_waits_for_what_is_refused_later(
    place: Workplace, secured: SecuredKafka, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    place.consume(seen, kafka=secured.settings("LOGIN", password("SCRAM-SHA-512")))
    place.send([1])
    with place.worker() as worker:
        seen.wait(1)
        secured.change_password("alice", "another-one")
        try:
            secured.kill()
            secured.start()
            wait_until(lambda: "refuse the login of 'alice'" in caplog.text, 20)
            time.sleep(1)
            assert worker.alive
        finally:
            secured.change_password("alice", PASSWORDS["alice"])
        place.send([2])
        seen.wait(2)


@pytest.mark.parametrize("ask", ["groups", "positions"])
def test_what_asks_brokers_says_what_is_refused(place: Workplace, secured: SecuredKafka, ask: str) -> None:
    place.consume(Seen(), kafka=secured.settings("LOGIN", password("SCRAM-SHA-256", word="hunter2")))
    asking = (lambda: GroupAdmin(conf.consumer(NAME), place.group, 1)) if ask == "groups" else (
        lambda: Positions(conf.consumer(NAME), place.group, 1)
    )  # fmt: skip
    with pytest.raises(AuthenticationFailed, match="refuse the login of 'alice'"):
        asking().committed([(place.topic, 0)])
    place.settings.KAFKA = {**place.settings.KAFKA, **secured.settings("LOGIN", password("SCRAM-SHA-256", "bob"))}
    with pytest.raises(AuthorizationFailed, match=f"refuses group '{place.group}' to 'bob'"):
        asking().committed([(place.topic, 0)])


# What changes while it runs


def test_a_password_that_is_mended_in_its_file_is_used_for_what_waits(
    secured: SecuredKafka, settings: Settings, topic: Callable[..., str], tmp_path: Path
) -> None:
    name, file = topic(), tmp_path / "password"
    secured.create_topic(name)
    file.write_text("hunter2\n")
    settings.KAFKA = secured.settings("SAFE", password("SCRAM-SHA-512", word={"file": str(file)}))
    delivery = services.produce(name, "k", 1)
    with pytest.raises(LoginRefused):
        delivery.result()
    file.write_text(f"{PASSWORDS['alice']}\n")

    wait_until(delivery.done, 10)
    assert delivery.result().offset == 0


def replace(pair: Pair, certificate: Path, key: Path) -> None:
    certificate.write_bytes(pair.certificate.read_bytes())
    key.write_bytes(pair.key.read_bytes())


def test_a_certificate_that_is_replaced_takes_a_producer_to_a_new_client(
    secured: SecuredKafka,
    settings: Settings,
    topic: Callable[..., str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "django_kafka.client")
    name, certificate, key = topic(), tmp_path / "client.crt", tmp_path / "client.key"
    secured.create_topic(name)
    replace(secured.certificates.client, certificate, key)
    settings.KAFKA = secured.settings("MUTUAL", cert_file=str(certificate), key_file=str(key))
    assert services.produce(name, "k", 1).result(10).offset == 0
    # Only the certificate: with the key of another it cannot be used.
    certificate.write_bytes(secured.certificates.foreign_client.certificate.read_bytes())
    wait_until(lambda: "stays with what it has" in caplog.text, 10)
    assert services.produce(name, "k", 2).result(10).offset == 1
    replace(secured.certificates.client, certificate, key)
    wait_until(lambda: "goes on with new certificates" in caplog.text, 10)
    assert services.produce(name, "k", 3).result(10).offset == 2
    wait_until(lambda: not producers["default"].client._retired)


def test_a_certificate_that_is_replaced_takes_a_worker_out_of_its_group_and_back(
    place: Workplace, secured: SecuredKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "django_kafka.client")
    certificate, key = tmp_path / "client.crt", tmp_path / "client.key"
    replace(secured.certificates.client, certificate, key)
    seen = Seen()
    place.consume(seen, kafka=secured.settings("MUTUAL", cert_file=str(certificate), key_file=str(key)))
    place.send(range(100))
    with place.worker():
        seen.wait(100)
        replace(secured.certificates.issue("client"), certificate, key)
        wait_until(lambda: "to come back with new certificates" in caplog.text, 10)
        place.send(range(100, 200))
        seen.wait(200)
    assert seen.values == list(range(200))
    assert place.committed() == {0: 200}
