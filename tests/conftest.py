"""What every test may ask for. A server that this machine cannot run skips its tests, and fails them under CI=true."""

from __future__ import annotations

import os
import re
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest
from django.conf import settings as django_settings

from tests.registries import Front
from tests.secured import Certificates, Provider, SecuredKafka, logins
from tests.servers import Kafka, PgBouncer, PostgreSQL, Redis, Server, Unavailable, processes, shared
from tests.servers.forking import ForkServer
from tests.servers.leash import hold
from tests.servers.registry import Registry

AnyServer = TypeVar("AnyServer", bound=Server)

ON_A_CLUSTER = {"embedded", "workplace"}
DIFFERENT = {
    "test_event_loop.py", "test_execution.py", "test_producers.py", "test_services.py", "test_together.py",
    "test_worker.py",
}  # fmt: skip
"""Where Pythons and Djangos differ below a consumer or producer: event loop, threads, forks, signals, transactions."""
REAL = {"kafka", "own_kafka", "pgbouncer", "postgresql", "redis_server", "registry", "secured"}


def pytest_configure(config: pytest.Config) -> None:
    """Make SIGTERM an orderly end, so that servers are stopped and their data removed."""
    ours = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != ours:
            # A forked child is no test run; it dies as it would have without us.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        shared.hurry.set()
        pytest.exit(f"ended by signal {number}", returncode=128 + number)

    signal.signal(signal.SIGTERM, leave)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background: the programs that tests interrupt would inherit being deaf to it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    processes.fork_server = ForkServer()
    if "DJANGO_KAFKA_TEST_RUN" in os.environ:
        hold(signal.SIGTERM)  # `make test` that is killed takes its test processes along


def pytest_unconfigure() -> None:
    """End what starts programs."""
    if processes.fork_server is not None:
        processes.fork_server.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as `real` what asks for a real server; leave out what is about another database than the one that is used.

    Those run in the other environments of tox. The journeys come first: whatever is long and begins last is waited for.
    """
    used = django_settings.DATABASES["default"]["ENGINE"]
    other = "postgresql" if used.endswith("sqlite3") else "sqlite"
    left_out = [item for item in items if item.get_closest_marker(other)]
    items[:] = [item for item in items if item not in left_out]
    left_out += [item for item in items if bool(item.get_closest_marker("gssapi")) != _with_gssapi()]
    items[:] = [item for item in items if item not in left_out]
    if is_brief():
        left_out += [item for item in items if not belongs_to_brief(item)]
        items[:] = [item for item in items if belongs_to_brief(item)]
    config.hook.pytest_deselected(items=left_out)
    for item in items:
        if not REAL.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("real")
    items.sort(key=lambda item: "journeys" not in item.path.parts)


def is_brief() -> bool:
    """Tell whether this environment is between the oldest and the newest, both of which run all of the fast part."""
    name = os.environ.get("TOX_ENV_NAME")
    return bool(name) and name in os.environ.get("DJANGO_KAFKA_TEST_BRIEF", "").split(",")


def belongs_to_brief(item: pytest.Item) -> bool:
    """Leave out what runs workers on a cluster, unless it is about what Pythons or Djangos do differently."""
    return item.path.name in DIFFERENT or ON_A_CLUSTER.isdisjoint(getattr(item, "fixturenames", ()))


def _with_gssapi() -> bool:
    """Tell whether the client is built with GSSAPI: such an environment is there for the tests of that alone."""
    from django_kafka.clients.librdkafka import features

    return "sasl_gssapi" in features()


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def running(server: AnyServer) -> Iterator[AnyServer]:
    """Run a server for a fixture."""
    started(server)
    try:
        yield server
    finally:
        server.close()


def started(server: AnyServer) -> AnyServer:
    """Start a server; skip what needs it where it is not available, and fail that in CI."""
    try:
        server.start()
    except Unavailable as error:
        server.close()
        if in_ci():
            pytest.fail(f"{server.name} is needed here: {error}", pytrace=False)
        pytest.skip(f"{server.name} is not available: {error}")
    except BaseException:
        server.close()
        raise
    return server


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One node of real Apache Kafka for the whole run. Topics are yours by the name that `topic` gives."""
    with shared.lent(of_the_run(tmp_path_factory), lambda: started(Kafka()), shared.Lent) as found:
        yield found


