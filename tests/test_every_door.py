"""Every page of ours in the admin, by GET and by POST, with every permission and without: found through the URLs.

A page that is added is walked through as well: a test fails until it says here what the page needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.db import connection, transaction
from django.db.models import Model
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, get_resolver, reverse
from django.utils import timezone

from django_kafka.admin.verbs import VERBS
from django_kafka.dead_letters import audit
from django_kafka.dead_letters.permits import Verb
from django_kafka.models import AuditEntry, Claim, Control, FailureGroup, Hold, Replay, ReplayJob, Worker
from tests.letters import dead_letter
from tests.teams import BACKENDS

pytestmark = pytest.mark.django_db

NOBODY = "nobody"
"""What even superusers may not do."""
VIEW = (Verb.VIEW, NOBODY)
"""A page that is for reading: its GET needs the permission to view, and there is no POST."""

PAGES: dict[str, tuple[Any, Any]] = {
    "change": VIEW,
    "history": (Verb.VIEW, Verb.VIEW),
    "changelist": (Verb.VIEW, Verb.VIEW),
    "add": (NOBODY, NOBODY),
    "delete": (NOBODY, NOBODY),
    "deadletter_download": (Verb.VIEW_PAYLOAD, NOBODY),
    "deadletter_replay": (Verb.REPLAY, Verb.REPLAY),
    "deadletter_replay-to-topic": (Verb.REPLAY, Verb.REPLAY),
    "deadletter_replay-to-other-topic": (Verb.REPLAY, Verb.REPLAY),
    "deadletter_dry-run": (Verb.REPLAY, Verb.REPLAY),
    "deadletter_edit": (Verb.EDIT, Verb.EDIT),
    "deadletter_replay_of": VIEW,
    "deadletter_waits": VIEW,
    "deadletter_cancel-replay": (Verb.REPLAY, Verb.REPLAY),
    "deadletter_discard": (Verb.DISCARD, Verb.DISCARD),
    "deadletter_reopen": (Verb.DISCARD, Verb.DISCARD),
    "deadletter_erase": (Verb.ERASE, Verb.ERASE),
    "deadletter_group": (None, None),
    "failuregroup_say": (NOBODY, Verb.ANNOTATE),
    "failuregroup_note": (NOBODY, Verb.ANNOTATE),
    **{f"replayjob_{verb}": (NOBODY, Verb.MANAGE_JOBS) for verb in ("pause", "resume", "cancel", "rate")},
    "worker_close": (Verb.CONTROL_WORKERS, Verb.CONTROL_WORKERS),
    "dashboard": VIEW,
    "control": (Verb.CONTROL_WORKERS, Verb.CONTROL_WORKERS),
}
"""What GET and POST of each page need, by the end of its name, or by model and end. None: what its verb does."""
VERB_NEEDS = {
    "replay": Verb.REPLAY,
    "replay-to-topic": Verb.REPLAY,
    "replay-to-other-topic": Verb.REPLAY,
    "dry-run": Verb.REPLAY,
    "cancel-replay": Verb.REPLAY,
    "discard": Verb.DISCARD,
    "reopen": Verb.DISCARD,
    "erase": Verb.ERASE,
}
ACTIONS = {
    ("deadletter", "export-jsonl"): Verb.EXPORT,
    ("deadletter", "export-csv"): Verb.EXPORT,
    **{("deadletter", name): needs for name, needs in VERB_NEEDS.items() if name != "dry-run"},
    ("hold", "replay"): Verb.REPLAY,
    ("hold", "discard"): Verb.DISCARD,
    ("failuregroup", "say_acknowledged"): Verb.ANNOTATE,
    ("failuregroup", "say_resolved"): Verb.ANNOTATE,
    ("failuregroup", "say_open"): Verb.ANNOTATE,
    ("worker", "close_circuits"): Verb.CONTROL_WORKERS,
}
CODENAMES = {
    Verb.VIEW_PAYLOAD: ("view_payload_deadletter",),
    Verb.REPLAY: ("replay_deadletter",),
    Verb.EDIT: ("edit_deadletter", "view_payload_deadletter"),
    Verb.DISCARD: ("discard_deadletter",),
    Verb.MANAGE_JOBS: ("manage_replayjob",),
    Verb.CONTROL_WORKERS: ("control_worker",),
    Verb.EXPORT: ("export_deadletter",),
    Verb.ERASE: ("erase_deadletter",),
    Verb.ANNOTATE: ("change_failuregroup",),
}
MINE, OTHERS = "ops", "billing"


# What there is


def make(consumer: str) -> dict[str, Model]:
    """Store a row of each model, all of it with the consumer's name in it; by the models' names."""
    now = timezone.now()
    place = {"group_id": f"g-{consumer}", "topic": f"topic-{consumer}", "partition": 0}
    group = FailureGroup.objects.create(
        consumer=consumer, fingerprint=consumer, error_type=f"Error-{consumer}", category="handler",
        example=f"EXAMPLE-{consumer}", first_seen_at=now, last_seen_at=now,
    )  # fmt: skip
    key = f"KEY-{consumer}".encode()
    hold = Hold.objects.create(consumer=consumer, **place, key=key, key_hash=consumer, since=now)
    letter = dead_letter(
        {"secret": f"SECRET-{consumer}"}, consumer=consumer, topic=place["topic"], key=key, failure_group=group,
        error_message=f"MESSAGE-{consumer}", headers=[("h", f"HEADER-{consumer}".encode())],
    )  # fmt: skip
    dead_letter({}, consumer=consumer, topic=place["topic"], key=key, failure_group=group, hold=hold)
    replayed = dead_letter({}, consumer=consumer, topic=place["topic"], key=b"other", failure_group=group)
    audit.note(f"somebody-{consumer}", "look at payload", [letter])
    rows: list[Model] = [
        letter, group, hold,
        Replay.objects.create(letter=replayed, target="handler", requested_at=now, requested_by_name=consumer),
        Claim.objects.create(consumer=consumer, cluster="default", **place, offset=1, claimed_at=now),
        Worker.objects.create(
            id=f"w-{consumer}", consumer=consumer, group_id=f"g-{consumer}", host=f"h-{consumer}", pid=1, version="1",
            started_at=now, seen_at=now, circuit="open", circuit_episode=1, circuit_reason=f"REASON-{consumer}",
        ),
        AuditEntry.objects.get(consumer=consumer),
        Control.objects.create(
            consumer=consumer, cluster="default", group_id=f"g-{consumer}", verb="stop", reason=f"REASON-{consumer}",
            state="done", requested_at=now, expires_at=now,
        ),
        ReplayJob.objects.create(consumer=consumer, target="handler", requested_at=now, description=consumer),
    ]  # fmt: skip
    return {str(row._meta.model_name): row for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One page, or action of a list, for the rows of one consumer."""

    name: str
    url: str
    model: type[Model]
    gets: Any
    """The verb that its GET needs, or NOBODY."""
    posts: Any
    data: dict[str, Any]
    of_row: bool
    """Whether it is about one row, and not a list."""


