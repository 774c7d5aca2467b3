"""Logging in with Kerberos: runs where the client is built with GSSAPI, in the tox environment `gssapi`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import ResourceType

from django_kafka import services
from django_kafka.exceptions import AuthenticationFailed, AuthorizationFailed, DeliveryForbidden, LoginRefused
from django_kafka.monitoring import health, lag
from django_kafka.producers import producers
from tests.consuming import Seen, Workplace
from tests.doctoring import Told
from tests.secured import Certificates, Provider, SecuredKafka
from tests.secured.counting import counted
from tests.secured.journey import travel
from tests.secured.kerberos import REALM, Kdc
from tests.sending import took_less_than
from tests.servers.processes import wait_until

pytestmark = pytest.mark.gssapi


@pytest.fixture(scope="module")
def kdc() -> Iterator[Kdc]:
    """The realm, of which this process knows."""
    with pytest.MonkeyPatch.context() as patch, Kdc() as made:
        for name, value in made.env.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(autouse=True)
def _no_tickets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tickets of one test from the next: whoever has no own one would log in with those."""
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path / 'tickets'}")


@pytest.fixture(scope="module")
def secured(kdc: Kdc, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """The secured cluster, with the realm's logins on both of its listeners."""
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    with SecuredKafka(certificates, provider, kerberos=kdc) as made:
        yield made


def login(principal: str, keytab: Path) -> dict[str, Any]:
    return {"mechanism": "GSSAPI", "kerberos": {"principal": f"{principal}@{REALM}", "keytab": str(keytab)}}


def test_a_record_is_sent_handled_dead_lettered_and_replayed_with_a_keytab(
    place: Workplace, secured: SecuredKafka, kdc: Kdc
) -> None:
    travel(place, secured.settings("SAFE", login("alice", kdc.keytab("alice"))))


def test_a_ticket_that_is_in_the_cache_is_taken_where_there_is_no_keytab(
    place: Workplace, secured: SecuredKafka, kdc: Kdc
) -> None:
    subprocess.run(["kinit", "-k", "-t", kdc.keytab("alice"), f"alice@{REALM}"], check=True)
    travel(place, secured.settings("LOGIN", {"mechanism": "GSSAPI"}))


def wrong(what: str, kdc: Kdc, directory: Path) -> dict[str, Any]:
    """Return a login that has something wrong with it."""
    keytab = kdc.keytab("alice")
    match what:
        case "a keytab that is out of date":
            carol = f"carol-{directory.name}"
            old = kdc.keytab(carol)
            kdc.change_key(carol)
            return login(carol, old)
        case "the keytab of another":
            return login("bob", keytab)
        case "a keytab that is not there":
            return login("alice", directory / "no.keytab")
        case "no ticket":
            return {"mechanism": "GSSAPI", "kerberos": {"principal": f"alice@{REALM}"}}
        case _:
            kerberos = {**login("alice", keytab)["kerberos"], "service_name": "mail"}
            return {"mechanism": "GSSAPI", "kerberos": kerberos}


@pytest.mark.parametrize(
    "what",
    [
        "a keytab that is out of date",
        "the keytab of another",
        "a keytab that is not there",
        "no ticket",
        "a service that nobody has",
    ],
)
def test_what_is_refused_is_told_soon_to_who_sends_to_workers_and_to_health_and_the_doctor_with(
    place: Workplace, secured: SecuredKafka, kdc: Kdc, tmp_path: Path, what: str
) -> None:
    sasl = wrong(what, kdc, tmp_path)
    who, setting = sasl["kerberos"]["principal"], 'KAFKA["security"]["sasl"]["kerberos"]'
    kafka = secured.settings("LOGIN", sasl)
    said: list[str] = []
    with counted(kafka["brokers"][0]) as (address, came):
        place.consume(Seen(), kafka={**kafka, "brokers": [address]})
        began = time.monotonic()
        with took_less_than(10), pytest.raises(LoginRefused) as raised:
            services.produce("flights", "k", 1).result()
        said += [str(raised.value), *health.producer().problems]
        assert raised.value.category == "authentication"
        producers.close_all(0)
        with took_less_than(10):
            worker = place.start()
            wait_until(lambda: worker.error is not None)
            place.ended(worker)
        assert isinstance(worker.error, AuthenticationFailed)
        said.append(str(worker.error))
        lag.forget()
        said += health.broker().problems
        tries, seconds = len(came), time.monotonic() - began
    assert tries <= 6 + 3 * seconds  # by three clients, one after the other

    place.settings.KAFKA = {**place.settings.KAFKA, **kafka, "producers": {}}
    told = Told("--timeout", "5s")
    (found,) = [one for one in told.of("login") if one["state"] == "error"]
    assert told.code == 2
    assert found["mend"].startswith('Mend KAFKA["security"]')
    said.append(found["saw"])
    assert len(said) == 5
    for sentence in said:
        assert f"refuse the login of '{who}' (GSSAPI)" in sentence
        assert setting in sentence
    if what == "a keytab that is not there":
        assert any('["kerberos"]["keytab"]' in one["saw"] for one in told.of("settings", part="", state="error"))


def test_the_doctor_finds_nothing_wrong_with_a_good_keytab(place: Workplace, secured: SecuredKafka, kdc: Kdc) -> None:
    place.consume(Seen(), kafka={**secured.settings("SAFE", login("alice", kdc.keytab("alice"))), "producers": {}})
    told = Told("--timeout", "10s")
    assert told.wrong() == []
    assert "GSSAPI" in told.one("mechanism")["facts"]["offered"]
    assert [told.one(check)["state"] for check in ("login", "topics", "permissions")] == ["ok"] * 3


def test_what_is_forbidden_names_topic_group_and_principal(place: Workplace, secured: SecuredKafka, kdc: Kdc) -> None:
    place.consume(Seen(), kafka=secured.settings("LOGIN", login("bob", kdc.keytab("bob"))))
    who = f"'bob@{REALM}' (GSSAPI)"
    with took_less_than(10), pytest.raises(DeliveryForbidden) as raised:
        services.produce(place.topic, "k", 1).result()
    errors: list[BaseException | None] = [raised.value]
    for _lacking in ("group", "topic"):
        worker = place.start()
        wait_until(lambda worker=worker: worker.error is not None)  # type: ignore[misc]
        place.ended(worker)
        errors.append(worker.error)
        secured.allow("bob", ResourceType.GROUP, place.group)
    for error, what in zip(errors, (place.topic, place.group, place.topic), strict=True):
        assert isinstance(error, AuthorizationFailed)
        for word in (repr(what), who, 'KAFKA["security"]["sasl"]["kerberos"]'):
            assert word in str(error)
