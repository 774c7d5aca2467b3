"""The settings of KAFKA for each way in, and for each way to be refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .certificates import KEY_PASSWORD
from .cluster import PASSWORDS, SecuredKafka
from .provider import CLIENTS, Provider

given: list[Provider] = []


def fetch() -> tuple[str, float]:
    """Return a token, as a function of a project does."""
    return given[0].token("alice"), time.time() + 200


def fail_to_fetch() -> tuple[str, float]:
    raise RuntimeError("the-token-server-said-a-secret")


def password(mechanism: str, user: str = "alice", word: Any = None) -> dict[str, Any]:
    return {"mechanism": mechanism, "username": user, "password": PASSWORDS[user] if word is None else word}


def oidc(provider: Provider, secret: str = CLIENTS["alice"]) -> dict[str, Any]:
    oauth = {"token_url": provider.url, "client_id": "alice", "client_secret": secret, "scope": "kafka"}
    return {"mechanism": "OAUTHBEARER", "oauth": oauth}


def function(name: str) -> dict[str, Any]:
    return {"mechanism": "OAUTHBEARER", "oauth": {"function": f"tests.secured.logins.{name}"}}


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
