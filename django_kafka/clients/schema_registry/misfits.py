"""What is wrong with a value that does not fit its schema: where, and not what it says.

Sentences of the libraries quote values. Those are told wherever the error is, in logs and in dead letters of whichever
message the handler was at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_PLACES = (
    re.compile(r" on field (?P<field>[A-Za-z0-9_.]{1,200})\Z"),  # Avro
    re.compile(r"\Ano value and no default for (?P<field>[A-Za-z0-9_.]{1,200})\Z"),
    re.compile(r"\AFailed to parse (?P<field>[A-Za-z0-9_.]{1,200}) field"),  # Protobuf
    re.compile(r"has no field named \"(?P<field>[A-Za-z0-9_.]{1,200})\""),
)
"""How they name fields; those are names of the schema, or could be some."""
_LONGEST = 200


def misfit(error: BaseException) -> ValueError:
    """Return an error that tells of one of a library without its words."""
    for one in _chain(error):
        if (place := _of_json(one)) or (place := _of_words(str(one))):
            return ValueError(f"it does not fit its schema at {place} ({type(error).__name__})")
    return ValueError(f"it does not fit its schema ({type(error).__name__})")


def _of_words(text: str) -> str:
    found = next((match for pattern in _PLACES if (match := pattern.search(text))), None)
    return "" if found is None else f"`{found['field']}`"


def _of_json(error: BaseException) -> str:
    """Return where, and by which keyword of its schema, a value is not valid; "": the error is of another kind."""
    path, keyword = getattr(error, "json_path", None), getattr(error, "validator", None)
    if not isinstance(path, str) or not isinstance(keyword, str):
        return ""
    place = f"`{path[:_LONGEST]}`, by `{keyword}`"
    if keyword == "required" and isinstance(value := getattr(error, "instance", None), dict):
        wanted = [str(name) for name in getattr(error, "validator_value", ()) if name not in value]
        place += f" of {', '.join(wanted)[:_LONGEST]}"
    return place


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
