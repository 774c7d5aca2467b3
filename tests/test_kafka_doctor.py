"""The command kafka_doctor: what it says of a project that is well, and of each thing that is not."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, current_app
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django import Settings

from django_kafka.clients import embedded as embedding
from django_kafka.clients.embedded import Cluster, announced
from django_kafka.diagnosis import budget, clocks, workers
from django_kafka.diagnosis.findings import State, warning, well
from django_kafka.models import Worker
from tests.consuming import NAME, Seen, Workplace
from tests.databases import added, of_sqlite
from tests.desk import ROOT, Desk
from tests.doctoring import HANDLER, Told, consumers, doctor
from tests.sending import NOBODY, took_less_than
from tests.servers.processes import free_port, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

SOON = ("--timeout", "5s")


def use(settings: Settings, brokers: str, **more: Any) -> None:
    settings.KAFKA = {"brokers": brokers.split(","), "producers": {}, "connection": {"timeout": "5s"}, **more}


def worker(**fields: Any) -> Worker:
    now = timezone.now()
    row = {"id": "w", "consumer": "ops", "group_id": "group-flights", "host": "h", "pid": 1, "version": "0.1.0"}
    return Worker.objects.create(**{**row, "started_at": now, "seen_at": now, **fields})


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """Listen, and say this to whoever connects; None: nothing at all. Yields the address."""
    kept: list[socket.socket] = []

    def serve(server: socket.socket) -> None:
        while True:
            try:
                client, _address = server.accept()
            except OSError:
                return
            kept.append(client)
            if answer is not None:
                client.recv(65536)
                client.sendall(answer)
                client.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=[server])
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for client in kept:
        client.close()


# All is well


def test_all_is_well_with_a_worker_at_work(workplace: Workplace) -> None:
    workplace.consume(Seen())
    workplace.send([1, 2])
    with workplace.worker():
        worker(consumer=NAME, group_id=workplace.group)
        told = Told(*SOON)
        code, text = doctor(*SOON)

    assert (told.code, told.whole["state"], told.wrong()) == (0, "ok", [])
    assert told.states("cluster default") == {
        "brokers": "ok", "certificates": "not looked at", "registry": "not looked at", "dns": "ok", "tcp": "ok",
        "tls": "not looked at", "version": "ok", "mechanism": "not looked at", "login": "ok", "advertised": "ok",
        "topics": "ok", "permissions": "not looked at", "group": "not looked at", "clock": told.states()["clock"],
    }  # fmt: skip
    assert told.one("topics")["facts"] == {"topics": {workplace.topic: 1}}
    assert told.one("workers", "database")["facts"]["alive"] == 1
    assert told.one("migrations", "database")["state"] == "ok"
    assert code == 0
    assert "  ok            login: Brokers answer a client without login and certificate: cluster" in text
    assert "All is well: " in text.splitlines()[-1]


def test_the_embedded_cluster_is_found_and_said_to_be_for_development(
    settings: Settings, embedded: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "state_file", lambda: tmp_path / "state.json")
    use(settings, "embedded")
    told = Told()
    assert "no embedded cluster runs" in told.one("brokers", state="error")["saw"]
    assert "Start it" in told.one("brokers")["mend"]
    assert {one["saw"] for one in told.of("login")} == {"Because brokers failed."}
    with announced(embedded):
        told = Told(*SOON)
    assert told.one("brokers")["state"] == "note"
    assert (told.code, told.wrong()) == (0, [])


def test_looking_makes_nothing(settings: Settings, embedded: Cluster) -> None:
    use(settings, embedded.bootstrap_servers, consumers=consumers("flights"))
    for _ in range(2):
        told = Told(*SOON)
        assert told.one("topics")["saw"] == "There is no topic 'flights', read by ops."
        assert told.one("topics")["mend"] == "python manage.py kafka_topics --create flights"
        assert told.code == 2


# The way to the brokers


def broken(settings: Settings, brokers: str, *arguments: str, **more: Any) -> dict[str, Any]:
    """Return the one error about a cluster, after which nothing was looked at."""
    use(settings, brokers, **more)
    told = Told(*(arguments or SOON))
    assert told.code == 2
    (error,) = [one for one in told.checks if one["part"].startswith("cluster") and one["state"] == "error"]
    rest = told.checks[told.checks.index(error) + 1 :]
    of_cluster = [one for one in rest if one["part"].startswith("cluster")]
    assert {one["state"] for one in of_cluster} == {"not looked at"}
    assert {one["saw"] for one in of_cluster} >= {f"Because {error['check']} failed."}
    return error


def test_a_name_that_nobody_knows(settings: Settings) -> None:
    found = broken(settings, "no-such-host.invalid:9092")
    assert (found["check"], found["of"]) == ("dns", "no-such-host.invalid:9092")
    assert "The name 'no-such-host.invalid', which KAFKA[\"brokers\"] has, is not known here" in found["saw"]
    assert found["mend"] == 'Look at KAFKA["brokers"]. Or mend the DNS of this machine.'


def test_a_port_that_nobody_listens_on(settings: Settings) -> None:
    found = broken(settings, NOBODY)
    assert (found["check"], found["saw"]) == ("tcp", f"No connection to {NOBODY}: 127.0.0.1 (refused).")
    assert 'Look at KAFKA["brokers"].' in found["mend"]


@pytest.mark.parametrize("tls", [False, True])
def test_a_port_that_takes_connections_and_says_nothing(settings: Settings, tls: bool) -> None:
    with answering(None) as address, took_less_than(3):
        found = broken(settings, address, "--timeout", "2", security={"tls": {"enabled": tls}})
    assert found["check"] == ("tls" if tls else "version")
    assert "It takes connections and says nothing within" in found["saw"]
    assert 'Look at KAFKA["brokers"].' in found["mend"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "What answers there speaks HTTP."),
        (b"\x15\x03\x03\x00\x02\x02\x50", "What answers there speaks TLS, and settings have it off."),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "What answers there is no Kafka broker."),
        (b"\x00\x00\x00\x09\x00\x00\x00\x01\x00\x00\x7f\xff\xff", "What answers there is no Kafka broker."),
        (b"", "The connection is ended instead of an answer."),
    ],
)
def test_what_answers_and_is_no_broker(settings: Settings, answer: bytes, said: str) -> None:
    with answering(answer) as address:
        found = broken(settings, address)
    assert (found["check"], found["saw"]) == ("version", said)


def test_one_address_of_several_is_enough_and_the_others_are_warnings(settings: Settings, embedded: Cluster) -> None:
    use(settings, f"{NOBODY},{embedded.bootstrap_servers},no-such-host.invalid")
    told = Told(*SOON)
    assert told.code == 1
    assert told.wrong() == [("tcp", "warning"), ("dns", "warning")]
    assert "Another address answers" in told.one("tcp", state="warning")["saw"]
    assert told.one("login")["state"] == "ok"


def test_a_cluster_that_hangs_holds_up_no_other(settings: Settings, embedded: Cluster) -> None:
    with answering(None) as address:
        more = {"hung": {"brokers": [address], "connection": {"timeout": "2s"}}}
        use(settings, embedded.bootstrap_servers, clusters=more, connection={"timeout": "10s"})
        with took_less_than(3.5):
            told = Told()
    assert told.one("login", "cluster default")["state"] == "ok"
    assert told.one("version", "cluster hung")["state"] == "error"


def test_what_never_ends_is_not_waited_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer cannot be had here, and nothing else hangs where it cannot be ended."""
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments: released.wait(20))
    use(settings, "kafka.example:9092")
    with took_less_than(3):
        told = Told("--timeout", "1s")
    released.set()
    assert "There is no answer within" in told.one("dns", state="error")["saw"]


