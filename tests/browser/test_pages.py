"""Every page of the desk in a browser: for everybody, under the strictest policy, in both lights and languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse
from pytest_django import Settings

from tests.databases import added, of_sqlite

from . import pages, rows
from .conftest import Window
from .looking import complaints
from .person import NARROW, WIDE, Person

pytestmark = pytest.mark.real

MOST = 100 * 1024
"""Bytes of script and style that a page may have, Django's among them."""

_WEIGHT = """
performance.getEntriesByType("resource")
  .filter((one) => ["script", "link", "css"].includes(one.initiatorType) && /\\.(css|js)$|jsi18n/.test(one.name))
  .reduce((sum, one) => sum + one.encodedBodySize, 0)
"""
_TOO_WIDE = """
[...document.querySelectorAll(".results")].some((one) => one.scrollWidth > one.clientWidth)
"""


def faults(person: Person, axe: str) -> list[str]:
    """Return what is wrong with the page that somebody looks at, in a wide window and in a narrow one."""
    found = complaints(person, axe)
    weight = person.page.evaluate(_WEIGHT)
    if not 0 < weight <= MOST:
        found.append(f"{weight} bytes of script and style")
    if person.page.evaluate(_TOO_WIDE):
        found.append("its list does not fit beside its filters")
    for width in (WIDE, NARROW):
        person.page.set_viewport_size({"width": width, "height": 900})
        if more := person.scrolls_sideways():
            found.append(f"it is {more} pixels wider than a window of {width}")
    person.page.set_viewport_size({"width": WIDE, "height": 900})
    return found


@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("de", "dark")])
def test_every_page_is_for_everybody(
    window: Window, ada: User, settings: Settings, axe: str, language: str, scheme: str
) -> None:
    rows.configure(settings)
    rows.fill()
    person = window(user=ada, language=language, scheme=scheme)
    wrong: dict[str, Any] = {}
    for name, path in pages.all_of_them().items():
        person.open(path)
        assert person.page.evaluate("document.documentElement.lang") == language
        if found := faults(person, axe):
            wrong[name] = found
        person.picture(f"pages/{name}-{language}", height=4000)
    assert not wrong, "\n".join(f"{name}: {one}" for name, found in wrong.items() for one in found)


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_page_without_rows_says_so(window: Window, ada: User, settings: Settings, axe: str, language: str) -> None:
    rows.configure(settings)
    person = window(user=ada, language=language)
    for name, path in pages.empty().items():
        person.open(path)
        assert not faults(person, axe), name
        person.picture(f"pages/empty-{name}-{language}")


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_database_of_letters_that_is_down_is_told(
    window: Window, ada: User, settings: Settings, axe: str, tmp_path: Path, django_db_blocker: Any, language: str
) -> None:
    rows.configure(settings)
    with added("letters", django_db_blocker, **of_sqlite(tmp_path / "nowhere" / "letters.sqlite3")):
        settings.KAFKA = {**settings.KAFKA, "dead_letters": {"database": "letters"}}
        person = window(user=ada, language=language)
        for name in pages.LISTS:
            person.open(reverse(f"admin:lynx_kafka_{name}_changelist"), status=503)
            person.reads("does not answer" if language == "en" else "antwortet nicht")
            assert not faults(person, axe), name
        # The browser says so, too.
        assert all("503" in one for one in person.troubles)
        person.troubles.clear()
        person.open(reverse("admin:index"))


def test_what_a_person_may_not_do_is_told(window: Window, settings: Settings, axe: str) -> None:
    rows.configure(settings)
    rows.fill()
    reader = User.objects.create_user("reader", is_staff=True)
    may = ("view_deadletter", "view_failuregroup")
    reader.user_permissions.set(Permission.objects.filter(codename__in=may))
    person = window(user=reader)
    shown = pages.all_of_them()
    for name in ("deadletters", "deadletter", "failuregroups", "failuregroup"):
        person.open(shown[name])
        assert not faults(person, axe), name
        person.picture(f"pages/refused-{name}-en", height=4000)
    person.open(shown["deadletter-replay"], status=403)
    assert not faults(person, axe)
    assert all("403" in one for one in person.troubles)
    person.troubles.clear()


def test_no_page_is_forgotten() -> None:
    assert pages.with_lists() == set(pages.LISTS)
    assert pages.of_ours() == pages.VIEWS | pages.NO_PAGES.keys()
