"""Events in the life of a record and of a message.

Receivers run in the thread in which the event happens. What a receiver raises is logged and goes no further, except
for `produce_requested`, which is a request and answers its sender.
"""

from __future__ import annotations

from django.dispatch import Signal

produce_requested = Signal()
"""Send it to produce: `topic`, `key`, `value` and the keyword arguments of `services.produce`."""

record_delivered = Signal()
"""Kafka acknowledged a record: `delivery`. The sender is the producer's name."""

delivery_failed = Signal()
"""A record was given up: `delivery`, `error`. The sender is the producer's name."""

message_handling = Signal()
"""A handler is about to run: `message`. The sender is the consumer's name, as for all that follow."""

message_handled = Signal()
"""A handler came back without an error: `message`."""

handler_failed = Signal()
"""A handler failed: `message`, `error`."""

handler_overran = Signal()
"""A handler went on after its time limit: `message`, `handler` (its path), `seconds` so far, `stack` (where it is).

Sent once for each overrun, by a thread that watches.
"""

message_dead_lettered = Signal()
"""A dead letter is stored: `message`, `letter`, `error`."""

dead_letter_replayed = Signal()
"""A replay came to its end: `letter`, `replay`."""

worker_started = Signal()
"""A consumer began to poll: `worker`."""

worker_stopped = Signal()
"""A consumer left its group: `worker`."""

circuit_opened = Signal()
"""A consumer paused because its handlers fail too often, or a producer refuses records because its brokers are out of
reach: `worker` (None for a producer), `reason`."""

circuit_closed = Signal()
"""A consumer, or a producer, goes on after that: `worker` (None for a producer)."""

partitions_assigned = Signal()
"""Partitions came to a worker: `worker`, `partitions` as (topic, partition) pairs."""

partitions_revoked = Signal()
"""Partitions left a worker: `worker`, `partitions` as (topic, partition) pairs, `lost` when taken without notice."""
