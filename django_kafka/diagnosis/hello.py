"""What answers at an address: its certificate, whether it is a broker, which requests and which logins it knows."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

from . import certificates, features, wire
from .budget import Budget
from .encryption import Encryption
from .findings import Finding, error, unseen, warning, well
from .targets import Target

_TLS = b"\x15\x03"
"""How the complaint of somebody begins who speaks TLS."""
_WRONG_HOST, _EXPIRED, _NOT_YET = 62, 10, 9
_STRANGERS = (18, 19, 20, 21)
"""OpenSSL's codes: the host is another, it has expired, it is not good yet, nobody trusted has signed it."""


def look(target: Target, place: str, budget: Budget) -> Iterator[Finding]:
    """Yield what is found at `place`, a number at which somebody takes connections."""
    of = str(target)
    try:
        if target.encryption is not None:
            with closing(_connect(place, target, budget)) as bare:
                yield from _certificate(target, target.encryption, bare, place, budget)
        else:
            yield unseen("tls", "it is off", of=of)
        with closing(_connect(place, target, budget)) as bare:
            yield from _talk(target, bare, budget)
    except _Found as found:
        yield found.finding
    except TimeoutError:
        saw = f"It takes connections and says nothing within {budget.seconds:.1f} s."
        hint = "Something else listens there, or the broker hangs."
        yield error("tls" if target.encryption else "version", saw, f"{hint} {target.mend}", of=of)
    except (OSError, wire.NotKafka) as trouble:
        yield _refused(target, trouble, place, budget)


class _Found(Exception):
    """The end of looking."""

    def __init__(self, finding: Finding) -> None:
        super().__init__()
        self.finding = finding


def _connect(place: str, target: Target, budget: Budget) -> socket.socket:
    return socket.create_connection((place, target.port), timeout=budget.left)


def _certificate(
    target: Target, encryption: Encryption, bare: socket.socket, place: str, budget: Budget
) -> Iterator[Finding]:
    of, now = str(target), datetime.now(UTC)
    with encryption.context(verify=False).wrap_socket(bare, server_hostname=target.host) as shown:
        found = certificates.read(shown.getpeercert(binary_form=True) or b"")
        spoken = shown.version()
    problem = None
    with closing(_connect(place, target, budget)) as another:
        try:
            encryption.context(verify=True).wrap_socket(another, server_hostname=target.host).close()
        except ssl.SSLCertVerificationError as trouble:
            problem = trouble
    whose = f"The certificate {found.subject!r}, signed by {found.issuer!r},"
    facts: dict[str, Any] = {
        "protocol": spoken, "subject": found.subject, "issuer": found.issuer, "names": list(found.names),
        "days": round(found.days(now), 1),
    }  # fmt: skip
    if problem is not None:
        saw, mend = _distrust(target, found, problem, now)
        if encryption.verifies:
            raise _Found(error("tls", f"{whose} {saw}", mend, of=of, **facts))
        yield warning("tls", f"{whose} would not be trusted if it were looked at: it {saw}", mend, of=of, **facts)
        return
    saw = f"{spoken}. {whose} is for {target.host} and {found.good_until(now)}."
    if not encryption.checks_host:
        saw = f"{spoken}. {whose} {found.good_until(now)}; for whom it is, is not looked at."
    if found.ends_soon(now):
        yield warning("tls", saw, "Have the brokers' certificate renewed.", of=of, **facts)
    else:
        yield well("tls", saw, of=of, **facts)


def _distrust(
    target: Target, found: certificates.Certificate, problem: ssl.SSLCertVerificationError, now: datetime
) -> tuple[str, str]:
    """Return what is wrong with a certificate, and how to mend it."""
    tls = f'{target.path}["security"]["tls"]'
    code = problem.verify_code
    if code == _WRONG_HOST or "mismatch" in problem.verify_message.lower():
        names = ", ".join(found.names) or found.subject
        return (
            f"is for another host: for {names}, and not for {target.host}.",
            f"Have it issued for {target.host} too, or write a name that it is for. {target.mend}",
        )
    if code in (_EXPIRED, _NOT_YET) and found.days(now) > 0:
        begins = f"{found.begins:%Y-%m-%d %H:%M} UTC"
        return (
            f"is not good now: it begins on {begins}, or what signed it has expired.",
            "Look at the clock of this machine, and at the authority's certificate.",
        )
    if code == _EXPIRED:
        return f"{found.good_until(now)}.", "Have the brokers' certificate renewed. No setting of ours mends that."
    if code in _STRANGERS:
        file = target.encryption.ca_file if target.encryption else ""
        holds = f"that {file} holds" if file else "that the system trusts"
        return (
            f"is signed by none {holds} ({problem.verify_message}).",
            f'Put the certificate of {found.issuer!r} into {tls}["ca_file"].',
        )
    return f"is not trusted: {problem.verify_message}.", f'Look at {tls}["ca_file"].'


