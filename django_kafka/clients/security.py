"""SASL and TLS settings as librdkafka properties."""

from __future__ import annotations

from ..conf import Security


def properties(security: Security) -> dict[str, object]:
    """Return what logs in to, and encrypts the way to, one cluster."""
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
    chosen: dict[str, object] = {"security.protocol": protocol}
    if sasl.enabled:
        chosen["sasl.mechanisms"] = sasl.mechanism
        if sasl.username:
            chosen["sasl.username"] = sasl.username
            chosen["sasl.password"] = sasl.password.reveal()
    if tls.enabled:
        files = {
            "ssl.ca.location": tls.ca_file,
            "ssl.certificate.location": tls.cert_file,
            "ssl.key.location": tls.key_file,
        }
        chosen |= {name: path for name, path in files.items() if path}
        if tls.insecure_skip_verify:
            chosen["enable.ssl.certificate.verification"] = False
    return chosen
