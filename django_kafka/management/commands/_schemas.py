"""How `kafka_schemas` shows schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...legible import printable
from ...schema_differences import Difference
from ...schema_plans import Standing, State
from ._table import table

_COLUMNS = ("cluster", "subject", "used for", "schema", "rule", "state")
_WIDEST = 40
"""Characters to which the paths of fields are brought to one width."""


def show(out: Any, found: Sequence[Standing]) -> None:
    """Write the schemas as a table."""
    table(
        out,
        _COLUMNS,
        [
            (
                one.needed.contract.cluster,
                one.needed.contract.subject,
                ", ".join(one.needed.uses),
                one.needed.contract.kind,
                one.level,
                state(one),
            )
            for one in found
        ],
    )


def state(one: Standing) -> str:
    """Return how a schema stands, in words."""
    return f"{one.state}: {said}" if (said := "; ".join(filter(None, (_version(one), one.why)))) else str(one.state)


def _version(one: Standing) -> str:
    newest = one.newest.number if one.newest else None
    match one.state:
        case State.THERE | State.REGISTERED:
            return f"version {one.version}"
        case State.CHANGED if not one.why:
            return f"version {newest} is there, {'not tested' if one.level == 'NONE' else 'compatible'}"
        case State.CHANGED | State.INCOMPATIBLE:
            return f"version {newest} is there"
    return ""


def show_differences(out: Any, style: Any, found: Sequence[Standing]) -> None:
    """Write how the schemas of the project differ from the newest ones of their registries."""
    same = True
    for one in found:
        if one.newest is not None and one.version == one.newest.number:
            continue
        same = False
        contract = one.needed.contract
        out.write(
            printable(f"{contract.subject} ({contract.kind}, {', '.join(one.needed.uses)}): {state(one)}"),
            style.MIGRATE_HEADING,
        )
        if one.state is State.UNKNOWN or not contract.text:
            continue
        _write(out, style, one.differences())
    if same and found:
        out.write("All schemas are the newest ones of their registries.")


def _write(out: Any, style: Any, differences: Sequence[Difference]) -> None:
    if not differences:
        out.write("  only order, blanks, or what says nothing of values")
    width = min(_WIDEST, max((len(printable(one.place)) for one in differences), default=0))
    styles = {"+": style.SUCCESS, "-": style.ERROR, "~": style.WARNING}
    for one in differences:
        path = f"{printable(one.place).ljust(width)}  " if one.place else ""
        out.write(f"  {one.sign} {path}{printable(one.text)}".rstrip(), styles.get(one.sign))


def as_dict(one: Standing, *, differences: bool) -> dict[str, Any]:
    """Return a schema, and how it stands, for JSON."""
    contract = one.needed.contract
    found = {
        "cluster": contract.cluster,
        "subject": contract.subject,
        "uses": list(one.needed.uses),
        "schema": contract.kind,
        "rule": one.level,
        "state": one.state.value,
        "well": one.is_well,
        "version": one.version,
        "newest": one.newest.number if one.newest else None,
        "why": one.why,
    }
    if differences:
        told = one.differences() if one.state is not State.UNKNOWN else []
        found["differences"] = [{"sign": each.sign, "place": each.place, "text": each.text} for each in told]
    return found


def count(number: int) -> str:
    """Return a number of schemas in words."""
    return f"{number} schema{'' if number == 1 else 's'}"


def summary(found: Sequence[Standing]) -> str:
    """Return how many schemas stand in which way: "1 schema is missing, 2 are changed"."""
    counts = [(each, sum(one.state is each for one in found)) for each in State]
    told = [f"{number} {'is' if number == 1 else 'are'} {each}" for each, number in counts if number]
    return f"Of the schemas {', '.join(told)}"
