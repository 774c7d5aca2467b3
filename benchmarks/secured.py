"""Producing and consuming over TLS with a SCRAM login: what both sides are told of it is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Producer

from . import consuming, producing
from .settings import SECURITY


def _login() -> dict[str, Any]:
    """Return librdkafka's properties for what the settings of ours say."""
    sasl, tls = (json.loads(SECURITY)[part] for part in ("sasl", "tls"))
    return {
        "security.protocol": "sasl_ssl",
        "sasl.mechanisms": sasl["mechanism"],
        "sasl.username": sasl["username"],
        "sasl.password": sasl["password"],
        "ssl.ca.location": tls["ca_file"],
    }


def raw_produce_secured() -> Iterator[None]:
    """`produce` in a loop with a delivery callback."""
    yield from producing.produce_with(Producer({**producing.PRODUCER, **_login()}))


def our_produce_secured() -> Iterator[None]:
    """`services.produce_batch`, 1,000 records at a time."""
    yield from producing.our_produce_batch()


def raw_consume_secured() -> Iterator[None]:
    """`consume(500)`, each list handed on whole."""
    yield from consuming.consume_lists({**consuming.BEST_CONSUMER, **_login()})


def our_consume_secured() -> Iterator[None]:
    """A worker with a handler that takes a list."""
    yield from consuming.our_consume_batch()
