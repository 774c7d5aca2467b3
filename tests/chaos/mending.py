"""The process that mends held keys, `python -m tests.chaos.mending`: it sees to letters, and has them replayed.

It does what people do in the admin, by the same functions: poison is discarded, and what the handler fails on is
replayed once the handler has been mended for it. The workers carry the replays out.
"""

from __future__ import annotations

import signal
import threading

import django

from .records import HELD

EVERY, AFTER = 0.5, 2.0
"""Seconds between two looks, and for how long a letter is left alone at first, so that others come to stand behind."""


def main() -> None:
    """Mend until told to stop."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    django.setup()
    from django.db import InterfaceError, OperationalError, connection

    while not stop.wait(EVERY):
        try:
            mend()
        except (OperationalError, InterfaceError):
            connection.close()
    print("Nothing is mended any more.", flush=True)


def mend() -> None:
    """See to every held letter that stands open for a while."""
    from django.db import connection

    from django_kafka.dead_letters import replaying
    from django_kafka.models import DeadLetter

    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT letter.id FROM lynx_kafka_deadletter AS letter JOIN chaos_letter AS said ON said.letter = letter.id
            WHERE letter.consumer = %s AND letter.state = 'open' GROUP BY letter.id
            HAVING clock_timestamp() - max(pg_xact_commit_timestamp(said.xmin)) > %s * interval '1 second'
            """,
            [HELD.name, AFTER],
        )
        ids = [pk for (pk,) in cursor.fetchall()]
    for letter in DeadLetter.objects.filter(pk__in=ids).order_by("pk"):
        if letter.category == "serialization":
            replaying.discard([letter.pk], name="mender")
            continue
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO chaos_mended VALUES (%s, %s) ON CONFLICT DO NOTHING", [letter.partition, letter.offset]
            )
        replaying.request([letter.pk], name="mender")


if __name__ == "__main__":
    main()
