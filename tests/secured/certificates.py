"""Certificates of a test run: good ones, and each kind of bad one. Made by openssl, valid for a day."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.servers.processes import found

KEY_PASSWORD = "the-key-of-the-key"
_CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
_HERE = "subjectAltName=DNS:localhost,IP:127.0.0.1"
_ELSEWHERE = "subjectAltName=DNS:elsewhere.example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    """What is shown."""
    key: Path
    """What proves it."""

    @property
    def tls(self) -> dict[str, str]:
        """The settings of a client that has it."""
        return {"cert_file": str(self.certificate), "key_file": str(self.key)}


class Certificates:
    """Two authorities, of which only the first is trusted, and what they signed, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = self._authority("ca")
        """Signs what is good."""
        self.other_ca = self._authority("other-ca")
        """Nobody trusts it."""
        self.server = self.issue("server", _HERE)
        """Of the brokers."""
        self.elsewhere = self.issue("elsewhere", _ELSEWHERE)
        """Of a broker of another name."""
        self.expired = self.issue("expired", _HERE, days=-1)
        """Of a broker, and was good until yesterday."""
        self.client = self.issue("client", _HERE)
        """Of a client."""
        self.expired_client = self.issue("expired-client", _HERE, days=-1)
        """Of a client, and was good until yesterday."""
        self.foreign_client = self.issue("foreign-client", _HERE, ca=self.other_ca)
        """Of a client, signed by the authority that nobody trusts."""
        self.locked_client = Pair(certificate=self.client.certificate, key=self._lock(self.client.key))
        """The client's, its key encrypted with KEY_PASSWORD."""

    def issue(self, name: str, extension: str = _HERE, *, ca: Pair | None = None, days: int = 1) -> Pair:
        """Make a key and have its certificate signed."""
        signer = ca or self.ca
        pair, request = self._pair(name), self.directory / f"{name}.csr"
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(
            f"{extension}\nextendedKeyUsage=serverAuth,clientAuth\nauthorityKeyIdentifier=keyid\n"
            "subjectKeyIdentifier=hash\n"
        )
        openssl("req", "-new", *_CURVE, "-keyout", pair.key, "-out", request, "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", request, "-CA", signer.certificate, "-CAkey", signer.key, "-CAcreateserial",
            "-days", days, "-extfile", extensions, "-out", pair.certificate,
        )  # fmt: skip
        return pair

    def keystore(self, pair: Pair) -> Path:
        """Return a file with both, as Java takes them."""
        file = pair.key.with_suffix(".keystore.pem")
        file.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
        return file

    def _authority(self, name: str) -> Pair:
        pair = self._pair(name)
        openssl(
            "req", "-x509", *_CURVE, "-keyout", pair.key, "-out", pair.certificate, "-days", 2, "-subj", f"/CN={name}",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        return pair

    def _pair(self, name: str) -> Pair:
        return Pair(certificate=self.directory / f"{name}.crt", key=self.directory / f"{name}.key")

    def _lock(self, key: Path) -> Path:
        locked = key.with_suffix(".locked.key")
        openssl("pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", f"pass:{KEY_PASSWORD}", "-in", key, "-out", locked)
        return locked


def openssl(*arguments: str | int | Path, given: bytes = b"") -> bytes:
    """Run openssl to its end and return what it said."""
    command = [found("openssl", "openssl"), *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()}"
    return done.stdout
