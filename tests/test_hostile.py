"""What strangers send: ten thousand messages as nobody should send them, and what is done to the desk afterwards."""

from __future__ import annotations

import ast
import hashlib
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

import django_kafka
from django_kafka import conf, serializers
from django_kafka.admin import showing
from django_kafka.clients.logs import ClientLog
from django_kafka.clients.scrubbing import Scrubber
from django_kafka.dead_letters.carrying import carry_out
from django_kafka.dead_letters.executing import Executor
from django_kafka.legible import printable
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, Replay
from tests.consuming import Workplace
from tests.letters import dead_letter
from tests.mutations import RUN, VALUES, Mutated, mutated
from tests.registries import Front
from tests.registries.schemas import SCHEMAS
from tests.servers.processes import wait_until

SEED = 20261126
COUNT = 10_000
OF_A_KIND = 3_600
"""With a schema, of each kind of those."""
PARTITIONS = 4
PIECE = 2_000
MAX_PAYLOAD = 19_000
"""Bytes; some of the oversize ones have more."""
LIST = "admin:lynx_kafka_deadletter_changelist"
Place = tuple[int, int]


def mark(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> str:
    """Return what tells one message from another."""
    return hashlib.sha256(repr((key, value, list(headers))).encode()).hexdigest()


class Ledger:
    """What was sent and what became of it, kept by the test."""

    def __init__(self) -> None:
        self.sent: dict[Place, tuple[str, str]] = {}
        self.handled: dict[Place, str] = {}

    def handle(self, message: Message) -> None:
        """Look at all of a message, and note it."""
        repr((message.key, message.value, message.headers, message.timestamp))
        headers = [(name, value) for name, value in message.headers]
        self.handled[message.partition, message.offset] = mark(message.raw_key, message.raw_value, headers)

    def send(self, place: Workplace, messages: list[Mutated]) -> None:
        """Send them over all partitions and note where each of them lies."""
        producer = Producer({"bootstrap.servers": place.cluster.bootstrap_servers, "linger.ms": 20, "log_level": 0})
        for number, one in enumerate(messages):
            what = one.kind, mark(one.key, one.value, one.headers)

            def note(error: Any, sent: Any, what: tuple[str, str] = what) -> None:
                assert error is None, error
                self.sent[sent.partition(), sent.offset()] = what

            partition = number % PARTITIONS
            producer.produce(
                place.topic, one.value, one.key, headers=one.headers, partition=partition, on_delivery=note
            )
            producer.poll(0)
        assert producer.flush(20) == 0


@pytest.fixture
def operator(client: Client) -> User:
    user = User.objects.create_user("operator", is_staff=True)
    wanted = ("view_deadletter", "view_payload_deadletter", "replay_deadletter", "discard_deadletter")
    user.user_permissions.set(Permission.objects.filter(codename__in=wanted))
    client.force_login(user)
    return user


def opened(client: Client, url: str) -> bytes:
    answer = client.get(url)
    assert answer.status_code == 200, (url, answer)
    return bytes(answer.content)


def confirmed(client: Client, verb: str, letters: list[DeadLetter]) -> None:
    data: dict[str, Any] = {"action": verb, "index": "0", "_selected_action": [str(one.pk) for one in letters]}
    asked = client.post(reverse(LIST), data)
    assert asked.status_code == 200
    data = {}
    for name, value in asked.context["hidden"]:
        data.setdefault(name, []).append(value)
    assert client.post(reverse(LIST), data, follow=True).status_code == 200


@pytest.mark.slow
def test_ten_thousand_mutated_messages_are_handled_or_stored_whole_and_the_desk_shows_them(
    workplace: Workplace, client: Client, operator: User, caplog: pytest.LogCaptureFixture
) -> None:
    print(f"seed {SEED}")
    ledger = Ledger()
    workplace.consume(ledger.handle, partitions=PARTITIONS, max_payload=MAX_PAYLOAD)
    messages = list(mutated(SEED, COUNT))
    with workplace.worker() as worker:
        # In pieces: the embedded cluster forgets what is more than a few MiB behind.
        for start in range(0, COUNT, PIECE):
            ledger.send(workplace, messages[start : start + PIECE])
            wait_until(lambda: worker.tally.handled + worker.tally.dead_lettered >= len(ledger.sent), 60)
    assert worker.error is None
    letters = workplace.letters()
    stored = {(one.partition, one.offset): mark(_raw(one.key), _raw(one.value), one.headers) for one in letters}

    assert len(ledger.sent) == COUNT
    assert not ledger.handled.keys() & stored.keys()
    assert ledger.handled | stored == {place: what for place, (_kind, what) in ledger.sent.items()}
    assert {one.category for one in letters} == {"serialization"}
    too_large = [one for one in letters if one.error_type == "django_kafka.exceptions.PayloadTooLarge"]
    assert too_large
    assert all(len(_raw(one.value) or b"") > MAX_PAYLOAD for one in too_large)
    assert workplace.committed() == dict.fromkeys(range(PARTITIONS), COUNT // PARTITIONS)
    assert all(record.getMessage().isprintable() for record in caplog.records)

    kind_of = {place: kind for place, (kind, _what) in ledger.sent.items()}
    sample: dict[str, list[DeadLetter]] = {}
    for one in letters:
        some = sample.setdefault(kind_of[one.partition, one.offset], [])
        if len(some) < 6:
            some.append(one)
    assert len(sample) > len(VALUES) * 3 / 4
    for page in (1, 2, 3):
        opened(client, reverse(LIST) + f"?p={page}")
    for some in sample.values():
        for one in some:
            shown = opened(client, reverse("admin:lynx_kafka_deadletter_change", args=[one.pk]))
            assert not any(forbidden in shown for forbidden in (b"<script>alert", b"\x1b", b"\0"))
            assert not any(turning in shown.decode() for turning in "\u202e\u2066\u200b\u2028")
    _replay_and_discard(client, [one for some in sample.values() for one in some])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["avro", "jsonschema", "protobuf"])
def test_mutated_messages_with_schemas_are_handled_or_stored_whole_and_the_desk_shows_them(
    workplace: Workplace, front: Front, client: Client, operator: User, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    print(f"seed {SEED}")
    ledger, schema = Ledger(), SCHEMAS[kind]
    kafka = {
        "schema_registry": {"url": front.url, "timeout": "30s", "auto_register": True},
        "producers": {"default": {"serializer": kind, "schema": schema}},
    }
    more = {"schema": schema} if kind == "protobuf" else {}
    workplace.consume(ledger.handle, partitions=PARTITIONS, kafka=kafka, serializer=kind, **more)
    good = serializers.encode(
        serializers.of_part(conf.producer(), None, workplace.topic, "value"),
        {"flight": "UA 1545", "delay": 2},
        "",
        "value",
    )
    assert good is not None
    messages = list(mutated(SEED, OF_A_KIND, good))
    with workplace.worker() as worker:
        ledger.send(workplace, messages)
        wait_until(lambda: worker.tally.handled + worker.tally.dead_lettered >= len(ledger.sent), 120)
    assert worker.error is None
    letters = workplace.letters()
    stored = {(one.partition, one.offset): mark(_raw(one.key), _raw(one.value), one.headers) for one in letters}
    assert not ledger.handled.keys() & stored.keys()
    assert ledger.handled | stored == {place: what for place, (_kind, what) in ledger.sent.items()}
    assert {one.category for one in letters} == {"serialization"}
    assert {one.attempts for one in letters} == {1}
    assert all(record.getMessage().isprintable() for record in caplog.records)
    kinds = {kind: 0 for kind, _what in ledger.sent.values()}
    for one in letters:
        # A key may be no text whatever the value is; it is read first.
        kinds[ledger.sent[one.partition, one.offset][0]] += one.error_message.startswith("The value")
    assert kinds["good frames"] == kinds["no value"] == 0
    for poison in ("a wrong magic byte", "a wrong schema id", "a wrong schema guid", "half a frame", "no bytes"):
        assert kinds[poison] > RUN / 2, kinds
    for one in letters[:: len(letters) // 30]:
        shown = opened(client, reverse("admin:lynx_kafka_deadletter_change", args=[one.pk]))
        assert not any(forbidden in shown for forbidden in (b"<script>alert", b"\x1b", b"\0"))


def _raw(data: Any) -> bytes | None:
    return None if data is None else bytes(data)


def _replay_and_discard(client: Client, letters: list[DeadLetter]) -> None:
    """Replay one half, which fails again, and discard the other."""
    again, away = letters[::2], letters[1::2]
    confirmed(client, "replay", again)
    confirmed(client, "discard", away)

    def waiting(error: Exception, _pause: float) -> None:
        raise AssertionError("the replays wait") from error

    executor = Executor()
    try:
        done = list(carry_out(executor, stop=threading.Event(), waiting=waiting))
    finally:
        executor.close()
    assert [one.state for one in done] == ["failed"] * len(again)
    assert DeadLetter.objects.filter(pk__in=[one.pk for one in again], state="open").count() == len(again)
    assert DeadLetter.objects.filter(pk__in=[one.pk for one in away], state="discarded").count() == len(away)
    for one in again[:5]:
        opened(client, reverse("admin:lynx_kafka_deadletter_change", args=[one.pk]))
    opened(client, reverse(LIST) + "?state=discarded")


# Lines of logs and terminals


FORGED = "down\r\n2026-11-26 INFO all is well\x1b[2J\x9b31m\u2028\u202etxt\x00"


def test_what_a_broker_or_a_message_says_stays_on_its_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ClientLog("consumer", "ops", Scrubber({})).log(40, "FAIL %s", FORGED)
    ((record),) = caplog.records
    assert record.getMessage().isprintable()
    assert "down\\u000d\\u000a2026" in record.getMessage()


def test_what_is_printable_stays_as_it_is() -> None:
    assert printable("Zürich → 東京 🛬") == "Zürich → 東京 🛬"
    assert printable(FORGED).isprintable()
    assert printable("\U000e0041") == "\\U000e0041"


# Names of topics


def test_a_topic_that_only_looks_like_another_is_shown_by_its_code_points() -> None:
    assert showing.topic("flights.eu-1_x") == "flights.eu-1_x"
    assert showing.topic("fl\u0456ghts") == "fl\\u0456ghts"
    assert showing.topic("\u202eflights\n") == "\\u202eflights\\u000a"


@pytest.mark.django_db
def test_the_desk_shows_the_topic_that_an_imported_letter_claims_by_its_code_points(
    client: Client, operator: User
) -> None:
    letter = dead_letter(1, imported_as="spring", origin_topic="fl\u0456ghts", origin_partition=1, origin_offset=2)
    for url in (reverse(LIST), reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])):
        shown = opened(client, url).decode()
        assert "fl\\u0456ghts" in shown


# Code that a stranger names


def modules() -> Iterable[tuple[Path, ast.Module]]:
    for path in sorted(Path(django_kafka.__file__).parent.rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def test_nothing_of_ours_unpickles_evaluates_or_runs_a_shell() -> None:
    forbidden_modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"}
    forbidden_calls = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
    found = []
    for path, tree in modules():
        for node in ast.walk(tree):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names} & forbidden_modules
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = {(node.module or "").partition(".")[0]} & forbidden_modules
            elif isinstance(node, ast.Call):
                names = {ast.unparse(node.func)} & forbidden_calls
            found += [f"{path.name}:{node.lineno} {name}" for name in names]  # type: ignore[attr-defined]
    assert not found


@pytest.fixture
def never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that says so when it is imported."""
    (tmp_path / "hostile_handlers.py").write_text("def run(message):\n    raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "hostile_handlers"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("consumer", ["ops", "gone"])
def test_a_handler_that_a_row_or_a_form_names_is_shown_and_never_imported(
    client: Client, operator: User, settings: Any, never_imported: str, consumer: str
) -> None:
    topics = {"flights": {"handler": "tests.app.handlers.fail_on_bad"}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": {"group_id": "ops", "topics": topics}}}
    letter = dead_letter({"bad": True}, consumer=consumer, handler=f"{never_imported}.run")
    shell = dead_letter(b'"true"', consumer=consumer, handler="os.system")

    for one in (letter, shell):
        page = opened(client, reverse("admin:lynx_kafka_deadletter_change", args=[one.pk])).decode()
        assert one.handler in page
    opened(client, reverse(LIST))
    url = reverse("admin:lynx_kafka_deadletter_replay", args=[letter.pk])
    client.post(url, {"confirmed": "yes", "handler": f"{never_imported}.run", "target": f"{never_imported}.run"})
    executor = Executor()
    try:
        done = list(carry_out(executor, stop=threading.Event(), waiting=lambda error, _pause: pytest.fail(str(error))))
    finally:
        executor.close()

    assert [one.state for one in done] == ["failed"]
    assert never_imported not in sys.modules


# Forms that were not filled in by their page


@pytest.mark.django_db
@pytest.mark.parametrize("chosen", ["abc", "9" * 30, "9" * 5000, "-1", "1 OR 1=1", "", "\x00", "\u0663", "1e3", "²"])
def test_ids_that_nobody_was_shown_choose_nothing(client: Client, operator: User, chosen: str) -> None:
    letter = dead_letter(1)
    data = {"action": "discard", "index": "0", "_selected_action": [chosen], "confirmed": "yes", "until": "9" * 400}

    assert client.post(reverse(LIST), data).status_code in (200, 302)
    page = reverse("admin:lynx_kafka_deadletter_change", args=[chosen or "x"])
    assert client.get(page).status_code == 404
    letter.refresh_from_db()
    assert letter.state == "open"


@pytest.mark.django_db
def test_a_huge_selection_is_carried_out_once_for_each_letter_that_is_there(client: Client, operator: User) -> None:
    letter, settled = dead_letter(1), dead_letter(2, state="resolved")
    ids = [str(letter.pk), str(settled.pk), *map(str, range(1_000_000, 1_000_900)), *[str(letter.pk)] * 50]

    data = {"action": "discard", "index": "0", "_selected_action": ids, "confirmed": "yes", "until": str(settled.pk)}
    assert client.post(reverse(LIST), data).status_code == 302

    assert list(DeadLetter.objects.order_by("pk").values_list("state", flat=True)) == ["discarded", "resolved"]


@pytest.mark.django_db
def test_a_form_that_is_posted_without_permission_or_in_a_wrong_state_does_nothing(client: Client) -> None:
    letter, settled = dead_letter(1), dead_letter(2, state="discarded")
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename="view_deadletter"))
    client.force_login(viewer)
    url = reverse("admin:lynx_kafka_deadletter_replay", args=[letter.pk])
    assert client.post(url, {"confirmed": "yes"}).status_code == 403
    data = {"action": "replay", "index": "0", "_selected_action": [str(letter.pk)], "confirmed": "yes", "until": "99"}
    client.post(reverse(LIST), data)
    assert not Replay.objects.exists()

    viewer.user_permissions.set(Permission.objects.filter(codename__in=["view_deadletter", "replay_deadletter"]))
    assert client.post(reverse("admin:lynx_kafka_deadletter_replay", args=[settled.pk])).status_code == 302
    assert not Replay.objects.exists()