def test_what_raises_is_named_and_hides_nothing_else(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(clocks, "of_database", fail)
    monkeypatch.setattr("django_kafka.diagnosis.databases.Look._latency", fail)
    use(settings, NOBODY)
    told = Told(*SOON)
    assert told.one("latency", "database")["saw"] == "The check itself failed (RuntimeError)."
    assert told.one("migrations", "database")["state"] == "ok"
    assert "hunter2" not in told.text


def test_a_version_that_lacks_what_is_asked_for(settings: Settings) -> None:
    # What a broker of the time before zstd, idempotence and the new groups answers to ApiVersions 3 and then to 0.
    old = b"\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x23\x00\x00\x00\x00"
    also = b"\x00\x00\x00\x10\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x02"
    options = {"group.protocol": "consumer"}
    with answering(old + also) as address:
        use(settings, address, consumers=consumers("flights", options=options), producers={"default": {}})
        said = [one["saw"] for one in Told(*SOON).of("version", state="error")]
    assert said == [
        "Producer 'default' compresses with zstd, which brokers have since Kafka 2.1.",
        "Producer 'default' is idempotent, and this broker does not know that.",
        "Consumer 'ops' has group.protocol consumer, which brokers have since Kafka 4.0.",
    ]


# Settings


def test_settings_that_cannot_be_read_are_said_and_nothing_else_is_looked_at(settings: Settings) -> None:
    settings.KAFKA = {"brokers": [NOBODY], "nonsense": 1}
    told = Told()
    assert told.code == 2
    assert "KAFKA has no key 'nonsense'" in told.one("settings", "settings")["saw"]
    assert {one["state"] for one in told.checks if one["part"] != "settings"} == {"not looked at"}


def test_what_is_allowed_and_may_surprise_is_said(settings: Settings) -> None:
    ops = {"guarantee": "effect_once", "session_timeout": "6s", "heartbeat_interval": "3s"}
    other = {"lost": {"group_id": "l", "topics": ["t"], "guarantee": "at_most_once", "handler": HANDLER}}
    security = {"tls": {"enabled": True, "insecure_skip_verify": True}}
    use(settings, NOBODY, consumers={**consumers("flights", **ops), **other}, producers={"default": {"acks": "1"}},
        security=security, logging={"enable_sarama_logger": True})  # fmt: skip
    told = Told(*SOON)
    said = [(one["of"], one["state"], one["saw"]) for one in told.of("unsafe", "settings")]
    for of, state, words in (
        ("ops", "note", "has effect_once, and enable_auto_commit True"),
        ("ops", "warning", "has heartbeats every 3 s and a session of 6 s"),
        ("lost", "note", "has at_most_once"),
        ("default", "note", "has acks 1"),
        ("", "note", "enable_sarama_logger"),
    ):
        assert any((of, state) == one[:2] and words in one[2] for one in said), (words, said)
    assert 'insecure_skip_verify"] is True: whoever answers' in told.one("settings", "settings", "warning")["saw"]
    assert told.one("certificates")["state"] == "warning"


def test_a_secret_that_is_not_there_is_an_error_where_workers_run(settings: Settings, embedded: Cluster) -> None:
    sasl = {"enabled": True, "mechanism": "SCRAM-SHA-512", "username": "u", "password": {"env": "NO_SUCH"}}
    use(settings, NOBODY, security={"sasl": sasl})
    found = Told(*SOON).one("settings", "settings", "error")
    assert '["sasl"]["password"] cannot be read here. The environment variable NO_SUCH is empty' in found["saw"]


def test_a_registry_that_is_not_there_is_an_error_and_its_login_stays(settings: Settings) -> None:
    use(settings, NOBODY, schema_registry={"url": "https://user:hunter2@127.0.0.1:1"})
    # The library that asks registries is read first, which takes a busy machine seconds.
    told = Told("--timeout", "20s")
    found = told.one("registry", state="error")
    assert found["of"] == "https://127.0.0.1:1"
    assert "cannot be reached" in found["saw"]
    assert 'KAFKA["schema_registry"]["url"]' in found["mend"]
    assert "hunter2" not in told.text


# A part of it


def test_names_choose_clusters_and_consumers(settings: Settings, embedded: Cluster) -> None:
    embedded.create_topic("flights", 2)
    embedded.create_topic("orders", 2)
    more = {"audit": {"group_id": "a", "topics": {"orders": {"handler": HANDLER}}}}
    use(settings, embedded.bootstrap_servers, consumers={**consumers("flights"), **more},
        clusters={"eu": {"brokers": [NOBODY]}}, producers={"default": {"topic": "events"}})  # fmt: skip
    told = Told("audit", *SOON)
    assert {one["part"] for one in told.checks} == {"settings", "cluster default", "database default", "celery"}
    assert told.one("topics")["facts"] == {"topics": {"orders": 2}}
    assert [one["of"] for one in told.of("workers", "database")] == ["audit"]
    told = Told("eu", *SOON)
    assert {one["part"] for one in told.checks} >= {"cluster eu"}
    assert "cluster default" not in {one["part"] for one in told.checks}
    whole = Told("default", *SOON)
    assert [one["of"] for one in whole.of("topics", state="error")] == ["events"]


@pytest.mark.parametrize("name", ["nobody", "dark"])
def test_a_name_that_is_not_there_is_refused(settings: Settings, name: str) -> None:
    use(settings, NOBODY, consumers={"dark": {"enabled": False, "group_id": "g"}})
    said = "switched off" if name == "dark" else "KAFKA has no cluster or consumer 'nobody'; it has: default, dark."
    with pytest.raises(CommandError, match=said) as raised:
        call_command("kafka_doctor", name)
    assert raised.value.returncode == 2


@pytest.mark.parametrize("time_", ["0", "x", "-1s", "2h"])
def test_a_time_that_is_none_is_refused(settings: Settings, time_: str) -> None:
    use(settings, NOBODY)
    with pytest.raises(CommandError, match="is no time from 500ms to 1h"):
        call_command("kafka_doctor", f"--timeout={time_}")


def test_a_login_of_a_consumers_own_is_a_way_of_its_own(settings: Settings, embedded: Cluster) -> None:
    embedded.create_topic("flights", 2)
    more = {"far": {"group_id": "f", "topics": {"flights": {"handler": HANDLER}},
                    "options": {"broker.address.family": "v6"}}}  # fmt: skip
    use(settings, embedded.bootstrap_servers, consumers={**consumers("flights"), **more})
    told = Told(*SOON)
    assert [one["state"] for one in told.of("login")] == ["ok", "not looked at"]
    assert "with IPv6" in told.one("dns", "cluster default as consumer far")["saw"]


# Databases


def test_a_database_that_does_not_answer(settings: Settings, django_db_blocker: Any, embedded: Cluster) -> None:
    port = free_port()
    down = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": str(port), "NAME": "x",
            "USER": "u", "PASSWORD": "hunter2-of-the-database"}  # fmt: skip
    use(settings, NOBODY, consumers=consumers("flights", database="down"))
    with added("down", django_db_blocker, **down):
        told = Told(*SOON)
    found = told.one("connection", "database down")
    assert found["state"] == "error"
    assert "OperationalError" in found["saw"]
    assert str(port) in found["saw"]
    assert 'DATABASES["down"]' in found["mend"]
    assert told.one("latency", "database down")["saw"] == "Because connection failed."
    assert told.one("migrations", "database default")["state"] == "ok"
    assert "hunter2" not in told.text


