"""People in one database, dead letters in another, kept apart by a router as Django's documentation shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.utils import timezone
from pytest_django import Settings

from django_kafka.dead_letters import replaying
from django_kafka.models import Replay
from tests.databases import added, of_sqlite
from tests.letters import dead_letter

pytestmark = pytest.mark.django_db(transaction=True)

APPS_OF_PEOPLE = {"admin", "auth", "contenttypes"}


class Router:
    """People, their permissions and what they did in the admin have a database of their own."""

    def db_for_read(self, model: Any, **_hints: Any) -> str:
        return "people" if model._meta.app_label in APPS_OF_PEOPLE else "default"

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **_hints: Any) -> bool:
        return (db == "people") == (app_label in APPS_OF_PEOPLE)


@pytest.fixture
def ann(settings: Settings, tmp_path: Path, django_db_blocker: Any) -> Iterator[User]:
    """Somebody in the other database."""
    with added("people", django_db_blocker, **of_sqlite(tmp_path / "people")):
        settings.DATABASE_ROUTERS = ["tests.test_databases.Router"]
        call_command("migrate", database="people", verbosity=0)
        yield User.objects.create_user("ann")


def test_people_of_another_database_ask_for_replays(ann: User) -> None:
    assert "lynx_kafka_replay" not in connections["people"].introspection.table_names()
    assert replaying.request([dead_letter({}).pk], user=ann).count == 1
    replay = Replay.objects.get()
    assert (replay.requested_by_id, replay.requested_by_name) == (ann.pk, "ann")


def test_people_of_another_database_are_deleted_and_their_replays_keep_the_name(ann: User) -> None:
    ids = {"letter": dead_letter({}), "requested_by_id": ann.pk}
    Replay.objects.create(**ids, requested_by_name="ann", requested_at=timezone.now(), target="handler")
    ann.delete()
    assert not User.objects.exists()
    assert Replay.objects.get().requested_by_name == "ann"
