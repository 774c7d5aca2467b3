"""What the admin takes with a million dead letters on PostgreSQL: `python -m benchmarks.desk`.

Fills a server of its own with letters in 200 groups, asks for every page and filter, and shows medians and numbers of
queries; the exit code is 1 when a page takes more than 200 ms. Its tables are larger than the memory that PostgreSQL
takes unless told otherwise, so it is given 1 GB, less than the quarter of a machine that its manual advises.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

import django
import psycopg

from tests.servers import PostgreSQL

LIMIT = 0.2
"""Seconds that a page may take on the server."""
GROUPS = 200
TOPICS = 40
CONSUMERS = 20
PER_HOLD = 26

_GROUPS = """
INSERT INTO lynx_kafka_failuregroup (
    fingerprint, cluster, consumer, handler, error_type, frame, category, example, seen, first_seen_at, last_seen_at,
    first_release, last_release, state, state_by, resolved_in, regressed_in, owner, note)
SELECT md5(g::text), 'default', 'consumer-' || g %% {consumers}, 'flights.handlers.handle_' || g,
    'flights.errors.Error' || g %% 30, 'flights.handlers.handle_' || g,
    (ARRAY['handler', 'poison', 'timeout', 'data'])[1 + g %% 4], 'invalid literal for int() with base 10: ''NA''',
    0, now() - interval '60 days', now() - g * interval '1 hour', 'r1', 'r' || g %% 15,
    (ARRAY['open', 'acknowledged', 'resolved', 'regressed'])[1 + g %% 4], '', '', '', '', ''
FROM generate_series(1, {groups}) g
"""
_HOURS = """
INSERT INTO lynx_kafka_failurehour (failure_group_id, hour, count)
SELECT g.id, date_trunc('hour', now()) - h * interval '1 hour', 1 + h %% 50
FROM lynx_kafka_failuregroup g, generate_series(0, 31 * 24) h
"""
# Letters of a group come in runs, as an incident makes them; old ones are settled, except every tenth.
_LETTERS = """
INSERT INTO lynx_kafka_deadletter (
    {columns})
SELECT 'default', g.consumer, 'ops', 'topic-' || g.id %% {topics}, n %% 8, n, md5(n::text) || md5((n + 1)::text),
    1700000000000 + n, convert_to('N' || n %% 100000, 'UTF8'),
    substr(encode(sha256(convert_to('N' || n %% 100000, 'UTF8')), 'hex'), 1, 16),
    convert_to(format(
        '{{"flight": "UA %%s", "tail": "N%%s", "origin": "JFK", "dest": "LAX", "passenger": "person-%%s@example.com", '
        '"dep_time": "NA", "distance": %%s, "id": "%%s", "note": "gate %%s closed because of weather over the field"}}',
        n %% 5000, n %% 100000, n, n %% 3000, md5(n::text)::uuid, n %% 60), 'UTF8'),
    convert_to('[["trace", "MTIzNDU2Nzg5MA=="], ["type", "ZGVwYXJ0dXJl"]]', 'UTF8'),
    '', '', NULL, NULL, NULL, '', '',
    g.handler, g.category, g.error_type, format('no departure time in flight UA %%s: ''NA''', n %% 5000),
    repeat(format('  File "/app/flights/handlers.py", line %%s, in handle' || chr(10), n %% 90), 8) || 'ValueError: NA',
    g.id, 'r' || n * 15 / {letters}, 1 + n %% 4 + CASE WHEN n %% 997 = 0 THEN 9 ELSE 0 END, s.state,
    f.at, f.at, CASE WHEN s.state IN ('resolved', 'discarded') THEN f.at + interval '1 hour' END, ''
FROM generate_series(1, {letters}) n
JOIN (SELECT *, row_number() OVER (ORDER BY id) AS place FROM lynx_kafka_failuregroup) g
    ON g.place = 1 + (n / 50 * 7 + n %% 3) %% {groups}
CROSS JOIN LATERAL (SELECT now() - interval '60 days' + n * interval '60 days' / {letters} AS at) f
CROSS JOIN LATERAL (SELECT CASE WHEN n > {letters} * 0.7 OR n %% 10 = 0 THEN 'open' WHEN n %% 7 = 0 THEN 'discarded'
    ELSE 'resolved' END AS state) s
