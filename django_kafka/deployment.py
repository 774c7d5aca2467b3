"""What must not, or should not, go into production: `manage.py check --deploy` says it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from . import conf
from .conf.encryption import place_of

Problem = tuple[str, str] | tuple[str, str, str]
"""The id of a check, a sentence, and what to do."""


def problems() -> Iterator[Problem]:
    """Yield them all."""
    whole = conf.reading().kafka
    for cluster in whole.clusters.values():
        yield from _of_cluster(cluster)
    for key in whole.encryption_keys:
        if why := key.secret.missing():
            yield "W060", f"{place_of(key.id)} cannot be read here. {why}"


def _of_cluster(cluster: conf.Cluster) -> Iterator[Problem]:
    path = cluster.path
    sasl, tls = cluster.security.sasl, cluster.security.tls
    if cluster.embedded:
        sentence = (
            f'{path}["brokers"] is "embedded", the development cluster: it deletes data, and ends with its command.'
        )
        yield "E013", sentence, "Name the brokers of a real cluster."
    if tls.enabled and tls.insecure_skip_verify:
        sentence = f'{path}["security"]["tls"]["insecure_skip_verify"] is True: whoever answers is trusted.'
        yield "W005", sentence, "Name the certificates to trust in `ca_file` instead."
    if sasl.enabled and sasl.mechanism == "PLAIN" and not tls.enabled:
        sentence = f'{path}["security"] sends the password in clear: SASL PLAIN without TLS.'
        yield "W006", sentence, "Turn on `tls`, or use SCRAM."
    if cluster.schema_registry.login_in_url:
        sentence = f'{path}["schema_registry"]["url"] has a login in it, which Django\'s page about an error shows.'
        yield "W061", sentence, "Write `username` and `password` beside `url`."
    if cluster.schema_registry.tls.insecure_skip_verify:
        sentence = f'{path}["schema_registry"]["tls"]["insecure_skip_verify"] is True: whoever answers is trusted.'
        yield "W005", sentence, "Name the certificates to trust in `ca_file` instead."
    if any(one.startswith("http://") for one in cluster.schema_registry.urls) and _logs_in(cluster.schema_registry):
        sentence = f'{path}["schema_registry"] sends its login in clear: the address begins with http.'
        yield "W062", sentence, "Use an address that begins with https."
    for place, file in _files(cluster.security):
        if file and not Path(file).exists():
            yield "W007", f'{path}["security"]{place} is {file!r}, which does not exist here.'
    for place, kept in _kept(cluster.security):
        if isinstance(kept, conf.Secret) and kept and (why := kept.missing()):
            yield "W060", f'{path}["security"]{place} cannot be read here. {why}'


def _logs_in(registry: conf.SchemaRegistry) -> bool:
    return bool(registry.username or registry.token or registry.oauth.function or registry.oauth.token_url)


def _files(security: conf.Security) -> Iterator[tuple[str, str]]:
    """Yield the files that what is switched on names, and where."""
    sasl, tls = security.sasl, security.tls
    if tls.enabled:
        for key in ("ca_file", "cert_file", "key_file"):
            yield f'["tls"]["{key}"]', getattr(tls, key)
    if sasl.enabled and sasl.mechanism == "GSSAPI":
        yield '["sasl"]["kerberos"]["keytab"]', sasl.kerberos.keytab
    if sasl.enabled and sasl.mechanism == "OAUTHBEARER":
        yield '["sasl"]["oauth"]["ca_file"]', sasl.oauth.ca_file


def _kept(security: conf.Security) -> Iterator[tuple[str, object]]:
    """Yield what may be kept elsewhere of what is switched on, and where."""
    sasl, tls = security.sasl, security.tls
    if tls.enabled:
        yield '["tls"]["key_password"]', tls.key_password
    if sasl.enabled:
        yield from {
            '["sasl"]["username"]': sasl.username,
            '["sasl"]["password"]': sasl.password,
            '["sasl"]["oauth"]["client_id"]': sasl.oauth.client_id,
            '["sasl"]["oauth"]["client_secret"]': sasl.oauth.client_secret,
        }.items()
