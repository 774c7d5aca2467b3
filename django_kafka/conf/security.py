"""Login and encryption of a cluster: what they mean, and how to read that from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .blocks import CONTRADICTION, Block
from .secrets import Options, Secret
from .values import Rule, choice, dotted_path, file_path, flag, optional, secret, text, text_or_kept, texts_by_name, url

PASSWORDS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
"""The mechanisms that need a name and a password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kerberos:
    """How a client logs in with GSSAPI."""

    service_name: str = "kafka"
    """The first part of the brokers' own principal."""
    principal: str = ""
    """Who the client is."""
    keytab: str = ""
    """The file with its key; "" for a ticket that somebody else fetches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuth:
    """Where a client gets its OAUTHBEARER token."""

    token_url: str = ""
    """Where a provider of OpenID Connect gives tokens for client credentials."""
    client_id: str | Secret = ""
    """Who the client is there."""
    client_secret: Secret = field(default_factory=Secret)
    """What proves it."""
    scope: str = ""
    """What the token is asked for."""
    extensions: Mapping[str, str] = field(default_factory=Options)
    """What brokers are told beside the token."""
    ca_file: str = ""
    """Certificates that the provider is trusted by; "" for the system's."""
    function: str | None = None
    """The dotted path of a function that returns a token, instead of all this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sasl:
    """How a client logs in."""

    enabled: bool = False
    """Whether it does."""
    mechanism: str = "PLAIN"
    """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI or OAUTHBEARER."""
    username: str | Secret = ""
    """Who it is."""
    password: Secret = field(default_factory=Secret)
    """What proves it."""
    kerberos: Kerberos = field(default_factory=Kerberos)
    """For GSSAPI."""
    oauth: OAuth = field(default_factory=OAuth)
    """For OAUTHBEARER."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the connection is encrypted."""

    enabled: bool = False
    """Whether it is."""
    ca_file: str = ""
    """Certificates that are trusted; "" for the system's."""
    cert_file: str = ""
    """The client's own certificate."""
    key_file: str = ""
    """The key of that certificate."""
    key_password: Secret = field(default_factory=Secret)
    """What that key is encrypted with."""
    insecure_skip_verify: bool = False
    """True to trust whoever answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Login and encryption."""

    sasl: Sasl = field(default_factory=Sasl)
    """The login."""
    tls: Tls = field(default_factory=Tls)
    """The encryption."""


SASL: Mapping[str, Rule] = {
    "enabled": flag,
    "mechanism": choice(*PASSWORDS, "GSSAPI", "OAUTHBEARER", upper=True),
    "username": text_or_kept,
    "password": secret,
}
KERBEROS: Mapping[str, Rule] = {"service_name": text, "principal": text, "keytab": file_path}
OAUTH: Mapping[str, Rule] = {
    "token_url": url,
    "client_id": text_or_kept,
    "client_secret": secret,
    "scope": text,
    "extensions": texts_by_name,
    "ca_file": file_path,
    "function": optional(dotted_path),
}
TLS: Mapping[str, Rule] = {
    "enabled": flag,
    "ca_file": file_path,
    "cert_file": file_path,
    "key_file": file_path,
    "key_password": secret,
    "insecure_skip_verify": flag,
}


def read_security(block: Block) -> tuple[Security, Mapping[str, str]]:
    """Return what a block `security` describes, and where its keys were given ("sasl.username" → path)."""
    sasl, tls = block.block("sasl"), block.block("tls")
    block.close()
    login = sasl.read(SASL)
    kerberos, oauth = sasl.block("kerberos"), sasl.block("oauth")
    parts = {"sasl": sasl, "kerberos": kerberos, "oauth": oauth, "tls": tls}
    security = Security(
        sasl=Sasl(**login, kerberos=Kerberos(**kerberos.read(KERBEROS)), oauth=OAuth(**oauth.read(OAUTH))),
        tls=Tls(**tls.read(TLS)),
    )
    for part in parts.values():
        part.close()
    _find_what_a_login_lacks(security.sasl, sasl, kerberos, oauth)
    _find_contradictions(security.tls, tls)
    return security, {f"{name}.{key}": path for name, part in parts.items() for key, path in part.given.items()}


def _find_what_a_login_lacks(login: Sasl, sasl: Block, kerberos: Block, oauth: Block) -> None:
    if not login.enabled:
        return
    if login.mechanism in PASSWORDS:
        _need(login, sasl, ("username", "password"), login.mechanism)
    elif login.mechanism == "GSSAPI":
        _need(login.kerberos, kerberos, ("service_name",), "GSSAPI")
        if login.kerberos.keytab:
            _need(login.kerberos, kerberos, ("principal",), "a keytab")
    elif login.oauth.function and login.oauth.token_url:
        sentence = f"{oauth.path} has both `function` and `token_url`."
        oauth.problem(CONTRADICTION, sentence, "A token comes from your function, or from a provider: choose one.")
    elif not login.oauth.function:
        _need(login.oauth, oauth, ("token_url", "client_id", "client_secret"), "OAUTHBEARER without a `function`")


def _need(found: Any, block: Block, keys: tuple[str, ...], what: str) -> None:
    for key in keys:
        path = block.path_to(key)
        if not getattr(found, key) and not any(problem.path == path for problem in block.problems):
            block.problem(CONTRADICTION, f"{path} is empty, but {what} needs it.", path=path)


def _find_contradictions(encryption: Tls, tls: Block) -> None:
    if encryption.enabled and bool(encryption.cert_file) != bool(encryption.key_file):
        there, absent = ("cert_file", "key_file") if encryption.cert_file else ("key_file", "cert_file")
        sentence = f"{tls.path} has `{there}` but no `{absent}`; a client's certificate needs both."
        tls.problem(CONTRADICTION, sentence, "If one file holds both, name it twice.")
    if encryption.enabled and encryption.key_password and not encryption.key_file:
        sentence = f"{tls.path} has `key_password` but no `key_file`."
        tls.problem(CONTRADICTION, sentence, "Name the key that it opens, or leave it out.")
