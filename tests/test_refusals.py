"""What is said when a login, a certificate or a permission is refused: soon, by whom, and what to look at."""

from __future__ import annotations

import io
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AclOperation, ResourceType
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from pytest_django import Settings

from django_kafka import conf, services
from django_kafka.clients.groups import GroupAdmin
from django_kafka.dead_letters import replaying
from django_kafka.exceptions import (
    AuthenticationFailed,
    AuthorizationFailed,
    BrokersUnreachable,
    DeliveryFailed,
    DeliveryForbidden,
    LoginRefused,
)
from django_kafka.models import Replay
from django_kafka.monitoring import health, lag
from django_kafka.producers import producers
from tests.consuming import NAME, Seen, Workplace
from tests.letters import dead_letter
from tests.secured import PASSWORDS, Provider, SecuredKafka
from tests.secured.certificates import KEY_PASSWORD
from tests.secured.counting import counted
from tests.secured.journey import carried_out
from tests.secured.logins import REFUSED, WAYS, function, password
from tests.secured.provider import CLIENTS
from tests.sending import took_less_than
from tests.servers.processes import wait_until
from tests.test_finding import all_of


@pytest.mark.parametrize("what", REFUSED)
def test_a_producer_says_soon_what_is_refused_and_does_not_storm_with(
    secured: SecuredKafka, provider: Provider, settings: Settings, what: str
) -> None:
    make, who, setting = REFUSED[what]
    kafka = make(secured, provider)
    with counted(kafka["brokers"][0]) as (address, came):
        settings.KAFKA = {**kafka, "brokers": [address]}
        began = time.monotonic()
        delivery = services.produce("flights", "k", 1)
        with took_less_than(10), pytest.raises(LoginRefused) as raised:
            delivery.result()
        time.sleep(0.5)
        seconds, tries = time.monotonic() - began, len(came)
        assert who in " ".join(health.producer().problems)
        producers.close_all(0)

        def told() -> str:
            """Return what health says anew: at first, perhaps, only that nobody has answered in its time."""
            lag.forget()
            with took_less_than(10):
                (problem,) = health.broker().problems
            return problem if who in problem else ""

        assert setting in wait_until(told)

    said = str(raised.value)
    assert raised.value.category == "authentication"
    assert isinstance(raised.value, AuthenticationFailed)
    assert isinstance(raised.value, BrokersUnreachable)
    assert "'flights'" in said
    assert who in said
    assert setting in said
    assert "cluster 'default'" in said
    assert "hunter2" not in said
    # The library alone would make twenty a second where a certificate of the client is refused.
    assert tries <= 2 + 3 * seconds


@pytest.mark.parametrize("what", REFUSED)
def test_a_worker_that_is_refused_before_it_got_anything_ends_with(
    place: Workplace, secured: SecuredKafka, provider: Provider, what: str
) -> None:
    make, who, setting = REFUSED[what]
    kafka = make(secured, provider)
    with counted(kafka["brokers"][0]) as (address, came):
        place.consume(Seen(), kafka={**kafka, "brokers": [address]})
        began = time.monotonic()
        with took_less_than(10):
            worker = place.start()
            wait_until(lambda: worker.error is not None)
            place.ended(worker)
        seconds = time.monotonic() - began

    assert len(came) <= 3 + 3 * seconds
    assert isinstance(worker.error, AuthenticationFailed)
    assert who in str(worker.error)
    assert setting in str(worker.error)


def test_a_worker_that_reads_by_a_pattern_alone_ends_too(place: Workplace, secured: SecuredKafka) -> None:
    place.consume(Seen(), kafka=secured.settings("SAFE", password("PLAIN", word="hunter2")), pattern="^flights.*")
    with took_less_than(10):
        worker = place.start()
        wait_until(lambda: worker.error is not None)
        place.ended(worker)
    assert isinstance(worker.error, AuthenticationFailed)


def test_a_topic_that_a_pattern_fits_and_may_not_be_read_keeps_no_other_waiting(
    place: Workplace, secured: SecuredKafka
) -> None:
    seen = Seen()
    kafka = secured.settings("LOGIN", password("SCRAM-SHA-512", "bob"))
    place.consume(seen, kafka=kafka, pattern=all_of(place), find_topics_interval="100ms")
    secured.allow("bob", ResourceType.GROUP, place.group)
    read, forbidden, unseen = (f"{place.topic}.{name}" for name in ("eu", "us", "uk"))
    for topic in (read, forbidden, unseen):
        secured.create_topic(topic)
    secured.allow("bob", ResourceType.TOPIC, forbidden, AclOperation.DESCRIBE)
    secured.allow("bob", ResourceType.TOPIC, read)
    with place.worker() as worker:
        wait_until(lambda: worker.owns((read, 0)))
        assert worker.error is None


