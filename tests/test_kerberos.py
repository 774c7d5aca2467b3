"""Logging in with Kerberos: runs where the client is built with GSSAPI, in the tox environment `gssapi`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from django_kafka import services
from django_kafka.exceptions import LoginRefused
from tests.consuming import Workplace
from tests.secured import Certificates, Provider, SecuredKafka
from tests.secured.journey import travel
from tests.secured.kerberos import REALM, Kdc
from tests.sending import took_less_than

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


def test_a_keytab_that_is_out_of_date_is_refused_by_name(secured: SecuredKafka, kdc: Kdc, settings: Settings) -> None:
    keytab = kdc.keytab("carol")
    kdc.change_key("carol")
    settings.KAFKA = secured.settings("LOGIN", login("carol", keytab))
    with took_less_than(10), pytest.raises(LoginRefused) as raised:
        services.produce("flights", "k", 1).result()

    assert raised.value.category == "authentication"
    for word in (f"carol@{REALM}", 'KAFKA["security"]["sasl"]["kerberos"]'):
        assert word in str(raised.value)
