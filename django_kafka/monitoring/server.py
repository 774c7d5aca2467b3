"""A small HTTP server in a thread: what a worker answers to those who watch it.

Prometheus and orchestrators ask it; nobody else has to reach it, so it listens on loopback unless told otherwise.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple

from django.db import connections

from .. import logs

log = logs.of(__name__)

AGAIN = 15.0
"""Seconds until a port that was taken is tried again."""
_LOOK_EVERY = 0.2
"""Seconds between two looks at whether to end."""
_MOST = 16
"""Requests that are answered at a time; more are turned away, so that nobody can fill the process with threads."""
_PATIENCE = 10.0
"""Seconds that somebody may take to send a request or to read an answer."""
PLAIN = "text/plain; charset=utf-8"
"""The content type of sentences."""


class Answer(NamedTuple):
    """What is answered to a request."""

    status: int
    """As HTTP has them."""
    content_type: str
    """Of the body."""
    body: bytes
    """All of it."""


Routes = Mapping[str, Callable[[], Answer]]
"""What answers which path. It is looked at with each request, in a thread of that request, which may use databases."""


class Server(threading.Thread):
    """Answers GET and HEAD on one port until it is ended.

    It never raises: a port that cannot be had is said in the log, and tried again, because the one who has it may be
    an earlier process that is just ending.
    """

    def __init__(self, address: str, port: int, routes: Routes) -> None:
        """With port 0 the system chooses one."""
        super().__init__(name="kafka-http", daemon=True)
        self.address = address
        self.port = port
        """The port; what the system chose, once it listens."""
        self.listening = threading.Event()
        """Set when it does."""
        self.reason = ""
        """Why it does not, for people."""
        self._routes = routes
        self._ended = threading.Event()

    def run(self) -> None:
        """Listen, and answer."""
        while not self._ended.is_set():
            try:
                server = _Listening(self.address, self.port, self._routes)
            except (OSError, OverflowError) as error:
                self._say_refused(error)
                self._ended.wait(AGAIN)
                continue
            with server:
                self._listen(server)

    def _listen(self, server: _Listening) -> None:
        self.port, self.reason = server.server_address[1], ""
        self.listening.set()
        log.info("answers at %s: %s", self.url, " ".join(sorted(self._routes)))
        while not self._ended.is_set():
            server.handle_request()

    def _say_refused(self, error: Exception) -> None:
        reason = (
            f"{self.url} cannot be had ({error}); everything else goes on without it, and it is tried again every "
            f"{AGAIN:.0f} s. Two workers on one host need two ports: --metrics-port."
        )
        if reason != self.reason:
            self.reason = reason
            log.warning("%s", reason)

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://{f'[{self.address}]' if ':' in self.address else self.address}:{self.port}"

    def end(self) -> None:
        """Stop; what is being answered may go on for a moment."""
        self._ended.set()
        self.join(5)


@contextmanager
def serving(address: str, port: int | None, routes: Routes) -> Iterator[Server | None]:
    """Answer requests meanwhile; without a port do nothing."""
    if port is None:
        yield None
        return
    server = Server(address, port, routes)
    server.start()
    try:
        yield server
    finally:
        server.end()


class _Listening(socketserver.ThreadingMixIn, HTTPServer):
    """The socket, and a thread for each request: one who reads slowly keeps nobody else waiting."""

    daemon_threads = True
    timeout = _LOOK_EVERY

    def __init__(self, address: str, port: int, routes: Routes) -> None:
        self.routes = routes
        self.address_family = AF_INET6 if ":" in address else AF_INET
        self._free = threading.BoundedSemaphore(_MOST)
        super().__init__((address, port), _Request)

    def server_bind(self) -> None:
        # Not as HTTPServer does, which asks name servers what this host is called.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be begun
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            try:
                connections.close_all()  # those of this thread
            finally:
                self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Whoever asked is gone, or speaks no HTTP.
        log.debug("a request from %s was not answered", client_address)


class _Request(BaseHTTPRequestHandler):
    """One request."""

    server: _Listening
    timeout = _PATIENCE

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        answer = answer_of(self.server.routes, self.path.partition("?")[0])
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if body:
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        return "django_kafka"

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug(format, *arguments)


def answer_of(routes: Routes, path: str) -> Answer:
    """Return what is answered for a path; an error of its route is logged, and answered by its name only."""
    route = routes.get(path)
    if route is None:
        return Answer(404, PLAIN, f"Nothing is at this path; there is: {' '.join(sorted(routes))}\n".encode())
    try:
        return route()
    except Exception as error:
        log.exception("%s could not be answered", path)
        return Answer(500, PLAIN, f"{type(error).__name__}; the log of the worker has more.\n".encode())
