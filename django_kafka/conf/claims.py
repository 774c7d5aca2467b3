"""Claim checks: where large values are left, and how to read that from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .values import Rule, Wrong, did_you_mean, label, optional, size

_ALLOWED = "an alias of STORAGES, or a dict with `storage`"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCheck:
    """Where large values are left, so that messages only refer to them."""

    storage: str = ""
    """The alias in STORAGES; "": they are not."""
    above: int = 524_288
    """Bytes of a value that is sent as it is at most."""

    def __bool__(self) -> bool:
        """Tell whether they are."""
        return bool(self.storage)


def _rule(rules: Mapping[str, Rule]) -> Rule:
    def rule(value: object) -> ClaimCheck:
        match value:
            case "none":
                return ClaimCheck()
            case str():
                return ClaimCheck(storage=label(value))
            case Mapping():
                for key in value:
                    if key not in rules:
                        raise Wrong(f"{_ALLOWED}; it knows: {', '.join(rules)}", did_you_mean(key, tuple(rules)))
                if "storage" in value:
                    return ClaimCheck(**_read(value, rules))
        raise Wrong(_ALLOWED)

    return rule


def _read(value: Mapping[Any, object], rules: Mapping[str, Rule]) -> dict[str, Any]:
    found = {}
    for key, each in value.items():
        try:
            found[key] = rules[key](each)
        except Wrong as wrong:
            raise Wrong(f"{_ALLOWED}; `{key}` is {wrong.allowed}", wrong.hint) from None
    return found


_writing = _rule({"storage": label, "above": size(0)})
_reading = _rule({"storage": label})
WRITING: Mapping[str, Rule] = {"claim_check": _writing}
WRITING_TOPIC: Mapping[str, Rule] = {"claim_check": optional(_writing)}
READING: Mapping[str, Rule] = {"claim_check": _reading}
READING_TOPIC: Mapping[str, Rule] = {"claim_check": optional(_reading)}
