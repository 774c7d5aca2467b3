"""CloudEvents: how a producer writes them, and how to read that from settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .blocks import CONTRADICTION, Problem
from .values import Rule, Wrong, choice, did_you_mean, flag, label, optional

_MODES = ("none", "binary", "structured")
_ALLOWED = '"none", "binary", "structured", or a dict with some of: mode, source, type, content_type'


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEvents:
    """How values are written as CloudEvents; None: as the one before it says."""

    mode: str | None = None
    """none, binary (in headers beside the data) or structured (around it)."""
    source: str | None = None
    """Where events happen, unless they say so themselves: a URI."""
    type: str | None = None
    """What happens, unless they say so."""
    content_type: str | None = None
    """Of their data; None everywhere: as the serializer makes it."""

    def over(self, base: CloudEvents) -> CloudEvents:
        """Return these, and where they are None what `base` says."""
        mine = {one.name: getattr(self, one.name) for one in fields(self)}
        return CloudEvents(**{name: getattr(base, name) if value is None else value for name, value in mine.items()})

    def __bool__(self) -> bool:
        """Tell whether values are written so."""
        return self.mode not in (None, "none")


KEYS: Mapping[str, Rule] = {
    "mode": choice(*_MODES),
    "source": optional(label),
    "type": optional(label),
    "content_type": optional(label),
}


def cloud_events(value: object) -> CloudEvents:
    """Read how values are written as CloudEvents: a mode, or a dict."""
    match value:
        case None:
            return CloudEvents()
        case str() if value in _MODES:
            return CloudEvents(mode=value)
        case Mapping():
            for key in value:
                if key not in KEYS:
                    raise Wrong(_ALLOWED, did_you_mean(key, tuple(KEYS)))
            try:
                return CloudEvents(**{str(key): KEYS[str(key)](each) for key, each in value.items()})
            except Wrong as wrong:
                raise Wrong(_ALLOWED, wrong.hint or f"One of these may be {wrong.allowed}.") from None
    raise Wrong(_ALLOWED, did_you_mean(value, _MODES))


WRITING: Mapping[str, Rule] = {"cloud_events": cloud_events}
READING: Mapping[str, Rule] = {"cloud_events": flag}
READING_TOPIC: Mapping[str, Rule] = {"cloud_events": optional(flag)}


def find_what_events_lack(producers: Iterable[Any], problems: list[Problem]) -> None:
    """Report CloudEvents without a source: every event needs one, and few say it themselves."""
    for producer in producers:
        where = f'KAFKA["producers"]["{producer.name}"]'
        places = {where: producer.cloud_events}
        for name, topic in producer.topics.items():
            if topic.cloud_events != CloudEvents():
                places[f'{where}["topics"]["{name}"]'] = topic.cloud_events.over(producer.cloud_events)
        for place, chosen in places.items():
            if chosen and not chosen.source:
                path = f'{place}["cloud_events"]'
                sentence = f"{path} has no `source`."
                hint = 'Name where events happen, as in {"mode": "binary", "source": "/flights/ops"}.'
                problems.append(Problem(id=CONTRADICTION, path=path, message=sentence, hint=hint))
