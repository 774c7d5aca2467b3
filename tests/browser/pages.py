"""Every page of the desk, by name. A view of ours that is missing here fails test_pages.py."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

from django.urls import URLPattern, URLResolver, get_resolver, reverse

from django_kafka.models import Claim, Control, DeadLetter, FailureGroup, Hold, Replay, ReplayJob, Worker

LISTS = (
    "failuregroup", "deadletter", "replay", "replayjob", "hold", "worker", "claim", "control", "auditentry",
)  # fmt: skip
"""Models that have a list."""
NO_PAGES = {
    "deadletter_download": "a file",
    "deadletter_waits": "tells the script of a page whether a replay waits",
    "failuregroup_say": "takes POST only",
    "failuregroup_note": "takes POST only",
    **{f"replayjob_{name}": "takes POST only" for name in ("pause", "resume", "cancel", "rate")},
}
"""Views of ours that show no page, and why."""
VIEWS = {
    *(f"deadletter_{name}" for name in ("replay", "replay-to-topic", "discard", "cancel-replay", "reopen", "group")),
    *(f"deadletter_{name}" for name in ("replay-to-other-topic", "dry-run", "edit", "replay_of", "erase")),
    *("worker_close", "dashboard", "control"),
}
"""Views of ours that show a page, which `all_of_them` has."""
DJANGOS = ("add", "delete", "changelist", "change", "history")
"""What Django makes for each model; adding and deleting are refused."""


def empty() -> dict[str, str]:
    """Return the pages that are there when there is no row."""
    return {
        "index": reverse("admin:index"),
        "app": reverse("admin:app_list", args=["lynx_kafka"]),
        "dashboard": reverse("admin:lynx_kafka_dashboard"),
        **{f"{model}s": reverse(f"admin:lynx_kafka_{model}_changelist") for model in LISTS},
    }


def all_of_them() -> dict[str, str]:
    """Return each page, for the rows of rows.py."""
    letter = DeadLetter.objects.exclude(traceback="").filter(value__isnull=False).latest("pk")
    asked = Replay.objects.get(state=Replay.State.REQUESTED, job=None).letter_id
    discarded = DeadLetter.objects.get(state=DeadLetter.State.DISCARDED)
    parked = DeadLetter.objects.get(state=DeadLetter.State.PARKED)
    open_letter = DeadLetter.objects.filter(state=DeadLetter.State.OPEN).exclude(pk=asked).latest("pk")
    free_letter = DeadLetter.objects.filter(state=DeadLetter.State.OPEN, replays=None, hold=None).latest("pk")
    asked_for = Replay.objects.filter(job=None).earliest("pk")
    group = FailureGroup.objects.earliest("pk")
    worker = Worker.objects.get(circuit=Worker.Circuit.OPEN)
    asking = {
        "replay": open_letter, "replay-to-topic": open_letter, "discard": open_letter,
        "cancel-replay": asked, "reopen": discarded, "replay-to-other-topic": open_letter, "dry-run": open_letter,
        "edit": free_letter, "erase": free_letter,
    }  # fmt: skip
    return {
        **empty(),
        "deadletters-all": reverse("admin:lynx_kafka_deadletter_changelist") + "?state=all",
        "deadletters-none": reverse("admin:lynx_kafka_deadletter_changelist") + "?q=nothing+is+called+so",
        "deadletter": reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk]),
        "deadletter-parked": reverse("admin:lynx_kafka_deadletter_change", args=[parked.pk]),
        "deadletter-history": reverse("admin:lynx_kafka_deadletter_history", args=[letter.pk]),
        **{
            f"deadletter-{name}": reverse(f"admin:lynx_kafka_deadletter_{name}", args=[getattr(one, "pk", one)])
            for name, one in asking.items()
        },
        "deadletter-group": reverse("admin:lynx_kafka_deadletter_group", args=[group.pk, "replay"]),
        "failuregroup": reverse("admin:lynx_kafka_failuregroup_change", args=[group.pk]),
        "failuregroup-history": reverse("admin:lynx_kafka_failuregroup_history", args=[group.pk]),
        "replay": reverse("admin:lynx_kafka_replay_change", args=[asked_for.pk]),
        "deadletter-replay_of": reverse(
            "admin:lynx_kafka_deadletter_replay_of", args=[asked_for.letter_id, asked_for.pk]
        ),
        **{
            f"replayjob-{job.state}": reverse("admin:lynx_kafka_replayjob_change", args=[job.pk])
            for job in ReplayJob.objects.all()
        },
        "replayjob-history": reverse("admin:lynx_kafka_replayjob_history", args=[ReplayJob.objects.earliest("pk").pk]),
        "dashboard-consumer": reverse("admin:lynx_kafka_dashboard") + "?consumer=ops",
        **_controls(worker),
        "control": reverse("admin:lynx_kafka_control_change", args=[Control.objects.earliest("pk").pk]),
        "worker": reverse("admin:lynx_kafka_worker_change", args=[worker.pk]),
        "worker-close": reverse("admin:lynx_kafka_worker_close", args=[worker.pk]),
        "hold": reverse("admin:lynx_kafka_hold_change", args=[Hold.objects.get().pk]),
        "claim": reverse("admin:lynx_kafka_claim_change", args=[Claim.objects.earliest("pk").pk]),
    }


def _controls(worker: Worker) -> dict[str, str]:
    one = {"consumer": "ops"}
    about = {
        "pause": one, "pause-partition": {**one, "topic": "flights", "partition": 1}, "resume": one, "seek": one,
        "stop": {"worker": worker.pk}, "close_breaker": {"worker": worker.pk},
    }  # fmt: skip
    return {
        f"control-{name}": reverse("admin:lynx_kafka_control", args=[name.partition("-")[0]]) + f"?{urlencode(asked)}"
        for name, asked in about.items()
    }


def of_ours() -> set[str]:
    """Return the names of our views: those of the admin, without what Django makes for each model."""
    prefix = "lynx_kafka_"
    names = {name.removeprefix(prefix) for name in _names(get_resolver().url_patterns) if name.startswith(prefix)}
    return {name for name in names if name.partition("_")[2] not in DJANGOS}


def with_lists() -> set[str]:
    """Return the names of our models that have a list."""
    names = [name for name in _names(get_resolver().url_patterns) if name.startswith("lynx_kafka_")]
    return {name.split("_")[2] for name in names if name.endswith("_changelist")}


def _names(patterns: list[URLPattern | URLResolver]) -> Iterator[str]:
    for one in patterns:
        if isinstance(one, URLResolver):
            yield from _names(one.url_patterns)
        elif one.name:
            yield one.name
