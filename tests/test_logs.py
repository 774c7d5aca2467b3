"""What librdkafka says, in Python's logging."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest

from django_kafka.clients import logs
from django_kafka.clients.consumer import ConsumerClient
from django_kafka.clients.events import Events
from django_kafka.clients.logs import ClientLog
from django_kafka.clients.producer import ProducerClient
from django_kafka.exceptions import ConfigurationError
from tests.sending import NOBODY
from tests.servers.processes import wait_until

FAIL = "FAIL [rdkafka#producer-1]: broker down"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_line_names_its_client_and_keeps_its_level(caplog: pytest.LogCaptureFixture) -> None:
    ClientLog("consumer", "ops", str).log(logging.WARNING, "%s", FAIL)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("django_kafka.client", logging.WARNING)
    assert record.getMessage() == f"consumer=ops {FAIL}"


def test_trouble_that_repeats_is_said_once_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ClientLog("producer", "default", str)
    for _ in range(100):
        log.log(logging.ERROR, FAIL)
    log.log(logging.ERROR, "REQTMOUT another kind")
    assert said(caplog) == [f"producer=default {FAIL}", "producer=default REQTMOUT another kind"]
    caplog.clear()
    monkeypatch.setattr(logs, "_QUIET", 0.0)
    log.log(logging.ERROR, FAIL)
    assert said(caplog) == [f"producer=default {FAIL} (and 99 more like it before)"]


def test_debug_lines_are_all_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "django_kafka.client")
    log = ClientLog("producer", "default", str)
    for _ in range(3):
        log.log(logging.DEBUG, "SEND [x]: 100% sent")
    assert said(caplog) == ["producer=default SEND [x]: 100% sent"] * 3


def test_what_logging_raises_stays_inside() -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError

    broken, logger = Broken(), logging.getLogger("django_kafka.client")
    logger.addFilter(broken)
    try:
        ClientLog("producer", "default", str).log(logging.ERROR, FAIL)
    finally:
        logger.removeFilter(broken)


LOGIN = {"bootstrap.servers": NOBODY, "security.protocol": "SASL_PLAINTEXT", "sasl.mechanisms": "OAUTHBEARER"}
QUOTED = {
    "a secret that cannot be read": {
        "enable.sasl.oauthbearer.unsecure.jwt": True,
        "sasl.oauthbearer.config": "principal=admin password=HUNTER2",
    },
    "a login in an address": {
        "debug": "conf",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.client.id": "id",
        "sasl.oauthbearer.client.secret": "HUNTER2",
        "sasl.oauthbearer.token.endpoint.url": "http://user:HUNTER2@127.0.0.1:1/token",
    },
}
"""What librdkafka 2.16 quotes when it cannot log in, or when it is told to say all."""
REFUSED = {**LOGIN, "sasl.oauthbearer.method": "http://user:HUNTER2@127.0.0.1:1/token"}


class Told(Events):
    """Keeps what the client says of its troubles."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def trouble(self, code: str, sentence: str, topic: str | None) -> None:
        self.told.append(sentence)


@pytest.mark.parametrize("what", QUOTED)
def test_no_secret_that_librdkafka_quotes_reaches_the_log_of_a_producer(
    caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    client = ProducerClient("default", {**LOGIN, **QUOTED[what]}, told.append, lambda: None)
    try:
        wait_until(lambda: "Failed to" in caplog.text)
    finally:
        client.close(0)
    assert "HUNTER2" not in caplog.text + "".join(told)
    assert "***" in caplog.text


@pytest.mark.parametrize("what", QUOTED)
def test_no_secret_that_librdkafka_quotes_reaches_what_a_consumer_tells(
    caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.DEBUG)
    events = Told()
    client = ConsumerClient("ops", {**LOGIN, "group.id": "g", **QUOTED[what]}, events)
    try:
        wait_until(lambda: client.fetch(1, 0.05) or any("Failed to" in line for line in [caplog.text, *events.told]))
    finally:
        client.close()
    said = caplog.text + "".join(events.told)
    assert "HUNTER2" not in said
    assert "***" in said


@pytest.mark.parametrize("kind", ["producer", "consumer"])
def test_a_login_in_a_value_that_librdkafka_refuses_reaches_no_error(kind: str) -> None:
    make: dict[str, Any] = {
        "producer": lambda: ProducerClient("default", REFUSED, print, lambda: None),
        "consumer": lambda: ConsumerClient("ops", {**REFUSED, "group.id": "g"}, Told()),
    }
    with pytest.raises(ConfigurationError, match=r"sasl\.oauthbearer\.method") as raised:
        make[kind]()
    assert "HUNTER2" not in "".join(traceback.format_exception(raised.value))
