"""What `manage.py check` says about settings.KAFKA."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core import checks as django_checks
from django.core.checks import CheckMessage, run_checks
from django.db import connections
from pytest_django import Settings

from django_kafka import checks, conf, handlers
from django_kafka.messages import Message
from tests.sending import program

KNOWN_HANDLER = "tests.test_checks.handle"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "settings.md"


def handle(message: Message) -> None:
    """Do nothing."""


def decide(*args: object) -> None:
    """Decide nothing."""


NOT_CALLABLE = "a text"


@pytest.fixture
def check(settings: Settings) -> Callable[..., list[CheckMessage]]:
    def run(setting: object, *, deploy: bool = False) -> list[CheckMessage]:
        settings.KAFKA = setting
        return list(run_checks(tags=["kafka"], include_deployment_checks=deploy))

    return run


Check = Callable[..., list[CheckMessage]]


def consumer(**values: Any) -> dict[str, Any]:
    return {"consumers": {"flights": {"group_id": "ops", "topics": ["flights"], "handler": KNOWN_HANDLER, **values}}}


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("django_kafka.") for message in messages]


def test_settings_with_nothing_wrong_pass(check: Check) -> None:
    assert check({}) == []
    assert check(consumer()) == []


def test_all_that_is_wrong_is_reported_in_one_pass(check: Check) -> None:
    messages = check(
        {
            "broker": [],
            "producers": [
                {"name": "a", "acks": 7, "options": {"linger.mss": 5}},
                {"name": "a"},
                {"name": "b", "cluster": "eu", "serializer": "no.where"},
            ],
            "consumers": {"flights": {"group_id": "g", "topics": ["a b"], "database": "reports"}},
        }
    )

    assert sorted(ids(messages)) == ["E001", "E002", "E004", "E008", "E009", "E010", "E011", "E015"]


def test_a_problem_of_settings_is_an_error_with_its_hint(check: Check) -> None:
    [message] = check({"broker": []})

    assert message == django_checks.Error(
        "KAFKA has no key 'broker'.", hint='Did you mean "brokers"?', id="django_kafka.E001"
    )


def test_a_database_that_does_not_exist_is_named(check: Check) -> None:
    messages = check({**consumer(database="reports"), "dead_letters": {"database": "archive"}})

    assert ids(messages) == ["E010", "E010"]
    assert messages[0].msg == 'KAFKA["consumers"]["flights"]["database"] is \'reports\'; DATABASES has: default.'
    assert "archive" in messages[1].msg


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        (consumer(handler="no.where"), '["consumers"]["flights"]["handler"]'),
        (consumer(topics={"a": {"handler": "no.where"}}), '["topics"]["a"]["handler"]'),
        (
            consumer(topics={"a": {"dispatch": [{"header": {"x": "y"}, "handler": "no.where"}]}}),
            '["topics"]["a"]["dispatch"][0]["handler"]',
        ),
        (consumer(serializer="no.where"), '["flights"]["serializer"]'),
        (consumer(topics={"a": {"key_serializer": "no.where"}}), '["topics"]["a"]["key_serializer"]'),
        (consumer(retry={"max_retries": 0, "retry_on": ["no.where"]}), '["retry"]["retry_on"]'),
        (consumer(retry={"max_retries": 0, "give_up_on": ["no.where"]}), '["retry"]["give_up_on"]'),
        (
            consumer(topics={"a": {"retry": {"max_retries": 0, "retry_on": ["no.where"]}}}),
            '["topics"]["a"]["retry"]["retry_on"]',
        ),
        ({"producers": {"p": {"serializer": "no.where"}}}, '["producers"]["p"]["serializer"]'),
        ({"producers": {"p": {"topics": {"a": {"key_serializer": "no.where"}}}}}, '["topics"]["a"]["key_serializer"]'),
        (consumer(handler="tests.test_checks.absent"), '["flights"]["handler"]'),
        ({"error_categories": {"outage": ["no.where"]}}, 'KAFKA["error_categories"]["outage"]'),
    ],
)
def test_a_path_that_leads_nowhere_is_named_with_its_place(check: Check, setting: object, place: str) -> None:
    [message] = check(setting)

    assert message.id == "django_kafka.E011"
    assert place in message.msg
    assert "cannot be imported: " in message.msg


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (consumer(handler="tests.test_checks.NOT_CALLABLE"), "is of type str; allowed: something that can be called."),
        (
            consumer(retry={"max_retries": 0, "give_up_on": ["tests.test_checks.decide"]}),
            "is of type function; allowed: an exception's class.",
        ),
        (
            {"error_categories": {"outage": ["tests.test_checks.NOT_CALLABLE"]}},
            "is of type str; allowed: an exception's class.",
        ),
    ],
)
def test_a_path_that_leads_to_the_wrong_kind_of_thing_is_an_error(check: Check, setting: object, words: str) -> None:
    [message] = check(setting)

    assert message.id == "django_kafka.E011"
    assert message.msg.endswith(words)


def test_paths_of_what_comes_later_are_checked_all_the_same(check: Check) -> None:
    messages = check(
        {"producers": {"p": {"routing": "no.where"}}, "tenant": "no.one", **consumer(deduplicate="no.where")}
    )
    assert sorted(ids(messages)) == ["E011", "E011", "E011", "W004"]


def test_paths_that_lead_somewhere_pass(check: Check) -> None:
    assert check(consumer(retry={"max_retries": 0, "retry_on": ["builtins.ValueError"]})) == []


def test_a_module_that_fails_while_it_is_imported_is_an_error(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_handlers_of_a_test.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)

    [message] = check(consumer(handler="broken_handlers_of_a_test.handle"))

    assert "ZeroDivisionError" in message.msg


@pytest.mark.parametrize("kind", ["producers", "consumers"])
def test_an_option_that_librdkafka_does_not_have_is_named(check: Check, kind: str) -> None:
    values = consumer()["consumers"]["flights"] if kind == "consumers" else {}
    [message] = check({kind: {"flights": {**values, "options": {"socket.timeout": 5}}}})

    assert message.id == "django_kafka.E015"
    assert f'KAFKA["{kind}"]["flights"]["options"]["socket.timeout"]' in message.msg


def test_a_value_that_librdkafka_does_not_take_is_an_error(check: Check) -> None:
    assert ids(check({"producers": {"a": {"options": {"socket.timeout.ms": "soon"}}}})) == ["E015"]


def test_no_secret_reaches_a_check(check: Check) -> None:
    options = {
        "ssl.key.passwort": "hunter2",
        "sasl.kerberos.min.time.before.relogin": "x",
        "ssl.key.password": "hunter2",
    }
    messages = check({"producers": {"a": {"options": options}}, "security": {"sasl": {"password": ["hunter2"]}}})

    assert len(messages) >= 3
    assert "hunter2" not in str(messages)


def test_a_consumer_without_handlers_is_a_warning(check: Check) -> None:
    [message] = check(consumer(handler=None))

    assert isinstance(message, django_checks.Warning)
    assert message.id == "django_kafka.W001"
    assert message.msg == 'KAFKA["consumers"]["flights"] has no handlers; it cannot be started.'


def test_a_topic_without_a_handler_is_a_warning(check: Check) -> None:
    topics = {"flights": {"handler": KNOWN_HANDLER}, "gates": {}}
    [message] = check(consumer(handler=None, topics=topics))

    assert message.id == "django_kafka.W002"
    assert "has no handler for gates;" in message.msg


def test_a_consumer_without_a_group_is_a_warning(check: Check) -> None:
    assert ids(check(consumer(group_id=""))) == ["W003"]
    assert check({"group_id": "ops", **consumer(group_id="")}) == []


def test_a_consumer_that_is_switched_off_needs_nothing(check: Check) -> None:
    assert check({"consumers": {"flights": {"enabled": False}}}) == []


def test_a_handler_without_topics_is_an_error(check: Check) -> None:
    messages = check(consumer(topics=[]))

    assert ids(messages) == ["E014"]


def test_what_this_version_lacks_is_a_warning(check: Check) -> None:
    [message] = check(consumer(deduplicate="id"))

    assert message.id == "django_kafka.W004"
    assert "[\"deduplicate\"] is 'id'; this version has only None" in message.msg


@pytest.fixture
def registered() -> Iterator[Callable[..., None]]:
    def register(topics: list[str], consumer: str | None = None) -> None:
        handlers.subscribe(topics, handle, consumer=consumer)

    yield register
    handlers.forget(handle)


def test_a_registered_handler_is_a_handler(check: Check, registered: Callable[..., None]) -> None:
    registered(["flights"])

    assert check(consumer(handler=None)) == []


def test_a_handler_for_a_consumer_that_is_not_there_is_an_error(check: Check, registered: Callable[..., None]) -> None:
    registered(["flights"], "audit")

    assert ids(check(consumer())) == ["E020"]


def test_a_second_handler_for_one_message_is_an_error(check: Check, registered: Callable[..., None]) -> None:
    registered(["flights"], "flights")

    assert ids(check(consumer(handler="tests.test_checks.decide"))) == ["E021"]


def test_handlers_are_not_compared_with_settings_that_are_wrong(check: Check, registered: Callable[..., None]) -> None:
    registered(["flights"], "audit")

    assert ids(check({"broker": []})) == ["E001"]


def test_the_neighbour_with_our_package_name_is_an_error(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "django_kafka-5.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: django-kafka\nVersion: 5.1\n")
    monkeypatch.syspath_prepend(tmp_path)

    [message] = check({})

    assert message.id == "django_kafka.E012"
    assert "django-kafka 5.1 is installed too" in message.msg


def test_the_embedded_cluster_is_refused_in_production_only(check: Check) -> None:
    assert check({"brokers": "embedded"}) == []
    assert ids(check({"brokers": "embedded"}, deploy=True)) == ["E013"]
    assert (
        'KAFKA["clusters"]["eu"]["brokers"]' in check({"clusters": {"eu": {"brokers": "embedded"}}}, deploy=True)[0].msg
    )


@pytest.mark.parametrize(
    ("security", "found"),
    [
        ({"tls": {"enabled": True, "insecure_skip_verify": True}}, ["W005"]),
        ({"tls": {"enabled": False, "insecure_skip_verify": True}}, []),
        ({"sasl": {"enabled": True, "username": "u", "password": "p"}}, ["W006"]),
        ({"sasl": {"enabled": True, "username": "u", "password": "p"}, "tls": {"enabled": True}}, []),
        ({"sasl": {"enabled": True, "mechanism": "SCRAM-SHA-256", "username": "u", "password": "p"}}, []),
        ({"tls": {"enabled": True, "ca_file": "/no/such/file.pem"}}, ["W007"]),
        ({"tls": {"enabled": True, "ca_file": __file__}}, []),
    ],
)
def test_what_should_not_go_into_production_is_a_warning(check: Check, security: object, found: list[str]) -> None:
    assert check({"security": security}) == []
    assert ids(check({"security": security}, deploy=True)) == found


def test_checks_open_no_socket_and_start_no_thread() -> None:
    # In a process of its own: the C library of this one may start threads for clients of other tests at any time.
    code = """
