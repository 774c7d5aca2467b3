"""What consumers read by names and by patterns, and what everything else makes of topics that came by a pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command
from django.test import Client
from pytest_django import Settings

from django_kafka import controls, handlers, needed_schemas, needed_topics, registry, retries, services, subscriptions
from django_kafka.admin.lists import NamesFilter
from django_kafka.conf.pattern_syntax import BadPattern
from django_kafka.controls import ControlRefused, Offset
from django_kafka.dead_letters import dry_runs
from django_kafka.exceptions import ConfigurationError, NoHandler
from django_kafka.handlers import for_topic, kafka_handler, subscribe
from django_kafka.messages import Message
from django_kafka.models import DeadLetter
from django_kafka.monitoring import lag
from django_kafka.serializers import TopicDecoder
from django_kafka.testing import consume, record
from tests.consuming import NAME, Workplace
from tests.doctoring import Told
from tests.letters import dead_letter
from tests.sending import NOBODY
from tests.servers.processes import wait_until
from tests.test_controls import BEATS, crew, done
from tests.test_dashboard import texts, url
from tests.test_finding import SOON, Topics, all_of
from tests.test_handlers import here, of_message, other
from tests.test_kafka_offsets import offsets, refused, told
from tests.test_messages import Raw

EVERY = r"^flights\..*"
RECORD = {"type": "record", "name": "Landed", "namespace": "flights", "fields": []}


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = list(registry._registered)
    yield
    registry._registered[:] = before
    registry.changed()


@pytest.fixture
def use(settings: Settings) -> Callable[..., None]:
    def use(topics: Any = (), more: dict[str, Any] | None = None, **consumer: Any) -> None:
        consumers = {"ops": {"group_id": "ops", "topics": topics, **consumer}}
        settings.KAFKA = {"brokers": [NOBODY], "consumers": consumers, **(more or {})}

    return use


def taken_by(topic: str, **parts: Any) -> str:
    message = Message(Raw(topic=topic, **parts), TopicDecoder("text", "json"))
    return for_topic("ops", topic).match(message).path.rpartition(".")[2]


def found(**_options: Any) -> list[CheckMessage]:
    return [one for one in run_checks(tags=["kafka"]) if "W001" not in str(one.id)]


def ids() -> list[str]:
    return [str(one.id).removeprefix("django_kafka.") for one in found()]


# Who has a message


def test_a_name_goes_before_patterns_these_in_their_order_and_then_comes_the_default(use: Callable[..., None]) -> None:
    use({
        "flights.eu": {"dispatch": [{"header": {"type": "x"}, "handler": here("of_event")}]},
        r"^flights\.e.*": {"dispatch": [{"header": {"type": "y"}, "handler": here("other")}]},
        EVERY: {"handler": here("of_message")},
    })  # fmt: skip
    subscribe("^.*", of_message, consumer="ops")
    assert taken_by("flights.eu", headers=[("type", b"x")]) == "of_event"
    assert taken_by("flights.eu", headers=[("type", b"y")]) == "other"
    assert taken_by("flights.eu") == "of_message"
    assert taken_by("flights.us", headers=[("type", b"y")]) == "of_message"
    assert handlers.topics("ops") == ["flights.eu"]
    assert [one.text for one in subscriptions.patterns("ops")] == [r"^flights\.e.*", EVERY, "^.*"]
    assert subscriptions.ways("ops", "flights.eu") == ["flights.eu", r"^flights\.e.*", EVERY, "^.*"]
    assert subscriptions.of_patterns("ops", ["gates", "flights.eu", "flights.us"]) == ["flights.us", "gates"]


def test_a_default_of_a_name_leaves_nothing_to_patterns(use: Callable[..., None]) -> None:
    use({"flights.eu": {"handler": here("other")}})
    kafka_handler(topics=EVERY, consumer="ops", header={"type": "x"})(of_message)
    assert taken_by("flights.eu", headers=[("type", b"x")]) == "other"
    assert taken_by("flights.us", headers=[("type", b"x")]) == "of_message"
    with pytest.raises(NoHandler, match="none of their conditions holds"):
        taken_by("flights.us")
    with pytest.raises(NoHandler, match="there is none"):
        taken_by("gates")


def test_settings_of_a_topic_are_those_of_its_name_else_of_the_first_pattern_that_has_any(
    use: Callable[..., None],
) -> None:
    retry = {"max_retries": 7}
    use({
        r"^flights\.(eu|us)$": {"serializer": "text", "timeout": "5s", "retry": retry},
        EVERY: {"serializer": "bytes"},
        "flights.us": {"serializer": "json"},
    }, handler=here("other"))  # fmt: skip

    def reads(topic: str) -> object:
        return Message(Raw(topic=topic, value=b"1"), for_topic("ops", topic).decoder).value

    assert [reads(f"flights.{one}") for one in ("eu", "us", "uk")] == ["1", 1, b"1"]
    eu = for_topic("ops", "flights.eu").default
    assert eu is not None
    assert eu.timeout == 5.0
    assert handlers.limited("ops")
    settings = handlers.conf.consumer("ops")
    assert [retries.policy_for(settings, f"flights.{one}").max_retries for one in ("eu", "us", "uk")] == [7, 3, 3]


def test_the_prefix_stands_before_patterns_too(use: Callable[..., None]) -> None:
    use({EVERY: {"handler": here("other")}}, more={"topic_prefix": "stage."})
    assert taken_by("stage.flights.eu") == "other"
    assert subscriptions.of_patterns("ops", ["stage.flights.eu", "flights.eu", "stage.gates"]) == ["stage.flights.eu"]
    assert not handlers.reads("ops", "flights.eu")


def test_versions_of_a_type_are_those_of_all_handlers_that_may_have_the_topic(use: Callable[..., None]) -> None:
    use()
    kafka_handler(topics="flights.eu", consumer="ops", type="Landed", version=2)(of_message)
    kafka_handler(topics=EVERY, consumer="ops", type="Landed", version=1)(other)
    old, new = [("type", b"Landed")], [("type", b"Landed"), ("version", b"2")]
    decoder = for_topic("ops", "flights.eu").decoder

    def by(headers: list[tuple[str, bytes]]) -> str:
        one = Message(Raw(topic="flights.eu", headers=headers, value=b"{}"), decoder)
        return for_topic("ops", "flights.eu").match(one).path.rpartition(".")[2]

    assert (by(old), by(new)) == ("other", "of_message")


def test_no_pattern_takes_internal_retry_and_dead_letter_topics(use: Callable[..., None]) -> None:
    letters = {"dead_letters": {"topic": "{topic}.{consumer}.dlq"}, "topic_prefix": "stage."}
    use({"^.*": {"handler": here("other")}, "b.ops.dlq": {"handler": here("of_message")}}, more=letters)
    apart = ["__consumer_offsets", "stage.a.ops.dlq", "stage.ops.a.retry.1", "stage.b.ops.dlq"]
    near = ["stage.a.dlq", "stage.ops.a.retry.x", "stage.x.a.retry.1", "stage.a.ops.dlqs"]
    assert subscriptions.of_patterns("ops", [*apart, *near]) == sorted(near)
    assert [one for one in (*apart, *near) if subscriptions.left_out(one)] == apart
    with pytest.raises(NoHandler):
        taken_by("stage.a.ops.dlq")
    assert taken_by("stage.b.ops.dlq") == "of_message"


def test_what_is_imported_stays_imported(use: Callable[..., None]) -> None:
    use({"flights.DLT": {"import": "auto"}, EVERY: {"handler": here("other")}})
    assert for_topic("ops", "flights.DLT").imports == "auto"


def test_handlers_may_be_registered_for_patterns_by_every_door(use: Callable[..., None]) -> None:
    use()
    services.subscribe_with("ops", EVERY, of_message)
    kafka_handler(topics=["gates", "^g.*"], consumer="ops")(other)
    assert (taken_by("flights.eu"), taken_by("gates"), taken_by("gate")) == ("of_message", "other", "other")
    with pytest.raises(ConfigurationError, match='does not end with "\\$"'):
        subscribe("^flights", of_message, consumer="ops")
    handlers.forget(of_message)
    assert not handlers.reads("ops", "flights.eu")


@pytest.mark.django_db(transaction=True)
def test_tests_of_a_project_consume_what_a_pattern_fits(use: Callable[..., None]) -> None:
    seen = Topics()
    use()
    subscribe(EVERY, seen, consumer="ops")
    try:
        assert consume([record("flights.eu", "k", {"number": 1})]).handled == 1
    finally:
        handlers.forget(seen)
    assert seen.topics == ["flights.eu"]


def test_a_topic_that_only_handlers_name_is_retried_as_a_pattern_in_settings_says(use: Callable[..., None]) -> None:
    through = {"mode": "topics", "max_retries": 1}
    use({EVERY: {"retry": {"mode": "blocking"}}}, retry=through, handler=here("other"))
    subscribe(["flights.eu", "gates"], of_message, consumer="ops")
    assert list(handlers.retry_topics("ops")) == ["ops.gates.retry.1"]


# Checks


@pytest.mark.parametrize("pattern", ["^flights", "^(a$", "^[z-a]$", r"^\bx$", "^a|b$", "^flights/.*"])
def test_a_broken_pattern_is_an_error_that_names_the_setting(use: Callable[..., None], pattern: str) -> None:
    for topics in ({pattern: {}}, [pattern]):
        use(topics, handler=here("other"))
        [one] = found()
        assert one.id == "django_kafka.E008"
        assert 'KAFKA["consumers"]["ops"]["topics"]' in one.msg
        assert "This is none: " in str(one.hint)
    with pytest.raises(BadPattern):
        subscriptions.pattern(pattern)


def test_a_sound_pattern_is_none(use: Callable[..., None]) -> None:
    use({EVERY: {"handler": here("other")}})
    assert found() == []


def test_producers_and_declared_topics_take_no_pattern(settings: Settings) -> None:
    settings.KAFKA = {"producers": {"default": {"topics": {EVERY: {}}}}}
    [one] = found()
    assert (one.id, one.hint) == ("django_kafka.E008", "Only consumers take patterns: name the topic.")


def test_patterns_are_not_imported(use: Callable[..., None]) -> None:
    use({EVERY: {"import": "auto"}})
    [one] = found()
    assert (one.id, one.hint) == ("django_kafka.E007", "Name the topics that are imported.")


@pytest.mark.parametrize("own", [False, True])
def test_patterns_and_retry_topics_do_not_go_together(use: Callable[..., None], own: bool) -> None:
    through = {"mode": "topics", "max_retries": 1}
    topic = {"handler": here("other")}
    producers = {"producers": {"default": {}}}
    if own:
        use({EVERY: {**topic, "retry": through}}, more=producers)
    else:
        use({EVERY: topic}, retry=through, more=producers)
    assert ids() == ["E034"]
    use({EVERY: {**topic, "retry": {"mode": "blocking"}}, "gates": topic}, retry=through, more=producers)
    assert ids() == []
    use({"gates": topic}, retry=through, more=producers)
    subscribe(EVERY, other, consumer="ops")
    assert ids() == ["E034"]


def test_a_pattern_of_nothing_but_what_it_may_not_take(use: Callable[..., None]) -> None:
    letters = {"dead_letters": {"topic": "{topic}.dlq"}, "producers": {"default": {}}}
    topic = {"handler": here("other")}
    use({r"^.+\.dlq$": topic}, more=letters)
    assert ids() == ["E035", "W031"]
    for pattern in ("^__.+$", r"^ops\.[a-z]+\.retry\.\d+$"):
        use({pattern: topic})
        assert ids() == ["E035"], pattern


def test_dead_letter_topics_that_a_pattern_fits_are_told(use: Callable[..., None]) -> None:
    letters = {"dead_letters": {"topic": "{topic}.dlq"}, "producers": {"default": {}}}
    use({EVERY: {"handler": here("other")}}, more=letters)
    [one] = found()
    assert one.id == "django_kafka.W031"
    assert "dead-letter topics like 'flights.dlq'" in one.msg
    use({r"^flights\.[a-z]+$": {"handler": here("other")}}, more=letters)
    assert ids() == ["W031"]
    use({r"^flights\.(eu|us)$": {"handler": here("other")}}, more=letters)
    assert ids() == []


@pytest.mark.parametrize("reset", [{"auto_offset_reset": "latest"}, {"options": {"auto.offset.reset": "largest"}}])
def test_a_group_that_begins_at_the_end_misses_what_new_topics_have(use: Callable[..., None], reset: Any) -> None:
    use({EVERY: {"handler": here("other")}}, **reset)
    assert ids() == ["W032"]


def test_a_pattern_without_a_handler_and_a_topic_that_a_pattern_handles(use: Callable[..., None]) -> None:
    use({"flights.eu": {"serializer": "text"}, EVERY: {"handler": here("other")}})
    assert found() == []
    use({"gates": {"handler": here("other")}, EVERY: {}})
    [one] = found()
    assert (one.id, EVERY in one.msg) == ("django_kafka.W002", True)
    use({EVERY: {"handler": here("other")}})
    subscribe(EVERY, of_message, consumer="ops")
    assert ids() == ["E021"]


def test_dead_letters_of_patterns_need_a_producer_too(use: Callable[..., None]) -> None:
    letters = {"dead_letters": {"topic": "{topic}.dlq"}, "producers": {"default": {"enabled": False}}}
    use({r"^flights\.(eu|us)$": {"handler": here("other")}}, more=letters)
    assert ids() == ["E030"]


# What is made for topics


def test_a_pattern_is_no_topic_to_be_made_and_no_schema_of_one(use: Callable[..., None]) -> None:
    registry_ = {"schema_registry": {"url": "http://127.0.0.1:1"}}
    own = {"handler": here("other"), "serializer": "avro", "schema": RECORD}
    use({EVERY: {**own, "schema_options": {"subject": "record"}}, "gates": {"handler": here("other")}}, more=registry_)
    assert [one.name for one in needed_topics.needed()] == ["gates"]
    assert [one.contract.subject for one in needed_schemas.needed()] == ["flights.Landed"]
    use({EVERY: own}, more=registry_)
    assert needed_schemas.needed() == []


def test_dry_runs_are_found_by_the_topics_of_letters(use: Callable[..., None]) -> None:
    use({EVERY: {"handler": here("other"), "dry_run": True}})
    assert dry_runs.topics() == []
    assert dry_runs.topics(lambda: ["flights.eu", "gates"]) == [("ops", "flights.eu")]


@pytest.mark.django_db
def test_people_filter_the_letters_of_their_consumers_by_topics_that_patterns_fit(use: Callable[..., None]) -> None:
    use({EVERY: {"handler": here("other")}, "gates": {"handler": here("other")}})
    for topic in ("flights.eu", "strange"):
        dead_letter({}, topic=topic)
    names = NamesFilter.names(None, DeadLetter, "topic", frozenset({"ops"}))  # type: ignore[arg-type]
    assert names == ["flights.eu", "gates"]


# With brokers


def test_offsets_lag_and_the_doctor_know_topics_by_patterns(workplace: Workplace) -> None:
    seen, pattern = Topics(), all_of(workplace)
    workplace.consume(seen, pattern=pattern, find_topics_interval=SOON)
    assert lag.of_consumer(NAME, max_age=0).partitions == ()
    assert told()["partitions"] == []
    first, second = f"{workplace.topic}.eu", f"{workplace.topic}.us"
    for topic in (first, second):
        workplace.cluster.create_topic(topic, 1)
        workplace.send([1, 2], topic=topic)
    workplace.ended(workplace.start(until_empty=True))
    assert {one.topic: one.lag for one in lag.of_consumer(NAME, max_age=0).partitions} == {first: 0, second: 0}
    assert "is no topic of" in refused(NAME, "--topic=other")
    assert [one["topic"] for one in told(NAME, f"--topic={second}")["partitions"]] == [second]
    offsets(NAME, f"--topic={first}", "--to-earliest", "--execute", "--no-input")
    assert {one["topic"]: one["committed"] for one in told()["partitions"]} == {first: 0, second: 2}
    workplace.ended(workplace.start(until_empty=True))
    assert sorted(seen.topics) == [first] * 4 + [second] * 2
    said = Told("--timeout", "5s")
    [one] = [one for one in said.of("topics") if "pattern" in one["saw"]]
    assert (one["state"], one["facts"]["topics"]) == ("ok", [first, second])
    assert said.wrong() == []


def test_the_doctor_says_that_a_pattern_fits_nothing(workplace: Workplace) -> None:
    workplace.consume(Topics(), pattern=all_of(workplace))
    [one] = [one for one in Told("--timeout", "5s").of("topics") if "pattern" in one["saw"]]
    assert (one["state"], "no topic" in one["saw"]) == ("note", True)


def test_partitions_of_found_topics_are_paused_resumed_and_moved(workplace: Workplace) -> None:
    seen = Topics()
    workplace.consume(seen, pattern=all_of(workplace), find_topics_interval=SOON, kafka=BEATS)
    first, second = f"{workplace.topic}.eu", f"{workplace.topic}.us"
    workplace.cluster.create_topic(first, 1)
    workplace.send([1], topic=first)
    with crew() as worker:
        seen.wait(1)
        with pytest.raises(ControlRefused, match="is no topic of"):
            controls.pause(NAME, topic="other", partition=0)
        done(controls.pause(NAME, topic=first, partition=0))
        workplace.send([2], topic=first)
        workplace.cluster.create_topic(second, 1)
        workplace.send([3], topic=second)
        seen.wait(2)
        assert seen.topics == [first, second]
        done(controls.resume(NAME, topic=first, partition=0))
        seen.wait(3)
        _planned, [asked] = controls.seek(NAME, Offset(0), topic=first, partitions=[0])
        done(asked)
        seen.wait(5)
        assert sorted(seen.topics) == [first] * 4 + [second]
        # What is paused as a whole stays so, also where topics come.
        done(controls.pause(NAME))
        third = f"{workplace.topic}.uk"
        workplace.cluster.create_topic(third, 1)
        workplace.send([4], topic=third)
        wait_until(lambda: worker.owns((third, 0)))
        wait_until(lambda: worker.partitions()[third, 0]["paused"])
        assert third not in seen.topics
        done(controls.resume(NAME))
        seen.wait(6)
        assert seen.topics[-1] == third


def test_the_admin_offers_found_topics_for_a_seek(
    workplace: Workplace, client: Client, django_user_model: type[User]
) -> None:
    workplace.consume(Topics(), pattern=all_of(workplace), kafka=BEATS)
    topic = f"{workplace.topic}.eu"
    workplace.cluster.create_topic(topic, 1)
    lag.of_consumer(NAME, max_age=0)
    client.force_login(django_user_model.objects.create_superuser("anna"))
    assert topic in texts(client.get(url("control", "seek", consumer=NAME)).content.decode())
    assert client.get(url("control", "pause", consumer=NAME, topic=topic, partition=0)).status_code == 200
    assert client.get(url("control", "pause", consumer=NAME, topic="other", partition=0)).status_code == 404


def test_the_command_that_makes_topics_makes_none_of_a_pattern(workplace: Workplace) -> None:
    workplace.consume(Topics(), pattern=all_of(workplace))
    call_command("kafka_topics", "check")
