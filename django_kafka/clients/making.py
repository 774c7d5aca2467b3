"""How a client of the library is made: with its login, a log that is scrubbed, and a sentence when it is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import confluent_kafka

from .. import conf, logs
from ..exceptions import ConfigurationError
from . import errors, forks, statistics
from .credentials import Properties
from .logs import ClientLog
from .scrubbing import Scrubber

Client = TypeVar("Client")


def make(
    kind: Callable[..., Client], what: str, properties: Properties, scrub: Scrubber, log: ClientLog,
    own: Mapping[str, Any],
) -> Client:  # fmt: skip
    """Return a client of a kind, with `own` callbacks over its properties.

    Raises `ConfigurationError`, whose sentence begins with `what`, and `AuthenticationFailed`.
    """
    try:
        logs.obey(conf.kafka().logging.level)
        properties.prepare(scrub)
        forks.note_client()
        return _bare(kind)({**properties.revealed(), **own}, logger=log)
    except confluent_kafka.KafkaException as error:
        # Not chained: the library's own exception quotes the value that it refuses.
        reason = scrub(errors.sentence(error))
        raise ConfigurationError(f"{what} cannot be made: {reason}") from None


def _bare(kind: Callable[..., Client]) -> Callable[..., Client]:
    """Return the library's class where OpenTelemetry's instrumentation has put one of its own in its place.

    That would send each record in a second span, with a second context in its headers, and look into what is fetched.
    """
    lines: tuple[type, ...] = getattr(kind, "__mro__", ())
    return next((one for one in lines if not one.__module__.startswith("opentelemetry.")), kind)


def counting(properties: Properties) -> Properties:
    """Return properties of a client that tells its statistics, unless they say otherwise."""
    return Properties({"statistics.interval.ms": statistics.EVERY, **properties}, properties.cluster)
