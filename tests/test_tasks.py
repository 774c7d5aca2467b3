"""Who carries replays out: a worker, a Celery task, or the command."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, current_app
from django.utils import timezone

from django_kafka import carriers, tasks
from django_kafka.dead_letters import replaying
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, Replay, Worker
from tests.desk import Desk
from tests.letters import dead_letter
from tests.servers import Redis
from tests.servers.processes import free_port

pytestmark = pytest.mark.django_db


def handle(message: Message) -> None:
    """Do nothing."""


@pytest.fixture(autouse=True)
def consumers(settings: Any) -> None:
    consumer = {"group_id": "ops", "topics": {"flights": {"handler": "tests.test_tasks.handle"}}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": consumer}}


@pytest.fixture
def celery() -> Iterator[Celery]:
    """The project's Celery application."""
    before = current_app._get_current_object()
    app = Celery("project", set_as_current=True)
    yield app
    app.close()
    before.set_current()


def worker(seconds_ago: float) -> None:
    now = timezone.now()
    seen = now - timedelta(seconds=seconds_ago)
    Worker.objects.create(
        id="w", consumer="ops", group_id="ops", host="h", pid=1, version="1", started_at=now, seen_at=seen
    )


def test_a_worker_that_is_alive_is_preferred(celery: Celery) -> None:
    celery.conf.broker_url = "memory://"
    worker(1)

    assert carriers.dispatch("ops") == "worker"
    assert carriers.dispatch("other") == "celery"


def test_the_application_is_known_in_threads_that_did_not_make_it(celery: Celery) -> None:
    # As the current one Celery has it in one thread only; web servers answer in others.
    celery.conf.broker_url = "memory://"
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(carriers.application()))
    thread.start()
    thread.join()

    assert found == [celery]


def test_a_worker_that_is_silent_does_not_count(celery: Celery) -> None:
    worker(600)

    assert carriers.dispatch("ops") == "command"


def test_without_a_celery_broker_it_is_the_command(celery: Celery) -> None:
    assert carriers.dispatch("ops") == "command"


def test_a_celery_broker_that_does_not_answer_is_said_within_seconds(
    celery: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    celery.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    begun = timezone.now()

    assert carriers.dispatch("ops") == carriers.Carrier.UNREACHABLE

    assert (timezone.now() - begun).total_seconds() < 10
    assert "Celery's broker cannot be reached" in caplog.text


def test_a_celery_worker_carries_out_what_was_sent(
    celery: Celery, redis_server: Redis, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    celery.conf.broker_url = f"redis://{redis_server.address}/0"
    letter = dead_letter({})
    replaying.request([letter.pk])

    with celery.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
        with django_capture_on_commit_callbacks(execute=True):
            assert carriers.dispatch("ops") == "celery"
            with pytest.raises(queue.Empty):  # a task that is quicker than the COMMIT would find nothing
                queue.get(block=False)
        sent = queue.get(timeout=10)
        sent.ack()
    assert hasattr(tasks, "carry_out_replays")
    assert sent.headers["task"] == carriers.CARRY_OUT_REPLAYS == "django_kafka.carry_out_replays"
    arguments = sent.payload[0]
    celery.finalize()
    celery.tasks[sent.headers["task"]].apply(args=arguments, throw=True)
    letter.refresh_from_db()
    assert letter.state == "resolved"


def test_a_real_celery_worker_finds_the_task_and_carries_out_what_was_asked_for(
    tmp_path: Path, redis_server: Redis
) -> None:
    desk = Desk.on_sqlite(tmp_path)
    (tmp_path / "desk_celery.py").write_text(
        "from celery import Celery\n"
        f"app = Celery('desk', broker='redis://{redis_server.address}/1')\n"
        "app.autodiscover_tasks()\n"
    )
    try:
        desk.write({"n": 1}, {"bad": True})
        worker = desk.start("-A", "desk_celery", "worker", "-P", "solo", "--without-gossip", module="celery")
        asked = (
            "import desk_celery; from django_kafka import carriers; "
            "from django_kafka.dead_letters import replaying as r; "
            "r.request(r.letters().values_list('pk', flat=True)); print(carriers.dispatch('ops'))"
        )
        assert "celery" in desk.run("shell", "-v0", "-c", asked).splitlines()

        states = "SELECT state FROM lynx_kafka_replay ORDER BY id"
        desk.wait_until(lambda: desk.rows(states) == [("succeeded",), ("failed",)], worker)
        assert len(desk.runs()) == 2
    finally:
        desk.close()


def test_the_task_is_bounded_in_time_and_tells_that_something_is_left() -> None:
    ids = [dead_letter({}).pk for _ in range(3)]
    replaying.request(ids)

    assert not carriers.carry_out_for("ops", 0)
    assert DeadLetter.objects.filter(state="open").count() == 3
    assert carriers.carry_out_for("ops", 60)
    assert DeadLetter.objects.filter(state="resolved").count() == 3


def test_the_task_takes_replays_of_its_consumer_only() -> None:
    replaying.request([dead_letter({}, consumer="other").pk])

    assert carriers.carry_out_for("ops", 60)
    assert Replay.objects.get().state == "requested"


def test_the_task_comes_again_while_an_executor_holds_a_claim(celery: Celery) -> None:
    replaying.request([dead_letter({}).pk])
    Replay.objects.update(state="running", claim="dead", claimed_at=timezone.now())

    assert not carriers.carry_out_for("ops", 60)


def test_everything_works_without_celery(tmp_path: Path) -> None:
    (tmp_path / "celery.py").write_text("raise ImportError('not installed')")
    code = """
import django
django.setup()
from django_kafka import carriers, tasks
from django_kafka.monitoring import heartbeats
import django_kafka.admin
heartbeats.alive = lambda consumer: False
assert carriers.dispatch("ops") == "command"
assert not hasattr(tasks, "carry_out_replays")
"""
    root = Path(__file__).resolve().parents[1]
    env = {"PYTHONPATH": f"{tmp_path}:{root}", "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
