"""The client of a schema registry: logins, certificates, outages, what it remembers, threads and forks."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from django_kafka import conf, serializers
from django_kafka.categories import Kind
from django_kafka.categories import of as nature_of
from django_kafka.clients import schema_registry
from django_kafka.clients.schema_registry import Codec
from django_kafka.clients.schema_registry.registry import MOST
from django_kafka.exceptions import (
    ConfigurationError,
    DecodeError,
    KafkaError,
    RegistryForbidden,
    RegistryLoginRefused,
    RegistryUnavailable,
    SchemaRefused,
    UnknownSchema,
)
from tests.registries import Front
from tests.registries.schemas import AVRO
from tests.secured.certificates import KEY_PASSWORD, Certificates
from tests.secured.provider import Provider
from tests.servers.processes import free_port
from tests.servers.registry import Registry

VALUE = {"flight": "UA 1545", "delay": 2, "at": 0}
TIMEOUT = 8.0


def use(settings: Settings, registry: dict[str, Any], **producer: Any) -> None:
    """Have one producer of Avro, and one consumer."""
    settings.KAFKA = {
        "connection": {"timeout": f"{TIMEOUT:g}s"},
        "schema_registry": {"auto_register": True, **registry},
        "producers": {"default": {"serializer": "avro", "schema": AVRO, **producer}},
        "consumers": {"ops": {"group_id": "g", "serializer": "avro", "topics": {"flights": {}}}},
    }


def writer(topic: str) -> Codec:
    found = serializers.of_part(conf.producer(), None, topic, "value")
    assert isinstance(found, Codec)
    return found


def reader(topic: str) -> Codec:
    found = serializers.of_part(conf.consumer(), None, topic, "value")
    assert isinstance(found, Codec)
    return found


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("registry-certificates"))


# Logins


LOGIN = ("alice", "hunter2-of-alice")


def test_a_registry_that_wants_a_name_and_a_password_gets_them(
    front: Front, settings: Settings, topic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.login = LOGIN
    (tmp_path / "password").write_text(f"{LOGIN[1]}\n")
    monkeypatch.setenv("REGISTRY_USER", LOGIN[0])
    for login in (
        {"username": LOGIN[0], "password": LOGIN[1]},
        {"username": {"env": "REGISTRY_USER"}, "password": {"file": tmp_path / "password"}},
        {"url": front.url.replace("//", "//alice:hunter2-of-alice@")},
    ):
        name = topic()
        use(settings, {"url": front.url, **login})
        assert reader(name).decode(writer(name).encode(VALUE, name), name)["flight"] == "UA 1545"


def test_a_registry_that_wants_a_token_gets_it(
    front: Front, settings: Settings, topic: Any, provider: Provider, tmp_path: Path
) -> None:
    name = topic()
    front.token = "static-token"
    (tmp_path / "token").write_text("static-token")
    for token in ("static-token", {"file": tmp_path / "token"}):
        use(settings, {"url": front.url, "token": token})
        writer(name).encode(VALUE, name)
    front.token = token_of_a_function()[0]
    use(settings, {"url": front.url, "oauth": {"function": f"{__name__}.token_of_a_function"}})
    writer(name).encode(VALUE, name)


def test_a_token_of_a_provider_is_fetched_once(
    front: Front, settings: Settings, topic: Any, provider: Provider
) -> None:
    oauth = {"token_url": provider.url, "client_id": "alice", "client_secret": "alice-client-secret"}
    use(settings, {"url": front.url, "oauth": oauth})
    front.any_token = True
    before = provider.asked
    for number in range(3):
        name = topic(f"t{number}")
        writer(name).encode(VALUE, name)
    assert provider.asked == before + 1
    assert front.tokens == {provider.given[-1]}
    use(settings, {"url": front.url, "oauth": {**oauth, "client_secret": "wrong-secret"}})
    with pytest.raises(RegistryLoginRefused, match=r"The provider of tokens .* refuses .*client_secret") as refused:
        writer(name).encode(VALUE, name)
    assert "wrong-secret" not in str(refused.value)


def token_of_a_function() -> tuple[str, float]:
    return "token-of-a-function", time.time() + 60


def test_a_wrong_login_is_refused_and_says_where_to_look(front: Front, settings: Settings, topic: Any) -> None:
    front.login = LOGIN
    name = topic()
    for wrong, words in (
        ({"username": "alice", "password": "hunter2-wrong"}, ["'alice'", '["username"] and ["password"]']),
        ({}, ["a client without login", 'Look at KAFKA["schema_registry"]']),
        ({"token": "hunter2-token"}, ["the bearer token", 'KAFKA["schema_registry"]["token"]']),
    ):
        use(settings, {"url": front.url, **wrong})
        with pytest.raises(RegistryLoginRefused) as refused:
            writer(name).encode(VALUE, name)
        said = str(refused.value)
        assert all(word in said for word in (front.url, f"subject '{name}-value'", "HTTP 401", *words)), said
        assert "hunter2" not in said
        assert refused.value.category == "authentication"
        assert nature_of(refused.value).kind is Kind.OUTAGE
    use(settings, {"url": front.url})
    with pytest.raises(RegistryLoginRefused, match="schema id 7"):
        reader(name).decode(b"\0\0\0\0\7abc", name)


def test_what_a_login_may_not_do_is_told_apart(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, {"url": front.url})
    front.forbidden = ("/versions",)
    with pytest.raises(
        RegistryForbidden, match=rf"refuses subject '{name}-value' to a client without login: HTTP 403"
    ) as no:
        writer(name).encode(VALUE, name)
    assert (no.value.category, nature_of(no.value).kind) == ("authorization", Kind.OUTAGE)
    front.forbidden = ("/schemas/ids",)
    use(settings, {"url": front.url})
    with pytest.raises(RegistryForbidden, match=r"schema id 1 .*not yours"):
        reader(name).decode(b"\0\0\0\0\1abc", name)


def test_a_password_that_is_replaced_is_read_again(
    front: Front, settings: Settings, topic: Any, tmp_path: Path
) -> None:
    kept = tmp_path / "password"
    kept.write_text("first-password")
    front.login = ("alice", "first-password")
    use(settings, {"url": front.url, "username": "alice", "password": {"file": kept}})
    first, second, third = topic("a"), topic("b"), topic("c")
    data = writer(first).encode(VALUE, first)
    front.login = ("alice", "second-password")
    with pytest.raises(RegistryLoginRefused):
        writer(second).encode(VALUE, second)
    kept.write_text("second-password")
    # At once, without the pause after what failed.
    writer(second).encode(VALUE, second)
    assert reader(third).decode(data, third)["delay"] == 2


# Certificates


def test_a_registry_with_tls_that_wants_a_certificate_gets_it(
    registry: Registry, settings: Settings, topic: Any, certificates: Certificates
) -> None:
    name = topic()
    with Front(registry.url, server=certificates.server, clients=certificates.ca.certificate) as front:
        ca = {"ca_file": certificates.ca.certificate}
        for tls in (
            {**ca, **certificates.client.tls},
            {**ca, **certificates.locked_client.tls, "key_password": KEY_PASSWORD},
            {"insecure_skip_verify": True, **certificates.client.tls},
        ):
            use(settings, {"url": front.url, "tls": tls})
            writer(name).encode(VALUE, name)
        for wrong in ({}, certificates.foreign_client.tls, certificates.expired_client.tls):
            use(settings, {"url": front.url, "tls": {**ca, **wrong}})
            with pytest.raises(
                RegistryLoginRefused, match=r'Look at KAFKA\["schema_registry"\]\["tls"\]\["cert_file"\]'
            ):
                writer(name).encode(VALUE, name)


def test_a_certificate_of_a_registry_that_is_not_trusted_says_why(
    registry: Registry, settings: Settings, topic: Any, certificates: Certificates
) -> None:
    name = topic()
    cases = (
        (certificates.expired, certificates.ca, "expired"),
        (certificates.elsewhere, certificates.ca, "ostname mismatch"),
        (certificates.server, certificates.other_ca, "certificate verify failed"),
    )
    for shown, trusted, word in cases:
        with Front(registry.url, server=shown) as front:
            use(settings, {"url": front.url, "tls": {"ca_file": trusted.certificate}})
            began = time.monotonic()
            with pytest.raises(RegistryLoginRefused) as refused:
                writer(name).encode(VALUE, name)
            assert time.monotonic() - began < TIMEOUT
            said = str(refused.value)
            assert all(each in said for each in (word, front.url, '["tls"]["ca_file"]', "is not trusted")), said


def test_files_that_are_no_certificates_are_errors_of_settings(
    front: Front, settings: Settings, topic: Any, certificates: Certificates, tmp_path: Path
) -> None:
    (tmp_path / "no").write_text("no certificate")
    name = topic()
    for tls in (
        {"ca_file": tmp_path / "no"},
        {"ca_file": tmp_path / "not-there"},
        {**certificates.locked_client.tls, "key_password": f"{KEY_PASSWORD}-not"},
        certificates.locked_client.tls,
    ):
        use(settings, {"url": front.url, "tls": tls})
        with pytest.raises(
            ConfigurationError, match=r'cannot be made: .*Look at KAFKA\["schema_registry"\]\["tls"\]'
        ) as no:
            writer(name).encode(VALUE, name)
        assert KEY_PASSWORD not in str(no.value)


def test_a_certificate_that_is_replaced_is_read_again(
    registry: Registry, settings: Settings, topic: Any, certificates: Certificates, tmp_path: Path
) -> None:
    cert, key = tmp_path / "client.crt", tmp_path / "client.key"
    cert.write_bytes(certificates.foreign_client.certificate.read_bytes())
    key.write_bytes(certificates.foreign_client.key.read_bytes())
    name = topic()
    with Front(registry.url, server=certificates.server, clients=certificates.ca.certificate) as front:
        tls = {"ca_file": certificates.ca.certificate, "cert_file": cert, "key_file": key}
        use(settings, {"url": front.url, "tls": tls})
        with pytest.raises(RegistryLoginRefused):
            writer(name).encode(VALUE, name)
        cert.write_bytes(certificates.client.certificate.read_bytes())
        # Half replaced: the old ones are used, and refused.
        with pytest.raises(RegistryLoginRefused):
            writer(name).encode(VALUE, name)
        key.write_bytes(certificates.client.key.read_bytes())
        writer(name).encode(VALUE, name)


# Outages


def test_a_registry_that_is_down_is_an_outage_and_not_asked_again_at_once(settings: Settings, topic: Any) -> None:
    name = topic()
    url = f"http://127.0.0.1:{free_port()}/apis"
    use(settings, {"url": url})
    with pytest.raises(RegistryUnavailable) as down:
        writer(name).encode(VALUE, name)
    said = str(down.value)
    assert all(word in said for word in (url, "cannot be reached", 'KAFKA["schema_registry"]["url"]')), said
    nature = nature_of(down.value)
    assert (nature.category, nature.kind) == ("outage", Kind.OUTAGE)
    assert nature.reason


@pytest.mark.parametrize(
    ("status", "body"), [(500, b""), (503, b"<html>"), (429, b'{"message":"slowly"}'), (404, b"<html>")]
)
def test_what_is_no_answer_of_a_registry_is_an_outage(
    front: Front, settings: Settings, topic: Any, status: int, body: bytes
) -> None:
    name = topic()
    use(settings, {"url": front.url})
    front.status, front.body = status, body
    with pytest.raises(RegistryUnavailable, match=f"HTTP {status}"):
        writer(name).encode(VALUE, name)
    with pytest.raises(RegistryUnavailable):
        reader(name).decode(b"\0\0\0\0\1abc", name)
    asked = len(front.asked)
    # In the pause nobody is asked.
    with pytest.raises(RegistryUnavailable, match=f"HTTP {status}"):
        reader(name).decode(b"\0\0\0\0\1abc", name)
    assert len(front.asked) == asked == 1
    front.status = None
    time.sleep(0.3)
    writer(name).encode(VALUE, name)


def test_a_page_instead_of_an_answer_is_no_poison(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, {"url": front.url})
    front.status, front.body = 200, b"<html>Welcome to the hotel</html>"
    with pytest.raises(RegistryUnavailable, match="does not answer as one"):
        reader(name).decode(b"\0\0\0\0\1abc", name)
    front.body = b'["strange"]'
    time.sleep(0.3)
    with pytest.raises(RegistryUnavailable, match="does not answer as one"):
        reader(name).decode(b"\0\0\0\0\1abc", name)


def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_the_timeout(
    front: Front, settings: Settings, topic: Any
) -> None:
    name = topic()
    use(settings, {"url": front.url, "timeout": "400ms"})
    front.delay = 5.0
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable, match="cannot be reached"):
        writer(name).encode(VALUE, name)
    assert time.monotonic() - began < 1.5


def test_the_second_address_answers_when_the_first_does_not(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, {"url": [f"http://127.0.0.1:{free_port()}/apis", front.url]})
    data = writer(name).encode(VALUE, name)
    assert reader(name).decode(data, name)["flight"] == "UA 1545"


# What it remembers


def test_what_is_known_is_asked_for_once_by_however_many_threads(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, {"url": front.url})
    writes, reads = writer(name), reader(name)
    results: list[Any] = []
    begin = threading.Barrier(20)

    def work() -> None:
        begin.wait()
        for _ in range(20):
            results.append(reads.decode(writes.encode(VALUE, name), name)["flight"])

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["UA 1545"] * 400
    assert [one.partition("?")[0] for one in front.asked if "versions" in one] == [
        f"POST /subjects/{name}-value/versions"
    ]
    assert len([one for one in front.asked if "/schemas/ids/" in one]) <= 1
    assert schema_registry.of() is schema_registry.of()


def test_an_unknown_id_is_poison_and_asked_for_once_in_a_while(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, {"url": front.url})
    reads = reader(name)
    for _ in range(5):
        with pytest.raises(UnknownSchema, match="has no schema id 2147483646") as unknown:
            reads.decode(b"\0\x7f\xff\xff\xfeabc", name)
        assert nature_of(unknown.value).kind is Kind.POISON
    assert len(front.asked) == 1


@pytest.mark.parametrize("number", [0, 2**31 - 1, 2**31, 2**32 - 1])
def test_an_id_that_is_no_number_for_the_registry_is_poison_too(
    registry: Registry, settings: Settings, topic: Any, number: int
) -> None:
    name = topic()
    use(settings, {"url": registry.url, "timeout": "8s"})
    with pytest.raises(UnknownSchema, match=f"has no schema id {number}"):
        reader(name).decode(b"\0" + number.to_bytes(4, "big") + b"abc", name)
    writer(name).encode(VALUE, name)


def test_a_globally_unique_id_that_old_registries_do_not_have_is_poison(
    registry: Registry, settings: Settings, topic: Any
) -> None:
    name = topic()
    use(settings, {"url": registry.url})
    with pytest.raises(UnknownSchema, match="has no schema guid 7878"):
        reader(name).decode(b"\1" + b"x" * 20, name)
    # And nobody has to wait because of it.
    writer(name).encode(VALUE, name)


def test_a_wrong_path_is_no_poison_for_globally_unique_ids_either(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, {"url": front.url.replace("/v7", "/nothing")})
    for data in (b"\1" + b"x" * 20, b"\0\0\0\0\1abc"):
        with pytest.raises(RegistryUnavailable, match=r'Look at the path in KAFKA\["schema_registry"\]\["url"\]'):
            reader(name).decode(data, name)


@pytest.mark.slow
def test_ten_thousand_schemas_are_not_remembered_for_ever(settings: Settings, topic: Any) -> None:
    name, count = topic(), 10 * MOST
    with Made() as front:
        use(settings, {"url": front.url})
        reads, most = reader(name), 0
        for number in range(1, count + 1):
            value = reads.decode(b"\0" + number.to_bytes(4, "big") + b"\6abc", name)
            assert value == {f"f{number}": "abc"}
            most = max(most, remembered(reads))
    assert most <= MOST + 1
    assert len(front.asked) == count


def remembered(reads: Codec) -> int:
    """Return how many schemas the library keeps for a codec."""
    client = reads._registry._client
    kept = 0 if client is None else sum(len(each) for each in client._cache.schema_id_index.values())
    parsed = 0 if reads._reader is None else len(reads._reader._parsed_schemas.parsed_schemas)
    return max(kept, parsed if client is not None else 0, len(reads._readers))


class Made(Front):
    """A registry that makes up a schema for each id."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1/apis")

    def answer(self, path: str) -> tuple[int, bytes] | None:
        number = int(path.rpartition("/")[2].partition("?")[0])
        schema = {"type": "record", "name": "R", "fields": [{"name": f"f{number}", "type": "string"}]}
        return 200, json.dumps({"schema": json.dumps(schema)}).encode()


