"""The command kafka_schemas: which schemas the project needs, how they stand in their registries, and registering."""

from __future__ import annotations

import io
import json
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from pytest_django import Settings

from django_kafka import conf, schema_plans, serializers
from django_kafka.clients.schema_registry import Codec
from django_kafka.exceptions import ConfigurationError
from django_kafka.needed_schemas import needed
from tests.doctoring import Told
from tests.registries import Front
from tests.registries.schemas import AVRO, INCOMPATIBLE, JSON, NEWER, PROTOBUF
from tests.sending import NOBODY
from tests.servers.registry import Registry

HANDLER = "tests.app.handlers.record"
DIRECTORY = uuid.uuid4().hex
"""Where the files of Protobuf of this run lie: their names are subjects, which nobody else may have."""


def use(settings: Settings, url: str, topics: dict[str, Any], **more: Any) -> None:
    """Have one producer with these topics."""
    registry = more.pop("registry", {})
    settings.KAFKA = {
        "brokers": [NOBODY],
        "connection": {"timeout": "20s"},
        "schema_registry": {"url": url, **registry},
        "producers": {"default": {"topics": {name: {"serializer": "avro", **one} for name, one in topics.items()}}},
        **more,
    }


def run(*arguments: str) -> tuple[str, str, int]:
    """Return what the command says, why its exit code is not 0, and that code."""
    out = io.StringIO()
    try:
        call_command("kafka_schemas", *arguments, stdout=out)
    except CommandError as error:
        return out.getvalue(), str(error), error.returncode
    return out.getvalue(), "", 0


def told(*arguments: str) -> list[dict[str, Any]]:
    """Return the schemas as programs get them."""
    found: list[dict[str, Any]] = json.loads(run("--json", *arguments)[0])["schemas"]
    return found


def states(*arguments: str) -> dict[str, str]:
    """Return how each subject stands."""
    return {one["subject"]: one["state"] for one in told(*arguments)}


def keep(registry: Registry | Front, subject: str, level: str) -> None:
    """Have the registry test new versions of a subject, which it has, by a rule."""
    body = json.dumps({"compatibility": level}).encode()
    kind = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{registry.url}/config/{subject}", body, kind, method="PUT"), timeout=20
    ):
        pass


def messages() -> tuple[Any, Any]:
    """Return two classes of Protobuf, of which the second has the first, as protoc makes them of two files."""
    pool = descriptor_pool.Default()
    files = [f"{DIRECTORY}/{name}.proto" for name in ("airport", "leg")]
    airport, leg = (
        descriptor_pb2.FileDescriptorProto(name=name, package=f"p{DIRECTORY}", syntax="proto3") for name in files
    )
    airport.message_type.add(name="Airport").field.add(name="code", number=1, type=9, label=1)
    leg.dependency.extend([files[0], timestamp_pb2.DESCRIPTOR.name])
    fields = leg.message_type.add(name="Leg").field
    fields.add(name="to", number=1, type=11, label=1, type_name=f".p{DIRECTORY}.Airport")
    fields.add(name="at", number=2, type=11, label=1, type_name=".google.protobuf.Timestamp")
    for one in (airport, leg):
        pool.Add(one)
    first, second = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"p{DIRECTORY}.{name}"))
        for name in ("Airport", "Leg")
    )
    return first, second


Airport, Leg = messages()


# What is needed


def contracts() -> list[tuple[str, str, tuple[str, ...], bool]]:
    return [(one.contract.subject, one.contract.kind, one.uses, one.written) for one in needed()]