"""
_COLUMNS = """cluster, consumer, group_id, topic, partition, "offset", fingerprint, timestamp_ms, key, key_hash, value,
    stored_headers, imported_as, origin_topic, origin_partition, origin_offset, origin_timestamp_ms, origin_group,
    unread, handler, category, error_type, error_message, traceback, failure_group_id, release, attempts, state,
    first_failed_at, last_failed_at, settled_at, trace_id"""
_ATTEMPTS = """
INSERT INTO lynx_kafka_deadletterattempt (
    letter_id, number, at, origin, worker, succeeded, error_type, error_message, traceback, reported_by)
SELECT id, attempts, last_failed_at, 'worker', 'host:1', false, error_type, error_message, traceback, ''
FROM lynx_kafka_deadletter
"""
_REPLAYS = """
INSERT INTO lynx_kafka_replay (
    letter_id, target, state, requested_by_name, requested_at, claim, executor, finished_at, deaths, result,
    to_topic, edited, lane)
SELECT id, 'handler', 'succeeded', 'root', settled_at, '', 'host:1', settled_at, 0, '', '', false, ''
FROM lynx_kafka_deadletter WHERE state = 'resolved' AND id %% 2 = 0
"""
_WORDS = """
INSERT INTO lynx_kafka_letterwords (letter_id, rules, words)
SELECT id, {rules}, to_tsvector('simple', regexp_replace(lower(convert_from(key, 'UTF8') || ' ' || error_type || ' ' ||
    error_message || ' trace 1234567890 type departure ' || convert_from(value, 'UTF8')), '[^a-z0-9]+', ' ', 'g'))
FROM lynx_kafka_deadletter
"""
_HOLDS = """
WITH chosen AS (
    SELECT id, cluster, group_id, topic, partition, key, consumer, last_failed_at,
        row_number() OVER (ORDER BY id DESC) - 1 AS place
    FROM lynx_kafka_deadletter WHERE state = 'open' ORDER BY id DESC LIMIT {letters} / 20
), made AS (
    INSERT INTO lynx_kafka_hold (cluster, group_id, topic, partition, key, key_hash, consumer, since, changes)
    SELECT cluster, group_id, topic, partition, convert_to('held ' || place / {per_hold}, 'UTF8'),
        encode(sha256(convert_to('held ' || place / {per_hold}, 'UTF8')), 'hex'), consumer, last_failed_at, 0
    FROM chosen WHERE place %% {per_hold} = {per_hold} - 1 RETURNING id, key
)
UPDATE lynx_kafka_deadletter l SET hold_id = made.id,
    state = CASE WHEN place %% {per_hold} = {per_hold} - 1 THEN 'open' ELSE 'parked' END
