"""kafka_doctor on a cluster that demands logins, certificates and permissions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka.admin import ResourceType
from pytest_django import Settings

from tests.doctoring import Told, consumers
from tests.secured import PASSWORDS, Provider, SecuredKafka
from tests.secured.certificates import KEY_PASSWORD
from tests.secured.logins import REFUSED, WAYS, password
from tests.secured.provider import CLIENTS

pytestmark = pytest.mark.django_db(transaction=True)

SOON = ("--timeout", "10s")
SAID = {
    "a wrong PLAIN password": ("login", "refuse the login of 'alice' (PLAIN)", 'KAFKA["security"]'),
    "a wrong SCRAM password": ("login", "refuse the login of 'alice' (SCRAM-SHA-512)", 'KAFKA["security"]'),
    "a wrong client secret": ("login", "refuse the login of 'alice' (OAUTHBEARER)", 'KAFKA["security"]'),
    "an expired certificate of the broker": ("tls", "'expired', signed by 'ca', expired on", "renewed"),
    "a broker of another name": ("tls", "for elsewhere.example, and not for localhost", 'KAFKA["brokers"]'),
    "a broker of another authority": ("tls", "other-ca.crt holds", 'KAFKA["security"]["tls"]["ca_file"]'),
    "an expired certificate of the client": ("certificates", "expired on", 'KAFKA["security"]["tls"]["cert_file"]'),
    "a certificate of another authority": ("tls", "foreign-client.crt", 'KAFKA["security"]["tls"]["cert_file"]'),
    "no certificate": ("tls", "wants a certificate of the client", 'KAFKA["security"]["tls"]["cert_file"]'),
}


def only_error(settings: Settings, kafka: dict[str, Any]) -> tuple[dict[str, Any], Told]:
    settings.KAFKA = {**kafka, "producers": {}}
    told = Told(*SOON)
    (error,) = [one for one in told.checks if one["part"] == "cluster default" and one["state"] == "error"]
    assert told.code == 2
    for secret in ("hunter2", *PASSWORDS.values(), *CLIENTS.values(), KEY_PASSWORD):
        assert secret not in told.text
    return error, told


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_said_where_it_is_refused_with(
    secured: SecuredKafka, provider: Provider, settings: Settings, what: str
) -> None:
    found, told = only_error(settings, REFUSED[what][0](secured, provider))
    check, saw, mend = SAID[what]
    assert found["check"] == check
    assert saw in found["saw"]
    assert mend in found["mend"]
    assert not any(token in told.text for token in provider.given)


def test_ports_and_settings_that_do_not_go_together(secured: SecuredKafka, settings: Settings) -> None:
    bare, safe, login = secured.way("PLAINTEXT"), secured.way("SAFE"), secured.way("LOGIN")
    plain, tls = secured.settings("LOGIN", password("PLAIN")), secured.settings("SAFE", password("PLAIN"))
    for kafka, check, saw in (
        ({**plain, "brokers": [safe]}, "version", "What answers there speaks TLS, and settings have it off."),
        ({**tls, "brokers": [login]}, "tls", "A broker answers there without TLS, and settings have it on."),
        ({**plain, "brokers": [bare]}, "mechanism", "It takes no logins on this port, and settings have one (PLAIN)."),
        ({**plain, "security": {}}, "mechanism", "It wants a login (PLAIN, SCRAM-SHA-512"),
    ):
        found, _told = only_error(settings, kafka)
        assert found["check"] == check
        assert found["saw"].startswith(saw)
        assert 'KAFKA["security"]' in found["mend"]


@pytest.mark.parametrize("way", ["PLAIN over TLS", "OpenID Connect over TLS", "a certificate with a locked key"])
def test_a_good_login_may_do_all_that_is_needed(
    secured: SecuredKafka, provider: Provider, settings: Settings, topic: Callable[..., str], way: str
) -> None:
    name = topic()
    secured.create_topic(name)
    settings.KAFKA = {**WAYS[way](secured, provider), "consumers": consumers(name), "producers": {}}
    told = Told(*SOON)
    assert told.wrong() == []
    assert told.one("permissions")["facts"] == {"topics": [name]}
    assert told.one("version")["saw"] == "It is Kafka 4.3 (metadata.version 30)."
    assert told.one("group")["saw"].endswith("has never had a member.")
    assert 0 < told.one("tls")["facts"]["days"] <= 1


def test_what_is_not_permitted_on_topic_and_group(
    secured: SecuredKafka, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic()
    secured.create_topic(name)
    way = secured.settings("SAFE", password("PLAIN", "bob"))
    settings.KAFKA = {**way, "consumers": consumers(name), "producers": {}}
    on_topic, on_group = Told(*SOON).of("permissions", state="error")
    assert f"refuses topic '{name}' to 'bob' (PLAIN)" in on_topic["saw"]
    assert on_topic["mend"] == f"Allow READ and DESCRIBE on topic '{name}'."
    assert f"refuses group 'group-{name}' to 'bob' (PLAIN)" in on_group["saw"]
    assert on_group["mend"] == f"Allow READ on group 'group-{name}'."
    secured.allow("bob", ResourceType.GROUP, f"group-{name}")
    assert [one["of"] for one in Told(*SOON).of("permissions", state="error")] == [name]


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        ({"key_password": "hunter2"}, "cannot be used with"),
        ({"key_file": "/no/such"}, "no such file or directory"),
        ({"ca_file": "/no/such"}, "/no/such cannot be used: no such file or directory."),
        ({"ca_file": __file__}, "there is no certificate in it."),
    ],
)
def test_files_that_cannot_be_used(secured: SecuredKafka, settings: Settings, tls: dict[str, str], said: str) -> None:
    locked = secured.certificates.locked_client.tls
    found, _told = only_error(settings, secured.settings("MUTUAL", **{**locked, "key_password": KEY_PASSWORD, **tls}))
    assert found["check"] == "certificates"
    assert said in found["saw"]
    assert 'KAFKA["security"]["tls"]' in found["mend"]
