"""Verbs in the admin: as actions of the list, as buttons of a page, always with a page in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import Max, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .. import carriers
from ..dead_letters import groups, permits, replaying
from ..models import DeadLetter
from . import asking, many, refusing, showing, topics
from .reading import ReadOnly
from .verbs import VERBS, Outcome, Verb, carry_out


def _action(verb: Verb) -> Callable[..., HttpResponse | None]:
    @admin.action(description=verb.label)
    def action(admin: Confirming, request: HttpRequest, chosen: QuerySet[DeadLetter]) -> HttpResponse | None:
        return admin.action_view(request, verb, chosen)

    action.__name__ = verb.name
    action.permit = verb.permit  # type: ignore[attr-defined]
    return action


class Confirming(ReadOnly):
    """Verbs, asked twice and done once."""

    actions = [_action(verb) for verb in VERBS if verb.of_lists]

    def url(self, name: str, *arguments: object) -> str:
        """Return where a page of dead letters is."""
        return reverse(f"admin:lynx_kafka_deadletter_{name}", args=arguments, current_app=self.admin_site.name)

    def page_context(self, title: str) -> dict[str, Any]:
        """Return what all pages of ours need."""
        return asking.page_context(self, title, self.url("changelist"))

    def fitting(self, request: HttpRequest, letter: DeadLetter) -> list[dict[str, Any]]:
        """Return the verbs that fit one letter, where they lead, and why the person may not."""
        this = replaying.letters().filter(pk=letter.pk)
        return [
            {
                "verb": verb,
                "url": self.url(verb.name, letter.pk),
                "refusal": permits.refusal(request.user, verb.permit, letter),
            }
            for verb in VERBS
            if verb.fits(this).exists()
        ]

    def verb_view(self, request: HttpRequest, letter_id: int, verb: Verb) -> HttpResponse:
        """Ask about one letter, or do it."""
        refusing.demand_anywhere(request.user, verb.permit)
        chosen = replaying.letters().filter(pk=letter_id)
        if (letter := chosen.only("consumer").first()) is None:
            raise Http404
        refusing.demand(request.user, verb.permit, letter)
        back = self.url("change", letter_id)
        answer = topics.answer(request, verb, chosen)
        if request.method == "POST" and answer.verb is not None:
            self._carry_out(request, answer.verb, chosen)
            return HttpResponseRedirect(back)
        return self._ask(request, verb, chosen, back=back, hidden=[], answer=answer)

    def group_view(self, request: HttpRequest, group_id: int, verb_name: str) -> HttpResponse:
        """Ask about all open letters of a failure group, or do it."""
        verb = next((each for each in VERBS if each.name == verb_name and each.of_groups), None)
        refusing.demand_anywhere(request.user, permits.Verb.REPLAY if verb is None else verb.permit)
        chosen = replaying.letters().filter(failure_group=group_id, state=DeadLetter.State.OPEN)
        group = groups.groups().filter(pk=group_id).first()
        if verb is None or group is None:
            raise Http404
        refusing.demand(request.user, verb.permit, group)
        back = reverse("admin:lynx_kafka_failuregroup_change", args=[group_id], current_app=self.admin_site.name)
        answer = topics.answer(request, verb, chosen)
        asked = _asked_about(request, chosen) if request.method == "POST" else None
        if asked is not None and answer.verb is not None:
            # Not what an error said: the audit keeps it for ever.
            description = f"{group.error_type}: {group.frame}" if group.frame else group.error_type
            job = self._as_job(request, verb, asked, description, back=back, hidden=[], answer=answer)
            if job is not None:
                return job
            self._carry_out(request, answer.verb, asked)
            return HttpResponseRedirect(back)
        return self._ask(request, verb, chosen, back=back, hidden=[], answer=answer)

    def action_view(self, request: HttpRequest, verb: Verb, chosen: QuerySet[DeadLetter]) -> HttpResponse | None:
        """Ask about the letters that were selected in the list, or do it."""
        refusing.demand_anywhere(request.user, verb.permit)
        answer = topics.answer(request, verb, chosen)
        asked = _asked_about(request, chosen) if "confirmed" in request.POST else None
        hidden, back = asking.selected(request, verb.name), request.get_full_path()
        if asked is not None and answer.verb is not None:
            description = request.GET.urlencode()
            job = self._as_job(request, verb, asked, description, back=back, hidden=hidden, answer=answer)
            if job is not None:
                return job
            self._carry_out(request, answer.verb, asked)
            return None
        return self._ask(request, verb, chosen, back=back, hidden=hidden, answer=answer)

    def _as_job(
        self,
        request: HttpRequest,
        verb: Verb,
        asked: QuerySet[DeadLetter],
        description: str,
        *,
        back: str,
        hidden: list[tuple[str, str]],
        answer: topics.Answer,
    ) -> HttpResponse | None:
        """Make a job of the letters where the person wants one, or they are many; None: it is done without one."""
        if verb.name not in many.TARGETS:
            return None
        permitted = permits.allowed(request.user, verb.permit, asked)
        form = many.JobForm(many.enough(verb.fits(permitted)), request.POST)
        if not form.wanted:
            return None
        if not form.is_valid():
            return self._ask(request, verb, asked, back=back, hidden=hidden, answer=answer, form=form)
        made = many.make(request, form, permitted, many.TARGETS[verb.name], description, answer.name)
        outcome = Outcome(consumers={job.consumer for job in made})
        say_who_carries_out(request, outcome, "kafka_replay --jobs")
        if len(made) != 1 or not permits.may(request.user, permits.Verb.VIEW, made[0]):
            return HttpResponseRedirect(back)
        name = "admin:lynx_kafka_replayjob_change"
        return HttpResponseRedirect(reverse(name, args=[made[0].pk], current_app=self.admin_site.name))

    def _ask(
        self,
        request: HttpRequest,
        verb: Verb,
        chosen: QuerySet[DeadLetter],
        *,
        back: str,
        hidden: list[tuple[str, str]],
        answer: topics.Answer,
        form: many.JobForm | None = None,
    ) -> HttpResponse:
        permitted = permits.allowed(request.user, verb.permit, chosen)
        forbidden = chosen.count() - permitted.count() if permitted is not chosen else 0
        chosen = permitted.order_by("pk")
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
            "forbidden": _forbidden(forbidden),
            "back": back,
            "topic": answer if verb.asks_topic else None,
        }
        if verb.name in many.TARGETS and fits > 1:
            context["job_form"] = form or many.JobForm(fits)
        return asking.ask(self, request, context, fits=fits, first=first, hidden=[*hidden, ("until", last)])

    def _carry_out(self, request: HttpRequest, verb: Verb, chosen: QuerySet[DeadLetter]) -> None:
        outcome = carry_out(verb, chosen, request.user)
        if outcome.done:
            messages.success(request, verb.done % outcome.done)
        if outcome.refused:
            messages.warning(request, verb.refused % outcome.refused)
        if outcome.forbidden:
            messages.warning(request, _forbidden(outcome.forbidden))
        if outcome.released:
            messages.info(request, _("What is parked behind them is released."))
        if (verb.asks_for_replay and outcome.done) or outcome.released:
            say_who_carries_out(request, outcome)


def _forbidden(count: int) -> str:
    sentence = ngettext(
        "%d dead letter was left alone: you are not permitted to do this with its consumer.",
        "%d dead letters were left alone: you are not permitted to do this with their consumers.",
        count,
    )
    return sentence % count if count else ""


def _asked_about(request: HttpRequest, chosen: QuerySet[DeadLetter]) -> QuerySet[DeadLetter] | None:
    """Return those that the answered question was about; None when the answer does not say up to which.

    What has failed since the question was asked is not part of the answer.
    """
    until = request.POST.get("until", "")
    return chosen.filter(pk__lte=int(until[:18])) if until.isdecimal() else None


def say_who_carries_out(request: HttpRequest, outcome: Outcome, command: str = "kafka_replay --requested") -> None:
    """Start what can be started, and tell the person who carries the replays out."""
    for consumer in sorted(outcome.consumers):
        names = {"consumer": showing.line(consumer), "command": f"python manage.py {command}"}
        match carriers.dispatch(consumer):
            case carriers.Carrier.WORKER:
                messages.info(request, _("A running worker of consumer %(consumer)s carries it out.") % names)
            case carriers.Carrier.CELERY:
                messages.info(
                    request, _("No worker of consumer %(consumer)s runs; a Celery task carries it out.") % names
                )
            case carriers.Carrier.TASKS:
                messages.info(request, _("No worker of consumer %(consumer)s runs; a task carries it out.") % names)
            case carriers.Carrier.UNREACHABLE:
                sentence = _(
                    "No worker of consumer %(consumer)s runs, and Celery’s broker cannot be reached. "
                    "Start a worker, or run: %(command)s"
                )
                messages.warning(request, sentence % names)
            case _:
                sentence = _("No worker of consumer %(consumer)s runs. Start one, or run: %(command)s")
                messages.warning(request, sentence % names)
