"""Verbs in the admin: as actions of the list, as buttons of a page, always with a page in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Max, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext as _

from .. import tasks
from ..dead_letters import groups, replaying
from ..models import DeadLetter
from . import asking, showing
from .reading import ReadOnly
from .verbs import VERBS, Outcome, Verb, carry_out

PERMISSION = "lynx_kafka.replay_deadletter"
"""Needed for every verb. Nobody has it unless it was given; superusers have all."""


def _action(verb: Verb) -> Callable[..., HttpResponse | None]:
    @admin.action(permissions=["replay"], description=verb.label)
    def action(admin: Confirming, request: HttpRequest, chosen: QuerySet[DeadLetter]) -> HttpResponse | None:
        return admin.action_view(request, verb, chosen)

    action.__name__ = verb.name
    return action


class Confirming(ReadOnly):
    """Verbs, asked twice and done once."""

    actions = [_action(verb) for verb in VERBS]

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Tell whether the person may do anything with letters at all."""
        return bool(self.has_view_permission(request) and request.user.has_perm(PERMISSION))

    def url(self, name: str, *arguments: object) -> str:
        """Return where a page of dead letters is."""
        return reverse(f"admin:lynx_kafka_deadletter_{name}", args=arguments, current_app=self.admin_site.name)

    def page_context(self, title: str) -> dict[str, Any]:
        """Return what all pages of ours need."""
        return asking.page_context(self, title, self.url("changelist"))

    def fitting(self, letter: DeadLetter) -> list[dict[str, Any]]:
        """Return the verbs that fit one letter, and where they lead."""
        this = replaying.letters().filter(pk=letter.pk)
        return [{"verb": verb, "url": self.url(verb.name, letter.pk)} for verb in VERBS if verb.fits(this).exists()]

    def verb_view(self, request: HttpRequest, letter_id: int, verb: Verb) -> HttpResponse:
        """Ask about one letter, or do it."""
        if not self.has_replay_permission(request):
            raise PermissionDenied
        chosen = replaying.letters().filter(pk=letter_id)
        if not chosen.exists():
            raise Http404
        back = self.url("change", letter_id)
        if request.method == "POST":
            self._carry_out(request, verb, chosen)
            return HttpResponseRedirect(back)
        return self._ask(request, verb, chosen, back=back, hidden=[])

    def group_view(self, request: HttpRequest, group_id: int, verb_name: str) -> HttpResponse:
        """Ask about all open letters of a failure group, or do it."""
        if not self.has_replay_permission(request):
            raise PermissionDenied
        verb = next((each for each in VERBS if each.name == verb_name and each.of_groups), None)
        chosen = replaying.letters().filter(failure_group=group_id, state=DeadLetter.State.OPEN)
        if verb is None or not groups.groups().filter(pk=group_id).exists():
            raise Http404
        back = reverse("admin:lynx_kafka_failuregroup_change", args=[group_id], current_app=self.admin_site.name)
        if request.method == "POST" and (asked := _asked_about(request, chosen)) is not None:
            self._carry_out(request, verb, asked)
            return HttpResponseRedirect(back)
        return self._ask(request, verb, chosen, back=back, hidden=[])

    def action_view(self, request: HttpRequest, verb: Verb, chosen: QuerySet[DeadLetter]) -> HttpResponse | None:
        """Ask about the letters that were selected in the list, or do it."""
        if not self.has_replay_permission(request):
            raise PermissionDenied
        if "confirmed" in request.POST and (asked := _asked_about(request, chosen)) is not None:
            self._carry_out(request, verb, asked)
            return None
        hidden = asking.selected(request, verb.name)
        return self._ask(request, verb, chosen, back=request.get_full_path(), hidden=hidden)

    def _ask(
        self,
        request: HttpRequest,
        verb: Verb,
        chosen: QuerySet[DeadLetter],
        *,
        back: str,
        hidden: list[tuple[str, str]],
    ) -> HttpResponse:
        chosen = chosen.order_by("pk")
        last = chosen.aggregate(last=Max("pk"))["last"] or 0
        count = chosen.filter(pk__lte=last).count()
        fitting = verb.fits(chosen).filter(pk__lte=last)
        fits = fitting.count()
        first = [showing.topic(str(each)) for each in fitting.only("topic", "partition", "offset")[: asking.SHOWN]]
        context = {
            **self.page_context(str(verb.label)),
            "verb": verb,
            "question": verb.question % fits,
            "left_alone": verb.refused % (count - fits) if count > fits else "",
            "back": back,
        }
        return asking.ask(self, request, context, fits=fits, first=first, hidden=[*hidden, ("until", last)])

    def _carry_out(self, request: HttpRequest, verb: Verb, chosen: QuerySet[DeadLetter]) -> None:
        outcome = carry_out(verb, chosen, request.user)
        if outcome.done:
            messages.success(request, verb.done % outcome.done)
        if outcome.refused:
            messages.warning(request, verb.refused % outcome.refused)
        if outcome.released:
            messages.info(request, _("What is parked behind them is released."))
        if (verb.asks_for_replay and outcome.done) or outcome.released:
            _say_who_carries_out(request, outcome)


def _asked_about(request: HttpRequest, chosen: QuerySet[DeadLetter]) -> QuerySet[DeadLetter] | None:
    """Return those that the answered question was about; None when the answer does not say up to which.

    What has failed since the question was asked is not part of the answer.
    """
    until = request.POST.get("until", "")
    return chosen.filter(pk__lte=int(until[:18])) if until.isdecimal() else None


def _say_who_carries_out(request: HttpRequest, outcome: Outcome) -> None:
    """Start what can be started, and tell the person who carries the replays out."""
    command = "python manage.py kafka_replay --requested"
    for consumer in sorted(outcome.consumers):
        names = {"consumer": showing.line(consumer), "command": command}
        match tasks.dispatch(consumer):
            case tasks.Carrier.WORKER:
                messages.info(request, _("A running worker of consumer %(consumer)s carries it out.") % names)
            case tasks.Carrier.CELERY:
                messages.info(
                    request, _("No worker of consumer %(consumer)s runs; a Celery task carries it out.") % names
                )
            case tasks.Carrier.UNREACHABLE:
                sentence = _(
                    "No worker of consumer %(consumer)s runs, and Celery’s broker cannot be reached. "
                    "Start a worker, or run: %(command)s"
                )
                messages.warning(request, sentence % names)
            case _:
                sentence = _("No worker of consumer %(consumer)s runs. Start one, or run: %(command)s")
                messages.warning(request, sentence % names)
