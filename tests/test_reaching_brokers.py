"""How brokers are reached that are dead, silent, or behind IPv6, and how often it is tried."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pytest_django import Settings

from django_kafka import services
from django_kafka.clients.embedded import Cluster
from django_kafka.exceptions import BrokersUnreachable
from django_kafka.producers import producers
from tests.consuming import Seen, Workplace
from tests.doctoring import Told
from tests.secured import SecuredKafka
from tests.secured.cluster import has_ipv6
from tests.secured.journey import travel
from tests.sending import NOBODY, took_less_than
from tests.servers.processes import free_port, wait_until

JITTER = 0.75
"""What the client's pauses may be less than it was told."""


@contextmanager
def door(*, open_: bool) -> Iterator[tuple[str, list[float]]]:
    """Take connections and say nothing on them, or close them at once; note when each came."""
    came: list[float] = []
    kept: list[socket.socket] = []

    def take(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _address = server.accept()
                came.append(time.monotonic())
                if open_:
                    kept.append(client)
                else:
                    client.close()

    # Not any port that is free now: clients of a server that had it before may still call.
    with socket.create_server(("127.0.0.1", free_port())) as server:
        thread = threading.Thread(target=take, args=(server,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", came
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for one in kept:
                one.close()


def usual_pause(moments: list[float]) -> float:
    """Return the mean: a busy machine notes some of them late."""
    return (moments[-1] - moments[0]) / (len(moments) - 1)


# Addresses of which some are dead


def test_one_living_address_is_enough_for_producers_and_workers_while_others_are_dead_or_silent(
    workplace: Workplace,
) -> None:
    seen = Seen()
    with door(open_=True) as (silent, _came):
        alive = workplace.cluster.bootstrap_servers
        brokers = [NOBODY, silent, "no-such-host.invalid:9092", alive, silent, "[::1]:1"]
        workplace.consume(seen, kafka={"brokers": brokers, "connection": {"timeout": "2s"}})
        with took_less_than(10):
            assert services.produce(workplace.topic, "k", 1).result(10).offset == 0
        with took_less_than(20), workplace.worker():
            seen.wait(1)
            assert services.produce(workplace.topic, "k", 2).result(10).offset == 1
            seen.wait(2)
        assert workplace.committed() == {0: 2}


def test_a_broker_that_says_nothing_is_given_up_after_the_timeout_of_the_connection(settings: Settings) -> None:
    with door(open_=True) as (silent, came):
        settings.KAFKA = {"brokers": [silent], "connection": {"timeout": "1s"}}
        began = time.monotonic()
        with took_less_than(6), pytest.raises(BrokersUnreachable):
            services.produce("flights", "k", 1).result()
        wait_until(lambda: len(came) >= 5)
        seconds = time.monotonic() - began
        producers.close_all(0)
    # Where there is another address it would be the next one.
    assert len(came) <= 2 + 2 * seconds


# How often it is tried


OFTEN = 0.6
"""Seconds of `reconnect.backoff.ms`. A client without any connection tries some broker twice in each pause, no more."""


@pytest.mark.parametrize("how", ["refuses", "closes"])
def test_a_port_that_nobody_answers_at_is_tried_no_more_than_twice_in_each_pause_and_it(
    settings: Settings, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caplog.set_level("DEBUG", "django_kafka.client")
    tries = re.compile(r"bootstrap: broker in state \w+ connecting")

    def tried() -> list[float]:
        return [record.created for record in list(caplog.records) if tries.search(record.getMessage())]

    with door(open_=False) as (closing, came):
        settings.KAFKA = {
            "brokers": [closing if how == "closes" else NOBODY],
            "connection": {"timeout": "1s", "options": {"reconnect.backoff.ms": int(OFTEN * 1000)}},
            "logging": {"enable_sarama_logger": True},
        }  # fmt: skip
        services.produce("flights", "k", 1)
        wait_until(lambda: len(tried()) >= 5)
        producers.close_all(0)
    assert how == "refuses" or len(came) >= 4
    assert usual_pause(tried()) > OFTEN / 2 * JITTER


def test_a_login_waits_longer_by_default(settings: Settings) -> None:
    security = {"sasl": {"enabled": True, "mechanism": "PLAIN", "username": "u", "password": "p"}}
    with door(open_=False) as (closing, came):
        settings.KAFKA = {"brokers": [closing], "connection": {"timeout": "1s"}, "security": security}
        services.produce("flights", "k", 1)
        wait_until(lambda: len(came) >= 4)
        producers.close_all(0)
    assert usual_pause(came) > 1.0 / 2 * JITTER


# Keep-alive


def timers(port: int) -> set[str]:
    """Return the kinds of timer that this process's connections to a port of loopback have: "02" is keep-alive.

    As in /proc/net/tcp, proc_net_tcp.txt of the kernel's documentation.
    """
    mine = set()
    for one in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed just now
            mine.add(os.readlink(one))
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {
        line[5].partition(":")[0]
        for line in lines
        if line[2].endswith(f":{port:04X}") and line[3] == "01" and f"socket:[{line[9]}]" in mine
    }


@pytest.mark.parametrize(("keep_alive", "expected"), [("30s", {"02"}), (0, {"00"})])
def test_sockets_are_kept_alive_or_not(
    embedded: Cluster, settings: Settings, topic: Callable[..., str], keep_alive: object, expected: set[str]
) -> None:
    # Connections to the cluster that is made by this very process are told by the other end's port.
    host, _, port = embedded.bootstrap_servers.partition(":")
    settings.KAFKA = {"brokers": [f"{host}:{port}"], "connection": {"timeout": "5s", "keep_alive": keep_alive}}
    services.produce(topic(), "k", 1).result(10)
    wait_until(lambda: timers(int(port)) == expected)


# IPv6


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no loopback of IPv6")
def test_all_goes_over_ipv6_where_brokers_are_there_only(place: Workplace, secured: SecuredKafka) -> None:
    address = secured.way("IPV6")
    travel(place, {"brokers": [address], "connection": {"timeout": "1s"}})
    place.settings.KAFKA = {**place.settings.KAFKA, "producers": {}}
    told = Told("--timeout", "5s")
    assert told.wrong() == []
    assert (told.one("tcp")["of"], told.one("advertised")["state"]) == (address, "ok")
    only_v4 = {"timeout": "1s", "options": {"broker.address.family": "v4"}}
    place.settings.KAFKA = {"brokers": [address], "connection": only_v4}
    with took_less_than(10), pytest.raises(BrokersUnreachable):
        services.produce(place.topic, "k", 1).result()