def test_a_token_function_that_fails_is_said_at_once_without_what_it_raised(
    secured: SecuredKafka, settings: Settings
) -> None:
    settings.KAFKA = secured.settings("LOGIN", function("fail_to_fetch"))
    with took_less_than(5), pytest.raises(AuthenticationFailed, match="fail_to_fetch' gave no token") as raised:
        services.produce("flights", "k", 1)
    assert "a-secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_sending_to_a_topic_without_permission_names_topic_user_and_setting(
    secured: SecuredKafka, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic()
    secured.create_topic(name)
    settings.KAFKA = secured.settings("SAFE", password("PLAIN", "bob"))
    with took_less_than(10), pytest.raises(DeliveryForbidden) as raised:
        services.produce(name, "k", 1).result()

    assert isinstance(raised.value, AuthorizationFailed)
    assert isinstance(raised.value, DeliveryFailed)
    assert (raised.value.category, raised.value.retriable) == ("authorization", False)
    for word in (repr(name), "'bob' (PLAIN)", "WRITE", 'KAFKA["security"]["sasl"]'):
        assert word in str(raised.value)


@pytest.mark.parametrize("lacking", ["group", "topic"])
def test_a_worker_without_permission_ends_with_what_it_lacks(
    place: Workplace, secured: SecuredKafka, lacking: str
) -> None:
    place.consume(Seen(), kafka=secured.settings("LOGIN", password("SCRAM-SHA-512", "bob")))
    if lacking == "topic":
        secured.allow("bob", ResourceType.GROUP, place.group)
    worker = place.start()
    # Of a topic it hears when it has joined the group.
    wait_until(lambda: worker.error is not None)
    place.ended(worker)

    assert isinstance(worker.error, AuthorizationFailed)
    words = [repr(place.group), "READ"] if lacking == "group" else [repr(place.topic), "READ"]
    for word in (*words, "'bob' (SCRAM-SHA-512)", 'KAFKA["security"]["sasl"]'):
        assert word in str(worker.error)


