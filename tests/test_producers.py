from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.test import override_settings
from pytest_django import Settings

from django_kafka.clients.embedded import Cluster, Request
from django_kafka.clients.producer import ProducerClient, _Forks
from django_kafka.deliveries import Delivery
from django_kafka.exceptions import ConfigurationError, DeliveryFailed, NotAvailable, ProduceError
from django_kafka.producers import close_all, producers
from django_kafka.producing import produce
from django_kafka.signals import delivery_failed
from tests.sending import NOBODY, program, read, send_and_leave, took_less_than, use, values
from tests.servers.processes import wait_until


@pytest.fixture
def name(embedded: Cluster, settings: Settings, topic: Callable[..., str]) -> str:
    use(settings, embedded.bootstrap_servers)
    made = topic()
    embedded.create_topic(made, 1)
    return made


def kafka(cluster: Cluster | str, **producers: Any) -> dict[str, Any]:
    brokers, patience = (cluster, "1s") if isinstance(cluster, str) else (cluster.bootstrap_servers, "20s")
    return {"brokers": [brokers], "connection": {"timeout": patience}, "producers": {"default": {}, **producers}}


def in_child(work: Callable[[], None], seconds: float = 30) -> float:
    """Run `work` in a forked child that ends as Python's own processes do; return how long it took."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - began > seconds:
            os.kill(child, 9)
            os.waitpid(child, 0)
            raise AssertionError(f"The child still ran after {seconds} s.")
        time.sleep(0.005)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.monotonic() - began


def test_a_name_has_one_producer_whoever_asks(name: str) -> None:
    found: list[Any] = []
    start = threading.Barrier(20)

    def ask() -> None:
        start.wait(10)
        found.append(producers["default"])

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 20
    assert len(set(found)) == 1
    assert [one.name for one in producers] == ["default"]
    assert "default" in producers
    assert repr(found[0]) == "<Producer default>"


def test_a_change_of_settings_delivers_what_waits_and_forgets_the_producers(embedded: Cluster, name: str) -> None:
    first = producers["default"]
    deliveries = [produce(name, None, number) for number in range(100)]
    with override_settings(KAFKA={"brokers": [embedded.bootstrap_servers], "producers": {"default": {"acks": "1"}}}):
        assert all(delivery.done() for delivery in deliveries)
        second = producers["default"]
        assert second is not first
        assert second.settings.acks == "1"
    assert producers["default"].settings.acks == "all"


def test_a_producer_that_asks_for_what_is_not_there_yet_is_not_made(settings: Settings) -> None:
    use(settings, NOBODY, {"outbox": {"send": "outbox"}})
    with pytest.raises(NotAvailable, match=r"""\["outbox"\]\["send"\] is 'outbox'; this version has"""):
        producers["outbox"]
    assert not list(producers)


def test_what_librdkafka_refuses_is_a_configuration_error(settings: Settings) -> None:
    use(settings, NOBODY, {"default": {"options": {"ssl.ca.location": "/no/such/file", "security.protocol": "ssl"}}})
    with pytest.raises(ConfigurationError, match=r"Producer 'default' cannot be made: .*ssl\.ca\.location"):
        produce("flights", None, 1)


def test_a_producer_whose_client_met_a_fatal_error_is_made_anew(embedded: Cluster, name: str) -> None:
    broken = producers["default"]
    produce(name, None, 1).result()
    embedded.push_errors(Request.PRODUCE, "OUT_OF_ORDER_SEQUENCE_NUMBER")
    with pytest.raises(DeliveryFailed):
        produce(name, None, 2).result(20)
    with pytest.raises(DeliveryFailed) as raised:
        produce(name, None, 3).result(20)
    assert (raised.value.code, raised.value.retriable) == ("_FATAL", True)
    assert produce(name, None, 4).result(20).done()
    assert producers["default"] is not broken


def test_what_is_undelivered_at_closing_fails_and_is_reported_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    use(settings, NOBODY)
    told: list[Delivery] = []

    def listen(delivery: Delivery, **_event: Any) -> None:
        told.append(delivery)

    deliveries = [produce("flights", None, number) for number in range(30)]
    caplog.set_level(logging.ERROR, "django_kafka.producers")
    delivery_failed.connect(listen)
    try:
        with took_less_than(10):
            assert producers.close("default", 0.2) == 30
    finally:
        delivery_failed.disconnect(listen)
    assert [record.getMessage() for record in caplog.records if record.name == "django_kafka.producers"] == [
        "producer=default undelivered=30 records were not delivered before it was closed"
    ]
    assert Counter(told) == Counter(deliveries)
    with pytest.raises(DeliveryFailed) as raised:
        deliveries[0].result()
    assert (raised.value.code, raised.value.retriable) == ("_PURGE_QUEUE", True)


def test_closing_all_takes_connection_timeout_once(settings: Settings) -> None:
    use(settings, NOBODY, {"b": {}, "c": {}}, connection={"timeout": "1500ms"})
    for one in ("default", "b", "c"):
        produce("flights", None, 1, producer=one)
    with took_less_than(3 * 1.5):
        assert close_all() == 3
    assert not list(producers)


def test_a_record_for_a_producer_that_is_closed_meanwhile_is_an_error(name: str) -> None:
    client = producers["default"].client
    producers.close("default")
    with pytest.raises(ProduceError, match="Producer 'default' was closed before a record could be handed to it"):
        client.produce(name, b"x")


def test_a_thread_that_sends_many_serves_their_reports_and_what_it_leaves_is_served_without_it(name: str) -> None:
    client = producers["default"].client
    served: list[int] = []

    def note(error: Any, _message: Any) -> None:
        assert error is None
        served.append(threading.get_ident())

    client.produce(name, b"value", b"key", -1, note)
    assert client.flush(20) == 0
    me = threading.get_ident()

    def share_of_mine() -> float:
        """Return which share of the reports the thread that sends has served, in a second of sending."""
        served.clear()
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            for _record in range(100):
                client.produce(name, b"value", b"key", -1, note)
            client.keep_up()
            while len(client) > 20_000:
                client.keep_up()
        while_sending = list(served)
        assert len(while_sending) > 10_000
        client.flush(20)
        return while_sending.count(me) / len(while_sending)

    # The other thread may be at some when the first ones are sent, and when a busy machine keeps this one from running
    # for longer than it waits for it: in a second without that it serves hardly any.
    shares = []
    while not shares or (shares[-1] <= 0.95 and len(shares) < 10):
        shares.append(share_of_mine())
    assert shares[-1] > 0.95, f"{shares} were served by the thread that sends"
    served.clear()
    client.produce(name, b"value", b"key", -1, note)
    wait_until(lambda: served)
    assert served[-1] != me


def test_a_forked_child_sends_with_a_producer_of_its_own(embedded: Cluster, name: str) -> None:
    parents = producers["default"]
    produce(name, None, "before").result()
    waiting = produce(name, None, "parent while forking")

    def work() -> None:
        assert not list(producers)
        assert producers["default"] is not parents
        produce(name, None, "child").result(20)

    in_child(work)
    assert waiting.result(20).done()
    assert producers["default"] is parents
    produce(name, None, "after").result(20)
    arrived = values(read(embedded, name, 4))
    assert sorted(arrived) == ["after", "before", "child", "parent while forking"]


def test_a_child_may_collect_what_its_parent_closed(name: str) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            produce(name, None, 1).result()
            producers.close("default")
        in_child(lambda: gc.collect() and None)
    finally:
        gc.enable()


def test_a_child_that_never_sends_ends_at_once(name: str) -> None:
    produce(name, None, 1).result()
    # The quickest of some, since whatever else the machine does only adds to it.
    assert min(in_child(lambda: None) for _ in range(4)) < 0.5


def test_children_fork_while_threads_send_and_wait(embedded: Cluster, name: str) -> None:
    ended = threading.Event()
    sent: list[Delivery] = []

    def send() -> None:
        while not ended.is_set():
            sent.append(produce(name, None, "parent").result(20))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            in_child(lambda: produce(name, None, "child").result(20) and None)
    finally:
        ended.set()
        for thread in threads:
            thread.join(20)
    arrived = values(read(embedded, name, len(sent) + 10))
    assert (arrived.count("child"), arrived.count("parent")) == (10, len(sent))


def test_a_child_forked_while_its_parent_makes_the_client_makes_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, making, go_on = os.getpid(), threading.Event(), threading.Event()

    class Slow(ProducerClient):
        def __init__(self, *given: Any) -> None:
            if os.getpid() == parent:
                making.set()
                go_on.wait(60)
            super().__init__(*given)

    monkeypatch.setattr("django_kafka.producer.ProducerClient", Slow)
    delivered = threading.Thread(target=lambda: produce(name, None, "parent").result(20))
    delivered.start()
    try:
        assert making.wait(20)
        in_child(lambda: produce(name, None, "child").result(20) and None)
    finally:
        go_on.set()
        delivered.join(20)
    assert not delivered.is_alive()


def test_a_lock_that_a_thread_holds_at_the_fork_is_free_in_the_child(name: str) -> None:
    produce(name, None, 1).result()
    with producers._making:
        in_child(lambda: produce(name, None, 2).result(20) and None, 20)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_delivers_what_it_sent_before_it_ends(
    embedded: Cluster, settings: Settings, name: str, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(settings, embedded.bootstrap_servers, connection={"timeout": "20s"})  # how long it may flush at its end
    produce(name, None, "parent").result()
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.settings")
    context = multiprocessing.get_context(method)
    child = context.Process(target=send_and_leave, args=(name, embedded.bootstrap_servers, method))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert values(read(embedded, name, 51)) == ["parent", *(f"{method} {number}" for number in range(50))]
    produce(name, None, "after").result()


ENDS = {
    "plain": "",
    "sys.exit": "sys.exit(3)",
    "unhandled": "raise ZeroDivisionError",
    "in a thread": """
