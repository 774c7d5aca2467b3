"""What strangers send, in a browser: no script of theirs runs, nothing turns around, and no page falls apart."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from pytest_django import Settings

from django_kafka.dead_letters import groups
from django_kafka.models import DeadLetter, FailureGroup
from tests.letters import dead_letter

from . import rows
from .conftest import Window
from .person import NARROW, WIDE, Person

pytestmark = pytest.mark.real

SCRIPTS = (
    "<script>window.hacked = 1; alert(1)</script><img src=x onerror='window.hacked=1;alert(2)'>"
    '"><svg onload=alert(3)>{{ 7|add:7 }}</pre></textarea><style>*{display:none}</style>'
)
TURNING = "\u202ecod.exe\u202c \u2066\u200f\u0000\u0007\u001b[31m\ufeff\u2028"
LONG = "W" * 5_000
PAYLOADS = {
    "scripts": SCRIPTS,
    "turning": TURNING,
    "a long word": LONG,
    "half a MiB": "<b>" + "x " * 250_000,
}


def store(text: str) -> DeadLetter:
    """Store a letter that says it wherever a stranger's words can be."""
    group = FailureGroup.objects.get()
    data = text.encode("utf-8", "replace")
    said = text.replace("\0", "")[:5_000]  # PostgreSQL's texts have none
    return dead_letter(
        json.dumps({text[:1_000]: text, "list": [text[:100]]}).encode(),
        key=data[:10_000], headers=[(said[:500], data[:1_000]), ("none", None)], error_message=said,
        error_type=said[:200], traceback=f'  File "{said[:300]}", line 1, in {said[:200]}\n    {said}',
        handler=said[:200], failure_group=group,
    )  # fmt: skip


def unharmed(person: Person) -> None:
    assert person.page.evaluate("window.hacked") is None
    assert person.page.locator("#content").evaluate("(one) => one.querySelectorAll('script, style, img').length") <= 1
    assert person.page.locator("#content-main").is_visible()
    for width in (WIDE, NARROW):
        person.page.set_viewport_size({"width": width, "height": 900})
        assert person.scrolls_sideways() <= 0, person.page.url
    person.page.set_viewport_size({"width": WIDE, "height": 900})
    shown = person.page.locator("#content").inner_text()
    raw = {one for one in shown if one in TURNING and not one.isprintable() and one != "\n"}
    assert not raw, (person.page.url, raw)


@pytest.mark.parametrize("what", PAYLOADS)
def test_what_a_stranger_sends_is_shown_and_does_nothing(
    window: Window, ada: User, settings: Settings, what: str
) -> None:
    rows.configure(settings)
    rows.failed("ValueError", PAYLOADS[what].replace("\0", "")[:5_000], 1)
    letter, group = store(PAYLOADS[what]), FailureGroup.objects.get()
    words = PAYLOADS[what].replace("\0", "")
    groups.annotate(group.pk, owner=words[:150], note=words[:2_000])
    person = window(user=ada)
    for path in (
        reverse("admin:lynx_kafka_deadletter_changelist"),
        reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk]),
        reverse("admin:lynx_kafka_deadletter_replay", args=[letter.pk]),
        reverse("admin:lynx_kafka_failuregroup_changelist"),
        reverse("admin:lynx_kafka_failuregroup_change", args=[group.pk]),
    ):
        person.open(path)
        unharmed(person)
        for summary in person.page.locator("#content-main summary").all():
            summary.click()
        unharmed(person)


def test_a_payload_that_is_too_large_is_offered_as_a_file_and_not_shown(
    window: Window, ada: User, settings: Settings
) -> None:
    rows.configure(settings)
    letter = dead_letter(b"<b>" + b"x" * 600_000)
    person = window(user=ada)
    person.open(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk]))
    person.reads("Too large to be shown here.")
    with person.page.expect_download() as saved:
        person.page.locator("#value").get_by_role("link", name="Download").click()
    assert saved.value.path().read_bytes() == bytes(letter.value or b"")
    unharmed(person)
