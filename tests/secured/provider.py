"""A provider of OpenID Connect on loopback: it gives signed tokens to clients that know their secret."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from .certificates import openssl

AUDIENCE = "kafka"
CLIENTS = {"alice": "alice-client-secret"}
"""Who may have a token, and for which secret."""


class Provider:
    """Signs tokens with a key of its own; `keys` is the file by which a broker tells them."""

    def __init__(self, directory: Path) -> None:
        self._key = directory / "tokens.key"
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self._key)
        self.keys = directory / "jwks.json"
        self.keys.write_text(json.dumps({"keys": [self._public_key()]}))
        self.lifetime = 300
        """Seconds for which a token is good."""
        self.asked = 0
        """How many tokens were asked for."""
        self.given: list[str] = []
        """All of those that were given."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where tokens are given."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def token(self, subject: str, *, lifetime: float | None = None) -> str:
        """Return a token for somebody."""
        now = int(time.time())
        claims = {
            "iss": "tests", "aud": AUDIENCE, "sub": subject, "iat": now, "scope": "kafka",
            "exp": now + int(self.lifetime if lifetime is None else lifetime),
        }  # fmt: skip
        head = _encoded(json.dumps({"alg": "RS256", "typ": "JWT", "kid": "tests"}).encode())
        signed = f"{head}.{_encoded(json.dumps(claims).encode())}"
        token = f"{signed}.{_encoded(openssl('dgst', '-sha256', '-sign', self._key, given=signed.encode()))}"
        self.given.append(token)
        return token

    def _public_key(self) -> dict[str, str]:
        modulus = openssl("rsa", "-in", self._key, "-noout", "-modulus").decode().strip().removeprefix("Modulus=")
        return {
            "kty": "RSA", "kid": "tests", "use": "sig", "alg": "RS256", "e": "AQAB",
            "n": _encoded(bytes.fromhex(modulus)),
        }  # fmt: skip


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            provider.asked += 1
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            name, _, secret = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode(
                errors="replace"
            ).partition(":")  # fmt: skip
            if CLIENTS.get(name) != secret:
                self._answer(401, {"error": "invalid_client", "error_description": f"{name} is not known"})
                return
            answer = {"access_token": provider.token(name), "token_type": "Bearer", "expires_in": provider.lifetime}
            self._answer(200, answer)

        def _answer(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    return Handler
