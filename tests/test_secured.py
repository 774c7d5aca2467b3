"""Every login and certificate on a broker that demands them, and what happens when they change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_django import Settings

from django_kafka import services
from django_kafka.exceptions import LoginRefused
from django_kafka.producers import producers
from tests.consuming import Seen, Workplace
from tests.secured import PASSWORDS, Provider, SecuredKafka
from tests.secured.certificates import Pair
from tests.secured.journey import travel
from tests.secured.logins import WAYS, password
from tests.servers.processes import wait_until


@pytest.mark.parametrize("way", WAYS)
def test_a_record_is_sent_handled_dead_lettered_and_replayed_with(
    place: Workplace, secured: SecuredKafka, provider: Provider, way: str
) -> None:
    travel(place, WAYS[way](secured, provider))


# What changes while it runs


def test_a_password_that_is_mended_in_its_file_is_used_for_what_waits(
    secured: SecuredKafka, settings: Settings, topic: Callable[..., str], tmp_path: Path
) -> None:
    name, file = topic(), tmp_path / "password"
    secured.create_topic(name)
    file.write_text("hunter2\n")
    settings.KAFKA = secured.settings("SAFE", password("SCRAM-SHA-512", word={"file": str(file)}))
    delivery = services.produce(name, "k", 1)
    with pytest.raises(LoginRefused):
        delivery.result()
    file.write_text(f"{PASSWORDS['alice']}\n")

    wait_until(delivery.done)
    assert delivery.result().offset == 0


def replace(pair: Pair, certificate: Path, key: Path) -> None:
    certificate.write_bytes(pair.certificate.read_bytes())
    key.write_bytes(pair.key.read_bytes())


def test_a_certificate_that_is_replaced_takes_a_producer_to_a_new_client(
    secured: SecuredKafka,
    settings: Settings,
    topic: Callable[..., str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "django_kafka.client")
    name, certificate, key = topic(), tmp_path / "client.crt", tmp_path / "client.key"
    secured.create_topic(name)
    replace(secured.certificates.client, certificate, key)
    settings.KAFKA = secured.settings("MUTUAL", cert_file=str(certificate), key_file=str(key))
    assert services.produce(name, "k", 1).result(10).offset == 0
    # Only the certificate: with the key of another it cannot be used.
    certificate.write_bytes(secured.certificates.foreign_client.certificate.read_bytes())
    wait_until(lambda: "stays with what it has" in caplog.text)
    assert services.produce(name, "k", 2).result(10).offset == 1
    replace(secured.certificates.client, certificate, key)
    wait_until(lambda: "goes on with new certificates" in caplog.text)
    assert services.produce(name, "k", 3).result(10).offset == 2
    wait_until(lambda: not producers["default"].client._retired)


def test_a_certificate_that_is_replaced_takes_a_worker_out_of_its_group_and_back(
    place: Workplace, secured: SecuredKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "django_kafka.client")
    certificate, key = tmp_path / "client.crt", tmp_path / "client.key"
    replace(secured.certificates.client, certificate, key)
    seen = Seen()
    place.consume(seen, kafka=secured.settings("MUTUAL", cert_file=str(certificate), key_file=str(key)))
    place.send(range(100))
    with place.worker():
        seen.wait(100)
        replace(secured.certificates.issue("client"), certificate, key)
        wait_until(lambda: "to come back with new certificates" in caplog.text)
        place.send(range(100, 200))
        seen.wait(200)
    assert seen.values == list(range(200))
    assert place.committed() == {0: 200}
