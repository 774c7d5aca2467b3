"""The library's client with a mark on what it raises, so that nothing is taken for a fault of the bytes at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Failed(Exception):
    """A request to a registry failed; the cause says why."""


class Asked:
    """Stands before the library's client and raises `Failed` for whatever goes wrong in it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._schemas: dict[tuple[int, str | None, str | None], Any] = {}

    def get_schema(self, schema_id: int, subject_name: str | None = None, fmt: str | None = None) -> Any:
        """Return a schema. Asked with each message: the client's own way, with its lock, takes longer."""
        try:
            return self._schemas[schema_id, subject_name, fmt]
        except KeyError:
            pass
        found = marked(self._client.get_schema)(schema_id, subject_name, fmt)
        self._schemas[schema_id, subject_name, fmt] = found
        return found

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return marked(found) if callable(found) else found


def marked(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a callable that raises `Failed` for what another one raises."""

    def ask(*arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except MemoryError:
            raise
        except Exception as error:  # marked
            raise Failed(type(error).__name__) from error

    return ask
