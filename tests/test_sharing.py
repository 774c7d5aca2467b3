"""The client that all of a process ask a cluster with: one for each cluster, in each process, with the login of now."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pytest_django import Settings

from django_kafka import conf
from django_kafka.clients import sharing
from django_kafka.clients.admin import TopicAdmin
from django_kafka.clients.asking import AskingClient
from django_kafka.clients.embedded import Cluster
from django_kafka.clients.groups import GroupAdmin
from tests.secured.certificates import Certificates
from tests.sending import NOBODY, ROOT, took_less_than
from tests.servers.processes import wait_until


@pytest.fixture
def clusters(embedded: Cluster, settings: Settings) -> None:
    embedded.create_topic("flights", 2)
    settings.KAFKA = {
        "brokers": embedded.bootstrap_servers.split(","),
        "connection": {"timeout": "1s"},
        "clusters": {"eu": {"brokers": [NOBODY]}},
        "consumers": {
            "ops": {"group_id": "ops"},
            "audit": {"group_id": "audit"},
            "apart": {"group_id": "apart", "options": {"client.id": "apart"}},
            "far": {"group_id": "far", "cluster": "eu"},
        },
    }


def asking(name: str) -> AskingClient:
    consumer = conf.consumer(name)
    return GroupAdmin(consumer, consumer.group_id, 1.0)._asking


def test_all_who_ask_a_cluster_share_one_client(clusters: None) -> None:
    shared = TopicAdmin(conf.cluster(), 1.0)._asking
    assert asking("ops") is asking("audit") is shared
    assert asking("ops").now is shared.now
    assert asking("far") is not shared
    assert asking("apart") is asking("apart") is not shared, "Its own options lead to the brokers in another way."


def test_threads_that_ask_first_at_a_time_make_one(clusters: None) -> None:
    found: list[AskingClient] = []
    begin = threading.Barrier(8)

    def ask() -> None:
        begin.wait()
        found.append(sharing.asking_client(conf.cluster()))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_new_settings_make_a_new_one_and_who_holds_the_old_one_goes_on(clusters: None, settings: Settings) -> None:
    admin = TopicAdmin(conf.cluster(), 5.0)
    settings.KAFKA = {**settings.KAFKA}
    assert TopicAdmin(conf.cluster(), 5.0)._asking is not admin._asking
    assert admin.layouts()["flights"].partitions == 2


def test_the_embedded_cluster_is_asked_where_it_is_now(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django_kafka.clients import embedded

    monkeypatch.setattr(embedded, "state_file", lambda: tmp_path / "state.json")
    settings.KAFKA = {"brokers": "embedded", "connection": {"timeout": "5s"}}
    for name in ("first", "second"):
        with Cluster() as cluster, embedded.announced(cluster):
            cluster.create_topic(name, 1)
            assert name in TopicAdmin(conf.cluster(), 5.0).layouts()


def test_a_certificate_that_is_replaced_takes_all_to_a_new_client(settings: Settings, tmp_path: Path) -> None:
    certificates, file = Certificates(tmp_path), tmp_path / "trusted.pem"
    file.write_bytes(certificates.ca.certificate.read_bytes())
    settings.KAFKA = {"brokers": [NOBODY], "security": {"tls": {"enabled": True, "ca_file": str(file)}}}
    first, second = (sharing.asking_client(conf.cluster()) for _ in range(2))
    before = first.now
    file.write_bytes(certificates.other_ca.certificate.read_bytes())
    wait_until(lambda: second.now is not before)
    assert first.now is second.now


def test_a_forked_child_asks_with_a_client_of_its_own_and_ends_soon(clusters: None) -> None:
    admin = TopicAdmin(conf.cluster(), 5.0)
    inherited = admin._asking.now
    assert admin.layouts()["flights"].partitions == 2
    began = time.monotonic()
    child = os.fork()
    if not child:
        own = -1
        try:
            own = 0 if admin.layouts()["flights"].partitions == 2 and admin._asking.now is not inherited else 1
        finally:
            os._exit(own)
    _pid, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert time.monotonic() - began < 5
    assert admin._asking.now is inherited
    assert admin.layouts()["flights"].partitions == 2


def test_a_process_ends_soon_whether_brokers_are_there_or_not() -> None:
    code = (
        "import django; from django.conf import settings; settings.configure(KAFKA={'brokers': ['127.0.0.1:1']},"
        " INSTALLED_APPS=['django_kafka']); django.setup(); from django_kafka import conf;"
        " from django_kafka.clients import sharing; sharing.asking_client(conf.cluster()).now; print('asked')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    with took_less_than(10):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "asked\n"), done.stderr
