"""The topic that a person names for a replay: which there are, and what is wrong with the answer."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _

from .. import conf, handlers
from ..dead_letters import replaying, targets
from ..exceptions import KafkaError, ReplayRefused
from ..models import DeadLetter, Replay
from . import showing
from .verbs import Verb, naming

_ASK_AT_MOST = 2.0
"""Seconds for which brokers are asked whether a topic exists; whoever carries the replay out asks again."""
_MOST_CLUSTERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a person answered, if they did."""

    verb: Verb | None
    """The verb, with the topic where it asks for one; None: it was not answered, or wrongly."""
    name: str = ""
    """What they typed."""
    error: str = ""
    """What is wrong with it."""
    known: tuple[str, ...] = ()
    """Topics that settings name, without prefix."""


def answer(request: HttpRequest, verb: Verb, chosen: QuerySet[DeadLetter]) -> Answer:
    """Return what a person answered to the question of a verb."""
    if not verb.asks_topic:
        return Answer(verb=verb)
    name = request.POST.get("to_topic", "").strip()
    if "confirmed" not in request.POST:
        return Answer(verb=None, known=known())
    clusters = chosen.order_by("cluster").values_list("cluster", flat=True).distinct()[:_MOST_CLUSTERS]
    if error := wrong(name, clusters):
        return Answer(verb=None, name=name[:300], error=error, known=known())
    return Answer(verb=naming(verb, name), name=name)


def wrong(name: str, clusters: QuerySet[DeadLetter, str] | tuple[str, ...]) -> str:
    """Return what is wrong with the name of a topic for letters of these clusters; "": nothing that is known."""
    if not name:
        return _("Name a topic.")
    try:
        topic = replaying.aim(Replay.Target.TOPIC, name)
        for cluster in clusters:
            targets.refuse_missing(cluster, topic, _ASK_AT_MOST)
    except ReplayRefused as refusal:
        return showing.line(str(refusal), 500)
    except KafkaError as error:
        # While nobody answers, whoever carries it out finds out.
        return showing.line(str(error), 500) if error.category == "configuration" else ""
    return ""


def known() -> tuple[str, ...]:
    """Return the topics that settings and handlers name, without prefix."""
    settings = conf.kafka()
    found = {topic for name in settings.consumers for topic in handlers.topics(name)}
    for producer in settings.producers.values():
        found.update(producer.topics)
        found.update([producer.topic] if producer.topic else [])
    return tuple(sorted(found))
