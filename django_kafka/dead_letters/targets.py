"""Where a replay goes: to the handler that its consumer has now, or to the topic."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import connections

from .. import conf, correlation, handlers, logs, retries, tallies
from ..deliveries import Delivery
from ..envelopes.opening import OpeningDecoder
from ..exceptions import ConfigurationError, DeliveryTimeout, ReplayRefused
from ..execution import Execution
from ..gathering import Gathered, here
from ..messages import LETTER_HEADER, MESSAGE_ID_HEADER, Message
from ..models import Replay
from ..producer import Route
from ..producers import producers
from ..producing import outlet, send_now
from ..records import Wire
from . import importing
from .foreign import without
from .outcomes import Carried
from .publishing import producer_for
from .stopping import Stop
from .stored import StoredMessage

log = logs.of(__name__)

_IDS = uuid.UUID("0f3c7a52-6f0e-4a0b-9d0a-5a1c0b8f2e61")
"""What the ids of edited messages are derived from."""
_COMMITTED_READS = (1, 2)
"""psycopg's names for READ UNCOMMITTED, which is the same in PostgreSQL, and READ COMMITTED."""


def to_handler(carried: Carried, stop: Stop) -> None:
    """Run the handler on the stored message and resolve the letter; raise what the handler raises."""
    letter = carried.replay.letter
    consumer = conf.consumer(letter.consumer)
    found = handlers.for_topic(consumer.name, letter.topic)
    message = carried.message = Message(StoredMessage.of(carried.replay), found.decoder, letter.attempts + 1)
    carried.path = found.match(message).path
    gathered = here.begin()
    shared = consumer.transaction != "none" and consumer.database == carried.database
    together = shared and shares_its_row(carried.database)
    resolved = False

    def finish() -> None:
        nonlocal resolved
        # In the transaction of the handler's effects, unless its records have yet to be acknowledged.
        if together and not (gathered.sent or gathered.promised):
            carried.resolve()
            resolved = True

    try:
        execution = Execution(consumer, tallies.of_consumer(consumer.name), gathered)
        execution.replayed = letter.traceback
        with correlation.about(message):
            execution.run(message, found, finish)
            carried.handled = True
            await_all(gathered, stop)
    finally:
        here.end()
    if not resolved:
        carried.resolve_handled()


def to_topic(carried: Carried) -> None:
    """Send the message to its topic again, or to another one, and resolve the letter when Kafka has it.

    Raises `ReplayRefused` when there is no such topic.
    """
    delivery = acknowledged(send_now(route_of(carried.replay), record_of(carried.replay)))
    carried.resolve(place_of(delivery))


def place_of(delivery: Delivery) -> str:
    """Return where an acknowledged record is."""
    return f"{delivery.topic}[{delivery.partition}]@{delivery.offset}"


def record_of(replay: Replay) -> Wire:
    """Return the record that a replay to a topic sends."""
    letter, stored = replay.letter, StoredMessage.of(replay)
    # A message of ours keeps what others wrote on it; an imported one has it from its dead-letter topic.
    headers = without(stored.headers(), letter.imported_as)
    headers.append((LETTER_HEADER, str(letter.pk).encode()))
    if replay.edited:
        headers.append((MESSAGE_ID_HEADER, _message_id(replay).encode()))
    return _value_of(replay, stored), stored.key(), -1, headers, 0


def _value_of(replay: Replay, stored: StoredMessage) -> bytes | None:
    """Return the value as its topic reads it; raise what `Envelope.moved` and `Envelope.renewed` raise."""
    value, letter = stored.value(), replay.letter
    if value is None:
        return value
    try:
        decoder = handlers.decoder_for(letter.consumer, letter.topic)
    except ConfigurationError:
        return value  # its consumer is in settings no more
    if not isinstance(decoder, OpeningDecoder):
        return value
    envelope = decoder.envelope
    return envelope.moved(value, replay.to_topic, stored.headers()) if replay.to_topic else envelope.renewed(value)


def route_of(replay: Replay) -> Route:
    """Return where that goes. Raises `ReplayRefused` for a topic that somebody named and that does not exist."""
    letter = replay.letter
    if replay.to_topic:
        refuse_missing(letter.cluster, replay.to_topic)
    return producers[producer_for(letter.cluster).name].route_to(replay.to_topic or importing.home(letter))


def _message_id(replay: Replay) -> str:
    """Return the id of an edited message, which is the same each time that this replay is carried out."""
    return str(uuid.uuid5(_IDS, f"{replay.letter.fingerprint}/{replay.pk}"))


def refuse_missing(cluster: str, topic: str, seconds: float = 5.0) -> None:
    """Raise `ReplayRefused` when a topic that somebody named does not exist: brokers might make it, and nobody read it.

    Asks brokers of the cluster for `seconds` at most. Raises `ConfigurationError` when no producer sends there, and
    `DeliveryFailed` when nobody answers. `topic` is named as Kafka knows it.
    """
    producer = producers[producer_for(cluster).name]
    if outlet.current is None and not producer.client.has_topic(topic, min(producer.connection_timeout, seconds)):
        raise ReplayRefused(f"There is no topic {topic!r} in cluster {cluster!r}.")


def shares_its_row(database: str) -> bool:
    """Tell whether a transaction may update the row of a replay whose claim is renewed meanwhile.

    Under REPEATABLE READ and above PostgreSQL refuses that, each time anew.
    """
    connection: Any = connections[database]
    if connection.vendor != "postgresql":
        return True
    connection.ensure_connection()
    return connection.isolation_level in (None, *_COMMITTED_READS)


def await_all(gathered: Gathered, stop: Stop) -> None:
    """Wait until what the handler produced is acknowledged; send again what an outage kept back.

    Its effects are committed: to run it again would repeat them.
    """
    tries = 0
    for sent in gathered.sent:
        while True:
            try:
                acknowledged(sent.delivery)
                break
            except MemoryError:
                raise
            except Exception as error:
                tries += 1
                outage = isinstance(retries.decide(error, policy=retries.once()), retries.Wait)
                if not outage or stop.wait(retries.pause(tries)):
                    raise
                sent.again()


def acknowledged(delivery: Delivery) -> Delivery:
    """Wait for a delivery, however long: its delivery timeout bounds that.

    Giving up earlier would leave the record in the queue, and send it again beside it.
    """
    said = False
    while True:
        try:
            return delivery.result()
        except DeliveryTimeout as error:
            if not said:
                log.warning("waiting for what is sent in a replay: %s", error)
            said = True