import threading
threading.Thread(target=lambda: [services.produce(topic, None, n) for n in range(200, 210)]).start()
""",
    "multiprocessing": """
import multiprocessing
def work():
    for n in range(200, 210):
        services.produce(topic, None, n)
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
""",
    "pool": """
import concurrent.futures, multiprocessing
def work(n):
    services.produce(topic, None, n)
with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    list(pool.map(work, range(200, 210)))
""",
    "os.fork": """
child = os.fork()
if child == 0:
    for n in range(200, 210):
        services.produce(topic, None, n)
    sys.exit()
os.waitpid(child, 0)
""",
}
MORE = {"in a thread", "multiprocessing", "pool", "os.fork"}
CODES = {"sys.exit": 3, "unhandled": 1}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_ends_at_once_delivers_what_it_sent(embedded: Cluster, name: str, end: str) -> None:
    code = f"for n in range(200): services.produce(topic, None, n)\n{ENDS[end]}"
    done = program(code, kafka(embedded), name)
    assert done.returncode == CODES.get(end, 0), done.stderr
    assert "undelivered" not in done.stderr
    expected = list(range(210 if end in MORE else 200))
    assert sorted(values(read(embedded, name, len(expected)))) == expected


@pytest.mark.parametrize("end", ["plain", "unhandled", "multiprocessing"])
def test_what_a_program_cannot_deliver_is_reported_by_name_and_count(end: str) -> None:
    ours = "for n in range(7): services.produce(topic, None, n)\n"
    more = "services.produce(topic, None, 1, producer='audit')\n"
    done = program(ours + more + ENDS[end], kafka(NOBODY, audit={}), "flights")
    assert "producer=default undelivered=7 records were not delivered before it was closed" in done.stderr
    assert "producer=audit undelivered=1 records" in done.stderr
    assert ("producer=default undelivered=10 records" in done.stderr) == (end == "multiprocessing")


def test_a_program_that_sent_nothing_ends_without_a_producer() -> None:
    done = program(
        "import threading; print(json.dumps([one.name for one in threading.enumerate()]))", kafka(NOBODY), "flights"
    )
    assert json.loads(done.stdout) == ["MainThread"]
    assert done.stderr == ""


def test_a_child_that_inherited_clients_and_ends_in_order_does_not_wait_for_their_threads(
    embedded: Cluster, name: str
) -> None:
    # Destroying an inherited client takes librdkafka a second: its threads are not there to answer. Only time that a
    # child slept is looked at: not what it worked, nor what it waited for a processor, which others may take.
    code = """