def test_what_settings_name_is_needed_once(settings: Settings) -> None:
    keys = {"key_serializer": "avro", "key_schema": '"string"'}
    off = {"enabled": False, "topics": {"never": {"serializer": "avro", "schema": AVRO}}}
    settings.KAFKA = {
        "brokers": [NOBODY],
        "topic_prefix": "stage.",
        "schema_registry": {"url": "http://localhost:1"},
        "producers": {
            "default": {
                "topic": "events",
                "serializer": "avro",
                "schema": AVRO,
                "topics": {
                    "gates": {"serializer": "jsonschema", "schema": JSON, "schema_options": {"subject": "record"}},
                    "bags": {"serializer": "protobuf", "schema": PROTOBUF, **keys},
                    "plain": {"serializer": "json"},
                },
            },
            "off": off,
        },
        "consumers": {
            "ops": {
                "group_id": "g",
                "topics": {
                    "events": {"handler": HANDLER, "serializer": "avro", "schema": AVRO},
                    "others": {"handler": HANDLER, "serializer": "avro", "schema": NEWER},
                    "whatever": {"handler": HANDLER, "serializer": "avro"},
                },
                "retry": {"mode": "topics", "max_retries": 1},
            },
        },
    }  # fmt: skip
    assert contracts() == [
        ("FlightLanded", "jsonschema", ("written by default",), True),
        ("stage.bags-key", "avro", ("written by default",), True),
        ("stage.bags-value", "protobuf", ("written by default",), True),
        ("stage.events-value", "avro", ("written by default", "read by ops"), True),
        ("stage.others-value", "avro", ("read by ops",), False),
    ]


def name_it(topic: str, part: str, record: str | None) -> str:
    if topic == "broken":
        raise LookupError("no such team")
    return f"team.{topic}.{part}.{record}"


@pytest.mark.parametrize(
    ("way", "schema", "subject"),
    [
        ("topic", AVRO, "flights-value"),
        ("record", AVRO, "flights.FlightLanded"),
        ("topic_record", AVRO, "flights-flights.FlightLanded"),
        (f"{__name__}.name_it", AVRO, "team.flights.value.flights.FlightLanded"),
        ("record", {**AVRO, "name": "other.Landed"}, "other.Landed"),
        ("record", {"type": "string"}, "string"),
        ("record", [AVRO, "null"], None),
    ],
)
def test_subjects_are_named_as_serializers_name_them(
    settings: Settings, way: str, schema: Any, subject: str | None
) -> None:
    use(settings, "http://localhost:1", {"flights": {"schema": schema, "schema_options": {"subject": way}}})
    assert [one.contract.subject for one in needed()] == ([] if subject is None else [subject])


def test_topics_that_only_code_names_are_known_where_the_record_gives_the_subject(settings: Settings) -> None:
    use(settings, "http://localhost:1", {})
    for way, found in (("record", ["flights.FlightLanded"]), ("topic", []), ("topic_record", [])):
        producer = {"serializer": "avro", "schema": AVRO, "schema_options": {"subject": way}}
        settings.KAFKA = {**settings.KAFKA, "producers": {"default": producer}}
        assert [one.contract.subject for one in needed()] == found


def test_what_cannot_be_read_is_said(settings: Settings) -> None:
    options = {"subject": f"{__name__}.name_it"}
    for topics, words in (
        ({"a": {"schema": "nowhere.avsc"}}, "nowhere.avsc"),
        ({"broken": {"schema": AVRO, "schema_options": options}}, "LookupError: no such team"),
    ):
        use(settings, "http://localhost:1", topics)
        with pytest.raises(ConfigurationError, match=words):
            needed()
        out, error, code = run()
        assert (out, words in error, code) == ("", True, 2)


def test_a_project_without_schemas_is_in_order(settings: Settings) -> None:
    settings.KAFKA = {"brokers": [NOBODY]}
    for word in ("check", "register", "diff"):
        assert run(word)[1:] == ("", 0)


# The command