def test_the_newest_schema_counts_as_such_for_a_while(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, {"url": front.url})
    writer(name).encode(VALUE, name)
    registry = {"url": front.url, "auto_register": None, "use_latest": True, "latest_for": "1s"}
    use(settings, registry, schema=None)
    newest = writer(name)
    newest.encode(VALUE, name)
    front.asked.clear()
    newest.encode(VALUE, name)
    assert front.asked == []
    time.sleep(1.1)
    newest.encode(VALUE, name)
    assert [one.partition("?")[0] for one in front.asked] == [f"GET /subjects/{name}-value/versions/latest"]
    # Down when it has to be asked again: an outage, and well afterwards.
    time.sleep(1.1)
    front.status = 503
    with pytest.raises(RegistryUnavailable):
        newest.encode(VALUE, name)
    front.status = None
    time.sleep(0.3)
    newest.encode(VALUE, name)


# Forks and settings


def test_a_forked_process_has_a_client_of_its_own_even_when_others_were_asking(
    front: Front, settings: Settings, topic: Any
) -> None:
    name, other = topic("a"), topic("b")
    use(settings, {"url": front.url})
    writes = writer(name)
    data = writes.encode(VALUE, name)
    made = schema_registry.of()._client
    front.delay = 0.6
    # Another thread is in the middle of asking, with the lock in its hand.
    asking = threading.Thread(target=writer(other).encode, args=(VALUE, other))
    asking.start()
    time.sleep(0.3)
    front.delay = 0.0
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            good = writes.encode(VALUE, name) == data and schema_registry.of()._client is not made
            os.write(write, b"good" if good else b"bad")
        except BaseException as error:  # noqa: BLE001
            os.write(write, repr(error).encode()[:500])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        assert told.read() == b"good"
    os.waitpid(child, 0)
    asking.join()
    assert schema_registry.of()._client is made
    assert writes.encode(VALUE, name) == data


