from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from pytest_django import Settings

from django_kafka.clients import embedded as embedded_cluster
from django_kafka.clients import librdkafka
from django_kafka.clients.embedded import Cluster, Request
from django_kafka.exceptions import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent


def producer(cluster: Cluster, **options: object) -> Producer:
    quick = {"retry.backoff.ms": 10, "reconnect.backoff.max.ms": 100, "log_level": 0}
    return Producer({"bootstrap.servers": cluster.bootstrap_servers, **quick, **options})


def send(client: Producer, topic: str, value: bytes = b"x") -> list[object]:
    """Produce, and return a list that gets the error or the offset when there is one."""
    outcome: list[object] = []
    client.produce(topic, value, on_delivery=lambda error, message: outcome.append(error or message.offset()))
    return outcome


def partitions(cluster: Cluster, topic: str) -> int:
    return len(producer(cluster).list_topics(topic, timeout=10).topics[topic].partitions)


@pytest.fixture
def project(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """The folder of a project of its own, with no embedded cluster."""
    settings.BASE_DIR = tmp_path
    yield tmp_path
    embedded_cluster.state_file().unlink(missing_ok=True)


def announce_by_hand(**changes: object) -> Path:
    path = embedded_cluster.state_file()
    broker = {"pid": os.getpid(), "bootstrap_servers": "127.0.0.1:1", "started": 0.0} | changes
    path.touch(mode=0o600)
    path.write_text(json.dumps(broker))
    return path


def test_the_library_is_loaded_once() -> None:
    assert librdkafka.load() is librdkafka.load()


def test_a_library_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    librdkafka.load.cache_clear()
    monkeypatch.setattr(librdkafka, "_candidates", lambda: iter(["/no/librdkafka.so"]))
    with pytest.raises(
        ConfigurationError, match=r"looked in: /no/librdkafka\.so\. Install confluent-kafka from its wheel"
    ):
        librdkafka.load()
    librdkafka.load.cache_clear()


def test_another_process_reads_what_this_one_sent(embedded: Cluster, topic: Callable[..., str]) -> None:
    name = topic()
    client = producer(embedded)
    outcome = send(client, name, b"hello")
    client.flush(10)
    assert outcome == [0]
    program = (
        "import sys, confluent_kafka as k\n"
        "c = k.Consumer({'bootstrap.servers': sys.argv[1], 'group.id': 'g', 'auto.offset.reset': 'earliest'})\n"
        "c.subscribe([sys.argv[2]])\n"
        "print(c.poll(20).value().decode())\n"
        "c.close()\n"
    )
    command = [sys.executable, "-c", program, embedded.bootstrap_servers, name]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "hello"


def test_a_topic_has_the_partitions_it_was_created_with(topic: Callable[..., str]) -> None:
    with Cluster(partitions=2) as cluster:
        named, counted, unheard = topic("named"), topic("counted"), topic("unheard")
        cluster.create_topic(named)
        cluster.create_topic(counted, partitions=7)
        assert [partitions(cluster, name) for name in (named, counted)] == [2, 7]
        assert partitions(cluster, unheard) == embedded_cluster.DEFAULT_PARTITIONS


def test_a_topic_is_created_only_once(embedded: Cluster, topic: Callable[..., str]) -> None:
    name = topic()
    embedded.create_topic(name)
    with pytest.raises(ConfigurationError, match=r"could not create topic .*: Broker: Topic already exists"):
        embedded.create_topic(name)


def test_a_new_group_gets_its_partitions_at_once(embedded: Cluster, topic: Callable[..., str]) -> None:
    name = topic()
    embedded.create_topic(name, 1)
    client = producer(embedded)
    send(client, name)
    client.flush(10)
    consumer = Consumer(
        {"bootstrap.servers": embedded.bootstrap_servers, "group.id": name, "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([name])
    began = time.monotonic()
    message = consumer.poll(10)
    assert message is not None
    assert message.error() is None
    assert time.monotonic() - began < 3, "It did not wait for others, for as long as it does by itself."
    consumer.close()


def test_old_messages_are_deleted_beyond_what_it_keeps(embedded: Cluster, topic: Callable[..., str]) -> None:
    name = topic()
    embedded.create_topic(name, 1)
    client = producer(embedded)
    for _ in range(8):
        send(client, name, bytes(900_000))
        client.flush(10)
    consumer = Consumer({"bootstrap.servers": embedded.bootstrap_servers, "group.id": name})
    low, high = consumer.get_watermark_offsets(TopicPartition(name, 0), timeout=10)
    consumer.close()
    assert (low, high) == (3, 8)
    assert 5 * 900_000 < embedded_cluster.KEPT_BYTES < 6 * 900_000


def test_pushed_errors_meet_the_next_requests_only(embedded: Cluster, topic: Callable[..., str]) -> None:
    name = topic()
    embedded.create_topic(name, 1)
    client = producer(embedded)
    embedded.push_errors(Request.PRODUCE, "NOT_ENOUGH_REPLICAS", "MSG_SIZE_TOO_LARGE")
    refused = send(client, name)
    client.flush(10)
    taken = send(client, name)
    client.flush(10)
    assert refused[0].code() == 10  # type: ignore[attr-defined]
    assert taken == [0]


def test_errors_that_were_not_met_can_be_taken_back(embedded: Cluster, topic: Callable[..., str]) -> None:
    name = topic()
    embedded.create_topic(name, 1)
    client = producer(embedded)
    embedded.push_errors(Request.PRODUCE, "MSG_SIZE_TOO_LARGE")
    embedded.clear_errors(Request.PRODUCE)
    outcome = send(client, name)
    client.flush(10)
    assert outcome == [0]


def test_an_error_that_kafka_does_not_have_is_refused_by_name(embedded: Cluster) -> None:
    with pytest.raises(ConfigurationError, match="no error 'NOT_ENOUGH_COFFEE'"):
        embedded.push_errors(Request.PRODUCE, "NOT_ENOUGH_COFFEE")


def test_records_wait_while_the_broker_is_down_and_arrive_when_it_is_up(
    embedded: Cluster, topic: Callable[..., str]
) -> None:
    name = topic()
    embedded.create_topic(name, 1)
    client = producer(embedded)
    embedded.broker_down()
    outcome = send(client, name)
    assert client.flush(0.5) == 1
    embedded.broker_up()
    assert client.flush(10) == 0
    assert outcome == [0]


def test_a_broker_that_it_does_not_have_is_refused(embedded: Cluster) -> None:
    with pytest.raises(ConfigurationError, match="could not take broker 7 down"):
        embedded.broker_down(7)


def test_a_round_trip_takes_as_long_as_ordered(embedded: Cluster, topic: Callable[..., str]) -> None:
    name = topic()
    embedded.create_topic(name, 1)
    client = producer(embedded)
    send(client, name)
    client.flush(10)
    embedded.round_trip_time(1, 300)
    began = time.monotonic()
    send(client, name)
    client.flush(10)
    assert 0.25 < time.monotonic() - began < 5


def test_leadership_moves_between_brokers(topic: Callable[..., str]) -> None:
    with Cluster(brokers=2, partitions=1) as cluster:
        name = topic()
        cluster.create_topic(name)
        assert len(cluster.bootstrap_servers.split(",")) == 2
        for broker in (2, 1):
            cluster.partition_leader(name, 0, broker)
            assert producer(cluster).list_topics(name, timeout=10).topics[name].partitions[0].leader == broker


def test_a_cluster_that_stopped_is_gone_and_may_start_again() -> None:
    cluster = Cluster()
    with pytest.raises(ConfigurationError, match="not running"):
        cluster.create_topic("flights")
    with cluster:
        address = cluster.bootstrap_servers
        with pytest.raises(ConfigurationError, match="runs already"):
            cluster.start()
    with pytest.raises(ConfigurationError, match="not running"):
        _ = cluster.bootstrap_servers
    with pytest.raises(KafkaException):
        Producer({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=0.5)
    with cluster:
        assert partitions(cluster, "flights") == embedded_cluster.DEFAULT_PARTITIONS
    cluster.stop()


def test_a_cluster_has_at_least_one_of_everything() -> None:
    with pytest.raises(ConfigurationError, match="not 0 and 4"):
        Cluster(brokers=0)
    with pytest.raises(ConfigurationError, match="not 1 and 0"):
        Cluster(partitions=0)


def test_a_forked_child_neither_steers_nor_stops_the_cluster(embedded: Cluster, topic: Callable[..., str]) -> None:
    name = topic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            embedded.create_topic(name)
        except ConfigurationError:
            code = 0
        embedded.stop()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    embedded.create_topic(name, 3)
    assert partitions(embedded, name) == 3


def test_without_a_running_one_the_error_names_the_command(project: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"python manage\.py kafka_broker") as caught:
        embedded_cluster.find()
    assert str(project) in str(caught.value)


def test_an_announced_cluster_is_found_by_its_own_project_only(
    embedded: Cluster, project: Path, settings: Settings
) -> None:
    with embedded_cluster.announced(embedded) as path:
        assert embedded_cluster.find() == embedded.bootstrap_servers
        assert path.stat().st_mode & 0o777 == 0o600
        settings.BASE_DIR = project / "another"
        with pytest.raises(ConfigurationError):
            embedded_cluster.find()
        settings.BASE_DIR = project
    assert not path.exists()
    assert embedded_cluster.running() is None


def test_a_project_without_a_base_dir_is_known_by_its_working_directory(
    embedded: Cluster, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings.BASE_DIR = None
    with embedded_cluster.announced(embedded):
        settings.BASE_DIR = tmp_path
        assert embedded_cluster.find() == embedded.bootstrap_servers


@pytest.mark.usefixtures("project")
def test_a_second_cluster_for_one_project_is_refused_and_names_the_first(embedded: Cluster) -> None:
    with (
        embedded_cluster.announced(embedded),
        pytest.raises(ConfigurationError, match=rf"process {os.getpid()} at {embedded.bootstrap_servers}"),
        embedded_cluster.announced(embedded),
    ):
        pass


@pytest.mark.usefixtures("project")
def test_the_state_file_of_a_dead_process_is_not_believed_and_gives_way(embedded: Cluster) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    announce_by_hand(pid=dead.pid, bootstrap_servers=embedded.bootstrap_servers)
    assert embedded_cluster.running() is None
    with embedded_cluster.announced(embedded):
        assert embedded_cluster.find() == embedded.bootstrap_servers


@pytest.mark.usefixtures("project")
def test_a_process_number_that_was_given_again_is_not_believed() -> None:
    with Cluster() as gone:
        address = gone.bootstrap_servers
    announce_by_hand(bootstrap_servers=address)
    assert embedded_cluster.running() is None


@pytest.mark.usefixtures("project")
def test_a_state_file_that_others_may_write_is_refused() -> None:
    path = announce_by_hand()
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="belongs to another user or is open to others"):
        embedded_cluster.find()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "bootstrap_servers": 1, "started": 0}'])
def test_a_state_file_that_says_nothing_is_as_good_as_none(text: str) -> None:
    announce_by_hand().write_text(text)
    assert embedded_cluster.running() is None


SETTINGS = """
from tests.settings import *
KAFKA = {{
    "brokers": "embedded",
    "topic_prefix": "dev.",
    "consumers": {{"operations": {{"group_id": "ops", "topics": {topics}}}}},
}}
"""


@pytest.fixture
def manage(tmp_path: Path) -> Callable[..., list[str]]:
    """Commands of a small project of its own, to run with `cwd=tmp_path`."""

    def command(*arguments: str, topics: str = '["flights"]') -> list[str]:
        (tmp_path / "broker_settings.py").write_text(SETTINGS.format(topics=topics))
        path = [str(tmp_path), str(ROOT)]
        program = (
            f"import sys; sys.path[:0] = {path!r}; from django.core.management import execute_from_command_line as e"
        )
        settings = "--settings=broker_settings"
        return [sys.executable, "-c", f"{program}; e(['manage.py'] + sys.argv[1:])", *arguments, settings]

    return command


@pytest.fixture
def broker(manage: Callable[..., list[str]], project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command and wait until it is announced."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: str) -> subprocess.Popen[str]:
        command = manage("kafka_broker", *arguments, **options)
        process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        deadline = time.monotonic() + 30
        while embedded_cluster.running() is None:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_asked_to_stop(
    broker: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = broker("--partitions", "2", "--topic", "seats:6", "--topic", "meals")
    address = embedded_cluster.find()
    topics = Producer({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=10).topics
    assert {name: len(topic.partitions) for name, topic in topics.items()} == {"dev.flights": 2, "seats": 6, "meals": 2}
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"Embedded Kafka cluster at {address}" in output
    assert "For development only" in output
    assert not embedded_cluster.state_file().exists()


def test_a_second_command_for_one_project_names_the_running_one(
    broker: Callable[..., subprocess.Popen[str]], manage: Callable[..., list[str]], project: Path
) -> None:
    process = broker()
    second = subprocess.run(manage("kafka_broker"), cwd=project, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"process {process.pid} at {embedded_cluster.find()}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_killed_command_gives_way_to_the_next(broker: Callable[..., subprocess.Popen[str]]) -> None:
    first = broker()
    address = embedded_cluster.find()
    first.kill()
    first.communicate()
    assert embedded_cluster.state_file().exists()
    broker()
    assert embedded_cluster.find() != address


@pytest.mark.parametrize("text", ["flights:0", "flights:many", ":3"])
def test_a_topic_that_the_command_cannot_read_is_a_sentence(
    manage: Callable[..., list[str]], project: Path, text: str
) -> None:
    command = manage("kafka_broker", "--topic", text)
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"CommandError: --topic '{text}' is not NAME or NAME:PARTITIONS" in done.stderr