def our_admins() -> Iterator[tuple[str, Any]]:
    for model, model_admin in admin.site._registry.items():
        if model._meta.app_label == "lynx_kafka":
            yield str(model._meta.model_name), model_admin


def doors(rows: dict[str, Model]) -> Iterator[Door]:
    """Walk through every door that the URLs have to the rows of one consumer."""
    for model_name, model_admin in our_admins():
        assert model_name in rows, f"make() here stores no {model_name}: say how."
        for pattern in model_admin.urls:
            assert isinstance(pattern, URLPattern)
            if pattern.name is not None:
                yield from pages(pattern, model_name, model_admin, rows)
        yield from actions(model_name, model_admin, rows)


def pages(pattern: URLPattern, model_name: str, model_admin: Any, rows: dict[str, Model]) -> Iterator[Door]:
    assert pattern.name is not None
    name = pattern.name.removeprefix("lynx_kafka_")
    needs = PAGES.get(name) or PAGES.get(name.removeprefix(f"{model_name}_"))
    assert needs is not None, f"{pattern.name} is a page that PAGES here does not know: say what it needs."
    for arguments in possible(pattern, model_name, rows):
        gets, posts = (VERB_NEEDS[arguments["verb_name"]] if one is None else one for one in needs)
        data = {"state": "resolved", "until": "99999999", "confirmed": "yes", "owner": "me", "note": "mine"}
        # What it is about is no part of the path, as topics may have any name.
        asked = f"?consumer={rows['worker'].consumer}&worker={rows['worker'].pk}" if name == "control" else ""  # type: ignore[attr-defined]
        yield Door(
            name=f"{pattern.name} {arguments}", url=reverse(f"admin:{pattern.name}", kwargs=arguments) + asked,
            model=model_admin.model, gets=gets, posts=posts, data={} if name.endswith("changelist") else data,
            of_row=bool(arguments),
        )  # fmt: skip