def test_other_settings_have_another_client(front: Front, settings: Settings) -> None:
    use(settings, {"url": front.url})
    first = schema_registry.of()
    use(settings, {"url": front.url, "username": "other"})
    assert schema_registry.of() is not first
    settings.KAFKA = {}
    with pytest.raises(ConfigurationError, match="has no schema registry"):
        schema_registry.of()


# Schemas that are refused


def test_a_schema_that_is_not_registered_is_refused_unless_it_may_be(
    front: Front, settings: Settings, topic: Any
) -> None:
    name = topic()
    use(settings, {"url": front.url, "auto_register": None})
    settings.DEBUG = False
    with pytest.raises(
        SchemaRefused, match=rf"does not have this schema under the subject '{name}-value'.*auto_register"
    ):
        writer(name).encode(VALUE, name)
    assert not any("versions" in one for one in front.asked)
    settings.DEBUG = True
    data = writer(name).encode(VALUE, name)
    settings.DEBUG = False
    assert writer(name).encode(VALUE, name) == data
    assert nature_of(SchemaRefused("x")).kind is Kind.PERMANENT


def test_no_error_of_a_value_is_taken_for_one_of_the_registry(front: Front, settings: Settings, topic: Any) -> None:
    name = topic()
    use(settings, {"url": front.url})
    writes = writer(name)
    for _first_and_later in range(2):
        with pytest.raises(Exception, match=r"delay|flight") as unfit:
            serializers.encode(writes, {"flight": "UA", "delay": "late"}, name, "value")
        assert not isinstance(unfit.value, RegistryUnavailable)
        assert isinstance(unfit.value, KafkaError)
    with pytest.raises(DecodeError):
        reader(name).decode(writes.encode(VALUE, name)[:7], name)