def test_a_database_that_says_nothing_is_not_waited_for(settings: Settings, django_db_blocker: Any) -> None:
    use(settings, NOBODY, consumers=consumers("flights", database="silent"))
    with answering(None) as address, took_less_than(4):
        port = address.rpartition(":")[2]
        silent = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": port, "NAME": "x"}
        with added("silent", django_db_blocker, **silent):
            told = Told("--timeout", "1s")
    assert told.one("connection", "database silent")["saw"] == "There is no answer within 1 s."


def test_a_database_without_our_tables(settings: Settings, django_db_blocker: Any, tmp_path: Path) -> None:
    use(settings, NOBODY, dead_letters={"database": "bare"}, consumers=consumers("flights", database="bare"))
    with added("bare", django_db_blocker, **of_sqlite(tmp_path / "db")):
        told = Told(*SOON)
    found = told.one("migrations", "database bare")
    assert found["state"] == "error"
    assert "'bare' has no tables of django_kafka: not applied is contenttypes.0001_initial, " in found["saw"]
    assert "lynx_kafka.0001_initial" in found["saw"]
    assert found["mend"] == "python manage.py migrate lynx_kafka --database bare"
    assert told.one("workers", "database bare")["saw"] == "Because migrations failed."


@pytest.mark.postgresql
def test_the_clock_and_the_connections_of_a_server_are_looked_at(settings: Settings) -> None:
    use(settings, NOBODY, consumers=consumers("flights", concurrency=90, processes=90))
    told = Told(*SOON)
    assert told.one("clock", "database")["state"] == "ok"
    assert "agree within" in told.one("clock", "database")["saw"]
    assert told.one("connections", "database")["state"] == "warning"
    use(settings, NOBODY, consumers=consumers("flights"))
    found = Told(*SOON).one("connections", "database")
    assert found["state"] == "ok"
    assert found["facts"]["wanted"] >= 1