def possible(pattern: URLPattern, model_name: str, rows: dict[str, Model]) -> list[dict[str, Any]]:
    """Return the arguments that a URL is asked with."""
    found: list[dict[str, Any]] = [{}]
    for name in pattern.pattern.converters:  # type: ignore[attr-defined]
        match name:
            case "object_id" | "pk":
                values: list[Any] = [rows[model_name].pk]
            case "letter_id" if "replay_id" in pattern.pattern.converters:  # type: ignore[attr-defined]
                values = [rows["replay"].letter_id]  # type: ignore[attr-defined]
            case "letter_id":
                values = [rows["deadletter"].pk]
            case "replay_id":
                values = [rows["replay"].pk]
            case "group_id":
                values = [rows["failuregroup"].pk]
            case "verb_name":
                values = [verb.name for verb in VERBS if verb.of_groups]
            case "verb":
                values = ["pause", "stop", "close_breaker"]
            case "part":
                values = ["key", "value"]
            case _:
                raise AssertionError(f"{pattern.name} has a part {name!r}: say here what it may be.")
        found = [{**one, name: value} for one in found for value in values]
    return found


def actions(model_name: str, model_admin: Any, rows: dict[str, Model]) -> Iterator[Door]:
    request = RequestFactory().get("/")
    request.user = User(is_superuser=True, is_active=True)
    for name in model_admin.get_actions(request):
        needs = ACTIONS.get((model_name, name))
        assert needs is not None, f"{model_name} has an action {name!r}: say in ACTIONS what it needs."
        data = {"action": name, "index": "0", "_selected_action": [str(rows[model_name].pk)]}
        data |= {"confirmed": "yes", "until": "99999999"}
        yield Door(
            name=f"{model_name} action {name}", url=reverse(f"admin:lynx_kafka_{model_name}_changelist"),
            model=model_admin.model, gets=Verb.VIEW, posts=needs, data=data, of_row=True,
        )  # fmt: skip


# Who there is


@pytest.fixture(autouse=True)
def project(settings: Any) -> None:
    consumer = {"group_id": "g", "topics": {"t": {"handler": "tests.app.handlers.record"}}}
    # However long a walk takes, the workers are taken for alive.
    alive = {"heartbeats": {"interval": "10m"}}
    settings.KAFKA = {"brokers": ["127.0.0.1:1"], "consumers": {MINE: consumer, OTHERS: consumer}, **alive}
    settings.AUTHENTICATION_BACKENDS = BACKENDS
    settings.TEAMS = {}


VIEWS = tuple(
    f"view_{model._meta.model_name}" for model in apps.get_app_config("lynx_kafka").get_models()
    if "view" in model._meta.default_permissions
)  # fmt: skip


@pytest.fixture
def enter(client: Client, settings: Any) -> Callable[..., User]:
    """Log somebody in who may do this, with all consumers or, as a member of a team, with its own ones."""

    def log_in(*codenames: str, team: bool = False, superuser: bool = False) -> User:
        user = User.objects.create_user("ann", is_staff=True, is_superuser=superuser)
        found = Permission.objects.filter(content_type__app_label="lynx_kafka", codename__in=codenames)
        assert found.count() == len(set(codenames))
        if team:
            settings.TEAMS = {"team": {"consumers": [MINE], "may": {f"lynx_kafka.{each}" for each in codenames}}}
            user.groups.add(Group.objects.create(name="team"))
        else:
            user.user_permissions.set(found)
        client.force_login(user, backend=BACKENDS[0])
        return user

    return log_in


# What is tried


def tried(client: Client, door: Door, method: str) -> tuple[HttpResponse, bool]:
    """Knock at a door; return the answer, and whether any row was altered. Then everything is as it was before."""
    # What was said to the last one who asked, such as that there is nothing at the address they asked for.
    client.cookies.pop("messages", None)
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        answer = client.get(door.url) if method == "GET" else client.post(door.url, door.data)
        if answer.streaming:  # what it does it does while it is read
            answer.streaming_content = [answer.getvalue()]
        transaction.set_rollback(True)
    ours = re.compile(r'^\s*(INSERT INTO|UPDATE|DELETE FROM|COPY) "(lynx_kafka|django_admin_log)')
    return answer, any(ours.match(one["sql"]) for one in queries.captured_queries)


def is_refused(answer: HttpResponse) -> bool:
    """Tell whether somebody was sent away: Django's own pages send whoever asks for what they may not see home."""
    return answer.status_code in (403, 404, 405) or answer.get("Location") == reverse("admin:index")


