"""What the page of a worker draws of its last minutes, read as a browser and a screen reader would."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import override

from django_kafka.admin import charts
from django_kafka.history import Counts, Span
from django_kafka.models import Worker
from django_kafka.monitoring import packing
from django_kafka.monitoring.figures import Connections, Reported
from django_kafka.tallies import AGES, SECONDS, Histogram

pytestmark = pytest.mark.django_db

SVG = "{http://www.w3.org/2000/svg}"


def minute(
    handled: int, failed: int = 0, *, took: float = 0.02, seconds: float = 60.0, category: str = "handler"
) -> Span:
    """Return what was counted in a minute."""
    durations, ages = Histogram(SECONDS), Histogram(AGES)
    durations.add(took, handled + failed)
    ages.add(0.2, handled)
    errors = {category: failed} if failed else {}
    return Span(
        seconds=seconds,
        counts=Counts(
            messages=handled, bytes=handled * 100, handled=handled, durations=tuple(durations.counts),
            ages=tuple(ages.counts), errors=errors, dead_lettered=failed,
        ),
    )  # fmt: skip


def shown(client: Client, *minutes: Span, language: str = "en", **fields: Any) -> str:
    """Return the page of a worker with these minutes, the newest first."""
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_worker"))
    client.force_login(user)
    reported = Reported(minutes=minutes, connections=Connections(active=3, total=5, errors=1))
    written = json.loads(json.dumps(packing.packed(reported)))
    now = timezone.now()
    Worker.objects.create(
        **{
            "id": "w", "consumer": "ops", "group_id": "g", "host": "h", "pid": 1, "version": "1", "started_at": now,
            "seen_at": now, "figures": written, **fields,
        }
    )  # fmt: skip
    client.cookies["django_language"] = language
    answer = client.get(reverse("admin:lynx_kafka_worker_change", args=["w"]))
    assert answer.status_code == 200
    return answer.content.decode()


def drawings(page: str) -> list[ElementTree.Element]:
    """Return the charts of a page, which have to be well-formed."""
    found = re.findall(r"<svg viewBox=.*?</svg>", page, re.DOTALL)
    return [
        ElementTree.fromstring(one.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)) for one in found
    ]


def words(chart: ElementTree.Element) -> tuple[str, str]:
    """Return what a screen reader says of a chart."""
    ids = {one.get("id"): one.text for one in chart if one.get("id")}
    title, says = (ids[name] or "" for name in (chart.get("aria-labelledby") or "").split())
    return title, says


def test_each_minute_is_drawn_and_told(client: Client) -> None:
    page = shown(client, minute(6000, 3), minute(0), minute(12000, took=0.4), minute(300, seconds=30.0))

    throughput, failures, durations, ages = drawings(page)
    assert words(ages)[0] == "From produced to settled"
    assert words(ages)[1].endswith("no older than 248 ms to 248 ms when they were settled.")
    assert words(throughput) == ("Handled per second", "Messages handled per second: 0 to 200, 100 in the last minute.")
    assert words(failures)[1] == "Failed attempts in a minute: 0 to 3, 3 in the last one."
    assert words(durations)[1] == "In each minute 99 of 100 attempts took no longer than 25 ms to 498 ms."
    bars = throughput.findall(f"{SVG}rect")
    assert [one.findtext(f"{SVG}title") for one in bars] == [
        "3 minutes before: 10", "2 minutes before: 200", "the last minute: 100",
    ]  # fmt: skip
    heights = [float(one.get("height") or 0) for one in bars]
    assert heights[1] == pytest.approx(2 * heights[2], abs=0.2)
    assert heights[1] == pytest.approx(20 * heights[0], abs=0.2)
    # The last minute ends at the right edge, and older ones are to the left of it.
    right = [float(one.get("x") or 0) + float(one.get("width") or 0) for one in bars]
    assert [round((charts.WIDTH - each) / 24) for each in right] == [3, 2, 0]
    assert all(float(one.get("y") or 0) + float(one.get("height") or 0) <= charts.HEIGHT for one in bars)
    lines = durations.findall(f"{SVG}path")[1:]
    assert [one.get("class") for one in lines] == [f"lynx-kafka-line lynx-kafka-{name}" for name in charts.PERCENTILES]
    # Nothing is drawn for the minute without attempts.
    assert [(one.get("d") or "").count("M") for one in lines] == [2, 2, 2]
    assert re.findall(r"<tr><th scope=\"row\">(.*?)</th><td>(.*?)</td>", page) == [
        ("1 minute", "100"), ("5 minutes", "87"), ("15 minutes", "87"),
        ("the last minute", "100"), ("1 minute before", "0"), ("2 minutes before", "200"), ("3 minutes before", "10"),
    ]  # fmt: skip
    assert "3 (handler 3)" in page
    assert "active 3, made 5, failed 1" in page


def test_the_strictest_policy_for_content_shows_it(client: Client) -> None:
    page = shown(client, minute(6000, 3))

    figures = page[page.index("lynx-kafka-figures") : page.index("</section>")]
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=|javascript:|https?:", figures)


def test_categories_are_made_harmless(client: Client) -> None:
    page = shown(client, minute(10, 2, category="<b>\u202ehandler"))

    assert "2 (&lt;b&gt;\\u202ehandler 2)" in page
    assert "<b>" not in page[page.index("lynx-kafka-figures") :]


@pytest.mark.parametrize("figures", [{}, {"format": 99}, [], "x"])
def test_a_worker_that_says_nothing_readable_has_a_page_without_charts(client: Client, figures: Any) -> None:
    page = shown(client, figures=figures)

    assert "lynx-kafka-figures" not in page
    assert "Minutes before" not in page


def test_a_worker_that_has_done_nothing_has_empty_charts(client: Client) -> None:
    page = shown(client, minute(0, seconds=3.0))

    assert [words(one)[1] for one in drawings(page)][2] == "No attempt was made."
    assert not any(one.findall(f"{SVG}rect") for one in drawings(page))


def test_it_speaks_german_and_draws_the_same(client: Client) -> None:
    page = shown(client, minute(75, 1, took=2.4), language="de")

    throughput, failures, durations, ages = drawings(page)
    assert words(ages)[0] == "Von produziert bis erledigt"
    assert words(throughput) == (
        "Verarbeitet je Sekunde", "Verarbeitete Nachrichten je Sekunde: 1,2 bis 1,2, 1,2 in der letzten Minute.",
    )  # fmt: skip
    assert words(failures)[0] == "Gescheiterte Versuche je Minute"
    assert words(durations)[1] == "Je Minute dauerten 99 von 100 Versuchen nicht länger als 2,5 s bis 2,5 s."
    # Numbers in the picture are for the browser.
    attributes = [value for chart in drawings(page) for one in chart.iter() for value in one.attrib.values()]
    assert not any("," in value for value in attributes)
    assert any("." in value for value in attributes)
    for name in ("Zeitfenster", "Jede Minute", "Alter (p95)", "die letzte Minute", "Bytes je Sekunde"):
        assert name in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0004, "0.00040"),
        (0.6, "0.60"),
        (9.99, "10"),
        (1.24, "1.2"),
        (99.6, "100"),
        (1234.5, "1,234"),
        (7, "7"),
    ],
)
def test_numbers_have_two_digits_that_say_something(value: float, text: str) -> None:
    with override("en"):
        assert charts.rounded(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0004, "0.40 ms"), (0.25, "250 ms"), (2.5, "2.5 s"), (300.0, "5 min")])
def test_durations_have_the_unit_that_fits(value: float, text: str) -> None:
    with override("en"):
        assert charts.duration(value) == text