FROM chosen JOIN made ON made.key = convert_to('held ' || place / {per_hold}, 'UTF8') WHERE l.id = chosen.id
"""


def main(arguments: list[str] | None = None) -> int:
    """Fill, ask, and show; return 1 when a page takes too long."""
    parser = argparse.ArgumentParser(prog="benchmarks.desk", description=__doc__)
    parser.add_argument("--letters", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", metavar="DSN", help="a server to use, and to leave with its data")
    parser.add_argument("--filled", action="store_true", help="its data are there already")
    parser.add_argument("words", nargs="*", help="only pages that have one of these in their names")
    options = parser.parse_args(arguments)
    if options.server:
        return _measure(options.server, options)
    server = PostgreSQL("shared_buffers=1GB", durable=True)
    try:
        server.start()
        return _measure(server.dsn, options)
    finally:
        server.close()


def _measure(dsn: str, options: argparse.Namespace) -> int:
    _set_up(dsn)
    if not options.filled:
        fill(dsn, options.letters)
    worst = 0.0
    client = _client()
    print(f"{'ms':>8} {'first':>8} {'SQL':>8} {'queries':>8}  page")
    for name, path in pages():
        if options.words and not any(word in name for word in options.words):
            continue
        first, seconds, queries, database = ask(client, path, options.rounds)
        worst = max(worst, seconds)
        late = "  too long" if seconds > LIMIT else ""
        print(
            f"{seconds * 1000:8.0f} {first * 1000:8.0f} {database * 1000:8.0f} {queries:8d}  {name}{late}", flush=True
        )
    return int(worst > LIMIT)


def _set_up(dsn: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    os.environ["DJANGO_KAFKA_TEST_DATABASE"] = "postgresql"
    from django.conf import settings

    server = urlsplit(dsn)
    settings.DATABASES["default"] |= {"HOST": server.hostname, "PORT": server.port, "NAME": "desk"}
    settings.KAFKA = {
        "brokers": ["127.0.0.1:1"],
        "consumers": {
            f"consumer-{number}": {"group_id": "ops", "topics": [f"topic-{each}" for each in range(TOPICS)]}
            for number in range(CONSUMERS)
        },
    }
    django.setup()


def fill(dsn: str, letters: int) -> None:
    """Make the database anew, with so many letters."""
    from django.core.management import call_command

    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS desk")
        admin.execute("CREATE DATABASE desk")
    call_command("migrate", verbosity=0)
    write(letters)


def write(letters: int) -> None:
    """Write so many letters into an empty database."""
    from django.db import connection

    from django_kafka.dead_letters import searching
    from django_kafka.models import DeadLetter, DeadLetterAttempt, LetterWords

    names = {
        "letters": letters, "groups": GROUPS, "topics": TOPICS, "consumers": CONSUMERS, "per_hold": PER_HOLD,
        "columns": _COLUMNS,
    }  # fmt: skip
    with connection.cursor() as cursor, _without_indexes(DeadLetter), _without_indexes(DeadLetterAttempt):
        for statement in (_GROUPS, _HOURS, _LETTERS):
            _run(cursor, statement.format(**names))
    with connection.cursor() as cursor:
        cursor.execute("SET maintenance_work_mem = '512MB'")
        for statement in (_ATTEMPTS, _REPLAYS, _HOLDS):
            _run(cursor, statement.format(**names))
        with _without_indexes(LetterWords):
            _run(cursor, _WORDS.format(rules=searching.rules()))
        _run(cursor, "VACUUM ANALYZE")


def _run(cursor: Any, statement: str) -> None:
    begun = time.monotonic()
    cursor.execute(statement.replace("%%", "%"))
    first = next(line for line in statement.splitlines() if line.strip())
    print(f"{time.monotonic() - begun:8.1f} s  {first.strip()[:60]}", flush=True)


@contextmanager
def _without_indexes(model: Any) -> Iterator[None]:
    """Make the indexes of a table when its rows are there: that is several times as fast."""
    from django.db import connection

    with connection.schema_editor() as editor:
        for index in model._meta.indexes:
            editor.remove_index(model, index)
        for index in _others(model):
            editor.remove_constraint(model, index)
    yield
    with connection.schema_editor() as editor:
        for index in model._meta.indexes:
            editor.add_index(model, index)
        for index in _others(model):
            editor.add_constraint(model, index)


def _others(model: Any) -> list[Any]:
    from django_kafka.models.words import WordsIndex

    return [one for one in model._meta.constraints if isinstance(one, WordsIndex)]


def _client() -> Any:
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.get_or_create(username="root", is_superuser=True, is_staff=True)[0])
    return client


def ask(client: Any, path: str, rounds: int) -> tuple[float, float, int, float]:
    """Return the seconds of the first time, the median of the others, and number and seconds of queries."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    taken = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        answer = client.get(path)
        taken.append(time.perf_counter() - begun)
        assert answer.status_code == 200, (path, answer.status_code)
    with CaptureQueriesContext(connection) as queries:
        client.get(path)
    if os.environ.get("DESK_QUERIES"):
        for query in sorted(queries.captured_queries, key=lambda one: -float(one["time"]))[:3]:
            print("   ", query["time"], query["sql"][:1500])
    database = sum(float(query["time"]) for query in queries.captured_queries)
    return taken[0], statistics.median(taken[1:]), len(queries), database