def _talk(target: Target, bare: socket.socket, budget: Budget) -> Iterator[Finding]:
    if target.encryption is None:
        yield from _ask(target, bare, budget)
        return
    context = target.encryption.context(verify=False)
    with context.wrap_socket(bare, server_hostname=target.host) as encrypted:
        yield from _ask(target, encrypted, budget)


def _ask(target: Target, connection: socket.socket, budget: Budget) -> Iterator[Finding]:
    of = str(target)
    connection.settimeout(budget.left)
    found = wire.abilities(connection)
    lacking = list(target.lacks(found, of))
    saw = f"It is {features.version(found)}."
    yield from lacking or [well("version", saw, of=of, requests=len(found.requests), features=dict(found.features))]
    if wire.SASL_HANDSHAKE not in found.requests:
        yield unseen("mechanism", "it knows no logins", of=of)
        return
    yield _login(target, wire.mechanisms(connection, target.mechanism))


def _login(target: Target, offered: tuple[str, ...]) -> Finding:
    of, sasl = str(target), f'{target.path}["security"]["sasl"]'
    facts = {"offered": list(offered)}
    if not target.mechanism:
        if offered:
            saw = f"It wants a login ({', '.join(offered)}), and settings have none."
            return error("mechanism", saw, f"Turn on {sasl}, or name another port.", of=of, **facts)
        return well("mechanism", "It takes clients without a login, as settings have it.", of=of, **facts)
    if not offered:
        saw = f"It takes no logins on this port, and settings have one ({target.mechanism})."
        return error("mechanism", saw, f"Turn off {sasl}, or name the port that takes logins.", of=of, **facts)
    if target.mechanism not in offered:
        saw = f"It does not take {target.mechanism}; it takes {', '.join(offered)}."
        return error("mechanism", saw, f'Change {sasl}["mechanism"], or have the broker take it.', of=of, **facts)
    return well("mechanism", f"It takes {', '.join(offered)}.", of=of, **facts)


def _refused(target: Target, trouble: Exception, place: str, budget: Budget) -> Finding:
    """Return what it means that somebody did not answer as a broker does over TLS, or without."""
    of, tls = str(target), f'{target.path}["security"]["tls"]'
    if target.encryption is not None:
        if isinstance(trouble, ssl.SSLError) and "ALERT" in str(trouble.reason):
            return _client_refused(target, trouble)
        with suppress(OSError, wire.NotKafka):
            with closing(_connect(place, target, budget)) as bare:
                bare.settimeout(min(budget.left, 2.0))
                wire.abilities(bare)
            saw = "A broker answers there without TLS, and settings have it on."
            return error("tls", saw, f'Turn off {tls}["enabled"], or name the port that has TLS.', of=of)
        reason = str(getattr(trouble, "reason", None) or type(trouble).__name__).replace("_", " ").lower()
        saw = f"What answers there does not speak TLS as we do ({reason})."
        return error("tls", saw, f"Is this the right port? {target.mend}", of=of)
    head = trouble.head if isinstance(trouble, wire.NotKafka) else b""
    if head.startswith(_TLS):
        saw = "What answers there speaks TLS, and settings have it off."
        return error("version", saw, f'Turn on {tls}["enabled"], or name the port without TLS.', of=of)
    if head.startswith(b"HTTP/"):
        return error("version", "What answers there speaks HTTP.", f"Is this the right port? {target.mend}", of=of)
    if isinstance(trouble, wire.Ended | OSError):
        saw = "The connection is ended instead of an answer."
        hint = f"It may want TLS: look at {tls}, or at the broker's log."
        return error("version", saw, f"{hint} {target.mend}", of=of)
    return error("version", "What answers there is no Kafka broker.", f"Is this the right port? {target.mend}", of=of)


def _client_refused(target: Target, trouble: ssl.SSLError) -> Finding:
    encryption = target.encryption
    said = str(trouble.reason).replace("_", " ").lower()
    mend = f'Look at {target.path}["security"]["tls"]["cert_file"].'
    if encryption is not None and encryption.cert_file:
        saw = f"The broker refuses the client's certificate {encryption.cert_file} ({said})."
    else:
        saw = f"The broker wants a certificate of the client, and settings name none ({said})."
        mend = f'Name one in {target.path}["security"]["tls"]["cert_file"] and ["key_file"].'
    return error("tls", saw, mend, of=str(target))
