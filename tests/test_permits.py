"""Who may do what: nobody unless it was given, with all rows or with those of some consumers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Group, Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from django_kafka.dead_letters import permits
from django_kafka.dead_letters.permits import Verb
from django_kafka.models import Claim, DeadLetter, FailureGroup, Hold, Replay, Worker
from tests.letters import dead_letter
from tests.teams import BACKENDS

pytestmark = pytest.mark.django_db

VIEWS = {"view_deadletter", "view_failuregroup", "view_worker"}
OWN = {
    Verb.VIEW_PAYLOAD: {"view_payload_deadletter"},
    Verb.REPLAY: {"replay_deadletter"},
    Verb.EDIT: {"edit_deadletter", "view_payload_deadletter"},
    Verb.DISCARD: {"discard_deadletter"},
    Verb.MANAGE_JOBS: {"manage_replayjob"},
    Verb.CONTROL_WORKERS: {"control_worker"},
    Verb.EXPORT: {"export_deadletter"},
    Verb.ERASE: {"erase_deadletter"},
    Verb.ANNOTATE: {"change_failuregroup"},
}
ACTS = sorted(OWN)


@pytest.fixture(autouse=True)
def consumers(settings: Any) -> None:
    consumer = {"group_id": "g", "topics": {"flights": {"handler": "tests.app.handlers.record"}}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {"ops": consumer, "billing": consumer}}


def person(*codenames: str, **fields: Any) -> User:
    user = User.objects.create_user(f"p{User.objects.count()}", **fields)
    found = Permission.objects.filter(content_type__app_label="lynx_kafka", codename__in=codenames)
    assert found.count() == len(set(codenames)), "a permission that does not exist"
    user.user_permissions.set(found)
    return User.objects.get(pk=user.pk)


@pytest.fixture
def member(settings: Any) -> Callable[..., User]:
    """Make somebody whose team has consumer "ops", and may do this with it."""

    def make(*codenames: str, consumers: tuple[str, ...] = ("ops",)) -> User:
        settings.AUTHENTICATION_BACKENDS = BACKENDS
        settings.TEAMS = {"team": {"consumers": consumers, "may": {f"lynx_kafka.{each}" for each in codenames}}}
        user = person()
        user.groups.add(Group.objects.get_or_create(name="team")[0])
        return user

    return make


def test_every_verb_is_tested_here() -> None:
    assert {*OWN, Verb.VIEW} == set(Verb)


@pytest.mark.parametrize("verb", Verb)
def test_nobody_may_do_anything_unless_it_was_given(verb: Verb) -> None:
    for nobody in (person(), person(is_staff=True), AnonymousUser()):
        for row in (None, dead_letter(), Worker(consumer="ops")):
            assert not permits.may(nobody, verb, row)
            assert permits.refusal(nobody, verb, row)
        assert permits.consumers_of(nobody, verb) == frozenset()
        assert not permits.anywhere(nobody, verb)


@pytest.mark.parametrize("verb", Verb)
def test_superusers_may_do_everything_while_they_are_active(verb: Verb) -> None:
    chief = person(is_superuser=True)
    assert permits.may(chief, verb)
    assert permits.refusal(chief, verb, dead_letter()) == ""
    assert permits.consumers_of(chief, verb) is None
    assert permits.anywhere(chief, verb)
    chief.is_active = False
    assert not permits.may(chief, verb)
    assert permits.consumers_of(chief, verb) == frozenset()


@pytest.mark.parametrize("verb", ACTS)
def test_a_verb_needs_its_own_permission_and_to_view_and_no_other(verb: Verb) -> None:
    enough = person(*OWN[verb], *VIEWS)
    others = set().union(*OWN.values()) - OWN[verb]

    assert permits.may(enough, verb)
    assert permits.may(enough, verb, dead_letter())
    assert [each for each in ACTS if OWN[each] <= OWN[verb]] == [each for each in ACTS if permits.may(enough, each)]
    assert not permits.may(person(*OWN[verb]), verb), "without the permission to view"
    assert not permits.may(person(*others, *VIEWS), verb), "with every other one"
    for one in OWN[verb]:
        assert not permits.may(person(*(OWN[verb] - {one}), *VIEWS), verb), f"without {one}"


def test_to_view_is_djangos_own_permission_of_each_model() -> None:
    letters_only = person("view_deadletter")

    assert permits.may(letters_only, Verb.VIEW)
    assert permits.may(letters_only, Verb.VIEW, DeadLetter(consumer="ops"))
    assert not permits.may(letters_only, Verb.VIEW, FailureGroup(consumer="ops"))
    assert not permits.may(letters_only, Verb.VIEW, Replay(letter=DeadLetter(consumer="ops")))
    assert permits.consumers_of(letters_only, Verb.VIEW) is None
    assert permits.consumers_of(letters_only, Verb.VIEW, Worker) == frozenset()


def test_a_refusal_names_what_is_missing_and_is_translated() -> None:
    viewer = person("view_deadletter")

    assert permits.refusal(viewer, Verb.REPLAY) == (
        "You are not permitted to replay dead letters. It needs the permission lynx_kafka.replay_deadletter."
    )
    assert "lynx_kafka.view_payload_deadletter" in permits.refusal(viewer, Verb.EDIT)
    assert "lynx_kafka.view_deadletter" in permits.refusal(person("replay_deadletter"), Verb.REPLAY)
    with translation.override("de"):
        assert permits.refusal(viewer, Verb.REPLAY) == (
            "Sie dürfen keine Dead Letters wiederholen. Dazu ist die Berechtigung lynx_kafka.replay_deadletter nötig."
        )


def test_a_refusal_and_a_permission_always_agree(member: Callable[..., User]) -> None:
    people = [person(), person("view_deadletter"), person(is_superuser=True), member("view_deadletter")]
    rows = [None, DeadLetter(consumer="ops"), DeadLetter(consumer="billing"), Worker(consumer="ops")]
    for one in people:
        for verb in Verb:
            for row in rows:
                assert permits.may(one, verb, row) == (permits.refusal(one, verb, row) == "")


def test_a_team_may_do_with_its_own_consumers_what_it_was_given(member: Callable[..., User]) -> None:
    mate = member("view_deadletter", "replay_deadletter")
    mine, other = dead_letter(), dead_letter(consumer="billing")

    assert permits.may(mate, Verb.VIEW, mine)
    assert permits.may(mate, Verb.REPLAY, mine)
    assert not permits.may(mate, Verb.DISCARD, mine)
    assert not permits.may(mate, Verb.VIEW, other)
    assert not permits.may(mate, Verb.REPLAY, other)
    assert not permits.may(mate, Verb.REPLAY), "that would be all of them"
    assert permits.anywhere(mate, Verb.REPLAY)
    assert not permits.anywhere(mate, Verb.DISCARD)
    assert permits.consumers_of(mate, Verb.REPLAY) == {"ops"}
    assert list(permits.allowed(mate, Verb.REPLAY, DeadLetter.objects.all())) == [mine]
    assert list(permits.allowed(mate, Verb.DISCARD, DeadLetter.objects.all())) == []
    assert list(DeadLetter.objects.filter(permits.within(permits.consumers_of(mate, Verb.VIEW)))) == [mine]


def test_what_a_team_may_do_comes_on_top_of_what_the_person_may_do_anyway(member: Callable[..., User]) -> None:
    mate = member("replay_deadletter")
    mate.user_permissions.add(Permission.objects.get(codename="view_deadletter"))
    mate = User.objects.get(pk=mate.pk)

    assert permits.may(mate, Verb.REPLAY, DeadLetter(consumer="ops")), "viewed by one, replayed by the other"
    assert permits.consumers_of(mate, Verb.VIEW) is None
    assert permits.consumers_of(mate, Verb.REPLAY) == {"ops"}


def test_every_row_with_a_consumer_can_be_asked_about(member: Callable[..., User]) -> None:
    models = (DeadLetter, FailureGroup, Hold, Claim, Worker, Replay)
    mate = member(*(f"view_{model._meta.model_name}" for model in models))
    letter = dead_letter()
    replay = Replay.objects.create(letter=letter, target="handler", requested_at=timezone.now())

    for model in models:
        assert permits.consumers_of(mate, Verb.VIEW, model) == {"ops"}
    assert permits.may(mate, Verb.VIEW, replay)
    assert list(permits.allowed(mate, Verb.VIEW, Replay.objects.all(), field="letter__consumer")) == [replay]
    assert not permits.may(mate, Verb.VIEW, Replay(letter=DeadLetter(consumer="billing")))


def test_consumers_that_settings_do_not_have_any_more_are_known_by_their_rows(member: Callable[..., User]) -> None:
    now = timezone.now()
    FailureGroup.objects.create(
        consumer="gone", fingerprint="f", error_type="E", category="handler", first_seen_at=now, last_seen_at=now
    )
    Worker.objects.create(
        id="w", consumer="elsewhere", group_id="g", host="h", pid=1, version="1", started_at=now, seen_at=now
    )
    Hold.objects.create(consumer="held", group_id="g", topic="t", partition=0, key=b"k", key_hash="k", since=now)
    Claim.objects.create(
        consumer="claimed", group_id="g", topic="t", partition=0, offset=0, cluster="default", claimed_at=now
    )

    assert permits.known_consumers() == {"ops", "billing", "gone", "elsewhere", "held", "claimed"}
    mate = member("view_deadletter", consumers=("gone", "held", "unheard-of"))
    assert permits.consumers_of(mate, Verb.VIEW) == {"gone", "held"}


def test_it_is_asked_once_for_each_person_and_costs_nothing_with_the_permission_for_all(
    member: Callable[..., User],
) -> None:
    mate = member("view_deadletter")
    with CaptureQueriesContext(
        connection,
    ) as first:
        permits.consumers_of(mate, Verb.VIEW)
    with CaptureQueriesContext(connection) as again:
        permits.consumers_of(mate, Verb.VIEW)
    chief = person(is_superuser=True)
    with CaptureQueriesContext(connection) as whole:
        permits.consumers_of(chief, Verb.VIEW)

    assert len([one for one in first if "failuregroup" in one["sql"]]) == 1
    assert len(again) == 0
    assert len(whole) == 0