def test_a_replay_says_soon_what_is_refused_and_goes_on_when_that_is_mended(
    place: Workplace, secured: SecuredKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2")
    place.consume(Seen(), kafka=secured.settings("SAFE", password("SCRAM-SHA-512", word={"file": str(file)})))
    letter = dead_letter({"n": 1}, topic=place.topic, consumer=NAME, group_id=place.group)
    replaying.request([letter.pk], target="topic")
    done: list[Replay] = []

    def carry_out() -> None:
        done.extend(carried_out())
        connection.close()

    thread = threading.Thread(target=carry_out)
    thread.start()
    wait_until(lambda: "waiting for what is sent in a replay" in caplog.text)
    refused = next(record.getMessage() for record in caplog.records if "in a replay" in record.getMessage())
    for word in (f"'{place.topic}'", "refuse the login of 'alice' (SCRAM-SHA-512)", 'KAFKA["security"]["sasl"]'):
        assert word in refused
    file.write_text(PASSWORDS["alice"])
    thread.join(30)
    assert [one.state for one in done] == ["succeeded"]


def test_a_replay_to_a_topic_without_permission_fails_and_its_letter_stays_open(
    place: Workplace, secured: SecuredKafka
) -> None:
    place.consume(Seen(), kafka=secured.settings("SAFE", password("PLAIN", "bob")))
    letter = dead_letter({"n": 1}, topic=place.topic, consumer=NAME, group_id=place.group)
    replaying.request([letter.pk], target="topic")
    with took_less_than(10):
        (replay,) = carried_out()
    letter.refresh_from_db()
    assert (replay.state, letter.state, letter.category) == ("failed", "open", "authorization")
    for word in ("DeliveryForbidden", repr(place.topic), "'bob' (PLAIN)", "WRITE", 'KAFKA["security"]["sasl"]'):
        assert word in replay.result


def test_a_dead_letter_whose_topic_takes_none_of_this_login_is_stored_and_waited_for(
    place: Workplace, secured: SecuredKafka, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(lambda _message: 1 / 0)
    way = secured.settings("SAFE", password("SCRAM-SHA-256", "bob"))
    place.consume(seen, kafka={**way, "dead_letters": {"topic": "{topic}.dead"}})
    secured.create_topic(f"{place.topic}.dead")
    secured.allow("bob", ResourceType.TOPIC, place.topic)
    secured.allow("bob", ResourceType.GROUP, place.group)
    place.send([1])
    with place.worker():
        wait_until(lambda: f"{place.topic}.dead does not take its dead letter" in caplog.text)
        assert len(place.letters()) == 1
        assert place.committed() == {0: 0}
        secured.allow("bob", ResourceType.TOPIC, f"{place.topic}.dead")
        wait_until(lambda: place.committed() == {0: 1})


def test_a_worker_that_has_worked_waits_for_what_is_refused_later(
    place: Workplace, secured: SecuredKafka, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    place.consume(seen, kafka=secured.settings("LOGIN", password("SCRAM-SHA-512")))
    place.send([1])
    with place.worker() as worker:
        seen.wait(1)
        secured.change_password("alice", "another-one")
        try:
            secured.kill()
            secured.start()
            wait_until(lambda: "refuse the login of 'alice'" in caplog.text)
            time.sleep(1)
            assert worker.alive
        finally:
            secured.change_password("alice", PASSWORDS["alice"])
        place.send([2])
        seen.wait(2)


def test_what_asks_brokers_says_what_is_refused(place: Workplace, secured: SecuredKafka) -> None:
    place.consume(Seen(), kafka=secured.settings("LOGIN", password("SCRAM-SHA-256", word="hunter2")))
    with pytest.raises(AuthenticationFailed, match="refuse the login of 'alice'"):
        GroupAdmin(conf.consumer(NAME), place.group, 3).committed([(place.topic, 0)])
    place.settings.KAFKA = {**place.settings.KAFKA, **secured.settings("LOGIN", password("SCRAM-SHA-256", "bob"))}
    with pytest.raises(AuthorizationFailed, match=f"refuses group '{place.group}' to 'bob'"):
        GroupAdmin(conf.consumer(NAME), place.group, 5).committed([(place.topic, 0)])


# That nothing shows a secret on the way


LOUD = {"logging": {"level": "DEBUG", "enable_sarama_logger": True}}


@pytest.mark.parametrize(
    "what", [*list(REFUSED)[:3], "OpenID Connect over TLS", "tokens of a function", "a locked key"]
)
def test_no_secret_reaches_log_command_error_or_row_with(
    place: Workplace,
    secured: SecuredKafka,
    provider: Provider,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    what: str,
) -> None:
    caplog.set_level("DEBUG")
    if what in REFUSED:
        kafka = REFUSED[what][0](secured, provider)
    elif what == "a locked key":
        file = tmp_path / "secret"
        file.write_text(KEY_PASSWORD)
        tls = secured.certificates.locked_client.tls
        kafka = secured.settings("MUTUAL", **tls, key_password={"file": str(file)})
    else:
        kafka = WAYS[what](secured, provider)
    place.consume(Seen(lambda _message: 1 / 0), kafka={**kafka, **LOUD})
    out = io.StringIO()
    said: list[str] = []
    delivery = services.produce(place.topic, "k", {"n": 1})
    try:
        delivery.result()
    except (LoginRefused, BrokersUnreachable) as error:  # the latter of a login that takes longer than the timeout
        said.append(everything_about(error))
    worker = place.start()
    wait_until(lambda: worker.error is not None or place.letters())
    if worker.error is not None:
        said.append(everything_about(worker.error))
    worker.stop()
    place.ended(worker)
    if what == "a wrong SCRAM password":  # each takes its time
        for command in (["kafka_status"], ["kafka_topics"], ["kafka_offsets", NAME]):
            try:
                call_command(*command, stdout=out, stderr=out)
            except CommandError as error:
                said.append(everything_about(error))
    said += [caplog.text, out.getvalue(), repr(conf.kafka()), *(str(letter.__dict__) for letter in place.letters())]

    # The log was as loud as it can be.
    assert "SASL" in caplog.text or "ssl" in caplog.text
    secrets = ["hunter2", *PASSWORDS.values(), CLIENTS["alice"], KEY_PASSWORD, *provider.given]
    assert [secret for secret in secrets if secret in "".join(said)] == []


def everything_about(error: BaseException) -> str:
    """Return what a traceback says of it with the locals of every frame but those of tests."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    for frame in told.stack:
        if "/tests/" in frame.filename:
            frame.locals = None
    return "".join(told.format())