def of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory for all processes of the run: of pytest-xdist's each has one of its own below it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[Kafka]:
    """The same for tests that stop brokers."""
    yield from running(Kafka())


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """Who gives OAUTHBEARER tokens."""
    with Provider(tmp_path_factory.mktemp("provider")) as provider:
        logins.given[:] = [provider]
        yield provider


@pytest.fixture(scope="session")
def secured(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """One node of real Apache Kafka that demands logins, certificates and permissions."""
    yield from running(SecuredKafka(Certificates(tmp_path_factory.mktemp("certificates")), provider))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server that a test may stop, kill and start: no Django connection of this process uses it."""
    yield from running(PostgreSQL())


@pytest.fixture(scope="session")
def pgbouncer(postgresql: PostgreSQL) -> Iterator[PgBouncer]:
    """PgBouncer in transaction mode before that server."""
    yield from running(PgBouncer(postgresql))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis server, for Celery."""
    yield from running(Redis())


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A schema registry for the whole run. Subjects are yours by the names of topics."""
    with shared.lent(of_the_run(tmp_path_factory), lambda: started(Registry()), shared.LentRegistry) as found:
        yield found


@pytest.fixture
def front(registry: Registry) -> Iterator[Front]:
    """What stands before it, which a test may close, and have ask for logins."""
    with Front(registry.url) as front:
        yield front


@pytest.fixture(scope="session")
def _django_postgresql() -> Iterator[PostgreSQL]:
    yield from running(PostgreSQL())


@pytest.fixture(scope="session")
def django_db_modify_db_settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Start Django's own PostgreSQL when the first test asks for the database; SQLite is a file, for threads."""
    database = django_settings.DATABASES["default"]
    if database["ENGINE"].endswith("sqlite3"):
        database["TEST"]["NAME"] = str(tmp_path_factory.mktemp("database") / "tests.sqlite3")
    if database["ENGINE"].endswith("postgresql"):
        database["PORT"] = str(request.getfixturevalue("_django_postgresql").port)


@pytest.fixture
def embedded() -> Iterator[Any]:
    """A cluster inside this process, its topics made on first use with four partitions."""
    from django_kafka.clients.embedded import Cluster

    with Cluster(partitions=4) as cluster:
        yield cluster


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Names that nobody else uses: `topic()` or `topic("flights")`."""
    words = re.sub(r"[^a-zA-Z0-9]+", "-", request.node.name).strip("-")[:60]

    def name(word: str = "") -> str:
        return f"{word or words}.{uuid.uuid4().hex[:10]}"

    return name


@pytest.fixture
def workplace(embedded: Any, settings: Any, transactional_db: None) -> Iterator[Any]:
    """A topic, a consumer, and workers in this process, on the embedded cluster."""
    from tests.consuming import Workplace

    place = Workplace(embedded, settings)
    yield place
    place.close()


@pytest.fixture
def place(secured: SecuredKafka, settings: Any, transactional_db: None) -> Iterator[Any]:
    """A topic, a consumer, and workers in this process, on the secured cluster."""
    from tests.consuming import Workplace

    place = Workplace(secured, settings)  # type: ignore[arg-type]
    yield place
    place.close()


@pytest.fixture(autouse=True)
def _no_producer_stays_open() -> Iterator[None]:
    """Close what a test opened: a producer of an earlier test must not send to a cluster that is gone."""
    yield
    close_all = getattr(sys.modules.get("django_kafka.producers"), "close_all", None)
    if close_all is not None:
        close_all()


@pytest.fixture(autouse=True, scope="session")
def _flights_are_handled_where_somebody_asks_for_it() -> None:
    """Forget the handler that was found in the test project: consumers of tests have handlers of their own."""
    registry = sys.modules.get("django_kafka.registry")
    if registry is not None:
        registry.forget("testproject.flights.kafka_handlers.flight_departed")


@pytest.fixture(autouse=True)
def _it_is_said_in_english() -> Iterator[None]:
    """Forget the language of a page that was asked for in another one."""
    yield
    from django.utils import translation

    translation.deactivate()


@pytest.fixture(autouse=True)
def _counts_begin_at_zero() -> None:
    """Forget what earlier tests of this process have counted for producers and consumers of the same names."""
    counts = sys.modules.get("django_kafka.tallies")
    if counts is not None:
        counts._producers.clear()
        counts._consumers.clear()
    history = sys.modules.get("django_kafka.history")
    if history is not None:
        history.forget()