def test_a_clock_that_is_apart_is_a_warning() -> None:
    found = clocks.of_database("default", lambda: time.time() + 3600)
    assert (found.state, found.facts["seconds"] > 3590) == (State.WARNING, True)
    assert "60 minutes ahead of that of this machine" in found.saw
    assert clocks.of_database("default", lambda: time.time() - 60).saw.count("60 s behind") == 1
    assert clocks.of_database("default", time.time).state is State.WELL


def test_a_record_of_the_future_is_a_warning_and_nothing_else_is() -> None:
    now = time.time() * 1000
    found = clocks.of_records({("a", 0): int(now) - 50_000, ("b", 3): int(now) + 60_000}, asked=True)
    assert found.state is State.WARNING
    assert "A record in b[3] is from 60 s in the future" in found.saw
    assert clocks.of_records({("a", 0): int(now) - 86_400_000_0}, asked=True).state is State.WELL
    assert clocks.of_records({}, asked=True).state is State.UNSEEN


# Workers


def test_a_consumer_that_nobody_runs_is_a_warning(settings: Settings, embedded: Cluster) -> None:
    embedded.create_topic("flights", 1)
    use(settings, embedded.bootstrap_servers, consumers=consumers("flights"))
    told = Told(*SOON)
    assert told.code == 1
    found = told.one("workers", "database")
    assert (found["state"], found["mend"]) == ("warning", "python manage.py kafka_consume ops")
    worker(seen_at=timezone.now() - timedelta(hours=1))
    assert "1 ended without saying so" in Told(*SOON).one("workers", "database")["saw"]