def pages() -> Iterator[tuple[str, str]]:
    """Return a name and the path of each page that is asked for."""
    from django.urls import reverse

    from django_kafka.models import DeadLetter, FailureGroup, Hold, Replay

    def listed(model: str, **query: Any) -> str:
        return f"{reverse(f'admin:lynx_kafka_{model}_changelist')}?{urlencode(query)}"

    some = DeadLetter.objects.order_by("-id")[1000]
    group = FailureGroup.objects.order_by("id")[10]
    filters: dict[str, dict[str, Any]] = {
        "nothing": {},
        "consumer": {"consumer": "consumer-3"},
        "topic": {"topic": "topic-7"},
        "partition": {"q": "topic-7[3]"},
        "offsets": {"q": f"topic-7[3]@1000-{some.offset}"},
        "one offset": {"q": f"{some.topic}[{some.partition}]@{some.offset}"},
        "key": {"key_of": some.pk},
        "group": {"of_group": group.pk},
        "exception": {"error_type": "flights.errors.Error7"},
        "category": {"category": "data"},
        "tried once": {"tried": "once"},
        "tried often": {"tried": "often"},
        "today": {"last_failed_at__gte": some.last_failed_at.strftime("%Y-%m-%d 00:00:00+00:00")},
        "long ago": {"last_failed_at__lt": DeadLetter.objects.order_by("id")[1000].last_failed_at.isoformat(" ")},
        "release": {"release": "r3"},
        "replay asked for": {"replay": "outstanding"},
        "replay not asked for": {"replay": "none"},
    }
    for state in ("open", "resolved", "discarded", "parked", "all"):
        for name, query in filters.items():
            yield f"letters {state}, {name}", listed("deadletter", state=state, **query)
    pairs = [("consumer", "topic"), ("consumer", "exception"), ("consumer", "category"), ("topic", "tried often"),
             ("exception", "release"), ("consumer", "today"), ("topic", "release"), ("group", "tried once"),
             ("group", "release"), ("category", "release"), ("exception", "long ago")]  # fmt: skip
    for state in ("open", "discarded", "all"):
        for one, other in pairs:
            yield (
                f"letters {state}, {one} and {other}",
                listed("deadletter", state=state, **filters[one], **filters[other]),
            )
    for page in (2, 50, 100):
        yield f"letters page {page}", listed("deadletter", p=page)
    for state in ("open", "discarded", "all"):
        for order in ("7", "-7"):
            yield f"letters {state}, by last failure {order}", listed("deadletter", o=order, state=state)
    searches = {
        "one number": "4711", "a tail": "N4711", "a person": "person-987654@example.com", "two words": "flight ua",
        "what all have": "weather", "what none has": "nowhere", "a gate": "gate 17", "a beginning": "pers",
        "an error": "Error7", "a UUID": "c4ca4238-a0b9-2382-0dcc-509a6f75849b", "a topic": "topic-7",
        "rather many": "UA 17", "begins many": "N1", "one letter": "n",
    }  # fmt: skip
    for name, term in searches.items():
        for state in ("open", "all"):
            yield f"search {state}, {name}", listed("deadletter", q=term, state=state)
    yield "search a person of a consumer", listed("deadletter", q="person-987654", consumer="consumer-3")
    yield "letter", reverse("admin:lynx_kafka_deadletter_change", args=[some.pk])
    parked = DeadLetter.objects.filter(state="parked").order_by("-id").first()
    assert parked is not None
    yield "letter that is parked", reverse("admin:lynx_kafka_deadletter_change", args=[parked.pk])
    for state in ("unresolved", "resolved", "all"):
        yield f"groups {state}", listed("failuregroup", state=state)
    yield "groups of a consumer", listed("failuregroup", consumer="consumer-3")
    yield "groups of a search", listed("failuregroup", q="Error7")
    yield "group", reverse("admin:lynx_kafka_failuregroup_change", args=[group.pk])
    yield "replays", listed("replay")
    yield "replays of a state", listed("replay", state="succeeded")
    yield "replays that failed", listed("replay", state="failed")
    yield "replays of a consumer", listed("replay", consumer="consumer-3")
    yield "replays by search", listed("replay", q="topic-7")
    replay = Replay.objects.order_by("id").first()
    assert replay is not None
    yield "replay", reverse("admin:lynx_kafka_replay_change", args=[replay.pk])
    yield "holds", listed("hold")
    yield "holds of a topic", listed("hold", topic="topic-7")
    yield "holds by search", listed("hold", q="held 17")
    hold = Hold.objects.order_by("id").first()
    assert hold is not None
    yield "hold", reverse("admin:lynx_kafka_hold_change", args=[hold.pk])
    yield "workers", listed("worker")
    yield "claims", listed("claim")
    yield "start", reverse("admin:index")


if __name__ == "__main__":
    sys.exit(main())
