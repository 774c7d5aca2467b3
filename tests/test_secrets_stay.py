"""No secret is in anything that is printed, whatever fails: pages, admin, kafka_doctor, logs as loud as can be."""

from __future__ import annotations

import base64
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client
from django.urls import path
from health_check.views import HealthCheckView
from pytest_django import Settings

from django_kafka import services
from django_kafka.consuming.crew import Crew
from django_kafka.dead_letters.stored import StoredMessage
from django_kafka.exceptions import ConfigurationError, KafkaError
from django_kafka.handlers import decoder_for
from django_kafka.messages import Message
from django_kafka.monitoring import probes
from tests.doctoring import consumers, doctor
from tests.letters import dead_letter
from tests.registries import Front
from tests.registries.schemas import AVRO
from tests.secured import PASSWORDS, Provider, SecuredKafka
from tests.secured.certificates import KEY_PASSWORD, Certificates
from tests.secured.logins import REFUSED, password
from tests.secured.provider import CLIENTS
from tests.sending import NOBODY
from tests.servers.processes import wait_until
from tests.urls import urlpatterns as others

pytestmark = pytest.mark.django_db(transaction=True)

REGISTRY = "of-the-registry".upper()
"""Not written as it is: Django's page shows the code around the view below."""


def send(_request: HttpRequest) -> HttpResponse:
    """Send a record, and let what is raised become Django's page about it."""
    services.produce("flights", "k", 1).result()
    return HttpResponse("sent")


def health(_request: HttpRequest) -> HttpResponse:
    """Tell how all is, as a page of health does."""
    return JsonResponse(asdict(services.get_health_status()), json_dumps_params={"default": str})


urlpatterns = [
    *others,
    path("send/", send),
    path("health/", health),
    path("checks/", HealthCheckView.as_view(checks=["django_kafka.health.Kafka", "django_kafka.health.Consumer"])),
]


def of_a_worker() -> list[str]:
    """Return what a worker process answers to those who watch it, and how it ends."""
    try:
        crew = Crew(["ops"])
        thread = threading.Thread(target=crew.run)
        thread.start()
        try:
            wait_until(lambda: crew.routes[probes.READY]().status == 503 or not thread.is_alive())
            said = [crew.routes[path]().body.decode() for path in (probes.READY, probes.LIVE, "/metrics")]
            assert said[0] != "ok\n"
        finally:
            crew.stop()
            thread.join(30)
    except ConfigurationError as error:
        return [with_locals(error)]
    return [
        *said,
        *(crew.routes[path]().body.decode() for path in (probes.READY, probes.LIVE)),
        with_locals(crew.error),
    ]


def with_locals(error: BaseException | None) -> str:
    """Return what pytest and rich print of it: the locals of every frame but those of tests."""
    if error is None:
        return ""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    for frame in told.stack:
        if "/tests/" in frame.filename:
            frame.locals = None
    return "".join(told.format())


