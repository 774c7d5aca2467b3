"""The filters of `kafka_replay`: the admin's, as options."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandError
from django.db.models import Max, Min, Q, QuerySet

from ... import conf
from ...dead_letters import replaying
from ...exceptions import ConfigurationError
from ...models import DeadLetter
from ._moments import moment

_FILTERS = ("consumer", "topic", "partition", "error", "category", "key", "since", "until", "id")
_NAMED = 10
"""How many existing names an error mentions."""


def add_filters(parser: ArgumentParser) -> None:
    """Add the options that choose letters."""
    parser.add_argument("--consumer", metavar="NAME", help="letters of this consumer")
    parser.add_argument("--topic", metavar="TOPIC", help="of this topic, with its prefix")
    parser.add_argument("--partition", type=int, metavar="N", help="of this partition")
    parser.add_argument("--error", metavar="TYPE", help="with this error: ValueError, shop.errors.NoStock")
    parser.add_argument("--category", metavar="NAME", help="with this category of error")
    parser.add_argument("--key", metavar="TEXT", help="with exactly this key")
    parser.add_argument(
        "--since", metavar="TIME", help="that failed last since 2026-11-23, 2026-11-23T15:00, or 2h (ago)"
    )
    parser.add_argument("--until", metavar="TIME", help="that failed last until then; a day counts whole")
    parser.add_argument("--id", type=int, action="append", metavar="N", help="this letter; may be given again")


def described(options: dict[str, Any]) -> bool:
    """Tell whether any filter is given."""
    return any(options[name] is not None for name in _FILTERS)


def chosen_letters(options: dict[str, Any]) -> QuerySet[DeadLetter]:
    """Return the open letters that the options choose; raise `CommandError` for options that cannot be meant."""
    if not (described(options) or options["all"] or options["requested"]):
        raise CommandError("Choose letters (--consumer, --topic, --error, --id, …), or say --all.")
    if described(options) and options["all"]:
        raise CommandError("--all means every open letter: leave it out, or leave the filters out.")
    letters = replaying.letters().filter(state=DeadLetter.State.OPEN)
    if options["id"] is not None:
        letters = letters.filter(pk__in=_existing(options["id"]))
    return filtered(letters, options)


def filtered(letters: QuerySet[DeadLetter], options: dict[str, Any]) -> QuerySet[DeadLetter]:
    """Return those of these letters that the options choose, but for `--id`."""
    if (consumer := options["consumer"]) is not None:
        _must_exist("consumer", consumer, conf.kafka().consumers)
        letters = letters.filter(consumer=consumer)
    if (topic := options["topic"]) is not None:
        _must_exist("topic", topic, _topics_of_settings())
        letters = letters.filter(topic=topic)
    if (error := options["error"]) is not None:
        kind = Q(error_type=error) | Q(error_type__endswith=f".{error}")
        _must_exist("error_type", error, (), kind)
        letters = letters.filter(kind)
    if (category := options["category"]) is not None:
        _must_exist("category", category, ())
        letters = letters.filter(category=category)
    if options["partition"] is not None:
        letters = letters.filter(partition=options["partition"])
    if options["key"] is not None:
        letters = letters.filter(replaying.with_key(options["key"].encode("utf-8", "surrogateescape")))
    if options["since"] is not None:
        letters = letters.filter(last_failed_at__gte=moment("--since", options["since"], end=False))
    if options["until"] is not None:
        letters = letters.filter(last_failed_at__lte=moment("--until", options["until"], end=True))
    return letters


def duration(text: str) -> float:
    """Return the seconds that a text such as 90s, 10m or 1h30m means."""
    try:
        seconds: float = conf.parse_duration(text)
    except ConfigurationError as error:
        raise ArgumentTypeError(f"{text!r} is no time; write 90s, 10m or 1h30m.") from error
    return seconds


def _topics_of_settings() -> list[str]:
    kafka = conf.kafka()
    named = (topic for consumer in kafka.consumers.values() for topic in consumer.topics)
    return [kafka.prefixed(topic) for topic in named if not conf.is_pattern(topic)]


def _must_exist(field: str, value: str, known: Iterable[str], kind: Q | None = None) -> None:
    """Refuse a name that neither settings nor any letter have, and say which there are."""
    if value in known or replaying.letters().filter(kind or Q(**{field: value})).exists():
        return
    stored = replaying.letters().order_by(field).values_list(field, flat=True).distinct()[: _NAMED + 1]
    names = list(dict.fromkeys([*known, *stored]))
    there = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    what = field.replace("_", " ")
    raise CommandError(
        f"No dead letter has the {what} {value!r}; {f'there are: {there}' if there else 'there is none at all'}."
    )


def _existing(ids: list[int]) -> set[int]:
    wanted = set(ids)
    possible = [each for each in wanted if 0 < each < 1 << 63]
    states = dict(replaying.letters().filter(pk__in=possible).values_list("pk", "state"))
    if missing := sorted(wanted - states.keys()):
        ends = replaying.letters().aggregate(first=Min("pk"), last=Max("pk"))
        there = "there is none" if ends["first"] is None else f"their ids go from {ends['first']} to {ends['last']}"
        raise CommandError(f"There is no dead letter {', '.join(map(str, missing))}; {there}.")
    if settled := sorted(pk for pk, state in states.items() if state != DeadLetter.State.OPEN):
        which = ", ".join(f"{pk} is {states[pk]}" for pk in settled)
        raise CommandError(f"Only open dead letters are replayed; {which}.")
    return wanted