def test_workers_that_wait_or_hang_or_have_an_open_circuit_are_warnings(settings: Settings) -> None:
    use(settings, NOBODY, consumers=consumers("flights"))
    hang = {"topic": "flights", "partition": 1, "offset": 7, "handler": "a.b", "seconds": 9.5, "limit": 5}
    worker(waiting=2, partitions=3, waits_for="the database is unavailable", hangs=[hang], version="0.0.9",
           circuit="open", circuit_reason="50 of the last 64 messages failed")  # fmt: skip
    said = " ".join(f"{one['state']} {one['saw']}" for one in Told(*SOON).of("workers", "database"))
    assert "warning The circuit of h:1 is open: 50 of the last 64 messages failed" in said
    assert "warning h:1 waits with 2 of 3 partitions: the database is unavailable." in said
    assert "warning h:1 is past the time limit of a.b on flights[1]@7, for 9.5 s." in said
    assert "note Workers run django_kafka 0.0.9" in said
    assert "ok 1 worker of 'ops' is alive" in said


def test_without_heartbeats_nobody_is_missed(settings: Settings) -> None:
    use(settings, NOBODY, consumers=consumers("flights"), heartbeats={"enabled": False})
    assert Told(*SOON).one("workers", "database")["state"] == "note"


def test_members_that_no_worker_accounts_for_are_strangers(settings: Settings) -> None:
    use(settings, NOBODY, consumers=consumers("flights"))
    members = [{"client_id": f"c{number}", "host": "10.0.0.9", "partitions": 1} for number in range(3)]
    group = well("group", "", of="ops", group="g", members=members)
    heard = well("workers", "", of="ops", alive=2, groups=[("default", "g")])
    ((part, found),) = workers.strangers([("cluster default", group), ("database default", heard)])
    assert (part, found.state) == ("cluster default", State.WARNING)
    assert "has 3 members (c0 at 10.0.0.9, c1 at 10.0.0.9, c2 at 10.0.0.9), and 2 workers are heard of" in found.saw
    enough = warning("workers", "", "", of="ops", alive=3, groups=[("default", "g")])
    assert not list(workers.strangers([("cluster default", group), ("database default", enough)]))


