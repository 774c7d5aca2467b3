"""The embedded cluster: Kafka in memory, for development and tests.

It is librdkafka's mock cluster, which ships inside the `confluent-kafka` wheel. It speaks Kafka's protocol on loopback,
to other processes too, and it forgets: each partition keeps its last 5 MiB and 100,000 batches at most, and everything
is gone when its process ends.

A `Cluster` lives in the process that started it and runs on that process's threads. It does not survive `fork()`: a
child may connect to it like any other process, by its `bootstrap_servers`, but not steer it.

The command `kafka_broker` runs one for a project and leaves its address in a state file, where `find()` looks it up for
`"brokers": "embedded"`.
"""

from __future__ import annotations

import ctypes
import enum
import getpass
import hashlib
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import confluent_kafka
from django.conf import settings

from ..exceptions import ConfigurationError
from . import librdkafka

COMMAND = "python manage.py kafka_broker"

DEFAULT_PARTITIONS = 4
"""What the mock cluster gives a topic that a client uses before it was created; it cannot be told otherwise."""

KEPT_BYTES = 5 * 1024 * 1024
"""Of each partition, counted as the batches arrive, compressed if they are."""

KEPT_BATCHES = 100_000
"""Of each partition; a batch is what a producer sends at once, one message at the least."""

_NOT_RUNNING = "The embedded cluster is not running; start() it, or use it in a `with`."


