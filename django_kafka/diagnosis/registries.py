"""The schema registry of a cluster: its settings, the schemas that they name, and whether it answers."""

from __future__ import annotations

from collections.abc import Iterator

from .. import conf, schema_plans
from ..clients import schema_registry
from ..clients.schema_registry import Registry
from ..exceptions import (
    AuthenticationFailed,
    AuthorizationFailed,
    ConfigurationError,
    KafkaError,
    RegistryUnavailable,
)
from ..needed_schemas import needed
from .findings import Finding, error, note, unseen, warning, well

CHECK, SCHEMAS = "registry", "schemas"


def look(cluster: conf.Cluster, seconds: float, kinds: frozenset[str]) -> Iterator[Finding]:
    """Look at the registry of a cluster for so many seconds; `kinds` are the serializers that need it."""
    settings = cluster.schema_registry
    if not settings.url:
        yield unseen(CHECK, "settings name none")
        return
    path = f'{cluster.path}["schema_registry"]'
    if settings.tls.insecure_skip_verify:
        saw = f'{path}["tls"]["insecure_skip_verify"] is True: whoever answers is trusted.'
        yield warning(CHECK, saw, "Name the certificates to trust in `ca_file` instead.", of=settings.url)
    try:
        found: Registry = schema_registry.of(cluster.name)
        types = schema_registry.within(seconds, found.types)
    except schema_registry.TooSlow as late:
        mend = f"Look at the registry, or at what stands before it; with --timeout it gets more time ({path})."
        yield error(CHECK, f"{late}", mend, of=settings.url)
    except AuthenticationFailed as trouble:
        yield error(CHECK, str(trouble), f"Mend {path}, or have the registry know this login.", of=settings.url)
    except AuthorizationFailed as trouble:
        yield error(CHECK, str(trouble), "Have the registry allow it to this login.", of=settings.url)
    except RegistryUnavailable as trouble:
        mend = f'Start it, or mend {path}["url"]. Until then what needs a schema that is not known yet waits.'
        yield error(CHECK, str(trouble), mend, of=settings.url)
    except (ConfigurationError, KafkaError) as trouble:
        yield error(CHECK, str(trouble), f"Mend {path}.", of=settings.url)
    else:
        yield from _of_types(types, kinds, settings, found)


def _of_types(
    types: list[str], kinds: frozenset[str], settings: conf.SchemaRegistry, found: Registry
) -> Iterator[Finding]:
    saw = f"It answers {found.refusals.who()}, and has schemas of the types {', '.join(sorted(types))}."
    yield well(CHECK, saw, of=settings.url, types=sorted(types))
    lacking = sorted(kind for kind in kinds if schema_registry.TYPES[kind] not in types)
    if lacking:
        saw = f"It has no schemas for {' and '.join(lacking)}, which settings name as serializers."
        yield error(CHECK, saw, "Use a registry that has them, or another serializer.", of=settings.url)
    if not kinds:
        yield note(
            CHECK, "No producer and no consumer of this cluster has a serializer that needs it.", of=settings.url
        )


def compare(cluster: conf.Cluster, seconds: float) -> Iterator[Finding]:
    """Yield how the schemas of settings stand in the registry of a cluster, asked for so many seconds."""
    if not cluster.schema_registry.url:
        return
    try:
        mine = [one for one in needed() if one.contract.cluster == cluster.name]
        found = schema_registry.within(seconds, lambda: list(schema_plans.look(mine)))
    except (schema_registry.TooSlow, ConfigurationError) as trouble:
        yield unseen(SCHEMAS, str(trouble).removesuffix("."))
        return
    for one in found:
        subject = one.needed.contract.subject
        if one.state is schema_plans.State.UNKNOWN:
            yield unseen(SCHEMAS, one.why.removesuffix("."), of=subject)
        elif not one.is_well:
            saw = f"The schema of {subject!r}, {', '.join(one.needed.uses)}, is {one.state} in the registry"
            mend = f"python manage.py kafka_schemas {'register' if one.is_due else 'diff'} {subject}"
            tell = note if one.is_due and one.needed.registered else warning
            yield tell(SCHEMAS, f"{saw}{f': {one.why}' if one.why else ''}.", mend, of=subject, state=one.state.value)
    if found and all(one.is_well for one in found):
        yield well(SCHEMAS, f"The registry has what settings need of it: {len(found)} in number.")
