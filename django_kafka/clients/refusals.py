"""Refused logins, certificates and permissions, as sentences that name who was refused what, and what to look at."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError

from ..conf.clusters import path_of
from ..conf.secrets import revealed
from ..exceptions import AuthenticationFailed, AuthorizationFailed, ConfigurationError
from . import errors
from .credentials import Properties
from .tokens import TokenFunction

_CERTIFICATE_OF_BROKER = re.compile(r"certificate verify failed", re.IGNORECASE)
_CERTIFICATE_OF_CLIENT = re.compile(r"SSL alert number (4[0-9]|116)\b")
"""What a broker says of a certificate that it does not take. With TLS 1.3 it does so when the way stands already, so
that the library takes it for a broken connection."""
_UNREACHED = ("_TRANSPORT", "_RESOLVE", "_TIMED_OUT")
_NEEDED = {
    "TOPIC_AUTHORIZATION_FAILED": "WRITE for sending to it, READ for consuming it, and DESCRIBE",
    "GROUP_AUTHORIZATION_FAILED": "READ",
    "CLUSTER_AUTHORIZATION_FAILED": "IDEMPOTENT_WRITE, unless the producer has `idempotent` False",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": "WRITE",
}


class Refusals:
    """Knows who one client is, and puts into words what is refused to it."""

    def __init__(self, properties: Properties, scrub: Callable[[str], str]) -> None:
        self._properties = properties
        self._scrub = scrub
        cluster = properties.cluster
        self._cluster = cluster
        self._path = f'{path_of(cluster)}["security"]'

    def login(self, error: KafkaError) -> str | None:
        """Return what there is to say of an error by which a login or a certificate is refused; None of others."""
        if not is_refused_login(error):
            return None
        said = self._scrub(error.str())
        if _CERTIFICATE_OF_BROKER.search(said):
            return (
                f"The certificate of a broker of cluster {self._cluster!r} is not trusted: {said} It is signed by none "
                f'that {self._path}["tls"]["ca_file"] holds, is out of date, or is for another host than `brokers` '
                "names."
            )
        if _CERTIFICATE_OF_CLIENT.search(said):
            return (
                f"The brokers of cluster {self._cluster!r} refuse {self._certificate()}: {said} Look at "
                f'{self._path}["tls"]["cert_file"].'
            )
        where = self._login()
        return f"The brokers of cluster {self._cluster!r} refuse the login of {self.who()}: {said} Look at {where}."

    def permission(self, error: KafkaError, *, topic: str | None = None, group: str | None = None) -> str | None:
        """Return what there is to say of an error by which something is forbidden; None of others."""
        name = error.name()
        if errors.category(error) != "authorization":
            return None
        what = {
            "TOPIC_AUTHORIZATION_FAILED": f"topic {topic!r}" if topic else "a topic",
            "GROUP_AUTHORIZATION_FAILED": f"group {group!r}" if group else "a group",
        }.get(name, f"what was asked ({name})")
        needed = f" Needed is {_NEEDED[name]}." if name in _NEEDED else ""
        said = self._scrub(error.str()).rstrip(".")
        return (
            f"Cluster {self._cluster!r} refuses {what} to {self.who()}: {said}.{needed} "
            f"Give it the permission, or look at {self._login()}."
        )

    def who(self) -> str:
        """Return whom the brokers see, as far as settings say it."""
        found = self._properties
        if "sasl.mechanisms" not in found and "sasl.mechanism" not in found:
            return self._certificate()
        mechanism = found.get("sasl.mechanisms", found.get("sasl.mechanism"))
        if isinstance(function := found.get("oauth_cb"), TokenFunction):
            return f"the token of {function.path!r} ({mechanism})"
        for name in ("sasl.username", "sasl.kerberos.principal", "sasl.oauthbearer.client.id"):
            if name in found:
                return f"{_shown(found[name])} ({mechanism})"
        return f"this client ({mechanism})"

    def _certificate(self) -> str:
        file = self._properties.get("ssl.certificate.location")
        return f"the certificate {file!r}" if file else "a client without login and certificate"

    def _login(self) -> str:
        mechanism = self._properties.get("sasl.mechanisms")
        if mechanism is None:
            return f'{self._path}["tls"]["cert_file"]' if "ssl.certificate.location" in self._properties else self._path
        key = {"GSSAPI": '["kerberos"]', "OAUTHBEARER": '["oauth"]'}.get(mechanism, "")
        return f'{self._path}["sasl"]{key}'


class Refused:
    """What brokers refuse to a consumer before it has got anything: that ends it, when it lasts."""

    def __init__(self, properties: Properties, scrub: Callable[[str], str]) -> None:
        self._scrub = scrub
        self._refusals = Refusals(properties, scrub)
        self._group = str(properties.get("group.id"))
        self._patience = int(properties.get("socket.connection.setup.timeout.ms", 30_000)) / 2000
        self._since: float | None = None
        self._error: AuthenticationFailed | AuthorizationFailed | None = None
        self._assigned = False
        self.topics: frozenset[str] = frozenset()
        """What it wants to read."""
        self._forbidden: set[str] = set()

    def note(self, error: KafkaError, topic: str | None) -> str:
        """Note an error, and return what there is to say of it."""
        if login := self._refusals.login(error):
            self._keep(AuthenticationFailed(login))
            return login
        if forbidden := self._refusals.permission(error, topic=topic, group=self._group):
            self._forbidden.add(topic or "")
            # A member of a group may have nothing although it may read: one topic of several is no reason to end it.
            if topic is None or self._forbidden >= self.topics:
                self._keep(AuthorizationFailed(forbidden))
            return forbidden
        if error.name() in _UNREACHED and isinstance(self._error, AuthenticationFailed):
            self._error = self._since = None
        return self._scrub(error.str())

    def _keep(self, error: AuthenticationFailed | AuthorizationFailed) -> None:
        self._error = error
        if self._since is None:
            self._since = time.monotonic()

    def never_again(self) -> None:
        """Note that partitions came: from now on what is refused is waited for, like any outage."""
        self._assigned = True

    def raise_when_long(self) -> None:
        """Raise what has been refused for long, once."""
        if self._error is None or self._assigned or time.monotonic() - (self._since or 0.0) < self._patience:
            return
        error, self._error = self._error, None
        self._assigned = True
        raise error


def is_refused_login(error: KafkaError) -> bool:
    """Tell whether an error means that a login, or a certificate of one of the two sides, is refused."""
    if errors.category(error) == "authentication":
        return True
    said = error.str()
    return bool(_CERTIFICATE_OF_BROKER.search(said) or _CERTIFICATE_OF_CLIENT.search(said))


def _shown(name: Any) -> str:
    try:
        return repr(revealed(name))
    except ConfigurationError as error:
        return f"nobody ({error})"
