"""How the schemas of the project stand in their registries, and how they get there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from . import conf
from .clients import schema_registry
from .clients.schema_registry import Contract, Subjects, Version
from .exceptions import KafkaError, RegistryUnavailable, SchemaRefused
from .needed_schemas import Needed
from .schema_differences import Difference, differences


class State(StrEnum):
    """How a schema stands."""

    THERE = "there"
    MISSING = "missing"
    """Its subject has no version."""
    CHANGED = "changed"
    """It is no version of its subject yet, and compatible."""
    INCOMPATIBLE = "incompatible"
    REFUSED = "refused"
    """It is not valid, or refers to what is not there."""
    UNKNOWN = "unknown"
    """The registry did not say."""
    REGISTERED = "registered"
    """It was put there just now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A schema that is needed, and how it stands."""

    needed: Needed
    state: State
    version: int | None = None
    """Which version of its subject it is; None when it is none."""
    newest: Version | None = None
    """The newest version of its subject, if there is any."""
    level: str = ""
    """By which rule the registry tests new versions; "" when it does not tell."""
    why: str = ""
    """The registry's reason, or what else has to be known."""
    trouble: KafkaError | None = field(default=None, compare=False)
    """Why the registry did not say."""

    @property
    def is_due(self) -> bool:
        """Tell whether it can be registered, and has to be: what is only read is registered by who writes it."""
        return self.needed.written and bool(self.needed.contract.text) and self.state in _DUE

    @property
    def is_well(self) -> bool:
        """Tell whether nothing has to be done for it."""
        if self.state in (State.THERE, State.REGISTERED):
            return True
        return not self.needed.written and self.state in _DUE

    def differences(self) -> list[Difference]:
        """Return how the schema of the project differs from the newest one of the registry."""
        contract = self.needed.contract
        if not contract.text:
            return []
        return differences(contract.kind, self.newest.text if self.newest else "", contract.text)


_DUE = (State.MISSING, State.CHANGED)


def look(wanted: Sequence[Needed]) -> Iterator[Standing]:
    """Yield how each schema stands, in this order. A registry that does not answer is not asked for the others."""
    silent: dict[str, KafkaError] = {}
    subjects = {(one.contract.cluster, one.contract.subject) for one in wanted}
    for each in wanted:
        cluster = each.contract.cluster
        if cluster not in silent:
            try:
                yield _look_at(each, Subjects(schema_registry.of(cluster)), subjects)
                continue
            except RegistryUnavailable as error:
                if error.category != "authorization":
                    silent[cluster] = error
                trouble: KafkaError = error
        else:
            trouble = silent[cluster]
        yield Standing(needed=each, state=State.UNKNOWN, why=str(trouble), trouble=trouble)


def register(wanted: Sequence[Needed]) -> Iterator[Standing]:
    """Register what is due, in this order, and yield what became of each that was.

    Each is looked at once more before: others that it refers to may have been registered meanwhile.
    """
    for each in wanted:
        [now] = look([each])
        if now.is_due:
            yield _register(now)
        elif not now.is_well:
            yield now


def _register(standing: Standing) -> Standing:
    contract = standing.needed.contract
    subjects = Subjects(schema_registry.of(contract.cluster))
    try:
        references = _references(contract, subjects)
        if references is None:
            return replace(standing, state=State.REFUSED)
        subjects.register(contract, references)
        return replace(standing, state=State.REGISTERED, version=subjects.version_of(contract, references), why="")
    except SchemaRefused as error:
        return replace(standing, state=State.REFUSED, why=str(error))
    except RegistryUnavailable as error:
        return replace(standing, state=State.UNKNOWN, why=str(error), trouble=error)


def _look_at(needed: Needed, subjects: Subjects, ours: Collection[tuple[str, str]]) -> Standing:
    contract = needed.contract
    newest = subjects.newest(contract.subject, contract.kind)
    found = Standing(needed=needed, state=State.MISSING, newest=newest, level=subjects.level(contract.subject))
    if not contract.text:
        if newest is None:
            return replace(found, why="whatever is the newest there is written: somebody else has to register it")
        return replace(found, state=State.THERE, version=newest.number)
    references = _references(contract, subjects)
    try:
        if references is not None and newest is not None:
            found = _compared(found, newest, contract, references, subjects)
    except SchemaRefused as error:
        return replace(found, state=State.REFUSED, why=str(error))
    if found.state is State.THERE:
        return found
    if references is None:
        state = State.MISSING if newest is None else State.CHANGED
        return replace(found, state=state, why="not tested: what it imports has to be registered before")
    for one in references:
        if (contract.cluster, one.subject) not in ours and not _is_there(one, subjects):
            return replace(
                found, state=State.REFUSED,
                why=f"it refers to version {one.version} of {one.subject!r}, which is not there",
            )  # fmt: skip
    return found


def _compared(
    found: Standing, newest: Version, contract: Contract, references: Sequence[conf.Reference], subjects: Subjects
) -> Standing:
    version = subjects.version_of(contract, references)
    if version is not None:
        older = f"{newest.number} is the newest" if version != newest.number else ""
        return replace(found, state=State.THERE, version=version, why=older)
    if not found.needed.written and not any(word in found.level for word in ("BACKWARD", "FULL")):
        return replace(found, state=State.CHANGED, why="not tested: by this rule the registry says nothing of readers")
    why = subjects.objection(contract, references)
    if why is not None:
        return replace(found, state=State.INCOMPATIBLE, why=why)
    return replace(found, state=State.CHANGED)


def _references(contract: Contract, subjects: Subjects) -> tuple[conf.Reference, ...] | None:
    """Return what a schema refers to, with versions; None when the registry does not have what it imports."""
    found = list(contract.references)
    for one in contract.imports:
        inner = _references(one, subjects)
        version = None if inner is None else subjects.version_of(one, inner)
        if version is None:
            return None
        # As the library does it: it is called as its file is.
        found.append(conf.Reference(name=one.subject, subject=one.subject, version=version))
    return tuple(found)


def _is_there(reference: conf.Reference, subjects: Subjects) -> bool:
    newest = subjects.newest(reference.subject, "")
    return newest is not None and newest.number >= reference.version