def walk(
    client: Client, rows: dict[str, Model], may: Callable[[Any, Door], bool], *, only: Verb | None = None
) -> list[str]:
    """Try every door by GET and POST, or only those that need one verb; return what is not as it should be."""
    wrong = []
    for door in doors(rows):
        for method, needs in (("GET", door.gets), ("POST", door.posts)):
            if only not in (None, needs):
                continue
            answer, altered = tried(client, door, method)
            what, allowed = f"{method} {door.name}: {answer.status_code}", needs != NOBODY and may(needs, door)
            if is_refused(answer) == allowed:
                wrong.append(f"{what}, should {'' if allowed else 'not '}be allowed")
            if altered and not allowed:
                wrong.append(f"{what} altered something")
    return wrong


def test_all_of_django_s_actions_and_pages_are_known_here() -> None:
    rows = make(MINE)
    found = list(doors(rows))
    assert len(found) >= 60
    names = {door.name.split()[0].removeprefix("lynx_kafka_") for door in found}
    assert {name for name in PAGES if "_" in name} <= names, "PAGES has some that are gone"
    assert {f"{model} action {name}" for model, name in ACTIONS} <= {door.name for door in found}


def test_there_is_no_page_of_ours_beside_those_of_the_lists() -> None:
    known = {pattern.name for _name, model_admin in our_admins() for pattern in model_admin.urls}
    every = named(get_resolver().url_patterns, "")
    # The list of lists is Django's own.
    found = [(name, route) for name, route in every if "lynx_kafka" in name + route and name != "app_list"]
    assert len(found) > 40
    assert [each for each in found if each[0] and each[0] not in known] == [], "doors() here does not find it"
    for name, route in found:
        if not name:
            assert route.endswith("<path:object_id>/"), "a page without a name that is not Django's own redirection"


def named(patterns: Any, above: str) -> Iterator[tuple[str, str]]:
    for each in patterns:
        if isinstance(each, URLPattern):
            yield each.name or "", above + str(each.pattern)
        else:
            yield from named(each.url_patterns, above + str(each.pattern))


@pytest.mark.parametrize("codenames", [(), tuple({name for names in CODENAMES.values() for name in names})])
def test_without_the_permission_to_view_every_door_is_closed(
    client: Client, enter: Callable[..., User], codenames: tuple[str, ...]
) -> None:
    enter(*codenames)
    assert walk(client, make(MINE), lambda needs, door: False) == []


def test_every_door_is_closed_to_who_is_no_staff(client: Client) -> None:
    client.force_login(User.objects.create_user("root", is_superuser=True), backend=BACKENDS[0])
    login = reverse("admin:login")
    for door in doors(make(MINE)):
        for method in ("GET", "POST"):
            answer, altered = tried(client, door, method)
            assert answer["Location"].startswith(login), door.name
            assert not altered


@pytest.mark.parametrize("verb", [Verb.VIEW, *CODENAMES])
def test_a_permission_opens_its_own_doors_and_no_others(client: Client, enter: Callable[..., User], verb: Verb) -> None:
    enter(*VIEWS, *CODENAMES.get(verb, ()))
    opened = {Verb.VIEW, verb} | ({Verb.VIEW_PAYLOAD} if verb == Verb.EDIT else set())
    # What it must not open is what all others together do not open either, below.
    only = None if verb == Verb.VIEW else verb
    assert walk(client, make(MINE), lambda needs, door: needs in opened, only=only) == []


@pytest.mark.parametrize("verb", CODENAMES)
def test_all_permissions_but_one_leave_its_doors_closed(client: Client, enter: Callable[..., User], verb: Verb) -> None:
    enter(*VIEWS, *{name for one, names in CODENAMES.items() if one != verb for name in names[:1]})
    assert walk(client, make(MINE), lambda needs, door: needs != verb, only=verb) == []


def test_superusers_pass_every_door(client: Client, enter: Callable[..., User]) -> None:
    enter(superuser=True)
    assert walk(client, make(MINE), lambda needs, door: True) == []


ALL = (*VIEWS, *(name for names in CODENAMES.values() for name in names))


def test_a_team_passes_all_doors_to_its_own_consumers(client: Client, enter: Callable[..., User]) -> None:
    make(OTHERS)
    enter(*ALL, team=True)
    assert walk(client, make(MINE), lambda needs, door: True) == []


def test_a_team_without_the_permissions_finds_the_doors_of_its_consumers_closed(
    client: Client, enter: Callable[..., User]
) -> None:
    enter(*VIEWS, team=True)
    assert walk(client, make(MINE), lambda needs, door: needs == Verb.VIEW) == []