import socket, threading
from pathlib import Path
from django.core.checks import run_checks

def refuse(*args, **kwargs):
    raise AssertionError("a check went to the network")

def threads():
    # The C library's own threads are not Python's.
    return [threading.active_count(), len(list(Path("/proc/self/task").glob("*")))]

socket.socket.connect = refuse
before = threads()
found = [one.id for one in run_checks(tags=["kafka"], include_deployment_checks=True)]
print(json.dumps([before, threads(), found]))
"""
    setting = {"brokers": ["localhost:1"], "producers": {"a": {"options": {"linger.ms": 5}}}, **consumer()}
    done = program(code, setting, "flights")
    assert done.returncode == 0, done.stderr
    before, after, found = json.loads(done.stdout)
    assert before == after
    assert found == []


def test_every_id_is_in_the_docs() -> None:
    package = Path(checks.__file__).parent
    sources = [package / "checks.py", package / "handlers.py", *(package / "conf").glob("*.py")]
    found = {each for path in sources for each in re.findall(r"\"(?:django_kafka\.)?([EW]0\d\d)\"", path.read_text())}
    page = DOCS.read_text()

    assert len(found) > 20
    assert sorted(each for each in found if f"`django_kafka.{each}`" not in page) == []


def test_checks_read_what_can_be_read_of_settings_that_are_wrong(check: Check) -> None:
    messages = check({**consumer(handler="no.where"), "broker": []})

    assert sorted(ids(messages)) == ["E001", "E011"]
    assert conf.problems()


def test_a_pool_that_is_smaller_than_the_threads_is_a_warning(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"], "pool", {"max_size": 10})
    assert check(consumer(concurrency=7)) == []
    (warning,) = check(consumer(concurrency=8))
    assert ids([warning]) == ["W008"]
    assert "uses 11" in warning.msg


def test_a_pool_without_a_size_has_the_size_that_psycopg_gives_it(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"], "pool", True)
    assert check(consumer()) == []
    assert ids(check(consumer(concurrency=2))) == ["W008"]


def test_threads_that_never_have_a_message_are_a_warning(check: Check) -> None:
    assert check(consumer(concurrency=8, max_in_flight=8)) == []
    (warning,) = check(consumer(concurrency=8, max_in_flight=5))
    assert ids([warning]) == ["W050"]
    assert "has concurrency 8 and max_in_flight 5: 3 threads never have a message." in warning.msg


def test_a_database_that_commits_nothing_is_an_error(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "AUTOCOMMIT", False)
    assert ids(check(consumer())) == ["E016", "E016"]


def test_effects_once_need_one_database_and_handlers_in_a_transaction(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings, "other", connections.settings["default"])
    elsewhere = {"dead_letters": {"database": "other"}}
    assert check({**consumer(guarantee="effect_once", database="other"), **elsewhere}) == []
    (error,) = check({**consumer(guarantee="effect_once"), **elsewhere})
    assert ids([error]) == ["E050"]
    assert "dead letters are kept in 'other': a second database" in error.msg
    (error,) = check(consumer(guarantee="effect_once", handler="tests.test_checks.coroutine"))
    assert ids([error]) == ["E024"]
    assert "tests.test_checks.coroutine" in error.msg


def test_what_is_handled_at_most_once_is_on_no_event_loop(check: Check) -> None:
    (error,) = check(consumer(guarantee="at_most_once", transaction="none", handler="tests.test_checks.coroutine"))
    assert ids([error]) == ["E051"]
    assert "tests.test_checks.coroutine" in error.msg


@pytest.mark.parametrize("guarantee", ["at_most_once", "effect_once"])
def test_several_messages_at_a_time_keep_every_guarantee(check: Check, guarantee: str) -> None:
    assert check(consumer(guarantee=guarantee, transaction="batch")) == []
    handlers.kafka_handler(topics="flights", consumer="flights", batch=True)(many)
    try:
        assert check(consumer(guarantee=guarantee, handler="tests.test_checks.many")) == []
    finally:
        handlers.forget(many)


def many(messages: list[object]) -> None:
    """A handler that takes lists."""


async def coroutine(message: object) -> None:
    """A handler that no transaction is open for."""


def test_a_login_in_an_option_that_is_refused_is_not_quoted(check: Check) -> None:
    (error,) = check(consumer(options={"sasl.oauthbearer.method": "http://user:HUNTER2@127.0.0.1:1/token"}))
    assert ids([error]) == ["E015"]
    assert "HUNTER2" not in error.msg


def test_options_of_a_connection_are_checked_by_name(check: Check) -> None:
    eu = {"brokers": ["a"], "connection": {"options": {"broker.adress.family": "v4"}}}
    (error,) = check({"clusters": {"eu": eu}})
    assert error.id == "django_kafka.E015"
    assert error.msg == (
        'KAFKA["clusters"]["eu"]["connection"]["options"]["broker.adress.family"]: librdkafka has no '
        "'broker.adress.family'; did you mean 'broker.address.family'?"
    )
    (error,) = check({"connection": {"options": {"bootstrap.servers": "a"}}})
    assert error.id == "django_kafka.E006"
    (error,) = check({"connection": {"timeout": "5s", "options": {"socket.connection.setup.timeout.ms": 5000}}})
    assert error.id == "django_kafka.E005"
