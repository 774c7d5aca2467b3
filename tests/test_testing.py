"""What projects use to test their own handlers: no broker runs here, and none is missed."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction
from django.test import TestCase, override_settings

from django_kafka import services
from django_kafka.exceptions import ConfigurationError, DeliveryDiscarded, DeliveryPending, KafkaError
from django_kafka.models import DeadLetter
from django_kafka.producers import producers
from django_kafka.testing import consume, produced, record
from tests.app.models import Effect

KAFKA: dict[str, Any] = {
    "brokers": ["127.0.0.1:1"],
    "topic_prefix": "test.",
    "producers": {"default": {}, "now": {"send": "immediate"}},
    "consumers": {
        "ops": {
            "group_id": "ops",
            "topics": {
                "flights": {"handler": "tests.app.handlers.fail_on_bad"},
                "outages": {"handler": "tests.app.handlers.meet_an_outage"},
            },
        }
    },
}


@override_settings(KAFKA=KAFKA)
class InsideATestCase(TestCase):
    """A `TestCase` never commits: everything here must work all the same."""

    def test_what_is_produced_is_seen_before_any_commit(self) -> None:
        with produced() as records:
            delivery = services.produce("flights", "AA1", {"n": 1}, headers={"type": "landed"})
        assert len(records) == 1
        assert (records[0].topic, records[0].key, records[0].value) == ("test.flights", "AA1", {"n": 1})
        assert records[0].headers == (("type", b"landed"),)
        with pytest.raises(DeliveryPending):
            delivery.result()

    def test_nothing_connects_to_a_broker(self) -> None:
        with produced():
            services.produce("flights", "AA1", {"n": 1})
        assert not producers["default"].connected

    def test_what_a_savepoint_takes_back_was_not_produced(self) -> None:
        with produced() as records:
            services.produce("flights", "kept", {})
            with transaction.atomic():
                lost = services.produce("flights", "lost", {})
                transaction.set_rollback(True)
        assert [one.key for one in records] == ["kept"]
        with pytest.raises(DeliveryDiscarded):
            lost.result()

    def test_commit_callbacks_acknowledge(self) -> None:
        with produced(), self.captureOnCommitCallbacks(execute=True):
            delivery = services.produce("flights", "AA1", {})
        assert delivery.result() is delivery
        assert delivery.partition == 0

    def test_an_immediate_producer_is_acknowledged_at_once(self) -> None:
        with produced() as records:
            assert services.produce("flights", "AA1", None, producer="now").result().offset is not None
        assert records[0].raw_value is None

    def test_batches_are_captured_too(self) -> None:
        with produced() as records:
            services.produce_batch("flights", [{"key": "a", "value": 1}, {"key": "b", "value": 2}])
        assert [one.value for one in records.to("test.flights")] == [1, 2]

    def test_a_handler_runs_on_what_was_produced(self) -> None:
        with produced() as records:
            services.produce("flights", "AA1", {"n": 1})
        outcome = consume(records)
        assert (outcome.handled, outcome.dead_letters) == (1, [])
        assert Effect.objects.get().payload == {"n": 1}

    def test_a_failing_handler_leaves_a_letter_and_no_effect(self) -> None:
        outcome = consume([record("flights", "AA1", {"bad": True}), record("flights", "AA2", {"n": 2})])
        assert outcome.handled == 1
        assert [letter.error_type for letter in outcome.dead_letters] == ["ValueError"]
        assert DeadLetter.objects.get().value == b'{"bad":true}'
        assert [effect.payload for effect in Effect.objects.all()] == [{"n": 2}]

    def test_a_topic_that_nobody_consumes_is_an_error(self) -> None:
        with pytest.raises(ConfigurationError, match=r"test\.unknown"):
            consume([record("unknown", None, {})])

    def test_an_outage_is_an_error_and_not_an_endless_wait(self) -> None:
        with pytest.raises(KafkaError, match="unavailable"):
            consume([record("outages", None, {})])
        assert not DeadLetter.objects.exists()

    def test_capturing_ends_with_its_block(self) -> None:
        with produced() as outer:
            with produced() as inner:
                services.produce("flights", "in", {})
            services.produce("flights", "out", {})
        assert ([one.key for one in inner], [one.key for one in outer]) == (["in"], ["out"])
