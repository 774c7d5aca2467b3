"""Kafka with a listener for each way in, users, and permissions."""

from __future__ import annotations

import socket
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.servers.kafka import Kafka
from tests.servers.processes import free_port

from .certificates import Certificates, Pair
from .kerberos import BROKER, Kdc
from .provider import AUDIENCE, Provider

PASSWORDS = {"alice": "alice-password", "bob": "bob-password"}
"""Who may log in; alice may do everything with topics and groups, bob nothing."""
_SECURITY = "org.apache.kafka.common.security"
_WAYS = {
    "PLAINTEXT": "PLAINTEXT",
    "LOGIN": "SASL_PLAINTEXT",
    "SAFE": "SASL_SSL",
    "MUTUAL": "SSL",
    "BOTH": "SASL_SSL",
    "ELSEWHERE": "SASL_SSL",
    "EXPIRED": "SASL_SSL",
    "IPV6": "PLAINTEXT",
}
"""Listener → protocol. The first is for the tests themselves; MUTUAL and BOTH want a certificate of the client."""


def has_ipv6() -> bool:
    """Whether this machine has a loopback of IPv6; without one there is no such way in."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


class SecuredKafka(Kafka):
    """One node. `address` is the way in for the tests themselves, to whom everything is allowed."""

    name = "Secured-Kafka"

    def __init__(self, certificates: Certificates, provider: Provider, *, kerberos: Kdc | None = None) -> None:
        super().__init__(heap="512m")
        self.certificates = certificates
        self.ports = {name: self.port if name == "PLAINTEXT" else free_port() for name in _WAYS}
        if not has_ipv6():
            del self.ports["IPV6"]
        self.properties = self._secured(provider)
        self.format_options = [
            option
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for user, password in PASSWORDS.items()
            for option in ("--add-scram", f"{mechanism}=[name={user},password={password},iterations=4096]")
        ]
        self.java_options = [f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={provider.keys.as_uri()}"]
        if kerberos is not None:
            self.properties |= _with_kerberos(kerberos)
            self.java_options.append(f"-Djava.security.krb5.conf={kerberos.env['KRB5_CONFIG']}")
        self.java_options += [f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.files={provider.keys}"]

    def way(self, name: str) -> str:
        """Return the address of a listener."""
        return f"{'[::1]' if name == 'IPV6' else 'localhost'}:{self.ports[name]}"

    def settings(self, way: str, sasl: dict[str, Any] | None = None, **tls: Any) -> dict[str, Any]:
        """Return what of KAFKA leads through a listener: a login, and the authority to trust unless `tls` says more."""
        security: dict[str, Any] = {"sasl": {"enabled": True, **sasl}} if sasl else {}
        if "SSL" in _WAYS[way].replace("SASL", ""):
            security["tls"] = {"enabled": True, "ca_file": str(self.certificates.ca.certificate), **tls}
        return {"brokers": [self.way(way)], "connection": {"timeout": "1s"}, "security": security}

    def start(self, node: int | None = None) -> None:
        """Start it, and give alice what she may."""
        super().start(node)
        self.allow("alice", ResourceType.TOPIC, "*")
        self.allow("alice", ResourceType.GROUP, "*")
        self.allow("client", ResourceType.TOPIC, "*")
        self.allow("client", ResourceType.GROUP, "*")

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Make a topic."""
        admin = self.admin()  # held until the answer is there
        admin.create_topics([NewTopic(name, partitions, -1)])[name].result(10)

    def allow(self, user: str, kind: ResourceType, name: str, operation: AclOperation = AclOperation.ALL) -> None:
        """Let a user do everything, or one thing, with a topic or group, or with all."""
        principal = "User:CN=client" if user == "client" else f"User:{user}"
        rule = AclBinding(kind, name, ResourcePatternType.LITERAL, principal, "*", operation, AclPermissionType.ALLOW)
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        admin.create_acls([rule])[rule].result(10)

    def change_password(self, user: str, password: str) -> None:
        """Give a user another password for SCRAM-SHA-512."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(user, info, password.encode())
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        admin.alter_user_scram_credentials([change])[user].result(10)

    def _secured(self, provider: Provider) -> dict[str, str]:
        certificates = self.certificates
        listeners = ",".join(f"{name}://{self.way(name)}" for name in self.ports)
        protocols = ",".join(f"{name}:{protocol}" for name, protocol in _WAYS.items())
        found = {
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{self.nodes[0].controller_port}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": f"{protocols},CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            # Members of these tests have sessions as short as on the embedded cluster.
            "group.min.session.timeout.ms": "500",
            "sasl.oauthbearer.jwks.endpoint.url": provider.keys.as_uri(),
            "sasl.oauthbearer.expected.audience": AUDIENCE,
        }
        for name, protocol in _WAYS.items():
            prefix = f"listener.name.{name.lower()}"
            if "SASL" in protocol:
                found |= {f"{prefix}.{key}": value for key, value in _LOGINS.items()}
            if "SSL" in protocol:
                pair = {"ELSEWHERE": certificates.elsewhere, "EXPIRED": certificates.expired}.get(name)
                found |= {f"{prefix}.{key}": value for key, value in self._tls(pair or certificates.server).items()}
                found[f"{prefix}.ssl.client.auth"] = "required" if name in ("MUTUAL", "BOTH") else "none"
        return found

    def _tls(self, pair: Pair) -> dict[str, str]:
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.certificates.keystore(pair)),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.certificates.ca.certificate),
        }


_USERS = " ".join(f'user_{user}="{password}"' for user, password in PASSWORDS.items())
_LOGINS = {
    "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
    "plain.sasl.jaas.config": f"{_SECURITY}.plain.PlainLoginModule required {_USERS};",
    "scram-sha-256.sasl.jaas.config": f"{_SECURITY}.scram.ScramLoginModule required;",
    "scram-sha-512.sasl.jaas.config": f"{_SECURITY}.scram.ScramLoginModule required;",
    "oauthbearer.sasl.jaas.config": f"{_SECURITY}.oauthbearer.OAuthBearerLoginModule required;",
    "oauthbearer.sasl.server.callback.handler.class": f"{_SECURITY}.oauthbearer.OAuthBearerValidatorCallbackHandler",
}


def _with_kerberos(kdc: Kdc) -> dict[str, str]:
    """Return what lets clients of a realm in, on the two listeners that take logins without a certificate."""
    module = "com.sun.security.auth.module.Krb5LoginModule required useKeyTab=true storeKey=true"
    keytab = kdc.keytab(BROKER.partition("@")[0])
    found = {"sasl.kerberos.service.name": "kafka"}
    for name in ("login", "safe"):
        prefix = f"listener.name.{name}"
        found[f"{prefix}.sasl.enabled.mechanisms"] = f"{_LOGINS['sasl.enabled.mechanisms']},GSSAPI"
        found[f"{prefix}.gssapi.sasl.jaas.config"] = f'{module} keyTab="{keytab}" principal="{BROKER}";'
    return found
