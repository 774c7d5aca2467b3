"""Testing your own handlers and what you send, without a broker.

from django_kafka.testing import consume, produced, record

with produced() as records:
    order.confirm()
assert records[0].topic == "orders"

outcome = consume(records)
assert not outcome.dead_letters
"""

from .capturing import Produced, ProducedRecords, produced, record
from .running import Consumed, consume

__all__ = ["Consumed", "Produced", "ProducedRecords", "consume", "produced", "record"]
