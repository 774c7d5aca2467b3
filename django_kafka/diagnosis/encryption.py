"""TLS as the settings of a way want it: its files, and connections that are made with them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..clients.credentials import Properties
from ..conf.options import is_true
from ..conf.secrets import Secret, revealed
from ..exceptions import ConfigurationError
from . import certificates
from .findings import Finding, error, unseen, warning, well

CHECK = "certificates"
_ELSEWHERE = ("ssl.keystore.location", "ssl.certificate.pem", "ssl.key.pem", "ssl.providers", "ssl.engine.location")
"""Properties by which librdkafka finds the client's certificate where Python's `ssl` does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """What a way wants of TLS."""

    path: str
    """Where its settings stand."""
    verifies: bool
    """Whether the brokers' certificates are looked at."""
    checks_host: bool
    """Whether these have to be for the host that is connected to."""
    ca_file: str
    """Certificates to trust, or a directory of them; "" for the system's."""
    ca_text: str
    """The same as text."""
    cert_file: str
    """The client's own certificate."""
    key_file: str
    """Its key."""
    password: Secret
    """What that key is encrypted with."""
    elsewhere: str
    """The property by which the client's own certificate is found where we do not look; "" when there is none."""

    def context(self, *, verify: bool) -> ssl.SSLContext:
        """Return what a connection is made with. Raises `OSError`, of which `ssl.SSLError` is one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = verify and self.checks_host
        context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
        if verify:
            self._trust(context)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None, password=self._reveal)
        return context

    def _reveal(self) -> str:
        # Asked for only by a key that is encrypted. Without a password Python would ask whoever sits at the terminal.
        return self.password.reveal()

    def _trust(self, context: ssl.SSLContext) -> None:
        if self.ca_text:
            context.load_verify_locations(cadata=self.ca_text)
        elif not self.ca_file or self.ca_file == "probe":
            context.load_default_certs()
        elif Path(self.ca_file).is_dir():
            context.load_verify_locations(capath=self.ca_file)
        else:
            context.load_verify_locations(cafile=self.ca_file)

    def files(self) -> Iterator[Finding]:
        """Look at the files that settings name."""
        yield self._authority()
        if self.cert_file:
            yield self._own_certificate()
        if self.elsewhere:
            yield unseen(CHECK, f"the client's own certificate is given by {self.elsewhere!r}", of="cert_file")

    def _authority(self) -> Finding:
        setting = f'{self.path}["security"]["tls"]["ca_file"]'
        if not self.verifies:
            return warning(
                CHECK, "insecure_skip_verify is True: whoever answers is trusted, and may read and change everything.",
                f'Leave {self.path}["security"]["tls"]["insecure_skip_verify"] out, and name in `ca_file` what signed '
                "the brokers' certificates.", of="ca_file",
            )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            self._trust(context)
        except OSError as trouble:
            return error(CHECK, f"{self.ca_file} cannot be used: {_why(trouble)}.", f"Look at {setting}.", of="ca_file")
        if not self.ca_file:
            return well(CHECK, "The certificates that the system trusts are trusted.", of="ca_file")
        return well(CHECK, f"{self.ca_file} is what is trusted.", of="ca_file", file=self.ca_file)

    def _own_certificate(self) -> Finding:
        tls = f'{self.path}["security"]["tls"]'
        now = datetime.now(UTC)
        try:
            found = certificates.of_file(self.cert_file)
        except (OSError, ValueError) as trouble:
            saw = f"{self.cert_file} cannot be used: {_why(trouble)}."
            return error(CHECK, saw, f'Look at {tls}["cert_file"].', of="cert_file")
        try:
            self.context(verify=False)
        except (OSError, ValueError, ConfigurationError) as trouble:
            saw = f"The key {self.key_file or self.cert_file} cannot be used with {self.cert_file}: {_why(trouble)}."
            mend = f'Look at {tls}["key_file"] and ["key_password"].'
            if not self.password:
                mend += " No password is set: is it encrypted?"
            return error(CHECK, saw, mend, of="key_file")
        saw = f"The client's certificate {found.subject!r}, signed by {found.issuer!r}, {found.good_until(now)}."
        facts: dict[str, Any] = {"subject": found.subject, "days": round(found.days(now), 1)}
        mend = f'Replace {tls}["cert_file"]; a running client takes it up by itself.'
        if found.days(now) < 0:
            return error(CHECK, saw, mend, of="cert_file", **facts)
        return (warning if found.ends_soon(now) else _well)(CHECK, saw, mend, of="cert_file", **facts)


def _well(check: str, saw: str, _mend: str, *, of: str, **facts: Any) -> Finding:
    return well(check, saw, of=of, **facts)


def _why(trouble: Exception) -> str:
    if isinstance(trouble, ssl.SSLError):
        reason = str(trouble.reason or "it is no key, or its password is wrong").replace("_", " ").lower()
        return _WORDS.get(reason, reason)
    if isinstance(trouble, OSError):
        return (trouble.strerror or type(trouble).__name__).lower()
    return str(trouble).rstrip(".")


_WORDS = {
    "bad decrypt": "its password is wrong",
    "key values mismatch": "it is the key of another certificate",
    "no certificate or crl found": "there is no certificate in it",
}
"""What OpenSSL says, and means."""


def of(properties: Properties, path: str) -> Encryption | None:
    """Return what a client's properties say of TLS; None when they do not turn it on."""
    if str(properties.get("security.protocol", "")).upper() not in ("SSL", "SASL_SSL"):
        return None
    password = properties.get("ssl.key.password", Secret())
    return Encryption(
        path=path,
        verifies=is_true(properties.get("enable.ssl.certificate.verification", True)),
        checks_host=str(properties.get("ssl.endpoint.identification.algorithm", "https")).lower() != "none",
        ca_file=str(properties.get("ssl.ca.location", "")),
        ca_text=str(revealed(properties.get("ssl.ca.pem", ""))),
        cert_file=str(properties.get("ssl.certificate.location", "")),
        key_file=str(properties.get("ssl.key.location", "")),
        password=password if isinstance(password, Secret) else Secret(str(password)),
        elsewhere=next((name for name in _ELSEWHERE if name in properties), ""),
    )
