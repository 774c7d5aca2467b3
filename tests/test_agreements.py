"""What producers put values into, and consumers of the same settings do not open, is found before it is sent."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import run_checks
from pytest_django import Settings

from tests.sending import NOBODY
from tests.test_encryption import OLD

HANDLER = "tests.test_encryption.handle"


def said(settings: Settings, sent: Any, read: Any, *, producer: Any = None, consumer: Any = None) -> list[str]:
    settings.STORAGES = {**settings.STORAGES, "kafka": settings.STORAGES["default"]}
    topics = {"flights": {"handler": HANDLER, **read}}
    settings.KAFKA = {
        "brokers": [NOBODY],
        "encryption": {"keys": {"old": OLD}},
        "producers": {"default": {"topics": {"flights": sent}, **(producer or {})}},
        "consumers": {"ops": {"group_id": "ops", "topics": topics, **(consumer or {})}},
    }
    return [one.msg for one in run_checks(tags=["kafka"]) if one.id == "django_kafka.W009"]


STRUCTURED = {"cloud_events": {"mode": "structured", "source": "/ops"}}


@pytest.mark.parametrize(
    ("sent", "read", "words"),
    [
        ({"encryption": "payload"}, {}, "the payload by the one, nothing by the other"),
        ({}, {"encryption": "payload"}, "nothing by the one, the payload by the other"),
        ({"encryption": ["a.b", "c[].d"]}, {"encryption": ["a.b"]}, "'a.b', 'c[].d' by the one, 'a.b' by the other"),
        ({"encryption": ["a"]}, {"accept_plain": True}, "'a' by the one, nothing by the other"),
        ({"claim_check": "kafka"}, {}, "in the storage 'kafka', and the consumer has no \"claim_check\""),
        ({"claim_check": "kafka"}, {"claim_check": "default"}, "and the consumer looks for them in 'default'"),
        (STRUCTURED, {}, 'for want of "cloud_events": True'),
    ],
)
def test_what_is_not_opened_is_a_warning(settings: Settings, sent: Any, read: Any, words: str) -> None:
    (found,) = said(settings, sent, read)
    assert found.startswith("The topic 'flights', which producer 'default' sends and consumer 'ops' reads,")
    assert words in found


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ({}, {}),
        ({"encryption": ["a", "b"]}, {"encryption": ["b", "a"]}),
        ({}, {"encryption": "payload", "accept_plain": True}),
        ({"claim_check": {"storage": "kafka", "above": 5}}, {"claim_check": "kafka"}),
        ({}, {"claim_check": "kafka", "cloud_events": True}),
        (STRUCTURED, {"cloud_events": True}),
        ({"cloud_events": {"mode": "binary", "source": "/ops"}}, {}),
    ],
)
def test_what_agrees_is_none(settings: Settings, sent: Any, read: Any) -> None:
    assert said(settings, sent, read) == []


def test_what_is_said_of_all_topics_counts_where_nothing_is_said_of_one(settings: Settings) -> None:
    whole = {"encryption": "payload"}
    assert said(settings, {}, {}, producer=whole, consumer=whole) == []
    assert said(settings, {"encryption": "none"}, {"encryption": "none"}, producer=whole) == []
    assert len(said(settings, {}, {"encryption": "none"}, producer=whole, consumer=whole)) == 1
    assert said(settings, whole, {}, producer={"enabled": False}) == []
    assert said(settings, whole, {}, consumer={"enabled": False}) == []
    assert said(settings, {}, {}, producer={**whole, "topics": {}}) == [], "what code sends nobody knows"
    assert len(said(settings, {}, {}, producer={**whole, "topics": {}, "topic": "flights"})) == 1


def test_what_a_pattern_reads_is_compared_as_well(settings: Settings) -> None:
    settings.KAFKA = {
        "brokers": [NOBODY],
        "encryption": {"keys": {"old": OLD}},
        "producers": {
            "default": {"topics": {"flights": {"encryption": "payload"}, "gates": {"encryption": "payload"}}}
        },
        "consumers": {"ops": {"group_id": "ops", "topics": {"^fli.*": {"handler": HANDLER}}}},
    }
    (found,) = [one.msg for one in run_checks(tags=["kafka"]) if one.id == "django_kafka.W009"]
    assert "'flights'" in found
