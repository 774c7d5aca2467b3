"""The tour of docs/walkthrough.md: what a person does at the desk about the cancelled flights of a day."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from django_kafka.models import DeadLetter, FailureGroup, ReplayJob
from testproject.flights.models import Flight

from .airline import CANCELLED, COUNT, Airline
from .conftest import Window
from .keyboard import Keyboard
from .person import Person

pytestmark = pytest.mark.real

DOCS = Path(__file__).resolve().parents[2] / "docs"
DESTINATION, TO_BOSTON = "BOS", 4
"""Where some of them were to go, and how many."""
GROUPS = "admin:lynx_kafka_failuregroup_changelist"


def log_in(person: Person, airline: Airline) -> None:
    """Log in."""
    person.open(reverse("admin:index"))
    person.page.get_by_label("Username").fill("ada")
    person.page.get_by_label("Password").fill("engine")
    person.press("Log in")


def find_the_group(person: Person, airline: Airline) -> None:
    """Find the group."""
    person.press("Failure groups", "link")
    person.reads("ValueError", "invalid literal for int() with base 10: 'NA'", f"{CANCELLED} failures")
    person.picture("groups")
    person.page.get_by_role("link", name="ValueError").click()
    person.reads("Last 24 hours", "testproject.flights.kafka_handlers.clock", "Open letters 98")


def look_after_it(person: Person, airline: Airline) -> None:
    """Say that you look after it."""
    person.page.get_by_label("Owner").fill("Ada")
    person.page.get_by_label("Note").fill("Cancelled flights have no departure time: the file says NA there.")
    person.press("Save")
    person.reads("Owner and note were saved.")
    person.press("Acknowledge")
    person.reads("1 failure group is acknowledged.")
    person.open(person.page.url)
    person.picture("group")


def read_a_letter(person: Person, airline: Airline) -> None:
    """Search, and read a letter."""
    person.press("All of them", "link")
    person.reads(f"{CANCELLED} dead letters")
    person.page.locator("#searchbar").fill(DESTINATION)
    person.press("Search")
    # Words of letters are taken when there is time for it.
    person.until(f"{TO_BOSTON} dead letters")
    person.picture("search", height=900)
    person.page.locator("#result_list tbody th a").first.click()
    person.reads('"dep_time": "NA"', "clock", "hour, minute = divmod(int(text), 100)", "Replay to the handler")
    person.picture("letter", height=1700)


def try_it(person: Person, airline: Airline) -> None:
    """Mend the handler, and run it dry."""
    airline.mend()
    person.press("Dry run")
    person.reads("Run the handler of 1 dead letter dry?", "its transaction is rolled back")
    person.press("Dry run")
    person.reads("A dry run of 1 dead letter was asked for.")
    person.until("succeeded")
    assert Flight.objects.count() == COUNT - CANCELLED
    person.page.locator("a[href*='/replays/']").first.click()
    person.reads("What it would have produced", "Nothing.", "succeeded")
    person.picture("dry-run")
    person.press("To the letter")


def edit_it(person: Person, airline: Airline) -> None:
    """Edit one letter, and send it."""
    person.press("Edit and replay")
    value = person.page.get_by_label("Value", exact=True)
    value.fill(value.input_value().replace('"dep_time": "NA"', '"dep_time": "2130"'))
    person.press("Look at what was altered")
    person.reads('"dep_time": "NA"', '"dep_time": "2130"', "It goes to the handler.")
    person.picture("edited")
    person.press("Replay what was edited")
    person.reads(
        "A replay of the edited message was asked for.", "A running worker of consumer operations carries it out."
    )
    person.until("resolved")


def replay_the_group(person: Person, airline: Airline) -> None:
    """Replay the rest as a job."""
    person.press("All letters with this cause", "link")
    person.reads(f"Open letters {CANCELLED - 1}")
    person.press("Replay to the handler")
    person.reads(f"Replay {CANCELLED - 1} dead letters to their handlers?", f"and {CANCELLED - 6} more")
    person.reads("They are so many that they are replayed as a job.")
    person.page.get_by_label("Ramp").fill("1, 10")
    person.page.get_by_label("Letters per second").fill("2")
    person.page.get_by_label("Pause when more than").fill("20")
    person.press("Replay to the handler")
    person.reads("A job of more than 50 letters needs a reason.")
    person.page.get_by_label("Reason").fill("The handler knows cancelled flights now.")
    person.picture("question")
    person.press("Replay to the handler")
    person.reads(f"has {CANCELLED - 1} dead letters of consumer operations.", "running", "1, 10")


def watch_it(person: Person, airline: Airline) -> None:
    """Watch the job to its end."""
    person.watches(rf"\b[1-9]\d* of {CANCELLED - 1}")
    person.press("Pause")
    person.reads("Done: Pause.", "paused")
    person.page.get_by_label("Letters per second").fill("")
    person.press("Change the rate")
    person.reads("Done: Change the rate.")
    person.open(person.page.url)
    person.picture("job")
    person.press("Resume")
    person.watches(f"{CANCELLED - 1} of {CANCELLED - 1}")
    person.watches("finished")
    person.open(person.page.url)
    person.reads(f"succeeded {CANCELLED - 1}", "failed 0")
    person.picture("report", height=900)


def see_it_resolved(person: Person, airline: Airline) -> None:
    """See it resolved."""
    person.press("Kafka", "link")
    person.press("Failure groups", "link")
    person.page.get_by_role("link", name="ValueError").click()
    person.reads("Open letters 0")
    person.press("Resolve")
    person.reads("1 failure group is resolved.")
    person.open(person.page.url)
    person.picture("resolved")


def look_around(person: Person, airline: Airline) -> None:
    """Look around."""
    person.press("Kafka", "link")
    person.press("Workers", "link")
    person.press("Dashboard", "link")
    person.until("→ steady")
    person.reads("operations", "flights[0]", "The last 15 minutes of operations")
    person.picture("dashboard", height=1700)
    person.press("Kafka", "link")
    person.press("Workers", "link")
    person.page.locator("#result_list tbody a").first.click()
    person.reads("Minutes before it was last seen")
    person.picture("worker")


STEPS = (
    log_in, find_the_group, look_after_it, read_a_letter, try_it, edit_it, replay_the_group, watch_it, see_it_resolved,
    look_around,
)  # fmt: skip
"""The sections of docs/walkthrough.md, in their order."""


@pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without JavaScript"])
def test_the_cancelled_flights_are_found_mended_and_replayed(
    window: Window, airline: Airline, ada: User, javascript: bool
) -> None:
    airline.work()
    airline.fly()
    airline.settle(COUNT)
    assert DeadLetter.objects.count() == CANCELLED
    # One set of pictures is enough.
    person = window() if javascript else window(javascript=False, pictures=None)

    for step in STEPS:
        step(person, airline)

    # One of them left, as the person said.
    assert Flight.objects.filter(departed=None).count() == CANCELLED - 1
    assert Flight.objects.count() == COUNT
    job = ReplayJob.objects.get()
    assert (job.state, job.total, job.succeeded, job.ramp) == ("finished", CANCELLED - 1, CANCELLED - 1, [1, 10])
    assert set(DeadLetter.objects.values_list("state", flat=True)) == {DeadLetter.State.RESOLVED}
    assert FailureGroup.objects.get().state == FailureGroup.State.RESOLVED


def test_the_docs_tell_these_steps_with_their_pictures() -> None:
    text = (DOCS / "walkthrough.md").read_text("utf-8")
    taken = set(re.findall(r"person\.picture\(\"([a-z-]+)\"", Path(__file__).read_text("utf-8")))

    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [(step.__doc__ or "").rstrip(".") for step in STEPS]
    for scheme in ("light", "dark"):
        assert set(re.findall(rf"images/([a-z-]+)-{scheme}\.webp", text)) == taken
    shown = {f"{name}-{scheme}.webp" for name in taken for scheme in ("light", "dark")}
    kept = {one.name: one.stat().st_size for one in (DOCS / "images").iterdir()}
    assert kept.keys() == shown
    assert sum(kept.values()) < 1_500_000


def test_the_same_with_the_keyboard_alone(window: Window, airline: Airline, ada: User) -> None:
    airline.work()
    airline.fly()
    airline.settle(COUNT)
    airline.mend()
    person = window(user=ada)
    keys = Keyboard(person)

    person.open(reverse(GROUPS))
    keys.enter("ValueError")
    keys.go_around()
    keys.enter("Acknowledge")
    keys.write("Owner", "Ada")
    keys.space("Save")
    person.reads("Owner and note were saved.", "acknowledged")
    keys.enter("flights[")
    keys.go_around()
    keys.enter("All letters with this cause")
    keys.enter("Replay to the handler")
    keys.go_around()
    keys.write("Reason", "Mended.")
    keys.space("Replay to the handler")
    person.watches("finished")
    person.reads(f"{CANCELLED} of {CANCELLED}")
    assert Flight.objects.filter(departed=None).count() == CANCELLED