def settings_that_fail(secured: SecuredKafka, provider: Provider, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Return settings by how they fail."""
    (tmp_path / "ca").write_text("no certificate")
    locked = secured.certificates.locked_client.tls
    wrong = REFUSED["a wrong SCRAM password"][0](secured, provider)
    return {
        "a wrong password": wrong,
        "a wrong client secret": REFUSED["a wrong client secret"][0](secured, provider),
        "an unreadable key": secured.settings("MUTUAL", **locked, key_password=f"{KEY_PASSWORD}-not"),
        "a bad authority": secured.settings("SAFE", password("PLAIN"), ca_file=str(tmp_path / "ca")),
        "wrong settings": {**wrong, "nonsense": 1},
    }


@pytest.mark.parametrize(
    "what", ["a wrong password", "a wrong client secret", "an unreadable key", "a bad authority", "wrong settings"]
)
def test_nothing_that_is_printed_has_a_secret_in_it_with(
    secured: SecuredKafka,
    provider: Provider,
    settings: Settings,
    tmp_path: Path,
    admin_client: Client,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    caplog.set_level("DEBUG")
    settings.DEBUG = True
    settings.ROOT_URLCONF = __name__
    registry = {"url": "https://registry", "username": "u", "password": REGISTRY}
    loud = {"level": "DEBUG", "enable_sarama_logger": True}
    more = {"logging": loud, "schema_registry": registry, "consumers": consumers("flights")}
    settings.KAFKA = {**settings_that_fail(secured, provider, tmp_path)[what], **more}

    admin_client.raise_request_exception = False
    page = admin_client.get("/send/")
    plain = admin_client.get("/send/", headers={"accept": "text/plain"})
    assert (page.status_code, plain.status_code) == (500, 500)
    said = [page.content.decode(), plain.content.decode()]
    assert "Request Method" in said[0]
    for name in ("deadletter", "worker", "replay"):
        said.append(admin_client.get(f"/admin/lynx_kafka/{name}/").content.decode())
    said.append(admin_client.get("/health/").content.decode())
    for kind in ("text/html", "application/json", "text/plain", "application/rss+xml"):
        answer = admin_client.get("/checks/", headers={"accept": kind})
        assert answer.headers["content-type"].startswith(kind)
        assert (answer.status_code == 500) == (not kind.endswith("xml"))
        said.append(answer.content.decode())
    said += of_a_worker()
    try:
        services.produce("flights", "k", 1).result()
    except Exception as error:  # noqa: BLE001  # whatever it is
        said.append(with_locals(error))
    for arguments in ([], ["--json"]):
        code, text = doctor("--timeout", "5s", *arguments)
        assert code == 2
        said.append(text)
    said.append(caplog.text)

    secrets = ["hunter2", *PASSWORDS.values(), KEY_PASSWORD, REGISTRY, *provider.given]
    assert [(secret, number) for number, text in enumerate(said) for secret in secrets if secret in text] == []


def registries_that_fail(front: Front, provider: Provider, certificates: Certificates) -> dict[str, dict[str, Any]]:
    """Return `schema_registry` by how it fails."""
    front.login = ("alice", f"right-{REGISTRY}")
    oauth = {"token_url": provider.url, "client_id": "alice"}
    locked = certificates.locked_client.tls
    return {
        "a wrong password": {"username": "alice", "password": REGISTRY},
        "a wrong token": {"token": REGISTRY},
        "a wrong client secret": {"oauth": {**oauth, "client_secret": REGISTRY}},
        "a token that is refused": {"oauth": {**oauth, "client_secret": CLIENTS["alice"]}},
        "a key that does not open": {"tls": {**locked, "key_password": f"{KEY_PASSWORD}-not"}},
        "an answer of another": {"username": "alice", "password": REGISTRY, "url": f"{front.url}/nothing"},
    }


@pytest.mark.parametrize(
    "what",
    [
        "a wrong password", "a wrong token", "a wrong client secret",
        "a token that is refused", "a key that does not open", "an answer of another",
    ],
)  # fmt: skip
def test_nothing_that_is_printed_has_a_secret_of_the_registry_in_it_with(
    front: Front,
    provider: Provider,
    settings: Settings,
    tmp_path: Path,
    admin_client: Client,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    caplog.set_level("DEBUG")
    settings.DEBUG = True
    settings.ROOT_URLCONF = __name__
    registry = registries_that_fail(front, provider, Certificates(tmp_path))[what]
    settings.KAFKA = {
        "brokers": [NOBODY],
        "connection": {"timeout": "4s"},
        "schema_registry": {"url": front.url, **registry},
        "producers": {"default": {"serializer": "avro", "schema": AVRO}},
        "consumers": {"ops": {"group_id": "g", "serializer": "avro", "topics": {"flights": {}}}},
    }
    if what == "an answer of another":
        # It echoes what it was shown.
        front.login = None
        front.status, front.body = 403, f'{{"error_code":1,"message":"no {REGISTRY} here"}}'.encode()
    admin_client.raise_request_exception = False
    said = [
        admin_client.get("/send/", headers={"accept": kind}).content.decode() for kind in ("text/html", "text/plain")
    ]
    assert "Request Method" in said[0]
    assert "schema registry" in said[0]
    letter = dead_letter(b"\0\0\0\0\1abc")
    said.append(admin_client.get(f"/admin/lynx_kafka/deadletter/{letter.pk}/change/").content.decode())
    assert "schema registry" in said[-1]
    said.append(admin_client.get("/health/").content.decode())
    said.append(admin_client.get("/checks/").content.decode())
    for action in (
        lambda: services.produce("flights", "k", {"flight": "UA", "delay": 1}),
        lambda: decoder_for("ops", "flights").value(Message(StoredMessage(letter), decoder_for("ops", "flights"))),
    ):
        with pytest.raises(KafkaError) as raised:
            action()
        said.append(with_locals(raised.value))
        said.append("".join(traceback.format_exception(raised.value)))
    for arguments in ([], ["--json"]):
        said.append(doctor("--timeout", "2s", *arguments)[1])
    said.append(caplog.text)
    secrets = [REGISTRY, KEY_PASSWORD, *CLIENTS.values(), *provider.given]
    basic = [base64.b64encode(f"alice:{each}".encode()).decode() for each in (*secrets, f"right-{REGISTRY}")]
    assert [(each, number) for number, text in enumerate(said) for each in (*secrets, *basic) if each in text] == []
