"""Topics that patterns fit, read by workers on the embedded cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command

from django_kafka import conf, handlers, subscriptions, tallies
from django_kafka.exceptions import ConfigurationError
from django_kafka.messages import Message
from django_kafka.models import Claim
from tests.consuming import NAME, Seen, Workplace
from tests.servers.processes import wait_until

SOON = "100ms"


def all_of(workplace: Workplace) -> str:
    """Return the pattern of the topics whose names begin with that of the workplace."""
    return f"^{workplace.topic.replace('.', chr(92) + '.')}\\..*"


class Topics(Seen):
    """A handler that keeps the topics of what it got."""

    def __init__(self, then: Callable[[Message], Any] | None = None) -> None:
        super().__init__(then)
        self.topics: list[str] = []

    def __call__(self, message: Message) -> None:
        if self.then is not None:
            self.then(message)
        self.topics.append(message.topic)
        self.values.append(message.value)
        self.places.append((message.partition, message.offset))


def test_topics_that_are_there_and_those_that_come_are_read_from_their_beginnings(workplace: Workplace) -> None:
    seen = Topics()
    first, second = f"{workplace.topic}.eu", f"{workplace.topic}.us"
    workplace.consume(seen, pattern=all_of(workplace), find_topics_interval=SOON)
    workplace.cluster.create_topic(first, 2)
    workplace.send([1], topic=first)
    workplace.send([2], topic=first, partition=1)
    with workplace.worker():
        seen.wait(2)
        # Made and filled before the worker can know of it.
        workplace.cluster.create_topic(second, 1)
        workplace.send([3, 4], topic=second)
        seen.wait(4)
        workplace.send([5], topic=first)
        seen.wait(5)
    assert sorted(seen.values) == [1, 2, 3, 4, 5]
    assert sorted(seen.topics) == [first, first, first, second, second]
    assert workplace.committed(first) == {0: 2, 1: 1}
    assert workplace.committed(second) == {0: 2}


def test_a_topic_that_is_named_goes_before_patterns_and_these_go_in_their_order(workplace: Workplace) -> None:
    named, narrow, wide = Topics(), Topics(), Topics()
    workplace.consume(named, find_topics_interval=SOON)
    narrow_topic, wide_topic = f"{workplace.topic}.eu", f"{workplace.topic}.other"
    begin = all_of(workplace).removesuffix(".*").removesuffix("\\.")
    workplace.subscribe(f"{begin}\\.eu$", narrow)
    workplace.subscribe(f"{begin}.*", wide)
    for topic in (narrow_topic, wide_topic):
        workplace.cluster.create_topic(topic, 1)
        workplace.send([1], topic=topic)
    workplace.send([1])
    with workplace.worker():
        for one in (named, narrow, wide):
            one.wait(1)
    assert (named.topics, narrow.topics, wide.topics) == ([workplace.topic], [narrow_topic], [wide_topic])


def test_what_no_pattern_may_take_is_not_even_assigned(workplace: Workplace) -> None:
    def fail(message: Message) -> None:
        if message.value == "bad":
            raise ValueError("bad")

    seen = Topics(fail)
    kafka = {"dead_letters": {"topic": "{topic}.dlq"}, "producers": {"default": {}}}
    workplace.consume(seen, pattern="^.*", kafka=kafka, find_topics_interval=SOON)
    topic = f"{workplace.topic}.eu"
    apart = [f"{topic}.dlq", f"{workplace.group}.{topic}.retry.1", f"__{workplace.topic}"]
    for one in [topic, *apart]:
        workplace.cluster.create_topic(one, 1)
    workplace.send([1], topic=apart[1])
    workplace.send([1], topic=apart[2])
    workplace.send(["bad"], topic=topic)
    with workplace.worker() as worker:
        wait_until(workplace.letters)
        workplace.send([7], topic=topic)
        wait_until(lambda: 7 in seen.values)
        assert worker.owns((topic, 0))
        assert not [one for one in apart if worker.owns((one, 0))]
    assert not {*seen.topics} & {*apart}
    assert [one.topic for one in workplace.letters()] == [topic]


def test_who_names_a_dead_letter_topic_reads_it(workplace: Workplace) -> None:
    others, letters = Topics(), Topics()
    kafka = {"dead_letters": {"topic": "{topic}.dlq"}, "producers": {"default": {}}}
    topic, apart = f"{workplace.topic}.eu", f"{workplace.topic}.eu.dlq"
    workplace.consume(others, pattern=all_of(workplace), kafka=kafka, find_topics_interval=SOON)
    workplace.subscribe(apart, letters)
    for one in (topic, apart):
        workplace.cluster.create_topic(one, 1)
        workplace.send([1], topic=one)
    with workplace.worker():
        others.wait(1)
        letters.wait(1)
    assert (others.topics, letters.topics) == ([topic], [apart])


def test_effects_take_place_once_in_topics_that_are_found(workplace: Workplace) -> None:
    seen = Topics()
    first, second = f"{workplace.topic}.eu", f"{workplace.topic}.us"
    workplace.consume(seen, pattern=all_of(workplace), find_topics_interval=SOON, guarantee="effect_once")
    workplace.cluster.create_topic(first, 1)
    workplace.send([1, 2], topic=first)
    with workplace.worker():
        seen.wait(2)
        workplace.cluster.create_topic(second, 1)
        workplace.send([3], topic=second)
        seen.wait(3)
    # The group forgets, the claims do not.
    workplace.send([4], topic=second)
    with workplace.worker():
        seen.wait(4)
    assert sorted(seen.values) == [1, 2, 3, 4]
    claims = Claim.objects.filter(group_id=workplace.group)
    assert {one.topic: one.offset for one in claims} == {first: 2, second: 2}


def test_at_most_once_reads_what_is_found(workplace: Workplace) -> None:
    seen = Topics()
    topic = f"{workplace.topic}.eu"
    workplace.consume(seen, pattern=all_of(workplace), find_topics_interval=SOON, guarantee="at_most_once")
    with workplace.worker():
        workplace.cluster.create_topic(topic, 1)
        workplace.send([1, 2], topic=topic)
        seen.wait(2)
    assert seen.values == [1, 2]


def test_a_worker_that_finds_no_topic_is_at_work_and_waits(workplace: Workplace) -> None:
    seen = Topics()
    workplace.consume(seen, pattern=all_of(workplace), find_topics_interval=SOON)
    with workplace.worker() as worker:
        wait_until(lambda: worker.vitals().state == "running")
        workplace.cluster.create_topic(f"{workplace.topic}.eu", 1)
        workplace.send([1], topic=f"{workplace.topic}.eu")
        seen.wait(1)


def test_until_empty_ends_with_what_patterns_fit(workplace: Workplace) -> None:
    seen = Topics()
    workplace.consume(seen, pattern=all_of(workplace))
    nothing = workplace.start(until_empty=True)
    workplace.ended(nothing)
    assert nothing.error is None
    for name in ("eu", "us"):
        workplace.cluster.create_topic(f"{workplace.topic}.{name}", 1)
        workplace.send([1, 2], topic=f"{workplace.topic}.{name}")
    workplace.ended(workplace.start(until_empty=True))
    assert len(seen.values) == 4


def test_a_failed_message_is_tried_again_and_replayed_by_the_pattern(workplace: Workplace) -> None:
    broken = threading.Event()
    broken.set()
    tries: list[int] = []

    def fail(message: Message) -> None:
        tries.append(message.attempt)
        if broken.is_set():
            raise ValueError("not yet")

    seen, pattern = Topics(fail), all_of(workplace)
    topics = {pattern: {"retry": {"max_retries": 2, "backoff": "10ms"}, "serializer": "text"}}
    topic = f"{workplace.topic}.eu"
    workplace.consume(seen, pattern=pattern, find_topics_interval=SOON, topics=topics)
    workplace.cluster.create_topic(topic, 1)
    workplace.send([b"words"], topic=topic)
    with workplace.worker():
        wait_until(workplace.letters)
        assert tries == [1, 2, 3]
        broken.clear()
        call_command("kafka_replay", consumer=NAME, topic=topic)
        seen.wait(1)
    assert seen.values == ["words"]
    [letter] = workplace.letters()
    wait_until(lambda: (letter.refresh_from_db(), letter.state == "resolved")[1])


def test_a_wrong_handler_of_a_pattern_is_refused_at_the_start(workplace: Workplace) -> None:
    workplace.consume(Topics(), pattern=all_of(workplace))
    handlers.subscribe("^more.*", "tests.no_such.handler", consumer=NAME)
    try:
        with pytest.raises(ConfigurationError, match="no_such"):
            workplace.start()
    finally:
        handlers.forget("tests.no_such.handler")


def test_a_pattern_with_retry_topics_is_refused_at_the_start(workplace: Workplace) -> None:
    retry = {"mode": "topics", "max_retries": 1}
    workplace.consume(Topics(), pattern=all_of(workplace), retry=retry, kafka={"producers": {"default": {}}})
    with pytest.raises(ConfigurationError, match="retry mode"):
        workplace.start()


def test_handlers_of_a_topic_that_was_found_are_resolved_once_and_not_for_ever(workplace: Workplace) -> None:
    workplace.consume(Topics(), pattern=all_of(workplace))
    topic = f"{workplace.topic}.eu"
    assert handlers.for_topic(NAME, topic) is handlers.for_topic(NAME, topic)
    for number in range(3 * handlers._MOST_MADE):
        handlers.for_topic(NAME, f"{workplace.topic}.{number}")
    assert len(handlers._made) <= handlers._MOST_MADE
    tally = tallies.ConsumerTally()
    for number in range(1_100):
        tally.of_topic(str(number)).received += 1
    assert (len(tally.topics), tally.of_topic("(other)").received) == (1_001, 100)
    assert subscriptions.of_patterns(NAME, [topic, "other"]) == [topic]
    assert conf.consumer(NAME).find_topics_interval == 30.0


def test_a_new_topic_waits_where_nobody_says_where_to_begin(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Topics()
    workplace.consume(seen, pattern=all_of(workplace), find_topics_interval=SOON, auto_offset_reset="error")
    topic = f"{workplace.topic}.eu"
    with workplace.worker() as worker:
        workplace.cluster.create_topic(topic, 1)
        workplace.send([1], topic=topic)
        wait_until(lambda: "_AUTO_OFFSET_RESET" in caplog.text)
        assert worker.error is None
        assert not seen.topics
    call_command("kafka_offsets", NAME, "--to-earliest", execute=True, interactive=False)
    with workplace.worker():
        seen.wait(1)
