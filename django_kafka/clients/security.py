"""SASL and TLS settings as librdkafka properties; secrets stay hidden in them."""

from __future__ import annotations

from typing import Any

from .. import conf
from ..conf.security import PASSWORDS
from . import librdkafka
from .tokens import TokenFunction


def lacks(mechanism: str) -> str | None:
    """Return why the loaded librdkafka cannot log in with this mechanism; None when it can."""
    feature = {"PLAIN": "sasl_plain", "GSSAPI": "sasl_gssapi", "OAUTHBEARER": "sasl_oauthbearer"}.get(
        mechanism, "sasl_scram"
    )
    found = librdkafka.features()
    if feature in found:
        return None
    return f"the librdkafka of this environment is built without it. It has: {', '.join(sorted(found))}."


def properties(security: conf.Security) -> dict[str, object]:
    """Return what logs in to, and encrypts the way to, one cluster. Raises `ConfigurationError`."""
    sasl, tls = security.sasl, security.tls
    match sasl.enabled, tls.enabled:
        case True, True:
            protocol = "SASL_SSL"
        case True, False:
            protocol = "SASL_PLAINTEXT"
        case False, True:
            protocol = "SSL"
        case _:
            return {}
    return {
        "security.protocol": protocol,
        **(_login(sasl) if sasl.enabled else {}),
        **(_encryption(tls) if tls.enabled else {}),
    }


def _login(sasl: conf.Sasl) -> dict[str, object]:
    chosen: dict[str, object] = {"sasl.mechanisms": sasl.mechanism}
    if sasl.mechanism in PASSWORDS:
        return {**chosen, "sasl.username": sasl.username, "sasl.password": sasl.password}
    if sasl.mechanism == "GSSAPI":
        return {**chosen, **_kerberos(sasl.kerberos)}
    return {**chosen, **_token(sasl.oauth)}


def _kerberos(kerberos: conf.Kerberos) -> dict[str, object]:
    chosen: dict[str, object] = {"sasl.kerberos.service.name": kerberos.service_name}
    if kerberos.keytab:
        chosen["sasl.kerberos.keytab"] = kerberos.keytab
    else:
        # The ticket is somebody else's to renew; without this the library would run kinit for it, which needs a keytab.
        chosen["sasl.kerberos.min.time.before.relogin"] = 0
    return chosen | _given({"sasl.kerberos.principal": kerberos.principal})


def _token(oauth: conf.OAuth) -> dict[str, object]:
    if oauth.function:
        return {"oauth_cb": TokenFunction(oauth.function)}
    extensions = ",".join(f"{name}={value}" for name, value in oauth.extensions.items())
    return {
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": oauth.token_url,
        "sasl.oauthbearer.client.id": oauth.client_id,
        "sasl.oauthbearer.client.secret": oauth.client_secret,
        **_given({
            "sasl.oauthbearer.scope": oauth.scope,
            "sasl.oauthbearer.extensions": extensions,
            "https.ca.location": oauth.ca_file,
        }),
    }  # fmt: skip


def _encryption(tls: conf.Tls) -> dict[str, object]:
    chosen = _given({
        "ssl.ca.location": tls.ca_file,
        "ssl.certificate.location": tls.cert_file,
        "ssl.key.location": tls.key_file,
        "ssl.key.password": tls.key_password,
    })  # fmt: skip
    if tls.insecure_skip_verify:
        chosen["enable.ssl.certificate.verification"] = False
    return chosen


def _given(chosen: dict[str, Any]) -> dict[str, object]:
    return {name: value for name, value in chosen.items() if value}
