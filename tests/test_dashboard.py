"""The dashboard and control in the admin, over HTTP: what it shows to whom, how fast, and what can be asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from django_kafka import history
from django_kafka.clients.groups import Ends
from django_kafka.dead_letters import jobs, replaying
from django_kafka.history import Counts, Span
from django_kafka.models import AuditEntry, Control, Pause, Worker, WorkerPartition
from django_kafka.monitoring import lag, packing
from django_kafka.monitoring.figures import Reported
from django_kafka.monitoring.lag import ClusterLag, GroupLag, PartitionLag
from tests.consuming import NAME, Seen, Workplace
from tests.letters import dead_letter
from tests.servers.processes import wait_until
from tests.teams import BACKENDS
from tests.test_admin import person
from tests.test_controls import BEATS, crew, done

__all__ = ["person"]

pytestmark = pytest.mark.django_db
ALERT = "<script>alert(1)</script>\u202e"


def url(name: str = "dashboard", *arguments: str, **asked: object) -> str:
    query = "&".join(f"{key}={value}" for key, value in asked.items())
    return reverse(f"admin:lynx_kafka_{name}", args=arguments) + (f"?{query}" if query else "")


@pytest.fixture
def desk(settings: Any) -> Iterator[None]:
    """Two consumers, brokers that are not there, and nothing known of them."""
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "connection": {"timeout": "1s"},
        "consumers": {
            "ops": {"group_id": "g", "topics": {"flights": {"handler": "tests.app.handlers.ignore"}}},
            "crews": {"group_id": "c", "topics": {"crews": {"handler": "tests.app.handlers.ignore"}}},
        },
    }
    lag.forget()
    yield
    lag.forget()


def worker(pk: str = "w", **fields: Any) -> Worker:
    now = timezone.now()
    usual = {"consumer": "ops", "group_id": "g", "host": f"host-{pk}", "pid": 1, "version": "1", "started_at": now,
             "seen_at": now, "state": "running"}  # fmt: skip
    return Worker.objects.create(id=pk, **{**usual, **fields})


def known(consumers: dict[str, int], behind: int = 7) -> None:
    """Have it known what brokers say of so many partitions of each consumer."""
    groups = {
        name: GroupLag(
            consumer=name, group_id="g", state="stable", members=1,
            partitions=tuple(
                PartitionLag(topic="flights", partition=number, committed=number, log=Ends(low=0, high=number + behind),
                             reset="earliest")
                for number in range(count)
            ),
        )
        for name, count in consumers.items()
    }  # fmt: skip
    watch = lag._memory.of("default")
    watch.last = ClusterLag(cluster="default", asked_at=datetime.now(UTC), topics=3, groups=groups)
    watch._asked = time.monotonic() + 3600


def figures() -> Any:
    """What a worker writes of its last fifteen minutes."""
    ages = tuple(range(len(Counts().ages)))
    counts = Counts(
        messages=600, handled=590, ages=ages, durations=tuple(range(len(Counts().durations))), errors={"handler": 10}
    )
    return packing.packed(Reported(minutes=[Span(seconds=60.0, counts=counts)] * history.MINUTES))


def texts(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


# What it shows


def test_everything_is_there_at_one_look(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker")
    known({"ops": 3, "crews": 1})
    worker(figures=figures(), partitions=3, in_flight=12, circuit="open", circuit_reason="50 of 64 failed")
    WorkerPartition.objects.create(worker="w", topic="flights", partition=0, in_flight=5, waits_for="a database")
    said = texts(client.get(url()).content.decode())
    for text in (
        "ops",
        "crews",
        "flights[0]",
        "a database",
        "host-w:1",
        "50 of 64 failed",
        "circuit open",
        "Last updated",
    ):
        assert text in said, text
    assert "21" in said  # messages behind
    assert "From produced to settled" in said
    assert "The last 15 minutes of ops" in said


def test_what_strangers_say_is_harmless(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker", "control_worker", "view_control")
    known({"ops": 1})
    worker(consumer=ALERT, host=ALERT, not_ready=ALERT)
    worker("v")
    WorkerPartition.objects.create(worker="v", topic="flights", partition=0, waits_for=ALERT)
    fields = {"cluster": "default", "consumer": "ops", "group_id": "g"}
    Pause.objects.create(**fields, paused_by=ALERT, reason=ALERT, paused_at=timezone.now())
    now = timezone.now()
    Control.objects.create(**fields, worker_name=ALERT, reason=ALERT, requested_by=ALERT, result=ALERT, verb="stop",
                           requested_at=now, expires_at=now + timedelta(hours=1))  # fmt: skip
    for where in (url(), url("control_changelist"), url("control", "pause", consumer="ops"), url(fragment=1)):
        answer = client.get(where)
        assert answer.status_code == 200
        page = answer.content.decode()
        assert "<script>alert" not in page
        assert "\u202e" not in page


def test_nothing_in_it_needs_an_inline_script_or_style(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker", "control_worker")
    known({"ops": 2})
    worker(figures=figures())
    for where in (url(), url(fragment=1), url("control", "seek", consumer="ops")):
        page = client.get(where).content.decode()
        ours = page[page.index("content-main") if "content-main" in page else 0 :]
        assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|<style|\bon[a-z]+=|javascript:", ours)
    static = Path(__file__).resolve().parents[1] / "django_kafka" / "static" / "lynx_kafka"
    assert sum(one.stat().st_size for one in static.iterdir()) < 100 * 1024


def test_a_fragment_is_only_what_is_drawn_anew(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker")
    known({"ops": 2})
    page = client.get(url(fragment=1)).content.decode().strip()
    assert page.startswith('<div id="lynx-kafka-live"')
    assert page.endswith("</div>")
    assert "<html" not in page


def test_one_consumer_has_all_of_its_partitions_in_pages(
    desk: None, client: Client, person: Callable[..., User]
) -> None:
    person("view_worker")
    known({"ops": 450, "crews": 1})
    assert "and 431 more" in texts(client.get(url()).content.decode())
    first, last = (client.get(url(consumer="ops", page=page)).content.decode() for page in (0, 2))
    assert "flights[199]" in first
    assert "flights[200]" not in first
    assert "flights[449]" in last
    assert "crews" not in texts(last).replace("flights", "")
    for page in ("-1", "99", "x", "9" * 50):
        assert client.get(url(consumer="ops", page=page)).status_code == 200


def test_a_dead_broker_never_holds_it_up(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker")
    began = time.monotonic()
    said = texts(client.get(url()).content.decode())
    assert time.monotonic() - began < 0.9
    assert "is being asked" in said
    wait_until(lambda: lag.known() and lag.known()[0].reason)
    assert escape(lag.known()[0].reason) in client.get(url()).content.decode()


@pytest.mark.parametrize("count", [2, 50])
def test_it_asks_a_constant_number_of_questions(
    desk: None, client: Client, person: Callable[..., User], count: int
) -> None:
    person("view_worker", "control_worker")
    known({"ops": 200 * count})
    fill(count)
    client.get(url())
    with CaptureQueriesContext(
        connection,
    ) as queries:
        client.get(url())
    assert len(queries) <= 16, [one["sql"][:100] for one in queries.captured_queries]


def fill(count: int) -> None:
    packed = figures()
    for number in range(count):
        worker(f"w{number}", figures=packed, partitions=200)
    WorkerPartition.objects.bulk_create(
        WorkerPartition(worker=f"w{number // 200}", topic="flights", partition=number, lag=7)
        for number in range(200 * count)
    )


def test_fifty_workers_with_two_hundred_partitions_each_take_a_few_times_the_time_of_one(
    desk: None, client: Client, person: Callable[..., User]
) -> None:
    person("view_worker", "control_worker")

    def shortest() -> float:
        client.get(url())
        times = []
        for _ in range(5):
            began = time.process_time()
            assert client.get(url(fragment=1)).status_code == 200
            times.append(time.process_time() - began)
        return min(times)

    known({"ops": 10_000})
    fill(1)
    few = shortest()
    Worker.objects.all().delete()
    WorkerPartition.objects.all().delete()
    fill(50)
    assert shortest() < 5 * few


# Who may


def test_it_is_for_those_who_may_view_workers(desk: None, client: Client, person: Callable[..., User]) -> None:
    assert client.get(url()).status_code == 302
    person("view_deadletter")
    assert client.get(url()).status_code == 403
    assert client.post(url()).status_code == 403


@pytest.mark.parametrize("verb", ["pause", "resume", "seek", "stop", "close_breaker"])
def test_nothing_is_asked_for_without_the_permission(
    desk: None, client: Client, person: Callable[..., User], verb: str
) -> None:
    person("view_worker")
    known({"ops": 1})
    worker(circuit="open")
    asked = url("control", verb, consumer="ops", worker="w")
    assert client.get(asked).status_code == 403
    assert client.post(asked, {"confirmed": "yes", "to": "flights:0:3"}).status_code == 403
    assert not Control.objects.exists()
    assert not Pause.objects.exists()
    page = client.get(url()).content.decode()
    assert "lynx_kafka.control_worker" in page
    assert "/control/" not in page


def test_a_team_sees_and_controls_its_own_consumers(
    desk: None, client: Client, person: Callable[..., User], settings: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = BACKENDS
    settings.TEAMS = {"crew": {"consumers": {"crews"}, "may": {"lynx_kafka.view_worker", "lynx_kafka.control_worker"}}}
    user = person()
    user.groups.add(Group.objects.create(name="crew"))
    known({"ops": 3, "crews": 1})
    worker()
    worker("v", consumer="crews", group_id="c")
    page = client.get(url()).content.decode()
    assert "host-v" in page
    assert "host-w" not in page
    assert "consumer=ops" not in page
    assert client.post(url("control", "pause", consumer="ops"), {"confirmed": "yes"}).status_code == 403
    assert client.post(url("control", "stop", worker="w"), {"confirmed": "yes"}).status_code == 403
    assert client.post(url("control", "pause", consumer="crews"), {"confirmed": "yes"}).status_code == 302
    assert [one.consumer for one in Pause.objects.all()] == ["crews"]


def test_a_request_without_its_token_is_refused(desk: None, person: Callable[..., User], client: Client) -> None:
    person("view_worker", "control_worker")
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get())
    assert strict.post(url("control", "pause", consumer="ops"), {"confirmed": "yes"}).status_code == 403
    assert not Pause.objects.exists()


# What can be asked for


def test_a_pause_is_asked_twice_and_stored_once(desk: None, client: Client, person: Callable[..., User]) -> None:
    name = person("view_worker", "control_worker").get_username()
    asked = url("control", "pause", consumer="ops")
    assert "Pause ops?" in client.get(asked).content.decode()
    client.post(asked, {"reason": "unconfirmed"})
    assert not Pause.objects.exists()
    assert client.post(asked, {"confirmed": "yes", "reason": "the gate moves"}).status_code == 302
    pause = Pause.objects.get()
    assert (pause.paused_by, pause.reason, pause.topic) == (name, "the gate moves", "")
    again = client.post(asked, {"confirmed": "yes", "reason": "mine too"})
    assert f"Paused by {name} since" in again.content.decode()
    assert (Pause.objects.count(), Control.objects.count()) == (1, 1)
    page = texts(client.get(url()).content.decode())
    assert "the gate moves" in page
    assert "Resume" in page
    assert client.post(url("control", "resume", consumer="ops"), {"confirmed": "yes"}).status_code == 302
    assert not Pause.objects.exists()
    assert set(AuditEntry.objects.values_list("verb", "user_name")) == {
        ("control: pause", name),
        ("control: resume", name),
    }


def test_a_partition_is_paused(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker", "control_worker")
    asked = url("control", "pause", consumer="ops", topic="flights", partition=3)
    assert "Pause ops flights[3]?" in client.get(asked).content.decode()
    client.post(asked, {"confirmed": "yes"})
    assert [(one.topic, one.partition) for one in Pause.objects.all()] == [("flights", 3)]


@pytest.mark.parametrize(
    "asked",
    [
        {"consumer": "other"}, {"consumer": "ops", "topic": "other", "partition": 0}, {},
        {"consumer": "ops", "topic": "flights"}, {"consumer": "ops", "topic": "flights", "partition": "x"},
        {"consumer": "ops", "topic": "flights", "partition": 1 << 40}, {"consumer": "%00"},
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(
    desk: None, client: Client, person: Callable[..., User], asked: dict[str, Any]
) -> None:
    person("view_worker", "control_worker")
    assert client.get(url("control", "pause", **asked)).status_code == 404
    assert client.get(url("control", "other", consumer="ops")).status_code == 404
    for pk in ("nobody", "%00", ""):
        assert client.post(url("control", "stop", worker=pk), {"confirmed": "yes"}).status_code == 404


def test_a_worker_is_stopped_and_its_circuit_closed(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker", "control_worker")
    worker(circuit="open", circuit_episode=4)
    for verb in ("stop", "close_breaker"):
        assert "host-w:1" in client.get(url("control", verb, worker="w")).content.decode()
        assert client.post(url("control", verb, worker="w"), {"confirmed": "yes"}).status_code == 302
        again = client.post(url("control", verb, worker="w"), {"confirmed": "yes"}).content.decode()
        assert "not done yet" in again
    assert set(Control.objects.values_list("verb", "worker", "number")) == {
        ("stop", "w", None),
        ("close_breaker", "w", 4),
    }


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"target": "offset", "value": "x"}, "is not a whole number"),
        ({"target": "offset", "value": ""}, "is not a whole number"),
        ({"target": "time", "value": "yesterday"}, "is no time"),
        ({"target": "time", "value": "2999-01-01"}, "in the future"),
        ({"target": "other"}, "Say where to go"),
        ({"target": "earliest", "partitions": "1;2"}, "is not a whole number"),
        ({"confirmed": "yes"}, "Say where to go"),
        ({"confirmed": "yes", "to": "flights"}, "is not a whole number"),
    ],
)
def test_a_wrong_seek_is_told(
    desk: None, client: Client, person: Callable[..., User], form: dict[str, str], says: str
) -> None:
    person("view_worker", "control_worker")
    page = client.post(url("control", "seek", consumer="ops"), form)
    assert page.status_code == 200
    assert says in page.content.decode()
    assert not Control.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_seek_does_what_its_dry_run_showed(workplace: Workplace, client: Client, person: Callable[..., User]) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=2, kafka=BEATS)
    workplace.send(range(30))
    workplace.send(range(5), partition=1)
    person("view_worker", "control_worker")
    asked = url("control", "seek", consumer=NAME)
    with crew():
        seen.wait(35)
        wait_until(lambda: workplace.committed() == {0: 30, 1: 5})
        form = {"target": "offset", "value": "12", "topic": workplace.topic, "partitions": "0", "reason": "again"}
        page = client.post(asked, form)
        assert "1 partition moves: 18 messages are read again, 0 are skipped." in texts(page.content.decode())
        assert not Control.objects.exists()
        to = re.findall(r'name="to" value="([^"]*)"', page.content.decode())
        assert to == [f"{workplace.topic}:0:12"]
        strange = client.post(asked, {"confirmed": "yes", "to": "other:0:1"})
        assert "is no topic of" in strange.content.decode()
        assert (
            "There is no partition"
            in client.post(asked, {"confirmed": "yes", "to": f"{workplace.topic}:7:1"}).content.decode()
        )
        assert client.post(asked, {"confirmed": "yes", "to": to, "reason": "again"}).status_code == 302
        assert "18 messages read again" in done(Control.objects.get()).result
        seen.wait(53)
    assert sorted(seen.of(0)) == sorted([*range(30), *range(12, 30)])


def test_the_log_of_requests_is_for_reading(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker", "control_worker")
    client.post(url("control", "pause", consumer="ops"), {"confirmed": "yes", "reason": "gate"})
    assert client.get(url("control_changelist")).status_code == 403
    person("view_control")
    assert "gate" in client.get(url("control_changelist")).content.decode()
    change = url("control_change", str(Control.objects.get().pk))
    assert "gate" in client.get(change).content.decode()
    assert client.post(change, {"reason": "x"}).status_code == 403


def test_who_only_looks_at_requests_that_nobody_took_writes_nothing(
    desk: None, client: Client, person: Callable[..., User]
) -> None:
    person("view_worker", "view_control", "control_worker")
    client.post(url("control", "pause", consumer="ops"), {"confirmed": "yes", "reason": "gate"})
    Control.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    change = url("control_change", str(Control.objects.get().pk))
    for page in (url(), url("control_changelist"), change):
        with CaptureQueriesContext(connection) as queries:
            shown = client.get(page).content.decode()
        assert not [one for one in queries if one["sql"].startswith(("UPDATE", "INSERT", "DELETE"))], page
        if page != change:
            assert "not taken in time" in shown
    assert Control.objects.get().state == "requested"


def test_replay_jobs_that_are_not_at_their_end_are_shown_to_whom_they_concern(
    desk: None, client: Client, person: Callable[..., User], settings: Any
) -> None:
    for consumer in ("ops", "crews"):
        dead_letter({"n": 1}, consumer=consumer)
    mine, theirs = (jobs.create(replaying.letters().filter(consumer=one), reason="x")[0] for one in ("ops", "crews"))
    mine.state, mine.state_reason = "paused", ALERT
    mine.save()
    person("view_worker")
    assert "jobs-heading" not in client.get(url()).content.decode()

    person("view_worker", "view_replayjob")
    page = client.get(url()).content.decode()
    links = [reverse("admin:lynx_kafka_replayjob_change", args=[one.pk]) for one in (mine, theirs)]
    assert all(link in page for link in links)
    assert "0 of 1" in page
    assert "<script>alert" not in page
    narrow = client.get(url(consumer="ops")).content.decode()
    assert [link in narrow for link in links] == [True, False]

    settings.AUTHENTICATION_BACKENDS = BACKENDS
    may = {"lynx_kafka.view_worker", "lynx_kafka.view_replayjob"}
    settings.TEAMS = {"gate": {"consumers": {"ops"}, "may": may}}
    person().groups.add(Group.objects.create(name="gate"))
    of_team = client.get(url()).content.decode()
    assert [link in of_team for link in links] == [True, False]

    for one in (mine, theirs):
        one.state = "finished"
        one.save()
    person("view_worker", "view_replayjob")
    assert "No replay job runs or is paused." in client.get(url()).content.decode()


def test_the_list_of_workers_leads_to_it(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker")
    assert f'href="{url()}"' in client.get(reverse("admin:lynx_kafka_worker_changelist")).content.decode()


def test_it_speaks_german(desk: None, client: Client, person: Callable[..., User]) -> None:
    person("view_worker", "control_worker")
    known({"ops": 1})
    worker(figures=figures())
    client.cookies["django_language"] = "de"
    page = client.get(url()).content.decode()
    for text in ("Zuletzt aktualisiert", "Pausieren", "Partitionen", "Die letzten 15 Minuten von ops"):
        assert text in page, text
    assert "ops pausieren?" in client.get(url("control", "pause", consumer="ops")).content.decode()
