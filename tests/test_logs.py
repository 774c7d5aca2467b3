"""What librdkafka says, in Python's logging."""

from __future__ import annotations

import logging

import pytest

from django_kafka.clients import logs
from django_kafka.clients.logs import ClientLog

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