def test_a_new_schema_is_missing_until_it_is_registered(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    use(settings, registry.url, {name: {"schema": AVRO}}, registry={"auto_register": False})

    out, error, code = run()
    assert out.splitlines()[1].split() == [
        "default",
        f"{name}-value",
        "written",
        "by",
        "default",
        "avro",
        "NONE",
        "missing",
    ]
    assert (error, code) == ("Of the schemas 1 is missing: see `python manage.py kafka_schemas diff`.", 1)
    assert "+ flight" in run("diff")[0]
    assert run("diff")[1:] == ("", 0)

    assert run("register", "--no-input")[1:] == ("", 0)
    assert told()[0] | {"rule": ""} == {
        "cluster": "default", "subject": f"{name}-value", "uses": ["written by default"], "schema": "avro", "rule": "",
        "state": "there", "well": True, "version": 1, "newest": 1, "why": "",
    }  # fmt: skip
    assert run("check") == (run()[0], "", 0)
    assert run("diff")[0] == "All schemas are the newest ones of their registries.\n"
    assert run("register")[0] == "The registries have all schemas.\n"
    codec = serializers.of_part(conf.producer(), conf.producer().topics[name], name, "value")
    assert isinstance(codec, Codec)
    assert codec.encode({"flight": "UA 1", "delay": 1}, name), "producers find what was registered"


def test_a_compatible_change_is_shown_and_registered(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    use(settings, registry.url, {name: {"schema": AVRO}})
    run("register", "--no-input")
    keep(registry, f"{name}-value", "BACKWARD")
    use(settings, registry.url, {name: {"schema": NEWER}})

    out, error, code = run()
    assert "BACKWARD  changed: version 1 is there, compatible" in out
    assert (error.startswith("Of the schemas 1 is changed"), code) == (True, 1)
    assert run("diff")[0].splitlines()[1:] == ['  + gate  string, default "?"']
    [one] = told("diff")
    assert one["differences"] == [{"sign": "+", "place": "gate", "text": 'string, default "?"'}]

    out, error, code = run("register", "--no-input")
    assert (out.splitlines()[-1], error, code) == (f"{name}-value: registered: version 2", "", 0)
    assert states() == {f"{name}-value": "there"}
    use(settings, registry.url, {name: {"schema": AVRO}})
    assert told()[0]["why"] == "2 is the newest"
    assert run()[2] == 0


def test_an_incompatible_change_is_refused_with_the_reason(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name, other = topic("flights"), topic("gates")
    use(settings, registry.url, {name: {"schema": AVRO}})
    run("register", "--no-input")
    keep(registry, f"{name}-value", "FULL")
    use(settings, registry.url, {name: {"schema": INCOMPATIBLE}, other: {"schema": JSON, "serializer": "jsonschema"}})

    out, error, code = run()
    assert "incompatible: version 1 is there; " in out
    assert "gate at /fields/3" in out
    assert ("1 is missing, 1 is incompatible" in error, code) == (True, 1)
    out, error, code = run("register", "--no-input")
    assert f"{other}-value: registered: version 1" in out
    assert (error, code) == ("Not registered: 1 schema.", 1)
    assert told()[0]["newest"] == 1


def test_a_schema_that_is_none_is_refused(registry: Registry, settings: Settings, topic: Callable[..., str]) -> None:
    name = topic("flights")
    use(settings, registry.url, {name: {"schema": {"type": "nonsense"}}})
    out, error, code = run("register", "--no-input")
    assert "refused: The schema registry at" in out
    assert (error, code) == ("Not registered: 1 schema.", 1)


@pytest.mark.parametrize("kind", ["jsonschema", "protobuf"])
def test_the_other_kinds_are_compared_as_well(
    registry: Registry, settings: Settings, topic: Callable[..., str], kind: str
) -> None:
    name = topic("flights")
    use(settings, registry.url, {name: {"serializer": kind, "schema": JSON if kind == "jsonschema" else PROTOBUF}})
    assert run("register", "--no-input")[1:] == ("", 0)
    assert states() == {f"{name}-value": "there"}
    newer = {**JSON, "properties": {**JSON["properties"], "gate": {"type": "string"}}}
    changed = newer if kind == "jsonschema" else f"{__name__}.Airport"
    use(settings, registry.url, {name: {"serializer": kind, "schema": changed}})
    out = run("diff")[0]
    assert ("+ gate  string" if kind == "jsonschema" else "+   string code = 1;") in out


def test_imports_of_protobuf_come_first(registry: Registry, settings: Settings, topic: Callable[..., str]) -> None:
    name = topic("legs")
    use(settings, registry.url, {name: {"serializer": "protobuf", "schema": f"{__name__}.Leg"}})
    airport = f"{DIRECTORY}/airport.proto"
    assert states() == {airport: "missing", f"{name}-value": "missing"}
    assert told()[0]["uses"] == [f"imported by {name}-value"]
    out = run("register", "--no-input")[0]
    assert out.splitlines()[-2:] == [f"{airport}: registered: version 1", f"{name}-value: registered: version 1"]
    assert states() == {airport: "there", f"{name}-value": "there"}
    codec = serializers.of_part(conf.producer(), conf.producer().topics[name], name, "value")
    assert isinstance(codec, Codec)
    assert codec.encode({"to": {"code": "EWR"}}, name), "the serializer finds both"


def referring(subject: str) -> dict[str, Any]:
    leg = {"type": "record", "name": "Leg", "fields": [{"name": "to", "type": "flights.Airport"}]}
    return {
        "text": json.dumps(leg),
        "references": [{"name": "flights.Airport", "subject": subject, "version": 1}],
    }


AIRPORT = {"type": "record", "name": "Airport", "namespace": "flights", "fields": [{"name": "code", "type": "string"}]}


def test_what_others_refer_to_comes_first(registry: Registry, settings: Settings, topic: Callable[..., str]) -> None:
    airport, leg = topic("z-airports"), topic("a-legs")
    use(settings, registry.url, {leg: {"schema": referring(f"{airport}-value")}, airport: {"schema": AIRPORT}})
    assert list(states()) == [f"{airport}-value", f"{leg}-value"]
    assert list(states(leg)) == [f"{airport}-value", f"{leg}-value"], "with what it refers to"
    assert list(states(airport)) == [f"{airport}-value"]
    assert run("register", leg, "--no-input")[1:] == ("", 0)
    assert set(states().values()) == {"there"}


def test_a_reference_to_what_is_not_there_is_said(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    leg, strange = topic("legs"), topic("airports")
    use(settings, registry.url, {leg: {"schema": referring(f"{strange}-value")}})
    for word in ("check", "register"):
        out, _error, code = run(word, "--no-input")
        assert (f"refers to version 1 of '{strange}-value', which is not there" in out, code) == (True, 1)


def test_schemas_that_refer_to_one_another_are_no_endless_loop(settings: Settings) -> None:
    use(settings, "http://localhost:1", {"a": {"schema": referring("b-value")}, "b": {"schema": referring("a-value")}})
    assert {one.contract.subject for one in needed()} == {"a-value", "b-value"}


def readers(name: str, schema: Any, **options: Any) -> dict[str, Any]:
    topics = {name: {"handler": HANDLER, "serializer": "avro", "schema": schema, "schema_options": options}}
    return {"producers": {}, "consumers": {"ops": {"group_id": "g", "topics": topics}}}


def test_what_readers_want_is_compared_and_never_registered(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    use(settings, registry.url, {}, **readers(name, AVRO))
    assert (states(), run()[2]) == ({f"{name}-value": "missing"}, 0)
    assert run("register", "--no-input")[2] == 0
    assert states() == {f"{name}-value": "missing"}

    use(settings, registry.url, {name: {"schema": AVRO}})
    run("register", "--no-input")
    keep(registry, f"{name}-value", "BACKWARD")
    use(settings, registry.url, {}, **readers(name, NEWER))
    assert (states(), run()[2]) == ({f"{name}-value": "changed"}, 0)
    use(settings, registry.url, {}, **readers(name, INCOMPATIBLE))
    assert (states(), run()[2]) == ({f"{name}-value": "incompatible"}, 1)
    keep(registry, f"{name}-value", "FORWARD")
    assert (states(), run()[2]) == ({f"{name}-value": "changed"}, 0)
    assert "says nothing of readers" in told()[0]["why"]


def test_whatever_is_the_newest_has_to_be_there(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    newest = {"schema_options": {"use_latest": True}}
    use(settings, registry.url, {name: newest})
    out, _error, code = run("register", "--no-input")
    assert ("somebody else has to register it" in out, code) == (True, 1)
    use(settings, registry.url, {name: {"schema": AVRO}})
    run("register", "--no-input")
    use(settings, registry.url, {name: newest})
    assert (states(), run()[2]) == ({f"{name}-value": "there"}, 0)


def test_a_normalized_schema_is_found_whatever_its_order(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    use(settings, registry.url, {name: {"schema": AVRO}})
    run("register", "--no-input")
    turned = {name: {"schema": dict(reversed(AVRO.items()))}}
    use(settings, registry.url, turned)
    assert states() == {f"{name}-value": "changed"}
    assert "changed: version 1 is there, not tested" in run()[0], "the rule is NONE"
    assert "only order, blanks" in run("diff")[0]
    use(settings, registry.url, turned, registry={"normalize": True})
    assert states() == {f"{name}-value": "there"}


# Names


def test_only_what_is_named_is_looked_at(registry: Registry, settings: Settings, topic: Callable[..., str]) -> None:
    name, other = topic("flights"), topic("gates")
    use(settings, registry.url, {name: {"schema": AVRO}, other: {"schema": AVRO}}, topic_prefix="stage.")
    for word in (name, f"stage.{name}", f"stage.{name}-value"):
        assert list(states(word)) == [f"stage.{name}-value"]
    assert len(states("default")) == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["check", "flighst"], "No schema of the project belongs to 'flighst'. Did you mean \"flights\"?"),
        (["flights-valu"], 'Did you mean "flights-value"?'),
        (["defalut"], 'Did you mean "default"?'),
        (["chek"], 'Of the words check, register, diff: Did you mean "check"?'),
        (["diff", "qqqq"], "There are: default, flights, flights-value."),
        (["check", "\x1b[31m"], "\\x1b[31m"),
    ],
)
def test_a_name_that_is_none_gives_the_nearest(settings: Settings, names: Sequence[str], words: str) -> None:
    use(settings, "http://localhost:1", {"flights": {"schema": AVRO}})
    out, error, code = run(*names)
    assert (out, words in error, code) == ("", True, 2), error


# Registries that do not answer, several of them, and logins


def test_a_registry_that_is_down_has_an_exit_code_of_its_own(
    front: Front, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    front.down()
    use(settings, front.url, {name: {"schema": AVRO}, f"{name}.b": {"schema": AVRO}}, connection={"timeout": "2s"})
    for word in ("check", "register", "diff"):
        out, error, code = run(word, "--no-input")
        assert (error.count(f"The schema registry at {front.url} cannot be reached"), code) == (1, 2)
        assert "unknown" in out
    assert {one["state"] for one in told()} == {"unknown"}
    front.up()
    assert run()[2] == 1, "it is asked again at once"


def test_a_wrong_login_is_said_without_the_password(
    front: Front, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    front.login = ("alice", "hunter2-of-alice")
    use(settings, front.url, {name: {"schema": AVRO}}, registry={"username": "alice", "password": "hunter2-wrong"})
    for word in ("check", "register", "diff"):
        out, error, code = run(word, "--no-input")
        assert ("refuses the login of 'alice'" in error, code) == (True, 2)
        assert "hunter2" not in out + error
    use(settings, front.url, {name: {"schema": AVRO}}, registry={"username": "alice", "password": "hunter2-of-alice"})
    assert run("register", "--no-input")[1:] == ("", 0)


def test_a_subject_that_is_forbidden_does_not_hide_the_others(
    front: Front, settings: Settings, topic: Callable[..., str]
) -> None:
    name, other = topic("flights"), topic("gates")
    front.forbidden = (f"subjects/{name}",)
    use(settings, front.url, {name: {"schema": AVRO}, other: {"schema": AVRO}})
    assert (states(), run()[2]) == ({f"{name}-value": "unknown", f"{other}-value": "missing"}, 2)
    front.forbidden = ("/config",)
    assert [(one["state"], one["rule"]) for one in told(name)] == [("missing", "")]


def test_each_cluster_has_its_own_registry(
    registry: Registry, front: Front, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    front.down()
    use(
        settings, registry.url, {},
        clusters={"eu": {"brokers": [NOBODY], "schema_registry": {"url": front.url, "timeout": "2s"}}},
        producers={
            "default": {"topics": {name: {"serializer": "avro", "schema": AVRO}}},
            "eu": {"cluster": "eu", "topics": {f"{name}.eu": {"serializer": "avro", "schema": AVRO}}},
        },
    )  # fmt: skip
    out, error, code = run("register", "--no-input")
    assert f"{name}-value: registered: version 1" in out
    assert ("cannot be reached" in error, code) == (True, 2)
    assert [(one["cluster"], one["state"]) for one in told()] == [("default", "there"), ("eu", "unknown")]


class _Older(Front):
    """A registry that tests against one version at a time, gives reasons as Confluent's, and has a rule for all."""

    def answer(self, path: str) -> tuple[int, bytes] | None:
        if path.startswith("/config/"):
            return 404, b'{"error_code":40408,"message":"no rule"}'
        if path == "/config":
            return 200, b'{"compatibilityLevel":"BACKWARD_TRANSITIVE"}'
        if "/compatibility/" in path and "/latest?" not in path:
            return 405, b'{"error_code":405,"message":"HTTP 405 Method Not Allowed"}'
        if "/compatibility/" in path:
            said = ["{errorType:'READER_FIELD_MISSING_DEFAULT_VALUE'}", "{oldSchemaVersion: 1}", "{oldSchema: '…'}"]
            return 200, json.dumps({"is_compatible": False, "messages": said}).encode()
        return None


def test_registries_of_other_makers_are_understood(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    with _Older(registry.url) as older:
        use(settings, older.url, {name: {"schema": AVRO}})
        run("register", "--no-input")
        use(settings, older.url, {name: {"schema": INCOMPATIBLE}})
        [one] = told()
    assert (one["state"], one["rule"]) == ("incompatible", "BACKWARD_TRANSITIVE")
    assert one["why"] == "{errorType:'READER_FIELD_MISSING_DEFAULT_VALUE'}"


# Asking


@pytest.mark.parametrize(("answer", "registered"), [("yes\n", True), ("no\n", False), ("", False)])
def test_it_asks_where_somebody_is_there(
    registry: Registry, settings: Settings, topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch, answer: str,
    registered: bool,
) -> None:  # fmt: skip
    from django_kafka.management.commands import kafka_schemas

    name = topic("flights")
    use(settings, registry.url, {name: {"schema": AVRO}})
    monkeypatch.setattr(kafka_schemas, "somebody_is_there", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    out, error, code = run("register")
    assert "missing" in out, "what it would do is shown before"
    assert (error, code) == (("", 0) if registered else ("Nothing was registered.", 1))
    assert states() == {f"{name}-value": "there" if registered else "missing"}


def test_what_was_registered_meanwhile_is_not_registered_again(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic("flights")
    use(settings, registry.url, {name: {"schema": AVRO}})
    wanted = needed()
    assert [one.state.value for one in schema_plans.look(wanted)] == ["missing"]
    assert [one.state.value for one in schema_plans.register(wanted)] == ["registered"]
    assert list(schema_plans.register(wanted)) == []


# The doctor


def test_the_doctor_has_a_line_about_it(front: Front, settings: Settings, topic: Callable[..., str]) -> None:
    name = topic("flights")
    use(settings, front.url, {name: {"schema": AVRO}})
    for auto, state in ((None, "warning"), (True, "note")):
        use(settings, front.url, {name: {"schema": AVRO}}, registry={"auto_register": auto})
        found = Told("--timeout", "30s").one("schemas")
        assert (found["state"], found["mend"]) == (state, f"python manage.py kafka_schemas register {name}-value")
    run("register", "--no-input")
    assert Told("--timeout", "30s").one("schemas")["state"] == "ok"


def test_schemas_in_files_are_found_below_the_project(
    registry: Registry, settings: Settings, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = topic("flights")
    (tmp_path / "landed.avsc").write_text(json.dumps(AVRO))
    settings.BASE_DIR = tmp_path
    use(settings, registry.url, {name: {"schema": "landed.avsc"}})
    assert run("register", "--no-input")[2] == 0
    assert states() == {f"{name}-value": "there"}
