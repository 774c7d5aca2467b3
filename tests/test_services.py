from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_django import Settings

from django_kafka import conf, handlers, services
from django_kafka.clients.embedded import Cluster
from django_kafka.exceptions import ConfigurationError, UnknownName
from django_kafka.messages import Message
from django_kafka.models import Worker
from django_kafka.producers import producers
from tests.sending import NOBODY, read, took_less_than, use


@pytest.fixture
def name(embedded: Cluster, settings: Settings, topic: Callable[..., str]) -> str:
    more = {"audit": {"serializer": "text"}, "off": {"enabled": False}}
    consumers = {"ops": {"group_id": "ops"}, "audit-log": {"group_id": "audit"}}
    use(settings, embedded.bootstrap_servers, more, consumers=consumers)
    return topic()


@pytest.fixture
def handle() -> Iterator[Callable[[Message], None]]:
    def handle(message: Message) -> None:
        pass

    yield handle
    handlers.forget(handle)


def test_the_facade_is_what_its_list_says() -> None:
    assert all(hasattr(services, one) for one in services.__all__)


def test_a_record_is_sent_with_the_producer_that_is_named(embedded: Cluster, name: str) -> None:
    services.produce_with("audit", name, "k", "text", headers={"h": "x"}, partition=1, timestamp=5).result()
    [message] = read(embedded, name, 1)
    assert (message.value(), message.headers(), message.timestamp()[1]) == (b"text", [("h", b"x")], 5)
    with pytest.raises(TypeError):
        services.produce_with("audit", name, "k")  # type: ignore[call-arg]


def test_the_default_producer_is_the_first_enabled_when_none_is_called_default(settings: Settings) -> None:
    settings.KAFKA = {"brokers": [NOBODY], "producers": {"off": {"enabled": False}, "a": {}, "b": {}}}
    assert services.get_producer().name == "a"
    assert services.get_producer() is services.get_producer("a") is producers["a"]


def test_unknown_names_are_sentences(name: str) -> None:
    for ask in (services.get_producer, services.is_producer_ready, services.close):
        with pytest.raises(UnknownName, match=r"""KAFKA\["producers"\] has no 'x'; it has: default, audit, off\."""):
            ask("x")
    for ask in (services.get_consumer, services.is_consumer_ready):
        with pytest.raises(UnknownName, match=r"""KAFKA\["consumers"\] has no 'x'; it has: ops, audit-log\."""):
            ask("x")
    with pytest.raises(UnknownName):
        services.subscribe_with("x", "flights", "tests.app.handlers.ignore")
    with pytest.raises(ConfigurationError, match="Producer 'off' is switched off"):
        services.get_producer("off")


def test_flush_waits_until_all_is_delivered(embedded: Cluster, name: str) -> None:
    deliveries = services.produce_batch(name, [services.Record(key=None, value=n) for n in range(500)])
    assert services.flush() == 0
    assert all(delivery.done() for delivery in deliveries)


def test_flush_counts_what_is_left_and_its_timeout_is_for_all_producers(settings: Settings) -> None:
    use(settings, NOBODY, {"b": {}, "c": {}})
    for producer in ("default", "b", "c"):
        services.produce("flights", None, 1, producer=producer)
    with took_less_than(3 * 1.2):
        assert services.flush(1.2) == 3


def test_a_producer_is_ready_when_it_exists_and_reaches_brokers(settings: Settings, name: str) -> None:
    assert not services.is_producer_ready()
    services.produce(name, None, 1).result()
    assert services.is_producer_ready()
    assert not services.is_producer_ready("audit")
    use(settings, NOBODY)
    with pytest.raises(TimeoutError):
        services.produce(name, None, 1).result()
    assert not services.is_producer_ready()


@pytest.mark.django_db
def test_a_consumer_is_ready_when_its_worker_was_heard_of(name: str) -> None:
    from django.utils import timezone

    assert not services.is_consumer_ready("ops")
    now = timezone.now()
    ours = {"cluster": "default", "consumer": "ops", "group_id": "ops"}
    Worker.objects.create(id="a", **ours, host="h", pid=1, version="0", started_at=now, seen_at=now)
    assert services.is_consumer_ready("ops")
    assert services.is_consumer_ready()
    assert not services.is_consumer_ready("audit-log")


def test_a_closed_producer_is_made_anew(name: str) -> None:
    first = services.get_producer()
    delivery = services.produce(name, None, 1)
    services.close("default")
    assert delivery.done()
    assert services.get_producer() is not first
    services.produce(name, None, 1).result()
    services.close("ops")  # a consumer: ends with its worker, which is not here
    services.close("off")  # was never made


def test_a_consumer_is_told_by_its_settings(name: str) -> None:
    assert isinstance(services.get_consumer("ops"), conf.Consumer)
    assert services.get_consumer().name == "ops"


def test_handlers_can_be_subscribed(name: str, handle: Callable[[Message], None]) -> None:
    services.subscribe("flights", handle)
    services.subscribe_with("audit-log", ["flights", "gates"], handle)
    assert [(one.topic, one.function) for one in handlers.registrations("ops")] == [("flights", handle)]
    assert [one.topic for one in handlers.registrations("audit-log")] == ["flights", "gates"]
    assert handlers.topics("audit-log") == ["flights", "gates"]


def test_a_name_that_is_no_topic_cannot_be_subscribed_to(name: str, handle: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no name for a topic"):
        services.subscribe("a b", handle)