class Request(enum.IntEnum):
    """Kinds of requests, by their key in Kafka's protocol, that errors can be put in the way of."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    CONSUMER_GROUP_HEARTBEAT = 68


class Cluster:
    """A Kafka cluster in the memory of this process, whose faults can be ordered. Use it in a `with`."""

    def __init__(self, brokers: int = 1, partitions: int = DEFAULT_PARTITIONS) -> None:
        """Describe a cluster of `brokers` whose `create_topic` makes `partitions` unless told a number.

        A topic that is used before it is created has 4 partitions, whatever `partitions` says.
        """
        if brokers < 1 or partitions < 1:
            raise ConfigurationError(
                f"An embedded cluster has at least 1 broker and 1 partition a topic, not {brokers} and {partitions}."
            )
        self.brokers = brokers
        self.partitions = partitions
        self._pid = 0
        self._addresses = ""
        self._client: int | None = None
        self._cluster: int | None = None

    def start(self) -> Self:
        """Start listening on free ports of 127.0.0.1 and return the cluster."""
        if self._cluster is not None:
            raise ConfigurationError(f"This embedded cluster runs already, at {self.bootstrap_servers}.")
        library = librdkafka.load()
        reason = ctypes.create_string_buffer(512)
        configuration = library.rd_kafka_conf_new()
        # The client that carries the cluster has no brokers of its own, and says so at level 5.
        library.rd_kafka_conf_set(configuration, b"log_level", b"4", reason, len(reason))
        client = library.rd_kafka_new(0, configuration, reason, len(reason))
        if not client:
            library.rd_kafka_conf_destroy(configuration)
            raise ConfigurationError(f"The embedded cluster did not start: {reason.value.decode()}.")
        cluster = library.rd_kafka_mock_cluster_new(client, self.brokers)
        if not cluster:
            library.rd_kafka_destroy(client)
            raise ConfigurationError("The embedded cluster did not start: it could not listen on 127.0.0.1.")
        # A new group would wait three seconds for more members, as a production broker does.
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)
        addresses: bytes = library.rd_kafka_mock_cluster_bootstraps(cluster)
        self._client, self._cluster, self._addresses, self._pid = client, cluster, addresses.decode(), os.getpid()
        return self

    def stop(self) -> None:
        """Stop listening and forget everything. Does nothing when it is stopped, or in a forked child."""
        client, cluster = self._client, self._cluster
        self._client = self._cluster = None
        # A child inherits the addresses but not the threads behind them: destroying would wait for those for ever.
        if client is None or cluster is None or self._pid != os.getpid():
            return
        library = librdkafka.load()
        library.rd_kafka_mock_cluster_destroy(cluster)
        library.rd_kafka_destroy(client)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """The addresses to connect to: "127.0.0.1:port", comma separated when there are several brokers."""
        if self._cluster is None:
            raise ConfigurationError(_NOT_RUNNING)
        return self._addresses

    def create_topic(self, name: str, partitions: int | None = None) -> None:
        """Create a topic, with the cluster's number of partitions unless one is given."""
        count = self.partitions if partitions is None else partitions
        replicas = min(3, self.brokers)
        self._do("rd_kafka_mock_topic_create", name.encode(), count, replicas, what=f"create topic '{name}' ({count})")

    def push_errors(self, request: Request | int, *errors: int | str) -> None:
        """Answer the next requests of that kind with these errors, one each, on whichever broker they arrive.

        An error is Kafka's code or its name in `confluent_kafka.KafkaError` ("NOT_ENOUGH_REPLICAS"); "NO_ERROR" lets
        one through.
        """
        codes = [_error_code(error) for error in errors]
        array = (ctypes.c_int * len(codes))(*codes)
        librdkafka.load().rd_kafka_mock_push_request_errors_array(self._handle(), int(request), len(codes), array)

    def clear_errors(self, request: Request | int) -> None:
        """Take back the errors that were pushed for that kind of request and not used yet."""
        librdkafka.load().rd_kafka_mock_clear_request_errors(self._handle(), int(request))

    def broker_down(self, broker: int = 1) -> None:
        """Close a broker's connections and refuse new ones. Its partitions stay with it."""
        self._do("rd_kafka_mock_broker_set_down", broker, what=f"take broker {broker} down")

    def broker_up(self, broker: int = 1) -> None:
        """Let a broker that is down accept connections again, with all it had."""
        self._do("rd_kafka_mock_broker_set_up", broker, what=f"bring broker {broker} up")

    def round_trip_time(self, broker: int, milliseconds: int) -> None:
        """Make a broker take that long to answer."""
        self._do("rd_kafka_mock_broker_set_rtt", broker, milliseconds, what=f"slow broker {broker} down")

    def partition_leader(self, topic: str, partition: int, broker: int) -> None:
        """Move the leadership of a partition to another broker."""
        what = f"make broker {broker} the leader of {topic}[{partition}]"
        self._do("rd_kafka_mock_partition_set_leader", topic.encode(), partition, broker, what=what)

    def _handle(self) -> int:
        if self._cluster is None:
            raise ConfigurationError(_NOT_RUNNING)
        if self._pid != os.getpid():
            raise ConfigurationError(
                f"The embedded cluster belongs to process {self._pid}; a forked child may connect to it, not steer it."
            )
        return self._cluster

    def _do(self, function: str, *arguments: object, what: str) -> None:
        code = getattr(librdkafka.load(), function)(self._handle(), *arguments)
        if code:
            reason = librdkafka.load().rd_kafka_err2str(code).decode()
            raise ConfigurationError(f"The embedded cluster could not {what}: {reason}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """What the state file tells about the `kafka_broker` of a project."""

    pid: int
    """The process that holds the cluster."""

    bootstrap_servers: str
    """Where it listens."""

    started: float
    """When, in seconds since the epoch."""


def find() -> str:
    """Return the bootstrap servers of this project's running `kafka_broker`.

    Raises `ConfigurationError`, naming the command, when none runs.
    """
    if broker := running():
        return broker.bootstrap_servers
    raise ConfigurationError(
        f'KAFKA["brokers"] is "embedded", but no embedded cluster runs for {_project()}. '
        f"Start one in another terminal: {COMMAND}"
    )


def running() -> Broker | None:
    """Return this project's running `kafka_broker`, if there is one."""
    broker = _read(state_file())
    return broker if broker is not None and _answers(broker) else None


@contextmanager
def announced(cluster: Cluster) -> Iterator[Path]:
    """Let `find()` know of a cluster, through the state file, for as long as the block runs.

    Raises `ConfigurationError`, naming the other process, when the project has a running one already.
    """
    path = state_file()
    broker = Broker(pid=os.getpid(), bootstrap_servers=cluster.bootstrap_servers, started=time.time())
    _claim(path, json.dumps(asdict(broker)))
    try:
        yield path
    finally:
        if _read(path) == broker:
            path.unlink(missing_ok=True)


def state_file() -> Path:
    """Return where this project's `kafka_broker` leaves its address: a file per user and project folder."""
    project = hashlib.sha256(str(_project()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"django-kafka-{_user()}-{project}.json"


def _claim(path: Path, text: str) -> None:
    # Written whole under another name, then linked: a reader never sees half a file, and of two that start
    # at once one finds the name taken.
    handle, name = tempfile.mkstemp(prefix=path.stem, dir=path.parent)  # mode 0600
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        for _ in range(2):
            try:
                os.link(draft, path)
                return
            except FileExistsError:
                if other := running():
                    break
                path.unlink(missing_ok=True)  # left behind by one that was killed
        else:
            other = running()
    finally:
        draft.unlink(missing_ok=True)
    who = f"process {other.pid} at {other.bootstrap_servers}" if other else f"state file {path}"
    raise ConfigurationError(f"A kafka_broker runs for {_project()} already: {who}. Use that one, or stop it first.")


def _read(path: Path) -> Broker | None:
    try:
        with path.open(encoding="utf-8") as file:
            _refuse_strangers(path, os.fstat(file.fileno()))
            content = file.read()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}). Look at it, and remove it.") from error
    with suppress(ValueError, TypeError, KeyError):
        said = json.loads(content)
        return Broker(
            pid=int(said["pid"]), bootstrap_servers=str(said["bootstrap_servers"]), started=float(said["started"])
        )
    return None


def _refuse_strangers(path: Path, status: os.stat_result) -> None:
    # The folder is everybody's: whoever could write this file could have our records sent to their own server.
    if os.name != "posix":
        return
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigurationError(f"{path} belongs to another user or is open to others. Look at it, and remove it.")


def _answers(broker: Broker) -> bool:
    # The number of a dead process may be in use again, after a restart of a container above all; its port is not.
    try:
        if os.name == "posix":
            os.kill(broker.pid, 0)
        host, _, port = broker.bootstrap_servers.partition(",")[0].rpartition(":")
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _project() -> Path:
    return Path(getattr(settings, "BASE_DIR", None) or Path.cwd()).resolve()


def _user() -> str:
    return str(os.getuid()) if os.name == "posix" else getpass.getuser()


def _error_code(error: int | str) -> int:
    code = getattr(confluent_kafka.KafkaError, error, None) if isinstance(error, str) else error
    if not isinstance(code, int):
        raise ConfigurationError(f"confluent_kafka.KafkaError has no error {error!r}; give its code or its name.")
    return code