def test_a_team_sees_and_alters_nothing_of_other_consumers(client: Client, enter: Callable[..., User]) -> None:
    mine, others = make(MINE), make(OTHERS)
    enter(*ALL, team=True)
    wrong = []
    for door in doors(others):
        for method in ("GET", "POST"):
            answer, altered = tried(client, door, method)
            if altered:
                wrong.append(f"{method} {door.name} altered something")
            if door.of_row and door.name.startswith("lynx_kafka") and not is_refused(answer):
                wrong.append(f"{method} {door.name} is open")
    for door in (*doors(mine), *doors(others)):
        for method in ("GET", "POST"):
            answer, _altered = tried(client, door, method)
            if OTHERS in told(answer):
                wrong.append(f"{method} {door.name} tells of the other consumer")
    assert wrong == []


def test_an_action_on_a_selection_leaves_alone_what_is_not_permitted_and_says_so(
    client: Client, enter: Callable[..., User]
) -> None:
    mine, others = make(MINE), make(OTHERS)
    ann = enter("view_deadletter", "replay_deadletter", "discard_deadletter", team=True)
    # She may look at all letters, and do something with those of her team.
    ann.user_permissions.add(Permission.objects.get(codename="view_deadletter"))
    url = reverse("admin:lynx_kafka_deadletter_changelist")
    chosen = [str(rows["deadletter"].pk) for rows in (mine, others)]
    for action, done in (("replay", "A replay of 1 dead letter was asked for."), ("discard", "discarded")):
        data = {"action": action, "index": "0", "_selected_action": chosen}
        asked = client.post(url, data)
        assert asked.context["fits"] == 1
        assert "1 dead letter was left alone: you are not permitted to do this with its consumer." in told(asked)
        with transaction.atomic():
            answer = client.post(url, {**data, "confirmed": "yes", "until": "99999999"}, follow=True)
            assert done in told(answer)
            assert "1 dead letter was left alone: you are not permitted" in told(answer)
            others["deadletter"].refresh_from_db()
            assert others["deadletter"].state == "open"  # type: ignore[attr-defined]
            assert not Replay.objects.filter(letter=others["deadletter"].pk).exists()
            transaction.set_rollback(True)


QUERIES = ("consumer={}", "of_group={group}", "key_of={letter}", "q=topic-{}", "q=KEY-{}", "letter__consumer={}",
           "about=deadletter:{letter}", "by=somebody-{}", "e=1", "state=all&all=")  # fmt: skip


def test_no_filter_or_search_tells_a_team_of_other_consumers(client: Client, enter: Callable[..., User]) -> None:
    others = make(OTHERS)
    make(MINE)
    enter(*ALL, team=True)
    ids = {"group": others["failuregroup"].pk, "letter": others["deadletter"].pk}
    for model_name, _admin in our_admins():
        for query in QUERIES:
            asked = query.format(OTHERS, **ids)
            answer = client.get(f"{reverse(f'admin:lynx_kafka_{model_name}_changelist')}?{asked}")
            shown = told(answer).replace(asked, "").replace(f'-{OTHERS}"', "")
            assert f"Error-{OTHERS}" not in shown, (model_name, query)
            assert f"SECRET-{OTHERS}" not in shown, (model_name, query)
            assert f"topic-{OTHERS}[" not in shown, (model_name, query)


def test_payloads_are_told_to_nobody_without_the_permission_to_view_them(
    client: Client, enter: Callable[..., User]
) -> None:
    enter(*(name for name in ALL if name != "view_payload_deadletter"))
    rows = make(MINE)
    for door in doors(rows):
        for method in ("GET", "POST"):
            answer, _altered = tried(client, door, method)
            for word in (f"SECRET-{MINE}", f"HEADER-{MINE}", f"KEY-{MINE}"):
                assert word not in told(answer), (method, door.name, word)
                assert word.encode().hex(" ") not in told(answer), (method, door.name, word)


def test_a_refusal_says_which_permission_is_missing(client: Client, enter: Callable[..., User]) -> None:
    enter(*VIEWS)
    rows = make(MINE)
    for door in doors(rows):
        for method, needs in (("GET", door.gets), ("POST", door.posts)):
            if needs in CODENAMES:
                answer, _altered = tried(client, door, method)
                assert answer.status_code == 403
                said = [f"It needs the permission lynx_kafka.{name}." for name in CODENAMES[needs]]
                assert any(sentence in told(answer) for sentence in said), door.name


def told(answer: HttpResponse) -> str:
    """Return all that an answer tells, its headers as well."""
    content = answer.getvalue() if answer.streaming else answer.content
    return content.decode("utf-8", "replace") + json.dumps(dict(answer.headers))