import time
from pathlib import Path
def shortest():
    slept = []
    for _ in range(4):
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            import gc
            gc.collect()
            sys.exit()
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        took = time.monotonic() - began
        worked, queued, _times = map(int, Path(f"/proc/{child}/schedstat").read_text().split())
        os.waitpid(child, 0)
        slept.append(took - (worked + queued) / 1e9)
    return min(slept)
without = shortest()
services.produce(topic, None, 1).result()
from django_kafka import conf
from django_kafka.clients import sharing
sharing.asking_client(conf.kafka().clusters["default"]).now.list_topics(timeout=20)
print(shortest() - without)
"""
    done = program(code, kafka(embedded), name)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5


def test_a_child_forked_while_names_are_resolved_delivers_what_it_sends(embedded: Cluster, name: str) -> None:
    # glibc resolves them under a lock that fork() does not free, and the client resolves for each connection.
    code = """
import signal, socket, threading
services.produce(topic, None, "parent").result()
def resolve():
    while True:
        socket.getaddrinfo("127.0.0.1", 9, flags=socket.AI_ADDRCONFIG)
for _ in range(2):
    threading.Thread(target=resolve, daemon=True).start()
for n in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        services.produce(topic, None, n).result(20)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, n
print("all of them")
"""
    done = program(code, kafka(embedded), name, 300)
    assert done.stdout == "all of them\n", done.stderr
    assert values(read(embedded, name, 9)) == ["parent", *range(8)]


def test_a_child_collects_nothing_of_its_parent_before_that_is_kept_from_being_destroyed(
    embedded: Cluster, name: str
) -> None:
    # What runs first in each child has the garbage collector run at the next occasion.
    first = """
import gc, os
os.register_at_fork(after_in_child=lambda: gc.set_threshold(1))
"""
    code = """
from django_kafka.producers import producers
gc.collect()
gc.set_threshold(1_000_000)
for _ in range(3):
    services.produce(topic, None, 1).result()
    producers.close("default")
child = os.fork()
if child == 0:
    os._exit(0 if gc.isenabled() else 1)
print(os.waitpid(child, 0)[1], gc.isenabled())
"""
    done = program(code, kafka(embedded), name, first=first)
    assert done.stdout == "0 True\n", done.stderr


def test_garbage_is_collected_again_after_forks_of_several_threads() -> None:
    forks = _Forks()
    forks.begin()
    forks.begin()
    forks.end()
    assert not gc.isenabled(), "another thread still forks"
    forks.end()
    assert gc.isenabled()
    forks.begin()
    forks.begin()
    forks.end_in_child()
    assert gc.isenabled()
    gc.disable()
    try:
        forks.begin()
        forks.end_in_child()
        assert not gc.isenabled(), "as it was before"
    finally:
        gc.enable()