# Celery


@pytest.fixture
def celery() -> Iterator[Celery]:
    before = current_app._get_current_object()
    app = Celery("project", set_as_current=True)
    yield app
    app.close()
    before.set_current()


def test_a_broker_of_celery_that_does_not_answer(settings: Settings, celery: Celery) -> None:
    use(settings, NOBODY)
    assert Told(*SOON).one("celery", "celery")["state"] == "not looked at"
    celery.conf.broker_url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    told = Told(*SOON)
    found = told.one("celery", "celery")
    assert found["state"] == "error"
    assert "does not answer" in found["saw"]
    assert "hunter2" not in told.text
    celery.conf.broker_url = "memory://"
    assert Told(*SOON).one("celery", "celery")["state"] == "ok"


# How it is shown


def test_what_strangers_chose_is_not_obeyed_by_a_terminal(settings: Settings) -> None:
    use(settings, NOBODY, consumers=consumers("flights"))
    worker(host="\x1b[31mh", waiting=1, waits_for="\x1b[2J")
    assert "\x1b" not in doctor(*SOON)[1]


def test_on_a_terminal_it_is_drawn_and_its_exit_code_is_kept(tmp_path: Path) -> None:
    desk = Desk.on_sqlite(tmp_path)
    master, slave = pty.openpty()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "COLUMNS": "200", "TERM": "xterm",
           "DJANGO_SETTINGS_MODULE": "desk_settings"}  # fmt: skip
    command = [sys.executable, "-m", "django", "kafka_doctor", "--timeout", "2"]
    with os.fdopen(master, "rb", buffering=0) as terminal:
        done = subprocess.run(command, env=env, stdout=slave, stderr=slave, stdin=slave, check=False, timeout=60)
        shown = terminal.read(65536).decode()
        os.close(slave)
    desk.close()
    assert done.returncode == 2
    assert "✗" in shown
    assert "→ Nothing listens there" in shown
    assert "admin=default FAIL" not in shown, "the client's own log lines are not mixed in"


def test_what_is_late_is_told_apart_from_what_fails() -> None:
    gate = threading.Event()
    with pytest.raises(budget.Late):
        budget.within(budget.Budget(0.05), lambda: gate.wait(10))
    gate.set()
    with pytest.raises(ValueError, match="x"):
        budget.within(budget.Budget(5), lambda: int("x"))
    wait_until(lambda: not any(one.name == "kafka-doctor" for one in threading.enumerate()))
