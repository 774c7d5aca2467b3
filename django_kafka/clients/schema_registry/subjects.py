"""What a registry has under its subjects, asked now, and what it says to a schema that is new there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from ... import conf
from ...exceptions import RegistryForbidden
from . import library
from .asked import Failed, marked
from .contracts import Contract
from .refusals import Question, answer_to, is_unknown
from .registry import Registry
from .sources import TYPES

T = TypeVar("T")

_LONGEST = 500
"""Characters of a reason."""
_NO_REASONS = ("{oldSchema", "{validateFields")
"""How what stands beside the reasons begins: the whole older schema, and what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A schema as the registry has it."""

    number: int
    """Which version of its subject, from 1."""
    text: str
    """The schema; of Protobuf a file descriptor as base64, or its source."""


class Subjects:
    """The subjects of one registry. Questions raise `RegistryUnavailable`, and `SchemaRefused` where it says so."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def version_of(self, contract: Contract, references: Sequence[conf.Reference]) -> int | None:
        """Return which version of its subject a schema is; None when it is none. Raises `SchemaRefused`."""
        schema = _schema(contract, references)

        def look(client: Any) -> int:
            client.clear_caches()
            return int(client.lookup_schema(contract.subject, schema, normalize_schemas=contract.normalize).version)

        return self._unless_unknown(contract.subject, look)

    def newest(self, subject: str, kind: str) -> Version | None:
        """Return the newest version of a subject; None when it has none."""

        def look(client: Any) -> Version:
            found = client.get_version(subject, "latest", fmt="serialized" if kind == "protobuf" else None)
            return Version(number=int(found.version), text=found.schema.schema_str or "")

        return self._unless_unknown(subject, look)

    def level(self, subject: str) -> str:
        """Return by which rule new versions are tested, in the registry's words; "" when it does not tell."""
        own, whole = self._level(subject), None
        if own in (None, "NONE"):
            whole = self._level(None)
        if own is None:
            return whole or ""
        # Some registries say NONE of a subject for which only the rule for all of them counts.
        return f"NONE ({whole} for others)" if whole not in (None, own) else own

    def _level(self, subject: str | None) -> str | None:
        def look(client: Any) -> str | None:
            try:
                return str(client.get_compatibility(subject))
            except Failed as error:
                if answer_to(error)[0] == 404:
                    return None
                raise

        try:
            return self._ask(subject or "", look)
        except RegistryForbidden:
            return None

    def objection(self, contract: Contract, references: Sequence[conf.Reference]) -> str | None:
        """Return why the registry takes a schema for incompatible; None when it takes it for compatible.

        Raises `SchemaRefused`.
        """
        subject, body = contract.subject, _schema(contract, references).to_dict()
        query = f"?verbose=true&normalize={str(contract.normalize).lower()}"

        def test(client: Any) -> Any:
            # The client's own method for it drops the reasons.
            post, path = marked(client._rest_client.post), f"compatibility/subjects/{quote(subject, safe='')}/versions"
            try:
                return post(path + query, body=body)
            except Failed as error:
                if answer_to(error)[0] not in (404, 405) or is_unknown(error):
                    raise
            # Some registries test against a version at a time.
            return post(f"{path}/latest{query}", body=body)

        answer = self._ask(subject, test)
        if answer.get("is_compatible"):
            return None
        reasons = answer.get("messages") or [answer.get("reason") or "it does not say why"]
        told = [str(one) for one in reasons if not str(one).startswith(_NO_REASONS)]
        return self._registry.scrub("; ".join(told))[:_LONGEST]

    def register(self, contract: Contract, references: Sequence[conf.Reference]) -> None:
        """Register a schema under its subject. Raises `SchemaRefused`."""
        schema = _schema(contract, references)
        self._ask(
            contract.subject,
            lambda client: client.register_schema(contract.subject, schema, normalize_schemas=contract.normalize),
            registers=True,
        )

    def _unless_unknown(self, subject: str, look: Callable[[Any], T]) -> T | None:
        def ask(client: Any) -> T | None:
            try:
                return look(client)
            except Failed as error:
                if is_unknown(error):
                    return None
                raise

        return self._ask(subject, ask)

    def _ask(self, subject: str, do: Callable[[Any], T], *, registers: bool = False) -> T:
        what = f"subject {subject!r}" if subject else "its rule for all subjects"
        # At once: what is refused for one subject says nothing of the others.
        return self._registry.ask(Question(what=what, subject=subject, registers=registers), do, at_once=True)


def _schema(contract: Contract, references: Sequence[conf.Reference]) -> Any:
    package = library.load()
    named = [package.SchemaReference(one.name, one.subject, one.version) for one in references]
    return package.Schema(contract.text, TYPES[contract.kind], named)
