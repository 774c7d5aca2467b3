"""What stands before the registry on loopback: logins, TLS, answers that fail, and a count of what was asked.

It passes requests on to a real registry. As newer ones do, and the one of the tests does not, it names each schema with
a globally unique id besides, and finds it by that.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.secured.certificates import Pair
from tests.servers.processes import free_port

_SPACE = uuid.UUID("5f2c1c5e-7d0b-4f55-9a3f-0f5b7f2f8c11")


def guid(number: int) -> uuid.UUID:
    """Return the globally unique id of a schema."""
    return uuid.uuid5(_SPACE, str(number))


class Front:
    """A registry as its clients see it. What it demands may be changed at any time."""

    def __init__(
        self, upstream: str, *, login: tuple[str, str] | None = None, token: str = "", server: Pair | None = None,
        clients: Path | None = None, host: str = "localhost",
    ) -> None:  # fmt: skip
        self.upstream = urlsplit(upstream)
        self.login = login
        """Name and password that it wants."""
        self.token = token
        """The bearer token that it wants."""
        self.server = server
        """The certificate that it shows; None: no TLS."""
        self.clients = clients
        """Who must have signed a client's certificate."""
        self.host = host
        self.port = free_port()
        self.asked: list[str] = []
        """Method and path of each request."""
        self.any_token = False
        """Whether any bearer token will do."""
        self.tokens: set[str] = set()
        """Those that it was shown."""
        self.forbidden: tuple[str, ...] = ()
        """What a path may not have in it."""
        self.status: int | None = None
        """What is answered instead."""
        self.body = b""
        """With this."""
        self.delay = 0.0
        """Seconds before an answer."""
        self.ids: dict[uuid.UUID, int] = {}
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.server else 'http'}://{self.host}:{self.port}{self.upstream.path}"

    @property
    def settings(self) -> dict[str, Any]:
        """`schema_registry` of a client that knows all that it wants but certificates."""
        found: dict[str, Any] = {"url": self.url}
        if self.login:
            found |= {"username": self.login[0], "password": self.login[1]}
        if self.token:
            found["token"] = self.token
        return found

    def answer(self, path: str) -> tuple[int, bytes] | None:
        """Return an answer of its own; None: the registry's."""

    def up(self) -> None:
        """Take connections."""
        if self._server is not None:
            return
        front = self
        handler = type("Handler", (_Handler,), {"front": front})
        server = _Server(("127.0.0.1", self.port), handler)
        if self.server is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.server.certificate, self.server.key)
            if self.clients is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self.clients)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Take none, and end those that are there."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.end_connections()
            self._server = None

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def end_connections(self) -> None:
        for one in list(self.connections):
            try:
                one.shutdown(2)
            except OSError:
                pass
            one.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away, or do not get in."""


class _Handler(BaseHTTPRequestHandler):
    front: Front
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: the other side would wait 40 ms for the second

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        front, length = self.front, int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else None
        path = self.path.removeprefix(front.upstream.path)
        front.asked.append(f"{self.command} {path}")
        if front.delay:
            time.sleep(front.delay)
        if front.status is not None:
            self._say(front.status, front.body)
        elif not self._let_in():
            self._say(401, b'{"error_code":401,"message":"Unauthorized"}')
        elif any(word in path for word in front.forbidden):
            self._say(403, b'{"error_code":40301,"message":"not yours"}')
        else:
            self._say(*(front.answer(path) or self._passed_on(body)))

    def _let_in(self) -> bool:
        front, given = self.front, self.headers.get("Authorization", "")
        if given.startswith("Bearer "):
            front.tokens.add(given.removeprefix("Bearer "))
        if front.any_token:
            return given.startswith("Bearer ")
        if front.login:
            return given == "Basic " + base64.b64encode(":".join(front.login).encode()).decode()
        return given == f"Bearer {front.token}" if front.token else True

    def _passed_on(self, body: bytes | None) -> tuple[int, bytes]:
        front, path = self.front, self.path
        before, found, wanted = path.partition("/schemas/guids/")
        if found:
            number = front.ids.get(uuid.UUID(wanted.partition("?")[0]), 2**31 - 1)
            path = f"{before}/schemas/ids/{number}"
        connection = http.client.HTTPConnection(front.upstream.hostname or "", front.upstream.port, timeout=20)
        try:
            wanted_headers = {name: self.headers[name] for name in ("Content-Type", "Accept") if name in self.headers}
            connection.request(self.command, path, body, wanted_headers)
            answer = connection.getresponse()
            return answer.status, self._with_guid(answer.read())
        finally:
            connection.close()

    def _with_guid(self, body: bytes) -> bytes:
        try:
            told = json.loads(body)
        except ValueError:
            return body
        if isinstance(told, dict) and isinstance(told.get("id"), int):
            told["guid"] = str(guid(told["id"]))
            self.front.ids[guid(told["id"])] = told["id"]
        return json.dumps(told).encode()

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
