"""The HTTP server of workers: what it answers, and what it does about a port that it cannot have."""

from __future__ import annotations

import http.client
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from django_kafka.monitoring import server
from django_kafka.monitoring.server import PLAIN, Answer, Routes, Server, serving
from tests.servers.processes import wait_until


def hello() -> Answer:
    return Answer(200, PLAIN, b"hello")


def broken() -> Answer:
    raise ValueError("a password: secret")


@contextmanager
def running(routes: Routes, address: str = "127.0.0.1", port: int = 0) -> Iterator[Server]:
    with serving(address, port, routes) as made:
        assert made is not None
        assert made.listening.wait(5), made.reason
        yield made


def ask(running: Server, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(running.address, running.port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_each_path_has_its_answer() -> None:
    routes = {"/hello": hello}
    with running(routes) as made:
        assert ask(made, "/hello") == (200, PLAIN, b"hello")
        assert ask(made, "/hello?at=1") == (200, PLAIN, b"hello")
        assert ask(made, "/hello", "HEAD") == (200, PLAIN, b"")
        assert ask(made, "/other") == (404, PLAIN, b"Nothing is at this path; there is: /hello\n")
        assert ask(made, "/hello", "POST")[0] == 501
        routes["/later"] = hello
        assert ask(made, "/later")[0] == 200


def test_an_error_is_answered_by_its_name_only(caplog: pytest.LogCaptureFixture) -> None:
    with running({"/broken": broken}) as made:
        status, _type, body = ask(made, "/broken")

    assert (status, body) == (500, b"ValueError; the log of the worker has more.\n")
    assert "/broken could not be answered" in caplog.text


def test_one_who_says_nothing_keeps_nobody_waiting() -> None:
    with running({"/hello": hello}) as made:
        silent = [socket.create_connection((made.address, made.port), 5) for _number in range(5)]
        try:
            assert ask(made, "/hello")[0] == 200
        finally:
            for one in silent:
                one.close()


def test_more_than_it_answers_at_a_time_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MOST", 2)
    with running({"/hello": hello}) as made:
        silent = [socket.create_connection((made.address, made.port), 5) for _number in range(3)]
        try:
            # They are taken in their order: the third is the one too many.
            assert silent[2].recv(1) == b""
        finally:
            for one in silent:
                one.close()

        def answered() -> bool:
            try:
                return ask(made, "/hello")[0] == 200
            except (http.client.HTTPException, OSError):
                return False

        wait_until(answered)


def test_a_port_that_is_taken_is_said_once_and_had_as_soon_as_it_is_free(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "AGAIN", 0.05)
    with running({"/hello": hello}) as first:
        second = Server(first.address, first.port, {"/hello": hello})
        second.start()
        wait_until(lambda: second.reason)
        assert not second.listening.wait(0.3)
    try:
        assert second.listening.wait(5)
        assert ask(second, "/hello")[0] == 200
    finally:
        second.end()

    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith(f"http://127.0.0.1:{first.port} cannot be had (")
    assert "Two workers on one host need two ports" in said[0]


def test_an_address_that_this_host_does_not_have_is_said(caplog: pytest.LogCaptureFixture) -> None:
    made = Server("192.0.2.1", 0, {})
    made.start()
    wait_until(lambda: made.reason)
    made.end()

    assert "http://192.0.2.1:0 cannot be had" in caplog.text
    assert not made.is_alive()


def test_it_listens_on_ipv6_too() -> None:
    with running({"/hello": hello}, address="::1") as made:
        assert made.url == f"http://[::1]:{made.port}"
        assert ask(made, "/hello")[0] == 200


def test_without_a_port_there_is_none() -> None:
    with serving("127.0.0.1", None, {}) as made:
        assert made is None
